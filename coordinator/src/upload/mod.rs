//! What `graftwork submit` does before it submits: local files go to the coordinator, content-addressed, and the job
//! names them by their digests.
//!
//! Nothing is uploaded that the coordinator holds already, so a second submit uploads nothing and an interrupted one
//! goes on. The user's paths never leave this module: what the coordinator says of an uploaded file is told with the
//! path that the user knows.

mod find;
mod send;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use graftwork_shared::{
    diagnostic::Diagnostic,
    digest::{Digest, Hasher},
    job::{Job, Spans},
    upload::UploadedFile,
};
pub(crate) use send::{UploadError, send};

/// A job whose local files have been read and named by their digests.
pub(crate) struct Upload {
    /// The job as it is submitted.
    pub(crate) job: Job,
    /// What the coordinator must hold before.
    contents: BTreeMap<Digest, Content>,
    /// The user's path of each location that stands in the job now.
    paths: BTreeMap<String, String>,
}

/// The bytes of one blob.
#[derive(Clone, Debug)]
enum Content {
    File {
        path: PathBuf,
        bytes: u64,
    },
    /// The list of a folder.
    List(Vec<u8>),
}

impl Content {
    fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } => *bytes,
            Self::List(list) => list.len() as u64,
        }
    }
}

impl Upload {
    /// Reads every local file that the job names, but those below a shared root; blocks. `Err` holds every place that
    /// cannot be read, in the order of the file.
    pub(crate) fn prepare(job: Job, spans: &Spans, shared_roots: &[PathBuf]) -> Result<Self, Vec<Diagnostic>> {
        find::prepare(job, spans, shared_roots)
    }

    /// Problems that the coordinator found, told with the user's paths.
    pub(crate) fn with_paths(&self, mut problems: Vec<Diagnostic>) -> Vec<Diagnostic> {
        for problem in &mut problems {
            for (location, path) in &self.paths {
                problem.message = problem.message.replace(location, path);
            }
        }
        problems
    }

    fn digests(&self) -> BTreeSet<Digest> {
        self.contents.keys().copied().collect()
    }
}

/// Size and SHA-256 of a file.
fn digest_of(path: &Path) -> std::io::Result<UploadedFile> {
    let mut hasher = Hasher::new();
    let bytes = std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(UploadedFile { bytes, digest: hasher.finish() })
}
