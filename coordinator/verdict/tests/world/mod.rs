//! Nights that never were: tasks with easy and hard rows, trained with seeds that differ.
//!
//! Each night trains anew with other luck, as after a change of rounding: the harder case, in which seeds of both nights
//! have nothing in common. A task may have two scores of the same answers, which go up and down together; fusions answer the
//! rows of an adapter much as that one does; and earlier nights may tell how far seeds spread.

use graftwork_verdict::{
    Answers, Comparison, CostFinding, Finding, Groups, Measure, Random, Run, Scorer, Series, Settings, Worse, changes,
    judge,
};

/// The scores of a task, all of the same answers: correlations for numbers, the others for classes.
pub(crate) type Scores = &'static [Measure];

pub(crate) const ACCURACY: Scores = &[Measure::Accuracy];
pub(crate) const F1_MACRO: Scores = &[Measure::F1Macro];
pub(crate) const CLASSES: Scores = &[Measure::Accuracy, Measure::F1Macro];
pub(crate) const NUMBERS: Scores = &[Measure::Spearman, Measure::Pearson];

/// Correlations that models of numbers reach, task by task.
const CORRELATIONS: [f64; 3] = [0.9, 0.75, 0.6];
/// Of the errors of a model of numbers, the share that any other training makes too.
const SHARED_ERRORS: f64 = 0.6;

/// What tasks are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    /// Tasks of a night.
    pub(crate) tasks: usize,
    /// Test rows of each.
    pub(crate) rows: usize,
    /// Seeds of each.
    pub(crate) seeds: u64,
    /// The scores of the tasks in turn.
    pub(crate) scores: &'static [Scores],
    /// Practical threshold.
    pub(crate) threshold: f64,
    /// Standard deviation of a seed's effect on the chance of a right answer.
    pub(crate) seed_shift: f64,
    /// Nights before the two, which trained anew.
    pub(crate) earlier: usize,
    /// For each fusion, the task whose rows it answers.
    pub(crate) fusions: &'static [usize],
}

impl World {
    pub(crate) fn new(tasks: usize, rows: usize, seeds: u64) -> Self {
        let scores = &[ACCURACY];
        Self { tasks, rows, seeds, scores, threshold: 0.01, seed_shift: 0.006, earlier: 0, fusions: &[] }
    }

    /// A night as `jobs/nightly.toml` has it: nine tasks of classes and six of numbers, four fusions, two scores each.
    pub(crate) fn benchmark(rows: usize, earlier: usize) -> Self {
        let scores = &[CLASSES, CLASSES, CLASSES, NUMBERS, NUMBERS];
        Self { scores, earlier, fusions: &[5, 3, 4, 8], ..Self::new(15, rows, 3) }
    }

    /// All tasks of one night against the night before; the first one drops by so much.
    pub(crate) fn night(&self, drop: f64, random: &mut Random) -> Vec<Comparison> {
        let drop_of = |task: usize| if task == 0 { drop } else { 0.0 };
        let trained: Vec<Task> = (0..self.tasks).map(|task| self.task(task, drop_of(task), random)).collect();
        let fused: Vec<Task> = self.fusions.iter().map(|&of| Self::fusion(&trained[of], random)).collect();
        trained.iter().chain(&fused).flat_map(|task| self.comparisons(task)).collect()
    }

    fn task(&self, task: usize, drop: f64, random: &mut Random) -> Task {
        let scores = self.scores[task % self.scores.len()];
        // Tasks differ in how far seeds matter.
        let shift = self.seed_shift * (1.0 + (task % 3) as f64 / 2.0);
        let rows = Rows::new(task, self.rows, scores, random);
        let answers = |drop: f64, random: &mut Random| rows.answers(shift * random.normal() - drop, random);
        let runs: Vec<Run> = (1..=self.seeds)
            .map(|seed| Run { seed, before: answers(0.0, random), after: answers(drop, random) })
            .collect();
        let earlier = (0..self.earlier).map(|_| (0..self.seeds).map(|_| answers(0.0, random)).collect()).collect();
        Task { name: format!("task {task}"), scores, shift, rows, runs, earlier }
    }

    /// Half of what it answers is what its adapter answers.
    fn fusion(of: &Task, random: &mut Random) -> Task {
        let answers = |adapter: &Answers, random: &mut Random| {
            let own = of.rows.answers(of.shift * random.normal(), random);
            match (adapter, own) {
                (Answers::Classes(these), Answers::Classes(mut own)) => {
                    let half = own.iter_mut().zip(these).filter(|_| random.uniform() < 0.5);
                    half.for_each(|(own, adapter)| *own = *adapter);
                    Answers::Classes(own)
                }
                (Answers::Numbers(these), Answers::Numbers(mut own)) => {
                    own.iter_mut().zip(these).for_each(|(own, adapter)| *own = f64::midpoint(*own, *adapter));
                    Answers::Numbers(own)
                }
                (_, own) => own,
            }
        };
        let mut run = |run: &Run| Run {
            seed: run.seed,
            before: answers(&run.before, random),
            after: answers(&run.after, random),
        };
        let runs = of.runs.iter().map(&mut run).collect();
        let mut night = |night: &Vec<Answers>| night.iter().map(|adapter| answers(adapter, random)).collect();
        let earlier = of.earlier.iter().map(&mut night).collect();
        Task { name: format!("fusion of {}", of.name), runs, earlier, rows: of.rows.clone(), ..*of }
    }

    fn comparisons(&self, task: &Task) -> Vec<Comparison> {
        let of = |&measure: &Measure| {
            let score = |answers: &Answers| Scorer::new(measure, &task.rows.truth, answers).plain();
            let earlier: Groups = task.earlier.iter().map(|night| night.iter().map(score).collect()).collect();
            Comparison {
                name: format!("{} {measure:?}", task.name),
                measure,
                threshold: self.threshold,
                truth: task.rows.truth.clone(),
                runs: task.runs.clone(),
                earlier,
            }
        };
        task.scores.iter().map(of).collect()
    }
}

/// One task or fusion with all its trainings.
struct Task {
    name: String,
    scores: Scores,
    /// Standard deviation of a seed's effect.
    shift: f64,
    rows: Rows,
    runs: Vec<Run>,
    /// Of earlier nights, seed by seed.
    earlier: Vec<Vec<Answers>>,
}

/// What is asked, and how hard it is.
#[derive(Clone)]
struct Rows {
    truth: Answers,
    /// Of classes: the chance of a right answer; of numbers: the error that all trainings make.
    hard: Vec<f64>,
    /// Of numbers: the correlation that is reached without luck.
    correlation: f64,
}

impl Rows {
    fn new(task: usize, rows: usize, scores: Scores, random: &mut Random) -> Self {
        let correlation = CORRELATIONS[task % CORRELATIONS.len()];
        if matches!(scores[0], Measure::Spearman | Measure::Pearson) {
            // As people rate: in steps, so that ranks have ties.
            let truth = (0..rows).map(|_| (5.0 * random.normal()).round() / 5.0).collect();
            let hard = (0..rows).map(|_| random.normal()).collect();
            return Self { truth: Answers::Numbers(truth), hard, correlation };
        }
        // Most rows are always right, some never, some now and then.
        let hard: Vec<f64> = (0..rows)
            .map(|_| match random.uniform() {
                place if place < 0.72 => 0.985,
                place if place < 0.94 => 0.55 + 0.4 * random.uniform(),
                _ => 0.03,
            })
            .collect();
        let truth = (0..rows).map(|_| u32::from(random.uniform() < 0.4)).collect();
        Self { truth: Answers::Classes(truth), hard, correlation }
    }

    /// What one training answers; luck is added to the chance of a right class, or to the correlation of numbers.
    fn answers(&self, luck: f64, random: &mut Random) -> Answers {
        match &self.truth {
            Answers::Classes(truth) => {
                let answer =
                    |(truth, chance): (&u32, &f64)| if random.uniform() < chance + luck { *truth } else { 1 - truth };
                Answers::Classes(truth.iter().zip(&self.hard).map(answer).collect())
            }
            Answers::Numbers(truth) => {
                // Beside a truth of variance 1, errors of this variance leave that correlation.
                let errors = (self.correlation + luck).powi(-2) - 1.0;
                let (shared, own) = ((SHARED_ERRORS * errors).sqrt(), ((1.0 - SHARED_ERRORS) * errors).sqrt());
                let answer = |(truth, hard): (&f64, &f64)| truth + shared * hard + own * random.normal();
                Answers::Numbers(truth.iter().zip(&self.hard).map(answer).collect())
            }
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
