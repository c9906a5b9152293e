//! What a night came to: the one value behind its page, its JSON document, JUnit's, the terminal and the Markdown.

use std::collections::BTreeMap;

use graftwork_shared::assignment::Usage;
use graftwork_verdict::{Change, Finding, Verdict};
use serde::{Deserialize, Serialize};

/// A night and how it compares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NightlyView {
    /// The job's name.
    pub job: String,
    /// This night.
    pub night: Head,
    /// The night that it is compared with; none for the first one.
    pub baseline: Option<Head>,
    /// How it ended.
    pub outcome: NightOutcome,
    /// What could not be measured or compared.
    pub problems: Vec<Problem>,
    /// Scores, regressions first.
    pub scores: Vec<Row>,
    /// Scores that compare with nothing: all of a first night, and later those of new tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alone: Vec<Alone>,
    /// Costs over the history, regressions first.
    pub costs: Vec<Cost>,
    /// Where a score got worse: commits after the baseline's up to this night's, the oldest first, a line each. Empty unless both
    /// nights name a commit of the job file's repository.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commits: Vec<String>,
    /// Costs of two versions side by side; without a history they have no verdict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<PairedCost>,
    /// All nights whose numbers are known, oldest first, this one included; empty for two versions side by side.
    pub history: Vec<Past>,
    /// What the night used.
    pub usage: Usage,
    /// Chance that a night without any change names anything, at most.
    pub false_alarm: f64,
    /// Command that runs this night's job once more.
    pub again: String,
}

/// One night in a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Its number; 0 for a version that was measured beside another one and is no night of the history.
    pub number: u64,
    /// Milliseconds since 1970 when it began and ended.
    pub began_ms: u64,
    /// The end.
    pub ended_ms: u64,
    /// Version of the programs.
    pub version: String,
    /// Version of the numerics.
    pub numerics: u32,
    /// The code that was measured, as the user names it, or the digest of the programs.
    pub code: String,
    /// Times it went on after an interruption.
    pub resumed: u32,
    /// How long training stood still after each loss, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recoveries: Vec<String>,
}

/// How a night ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NightOutcome {
    /// Nothing to compare with yet.
    First,
    /// No regression.
    Good,
    /// Regressions, all of them expected.
    Expected,
    /// At least one regression that is not expected.
    Regressed,
}

/// What could not be measured or compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The task or fusion.
    pub name: String,
    /// What and why.
    pub message: String,
    /// Whether it fails the night.
    pub fails: bool,
}

/// One score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The verdict.
    pub verdict: Verdict,
    /// The task or fusion.
    pub task: String,
    /// Whether it is a fusion.
    pub fusion: bool,
    /// The method in a line.
    pub method: String,
    /// Whether it is the metric that counts for the task.
    pub main: bool,
    /// Why a drop was expected, where it was.
    pub expected: Option<String>,
    /// Command that repeats exactly this measurement.
    pub repeat: String,
    /// Command that finds the commit between the two nights that made it worse, where both name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bisect: Option<String>,
    /// Rows whose answers got worse, the most seeds first; at most [`MOST_FLIPS`].
    pub flipped: Vec<Flip>,
}

/// A score by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alone {
    /// The task or fusion.
    pub task: String,
    /// Whether it is a fusion.
    pub fusion: bool,
    /// The method in a line.
    pub method: String,
    /// The metric that counts for the task.
    pub metric: String,
    /// Score of each seed.
    pub seeds: Vec<f64>,
}

impl Alone {
    /// Mean over the seeds, the lowest and the highest.
    pub fn spread(&self) -> [f64; 3] {
        let mean = self.seeds.iter().sum::<f64>() / self.seeds.len().max(1) as f64;
        let lowest = self.seeds.iter().copied().fold(f64::INFINITY, f64::min);
        [mean, lowest, self.seeds.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
    }
}

/// Flipped rows that are listed at most.
pub const MOST_FLIPS: usize = 50;

/// A row whose answers got worse.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flip {
    /// Its number in the split.
    pub row: u64,
    /// What is right.
    pub label: String,
    /// What the baseline answered, seed by seed.
    pub before: Vec<String>,
    /// What this night answered.
    pub after: Vec<String>,
    /// Seeds that got worse.
    pub worse: u32,
    /// The beginning of its text, where it could be read once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// One cost over the nights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// What the history says.
    pub change: Change,
    /// The task or fusion; the whole night without.
    pub task: Option<String>,
    /// The night from which on it changed.
    pub since: u64,
    /// Why growth was expected, where it was.
    pub expected: Option<String>,
    /// Command that measures it once more.
    pub repeat: String,
    /// Where it grew: commits after those of the last night before, up to those of the first one since, as in [`NightlyView`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commits: Vec<String>,
    /// Night by night.
    pub values: Vec<(u64, f64)>,
}

/// One cost of two versions that ran in turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairedCost {
    /// What it is, with its unit.
    pub name: String,
    /// Of the older version; above 0.
    pub before: f64,
    /// Of the newer one; above 0.
    pub after: f64,
}

/// A night of the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// The night.
    pub head: Head,
    /// Whether it may be a baseline.
    pub good: bool,
    /// Main scores by task: seed by seed.
    pub scores: BTreeMap<String, Vec<f64>>,
    /// What it used.
    pub usage: Usage,
}

impl NightlyView {
    /// What its verdicts on scores would have found, and how often they are wrong; nothing where none was compared.
    pub fn error(&self) -> Option<String> {
        let power = percent(self.scores.first()?.verdict.power);
        let drops = || self.scores.iter().filter_map(|row| row.verdict.detectable);
        let found = match (drops().reduce(f64::min), drops().reduce(f64::max)) {
            (Some(least), Some(most)) if least < most => {
                format!("a drop of {least:.4} to {most:.4}, depending on the score, would have been found with {power}")
            }
            (Some(drop), _) => format!("a drop of {drop:.4} would have been found with {power}"),
            _ => "with one seed and the same answers nothing tells of noise".to_owned(),
        };
        Some(format!("{found}, {}", alarms(self.false_alarm)))
    }
}

impl Head {
    /// What people call it.
    pub fn title(&self) -> String {
        if self.number == 0 { self.code.clone() } else { format!("night {}", self.number) }
    }
}

impl PairedCost {
    /// Both numbers and how far they lie apart.
    pub fn sentence(&self) -> String {
        let Self { before, after, .. } = self;
        let digits = |value: f64| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
        format!("{} → {} ({})", digits(*before), digits(*after), signed(after / before - 1.0))
    }
}

impl Row {
    /// Whether it fails the night.
    pub fn fails(&self) -> bool {
        self.verdict.finding == Finding::Regressed && self.expected.is_none()
    }

    /// The verdict in a sentence, with its own error.
    pub fn sentence(&self) -> String {
        let Verdict { finding, means: [before, after], change, half_width, seeds, rows, .. } = &self.verdict;
        let measured = format!(
            "{before:.4} → {after:.4} ({change:+.4} ± {half_width:.4}, {rows} rows, {seeds} seed{})",
            if *seeds == 1 { "" } else { "s" }
        );
        let (finding, more) = match finding {
            Finding::Same => ("the same answers", String::new()),
            Finding::Steady => ("no change that chance would not give", String::new()),
            Finding::Suspected => ("lower, but chance gives as much", String::new()),
            Finding::Small => ("changed by less than matters", String::new()),
            Finding::Improved => ("better", format!(", level {:.4}", self.verdict.levels.gain)),
            Finding::Regressed => ("worse", format!(", level {:.4}", self.verdict.levels.drop)),
        };
        format!("{finding}: {measured}{more}; {}", self.error())
    }

    /// What would have been found, and how often nothing is found wrongly.
    pub fn error(&self) -> String {
        let verdict = &self.verdict;
        let alarms = alarms(verdict.false_alarm);
        let found = match verdict.detectable {
            Some(drop) => format!("a drop of {drop:.4} would have been found with {}", percent(verdict.power)),
            None => "with one seed and the same answers nothing tells of noise".to_owned(),
        };
        let seeds = if verdict.by_seeds.is_none() { " (what other seeds would give is not known)" } else { "" };
        format!("{found}, {alarms}{seeds}")
    }
}

impl Cost {
    /// The last night before the change of those that count.
    pub fn last_before(&self) -> Option<u64> {
        self.values.iter().map(|(night, _)| *night).filter(|night| *night < self.since).max()
    }

    /// Whether it fails the night.
    pub fn fails(&self) -> bool {
        self.change.finding == graftwork_verdict::CostFinding::Regressed && self.expected.is_none()
    }

    /// The finding in a sentence, with its own error.
    pub fn sentence(&self) -> String {
        use graftwork_verdict::CostFinding as Found;
        let Change { finding, nights, worse_by, level, detectable, power, .. } = &self.change;
        let moved = || format!("{} since night {}, level {level:.4}", signed(*worse_by), self.since);
        let found = match finding {
            Found::Short => format!("{nights} nights are too few to tell"),
            Found::Steady => format!("steady over {nights} nights"),
            Found::Small => format!("changed by less than matters: {}", moved()),
            Found::Regressed => format!("worse: {}", moved()),
            Found::Improved => format!("better: {}", moved()),
        };
        let alarms = alarms(self.change.false_alarm);
        match (finding, detectable) {
            (Found::Short, _) => found,
            (_, Some((size, nights))) => format!(
                "{found}; {} more over {nights} nights would have been found with {}, {alarms}",
                percent(*size),
                percent(*power)
            ),
            (_, None) => format!("{found}; no growth would have been found with {}, {alarms}", percent(*power)),
        }
    }
}

fn alarms(share: f64) -> String {
    format!("at most {} of nights without a change name anything", percent(share))
}

/// A share as people read it.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent.fract().abs() < 0.05 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

fn signed(share: f64) -> String {
    format!("{}{}", if share >= 0.0 { "+" } else { "−" }, percent(share.abs()))
}
