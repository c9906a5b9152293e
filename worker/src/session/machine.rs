//! The session's state machine: which leases this worker holds, and what is said about them.
//!
//! Pure: no socket, clock, thread or file. [`Machine::apply`] takes one event and returns commands that the shell
//! performs. It keeps the worker's half of invariants 2 and 4: nothing of an older term is obeyed, a fenced lease is
//! never spoken of again, and a checkpoint counts only when the coordinator accepted it.
//!
//! A lease goes this way; whatever is not listed is ignored, and what refers to a lease that is not held is ignored:
//!
//! | state           | event            | next            | commands                                         |
//! |-----------------|------------------|-----------------|--------------------------------------------------|
//! | (none)          | Assign           | Training        | Start; or Released is said, when leaving         |
//! | Training        | Uploaded(step)   | Checkpointing   | Checkpoint is said                               |
//! | Checkpointing   | Accepted(≥ step) | Training        | Acknowledge                                      |
//! | Training        | Ended(result)    | Finishing       | Finished, or Paused of a trial, is said          |
//! | Finishing       | Accepted(≥ step) | (none)          |                                                  |
//! | Training, Ch.   | Form             | the same        | Form                                             |
//! | Training, Ch.   | Prepared, Broken | the same        | it is said, and again on new links until Form    |
//! | Training, Ch.   | Waits            | the same        | it is said, while there is a link                |
//! | Training, Ch.   | Release, Drain   | the same        | Interrupt                                        |
//! | Training, Ch.   | Ended(stopped)   | (none)          | Released is said; Parting while there is no link |
//! | Training, Ch.   | Ended(failure)   | (none)          | Failed is said; Parting while there is no link   |
//! | any             | Fenced           | (none)          | Abandon                                          |
//! | Ch., Fi., Pa.   | Welcome, Beat    | the same; none  | what was not accepted is said again              |
//!
//! While the link is down work goes on under its lease. After a new Welcome a heartbeat lists the held leases at once,
//! and what was not accepted is said again with the next one: by then the coordinator has fenced what is not ours.

use std::collections::BTreeMap;

use graftwork_proto::{CoordinatorEnvelope, CoordinatorMessage, Formation, WorkerEnvelope, WorkerMessage};
use graftwork_shared::{
    assignment::{Assignment, Blame, Evaluation, Failure, Holdings, StageResult, Usage},
    digest::Digest,
    event::StepReport,
    id::{LeaseId, Term, WorkerId},
};

/// What happened to a session.
#[derive(Debug)]
pub(crate) enum Event {
    /// The coordinator said something on the present link.
    Message(CoordinatorEnvelope),
    /// The link broke, or could not be opened.
    Lost,
    /// It is time for a heartbeat.
    Beat,
    /// The way to the coordinator is to be measured by the echo of this number; the round trip as measured so far, in
    /// milliseconds.
    Probe(u64, u64),
    /// What this worker has loaded by now.
    Holds(Holdings),
    /// This process was asked to end.
    Stop(String),
    /// A stage told its story.
    Stage(LeaseId, StageEvent),
}

/// What a stage's controller thread tells.
#[derive(Debug)]
pub(crate) enum StageEvent {
    /// Training moved on.
    Stepped(StepReport),
    /// Validation was scored.
    Evaluated(Evaluation),
    /// What the attempt has cost so far.
    Spent(Usage),
    /// The checkpoint of a step lies on the coordinator as this blob.
    Uploaded(u64, Digest),
    /// Everything is loaded; the next formation may hold this worker.
    Prepared,
    /// The group of this epoch failed for this worker, for this reason.
    Broken(u64, String),
    /// In the group of this epoch, after this update, it has waited for the others for too long.
    Waits(u64, u64),
    /// The stage ended with its result.
    Finished(Box<StageResult>),
    /// A trial paused with these validation scores; whether its training is over.
    Paused(Box<Evaluation>, bool),
    /// The stage ended because it was interrupted; its last checkpoint is accepted.
    Stopped,
    /// The stage ended without a result.
    Failed(Failure),
}

/// What the shell has to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    /// Say this to the coordinator.
    Say(Box<WorkerEnvelope>),
    /// Beat the heart this often, in milliseconds.
    BeatEvery(u64),
    /// The probe of this number is back.
    Echoed(u64),
    /// Start a stage's controller thread.
    Start {
        /// Under this lease.
        lease: LeaseId,
        /// What to do.
        assignment: Box<Assignment>,
        /// Others do it already.
        joining: bool,
        /// Trace id of the request.
        trace: String,
    },
    /// Tell a stage of its group's next formation.
    Form(LeaseId, Formation),
    /// Ask a stage to stop after its step.
    Interrupt(LeaseId),
    /// Tell a stage that its checkpoint of this step was accepted.
    Acknowledge(LeaseId, u64),
    /// Drop a stage's work at once; it has nothing more to say.
    Abandon(LeaseId),
    /// Close the link and open it again later; with the reason.
    HangUp(String),
    /// End the process.
    Exit(Exit),
}

/// How a session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All work was released as somebody wished; with the wish's reason.
    Left(String),
    /// The coordinator does not take this worker; with its reason.
    Refused(String),
}

/// Whether the coordinator can hear.
#[derive(Debug, PartialEq, Eq)]
enum Link {
    /// It cannot, or has not welcomed this worker yet.
    Down,
    /// It welcomed this worker under this id.
    Up(WorkerId),
}

/// A lease and where its work stands.
#[derive(Debug)]
struct Lease {
    /// Trace id of the assignment; all that is said about the lease carries it.
    trace: String,
    state: State,
    /// What the attempt was last said to have cost.
    spent: Option<Usage>,
    /// What the state waits to be accepted was not said on the present link.
    unheard: bool,
    /// Words about its group that the next formation answers; they are said again on each new link until it comes.
    kept: Vec<WorkerMessage>,
}

#[derive(Debug)]
enum State {
    Training,
    Checkpointing { step: u64, blob: Digest },
    Finishing { word: Box<WorkerMessage>, step: u64 },
    Parting { word: Box<WorkerMessage> },
}

impl Lease {
    fn new(trace: String, state: State) -> Self {
        Self { trace, state, spent: None, unheard: false, kept: Vec::new() }
    }

    /// The last word of its work, which is to be accepted with this step.
    fn finish(&mut self, word: WorkerMessage, step: u64) -> WorkerMessage {
        self.state = State::Finishing { word: Box::new(word.clone()), step };
        word
    }
}

impl State {
    /// Whether a controller thread still runs.
    fn runs(&self) -> bool {
        matches!(self, Self::Training | Self::Checkpointing { .. })
    }
}

/// The state of one session over all of its links.
#[derive(Debug)]
pub(crate) struct Machine {
    term: Term,
    link: Link,
    trace: String,
    slots: usize,
    holdings: Holdings,
    leases: BTreeMap<LeaseId, Lease>,
    /// Set once this worker is leaving: it takes no more work and ends when it holds none.
    leaving: Option<String>,
}

impl Machine {
    /// A machine without a link; `trace` marks what is said about no lease.
    pub(crate) fn new(slots: u32, trace: String) -> Self {
        let slots = usize::try_from(slots).unwrap_or(usize::MAX);
        let leases = BTreeMap::new();
        let holdings = Holdings::default();
        Self { term: Term(0), link: Link::Down, trace, slots, holdings, leases, leaving: None }
    }

    /// The latest term that was seen; 0 before the first Welcome.
    pub(crate) fn term(&self) -> Term {
        self.term
    }

    /// Trace id of what is said about no lease.
    pub(crate) fn trace(&self) -> &str {
        &self.trace
    }

    /// Trace of a lease that is held.
    pub(crate) fn trace_of(&self, lease: LeaseId) -> Option<&str> {
        self.leases.get(&lease).map(|lease| lease.trace.as_str())
    }

    /// Whether the coordinator has welcomed this worker on the present link.
    pub(crate) fn is_welcome(&self) -> bool {
        self.link != Link::Down
    }

    /// Whether this worker only winds down.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// What is loaded, as it was last told.
    pub(crate) fn holdings(&self) -> &Holdings {
        &self.holdings
    }

    /// Leases held, in order.
    pub(crate) fn leases(&self) -> Vec<LeaseId> {
        self.leases.keys().copied().collect()
    }

    /// Whether a stage is under way.
    pub(crate) fn trains(&self) -> bool {
        self.leases.values().any(|lease| lease.state.runs())
    }

    /// Takes one event; the commands are to be performed in order.
    pub(crate) fn apply(&mut self, event: Event) -> Vec<Command> {
        let mut commands = match event {
            Event::Message(envelope) => self.on_message(envelope),
            Event::Lost => self.on_lost(),
            Event::Beat => self.on_beat(),
            Event::Probe(number, round_trip_ms) => self.on_probe(number, round_trip_ms),
            Event::Holds(holdings) => self.on_holds(holdings),
            Event::Stop(reason) => self.on_stop(reason),
            Event::Stage(lease, event) => self.on_stage(lease, event),
        };
        let ended = commands.iter().any(|command| matches!(command, Command::Exit(_)));
        if let Some(reason) = self.leaving.as_ref().filter(|_| self.leases.is_empty() && !ended) {
            commands.push(Command::Exit(Exit::Left(reason.clone())));
        }
        commands
    }

    fn on_message(&mut self, envelope: CoordinatorEnvelope) -> Vec<Command> {
        let CoordinatorEnvelope { term, trace, message } = envelope;
        if let CoordinatorMessage::Refused(reason) = message {
            return self.on_refused(reason);
        }
        if term < self.term {
            let reason = format!("a coordinator of {term} spoke, but {} was seen", self.term);
            // An old coordinator on a new link cannot become the right one; within a link it is a stray message.
            let greeting = matches!(message, CoordinatorMessage::Welcome { .. });
            return if greeting { vec![Command::HangUp(reason)] } else { Vec::new() };
        }
        if let CoordinatorMessage::Welcome { worker, heartbeat_ms } = message {
            return self.on_welcome(term, worker, heartbeat_ms);
        }
        if self.link == Link::Down || term > self.term {
            return vec![Command::HangUp(format!("the coordinator of {term} spoke before it welcomed this worker"))];
        }
        match message {
            CoordinatorMessage::Assign { lease, assignment, joining } => {
                self.on_assign(lease, assignment, joining, trace)
            }
            CoordinatorMessage::Form(lease, formation) => self.on_form(lease, formation),
            CoordinatorMessage::Accepted(lease, step) => self.on_accepted(lease, step),
            CoordinatorMessage::Fenced(lease) => self.on_fenced(lease),
            CoordinatorMessage::Release(lease, _) => self.on_release(lease),
            CoordinatorMessage::Drain(reason) => self.on_drain(reason),
            CoordinatorMessage::Echo(number) => vec![Command::Echoed(number)],
            CoordinatorMessage::Welcome { .. } | CoordinatorMessage::Refused(_) => Vec::new(),
        }
    }

    /// Whoever holds work does not throw it away for a word without a term: it trains on, and asks again.
    fn on_refused(&mut self, reason: String) -> Vec<Command> {
        if self.leases.is_empty() {
            return vec![Command::Exit(Exit::Refused(reason))];
        }
        vec![Command::HangUp(reason)]
    }

    fn on_welcome(&mut self, term: Term, worker: WorkerId, heartbeat_ms: u64) -> Vec<Command> {
        self.term = term;
        self.link = Link::Up(worker);
        let mut commands = vec![Command::BeatEvery(heartbeat_ms)];
        if let Some(reason) = &self.leaving {
            commands.push(self.say(&self.trace, WorkerMessage::Leaving(reason.clone())));
        }
        if !self.leases.is_empty() {
            commands.push(self.say(&self.trace, WorkerMessage::Heartbeat(self.leases())));
        }
        commands
    }

    fn on_holds(&mut self, holdings: Holdings) -> Vec<Command> {
        if self.holdings == holdings {
            return Vec::new();
        }
        self.holdings = holdings.clone();
        if self.link == Link::Down { Vec::new() } else { vec![self.say(&self.trace, WorkerMessage::Holds(holdings))] }
    }

    /// Says what the coordinator did not accept before the link broke.
    fn say_again(&mut self, id: LeaseId) -> Vec<Command> {
        let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.unheard) else { return Vec::new() };
        lease.unheard = false;
        let (trace, spent) = (lease.trace.clone(), lease.spent);
        let mut messages = lease.kept.clone();
        match &lease.state {
            State::Training => {}
            State::Checkpointing { step, blob } => messages.push(WorkerMessage::Checkpoint(id, *step, *blob)),
            State::Finishing { word, .. } => messages.push((**word).clone()),
            // Nobody heard the cost either.
            State::Parting { word } => {
                messages.extend(spent.map(|spent| WorkerMessage::Spent(id, spent)));
                messages.push((**word).clone());
            }
        }
        if matches!(lease.state, State::Parting { .. }) {
            self.leases.remove(&id);
        }
        messages.into_iter().map(|message| self.say(&trace, message)).collect()
    }

    fn on_assign(&mut self, id: LeaseId, assignment: Box<Assignment>, joining: bool, trace: String) -> Vec<Command> {
        if self.leases.contains_key(&id) {
            return Vec::new();
        }
        if self.leaving.is_some() {
            return vec![self.say(&trace, WorkerMessage::Released(id))];
        }
        let running = self.leases.values().filter(|lease| lease.state.runs()).count();
        if running >= self.slots {
            let message = format!("the worker has {} slots, and all are taken", self.slots);
            return vec![self.say(&trace, WorkerMessage::Failed(id, Failure { blame: Blame::Machine, message }))];
        }
        self.leases.insert(id, Lease::new(trace.clone(), State::Training));
        vec![Command::Start { lease: id, assignment, joining, trace }]
    }

    fn on_form(&mut self, id: LeaseId, formation: Formation) -> Vec<Command> {
        let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.state.runs()) else { return Vec::new() };
        lease.kept.retain(|word| matches!(word, WorkerMessage::Broken(_, epoch, _) if *epoch >= formation.epoch));
        vec![Command::Form(id, formation)]
    }

    fn on_accepted(&mut self, id: LeaseId, accepted: u64) -> Vec<Command> {
        let Some(lease) = self.leases.get_mut(&id) else { return Vec::new() };
        match &lease.state {
            State::Checkpointing { step, .. } if accepted >= *step => {
                let step = *step;
                lease.state = State::Training;
                vec![Command::Acknowledge(id, step)]
            }
            State::Finishing { step, .. } if accepted >= *step => {
                self.leases.remove(&id);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn on_fenced(&mut self, id: LeaseId) -> Vec<Command> {
        match self.leases.remove(&id) {
            Some(lease) if lease.state.runs() => vec![Command::Abandon(id)],
            _ => Vec::new(),
        }
    }

    fn on_release(&mut self, id: LeaseId) -> Vec<Command> {
        match self.leases.get(&id) {
            Some(lease) if lease.state.runs() => vec![Command::Interrupt(id)],
            _ => Vec::new(),
        }
    }

    fn on_drain(&mut self, reason: String) -> Vec<Command> {
        self.leaving.get_or_insert(reason);
        self.leases().into_iter().flat_map(|lease| self.on_release(lease)).collect()
    }

    /// The coordinator hears of it before anything is given back, or it would hand that to this worker again. Without a
    /// link nothing can be accepted any more: waiting for it would be waiting for nothing.
    fn on_stop(&mut self, reason: String) -> Vec<Command> {
        if self.link == Link::Down {
            self.leaving.get_or_insert(reason);
            return self.abandon_all();
        }
        let mut commands = vec![self.say(&self.trace, WorkerMessage::Leaving(reason.clone()))];
        commands.extend(self.on_drain(reason));
        commands
    }

    fn on_lost(&mut self) -> Vec<Command> {
        self.link = Link::Down;
        self.leases.values_mut().for_each(|lease| lease.unheard = true);
        if self.leaving.is_some() { self.abandon_all() } else { Vec::new() }
    }

    fn abandon_all(&mut self) -> Vec<Command> {
        let leases = std::mem::take(&mut self.leases);
        leases.into_iter().filter(|(_, lease)| lease.state.runs()).map(|(id, _)| Command::Abandon(id)).collect()
    }

    fn on_beat(&mut self) -> Vec<Command> {
        if self.link == Link::Down {
            return Vec::new();
        }
        let mut commands = vec![self.say(&self.trace, WorkerMessage::Heartbeat(self.leases()))];
        commands.extend(self.leases().into_iter().flat_map(|lease| self.say_again(lease)));
        commands
    }

    fn on_probe(&self, number: u64, round_trip_ms: u64) -> Vec<Command> {
        if self.link == Link::Down {
            return Vec::new();
        }
        vec![self.say(&self.trace, WorkerMessage::Probe { number, round_trip_ms })]
    }

    fn on_stage(&mut self, id: LeaseId, event: StageEvent) -> Vec<Command> {
        // A fenced stage may still talk for a moment; its words must not reach anybody.
        let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.state.runs()) else { return Vec::new() };
        let trace = lease.trace.clone();
        let passes = matches!(
            event,
            StageEvent::Stepped(_) | StageEvent::Evaluated(_) | StageEvent::Spent(_) | StageEvent::Waits(..)
        );
        if !passes {
            lease.unheard = self.link == Link::Down;
        }
        let message = match event {
            StageEvent::Stepped(report) => WorkerMessage::Step(id, report),
            StageEvent::Evaluated(evaluation) => WorkerMessage::Evaluated(id, evaluation),
            StageEvent::Spent(usage) => {
                lease.spent = Some(usage);
                WorkerMessage::Spent(id, usage)
            }
            StageEvent::Uploaded(step, blob) => {
                lease.state = State::Checkpointing { step, blob };
                WorkerMessage::Checkpoint(id, step, blob)
            }
            StageEvent::Prepared => WorkerMessage::Prepared(id),
            StageEvent::Broken(epoch, reason) => WorkerMessage::Broken(id, epoch, reason),
            StageEvent::Waits(epoch, step) => WorkerMessage::Waits(id, epoch, step),
            StageEvent::Finished(result) => {
                let step = result.steps;
                lease.finish(WorkerMessage::Finished(id, *result), step)
            }
            StageEvent::Paused(scores, finished) => {
                let step = scores.step;
                lease.finish(WorkerMessage::Paused(id, *scores, finished), step)
            }
            StageEvent::Stopped => return self.part(id, &trace, WorkerMessage::Released(id)),
            StageEvent::Failed(failure) => return self.part(id, &trace, WorkerMessage::Failed(id, failure)),
        };
        // A word that is lost with the link leaves its whole group waiting.
        if matches!(message, WorkerMessage::Prepared(_) | WorkerMessage::Broken(..)) && !lease.kept.contains(&message) {
            lease.kept.push(message.clone());
        }
        if self.link == Link::Down { Vec::new() } else { vec![self.say(&trace, message)] }
    }

    /// The last word about a lease: said now, or kept for the next Welcome.
    fn part(&mut self, id: LeaseId, trace: &str, word: WorkerMessage) -> Vec<Command> {
        if self.link == Link::Down {
            let state = State::Parting { word: Box::new(word) };
            let spent = self.leases.get(&id).and_then(|lease| lease.spent);
            let lease = Lease { spent, unheard: true, ..Lease::new(trace.to_owned(), state) };
            self.leases.insert(id, lease);
            return Vec::new();
        }
        self.leases.remove(&id);
        vec![self.say(trace, word)]
    }

    fn say(&self, trace: &str, message: WorkerMessage) -> Command {
        Command::Say(Box::new(WorkerEnvelope { term: self.term, trace: trace.to_owned(), message }))
    }
}
