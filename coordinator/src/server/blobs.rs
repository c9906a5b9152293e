//! Content-addressed bytes: checkpoints, results, adapters from outside, uploaded data.
//!
//! They lie in the state folder or in an object store. A blob is written aside under no name of its own, and named
//! only when it is whole and durable, so a blob that is known survives kill -9 (invariant 4). Reading verifies. Nothing
//! half-written counts.
//!
//! A blob is kept while the scheduler's state refers to it, and while it is pinned: from the moment it was put until
//! a fact refers to it, or its owner is gone (see `pins.rs`). Without pins, a blob could be put again (and
//! acknowledged) while its last reference goes.

mod bucket;
mod error;
mod fault;
mod folder;
mod kind;
mod objects;
mod proof;
#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use graftwork_shared::{
    digest::{Digest, Hasher},
    id::Term,
};

pub(crate) use self::{bucket::Bucket, error::BlobError, proof::Belief};
use self::{
    folder::Folder,
    objects::{ObjectReader, Objects},
};

/// The blobs of one state. Clones are the same store. What reads or writes bytes blocks: call it on a blocking thread.
/// Asking what is here, pins, and letting go do not wait for an object store.
#[derive(Clone, Debug)]
pub(crate) struct BlobStore {
    shared: Arc<Shared>,
    note: Option<Arc<Note>>,
}

/// What was put through one store and its clones, told when the last of them goes.
struct Note {
    put: Mutex<Vec<Digest>>,
    tell: Box<dyn Fn(Vec<Digest>) + Send + Sync>,
}

impl std::fmt::Debug for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Note").field("put", &self.put).finish_non_exhaustive()
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let put = std::mem::take(self.put.get_mut().unwrap_or_else(PoisonError::into_inner));
        (self.tell)(put);
    }
}

/// What a store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) blobs: usize,
    /// Where that is known without asking an object store.
    pub(crate) bytes: Option<u64>,
}

/// Where the bytes lie.
#[derive(Debug)]
enum Place {
    Folder(Folder),
    Objects(Objects),
}

#[derive(Debug)]
struct Shared {
    place: Place,
    /// Where blobs are written until they are whole.
    incoming: PathBuf,
    /// Whoever only reads another's blobs changes nothing there.
    is_anothers: bool,
    limit: u64,
    next: AtomicU64,
    /// How often a blob was put without a fact that refers to it. Held while a blob loses its name, never while the disk
    /// is waited for: whoever gives a blob its name pins it first.
    pins: Mutex<HashMap<Digest, u32>>,
}

/// Most bytes of one blob: shards of uploaded data are the largest.
const LIMIT_BYTES: u64 = 64 << 30;

/// Most bytes of a disk that blobs leave free; of a small one a twentieth.
const RESERVE_BYTES: u64 = 256 << 20;

/// How often a blob on its way looks for room.
const LOOK_EVERY_BYTES: u64 = 16 << 20;

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BlobError + '_ {
    move |error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlobError::Full { path: path.to_owned() },
        _ => BlobError::Io { path: path.to_owned(), error },
    }
}

/// An empty folder of this name; what an earlier process left in it goes.
fn emptied(folder: &Path) -> Result<(), BlobError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(folder)(error)),
        _ => {}
    }
    fs::create_dir_all(folder).map_err(io_error(folder))
}

impl BlobStore {
    /// Opens the store below a state folder; what was half-written before is removed.
    pub(crate) fn open(state_folder: &Path) -> Result<Self, BlobError> {
        Self::with_limit(state_folder, LIMIT_BYTES)
    }

    fn with_limit(state_folder: &Path, limit: u64) -> Result<Self, BlobError> {
        let folder = Folder(state_folder.join("blobs"));
        let incoming = folder.0.join("incoming");
        emptied(&incoming)?;
        // A folder has its name for good once the folder above it is synced.
        folder::sync(&folder.0)?;
        folder::sync(state_folder)?;
        Ok(Self::over(Place::Folder(folder), incoming, Some(limit)))
    }

    /// Makes blobs that an earlier coordinator may let go, should it wake up, this one's own.
    pub(super) fn adopt(&self, blobs: &[Digest]) -> Result<(), BlobError> {
        match &self.shared.place {
            // The folder's lock lets nobody else in.
            Place::Folder(_) => Ok(()),
            Place::Objects(objects) => objects.adopt(blobs),
        }
    }

    /// Opens the store in a bucket, for the coordinator of this term, after the bucket has shown that it keeps its word.
    /// Blobs on their way lie below the coordinator's own folder.
    pub(crate) fn open_bucket(bucket: Bucket, own_folder: &Path, term: Term) -> Result<Self, BlobError> {
        let (incoming, copies) = (own_folder.join("blobs/incoming"), own_folder.join("blobs/copies"));
        emptied(&incoming)?;
        emptied(&copies)?;
        let objects = Objects::open(bucket, copies, term)?;
        Ok(Self::over(Place::Objects(objects), incoming, Some(LIMIT_BYTES)))
    }

    /// The same for whoever fills a bucket before any coordinator does.
    pub(super) fn open_unused_bucket(bucket: Bucket, own_folder: &Path, term: Term) -> Result<Self, BlobError> {
        let store = Self::open_bucket(bucket, own_folder, term)?;
        if let Place::Objects(objects) = &store.shared.place {
            objects.prove()?;
        }
        Ok(store)
    }

    /// The blobs in the bucket of a coordinator that may be running, as they are now, for reading alone: piece by piece,
    /// and, with a folder of the reader's own, as files below it ([`BlobStore::local`]).
    pub(crate) fn of_anothers_bucket(bucket: Bucket, own_folder: Option<&Path>) -> Result<Self, BlobError> {
        let (mut incoming, mut copies) = (PathBuf::new(), PathBuf::new());
        if let Some(folder) = own_folder {
            (incoming, copies) = (folder.join("blobs/incoming"), folder.join("blobs/copies"));
            emptied(&incoming)?;
            emptied(&copies)?;
        }
        let objects = Objects::open(bucket, copies, Term(0))?;
        Ok(Self::over(Place::Objects(objects), incoming, None))
    }

    /// The blobs of a coordinator that may be running, for reading alone.
    pub(crate) fn of_another(state_folder: &Path) -> Self {
        let folder = Folder(state_folder.join("blobs"));
        let incoming = folder.0.join("incoming");
        Self::over(Place::Folder(folder), incoming, None)
    }

    /// Without a limit it is another's, and nothing is written.
    fn over(place: Place, incoming: PathBuf, limit: Option<u64>) -> Self {
        let (is_anothers, limit) = (limit.is_none(), limit.unwrap_or(0));
        let shared = Shared { place, incoming, is_anothers, limit, next: AtomicU64::new(0), pins: Mutex::default() };
        Self { shared: Arc::new(shared), note: None }
    }

    /// The same store, which tells what was put through it once it and its clones are gone.
    pub(super) fn noting(&self, tell: impl Fn(Vec<Digest>) + Send + Sync + 'static) -> Self {
        let note = Note { put: Mutex::default(), tell: Box::new(tell) };
        Self { shared: Arc::clone(&self.shared), note: Some(Arc::new(note)) }
    }

    fn pins(&self) -> MutexGuard<'_, HashMap<Digest, u32>> {
        // Nothing panics while the map is half-changed, so a poisoned one is still whole.
        self.shared.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file with the blob's bytes, which stays as long as the store is open; from an object store it is fetched.
    pub(crate) fn local(&self, digest: Digest) -> Result<PathBuf, BlobError> {
        let copy = match &self.shared.place {
            Place::Folder(folder) => return Ok(folder.path(digest)),
            Place::Objects(objects) => objects.copy(digest),
        };
        if copy.is_file() {
            return Ok(copy);
        }
        let (aside, mut file) = self.aside()?;
        let mut reader = self.reader(digest)?;
        while let Some(piece) = reader.next(1 << 20)? {
            file.write_all(&piece).map_err(io_error(&aside))?;
        }
        fs::rename(&aside, &copy).map_err(io_error(&copy))?;
        Ok(copy)
    }

    /// How many blobs there are, and how large they are. An object store is not asked for sizes.
    pub(crate) fn usage(&self) -> Result<Usage, BlobError> {
        Ok(match &self.shared.place {
            Place::Folder(folder) => {
                let all = folder.all()?;
                // One that has gone meanwhile takes no room.
                let size = |blob: &Digest| fs::metadata(folder.path(*blob)).map_or(0, |found| found.len());
                Usage { blobs: all.len(), bytes: Some(all.iter().map(size).sum()) }
            }
            Place::Objects(objects) => Usage { blobs: objects.all().len(), bytes: None },
        })
    }

    /// Whether the blob is here. An object store is not asked: this coordinator alone writes to it.
    pub(crate) fn has(&self, digest: Digest) -> bool {
        match &self.shared.place {
            Place::Folder(folder) => folder.path(digest).is_file(),
            Place::Objects(objects) => objects.has(digest),
        }
    }

    /// Keeps bytes; durable when it returns, and pinned.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let mut writer = self.writer()?;
        writer.write(bytes)?;
        writer.finish()
    }

    /// Blobs leave room for the journal that may lie on the same disk: a coordinator whose journal is full ends for all.
    fn keep_reserve(&self) -> Result<(), BlobError> {
        let path = &self.shared.incoming;
        let disk = rustix::fs::statvfs(path).map_err(|error| io_error(path)(error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        let reserve = (bytes(disk.f_blocks) / 20).min(RESERVE_BYTES);
        if bytes(disk.f_bavail) < reserve { Err(BlobError::Full { path: path.clone() }) } else { Ok(()) }
    }

    /// A new file for what is not whole yet.
    fn aside(&self) -> Result<(PathBuf, File), BlobError> {
        self.keep_reserve()?;
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.incoming.join(number.to_string());
        let file = File::create_new(&path).map_err(io_error(&path))?;
        Ok((path, file))
    }

    /// A blob written piece by piece.
    pub(crate) fn writer(&self) -> Result<BlobWriter, BlobError> {
        let (path, file) = self.aside()?;
        Ok(BlobWriter { store: self.clone(), path, file, hasher: Hasher::new(), bytes: 0 })
    }

    /// The whole blob, verified.
    pub(crate) fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        let mut reader = self.reader(digest)?;
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next(1 << 20)? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Reads a blob to its end; one that is damaged is set aside, so that it can be put again.
    pub(crate) fn verify(&self, digest: Digest) -> Result<(), BlobError> {
        let mut reader = self.reader(digest)?;
        while reader.next(1 << 20)?.is_some() {}
        Ok(())
    }

    /// A blob read piece by piece.
    pub(crate) fn reader(&self, digest: Digest) -> Result<BlobReader, BlobError> {
        let source = match &self.shared.place {
            Place::Folder(folder) => Source::File(folder.open(digest)?, folder.path(digest)),
            Place::Objects(objects) => Source::Object(objects.open_blob(digest)?),
        };
        Ok(BlobReader { store: self.clone(), digest, source, hasher: Hasher::new(), held: None, ended: false })
    }

    /// Takes a damaged blob out of the way, so that it can be put again.
    fn set_aside(&self, wanted: Digest, found: Digest) -> BlobError {
        if self.shared.is_anothers {
            return BlobError::Damaged { wanted, found, aside: None };
        }
        let aside = match &self.shared.place {
            Place::Folder(folder) => {
                let _pins = self.pins();
                folder.set_aside(wanted)
            }
            Place::Objects(objects) => objects.set_aside(wanted),
        };
        aside.map_or_else(|error| error, |aside| BlobError::Damaged { wanted, found, aside: Some(aside) })
    }

    /// Keeps a blob until [`BlobStore::unpin`].
    pub(crate) fn pin(&self, digest: Digest) {
        *self.pins().entry(digest).or_insert(0) += 1;
    }

    /// A fact refers to the blob now, or none ever will: one pin less.
    pub(crate) fn unpin(&self, digest: Digest) {
        let mut pins = self.pins();
        if let Some(count) = pins.get_mut(&digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&digest);
            }
        }
    }

    /// Lets a blob go that nothing refers to any more, unless it is pinned. Says whether it is gone.
    pub(crate) fn discard(&self, digest: Digest) -> Result<bool, BlobError> {
        let pins = self.pins();
        if pins.contains_key(&digest) {
            return Ok(false);
        }
        match &self.shared.place {
            Place::Folder(folder) => folder.remove(digest)?,
            Place::Objects(objects) => objects.let_go(digest),
        }
        Ok(true)
    }

    /// Every blob but those that are kept.
    pub(crate) fn others(&self, keep: &BTreeSet<Digest>) -> Result<Vec<Digest>, BlobError> {
        let mut all = match &self.shared.place {
            Place::Folder(folder) => folder.all()?,
            Place::Objects(objects) => objects.all(),
        };
        all.retain(|digest| !keep.contains(digest));
        Ok(all)
    }

    /// Removes every blob that is neither kept nor pinned; gives their number.
    pub(crate) fn sweep(&self, keep: &BTreeSet<Digest>) -> Result<u64, BlobError> {
        let pins = self.pins();
        let goes = |digest: &Digest| !keep.contains(digest) && !pins.contains_key(digest);
        match &self.shared.place {
            Place::Folder(folder) => folder.sweep(goes),
            Place::Objects(objects) => objects.sweep(goes),
        }
    }
}

/// Where a reader's bytes come from.
enum Source {
    File(File, PathBuf),
    Object(ObjectReader),
}

/// A blob on its way out.
pub(crate) struct BlobReader {
    store: BlobStore,
    digest: Digest,
    source: Source,
    hasher: Hasher,
    held: Option<Vec<u8>>,
    ended: bool,
}

impl BlobReader {
    /// The next piece of at most this many bytes. The last one is given only after the digest was verified, so
    /// whoever has all pieces has the right bytes.
    pub(crate) fn next(&mut self, piece_bytes: usize) -> Result<Option<Vec<u8>>, BlobError> {
        while !self.ended {
            let piece = self.piece(piece_bytes.max(1))?;
            if piece.is_empty() {
                self.ended = true;
                let found = self.hasher.clone().finish();
                if found != self.digest {
                    self.held = None;
                    return Err(self.store.set_aside(self.digest, found));
                }
            } else {
                self.hasher.update(&piece);
                if let Some(earlier) = self.held.replace(piece) {
                    return Ok(Some(earlier));
                }
            }
        }
        Ok(self.held.take())
    }

    fn piece(&mut self, bytes: usize) -> Result<Vec<u8>, BlobError> {
        match (&mut self.source, &self.store.shared.place) {
            (Source::File(file, path), _) => {
                let mut piece = Vec::with_capacity(bytes);
                file.take(bytes as u64).read_to_end(&mut piece).map_err(io_error(path))?;
                Ok(piece)
            }
            (Source::Object(reader), Place::Objects(objects)) => objects.piece(reader, bytes),
            (Source::Object(_), Place::Folder(_)) => Err(BlobError::Missing(self.digest)),
        }
    }
}

/// A blob on its way in. Dropping it before [`finish`](Self::finish) leaves nothing.
pub(crate) struct BlobWriter {
    store: BlobStore,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    bytes: u64,
}

impl BlobWriter {
    /// Adds bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let before = self.bytes / LOOK_EVERY_BYTES;
        self.bytes += bytes.len() as u64;
        if self.bytes / LOOK_EVERY_BYTES > before {
            self.store.keep_reserve()?;
        }
        let limit = self.store.shared.limit;
        if self.bytes > limit {
            return Err(BlobError::TooLarge { limit });
        }
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(io_error(&self.path))
    }

    /// Gives the blob its name: durable and pinned.
    pub(crate) fn finish(self) -> Result<Digest, BlobError> {
        let (store, digest) = (&self.store, self.hasher.clone().finish());
        match &store.shared.place {
            Place::Folder(_) => self.file.sync_all().map_err(io_error(&self.path))?,
            Place::Objects(_) => {}
        }
        // Pinned before it is there, so that nobody lets it go meanwhile: syncs and uploads take their time.
        store.pin(digest);
        let kept = match &store.shared.place {
            Place::Folder(folder) => folder.keep(&self.path, digest),
            Place::Objects(objects) => objects.keep(&self.path, digest, self.bytes),
        };
        if let Err(error) = kept {
            store.unpin(digest);
            return Err(error);
        }
        if let Some(note) = &store.note {
            note.put.lock().unwrap_or_else(PoisonError::into_inner).push(digest);
        }
        Ok(digest)
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // After `finish` a folder's file has another name; otherwise it goes now, or at the next start.
        let _ = fs::remove_file(&self.path);
    }
}
