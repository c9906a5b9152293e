//! What comes of an attempt: checkpoints, results, failures.
//!
//! A result counts once, and only under the live lease (invariant 2). The user's errors are not tried again; the
//! machine's are, from the last accepted checkpoint, with growing waits, until they no longer bring progress.

use graftwork_shared::{
    assignment::{Blame, Failure, StageResult},
    digest::Digest,
    event::EventKind,
    id::{LeaseId, WorkerId},
};

use crate::{
    fact::Fact,
    group::Group,
    machine::Scheduler,
    message::{Command, StageKey},
};

pub(crate) fn machine_failure(message: String) -> Failure {
    Failure { blame: Blame::Machine, message }
}

impl Scheduler {
    pub(crate) fn on_checkpointed(
        &mut self,
        key: &StageKey,
        (worker, lease): (WorkerId, LeaseId),
        step: u64,
        blob: Digest,
    ) {
        let (job, position) = self.state.record(key).expect("a live lease is one of a known stage");
        let total_steps = job.plan.stages[position].total_steps;
        let accepted = job.stages[position].checkpoint.as_ref().map(|checkpoint| (checkpoint.step, checkpoint.blob));
        let accept = Command::Accept { worker, lease, step };
        match accepted {
            _ if step > total_steps => {
                let message = format!("a checkpoint of step {step} came, but the stage has {total_steps} updates");
                self.give_up(key, (worker, lease), message);
            }
            Some(earlier) if earlier == (step, blob) => self.out.commands.push(accept),
            Some((earlier, _)) if step <= earlier => {
                let message = format!("a checkpoint of step {step} came after one of step {earlier} was accepted");
                self.give_up(key, (worker, lease), message);
            }
            None | Some(_) => {
                self.keep_cost(lease);
                self.record(Fact::CheckpointAccepted { lease, step, blob });
                self.edit_group(lease, Group::progressed);
                self.out.commands.push(accept);
                self.tell(&key.job, Some(&key.stage), EventKind::Checkpointed { step });
            }
        }
    }

    pub(crate) fn on_finished(
        &mut self,
        key: &StageKey,
        (worker, lease): (WorkerId, LeaseId),
        mut result: Box<StageResult>,
    ) {
        let (job, position) = self.state.record(key).expect("a live lease is one of a known stage");
        if job.trial(position).is_some() {
            return self.give_up(
                key,
                (worker, lease),
                "a result came of a trial, which pauses at its rungs".to_owned(),
            );
        }
        let (steps, stage) = (result.steps, &job.plan.stages[position]);
        let total_steps = stage.total_steps;
        // Only early stopping ends a training before its last update.
        let may_be_fewer = stage.recipe.training.early_stopping.is_some();
        if steps > total_steps || (steps < total_steps && !may_be_fewer) {
            let message = format!("a result came after {steps} updates, but the stage has {total_steps}");
            return self.give_up(key, (worker, lease), message);
        }
        let granted = job.stages[position].phase.grant().map(|grant| grant.class.clone());
        if granted.as_ref() != Some(&result.numeric_class) {
            let class = granted.map(|class| class.to_string()).unwrap_or_default();
            let message =
                format!("the result was computed on {}, but the worker joined as {class}", result.numeric_class);
            self.give_up(key, (worker, lease), message);
            return;
        }
        let (step, at_ms) = (result.steps, self.now_ms);
        self.measure_memory(worker, key, &mut result);
        self.add_costs_of_others((worker, lease), &mut result.usage);
        let (job, stage) = (key.job.clone(), key.stage.clone());
        self.dismiss(lease, Some(worker));
        self.record(Fact::StageTrained { job, stage, lease: Some(lease), result, at_ms });
        self.out.commands.push(Command::Accept { worker, lease, step });
        self.tell(&key.job, Some(&key.stage), EventKind::StageFinished { reused: false });
    }

    /// Ends a lease whose worker says what cannot be.
    pub(crate) fn give_up(&mut self, key: &StageKey, (worker, lease): (WorkerId, LeaseId), message: String) {
        self.fail_attempt(key, (worker, lease), machine_failure(message));
        self.out.commands.push(Command::Fence { worker, lease });
    }

    /// Ends a live lease in failure that its last holder, or the stage itself, brought; other holders drop the work.
    pub(crate) fn fail_attempt(&mut self, key: &StageKey, (worker, lease): (WorkerId, LeaseId), failure: Failure) {
        self.keep_cost(lease);
        self.dismiss(lease, Some(worker));
        let (retry_at_ms, failure) = self.judge(key, failure);
        let told = EventKind::AttemptFailed { failure: failure.clone(), retried: retry_at_ms.is_some() };
        self.record(Fact::AttemptFailed { lease, failure, retry_at_ms, at_ms: self.now_ms });
        self.tell(&key.job, Some(&key.stage), told);
    }

    pub(crate) fn on_publish_failed(&mut self, key: &StageKey, failure: Failure) {
        if !self.publishing.remove(key) {
            return;
        }
        let (retry_at_ms, failure) = self.judge(key, failure);
        let told = EventKind::AttemptFailed { failure: failure.clone(), retried: retry_at_ms.is_some() };
        let (job, stage) = (key.job.clone(), key.stage.clone());
        self.record(Fact::PublishFailed { job, stage, failure, retry_at_ms });
        self.tell(&key.job, Some(&key.stage), told);
    }

    /// When a failed stage is tried again; for good, the failure then tells of all attempts.
    pub(crate) fn judge(&self, key: &StageKey, failure: Failure) -> (Option<u64>, Failure) {
        let failures = self.state.record(key).map(|(job, position)| job.stages[position].failures.clone());
        let mut failures = failures.unwrap_or_default();
        let before = u32::try_from(failures.len()).unwrap_or(u32::MAX);
        if failure.blame == Blame::User {
            return (None, failure);
        }
        if before + 1 < self.policy.attempts {
            return (Some(self.now_ms + self.policy.wait_ms(before)), failure);
        }
        failures.push(failure);
        let reasons = failures.iter().enumerate().map(|(at, failure)| format!("{}. {}", at + 1, failure.message));
        let reasons = reasons.collect::<Vec<_>>().join("; ");
        let message = format!("{} attempts failed without progress between them: {reasons}", failures.len());
        (None, machine_failure(message))
    }
}
