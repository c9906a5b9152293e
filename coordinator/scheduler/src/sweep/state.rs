//! What is durable of a sweep, and how facts change it.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{
    assignment::{Blame, Failure},
    digest::Digest,
    id::{JobId, LeaseId, Name},
    sweep::RungScore,
};
use serde::{Deserialize, Serialize};

use super::rule::Trial;
use crate::{
    fact::Fact,
    job::JobState,
    message::StageKey,
    phase::{Change, Phase},
    plan::Plan,
    state::{State, not_live},
};

/// One sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SweepState {
    /// In order.
    pub(crate) trials: Vec<TrialState>,
    /// The number of the trial that became the task.
    pub(crate) chosen: Option<u32>,
}

/// One trial, but for what its stage keeps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrialState {
    /// The rung to which it may train.
    pub(crate) rung: u32,
    /// It does not go on.
    pub(crate) stopped: bool,
    /// In the order of rungs.
    pub(crate) scores: Vec<RungScore>,
}

impl SweepState {
    /// The sweeps of a plan, with nothing known.
    pub(crate) fn all(plan: &Plan) -> BTreeMap<Name, Self> {
        let swept = plan.stages.iter().filter_map(|stage| Some((stage.name.clone(), stage.sweep.as_ref()?)));
        swept.map(|(name, sweep)| (name, Self::new(sweep.trials.len()))).collect()
    }

    fn new(trials: usize) -> Self {
        Self { trials: vec![TrialState::default(); trials], chosen: None }
    }
}

/// The position of a trial of this number.
pub(super) fn position(number: u32) -> usize {
    (number as usize).wrapping_sub(1)
}

impl JobState {
    /// The sweep that the stage at this position is a trial of, with the trial's position in it.
    pub(crate) fn sweep_of_trial(&self, at: usize) -> Option<(&SweepState, usize)> {
        let trial = self.plan.stages[at].trial.as_ref()?;
        Some((self.sweeps.get(&trial.task)?, position(trial.number)))
    }

    pub(crate) fn trial(&self, at: usize) -> Option<&TrialState> {
        let (sweep, position) = self.sweep_of_trial(at)?;
        sweep.trials.get(position)
    }

    /// The trials of a swept task as the rule sees them.
    pub(super) fn standings(&self, task: &Name) -> Option<Vec<Trial<'_>>> {
        let planned = self.planned(task)?.sweep.as_ref()?;
        let trials = planned.trials.iter().zip(&self.sweeps.get(task)?.trials);
        trials
            .map(|(name, trial)| {
                let failed = matches!(self.stages[self.position(name)?].phase, Phase::Failed { .. });
                Some(Trial { rung: trial.rung, stopped: trial.stopped, failed, scores: &trial.scores })
            })
            .collect()
    }

    /// The update at which a trial pauses next; `None` for any other stage.
    pub(crate) fn pause_step(&self, at: usize) -> Option<u64> {
        let task = &self.plan.stages[at].trial.as_ref()?.task;
        let rungs = &self.planned(task)?.sweep.as_ref()?.rungs;
        rungs.get(self.trial(at)?.rung as usize).copied()
    }

    /// Whether it is a trial that does not go on.
    pub(crate) fn is_stopped(&self, at: usize) -> bool {
        let chosen = self.sweep_of_trial(at).is_some_and(|(sweep, _)| sweep.chosen.is_some());
        chosen || self.trial(at).is_some_and(|trial| trial.stopped)
    }

    /// Whether its trials are not compared to the end yet.
    pub(crate) fn is_swept(&self, at: usize) -> bool {
        self.sweeps.get(&self.plan.stages[at].name).is_some_and(|sweep| sweep.chosen.is_none())
    }

    /// Whether a trial, or a task with trials, waits for nothing; `None` where needs alone say it.
    pub(crate) fn is_due_in_sweep(&self, at: usize) -> Option<bool> {
        let stage = &self.plan.stages[at];
        let Some(planned) = &stage.trial else {
            stage.sweep.as_ref().filter(|_| self.sweeps.contains_key(&stage.name))?;
            return Some(!self.is_swept(at));
        };
        self.planned(&planned.task)?.sweep.as_ref()?;
        let trial = self.sweeps.get(&planned.task)?.trials.get(position(planned.number));
        let failed = matches!(self.stages[at].phase, Phase::Failed { .. });
        let awaited = |trial: &TrialState| {
            Trial { rung: trial.rung, stopped: trial.stopped, failed, scores: &trial.scores }.is_awaited()
        };
        Some(trial.is_some_and(awaited))
    }

    /// What a trial, or a task with trials, waits for; `None` where needs alone say it. Trials that are awaited wait for
    /// nothing.
    pub(crate) fn waits_in_sweep(&self, at: usize) -> Option<Vec<Name>> {
        let stage = &self.plan.stages[at];
        let task = stage.trial.as_ref().map_or(&stage.name, |trial| &trial.task);
        let trials = self.standings(task)?;
        if let Some(trial) = &stage.trial {
            if trials.get(position(trial.number)).is_some_and(Trial::is_awaited) {
                return Some(Vec::new());
            }
        } else if !self.is_swept(at) {
            return Some(Vec::new());
        }
        let names = &self.planned(task)?.sweep.as_ref()?.trials;
        let awaited = trials.iter().zip(names).filter(|(trial, _)| trial.is_awaited());
        let awaited: Vec<Name> = awaited.map(|(_, name)| name.clone()).collect();
        // Between the last score and the decision nobody is awaited, and still nothing can start.
        Some(if awaited.is_empty() { vec![task.clone()] } else { awaited })
    }

    /// What is kept of the sweeps when the job is submitted again as this plan, in which chosen trials become their tasks
    /// again; and the stages that start over: of sweeps that changed, or of which every trial failed.
    pub(crate) fn keep_sweeps(&self, plan: &mut Plan) -> (BTreeMap<Name, SweepState>, BTreeSet<Name>) {
        let mut sweeps = SweepState::all(plan);
        let mut fresh = BTreeSet::new();
        for (task, sweep) in &mut sweeps {
            let Some(planned) = plan.stage(task).and_then(|stage| stage.sweep.clone()) else { continue };
            let earlier = self.plan.stage(task).and_then(|stage| stage.sweep.as_ref());
            let still = |name: &Name| match (self.plan.stage(name), plan.stage(name)) {
                (Some(earlier), Some(now)) => now.is_still(earlier),
                _ => false,
            };
            let failed = self.position(task).map(|at| &self.stages[at].phase);
            let hopeless = matches!(failed, Some(Phase::Failed { failure }) if failure.blame == Blame::User);
            match self.sweeps.get(task) {
                Some(known)
                    if earlier == Some(&planned)
                        && planned.trials.iter().all(still)
                        && (known.chosen.is_some() || !hopeless) =>
                {
                    sweep.clone_from(known);
                    if let Some(number) = known.chosen {
                        // It was chosen among these very trials.
                        let _ = plan.choose_trial(task, number);
                    }
                }
                _ => fresh.extend(planned.trials.iter().chain([task]).cloned()),
            }
        }
        (sweeps, fresh)
    }
}

impl State {
    pub(crate) fn fold_sweep(&mut self, fact: &Fact, dropped: &mut Vec<Digest>) -> Result<(), String> {
        match fact {
            Fact::TrialScored { job, stage, lease, scores, at_ms } => {
                let key = StageKey { job: job.clone(), stage: stage.clone() };
                self.fold_scores(&key, *lease, scores, *at_ms)
            }
            Fact::RungDecided { job, task, to, promoted, stopped, .. } => {
                for number in promoted.iter().chain(stopped) {
                    let key = self.trial_key(job, task, *number)?;
                    self.stage(&key)?;
                }
                let known = self.sweep(job, task)?;
                for number in promoted.iter().chain(stopped) {
                    let promoted = promoted.contains(number);
                    let trial = known.trials.get_mut(position(*number)).ok_or_else(|| no_trial(task, *number))?;
                    trial.stopped = !promoted;
                    trial.rung = if promoted { *to } else { trial.rung };
                }
                for number in stopped {
                    let key = self.trial_key(job, task, *number)?;
                    dropped.extend(self.stage(&key)?.checkpoint.take().map(|checkpoint| checkpoint.blob));
                }
                Ok(())
            }
            Fact::TrialChosen { job, task, trial, at_ms } => self.fold_choice(job, task, *trial, *at_ms, dropped),
            Fact::SweepFailed { job, task, failure, at_ms } => {
                self.change(&StageKey { job: job.clone(), stage: task.clone() }, Change::Exhaust(failure.clone()))?;
                self.end_trials(job, task, *at_ms).map(drop)
            }
            other => Err(format!("{} is not about a sweep", other.name())),
        }
    }

    fn fold_scores(
        &mut self,
        key: &StageKey,
        lease: Option<LeaseId>,
        scores: &[RungScore],
        at_ms: u64,
    ) -> Result<(), String> {
        match lease {
            Some(lease) if self.live().get(&lease) != Some(key) => return Err(not_live(lease)),
            Some(lease) => self.end_lease(lease, at_ms, Change::GiveBack)?.failures.clear(),
            None => {}
        }
        self.stage(key)?;
        let (job, at) = self.record(key).ok_or_else(|| format!("there is no stage {key}"))?;
        let planned = job.plan.stages[at].trial.clone().ok_or_else(|| format!("stage {key} is no trial"))?;
        let trial = self.sweep(&key.job, &planned.task)?.trials.get_mut(position(planned.number));
        let trial = trial.ok_or_else(|| no_trial(&planned.task, planned.number))?;
        for score in scores {
            if trial.scores.last().is_some_and(|last| last.rung >= score.rung) {
                return Err(format!("trial {} has a score at rung {} already", planned.number, score.rung));
            }
            trial.scores.push(*score);
        }
        Ok(())
    }

    fn fold_choice(
        &mut self,
        job: &JobId,
        task: &Name,
        number: u32,
        at_ms: u64,
        dropped: &mut Vec<Digest>,
    ) -> Result<(), String> {
        let chosen = self.trial_key(job, task, number)?;
        let checkpoint = self.stage(&chosen)?.checkpoint.take();
        self.sweep(job, task)?.chosen = Some(number);
        dropped.extend(self.end_trials(job, task, at_ms)?);
        self.job(job)?.plan.choose_trial(task, number)?;
        self.touched.jobs.insert(job.clone());
        let key = StageKey { job: job.clone(), stage: task.clone() };
        self.stage(&key)?.checkpoint = checkpoint;
        Ok(())
    }

    /// Nothing more happens to the trials of a task. Gives the blobs of their checkpoints.
    fn end_trials(&mut self, job: &JobId, task: &Name, at_ms: u64) -> Result<Vec<Digest>, String> {
        let mut dropped = Vec::new();
        let count = self.sweep(job, task)?.trials.len();
        for number in (1..).take(count) {
            let key = self.trial_key(job, task, number)?;
            match self.stage(&key)?.phase.clone() {
                Phase::Running(grant) => self.end_lease(grant.lease, at_ms, Change::Compare).map(drop)?,
                Phase::Pending => self.change(&key, Change::Compare).map(drop)?,
                _ => {}
            }
            if self.sweep(job, task)?.chosen.is_some() {
                dropped.extend(self.stage(&key)?.checkpoint.take().map(|checkpoint| checkpoint.blob));
            }
        }
        Ok(dropped)
    }

    fn sweep(&mut self, job: &JobId, task: &Name) -> Result<&mut SweepState, String> {
        self.job(job)?.sweeps.get_mut(task).ok_or_else(|| format!("task {task} of job {job} has no trials"))
    }

    fn trial_key(&mut self, job: &JobId, task: &Name, number: u32) -> Result<StageKey, String> {
        let planned = self.job(job)?.planned(task).and_then(|stage| stage.sweep.as_ref());
        let stage = planned.and_then(|sweep| sweep.trials.get(position(number)));
        Ok(StageKey { job: job.clone(), stage: stage.ok_or_else(|| no_trial(task, number))?.clone() })
    }
}

fn no_trial(task: &Name, number: u32) -> String {
    format!("task {task} has no trial {number}")
}

/// Why a sweep without a trial to choose failed.
pub(super) fn all_failed(reasons: &[(u32, String)]) -> Failure {
    let reasons: Vec<String> = reasons.iter().map(|(number, reason)| format!("trial {number}: {reason}")).collect();
    let message = format!("all {} trials failed: {}", reasons.len(), reasons.join("; "));
    Failure { blame: Blame::User, message }
}
