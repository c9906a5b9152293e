//! What can go wrong with places and bytes, in words that name the place and the mend.

use std::{io, path::PathBuf};

use graftwork_shared::{assignment::Blame, credentials::CredentialError};

/// Why something could not be fetched, stored or found.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A location that is no folder and no address of a known kind.
    #[error("{location:?} is not a place this program can read: {problem}")]
    Location {
        /// As it was written.
        location: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nothing is there.
    #[error("{0} does not exist")]
    Missing(String),
    /// The environment variable that a job names for credentials has no value, or none for jobs.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// A server refused.
    #[error("{url}: the server answered {status}{detail}")]
    Refused {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// The server's own words, or nothing.
        detail: String,
    },
    /// A server could not be reached, or the connection broke.
    #[error("{url}: {problem}")]
    Network {
        /// What was asked for.
        url: String,
        /// What happened.
        problem: String,
    },
    /// What arrived is not what was announced.
    #[error("{place}: {problem}")]
    Damaged {
        /// A file, an address or a release.
        place: String,
        /// What was found and what was expected.
        problem: String,
    },
    /// An uploaded file that the coordinator does not have, or no longer whole.
    #[error("an uploaded file cannot be read: {0}; submit the job again, which uploads what is missing")]
    Upload(String),
    /// The disk is full; nothing was made visible.
    #[error("no space is left on the disk of {0}; nothing was published there, so free some space and run it again")]
    DiskFull(PathBuf),
    /// Any other trouble with a file.
    #[error("{path}: {error}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl StoreError {
    /// How to mend it, where the message does not say so itself.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Missing(_) => Some(
                "name a folder (relative to the job file's own), hf://organisation/name@revision, or an object-store URL",
            ),
            Self::Credentials(CredentialError::Unset(_)) => {
                Some("set the variable where the coordinator and its workers run")
            }
            Self::Refused { status: 401 | 403, .. } => {
                Some("name the variable that holds a token with `credentials`, or check the token's rights")
            }
            Self::Network { .. } => Some("check the address and the network, then try again"),
            _ => None,
        }
    }

    /// Whose fault it is: decides whether a retry can help.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Location { .. } | Self::Missing(_) | Self::Credentials(_) | Self::Upload(_) => Blame::User,
            Self::Refused { status, .. } if (400..500).contains(status) && *status != 429 => Blame::User,
            _ => Blame::Machine,
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull(path),
            _ => Self::File { path, error },
        }
    }
}
