//! What is durable: the fold of all facts.
//!
//! Folding decides nothing (invariant 6): the same facts give the same state in every later program. A fact that
//! does not fit the state means that the journal is damaged or foreign, and says so.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{
    digest::Digest,
    id::{JobId, LeaseId, Name, Term, WorkerId},
};
use serde::{Deserialize, Serialize};

use crate::{
    fact::Fact,
    index::{StateIndex, Touched},
    job::{JobState, StageRecord},
    kept::Histories,
    memory::{Measured, Peak},
    message::StageKey,
    phase::{Change, Grant, Phase},
    plan::Plan,
    share::Account,
    term::Holder,
};

/// A fact that does not fit the facts before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the fact {fact} does not fit the facts before it: {problem}")]
pub struct FoldError {
    /// The fact's word.
    pub fact: &'static str,
    /// What does not fit.
    pub problem: String,
}

/// All that is durable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredState")]
pub struct State {
    pub(crate) term: Term,
    pub(crate) last_worker: WorkerId,
    last_lease: LeaseId,
    submissions: u64,
    pub(crate) jobs: BTreeMap<JobId, JobState>,
    /// Stage of each live lease.
    live: BTreeMap<LeaseId, StageKey>,
    /// Workers of this term that can be known again in the next one.
    pub(crate) holders: BTreeMap<WorkerId, Holder>,
    /// What owners have had.
    pub(crate) accounts: BTreeMap<String, Account>,
    /// What workers took of memory; what was measured last stands last.
    pub(crate) memory: Vec<Measured>,
    /// Histories of nights.
    #[serde(skip_serializing_if = "Histories::is_empty")]
    pub(crate) histories: Histories,
    /// What is looked up of the jobs.
    #[serde(skip)]
    pub(crate) index: StateIndex,
    /// What the fact that is being folded changes.
    #[serde(skip)]
    pub(crate) touched: Touched,
}

/// A state as it is written: without what follows from it.
#[derive(Deserialize)]
struct StoredState {
    term: Term,
    last_worker: WorkerId,
    last_lease: LeaseId,
    submissions: u64,
    jobs: BTreeMap<JobId, JobState>,
    live: BTreeMap<LeaseId, StageKey>,
    #[serde(default)]
    holders: BTreeMap<WorkerId, Holder>,
    #[serde(default)]
    accounts: BTreeMap<String, Account>,
    #[serde(default)]
    memory: Vec<Measured>,
    #[serde(default)]
    histories: Histories,
}

impl From<StoredState> for State {
    fn from(stored: StoredState) -> Self {
        let mut state = Self {
            term: stored.term,
            last_worker: stored.last_worker,
            last_lease: stored.last_lease,
            submissions: stored.submissions,
            jobs: stored.jobs,
            live: stored.live,
            holders: stored.holders,
            accounts: stored.accounts,
            memory: stored.memory,
            histories: stored.histories,
            index: StateIndex::default(),
            touched: Touched::default(),
        };
        state.rebuild();
        state
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            term: Term(0),
            last_worker: WorkerId(0),
            last_lease: LeaseId(0),
            submissions: 0,
            jobs: BTreeMap::new(),
            live: BTreeMap::new(),
            holders: BTreeMap::new(),
            accounts: BTreeMap::new(),
            memory: Vec::new(),
            histories: Histories::new(),
            index: StateIndex::default(),
            touched: Touched::default(),
        }
    }
}

/// A problem on the way of folding; [`State::fold`] adds the fact's word.
type Folded = Result<(), String>;

impl State {
    /// The term of the coordinator that leads.
    pub fn term(&self) -> Term {
        self.term
    }

    pub(crate) fn jobs(&self) -> &BTreeMap<JobId, JobState> {
        &self.jobs
    }

    pub(crate) fn live(&self) -> &BTreeMap<LeaseId, StageKey> {
        &self.live
    }

    pub(crate) fn last_worker(&self) -> WorkerId {
        self.last_worker
    }

    pub(crate) fn next_worker(&self) -> WorkerId {
        WorkerId(self.last_worker.0 + 1)
    }

    pub(crate) fn next_lease(&self) -> LeaseId {
        LeaseId(self.last_lease.0 + 1)
    }

    pub(crate) fn record(&self, key: &StageKey) -> Option<(&JobState, usize)> {
        let job = self.jobs.get(&key.job)?;
        Some((job, job.position(&key.stage)?))
    }

    /// Every blob that must be kept.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        self.jobs.values().flat_map(JobState::blobs).chain(self.history_blobs()).collect()
    }

    /// Whether this blob must be kept.
    pub fn refers_to(&self, blob: Digest) -> bool {
        self.index.refers_to(&blob)
    }

    /// Adds a fact. Gives the blobs to which nothing refers any more.
    pub fn fold(&mut self, fact: &Fact) -> Result<Vec<Digest>, FoldError> {
        self.fold_touching(fact).map(|(dropped, _)| dropped)
    }

    /// The same, and what the fact changed.
    pub(crate) fn fold_touching(&mut self, fact: &Fact) -> Result<(Vec<Digest>, Touched), FoldError> {
        let mut dropped = Vec::new();
        let folded = self.fold_into(fact, &mut dropped);
        let touched = self.follow();
        folded.map_err(|problem| FoldError { fact: fact.name(), problem })?;
        dropped.retain(|blob| !self.refers_to(*blob));
        Ok((dropped, touched))
    }

    fn fold_into(&mut self, fact: &Fact, dropped: &mut Vec<Digest>) -> Folded {
        match fact {
            Fact::TermStarted { term, at_ms } => self.fold_term(*term, *at_ms, false),
            Fact::TermContinued { term, at_ms } => self.fold_term(*term, *at_ms, true),
            Fact::WorkerJoined { worker, .. } => self.fold_worker(*worker, None),
            Fact::WorkerEntered { worker, info, key } => self.fold_worker(*worker, Some((info, key))),
            Fact::WorkerGone { worker } => {
                self.holders.remove(worker);
                Ok(())
            }
            Fact::JobSubmitted { plan, at_ms } => self.fold_submission(plan, *at_ms),
            Fact::JobReopened { plan, gone, .. } => {
                let job = self.job(&plan.id())?;
                if job.ended.is_none() {
                    return Err(format!("job {} has not ended", plan.id()));
                }
                dropped.extend(job.blobs());
                job.reopen(plan, gone);
                self.touched.jobs.insert(plan.id());
                Ok(())
            }
            Fact::ResourcesChanged { job, resources } => {
                self.job(job)?.plan.job.resources = resources.clone();
                self.touched.jobs.insert(job.clone());
                Ok(())
            }
            Fact::StageLeased { job, stage, lease, worker, class, at_ms } => {
                grows("lease", lease.0, self.last_lease.0)?;
                let grant = Grant::of_one(*lease, *worker, class.clone(), *at_ms);
                let key = StageKey { job: job.clone(), stage: stage.clone() };
                let record = self.change(&key, Change::Lease(grant))?;
                record.attempts += 1;
                record.retry_at_ms = None;
                self.last_lease = *lease;
                self.live.insert(*lease, key);
                Ok(())
            }
            Fact::GroupFormed { lease, epoch, members, shares, lost, .. } => {
                self.fold_group(*lease, *epoch, (members, shares), lost.as_ref())
            }
            Fact::CheckpointAccepted { lease, step, blob } => {
                let key = self.live.get(lease).cloned().ok_or_else(|| not_live(*lease))?;
                dropped.extend(self.stage(&key)?.accept(*step, *blob)?);
                Ok(())
            }
            Fact::CheckpointLost { job, stage, blob } | Fact::ResultLost { job, stage, blob } => {
                let key = StageKey { job: job.clone(), stage: stage.clone() };
                dropped.extend(self.fold_loss(fact, &key, *blob)?);
                Ok(())
            }
            Fact::AttemptCost { lease, usage } => self.fold_cost(*lease, *usage),
            Fact::MemoryMeasured { base_model, class, predicted_bytes, measured_bytes, .. } => {
                let peak = Peak { predicted_bytes: *predicted_bytes, measured_bytes: *measured_bytes };
                self.fold_memory((*base_model, class), peak)
            }
            Fact::LeaseReleased { lease, at_ms, .. } => self.end_lease(*lease, *at_ms, Change::GiveBack).map(drop),
            Fact::StagePreempted { lease, by_job, by_stage, at_ms } => {
                let by = StageKey { job: by_job.clone(), stage: by_stage.clone() };
                self.fold_preemption(*lease, &by, *at_ms)
            }
            Fact::AttemptFailed { lease, failure, retry_at_ms, at_ms } => {
                let change = retry_at_ms.map_or_else(|| Change::Fail(failure.clone()), |_| Change::GiveBack);
                let record = self.end_lease(*lease, *at_ms, change)?;
                record.failures.push(failure.clone());
                record.retry_at_ms = *retry_at_ms;
                Ok(())
            }
            Fact::TrialScored { .. }
            | Fact::RungDecided { .. }
            | Fact::TrialChosen { .. }
            | Fact::SweepFailed { .. } => self.fold_sweep(fact, dropped),
            Fact::StageTrained { .. }
            | Fact::StagePublished { .. }
            | Fact::PublishFailed { .. }
            | Fact::StageCancelled { .. } => self.fold_outcome(fact, dropped),
            Fact::JobCancelled { job, reason, at_ms } => self.fold_cancellation(job, reason, *at_ms),
            Fact::JobForgotten { job, .. } => {
                dropped.extend(self.fold_forgotten(job)?);
                Ok(())
            }
            Fact::HistoryKept { history, files, .. } => {
                dropped.extend(self.fold_history(history, files));
                Ok(())
            }
            Fact::JobEnded { job, outcome, at_ms } => {
                let (id, job) = (job, self.job(job)?);
                if job.ended.is_some() || job.stages.iter().any(|record| !record.phase.is_final()) {
                    return Err("the job has ended before, or a stage has not".to_owned());
                }
                job.ended = Some((*at_ms, *outcome));
                self.touched.jobs.insert(id.clone());
                Ok(())
            }
        }
    }

    fn fold_submission(&mut self, plan: &Plan, at_ms: u64) -> Folded {
        plan.check().map_err(|error| error.to_string())?;
        let id = plan.id();
        if self.jobs.contains_key(&id) {
            return Err(format!("job {id} was submitted before"));
        }
        self.submissions += 1;
        self.touched.jobs.insert(id.clone());
        self.insert_job(id, JobState::new(plan.clone(), self.submissions, at_ms));
        Ok(())
    }

    fn fold_outcome(&mut self, fact: &Fact, dropped: &mut Vec<Digest>) -> Folded {
        let key = |job: &JobId, stage: &Name| StageKey { job: job.clone(), stage: stage.clone() };
        match fact {
            Fact::StageTrained { job, stage, lease, result, at_ms } => {
                let key = key(job, stage);
                let record = match lease {
                    Some(lease) if self.live.get(lease) != Some(&key) => return Err(not_live(*lease)),
                    Some(lease) => {
                        self.charge(&key, &result.usage, *at_ms);
                        self.end_lease(*lease, *at_ms, Change::Train)?
                    }
                    None => self.change(&key, Change::Train)?,
                };
                dropped.extend(record.checkpoint.take().map(|checkpoint| checkpoint.blob));
                record.result = Some((**result).clone());
                record.reused = lease.is_none();
                record.failures.clear();
                record.retry_at_ms = None;
                Ok(())
            }
            Fact::StagePublished { job, stage, release } => {
                self.change(&key(job, stage), Change::Publish(release.clone()))?.retry_at_ms = None;
                Ok(())
            }
            Fact::PublishFailed { job, stage, failure, retry_at_ms } => {
                let record = match retry_at_ms {
                    Some(_) => self.stage(&key(job, stage))?,
                    None => self.change(&key(job, stage), Change::Fail(failure.clone()))?,
                };
                record.failures.push(failure.clone());
                record.retry_at_ms = *retry_at_ms;
                Ok(())
            }
            Fact::StageCancelled { job, stage, reason } => {
                self.change(&key(job, stage), Change::Cancel(reason.clone())).map(drop)
            }
            other => Err(format!("{} is not the outcome of a stage", other.name())),
        }
    }

    fn fold_cancellation(&mut self, id: &JobId, reason: &str, at_ms: u64) -> Folded {
        let job = self.job(id)?;
        if job.ended.is_some() {
            return Err(format!("job {id} has ended"));
        }
        job.cancelled = Some(reason.to_owned());
        let stages: Vec<Name> = job.plan.stages.iter().map(|stage| stage.name.clone()).collect();
        self.touched.jobs.insert(id.clone());
        for stage in stages {
            let key = StageKey { job: id.clone(), stage };
            let change = Change::Cancel(reason.to_owned());
            match self.stage(&key)?.phase.clone() {
                Phase::Running(grant) => self.end_lease(grant.lease, at_ms, change).map(drop)?,
                Phase::Pending => self.change(&key, change).map(drop)?,
                Phase::Trained
                | Phase::Published { .. }
                | Phase::Failed { .. }
                | Phase::Cancelled { .. }
                | Phase::Compared => {}
            }
        }
        Ok(())
    }

    /// A new job, which the index does not know yet.
    fn insert_job(&mut self, id: JobId, job: JobState) {
        self.index.add_job(&id, &job);
        self.jobs.insert(id, job);
    }

    pub(crate) fn job(&mut self, id: &JobId) -> Result<&mut JobState, String> {
        self.jobs.get_mut(id).ok_or_else(|| format!("there is no job {id}"))
    }

    pub(crate) fn stage(&mut self, key: &StageKey) -> Result<&mut StageRecord, String> {
        let job = self.jobs.get_mut(&key.job).ok_or_else(|| format!("there is no job {}", key.job))?;
        let position = job.position(&key.stage).ok_or_else(|| format!("there is no stage {key}"))?;
        self.touched.spots.insert((key.job.clone(), position));
        Ok(&mut job.stages[position])
    }

    pub(crate) fn change(&mut self, key: &StageKey, change: Change) -> Result<&mut StageRecord, String> {
        let record = self.stage(key)?;
        let Some(phase) = record.phase.after(change.clone()) else {
            return Err(format!("stage {key} is {}, so this cannot happen to it: {change:?}", record.phase.word()));
        };
        record.phase = phase;
        Ok(record)
    }

    /// Ends a live lease with this change of its stage.
    pub(crate) fn end_lease(&mut self, lease: LeaseId, at_ms: u64, change: Change) -> Result<&mut StageRecord, String> {
        let key = self.live.get(&lease).cloned().ok_or_else(|| not_live(lease))?;
        let lost = change != Change::Train;
        let since_ms = self.stage(&key)?.phase.grant().map_or(at_ms, |grant| grant.since_ms);
        self.live.remove(&lease);
        let spent = self.stage(&key)?.running;
        if lost {
            self.charge(&key, &spent, at_ms);
        }
        let record = self.change(&key, change)?;
        record.ran_ms = record.ran_ms.saturating_add(at_ms.saturating_sub(since_ms));
        record.end_attempt(lost, at_ms.saturating_sub(since_ms));
        Ok(record)
    }
}

pub(crate) fn grows(what: &str, new: u64, last: u64) -> Folded {
    if new > last { Ok(()) } else { Err(format!("{what} {new} after {what} {last}")) }
}

pub(crate) fn not_live(lease: LeaseId) -> String {
    format!("{lease} is not live")
}
