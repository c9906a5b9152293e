//! Why a state is not put aside, or not brought back. No message holds a password.

use std::{io, path::PathBuf};

use super::{
    super::{histories::HistoryError, journal::JournalError},
    ATTEMPTS, BlobError, ServerError,
};
use crate::nightly::AsideError;

/// Why a state is not put aside, or not brought back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    /// Nothing to put aside.
    #[error("{place} holds no journal: no coordinator has kept its state there")]
    NoState {
        /// The folder or database.
        place: String,
    },
    /// Something is there already.
    #[error("{} is there already, and nothing is written over it: name a folder that is not there", folder.display())]
    Exists {
        /// The folder.
        folder: PathBuf,
    },
    /// Something that nobody can prove to be a copy that broke off.
    #[error(
        "{} is there and is no copy of ours that broke off, so it is not removed: move it away, or name another folder than \
         {}", aside.display(), place.display()
    )]
    Strange {
        /// The folder in which the copy would be made.
        aside: PathBuf,
        /// The folder that was named.
        place: PathBuf,
    },
    /// Another process is making the same folder.
    #[error("{} is being written by another process: wait for it, or name another folder", place.display())]
    Busy {
        /// The folder that was named.
        place: PathBuf,
    },
    /// A folder that cannot be put in the place of another one.
    #[error(
        "{:?} cannot be made whole elsewhere and then given its name: {why}; name a folder that is not there yet",
        place
    )]
    Unnamed {
        /// As it was named.
        place: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// A journal is there already.
    #[error("{place} holds a journal already, and nothing is written over it: name a database without one")]
    Taken {
        /// The database.
        place: String,
    },
    /// A coordinator has begun there.
    #[error("a coordinator leads {place}: stop it, or name a database that none uses")]
    Led {
        /// The database.
        place: String,
    },
    /// Blobs of something else are there.
    #[error(
        "{place} holds blobs of another state, which the next coordinator would sweep away: name a prefix that nothing \
         uses"
    )]
    Used {
        /// The bucket and prefix.
        place: String,
    },
    /// Not a backup, or not a whole one.
    #[error("{} is no whole backup: {problem}", folder.display())]
    Wrong {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The coordinator let go of blobs each time.
    #[error("the coordinator let go of blobs {ATTEMPTS} times while they were copied; try again when it is quieter")]
    Restless,
    /// SQLite.
    #[error("{}: {error}", path.display())]
    Sqlite {
        /// The journal.
        path: PathBuf,
        /// What it says.
        error: rusqlite::Error,
    },
    /// The system.
    #[error("{}: {error}", path.display())]
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// What it says.
        error: io::Error,
    },
    /// A history of nights.
    #[error(transparent)]
    Nights(#[from] AsideError),
    /// A history of nights that a database holds.
    #[error(transparent)]
    History(HistoryError),
    /// A blob.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] ServerError),
}

impl From<HistoryError> for BackupError {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::Blob(error) => Self::Blob(error),
            error => Self::History(error),
        }
    }
}

impl BackupError {
    /// Whether it is the user's to mend: what names nothing that is there is, and a disk is not.
    pub(crate) fn is_input(&self) -> bool {
        match self {
            Self::NoState { .. }
            | Self::Exists { .. }
            | Self::Strange { .. }
            | Self::Busy { .. }
            | Self::Unnamed { .. }
            | Self::Taken { .. }
            | Self::Led { .. }
            | Self::Used { .. }
            | Self::Wrong { .. }
            | Self::Journal(ServerError::Journal(JournalError::Database { .. } | JournalError::Foreign { .. }))
            | Self::Blob(BlobError::Store { .. } | BlobError::Unfit { .. }) => true,
            Self::Restless
            | Self::Sqlite { .. }
            | Self::Io { .. }
            | Self::Nights(_)
            | Self::History(_)
            | Self::Blob(_)
            | Self::Journal(_) => false,
        }
    }
}
