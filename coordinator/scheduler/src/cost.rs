//! What stages cost: every attempt counts, whether it gave a result or not.
//!
//! Workers tell what an attempt has cost so far, and again with its last word; fair shares (`share.rs`) go by what is
//! durable of it, and nothing else does. The latest
//! number is kept in memory and becomes a fact when a checkpoint counts and when the lease ends, so that of a killed
//! worker all is counted that it told, and of a killed coordinator all up to the last checkpoint.

use graftwork_shared::{
    assignment::Usage,
    id::{LeaseId, WorkerId},
};

use crate::{
    fact::Fact,
    job::{JobState, StageRecord},
    machine::Scheduler,
    state::State,
};

/// What one worker told of a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Part {
    /// Of the times before that it held the lease.
    earlier: Usage,
    now: Usage,
}

impl Part {
    fn whole(&self) -> Usage {
        let mut usage = self.earlier;
        usage.add(&self.now);
        usage
    }
}

impl Scheduler {
    /// A holder of a lease told what its part has cost so far; whoever joins again counts from nothing.
    pub(crate) fn on_spent(&mut self, worker: WorkerId, lease: LeaseId, usage: Usage) {
        let part = self.costs.entry(lease).or_default().entry(worker).or_default();
        if usage.wall_seconds < part.now.wall_seconds {
            part.earlier = part.whole();
        }
        part.now = usage;
    }

    /// Makes durable what is known of an attempt's cost.
    pub(crate) fn keep_cost(&mut self, lease: LeaseId) {
        // Who was heard once stays: a member that is gone by now has cost what it told.
        if let Some(usage) = self.told_cost(lease) {
            self.record(Fact::AttemptCost { lease, usage });
        }
    }

    /// What the holders of a lease told, all together.
    fn told_cost(&self, lease: LeaseId) -> Option<Usage> {
        let (mut usage, mut wall_seconds) = (Usage::default(), 0.0_f64);
        for part in self.costs.get(&lease)?.values() {
            usage.add(&part.whole());
            wall_seconds = wall_seconds.max(part.now.wall_seconds);
        }
        // Members spend their time side by side.
        Some(Usage { wall_seconds, ..usage })
    }

    /// Ends the counting of an attempt that gave a result: the result holds the part of whoever speaks for the stage,
    /// and gets those of the others.
    pub(crate) fn add_costs_of_others(&mut self, (worker, lease): (WorkerId, LeaseId), usage: &mut Usage) {
        for (other, part) in self.costs.remove(&lease).unwrap_or_default() {
            let part = if other == worker { part.earlier } else { part.whole() };
            usage.add(&Usage { wall_seconds: 0.0, ..part });
        }
    }

    /// What a stage has cost so far.
    pub(crate) fn stage_cost(&self, record: &StageRecord) -> Usage {
        let told = record.phase.grant().and_then(|grant| self.told_cost(grant.lease));
        record.cost(told.unwrap_or(record.running))
    }

    /// What a job has cost so far.
    pub(crate) fn job_cost(&self, job: &JobState) -> Usage {
        let mut usage = Usage::default();
        job.stages.iter().for_each(|record| usage.add(&self.stage_cost(record)));
        usage
    }
}

impl State {
    pub(crate) fn fold_cost(&mut self, lease: LeaseId, usage: Usage) -> Result<(), String> {
        let key = self.live().get(&lease).cloned().ok_or_else(|| format!("{lease} is not live"))?;
        self.stage(&key)?.running = usage;
        Ok(())
    }
}

impl StageRecord {
    /// The attempt that ran is over; without a result what it cost is lost.
    pub(crate) fn end_attempt(&mut self, lost: bool, wall_ms: u64) {
        let running = std::mem::take(&mut self.running);
        if lost {
            // The coordinator's own clock says more of wall time: it counts attempts that told nothing too.
            self.lost.add(&Usage { wall_seconds: 0.0, ..running });
            self.lost_ms += wall_ms;
        }
    }

    /// What stays when the result is lost: all that was spent on it.
    pub(crate) fn without_result(&self) -> Self {
        Self { lost: self.cost(self.running), ..Self::new() }
    }

    fn cost(&self, running: Usage) -> Usage {
        let mut usage = self.lost;
        usage.add(&running);
        usage.wall_seconds += self.lost_ms as f64 / 1000.0;
        if let Some(result) = self.result.as_ref().filter(|_| !self.reused) {
            usage.add(&result.usage);
        }
        usage
    }
}
