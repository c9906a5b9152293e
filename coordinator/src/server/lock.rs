//! The lock on a state folder: at most one coordinator leads it.
//!
//! The lock is the kernel's (`flock`), so it ends with its process however that ends; the file's text only tells
//! others whom to ask.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::Path,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::Listen;

/// Who leads a state folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// Its process.
    pub(crate) pid: u32,
    /// Its program's version.
    pub(crate) version: String,
    /// Where it listens; empty while it starts.
    pub(crate) addresses: Vec<Listen>,
}

impl Holder {
    /// The socket at which this user reaches it.
    pub(crate) fn socket(&self) -> Option<&Path> {
        self.addresses.iter().find_map(|address| match address {
            Listen::Unix(path) => Some(path.as_path()),
            Listen::Tcp(_) | Listen::Tls(_) => None,
        })
    }
}

/// How often, and how far apart, the lock is tried: whoever asks for its holder has it shared for a moment.
const TRIES: (u32, Duration) = (25, Duration::from_millis(20));

/// A held lock; dropping it gives the folder up.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

fn open(folder: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join("lock"))
}

fn read(file: &mut File) -> Holder {
    let mut text = String::new();
    let whole = file.rewind().and_then(|()| file.take(1 << 20).read_to_string(&mut text));
    // A holder that has just taken the lock has not written its text yet: its pid is then unknown (0).
    whole.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default()
}

impl Lock {
    /// Takes the lock, or says who holds it. Blocks for half a second before it says so.
    pub(super) fn take(folder: &Path) -> io::Result<Result<Self, Holder>> {
        let mut file = open(folder)?;
        let (tries, apart) = TRIES;
        for _ in 0..tries {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let mut lock = Self { file };
                    lock.tell(Vec::new())?;
                    return Ok(Ok(lock));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(apart),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Err(read(&mut file)))
    }

    /// Writes down where this coordinator listens.
    pub(super) fn tell(&mut self, addresses: Vec<Listen>) -> io::Result<()> {
        let version = graftwork_shared::VERSION.to_owned();
        let text = serde_json::to_string(&Holder { pid: std::process::id(), version, addresses })?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())
    }
}

/// The coordinator that leads this state folder now, if one does.
pub(crate) fn holder(folder: &Path) -> io::Result<Option<Holder>> {
    let mut file = match OpenOptions::new().read(true).open(folder.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Some(read(&mut file))),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_who_leads_does_not_keep_a_coordinator_from_leading() {
        let folder = tempfile::tempdir().unwrap();
        drop(Lock::take(folder.path()).unwrap().unwrap());
        let asking = File::open(folder.path().join("lock")).unwrap();
        flock(&asking, FlockOperation::NonBlockingLockShared).unwrap();
        let asked = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(asking);
        });
        assert!(Lock::take(folder.path()).unwrap().is_ok());
        asked.join().unwrap();
    }

    #[test]
    fn a_second_coordinator_learns_who_leads() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(holder(folder.path()).unwrap(), None);
        let mut lock = Lock::take(folder.path()).unwrap().unwrap();
        let address = Listen::Unix("/x/socket".into());
        lock.tell(vec![address.clone()]).unwrap();
        let refused = Lock::take(folder.path()).unwrap().unwrap_err();
        assert_eq!((refused.pid, &refused.addresses), (std::process::id(), &vec![address]));
        assert_eq!(holder(folder.path()).unwrap(), Some(refused));
        drop(lock);
        assert_eq!(holder(folder.path()).unwrap(), None);
        assert!(Lock::take(folder.path()).unwrap().is_ok());
    }
}
