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
//!   listen · tls · accept           sockets, certificates, connections
//!   access                          what every request passes: tokens, roles, rates
//!   jobs · workers · transfer       gRPC services; each turns wire into events
//!   meet                            the fourth, beside the driver: where members of a group find each other
//! ```

mod accept;
mod access;
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
mod tls;
mod transfer;
mod uploads;
mod workers;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use graftwork_scheduler::{Policy, Scheduler};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;

use self::{
    access::{Failures, Gate, Keys},
    driver::Driver,
    input::Input,
    journal::Opened,
    listen::Socket,
    lock::Lock,
};

pub(crate) use self::{
    access::{Limits, NewToken, Role, Tokens},
    blobs::{BlobError, BlobStore},
    door::{Planner, Publication, Publisher, StageOfPlan},
    error::ServerError,
    lock::{Holder, holder},
    tls::Identity,
};

/// How a coordinator runs.
pub(crate) struct Options {
    /// Where journal, blobs and lock lie; made if missing, private to the user.
    pub(crate) state_folder: PathBuf,
    /// Where it listens; at least one.
    pub(crate) listen: Vec<Listen>,
    /// What peers on TCP must show in `authorization: Bearer TOKEN`. Unix sockets need nothing.
    pub(crate) auth: Auth,
    /// The certificate of addresses that speak TLS.
    pub(crate) tls: Option<Identity>,
    /// How much peers may ask.
    pub(crate) limits: Limits,
    /// Milliseconds between a worker's heartbeats. Default 1000.
    pub(crate) heartbeat_ms: u64,
    /// A worker that was silent for so long is given up. Default 10,000.
    pub(crate) silence_ms: u64,
    /// How long a worker whose connection broke may take to come back with its leases. Default 1,500.
    pub(crate) grace_ms: u64,
    /// How long [`Running::stop`] waits for workers to checkpoint and leave. Default 10,000.
    pub(crate) stop_ms: u64,
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
            auth: Auth::None,
            tls: None,
            limits: Limits::default(),
            heartbeat_ms: 1_000,
            silence_ms: 10_000,
            grace_ms: 1_500,
            stop_ms: 10_000,
            planner,
            publisher,
        }
    }
}

/// What peers on TCP must show.
pub(crate) enum Auth {
    /// Nothing; then TCP is not served.
    None,
    /// This token, for everything; on loopback alone.
    Token(String),
    /// One of these tokens, for what its role allows.
    Tokens(Tokens),
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Listen {
    /// A socket in a folder that only this user can enter; the folder is made if missing.
    Unix(PathBuf),
    /// Plain text on a loopback address, with a token; port 0 takes a free one.
    Tcp(SocketAddr),
    /// TLS, with a token; port 0 takes a free one.
    Tls(SocketAddr),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Tls(address) => write!(f, "https://{address}"),
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
    listen::check(&options.listen, &options.auth, options.tls.as_ref())?;
    let tls = options.tls.as_ref().map(Identity::open).transpose()?;
    let (mut lock, opened, blobs) = {
        let folder = options.state_folder.clone();
        let opening = tokio::task::spawn_blocking(move || open_state(&folder));
        opening.await.map_err(|_| ServerError::Ended("start"))??
    };
    let mut sockets = Vec::new();
    for address in &options.listen {
        sockets.push(listen::open(address, tls.as_ref()).await?);
    }
    let addresses: Vec<Listen> = sockets.iter().map(|(address, _)| address.clone()).collect();
    let folder_error = |error| ServerError::Folder { folder: options.state_folder.clone(), error };
    lock.tell(addresses.clone()).map_err(folder_error)?;

    let clock = driver::Clock::start();
    let policy = Policy { silence_ms: options.silence_ms, grace_ms: options.grace_ms, ..Policy::default() };
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
    let limits = options.limits;
    let tokens = listen::tokens(options.auth).map(Arc::new);
    let failures = Arc::new(Failures::new(limits.of_failures, limits.addresses));
    let servers = sockets.into_iter().map(|(_, socket)| {
        let keys = match (&socket, &tokens) {
            (Socket::Tcp(..), Some(tokens)) => Keys::Tokens(Arc::clone(tokens)),
            // Without tokens no TCP is served.
            (Socket::Tcp(..), None) | (Socket::Unix(_), _) => Keys::Open,
        };
        let gate = Gate::new(keys, &limits, Arc::clone(&failures));
        let workers = workers::Workers { inputs: inputs.clone(), blobs: blobs.clone() };
        let transfer = transfer::Transfer { blobs: blobs.clone(), inputs: inputs.clone() };
        let services = Services { jobs: jobs.clone(), workers, transfer, meet: meet.clone() };
        tokio::spawn(serve(socket, (gate, limits), services))
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

/// What is served on each socket.
struct Services {
    jobs: jobs::Jobs,
    workers: workers::Workers,
    transfer: transfer::Transfer,
    meet: meet::Meet,
}

/// How often a silent connection is pinged, and how long its answer may take.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(20));

/// Serves one socket until it is aborted.
async fn serve(socket: Socket, (gate, limits): (Gate, Limits), services: Services) {
    use graftwork_proto::{
        MAX_MESSAGE_BYTES,
        v1::{
            blobs_server::BlobsServer, groups_server::GroupsServer, jobs_server::JobsServer,
            workers_server::WorkersServer,
        },
    };
    let Services { jobs, workers, transfer, meet } = services;
    let router = tonic::transport::Server::builder()
        .max_concurrent_streams(limits.streams)
        .http2_max_header_list_size(limits.header_bytes)
        .http2_keepalive_interval(Some(KEEP_ALIVE.0))
        .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
        .layer(gate)
        .add_service(JobsServer::new(jobs).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(BlobsServer::new(transfer).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(GroupsServer::new(meet).max_decoding_message_size(meet::MESSAGE_BYTES))
        .add_service(WorkersServer::new(workers).max_decoding_message_size(MAX_MESSAGE_BYTES));
    let (accepting, connections) = accept::accept(socket, limits);
    let ended = tokio::select! {
        ended = router.serve_with_incoming(ReceiverStream::new(connections)) => ended,
        never = accepting => match never {},
    };
    if let Err(error) = ended {
        tracing::error!(%error, "a listener ended");
    }
}
