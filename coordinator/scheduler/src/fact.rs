//! What is journalled: inputs that were accepted and decisions that were taken.
//!
//! Recovery folds facts and decides nothing again, so an upgrade of the scheduler cannot change the past
//! (invariant 6). A variant is never changed or removed; a new meaning is a new variant and a higher [`FACT_VERSION`].

use std::collections::BTreeMap;

use graftwork_shared::{
    assignment::{Failure, StageResult, Usage},
    digest::Digest,
    event::Outcome,
    id::{JobId, LeaseId, Name, Term, WorkerId},
    job::Resources,
    recipe::NumericClass,
    sweep::RungScore,
};
use serde::{Deserialize, Serialize};

use crate::{message::WorkerInfo, plan::Plan};

/// Version of [`Fact`] and of [`State`](crate::State), kept beside each of them in the journal.
pub const FACT_VERSION: u32 = 7;

/// One journalled fact. Times are milliseconds since 1970 by the coordinator's clock and decide nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub enum Fact {
    /// A coordinator took over. Leases of earlier terms end here, without blame.
    TermStarted {
        /// Its term: the previous one plus 1.
        term: Term,
        /// When.
        at_ms: u64,
    },
    /// A coordinator took over. Leases go on whose holders can all be known again; others end here, without blame.
    TermContinued {
        /// Its term: the previous one plus 1.
        term: Term,
        /// When.
        at_ms: u64,
    },
    /// A worker's session was opened.
    WorkerJoined {
        /// Its number, never used again.
        worker: WorkerId,
        /// Its host and process.
        place: String,
        /// Its numeric class.
        class: NumericClass,
    },
    /// A worker's session was opened, with all that is needed to know the worker again.
    WorkerEntered {
        /// Its number, never used again.
        worker: WorkerId,
        /// What it said of itself.
        info: Box<WorkerInfo>,
        /// Its process, as [`WorkerInfo::key`] names it; empty: it cannot come back.
        key: String,
    },
    /// A worker was given up, or left: it holds nothing and will not be waited for.
    WorkerGone {
        /// Its number.
        worker: WorkerId,
    },
    /// A job was accepted.
    JobSubmitted {
        /// Its plan.
        plan: Box<Plan>,
        /// When.
        at_ms: u64,
    },
    /// An ended job was submitted again, and something of it is left to do.
    JobReopened {
        /// Its new plan.
        plan: Box<Plan>,
        /// Published stages that the hub has no longer.
        gone: Vec<Name>,
        /// When.
        at_ms: u64,
    },
    /// A job that has not ended asks other things of machines from now on.
    ResourcesChanged {
        /// The job.
        job: JobId,
        /// What it asks.
        resources: Resources,
    },
    /// A stage was handed to a worker.
    StageLeased {
        /// The job.
        job: JobId,
        /// The stage.
        stage: Name,
        /// The lease, higher than any before.
        lease: LeaseId,
        /// The worker.
        worker: WorkerId,
        /// The worker's numeric class.
        class: NumericClass,
        /// When.
        at_ms: u64,
    },
    /// A lease is held by these workers from now on, which train its stage together.
    GroupFormed {
        /// The live lease.
        lease: LeaseId,
        /// Higher than any before of the lease; the worker of [`Fact::StageLeased`] alone is epoch 0.
        epoch: u64,
        /// The members in the order of their ranks; the first speaks for the stage.
        members: Vec<WorkerId>,
        /// Lanes of each by rank; empty: all the same.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        shares: Vec<u32>,
        /// A loss that counts against the stage as a failed attempt does. Earlier versions decided this; now only the end of
        /// the last member counts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lost: Option<Failure>,
        /// When.
        at_ms: u64,
    },
    /// A checkpoint is durable and is where the next attempt goes on.
    CheckpointAccepted {
        /// The live lease it came under.
        lease: LeaseId,
        /// Its step.
        step: u64,
        /// Its blob.
        blob: Digest,
    },
    /// The blob of a stage's checkpoint is missing or damaged: the next attempt starts from nothing.
    CheckpointLost {
        /// The job.
        job: JobId,
        /// The stage.
        stage: Name,
        /// The blob.
        blob: Digest,
    },
    /// A blob of a stage's result is missing or damaged, and still needed: the stage stands as if it was never handed
    /// out.
    ResultLost {
        /// The job.
        job: JobId,
        /// The stage.
        stage: Name,
        /// The blob.
        blob: Digest,
    },
    /// What the attempt under a live lease is known to have cost; the last such fact counts.
    AttemptCost {
        /// The lease.
        lease: LeaseId,
        /// The cost.
        usage: Usage,
    },
    /// A worker's process took more memory than ever before while it trained stages over one base model.
    MemoryMeasured {
        /// The job of the stage that told of it.
        job: JobId,
        /// That stage.
        stage: Name,
        /// Digest of the base model.
        base_model: Digest,
        /// The worker's numeric class.
        class: NumericClass,
        /// What its process was expected to take with these stages, as they were planned.
        predicted_bytes: u64,
        /// What it took at most.
        measured_bytes: u64,
    },
    /// A lease ended without result and without blame.
    LeaseReleased {
        /// The lease.
        lease: LeaseId,
        /// Why.
        reason: String,
        /// When.
        at_ms: u64,
    },
    /// A lease ended without result and without blame: its place went to a stage of higher priority.
    StagePreempted {
        /// The lease.
        lease: LeaseId,
        /// The other stage's job.
        by_job: JobId,
        /// The other stage.
        by_stage: Name,
        /// When.
        at_ms: u64,
    },
    /// A lease ended in failure.
    AttemptFailed {
        /// The lease.
        lease: LeaseId,
        /// Why.
        failure: Failure,
        /// When it may be tried again; `None` fails the stage for good.
        retry_at_ms: Option<u64>,
        /// When.
        at_ms: u64,
    },
    /// A stage has its result.
    StageTrained {
        /// The job.
        job: JobId,
        /// The stage.
        stage: Name,
        /// The live lease it came under; `None` for an earlier result that is reused.
        lease: Option<LeaseId>,
        /// The result.
        result: Box<StageResult>,
        /// When.
        at_ms: u64,
    },
    /// A trial of a sweep has its scores at these rungs, the first of which is the one to which it may train.
    TrialScored {
        /// The job.
        job: JobId,
        /// The trial's stage.
        stage: Name,
        /// The live lease that ends with it; `None` for scores of an earlier result.
        lease: Option<LeaseId>,
        /// The scores.
        scores: Vec<RungScore>,
        /// When.
        at_ms: u64,
    },
    /// Trials of a sweep were compared.
    RungDecided {
        /// The job.
        job: JobId,
        /// The swept task.
        task: Name,
        /// The rung at which they were compared, from 0.
        rung: u32,
        /// The rung to which those that go on may train.
        to: u32,
        /// Numbers of those that go on.
        promoted: Vec<u32>,
        /// Numbers of those that do not, from now on.
        stopped: Vec<u32>,
        /// Not all that will reach the rung were there.
        asynchronous: bool,
        /// When.
        at_ms: u64,
    },
    /// A sweep is over: this trial becomes its task.
    TrialChosen {
        /// The job.
        job: JobId,
        /// The swept task.
        task: Name,
        /// The trial's number.
        trial: u32,
        /// When.
        at_ms: u64,
    },
    /// A sweep is over without a trial to choose.
    SweepFailed {
        /// The job.
        job: JobId,
        /// The swept task.
        task: Name,
        /// Why.
        failure: Failure,
        /// When.
        at_ms: u64,
    },
    /// A stage is in the hub.
    StagePublished {
        /// The job.
        job: JobId,
        /// The stage.
        stage: Name,
        /// Where.
        release: String,
    },
    /// Publishing failed.
    PublishFailed {
        /// The job.
        job: JobId,
        /// The stage.
        stage: Name,
        /// Why.
        failure: Failure,
        /// When it is tried again; `None` fails the stage for good.
        retry_at_ms: Option<u64>,
    },
    /// A stage cannot be trained any more.
    StageCancelled {
        /// The job.
        job: JobId,
        /// The stage.
        stage: Name,
        /// Why.
        reason: String,
    },
    /// The user stopped a job: stages without a result are cancelled.
    JobCancelled {
        /// The job.
        job: JobId,
        /// Why.
        reason: String,
        /// When.
        at_ms: u64,
    },
    /// Every stage of a job is published, failed or cancelled.
    JobEnded {
        /// The job.
        job: JobId,
        /// How.
        outcome: Outcome,
        /// When.
        at_ms: u64,
    },
    /// An ended job is gone, with all that only it referred to.
    JobForgotten {
        /// The job.
        job: JobId,
        /// When.
        at_ms: u64,
    },
    /// Files of a history of nights are other ones, all of them at once.
    HistoryKept {
        /// Its name.
        history: String,
        /// By path: the blob that it is from now on; `None` for one that is gone.
        files: BTreeMap<String, Option<Digest>>,
        /// When.
        at_ms: u64,
    },
}

impl Fact {
    /// The word for it, for logs and errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::TermStarted { .. } => "term_started",
            Self::TermContinued { .. } => "term_continued",
            Self::WorkerJoined { .. } => "worker_joined",
            Self::WorkerEntered { .. } => "worker_entered",
            Self::WorkerGone { .. } => "worker_gone",
            Self::JobSubmitted { .. } => "job_submitted",
            Self::JobReopened { .. } => "job_reopened",
            Self::ResourcesChanged { .. } => "resources_changed",
            Self::StageLeased { .. } => "stage_leased",
            Self::GroupFormed { .. } => "group_formed",
            Self::CheckpointAccepted { .. } => "checkpoint_accepted",
            Self::CheckpointLost { .. } => "checkpoint_lost",
            Self::ResultLost { .. } => "result_lost",
            Self::AttemptCost { .. } => "attempt_cost",
            Self::MemoryMeasured { .. } => "memory_measured",
            Self::LeaseReleased { .. } => "lease_released",
            Self::StagePreempted { .. } => "stage_preempted",
            Self::AttemptFailed { .. } => "attempt_failed",
            Self::StageTrained { .. } => "stage_trained",
            Self::TrialScored { .. } => "trial_scored",
            Self::RungDecided { .. } => "rung_decided",
            Self::TrialChosen { .. } => "trial_chosen",
            Self::SweepFailed { .. } => "sweep_failed",
            Self::StagePublished { .. } => "stage_published",
            Self::PublishFailed { .. } => "publish_failed",
            Self::StageCancelled { .. } => "stage_cancelled",
            Self::JobCancelled { .. } => "job_cancelled",
            Self::JobEnded { .. } => "job_ended",
            Self::JobForgotten { .. } => "job_forgotten",
            Self::HistoryKept { .. } => "history_kept",
        }
    }
}
