//! What keeps a journal's rows: SQLite in the state folder, or PostgreSQL for several coordinators.
//!
//! A ledger knows nothing of facts. It keeps texts with their numbers, versions and sums, says which coordinator leads,
//! and writes a batch whole or not at all, and only for the coordinator that leads now (invariant 2).

use std::{fmt, time::Duration};

use graftwork_scheduler::{FACT_VERSION, Fact, State};
use graftwork_shared::{digest::Digest, id::Term};

use super::{JournalError, Leader, Write};

/// A fact or a snapshot as it is kept.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// A fact's number, or that of the last fact in a snapshot.
    pub(super) number: u64,
    /// Version of facts.
    pub(super) version: u32,
    /// JSON.
    pub(super) text: String,
    /// Of number and text.
    pub(super) sum: String,
}

/// All that is kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) snapshot: Option<Row>,
    /// By number.
    pub(super) facts: Vec<Row>,
}

/// What is written at once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Takes the place of every fact up to its number.
    pub(super) snapshot: Option<Row>,
    /// Facts behind the snapshot.
    pub(super) facts: Vec<Row>,
    /// The last fact's number once the batch is written.
    pub(super) last: u64,
}

/// See the module's documentation. All of it blocks, and none of it may be called in async code.
pub(super) trait Ledger: Send + fmt::Debug {
    /// The file or database, as errors name it.
    fn place(&self) -> &str;

    /// Everything that is kept, as of one moment.
    fn read(&mut self) -> Result<Kept, JournalError>;

    /// Takes the lead under a term higher than any before and than `known`, or says who leads.
    fn lead(&mut self, known: Term) -> Result<Result<Term, Leader>, JournalError>;

    /// Writes a batch, all or nothing, if the coordinator that took the lead here leads still.
    fn append(&mut self, batch: &Batch) -> Result<(), JournalError>;

    /// How often the lead must be renewed; `None`: it lasts as long as the process.
    fn renew_every(&self) -> Option<Duration>;

    /// Goes on leading, or says why not.
    fn renew(&mut self) -> Result<(), JournalError>;

    /// Gives the lead up, so that the next coordinator need not wait.
    fn resign(&mut self);
}

/// What must be found again with a text.
pub(super) fn sum(number: u64, text: &str) -> String {
    Digest::of(format!("{number} {text}").as_bytes()).short()
}

fn row<T: serde::Serialize>(number: u64, value: &T) -> Row {
    let text = serde_json::to_string(value).expect("facts and states can be written as JSON");
    let sum = sum(number, &text);
    Row { number, version: FACT_VERSION, text, sum }
}

impl Batch {
    /// The rows of what gathered in the queue, behind the fact of this number.
    pub(super) fn of(writes: &[Write], after: u64) -> Self {
        let mut batch = Self { last: after, ..Self::default() };
        for write in writes {
            match write {
                Write::Facts(facts) => {
                    for fact in facts {
                        batch.last += 1;
                        batch.facts.push(row(batch.last, fact));
                    }
                }
                Write::Snapshot(state) => {
                    batch.facts.clear();
                    batch.snapshot = Some(row(batch.last, state.as_ref()));
                }
            }
        }
        batch
    }
}

fn check(place: &str, what: &'static str, row: &Row) -> Result<(), JournalError> {
    if row.version > FACT_VERSION {
        let (place, found) = (place.to_owned(), row.version);
        return Err(JournalError::Newer { place, what, found, known: FACT_VERSION });
    }
    Ok(())
}

/// Folds what is kept, every row checked; gives the state, the last fact's number, and how many facts were folded.
pub(super) fn fold(place: &str, kept: &Kept) -> Result<(State, u64, u64), JournalError> {
    let damaged = |problem: String| JournalError::Damaged { place: place.to_owned(), problem };
    let (mut state, mut last) = (State::default(), 0);
    if let Some(row) = &kept.snapshot {
        check(place, "a snapshot of version", row)?;
        if row.sum != sum(row.number, &row.text) {
            return Err(damaged("the bytes of the snapshot changed".to_owned()));
        }
        state = serde_json::from_str(&row.text).map_err(|error| damaged(format!("the snapshot: {error}")))?;
        last = row.number;
    }
    for row in &kept.facts {
        let number = row.number;
        check(place, "facts of version", row)?;
        if number != last + 1 {
            return Err(damaged(format!("fact {} is missing", last + 1)));
        }
        if row.sum != sum(number, &row.text) {
            return Err(damaged(format!("the bytes of fact {number} changed")));
        }
        let fact: Fact = serde_json::from_str(&row.text).map_err(|error| damaged(format!("fact {number}: {error}")))?;
        state.fold(&fact).map_err(|error| damaged(format!("fact {number}: {error}")))?;
        last = number;
    }
    Ok((state, last, kept.facts.len() as u64))
}
