//! A whole journal out of a database, or into one that holds none: what backups are made of, and brought back to.

use graftwork_shared::id::Term;

use super::{
    JournalError, Kept, Leadership, Ledger as _, Postgres, Row, column, number,
    statements::{FILL_FACTS, FILL_SNAPSHOT, FILL_TERM, TAKEN, TERM},
};
use crate::server::Database;

/// How filling a database ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// It holds the journal now.
    Done,
    /// It holds one already, which was left as it is.
    Holds,
    /// A coordinator leads it, which was left as it is.
    Led,
}

/// Nothing hangs on how long such a session would lead: it never does.
fn leadership(database: &Database) -> Leadership {
    Leadership { database: database.clone(), lease_ms: 0 }
}

/// What a database keeps at one moment, and the term of its last leader; `None` if it has no journal. Whoever leads it is
/// not disturbed.
pub(in crate::server::journal) fn look(database: &Database) -> Result<Option<(Kept, Term)>, JournalError> {
    let mut ledger = Postgres::connect(leadership(database), String::new())?;
    if !ledger.tables(false)? {
        return Ok(None);
    }
    let kept = ledger.read()?;
    // Read after the facts, so it is not below any of them.
    let row = ledger.ask_once(async |session| session.client.query_one(TERM, &[]).await)?;
    Ok(Some((kept, Term(number(row.get(0))))))
}

/// Writes a journal into a database that holds none, all or nothing, and the term that the next leader begins above.
pub(in crate::server::journal) fn fill(database: &Database, kept: &Kept, term: Term) -> Result<Filled, JournalError> {
    let mut ledger = Postgres::connect(leadership(database), String::new())?;
    ledger.tables(true)?;
    let version = |row: &Row| i32::try_from(row.version).unwrap_or(i32::MAX);
    let numbers: Vec<i64> = kept.facts.iter().map(|row| column(row.number)).collect();
    let versions: Vec<i32> = kept.facts.iter().map(version).collect();
    let texts: Vec<&str> = kept.facts.iter().map(|row| row.text.as_str()).collect();
    let sums: Vec<&str> = kept.facts.iter().map(|row| row.sum.as_str()).collect();
    ledger.ask_once(async |session| {
        let transaction = session.client.transaction().await?;
        let taken = transaction.query_one(TAKEN, &[]).await?;
        if taken.get(1) {
            return Ok(Filled::Led);
        }
        if taken.get(2) {
            return Ok(Filled::Holds);
        }
        if let Some(row) = &kept.snapshot {
            let values = (column(row.number), version(row));
            transaction.execute(FILL_SNAPSHOT, &[&values.0, &values.1, &row.text, &row.sum]).await?;
        }
        transaction.execute(FILL_FACTS, &[&numbers, &versions, &texts, &sums]).await?;
        transaction.execute(FILL_TERM, &[&column(term.0)]).await?;
        transaction.commit().await?;
        Ok(Filled::Done)
    })
}
