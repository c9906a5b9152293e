//! Durable steps on a local disk: each one is on the platter when it returns, and each one can be made to fail in tests.
//!
//! `Disk` is the only place that changes the hub folder. A test gives it a number of steps after which it does nothing
//! any more, which is what kill -9 at that point leaves behind.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use crate::StoreError;

/// Bytes that are free for this user on the disk that holds `path` (or will: the nearest folder that exists).
pub fn free_bytes(path: &Path) -> Result<u64, StoreError> {
    let mut folder = path;
    while !folder.exists() {
        match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => folder = parent,
            _ => {
                folder = Path::new(".");
                break;
            }
        }
    }
    let stat = rustix::fs::statvfs(folder).map_err(|error| StoreError::file(folder)(error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Writes a whole file: readers see the old bytes or the new ones, whatever happens in between.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let disk = Disk::real();
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(StoreError::Location { location: path.display().to_string(), problem: "not a file".to_owned() });
    };
    disk.create_folder(folder)?;
    let aside = folder.join(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
    disk.write(&aside, bytes).and_then(|()| disk.rename(&aside, path)).inspect_err(|_| {
        let _ = fs::remove_file(&aside);
    })
}

#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Steps left before the pretended kill.
    #[cfg(test)]
    pub(crate) steps: std::cell::Cell<Option<usize>>,
    /// What the step that is killed reports, and whether only that one fails: a full disk, not a kill.
    #[cfg(test)]
    pub(crate) full: bool,
    /// A file system that cannot exchange two names, such as NFS.
    #[cfg(test)]
    pub(crate) plain: bool,
}

impl Disk {
    pub(crate) fn real() -> Self {
        Self::default()
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "the test build fails here")]
    fn step(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&self) -> io::Result<()> {
        match self.steps.get() {
            None => Ok(()),
            Some(0) => {
                if self.full {
                    self.steps.set(None);
                }
                Err(if self.full { io::ErrorKind::StorageFull.into() } else { io::Error::other("killed here") })
            }
            Some(left) => {
                self.steps.set(Some(left - 1));
                Ok(())
            }
        }
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "the test build pretends another file system")]
    fn exchange(&self, one: &Path, other: &Path) -> Result<(), Errno> {
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
    }

    #[cfg(test)]
    fn exchange(&self, one: &Path, other: &Path) -> Result<(), Errno> {
        if self.plain { Err(Errno::INVAL) } else { renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) }
    }

    fn checked<T>(&self, path: &Path, act: impl FnOnce() -> io::Result<T>) -> Result<T, StoreError> {
        self.step().and_then(|()| act()).map_err(StoreError::file(path))
    }

    /// Makes a folder and those around it, each durable.
    pub(crate) fn create_folder(&self, path: &Path) -> Result<(), StoreError> {
        if path.as_os_str().is_empty() || path.is_dir() {
            return Ok(());
        }
        let around = parent(path);
        self.create_folder(around)?;
        self.checked(path, || match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        })?;
        self.sync_folder(around)
    }

    /// Writes a new file in two steps, so that a pretended kill can leave half of it.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let half = bytes.len() / 2;
        let mut file = self.checked(path, || {
            let mut file = fs::File::create(path)?;
            file.write_all(&bytes[..half])?;
            Ok(file)
        })?;
        self.checked(path, || {
            file.write_all(&bytes[half..])?;
            file.sync_all()
        })
    }

    /// Renames and makes the new entry durable.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.checked(to, || fs::rename(from, to))?;
        self.sync_folder(parent(to))
    }

    pub(crate) fn sync_folder(&self, path: &Path) -> Result<(), StoreError> {
        self.checked(path, || fs::File::open(path)?.sync_all())
    }

    /// Gives a file that never changes a second name; where the file system has no such links, a copy of its own.
    pub(crate) fn link(&self, file: &Path, name: &Path) -> Result<(), StoreError> {
        let copy = || {
            fs::copy(file, name)?;
            fs::File::open(name)?.sync_all()
        };
        self.checked(name, || fs::hard_link(file, name).or_else(|_| copy()))
    }

    /// Puts the folder `new` in the place of whatever is called `name`. In one step, after which `new` is what was there
    /// before; or, where the file system cannot do that, in two, and what was there before is at `aside`.
    pub(crate) fn replace(&self, new: &Path, name: &Path, aside: &Path) -> Result<(), StoreError> {
        if is_absent(name) {
            return self.rename(new, name);
        }
        let exchanged = self.checked(name, || match self.exchange(new, name) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error.into()),
        })?;
        if exchanged {
            self.sync_folder(parent(new))?;
            return self.sync_folder(parent(name));
        }
        self.create_folder(parent(aside))?;
        self.rename(name, aside)?;
        self.rename(new, name)
    }

    pub(crate) fn remove_folder(&self, path: &Path) -> Result<(), StoreError> {
        self.checked(path, || absent_is_fine(fs::remove_dir_all(path)))
    }
}

/// Whether nothing, not even a link that leads nowhere, has this name.
pub(crate) fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// An exclusive lock on a file for as long as the value lives; other processes wait.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: fs::File,
}

impl Lock {
    pub(crate) fn wait(path: PathBuf) -> Result<Self, StoreError> {
        let file = fs::File::options().create(true).write(true).truncate(false).open(&path);
        let file = file.map_err(StoreError::file(&path))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| StoreError::file(path)(error.into()))?;
        Ok(Self { _file: file })
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
