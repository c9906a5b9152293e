//! A download in progress: a folder aside, gone on with after a break, checked, then renamed into the cache.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use graftwork_shared::digest::{Digest, Hasher};
use tokio::io::AsyncWriteExt as _;

use super::{
    held::{Cache, Fetched, beside, complete},
    room::{reserve, settle},
};
use crate::{StoreError, disk::Disk, disk::Lock};

/// The folder of one version that is being completed. Holds the lock of that version.
#[derive(Debug)]
pub(super) struct Partial {
    folder: PathBuf,
    target: PathBuf,
    /// The cache folder and its bound, where it has one.
    bound: Option<(PathBuf, u64)>,
    _lock: Lock,
}

/// What a server announced about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    /// Its size.
    pub(super) bytes: u64,
    /// Its SHA-256, where the server tells.
    pub(super) sha256: Option<Digest>,
}

/// Where a version stands in the cache.
pub(super) enum Entry {
    /// Complete.
    Complete(Fetched),
    /// Ours to complete.
    Open(Partial),
}

impl Partial {
    /// Takes the lock of `<cache>/<version>` and tells whether somebody completed it meanwhile.
    pub(super) async fn open(cache: Cache<'_>, version: &str) -> Result<Entry, StoreError> {
        let target = cache.folder.join(version);
        if let Some(complete) = complete(&target) {
            return Ok(Entry::Complete(complete));
        }
        let (folder, lock) = (beside(&target, "partial"), beside(&target, "lock"));
        Disk::real().create_folder(target.parent().unwrap_or(cache.folder))?;
        // Another process may download for minutes; the wait belongs on a thread of its own.
        let waited = tokio::task::spawn_blocking(move || Lock::wait(lock)).await;
        let lock = waited.map_err(|error| StoreError::file(&folder)(io::Error::other(error)))??;
        if let Some(complete) = complete(&target) {
            return Ok(Entry::Complete(complete));
        }
        Disk::real().create_folder(&folder)?;
        // Of whoever began it and is gone.
        settle(&target);
        let bound = cache.most_bytes.map(|most| (cache.folder.to_owned(), most));
        Ok(Entry::Open(Self { folder, target, bound, _lock: lock }))
    }

    /// Makes room for a file of so many bytes, where the cache has a bound. Others that make room count it from now on.
    pub(super) async fn expect(&self, path: &str, bytes: u64) {
        let Some((cache, most)) = self.bound.clone() else { return };
        let more = bytes.saturating_sub(self.have(path));
        let target = self.target.clone();
        let made = tokio::task::spawn_blocking(move || reserve(&cache, most, &target, more)).await;
        if let Err(error) = made {
            tracing::warn!("no room was made in the cache: {error}");
        }
    }

    /// Bytes of a file that are here already; the download goes on behind them.
    pub(super) fn have(&self, path: &str) -> u64 {
        fs::metadata(self.folder.join(path)).map_or(0, |metadata| metadata.len())
    }

    /// Opens a file to append behind `from` bytes.
    pub(super) async fn append(&self, path: &str, from: u64) -> Result<tokio::fs::File, StoreError> {
        let file = self.folder.join(path);
        Disk::real().create_folder(file.parent().unwrap_or(&self.folder))?;
        let opened = tokio::fs::File::options().create(true).append(true).open(&file).await;
        let opened = opened.map_err(StoreError::file(&file))?;
        opened.set_len(from).await.map_err(StoreError::file(&file))?;
        Ok(opened)
    }

    /// Writes what arrives. When the connection breaks, what arrived before is on the disk, so that the next try goes
    /// on behind it.
    pub(super) async fn fill(
        &self,
        path: &str,
        file: &mut tokio::fs::File,
        chunks: impl Stream<Item = Result<Bytes, StoreError>>,
    ) -> Result<(), StoreError> {
        let mut chunks = std::pin::pin!(chunks);
        let mut filled = Ok(());
        while filled.is_ok() {
            let Some(chunk) = chunks.next().await else { break };
            filled = match chunk {
                Ok(bytes) => file.write_all(&bytes).await.map_err(StoreError::file(self.folder.join(path))),
                Err(error) => Err(error),
            };
        }
        file.flush().await.map_err(StoreError::file(self.folder.join(path)))?;
        filled
    }

    /// Makes a file durable and compares it with what was announced; a wrong one is removed, so that the next try
    /// starts anew.
    pub(super) async fn close(
        &self,
        path: &str,
        file: tokio::fs::File,
        announced: &Announced,
    ) -> Result<(), StoreError> {
        let place = self.folder.join(path);
        file.sync_all().await.map_err(StoreError::file(&place))?;
        let announced = announced.clone();
        let checked = tokio::task::spawn_blocking(move || check(&place, &announced)).await;
        checked.map_err(|error| StoreError::file(&self.folder)(io::Error::other(error)))?
    }

    /// Gives the complete folder its name, and holds it.
    pub(super) fn finish(self) -> Result<Fetched, StoreError> {
        Disk::real().rename(&self.folder, &self.target)?;
        settle(&self.target);
        // Nobody removes it meanwhile, since the lock is ours still.
        complete(&self.target).ok_or_else(|| StoreError::Missing(self.target.display().to_string()))
    }
}

fn check(place: &Path, announced: &Announced) -> Result<(), StoreError> {
    let mut file = fs::File::open(place).map_err(StoreError::file(place))?;
    let mut hasher = Hasher::new();
    let bytes = io::copy(&mut file, &mut hasher).map_err(StoreError::file(place))?;
    let found = hasher.finish();
    let problem = match announced.sha256 {
        _ if bytes != announced.bytes => format!("{bytes} bytes arrived, but {} were announced", announced.bytes),
        Some(expected) if expected != found => {
            format!("SHA-256 is {}, but {} was announced", found.short(), expected.short())
        }
        _ => return Ok(()),
    };
    fs::remove_file(place).map_err(StoreError::file(place))?;
    Err(StoreError::Damaged { place: place.display().to_string(), problem })
}
