//! One volume: values one after the other in a file, and a second file that says where each lies.
//!
//! A value's place is noted after the value is written, so a process that dies leaves values without a note and nothing
//! worse. Each note has a checksum of its own and one of its value.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, futimens};

/// How the file with the values ends.
pub(super) const ROWS: &str = "rows";
/// How the file with their places ends.
pub(super) const NOTES: &str = "notes";
/// Bytes of a note: key, first byte, length, checksum of the value, checksum of all this.
const NOTE: usize = 16 + 8 + 4 + 4 + 4;

/// Where a value lies in its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    first: u64,
    length: u32,
    sum: u32,
}

/// A volume, which nobody else removes while this lives.
#[derive(Debug)]
pub(super) struct Volume {
    path: PathBuf,
    rows: File,
    /// Absent where this process does not write.
    notes: Option<File>,
    size: u64,
    taken: AtomicU64,
    noted: AtomicU64,
}

impl Volume {
    /// A new volume for so many bytes; `rows` is the empty file at `path`, locked, with the bytes set aside.
    pub(super) fn new(path: PathBuf, rows: File, notes: File, size: u64) -> Self {
        Self { path, rows, notes: Some(notes), size, taken: AtomicU64::new(0), noted: AtomicU64::new(0) }
    }

    /// A volume that lies there already, and what it holds. `None` where it is being removed or cannot be read.
    fn open(path: PathBuf) -> Option<(Self, Vec<(u128, Entry)>)> {
        let rows = open_shared(&path)?;
        let size = rows.metadata().ok()?.len();
        let notes = fs::read(path.with_extension(NOTES)).ok()?;
        let entries = notes.as_chunks::<NOTE>().0.iter().filter_map(read_note);
        let entries = entries.filter(|(_, entry)| entry.end().is_some_and(|end| end <= size)).collect();
        let (taken, noted) = (AtomicU64::new(size), AtomicU64::new(0));
        Some((Self { path, rows, notes: None, size, taken, noted }, entries))
    }

    /// Takes so many bytes, if they are there, and says where they begin.
    pub(super) fn take(&self, bytes: u64) -> Option<u64> {
        self.notes.as_ref()?;
        let within = |taken: u64| taken.checked_add(bytes).filter(|end| *end <= self.size);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).ok()
    }

    /// Writes a value at bytes that were taken for it.
    pub(super) fn write(&self, first: u64, value: &[u8]) -> io::Result<Entry> {
        self.rows.write_all_at(value, first)?;
        let length = u32::try_from(value.len()).map_err(io::Error::other)?;
        Ok(Entry { first, length, sum: crc32fast::hash(value) })
    }

    /// Notes where a value lies. One at a time.
    pub(super) fn note(&self, key: u128, entry: Entry) -> io::Result<()> {
        let Some(notes) = &self.notes else { return Ok(()) };
        notes.write_all_at(&write_note(key, entry), self.noted.fetch_add(NOTE as u64, Ordering::Relaxed))
    }

    /// A value; `None` where it is damaged.
    pub(super) fn read(&self, entry: Entry) -> Option<Vec<u8>> {
        let mut value = vec![0; entry.length as usize];
        self.rows.read_exact_at(&mut value, entry.first).ok()?;
        (crc32fast::hash(&value) == entry.sum).then_some(value)
    }

    /// It was used now.
    pub(super) fn touch(&self) {
        touch(&self.rows);
    }

    /// Removes both files. Whoever reads them still can.
    pub(super) fn remove(&self) {
        remove(&self.path);
    }
}

impl Drop for Volume {
    /// Gives back the bytes that were set aside and not written.
    fn drop(&mut self) {
        if self.notes.is_none() {
            return;
        }
        match self.taken.load(Ordering::Relaxed) {
            0 => self.remove(),
            taken => drop(self.rows.set_len(taken)),
        }
    }
}

impl Entry {
    fn end(self) -> Option<u64> {
        self.first.checked_add(self.length.into())
    }
}

/// The volumes of a folder that can be read, with what they hold.
pub(super) fn existing(folder: &Path) -> Vec<(Volume, Vec<(u128, Entry)>)> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    let mut rows: Vec<PathBuf> = files.filter(|path| path.extension() == Some(OsStr::new(ROWS))).collect();
    rows.sort();
    rows.into_iter().filter_map(Volume::open).collect()
}

/// A file of a shelf to read, which nobody removes while it is open; `None` where it is not there or about to go.
pub(super) fn open_shared(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
    Some(file)
}

/// Notes that a file was used now.
pub(super) fn touch(file: &File) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    // Who may only read the folder cannot say that it did.
    let _ = futimens(file, &Timestamps { last_access: now, last_modification: now });
}

/// Removes a volume's files.
pub(super) fn remove(rows: &Path) {
    let _ = fs::remove_file(rows.with_extension(NOTES));
    let _ = fs::remove_file(rows);
}

fn write_note(key: u128, entry: Entry) -> [u8; NOTE] {
    let mut note = [0; NOTE];
    note[..16].copy_from_slice(&key.to_le_bytes());
    note[16..24].copy_from_slice(&entry.first.to_le_bytes());
    note[24..28].copy_from_slice(&entry.length.to_le_bytes());
    note[28..32].copy_from_slice(&entry.sum.to_le_bytes());
    let sum = crc32fast::hash(&note[..32]);
    note[32..].copy_from_slice(&sum.to_le_bytes());
    note
}

fn read_note(note: &[u8; NOTE]) -> Option<(u128, Entry)> {
    let word = |at: usize| Some(u32::from_le_bytes(*note.get(at..)?.first_chunk()?));
    if crc32fast::hash(&note[..32]) != word(32)? {
        return None;
    }
    let first = u64::from_le_bytes(*note[16..].first_chunk()?);
    Some((u128::from_le_bytes(*note.first_chunk()?), Entry { first, length: word(24)?, sum: word(28)? }))
}
