//! Room in a folder of shelves: what was used the longest ago makes place for what comes.
//!
//! Everything in the folder is under one bound, whoever put it there. A lock on one file of it is held while room is made
//! and taken, so that two processes never take the same.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, statvfs};

use super::{
    Shelves,
    volume::{self, NOTES, ROWS, Volume},
};

/// Bytes of the disk that are left to others: as many as the coordinator keeps free.
const RESERVE_BYTES: u64 = 256 << 20;

/// Largest size of a volume. Smaller ones are more open files, larger ones go all at once.
const LARGEST_VOLUME: u64 = 64 << 20;

/// A file that goes as a whole, with all that belongs to it.
struct Unit {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Shelves {
    /// Size of a new volume.
    pub(super) fn volume_bytes(&self) -> u64 {
        (self.most_bytes / 128).clamp(1, LARGEST_VOLUME)
    }

    /// A new volume of so many bytes in a shelf's folder, `None` where all room is taken by what is in use.
    pub(super) fn begin(&self, shelf: &Path, bytes: u64) -> io::Result<Option<Volume>> {
        let path = shelf.join(format!("{}.{ROWS}", fresh_name()));
        let Some(rows) = self.begin_file(&path, bytes)? else { return Ok(None) };
        let notes = File::options().write(true).create_new(true).open(path.with_extension(NOTES))?;
        Ok(Some(Volume::new(path, rows, notes, bytes)))
    }

    /// A new file with so many bytes set aside, locked against removal.
    pub(super) fn begin_file(&self, path: &Path, bytes: u64) -> io::Result<Option<File>> {
        if bytes > self.most_bytes {
            return Ok(None);
        }
        fs::create_dir_all(&self.folder)?;
        let lock = File::options().write(true).create(true).truncate(false).open(self.folder.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        if !self.make_room(bytes)? {
            return Ok(None);
        }
        let disk = statvfs(&self.folder)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < bytes.saturating_add(RESERVE_BYTES) {
            let words = format!("the disk would have less than {} MiB left", RESERVE_BYTES >> 20);
            return Err(io::Error::new(io::ErrorKind::StorageFull, words));
        }
        fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockShared)?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // Some file systems can set nothing aside; then writing finds the end of the disk.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(Some(file)),
            Err(error) => {
                let _ = fs::remove_file(path);
                Err(error.into())
            }
        }
    }

    /// Whether so many bytes more are within the bound, after what was used the longest ago is removed.
    fn make_room(&self, bytes: u64) -> io::Result<bool> {
        let mut units = self.units()?;
        let mut total: u64 = units.iter().map(|unit| unit.bytes).sum();
        units.sort_by_key(|unit| unit.used);
        for unit in units {
            if total.saturating_add(bytes) <= self.most_bytes {
                break;
            }
            if remove_idle(&unit.path) {
                // Gone with its last file.
                let _ = unit.path.parent().map(fs::remove_dir);
                total -= unit.bytes;
            }
        }
        Ok(total.saturating_add(bytes) <= self.most_bytes)
    }

    /// Everything in the folder.
    fn units(&self) -> io::Result<Vec<Unit>> {
        let mut units = Vec::new();
        for shelf in fs::read_dir(&self.folder)? {
            let shelf = shelf?;
            if !shelf.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(shelf.path())? {
                let path = file?.path();
                // Another process may be removing it.
                let Ok(found) = fs::metadata(&path) else { continue };
                if path.extension() == Some(OsStr::new(NOTES)) && path.with_extension(ROWS).exists() {
                    continue;
                }
                let notes = fs::metadata(path.with_extension(NOTES)).map_or(0, |notes| notes.len());
                let used = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                units.push(Unit { path, bytes: found.len() + notes, used });
            }
        }
        Ok(units)
    }
}

/// Removes a file that nobody holds. Whoever opens it meanwhile finds it locked, until it is gone.
fn remove_idle(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return true };
    let idle = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    if idle {
        volume::remove(path);
    }
    idle
}

pub(super) fn fresh_name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{since:x}-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}
