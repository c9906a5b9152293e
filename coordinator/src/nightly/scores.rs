//! Pairs the measurements of two nights: the same task, the same seeds, the same rows.

use std::collections::BTreeSet;

use graftwork_shared::{id::Name, metric::Metric, view::StageKind};
use graftwork_verdict::{Answers, Comparison, Groups, Run, Verdict, distance};
use graftwork_web::{Alone, Flip, MOST_FLIPS, Problem, Row};

use super::{
    answers::{Asked, Book, shown},
    night::{Measurement, Night, measure},
};

/// A stored night with its answers.
#[derive(Clone, Copy)]
pub(super) struct Opened<'n> {
    pub(super) night: &'n Night,
    pub(super) book: &'n Book,
}

/// A comparison and what it is of.
pub(super) struct Paired {
    pub(super) comparison: Comparison,
    pub(super) task: Name,
    pub(super) fusion: bool,
    pub(super) method: String,
    pub(super) main: bool,
    pub(super) labels: Vec<String>,
    rows: Vec<u64>,
}

/// All scores that both nights have, and what only one of them has.
pub(super) fn pair(before: Opened<'_>, after: Opened<'_>, nights: &[Night]) -> (Vec<Paired>, Vec<Problem>) {
    let (mut pairs, mut problems) = (Vec::new(), Vec::new());
    for task in tasks(after.night) {
        let (old, new) = (seeds(before.night, &task), seeds(after.night, &task));
        let note = |message: String| Problem { name: task.to_string(), message, fails: false };
        let Some(first) = new.first() else { continue };
        if old.is_empty() {
            problems.push(note(format!("is new: {} did not measure it", before.night.title())));
            continue;
        }
        let shared: Vec<(&Measurement, &Measurement)> =
            new.iter().filter_map(|new| Some((*old.iter().find(|old| old.seed == new.seed)?, *new))).collect();
        if let Some(reason) = incomparable(&shared, before, after) {
            problems.push(note(format!("cannot be compared with {}: {reason}", before.night.title())));
            continue;
        }
        let earlier = nights.iter().filter(|n| n.number != before.night.number && n.number != after.night.number);
        let earlier: Vec<&Night> = earlier.collect();
        for metric in metrics(first) {
            pairs.push(paired(&shared, metric, before, after, &earlier));
        }
    }
    // What failed says so already.
    let failed = |task: &Name| after.night.failed.iter().any(|problem| problem.name == task.as_str());
    for task in tasks(before.night).into_iter().filter(|task| seeds(after.night, task).is_empty() && !failed(task)) {
        let message = format!("is gone: {} measured it, and the job no longer has it", before.night.title());
        problems.push(Problem { name: task.to_string(), message, fails: false });
    }
    (pairs, problems)
}

/// The scores that count of whatever has no row.
pub(super) fn alone(night: &Night, rows: &[Row]) -> Vec<Alone> {
    let compared: BTreeSet<&str> = rows.iter().map(|row| row.task.as_str()).collect();
    let left = tasks(night).into_iter().filter(|task| !compared.contains(task.as_str()));
    let score = |task: Name| {
        let measured = seeds(night, &task);
        let first = measured.first()?;
        let score = |of: &&Measurement| of.scores.get(&first.metric).copied();
        Some(Alone {
            task: task.to_string(),
            fusion: first.kind == StageKind::Fusion,
            method: first.method.clone(),
            metric: first.metric.to_string(),
            seeds: measured.iter().filter_map(score).collect(),
        })
    };
    left.filter_map(score).collect()
}

/// Tasks and fusions of a night in the order of its job.
pub(super) fn tasks(night: &Night) -> Vec<Name> {
    let mut seen = BTreeSet::new();
    night.measurements.iter().filter(|m| seen.insert(&m.task)).map(|m| m.task.clone()).collect()
}

/// The measurements of a task, by seed.
pub(super) fn seeds<'n>(night: &'n Night, task: &Name) -> Vec<&'n Measurement> {
    let mut found: Vec<&Measurement> = night.measurements.iter().filter(|m| m.task == *task).collect();
    found.sort_by_key(|measurement| measurement.seed);
    found
}

fn incomparable(
    shared: &[(&Measurement, &Measurement)],
    before: Opened<'_>,
    after: Opened<'_>,
) -> Option<&'static str> {
    if shared.is_empty() {
        return Some("no seed is the same");
    }
    for (old, new) in shared {
        if old.labels != new.labels {
            return Some("its classes are other ones");
        }
        if old.split != new.split || old.data != new.data {
            return Some("its held-out rows are other ones");
        }
        match (asked(before, old), asked(after, new)) {
            (Some(old), Some(new)) if old.rows == new.rows && old.right.len() == new.right.len() => {}
            _ => return Some("its answers are not kept, or of other rows"),
        }
    }
    None
}

fn asked<'n>(night: Opened<'n>, measurement: &Measurement) -> Option<&'n Asked> {
    night.book.0.get(&(measurement.task.clone(), measurement.seed))
}

/// Answers of a measurement that [`incomparable`] let pass.
fn checked<'n>(night: Opened<'n>, measurement: &Measurement) -> &'n Asked {
    asked(night, measurement).expect("checked to be comparable")
}

/// The metric that counts, and one that sees what it does not.
fn metrics(measurement: &Measurement) -> Vec<Metric> {
    let other = match measurement.metric {
        Metric::Accuracy | Metric::F1Micro => Metric::F1Macro,
        Metric::Pearson => Metric::Spearman,
        Metric::Spearman => Metric::Pearson,
        _ => Metric::Accuracy,
    };
    let known = |metric: &Metric| measurement.scores.contains_key(metric);
    [measurement.metric, other].into_iter().filter(known).collect()
}

fn paired(
    shared: &[(&Measurement, &Measurement)],
    metric: Metric,
    before: Opened<'_>,
    after: Opened<'_>,
    earlier: &[&Night],
) -> Paired {
    let (_, first) = shared[0];
    let tested = checked(after, first);
    let run = |(old, new): &(&Measurement, &Measurement)| Run {
        seed: new.seed,
        before: checked(before, old).given.clone(),
        after: checked(after, new).given.clone(),
    };
    let comparison = Comparison {
        name: format!("{} {metric}", first.task),
        measure: measure(metric),
        threshold: after.night.job.nightly.threshold,
        truth: tested.right.clone(),
        runs: shared.iter().map(run).collect(),
        earlier: spread(shared, metric, before.night, after.night, earlier),
    };
    Paired {
        comparison,
        task: first.task.clone(),
        fusion: first.kind == StageKind::Fusion,
        method: first.method.clone(),
        main: metric == first.metric,
        labels: first.labels.clone(),
        rows: tested.rows.clone(),
    }
}

/// Scores of other nights over the same rows that trained other tensors than any night before them: repeating a
/// training bit by bit tells nothing of seeds.
fn spread(
    shared: &[(&Measurement, &Measurement)],
    metric: Metric,
    before: &Night,
    after: &Night,
    earlier: &[&Night],
) -> Groups {
    let (_, first) = shared[0];
    let weights = |night: &Night| seeds(night, &first.task).iter().map(|m| m.weights).collect::<Vec<_>>();
    let mut known = vec![weights(before), weights(after)];
    let mut groups = Vec::new();
    for night in earlier {
        let same = |m: &&Measurement| m.data == first.data && m.labels == first.labels && m.recipe_alike(first);
        let group: Vec<&Measurement> = seeds(night, &first.task).into_iter().filter(same).collect();
        let trained: Vec<_> = group.iter().map(|m| m.weights).collect();
        if !group.is_empty() && !known.contains(&trained) {
            groups.push(group.iter().filter_map(|m| m.scores.get(&metric).copied()).collect());
            known.push(trained);
        }
    }
    groups
}

impl Measurement {
    /// Trained by the same method; rows and options may differ, which changes the spread of seeds little.
    fn recipe_alike(&self, other: &Self) -> bool {
        self.method == other.method
    }
}

impl Paired {
    /// Rows whose answers got worse with most seeds, first those.
    pub(super) fn flips(&self, verdict: &Verdict) -> Vec<Flip> {
        if verdict.moved[0] == 0 || !self.main {
            return Vec::new();
        }
        let truth = &self.comparison.truth;
        let worse = |row: usize| {
            let worse = self.comparison.runs.iter().filter(|run| is_worse(truth, &run.before, &run.after, row)).count();
            u32::try_from(worse).unwrap_or(u32::MAX)
        };
        let better = |row: usize| self.comparison.runs.iter().any(|run| is_worse(truth, &run.after, &run.before, row));
        let mut rows: Vec<(u32, usize)> =
            (0..truth.len()).map(|row| (worse(row), row)).filter(|(seeds, _)| *seeds > 0).collect();
        rows.sort_by_key(|(seeds, row)| (std::cmp::Reverse(*seeds), better(*row), *row));
        rows.truncate(MOST_FLIPS);
        let all = |of: fn(&Run) -> &Answers, row| {
            self.comparison.runs.iter().map(|run| shown(of(run), row, &self.labels)).collect::<Vec<_>>()
        };
        let flip = |(seeds, row): (u32, usize)| Flip {
            row: self.rows.get(row).copied().unwrap_or(row as u64),
            label: shown(truth, row, &self.labels),
            before: all(|run| &run.before, row),
            after: all(|run| &run.after, row),
            worse: seeds,
            text: None,
        };
        rows.into_iter().map(flip).collect()
    }
}

/// Whether the second answer of a row is wrong where the first was right, or further from the truth.
fn is_worse(truth: &Answers, first: &Answers, second: &Answers, row: usize) -> bool {
    match (truth, first, second) {
        (Answers::Classes(truth), Answers::Classes(first), Answers::Classes(second)) => {
            first[row] == truth[row] && second[row] != truth[row]
        }
        (Answers::Numbers(truth), Answers::Numbers(first), Answers::Numbers(second)) => {
            distance(second[row], truth[row]) > distance(first[row], truth[row])
        }
        _ => false,
    }
}
