//! What a plan says of sweeps, and how the plan changes once a trial is chosen.

use graftwork_shared::{
    id::Name,
    recipe::{FusedAdapter, Method},
    sweep::{Halving, Values},
};
use serde::{Deserialize, Serialize};

use crate::plan::{FusedSource, Plan, PlannedStage};

/// What the stage of a swept task knows of its trials. Until one is chosen, the recipe of the stage is that of the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedSweep {
    /// Stages of the trials, in order.
    pub trials: Vec<Name>,
    /// Updates at which they are compared; the last one is their end.
    pub rungs: Vec<u64>,
    /// Which go on.
    pub halving: Option<Halving>,
    /// How many combinations there are, of which the trials may be a sample.
    pub combinations: u64,
}

/// What the stage of a trial knows of its sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedTrial {
    /// The stage of the swept task.
    pub task: Name,
    /// The trial's number, from 1.
    pub number: u32,
    /// Its swept values.
    pub values: Values,
}

impl PlannedSweep {
    /// Share of the trials' updates that is trained when none fails and rungs are compared whole: the others are stopped.
    pub fn trained_share(&self) -> f64 {
        let factor = self.halving.map_or(1, |halving| halving.factor.max(1)) as usize;
        let (mut open, mut before, mut trained) = (self.trials.len(), 0, 0);
        for step in &self.rungs {
            trained += (step - before) * open as u64;
            before = *step;
            open = (open / factor).max(1);
        }
        trained as f64 / (before.max(1) * self.trials.len().max(1) as u64) as f64
    }
}

impl Plan {
    /// The trial stages of a swept task, in order; empty for any other stage.
    fn trials_of(&self, task: &Name) -> Vec<&PlannedStage> {
        let sweep = self.stage(task).and_then(|stage| stage.sweep.as_ref());
        sweep.iter().flat_map(|sweep| &sweep.trials).filter_map(|name| self.stage(name)).collect()
    }

    /// Whether each trial of each sweep is a stage that knows its place.
    pub(crate) fn check_sweep(&self, stage: &PlannedStage) -> bool {
        let Some(sweep) = &stage.sweep else { return true };
        let trials = self.trials_of(&stage.name);
        let known = trials.iter().zip(1..).all(|(trial, number)| {
            let same = |of: &PlannedTrial| of.task == stage.name && of.number == number;
            trial.trial.as_ref().is_some_and(same) && stage.needs.contains(&trial.name)
        });
        let rungs = sweep.rungs.is_sorted() && sweep.rungs.last() == Some(&stage.total_steps);
        known && rungs && !trials.is_empty() && trials.len() == sweep.trials.len()
    }

    /// Makes this trial the task: its stage gets the trial's recipe, and fusions read that adapter from now on. The same
    /// plan and number give the same plan.
    pub fn choose_trial(&mut self, task: &Name, number: u32) -> Result<(), String> {
        let position = usize::try_from(number).unwrap_or(usize::MAX).wrapping_sub(1);
        let trials = self.trials_of(task);
        let chosen = (*trials.get(position).ok_or_else(|| format!("task {task} has no trial {number}"))?).clone();
        let count = trials.len();
        let Method::Adapter(config) = &chosen.recipe.method else {
            return Err(format!("trial {number} of task {task} trains no adapter"));
        };
        for stage in &mut self.stages {
            if stage.name == *task {
                stage.recipe = chosen.recipe.clone();
                stage.recipe_digest = chosen.recipe_digest;
                stage.total_steps = chosen.total_steps;
                stage.trained_parameters = chosen.trained_parameters;
                stage.memory_bytes = chosen.memory_bytes;
                stage.method = format!("{} (trial {number} of {count})", chosen.method);
            }
            let dropped = stage.recipe.training.adapter_drop.fixed().to_vec();
            let Method::Fusion { adapters, .. } = &mut stage.recipe.method else { continue };
            for (source, adapter) in stage.fused.iter().zip(adapters) {
                if *source == FusedSource::Stage(task.clone()) {
                    let config = config.clone().without(&dropped);
                    *adapter = FusedAdapter { config, origin: chosen.recipe_digest };
                }
            }
            stage.recipe_digest = stage.recipe.digest();
        }
        Ok(())
    }
}
