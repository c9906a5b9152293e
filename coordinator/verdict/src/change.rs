//! A change point in a history of speed, memory or cost.
//!
//! Such numbers are noisy, and one night tells nothing. So the whole history is asked: is there a night from which on
//! they are worse, by more than drawing the same nights in another order gives? That assumes nights that could have come
//! in any order; a machine that slowly fills up breaks it, and is told as a change too.

use serde::{Deserialize, Serialize};
use statrs::{distribution::ContinuousCDF as _, function::factorial::ln_binomial};

use crate::{
    Random, Settings,
    power::normal,
    verdict::{GROWTH, RELIEF, rates},
};

/// Fewest nights on each side of a change: one slow night beside an ordinary one is no change.
const SIDE: usize = 3;
/// Orders drawn before it is looked whether more are needed, and how many beyond are enough.
const FIRST: u32 = 1_000;
const ENOUGH: u32 = 20;
/// Orders that lie beyond the bound of a change that is looked for alone, in the mean.
const BEYOND: f64 = 10.0;
/// A largest split that as many orders reach is noise like the rest.
const NOISE: f64 = 0.05;
/// Differences of logarithms and of scores that are rounding.
const ROUNDING: f64 = 1e-9;
/// Histories on which a change of each size is tried, sizes in logarithms, and how many of them.
const TRIES: u32 = 100;
const STEP: f64 = 0.01;
const MOST_STEPS: u32 = 230;

/// Which way is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Worse {
    /// Seconds, bytes.
    Higher,
    /// Examples a second.
    Lower,
}

/// One number night by night, oldest first; each above 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// What it is.
    pub name: String,
    /// The numbers.
    pub values: Vec<f64>,
    /// Which way is worse.
    pub worse: Worse,
}

/// What a history says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Too few nights for any change to be told from noise.
    Short,
    /// No change that noise would not give.
    Steady,
    /// A change, smaller than what matters.
    Small,
    /// Worse since a night.
    Regressed,
    /// Better since a night.
    Improved,
}

/// The likeliest change of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The series.
    pub name: String,
    /// What it says.
    pub finding: Finding,
    /// Position of the first night after the change.
    pub at: usize,
    /// Nights in all.
    pub nights: usize,
    /// Median before and after.
    pub medians: [f64; 2],
    /// Relative change, above 0 when worse.
    pub worse_by: f64,
    /// The rate of false alarms at which it would just be named, over all that the night compares.
    pub level: f64,
    /// The lasting change that would have been found, and after how many nights; `None` while none could be.
    pub detectable: Option<(f64, usize)>,
    /// The chance with which it would have been found.
    pub power: f64,
    /// The chance that a night without any change names anything: at most this.
    pub false_alarm: f64,
}

/// Looks for a change in each series; false alarms are bounded over all of them and the night's scores together.
pub fn changes(series: &[Series], settings: &Settings) -> Vec<Change> {
    let alone = GROWTH * settings.false_alarm / series.len().max(1) as f64;
    let scans: Vec<Scan> = series.iter().map(|series| Scan::of(series, alone, settings)).collect();
    let chances = |side: fn(&Scan) -> f64| scans.iter().map(side).collect::<Vec<_>>();
    let (worse, better) = (rates(&chances(|scan| scan.worse), GROWTH), rates(&chances(|scan| scan.better), RELIEF));
    let levels = worse.into_iter().zip(better).map(|(worse, better)| [worse, better]);
    let scanned = scans.iter().zip(series).zip(levels);
    scanned.map(|((scan, series), levels)| scan.change(series, levels, alone, settings)).collect()
}

/// One series, held against other orders of itself.
struct Scan {
    /// Logarithms, above when worse.
    logs: Vec<f64>,
    normals: Normals,
    worst: Split,
    best: Split,
    worse: f64,
    better: f64,
    /// Largest splits of other orders, ascending.
    orders: Vec<f64>,
}

/// The split of a series that moves it most to one side.
#[derive(Clone, Copy)]
struct Split {
    at: usize,
    size: f64,
}

impl Scan {
    /// Normal scores are compared, so that one night that took ten times as long is the slowest night and no more.
    fn of(series: &Series, alone: f64, settings: &Settings) -> Self {
        let sign = if series.worse == Worse::Higher { 1.0 } else { -1.0 };
        let logs: Vec<f64> = series.values.iter().map(|value| sign * value.max(f64::MIN_POSITIVE).ln()).collect();
        let normals = Normals::of(logs.len());
        let mut order = normals.scores(&logs);
        let (worst, best) = splits(&order);
        let mut scan = Self { logs, normals, worst, best, worse: 1.0, better: 1.0, orders: Vec::new() };
        if scan.logs.len() < 2 * SIDE {
            return scan;
        }
        let mut random = Random::named(settings.seed, &series.name);
        let (mut worse, mut better, mut drawn) = (0, 0, 0);
        // So many that some lie beyond the bound of a change that is the only one of the night.
        let first = f64::from(FIRST).max(BEYOND / alone);
        while drawn < settings.draws && (f64::from(drawn) < first || worse.min(better) < ENOUGH) {
            random.shuffle(&mut order);
            let (up, down) = splits(&order);
            // What differs by rounding alone is the same.
            worse += u32::from(up.size >= worst.size - ROUNDING);
            better += u32::from(down.size >= best.size - ROUNDING);
            scan.orders.push(up.size);
            drawn += 1;
        }
        scan.orders.sort_by(f64::total_cmp);
        let chance = |beyond: u32| f64::from(beyond + 1) / f64::from(drawn + 1);
        (scan.worse, scan.better) = (chance(worse), chance(better));
        scan
    }

    fn change(&self, series: &Series, [worse, better]: [f64; 2], alone: f64, settings: &Settings) -> Change {
        let nights = self.logs.len();
        let is_worse = worse <= better;
        let (split, level) = if is_worse { (self.worst, worse) } else { (self.best, better) };
        // Medians, so that a single slow night does not make a change large.
        let before = median(&self.logs[..split.at]);
        let after = if split.at < nights { median(&self.logs[split.at..]) } else { before };
        let sign = if series.worse == Worse::Higher { 1.0 } else { -1.0 };
        let detectable = self.detectable(&series.name, alone, settings);
        let finding = match () {
            () if nights < 2 * SIDE || (detectable.is_none() && level > settings.false_alarm) => Finding::Short,
            () if level > settings.false_alarm => Finding::Steady,
            () if (after - before).abs().exp_m1() < settings.cost_threshold => Finding::Small,
            () if is_worse => Finding::Regressed,
            () => Finding::Improved,
        };
        Change {
            name: series.name.clone(),
            finding,
            at: split.at,
            nights,
            medians: [(sign * before).exp(), (sign * after).exp()],
            worse_by: (after - before).exp_m1(),
            level,
            detectable,
            power: settings.power,
            false_alarm: settings.false_alarm,
        }
    }

    /// The lasting relative change that is found with the promised power when it is the only one of the night, and the
    /// nights that it takes: tried on the nights of this history, with the change at their end.
    fn detectable(&self, name: &str, level: f64, settings: &Settings) -> Option<(f64, usize)> {
        let nights = self.logs.len();
        // Of all orders, only those with the same nights at the end are as extreme.
        let least = |after: usize| (-ln_binomial(nights as u64, after as u64)).exp();
        // The observed order counts as one. Half the level, since the next history is held against other orders.
        let within = (self.orders.len() + 1) as f64 * level / 2.0;
        let bound =
            self.orders.iter().rev().zip(1_u32..).take_while(|(_, above)| f64::from(*above) <= within).last()?.0
                + ROUNDING;
        let noise = self.noise();
        let found = |after: usize, step: u32| {
            let change = f64::from(step) * STEP;
            let mut random = Random::named(settings.seed, name);
            let mut order = noise.clone();
            let found = (0..TRIES).filter(|_| {
                random.shuffle(&mut order);
                let moved = order.iter().enumerate();
                let moved = moved.map(|(night, log)| if night + after >= nights { log + change } else { *log });
                let moved: Vec<f64> = moved.collect();
                let (split, _) = splits(&self.normals.scores(&moved));
                split.size >= bound && larger(&moved, split.at) >= settings.cost_threshold
            });
            found.count() as f64 >= settings.power * f64::from(TRIES)
        };
        let possible = |after: &usize| least(*after) <= level / 2.0 && found(*after, MOST_STEPS);
        let after = (SIDE..=nights / 2).find(possible)?;
        let (mut low, mut high) = (0, MOST_STEPS);
        while high - low > 1 {
            let middle = u32::midpoint(low, high);
            if found(after, middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        Some(((f64::from(high) * STEP).exp_m1(), after))
    }

    /// The logarithms, without the largest change where that is no noise.
    fn noise(&self) -> Vec<f64> {
        if self.worse.min(self.better) > NOISE {
            return self.logs.clone();
        }
        let split = if self.worst.size > self.best.size { self.worst } else { self.best };
        let (before, after) = self.logs.split_at(split.at);
        let around = |part: &[f64]| part.iter().map(|log| log - mean(part)).collect::<Vec<_>>();
        [around(before), around(after)].concat()
    }
}

fn mean(part: &[f64]) -> f64 {
    part.iter().sum::<f64>() / part.len().max(1) as f64
}

/// The middle one.
fn median(part: &[f64]) -> f64 {
    let mut sorted = part.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |at: usize| sorted.get(at).copied().unwrap_or_default();
    f64::midpoint(middle(sorted.len() / 2), middle(sorted.len().saturating_sub(1) / 2))
}

/// By how much the nights from this one on are above those before.
fn larger(logs: &[f64], at: usize) -> f64 {
    (median(&logs[at..]) - median(&logs[..at])).exp_m1()
}

/// Normal scores by rank (van der Waerden's), for every half of a rank.
struct Normals(Vec<f64>);

impl Normals {
    fn of(nights: usize) -> Self {
        let share = |half: usize| half as f64 / 2.0 / (nights as f64 + 1.0);
        Self((0..=2 * nights).map(|half| if half == 0 { 0.0 } else { normal().inverse_cdf(share(half)) }).collect())
    }

    /// What differs by rounding alone shares the mean of its ranks.
    fn scores(&self, logs: &[f64]) -> Vec<f64> {
        let mut order: Vec<usize> = (0..logs.len()).collect();
        order.sort_by(|&a, &b| logs[a].total_cmp(&logs[b]));
        let mut scores = vec![0.0; logs.len()];
        let mut below = 0;
        for ties in order.chunk_by(|&a, &b| (logs[b] - logs[a]).abs() <= ROUNDING) {
            let twice_the_rank = 2 * below + ties.len() + 1;
            ties.iter().for_each(|night| scores[*night] = self.0[twice_the_rank]);
            below += ties.len();
        }
        scores
    }
}

/// The splits with the largest weighted step up and down.
fn splits(scores: &[f64]) -> (Split, Split) {
    let nights = scores.len();
    let mut up = Split { at: nights, size: 0.0 };
    let mut down = up;
    let total: f64 = scores.iter().sum();
    let mut before: f64 = scores.iter().take(SIDE - 1).sum();
    for at in SIDE..=nights.saturating_sub(SIDE) {
        before += scores[at - 1];
        let (first, second) = (at as f64, (nights - at) as f64);
        let step = (total - before) / second - before / first;
        let size = step * (first * second / nights as f64).sqrt();
        if size > up.size + ROUNDING {
            up = Split { at, size };
        }
        if -size > down.size + ROUNDING {
            down = Split { at, size: -size };
        }
    }
    (up, down)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: Vec<f64>, worse: Worse) -> Series {
        Series { name: "core-seconds".to_owned(), values, worse }
    }

    fn noisy(nights: usize, from: usize, factor: f64, noise: f64, seed: u64) -> Vec<f64> {
        let mut random = Random::new(seed);
        (0..nights)
            .map(|night| (if night < from { 10.0 } else { 10.0 * factor }) * (noise * random.normal()).exp())
            .collect()
    }

    #[test]
    fn a_lasting_step_is_found_where_it_is() {
        let found = &changes(&[series(noisy(24, 19, 1.3, 0.05, 1), Worse::Higher)], &Settings::default())[0];
        assert_eq!((found.finding, found.at), (Finding::Regressed, 19), "{found:?}");
        assert!((found.worse_by - 0.3).abs() < 0.08, "{found:?}");
        let found = &changes(&[series(noisy(24, 19, 0.7, 0.05, 1), Worse::Lower)], &Settings::default())[0];
        assert_eq!(found.finding, Finding::Regressed, "{found:?}");
        let found = &changes(&[series(noisy(24, 19, 0.7, 0.05, 1), Worse::Higher)], &Settings::default())[0];
        assert_eq!(found.finding, Finding::Improved, "{found:?}");
    }

    #[test]
    fn one_slow_night_is_no_change_and_a_small_step_is_small() {
        for seed in 0..50 {
            let mut values = noisy(20, 20, 1.0, 0.03, seed);
            values[19] = 20.0;
            let found = &changes(&[series(values, Worse::Higher)], &Settings::default())[0];
            assert!([Finding::Steady, Finding::Small].contains(&found.finding), "{seed}: {found:?}");
        }
        let found = &changes(&[series(noisy(40, 20, 1.05, 0.01, 2), Worse::Higher)], &Settings::default())[0];
        assert_eq!(found.finding, Finding::Small, "{found:?}");
    }

    #[test]
    fn few_nights_say_that_they_are_few() {
        for nights in 0..6 {
            let found = &changes(&[series(vec![1.0; nights], Worse::Higher)], &Settings::default())[0];
            assert_eq!((found.finding, found.detectable), (Finding::Short, None), "{nights}");
            assert!(found.worse_by.abs() < 1e-12, "nothing is told of a change: {found:?}");
        }
        let constant = &changes(&[series(vec![5.0; 20], Worse::Higher)], &Settings::default())[0];
        assert_eq!(constant.finding, Finding::Steady, "{constant:?}");
    }
}
