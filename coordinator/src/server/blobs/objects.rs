//! Blobs in an object store, so that they survive the coordinator's machine.
//!
//! An object's name is its blob's digest, the term of the coordinator that wrote it, and a number of that coordinator's
//! own: `ab/DIGEST.TERM.NUMBER`. So no name is ever used twice, and a coordinator that was frozen and wakes up deletes
//! only what was there before it froze, never what its successor has put. For the same reason a blob that is put again
//! under a later term becomes another object, and whoever starts copies what facts may refer to only later: the earlier
//! object may be let go by whoever wrote or listed it, who does not know that it is wanted. Objects are created only where
//! there is none.
//!
//! One coordinator leads, so what is there is known here: it was listed at the start, and is kept up with every change.
//! Requests run on a thread of their own; whoever waits for one blocks.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use graftwork_shared::{digest::Digest, id::Term};
use object_store::{Error, ObjectStoreExt as _, WriteMultipart, path::Path};
use tokio::runtime::Runtime;

use super::{BlobError, Bucket, io_error};

/// Bytes that are asked for at a time, and of a part of a large object.
const PART_BYTES: usize = 8 << 20;

/// Larger blobs are uploaded in parts.
const WHOLE_BYTES: u64 = 64 << 20;

/// Larger objects are not copied when a coordinator starts. Checkpoints and results are smaller; uploads may be larger.
const ADOPTED_BYTES: u64 = 1 << 30;

/// Copies that are on their way at a time.
const ADOPTED_AT_ONCE: usize = 16;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Objects {
    bucket: Bucket,
    /// Where files with a blob's bytes are made.
    copies: PathBuf,
    term: Term,
    next: AtomicU64,
    index: Arc<Mutex<BTreeMap<Digest, Path>>>,
    /// Objects that stand for blobs that another object holds too.
    doubles: Mutex<Vec<Path>>,
    /// Until it is dropped.
    runtime: Option<Runtime>,
}

/// A blob on its way out.
pub(super) struct ObjectReader {
    digest: Digest,
    key: Path,
    at: u64,
    size: u64,
    window: Bytes,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while what it guards is half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The digest, term and number in an object's name.
fn parse(key: &Path) -> Option<(Digest, (u64, u64))> {
    let mut parts = key.filename()?.split('.');
    let (digest, term, number) = (parts.next()?, parts.next()?, parts.next()?);
    let known = (digest.parse().ok()?, (term.parse().ok()?, number.parse().ok()?));
    parts.next().is_none().then_some(known)
}

impl Objects {
    /// Lists what is there; the store was proved before ([`Bucket::prove`]).
    pub(super) fn open(bucket: Bucket, copies: PathBuf, term: Term) -> Result<Self, BlobError> {
        let io = |error| BlobError::Io { path: copies.clone(), error };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("object-store")
            .enable_all()
            .build()
            .map_err(io)?;
        let (next, index, doubles) = (AtomicU64::new(0), Arc::default(), Mutex::default());
        let objects = Self { bucket, copies, term, next, index, doubles, runtime: Some(runtime) };
        objects.list()?;
        Ok(objects)
    }

    /// Sees that the store keeps its word.
    pub(super) fn prove(&self) -> Result<(), BlobError> {
        let bucket = self.bucket.clone();
        self.wait(async move { bucket.prove().await })
    }

    /// The object that stands for a blob.
    #[cfg(test)]
    pub(super) fn object(&self, digest: Digest) -> (Bucket, Path) {
        (self.bucket.clone(), self.key(digest).unwrap())
    }

    /// Waits for a request.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        request: impl Future<Output = Result<T, BlobError>> + Send + 'static,
    ) -> Result<T, BlobError> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        self.spawn(async move {
            // Whoever asked waits below.
            let _ = tell.send(request.await);
        });
        told.recv().unwrap_or_else(|_| {
            let place = self.bucket.place().to_owned();
            Err(BlobError::Store { place, problem: "the request ended unexpectedly".to_owned() })
        })
    }

    fn spawn(&self, request: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(request);
        }
    }

    fn list(&self) -> Result<(), BlobError> {
        let bucket = self.bucket.clone();
        let keys: Vec<Path> = self.wait(async move {
            let listed = bucket.store.list(Some(&bucket.prefix)).map_ok(|object| object.location);
            listed.try_collect().await.map_err(|error| bucket.error(&bucket.prefix, &error))
        })?;
        let mut latest = BTreeMap::new();
        for key in keys {
            let Some((digest, written)) = parse(&key) else { continue };
            let double = match latest.get(&digest) {
                Some((earlier, _)) if *earlier > written => Some(key),
                _ => latest.insert(digest, (written, key)).map(|(_, earlier)| earlier),
            };
            lock(&self.doubles).extend(double);
        }
        *lock(&self.index) = latest.into_iter().map(|(digest, (_, key))| (digest, key)).collect();
        Ok(())
    }

    pub(super) fn has(&self, digest: Digest) -> bool {
        lock(&self.index).contains_key(&digest)
    }

    /// Where a file with the blob's bytes lies, once it was made.
    pub(super) fn copy(&self, digest: Digest) -> PathBuf {
        self.copies.join(digest.to_string())
    }

    fn key(&self, digest: Digest) -> Result<Path, BlobError> {
        lock(&self.index).get(&digest).cloned().ok_or(BlobError::Missing(digest))
    }

    /// What an error of an object means; one that is not there any more is forgotten.
    fn failed(&self, digest: Digest, key: &Path, error: &Error) -> BlobError {
        if matches!(error, Error::NotFound { .. }) {
            let mut index = lock(&self.index);
            if index.get(&digest) == Some(key) {
                index.remove(&digest);
            }
            return BlobError::Missing(digest);
        }
        self.bucket.error(key, error)
    }

    /// Bytes of an object; `Err` in it is the store's.
    fn size(&self, digest: Digest, key: &Path) -> Result<u64, BlobError> {
        let (store, wanted) = (Arc::clone(&self.bucket.store), key.clone());
        let found = self.wait(async move { Ok(store.head(&wanted).await) })?;
        found.map(|meta| meta.size).map_err(|error| self.failed(digest, key, &error))
    }

    fn open_key(&self, digest: Digest, key: Path) -> Result<ObjectReader, BlobError> {
        let size = self.size(digest, &key)?;
        Ok(ObjectReader { digest, key, at: 0, size, window: Bytes::new() })
    }

    pub(super) fn open_blob(&self, digest: Digest) -> Result<ObjectReader, BlobError> {
        self.open_key(digest, self.key(digest)?)
    }

    /// The next bytes, at most so many; none at the end.
    pub(super) fn piece(&self, reader: &mut ObjectReader, bytes: usize) -> Result<Vec<u8>, BlobError> {
        if reader.window.is_empty() && reader.at < reader.size {
            let end = reader.size.min(reader.at + PART_BYTES as u64);
            let (store, key, range) = (Arc::clone(&self.bucket.store), reader.key.clone(), reader.at..end);
            let got = self.wait(async move { Ok(store.get_range(&key, range).await) })?;
            reader.window = got.map_err(|error| self.failed(reader.digest, &reader.key, &error))?;
            // A store that gives less than it has said would be asked for ever.
            reader.at = if reader.window.is_empty() { reader.size } else { reader.at + reader.window.len() as u64 };
        }
        Ok(reader.window.split_to(bytes.min(reader.window.len())).to_vec())
    }

    /// Whether this coordinator alone may let an object go.
    fn is_own(&self, key: &Path) -> bool {
        parse(key).is_some_and(|(_, (term, _))| term == self.term.0)
    }

    /// A name that no object has had.
    fn new_key(&self, digest: Digest) -> Path {
        let name = digest.to_string();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let folder = self.bucket.prefix.clone().join(&name[..2]);
        folder.join(format!("{name}.{}.{number}", self.term.0))
    }

    /// Makes objects of this term out of those that earlier ones wrote, before anybody reads; one that has gone meanwhile is
    /// not here any more. Those of more than [`ADOPTED_BYTES`] stay as they are. After an error the copies that were made
    /// lie there until the next start, which finds them.
    pub(super) fn adopt(&self, blobs: &[Digest]) -> Result<(), BlobError> {
        let foreign = blobs.iter().filter_map(|digest| Some((*digest, self.key(*digest).ok()?)));
        let moves: Vec<(Digest, Path, Path)> = foreign
            .filter(|(_, from)| !self.is_own(from))
            .map(|(digest, from)| (digest, from, self.new_key(digest)))
            .collect();
        let store = Arc::clone(&self.bucket.store);
        let adopt = move |(digest, from, to): (Digest, Path, Path)| {
            let store = Arc::clone(&store);
            async move {
                let adopted = match store.head(&from).await {
                    Ok(found) if found.size > ADOPTED_BYTES => Ok(false),
                    Ok(_) => store.copy(&from, &to).await.map(|()| true),
                    Err(error) => Err(error),
                };
                (digest, from, to, adopted)
            }
        };
        let copies = futures::stream::iter(moves).map(adopt).buffer_unordered(ADOPTED_AT_ONCE);
        for (digest, from, to, adopted) in self.wait(async move { Ok(copies.collect::<Vec<_>>().await) })? {
            match adopted {
                Ok(true) => {
                    let earlier = lock(&self.index).insert(digest, to);
                    lock(&self.doubles).extend(earlier);
                }
                Ok(false) => {}
                Err(error) => match self.failed(digest, &from, &error) {
                    BlobError::Missing(_) => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Uploads a file of this digest and length, unless it was under this term.
    pub(super) fn keep(&self, aside: &FilePath, digest: Digest, bytes: u64) -> Result<(), BlobError> {
        if let Some(key) = self.key(digest).ok().filter(|key| self.is_own(key)) {
            match self.size(digest, &key) {
                Ok(size) if size == bytes => return Ok(()),
                // Whatever is there is not it any more.
                Ok(_) | Err(BlobError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let key = self.new_key(digest);
        let earlier = self.upload(aside, digest, bytes, &key).map(|()| lock(&self.index).insert(digest, key))?;
        lock(&self.doubles).extend(earlier);
        Ok(())
    }

    fn upload(&self, aside: &FilePath, digest: Digest, bytes: u64, key: &Path) -> Result<(), BlobError> {
        let (bucket, target) = (self.bucket.clone(), key.clone());
        if bytes > WHOLE_BYTES {
            let aside = aside.to_owned();
            // The name is new, and an object of parts appears as a whole.
            return self.wait(async move { upload_parts(&bucket, &aside, &target).await });
        }
        let whole = Bytes::from(fs::read(aside).map_err(io_error(aside))?);
        let created = self.wait(async move { Ok(bucket.create(&target, whole.into()).await) })?;
        match created {
            Ok(()) => Ok(()),
            // Its own write, whose answer was lost, or that of another coordinator of this term, which there cannot be.
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => self.check(digest, key),
            Err(error) => Err(self.bucket.error(key, &error)),
        }
    }

    fn check(&self, digest: Digest, key: &Path) -> Result<(), BlobError> {
        let mut reader = self.open_key(digest, key.clone())?;
        let mut hasher = graftwork_shared::digest::Hasher::new();
        loop {
            let piece = self.piece(&mut reader, PART_BYTES)?;
            if piece.is_empty() {
                break;
            }
            hasher.update(&piece);
        }
        if hasher.finish() == digest {
            return Ok(());
        }
        let problem = "another coordinator has written an object of this name".to_owned();
        Err(BlobError::Store { place: format!("{} ({key})", self.bucket.place()), problem })
    }

    /// Moves a damaged object out of the way.
    pub(super) fn set_aside(&self, digest: Digest) -> Result<String, BlobError> {
        let key = self.key(digest)?;
        lock(&self.index).remove(&digest);
        let aside = self.bucket.prefix.clone().join(format!("damaged-{digest}"));
        let (bucket, target) = (self.bucket.clone(), aside.clone());
        self.wait(async move {
            bucket.store.copy(&key, &target).await.map_err(|error| bucket.error(&key, &error))?;
            bucket.store.delete(&key).await.map_err(|error| bucket.error(&key, &error))
        })?;
        Ok(format!("{} ({aside})", self.bucket.place()))
    }

    /// Lets a blob go: it is not here from now on, and its object goes when it can.
    pub(super) fn let_go(&self, digest: Digest) {
        let Some(key) = lock(&self.index).remove(&digest) else { return };
        let bucket = self.bucket.clone();
        self.spawn(async move {
            if let Err(error) = bucket.store.delete(&key).await {
                // It takes room until the next start sweeps it away; nothing depends on its going.
                let error = bucket.error(&key, &error);
                tracing::warn!(%error, "an object that is no longer needed cannot be removed");
            }
        });
    }

    /// All blobs.
    pub(super) fn all(&self) -> Vec<Digest> {
        lock(&self.index).keys().copied().collect()
    }

    pub(super) fn sweep(&self, goes: impl Fn(&Digest) -> bool) -> Result<u64, BlobError> {
        let mut keys = std::mem::take(&mut *lock(&self.doubles));
        let unwanted: Vec<Digest> = lock(&self.index).keys().filter(|digest| goes(digest)).copied().collect();
        keys.extend(unwanted.iter().filter_map(|digest| lock(&self.index).remove(digest)));
        let count = keys.len() as u64;
        let bucket = self.bucket.clone();
        self.wait(async move {
            let keys = futures::stream::iter(keys.into_iter().map(Ok)).boxed();
            let deleted: Result<Vec<Path>, Error> = bucket.store.delete_stream(keys).try_collect().await;
            deleted.map(drop).map_err(|error| bucket.error(&bucket.prefix, &error))
        })?;
        Ok(count)
    }
}

async fn upload_parts(bucket: &Bucket, aside: &FilePath, key: &Path) -> Result<(), BlobError> {
    let failed = |error: Error| bucket.error(key, &error);
    let upload = bucket.store.put_multipart(key).await.map_err(failed)?;
    let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    let mut file = File::open(aside).map_err(io_error(aside))?;
    loop {
        let mut part = Vec::with_capacity(PART_BYTES);
        (&mut file).take(PART_BYTES as u64).read_to_end(&mut part).map_err(io_error(aside))?;
        if part.is_empty() {
            break;
        }
        parts.wait_for_capacity(2).await.map_err(failed)?;
        parts.put(part.into());
    }
    parts.finish().await.map(drop).map_err(failed)
}

impl Drop for Objects {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Whatever is still let go may be let go by the next start.
            runtime.shutdown_background();
        }
    }
}
