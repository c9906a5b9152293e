//! Content-addressed bytes in the state folder: checkpoints, results, adapters from outside, uploaded data.
//!
//! A blob is written aside, synced, renamed to its digest and its folder synced before anyone hears of it, so a
//! blob that has a name is whole and survives kill -9 (invariant 4). Reading verifies. Nothing half-written counts.
//!
//! A blob is kept while the scheduler's state refers to it, and while it is pinned: from the moment it was put until
//! a fact refers to it, or its owner is gone (see `pins.rs`). Without pins, a blob could be put again (and
//! acknowledged) while its last reference goes.

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

use graftwork_shared::digest::{Digest, Hasher};

/// Why a blob cannot be kept or given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// There is none of this digest.
    #[error("blob {0} is not here")]
    Missing(Digest),
    /// The bytes on disk are not those that were put.
    #[error("blob {wanted} is damaged: its bytes have the digest {found}; it was set aside as {}", aside.display())]
    Damaged {
        /// The digest asked for.
        wanted: Digest,
        /// The digest of what is there.
        found: Digest,
        /// Where the bytes are now.
        aside: PathBuf,
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
}

/// The blobs of one state folder. Clones are the same store. All of it blocks: call it on a blocking thread.
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

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    limit: u64,
    next: AtomicU64,
    /// How often a blob was put without a fact that refers to it. Held while a blob gets its name or loses it.
    pins: Mutex<HashMap<Digest, u32>>,
}

/// Most bytes of one blob: shards of uploaded data are the largest.
const LIMIT_BYTES: u64 = 64 << 30;

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BlobError + '_ {
    move |error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlobError::Full { path: path.to_owned() },
        _ => BlobError::Io { path: path.to_owned(), error },
    }
}

fn sync_folder(path: &Path) -> Result<(), BlobError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error(path))
}

impl BlobStore {
    /// Opens the store below a state folder; what was half-written before is removed.
    pub(crate) fn open(state_folder: &Path) -> Result<Self, BlobError> {
        Self::with_limit(state_folder, LIMIT_BYTES)
    }

    fn with_limit(state_folder: &Path, limit: u64) -> Result<Self, BlobError> {
        let folder = state_folder.join("blobs");
        let incoming = folder.join("incoming");
        match fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&incoming)(error)),
            _ => {}
        }
        fs::create_dir_all(&incoming).map_err(io_error(&incoming))?;
        // A folder has its name for good once the folder above it is synced.
        sync_folder(&folder)?;
        sync_folder(state_folder)?;
        let shared = Shared { folder, limit, next: AtomicU64::new(0), pins: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), note: None })
    }

    /// The same store, which tells what was put through it once it and its clones are gone.
    pub(super) fn noting(&self, tell: impl Fn(Vec<Digest>) + Send + Sync + 'static) -> Self {
        let note = Note { put: Mutex::default(), tell: Box::new(tell) };
        Self { shared: Arc::clone(&self.shared), note: Some(Arc::new(note)) }
    }

    /// The blobs of a coordinator that may be running, for reading alone.
    pub(crate) fn of_another(state_folder: &Path) -> Self {
        let folder = state_folder.join("blobs");
        let shared = Shared { folder, limit: 0, next: AtomicU64::new(0), pins: Mutex::default() };
        Self { shared: Arc::new(shared), note: None }
    }

    fn pins(&self) -> MutexGuard<'_, HashMap<Digest, u32>> {
        // Nothing panics while the map is half-changed, so a poisoned one is still whole.
        self.shared.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the blob of this digest lies, whether it exists or not.
    pub(crate) fn path(&self, digest: Digest) -> PathBuf {
        let name = digest.to_string();
        self.shared.folder.join(&name[..2]).join(name)
    }

    /// Whether the blob is here.
    pub(crate) fn has(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Keeps bytes; durable when it returns, and pinned.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let mut writer = self.writer()?;
        writer.write(bytes)?;
        writer.finish()
    }

    /// A blob written piece by piece.
    pub(crate) fn writer(&self) -> Result<BlobWriter, BlobError> {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.folder.join("incoming").join(number.to_string());
        let file = File::create_new(&path).map_err(io_error(&path))?;
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
        let path = self.path(digest);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BlobError::Missing(digest),
            _ => io_error(&path)(error),
        })?;
        Ok(BlobReader { store: self.clone(), digest, file, hasher: Hasher::new(), held: None, ended: false })
    }

    /// Takes a damaged blob out of the way, so that it can be put again.
    fn set_aside(&self, wanted: Digest, found: Digest) -> BlobError {
        let aside = self.shared.folder.join(format!("damaged-{wanted}"));
        let path = self.path(wanted);
        let _pins = self.pins();
        match fs::rename(&path, &aside) {
            Ok(()) => BlobError::Damaged { wanted, found, aside },
            Err(error) => io_error(&path)(error),
        }
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

    /// Removes a blob that nothing refers to any more, unless it is pinned. Says whether it is gone.
    pub(crate) fn discard(&self, digest: Digest) -> Result<bool, BlobError> {
        let pins = self.pins();
        if pins.contains_key(&digest) {
            return Ok(false);
        }
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(io_error(&path)(error)),
        }
    }

    /// Keeps a blob until [`BlobStore::unpin`].
    pub(crate) fn pin(&self, digest: Digest) {
        *self.pins().entry(digest).or_default() += 1;
    }

    /// Every blob but those that are kept.
    pub(crate) fn others(&self, keep: &BTreeSet<Digest>) -> Result<Vec<Digest>, BlobError> {
        let folder = &self.shared.folder;
        let mut others = Vec::new();
        for entry in fs::read_dir(folder).map_err(io_error(folder))? {
            let entry = entry.map_err(io_error(folder))?.path();
            let two_digits = entry.file_name().is_some_and(|name| name.len() == 2);
            if !two_digits || !entry.is_dir() {
                continue;
            }
            for blob in fs::read_dir(&entry).map_err(io_error(&entry))? {
                let blob = blob.map_err(io_error(&entry))?;
                let digest = blob.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
                others.extend(digest.filter(|digest| !keep.contains(digest)));
            }
        }
        Ok(others)
    }
}

/// A blob on its way out.
pub(crate) struct BlobReader {
    store: BlobStore,
    digest: Digest,
    file: File,
    hasher: Hasher,
    held: Option<Vec<u8>>,
    ended: bool,
}

impl BlobReader {
    /// The next piece of at most this many bytes. The last one is given only after the digest was verified, so
    /// whoever has all pieces has the right bytes.
    pub(crate) fn next(&mut self, piece_bytes: usize) -> Result<Option<Vec<u8>>, BlobError> {
        while !self.ended {
            let mut piece = Vec::with_capacity(piece_bytes);
            let path = self.store.path(self.digest);
            let limit = u64::try_from(piece_bytes.max(1)).unwrap_or(u64::MAX);
            (&mut self.file).take(limit).read_to_end(&mut piece).map_err(io_error(&path))?;
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
        self.bytes += bytes.len() as u64;
        let limit = self.store.shared.limit;
        if self.bytes > limit {
            return Err(BlobError::TooLarge { limit });
        }
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(io_error(&self.path))
    }

    /// Gives the blob its name: synced, renamed, folder synced, pinned.
    pub(crate) fn finish(self) -> Result<Digest, BlobError> {
        self.file.sync_all().map_err(io_error(&self.path))?;
        let digest = self.hasher.clone().finish();
        let target = self.store.path(digest);
        let folder = target.parent().expect("a blob lies in a folder");
        let mut pins = self.store.pins();
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(io_error(folder))?;
            sync_folder(&self.store.shared.folder)?;
        }
        // A blob that is there already is replaced by the same bytes, which also mends a damaged one.
        fs::rename(&self.path, &target).map_err(io_error(&target))?;
        sync_folder(folder)?;
        *pins.entry(digest).or_insert(0) += 1;
        if let Some(note) = &self.store.note {
            note.put.lock().unwrap_or_else(PoisonError::into_inner).push(digest);
        }
        Ok(digest)
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // After `finish` the file has another name; otherwise it goes now, or at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn store() -> (tempfile::TempDir, BlobStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).unwrap();
        (folder, store)
    }

    #[test]
    fn a_blob_is_read_as_it_was_put_and_survives_a_reopening() {
        let (folder, store) = store();
        let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let digest = store.put(&bytes).unwrap();
        assert_eq!(digest, Digest::of(&bytes));
        assert_eq!(store.read(digest).unwrap(), bytes);
        assert_eq!(store.read(store.put(b"").unwrap()).unwrap(), b"");
        drop(store);
        assert_eq!(BlobStore::open(folder.path()).unwrap().read(digest).unwrap(), bytes);
    }

    #[test]
    fn a_half_written_blob_does_not_count() {
        let (folder, store) = store();
        let mut writer = store.writer().unwrap();
        writer.write(b"half").unwrap();
        assert!(!store.has(Digest::of(b"half")));
        std::mem::forget(writer);
        let store = BlobStore::open(folder.path()).unwrap();
        assert!(matches!(store.read(Digest::of(b"half")), Err(BlobError::Missing(_))));
        assert_eq!(fs::read_dir(folder.path().join("blobs/incoming")).unwrap().count(), 0);
    }

    #[test]
    fn damaged_bytes_are_never_given_whole_and_can_be_put_again() {
        let (_folder, store) = store();
        let digest = store.put(b"right bytes").unwrap();
        fs::write(store.path(digest), b"wrong bytes").unwrap();
        let mut reader = store.reader(digest).unwrap();
        assert_eq!(reader.next(6).unwrap().unwrap(), b"wrong ");
        assert!(matches!(reader.next(6), Err(BlobError::Damaged { .. })));
        assert!(!store.has(digest));
        store.put(b"right bytes").unwrap();
        assert_eq!(store.read(digest).unwrap(), b"right bytes");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_a_clean_error_and_leaves_nothing() {
        let (folder, store) = store();
        let incoming = folder.path().join("blobs/incoming");
        fs::remove_dir(&incoming).unwrap();
        fs::write(&incoming, b"not a folder").unwrap();
        let error = store.put(b"bytes").unwrap_err().to_string();
        assert!(error.contains("incoming"), "{error}");
        assert!(!store.has(Digest::of(b"bytes")));
        // The same for a folder without the right to write, where the user is not root.
        fs::remove_file(&incoming).unwrap();
        fs::create_dir(&incoming).unwrap();
        fs::set_permissions(&incoming, fs::Permissions::from_mode(0o500)).unwrap();
        if !rustix::process::geteuid().is_root() {
            assert!(matches!(store.put(b"bytes"), Err(BlobError::Io { .. })));
        }
        fs::set_permissions(&incoming, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(store.put(b"bytes").is_ok());
    }

    #[test]
    fn a_full_disk_is_said_to_be_full() {
        let error = io_error(Path::new("/x"))(io::Error::from_raw_os_error(28));
        assert!(matches!(error, BlobError::Full { .. }));
        let full = File::options().write(true).open("/dev/full");
        if let Ok(mut full) = full {
            let error = full.write_all(b"x").map_err(io_error(Path::new("/dev/full"))).unwrap_err();
            assert!(error.to_string().contains("is full"), "{error}");
        }
    }

    #[test]
    fn a_blob_above_the_bound_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::with_limit(folder.path(), 4).unwrap();
        assert!(store.put(b"1234").is_ok());
        assert!(matches!(store.put(b"12345"), Err(BlobError::TooLarge { limit: 4 })));
    }

    #[test]
    fn what_was_put_stays_until_a_fact_refers_to_it() {
        let (_folder, store) = store();
        let digest = store.put(b"checkpoint").unwrap();
        store.put(b"checkpoint").unwrap();
        assert!(!store.discard(digest).unwrap());
        store.unpin(digest);
        assert!(!store.discard(digest).unwrap(), "one of two puts is still open");
        store.unpin(digest);
        assert!(store.discard(digest).unwrap());
        assert!(!store.has(digest));
    }

    #[test]
    fn what_a_request_put_is_told_when_the_last_of_its_stores_goes() {
        let (_folder, store) = store();
        let (tell, told) = std::sync::mpsc::channel();
        let noting = store.noting(move |put| tell.send(put).unwrap());
        let clone = noting.clone();
        let put = [noting.put(b"one").unwrap(), clone.put(b"two").unwrap()];
        store.put(b"of nobody's request").unwrap();
        drop(noting);
        assert!(told.try_recv().is_err());
        drop(clone);
        assert_eq!(told.try_recv().unwrap(), put);
    }

    #[test]
    fn what_nothing_refers_to_goes_unless_it_is_pinned() {
        let (folder, store) = store();
        let [kept, pinned, gone] = ["kept", "pinned", "gone"].map(|text| store.put(text.as_bytes()).unwrap());
        [kept, gone].iter().for_each(|digest| store.unpin(*digest));
        let others =
            |store: &BlobStore| -> BTreeSet<Digest> { store.others(&[kept].into()).unwrap().into_iter().collect() };
        assert_eq!(others(&store), [pinned, gone].into());
        assert_eq!([pinned, gone].map(|digest| store.discard(digest).unwrap()), [false, true]);
        assert_eq!([kept, pinned, gone].map(|digest| store.has(digest)), [true, true, false]);
        drop(store);
        let store = BlobStore::open(folder.path()).unwrap();
        assert_eq!(others(&store), [pinned].into());
        assert!(store.discard(pinned).unwrap(), "no pin survives a start");
    }
}
