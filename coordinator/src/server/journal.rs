//! The journal: facts on disk, in order, each durable before anything is done or said because of it.
//!
//! One thread owns the database. It takes whatever has gathered while the last transaction was written and writes it
//! as one (a disk's sync costs milliseconds, a fact microseconds). A snapshot of the state replaces the facts before
//! it, so the journal stays small. The thread also owns the lock on the state folder: the lock ends after the last
//! write. Never written: heartbeats, steps, clocks that decide.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use graftwork_driver::MOST_WAITING;
use graftwork_scheduler::{FACT_VERSION, Fact, State};
use graftwork_shared::digest::Digest;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use tokio::sync::{mpsc, watch};

use super::lock::Lock;

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// Not ours.
    #[error("{} is not a journal of graftwork: move it away or choose another state folder", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Of a later program.
    #[error(
        "{} was written by a newer graftwork ({what} {found}, this one reads up to {known}): use that version, or \
         another state folder",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// What has the version.
        what: &'static str,
        /// The version there.
        found: u32,
        /// The version here.
        known: u32,
    },
    /// Damaged.
    #[error(
        "{} is damaged ({problem}): restore it from a backup, or move the state folder away to start from nothing; \
         what is published stays",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// No room.
    #[error("the disk of {} is full: free some space and run the same command, which goes on from here", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The system.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It stopped while running; what was acknowledged is safe.
    #[error("the journal stopped: {0}")]
    Stopped(Arc<JournalError>),
    /// SQLite.
    #[error("{}: {error}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        error: rusqlite::Error,
    },
}

/// Marks a SQLite file as ours: "GRFT".
const APPLICATION_ID: u32 = 0x4752_4654;

/// Version of the tables.
const TABLES_VERSION: u32 = 1;

/// Facts after which a snapshot replaces them.
const SNAPSHOT_FACTS: u64 = 1_000;

const TABLES: &str = "
    CREATE TABLE facts (number INTEGER PRIMARY KEY, version INTEGER NOT NULL, fact TEXT NOT NULL, sum TEXT NOT NULL) STRICT;
    CREATE TABLE snapshot (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        number INTEGER NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL, sum TEXT NOT NULL
    ) STRICT;
";

/// What was read at the start.
#[derive(Debug)]
pub(super) struct Opened {
    connection: Connection,
    path: PathBuf,
    /// The fold of all facts.
    pub(super) state: State,
    /// The last fact's number.
    pub(super) number: u64,
    since_snapshot: u64,
}

fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> JournalError + '_ {
    use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
    move |error| {
        let path = path.to_owned();
        match error.sqlite_error_code() {
            Some(DiskFull) => JournalError::Full { path },
            Some(NotADatabase) => JournalError::Foreign { path },
            Some(DatabaseCorrupt) => JournalError::Damaged { path, problem: error.to_string() },
            _ => JournalError::Sqlite { path, error },
        }
    }
}

/// SQLite's integers have a sign; numbers count facts and stay far below the bound.
fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The number in a column. A negative one is no fact's, so what it stands for is found missing.
fn number_in(row: &rusqlite::Row<'_>) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(0)?).unwrap_or(u64::MAX))
}

fn sum(number: u64, text: &str) -> String {
    Digest::of(format!("{number} {text}").as_bytes()).short()
}

/// Makes an empty journal, all or nothing: a file of this name is always a whole journal.
fn create(path: &Path) -> Result<(), JournalError> {
    let aside = path.with_extension("new");
    let io = |error| JournalError::Io { path: aside.clone(), error };
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let write = || -> rusqlite::Result<()> {
        let connection = Connection::open(&aside)?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        connection.pragma_update(None, "user_version", TABLES_VERSION)?;
        connection.execute_batch(TABLES)?;
        connection.close().map_err(|(_, error)| error)
    };
    write().map_err(sqlite(&aside))?;
    File::open(&aside).and_then(|file| file.sync_all()).map_err(io)?;
    fs::rename(&aside, path).map_err(io)?;
    let folder = path.parent().expect("a journal lies in a folder");
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

impl Opened {
    /// Opens the journal of a state folder, or makes it, and folds its facts.
    pub(super) fn open(state_folder: &Path) -> Result<Self, JournalError> {
        let path = state_folder.join("journal.sqlite");
        if !path.try_exists().map_err(|error| JournalError::Io { path: path.clone(), error })? {
            create(&path)?;
        }
        let failed = sqlite(&path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).map_err(&failed)?;
        check_marks(&connection, &path)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(&failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(&failed)?;
        let sound: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(&failed)?;
        if sound != "ok" {
            return Err(JournalError::Damaged { path: path.clone(), problem: sound });
        }
        let (state, number) = read_snapshot(&connection, &path)?;
        let mut opened = Self { connection, path: path.clone(), state, number, since_snapshot: 0 };
        opened.read_facts()?;
        Ok(opened)
    }

    fn read_facts(&mut self) -> Result<(), JournalError> {
        let failed = sqlite(&self.path);
        let damaged = |problem: String| JournalError::Damaged { path: self.path.clone(), problem };
        let mut query =
            self.connection.prepare("SELECT number, version, fact, sum FROM facts ORDER BY number").map_err(&failed)?;
        let mut rows = query.query([]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            let (number, version, text, found): (u64, u32, String, String) =
                (|| Ok((number_in(row)?, row.get(1)?, row.get(2)?, row.get(3)?)))().map_err(&failed)?;
            check_version(&self.path, "facts of version", version)?;
            if number != self.number + 1 {
                return Err(damaged(format!("fact {} is missing", self.number + 1)));
            }
            if found != sum(number, &text) {
                return Err(damaged(format!("the bytes of fact {number} changed")));
            }
            let fact: Fact = serde_json::from_str(&text).map_err(|error| damaged(format!("fact {number}: {error}")))?;
            self.state.fold(&fact).map_err(|error| damaged(format!("fact {number}: {error}")))?;
            self.number = number;
            self.since_snapshot += 1;
        }
        Ok(())
    }

    fn write(&mut self, batch: &[Write]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        let mut number = self.number;
        let mut since_snapshot = self.since_snapshot;
        for write in batch {
            match write {
                Write::Facts(facts) => {
                    let mut insert = transaction
                        .prepare_cached("INSERT INTO facts (number, version, fact, sum) VALUES (?1, ?2, ?3, ?4)")?;
                    for fact in facts {
                        number += 1;
                        let text = json(fact);
                        insert.execute(params![column(number), FACT_VERSION, text, sum(number, &text)])?;
                        since_snapshot += 1;
                    }
                }
                Write::Snapshot(state) => {
                    let text = json(state.as_ref());
                    transaction.execute(
                        "INSERT OR REPLACE INTO snapshot (one, number, version, state, sum) VALUES (1, ?1, ?2, ?3, ?4)",
                        params![column(number), FACT_VERSION, text, sum(number, &text)],
                    )?;
                    transaction.execute("DELETE FROM facts WHERE number <= ?1", [column(number)])?;
                    since_snapshot = 0;
                }
            }
        }
        transaction.commit()?;
        self.number = number;
        self.since_snapshot = since_snapshot;
        Ok(())
    }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("facts and states can be written as JSON")
}

fn check_version(path: &Path, what: &'static str, found: u32) -> Result<(), JournalError> {
    if found > FACT_VERSION {
        return Err(JournalError::Newer { path: path.to_owned(), what, found, known: FACT_VERSION });
    }
    Ok(())
}

fn check_marks(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, u32>(0));
    if fs::metadata(path).is_ok_and(|file| file.len() == 0) {
        return Err(JournalError::Damaged { path: path.to_owned(), problem: "it is empty".to_owned() });
    }
    if pragma("application_id").map_err(sqlite(path))? != APPLICATION_ID {
        return Err(JournalError::Foreign { path: path.to_owned() });
    }
    let found = pragma("user_version").map_err(sqlite(path))?;
    if found > TABLES_VERSION {
        let what = "tables of version";
        return Err(JournalError::Newer { path: path.to_owned(), what, found, known: TABLES_VERSION });
    }
    Ok(())
}

fn read_snapshot(connection: &Connection, path: &Path) -> Result<(State, u64), JournalError> {
    let damaged = |problem: String| JournalError::Damaged { path: path.to_owned(), problem };
    let row = connection
        .query_row("SELECT number, version, state, sum FROM snapshot", [], |row| {
            Ok((number_in(row)?, row.get::<_, u32>(1)?, row.get::<_, String>(2)?, row.get::<_, String>(3)?))
        })
        .optional()
        .map_err(sqlite(path))?;
    let Some((number, version, text, found)) = row else { return Ok((State::default(), 0)) };
    check_version(path, "a snapshot of version", version)?;
    if found != sum(number, &text) {
        return Err(damaged("the bytes of the snapshot changed".to_owned()));
    }
    let state = serde_json::from_str(&text).map_err(|error| damaged(format!("the snapshot: {error}")))?;
    Ok((state, number))
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
        let thread =
            thread::Builder::new().name("journal".to_owned()).spawn(move || run(opened, writes, &tell, lock))?;
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

    /// Writes what is queued and gives up the lock. Blocks.
    pub(super) fn close(self) {
        drop(self.queue);
        // A thread that panicked has left SQLite's own recovery to the next start.
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

fn run(mut opened: Opened, mut writes: mpsc::Receiver<Write>, tell: &watch::Sender<Durable>, lock: Lock) {
    let mut batch = Vec::new();
    while writes.blocking_recv_many(&mut batch, MOST_WAITING) > 0 {
        let failure = opened.write(&batch).err().map(|error| Arc::new(sqlite(&opened.path)(error)));
        let failed = failure.is_some();
        tell.send_replace(Durable { number: opened.number, failure });
        if failed {
            break;
        }
        batch.clear();
    }
    drop(opened);
    drop(lock);
}

#[cfg(test)]
mod tests;
