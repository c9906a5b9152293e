//! Certificates and keys in PEM files, as whoever shows them reads them: the coordinator, and workers to each other.
//!
//! A key that others may read is refused, and nothing of it is ever said. A certificate out of its time is refused before
//! a peer does so, and one whose end is near is spoken of in the log. Whom a certificate is for, and who made it, is checked
//! by those who know whom they want.

mod facts;
mod pem;

pub use facts::{Facts, SOON_DAYS};
pub use pem::{certificates, private_key};

use std::{io, path::PathBuf};

/// Why there is nothing to show. None passes by itself.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file that cannot be read.
    #[error("{}: {error}; `graftwork cert FOLDER --host NAME` makes certificates", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A key that others may read.
    #[error("the key {} is open to others (mode {mode:o}): chmod 600 it", path.display())]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not what the name says, or what every peer would refuse.
    #[error("{}: {problem}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Every peer would refuse it.
    #[error("the certificate {} {when}: renew it with `graftwork cert FOLDER --renew`", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// Since when, or from when on.
        when: String,
    },
}

impl CertificateError {
    /// A file that is not what it should be.
    pub fn wrong(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Wrong { path: path.into(), problem: problem.into() }
    }
}
