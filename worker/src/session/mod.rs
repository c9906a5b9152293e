//! The session with a coordinator: the shell around [`machine::Machine`].
//!
//! `loop { let event = self.select().await; … self.machine.apply(event) … }`: only `select` waits; the machine decides
//! and the shell performs. Each stage runs on a controller thread of its own ([`crate::host`]); the loop never blocks
//! and never touches libtorch. When the link breaks work goes on, and the link is opened again with growing waits.

mod heard;
mod link;
mod machine;
mod parent;
mod round_trip;
mod signals;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::Read as _,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use graftwork_engine::Device;
use graftwork_proto::{Hello, Token, WorkerEnvelope, WorkerMessage};
use graftwork_shared::{
    assignment::{Assignment, Blame, Failure, Holdings},
    digest::Digest,
    id::LeaseId,
};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    time::{Interval, MissedTickBehavior, Sleep, interval_at, sleep},
};

use crate::{
    backoff::Backoff,
    blobs::Blobs,
    computer,
    coordinators::Coordinators,
    host::{self, Control, Shared},
    meeting::{Place, Reached},
    meters::{Meters, Standing},
    peak::Stages,
    pool::Pool,
    trunks::Trunks,
};
use heard::heard;
use link::{DialError, Link, LinkEvent};
use machine::{Command, Event, Exit, Machine};
use round_trip::RoundTrip;
use signals::Signals;

pub(crate) use machine::StageEvent;

/// A coordinator that took the connection greets within this time.
const GREETING: Duration = Duration::from_secs(20);

/// How long a worker that trains waits for a coordinator that is away, and its stages to put or get what they need.
const TRAINING_PATIENCE: Duration = Duration::from_hours(24);

/// Stage events that may wait for the loop.
const EVENTS: usize = 256;

/// How a session is to be led.
#[derive(Debug)]
pub(crate) struct Options {
    /// Where coordinators listen.
    pub(crate) coordinators: Coordinators,
    /// Who this worker is.
    pub(crate) token: Token,
    /// Device threads.
    pub(crate) threads: u32,
    /// Assignments at a time.
    pub(crate) slots: u32,
    /// What computes.
    pub(crate) device: Device,
    /// Where fetched base models are kept.
    pub(crate) cache_folder: PathBuf,
    /// How long a lost coordinator is looked for without work; `None`: for ever.
    pub(crate) patience: Option<Duration>,
    /// End when the parent process ends: the process of this id, or for 0 whoever that is now.
    pub(crate) parent: Option<i32>,
    /// How members of a group reach this worker.
    pub(crate) reached: Reached,
    /// How far apart two reports of a stage are at least.
    pub(crate) report_every: Duration,
    /// What this process counts.
    pub(crate) meters: Meters,
    /// Where rows are read and decoded: another runtime than the session's.
    pub(crate) rows: Handle,
}

/// Why a session ended without anybody's wish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The coordinator does not take this worker.
    #[error("the coordinator at {address} refused this worker: {reason}")]
    Refused {
        /// Where it listens.
        address: String,
        /// What it said.
        reason: String,
    },
    /// The coordinator cannot be reached any more.
    #[error("no coordinator at {address} for {seconds} seconds: {problem}")]
    Unreachable {
        /// Where it should listen.
        address: String,
        /// How long it was tried.
        seconds: u64,
        /// What the last attempt said.
        problem: String,
    },
}

/// Serves a coordinator until it, or a signal, sends this worker away.
pub(crate) async fn serve(options: Options) -> anyhow::Result<()> {
    let signals = Signals::listen().context("signals cannot be handled")?;
    if let Some(parent) = options.parent {
        parent::watch(parent).context("the parent process cannot be watched")?;
    }
    let threads = usize::try_from(options.threads).context("too many threads")?;
    let pool = Pool::start(threads, graftwork_engine::use_one_thread).context("device threads cannot be started")?;
    let (sender, events) = mpsc::channel(EVENTS);
    let hello = hello(&options).context("no random numbers")?;
    let blobs = Blobs::new(options.coordinators.lazy(), options.token.clone().with_key(&hello.key), TRAINING_PATIENCE);
    let shared = Shared {
        pool: Arc::new(pool),
        trunks: Arc::new(Trunks::new(options.device, options.cache_folder.clone(), blobs.clone())),
        cache_folder: options.cache_folder.clone(),
        blobs,
        events: sender,
        runtime: Handle::current(),
        rows: options.rows.clone(),
        device: options.device,
        rows_read: Arc::default(),
        stages: Stages::of(computer::peak_memory_bytes),
        place: Place::new(options.coordinators.lazy(), options.token.clone(), options.reached.clone()),
        meters: options.meters.clone(),
        report_every: options.report_every,
    };
    tracing::info!(class = %hello.numeric_class, threads = hello.threads, slots = hello.slots, "worker starts");
    let trace = Digest::of(format!("trace of {}", hello.key).as_bytes()).short();
    let session = Session {
        machine: Machine::new(options.slots, trace),
        link: Link::None,
        hello,
        options,
        shared,
        events,
        stages: BTreeMap::new(),
        beat: None,
        asked_beat: Duration::ZERO,
        round_trip: RoundTrip::default(),
        greeting: None,
        signals,
        began: Instant::now(),
        lost_since: Instant::now(),
        apart_since: Instant::now(),
        backoff: Backoff::new(),
        lost_because: "not tried yet".to_owned(),
    };
    session.lead().await
}

/// The key is drawn by the system: nobody else may guess it and take this worker's leases over.
fn hello(options: &Options) -> std::io::Result<Hello> {
    let mut random = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(Hello {
        version: graftwork_shared::VERSION.to_owned(),
        host: computer::host_name(),
        pid: std::process::id(),
        threads: options.threads,
        slots: options.slots,
        memory_bytes: computer::Memory::read().total_bytes,
        reached_on: options.reached.among(&computer::host_name()),
        numeric_class: computer::numeric_class(options.device),
        numerics_version: graftwork_shared::NUMERICS_VERSION,
        exchange: graftwork_collective::EXCHANGE,
        key: Digest::of(&random).to_string(),
        leases: Vec::new(),
        holdings: Holdings::default(),
    })
}

/// What the loop waits for.
enum Input {
    Link(LinkEvent),
    Stage(LeaseId, StageEvent),
    Beat,
    NoGreeting,
    Signal(&'static str),
}

struct Session {
    machine: Machine,
    link: Link,
    hello: Hello,
    options: Options,
    shared: Shared,
    events: mpsc::Receiver<(LeaseId, StageEvent)>,
    stages: BTreeMap<LeaseId, Control>,
    beat: Option<Interval>,
    /// How far apart the coordinator wants heartbeats to be.
    asked_beat: Duration,
    /// Over the link of now.
    round_trip: RoundTrip,
    greeting: Option<Pin<Box<Sleep>>>,
    signals: Signals,
    began: Instant,
    /// The last moment with a coordinator, and the last one with a coordinator or work.
    lost_since: Instant,
    apart_since: Instant,
    backoff: Backoff,
    lost_because: String,
}

impl Session {
    async fn lead(mut self) -> anyhow::Result<()> {
        self.dial(Duration::ZERO);
        loop {
            let input = self.select().await;
            let end = match self.on_input(input) {
                Ok(event) => event.and_then(|event| self.drive(event)),
                Err(error) => return Err(error.into()),
            };
            self.meter();
            match end {
                None => {}
                Some(Exit::Left(reason)) => {
                    tracing::info!(%reason, "worker leaves");
                    self.link.close().await;
                    return Ok(());
                }
                Some(Exit::Refused(reason)) => return Err(self.refused(reason).into()),
            }
        }
    }

    /// What a probe is told of this session.
    fn meter(&self) {
        let standing = match (self.machine.is_leaving(), self.machine.is_welcome()) {
            (true, _) => Standing::Leaving,
            (false, true) => Standing::Welcome,
            (false, false) => Standing::Looking,
        };
        self.options.meters.session(standing, self.machine.leases().len());
    }

    async fn select(&mut self) -> Input {
        tokio::select! {
            signal = self.signals.next() => Input::Signal(signal),
            event = self.link.next() => Input::Link(event),
            Some((lease, event)) = self.events.recv() => Input::Stage(lease, event),
            () = tick(self.beat.as_mut()) => Input::Beat,
            () = elapse(self.greeting.as_mut()) => Input::NoGreeting,
        }
    }

    /// What an input means to the machine.
    fn on_input(&mut self, input: Input) -> Result<Option<Event>, SessionError> {
        Ok(match input {
            Input::Stage(lease, event) => Some(Event::Stage(lease, event)),
            Input::Beat => Some(Event::Beat),
            Input::Signal(name) => self.signals.is_first().then(|| Event::Stop(name.to_owned())),
            Input::NoGreeting => Some(self.on_lost(&format!("no welcome for {} seconds", GREETING.as_secs()))?),
            Input::Link(LinkEvent::Opened) => {
                self.greeting = Some(Box::pin(sleep(GREETING)));
                None
            }
            Input::Link(LinkEvent::Failed(DialError::Refused(reason))) => return Err(self.refused(reason)),
            Input::Link(LinkEvent::Failed(DialError::Unreachable(problem)) | LinkEvent::Lost(problem)) => {
                Some(self.on_lost(&problem)?)
            }
            Input::Link(LinkEvent::Message(envelope)) => {
                drop(heard(&envelope, |lease| self.machine.trace_of(lease)));
                Some(Event::Message(*envelope))
            }
        })
    }

    /// The link is gone: looks for the coordinator again, or gives up.
    fn on_lost(&mut self, problem: &str) -> Result<Event, SessionError> {
        if self.machine.is_welcome() {
            self.options.meters.broke();
            tracing::warn!(coordinator = %self.options.coordinators.current().address(), problem, "the session broke; work goes on");
        }
        let apart = self.apart();
        if self.options.patience.is_some_and(|patience| apart >= patience) && !self.machine.is_leaving() {
            return Err(SessionError::Unreachable {
                address: self.options.coordinators.to_string(),
                seconds: apart.as_secs(),
                problem: problem.to_owned(),
            });
        }
        if problem != self.lost_because {
            tracing::info!(coordinator = %self.options.coordinators, problem, "looking for the coordinator");
            problem.clone_into(&mut self.lost_because);
        }
        self.dial_next();
        Ok(Event::Lost)
    }

    /// How long this worker has had neither a coordinator nor work. Whoever trains goes on under its lease until it has
    /// something to tell, waits with that for a day, and is patient only then; this is asked at least with every try to find
    /// a coordinator.
    fn apart(&mut self) -> Duration {
        let now = Instant::now();
        if self.machine.is_welcome() {
            (self.lost_since, self.apart_since) = (now, now);
        } else if self.machine.trains() && self.lost_since.elapsed() < TRAINING_PATIENCE {
            self.apart_since = now;
        }
        self.apart_since.elapsed()
    }

    /// Turns to the next coordinator; waits only once each had its turn.
    fn dial_next(&mut self) {
        self.beat = None;
        self.greeting = None;
        self.options.coordinators.advance();
        let wait = if self.options.coordinators.is_full_turn() { self.backoff.wait() } else { Duration::ZERO };
        self.dial(wait);
    }

    fn dial(&mut self, wait: Duration) {
        // What is held does not change until the next welcome: without a link nothing is assigned or accepted.
        let (leases, holdings) = (self.machine.leases(), self.machine.holdings().clone());
        let hello = Hello { leases, holdings, ..self.hello.clone() };
        let message = WorkerMessage::Hello(hello);
        let greeting = WorkerEnvelope { term: self.machine.term(), trace: self.machine.trace().to_owned(), message };
        self.link = Link::dial(self.options.coordinators.current().clone(), self.options.token.clone(), greeting, wait);
    }

    /// Applies an event and performs what follows from it.
    fn drive(&mut self, event: Event) -> Option<Exit> {
        let beats = matches!(event, Event::Beat);
        let holds = if beats { self.shared.holdings().map(Event::Holds) } else { None };
        let probe = if beats { self.probe() } else { None };
        let waits: Vec<Event> = if beats { self.stages.iter().filter_map(waits).collect() } else { Vec::new() };
        let mut events: VecDeque<Event> = holds.into_iter().chain([event]).chain(waits).chain(probe).collect();
        while let Some(event) = events.pop_front() {
            let commands = self.machine.apply(event);
            self.options.coordinators.led_by(self.machine.term());
            for command in commands {
                match command {
                    Command::Exit(exit) => return Some(exit),
                    command => events.extend(self.perform(command)),
                }
            }
        }
        None
    }

    /// Performs one command; it may bring about another event at once.
    fn perform(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::Say(envelope) => self.say(*envelope),
            Command::BeatEvery(milliseconds) => {
                self.asked_beat = Duration::from_millis(milliseconds.max(1));
                self.round_trip = RoundTrip::default();
                self.beat_every(self.asked_beat);
                self.greeting = None;
                self.backoff = Backoff::new();
                tracing::info!(coordinator = %self.options.coordinators.current().address(), term = self.machine.term().0, "session open");
                return None;
            }
            Command::Echoed(number) => self.on_echo(number),
            Command::Start { lease, assignment, joining, trace } => {
                return self.start(lease, assignment, joining, &trace);
            }
            Command::Form(lease, formation) => self.stages.get(&lease)?.form(formation),
            Command::Interrupt(lease) => self.stages.get(&lease)?.interrupt(),
            Command::Acknowledge(lease, step) => self.stages.get(&lease)?.accept(step),
            Command::Abandon(lease) => {
                tracing::warn!(lease = lease.0, "work dropped: the lease is not ours any more");
                self.stages.remove(&lease)?.abandon();
            }
            Command::HangUp(reason) => return Some(self.hang_up(&reason)),
            Command::Exit(_) => {}
        }
        None
    }

    /// The first beat comes at the pace of before: a coordinator that is to expect fewer must have heard why.
    fn beat_every(&mut self, every: Duration) {
        let before = self.beat.as_ref().map_or(every, Interval::period);
        let mut beat = interval_at(tokio::time::Instant::now() + every.min(before), every);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.beat = Some(beat);
    }

    /// What measures the way to the coordinator, unless that is under way.
    fn probe(&mut self) -> Option<Event> {
        let number = self.round_trip.probe(self.began.elapsed())?;
        let expected_ms = u64::try_from(self.round_trip.expected().as_millis()).unwrap_or(u64::MAX);
        Some(Event::Probe(number, expected_ms))
    }

    /// The heart beats less often on a longer way. Small changes are none.
    fn on_echo(&mut self, number: u64) {
        self.round_trip.on_echo(number, self.began.elapsed());
        let every = self.round_trip.beat_every(self.asked_beat);
        let before = self.beat.as_ref().map_or(every, Interval::period);
        if every.abs_diff(before) > before / 4 {
            tracing::debug!(round_trip = ?self.round_trip.expected(), ?every, "heartbeats change their pace");
            self.beat_every(every);
        }
    }

    fn say(&mut self, envelope: WorkerEnvelope) {
        use WorkerMessage::{Failed, Finished, Paused, Released};
        // After its last word a stage has no thread any more.
        if let Finished(lease, _) | Paused(lease, ..) | Failed(lease, _) | Released(lease) = &envelope.message {
            self.stages.remove(lease);
        }
        self.link.say(envelope);
    }

    fn hang_up(&mut self, reason: &str) -> Event {
        tracing::warn!(coordinator = %self.options.coordinators.current().address(), reason, "hanging up");
        let apart = self.apart();
        if self.options.patience.is_some_and(|patience| apart >= patience) {
            return Event::Stop(format!("no coordinator took this worker any more: {reason}"));
        }
        self.dial_next();
        Event::Lost
    }

    fn start(&mut self, lease: LeaseId, assignment: Box<Assignment>, joining: bool, trace: &str) -> Option<Event> {
        // A coordinator of an earlier version says no place in a trace.
        let context = trace.parse().unwrap_or_else(|_| graftwork_telemetry::new_trace());
        let span = tracing::info_span!(
            "stage", lease = lease.0, job = %assignment.job, stage = %assignment.stage, attempt = assignment.attempt,
            trace = context.trace_id()
        );
        let control = Control::new(context);
        let (shared, hand) = (self.shared.clone(), control.clone());
        let started = thread::Builder::new().name(format!("stage-{}", lease.0)).spawn(move || {
            let _entered = span.enter();
            host::run(&shared, &hand, lease, &assignment, joining);
        });
        match started {
            Ok(_) => {
                self.stages.insert(lease, control);
                None
            }
            Err(error) => {
                let message = format!("a thread for the stage cannot be started: {error}");
                let failure = Failure { blame: Blame::Machine, message };
                Some(Event::Stage(lease, StageEvent::Failed(failure)))
            }
        }
    }

    fn refused(&self, reason: String) -> SessionError {
        SessionError::Refused { address: self.options.coordinators.current().address().to_string(), reason }
    }
}

/// What a stage tells with a heartbeat that has waited for its fellows for too long.
fn waits((lease, control): (&LeaseId, &Control)) -> Option<Event> {
    let (epoch, step) = control.waits()?;
    Some(Event::Stage(*lease, StageEvent::Waits(epoch, step)))
}

async fn tick(beat: Option<&mut Interval>) {
    match beat {
        Some(beat) => drop(beat.tick().await),
        None => std::future::pending().await,
    }
}

async fn elapse(deadline: Option<&mut Pin<Box<Sleep>>>) {
    match deadline {
        Some(deadline) => deadline.await,
        None => std::future::pending().await,
    }
}
