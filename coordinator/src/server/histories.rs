//! Histories of nights that are kept with the state: blobs, and facts that say which file each of them is.
//!
//! So they have what all of a state has: they are written under the term of the coordinator that leads, whoever takes over
//! finds them, and they are read against their digests. What they say is `nightly`'s.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use graftwork_shared::digest::Digest;
use graftwork_store::StoreError;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use super::{BlobError, BlobStore, input::Input, pins};

/// Files of a history by their paths in it, with `/` between names.
pub(crate) type Files = BTreeMap<String, Digest>;

/// Bytes of a file at a time.
const PIECE: usize = 1 << 20;

/// Why a history cannot be read or kept now. All of it may pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    /// The coordinator that led has ended.
    #[error("the coordinator no longer leads: its successor goes on with the nights")]
    Ended,
    /// The blobs.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A file that is written.
    #[error(transparent)]
    Place(#[from] StoreError),
    /// A file that is to be kept.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl HistoryError {
    /// Whether the bytes of a file are lost.
    pub(crate) fn is_loss(&self) -> bool {
        matches!(self, Self::Blob(BlobError::Missing(_) | BlobError::Damaged { .. }))
    }
}

/// The histories of the coordinator that leads. All of it blocks, and none of it may be called on a thread that the
/// coordinator runs on.
#[derive(Clone, Debug)]
pub(crate) struct Histories {
    inputs: mpsc::WeakSender<Input>,
    blobs: BlobStore,
    runtime: Handle,
}

impl Histories {
    pub(super) fn new(inputs: mpsc::WeakSender<Input>, blobs: BlobStore) -> Self {
        Self { inputs, blobs, runtime: Handle::current() }
    }

    fn ask<T: Send + 'static>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, HistoryError> {
        let (to, answer) = oneshot::channel();
        let (inputs, input) = (self.inputs.upgrade().ok_or(HistoryError::Ended)?, input(to));
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let answered = if inputs.send(input).await.is_ok() { answer.await.ok() } else { None };
            // Whoever asked waits below.
            let _ = tell.send(answered);
        });
        told.recv().ok().flatten().ok_or(HistoryError::Ended)
    }

    /// The files of a history; none of one that is not there.
    pub(crate) fn files(&self, history: &str) -> Result<Files, HistoryError> {
        self.ask(|to| Input::History(history.to_owned(), to))
    }

    /// Puts a file into a folder as it is kept.
    pub(crate) fn fetch(&self, digest: Digest, to: &Path) -> Result<(), HistoryError> {
        fetch(&self.blobs, digest, to)
    }

    /// Keeps files as they are now, and lets go of those that have no place any more: all of it at once. It is durable when this
    /// returns; gives what is kept of each.
    pub(crate) fn keep(
        &self,
        history: &str,
        files: &BTreeMap<String, Option<PathBuf>>,
    ) -> Result<BTreeMap<String, Option<Digest>>, HistoryError> {
        // Until the fact is there that refers to them.
        let pinned = pins::for_request(&self.blobs, self.inputs.clone());
        let put = |path: &PathBuf| put(&pinned, path);
        let kept = files.iter().map(|(name, path)| Ok((name.clone(), path.as_ref().map(put).transpose()?)));
        let kept: BTreeMap<_, _> = kept.collect::<Result<_, HistoryError>>()?;
        self.ask(|to| Input::KeepHistory(history.to_owned(), kept.clone(), to))?;
        Ok(kept)
    }
}

/// Puts a file into blobs.
pub(super) fn put(blobs: &BlobStore, path: &Path) -> Result<Digest, HistoryError> {
    let failed = |error| HistoryError::File { path: path.to_owned(), error };
    let (mut file, mut writer) = (File::open(path).map_err(failed)?, blobs.writer()?);
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).map_err(failed)? {
            0 => return Ok(writer.finish()?),
            read => writer.write(&piece[..read])?,
        }
    }
}

/// Puts a blob into a file, which is durable then.
pub(super) fn fetch(blobs: &BlobStore, digest: Digest, to: &Path) -> Result<(), HistoryError> {
    Ok(graftwork_store::write_atomically(to, &blobs.read(digest)?)?)
}
