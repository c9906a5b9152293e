//! What is said of a night: a terminal summary, Markdown for a pull request, JUnit's XML for a build server, JSON.

use comfy_table::{Cell, CellAlignment, Table};
use graftwork_verdict::{CostFinding, Finding};
use graftwork_web::{Cost, Flip, NightOutcome, NightlyView, Row};

use crate::{progress::duration, report::new_table};

/// Commits that a terminal lists at most.
const MOST_COMMITS: usize = 20;

/// Rows that got worse of which a terminal and a Markdown summary tell.
const MOST_FLIPS: usize = 3;

/// The view itself.
pub(super) fn json(view: &NightlyView) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(view)? + "\n")
}

/// One line that says how the night ended.
pub(super) fn headline(view: &NightlyView) -> String {
    let against = match &view.baseline {
        Some(head) => format!(" against {}", head.title()),
        None => String::new(),
    };
    let failing: Vec<String> = failing(view);
    let outcome = match view.outcome {
        NightOutcome::First => "the first one, nothing to compare with yet".to_owned(),
        NightOutcome::Good => "no regression".to_owned(),
        NightOutcome::Expected => "regressions, all of them expected".to_owned(),
        NightOutcome::Regressed => format!("REGRESSED: {}", failing.join(", ")),
    };
    format!("{}, {}{against}: {outcome}", view.job, view.night.title())
}

/// What fails the night, each once.
fn failing(view: &NightlyView) -> Vec<String> {
    let scores = view.scores.iter().filter(|row| row.fails()).map(|row| row.task.clone());
    let costs = view.costs.iter().filter(|cost| cost.fails()).map(|cost| cost.change.name.clone());
    let problems = view.problems.iter().filter(|problem| problem.fails).map(|problem| problem.name.clone());
    let mut names: Vec<String> = Vec::new();
    scores.chain(problems).chain(costs).for_each(|name| {
        if !names.contains(&name) {
            names.push(name);
        }
    });
    names
}

/// The summary for a terminal.
pub(super) fn terminal(view: &NightlyView, color: bool) -> String {
    let mut text = headline(view) + "\n";
    for problem in &view.problems {
        text.push_str(&format!("  {} {}\n", problem.name, problem.message));
    }
    if !view.alone.is_empty() {
        text.push_str(&format!("{}\n", alone(view, color)));
    }
    if !view.scores.is_empty() {
        text.push_str(&format!("{}\n", table(view, color)));
    }
    text.extend(view.error().map(|words| words + "\n"));
    for row in view.scores.iter().filter(|row| row.verdict.finding == Finding::Regressed) {
        text.push_str(&format!("\n{}: {}\n", row.verdict.name, row.sentence()));
        if let Some(reason) = &row.expected {
            text.push_str(&format!("  expected: {reason}\n"));
        }
        for Flip { row, label, before, after, text: asked, .. } in row.flipped.iter().take(MOST_FLIPS) {
            let asked = asked.as_deref().unwrap_or("its text is not at hand");
            let (before, after) = (before.join(" "), after.join(" "));
            text.push_str(&format!("  row {row}: {asked}\n    right {label}, before {before}, now {after}\n"));
        }
        text.push_str(&format!("  repeat it: {}\n", row.repeat));
        if let Some(bisect) = &row.bisect {
            text.push_str(&format!("  find its commit: {bisect}\n"));
        }
    }
    if !view.commits.is_empty() {
        text.push_str("\ncommits between the two nights:\n");
        listed(&view.commits, String::clone).for_each(|commit| text.push_str(&format!("  {commit}\n")));
    }
    for cost in view.costs.iter().filter(|cost| cost.change.finding == CostFinding::Regressed) {
        text.push_str(&format!("\n{}: {}\n", cost.change.name, cost.sentence()));
        if let Some(reason) = &cost.expected {
            text.push_str(&format!("  expected: {reason}\n"));
        }
        text.push_str(&format!("  measure it once more: {}\n", cost.repeat));
        if !cost.commits.is_empty() {
            text.push_str(&format!("  commits between {}:\n", nights_around(cost)));
            listed(&cost.commits, String::clone).for_each(|commit| text.push_str(&format!("    {commit}\n")));
        }
    }
    if !view.pairs.is_empty() {
        text.push_str("\ntime and memory, one run of each, so without a verdict:\n");
        view.pairs.iter().for_each(|pair| text.push_str(&format!("  {}: {}\n", pair.name, pair.sentence())));
    }
    let wall = view.night.ended_ms.saturating_sub(view.night.began_ms) as f64 / 1000.0;
    let gpu = view.usage.gpu_seconds;
    let gpu = if gpu > 0.0 { format!("{gpu:.1} GPU-seconds, ") } else { String::new() };
    text.push_str(&format!(
        "\n{:.1} core-seconds, {gpu}{} examples, {}\n",
        view.usage.core_seconds,
        view.usage.examples,
        duration(wall)
    ));
    text
}

/// Commits in lines, no more than people read.
fn listed(commits: &[String], line: fn(&String) -> String) -> impl Iterator<Item = String> {
    let more = commits.len().saturating_sub(MOST_COMMITS);
    let rest = (more > 0).then(|| format!("and {more} more"));
    commits.iter().take(MOST_COMMITS).map(line).chain(rest)
}

/// Between which nights a cost grew.
fn nights_around(cost: &Cost) -> String {
    let before = cost.last_before().map_or_else(String::new, |before| format!("night {before} and "));
    format!("{before}night {}", cost.since)
}

fn alone(view: &NightlyView, color: bool) -> Table {
    let mut table = new_table(&["score", "seeds", "mean", "lowest", "highest"], color);
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    for score in &view.alone {
        let mut row = vec![Cell::new(format!("{} {}", score.task, score.metric)), right(score.seeds.len().to_string())];
        row.extend(score.spread().map(|value| right(format!("{value:.4}"))));
        table.add_row(row);
    }
    table
}

fn table(view: &NightlyView, color: bool) -> Table {
    let mut table = new_table(&["score", "before", "now", "change", "±", "", "would be found"], color);
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    for row in &view.scores {
        let verdict = &row.verdict;
        table.add_row([
            Cell::new(&verdict.name),
            right(format!("{:.4}", verdict.means[0])),
            right(format!("{:.4}", verdict.means[1])),
            right(format!("{:+.4}", verdict.change)),
            right(format!("{:.4}", verdict.half_width)),
            Cell::new(word(row)),
            right(found(row)),
        ]);
    }
    table
}

/// The drop that would have been found.
fn found(row: &Row) -> String {
    row.verdict.detectable.map_or("–".to_owned(), |drop| format!("-{drop:.4}"))
}

fn word(row: &Row) -> &'static str {
    match row.verdict.finding {
        Finding::Regressed if row.expected.is_some() => "worse, as expected",
        Finding::Regressed => "✗ worse",
        Finding::Suspected => "lower, maybe chance",
        Finding::Improved => "✓ better",
        Finding::Small => "too small to matter",
        Finding::Steady => "steady",
        Finding::Same => "same answers",
    }
}

/// The summary for a pull request.
pub(super) fn markdown(view: &NightlyView) -> String {
    let plain = |text: &str| text.replace('|', "\\|").replace('<', "&lt;");
    let mut text = format!("### {}\n\n", plain(&headline(view)));
    for problem in &view.problems {
        text.push_str(&format!("- **{}** {}\n", plain(&problem.name), plain(&problem.message)));
    }
    if !view.alone.is_empty() {
        text.push_str("\n| score, compared with nothing | mean | lowest to highest seed |\n|---|---:|---|\n");
        for score in &view.alone {
            let [mean, lowest, highest] = score.spread();
            let name = plain(&score.task);
            text.push_str(&format!("| {name} {} | {mean:.4} | {lowest:.4} to {highest:.4} |\n", score.metric));
        }
    }
    let moved = |row: &&Row| !matches!(row.verdict.finding, Finding::Same | Finding::Steady);
    if view.scores.iter().any(|row| moved(&row)) {
        text.push_str(
            "\n| score | before | now | change, 95 % | verdict | would be found |\n|---|---:|---:|---:|---|---:|\n",
        );
        for row in view.scores.iter().filter(moved) {
            let verdict = &row.verdict;
            let reason = row.expected.as_ref().map_or(String::new(), |reason| format!(": {}", plain(reason)));
            text.push_str(&format!(
                "| {} | {:.4} | {:.4} | {:+.4} ± {:.4} | {}{reason} | {} |\n",
                plain(&verdict.name),
                verdict.means[0],
                verdict.means[1],
                verdict.change,
                verdict.half_width,
                word(row),
                found(row)
            ));
        }
    }
    for row in view.scores.iter().filter(|row| row.fails()) {
        let bisect =
            row.bisect.as_ref().map_or_else(String::new, |bisect| format!(" Find its commit with `{bisect}`."));
        text.push_str(&format!(
            "\n{}: {}. Repeat it with `{}`.{bisect}\n",
            plain(&row.verdict.name),
            row.sentence(),
            row.repeat
        ));
        text.push_str(&flips(row));
    }
    text.push_str(&commits(&view.commits, "the two nights"));
    if !view.pairs.is_empty() {
        text.push_str("\n| time and memory, one run of each | before → now |\n|---|---|\n");
        for pair in &view.pairs {
            text.push_str(&format!("| {} | {} |\n", plain(&pair.name), pair.sentence()));
        }
    }
    for cost in view.costs.iter().filter(|cost| cost.change.finding == CostFinding::Regressed) {
        let (name, sentence) = (plain(&cost.change.name), cost.sentence());
        text.push_str(&format!("\n{name}: {sentence}. Measure it once more with `{}`.\n", cost.repeat));
        text.push_str(&commits(&cost.commits, &nights_around(cost)));
    }
    let steady = view.scores.iter().filter(|row| !moved(row)).count();
    if !view.scores.is_empty() {
        text.push_str(&format!("\n{steady} of {} scores did not move.\n", view.scores.len()));
    }
    text.extend(view.error().map(|words| format!("\nOf each score: {words}.\n")));
    text
}

/// The first rows that got worse as a list of Markdown.
fn flips(row: &Row) -> String {
    let one = |flip: &Flip| {
        let Flip { row, label, before, after, text, .. } = flip;
        let text = text.as_ref().map_or_else(String::new, |text| format!(": {}", code(text)));
        let answers = [label, &before.join(" "), &after.join(" ")].map(|words| code(words));
        format!("- row {row}{text}; right {}, before {}, now {}\n", answers[0], answers[1], answers[2])
    };
    let lines: String = row.flipped.iter().take(MOST_FLIPS).map(one).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

/// Words of others in code, so that they mention nobody and are no Markdown.
fn code(words: &str) -> String {
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ").replace('`', "'");
    if line.is_empty() { "–".to_owned() } else { format!("`{line}`") }
}

/// Commits as a list of Markdown.
fn commits(commits: &[String], between: &str) -> String {
    if commits.is_empty() {
        return String::new();
    }
    let lines: String = listed(commits, |commit| code(commit)).map(|line| format!("- {line}\n")).collect();
    format!("\nCommits between {between}:\n\n{lines}")
}

/// JUnit's XML: each score, cost and problem is a test case.
pub(super) fn junit(view: &NightlyView) -> String {
    let mut cases = Vec::new();
    for problem in &view.problems {
        cases.push(("measured", problem.name.clone(), problem.fails.then(|| problem.message.clone())));
    }
    for row in &view.scores {
        let bisect = row.bisect.as_ref().map_or_else(String::new, |bisect| format!("\nfind its commit: {bisect}"));
        let said = || format!("{}\nrepeat it: {}{bisect}{}", row.sentence(), row.repeat, below(&view.commits));
        let failure = row.fails().then(said);
        cases.push(("scores", row.verdict.name.clone(), failure));
    }
    for score in &view.alone {
        cases.push(("scores", format!("{} {}", score.task, score.metric), None));
    }
    for cost in &view.costs {
        let said = || format!("{}\nmeasure it once more: {}{}", cost.sentence(), cost.repeat, below(&cost.commits));
        cases.push(("costs", cost.change.name.clone(), cost.fails().then(said)));
    }
    let failures = cases.iter().filter(|(_, _, failure)| failure.is_some()).count();
    let seconds = view.night.ended_ms.saturating_sub(view.night.began_ms) as f64 / 1000.0;
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"{}, {}\" tests=\"{}\" failures=\"{failures}\" \
         time=\"{seconds:.1}\">\n",
        escaped(&view.job),
        escaped(&view.night.title()),
        cases.len()
    );
    for (class, name, failure) in cases {
        let head = format!("  <testcase classname=\"{class}\" name=\"{}\"", escaped(&name));
        match failure {
            None => text.push_str(&format!("{head}/>\n")),
            Some(words) => {
                let first = words.lines().next().unwrap_or_default();
                text.push_str(&format!(
                    "{head}>\n    <failure message=\"{}\">{}</failure>\n  </testcase>\n",
                    escaped(first),
                    escaped(&words)
                ));
            }
        }
    }
    text + "</testsuite>\n"
}

/// Commits below a sentence.
fn below(commits: &[String]) -> String {
    listed(commits, |commit| format!("commit: {commit}")).map(|line| format!("\n{line}")).collect()
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML 1.0 has no word for most control characters.
            character if character.is_control() && character != '\n' => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_takes_any_text() {
        assert_eq!(escaped("a<b> & \"c\"\u{1}\n"), "a&lt;b&gt; &amp; &quot;c&quot; \n");
    }
}
