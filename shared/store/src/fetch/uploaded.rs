//! What a user uploaded: single files, and folders by the list that stands for them.
//!
//! Bytes come from whoever holds them, by their digest, and are checked by it; a file that is not whole never gets its
//! name.

use bytes::Bytes;
use futures::{TryStreamExt as _, future, stream::BoxStream};
use graftwork_shared::{
    digest::Digest,
    upload::{FolderList, MOST_LIST_BYTES, UploadedFile},
};

use super::{
    Cache, Fetched, Wanted,
    partial::{Announced, Entry, Partial},
    repository::retry,
};
use crate::StoreError;

/// Name of the only file of an entry that holds one.
const FILE: &str = "bytes";

/// Uploaded bytes by their digest: a coordinator's own blobs, or the wire to them.
pub trait Uploads: Send + Sync {
    /// The bytes of a blob in pieces. The caller checks them; [`StoreError::Upload`] says that there is no point in
    /// asking again.
    fn read(&self, blob: Digest) -> BoxStream<'static, Result<Bytes, StoreError>>;
}

/// For programs that no coordinator serves.
#[derive(Clone, Copy, Debug)]
pub struct NoUploads;

impl Uploads for NoUploads {
    fn read(&self, blob: Digest) -> BoxStream<'static, Result<Bytes, StoreError>> {
        let words = format!("{} lies with the coordinator that the job was submitted to, and not here", blob.short());
        Box::pin(futures::stream::once(future::ready(Err(StoreError::Upload(words)))))
    }
}

/// An uploaded file in the cache, fetched once.
///
/// # Errors
/// Nobody has it, it is not whole, the connection breaks, or the disk is full.
pub async fn fetch_uploaded_file(
    file: UploadedFile,
    cache: impl Into<Cache<'_>>,
    uploads: &dyn Uploads,
) -> Result<Fetched, StoreError> {
    let partial = match Partial::open(cache.into(), &format!("uploads/{}", file.digest)).await? {
        Entry::Complete(folder) => return Ok(folder.file(FILE)),
        Entry::Open(partial) => partial,
    };
    receive(&partial, FILE, file, uploads).await?;
    Ok(partial.finish()?.file(FILE))
}

pub(super) async fn fetch(
    location: &str,
    digest: Digest,
    cache: Cache<'_>,
    uploads: &dyn Uploads,
    wanted: Wanted,
) -> Result<Fetched, StoreError> {
    let partial = match Partial::open(cache, &format!("{}/uploads/{digest}", wanted.folder())).await? {
        Entry::Complete(folder) => return Ok(folder),
        Entry::Open(partial) => partial,
    };
    let problem = |problem: String| StoreError::Location { location: location.to_owned(), problem };
    let list = FolderList::from_bytes(&retry(|| small(digest, uploads)).await?).map_err(problem)?;
    if !wanted.key_files().iter().any(|name| list.files.contains_key(*name)) {
        return Err(problem(format!("the folder holds no {}", wanted.key_files().join(" or "))));
    }
    for (path, file) in list.files.iter().filter(|(path, _)| wanted.takes(path)) {
        receive(&partial, path, *file, uploads).await?;
    }
    partial.finish()
}

async fn receive(partial: &Partial, path: &str, file: UploadedFile, uploads: &dyn Uploads) -> Result<(), StoreError> {
    let announced = Announced { bytes: file.bytes, sha256: Some(file.digest) };
    partial.expect(path, file.bytes).await;
    retry(|| async {
        // Blobs are read from their start; what an earlier try left is written over.
        let mut open = partial.append(path, 0).await?;
        partial.fill(path, &mut open, uploads.read(file.digest)).await?;
        partial.close(path, open, &announced).await
    })
    .await
}

/// A blob that fits into memory.
async fn small(digest: Digest, uploads: &dyn Uploads) -> Result<Vec<u8>, StoreError> {
    let damaged = |problem: String| StoreError::Damaged { place: format!("blob {}", digest.short()), problem };
    let mut bytes = Vec::new();
    let mut pieces = uploads.read(digest);
    while let Some(piece) = pieces.try_next().await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > MOST_LIST_BYTES {
            return Err(damaged(format!("a list of files has at most {MOST_LIST_BYTES} bytes")));
        }
    }
    let found = Digest::of(&bytes);
    if found == digest { Ok(bytes) } else { Err(damaged(format!("its bytes have the digest {}", found.short()))) }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex},
    };

    use super::*;

    /// Blobs in memory; counts how often each is read.
    #[derive(Default)]
    struct Memory {
        blobs: BTreeMap<Digest, Vec<u8>>,
        reads: Arc<Mutex<Vec<Digest>>>,
    }

    impl Memory {
        fn put(&mut self, bytes: &[u8]) -> UploadedFile {
            let digest = Digest::of(bytes);
            self.blobs.insert(digest, bytes.to_vec());
            UploadedFile { bytes: bytes.len() as u64, digest }
        }

        fn folder(&mut self, files: &[(&str, &[u8])]) -> String {
            let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), self.put(bytes))).collect();
            let list = self.put(&FolderList { files }.to_bytes());
            graftwork_shared::upload::location(list.digest, "minilm")
        }
    }

    impl Uploads for Memory {
        fn read(&self, blob: Digest) -> BoxStream<'static, Result<Bytes, StoreError>> {
            self.reads.lock().unwrap().push(blob);
            let Some(bytes) = self.blobs.get(&blob) else { return NoUploads.read(blob) };
            let pieces: Vec<_> = bytes.chunks(3).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            Box::pin(futures::stream::iter(pieces))
        }
    }

    #[tokio::test]
    async fn a_file_is_fetched_once() {
        let (cache, mut memory) = (tempfile::tempdir().unwrap(), Memory::default());
        let file = memory.put(b"rows of a task");
        for _ in 0..2 {
            let path = fetch_uploaded_file(file, cache.path(), &memory).await.unwrap();
            assert_eq!(std::fs::read(path).unwrap(), b"rows of a task");
        }
        assert_eq!(memory.reads.lock().unwrap().len(), 1);
    }

    /// Gives nothing before two are asked for.
    struct Together(Memory, Arc<tokio::sync::Barrier>);

    impl Uploads for Together {
        fn read(&self, blob: Digest) -> BoxStream<'static, Result<Bytes, StoreError>> {
            let (pieces, both) = (self.0.read(blob), self.1.clone());
            let begun = async move {
                both.wait().await;
                pieces
            };
            Box::pin(futures::StreamExt::flatten(futures::stream::once(begun)))
        }
    }

    #[tokio::test]
    async fn two_that_are_fetched_at_once_stay_within_the_bound_together() {
        let (cache, mut memory) = (tempfile::tempdir().unwrap(), Memory::default());
        let bounded = || Cache::bounded(cache.path(), 40);
        for old in [b"0123456789", b"abcdefghij", b"klmnopqrst"] {
            let old = memory.put(old);
            fetch_uploaded_file(old, bounded(), &memory).await.unwrap();
        }
        let (one, other) = (memory.put(b"fifteen bytes 1"), memory.put(b"fifteen bytes 2"));
        let together = Together(memory, Arc::new(tokio::sync::Barrier::new(2)));
        let fetched = futures::future::join(
            fetch_uploaded_file(one, bounded(), &together),
            fetch_uploaded_file(other, bounded(), &together),
        );
        let held = fetched.await;
        assert!(held.0.is_ok() && held.1.is_ok(), "{held:?}");
        let entries = std::fs::read_dir(cache.path().join("uploads")).unwrap();
        let sizes = entries.filter_map(|entry| Some(entry.unwrap().path().join(FILE).metadata().ok()?.len()));
        assert_eq!(sizes.sum::<u64>(), 40, "two new ones, and one of the old ones");
    }

    #[tokio::test]
    async fn damaged_bytes_never_get_a_name() {
        let (cache, mut memory) = (tempfile::tempdir().unwrap(), Memory::default());
        let file = memory.put(b"rows of a task");
        memory.blobs.insert(file.digest, b"rows of a tusk".to_vec());
        let error = fetch_uploaded_file(file, cache.path(), &memory).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        memory.put(b"rows of a task");
        assert!(fetch_uploaded_file(file, cache.path(), &memory).await.is_ok(), "it can be fetched again");
    }

    #[tokio::test]
    async fn a_folder_comes_with_the_files_that_are_wanted_of_it() {
        let (cache, mut memory) = (tempfile::tempdir().unwrap(), Memory::default());
        let place = memory.folder(&[("config.json", b"{}"), ("model.safetensors", b"weights"), ("notes.txt", b"no")]);
        let folder = super::super::fetch_base_model(&place, None, cache.path(), &memory).await.unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "model.safetensors"]);
        let error = super::super::fetch_adapter(&place, None, cache.path(), &memory).await.unwrap_err();
        assert!(error.to_string().contains("holds no adapter_config.json"), "{error}");
    }

    #[tokio::test]
    async fn an_upload_that_nobody_has_says_what_to_do() {
        let cache = tempfile::tempdir().unwrap();
        let place = graftwork_shared::upload::location(Digest::of(b"gone"), "minilm");
        let error = super::super::fetch_base_model(&place, None, cache.path(), &NoUploads).await.unwrap_err();
        assert!(error.to_string().contains("submit the job again"), "{error}");
    }
}
