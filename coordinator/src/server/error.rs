//! Why a coordinator cannot start or cannot go on. Every message says how to mend it.

use std::{io, net::SocketAddr, path::PathBuf};

use super::{blobs::BlobError, journal::JournalError, lock::Holder};

/// Why a coordinator cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// Another coordinator leads this state.
    #[error("state folder {} is in use by process {}", folder.display(), holder.pid)]
    Locked {
        /// The folder.
        folder: PathBuf,
        /// Who leads it, and where it listens.
        holder: Holder,
    },
    /// The state folder cannot be used.
    #[error("state folder {}: {error}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The blobs.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// Nowhere to listen.
    #[error("a coordinator needs at least one address to listen on")]
    NoAddress,
    /// An address that others can reach.
    #[error(
        "listening on {0} would let everyone on the network submit jobs and read results: only loopback addresses \
         and unix sockets are served, since this version has no TLS; reach it from elsewhere through an ssh tunnel"
    )]
    NotPrivate(SocketAddr),
    /// An address that every user of this machine can reach.
    #[error(
        "every user of this machine can reach {0}, so a token is needed there: name the environment variable that \
         holds it with --token-env, or listen on a unix socket"
    )]
    NoToken(SocketAddr),
    /// A token that can be guessed.
    #[error("the token has fewer than {least} characters; make one with `openssl rand -hex 32`, for example")]
    ShortToken {
        /// The bound.
        least: usize,
    },
    /// A port in use, an address of another machine.
    #[error("cannot listen on {address}: {error}; name another with --listen, or stop what uses it")]
    Listen {
        /// The address.
        address: String,
        /// What the system says.
        error: io::Error,
    },
    /// A socket in a folder that others can enter.
    #[error(
        "folder {} of the socket is open to others (mode {mode:o}): use a folder of its own with mode 700",
        folder.display()
    )]
    OpenFolder {
        /// The folder.
        folder: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Unix sockets have short paths.
    #[error("the path of socket {} has {length} bytes, but at most {limit} are allowed: use a shorter one", path.display())]
    LongPath {
        /// The socket.
        path: PathBuf,
        /// Its length.
        length: usize,
        /// The system's bound.
        limit: usize,
    },
    /// A part of the server ended that must not end.
    #[error("the coordinator's {0} ended unexpectedly; its state is safe, start it again")]
    Ended(&'static str),
}
