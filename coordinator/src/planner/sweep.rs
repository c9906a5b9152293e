//! The stages of a swept task: one for each trial, and its own, which becomes the best of them.

use graftwork_scheduler::{PlannedStage, PlannedSweep, PlannedTrial};
use graftwork_shared::{
    id::Name,
    job::Task,
    recipe::{FusedAdapter, Method},
    sweep::{Halving, Sweep, trial_name},
};

use super::{
    problems::Problems,
    task::{Of, PlannedTask, stage},
};

/// The task's own stage and those of its trials; `None` when one of them has a problem, which was told.
pub(super) fn plan(
    task: &Task,
    sweep: &Sweep,
    of: &Of<'_>,
    problems: &Problems<'_>,
) -> Option<(PlannedStage, Vec<PlannedStage>)> {
    let planned: Vec<Option<PlannedStage>> = (1..)
        .zip(&sweep.trials)
        .map(|(number, trial)| {
            let alone = Task { adapter: trial.adapter.clone(), training: trial.training.clone(), ..task.clone() };
            let name = trial_name(task.name.as_str(), number).ok()?;
            let trial = PlannedTrial { task: task.name.clone(), number, values: trial.values.clone() };
            let stage = stage(&alone, of, problems)?;
            Some(PlannedStage { name: name.clone(), publish_as: name, expect: None, trial: Some(trial), ..stage })
        })
        .collect();
    let trials: Vec<PlannedStage> = planned.into_iter().collect::<Option<_>>()?;
    let first = trials.first()?;
    let names: Vec<Name> = trials.iter().map(|trial| trial.name.clone()).collect();
    let own = PlannedStage {
        name: task.name.clone(),
        publish_as: task.publish_as.clone(),
        expect: task.expect,
        method: format!("the best of {} trials", trials.len()),
        needs: names.clone(),
        memory_bytes: trials.iter().map(|trial| trial.memory_bytes).max().unwrap_or_default(),
        trial: None,
        sweep: Some(PlannedSweep {
            trials: names,
            rungs: Halving::rungs(sweep.halving.as_ref(), first.total_steps),
            halving: sweep.halving,
            combinations: sweep.combinations,
        }),
        ..first.clone()
    };
    Some((own, trials))
}

/// What a fusion may come to read: the adapters given, and for each swept task among them those with another trial's in
/// its place.
pub(super) fn variants(
    adapters: &[FusedAdapter],
    fused: &[Option<&PlannedTask>],
    dropped: &[u32],
) -> Vec<Vec<FusedAdapter>> {
    let mut variants = vec![adapters.to_vec()];
    for (position, task) in fused.iter().enumerate() {
        for trial in task.iter().flat_map(|task| &task.trials) {
            let Method::Adapter(config) = &trial.recipe.method else { continue };
            let mut other = adapters.to_vec();
            other[position] = FusedAdapter { config: config.clone().without(dropped), origin: trial.recipe_digest };
            variants.push(other);
        }
    }
    variants.dedup_by(|one, other| one.iter().zip(other.iter()).all(|(one, other)| one.config == other.config));
    variants
}

#[cfg(test)]
mod tests {
    use graftwork_shared::{diagnostic::Diagnostic, recipe::Method};

    use crate::{
        fixture::{TASK, World},
        planner::{Planned, Planning, plan_with_spans},
    };

    async fn plan(world: &World, tasks: &str) -> Result<Planned, Vec<Diagnostic>> {
        let (_, job, spans) = world.job(tasks);
        plan_with_spans(
            job,
            spans,
            Planning { cache: world.path("cache").into(), machine: None, uploads: None, nights: None },
        )
        .await
    }

    const SWEEP: &str = "[tasks.mood.sweep]\nlearning_rate = [1e-3, 1e-4]\nseed = [1, 2]\n\
                         [tasks.mood.sweep.halving]\nfactor = 2\nfirst = 0.5\n";

    #[tokio::test]
    async fn each_trial_has_the_recipe_of_the_task_that_says_its_values() {
        let world = World::new();
        let planned = plan(&world, &format!("{TASK}{SWEEP}")).await.unwrap();
        let names: Vec<&str> = planned.plan.stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, ["mood", "mood-trial-1", "mood-trial-2", "mood-trial-3", "mood-trial-4"]);
        let alone = format!("{TASK}[tasks.mood.training]\nlearning_rate = 1e-4\nseed = 2\n");
        let alone = plan(&world, &alone).await.unwrap();
        assert_eq!(planned.plan.stages[4].recipe_digest, alone.plan.stages[0].recipe_digest);
        let task = &planned.plan.stages[0];
        assert_eq!((task.method.as_str(), task.needs.len()), ("the best of 4 trials", 4));
        assert_eq!(task.sweep.as_ref().unwrap().rungs, [2, 4]);
        assert!(planned.plan.stages[1..].iter().all(|trial| trial.expect.is_none()));
    }

    #[tokio::test]
    async fn a_fusion_is_checked_with_every_trial_that_it_may_read() {
        let world = World::new();
        let other = TASK.replace("tasks.mood", "tasks.other");
        let fusion = "[fusions.both]\nadapters = [\"other\", \"mood\"]\ntask = \"mood\"\n";
        let planned = plan(&world, &format!("{TASK}{SWEEP}{other}{fusion}")).await.unwrap();
        let both = planned.plan.stages.last().unwrap();
        assert_eq!(both.needs.iter().map(graftwork_shared::id::Name::as_str).collect::<Vec<_>>(), ["other", "mood"]);
        let chosen = |number| {
            let mut plan = planned.plan.clone();
            plan.choose_trial(&"mood".parse().unwrap(), number).unwrap();
            let both = plan.stages.last().unwrap().clone();
            assert_eq!(both.recipe_digest, both.recipe.digest());
            let Method::Fusion { adapters, .. } = both.recipe.method else { panic!("a fusion") };
            (adapters[1].origin, plan.stages[0].recipe_digest)
        };
        for (number, stage) in (1..).zip(&planned.plan.stages[1..5]) {
            assert_eq!(chosen(number), (stage.recipe_digest, stage.recipe_digest));
        }
    }

    #[tokio::test]
    async fn what_halving_saves_is_in_the_estimate() {
        let world = World::new();
        let all = SWEEP.split("[tasks.mood.sweep.halving]").next().unwrap();
        let seconds = |planned: Planned| planned.estimate.seconds;
        let whole = seconds(plan(&world, &format!("{TASK}{all}")).await.unwrap());
        let halved = seconds(plan(&world, &format!("{TASK}{SWEEP}")).await.unwrap());
        // Four trials to the half, two of them to the end.
        assert!((halved / whole - 0.75).abs() < 1e-9, "{halved} of {whole}");
    }
}
