//! The jobs of every world: one stage, stages that need each other, a high priority, a sweep; some for groups. And what
//! must come of them, whatever happens.

use std::{collections::BTreeMap, sync::OnceLock};

use graftwork_scheduler::{Plan, PlannedStage, PlannedSweep, PlannedTrial};
use graftwork_shared::{
    assignment::Evaluation,
    digest::Digest,
    metric::Metric,
    sweep::{Halving, Values},
};

use crate::{
    fixture::{name, plan, stage},
    worker::Trained,
};

/// How many there are.
pub(crate) const PLANS: usize = 4;

/// Updates of each trial of the sweep.
const TRIAL_STEPS: u64 = 48;

/// Which trials go on from each rung, and the one that is chosen.
pub(crate) const PROMOTED: [&[u32]; 2] = [&[2, 3], &[3]];
pub(crate) const CHOSEN: u32 = 3;

pub(crate) fn all() -> Vec<Plan> {
    let single = plan("single", vec![stage("only", &[], 70)]);
    let diamond =
        vec![stage("a", &[], 60), stage("b", &[], 110), stage("c", &[], 30), stage("all", &["a", "b", "c"], 40)];
    // Its first stage would hold it up where three workers are there.
    let urgent = vec![stage("x", &[], 90), stage("y", &[], 25), stage("z", &[], 20), stage("xy", &["x", "y"], 10)];
    let mut urgent = plan("urgent", urgent);
    urgent.job.priority = 3;
    let mut plans = vec![single, plan("diamond", diamond), urgent, swept()];
    for plan in &mut plans[1..] {
        plan.job.resources.workers_per_task = None;
        for stage in &mut plan.stages {
            stage.recipe.training.lanes = 4;
            stage.recipe_digest = stage.recipe.digest();
        }
    }
    plans[1].job.resources.gang = 2;
    "another".clone_into(&mut plans[1].job.owner);
    plans
}

/// A task with four trials, of which half go on from each rung.
fn swept() -> Plan {
    let halving = Halving { factor: 2, first: 0.25, asynchronous: false };
    let trial = |number: u32| {
        let mut trial = stage(&format!("s-{number}"), &[], TRIAL_STEPS);
        trial.recipe.columns = stage("s", &[], TRIAL_STEPS).recipe.columns;
        trial.recipe.training.seed = u64::from(number);
        let values = Values::from([("seed".to_owned(), number.into())]);
        PlannedStage { trial: Some(PlannedTrial { task: name("s"), number, values }), expect: None, ..trial }
    };
    let trials: Vec<PlannedStage> = (1..=4).map(trial).collect();
    let names: Vec<_> = trials.iter().map(|trial| trial.name.clone()).collect();
    let rungs = Halving::rungs(Some(&halving), TRIAL_STEPS);
    let sweep = PlannedSweep { trials: names.clone(), rungs, halving: Some(halving), combinations: 4 };
    let task = PlannedStage {
        name: name("s"),
        needs: names,
        sweep: Some(sweep),
        trial: None,
        publish_as: name("s"),
        ..trials[0].clone()
    };
    plan("swept", std::iter::once(task).chain(trials).collect())
}

/// A trial's validation score after an update, by its seed.
pub(crate) fn score(seed: u64, step: u64) -> Evaluation {
    let score = [0.1, 0.4, 0.7, 0.9, 0.5].get(usize::try_from(seed).unwrap()).copied().unwrap_or(0.0);
    Evaluation { step, loss: 0.1, metrics: [(Metric::Accuracy, score)].into() }
}

/// By recipe: digests of all rows up to each update, when nothing disturbs a training.
pub(crate) fn rows() -> &'static BTreeMap<Digest, Vec<Digest>> {
    static ROWS: OnceLock<BTreeMap<Digest, Vec<Digest>>> = OnceLock::new();
    ROWS.get_or_init(|| {
        let rows = all().into_iter().flat_map(|plan| plan.stages).map(|stage| {
            let mut trained = Trained::default();
            let mut rows = vec![trained.rows];
            rows.extend((0..stage.total_steps).map(|_| {
                trained.update(&stage.recipe_digest);
                trained.rows
            }));
            (stage.recipe_digest, rows)
        });
        rows.collect()
    })
}
