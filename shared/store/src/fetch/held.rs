//! What was fetched, and who uses it.
//!
//! ```text
//! <cache>/<kind>/<version>.lock   locked whole while it is downloaded or removed
//! <cache>/<kind>/<version>.used   locked shared by whoever uses it; its time is that of the last use
//! ```
//! Whoever makes room must have both for itself, so nothing goes that somebody uses, in whatever process. The two files
//! are empty and stay, so that everybody locks the same one.

use std::{
    fs::{self, File},
    io,
    ops::Deref,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, futimens},
    io::Errno,
};

/// A cache folder, and how many bytes what was fetched may take in it.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    pub(super) folder: &'a Path,
    pub(super) most_bytes: Option<u64>,
}

impl<'a> Cache<'a> {
    /// What was used the longest ago, and is not in use, goes before something new would make it more.
    pub fn bounded(folder: &'a Path, most_bytes: u64) -> Self {
        Self { folder, most_bytes: Some(most_bytes) }
    }
}

impl<'a> From<&'a Path> for Cache<'a> {
    /// Nothing is ever removed.
    fn from(folder: &'a Path) -> Self {
        Self { folder, most_bytes: None }
    }
}

impl<'a> From<&'a PathBuf> for Cache<'a> {
    fn from(folder: &'a PathBuf) -> Self {
        folder.as_path().into()
    }
}

/// A folder or file that was fetched. As long as this lives, nobody who makes room in the cache removes it.
#[derive(Debug)]
pub struct Fetched {
    path: PathBuf,
    /// `None` for what nobody removes: a local folder, and a cache that may not be written.
    held: Option<File>,
}

impl Fetched {
    /// A file of it.
    pub(super) fn file(self, name: &str) -> Self {
        Self { path: self.path.join(name), held: self.held }
    }
}

impl From<PathBuf> for Fetched {
    /// What lies in no cache.
    fn from(path: PathBuf) -> Self {
        Self { path, held: None }
    }
}

impl Deref for Fetched {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for Fetched {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

/// A file beside an entry of the cache.
pub(super) fn beside(target: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}.{suffix}", target.display()))
}

/// For reading and writing: a network file system gives no shared lock on what is open for writing alone. A file of another
/// user is read at least, so that its lock is held all the same.
fn open(path: &Path) -> io::Result<File> {
    match File::options().create(true).read(true).write(true).truncate(false).open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => File::open(path),
        opened => opened,
    }
}

/// A complete entry of the cache, held. `None` when it is not there, or is being removed.
pub(super) fn complete(target: &Path) -> Option<Fetched> {
    if !target.is_dir() {
        return None;
    }
    // Where nobody may write, or nothing can be locked, nobody makes room.
    let unheld = || Some(target.to_owned().into());
    let Ok(used) = open(&beside(target, "used")) else { return unheld() };
    match flock(&used, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return None,
        Err(_) => return unheld(),
    }
    if !target.is_dir() {
        return None;
    }
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    if let Err(error) = futimens(&used, &Timestamps { last_access: now, last_modification: now }) {
        tracing::debug!("{}: its time of use is not kept: {error}", target.display());
    }
    Some(Fetched { path: target.to_owned(), held: Some(used) })
}

/// Whether somebody downloads or removes an entry now, in whatever process.
pub(super) fn is_locked(target: &Path) -> bool {
    let locked = |file: &File| flock(file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK);
    File::open(beside(target, "lock")).is_ok_and(|file| locked(&file))
}

/// Removes an entry, whole or begun, that nobody uses or downloads. Whether it is gone.
pub(super) fn remove_idle(target: &Path) -> bool {
    let (Ok(lock), Ok(used)) = (open(&beside(target, "lock")), open(&beside(target, "used"))) else { return false };
    for file in [&lock, &used] {
        if flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return false;
        }
    }
    // Under the name of what is not whole: a removal that breaks off leaves nothing that looks complete.
    let partial = beside(target, "partial");
    let removed = absent_is_fine(fs::remove_dir_all(&partial))
        .and_then(|()| absent_is_fine(fs::rename(target, &partial)))
        .and_then(|()| absent_is_fine(fs::remove_dir_all(&partial)));
    if let Err(error) = &removed {
        tracing::warn!("{} could not be removed to make room: {error}", target.display());
    }
    removed.is_ok()
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
