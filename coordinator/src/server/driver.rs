//! The loop that owns the scheduler: `loop { input = select().await; apply(input) }`.
//!
//! Only the select waits. A decision's facts go to the journal; its commands and the replies that hang on it wait in
//! line until those facts are durable (invariant 4), and go out in order. What waits for others (the hub) is spawned
//! and comes back as an input. Domain state has no mutex: it is this loop's alone.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use graftwork_scheduler::{Command, Decision, Event, Fact, Scheduler};
use graftwork_shared::{
    digest::Digest,
    id::{JobId, LeaseId, WorkerId},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    BlobStore, Publisher, ServerError,
    input::{Input, Join, Outgoing},
    journal::{Journal, JournalError, MOST_WAITING},
    meet::Epochs,
    story::Story,
};

/// Milliseconds since 1970 that never go back while the process lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
    start_ms: u64,
}

impl Clock {
    pub(super) fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { start: Instant::now(), start_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.start_ms + u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn start_ms(&self) -> u64 {
        self.start_ms
    }
}

/// A worker's session as the driver holds it; dropping it ends the session.
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) outgoing: Outgoing,
    pub(super) _open: oneshot::Sender<()>,
}

/// What is done once the facts before it are durable.
pub(super) enum Act {
    Command(Command),
    Reply(Box<dyn FnOnce() + Send>),
    /// The group of this epoch may meet; `None`: no group of the lease.
    Meet(LeaseId, Option<u64>),
    /// A pinned blob has its fact, or will never have one.
    Settle(Digest),
}

/// See the module's documentation.
pub(super) struct Driver {
    pub(super) machine: Scheduler,
    pub(super) journal: Journal,
    pub(super) blobs: BlobStore,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) clock: Clock,
    pub(super) heartbeat_ms: u64,
    pub(super) stop_ms: u64,
    /// For what runs beside the loop.
    pub(super) sender: mpsc::WeakSender<Input>,
    pub(super) sessions: HashMap<WorkerId, Session>,
    pub(super) joining: HashMap<u64, Box<Join>>,
    pub(super) joined: u64,
    pub(super) stories: BTreeMap<JobId, Story>,
    /// Acts in order, each with the number of the fact that must be durable first.
    pub(super) waiting: VecDeque<(u64, Act)>,
    /// Events that came up while acting.
    pub(super) follow_ups: Vec<Event>,
    pub(super) stop_at_ms: Option<u64>,
    /// By worker's key: blobs that it has put and not spoken of yet.
    pub(super) uploads: HashMap<String, Vec<Digest>>,
    /// Which groups may meet.
    pub(super) meetings: watch::Sender<Epochs>,
}

impl Driver {
    /// Runs until it is stopped or cannot go on; the state folder is free when it returns.
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, first: Decision) -> Result<(), ServerError> {
        self.take(first, Vec::new());
        let ended = self.lead(&mut inputs).await;
        let journal = self.journal;
        tokio::task::spawn_blocking(move || journal.close()).await.map_err(|_| ServerError::Ended("journal"))?;
        ended
    }

    async fn lead(&mut self, inputs: &mut mpsc::Receiver<Input>) -> Result<(), ServerError> {
        loop {
            self.act()?;
            if self.has_stopped() {
                return Ok(());
            }
            let deadline_ms = [self.machine.next_deadline(), self.stop_at_ms].into_iter().flatten().min();
            let now_ms = self.clock.now_ms();
            let wait = Duration::from_millis(deadline_ms.map_or(3_600_000, |at| at.saturating_sub(now_ms)));
            let has_room = self.waiting.len() < MOST_WAITING;
            tokio::select! {
                biased;
                changed = self.journal.durable.changed() => {
                    if changed.is_err() && self.journal.durable.borrow().failure.is_none() {
                        return Err(ServerError::Ended("journal"));
                    }
                }
                input = inputs.recv(), if has_room => match input {
                    Some(input) => {
                        self.on_input(input);
                        self.settle_uploads();
                    }
                    None => return Ok(()),
                },
                () = tokio::time::sleep(wait), if has_room => {
                    self.apply(Event::Tick, Vec::new());
                    self.settle_uploads();
                }
            }
        }
    }

    fn has_stopped(&self) -> bool {
        let Some(at_ms) = self.stop_at_ms else { return false };
        let done = self.machine.is_idle() && self.sessions.is_empty() && self.waiting.is_empty();
        done || self.clock.now_ms() >= at_ms
    }

    /// Applies an event; `after` is done once its facts are durable, behind its commands.
    pub(super) fn apply(&mut self, event: Event, after: Vec<Act>) -> bool {
        let decision = self.machine.apply(self.clock.now_ms(), event);
        let decided = !decision.facts.is_empty();
        self.take(decision, after);
        decided
    }

    fn take(&mut self, decision: Decision, after: Vec<Act>) {
        let meetings = self.meetings_after(&decision.facts);
        let number = self.journal.append(decision.facts, self.machine.state());
        let commands = decision.commands.into_iter().map(Act::Command);
        self.waiting.extend(meetings.into_iter().chain(commands).chain(after).map(|act| (number, act)));
    }

    /// Groups that may meet from now on, before their members hear of it, and leases that have ended.
    fn meetings_after(&self, facts: &[Fact]) -> Vec<Act> {
        if facts.is_empty() {
            return Vec::new();
        }
        let formed = facts.iter().filter_map(|fact| match fact {
            Fact::GroupFormed { lease, epoch, .. } if self.machine.epoch(*lease).is_some() => {
                Some(Act::Meet(*lease, Some(*epoch)))
            }
            _ => None,
        });
        let open: Vec<LeaseId> = self.meetings.borrow().keys().copied().collect();
        let planned = self.waiting.iter().filter_map(|(_, act)| match act {
            Act::Meet(lease, Some(_)) => Some(*lease),
            _ => None,
        });
        let ended = open.into_iter().chain(planned).filter(|lease| self.machine.epoch(*lease).is_none());
        formed.chain(ended.map(|lease| Act::Meet(lease, None))).collect()
    }

    /// Answers once everything decided so far is durable.
    pub(super) fn reply<T: Send + 'static>(&mut self, to: oneshot::Sender<T>, value: T) {
        // Whoever asked may have gone.
        self.take(Decision::default(), vec![Act::Reply(Box::new(move || drop(to.send(value))))]);
    }

    /// Carries out what is durable.
    fn act(&mut self) -> Result<(), ServerError> {
        let durable = self.journal.durable.borrow_and_update().clone();
        loop {
            while self.waiting.front().is_some_and(|(number, _)| *number <= durable.number) {
                if let Some((_, act)) = self.waiting.pop_front() {
                    self.perform(act);
                }
            }
            match self.follow_ups.pop() {
                Some(event) => self.apply(event, Vec::new()),
                None => break,
            };
        }
        match durable.failure {
            Some(failure) => Err(ServerError::Journal(JournalError::Stopped(failure))),
            None => Ok(()),
        }
    }
}
