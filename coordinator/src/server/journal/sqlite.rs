//! A journal in a SQLite file of the state folder.
//!
//! The lock on the folder keeps a second coordinator away. The term in the file is checked all the same with every
//! write, so that a folder whose lock was lost (deleted, or on a file system without locks) has one writer too.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use graftwork_shared::id::Term;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::{
    JournalError, Leader,
    ledger::{Batch, Kept, Ledger, Row},
};

/// Marks a SQLite file as ours: "GRFT".
const APPLICATION_ID: u32 = 0x4752_4654;

/// Version of the tables. 2 added the leader's term.
const TABLES_VERSION: u32 = 2;

const TABLES: &str = "
    CREATE TABLE facts (number INTEGER PRIMARY KEY, version INTEGER NOT NULL, fact TEXT NOT NULL, sum TEXT NOT NULL) STRICT;
    CREATE TABLE snapshot (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        number INTEGER NOT NULL, version INTEGER NOT NULL, state TEXT NOT NULL, sum TEXT NOT NULL
    ) STRICT;
";

const LEADER: &str = "
    CREATE TABLE leader (one INTEGER PRIMARY KEY CHECK (one = 1), term INTEGER NOT NULL) STRICT;
    INSERT INTO leader (one, term) VALUES (1, 0);
";

/// An open file.
#[derive(Debug)]
pub(super) struct Sqlite {
    connection: Connection,
    place: String,
    term: Term,
}

/// Where the journal of a state folder lies.
pub(super) fn path(state_folder: &Path) -> PathBuf {
    state_folder.join("journal.sqlite")
}

fn sqlite(place: &str) -> impl Fn(rusqlite::Error) -> JournalError + '_ {
    use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
    move |error| {
        let place = place.to_owned();
        match error.sqlite_error_code() {
            Some(DiskFull) => JournalError::Full { place },
            Some(NotADatabase) => JournalError::Foreign { place },
            Some(DatabaseCorrupt) => JournalError::Damaged { place, problem: error.to_string() },
            _ => JournalError::Sqlite { place, error },
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

fn row_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row { number: number_in(row)?, version: row.get(1)?, text: row.get(2)?, sum: row.get(3)? })
}

/// Makes an empty journal, all or nothing: a file of this name is always a whole journal.
fn create(path: &Path) -> Result<(), JournalError> {
    let aside = path.with_extension("new");
    let io = |error| JournalError::Io { place: aside.display().to_string(), error };
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let write = || -> rusqlite::Result<()> {
        let connection = Connection::open(&aside)?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        connection.pragma_update(None, "user_version", TABLES_VERSION)?;
        connection.execute_batch(TABLES)?;
        connection.execute_batch(LEADER)?;
        connection.close().map_err(|(_, error)| error)
    };
    write().map_err(sqlite(&aside.display().to_string()))?;
    File::open(&aside).and_then(|file| file.sync_all()).map_err(io)?;
    fs::rename(&aside, path).map_err(io)?;
    let folder = path.parent().expect("a journal lies in a folder");
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

/// Refuses a file that is not ours; gives the version of its tables.
fn check_marks(connection: &Connection, path: &Path, place: &str) -> Result<u32, JournalError> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, u32>(0));
    if fs::metadata(path).is_ok_and(|file| file.len() == 0) {
        return Err(JournalError::Damaged { place: place.to_owned(), problem: "it is empty".to_owned() });
    }
    if pragma("application_id").map_err(sqlite(place))? != APPLICATION_ID {
        return Err(JournalError::Foreign { place: place.to_owned() });
    }
    let found = pragma("user_version").map_err(sqlite(place))?;
    if found > TABLES_VERSION {
        let what = "tables of version";
        return Err(JournalError::Newer { place: place.to_owned(), what, found, known: TABLES_VERSION });
    }
    Ok(found)
}

impl Sqlite {
    /// Opens the journal of a state folder, or makes it. The folder's lock must be held.
    pub(super) fn open(state_folder: &Path) -> Result<Self, JournalError> {
        let path = path(state_folder);
        let place = path.display().to_string();
        if !path.try_exists().map_err(|error| JournalError::Io { place: place.clone(), error })? {
            create(&path)?;
        }
        let failed = sqlite(&place);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&path, flags).map_err(&failed)?;
        let version = check_marks(&connection, &path, &place)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(&failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(&failed)?;
        let sound: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(&failed)?;
        if sound != "ok" {
            return Err(JournalError::Damaged { place: place.clone(), problem: sound });
        }
        if version < 2 {
            add_leader(&mut connection).map_err(&failed)?;
        }
        Ok(Self { connection, place: place.clone(), term: Term(0) })
    }

    fn kept(&self) -> rusqlite::Result<Kept> {
        let snapshot = self.connection.query_row("SELECT number, version, state, sum FROM snapshot", [], row_of);
        let mut facts = self.connection.prepare("SELECT number, version, fact, sum FROM facts ORDER BY number")?;
        let facts = facts.query_map([], row_of)?.collect::<Result<_, _>>()?;
        Ok(Kept { snapshot: snapshot.optional()?, facts })
    }

    /// Takes over what another ledger keeps, and the last leader's term with it.
    pub(super) fn fill(&mut self, kept: &Kept, term: Term) -> Result<(), JournalError> {
        self.write_all(kept, term).map_err(sqlite(&self.place))
    }

    fn write_all(&mut self, kept: &Kept, term: Term) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        kept.snapshot.iter().try_for_each(|row| insert_snapshot(&transaction, row))?;
        kept.facts.iter().try_for_each(|row| insert_fact(&transaction, row))?;
        transaction.execute("UPDATE leader SET term = ?1", [column(term.0)])?;
        transaction.commit()
    }

    /// Takes the next term; the file has one leader, whoever holds the lock.
    fn next_term(&self, known: Term) -> rusqlite::Result<u64> {
        let sql = "UPDATE leader SET term = max(term, ?1) + 1 RETURNING term";
        self.connection.query_row(sql, [column(known.0)], number_in)
    }

    /// Writes the batch if this is still the leader's term; otherwise gives the term of now.
    fn write(&mut self, batch: &Batch) -> rusqlite::Result<Result<(), u64>> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let term = transaction.query_row("SELECT term FROM leader", [], number_in)?;
        if term != self.term.0 {
            return Ok(Err(term));
        }
        if let Some(row) = &batch.snapshot {
            insert_snapshot(&transaction, row)?;
            transaction.execute("DELETE FROM facts WHERE number <= ?1", [column(row.number)])?;
        }
        batch.facts.iter().try_for_each(|row| insert_fact(&transaction, row))?;
        transaction.commit()?;
        Ok(Ok(()))
    }
}

fn insert_snapshot(transaction: &Transaction<'_>, row: &Row) -> rusqlite::Result<()> {
    let Row { number, version, text, sum } = row;
    let sql = "INSERT OR REPLACE INTO snapshot (one, number, version, state, sum) VALUES (1, ?1, ?2, ?3, ?4)";
    transaction.execute(sql, params![column(*number), version, text, sum]).map(drop)
}

fn insert_fact(transaction: &Transaction<'_>, row: &Row) -> rusqlite::Result<()> {
    let Row { number, version, text, sum } = row;
    let sql = "INSERT INTO facts (number, version, fact, sum) VALUES (?1, ?2, ?3, ?4)";
    transaction.prepare_cached(sql)?.execute(params![column(*number), version, text, sum]).map(drop)
}

/// From version 1 to 2, all or nothing.
fn add_leader(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(LEADER)?;
    transaction.pragma_update(None, "user_version", 2)?;
    transaction.commit()
}

impl Ledger for Sqlite {
    fn place(&self) -> &str {
        &self.place
    }

    fn read(&mut self) -> Result<Kept, JournalError> {
        self.kept().map_err(sqlite(&self.place))
    }

    fn lead(&mut self, known: Term) -> Result<Result<Term, Leader>, JournalError> {
        self.term = Term(self.next_term(known).map_err(sqlite(&self.place))?);
        Ok(Ok(self.term))
    }

    fn append(&mut self, batch: &Batch) -> Result<(), JournalError> {
        let written = self.write(batch);
        written.map_err(sqlite(&self.place))?.map_err(|term| {
            let leader = Leader { term, ..Leader::default() };
            JournalError::Superseded { place: self.place.clone(), leader }
        })
    }

    fn renew_every(&self) -> Option<Duration> {
        None
    }

    fn renew(&mut self) -> Result<(), JournalError> {
        Ok(())
    }

    fn resign(&mut self) {}
}
