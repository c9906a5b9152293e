//! Session messages as the programs use them, and their checked conversion from the wire.
//!
//! A conversion error names the field, so that a foreign or damaged peer is found at once.

use std::collections::BTreeSet;

use graftwork_shared::{
    assignment::{Assignment, Evaluation, Failure, Holdings, StageResult, Usage},
    digest::Digest,
    event::StepReport,
    id::{LeaseId, Term, WorkerId},
    recipe::NumericClass,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::v1;

/// A message that does not say what it must.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A field without a value.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field with a value that cannot be.
    #[error("{field}: {problem}")]
    Wrong {
        /// The path of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// What a worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Its program's version.
    pub version: String,
    /// Its host.
    pub host: String,
    /// Its process on that host.
    pub pid: u32,
    /// Trainer threads.
    pub threads: u32,
    /// Assignments at a time.
    pub slots: u32,
    /// Memory of its machine.
    pub memory_bytes: u64,
    /// Its numeric class.
    pub numeric_class: NumericClass,
    /// Random name of its process, by which it is known again after its link broke; empty: it cannot come back.
    pub key: String,
    /// Leases that it holds; not empty only when it comes back.
    pub leases: Vec<LeaseId>,
    /// What members of a group must say alike: the host, if they are reached on it alone, and whether over TLS.
    pub reached_on: String,
    /// The numerics version that it computes; 0: it does not say.
    pub numerics_version: u32,
    /// The version of what it says to other members of a group; 0: it does not say.
    pub exchange: u32,
    /// What it need not load again.
    pub holdings: Holdings,
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerMessage {
    /// First in a session.
    Hello(Hello),
    /// It lives, and holds these leases.
    Heartbeat(Vec<LeaseId>),
    /// Asks for [`CoordinatorMessage::Echo`] of the same number.
    Probe {
        /// Its number.
        number: u64,
        /// The longest round trip that is to be expected, in milliseconds, as measured so far; 0: not yet.
        round_trip_ms: u64,
    },
    /// Training moved on.
    Step(LeaseId, StepReport),
    /// Validation was scored.
    Evaluated(LeaseId, Evaluation),
    /// A checkpoint of this step was uploaded; it counts once it is accepted.
    Checkpoint(LeaseId, u64, Digest),
    /// The result; it counts once it is accepted.
    Finished(LeaseId, StageResult),
    /// A trial paused with these validation scores; whether its training is over.
    Paused(LeaseId, Evaluation, bool),
    /// The attempt ended without a result.
    Failed(LeaseId, Failure),
    /// Stopped after its last accepted checkpoint, or left a group that goes on.
    Released(LeaseId),
    /// It was told to end, for this reason: it takes no more work, and gives back what it holds.
    Leaving(String),
    /// What it need not load again.
    Holds(Holdings),
    /// It has loaded what it joins, and waits for [`CoordinatorMessage::Form`].
    Prepared(LeaseId),
    /// The group of this epoch failed for it; with the reason.
    Broken(LeaseId, u64, String),
    /// In the group of this epoch, after this update, it computes nothing and has waited for the others for longer than
    /// any message takes; said with each heartbeat while that lasts.
    Waits(LeaseId, u64, u64),
    /// What the attempt has cost so far.
    Spent(LeaseId, Usage),
}

/// A member's place in the group that trains a lease's stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formation {
    /// Grows with every change of the group; the single worker that a lease begins with is epoch 0.
    pub epoch: u64,
    /// This member's rank; rank 0 speaks for the stage.
    pub rank: u32,
    /// How many members there are.
    pub ranks: u32,
    /// End whatever the older group waits in, instead of changing over between two updates.
    pub at_once: bool,
    /// Step of the accepted checkpoint; 0 for none.
    pub checkpointed: u64,
    /// Weight of each rank's part of the lanes; empty: all the same.
    pub shares: Vec<u32>,
}

impl Formation {
    /// The formation of a lease that one worker holds.
    pub const ALONE: Self = Self { epoch: 0, rank: 0, ranks: 1, at_once: false, checkpointed: 0, shares: Vec::new() };
}

/// What a coordinator says.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorMessage {
    /// The session is open.
    Welcome {
        /// The worker's id.
        worker: WorkerId,
        /// Milliseconds between heartbeats.
        heartbeat_ms: u64,
    },
    /// Of a [`WorkerMessage::Probe`], at once.
    Echo(u64),
    /// The session ends before it began.
    Refused(String),
    /// Work under a lease.
    Assign {
        /// The lease.
        lease: LeaseId,
        /// The work.
        assignment: Box<Assignment>,
        /// Others train it already: load everything, say [`WorkerMessage::Prepared`], and wait for [`Self::Form`].
        joining: bool,
    },
    /// The lease's group from now on.
    Form(LeaseId, Formation),
    /// What was uploaded up to this step is durable.
    Accepted(LeaseId, u64),
    /// The lease is not the live one: drop the work.
    Fenced(LeaseId),
    /// Finish the step, checkpoint, release; with the reason.
    Release(LeaseId, String),
    /// Release everything and leave; with the reason.
    Drain(String),
}

/// A worker's message with its envelope.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerEnvelope {
    /// The term that the worker knows; 0 before it was welcomed.
    pub term: Term,
    /// Trace id.
    pub trace: String,
    /// The message.
    pub message: WorkerMessage,
}

/// A coordinator's message with its envelope.
#[derive(Clone, Debug, PartialEq)]
pub struct CoordinatorEnvelope {
    /// The coordinator's term; a worker that has seen a later one refuses it.
    pub term: Term,
    /// Trace id.
    pub trace: String,
    /// The message.
    pub message: CoordinatorMessage,
}

/// The JSON form of a value, as documents travel.
///
/// # Panics
/// When the value has a map whose keys are not strings; no document of this project has.
pub fn to_document<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("documents can be written as JSON")
}

fn holdings(wire: v1::Holds) -> Result<Holdings, WireError> {
    Ok(Holdings {
        base_models: digests("holds.base_models", &wire.base_models)?,
        rows: digests("holds.rows", &wire.rows)?,
    })
}

fn to_holds(holdings: &Holdings) -> v1::Holds {
    v1::Holds {
        base_models: holdings.base_models.iter().map(Digest::to_string).collect(),
        rows: holdings.rows.iter().map(Digest::to_string).collect(),
    }
}

fn digests(field: &'static str, texts: &[String]) -> Result<BTreeSet<Digest>, WireError> {
    if texts.len() > Holdings::MOST {
        let problem = format!("{} digests, but a worker says at most {}", texts.len(), Holdings::MOST);
        return Err(WireError::Wrong { field, problem });
    }
    texts.iter().map(|text| digest(field, text)).collect()
}

/// Reads a document; the error names the field.
pub fn from_document<T: DeserializeOwned>(field: &'static str, text: &str) -> Result<T, WireError> {
    serde_json::from_str(text).map_err(|error| WireError::Wrong { field, problem: error.to_string() })
}

fn digest(field: &'static str, text: &str) -> Result<Digest, WireError> {
    text.parse()
        .map_err(|error: graftwork_shared::digest::NotADigest| WireError::Wrong { field, problem: error.to_string() })
}

impl TryFrom<v1::WorkerMessage> for WorkerEnvelope {
    type Error = WireError;

    fn try_from(wire: v1::WorkerMessage) -> Result<Self, WireError> {
        use v1::worker_message::Message;
        let message = match wire.message.ok_or(WireError::Missing("message"))? {
            Message::Hello(m) => WorkerMessage::Hello(m.try_into()?),
            Message::Heartbeat(m) => WorkerMessage::Heartbeat(m.leases.into_iter().map(LeaseId).collect()),
            Message::Probe(m) => WorkerMessage::Probe { number: m.number, round_trip_ms: m.round_trip_ms },
            Message::Step(m) => WorkerMessage::Step(LeaseId(m.lease), from_document("step.report", &m.report)?),
            Message::Evaluated(m) => {
                WorkerMessage::Evaluated(LeaseId(m.lease), from_document("evaluated.evaluation", &m.evaluation)?)
            }
            Message::Checkpoint(m) => {
                WorkerMessage::Checkpoint(LeaseId(m.lease), m.step, digest("checkpoint.blob", &m.blob)?)
            }
            Message::Finished(m) => {
                WorkerMessage::Finished(LeaseId(m.lease), from_document("finished.result", &m.result)?)
            }
            Message::Paused(m) => {
                let evaluation = from_document("paused.evaluation", &m.evaluation)?;
                WorkerMessage::Paused(LeaseId(m.lease), evaluation, m.finished)
            }
            Message::Failed(m) => WorkerMessage::Failed(LeaseId(m.lease), from_document("failed.failure", &m.failure)?),
            Message::Released(m) => WorkerMessage::Released(LeaseId(m.lease)),
            Message::Leaving(m) => WorkerMessage::Leaving(m.reason),
            Message::Holds(m) => WorkerMessage::Holds(holdings(m)?),
            Message::Prepared(m) => WorkerMessage::Prepared(LeaseId(m.lease)),
            Message::Broken(m) => WorkerMessage::Broken(LeaseId(m.lease), m.epoch, m.reason),
            Message::Waits(m) => WorkerMessage::Waits(LeaseId(m.lease), m.epoch, m.step),
            Message::Spent(m) => WorkerMessage::Spent(LeaseId(m.lease), from_document("spent.usage", &m.usage)?),
        };
        Ok(Self { term: Term(wire.term), trace: wire.trace, message })
    }
}

impl TryFrom<v1::Hello> for Hello {
    type Error = WireError;

    fn try_from(wire: v1::Hello) -> Result<Self, WireError> {
        for (field, number) in [("hello.threads", wire.threads), ("hello.slots", wire.slots)] {
            if number == 0 {
                return Err(WireError::Wrong { field, problem: "0, but at least 1 is needed".to_owned() });
            }
        }
        Ok(Self {
            version: wire.version,
            host: wire.host,
            pid: wire.pid,
            threads: wire.threads,
            slots: wire.slots,
            memory_bytes: wire.memory_bytes,
            numeric_class: from_document("hello.numeric_class", &wire.numeric_class)?,
            key: wire.key,
            leases: wire.leases.into_iter().map(LeaseId).collect(),
            reached_on: wire.reached_on,
            numerics_version: wire.numerics_version,
            exchange: wire.exchange,
            holdings: holdings(wire.holds.unwrap_or_default())?,
        })
    }
}

impl From<WorkerEnvelope> for v1::WorkerMessage {
    fn from(envelope: WorkerEnvelope) -> Self {
        use v1::worker_message::Message;
        let message = match envelope.message {
            WorkerMessage::Hello(hello) => Message::Hello(v1::Hello {
                version: hello.version,
                host: hello.host,
                pid: hello.pid,
                threads: hello.threads,
                slots: hello.slots,
                memory_bytes: hello.memory_bytes,
                numeric_class: to_document(&hello.numeric_class),
                key: hello.key,
                leases: hello.leases.into_iter().map(|lease| lease.0).collect(),
                reached_on: hello.reached_on,
                numerics_version: hello.numerics_version,
                exchange: hello.exchange,
                holds: Some(to_holds(&hello.holdings)),
            }),
            WorkerMessage::Heartbeat(leases) => {
                Message::Heartbeat(v1::Heartbeat { leases: leases.into_iter().map(|lease| lease.0).collect() })
            }
            WorkerMessage::Probe { number, round_trip_ms } => Message::Probe(v1::Probe { number, round_trip_ms }),
            WorkerMessage::Step(lease, report) => {
                Message::Step(v1::Step { lease: lease.0, report: to_document(&report) })
            }
            WorkerMessage::Evaluated(lease, evaluation) => {
                Message::Evaluated(v1::Evaluated { lease: lease.0, evaluation: to_document(&evaluation) })
            }
            WorkerMessage::Checkpoint(lease, step, blob) => {
                Message::Checkpoint(v1::Checkpoint { lease: lease.0, step, blob: blob.to_string() })
            }
            WorkerMessage::Finished(lease, result) => {
                Message::Finished(v1::Finished { lease: lease.0, result: to_document(&result) })
            }
            WorkerMessage::Paused(lease, evaluation, finished) => {
                let evaluation = to_document(&evaluation);
                Message::Paused(v1::Paused { lease: lease.0, evaluation, finished })
            }
            WorkerMessage::Failed(lease, failure) => {
                Message::Failed(v1::Failed { lease: lease.0, failure: to_document(&failure) })
            }
            WorkerMessage::Released(lease) => Message::Released(v1::Released { lease: lease.0 }),
            WorkerMessage::Leaving(reason) => Message::Leaving(v1::Leaving { reason }),
            WorkerMessage::Holds(holdings) => Message::Holds(to_holds(&holdings)),
            WorkerMessage::Spent(lease, usage) => {
                Message::Spent(v1::Spent { lease: lease.0, usage: to_document(&usage) })
            }
            WorkerMessage::Waits(lease, epoch, step) => Message::Waits(v1::Waits { lease: lease.0, epoch, step }),
            WorkerMessage::Prepared(lease) => Message::Prepared(v1::Prepared { lease: lease.0 }),
            WorkerMessage::Broken(lease, epoch, reason) => {
                Message::Broken(v1::Broken { lease: lease.0, epoch, reason })
            }
        };
        Self { term: envelope.term.0, trace: envelope.trace, message: Some(message) }
    }
}

impl TryFrom<v1::CoordinatorMessage> for CoordinatorEnvelope {
    type Error = WireError;

    fn try_from(wire: v1::CoordinatorMessage) -> Result<Self, WireError> {
        use v1::coordinator_message::Message;
        let message = match wire.message.ok_or(WireError::Missing("message"))? {
            Message::Welcome(m) => {
                CoordinatorMessage::Welcome { worker: WorkerId(m.worker), heartbeat_ms: m.heartbeat_ms }
            }
            Message::Echo(m) => CoordinatorMessage::Echo(m.number),
            Message::Refused(m) => CoordinatorMessage::Refused(m.reason),
            Message::Assign(m) => {
                let assignment = Box::new(from_document("assign.assignment", &m.assignment)?);
                CoordinatorMessage::Assign { lease: LeaseId(m.lease), assignment, joining: m.joining }
            }
            Message::Form(m) => CoordinatorMessage::Form(LeaseId(m.lease), Formation::try_from(m)?),
            Message::Accepted(m) => CoordinatorMessage::Accepted(LeaseId(m.lease), m.step),
            Message::Fenced(m) => CoordinatorMessage::Fenced(LeaseId(m.lease)),
            Message::Release(m) => CoordinatorMessage::Release(LeaseId(m.lease), m.reason),
            Message::Drain(m) => CoordinatorMessage::Drain(m.reason),
        };
        Ok(Self { term: Term(wire.term), trace: wire.trace, message })
    }
}

impl TryFrom<v1::Form> for Formation {
    type Error = WireError;

    fn try_from(wire: v1::Form) -> Result<Self, WireError> {
        let v1::Form { epoch, rank, ranks, at_once, checkpointed, shares, .. } = wire;
        if rank >= ranks {
            let problem = format!("{rank}, but the group has {ranks} members");
            return Err(WireError::Wrong { field: "form.rank", problem });
        }
        if !shares.is_empty() && (shares.len() != ranks as usize || shares.iter().all(|share| *share == 0)) {
            let problem = format!("{shares:?}, but the group has {ranks} members, and one of them has lanes");
            return Err(WireError::Wrong { field: "form.shares", problem });
        }
        Ok(Self { epoch, rank, ranks, at_once, checkpointed, shares })
    }
}

impl From<CoordinatorEnvelope> for v1::CoordinatorMessage {
    fn from(envelope: CoordinatorEnvelope) -> Self {
        use v1::coordinator_message::Message;
        let message = match envelope.message {
            CoordinatorMessage::Welcome { worker, heartbeat_ms } => {
                Message::Welcome(v1::Welcome { worker: worker.0, heartbeat_ms })
            }
            CoordinatorMessage::Echo(number) => Message::Echo(v1::Echo { number }),
            CoordinatorMessage::Refused(reason) => Message::Refused(v1::Refused { reason }),
            CoordinatorMessage::Assign { lease, assignment, joining } => {
                Message::Assign(v1::Assign { lease: lease.0, assignment: to_document(&assignment), joining })
            }
            CoordinatorMessage::Form(lease, formation) => {
                let Formation { epoch, rank, ranks, at_once, checkpointed, shares } = formation;
                Message::Form(v1::Form { lease: lease.0, epoch, rank, ranks, at_once, checkpointed, shares })
            }
            CoordinatorMessage::Accepted(lease, step) => Message::Accepted(v1::Accepted { lease: lease.0, step }),
            CoordinatorMessage::Fenced(lease) => Message::Fenced(v1::Fenced { lease: lease.0 }),
            CoordinatorMessage::Release(lease, reason) => Message::Release(v1::Release { lease: lease.0, reason }),
            CoordinatorMessage::Drain(reason) => Message::Drain(v1::Drain { reason }),
        };
        Self { term: envelope.term.0, trace: envelope.trace, message: Some(message) }
    }
}

#[cfg(test)]
mod tests;
