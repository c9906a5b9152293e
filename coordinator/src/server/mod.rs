//! The coordinator's shell: journal, blobs, sessions and services around the pure scheduler.
//!
//! One loop owns the scheduler. It waits for an event, applies it, has the journal make the decided facts durable,
//! and only then carries out the commands and sends the replies (invariant 4). Everything that waits for others
//! (planning, publishing, transfers, peers) runs beside the loop and comes back as an event; every channel is
//! bounded. The state folder is locked: at most one coordinator leads it, under a term that grows with each start.
//!
//! ```text
//! start(Options) ─► Running ── addresses, stop(), wait()
//!   lock ─ journal ─ blobs          the state folder: one owner, facts, bytes
//!   driver                          loop { event = select().await; apply(event) }
//!   jobs · workers · transfer       gRPC services; each turns wire into events
//!   meet                            the fourth, beside the driver: where members of a group find each other
//! ```

mod answer;
mod blobs;
mod door;
mod driver;
mod error;
mod input;
mod jobs;
mod journal;
mod listen;
mod lock;
mod meet;
mod perform;
mod pins;
mod story;
#[cfg(test)]
mod tests;
mod transfer;
mod uploads;
mod workers;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use graftwork_scheduler::{Policy, Quota, Scheduler};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{service::interceptor::InterceptedService, transport::server::TcpIncoming};

use self::{driver::Driver, input::Input, journal::Opened, listen::Socket, lock::Lock};

pub(crate) use self::{
    blobs::{BlobError, BlobStore},
    door::{Planner, Publication, Publisher, StageOfPlan},
    error::ServerError,
    lock::{Holder, holder},
};

/// How a coordinator runs.
pub(crate) struct Options {
    /// Where journal, blobs and lock lie; made if missing, private to the user.
    pub(crate) state_folder: PathBuf,
    /// Where it listens; at least one.
    pub(crate) listen: Vec<Listen>,
    /// What peers on TCP must show: workers in their hello, everyone else in `authorization: Bearer TOKEN`. Wanted
    /// where TCP is served, since every user of a machine reaches its loopback. Unix sockets need none.
    pub(crate) token: Option<String>,
    /// Milliseconds between a worker's heartbeats. Default 1000.
    pub(crate) heartbeat_ms: u64,
    /// A worker that was silent for so long is given up. Default 10,000.
    pub(crate) silence_ms: u64,
    /// How long a worker whose connection broke may take to come back with its leases. Default 1,500.
    pub(crate) grace_ms: u64,
    /// How long [`Running::stop`] waits for workers to checkpoint and leave. Default 10,000.
    pub(crate) stop_ms: u64,
    /// What owners may have at a time; `*` is every owner that is not named. Default: no bounds.
    pub(crate) quotas: BTreeMap<String, Quota>,
    /// Plans jobs.
    pub(crate) planner: Arc<dyn Planner>,
    /// Publishes stages.
    pub(crate) publisher: Arc<dyn Publisher>,
}

impl Options {
    /// Options with the documented defaults.
    pub(crate) fn new(state_folder: PathBuf, planner: Arc<dyn Planner>, publisher: Arc<dyn Publisher>) -> Self {
        Self {
            state_folder,
            listen: Vec::new(),
            token: None,
            heartbeat_ms: 1_000,
            silence_ms: 10_000,
            grace_ms: 1_500,
            stop_ms: 10_000,
            quotas: BTreeMap::new(),
            planner,
            publisher,
        }
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Listen {
    /// A socket in a folder that only this user can enter; the folder is made if missing.
    Unix(PathBuf),
    /// A loopback address, with a token; port 0 takes a free one.
    Tcp(SocketAddr),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// A coordinator that runs. Dropping it ends it at once, as kill -9 would; what was acknowledged is safe.
pub(crate) struct Running {
    addresses: Vec<Listen>,
    inputs: mpsc::Sender<Input>,
    /// `None` once it has ended and said why.
    driver: Option<JoinHandle<Result<(), ServerError>>>,
    servers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Where it listens, with the ports that were taken.
    pub(crate) fn addresses(&self) -> &[Listen] {
        &self.addresses
    }

    /// Stops cleanly: workers finish their step, checkpoint and leave; then the services end. Workers that have not
    /// left within [`Options::stop_ms`] are left behind; their last accepted checkpoint counts.
    pub(crate) async fn stop(mut self, reason: &str) -> Result<(), ServerError> {
        // A driver that is gone already says why when it is waited for.
        let _ = self.inputs.send(Input::Stop(reason.to_owned())).await;
        self.ended().await
    }

    /// Waits until it had to stop by itself (a full disk, for one), and says why. May be dropped and called again.
    pub(crate) async fn wait(&mut self) -> ServerError {
        self.ended().await.err().unwrap_or(ServerError::Ended("loop"))
    }

    async fn ended(&mut self) -> Result<(), ServerError> {
        let Some(driver) = &mut self.driver else { return Err(ServerError::Ended("loop")) };
        let ended = driver.await.unwrap_or(Err(ServerError::Ended("loop")));
        // It says its last word once.
        self.driver = None;
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.driver.iter().for_each(JoinHandle::abort);
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

/// Inputs that wait for the driver.
const INPUTS: usize = 1_024;

/// Starts a coordinator: locks and reads the state folder, takes the next term, listens.
///
/// Must be called inside a tokio runtime. When it returns, all addresses accept connections.
pub(crate) async fn start(options: Options) -> Result<Running, ServerError> {
    listen::check(&options.listen, options.token.as_deref())?;
    let (mut lock, opened, blobs) = {
        let folder = options.state_folder.clone();
        let opening = tokio::task::spawn_blocking(move || open_state(&folder));
        opening.await.map_err(|_| ServerError::Ended("start"))??
    };
    let mut sockets = Vec::new();
    for address in &options.listen {
        sockets.push(listen::open(address).await?);
    }
    let addresses: Vec<Listen> = sockets.iter().map(|(address, _)| address.clone()).collect();
    let folder_error = |error| ServerError::Folder { folder: options.state_folder.clone(), error };
    lock.tell(addresses.clone()).map_err(folder_error)?;

    let clock = driver::Clock::start();
    let policy = Policy {
        silence_ms: options.silence_ms,
        grace_ms: options.grace_ms,
        quotas: options.quotas,
        ..Policy::default()
    };
    let (machine, first) = Scheduler::start(policy, opened.state.clone(), clock.now_ms());
    tracing::info!(term = machine.state().term().0, facts = opened.number, "the coordinator starts");
    let journal = journal::Journal::start(opened, lock).map_err(folder_error)?;
    let (inputs, waiting) = mpsc::channel(INPUTS);
    let jobs =
        jobs::Jobs::new(inputs.clone(), blobs.clone(), Arc::clone(&options.planner), Arc::clone(&options.publisher));
    let (meetings, epochs) = watch::channel(meet::Epochs::new());
    let meet = meet::start(epochs);
    let driver = Driver {
        machine,
        journal,
        blobs: blobs.clone(),
        publisher: options.publisher,
        clock,
        heartbeat_ms: options.heartbeat_ms,
        stop_ms: options.stop_ms,
        sender: inputs.downgrade(),
        sessions: HashMap::new(),
        joining: HashMap::new(),
        joined: 0,
        stories: BTreeMap::new(),
        waiting: VecDeque::new(),
        follow_ups: Vec::new(),
        stop_at_ms: None,
        uploads: HashMap::new(),
        meetings,
    };
    let driver = tokio::spawn(driver.run(waiting, first));
    let token: Option<Arc<str>> = options.token.map(Into::into);
    let servers = sockets.into_iter().map(|(_, socket)| {
        let token = token.clone().filter(|_| matches!(socket, listen::Socket::Tcp(_)));
        let workers = workers::Workers { inputs: inputs.clone(), blobs: blobs.clone(), token };
        let transfer = transfer::Transfer { blobs: blobs.clone(), inputs: inputs.clone() };
        tokio::spawn(serve(socket, jobs.clone(), workers, (transfer, meet.clone())))
    });
    Ok(Running { servers: servers.collect(), addresses, inputs, driver: Some(driver) })
}

/// Makes the folder, takes its lock, folds its journal, and sweeps blobs that nothing refers to.
fn open_state(folder: &Path) -> Result<(Lock, Opened, BlobStore), ServerError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let failed = |error| ServerError::Folder { folder: folder.to_owned(), error };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let lock = Lock::take(folder)
        .map_err(failed)?
        .map_err(|holder| ServerError::Locked { folder: folder.to_owned(), holder })?;
    let opened = Opened::open(folder)?;
    let blobs = BlobStore::open(folder)?;
    let gone = blobs.sweep(&opened.state.blobs())?;
    if gone > 0 {
        tracing::info!(gone, "removed blobs that nothing refers to");
    }
    Ok((lock, opened, blobs))
}

/// The jobs of a state folder that nobody leads, as its journal tells them. Nothing of them is changed.
pub(crate) fn resting(folder: &Path) -> Result<Option<Scheduler>, ServerError> {
    if !folder.join("journal.sqlite").exists() {
        return Ok(None);
    }
    let failed = |error| ServerError::Folder { folder: folder.to_owned(), error };
    let Ok(_lock) = Lock::take(folder).map_err(failed)? else { return Ok(None) };
    let opened = Opened::open(folder)?;
    // What a start would decide is not carried out: it is only how leases of dead workers end.
    Ok(Some(Scheduler::start(Policy::default(), opened.state, driver::Clock::start().now_ms()).0))
}

/// Serves one socket until it is aborted.
async fn serve(
    socket: Socket,
    jobs: jobs::Jobs,
    workers: workers::Workers,
    (transfer, meet): (transfer::Transfer, meet::Meet),
) {
    use graftwork_proto::{
        MAX_MESSAGE_BYTES,
        v1::{
            blobs_server::BlobsServer, groups_server::GroupsServer, jobs_server::JobsServer,
            workers_server::WorkersServer,
        },
    };
    let token = workers.token.clone();
    let admit = move |request: tonic::Request<()>| admit(token.as_deref(), request);
    let jobs = JobsServer::new(jobs).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let blobs = BlobsServer::new(transfer).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let router = tonic::transport::Server::builder()
        .add_service(InterceptedService::new(jobs, admit.clone()))
        .add_service(InterceptedService::new(blobs, admit.clone()))
        .add_service(InterceptedService::new(GroupsServer::new(meet), admit))
        .add_service(WorkersServer::new(workers).max_decoding_message_size(MAX_MESSAGE_BYTES));
    let ended = match socket {
        Socket::Unix(listener) => router.serve_with_incoming(UnixListenerStream::new(listener)).await,
        Socket::Tcp(listener) => router.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))).await,
    };
    if let Err(error) = ended {
        tracing::error!(%error, "a listener ended");
    }
}

/// Lets a request pass that shows the token, where one is wanted. Workers show theirs in their hello.
fn admit(token: Option<&str>, request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    let Some(token) = token else { return Ok(request) };
    let shown = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    match shown.and_then(|value| value.strip_prefix("Bearer ")) {
        Some(shown) if workers::same_token(token, shown) => Ok(request),
        Some(_) => Err(tonic::Status::unauthenticated("authorization: the token is not the coordinator's")),
        None => Err(tonic::Status::unauthenticated("authorization: this coordinator wants `Bearer` and its token")),
    }
}
