//! How many of what there is: numbers for those who watch over a cluster. Nothing decides by them.

use std::collections::BTreeMap;

use graftwork_shared::id::JobId;

use crate::{machine::Scheduler, phase::Phase};

/// Counts of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Jobs that have not ended, and those that have.
    pub jobs: [u64; 2],
    /// Stages of jobs that have not ended, by where they stand.
    pub stages: BTreeMap<&'static str, u64>,
    /// Ready stages that wait for their next attempt after a failure.
    pub backing_off: u64,
    /// Since when, in milliseconds since 1970, the job with the longest wait among those with ready stages is there.
    pub oldest_ready_ms: Option<u64>,
    /// Live leases.
    pub leases: u64,
    /// Workers with a session, and those whose connection broke and who may come back.
    pub workers: [u64; 2],
    /// Places of workers, and how many of them are taken.
    pub places: [u64; 2],
}

/// Every place where a stage can stand, in its order.
const PLACES: [&str; 8] = ["waiting", "ready", "running", "trained", "published", "failed", "cancelled", "compared"];

impl Scheduler {
    /// When a job was last submitted, in milliseconds since 1970.
    pub fn submitted_ms(&self, job: &JobId) -> Option<u64> {
        self.state.jobs().get(job).map(|job| job.submitted_ms)
    }

    /// Counts everything; walks over all stages of jobs that have not ended, once.
    pub fn census(&self) -> Census {
        let mut census = Census { stages: PLACES.iter().map(|place| (*place, 0)).collect(), ..Census::default() };
        for job in self.state.jobs().values() {
            census.jobs[usize::from(job.ended.is_some())] += 1;
            if job.ended.is_some() {
                continue;
            }
            for (at, stage) in job.stages.iter().enumerate() {
                let ready = job.is_ready(at);
                let place = match &stage.phase {
                    Phase::Pending if ready => "ready",
                    Phase::Pending => "waiting",
                    Phase::Running(_) => "running",
                    Phase::Trained => "trained",
                    Phase::Published { .. } => "published",
                    Phase::Failed { .. } => "failed",
                    Phase::Cancelled { .. } => "cancelled",
                    Phase::Compared => "compared",
                };
                *census.stages.entry(place).or_default() += 1;
                census.leases += u64::from(place == "running");
                if ready {
                    census.backing_off += u64::from(stage.retry_at_ms.is_some_and(|at_ms| at_ms > self.now_ms));
                    let since = census.oldest_ready_ms.map_or(job.submitted_ms, |oldest| oldest.min(job.submitted_ms));
                    census.oldest_ready_ms = Some(since);
                }
            }
        }
        for worker in self.workers.values() {
            census.workers[usize::from(worker.apart.is_some())] += 1;
            let slots = u64::from(worker.info.slots);
            census.places[0] += slots;
            census.places[1] += slots.min(worker.leases.len() as u64);
        }
        census
    }
}
