//! Ended jobs that are forgotten: plan, results and scores go, and with them every blob that nothing else refers to.
//!
//! What is published stays, and counts again when the same job comes back: then it is a new one. Costs stay in their
//! owner's account.

use graftwork_shared::{digest::Digest, id::JobId};

use crate::{
    fact::Fact,
    machine::{Scheduler, Standing},
    state::State,
};

impl Scheduler {
    /// Jobs that ended before this time, in milliseconds since 1970.
    pub fn ended_before(&self, at_ms: u64) -> Vec<JobId> {
        let old = |ended: Option<u64>| ended.is_some_and(|ended_ms| ended_ms < at_ms);
        let jobs = self.state.jobs().iter().filter(|(_, job)| old(job.ended.map(|(ended_ms, _)| ended_ms)));
        jobs.map(|(id, _)| id.clone()).collect()
    }

    /// A job that has not ended is not forgotten.
    pub(crate) fn on_forget(&mut self, job: JobId) {
        if self.standing(&job) == Standing::Ended {
            self.forget_answers(&job);
            self.stuck.remove(&job);
            self.record(Fact::JobForgotten { job, at_ms: self.now_ms });
        }
    }
}

impl State {
    /// Takes a job out; gives the blobs that it referred to.
    pub(crate) fn fold_forgotten(&mut self, id: &JobId) -> Result<Vec<Digest>, String> {
        if self.job(id)?.ended.is_none() {
            return Err(format!("job {id} has not ended"));
        }
        let job = self.jobs.remove(id).ok_or_else(|| format!("there is no job {id}"))?;
        self.index.forget_job(id, &job);
        Ok(job.blobs().collect())
    }
}
