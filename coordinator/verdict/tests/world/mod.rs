//! Nights that never were: tasks with easy and hard rows, trained with seeds that differ.
//!
//! Each night trains anew with other luck, as after a change of rounding: the harder case, in which seeds of both nights
//! have nothing in common. Each task has one metric, and no night lies before the two: what two metrics of the same answers do
//! to the rates, and what earlier nights tell of seeds, is not in here.

use graftwork_verdict::{
    Answers, Comparison, CostFinding, Finding, Measure, Random, Run, Series, Settings, Worse, changes, judge,
};

/// What tasks are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    /// Tasks of a night.
    pub(crate) tasks: usize,
    /// Test rows of each.
    pub(crate) rows: usize,
    /// Seeds of each.
    pub(crate) seeds: u64,
    /// The score.
    pub(crate) measure: Measure,
    /// Practical threshold.
    pub(crate) threshold: f64,
    /// Standard deviation of a seed's effect on the chance of a right answer.
    pub(crate) seed_shift: f64,
}

impl World {
    pub(crate) fn new(tasks: usize, rows: usize, seeds: u64) -> Self {
        Self { tasks, rows, seeds, measure: Measure::Accuracy, threshold: 0.01, seed_shift: 0.006 }
    }

    /// All tasks of one night against the night before; the first one drops by so much.
    pub(crate) fn night(&self, drop: f64, random: &mut Random) -> Vec<Comparison> {
        (0..self.tasks).map(|task| self.task(task, if task == 0 { drop } else { 0.0 }, random)).collect()
    }

    fn task(&self, task: usize, drop: f64, random: &mut Random) -> Comparison {
        // Most rows are always right, some never, some now and then; tasks differ in how far seeds matter.
        let easy: Vec<f64> = (0..self.rows)
            .map(|_| match random.uniform() {
                place if place < 0.72 => 0.985,
                place if place < 0.94 => 0.55 + 0.4 * random.uniform(),
                _ => 0.03,
            })
            .collect();
        let truth: Vec<u32> = (0..self.rows).map(|_| u32::from(random.uniform() < 0.4)).collect();
        let shift = self.seed_shift * (1.0 + (task % 3) as f64 / 2.0);
        let answers = |less: f64, random: &mut Random| {
            let luck = shift * random.normal() - less;
            let answer =
                |(truth, chance): (&u32, &f64)| if random.uniform() < chance + luck { *truth } else { 1 - truth };
            Answers::Classes(truth.iter().zip(&easy).map(answer).collect())
        };
        let run = |seed| Run { seed, before: answers(0.0, random), after: answers(drop, random) };
        let runs = (1..=self.seeds).map(run).collect();
        Comparison {
            name: format!("task {task}"),
            measure: self.measure,
            threshold: self.threshold,
            truth: Answers::Classes(truth.clone()),
            runs,
            earlier: Vec::new(),
        }
    }
}

/// What a night without any change named.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "four kinds of findings, each there or not")]
pub(crate) struct Named {
    pub(crate) drops: bool,
    pub(crate) gains: bool,
    pub(crate) growth: bool,
    pub(crate) relief: bool,
}

impl Named {
    pub(crate) fn anything(self) -> bool {
        self.drops || self.gains || self.growth || self.relief
    }
}

/// Costs whose histories are compared in each quiet night, their nights and how far they scatter.
pub(crate) const COSTS: usize = 4;
pub(crate) const HISTORY: usize = 20;
pub(crate) const SCATTER: f64 = 0.05;

/// One night in which nothing changed: all scores, and costs over their history.
pub(crate) fn quiet(world: &World, settings: &Settings, random: &mut Random) -> Named {
    let verdicts = judge(&world.night(0.0, random), settings);
    let costs = changes(&costs(COSTS, HISTORY, (1.0, 0), random), settings);
    let score = |finding| verdicts.iter().any(|verdict| verdict.finding == finding);
    let cost = |finding| costs.iter().any(|change| change.finding == finding);
    Named {
        drops: score(Finding::Regressed),
        gains: score(Finding::Improved),
        growth: cost(CostFinding::Regressed),
        relief: cost(CostFinding::Improved),
    }
}

/// Costs of so many nights; the first one is `factor` times as large in the last of them.
pub(crate) fn costs(count: usize, nights: usize, (factor, last): (f64, usize), random: &mut Random) -> Vec<Series> {
    let night = |night: usize, cost: usize, random: &mut Random| {
        let factor = if cost == 0 && night + last >= nights { factor } else { 1.0 };
        factor * (SCATTER * random.normal()).exp()
    };
    let series = |cost: usize| Series {
        name: format!("cost {cost}"),
        values: (0..nights).map(|at| night(at, cost, random)).collect(),
        worse: Worse::Higher,
    };
    (0..count).map(series).collect()
}
