//! Why a journal cannot be read or written, said alike for SQLite and PostgreSQL. No message holds a password.

use std::{fmt, io, sync::Arc};

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// Not ours.
    #[error("{place} is not a journal of graftwork: move it away, or choose another place with --state")]
    Foreign {
        /// The file or database.
        place: String,
    },
    /// Of a later program.
    #[error(
        "{place} was written by a newer graftwork ({what} {found}, this one reads up to {known}): use that version, or \
         another place for the state"
    )]
    Newer {
        /// The file or database.
        place: String,
        /// What has the version.
        what: &'static str,
        /// The version there.
        found: u32,
        /// The version here.
        known: u32,
    },
    /// Damaged.
    #[error(
        "{place} is damaged ({problem}): restore it from a backup, or move the state away to start from nothing; what \
         is published stays"
    )]
    Damaged {
        /// The file or database.
        place: String,
        /// What was found.
        problem: String,
    },
    /// No room.
    #[error("the disk of {place} is full: free some space and run the same command, which goes on from here")]
    Full {
        /// The file or database.
        place: String,
    },
    /// The system.
    #[error("{place}: {error}")]
    Io {
        /// The file.
        place: String,
        /// What the system says.
        error: io::Error,
    },
    /// It stopped while running; what was acknowledged is safe.
    #[error("the journal stopped: {0}")]
    Stopped(Arc<JournalError>),
    /// SQLite.
    #[error("{place}: {error}")]
    Sqlite {
        /// The file.
        place: String,
        /// What SQLite says.
        error: rusqlite::Error,
    },
    /// The address of a database, or what stands behind it, cannot be used.
    #[error("{place}: {problem}")]
    Database {
        /// The database, without a password.
        place: String,
        /// What it says, and how to mend it.
        problem: String,
    },
    /// This coordinator leads no longer.
    #[error(
        "{leader}, says {place}: this one writes nothing more and ends; what it acknowledged is safe, and the other one \
         goes on with it"
    )]
    Superseded {
        /// The file or database.
        place: String,
        /// Who leads now.
        leader: Leader,
    },
    /// It stood still for longer than it leads, and nobody took over.
    #[error(
        "this coordinator stood still, or was cut off, for longer than its leadership of {place} lasts, so it wrote \
         nothing more and ends; nobody else leads: start it again"
    )]
    Lapsed {
        /// The database.
        place: String,
    },
    /// The database does not answer, so another coordinator may lead by now.
    #[error(
        "{place} has not answered for {seconds} seconds, as long as leadership lasts ({problem}): another coordinator \
         may lead by now, so this one ends; what was acknowledged is safe"
    )]
    Apart {
        /// The database.
        place: String,
        /// How long.
        seconds: u64,
        /// What the last attempt said.
        problem: String,
    },
}

/// Who leads, as the row says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leader {
    /// Host and process; empty when the place does not say.
    pub(crate) who: String,
    /// Where it listens.
    pub(crate) addresses: String,
    /// Since when, in words.
    pub(crate) since: String,
    /// Under which term.
    pub(crate) term: u64,
    /// Milliseconds until the row expires, if nobody renews it.
    pub(crate) left_ms: u64,
}

impl fmt::Display for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another coordinator")?;
        if !self.who.is_empty() {
            write!(f, " ({} at {})", self.who, self.addresses)?;
        }
        f.write_str(" leads")?;
        if !self.since.is_empty() {
            write!(f, " since {}", self.since)?;
        }
        write!(f, " under term {}", self.term)
    }
}
