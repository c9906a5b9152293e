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
//!   driver                          loop { event = select().await; core.apply(event) } around `graftwork-driver`
//!   listen · tls · accept           sockets, certificates, connections
//!   traced · reported · trail       spans of requests, of workers' messages and of facts
//!   gauges                          counts, health
//!   reasons                         what `explain` says, in the log
//!   access                          what every request passes: tokens, roles, rates
//!   histories                       nights that are kept with the state
//!   jobs · workers · transfer       gRPC services; each turns wire into events
//!   meet                            the fourth, beside the driver: where members of a group find each other
//! ```

mod accept;
mod access;
mod answer;
mod backup;
mod blobs;
mod door;
mod driver;
mod error;
mod gauges;
mod histories;
mod input;
mod jobs;
mod journal;
mod listen;
mod lock;
mod meet;
mod perform;
mod pins;
mod reasons;
mod reported;
mod story;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
mod traced;
mod trail;
mod transfer;
mod uploads;
mod workers;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use graftwork_driver::{Core, Timing};
use graftwork_scheduler::{Policy, Quota, Scheduler};
use graftwork_shared::{digest::Digest, id::Term};
use graftwork_telemetry::Check;
use rustix::process::{Resource, getrlimit};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;

use self::{
    access::{Failures, Gate, Keys},
    blobs::Belief,
    driver::Driver,
    input::Input,
    journal::Opened,
    listen::Socket,
    lock::Lock,
};

pub(crate) use self::{
    access::{Limits, NewToken, Places, Role, Tokens},
    backup::{BackupError, Held, Home, Manifest, NIGHTS, back_up, restore},
    blobs::{BlobError, BlobStore, Bucket},
    door::{Planner, Publication, Publisher, StageOfPlan},
    error::ServerError,
    gauges::{Gauges, LastNight, Nights},
    histories::{Files, Histories, HistoryError},
    journal::{Database, Leadership},
    listen::Listen,
    lock::{Holder, holder},
    tls::Identity,
};

/// How a coordinator runs.
pub(crate) struct Options {
    /// Where journal, blobs and lock lie; made if missing, private to the user.
    pub(crate) state_folder: PathBuf,
    /// Where the journal lies instead: a database for several coordinators, of which one leads.
    pub(crate) leadership: Option<Leadership>,
    /// Where the blobs lie instead.
    pub(crate) bucket: Option<Bucket>,
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
    /// How long [`Running::stop`] waits for publications, and for workers that are sent home. Default 10,000.
    pub(crate) stop_ms: u64,
    /// Workers are sent home when it stops; otherwise they go on under their leases. Default: they go on.
    pub(crate) sends_home: bool,
    /// What owners may have at a time; `*` is every owner that is not named. Default: no bounds.
    pub(crate) quotas: BTreeMap<String, Quota>,
    /// Where jobs of those who show a token may publish. Default: nowhere for the role submit, anywhere for admins.
    pub(crate) places: Places,
    /// Jobs that ended longer ago are forgotten, in milliseconds. Default: none is.
    pub(crate) keep_ms: Option<u64>,
    /// Whoever asks for its numbers.
    pub(crate) gauges: Gauges,
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
            leadership: None,
            bucket: None,
            listen: Vec::new(),
            auth: Auth::None,
            tls: None,
            limits: Limits::default(),
            heartbeat_ms: 1_000,
            silence_ms: 10_000,
            grace_ms: 1_500,
            stop_ms: 10_000,
            sends_home: false,
            quotas: BTreeMap::new(),
            places: Places::default(),
            keep_ms: None,
            gauges: Gauges::new(),
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

impl Auth {
    /// Whether a token may see the numbers: any that may look at jobs.
    pub(crate) fn check(self) -> Option<Check> {
        let tokens = listen::tokens(self)?;
        let may = |role: Option<Role>| !matches!(role, Some(Role::Join));
        Some(Arc::new(move |shown: &str| tokens.find(shown).is_some_and(|(_, caller)| may(caller.role))))
    }
}

/// A coordinator that runs. Dropping it ends it at once, as kill -9 would; what was acknowledged is safe.
pub(crate) struct Running {
    addresses: Vec<Listen>,
    inputs: mpsc::Sender<Input>,
    blobs: BlobStore,
    /// `None` once it has ended and said why.
    driver: Option<JoinHandle<Result<(), ServerError>>>,
    servers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Where it listens, with the ports that were taken.
    pub(crate) fn addresses(&self) -> &[Listen] {
        &self.addresses
    }

    /// Where histories of nights may be kept, as long as it leads. To be called inside a tokio runtime.
    pub(crate) fn histories(&self) -> Histories {
        Histories::new(self.inputs.downgrade(), self.blobs.clone())
    }

    /// Stops cleanly: nothing is handed out any more, all that was decided is written, and the services end. Workers that
    /// are sent home finish their step, checkpoint and leave before; those that have not left within [`Options::stop_ms`]
    /// are left behind, and their last accepted checkpoint counts.
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
    let tls = options.tls.as_ref().map(|identity| identity.open(&options.gauges)).transpose()?;
    let folder = options.state_folder.clone();
    let mut lock = blocking(move || take_lock(&folder)).await?;
    if options.leadership.is_some() {
        // Whoever may wait for days to lead says at once that it could not listen then.
        for address in &options.listen {
            drop(listen::open(address, tls.as_ref()).await?);
        }
    }
    let belief = match &options.bucket {
        Some(bucket) => bucket.believe(&options.state_folder).await?,
        None => None,
    };
    let opened = {
        let addresses = options.listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let (leadership, folder) = (options.leadership.clone(), options.state_folder.clone());
        blocking(move || lead(leadership, &folder, addresses)).await?
    };
    let mut sockets = Vec::new();
    for address in &options.listen {
        sockets.push(listen::open(address, tls.as_ref()).await?);
    }
    let addresses: Vec<Listen> = sockets.iter().map(|(address, _)| address.clone()).collect();
    let folder_error = |error| ServerError::Folder { folder: options.state_folder.clone(), error };
    lock.tell(addresses.clone()).map_err(folder_error)?;

    let clock = driver::Clock::start();
    let policy = Policy {
        silence_ms: options.silence_ms,
        grace_ms: options.grace_ms,
        quotas: options.quotas,
        sends_home: options.sends_home,
        ..Policy::default()
    };
    let now_ms = clock.now_ms();
    let (machine, first) = Scheduler::start(policy, opened.state.clone(), now_ms);
    tracing::info!(term = machine.state().term().0, facts = opened.number, "the coordinator starts");
    // What passes until it listens counts against no worker: the core sees that nothing was heard.
    let core = Core::new((machine, first), now_ms, opened.number, Timing { stop_ms: options.stop_ms });
    let (referred, term) = (opened.state.blobs(), core.machine().state().term());
    let awaits_workers = !core.machine().is_idle();
    // From here on its thread renews the lead, however long the blobs take.
    let journal = journal::Journal::start(opened, lock).map_err(folder_error)?;
    let (blobs, unheard) = {
        let (bucket, folder) = (options.bucket.clone(), options.state_folder.clone());
        blocking(move || open_blobs(bucket, &folder, (term, &referred, awaits_workers))).await?
    };
    let (inputs, waiting) = mpsc::channel(INPUTS);
    let (planner, publisher) = (Arc::clone(&options.planner), Arc::clone(&options.publisher));
    let jobs = jobs::Jobs::new(inputs.clone(), blobs.clone(), planner, publisher, options.places);
    forget_old(options.keep_ms, &inputs);
    prove_again(belief, &inputs);
    options.gauges.lead(inputs.downgrade(), blobs.clone());
    let_go(unheard, core.machine().policy().return_ms, &inputs);
    let (meetings, epochs) = watch::channel(meet::Epochs::new());
    let meet = meet::start(epochs, term);
    let driver = Driver {
        core,
        journal,
        blobs: blobs.clone(),
        publisher: options.publisher,
        clock,
        heartbeat_ms: options.heartbeat_ms,
        sender: inputs.downgrade(),
        sessions: HashMap::new(),
        joining: HashMap::new(),
        joined: 0,
        stories: BTreeMap::new(),
        plans: HashMap::new(),
        meetings,
        trail: trail::Trail::default(),
        reasons: reasons::Reasons::default(),
        unfit: None,
        caught_up_ms: clock.now_ms(),
    };
    let driver = tokio::spawn(driver.run(waiting));
    let limits = options.limits.within(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX));
    let tokens = listen::tokens(options.auth).map(Arc::new);
    let failures = Arc::new(Failures::new(limits.of_failures, limits.addresses));
    let servers = sockets.into_iter().map(|(_, socket)| {
        let keys = match (&socket, &tokens) {
            (Socket::Tcp(..), Some(tokens)) => Keys::Tokens(Arc::clone(tokens)),
            // Without tokens no TCP is served.
            (Socket::Tcp(..), None) | (Socket::Unix(_), _) => Keys::Open,
        };
        let gate = Gate::new(keys, &limits, Arc::clone(&failures));
        let workers = workers::Workers { inputs: inputs.clone(), blobs: blobs.clone(), rate: limits.of_session };
        let transfer = transfer::Transfer { blobs: blobs.clone(), inputs: inputs.clone(), term };
        let services = Services { jobs: jobs.clone(), workers, transfer, meet: meet.clone() };
        tokio::spawn(serve(socket, (gate, limits), services))
    });
    let servers = servers.collect();
    Ok(Running { servers, addresses, inputs, blobs, driver: Some(driver) })
}

/// Does what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServerError> + Send + 'static,
) -> Result<T, ServerError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ServerError::Ended("start"))?
}

/// Makes the folder and takes its lock.
fn take_lock(folder: &Path) -> Result<Lock, ServerError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let failed = |error| ServerError::Folder { folder: folder.to_owned(), error };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    Lock::take(folder).map_err(failed)?.map_err(|holder| ServerError::Locked { folder: folder.to_owned(), holder })
}

/// Waits for the lead where others may have it, and folds the journal.
fn lead(leadership: Option<Leadership>, folder: &Path, addresses: String) -> Result<Opened, ServerError> {
    Ok(match leadership {
        Some(leadership) => Opened::lead_database(leadership, addresses, folder)?,
        None => Opened::lead_folder(folder)?,
    })
}

/// Opens the blobs for the coordinator of this term, and sweeps those that nothing refers to. Where workers with leases may
/// come back, those are pinned instead and given: one may be of a word that nobody heard yet.
fn open_blobs(
    bucket: Option<Bucket>,
    folder: &Path,
    (term, referred, awaits_workers): (Term, &BTreeSet<Digest>, bool),
) -> Result<(BlobStore, Vec<Digest>), ServerError> {
    let blobs = match bucket {
        Some(bucket) => BlobStore::open_bucket(bucket, folder, term)?,
        None => BlobStore::open(folder)?,
    };
    let unheard = if awaits_workers { blobs.others(referred)? } else { Vec::new() };
    blobs.adopt(&unheard)?;
    unheard.iter().for_each(|blob| blobs.pin(*blob));
    let gone = blobs.sweep(referred)?;
    if gone > 0 {
        tracing::info!(gone, "removed blobs that nothing refers to");
    }
    Ok((blobs, unheard))
}

/// Ends the pins of an earlier term's blobs once workers have had their time to come back and speak of them.
fn let_go(unheard: Vec<Digest>, return_ms: u64, inputs: &mpsc::Sender<Input>) {
    let inputs = inputs.downgrade();
    tokio::spawn(async move {
        tokio::time::sleep(2 * Duration::from_millis(return_ms)).await;
        if let Some(inputs) = inputs.upgrade() {
            // A coordinator that stops leaves them to the next start.
            let _ = inputs.send(Input::Settle(unheard)).await;
        }
    });
}

/// How long an object store that did not answer is left in peace.
const PROVE_AGAIN: Duration = Duration::from_mins(1);

/// Sees, beside all else, whether the object store still keeps its word, and ends the coordinator over one that does not.
fn prove_again(belief: Option<Belief>, inputs: &mpsc::Sender<Input>) {
    let (Some(belief), inputs) = (belief, inputs.downgrade()) else { return };
    tokio::spawn(async move {
        while let Err(error) = belief.prove_again().await {
            let Some(inputs) = inputs.upgrade() else { return };
            if let BlobError::Unfit { .. } = error {
                // A coordinator that has ended meanwhile needs no end.
                let _ = inputs.send(Input::Unfit(error)).await;
                return;
            }
            tracing::warn!(%error, "whether the object store still keeps its word could not be seen");
            drop(inputs);
            tokio::time::sleep(PROVE_AGAIN).await;
        }
    });
}

/// How often old jobs are looked for.
const FORGET_EVERY: Duration = Duration::from_mins(1);

/// Has jobs that ended longer ago than this forgotten, as long as the coordinator leads.
fn forget_old(keep_ms: Option<u64>, inputs: &mpsc::Sender<Input>) {
    let (Some(keep_ms), inputs) = (keep_ms, inputs.downgrade()) else { return };
    tokio::spawn(async move {
        while let Some(inputs) = inputs.upgrade() {
            if inputs.send(Input::ForgetOlder(keep_ms)).await.is_err() {
                return;
            }
            drop(inputs);
            tokio::time::sleep(FORGET_EVERY).await;
        }
    });
}

/// The jobs of a state folder that nobody leads, as its journal tells them. Nothing of them is changed.
pub(crate) fn resting(folder: &Path) -> Result<Option<Scheduler>, ServerError> {
    if !folder.join("journal.sqlite").exists() {
        return Ok(None);
    }
    let failed = |error| ServerError::Folder { folder: folder.to_owned(), error };
    let Ok(_lock) = Lock::take(folder).map_err(failed)? else { return Ok(None) };
    let opened = Opened::read_folder(folder)?;
    // What a start would decide is not carried out: nobody leads, so no worker holds anything that counts.
    let policy = Policy { grace_ms: 0, ..Policy::default() };
    Ok(Some(Scheduler::start(policy, opened.state, driver::Clock::start().now_ms()).0))
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
        .layer(traced::Traced)
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
