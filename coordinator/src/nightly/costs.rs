//! Time and memory night by night, as series in which a change may be found.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{id::Name, recipe::NumericClass};
use graftwork_verdict::{Series, Worse};
use graftwork_web::PairedCost;

use super::{
    night::{Measurement, Night},
    scores::{seeds, tasks},
};

/// One cost, and the nights that its numbers are of.
pub(super) struct Counted {
    pub(super) series: Series,
    pub(super) task: Option<Name>,
    pub(super) nights: Vec<u64>,
}

/// A number of a night.
type Number = fn(&Night) -> f64;
/// Whether nights on shared workers have it: how long those took is what else there was to do, and their peak is that of
/// everything since they were started.
type Shared = bool;
/// Seconds of a measurement.
type Seconds = fn(&Measurement) -> f64;

/// What is measured of a whole night.
const WHOLE: [(&str, Number, Shared); 4] = [
    ("the night: wall seconds", |night| night.ended_ms.saturating_sub(night.began_ms) as f64 / 1000.0, false),
    ("the night: core-seconds", |night| night.usage.core_seconds, true),
    ("the night: GPU-seconds", |night| night.usage.gpu_seconds, true),
    ("the night: peak memory, MiB", |night| night.usage.peak_memory_bytes as f64 / f64::from(1 << 20), false),
];

/// What is measured of each task, over all its seeds. Peaks of memory are no part of it: a stage's is that of its whole
/// process so far, so the largest task's would stand for all that come after it.
const OF_TASK: [(&str, Seconds); 2] = [
    ("core-seconds for 1,000 examples", |measured| measured.usage.core_seconds),
    ("GPU-seconds for 1,000 examples", |measured| measured.usage.gpu_seconds),
];

/// The series that end with the newest night; `since` says where some begin anew.
///
/// Nights that went on after an interruption, or ran on another kind of machine, say nothing of cost and are left out;
/// so are, for the whole night, those that measured other things, and where it matters those on shared workers.
pub(super) fn count(nights: &[Night], since: &BTreeMap<String, u64>) -> Vec<Counted> {
    let Some(last) = nights.last().filter(|night| night.resumed == 0) else { return Vec::new() };
    let alike: Vec<&Night> = nights.iter().filter(|night| night.resumed == 0 && class(night) == class(last)).collect();
    let from = |name: &str, night: &Night| since.get(name).is_none_or(|first| night.number >= *first);
    let mut counted = Vec::new();
    for (name, value, shared) in WHOLE.into_iter().filter(|(.., shared)| *shared || !last.shared) {
        let tells = |night: &&&Night| (shared || !night.shared) && parts(night) == parts(last) && from(name, night);
        let whole = alike.iter().filter(tells);
        counted.extend(of(name.to_owned(), None, whole.map(|night| (night.number, value(night))).collect()));
    }
    for task in tasks(last) {
        for (what, seconds) in OF_TASK {
            let name = format!("{task}: {what}");
            let nights = alike.iter().filter(|night| from(&name, night));
            let value = |night: &&Night| Some((night.number, per_thousand(&seeds(night, &task), seconds)?));
            let values = nights.filter_map(value).collect();
            counted.extend(of(name, Some(task.clone()), values));
        }
    }
    counted
}

/// The same costs of two versions that ran in turn on one machine.
pub(super) fn pair(before: &Night, after: &Night) -> Vec<PairedCost> {
    let whole = WHOLE
        .iter()
        .map(|(name, value, _)| (name.replace("the night", "the run"), Some(value(before)), Some(value(after))));
    let each = tasks(after).into_iter().flat_map(|task| {
        let [before, after] = [before, after].map(|night| of_task(&seeds(night, &task)));
        let both = before.into_iter().zip(after);
        both.map(move |((what, before), (_, after))| (format!("{task}: {what}"), before, after))
    });
    let told = |(name, before, after): (String, Option<f64>, Option<f64>)| {
        let (before, after) = (before?, after?);
        (before > 0.0 && after > 0.0).then_some(PairedCost { name, before, after })
    };
    whole.chain(each).filter_map(told).collect()
}

fn of(name: String, task: Option<Name>, values: Vec<(u64, f64)>) -> Option<Counted> {
    let values: Vec<(u64, f64)> = values.into_iter().filter(|(_, value)| *value > 0.0 && value.is_finite()).collect();
    let (nights, values): (Vec<u64>, Vec<f64>) = values.into_iter().unzip();
    let series = Series { name, values, worse: Worse::Higher };
    (!nights.is_empty()).then_some(Counted { series, task, nights })
}

/// What one task cost.
pub(super) fn of_task(measured: &[&Measurement]) -> [(&'static str, Option<f64>); 2] {
    OF_TASK.map(|(what, seconds)| (what, per_thousand(measured, seconds)))
}

/// Over all seeds; evaluation is counted, and its rows are not.
fn per_thousand(measured: &[&Measurement], seconds: Seconds) -> Option<f64> {
    let sum = |of: fn(&Measurement) -> f64| measured.iter().map(|measured| of(measured)).sum::<f64>();
    let examples = sum(|measured| measured.usage.examples as f64);
    (examples > 0.0).then(|| 1000.0 * sum(seconds) / examples)
}

fn class(night: &Night) -> Option<&NumericClass> {
    night.measurements.first().map(|measured| &measured.numeric_class)
}

/// What a night measured; methods count, so that another method begins another history.
fn parts(night: &Night) -> BTreeSet<(&Name, u64, &str)> {
    night.measurements.iter().map(|measured| (&measured.task, measured.seed, measured.method.as_str())).collect()
}
