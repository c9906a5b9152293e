//! Durable steps on a local disk: each one is on the platter when it returns, and each one can be made to fail in tests.
//!
//! `Disk` is the only place that changes the hub folder. A test gives it a number of steps after which it does nothing
//! any more, which is what kill -9 at that point leaves behind.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
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

    /// Makes `link` a symbolic link to `target`, in place of what it was before.
    pub(crate) fn point(&self, link: &Path, target: &Path, aside: &Path) -> Result<(), StoreError> {
        self.remove_file(aside)?;
        self.checked(aside, || symlink(target, aside))?;
        self.rename(aside, link)
    }

    pub(crate) fn remove_file(&self, path: &Path) -> Result<(), StoreError> {
        self.checked(path, || absent_is_fine(fs::remove_file(path)))
    }

    pub(crate) fn remove_folder(&self, path: &Path) -> Result<(), StoreError> {
        self.checked(path, || absent_is_fine(fs::remove_dir_all(path)))
    }
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
