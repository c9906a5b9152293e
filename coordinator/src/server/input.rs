//! What reaches the driver: requests with a place for their answer, and news from sessions and from work beside it.

use std::collections::BTreeMap;

use graftwork_driver::Gone;
use graftwork_proto::{Hello, WorkerMessage, v1};
use graftwork_scheduler::{Explanation, Plan, StageKey, Standing, WorkerView};
use graftwork_shared::{
    assignment::{Failure, StageResult},
    digest::Digest,
    event::Event,
    id::{JobId, Name, Term, WorkerId},
    job::Resources,
    view::{JobView, Refusal},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot};
use tonic::Status;

use super::{BlobError, gauges::Measured, histories::Files};

/// The coordinator's end of a worker's stream.
pub(super) type Outgoing = mpsc::Sender<Result<v1::CoordinatorMessage, Status>>;

/// The release of a published stage.
pub(super) struct Released {
    pub(super) stage: Name,
    /// Where it is in the hub.
    pub(super) place: String,
    /// For a swept task: the number of the trial that it became.
    pub(super) trial: Option<u32>,
}

/// What happens to the driver.
pub(super) enum Input {
    /// Where a job stands, and the releases of its published stages.
    Standing(JobId, oneshot::Sender<(Standing, Vec<Released>)>),
    /// Takes a planned job; answered with whether it was there already.
    Submit(Box<Submission>),
    /// Views of one job or of all.
    View(Option<JobId>, oneshot::Sender<Vec<JobView>>),
    /// Events of a job: those so far, and those to come unless it has ended.
    Watch(JobId, oneshot::Sender<Option<Watched>>),
    /// Why its stages stand where they stand.
    Explain(JobId, oneshot::Sender<Option<Explanation>>),
    /// Stops a job; answered with whether there is one.
    Cancel(JobId, oneshot::Sender<Standing>),
    /// Forgets an ended job; answered with where it stood.
    Forget(JobId, oneshot::Sender<Standing>),
    /// Forgets jobs that ended longer ago than this, in milliseconds.
    ForgetOlder(u64),
    /// The files of a history of nights.
    History(String, oneshot::Sender<Files>),
    /// Files of a history are other ones from now on; answered when that is durable.
    KeepHistory(String, BTreeMap<String, Option<Digest>>, oneshot::Sender<()>),
    /// What the coordinator is.
    Coordinator(oneshot::Sender<CoordinatorView>),
    /// Numbers about all this; answered at once, whatever the disk does.
    Measure(oneshot::Sender<Measured>),
    /// A worker said hello and may come in.
    Join(Box<Join>),
    /// What a job that has not ended asks of machines from now on; answered when that is durable.
    Resources(JobId, Resources, oneshot::Sender<()>),
    /// A worker said something in a session.
    Worker(WorkerId, Session, Box<WorkerMessage>),
    /// A session ended.
    Left(WorkerId, Session, Gone),
    /// A worker of this key has put a blob, which is pinned for what the worker will say of it.
    Put(String, Digest),
    /// Pinned blobs that have their facts, or will never have any.
    Settle(Vec<Digest>),
    /// A blob is missing or was damaged.
    BlobLost(Digest),
    /// The hub has answered.
    Reusable(StageKey, Option<Box<StageResult>>),
    /// Publishing has ended.
    Published(StageKey, Result<String, Failure>),
    /// The object store was seen to break its word.
    Unfit(BlobError),
    /// The coordinator shall stop.
    Stop(String),
}

/// Number of a session; a worker that comes back has another one.
pub(super) type Session = u64;

/// A planned job on its way in.
pub(super) struct Submission {
    pub(super) plan: Plan,
    pub(super) gone: Vec<Name>,
    /// Whether it was there already, or why it is not taken.
    pub(super) attached: oneshot::Sender<Result<bool, Refusal>>,
}

/// A worker on its way in.
pub(super) struct Join {
    pub(super) hello: Hello,
    pub(super) outgoing: Outgoing,
    /// Answered once the worker has its number. Dropped with the driver's end of the session.
    pub(super) welcome: oneshot::Sender<Welcome>,
}

/// The session's part of a worker that came in.
#[derive(Debug)]
pub(super) struct Welcome {
    pub(super) worker: WorkerId,
    pub(super) session: Session,
    pub(super) term: Term,
    /// Ends when the driver ends the session.
    pub(super) open: oneshot::Receiver<()>,
}

/// A job's events.
pub(super) struct Watched {
    pub(super) so_far: Vec<Event>,
    pub(super) to_come: Option<broadcast::Receiver<Event>>,
}

/// What a coordinator is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CoordinatorView {
    /// Its program's version.
    pub(crate) version: String,
    /// Its process.
    pub(crate) pid: u32,
    /// Its term.
    pub(crate) term: Term,
    /// Milliseconds since 1970 when it started.
    pub(crate) started_ms: u64,
    /// It stops: nothing is handed out any more.
    pub(crate) stopping: bool,
    /// Workers with a session.
    pub(crate) workers: Vec<WorkerView>,
    /// All jobs, newest first.
    pub(crate) jobs: Vec<JobId>,
}
