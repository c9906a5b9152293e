//! A night against its baseline and against the history: verdicts, marks of expected changes, and the view of it all.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use graftwork_shared::job::Nightly;
use graftwork_verdict::{CostFinding, Finding, Settings, changes, judge};
use graftwork_web::{Cost, Head, NightOutcome, NightlyView, Past, Problem, Row};

use super::{
    costs,
    night::{Judged, Night},
    scores::{self, Opened},
};
use crate::run::{Lost, Recovery};

/// How a night compares, and what is remembered of it.
pub(super) struct Compared {
    pub(super) view: NightlyView,
    pub(super) judged: Judged,
}

/// Commands to be told with a verdict.
pub(super) struct Commands {
    /// The job file that they name; commits are those of its repository.
    pub(super) file: PathBuf,
    /// Runs the job once more.
    pub(super) again: String,
    /// Ends with the name of what is to be repeated.
    pub(super) repeat: String,
    /// Ends with the name of what may be searched for the commit that made it worse, where commits are known.
    pub(super) bisect: Option<String>,
}

impl Commands {
    /// Those of a stored night.
    pub(super) fn of_night(file: &Path, again: &str, number: u64) -> Self {
        Self {
            file: file.to_owned(),
            again: again.to_owned(),
            repeat: format!("{again} --repeat {number}:"),
            bisect: Some(format!("{again} --bisect {number}:")),
        }
    }
}

/// What is known beside the two nights that are compared.
#[derive(Clone, Copy)]
pub(super) struct Known<'n> {
    /// All nights whose numbers are known, oldest first; the one that is compared is the last of them.
    pub(super) nights: &'n [Night],
    /// What could not be read of them.
    pub(super) notes: &'n [Problem],
}

/// How strictly the job wants its nights compared.
pub(super) fn settings(nightly: &Nightly) -> Settings {
    Settings {
        false_alarm: nightly.false_alarm,
        power: nightly.power,
        cost_threshold: nightly.cost_threshold,
        ..Settings::default()
    }
}

/// Compares a night.
pub(super) fn compare(
    night: Opened<'_>,
    baseline: Option<Opened<'_>>,
    Known { nights, notes }: Known<'_>,
    nightly: &Nightly,
    commands: &Commands,
) -> Compared {
    let carried = carried(nights, night.night.number);
    let mut marks = Marks { nightly, used: carried.used, now: BTreeSet::new() };
    let (mut rows, mut problems) = scored(night, baseline, nights, &mut marks, commands);
    problems.extend_from_slice(notes);
    let mut cost_since = carried.cost_since;
    let costs = count_costs(nights, commands, &mut marks, &mut cost_since);
    rows.sort_by_key(|row| (rank(row.verdict.finding), row.expected.is_some()));
    let (outcome, fails) = outcome(&rows, &costs, &problems, baseline.is_none());
    // A reason counts for the night that becomes the next baseline; the history of a cost begins anew in any case.
    let counts = |mark: &&String| !fails || mark.starts_with("cost of ");
    let used = marks.used.iter().chain(marks.now.iter().filter(counts)).cloned().collect();
    let regressions = rows.iter().filter(|row| row.fails()).count() + costs.iter().filter(|cost| cost.fails()).count();
    let judged = Judged {
        good: !fails,
        baseline: baseline.map(|before| before.night.number),
        used,
        cost_since,
        regressions: regressions as u64,
    };
    let view = NightlyView {
        job: night.night.job.name.clone(),
        night: head(night.night),
        baseline: baseline.map(|before| head(before.night)),
        outcome,
        problems,
        alone: scores::alone(night.night, &rows),
        scores: rows,
        costs,
        commits: Vec::new(),
        pairs: Vec::new(),
        history: past(nights, night.night.number, judged.good),
        usage: night.night.usage,
        false_alarm: nightly.false_alarm,
        again: commands.again.clone(),
    };
    Compared { view, judged }
}

/// Compares two versions that measured the same in one run, the first of them the older one. The history tells of seeds,
/// and which reasons are used up; nothing of it changes.
pub(super) fn beside(
    [before, after]: [Opened<'_>; 2],
    nights: &[Night],
    nightly: &Nightly,
    commands: &Commands,
) -> NightlyView {
    let used = carried(nights, u64::MAX).used;
    let mut marks = Marks { nightly, used, now: BTreeSet::new() };
    let (mut rows, problems) = scored(after, Some(before), nights, &mut marks, commands);
    rows.sort_by_key(|row| (rank(row.verdict.finding), row.expected.is_some()));
    let (outcome, _) = outcome(&rows, &[], &problems, false);
    NightlyView {
        job: after.night.job.name.clone(),
        night: head(after.night),
        baseline: Some(head(before.night)),
        outcome,
        problems,
        alone: scores::alone(after.night, &rows),
        scores: rows,
        costs: Vec::new(),
        commits: Vec::new(),
        pairs: costs::pair(before.night, after.night),
        history: Vec::new(),
        usage: after.night.usage,
        false_alarm: nightly.false_alarm,
        again: commands.again.clone(),
    }
}

/// Verdicts of all scores that both have, and what could not be measured or compared.
fn scored(
    night: Opened<'_>,
    baseline: Option<Opened<'_>>,
    nights: &[Night],
    marks: &mut Marks<'_>,
    commands: &Commands,
) -> (Vec<Row>, Vec<Problem>) {
    let (pairs, mut problems) = baseline.map_or_else(Default::default, |before| scores::pair(before, night, nights));
    problems.splice(0..0, night.night.failed.iter().cloned());
    let comparisons: Vec<_> = pairs.iter().map(|pair| pair.comparison.clone()).collect();
    let commits = baseline.is_some_and(|before| before.night.code.is_commit() && night.night.code.is_commit());
    let bisect = commands.bisect.as_ref().filter(|_| commits);
    let mut rows = Vec::new();
    for (pair, verdict) in pairs.iter().zip(judge(&comparisons, &settings(marks.nightly))) {
        let regressed = verdict.finding == Finding::Regressed;
        rows.push(Row {
            flipped: pair.flips(&verdict),
            task: pair.task.to_string(),
            fusion: pair.fusion,
            method: pair.method.clone(),
            main: pair.main,
            expected: regressed.then(|| marks.take("score", pair.task.as_str())).flatten(),
            repeat: format!("{}{}", commands.repeat, pair.task),
            bisect: bisect.map(|command| format!("{command}{}", pair.task)),
            verdict,
        });
    }
    (rows, problems)
}

/// How it ended, and whether that fails it.
fn outcome(rows: &[Row], costs: &[Cost], problems: &[Problem], first: bool) -> (NightOutcome, bool) {
    let fails =
        rows.iter().any(Row::fails) || costs.iter().any(Cost::fails) || problems.iter().any(|problem| problem.fails);
    let excused = rows.iter().any(|row| row.expected.is_some()) || costs.iter().any(|cost| cost.expected.is_some());
    let outcome = match () {
        () if fails => NightOutcome::Regressed,
        () if excused => NightOutcome::Expected,
        () if first => NightOutcome::First,
        () => NightOutcome::Good,
    };
    (outcome, fails)
}

/// Nights to compare with, unless the user names one: good ones before it, the last of them first.
pub(super) fn baselines(nights: &[Night], number: u64) -> impl Iterator<Item = &Night> {
    let good = |night: &&Night| night.judged.as_ref().is_some_and(|judged| judged.good);
    nights.iter().rev().filter(move |night| night.number < number).filter(good)
}

/// What is remembered of a night that stays without a verdict: it is no baseline, and it uses nothing up.
pub(super) fn without_verdict(nights: &[Night], number: u64) -> Judged {
    Judged { good: false, baseline: None, regressions: 0, ..carried(nights, number) }
}

/// What earlier nights left to this one.
fn carried(nights: &[Night], number: u64) -> Judged {
    let mut before = nights.iter().rev().filter(|night| night.number < number);
    before.find_map(|night| night.judged.clone()).unwrap_or_default()
}

/// Reasons for expected changes; each counts for one night.
struct Marks<'n> {
    nightly: &'n Nightly,
    used: BTreeSet<String>,
    now: BTreeSet<String>,
}

impl Marks<'_> {
    /// The reason why a change of this kind is expected tonight.
    fn take(&mut self, kind: &str, task: &str) -> Option<String> {
        let (_, expected) = self.nightly.expected.iter().find(|(name, _)| name.as_str() == task)?;
        let reason = if kind == "score" { &expected.score } else { &expected.cost };
        let reason = reason.clone()?;
        let mark = format!("{kind} of {task}: {reason}");
        if self.used.contains(&mark) {
            return None;
        }
        self.now.insert(mark);
        Some(reason)
    }
}

fn count_costs(
    nights: &[Night],
    commands: &Commands,
    marks: &mut Marks<'_>,
    since: &mut BTreeMap<String, u64>,
) -> Vec<Cost> {
    let counted = costs::count(nights, since);
    let series: Vec<_> = counted.iter().map(|counted| counted.series.clone()).collect();
    let mut costs = Vec::new();
    for (counted, change) in counted.iter().zip(changes(&series, &settings(marks.nightly))) {
        let from = counted.nights.get(change.at).copied().unwrap_or_default();
        let regressed = change.finding == CostFinding::Regressed;
        let task = counted.task.as_ref().map(ToString::to_string);
        // The whole night grows with any of its tasks, so any reason for one explains it.
        let expected = match &task {
            _ if !regressed => None,
            Some(task) => marks.take("cost", task),
            None => marks
                .nightly
                .expected
                .keys()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .iter()
                .find_map(|task| marks.take("cost", task)),
        };
        if expected.is_some() {
            since.insert(change.name.clone(), from);
        }
        let values = counted.nights.iter().copied().zip(counted.series.values.iter().copied()).collect();
        // The whole night is measured by another one.
        let repeat = task.as_ref().map_or_else(|| commands.again.clone(), |task| format!("{}{task}", commands.repeat));
        costs.push(Cost { change, task, since: from, expected, repeat, commits: Vec::new(), values });
    }
    costs.sort_by_key(|cost| cost.change.finding != CostFinding::Regressed);
    costs
}

/// Regressions first, then what may be one.
fn rank(finding: Finding) -> u8 {
    match finding {
        Finding::Regressed => 0,
        Finding::Suspected => 1,
        Finding::Improved => 2,
        Finding::Small => 3,
        Finding::Steady => 4,
        Finding::Same => 5,
    }
}

pub(super) fn head(night: &Night) -> Head {
    Head {
        number: night.number,
        began_ms: night.began_ms,
        ended_ms: night.ended_ms,
        version: night.code.version.clone(),
        numerics: night.code.numerics,
        code: night.code.name.clone(),
        resumed: night.resumed,
        recoveries: night.recoveries.iter().map(told).collect(),
    }
}

fn told(recovery: &Recovery) -> String {
    let Recovery { lost, stage, seconds } = recovery;
    match lost {
        Lost::Attempt => format!("{stage} went on {seconds:.1} s after its attempt was lost"),
        Lost::Coordinator => format!("{stage} went on {seconds:.1} s after the next coordinator began"),
    }
}

fn past(nights: &[Night], number: u64, good: bool) -> Vec<Past> {
    let of = |night: &Night| {
        let mut scores = BTreeMap::<String, Vec<f64>>::new();
        for measured in &night.measurements {
            let score = measured.scores.get(&measured.metric).copied();
            scores.entry(measured.task.to_string()).or_default().extend(score);
        }
        let stored = night.judged.as_ref().is_some_and(|judged| judged.good);
        Past { head: head(night), good: if night.number == number { good } else { stored }, scores, usage: night.usage }
    };
    nights.iter().map(of).collect()
}
