//! The folder of a nightly: the nights that are kept, and the one that is under way.
//!
//! ```text
//! lock                     held while a night is run or compared
//! tonight/night.json       number, beginning and job of the night that is under way
//! tonight/{state,hub}      its training
//! nights/000012/night.json written last: a night with it is whole
//! nights/000012/…          its answers, and everything that was said of it
//! beside/{before,after}    two versions side by side, and what was said of them
//! versions/tree            a checkout of another commit, moved from one to the next
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use graftwork_shared::{digest::Digest, id::Name};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    answers::{self, Book},
    night::{LAYOUT, Night},
};
use crate::cli::Failure;

/// The folder, and the lock on it.
#[derive(Debug)]
pub(super) struct History {
    folder: PathBuf,
    /// Where people read what is worth a word.
    tell: fn(&str),
    _lock: File,
}

/// The night that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tonight {
    /// Its number.
    pub(super) number: u64,
    /// Milliseconds since 1970.
    pub(super) began_ms: u64,
    /// Times it went on after an interruption.
    pub(super) resumed: u32,
    /// Digest of its job.
    pub(super) job: Digest,
}

impl History {
    /// Opens the folder for this process alone; `tell` is given what people should read.
    pub(super) fn open(folder: PathBuf, tell: fn(&str)) -> Result<Self, Failure> {
        fs::create_dir_all(folder.join("nights")).with_context(|| format!("making {}", folder.display()))?;
        let path = folder.join("lock");
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(anyhow!("locking {}: {error}", path.display()).into());
            }
            let mut holder = String::new();
            let _ = (&mut file).take(32).read_to_string(&mut holder);
            let words = format!("process {} runs a night in {}; wait for its end", holder.trim(), folder.display());
            return Err(Failure::input(anyhow!(words)));
        }
        file.set_len(0)?;
        write!(file, "{}", std::process::id())?;
        Ok(Self { folder, tell, _lock: file })
    }

    /// Says something to whoever watches.
    pub(super) fn tell(&self, words: &str) {
        (self.tell)(words);
    }

    /// Where the night under way is trained.
    pub(super) fn tonight_folder(&self) -> PathBuf {
        self.folder.join("tonight")
    }

    /// Begins a night, or goes on with the one that was interrupted. One of another job starts over.
    pub(super) fn begin(&self, job: Digest, now_ms: u64) -> Result<Tonight, Failure> {
        let path = self.tonight_folder().join("night.json");
        let number = self.next_number()?;
        let tonight = match self.tonight()? {
            Some(earlier) if earlier.job == job && earlier.number == number => {
                Tonight { resumed: earlier.resumed + 1, ..earlier }
            }
            earlier => {
                if earlier.is_some_and(|earlier| earlier.number == number) {
                    self.tell(&format!("the job is another one than when night {number} began: the night starts over"));
                }
                self.forget_tonight()?;
                Tonight { number, began_ms: now_ms, resumed: 0, job }
            }
        };
        graftwork_store::write_atomically(&path, &json(&tonight)?)?;
        Ok(tonight)
    }

    /// The number of the night that is under way, or is the next one.
    pub(super) fn next_number(&self) -> Result<u64, Failure> {
        Ok(self.numbers()?.last().map_or(1, |last| last + 1))
    }

    /// The night that is under way, if one was begun.
    pub(super) fn tonight(&self) -> Result<Option<Tonight>, Failure> {
        read_if_there(&self.tonight_folder().join("night.json"))
    }

    /// Removes what the night under way left.
    pub(super) fn forget_tonight(&self) -> Result<(), Failure> {
        remove(&self.tonight_folder())
    }

    /// The folder of a stored night.
    pub(super) fn folder_of(&self, number: u64) -> PathBuf {
        self.folder.join("nights").join(format!("{number:06}"))
    }

    /// Numbers of the stored nights, ascending.
    pub(super) fn numbers(&self) -> Result<Vec<u64>, Failure> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(self.folder.join("nights"))? {
            let entry = entry?;
            let number = entry.file_name().to_string_lossy().parse::<u64>();
            // A folder without the file that is written last was cut off.
            numbers.extend(number.ok().filter(|_| entry.path().join("night.json").exists()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// All stored nights, oldest first. One that cannot be read is told, and keeps no other from being compared.
    pub(super) fn nights(&self) -> Result<Vec<Night>, Failure> {
        let mut nights = Vec::new();
        for number in self.numbers()? {
            match self.night(number) {
                Ok(night) => nights.push(night),
                Err(failure) => self.tell(&format!("night {number} is left out: {}", failure.error)),
            }
        }
        Ok(nights)
    }

    /// A stored night.
    pub(super) fn night(&self, number: u64) -> Result<Night, Failure> {
        let path = self.folder_of(number).join("night.json");
        let night = read_if_there::<Night>(&path)?.ok_or_else(|| {
            let there: Vec<String> = self.numbers().unwrap_or_default().iter().map(ToString::to_string).collect();
            let there =
                if there.is_empty() { "there is none".to_owned() } else { format!("there are {}", there.join(", ")) };
            Failure::input(anyhow!("night {number} is not kept in {}: {there}", self.folder.display()))
        })?;
        if night.layout != LAYOUT {
            let words = format!("{} has layout {}, and this program reads {LAYOUT}", path.display(), night.layout);
            return Err(Failure::input(anyhow!(words)));
        }
        Ok(night)
    }

    /// The answers of a stored night.
    pub(super) fn book(&self, night: &Night) -> anyhow::Result<Book> {
        answers::read(&self.folder_of(night.number).join("answers.parquet"), &|task| labels(night, task))
    }

    /// Keeps a night; it is there when its `night.json` is, which is written last.
    pub(super) fn keep(&self, night: &Night, book: &Book) -> anyhow::Result<()> {
        keep_in(&self.folder_of(night.number), night, book)
    }

    /// Where two versions are measured side by side.
    pub(super) fn beside_folder(&self) -> PathBuf {
        self.folder.join("beside")
    }

    /// Where other versions are checked out and built, and measured one by one.
    pub(super) fn versions_folder(&self) -> PathBuf {
        self.folder.join("versions")
    }

    /// Writes what is now known of a night.
    pub(super) fn rewrite(&self, night: &Night) -> anyhow::Result<()> {
        rewrite_in(&self.folder_of(night.number), night)
    }

    /// Removes the oldest nights beyond `keep`, but never the last good one.
    pub(super) fn prune(&self, nights: &[Night], keep: u32) -> Result<(), Failure> {
        let last_good = last_good(nights).map(|night| night.number);
        let beyond = nights.len().saturating_sub(keep as usize);
        for night in nights[..beyond].iter().filter(|night| Some(night.number) != last_good) {
            let folder = self.folder_of(night.number);
            // Without its last file a night is none, so a kill in between leaves no half of it.
            fs::remove_file(folder.join("night.json"))?;
            fs::remove_dir_all(&folder)?;
        }
        Ok(())
    }
}

/// Writes what was measured into a folder, `night.json` last.
pub(super) fn keep_in(folder: &Path, night: &Night, book: &Book) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let mut writer = answers::Writer::create(&folder.join("answers.parquet"))?;
    writer.add(night.number, book, &|task| labels(night, task))?;
    writer.finish()?;
    rewrite_in(folder, night)
}

fn rewrite_in(folder: &Path, night: &Night) -> anyhow::Result<()> {
    Ok(graftwork_store::write_atomically(&folder.join("night.json"), &json(night)?)?)
}

/// Removes a folder and all in it, if it is there.
pub(super) fn remove(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(anyhow!("removing {}: {error}", folder.display()).into())
        }
        _ => Ok(()),
    }
}

/// The newest night that may be a baseline.
pub(super) fn last_good(nights: &[Night]) -> Option<&Night> {
    nights.iter().rev().find(|night| night.judged.as_ref().is_some_and(|judged| judged.good))
}

/// Class names of a task of a night.
pub(super) fn labels(night: &Night, task: &Name) -> Vec<String> {
    night.measurements.iter().find(|measured| measured.task == *task).map(|m| m.labels.clone()).unwrap_or_default()
}

fn json<T: Serialize>(value: &T) -> anyhow::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn read_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
    match fs::read(path) {
        Ok(bytes) => {
            let damaged = |error| Failure::input(anyhow!("{} is damaged: {error}", path.display()));
            serde_json::from_slice(&bytes).map(Some).map_err(damaged)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(anyhow!("{}: {error}", path.display()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignore(_: &str) {}

    #[test]
    fn an_interrupted_night_goes_on_and_another_job_starts_over() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path().to_owned(), ignore).unwrap();
        let (job, other) = (Digest::of(b"job"), Digest::of(b"other"));
        assert_eq!(history.begin(job, 5).unwrap(), Tonight { number: 1, began_ms: 5, resumed: 0, job });
        fs::create_dir(history.tonight_folder().join("state")).unwrap();
        assert_eq!(history.begin(job, 9).unwrap(), Tonight { number: 1, began_ms: 5, resumed: 1, job });
        assert!(history.tonight_folder().join("state").exists(), "what was trained stays");
        assert_eq!(history.begin(other, 11).unwrap(), Tonight { number: 1, began_ms: 11, resumed: 0, job: other });
        assert!(!history.tonight_folder().join("state").exists());
        assert_eq!(history.begin(other, 12).unwrap().resumed, 1);
    }

    #[test]
    fn two_processes_do_not_share_a_history() {
        let folder = tempfile::tempdir().unwrap();
        let first = History::open(folder.path().to_owned(), ignore).unwrap();
        let refused = History::open(folder.path().to_owned(), ignore).unwrap_err();
        let words = format!("process {} runs a night", std::process::id());
        assert!(refused.error.to_string().contains(&words), "{}", refused.error);
        drop(first);
        History::open(folder.path().to_owned(), ignore).unwrap();
    }

    #[test]
    fn a_night_that_is_not_there_says_which_are() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path().to_owned(), ignore).unwrap();
        let refused = history.night(4).unwrap_err();
        assert!(refused.error.to_string().ends_with("there is none"), "{}", refused.error);
        fs::create_dir_all(history.folder_of(2)).unwrap();
        assert!(history.numbers().unwrap().is_empty(), "a night that was cut off is none");
        fs::write(history.folder_of(2).join("night.json"), b"{").unwrap();
        let damaged = history.night(2).unwrap_err();
        assert!(damaged.error.to_string().contains("is damaged"), "{}", damaged.error);
        assert!(history.nights().unwrap().is_empty(), "it is left out");
        assert_eq!(history.begin(Digest::of(b"job"), 1).unwrap().number, 3, "and its number is not given again");
    }
}
