//! What comes of a trial's score, and of a rung that is whole.

use std::collections::BTreeSet;

use graftwork_shared::{
    assignment::{Blame, Evaluation, Failure, StageResult},
    data::Split,
    event::EventKind,
    id::{JobId, LeaseId, Name, WorkerId},
    metric::Metric,
    sweep::RungScore,
};

use super::{
    rule::{self, Next},
    state::all_failed,
};
use crate::{
    fact::Fact,
    job::JobState,
    machine::Scheduler,
    message::{Command, StageKey},
    phase::{Grant, Phase},
};

impl Scheduler {
    /// A trial came to the end of its rung, or of its training, and gave up its place.
    pub(crate) fn on_paused(
        &mut self,
        key: &StageKey,
        (worker, lease): (WorkerId, LeaseId),
        evaluation: &Evaluation,
        finished: bool,
    ) {
        let (job, at) = self.state.record(key).expect("a live lease is one of a known stage");
        let (step, wanted) = (evaluation.step, job.pause_step(at));
        if !wanted.is_some_and(|wanted| step == wanted || (finished && step < wanted)) {
            let wanted = wanted.map_or("not to pause".to_owned(), |wanted| format!("to pause after update {wanted}"));
            let message = format!("the worker paused after update {step}, and it was told {wanted}");
            return self.give_up(key, (worker, lease), message);
        }
        let metric = job.plan.stages[at].recipe.metric;
        let score = evaluation.metrics.get(&metric).copied();
        let (rung, last) = (job.trial(at).map_or(0, |trial| trial.rung), job.last_rung(at));
        // One whose training is over has no other score later.
        let rungs = rung..=if finished { last } else { rung };
        let scores: Vec<RungScore> = rungs.map(|rung| RungScore::new(rung, step, score)).collect();
        self.keep_cost(lease);
        self.dismiss(lease, Some(worker));
        self.record_scores(key, Some(lease), scores);
        self.out.commands.push(Command::Accept { worker, lease, step });
    }

    /// The hub has a trial's whole result: of its scores those count that it holds for the rungs to come.
    pub(crate) fn on_trial_known(&mut self, key: &StageKey, result: &StageResult) {
        let Some((job, at)) = self.state.record(key) else { return };
        let stage = &job.plan.stages[at];
        let Some(sweep) = stage.trial.as_ref().and_then(|trial| job.planned(&trial.task)?.sweep.as_ref()) else {
            return;
        };
        let rung = job.trial(at).map_or(0, |trial| trial.rung);
        let known = (rung..).zip(sweep.rungs.iter().skip(rung as usize)).map_while(|(rung, step)| {
            let end = *step == stage.total_steps || *step >= result.steps;
            known_score(result, *step, end, stage.recipe.metric).map(|(step, score)| RungScore::new(rung, step, score))
        });
        let scores: Vec<RungScore> = known.collect();
        if !scores.is_empty() {
            self.record_scores(key, None, scores);
        }
    }

    fn record_scores(&mut self, key: &StageKey, lease: Option<LeaseId>, scores: Vec<RungScore>) {
        let told = scores.first().map(|first| EventKind::TrialScored { score: *first, reused: lease.is_none() });
        let (job, stage, at_ms) = (key.job.clone(), key.stage.clone(), self.now_ms);
        self.record(Fact::TrialScored { job, stage, lease, scores, at_ms });
        if let Some(told) = told {
            self.tell(&key.job, Some(&key.stage), told);
        }
    }

    /// Decides what scores and failures allow to be decided.
    pub(crate) fn compare_trials(&mut self, id: &JobId, touched: &BTreeSet<usize>) {
        let job = &self.state.jobs()[id];
        let open = |at: &usize| job.stages[*at].phase == Phase::Pending && job.is_swept(*at);
        let swept: BTreeSet<usize> = touched.iter().filter_map(|at| job.swept_task(*at)).filter(open).collect();
        let tasks: Vec<(Name, usize)> = swept
            .into_iter()
            .map(|at| (job.plan.stages[at].name.clone(), job.index.shape.sweeps.get(&at).map_or(0, Vec::len)))
            .collect();
        for (task, trials) in tasks {
            self.count(1 + trials);
            while self.compare(id, &task) {}
        }
    }

    /// Takes one decision; whether there may be another one.
    fn compare(&mut self, id: &JobId, task: &Name) -> bool {
        let job = &self.state.jobs()[id];
        if let Some((number, failure)) = job.failed_trials(task).into_iter().find(|(_, f)| f.blame == Blame::Machine) {
            // Whether a machine fails is chance, and chance must not choose.
            let message = format!("trial {number} cannot be compared with the others: {}", failure.message);
            self.fail_sweep(id, task, Failure { blame: Blame::Machine, message });
            return false;
        }
        let planned = job.planned(task).and_then(|stage| stage.sweep.as_ref());
        let (Some(planned), Some(trials)) = (planned, job.standings(task)) else { return false };
        let last = u32::try_from(planned.rungs.len()).unwrap_or(u32::MAX).saturating_sub(1);
        let factor = planned.halving.map_or(1, |halving| halving.factor);
        let asynchronous = planned.halving.is_some_and(|halving| halving.asynchronous);
        let next = rule::next(&trials, last, factor, asynchronous);
        let names = planned.trials.clone();
        let number = |at: usize| u32::try_from(at + 1).unwrap_or(u32::MAX);
        let numbers = |positions: Vec<usize>| positions.into_iter().map(number).collect::<Vec<_>>();
        let (job, at_ms) = (id.clone(), self.now_ms);
        match next {
            Next::Wait => return false,
            Next::Promote { rung, to, promoted, stopped } => {
                for at in &promoted {
                    // What the hub has of a trial that never trained may tell its next score too.
                    self.set_reuse(&StageKey { job: id.clone(), stage: names[*at].clone() }, None);
                }
                let (promoted, stopped) = (numbers(promoted), numbers(stopped));
                let told = EventKind::RungDecided {
                    rung,
                    to,
                    promoted: promoted.clone(),
                    stopped: stopped.clone(),
                    asynchronous,
                };
                let task_name = task.clone();
                self.record(Fact::RungDecided {
                    job,
                    task: task_name,
                    rung,
                    to,
                    promoted,
                    stopped,
                    asynchronous,
                    at_ms,
                });
                self.tell(id, Some(task), told);
            }
            Next::Choose(at) => {
                let score = trials_best(&self.state.jobs()[id], task, at);
                self.record(Fact::TrialChosen { job, task: task.clone(), trial: number(at), at_ms });
                self.tell(id, Some(task), EventKind::TrialChosen { trial: number(at), score, asynchronous });
                return false;
            }
            Next::Exhausted => {
                let reasons = self.state.jobs()[id].failed_trials(task);
                let reasons: Vec<_> = reasons.into_iter().map(|(number, failure)| (number, failure.message)).collect();
                self.fail_sweep(id, task, all_failed(&reasons));
                return false;
            }
        }
        true
    }

    fn fail_sweep(&mut self, id: &JobId, task: &Name, failure: Failure) {
        let job = &self.state.jobs()[id];
        let grants = job.trials_of(task).into_iter().filter_map(|at| job.stages[at].phase.grant());
        let leases: Vec<LeaseId> = grants.map(|grant: &Grant| grant.lease).collect();
        for lease in leases {
            self.keep_cost(lease);
            self.dismiss(lease, None);
        }
        let (job, at_ms) = (id.clone(), self.now_ms);
        let told = EventKind::AttemptFailed { failure: failure.clone(), retried: false };
        self.record(Fact::SweepFailed { job, task: task.clone(), failure, at_ms });
        self.tell(id, Some(task), told);
    }
}

impl JobState {
    /// The last rung of a trial's sweep.
    pub(super) fn last_rung(&self, at: usize) -> u32 {
        let task = self.plan.stages[at].trial.as_ref().map(|trial| &trial.task);
        let sweep = task.and_then(|task| self.planned(task)?.sweep.as_ref());
        sweep.map_or(0, |sweep| u32::try_from(sweep.rungs.len()).unwrap_or(u32::MAX).saturating_sub(1))
    }

    /// Trials that failed for good, by number.
    pub(super) fn failed_trials(&self, task: &Name) -> Vec<(u32, Failure)> {
        let trials = self.trials_of(task).into_iter().filter_map(|at| {
            let trial = self.plan.stages[at].trial.as_ref()?;
            match &self.stages[at].phase {
                Phase::Failed { failure } => Some((trial.number, failure.clone())),
                _ => None,
            }
        });
        trials.collect()
    }

    /// Positions of a task's trials, in the plan's order.
    fn trials_of(&self, task: &Name) -> BTreeSet<usize> {
        let trials = self.position(task).and_then(|at| self.index.shape.sweeps.get(&at));
        trials.into_iter().flatten().copied().collect()
    }

    /// The swept task to which a stage belongs.
    fn swept_task(&self, at: usize) -> Option<usize> {
        let stage = self.plan.stages.get(at)?;
        match &stage.trial {
            Some(trial) => self.position(&trial.task),
            None => stage.sweep.as_ref().map(|_| at),
        }
    }
}

/// The score by which a trial was chosen.
fn trials_best(job: &JobState, task: &Name, at: usize) -> Option<f64> {
    job.standings(task)?.get(at)?.scores.last()?.score
}

/// A result's score at an update; at the end that of the weights that it kept.
fn known_score(result: &StageResult, step: u64, end: bool, metric: Metric) -> Option<(u64, Option<f64>)> {
    let evaluation = if end {
        result.scores.get(&Split::Validation)
    } else {
        result.validation.iter().find(|evaluation| evaluation.step == step)
    }?;
    Some((if end { result.steps } else { step }, evaluation.metrics.get(&metric).copied()))
}
