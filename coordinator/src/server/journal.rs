//! The journal: facts on disk, in order, each durable before anything is done or said because of it.
//!
//! One thread owns the [`Ledger`], a SQLite file or a PostgreSQL database. It takes whatever has gathered while the last
//! transaction was written and writes it as one (a disk's sync costs milliseconds, a fact microseconds). A snapshot of
//! the state replaces the facts before it, so the journal stays small. Each write holds only while this coordinator
//! leads; the thread renews the lead where that is needed, and what it finds out about it ends the coordinator. It also
//! owns the lock on the folder: the lock ends after the last write. Never written: heartbeats, steps, clocks that decide.

mod error;
mod ledger;
mod postgres;
mod signed;
mod sqlite;
#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use graftwork_driver::MOST_WAITING;
use graftwork_scheduler::{Fact, State};
use graftwork_shared::{digest::Digest, id::Term};
use tokio::sync::{mpsc, watch};

use self::{
    ledger::{Batch, Ledger},
    postgres::Postgres,
    signed::Signed,
    sqlite::Sqlite,
};
use super::lock::Lock;

pub(crate) use self::{
    error::{JournalError, Leader},
    postgres::{Database, Filled, Leadership},
};

/// Facts after which a snapshot replaces them.
const SNAPSHOT_FACTS: u64 = 1_000;

/// How often a coordinator that waits looks whether the leader has gone before its time.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What was read at the start.
#[derive(Debug)]
pub(super) struct Opened {
    ledger: Box<dyn Ledger>,
    /// The fold of all facts.
    pub(super) state: State,
    /// The last fact's number.
    pub(super) number: u64,
    since_snapshot: u64,
}

impl Opened {
    /// Reads the journal of a state folder, or makes it. The folder's lock must be held. Nothing can be written yet.
    pub(super) fn read_folder(state_folder: &Path) -> Result<Self, JournalError> {
        Self::read(Box::new(Sqlite::open(state_folder)?))
    }

    /// Reads the journal of a state folder, or makes it, and leads it.
    pub(super) fn lead_folder(state_folder: &Path) -> Result<Self, JournalError> {
        let mut opened = Self::read_folder(state_folder)?;
        let term = wait_to_lead(opened.ledger.as_mut(), opened.state.term())?;
        opened.begin(term)?;
        Ok(opened)
    }

    /// Waits until no other coordinator leads the journal of a database, leads it, and reads it. The lock of `folder` must be
    /// held: whoever led from there before runs no more.
    pub(super) fn lead_database(
        leadership: Leadership,
        addresses: String,
        folder: &Path,
    ) -> Result<Self, JournalError> {
        let mut ledger = Box::new(Postgres::open(leadership, addresses)?);
        let signed = Signed::add(folder, ledger.id());
        ledger.succeed(signed.before.clone());
        // Whoever led before can write nothing from here on, so what is read is all there is.
        let term = wait_to_lead(ledger.as_mut(), Term(0))?;
        signed.keep_last();
        let mut opened = Self::read(ledger)?;
        opened.begin(term)?;
        Ok(opened)
    }

    /// Copies the journal of a database, as it is at one moment, into a folder that holds none, and reads it there; `None` if
    /// the database has no journal. Whoever leads it is not disturbed.
    pub(super) fn copy_database(database: &Database, folder: &Path) -> Result<Option<Self>, JournalError> {
        let Some((kept, term)) = postgres::look(database)? else { return Ok(None) };
        let mut copy = Sqlite::open(folder)?;
        copy.fill(&kept, term)?;
        Self::read(Box::new(copy)).map(Some)
    }

    /// Whether a database holds facts.
    pub(super) fn is_kept(database: &Database) -> Result<bool, JournalError> {
        let found = postgres::look(database)?;
        Ok(found.is_some_and(|(kept, _)| kept.snapshot.is_some() || !kept.facts.is_empty()))
    }

    /// Writes what was read into a database that holds no journal; its next leader begins above `term`.
    pub(super) fn fill_database(&mut self, database: &Database, term: Term) -> Result<Filled, JournalError> {
        postgres::fill(database, &self.ledger.read()?, term)
    }

    fn read(mut ledger: Box<dyn Ledger>) -> Result<Self, JournalError> {
        let kept = ledger.read()?;
        let (state, number, since_snapshot) = ledger::fold(ledger.place(), &kept)?;
        Ok(Self { ledger, state, number, since_snapshot })
    }

    /// Makes the facts agree with the term that was taken: its own begins with the scheduler's first fact, and those of
    /// coordinators that took the lead and ended before they wrote anything are told here.
    fn begin(&mut self, term: Term) -> Result<(), JournalError> {
        let last = self.state.term();
        if term <= last {
            let problem = format!("the term {} of its leader is not above the term {} of its facts", term.0, last.0);
            return Err(JournalError::Damaged { place: self.ledger.place().to_owned(), problem });
        }
        let before = Term(term.0 - 1);
        if last < before {
            let fact = Fact::TermContinued { term: before, at_ms: now_ms() };
            let place = self.ledger.place().to_owned();
            let folded = self.state.fold(&fact);
            folded.map_err(|error| JournalError::Damaged { place, problem: error.to_string() })?;
            self.write(&[Write::Facts(vec![fact])])?;
        }
        Ok(())
    }

    /// Has a journal that nobody leads, such as a copy, hold other files of a history.
    pub(super) fn keep_history(
        &mut self,
        history: String,
        files: BTreeMap<String, Option<Digest>>,
    ) -> Result<(), JournalError> {
        let place = self.ledger.place().to_owned();
        if let Err(leader) = self.ledger.lead(self.state.term())? {
            return Err(JournalError::Superseded { place, leader });
        }
        let fact = Fact::HistoryKept { history, files, at_ms: now_ms() };
        let folded = self.state.fold(&fact);
        folded.map_err(|error| JournalError::Damaged { place, problem: error.to_string() })?;
        self.write(&[Write::Facts(vec![fact])])
    }

    fn write(&mut self, writes: &[Write]) -> Result<(), JournalError> {
        let batch = Batch::of(writes, self.number);
        self.ledger.append(&batch)?;
        self.number = batch.last;
        let before = if batch.snapshot.is_some() { 0 } else { self.since_snapshot };
        self.since_snapshot = before + batch.facts.len() as u64;
        Ok(())
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Takes the lead; as long as another coordinator has it, says so once and waits.
fn wait_to_lead(ledger: &mut dyn Ledger, known: Term) -> Result<Term, JournalError> {
    let mut leads = None;
    loop {
        let wait = match ledger.lead(known) {
            Ok(Ok(term)) => return Ok(term),
            Ok(Err(leader)) => {
                if leads.as_ref() != Some(&leader.term) {
                    tracing::info!(place = ledger.place(), "{leader}; this one waits to take over");
                    leads = Some(leader.term);
                }
                Duration::from_millis(leader.left_ms + 5)
            }
            // It was there when this coordinator began to wait, so it is waited for too.
            Err(error @ JournalError::Database { .. }) if leads.is_some() => {
                tracing::warn!(%error, "waiting for the database");
                LOOK_EVERY
            }
            Err(error) => return Err(error),
        };
        thread::sleep(wait.min(LOOK_EVERY));
    }
}

/// One entry of the queue to the thread.
#[derive(Debug)]
enum Write {
    Facts(Vec<Fact>),
    Snapshot(Box<State>),
}

/// How far the journal is.
#[derive(Clone, Debug, Default)]
pub(super) struct Durable {
    /// Every fact up to this number is on disk.
    pub(super) number: u64,
    /// Why it writes no more.
    pub(super) failure: Option<Arc<JournalError>>,
}

/// The driver's end of the journal.
#[derive(Debug)]
pub(super) struct Journal {
    queue: mpsc::Sender<Write>,
    /// How far it is.
    pub(super) durable: watch::Receiver<Durable>,
    number: u64,
    since_snapshot: u64,
    thread: thread::JoinHandle<()>,
}

impl Journal {
    /// Starts the thread. The lock is held until the last write is done.
    pub(super) fn start(opened: Opened, lock: Lock) -> io::Result<Self> {
        let (queue, writes) = mpsc::channel(2 * MOST_WAITING);
        let (number, since_snapshot) = (opened.number, opened.since_snapshot);
        let (tell, durable) = watch::channel(Durable { number, failure: None });
        let timer = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = thread::Builder::new().name("journal".to_owned()).spawn(move || {
            run(opened, Queue { timer, writes }, &tell);
            drop(lock);
        })?;
        Ok(Self { queue, durable, number, since_snapshot, thread })
    }

    /// Queues facts; they are durable once [`Durable::number`] reaches the number given back.
    pub(super) fn append(&mut self, facts: Vec<Fact>, state: &State) -> u64 {
        if facts.is_empty() {
            return self.number;
        }
        let count = facts.len() as u64;
        self.number += count;
        self.since_snapshot += count;
        self.send(Write::Facts(facts));
        if self.since_snapshot >= SNAPSHOT_FACTS {
            self.since_snapshot = 0;
            self.send(Write::Snapshot(Box::new(state.clone())));
        }
        self.number
    }

    /// Facts that were queued and are not durable.
    pub(super) fn waiting(&self) -> u64 {
        self.number.saturating_sub(self.durable.borrow().number)
    }

    /// Writes what is queued and gives up the lock. Blocks.
    pub(super) fn close(self) {
        drop(self.queue);
        // A thread that panicked has left recovery to the next start.
        let _ = self.thread.join();
    }

    fn send(&mut self, write: Write) {
        // The driver takes no event while MOST_WAITING decisions wait, so the queue has room; a thread that has
        // ended has told its failure.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(write) {
            unreachable!("the queue has room for every decision that may wait");
        }
    }
}

/// The thread's end of the queue.
struct Queue {
    timer: tokio::runtime::Runtime,
    writes: mpsc::Receiver<Write>,
}

impl Queue {
    /// Waits for writes, at most this long; `false` once there are none any more.
    fn wait(&mut self, batch: &mut Vec<Write>, at_most: Option<Duration>) -> bool {
        let Some(at_most) = at_most else { return self.writes.blocking_recv_many(batch, MOST_WAITING) > 0 };
        let writes = &mut self.writes;
        let waiting = async { tokio::time::timeout(at_most, writes.recv_many(batch, MOST_WAITING)).await };
        !matches!(self.timer.block_on(waiting), Ok(0))
    }
}

fn run(mut opened: Opened, mut queue: Queue, tell: &watch::Sender<Durable>) {
    let mut batch = Vec::new();
    while queue.wait(&mut batch, opened.ledger.renew_every()) {
        let done = if batch.is_empty() { opened.ledger.renew() } else { opened.write(&batch) };
        let failure = done.err().map(Arc::new);
        let failed = failure.is_some();
        if failed || !batch.is_empty() {
            tell.send_replace(Durable { number: opened.number, failure });
        }
        if failed {
            return;
        }
        batch.clear();
    }
    opened.ledger.resign();
}
