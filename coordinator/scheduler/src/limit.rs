//! Time limits: a task that has trained for longer than its job allows fails, and says so.
//!
//! Running time is the time under leases: waiting for a place is free, and so is the time in which no coordinator led,
//! unless the worker told of it. A limit never cuts training short to publish what there is: published bytes are a
//! function of the job alone (invariant 5).

use std::collections::BTreeSet;

use graftwork_shared::{
    assignment::{Blame, Failure},
    id::LeaseId,
};

use crate::{
    job::JobState,
    machine::Scheduler,
    message::{Command, StageKey},
    phase::Grant,
    state::State,
};

impl State {
    /// Time under a lease of which nothing is known when another coordinator takes over: nobody may have led.
    pub(crate) fn untold_ms(&self, lease: LeaseId, at_ms: u64) -> u64 {
        let Some((job, position)) = self.live().get(&lease).and_then(|key| self.record(key)) else { return 0 };
        let record = &job.stages[position];
        let since_ms = record.phase.grant().map_or(at_ms, |grant| grant.since_ms);
        at_ms.saturating_sub(since_ms).saturating_sub(whole_ms(record.running.wall_seconds))
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time of less than 2^53 ms")]
fn whole_ms(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1000.0) as u64
}

impl JobState {
    /// When a running stage has used up its time.
    pub(crate) fn limit_ms(&self, position: usize) -> Option<u64> {
        let limit_ms = self.plan.job.resources.time_limit_s?.saturating_mul(1000);
        let record = &self.stages[position];
        let Grant { since_ms, .. } = record.phase.grant()?;
        Some(since_ms.saturating_add(limit_ms.saturating_sub(record.ran_ms)))
    }
}

impl Scheduler {
    /// When the next stage has used up its time.
    pub(crate) fn next_limit_ms(&self) -> Option<u64> {
        self.state.index.limits.range((self.now_ms + 1, LeaseId(0))..).next().map(|(at, _)| *at)
    }

    /// Fails the stages that have used up their time.
    pub(crate) fn enforce_limits(&mut self) {
        let over = self.state.index.limits.range(..=(self.now_ms, LeaseId(u64::MAX)));
        for lease in over.map(|(_, lease)| *lease).collect::<BTreeSet<_>>() {
            let Some(key) = self.state.live().get(&lease).cloned() else { continue };
            let limit_s = self.state.jobs().get(&key.job).and_then(|job| job.plan.job.resources.time_limit_s);
            if let Some(limit_s) = limit_s {
                self.fail_over_time(&key, lease, limit_s);
            }
        }
    }

    fn fail_over_time(&mut self, key: &StageKey, lease: LeaseId, limit_s: u64) {
        let Some(worker) = self.state.grant(lease).map(|grant| grant.worker) else { return };
        let message = format!(
            "it has trained for {limit_s} s, which is its time limit; raise resources.time_limit, or give it less to do: \
             submitted again, it goes on from its last checkpoint"
        );
        self.fail_attempt(key, (worker, lease), Failure { blame: Blame::User, message });
        self.out.commands.push(Command::Fence { worker, lease });
    }
}
