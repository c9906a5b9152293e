//! Why a blob cannot be kept or given, said alike for folders and object stores.

use std::{io, path::PathBuf};

use graftwork_shared::digest::Digest;

/// Why a blob cannot be kept or given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// There is none of this digest.
    #[error("blob {0} is not here")]
    Missing(Digest),
    /// The bytes that are kept are not those that were put.
    #[error("blob {wanted} is damaged: its bytes have the digest {found}; {}", set_aside(aside.as_deref()))]
    Damaged {
        /// The digest asked for.
        wanted: Digest,
        /// The digest of what is there.
        found: Digest,
        /// Where the bytes are now, if they were moved.
        aside: Option<String>,
    },
    /// Larger than allowed.
    #[error("a blob has more than {limit} bytes, which is the most that is kept")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// No room.
    #[error("the disk of {} is full: free some space and try again", path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
    },
    /// The system.
    #[error("{}: {error}", path.display())]
    Io {
        /// What was being read or written.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The object store.
    #[error("{place}: {problem}")]
    Store {
        /// The store, and the object in it if it is about one.
        place: String,
        /// What it says.
        problem: String,
    },
    /// An object store that cannot be trusted with what was acknowledged.
    #[error(
        "{place} does not keep its word about conditional writes: {problem}; two coordinators could overwrite each \
         other there, so it is not used: choose a store with real If-None-Match"
    )]
    Unfit {
        /// The store.
        place: String,
        /// What was seen.
        problem: String,
    },
}

fn set_aside(aside: Option<&str>) -> String {
    aside.map_or_else(|| "it was left where it is".to_owned(), |aside| format!("it was set aside as {aside}"))
}
