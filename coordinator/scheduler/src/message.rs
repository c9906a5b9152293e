//! What goes into the machine and what comes out of it: events, commands, and the facts that must be durable first.

use std::collections::BTreeMap;

use graftwork_shared::{
    assignment::{Assignment, Evaluation, Failure, Holdings, StageResult, Usage},
    digest::Digest,
    event::{EventKind, StepReport},
    id::{JobId, LeaseId, Name, WorkerId},
    job::Resources,
    recipe::NumericClass,
};
use serde::{Deserialize, Serialize};

use crate::{fact::Fact, plan::Plan};

/// One stage of one job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageKey {
    /// The job.
    pub job: JobId,
    /// The stage.
    pub stage: Name,
}

impl std::fmt::Display for StageKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of job {}", self.stage, self.job)
    }
}

/// What a worker is, as it said when it joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Its host and process, such as `node7:4123`.
    pub place: String,
    /// Trainer threads.
    pub threads: u32,
    /// Assignments at a time, at least 1.
    pub slots: u32,
    /// Memory of its machine; 0 if unknown.
    pub memory_bytes: u64,
    /// What members of a group must say alike: the host, if they are reached on it alone, and whether over TLS.
    #[serde(default)]
    pub reached_on: String,
    /// Its numeric class.
    pub class: NumericClass,
    /// The numerics version that it computes; 0 if it did not say, and then it refuses other ones itself.
    #[serde(default)]
    pub numerics_version: u32,
    /// The version of what it says to other members of a group; 0 if it did not say.
    #[serde(default)]
    pub exchange: u32,
    /// Digest of its process's random name, by which it is known again after its link broke, or after the coordinator
    /// was another process; empty: it cannot come back.
    #[serde(skip)]
    pub key: String,
    /// What it need not load again.
    #[serde(skip)]
    pub holdings: Holdings,
}

impl WorkerInfo {
    pub(crate) fn arithmetic(&self) -> Arithmetic {
        Arithmetic { class: self.class.clone(), version: self.numerics_version, exchange: self.exchange }
    }

    /// Takes what the same process says of its versions where it was not known.
    pub(crate) fn take_versions(&mut self, said: &Self) {
        // Where both say one it is the same one, and 0 says nothing.
        self.numerics_version = self.numerics_version.max(said.numerics_version);
        self.exchange = self.exchange.max(said.exchange);
    }

    /// Whether both were said by one process.
    pub(crate) fn is_same_process(&self, other: &Self) -> bool {
        // A worker of an earlier version, or facts about one, do not say which numerics version, or which exchange.
        let may_be = |one: u32, other: u32| one == other || one == 0 || other == 0;
        let known = may_be(self.numerics_version, other.numerics_version) && may_be(self.exchange, other.exchange);
        let alike = Self {
            numerics_version: other.numerics_version,
            exchange: other.exchange,
            holdings: other.holdings.clone(),
            ..self.clone()
        };
        !self.key.is_empty() && known && alike == *other
    }
}

/// What a worker computes by, and how it speaks of it with other members of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arithmetic {
    pub(crate) class: NumericClass,
    /// 0 if unknown.
    pub(crate) version: u32,
    /// 0 if unknown. Decides who trains together, and nothing else.
    pub(crate) exchange: u32,
}

impl Arithmetic {
    /// Whether this is what the worker says.
    pub(crate) fn is_of(&self, info: &WorkerInfo) -> bool {
        (&self.class, self.version, self.exchange) == (&info.class, info.numerics_version, info.exchange)
    }

    /// Whether all of it is known.
    pub(crate) fn is_known(&self) -> bool {
        self.version > 0 && self.exchange > 0
    }

    /// Whether recipes of this numerics version are computed; what is not known is not held against it.
    pub(crate) fn computes(&self, version: u32) -> bool {
        self.version == 0 || self.version == version
    }
}

/// What happened outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A job was planned. For a job that has ended, `gone` lists published stages that the hub has no longer.
    Submitted {
        /// The plan; it passes [`Plan::check`].
        plan: Box<Plan>,
        /// Published stages that are missing in the hub.
        gone: Vec<Name>,
    },
    /// A job that has not ended was submitted again, with these wishes for machines, which are no part of its digest.
    Resources {
        /// The job.
        job: JobId,
        /// The wishes.
        resources: Resources,
    },
    /// The user stops a job.
    Cancel {
        /// The job.
        job: JobId,
        /// Why.
        reason: String,
    },
    /// An ended job is not needed any more; what is published stays.
    Forget {
        /// The job.
        job: JobId,
    },
    /// Files of a history of nights are other ones; their blobs lie in the blob store.
    KeepHistory {
        /// Its name.
        history: String,
        /// By path: the blob that it is from now on; `None` for one that is gone.
        files: BTreeMap<String, Option<Digest>>,
    },
    /// A worker opened a session.
    WorkerJoined {
        /// The shell's number of the session, given back in [`Command::Welcome`].
        session: u64,
        /// What the worker is.
        info: WorkerInfo,
        /// Leases that it holds, when it comes back after its link broke.
        leases: Vec<LeaseId>,
    },
    /// A worker's connection broke; its process may live and come back, see
    /// [`Policy::grace_ms`](crate::Policy::grace_ms).
    LinkLost {
        /// The worker.
        worker: WorkerId,
        /// What broke.
        reason: String,
    },
    /// A session ended for good.
    WorkerLeft {
        /// The worker.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// A worker lives and holds these leases.
    Heartbeat {
        /// The worker.
        worker: WorkerId,
        /// The leases.
        leases: Vec<LeaseId>,
    },
    /// A worker measured how long a word takes to its coordinator and back.
    RoundTrip {
        /// The worker.
        worker: WorkerId,
        /// The longest that is to be expected, in milliseconds; 0: not measured yet.
        round_trip_ms: u64,
    },
    /// A worker has moved on with this lease; of the content nothing is decided.
    Progress {
        /// The worker.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
    },
    /// A holder of a lease told how training goes. It is of the moment, and decides no byte.
    Stepped {
        /// The worker.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
        /// What it told.
        report: StepReport,
    },
    /// A checkpoint lies in the blob store.
    Checkpointed {
        /// The worker.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
        /// Its step.
        step: u64,
        /// Its blob.
        blob: Digest,
    },
    /// A result is there, its blobs lie in the blob store.
    Finished {
        /// The worker.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
        /// The result.
        result: Box<StageResult>,
    },
    /// A trial came to the update at which it was told to pause, or finished its training before; its checkpoint of
    /// then was accepted.
    Paused {
        /// The worker.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
        /// Validation scores: of the weights of the update, or of those kept by a training that is over.
        evaluation: Evaluation,
        /// Its training is over.
        finished: bool,
    },
    /// An attempt failed.
    Failed {
        /// The worker.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
        /// Why.
        failure: Failure,
    },
    /// A worker gave a lease back, as it was asked to, or since it never had the state of those that trained and are gone.
    Released {
        /// The worker.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
    },
    /// What an attempt has cost so far, by its worker. Once durable it counts in its owner's share.
    Spent {
        /// The worker.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
        /// The cost.
        usage: Usage,
    },
    /// A worker that was asked to join those that train a stage has loaded everything.
    Prepared {
        /// The worker.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
    },
    /// The group of a lease failed for one of its members: another one is gone or cannot be reached.
    Broken {
        /// The member that says so.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
        /// Of the group.
        epoch: u64,
        /// What it saw.
        reason: String,
    },
    /// A member of a lease's group computes nothing, and has waited for the others for longer than any message takes. It
    /// says so again with each heartbeat while that lasts.
    Waits {
        /// The member.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
        /// Of the group.
        epoch: u64,
        /// The updates that it has done.
        step: u64,
    },
    /// A worker shall finish its steps, checkpoint and leave.
    DrainWorker {
        /// The worker.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// A worker was told to end by somebody else, as by its machine: it takes no more work.
    Leaving {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker tells which base models and rows it has.
    Holds {
        /// The worker.
        worker: WorkerId,
        /// What it has.
        holdings: Holdings,
    },
    /// Nothing was read for so long, since the coordinator's process or its disk stood still.
    StoodStill {
        /// Milliseconds.
        gap_ms: u64,
    },
    /// The coordinator shall stop: all workers are drained and nothing is handed out any more.
    Stop {
        /// Why.
        reason: String,
    },
    /// Answer to [`Command::LookForReuse`].
    Reusable {
        /// The stage.
        key: StageKey,
        /// An earlier result of the same recipe in one of the classes asked for, its blobs in the blob store.
        result: Option<Box<StageResult>>,
    },
    /// Answer to [`Command::Publish`].
    Published {
        /// The stage.
        key: StageKey,
        /// Where it is in the hub.
        release: String,
    },
    /// The other answer to [`Command::Publish`].
    PublishFailed {
        /// The stage.
        key: StageKey,
        /// Why.
        failure: Failure,
    },
    /// A blob is missing, or its bytes were found damaged.
    BlobLost {
        /// The blob.
        blob: Digest,
    },
    /// Time passed: see [`Scheduler::next_deadline`](crate::Scheduler::next_deadline).
    Tick,
}

/// What the shell shall do once the facts of the same [`Decision`] are durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Open a session, of a new worker or of one that came back.
    Welcome {
        /// The shell's number of the session.
        session: u64,
        /// The worker's number.
        worker: WorkerId,
    },
    /// Hand out work.
    Assign {
        /// To whom.
        worker: WorkerId,
        /// Under which lease.
        lease: LeaseId,
        /// The work.
        assignment: Box<Assignment>,
        /// Others train it already: the worker shall load everything, say so and wait for its group.
        joining: bool,
    },
    /// Tell a member its place in the group that holds a lease from now on.
    Form {
        /// The member.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
        /// The group's epoch.
        epoch: u64,
        /// The member's rank; rank 0 speaks for the stage.
        rank: u32,
        /// How many members there are.
        ranks: u32,
        /// End whatever the older group waits in, instead of changing over between two updates.
        at_once: bool,
        /// Step of the accepted checkpoint; 0 for none.
        checkpointed: u64,
        /// Lanes of each member by rank; empty: all the same.
        shares: Vec<u32>,
    },
    /// A worker shall finish its step and give this lease back.
    Release {
        /// Which.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
        /// Why.
        reason: String,
    },
    /// A checkpoint or a result counts.
    Accept {
        /// Whose.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
        /// Its step.
        step: u64,
    },
    /// A lease is not the live one: the worker shall drop the work.
    Fence {
        /// Whose.
        worker: WorkerId,
        /// The lease.
        lease: LeaseId,
    },
    /// A worker shall release everything and leave.
    Drain {
        /// Which.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// A worker was silent for too long: its session is over.
    Disconnect {
        /// Which.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// Ask the hub for an earlier result of the same recipe; answered by [`Event::Reusable`].
    LookForReuse {
        /// The stage.
        key: StageKey,
        /// The classes that the workers have.
        classes: Vec<NumericClass>,
    },
    /// Put a stage into the hub; answered by [`Event::Published`] or [`Event::PublishFailed`].
    Publish {
        /// The stage.
        key: StageKey,
    },
    /// A blob is referred to by nothing any more.
    Discard {
        /// The blob.
        blob: Digest,
    },
    /// Tell those who watch the job.
    Tell {
        /// The job.
        job: JobId,
        /// The stage, where it is about one.
        stage: Option<Name>,
        /// What happened.
        kind: EventKind,
    },
}

/// What the machine decided: facts to make durable, and then commands to carry out in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Durable first, all or nothing.
    pub facts: Vec<Fact>,
    /// Carried out after that.
    pub commands: Vec<Command>,
}
