//! Histories of nights in a backup: files, as they are kept in a folder, held together by one digest.
//!
//! Those that a database holds become such files here, and files become what a database holds where they are brought back to
//! one, so a backup is the same wherever it was taken. A history that lies in a folder counts before one of its name in
//! the journal, which it has had before it was moved.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use graftwork_shared::digest::{Digest, Hasher};
use serde::{Deserialize, Serialize};

use super::{
    BackupError, Home, NIGHTS,
    aside::{Aside, MARK, Named, sync},
    blobs_of, copy_journal, io_error,
};
use crate::{
    nightly,
    server::{
        BlobStore, ServerError,
        histories::{Files, HistoryError, fetch},
        journal::Opened,
    },
};

/// What a backup says of its nights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Nights {
    /// Nights, those of all histories.
    nights: u64,
    /// SHA-256 over all files, each with its path and size.
    files: Digest,
}

impl Nights {
    /// Those that were put into a backup.
    pub(super) fn of(backup: &Path, nights: u64) -> Result<Option<Self>, BackupError> {
        let folder = backup.join(NIGHTS);
        if !folder.exists() {
            return Ok(None);
        }
        Ok(Some(Self { nights, files: digest_of(&folder)? }))
    }

    pub(super) fn count(&self) -> u64 {
        self.nights
    }

    /// Refuses a backup whose files are other ones than it says.
    pub(super) fn check(&self, backup: &Path) -> Result<(), BackupError> {
        let found = digest_of(&backup.join(NIGHTS))?;
        if found == self.files {
            return Ok(());
        }
        let problem = format!("its nights have the digest {found}, not {}", self.files);
        Err(BackupError::Wrong { folder: backup.to_owned(), problem })
    }

    /// Copies a backup's histories to a folder of their own, which gets its name; where an attempt of ours was cut off that
    /// had come so far, it is there already.
    pub(super) fn bring_back_apart(&self, backup: &Path, place: &Path) -> Result<Apart, BackupError> {
        if let Some(named) = Named::left(place)?
            && digest_of(place)? == self.files
        {
            return Ok(Apart { named, made: false });
        }
        let aside = Aside::begin(place)?;
        bring_back(backup, aside.folder())?;
        Ok(Apart { named: aside.name()?, made: true })
    }
}

/// Histories that were brought back to a folder of their own, and have their name.
#[derive(Debug)]
pub(super) struct Apart {
    named: Named,
    /// By this process; else they were left by an attempt that was cut off.
    made: bool,
}

impl Apart {
    /// The state is there too.
    pub(super) fn settle(self) -> Result<(), BackupError> {
        self.named.settle()
    }

    /// There is no state to them. What an earlier attempt left stays where it is, since that one may have come to its end.
    pub(super) fn give_up(&self) -> Result<(), BackupError> {
        if self.made { self.named.give_up() } else { Ok(()) }
    }
}

/// Copies the histories in a folder into a backup that is being made; gives the nights.
pub(super) fn put_aside(from: &Path, backup: &Path) -> Result<u64, BackupError> {
    // Of an earlier attempt nothing is here: a backup begins in an empty folder.
    Ok(nightly::put_aside(from, &backup.join(NIGHTS))?)
}

/// Names of the histories in a backup.
pub(super) fn names(backup: &Path) -> Result<BTreeSet<String>, BackupError> {
    let folder = backup.join(NIGHTS);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.map_err(io_error(&folder))?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<io::Result<_>>().map_err(io_error(&folder))
}

/// Takes the histories out of a backup's own copy of a journal, and puts them beside it as files, but for those that lay in
/// a folder; gives the nights. A night that is under way is left out, and its job stands among those that are to be
/// forgotten.
pub(super) fn take_out(
    opened: &mut Opened,
    blobs: &BlobStore,
    (backup, named): (&Path, &BTreeSet<String>),
) -> Result<u64, BackupError> {
    let mut nights = 0;
    for (history, files) in opened.state.histories().clone() {
        if !named.contains(&history) {
            let folder = nightly::place(&backup.join(NIGHTS), &history).ok_or_else(|| wrong(backup, &history))?;
            // Of an earlier attempt.
            if folder.exists() {
                fs::remove_dir_all(&folder).map_err(io_error(&folder))?;
            }
            // There is a history also where no night has ended.
            fs::create_dir_all(folder.join("nights")).map_err(io_error(&folder))?;
            for (name, blob) in files.iter().filter(|(name, _)| !name.starts_with("tonight/")) {
                let path = nightly::place(&folder, name).ok_or_else(|| wrong(backup, name))?;
                fetch(blobs, *blob, &path)?;
                nights += u64::from(name.starts_with("nights/") && name.ends_with("/night.json"));
            }
            for made in [&folder.join("nights"), &folder, &backup.join(NIGHTS)] {
                sync(made)?;
            }
        }
        let gone = files.into_keys().map(|name| (name, None)).collect();
        opened.keep_history(history, gone).map_err(ServerError::from)?;
    }
    Ok(nights)
}

fn wrong(folder: &Path, name: &str) -> BackupError {
    BackupError::Wrong { folder: folder.to_owned(), problem: format!("{name:?} is no file of a history of nights") }
}

/// Puts a backup's histories into a journal that is to be a database's; gives the files that are blobs of it from then on.
pub(super) fn put_in(opened: &mut Opened, backup: &Path) -> Result<BTreeMap<Digest, PathBuf>, BackupError> {
    let mut blobs = BTreeMap::new();
    for history in names(backup)? {
        let folder = backup.join(NIGHTS).join(&history);
        let mut files = BTreeMap::new();
        for (name, path) in nightly::listed(&folder).map_err(io_error(&folder))? {
            let digest = super::digest_of(&path)?;
            files.insert(name, Some(digest));
            blobs.insert(digest, path);
        }
        opened.keep_history(history, files).map_err(ServerError::from)?;
    }
    Ok(blobs)
}

/// A history that a database holds, for reading alone.
pub(crate) struct Held {
    /// Its files; none of one that is not there.
    pub(crate) files: Files,
    blobs: BlobStore,
}

impl Held {
    /// Looks into a state that somebody may lead.
    pub(crate) fn look(home: &Home, history: &str) -> Result<Self, BackupError> {
        let scratch = tempfile::tempdir().map_err(io_error(&std::env::temp_dir()))?;
        let opened = copy_journal(home, scratch.path())?;
        let files = opened.state.histories().get(history).cloned().unwrap_or_default();
        Ok(Self { files, blobs: blobs_of(home)? })
    }

    /// Puts a file into a folder as it is held.
    pub(crate) fn fetch(&self, digest: Digest, to: &Path) -> Result<(), HistoryError> {
        fetch(&self.blobs, digest, to)
    }
}

/// Copies a backup's histories to where they are to lie; nothing where it has none.
pub(super) fn bring_back(backup: &Path, to: &Path) -> Result<(), BackupError> {
    Ok(nightly::put_aside(&backup.join(NIGHTS), to).map(drop)?)
}

fn digest_of(folder: &Path) -> Result<Digest, BackupError> {
    let mut files = Vec::new();
    list(folder, &mut files).map_err(io_error(folder))?;
    files.retain(|path| *path != folder.join(MARK));
    files.sort_unstable();
    let mut hasher = Hasher::new();
    for path in files {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        let mut file = File::open(&path).map_err(io_error(&path))?;
        let size = file.metadata().map_err(io_error(&path))?.len();
        hasher.update(format!("{name} {size}\n").as_bytes());
        io::copy(&mut file, &mut hasher).map_err(io_error(&path))?;
    }
    Ok(hasher.finish())
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}
