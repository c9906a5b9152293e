//! Why a coordinator cannot start or cannot go on. Every message says how to mend it.

use std::{io, net::SocketAddr, path::PathBuf};

use graftwork_certificate::CertificateError;

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
        "plain text on {0} would show tokens and jobs to the network: it is served on loopback alone; write https://{0}"
    )]
    NotPrivate(SocketAddr),
    /// An address that others can reach, without what keeps them out.
    #[error("everyone on the network can reach {address}: {}", guard(*tls, *tokens))]
    Unguarded {
        /// The address.
        address: SocketAddr,
        /// Whether it has a certificate.
        tls: bool,
        /// Whether it has tokens with roles.
        tokens: bool,
    },
    /// TLS without a certificate.
    #[error(
        "https://{0} needs a certificate: make one with `graftwork cert FOLDER --host NAME` and give --tls FOLDER; \
         plain text on loopback is http://{0}"
    )]
    NoCertificate(SocketAddr),
    /// A certificate that nobody would see.
    #[error(
        "a certificate is given, but no address speaks TLS: write it as https://ADDRESS, or leave the certificate out"
    )]
    UselessTls,
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] CertificateError),
    /// An address that every user of this machine can reach.
    #[error(
        "every user of this machine can reach {0}, so a token is needed there: name the environment variable that \
         holds it with --token-env, or a file of tokens with --tokens, or listen on a unix socket"
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

/// What an address lacks that others can reach.
fn guard(tls: bool, tokens: bool) -> String {
    let certificate = "a certificate (`graftwork cert FOLDER --host NAME` makes one, --tls FOLDER gives it)";
    let file = "tokens with roles (`graftwork token FILE NAME --role ROLE` makes one, --tokens FILE gives them)";
    let lacks: Vec<&str> =
        [(tls, certificate), (tokens, file)].iter().filter(|(has, _)| !has).map(|(_, it)| *it).collect();
    format!("it needs {}", lacks.join(" and "))
}
