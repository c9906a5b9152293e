//! Scores and costs night by night, as charts.

use graftwork_verdict::half_width;
use maud::{Markup, html};

use super::NightlyView;
use crate::chart::{self, Line};

/// One chart a task: the mean over seeds, between which seeds it lies, and its interval.
pub(super) fn scores(view: &NightlyView) -> Markup {
    let mut tasks: Vec<&String> = view.history.iter().flat_map(|past| past.scores.keys()).collect();
    tasks.sort_unstable();
    tasks.dedup();
    html! {
        p.muted {
            "Night by night. " span.key.score { "mean over seeds" } " " span.key.loss { "lowest and highest seed" } " "
            span.key.before { "95 % interval of the mean, by Student's t over that night's seeds" }
        }
        div.cards { @for task in tasks { article.card { h3 { (task) } (score(view, task)) (said(view, task)) } } }
    }
}

fn score(view: &NightlyView, task: &str) -> Markup {
    let line = |class, dots, of: fn(&[f64]) -> f64| {
        let nights = view.history.iter().filter_map(|past| Some((past.head.number as f64, past.scores.get(task)?)));
        Line { class, points: nights.map(|(night, seeds)| (night, of(seeds))).collect(), dots }
    };
    // With one seed there is no interval, and no point.
    let lines = [
        line("before", false, |seeds| half_width(seeds).map_or(f64::NAN, |half| mean(seeds) - half)),
        line("before", false, |seeds| half_width(seeds).map_or(f64::NAN, |half| mean(seeds) + half)),
        line("loss", false, |seeds| seeds.iter().copied().fold(f64::INFINITY, f64::min)),
        line("loss", false, |seeds| seeds.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        line("score", true, mean),
    ];
    chart::lines(&format!("score of {task} by night"), &lines, None)
}

/// The last night's mean and interval in numbers.
fn said(view: &NightlyView, task: &str) -> Markup {
    let last = view.history.iter().rev().find_map(|past| Some((past.head.title(), past.scores.get(task)?)));
    html! { @if let Some((night, seeds)) = last {
        p.muted { (night) ": " (format!("{:.4}", mean(seeds))) @match half_width(seeds) {
            Some(half) => (format!(" ± {half:.4} over {} seeds", seeds.len())),
            None => ", one seed tells no interval",
        } }
    } }
}

fn mean(seeds: &[f64]) -> f64 {
    seeds.iter().sum::<f64>() / seeds.len().max(1) as f64
}

/// One chart a cost.
pub(super) fn costs(view: &NightlyView) -> Markup {
    html! {
        div.cards { @for cost in &view.costs { @if cost.values.len() > 1 { article.card {
            h3 { (cost.change.name) }
            (chart::lines(&format!("{} by night", cost.change.name),
                &[Line { class: "score", points: cost.values.iter().map(|(night, value)| (*night as f64, *value)).collect(), dots: true }], None))
        } } } }
    }
}
