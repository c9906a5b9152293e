//! What is durable: the fold of all facts.
//!
//! Folding decides nothing (invariant 6): the same facts give the same state in every later program. A fact that
//! does not fit the state means that the journal is damaged or foreign, and says so.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{
    assignment::{Failure, StageResult, Usage},
    digest::Digest,
    event::Outcome,
    id::{JobId, LeaseId, Name, Term, WorkerId},
    recipe::NumericClass,
    view::Preempted,
};
use serde::{Deserialize, Serialize};

use crate::{
    fact::Fact,
    index::{JobIndex, StateIndex, Touched},
    message::StageKey,
    phase::{Change, Grant, Phase},
    plan::{FusedSource, Plan, PlannedStage},
    share::Account,
    sweep::SweepState,
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
}

impl From<StoredState> for State {
    fn from(stored: StoredState) -> Self {
        let StoredState { term, last_worker, last_lease, submissions, jobs, live, holders, accounts } = stored;
        let (index, touched) = (StateIndex::default(), Touched::default());
        let mut state =
            Self { term, last_worker, last_lease, submissions, jobs, live, holders, accounts, index, touched };
        state.rebuild();
        state
    }
}

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobState {
    pub(crate) plan: Plan,
    /// Number of its submission: earlier ones go first.
    pub(crate) order: u64,
    pub(crate) submitted_ms: u64,
    pub(crate) cancelled: Option<String>,
    pub(crate) ended: Option<(u64, Outcome)>,
    /// In the plan's order.
    pub(crate) stages: Vec<StageRecord>,
    /// By the swept task.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) sweeps: BTreeMap<Name, SweepState>,
    /// What is looked up of all this.
    #[serde(skip)]
    pub(crate) index: JobIndex,
}

/// One stage of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageRecord {
    pub(crate) phase: Phase,
    /// Where the next attempt goes on.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// How often it was handed out.
    pub(crate) attempts: u32,
    /// Failures since the last progress.
    pub(crate) failures: Vec<Failure>,
    /// Not before this time, in milliseconds since 1970.
    pub(crate) retry_at_ms: Option<u64>,
    pub(crate) result: Option<StageResult>,
    /// The result is an earlier one.
    pub(crate) reused: bool,
    /// Its place went to other stages.
    #[serde(default)]
    pub(crate) preempted: Option<Preempted>,
    /// Time that earlier attempts ran, in milliseconds, since the job was last submitted.
    #[serde(default)]
    pub(crate) ran_ms: u64,
    /// Wall time of attempts that gave no result, in milliseconds.
    pub(crate) lost_ms: u64,
    /// What else they cost.
    #[serde(default)]
    pub(crate) lost: Usage,
    /// What the attempt that runs is known to have cost.
    #[serde(default)]
    pub(crate) running: Usage,
}

/// An accepted checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) step: u64,
    pub(crate) blob: Digest,
    pub(crate) class: NumericClass,
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
            index: StateIndex::default(),
            touched: Touched::default(),
        }
    }
}

impl StageRecord {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Pending,
            checkpoint: None,
            attempts: 0,
            failures: Vec::new(),
            retry_at_ms: None,
            result: None,
            reused: false,
            preempted: None,
            ran_ms: 0,
            lost_ms: 0,
            lost: Usage::default(),
            running: Usage::default(),
        }
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.checkpoint.iter().map(|checkpoint| checkpoint.blob).chain(self.result_blobs())
    }

    pub(crate) fn result_blobs(&self) -> impl Iterator<Item = Digest> {
        let blobs = |result: &StageResult| {
            std::iter::once(result.weights).chain(result.predictions.values().copied()).collect::<Vec<_>>()
        };
        self.result.iter().flat_map(blobs)
    }
}

impl PlannedStage {
    /// Blobs that its assignments name: adapters from outside.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.fused.iter().filter_map(|fused| match fused {
            FusedSource::External { blob, .. } => Some(*blob),
            FusedSource::Stage(_) => None,
        })
    }
}

impl JobState {
    fn new(plan: Plan, order: u64, submitted_ms: u64) -> Self {
        let stages = plan.stages.iter().map(|_| StageRecord::new()).collect();
        let sweeps = SweepState::all(&plan);
        let index = JobIndex::default();
        let mut job = Self { plan, order, submitted_ms, cancelled: None, ended: None, stages, sweeps, index };
        job.index = JobIndex::of(&job);
        job
    }

    /// The position of a stage.
    pub(crate) fn position(&self, name: &Name) -> Option<usize> {
        self.index.position(name)
    }

    /// The planned stage of this name.
    pub(crate) fn planned(&self, name: &Name) -> Option<&PlannedStage> {
        self.plan.stages.get(self.position(name)?)
    }

    /// A stage's result by its name.
    pub(crate) fn result(&self, name: &Name) -> Option<&StageResult> {
        self.stages[self.position(name)?].result.as_ref()
    }

    /// Stages that the stage at this position waits for.
    pub(crate) fn waits_for(&self, position: usize) -> Vec<Name> {
        if let Some(trials) = self.waits_in_sweep(position) {
            return trials;
        }
        let needs = &self.plan.stages[position].needs;
        needs.iter().filter(|needs| self.result(needs).is_none()).cloned().collect()
    }

    /// A stage that it waits for and that will never have a result.
    pub(crate) fn hopeless_need(&self, position: usize) -> Option<(&Name, &Phase)> {
        if self.plan.stages[position].sweep.is_some() {
            return None; // what comes of trials without a result is the sweep's affair
        }
        self.plan.stages[position].needs.iter().find_map(|needs| {
            let record = &self.stages[self.position(needs)?];
            (record.result.is_none() && record.phase.is_final()).then_some((needs, &record.phase))
        })
    }

    /// The planned stages with where they stand.
    pub(crate) fn each(&self) -> impl Iterator<Item = (usize, &PlannedStage, &StageRecord)> {
        self.plan
            .stages
            .iter()
            .zip(&self.stages)
            .enumerate()
            .map(|(position, (stage, record))| (position, stage, record))
    }

    fn blobs(&self) -> impl Iterator<Item = Digest> {
        let stages = self.each().flat_map(|(_, stage, record)| stage.blobs().chain(record.blobs()));
        stages.chain(self.plan.uploads.iter().copied())
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
        self.jobs.values().flat_map(JobState::blobs).collect()
    }

    /// Whether this blob must be kept.
    pub fn refers_to(&self, blob: Digest) -> bool {
        self.is_referred_to(&blob)
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

impl StageRecord {
    /// Takes a checkpoint; gives the blob of the one before.
    fn accept(&mut self, step: u64, blob: Digest) -> Result<Option<Digest>, String> {
        let earlier = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
        if step <= earlier && self.checkpoint.is_some() {
            return Err(format!("checkpoint of step {step} after one of step {earlier}"));
        }
        let class = self.phase.grant().ok_or("the stage does not run")?.class.clone();
        self.failures.clear();
        Ok(self.checkpoint.replace(Checkpoint { step, blob, class }).map(|checkpoint| checkpoint.blob))
    }
}

pub(crate) fn grows(what: &str, new: u64, last: u64) -> Folded {
    if new > last { Ok(()) } else { Err(format!("{what} {new} after {what} {last}")) }
}

pub(crate) fn not_live(lease: LeaseId) -> String {
    format!("{lease} is not live")
}

impl JobState {
    /// Weight blobs of what a fusion reads, in the recipe's order. Its needs have their results.
    pub(crate) fn fused_blobs(&self, position: usize) -> Vec<Digest> {
        let blob = |fused: &FusedSource| match fused {
            FusedSource::Stage(name) => self.result(name).map(|result| result.weights),
            FusedSource::External { blob, .. } => Some(*blob),
        };
        self.plan.stages[position].fused.iter().filter_map(blob).collect()
    }
}
