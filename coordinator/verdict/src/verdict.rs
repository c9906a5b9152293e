//! Verdicts over the measurements of two nights, each with its own error.
//!
//! A measurement is named when three things hold: rows speak against chance, seeds speak against chance, and the
//! difference is large enough to matter. The level of the first two is that of the whole night.

use serde::{Deserialize, Serialize};

use crate::{
    Answers, Groups, Measure, Noise, Random, Scorer, Tails, adjusted, distance, paired_bootstrap, seeds::spreads,
    sign_flips,
};

/// Draws when only a spread is looked for.
const FEW: u32 = 200;

/// What each kind of finding may spend of [`Settings::false_alarm`]. Drops fail a night and matter most; gains fail nothing.
/// They come to nine tenths: the spreads of seeds are estimates, with which drops of twelve tasks were named in 5.2 % of the
/// nights at a level of 5 %.
pub(crate) const DROPS: f64 = 0.45;
pub(crate) const GAINS: f64 = 0.1;
pub(crate) const GROWTH: f64 = 0.3;
pub(crate) const RELIEF: f64 = 0.05;

/// How much error a verdict may have, and what matters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The chance that a night without any change names anything, a score or a cost, for worse or for better: at most
    /// this. 0.05 by default.
    pub false_alarm: f64,
    /// The chance with which the stated drop would have been found. 0.8 by default.
    pub power: f64,
    /// Relative change of a cost from which on it matters. 0.1 by default.
    pub cost_threshold: f64,
    /// Draws of a bootstrap, and orders of a history, at most. 20,000 by default.
    pub draws: u32,
    /// Seed of both.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { false_alarm: 0.05, power: 0.8, cost_threshold: 0.1, draws: 20_000, seed: 1 }
    }
}

/// What one seed answered on both nights, over the same rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// Answers of the baseline.
    pub before: Answers,
    /// Answers of this night.
    pub after: Answers,
}

/// One measurement on both nights.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The measurement.
    pub name: String,
    /// The score.
    pub measure: Measure,
    /// The drop from which on it matters.
    pub threshold: f64,
    /// What is right.
    pub truth: Answers,
    /// By seed.
    pub runs: Vec<Run>,
    /// Scores of earlier nights that trained anew, seed by seed: they tell how far seeds spread.
    pub earlier: Groups,
}

/// What became of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Every answer is what it was.
    Same,
    /// No difference that chance would not give.
    Steady,
    /// Lower by what matters, and not told from chance.
    Suspected,
    /// Told from chance, and smaller than what matters.
    Small,
    /// Worse.
    Regressed,
    /// Better.
    Improved,
}

/// A verdict that states its own error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The measurement.
    pub name: String,
    /// The score.
    pub measure: Measure,
    /// What became of it.
    pub finding: Finding,
    /// Seeds compared.
    pub seeds: usize,
    /// Rows compared.
    pub rows: usize,
    /// Mean scores over seeds: of the baseline, and of this night.
    pub means: [f64; 2],
    /// The difference.
    pub change: f64,
    /// Half the width of its 95 % interval, over rows and seeds.
    pub half_width: f64,
    /// Answers, over all seeds, that were right and are wrong now, and the other way round. For numbers: that are
    /// further from the truth now, and nearer.
    pub moved: [u64; 2],
    /// If nothing changed but the rows' luck.
    pub by_rows: Tails,
    /// If nothing changed but the seeds; `None` with one seed, where nobody knows.
    pub by_seeds: Option<Tails>,
    /// The rate of false alarms at which a drop and a gain would just be named, over all that the night compares.
    pub levels: Tails,
    /// Measurements that were tested together.
    pub tests: usize,
    /// The drop from which on it matters.
    pub threshold: f64,
    /// What moves the difference when nothing changed.
    pub noise: Noise,
    /// The true drop that would have been named with `power`, even as the only one of the night; `None` where one seed
    /// gave the same answers and nothing tells of noise.
    pub detectable: Option<f64>,
    /// The chance with which it would have been.
    pub power: f64,
    /// The chance that a night without any change names anything: at most this.
    pub false_alarm: f64,
}

impl Verdict {
    /// The least chance with which a true drop of this size would have been named as the only one of the night.
    pub fn power_at(&self, drop: f64) -> f64 {
        self.noise.power(drop, alone(self.false_alarm, self.tests), self.threshold)
    }
}

/// The level of a drop that is the only one of the night.
fn alone(false_alarm: f64, tests: usize) -> f64 {
    DROPS * false_alarm / tests.max(1) as f64
}

/// The rates of false alarms at which tests would just be named, where their kind may spend this share.
pub(crate) fn rates(probabilities: &[f64], share: f64) -> Vec<f64> {
    adjusted(probabilities).into_iter().map(|level| (level / share).min(1.0)).collect()
}

/// Judges all measurements of a night together, in their order.
pub fn judge(comparisons: &[Comparison], settings: &Settings) -> Vec<Verdict> {
    let weighed: Vec<Weighed> = comparisons.iter().map(|comparison| Weighed::of(comparison, settings)).collect();
    let groups: Vec<Groups> = comparisons.iter().zip(&weighed).map(|(comparison, w)| w.groups(comparison)).collect();
    let tests: Vec<Test> =
        weighed.into_iter().zip(spreads(&groups)).map(|(w, spread)| w.against_seeds(spread)).collect();
    let chances = |side: fn(Tails) -> f64| tests.iter().map(|test| side(test.tails())).collect::<Vec<_>>();
    let (drops, gains) = (rates(&chances(|tails| tails.drop), DROPS), rates(&chances(|tails| tails.gain), GAINS));
    let levels = drops.into_iter().zip(gains).map(|(drop, gain)| Tails { drop, gain });
    let count = comparisons.len();
    comparisons
        .iter()
        .zip(tests)
        .zip(levels)
        .map(|((c, test), levels)| test.verdict(c, levels, count, settings))
        .collect()
}

/// A measurement held against the luck of its rows.
struct Weighed {
    before: Vec<f64>,
    after: Vec<f64>,
    same: bool,
    by_rows: Tails,
    /// Standard error from the rows.
    error: f64,
}

impl Weighed {
    fn of(comparison: &Comparison, settings: &Settings) -> Self {
        let scorer = |answers| Scorer::new(comparison.measure, &comparison.truth, answers);
        let pairs: Vec<(Scorer, Scorer)> =
            comparison.runs.iter().map(|run| (scorer(&run.before), scorer(&run.after))).collect();
        let before = pairs.iter().map(|(before, _)| before.plain()).collect();
        let after = pairs.iter().map(|(_, after)| after.plain()).collect();
        let same = comparison.runs.iter().all(|run| run.before == run.after);
        let rows = comparison.truth.len();
        let (mut by_rows, mut error) = (Tails::NONE, 0.0);
        let mut random = Random::named(settings.seed, &format!("{} {:?}", comparison.name, comparison.measure));
        if !same {
            if comparison.measure == Measure::Accuracy {
                let nets = nets(comparison);
                by_rows = sign_flips(&nets);
                let squares: f64 = nets.iter().map(|net| f64::from(*net).powi(2)).sum();
                error = squares.sqrt() / (rows * pairs.len()).max(1) as f64;
            } else {
                let found = paired_bootstrap(&pairs, rows, settings.draws, &mut random);
                (by_rows, error) = (found.tails, found.deviation);
            }
        }
        // Rows that did not move yet are no proof that none would: two seeds differ as two trainings do.
        let between = if comparison.measure == Measure::Accuracy {
            between_seeds_exactly(comparison)
        } else {
            let befores: Vec<&Scorer> = pairs.iter().map(|(before, _)| before).collect();
            between_seeds(&befores, rows, &mut random)
        };
        let error = error.max(between);
        Self { before, after, same, by_rows, error }
    }

    /// Scores of all trainings, each once.
    fn groups(&self, comparison: &Comparison) -> Groups {
        let own = if self.same { vec![self.before.clone()] } else { vec![self.before.clone(), self.after.clone()] };
        own.into_iter().chain(comparison.earlier.iter().cloned()).collect()
    }

    fn against_seeds(self, spread: Option<crate::Spread>) -> Test {
        let seeds = u32::try_from(self.before.len()).unwrap_or(u32::MAX);
        let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len().max(1) as f64;
        let means = [mean(&self.before), mean(&self.after)];
        let noise = Noise { rows: self.error, seeds, spread };
        let change = means[1] - means[0];
        let by_seeds =
            noise.seeds_alone(-change).zip(noise.seeds_alone(change)).map(|(drop, gain)| Tails { drop, gain });
        Test { means, noise, by_seeds: if self.same { by_seeds.map(|_| Tails::NONE) } else { by_seeds }, weighed: self }
    }
}

/// A measurement held against rows and seeds.
struct Test {
    weighed: Weighed,
    means: [f64; 2],
    noise: Noise,
    by_seeds: Option<Tails>,
}

impl Test {
    /// Both must speak against chance, so the weaker one counts.
    fn tails(&self) -> Tails {
        let (rows, seeds) = (self.weighed.by_rows, self.by_seeds.unwrap_or(Tails { drop: 0.0, gain: 0.0 }));
        Tails { drop: rows.drop.max(seeds.drop), gain: rows.gain.max(seeds.gain) }
    }

    fn verdict(self, comparison: &Comparison, levels: Tails, tests: usize, settings: &Settings) -> Verdict {
        let change = self.means[1] - self.means[0];
        let level = settings.false_alarm;
        let finding = match () {
            () if self.weighed.same => Finding::Same,
            () if levels.drop <= level && -change >= comparison.threshold => Finding::Regressed,
            () if levels.gain <= level && change >= comparison.threshold => Finding::Improved,
            () if levels.drop <= level || levels.gain <= level => Finding::Small,
            () if -change >= comparison.threshold => Finding::Suspected,
            () => Finding::Steady,
        };
        let detectable = self.noise.detectable(settings.power, alone(level, tests), comparison.threshold);
        Verdict {
            name: comparison.name.clone(),
            measure: comparison.measure,
            finding,
            seeds: comparison.runs.len(),
            rows: comparison.truth.len(),
            means: self.means,
            change,
            half_width: self.noise.half_width(0.95),
            moved: moved(comparison),
            by_rows: self.weighed.by_rows,
            by_seeds: self.by_seeds,
            levels,
            tests,
            threshold: comparison.threshold,
            noise: self.noise,
            detectable: (self.noise.total() > 0.0).then_some(detectable),
            power: settings.power,
            false_alarm: level,
        }
    }
}

/// For each row, how many seeds more are right after than before.
fn nets(comparison: &Comparison) -> Vec<i32> {
    let mut nets = vec![0; comparison.truth.len()];
    let Answers::Classes(truth) = &comparison.truth else { return nets };
    for run in &comparison.runs {
        let (Answers::Classes(before), Answers::Classes(after)) = (&run.before, &run.after) else { continue };
        for ((net, truth), (before, after)) in nets.iter_mut().zip(truth).zip(before.iter().zip(after)) {
            *net += i32::from(after == truth) - i32::from(before == truth);
        }
    }
    nets
}

/// [`between_seeds`] for accuracy, without drawing: rows on which one of two seeds is right.
fn between_seeds_exactly(comparison: &Comparison) -> f64 {
    let Answers::Classes(truth) = &comparison.truth else { return 0.0 };
    let right = |run: &Run| match &run.before {
        Answers::Classes(given) => given.iter().zip(truth).map(|(given, truth)| given == truth).collect::<Vec<_>>(),
        Answers::Numbers(_) => Vec::new(),
    };
    let seeds: Vec<Vec<bool>> = comparison.runs.iter().map(right).collect();
    let count = seeds.len();
    if count < 2 || truth.is_empty() {
        return 0.0;
    }
    let differ = |first: usize| seeds[first].iter().zip(&seeds[(first + 1) % count]).filter(|(a, b)| a != b).count();
    let pairs = if count == 2 { 1 } else { count };
    let mean = (0..pairs).map(differ).sum::<usize>() as f64 / pairs as f64;
    (mean / count as f64).sqrt() / truth.len() as f64
}

/// Standard error of the mean over seeds, were each pair of nights as far apart as two seeds of one night are.
fn between_seeds(scorers: &[&Scorer], rows: usize, random: &mut Random) -> f64 {
    let seeds = scorers.len();
    if seeds < 2 {
        return 0.0;
    }
    let variance = |first: usize| {
        let pair = [(scorers[first].clone(), scorers[(first + 1) % seeds].clone())];
        paired_bootstrap(&pair, rows, FEW, random).deviation.powi(2)
    };
    let pairs = if seeds == 2 { 1 } else { seeds };
    let mean = (0..pairs).map(variance).sum::<f64>() / pairs as f64;
    (mean / seeds as f64).sqrt()
}

/// Answers that got worse and better, over all seeds.
fn moved(comparison: &Comparison) -> [u64; 2] {
    let mut moved = [0; 2];
    for run in &comparison.runs {
        match (&comparison.truth, &run.before, &run.after) {
            (Answers::Classes(truth), Answers::Classes(before), Answers::Classes(after)) => {
                for (truth, (before, after)) in truth.iter().zip(before.iter().zip(after)) {
                    moved[0] += u64::from(before == truth && after != truth);
                    moved[1] += u64::from(before != truth && after == truth);
                }
            }
            (Answers::Numbers(truth), Answers::Numbers(before), Answers::Numbers(after)) => {
                for (truth, (before, after)) in truth.iter().zip(before.iter().zip(after)) {
                    let (was, is) = (distance(*before, *truth), distance(*after, *truth));
                    moved[0] += u64::from(is > was);
                    moved[1] += u64::from(is < was);
                }
            }
            _ => {}
        }
    }
    moved
}
