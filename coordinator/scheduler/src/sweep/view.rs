//! Sweeps as people see them: views, sentences, and the part of a release's record.

use graftwork_shared::{
    id::Name,
    sweep::{RungScore, SweepRecord, SweepView, TrialRecord, TrialView},
    view::StageState,
};

use super::state::position;
use crate::{job::JobState, machine::Scheduler, message::StageKey, phase::Phase};

impl Scheduler {
    /// What came of a task's sweep, for its release; `None` for other stages, and before a trial is chosen.
    pub fn sweep_record(&self, key: &StageKey) -> Option<SweepRecord> {
        let job = self.state.jobs().get(&key.job)?;
        let planned = job.plan.stage(&key.stage)?.sweep.as_ref()?;
        let sweep = job.sweeps.get(&key.stage)?;
        let chosen = sweep.chosen?;
        let failed = job.failed_trials(&key.stage);
        let trials: Option<Vec<TrialRecord>> = planned
            .trials
            .iter()
            .zip(&sweep.trials)
            .zip(1..)
            .map(|((name, trial), number)| {
                let stage = job.plan.stage(name)?;
                let failure = failed.iter().find(|(other, _)| *other == number);
                Some(TrialRecord {
                    values: stage.trial.as_ref()?.values.clone(),
                    recipe: stage.recipe_digest,
                    scores: reached(&trial.scores, trial.rung),
                    failed: failure.map(|(_, failure)| failure.message.clone()),
                })
            })
            .collect();
        let trials = trials?;
        Some(SweepRecord {
            trial: chosen,
            values: trials.get(position(chosen))?.values.clone(),
            asynchronous: planned.halving.is_some_and(|halving| halving.asynchronous),
            halving: planned.halving,
            combinations: planned.combinations,
            rungs: planned.rungs.clone(),
            trials,
        })
    }

    pub(crate) fn sweep_view(&self, job: &JobState, at: usize) -> Option<SweepView> {
        let stage = &job.plan.stages[at];
        let planned = stage.sweep.as_ref()?;
        let (mut saved_steps, mut saved_core_seconds) = (0, 0.0);
        for name in &planned.trials {
            let Some(at) = job.position(name) else { continue };
            let (saved, core_seconds) = self.saved(job, at);
            saved_steps += saved;
            saved_core_seconds += core_seconds;
        }
        Some(SweepView {
            halving: planned.halving,
            combinations: planned.combinations,
            rungs: planned.rungs.clone(),
            trials: planned.trials.clone(),
            chosen: job.sweeps.get(&stage.name).and_then(|sweep| sweep.chosen),
            saved_steps,
            saved_core_seconds,
        })
    }

    /// Updates of a trial that will not be trained, and what they would have cost at its own rate.
    fn saved(&self, job: &JobState, at: usize) -> (u64, f64) {
        let (stage, record) = (&job.plan.stages[at], &job.stages[at]);
        let failed = matches!(record.phase, Phase::Failed { .. });
        let Some(trial) = job.trial(at).filter(|_| failed || job.is_stopped(at)) else { return (0, 0.0) };
        let Some(last) = trial.scores.last() else { return (0, 0.0) };
        // One whose training ended by itself has its score at the last rung too.
        if last.rung == job.last_rung(at) || record.attempts == 0 {
            return (0, 0.0);
        }
        let saved = stage.total_steps - last.step;
        (saved, self.stage_cost(record).core_seconds / last.step.max(1) as f64 * saved as f64)
    }
}

/// `waits for trials 4 and 7 of rung 2`.
fn waits(job: &JobState, stages: &[Name]) -> String {
    let of = |name: &Name| {
        let at = job.position(name)?;
        Some((job.plan.stages[at].trial.as_ref()?.number.to_string(), job.trial(at)?.rung + 1))
    };
    let trials: Vec<(String, u32)> = stages.iter().filter_map(of).collect();
    let Some(rung) = trials.iter().map(|(_, rung)| *rung).max() else { return "waits to be compared".to_owned() };
    let numbers: Vec<&str> = trials.iter().map(|(number, _)| number.as_str()).collect();
    let (numbers, plural) = match numbers.as_slice() {
        [one] => ((*one).to_owned(), ""),
        [before @ .., last] => (format!("{} and {last}", before.join(", ")), "s"),
        [] => (String::new(), "s"),
    };
    let of_rung =
        if trials.iter().all(|(_, other)| *other == rung) { format!(" of rung {rung}") } else { String::new() };
    format!("waits for trial{plural} {numbers}{of_rung}")
}

/// Scores at the rungs to which a trial went; those of a training that ended early, or that were known before, may be
/// known for later ones too.
fn reached(scores: &[RungScore], rung: u32) -> Vec<RungScore> {
    scores.iter().filter(|score| score.rung <= rung).copied().collect()
}

impl JobState {
    /// What is to be said of a stage of a sweep while it waits; `None` where it is said as of any stage.
    pub(crate) fn sweep_sentence(&self, at: usize, state: &StageState) -> Option<String> {
        let stage = &self.plan.stages[at];
        if matches!(state, StageState::Stopped { .. }) {
            let (sweep, _) = self.sweep_of_trial(at)?;
            let failed = sweep.chosen.is_none() && !self.is_stopped(at);
            return failed.then(|| "stopped: the trials of its task could not be compared to the end".to_owned());
        }
        let StageState::Waiting { for_stages } = state else { return None };
        if let Some(trial) = self.trial(at) {
            let planned = stage.trial.as_ref()?;
            let scored = trial.scores.iter().find(|score| score.rung == trial.rung)?;
            let rungs = self.plan.stage(&planned.task)?.sweep.as_ref()?.rungs.len();
            let rung = trial.rung + 1;
            return Some(format!("scored {scored} at rung {rung} of {rungs}; {}", waits(self, for_stages)));
        }
        self.is_swept(at).then(|| waits(self, for_stages))
    }

    pub(crate) fn trial_view(&self, at: usize) -> Option<TrialView> {
        let (planned, trial) = (self.plan.stages[at].trial.as_ref()?, self.trial(at)?);
        Some(TrialView {
            task: planned.task.clone(),
            number: planned.number,
            values: planned.values.clone(),
            rung: trial.rung,
            scores: reached(&trial.scores, trial.rung),
        })
    }

    /// Where a trial stands that trains no more; `None` for any other stage.
    pub(crate) fn trial_end(&self, at: usize) -> Option<StageState> {
        let (sweep, of_sweep) = self.sweep_of_trial(at)?;
        let trial = sweep.trials.get(of_sweep)?;
        if sweep.chosen.is_some_and(|number| position(number) == of_sweep) {
            return Some(StageState::Chosen);
        }
        // Of the rung at which it stayed behind.
        let rung = trial.rung;
        (self.is_stopped(at) || self.stages[at].phase == Phase::Compared).then_some(StageState::Stopped { rung })
    }
}
