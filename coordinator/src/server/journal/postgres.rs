//! A journal in PostgreSQL, for coordinators on several machines: one leads, the others wait to take over.
//!
//! One row says who leads, under which term, and until when by the database's clock. Every write is a single statement
//! that asks this row first, renews it, and writes only if it still names this coordinator. So a coordinator that was
//! frozen or cut off can write nothing once its time is up, whatever it believes, and one that freezes in the middle
//! holds no lock. A broken connection is opened again; what was in doubt is looked up, and never written twice.

mod database;
mod moving;
mod statements;

use std::{
    fmt,
    fs::File,
    io::Read as _,
    time::{Duration, Instant},
};

use graftwork_shared::{digest::Digest, id::Term};
use tokio::{runtime::Runtime, time::timeout};
use tokio_postgres::{Client, Statement, error::SqlState};

use super::{
    JournalError, Leader,
    ledger::{Batch, Kept, Ledger, Row},
    signed::host_name,
};
pub(crate) use database::Database;
use database::words;
pub(crate) use moving::Filled;
pub(super) use moving::{fill, look};
use statements::{APPEND, FACTS, FOUND, LAST, LEAD, LEADER, RENEW, RESIGN, SNAPSHOT, TABLES, TABLES_VERSION};

/// Facts that are read at a time.
const PAGE: i64 = 5_000;

/// How long a question may take that no leadership hangs on, and the first one after a coordinator stood still.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause before a broken connection is opened again.
const PAUSE: Duration = Duration::from_millis(100);

/// How a coordinator leads by a database.
#[derive(Clone, Debug)]
pub(crate) struct Leadership {
    /// The database.
    pub(crate) database: Database,
    /// Milliseconds for which the row leads; it is renewed every third of them.
    pub(crate) lease_ms: u64,
}

/// A connection, and what was prepared on it.
struct Session {
    client: Client,
    append: Option<Statement>,
}

/// An open database.
pub(super) struct Postgres {
    leadership: Leadership,
    /// Until it is dropped.
    runtime: Option<Runtime>,
    session: Option<Session>,
    /// This process alone.
    id: String,
    /// Coordinators whose row is not waited for.
    dead: Vec<String>,
    /// Where others find it.
    who: String,
    addresses: String,
    term: Term,
    /// Until when the row names this coordinator for sure, by the clock of here.
    held_until: Instant,
}

/// Why a question was not answered.
enum Trouble {
    /// Asking again may help.
    Broken(String),
    /// It does not.
    Final(JournalError),
}

/// Whether the connection or the server is at fault, and not what was asked.
fn is_broken(error: &tokio_postgres::Error) -> bool {
    error.code().is_none_or(|code| {
        ["08", "57P", "40"].iter().any(|class| code.code().starts_with(class))
            || [SqlState::TOO_MANY_CONNECTIONS, SqlState::READ_ONLY_SQL_TRANSACTION].contains(code)
    })
}

fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(column: i64) -> u64 {
    u64::try_from(column).unwrap_or(u64::MAX)
}

fn row(row: &tokio_postgres::Row) -> Row {
    let version: i32 = row.get(1);
    let version = u32::try_from(version).unwrap_or(u32::MAX);
    Row { number: number(row.get(0)), version, text: row.get(2), sum: row.get(3) }
}

/// `HOST:PID`, as workers name their places.
fn who() -> String {
    format!("{}:{}", host_name(), std::process::id())
}

impl Postgres {
    /// Connects, and makes the tables if there are none. `addresses` are told to others.
    pub(super) fn open(leadership: Leadership, addresses: String) -> Result<Self, JournalError> {
        let mut open = Self::connect(leadership, addresses)?;
        open.tables(true)?;
        Ok(open)
    }

    /// The name under which it leads.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whoever led under one of these names runs no more.
    pub(super) fn succeed(&mut self, dead: Vec<String>) {
        self.dead = dead;
    }

    /// Looks for no tables.
    fn connect(leadership: Leadership, addresses: String) -> Result<Self, JournalError> {
        let place = leadership.database.place().to_owned();
        let io = |error| JournalError::Io { place: place.clone(), error };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io)?;
        let mut random = [0; 32];
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).map_err(io)?;
        let id = Digest::of(&random).short();
        Ok(Self {
            leadership,
            runtime: Some(runtime),
            session: None,
            id,
            dead: Vec::new(),
            who: who(),
            addresses,
            term: Term(0),
            held_until: Instant::now(),
        })
    }

    fn error(&self, error: &tokio_postgres::Error) -> JournalError {
        let place = self.leadership.database.place().to_owned();
        let problem = words(error);
        match error.code() {
            Some(code) if *code == SqlState::DISK_FULL => JournalError::Full { place },
            Some(code) if [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN].contains(code) => {
                JournalError::Damaged { place, problem }
            }
            Some(code) if code.code().starts_with("XX") => JournalError::Damaged { place, problem },
            Some(code) if *code == SqlState::INVALID_PASSWORD || code.code() == "28000" => {
                let help = "name the variable that holds the password with --database-password-env";
                JournalError::Database { place, problem: format!("{problem}; {help}") }
            }
            _ => JournalError::Database { place, problem },
        }
    }

    /// Asks the database, over a new connection if the last one broke.
    fn ask<T>(
        &mut self,
        patience: Duration,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Trouble> {
        let runtime = self.runtime.take().expect("the runtime is there until the ledger is dropped");
        let session = &mut self.session;
        let database = &self.leadership.database;
        let answer = runtime.block_on(async {
            timeout(patience, async {
                if session.as_ref().is_none_or(|session| session.client.is_closed()) {
                    *session = Some(Session { client: database.connect().await?, append: None });
                }
                match session {
                    Some(session) => work(session).await,
                    None => unreachable!("it was connected above"),
                }
            })
            .await
        });
        self.runtime = Some(runtime);
        match answer {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if is_broken(&error) => {
                self.session = None;
                Err(Trouble::Broken(words(&error)))
            }
            Ok(Err(error)) => Err(Trouble::Final(self.error(&error))),
            Err(_) => {
                self.session = None;
                Err(Trouble::Broken(format!("no answer within {patience:?}")))
            }
        }
    }

    /// The same where no leadership hangs on it: asked once.
    fn ask_once<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, JournalError> {
        self.ask(PATIENCE, work).map_err(|trouble| match trouble {
            Trouble::Final(error) => error,
            Trouble::Broken(problem) => JournalError::Database { place: self.place().to_owned(), problem },
        })
    }

    /// Whether the tables are there, and are ours; makes them first if that is asked for.
    fn tables(&mut self, make: bool) -> Result<bool, JournalError> {
        let place = self.place().to_owned();
        let (found, encoding, fsync) = self.ask_once(async |Session { client, .. }| {
            let transaction = client.transaction().await?;
            // Two coordinators that start at once make the tables once.
            transaction.execute("SELECT pg_advisory_xact_lock(1196574292)", &[]).await?;
            let found = transaction.query_one(FOUND, &[]).await?;
            let (ours, something): (bool, bool) = (found.get(0), found.get(1));
            let nothing = !ours && !something;
            if nothing && make {
                transaction.batch_execute(TABLES).await?;
            }
            let mark = if ours || (nothing && make) {
                let mark = transaction.query_opt("SELECT application, tables FROM graftwork.mark", &[]).await?;
                mark.map(|mark| (mark.get::<_, String>(0), mark.get::<_, i32>(1)))
            } else {
                None
            };
            transaction.commit().await?;
            let found_mark = (!nothing || make).then_some(mark);
            Ok((found_mark, found.get::<_, String>(2), found.get::<_, String>(3)))
        })?;
        let Some(mark) = found else { return Ok(false) };
        let known = TABLES_VERSION.unsigned_abs();
        match mark {
            Some((application, tables)) if application == "graftwork" && tables <= TABLES_VERSION => {}
            Some((application, tables)) if application == "graftwork" => {
                return Err(JournalError::Newer {
                    place,
                    what: "tables of version",
                    found: tables.unsigned_abs(),
                    known,
                });
            }
            _ => return Err(JournalError::Foreign { place }),
        }
        if encoding != "UTF8" && encoding != "SQL_ASCII" {
            let problem =
                format!("the database's encoding is {encoding}, but must be UTF8: make it with ENCODING 'UTF8'");
            return Err(JournalError::Database { place, problem });
        }
        if fsync == "off" {
            tracing::warn!(place, "fsync is off in this database: a crash of its machine loses what was acknowledged");
        }
        Ok(true)
    }

    fn leader(&mut self) -> Result<(String, Leader), JournalError> {
        let row = self.ask_once(async |Session { client, .. }| client.query_one(LEADER, &[]).await)?;
        let left = Duration::try_from_secs_f64(row.get::<_, f64>(5) / 1e3).unwrap_or_default();
        let leader = Leader {
            who: row.get(1),
            addresses: row.get(2),
            since: row.get(3),
            term: number(row.get(4)),
            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        Ok((row.get(0), leader))
    }

    /// Reads in pieces, and renews the lead between them: nobody else writes meanwhile.
    fn read_leading(&mut self) -> Result<Kept, JournalError> {
        let snapshot = self.ask_once(async |Session { client, .. }| client.query_opt(SNAPSHOT, &[]).await)?;
        let mut kept = Kept { snapshot: snapshot.as_ref().map(row), facts: Vec::new() };
        loop {
            self.renew()?;
            let last = kept.facts.last().map_or(i64::MIN, |row| column(row.number));
            let facts = self.ask_once(async |Session { client, .. }| client.query(FACTS, &[&last, &PAGE]).await)?;
            if facts.is_empty() {
                return Ok(kept);
            }
            kept.facts.extend(facts.iter().map(row));
        }
    }

    /// Who leads instead of this coordinator.
    fn superseded(&mut self) -> JournalError {
        let place = self.place().to_owned();
        match self.leader() {
            Ok((id, _)) if id == self.id => JournalError::Lapsed { place },
            Ok((_, leader)) => JournalError::Superseded { place, leader },
            Err(error) => error,
        }
    }

    /// Tries until it is done or the leadership is over; `work` says whether the row still names this coordinator.
    fn while_leading(
        &mut self,
        mut work: impl FnMut(&mut Self, Duration) -> Result<bool, Trouble>,
    ) -> Result<(), JournalError> {
        let lease = Duration::from_millis(self.leadership.lease_ms);
        loop {
            let began = Instant::now();
            // Whoever stood still asks once more, to be told who leads; the row refuses what comes too late.
            let patience = self.held_until.saturating_duration_since(began).max(PATIENCE.min(lease));
            match work(self, patience) {
                Ok(true) => {
                    self.held_until = began + lease;
                    return Ok(());
                }
                Ok(false) => return Err(self.superseded()),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Broken(problem)) if Instant::now() >= self.held_until => {
                    let place = self.place().to_owned();
                    return Err(JournalError::Apart { place, seconds: lease.as_secs(), problem });
                }
                Err(Trouble::Broken(problem)) => {
                    tracing::warn!(place = self.place(), problem, "the database does not answer; trying again");
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn try_renew(&mut self, patience: Duration) -> Result<bool, Trouble> {
        let (term, id, lease_ms) = (column(self.term.0), self.id.clone(), self.leadership.lease_ms as f64);
        self.ask(patience, async |Session { client, .. }| {
            Ok(client.query_opt(RENEW, &[&term, &id, &lease_ms]).await?.is_some())
        })
    }

    fn try_append(&mut self, batch: &Batch, patience: Duration) -> Result<bool, Trouble> {
        let (term, id, lease_ms) = (column(self.term.0), self.id.clone(), self.leadership.lease_ms as f64);
        let version = |row: &Row| i32::try_from(row.version).unwrap_or(i32::MAX);
        let snapshot = batch.snapshot.as_ref();
        let (kept_number, kept_version) = (snapshot.map(|row| column(row.number)), snapshot.map(version));
        let (state, kept_sum) = (snapshot.map(|row| row.text.as_str()), snapshot.map(|row| row.sum.as_str()));
        let numbers: Vec<i64> = batch.facts.iter().map(|row| column(row.number)).collect();
        let versions: Vec<i32> = batch.facts.iter().map(version).collect();
        let texts: Vec<&str> = batch.facts.iter().map(|row| row.text.as_str()).collect();
        let sums: Vec<&str> = batch.facts.iter().map(|row| row.sum.as_str()).collect();
        self.ask(patience, async |Session { client, append }| {
            let append = match append {
                Some(append) => append,
                None => append.insert(client.prepare(APPEND).await?),
            };
            let leads = client
                .query_opt(
                    append,
                    &[
                        &term,
                        &id,
                        &lease_ms,
                        &kept_number,
                        &kept_version,
                        &state,
                        &kept_sum,
                        &numbers,
                        &versions,
                        &texts,
                        &sums,
                    ],
                )
                .await?;
            Ok(leads.is_some())
        })
    }

    fn last(&mut self, patience: Duration) -> Result<u64, Trouble> {
        self.ask(patience, async |Session { client, .. }| Ok(number(client.query_one(LAST, &[]).await?.get(0))))
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("place", &self.place()).field("term", &self.term).finish_non_exhaustive()
    }
}

impl Ledger for Postgres {
    fn place(&self) -> &str {
        self.leadership.database.place()
    }

    fn read(&mut self) -> Result<Kept, JournalError> {
        if self.term > Term(0) {
            return self.read_leading();
        }
        self.ask_once(async |Session { client, .. }| {
            let moment = client.build_transaction().read_only(true);
            let transaction = moment.isolation_level(tokio_postgres::IsolationLevel::RepeatableRead).start().await?;
            let snapshot = transaction.query_opt(SNAPSHOT, &[]).await?;
            let facts = transaction.query(FACTS, &[&i64::MIN, &i64::MAX]).await?;
            Ok(Kept { snapshot: snapshot.as_ref().map(row), facts: facts.iter().map(row).collect() })
        })
    }

    fn lead(&mut self, known: Term) -> Result<Result<Term, Leader>, JournalError> {
        let began = Instant::now();
        let (known, lease_ms) = (column(known.0), self.leadership.lease_ms as f64);
        let (id, who, addresses) = (self.id.clone(), self.who.clone(), self.addresses.clone());
        let dead = self.dead.clone();
        let taken = self.ask_once(async |Session { client, .. }| {
            let taken = client.query_opt(LEAD, &[&known, &id, &who, &addresses, &lease_ms, &dead]).await?;
            Ok(taken.map(|row| number(row.get(0))))
        })?;
        match taken {
            Some(term) => {
                self.term = Term(term);
                self.held_until = began + Duration::from_millis(self.leadership.lease_ms);
                Ok(Ok(self.term))
            }
            None => Ok(Err(self.leader()?.1)),
        }
    }

    fn append(&mut self, batch: &Batch) -> Result<(), JournalError> {
        let mut in_doubt = false;
        self.while_leading(|ledger, patience| {
            // An earlier try may have been written although its answer was lost.
            if in_doubt && ledger.last(patience)? >= batch.last {
                return ledger.try_renew(patience);
            }
            let again = std::mem::replace(&mut in_doubt, true);
            match ledger.try_append(batch, patience) {
                Err(Trouble::Final(JournalError::Database { problem, .. }))
                    if again && problem.ends_with("(23505)") =>
                {
                    // It was written between the look and this try.
                    Err(Trouble::Broken(problem))
                }
                tried => tried,
            }
        })
    }

    fn renew_every(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.leadership.lease_ms / 3))
    }

    fn renew(&mut self) -> Result<(), JournalError> {
        self.while_leading(Self::try_renew)
    }

    fn resign(&mut self) {
        let (term, id) = (column(self.term.0), self.id.clone());
        if let Err(error) = self.ask_once(async |Session { client, .. }| client.execute(RESIGN, &[&term, &id]).await) {
            tracing::warn!(%error, "the lead could not be given up; it ends by itself");
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Nothing of it is waited for, so that it may be dropped anywhere.
        self.session = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
