//! The folder of a nightly: the nights that are kept, and the one that is under way.
//!
//! ```text
//! copy                     in a copy of a history that is kept with a state: what it is a copy of
//! lock                     held while a night is run or compared
//! tonight/night.json       number and beginning of the night that is under way, and what it measures
//! tonight/{state,hub}      its training
//! abandoned/JOB            a job of these nights that a coordinator may have; it is to forget all but tonight's
//! nights/000012/night.json written last: a night with it is whole
//! nights/000012/…          its answers, and everything that was said of it
//! pruned/000003.json       numbers of a night that is no longer kept
//! compared/…               what was said of stored nights that were compared once more, the last time
//! beside/{before,after}    two versions side by side, and what was said of them
//! versions/tree            a checkout of another commit, moved from one to the next
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, ensure};
use graftwork_shared::{
    digest::{Digest, Hasher},
    id::{JobId, Name},
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    answers::{self, Book},
    kept::Kept,
    night::{LAYOUT, Night},
};
use crate::cli::{Failure, INPUT};

/// The file that makes a night, or says what is under way.
pub(super) const NIGHT: &str = "night.json";
/// What its models answered.
const ANSWERS: &str = "answers.parquet";

/// The folder, and the lock on it.
#[derive(Debug)]
pub(super) struct History {
    pub(super) folder: PathBuf,
    /// Where people read what is worth a word.
    tell: fn(&str),
    /// Where all of it is kept, if the folder is a copy.
    pub(super) kept: Option<Kept>,
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
    /// Digest of all that it measures: job, rows as far as they were read, and programs.
    #[serde(alias = "job")]
    pub(super) measured: Digest,
    /// Its job at a coordinator, from before it is submitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) submitted: Option<JobId>,
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
        Ok(Self { folder, tell, kept: None, _lock: file })
    }

    /// Says something to whoever watches.
    pub(super) fn tell(&self, words: &str) {
        (self.tell)(words);
    }

    /// Where the night under way is trained.
    pub(super) fn tonight_folder(&self) -> PathBuf {
        self.folder.join("tonight")
    }

    /// Begins a night, or goes on with the one that was interrupted. One that measured something else starts over.
    pub(super) fn begin(&self, measured: Digest, now_ms: u64) -> Result<Tonight, Failure> {
        let number = self.next_number()?;
        let earlier = match self.read_tonight() {
            Err(damaged) if damaged.code == INPUT => {
                self.tell(&format!(
                    "{}: night {number} starts over, and what its coordinator still has of it is forgotten there",
                    damaged.error
                ));
                None
            }
            read => read?,
        };
        let tonight = match earlier {
            Some(earlier) if earlier.measured == measured && earlier.number == number => {
                Tonight { resumed: earlier.resumed + 1, ..earlier }
            }
            earlier => {
                if let Some(earlier) = earlier.filter(|earlier| earlier.number == number) {
                    let job = earlier.submitted.map_or_else(String::new, |job| {
                        format!("; its coordinator cancels and forgets job {job} before its next night")
                    });
                    self.tell(&format!(
                        "job, rows or programs are other ones than when night {number} began: the night starts over{job}"
                    ));
                }
                self.forget_tonight()?;
                Tonight { number, began_ms: now_ms, resumed: 0, measured, submitted: None }
            }
        };
        self.write_tonight(&tonight)?;
        Ok(tonight)
    }

    /// Writes down which job trains the night, before anybody is asked to train it: whatever happens from then on, it is
    /// gone on with or forgotten.
    pub(super) fn submits(&self, tonight: &mut Tonight, job: JobId) -> Result<(), Failure> {
        // Its name alone says it, so it is known even where the file of the night under way is damaged.
        self.list(&job)?;
        tonight.submitted = Some(job);
        self.write_tonight(tonight)
    }

    fn write_tonight(&self, tonight: &Tonight) -> Result<(), Failure> {
        graftwork_store::write_atomically(&self.tonight_folder().join(NIGHT), &json(tonight)?)?;
        Ok(self.settle()?)
    }

    /// The number of the night that is under way, or is the next one.
    pub(super) fn next_number(&self) -> Result<u64, Failure> {
        Ok(self.numbers()?.last().map_or(1, |last| last + 1))
    }

    /// The night that is under way, if one was begun. Nothing goes on from what cannot be read.
    pub(super) fn tonight(&self) -> Result<Option<Tonight>, Failure> {
        match self.read_tonight() {
            Err(damaged) if damaged.code == INPUT => Ok(None),
            read => read,
        }
    }

    fn read_tonight(&self) -> Result<Option<Tonight>, Failure> {
        read_if_there(&self.tonight_folder().join(NIGHT))
    }

    /// Whether a night was begun and not ended, also where nothing can be read of it.
    pub(super) fn is_under_way(&self) -> bool {
        self.tonight_folder().join(NIGHT).exists()
    }

    /// Removes what the night under way left. A job of it that a coordinator may have is to be forgotten there.
    pub(super) fn forget_tonight(&self) -> Result<(), Failure> {
        if let Some(Tonight { submitted: Some(job), .. }) = self.tonight()? {
            // An earlier version did not list it before it was submitted.
            self.list(&job)?;
        }
        remove(&self.tonight_folder())?;
        Ok(self.settle()?)
    }

    fn list(&self, job: &JobId) -> Result<(), Failure> {
        let abandoned = self.abandoned_folder();
        fs::create_dir_all(&abandoned).with_context(|| format!("making {}", abandoned.display()))?;
        let path = abandoned.join(job.as_str());
        let listed = File::create(&path).and_then(|_| File::open(&abandoned)?.sync_all());
        Ok(listed.with_context(|| path.display().to_string())?)
    }

    /// Jobs of nights that were given up or are kept, which their coordinator has not forgotten yet: all that are listed but
    /// that of the night under way.
    pub(super) fn abandoned(&self) -> Result<Vec<JobId>, Failure> {
        let of_tonight = self.tonight()?.and_then(|tonight| tonight.submitted);
        let entries = match fs::read_dir(self.abandoned_folder()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().parse().ok()));
        let mut jobs: Vec<JobId> = names.collect::<std::io::Result<Vec<_>>>()?.into_iter().flatten().collect();
        jobs.retain(|job| Some(job) != of_tonight.as_ref());
        jobs.sort();
        Ok(jobs)
    }

    /// A coordinator has forgotten this job.
    pub(super) fn forgotten(&self, job: &JobId) -> Result<(), Failure> {
        fs::remove_file(self.abandoned_folder().join(job.as_str()))?;
        Ok(self.settle()?)
    }

    fn abandoned_folder(&self) -> PathBuf {
        self.folder.join("abandoned")
    }

    /// The folder of a stored night.
    pub(super) fn folder_of(&self, number: u64) -> PathBuf {
        self.folder.join("nights").join(format!("{number:06}"))
    }

    /// Numbers of the stored nights, ascending.
    pub(super) fn numbers(&self) -> Result<Vec<u64>, Failure> {
        Ok(numbers_in(&self.folder)?)
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
        let path = self.folder_of(number).join(NIGHT);
        let night = read_if_there::<Night>(&path)?.ok_or_else(|| {
            let there: Vec<String> = self.numbers().unwrap_or_default().iter().map(ToString::to_string).collect();
            let there =
                if there.is_empty() { "there is none".to_owned() } else { format!("there are {}", there.join(", ")) };
            Failure::input(anyhow!("night {number} is not kept in {}: {there}", self.folder.display()))
        })?;
        of_this_layout(&path, night)
    }

    /// The answers of a stored night; an error names the file.
    pub(super) fn book(&self, night: &Night) -> anyhow::Result<Book> {
        let path = self.folder_of(night.number).join(ANSWERS);
        if let Some(kept) = night.answers {
            let found =
                digest_of(&path).with_context(|| format!("the answers in {} cannot be read", path.display()))?;
            ensure!(
                found == kept,
                "the answers in {} are damaged: their digest is {found}, not {kept}",
                path.display()
            );
        }
        answers::read(&path, &|task| labels(night, task))
    }

    /// Keeps a night; it is there when its `night.json` is, which is written last.
    pub(super) fn keep(&self, night: &Night, book: &Book) -> anyhow::Result<()> {
        keep_in(&self.folder_of(night.number), night, book)?;
        self.settle()
    }

    /// Where it is said how stored nights compare that are looked at once more.
    pub(super) fn compared_folder(&self) -> PathBuf {
        self.folder.join("compared")
    }

    /// Where numbers of nights lie that are no longer kept.
    pub(super) fn pruned_folder(&self) -> PathBuf {
        self.folder.join("pruned")
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
        rewrite_in(&self.folder_of(night.number), night)?;
        self.settle()
    }
}

/// Numbers of the nights that are stored in the folder of a history, ascending.
pub(super) fn numbers_in(history: &Path) -> std::io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(history.join("nights"))? {
        let entry = entry?;
        let number = entry.file_name().to_string_lossy().parse::<u64>();
        // A folder without the file that is written last was cut off.
        numbers.extend(number.ok().filter(|_| entry.path().join(NIGHT).exists()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A night that another version wrote in another form is not taken for one of these.
pub(super) fn of_this_layout(path: &Path, night: Night) -> Result<Night, Failure> {
    if night.layout == LAYOUT {
        return Ok(night);
    }
    let words = format!("{} has layout {}, and this program reads {LAYOUT}", path.display(), night.layout);
    Err(Failure::input(anyhow!(words)))
}

/// Writes what was measured into a folder, `night.json` last.
pub(super) fn keep_in(folder: &Path, night: &Night, book: &Book) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let path = folder.join(ANSWERS);
    let mut writer = answers::Writer::create(&path)?;
    writer.add(night.number, book, &|task| labels(night, task))?;
    writer.finish()?;
    rewrite_in(folder, &Night { answers: Some(digest_of(&path)?), ..night.clone() })
}

/// The digest of a file.
pub(super) fn digest_of(path: &Path) -> std::io::Result<Digest> {
    let mut hasher = Hasher::new();
    std::io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finish())
}

fn rewrite_in(folder: &Path, night: &Night) -> anyhow::Result<()> {
    Ok(graftwork_store::write_atomically(&folder.join(NIGHT), &json(night)?)?)
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

/// Class names of a task of a night.
pub(super) fn labels(night: &Night, task: &Name) -> Vec<String> {
    night.measurements.iter().find(|measured| measured.task == *task).map(|m| m.labels.clone()).unwrap_or_default()
}

fn json<T: Serialize>(value: &T) -> anyhow::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

pub(super) fn read_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
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
        let first = Tonight { number: 1, began_ms: 5, resumed: 0, measured: job, submitted: None };
        assert_eq!(history.begin(job, 5).unwrap(), first);
        fs::create_dir(history.tonight_folder().join("state")).unwrap();
        assert_eq!(history.begin(job, 9).unwrap(), Tonight { resumed: 1, ..first.clone() });
        assert!(history.tonight_folder().join("state").exists(), "what was trained stays");
        let second = Tonight { began_ms: 11, measured: other, ..first };
        assert_eq!(history.begin(other, 11).unwrap(), second);
        assert!(!history.tonight_folder().join("state").exists());
        assert_eq!(history.begin(other, 12).unwrap().resumed, 1);
        assert!(history.abandoned().unwrap().is_empty(), "no coordinator was asked for anything");
    }

    #[test]
    fn the_job_of_a_night_that_starts_over_is_abandoned_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path().to_owned(), ignore).unwrap();
        let (one, other) = (Digest::of(b"job"), Digest::of(b"other rows"));
        let (old, new) = (JobId::of(&one), JobId::of(&other));
        let mut tonight = history.begin(one, 5).unwrap();
        history.submits(&mut tonight, old.clone()).unwrap();
        assert_eq!(history.begin(one, 6).unwrap().submitted, Some(old.clone()), "it goes on with its job");
        assert!(history.abandoned().unwrap().is_empty());
        let mut tonight = history.begin(other, 7).unwrap();
        assert_eq!((tonight.submitted.clone(), history.abandoned().unwrap()), (None, vec![old.clone()]));
        history.submits(&mut tonight, new.clone()).unwrap();
        history.forget_tonight().unwrap();
        let mut both = vec![old.clone(), new.clone()];
        both.sort();
        assert_eq!(history.abandoned().unwrap(), both);
        history.forgotten(&old).unwrap();
        assert_eq!(history.abandoned().unwrap(), [new]);
    }

    #[test]
    fn what_is_under_way_and_cannot_be_read_starts_over() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path().to_owned(), ignore).unwrap();
        let job = Digest::of(b"job");
        history.begin(job, 5).unwrap();
        fs::create_dir(history.tonight_folder().join("state")).unwrap();
        fs::write(history.tonight_folder().join(NIGHT), b"{\"number\":").unwrap();
        assert_eq!(history.tonight().unwrap(), None);
        assert_eq!(history.begin(job, 9).unwrap().resumed, 0);
        assert!(!history.tonight_folder().join("state").exists(), "nobody knows what was trained there");
    }

    #[test]
    fn the_job_of_a_night_whose_file_is_damaged_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path().to_owned(), ignore).unwrap();
        let old = JobId::of(&Digest::of(b"job"));
        let mut tonight = history.begin(Digest::of(b"job"), 5).unwrap();
        history.submits(&mut tonight, old.clone()).unwrap();
        let path = history.tonight_folder().join(NIGHT);
        for damage in [b"{\"number\":1,\"beg".as_slice(), b"", b"\0\0\0\0"] {
            fs::write(&path, damage).unwrap();
            assert!(history.is_under_way() && history.tonight().unwrap().is_none());
            assert_eq!(history.abandoned().unwrap(), vec![old.clone()], "nobody goes on with it");
        }
        let mut tonight = history.begin(Digest::of(b"other rows"), 7).unwrap();
        assert_eq!((tonight.resumed, history.abandoned().unwrap()), (0, vec![old.clone()]));
        history.forgotten(&old).unwrap();
        // The same job may train the night that starts over.
        history.submits(&mut tonight, old.clone()).unwrap();
        assert!(history.abandoned().unwrap().is_empty());
        // A night of a version that did not list its job before it was submitted.
        history.forgotten(&old).unwrap();
        history.forget_tonight().unwrap();
        assert_eq!(history.abandoned().unwrap(), [old]);
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
        fs::write(history.folder_of(2).join(NIGHT), b"{").unwrap();
        let damaged = history.night(2).unwrap_err();
        assert!(damaged.error.to_string().contains("is damaged"), "{}", damaged.error);
        assert!(history.nights().unwrap().is_empty(), "it is left out");
        assert_eq!(history.begin(Digest::of(b"job"), 1).unwrap().number, 3, "and its number is not given again");
    }
}
