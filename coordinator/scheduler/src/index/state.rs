//! What is looked up of the whole state: a function of the facts, kept while they are folded and never written down.
//!
//! While a fact is folded, [`Touched`] notes which stages and jobs it changes; only those are looked at again.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{
    digest::Digest,
    id::{JobId, LeaseId, WorkerId},
};

use super::job::{JobIndex, Mark, Stand};
use crate::{job::JobState, state::State};

/// A stage by its job and its place in the plan.
pub(crate) type Spot = (JobId, usize);

/// What one owner has at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    /// Jobs that have not ended.
    pub(crate) jobs: u32,
    /// Members of the groups that hold its live leases.
    pub(crate) members: u64,
    /// Live leases, and what is durable of their costs.
    leases: u64,
    pub(crate) running_ms: u128,
}

/// What is looked up of the state.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StateIndex {
    /// Who refers to a blob: stages by their spots, plans without a place.
    blobs: BTreeMap<Digest, BTreeSet<(JobId, Option<usize>)>>,
    /// How many files of histories are a blob.
    files: BTreeMap<Digest, usize>,
    /// Jobs that have not ended.
    pub(crate) active: BTreeSet<JobId>,
    /// Jobs by their submission.
    pub(crate) orders: BTreeMap<u64, JobId>,
    pub(crate) owners: BTreeMap<String, Tally>,
    /// Live leases of each priority.
    pub(crate) priorities: BTreeMap<i32, usize>,
    /// When stages may be tried again.
    pub(crate) retries: BTreeMap<u64, BTreeSet<Spot>>,
    /// When running stages have used up their time.
    pub(crate) limits: BTreeSet<(u64, LeaseId)>,
}

/// What a fact changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Touched {
    /// Stages that may stand differently now, those around the changed ones included.
    pub(crate) spots: BTreeSet<Spot>,
    /// Jobs that changed as a whole.
    pub(crate) jobs: BTreeSet<JobId>,
    /// Leases that began, ended, or have other holders, and those who held or hold them.
    pub(crate) leases: BTreeSet<LeaseId>,
    pub(crate) workers: BTreeSet<WorkerId>,
    /// Base models whose stages are expected to need another amount of memory.
    pub(crate) needs: BTreeSet<Digest>,
    /// Stages, jobs and needs that were looked at.
    pub(crate) work: u64,
}

impl StateIndex {
    fn owner(&mut self, owner: &str) -> &mut Tally {
        if !self.owners.contains_key(owner) {
            self.owners.insert(owner.to_owned(), Tally::default());
        }
        self.owners.get_mut(owner).expect("it was just put there")
    }

    fn settle_owner(&mut self, owner: &str) {
        if self.owners.get(owner).is_some_and(|tally| tally.jobs == 0 && tally.leases == 0) {
            self.owners.remove(owner);
        }
    }

    fn refer(&mut self, blob: Digest, from: (JobId, Option<usize>)) {
        self.blobs.entry(blob).or_default().insert(from);
    }

    fn drop_reference(&mut self, blob: &Digest, from: &(JobId, Option<usize>)) {
        if let Some(references) = self.blobs.get_mut(blob) {
            references.remove(from);
            if references.is_empty() {
                self.blobs.remove(blob);
            }
        }
    }

    /// Whether something must keep this blob.
    pub(crate) fn refers_to(&self, blob: &Digest) -> bool {
        self.blobs.contains_key(blob) || self.files.contains_key(blob)
    }

    /// A file of a history is this blob from now on.
    pub(crate) fn add_file(&mut self, blob: Digest) {
        *self.files.entry(blob).or_default() += 1;
    }

    /// A file of a history was this blob until now.
    pub(crate) fn remove_file(&mut self, blob: &Digest) {
        if let Some(count) = self.files.get_mut(blob) {
            *count -= 1;
            if *count == 0 {
                self.files.remove(blob);
            }
        }
    }

    fn add_mark(&mut self, (id, at): (&JobId, usize), (owner, priority): (&str, i32), mark: &Mark) {
        for blob in &mark.blobs {
            self.refer(*blob, (id.clone(), Some(at)));
        }
        if let Some(retry) = mark.retry_at_ms {
            self.retries.entry(retry).or_default().insert((id.clone(), at));
        }
        if let Some(lease) = mark.lease {
            *self.priorities.entry(priority).or_default() += 1;
            let tally = self.owner(owner);
            tally.leases += 1;
            tally.members += mark.holders.len() as u64;
            tally.running_ms += u128::from(mark.running_ms);
            self.limits.extend(mark.limit_ms.map(|limit| (limit, lease)));
        }
    }

    fn remove_mark(&mut self, (id, at): (&JobId, usize), (owner, priority): (&str, i32), mark: &Mark) {
        for blob in &mark.blobs {
            self.drop_reference(blob, &(id.clone(), Some(at)));
        }
        if let Some(retry) = mark.retry_at_ms
            && let Some(spots) = self.retries.get_mut(&retry)
        {
            spots.remove(&(id.clone(), at));
            if spots.is_empty() {
                self.retries.remove(&retry);
            }
        }
        if let Some(lease) = mark.lease {
            if let Some(count) = self.priorities.get_mut(&priority) {
                *count -= 1;
                if *count == 0 {
                    self.priorities.remove(&priority);
                }
            }
            let tally = self.owner(owner);
            tally.leases -= 1;
            tally.members -= mark.holders.len() as u64;
            tally.running_ms -= u128::from(mark.running_ms);
            mark.limit_ms.map(|limit| self.limits.remove(&(limit, lease)));
            self.settle_owner(owner);
        }
    }

    pub(crate) fn add_job(&mut self, id: &JobId, job: &JobState) {
        let shape = &job.index.shape;
        for blob in &shape.blobs {
            self.refer(*blob, (id.clone(), None));
        }
        self.orders.insert(job.order, id.clone());
        if job.ended.is_none() {
            self.active.insert(id.clone());
            self.owner(&shape.owner).jobs += 1;
        }
        for (at, mark) in job.index.marks.iter().enumerate() {
            self.add_mark((id, at), (&shape.owner, shape.priority), mark);
        }
    }

    /// The same for a job that is gone for good.
    pub(crate) fn forget_job(&mut self, id: &JobId, job: &JobState) {
        self.remove_job(id, &job.index);
        self.orders.remove(&job.order);
    }

    fn remove_job(&mut self, id: &JobId, index: &JobIndex) {
        for blob in &index.shape.blobs {
            self.drop_reference(blob, &(id.clone(), None));
        }
        for (at, mark) in index.marks.iter().enumerate() {
            self.remove_mark((id, at), (&index.shape.owner, index.shape.priority), mark);
        }
        if self.active.remove(id) {
            self.owner(&index.shape.owner).jobs -= 1;
        }
        self.settle_owner(&index.shape.owner);
    }
}

impl State {
    /// Makes the whole index from the jobs and the histories.
    pub(crate) fn rebuild(&mut self) {
        self.touched = Touched::default();
        for job in self.jobs.values_mut() {
            job.index = JobIndex::of(job);
        }
        self.index = self.index_anew();
    }

    /// The index, from those of the jobs and from the histories.
    pub(crate) fn index_anew(&self) -> StateIndex {
        let mut index = StateIndex::default();
        self.jobs.iter().for_each(|(id, job)| index.add_job(id, job));
        self.history_blobs().for_each(|blob| index.add_file(blob));
        index
    }

    /// Stages whose records refer to a blob.
    pub(crate) fn referring(&self, blob: &Digest) -> Vec<Spot> {
        let references = self.index.blobs.get(blob).into_iter().flatten();
        references.filter_map(|(job, at)| Some((job.clone(), (*at)?))).collect()
    }

    /// Looks again at what a fact may have changed, and gives it.
    pub(crate) fn follow(&mut self) -> Touched {
        let mut touched = std::mem::take(&mut self.touched);
        for id in &touched.jobs {
            self.follow_job(id, &mut touched.spots, &mut touched.leases, &mut touched.workers);
        }
        let jobs = std::mem::take(&mut touched.jobs);
        for (id, at) in std::mem::take(&mut touched.spots) {
            if jobs.contains(&id) {
                touched.spots.insert((id, at));
                touched.work += 1;
            } else {
                self.follow_stage(&id, at, &mut touched);
            }
        }
        touched.jobs = jobs;
        touched
    }

    fn follow_job(
        &mut self,
        id: &JobId,
        spots: &mut BTreeSet<Spot>,
        leases: &mut BTreeSet<LeaseId>,
        workers: &mut BTreeSet<WorkerId>,
    ) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let old = std::mem::take(&mut job.index);
        self.index.remove_job(id, &old);
        job.index = JobIndex::of(job);
        self.index.add_job(id, job);
        for mark in old.marks.iter().chain(&job.index.marks) {
            leases.extend(mark.lease);
            workers.extend(&mark.holders);
        }
        // A plan may have fewer stages than the one before.
        spots.extend((0..old.marks.len().max(job.index.marks.len())).map(|at| (id.clone(), at)));
    }

    fn follow_stage(&mut self, id: &JobId, at: usize, touched: &mut Touched) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let mut index = std::mem::take(&mut job.index);
        let mut around = Vec::new();
        let old = index.update(job, at, &mut around);
        job.index = index;
        touched.work += around.len() as u64;
        touched.spots.extend(around.into_iter().map(|at| (id.clone(), at)));
        let Some(old) = old else { return };
        let (shape, new) = (&job.index.shape, &job.index.marks[at]);
        if old.lease != new.lease || old.holders != new.holders || old.stand != new.stand {
            for mark in [&old, new] {
                touched.leases.extend(mark.lease);
                touched.workers.extend(&mark.holders);
            }
        } else {
            // What its checkpoint says decides whether others may still join it.
            touched.leases.extend(new.lease);
        }
        let owned = (shape.owner.as_str(), shape.priority);
        self.index.remove_mark((id, at), owned, &old);
        self.index.add_mark((id, at), owned, new);
    }
}

impl JobState {
    /// Whether a stage could run by what it needs.
    pub(crate) fn is_ready(&self, at: usize) -> bool {
        self.ended.is_none() && self.index.marks[at].stand == Stand::Pending && self.waits_for_nothing(at)
    }

    /// The same as [`Self::waits_for`] being empty.
    pub(crate) fn waits_for_nothing(&self, at: usize) -> bool {
        self.is_due_in_sweep(at).unwrap_or_else(|| self.index.has_needs(at))
    }
}
