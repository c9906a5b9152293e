//! What follows from the state alone: trials to compare, hopeless stages, publications, ends of jobs.
//!
//! Only jobs that changed are looked at, and of those only the stages around the change.

use std::collections::BTreeSet;

use graftwork_shared::{
    assignment::{Blame, Failure},
    event::{EventKind, Outcome},
    id::{JobId, Name},
    view::StageState,
};

use crate::{
    fact::Fact,
    job::JobState,
    machine::Scheduler,
    message::{Command, StageKey},
    phase::Phase,
};

impl Scheduler {
    /// Carries on what follows from the state alone: hopeless stages, publications, ends of jobs.
    pub(crate) fn settle(&mut self) {
        for (id, touched) in std::mem::take(&mut self.board.unsettled) {
            if !self.state.index.active.contains(&id) {
                continue;
            }
            self.count(1 + touched.len());
            self.compare_trials(&id, &touched);
            while let Some((stage, reason)) = self.hopeless(&id) {
                self.give_up_stage(StageKey { job: id.clone(), stage }, reason);
            }
            self.publish_trained(&id, &touched);
            let job = &self.state.jobs()[&id];
            if job.index.open == 0 {
                self.board.work += job.stages.len() as u64;
                let outcome = Self::outcome(job);
                self.record(Fact::JobEnded { job: id.clone(), outcome, at_ms: self.now_ms });
                self.tell(&id, None, EventKind::JobFinished { outcome });
            }
        }
    }

    /// A stage that needs one without a result to come: to be trained, or to be published together with it. Also one
    /// that lost its result after its job was cancelled.
    fn hopeless(&self, id: &JobId) -> Option<(Name, String)> {
        let job = &self.state.jobs()[id];
        job.index.doomed.iter().find_map(|position| {
            let (position, stage, phase) = (*position, &job.plan.stages[*position], &job.stages[*position].phase);
            if let (Phase::Pending, Some(reason)) = (phase, &job.cancelled) {
                return Some((stage.name.clone(), reason.clone()));
            }
            let (needs, phase) = job.hopeless_need(position)?;
            let why = match phase {
                // Why is told of the stage itself.
                Phase::Failed { .. } => "which failed".to_owned(),
                Phase::Cancelled { reason } => format!("which was cancelled: {reason}"),
                Phase::Pending | Phase::Running(_) | Phase::Trained | Phase::Published { .. } | Phase::Compared => {
                    return None;
                }
            };
            Some((stage.name.clone(), format!("it needs {needs}, {why}")))
        })
    }

    fn give_up_stage(&mut self, key: StageKey, reason: String) {
        let trained = self.state.record(&key).is_some_and(|(job, at)| job.stages[at].phase == Phase::Trained);
        self.publishing.remove(&key);
        let StageKey { job, stage } = key;
        if trained {
            let failure = Failure { blame: Blame::Machine, message: reason };
            self.record(Fact::PublishFailed { job, stage, failure, retry_at_ms: None });
        } else {
            self.record(Fact::StageCancelled { job, stage, reason });
        }
    }

    fn publish_trained(&mut self, id: &JobId, touched: &BTreeSet<usize>) {
        if self.stopping.is_some() && !self.policy.sends_home {
            return; // the next coordinator does
        }
        let job = &self.state.jobs()[id];
        let since = self.board.unsettled.get(id);
        let touched: BTreeSet<usize> = touched.iter().chain(since.into_iter().flatten()).copied().collect();
        let due = touched.into_iter().filter(|at| {
            let Some(record) = job.stages.get(*at).filter(|record| record.phase == Phase::Trained) else {
                return false;
            };
            // A release of a fusion holds its adapters, and one of them may be lost and on its way again.
            job.waits_for_nothing(*at) && record.retry_at_ms.is_none_or(|at| at <= self.now_ms)
        });
        let keys: Vec<StageKey> =
            due.map(|at| StageKey { job: id.clone(), stage: job.plan.stages[at].name.clone() }).collect();
        for key in keys {
            if self.publishing.insert(key.clone()) {
                self.out.commands.push(Command::Publish { key });
            }
        }
    }

    fn outcome(job: &JobState) -> Outcome {
        // A trial that failed is the worst one, and no failure of the job.
        let mut own = job.each().filter(|(_, stage, _)| stage.trial.is_none()).map(|(_, _, record)| record);
        let view = |position| Self::stage_view(job, position, StageState::Published { reused: false });
        if job.cancelled.is_some() {
            Outcome::Cancelled
        } else if own.any(|record| matches!(record.phase, Phase::Failed { .. })) {
            Outcome::Failed
        } else if (0..job.stages.len()).any(|position| view(position).missed() == Some(true)) {
            Outcome::ExpectationMissed
        } else {
            Outcome::Succeeded
        }
    }
}
