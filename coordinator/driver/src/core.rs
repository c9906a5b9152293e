//! The core: inputs in, outputs out, nothing done before its facts are durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use graftwork_scheduler::{Command, Decision, Event, Fact, Scheduler, StageKey};
use graftwork_shared::{
    digest::Digest,
    event::EventKind,
    id::{JobId, LeaseId, Name, WorkerId},
};

use crate::MOST_WAITING;

/// Number of a session; a worker that comes back has another one.
type Session = u64;

/// How often the core wants to be told the time while there are workers, in milliseconds.
const TURN_MS: u64 = 500;

/// Whoever was told nothing for longer than this stood still.
const STOOD_STILL_MS: u64 = 1_500;

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The connection broke or was closed; the process may come back.
    Link(String),
    /// The worker said what cannot be, or does not listen.
    Wrong(String),
}

/// What the shell shall do, in order and at once.
#[derive(Debug)]
pub enum Output<R> {
    /// Have these facts made durable, all of them before any of the next; [`Core::durable`] says how far that is.
    Write(Vec<Fact>),
    /// Carry out. What is for a worker is for one with an open session.
    Command(Command),
    /// Answer.
    Reply(R),
    /// The group of this epoch may meet; `None`: no group of the lease.
    Meet(LeaseId, Option<u64>),
    /// A blob has its fact, or will never have one: one pin less.
    Unpin(Digest),
    /// The session of a worker is over; nothing more is said to it.
    End(WorkerId),
    /// Whoever waits for this session is not let in.
    TurnAway(Session),
}

/// What the core judges by.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Milliseconds that workers have to leave once the coordinator shall stop.
    pub stop_ms: u64,
}

/// What is done once the facts before it are durable.
pub(crate) enum Act<R> {
    Command(Command),
    Reply(R),
    Meet(LeaseId, Option<u64>),
    /// A pinned blob has its fact, or will never have one.
    Settle(Digest),
}

/// What decides: the scheduler, or one whose every turn is checked.
pub trait Machine {
    /// The scheduler as it is now.
    fn scheduler(&self) -> &Scheduler;

    /// Reacts to an event.
    fn apply(&mut self, now_ms: u64, event: Event) -> Decision;
}

impl Machine for Scheduler {
    fn scheduler(&self) -> &Scheduler {
        self
    }

    fn apply(&mut self, now_ms: u64, event: Event) -> Decision {
        Self::apply(self, now_ms, event)
    }
}

/// See the crate's documentation. `R` is an answer that the shell knows how to give.
pub struct Core<R, M = Scheduler> {
    machine: M,
    timing: Timing,
    now_ms: u64,
    /// Number of the last fact that was decided.
    decided: u64,
    /// Number of the last fact that is durable.
    durable: u64,
    unwritten: Vec<Fact>,
    sessions: BTreeMap<WorkerId, Session>,
    /// Sessions that said hello and were not let in yet.
    joining: BTreeSet<Session>,
    /// Acts in order, each with the number of the fact that must be durable first.
    waiting: VecDeque<(u64, Act<R>)>,
    /// What may be done at once.
    outputs: VecDeque<Output<R>>,
    /// Events that came up while performing.
    follow_ups: VecDeque<Event>,
    stop_at_ms: Option<u64>,
    /// By worker's key: blobs that it has put and not spoken of yet.
    pub(crate) uploads: BTreeMap<String, Vec<Digest>>,
    /// Groups that may meet, or will once their facts are durable.
    meetings: BTreeSet<LeaseId>,
}

impl<R, M: Machine> Core<R, M> {
    /// Over a scheduler that has just started with this decision at this time, behind a journal of so many facts.
    pub fn new((machine, first): (M, Decision), now_ms: u64, facts: u64, timing: Timing) -> Self {
        let mut core = Self {
            machine,
            timing,
            now_ms,
            decided: facts,
            durable: facts,
            unwritten: Vec::new(),
            sessions: BTreeMap::new(),
            joining: BTreeSet::new(),
            waiting: VecDeque::new(),
            outputs: VecDeque::new(),
            follow_ups: VecDeque::new(),
            stop_at_ms: None,
            uploads: BTreeMap::new(),
            meetings: BTreeSet::new(),
        };
        // Groups that outlived the coordinator before this one.
        for (lease, epoch) in core.machine().epochs() {
            core.meetings.insert(lease);
            core.outputs.push_back(Output::Meet(lease, Some(epoch)));
        }
        core.take(first, Vec::new());
        core
    }

    /// The scheduler, for whoever asks.
    pub fn machine(&self) -> &Scheduler {
        self.machine.scheduler()
    }

    /// Whether another input may be taken; what waits is bounded.
    pub fn has_room(&self) -> bool {
        let unheard = usize::try_from(self.decided - self.durable).unwrap_or(usize::MAX);
        self.waiting.len() < MOST_WAITING && unheard < MOST_WAITING
    }

    /// Whether it was asked to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop_at_ms.is_some()
    }

    /// Whether it may stop now: all is said and nothing is being published, and workers that were sent home have left; or
    /// it took too long.
    pub fn has_stopped(&self, now_ms: u64) -> bool {
        let Some(at_ms) = self.stop_at_ms else { return false };
        let machine = self.machine();
        let gone = !machine.policy().sends_home || (machine.is_idle() && self.sessions.is_empty());
        now_ms >= at_ms || (gone && !machine.is_publishing() && self.waiting.is_empty())
    }

    /// When [`tick`](Self::tick) is due if nothing else happens before.
    pub fn next_deadline(&self) -> Option<u64> {
        let turn = self.machine().infos().next().map(|_| self.now_ms + TURN_MS);
        [self.machine().next_deadline(), self.stop_at_ms, turn].into_iter().flatten().min()
    }

    /// Whether this is the open session of a worker.
    pub fn is_open(&self, worker: WorkerId, session: Session) -> bool {
        self.sessions.get(&worker) == Some(&session)
    }

    /// Every fact up to this number is durable.
    pub fn durable(&mut self, number: u64) {
        self.durable = self.durable.max(number);
    }

    /// What to do next; `None` until something happens again.
    pub fn poll(&mut self) -> Option<Output<R>> {
        loop {
            if !self.unwritten.is_empty() {
                return Some(Output::Write(std::mem::take(&mut self.unwritten)));
            }
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            if self.waiting.front().is_some_and(|(number, _)| *number <= self.durable) {
                if let Some((_, act)) = self.waiting.pop_front() {
                    self.perform(act);
                }
                continue;
            }
            let event = self.follow_ups.pop_front()?;
            self.apply(self.now_ms, event, Vec::new());
        }
    }

    /// Something happened that is no matter of sessions. Says whether facts were decided.
    pub fn on_event(&mut self, now_ms: u64, event: Event) -> bool {
        let decided = self.apply(now_ms, event, Vec::new());
        self.settle_uploads();
        decided
    }

    /// Time passed.
    pub fn tick(&mut self, now_ms: u64) {
        self.on_event(now_ms, Event::Tick);
    }

    /// Answers once everything decided so far is durable.
    pub fn reply(&mut self, reply: R) {
        self.take(Decision::default(), vec![Act::Reply(reply)]);
    }

    /// A worker said hello over a new session: an [`Event::WorkerJoined`] follows, and [`Command::Welcome`] or
    /// [`Output::TurnAway`].
    pub fn on_join(&mut self, now_ms: u64, (session, event): (Session, Event)) {
        self.joining.insert(session);
        self.on_event(now_ms, event);
    }

    /// A worker said something over its session.
    pub fn on_worker(&mut self, now_ms: u64, (worker, session): (WorkerId, Session), event: Event) {
        if !self.is_open(worker, session) {
            return;
        }
        let spoken = self.spoken_of(worker, &event);
        self.apply(now_ms, event, spoken);
        self.settle_uploads();
    }

    /// A worker reports how its training goes. For eyes: told if the lease is live and the worker speaks for its group,
    /// and not journalled.
    pub fn on_report(&mut self, now_ms: u64, (worker, session): (WorkerId, Session), lease: LeaseId, kind: EventKind) {
        if !self.is_open(worker, session) {
            return;
        }
        let event = match &kind {
            EventKind::Step(report) => Event::Stepped { worker, lease, report: *report },
            _ => Event::Progress { worker, lease },
        };
        if let Some(StageKey { job, stage }) = self.machine().leads(worker, lease).cloned() {
            self.tell(job, Some(stage), kind);
        }
        self.on_event(now_ms, event);
    }

    /// A session ended.
    pub fn on_left(&mut self, now_ms: u64, (worker, session): (WorkerId, Session), gone: Gone) {
        if self.is_open(worker, session) {
            self.end(worker);
            self.on_event(now_ms, left(worker, gone));
        }
    }

    /// What was to be said over a session could not be: it is over, and the scheduler hears of it in its turn. A worker
    /// that has another one by then has lost nothing.
    pub fn on_unsaid(&mut self, (worker, session): (WorkerId, Session), gone: Gone) {
        if self.is_open(worker, session) {
            self.end(worker);
            self.follow_ups.push_back(left(worker, gone));
        }
    }

    /// The coordinator shall stop.
    pub fn stop(&mut self, now_ms: u64, reason: String) {
        self.stop_at_ms = Some(now_ms + self.timing.stop_ms);
        self.on_event(now_ms, Event::Stop { reason });
    }

    fn end(&mut self, worker: WorkerId) {
        self.sessions.remove(&worker);
        self.outputs.push_back(Output::End(worker));
    }

    fn tell(&mut self, job: JobId, stage: Option<Name>, kind: EventKind) {
        self.outputs.push_back(Output::Command(Command::Tell { job, stage, kind }));
    }

    /// Applies an event; `after` is done once its facts are durable, behind its commands.
    fn apply(&mut self, now_ms: u64, event: Event, after: Vec<Act<R>>) -> bool {
        let gap_ms = now_ms.saturating_sub(self.now_ms);
        self.now_ms = now_ms;
        if gap_ms > STOOD_STILL_MS {
            let decision = self.machine.apply(now_ms, Event::StoodStill { gap_ms });
            self.take(decision, Vec::new());
        }
        let decision = self.machine.apply(now_ms, event);
        let decided = !decision.facts.is_empty();
        self.take(decision, after);
        decided
    }

    fn take(&mut self, decision: Decision, after: Vec<Act<R>>) {
        let meetings = self.meetings_after(&decision.facts);
        self.decided += decision.facts.len() as u64;
        self.unwritten.extend(decision.facts);
        let commands = decision.commands.into_iter().map(Act::Command);
        let number = self.decided;
        self.waiting.extend(meetings.into_iter().chain(commands).chain(after).map(|act| (number, act)));
    }

    /// Groups that may meet from now on, before their members hear of it, and leases that have ended.
    fn meetings_after(&mut self, facts: &[Fact]) -> Vec<Act<R>> {
        if facts.is_empty() {
            return Vec::new();
        }
        let mut meetings = Vec::new();
        for fact in facts {
            if let Fact::GroupFormed { lease, epoch, .. } = fact
                && self.machine().epoch(*lease).is_some()
            {
                self.meetings.insert(*lease);
                meetings.push(Act::Meet(*lease, Some(*epoch)));
            }
        }
        let machine = self.machine.scheduler();
        let over = |lease: &LeaseId| machine.epoch(*lease).is_none();
        let ended: Vec<LeaseId> = match ends_of(facts) {
            Some(leases) => leases.filter(|lease| over(lease) && self.meetings.contains(lease)).collect(),
            None => self.meetings.iter().copied().filter(over).collect(),
        };
        for lease in ended {
            self.meetings.remove(&lease);
            meetings.push(Act::Meet(lease, None));
        }
        meetings
    }

    fn perform(&mut self, act: Act<R>) {
        match act {
            Act::Reply(reply) => self.outputs.push_back(Output::Reply(reply)),
            Act::Settle(blob) => self.settle([blob]),
            Act::Meet(lease, epoch) => self.outputs.push_back(Output::Meet(lease, epoch)),
            Act::Command(Command::Welcome { session, worker }) => self.welcome(session, worker),
            Act::Command(Command::Discard { blob }) => self.discard(blob),
            Act::Command(command) => self.say(command),
        }
    }

    fn welcome(&mut self, session: Session, worker: WorkerId) {
        if !self.joining.remove(&session) {
            return;
        }
        // Given up for what an earlier session of it said meanwhile: it is let go, and joins anew.
        if self.machine().info(worker).is_none() {
            return self.outputs.push_back(Output::TurnAway(session));
        }
        // The end of an earlier session of it, which the scheduler has not heard of yet, would end this one.
        let of_it = |event: &Event| matches!(event, Event::LinkLost { worker: of, .. } | Event::WorkerLeft { worker: of, .. } if *of == worker);
        self.follow_ups.retain(|event| !of_it(event));
        self.sessions.insert(worker, session);
        self.outputs.push_back(Output::Command(Command::Welcome { session, worker }));
    }

    /// What is for a worker without an open session is for nobody.
    fn say(&mut self, command: Command) {
        let hears = listener(&command).is_none_or(|worker| self.sessions.contains_key(&worker));
        if !hears {
            return;
        }
        if let Command::Disconnect { worker, .. } = &command {
            self.sessions.remove(worker);
        }
        self.outputs.push_back(Output::Command(command));
    }

    /// Removes a blob that nothing refers to any more. What has just lost its last reference in a fact that is not durable
    /// would be missed after a crash, so it is asked again once everything decided is.
    pub(crate) fn discard(&mut self, blob: Digest) {
        let command = Command::Discard { blob };
        if self.machine().state().refers_to(blob) {
            return;
        }
        if self.durable < self.decided {
            self.waiting.push_back((self.decided, Act::Command(command)));
        } else {
            self.outputs.push_back(Output::Command(command));
        }
    }

    pub(crate) fn unpin(&mut self, blob: Digest) {
        self.outputs.push_back(Output::Unpin(blob));
    }
}

/// Leases that these facts may have ended; `None`: more than they name.
fn ends_of(facts: &[Fact]) -> Option<impl Iterator<Item = LeaseId>> {
    let mut leases = BTreeSet::new();
    for fact in facts {
        match fact {
            Fact::JobCancelled { .. }
            | Fact::SweepFailed { .. }
            | Fact::TrialChosen { .. }
            | Fact::TermStarted { .. }
            | Fact::TermContinued { .. } => return None,
            Fact::LeaseReleased { lease, .. }
            | Fact::StagePreempted { lease, .. }
            | Fact::AttemptFailed { lease, .. }
            | Fact::StageTrained { lease: Some(lease), .. }
            | Fact::TrialScored { lease: Some(lease), .. } => {
                leases.insert(*lease);
            }
            _ => {}
        }
    }
    Some(leases.into_iter())
}

fn left(worker: WorkerId, gone: Gone) -> Event {
    match gone {
        Gone::Link(reason) => Event::LinkLost { worker, reason },
        Gone::Wrong(reason) => Event::WorkerLeft { worker, reason },
    }
}

/// The worker to whom a command is said.
fn listener(command: &Command) -> Option<WorkerId> {
    match command {
        Command::Assign { worker, .. }
        | Command::Form { worker, .. }
        | Command::Release { worker, .. }
        | Command::Accept { worker, .. }
        | Command::Fence { worker, .. }
        | Command::Drain { worker, .. }
        | Command::Disconnect { worker, .. } => Some(*worker),
        Command::Welcome { .. }
        | Command::LookForReuse { .. }
        | Command::Publish { .. }
        | Command::Discard { .. }
        | Command::Tell { .. } => None,
    }
}
