//! The page of a night: regressions first, then the leaderboard, history, flipped rows, training and cost.

mod history;
mod training;
mod view;

use graftwork_verdict::{CostFinding, Finding, Verdict};
use maud::{Markup, html};
pub use training::{Curve, Curves};
pub use view::{
    Alone, Cost, Flip, Head, MOST_FLIPS, NightOutcome, NightlyView, PairedCost, Past, Problem, Row, percent,
};

use crate::{number, page};

/// Commits that are listed without a click at most.
const OPEN_COMMITS: usize = 20;

/// The whole page, self-contained: style inside, no script, nothing fetched. `curves` tell how the night and its baseline
/// were trained.
pub fn nightly_page(view: &NightlyView, curves: &Curves) -> String {
    let main = html! {
        section #regressions { h2 { "Regressions" } (regressions(view)) }
        @if !view.problems.is_empty() { section #problems { h2 { "Not measured or not comparable" } (problems(view)) } }
        section #leaderboard { h2 { "Leaderboard" } (leaderboard(view)) }
        @if !view.history.is_empty() { section #history { h2 { "History" } (history::scores(view)) } }
        section #flipped { h2 { "Rows whose answers got worse" } (flipped(view)) }
        section #training { h2 { "Learning curves and attention of fusions" } (training::cards(curves)) }
        section #costs { h2 { "Time and memory" }
            @if view.pairs.is_empty() { (costs(view)) (history::costs(view)) } @else { (pairs(view)) }
        }
        section #error { h2 { "How far this may be wrong" } (error(view)) }
    };
    page::whole(&format!("{} – {}", view.job, view.night.title()), include_str!("../nightly.css"), header(view), main)
}

fn header(view: &NightlyView) -> Markup {
    let named =
        view.scores.iter().filter(|row| row.fails()).count() + view.costs.iter().filter(|cost| cost.fails()).count();
    let failed = view.problems.iter().filter(|problem| problem.fails).count();
    let (class, words) = match view.outcome {
        NightOutcome::First => ("good", "first night: nothing to compare with yet".to_owned()),
        NightOutcome::Good => ("good", "no regression".to_owned()),
        NightOutcome::Expected => ("warn", "regressions, all of them expected".to_owned()),
        NightOutcome::Regressed if failed > 0 => ("bad", format!("{named} regressions, {failed} not measured")),
        NightOutcome::Regressed if named == 1 => ("bad", "1 regression".to_owned()),
        NightOutcome::Regressed => ("bad", format!("{named} regressions")),
    };
    let wall = view.night.ended_ms.saturating_sub(view.night.began_ms) as f64 / 1000.0;
    html! {
        p.kind { "Graftwork nightly" }
        h1 { (view.job) ", " (view.night.title()) }
        p { span class=(format!("badge {class}")) { (words) } }
        dl.facts {
            div { dt { "compared with" } dd { @match &view.baseline {
                Some(head) => (head.title()),
                None => "–",
            } } }
            div { dt { "wall time" } dd { (number::duration(wall)) } }
            div { dt { "core time" } dd { (number::duration(view.usage.core_seconds)) } }
            @if view.usage.gpu_seconds > 0.0 { div { dt { "GPU time" } dd { (number::duration(view.usage.gpu_seconds)) } } }
            div { dt { "examples trained" } dd { (number::count(view.usage.examples)) } }
            @if view.night.resumed > 0 { div { dt { "went on after interruptions" } dd { (view.night.resumed) } } }
        }
        dl.wide {
            dt { "code" } dd { (code(&view.night)) }
            @if let Some(head) = &view.baseline { dt { "baseline's code" } dd { (code(head)) } }
            @if !view.night.recoveries.is_empty() { dt { "recovery" } dd { (view.night.recoveries.join("; ")) } }
            dt { "once more" } dd { code { (view.again) } }
        }
    }
}

fn code(head: &Head) -> Markup {
    html! { "version " (head.version) ", numerics " (head.numerics) ", " code { (head.code) } }
}

fn regressions(view: &NightlyView) -> Markup {
    let scores = || view.scores.iter().filter(|row| row.verdict.finding == Finding::Regressed);
    let costs = || view.costs.iter().filter(|cost| cost.change.finding == CostFinding::Regressed);
    html! {
        @if scores().next().is_none() && costs().next().is_none() { p { "None." } }
        @for row in scores() {
            article.card.named {
                h3 { (row.verdict.name) " " (badge(row.fails(), row.expected.as_deref())) }
                p { (row.sentence()) "." }
                p { (row.verdict.moved[0]) " answers got worse, " (row.verdict.moved[1]) " better." }
                p.muted { "Repeat it: " code { (row.repeat) } }
                @if let Some(bisect) = &row.bisect { p.muted { "Find its commit: " code { (bisect) } } }
            }
        }
        @for cost in costs() {
            article.card.named {
                h3 { (cost.change.name) " " (badge(cost.fails(), cost.expected.as_deref())) }
                p { (cost.sentence()) "." }
                p.muted { "Measure it once more: " code { (cost.repeat) } }
                @if let Some(before) = cost.last_before() {
                    (commits(&cost.commits, &format!("night {before} and night {}", cost.since)))
                }
            }
        }
        (commits(&view.commits, "the two nights"))
    }
}

fn commits(commits: &[String], between: &str) -> Markup {
    html! { @if !commits.is_empty() {
        details open[commits.len() <= OPEN_COMMITS] {
            summary { (commits.len()) " commit" @if commits.len() > 1 { "s" } " between " (between) }
            ul { @for commit in commits { li { code { (commit) } } } }
        }
    } }
}

fn badge(fails: bool, expected: Option<&str>) -> Markup {
    match expected {
        _ if fails => html! { span.badge.bad { "regression" } },
        Some(reason) => html! { span.badge.warn { "expected" } " " span.muted { (reason) } },
        None => html! {},
    }
}

fn problems(view: &NightlyView) -> Markup {
    html! { ul { @for problem in &view.problems {
        li { strong { (problem.name) } " " (problem.message) @if problem.fails { " " span.badge.bad { "fails the night" } } }
    } } }
}

fn leaderboard(view: &NightlyView) -> Markup {
    html! {
        @if !view.alone.is_empty() { (alone(&view.alone)) }
        @if !view.scores.is_empty() { div.scroll { table {
            thead { tr {
                th { "task" } th { "method" } th { "score" } th.n { "rows" } th.n { "seeds" } th.n { "before" } th.n { "now" }
                th.n { "change, 95 %" } th { "verdict" } th.n { "would be found" }
            } }
            tbody { @for row in ranked(&view.scores) { (line(row)) } }
        } } }
    }
}

/// The scores that count, of each measure the highest first; behind them what else was compared of the same tasks.
fn ranked(scores: &[Row]) -> Vec<&Row> {
    let mut rows: Vec<&Row> = scores.iter().collect();
    let now = |row: &Row| row.verdict.means[1];
    rows.sort_by(|one, other| {
        let kind = |row: &Row| (!row.main, row.verdict.measure);
        kind(one).cmp(&kind(other)).then(now(other).total_cmp(&now(one)))
    });
    rows
}

fn alone(scores: &[Alone]) -> Markup {
    html! {
        p.muted { "Nothing to compare with yet." }
        div.scroll { table {
            thead { tr {
                th { "task" } th { "method" } th { "score" } th.n { "seeds" } th.n { "mean" } th.n { "lowest" } th.n { "highest" }
            } }
            tbody { @for score in scores {
                @let [mean, lowest, highest] = score.spread();
                tr {
                    th scope="row" { (score.task) @if score.fusion { " " span.tag { "fusion" } } }
                    td { (score.method) } td { (score.metric) } td.n { (score.seeds.len()) }
                    td.n.strong { (number::score(mean)) } td.n { (number::score(lowest)) } td.n { (number::score(highest)) }
                }
            } }
        } }
    }
}

fn line(row: &Row) -> Markup {
    let Verdict { finding, measure, rows, seeds, means, change, half_width, detectable, .. } = &row.verdict;
    let (class, words) = match finding {
        Finding::Regressed if row.expected.is_some() => ("warn", "worse, as expected"),
        Finding::Regressed => ("bad", "worse"),
        Finding::Improved => ("good", "better"),
        Finding::Suspected => ("warn", "lower, maybe chance"),
        Finding::Small => ("", "smaller than matters"),
        Finding::Steady => ("", "steady"),
        Finding::Same => ("", "same answers"),
    };
    html! { tr {
        th scope="row" { (row.task) @if row.fusion { " " span.tag { "fusion" } } }
        td { (row.method) }
        td { (format!("{measure:?}")) }
        td.n { (rows) } td.n { (seeds) }
        td.n { (number::score(means[0])) }
        td.n.strong { (number::score(means[1])) }
        td.n { (format!("{change:+.4} ± {half_width:.4}")) }
        td { span class=(format!("badge {class}")) { (words) } }
        td.n { (detectable.map_or("–".to_owned(), |drop| format!("−{drop:.4}"))) }
    } }
}

fn flipped(view: &NightlyView) -> Markup {
    let with = || view.scores.iter().filter(|row| !row.flipped.is_empty());
    html! {
        @if with().next().is_none() { p { "None." } }
        @for row in with() {
            details open[row.verdict.finding == Finding::Regressed] {
                summary { (row.task) ": " (row.verdict.moved[0]) " answers worse, " (row.verdict.moved[1]) " better" }
                div.scroll { table {
                    @let texts = row.flipped.iter().any(|flip| flip.text.is_some());
                    thead { tr { th.n { "row" } @if texts { th { "text" } } th { "right" } th { "before, by seed" } th { "now, by seed" } th.n { "seeds worse" } } }
                    tbody { @for flip in &row.flipped { tr {
                        td.n { (flip.row) } @if texts { td { (flip.text.as_deref().unwrap_or("–")) } } td { (flip.label) } td { (flip.before.join(", ")) } td { (flip.after.join(", ")) }
                        td.n { (flip.worse) }
                    } } }
                } }
            }
        }
    }
}

fn costs(view: &NightlyView) -> Markup {
    html! {
        div.scroll { table {
            thead { tr { th { "cost" } th.n { "now" } th { "verdict" } } }
            tbody { @for cost in &view.costs { tr {
                th scope="row" { (cost.change.name) }
                td.n { (cost.values.last().map_or("–".to_owned(), |(_, value)| significant(*value))) }
                td { (badge(cost.fails(), cost.expected.as_deref())) " " (cost.sentence()) }
            } } }
        } }
    }
}

fn pairs(view: &NightlyView) -> Markup {
    html! {
        p.muted { "One run of each, in turn: no verdict." }
        div.scroll { table {
            thead { tr { th { "cost" } th { "before → now" } } }
            tbody { @for pair in &view.pairs { tr { th scope="row" { (pair.name) } td { (pair.sentence()) } } } }
        } }
    }
}

/// Three digits of any size of number.
fn significant(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.5}"),
    }
}

fn error(view: &NightlyView) -> Markup {
    html! {
        p { "A score is named when the rows speak against chance, when the seeds do, and when the drop matters. "
            "Of nights without any change at most " (percent(view.false_alarm)) " name anything, for worse or for better: that is "
            "divided among drops and gains of scores, and growth and savings of costs. Benjamini and Hochberg's procedure runs over "
            "all " (view.scores.len()) " scores and all " (view.costs.len()) " costs." }
        p { "What would have been found stands beside each score: a drop of that size, even as the only one of the night, "
            "is named as often as `power` in the job file says." }
        @if view.pairs.is_empty() { p { "Nights that were interrupted are left out of the history of costs. A change of cost is told from noise only "
            "after several nights, since one slow night is no change." } }
    }
}
