//! Histories of nights in a backup: files, as they are kept, held together by one digest.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use graftwork_shared::digest::{Digest, Hasher};
use serde::{Deserialize, Serialize};

use super::{
    BackupError, NIGHTS,
    aside::{Aside, MARK, Named},
    io_error,
};
use crate::nightly;

/// What a backup says of its nights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Nights {
    /// Nights, those of all histories.
    nights: u64,
    /// SHA-256 over all files, each with its path and size.
    files: Digest,
}

impl Nights {
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

/// Copies the histories in a folder into a backup that is being made; `None` where there are none.
pub(super) fn put_aside(from: &Path, backup: &Path) -> Result<Option<Nights>, BackupError> {
    let to = backup.join(NIGHTS);
    // Of an earlier attempt nothing is here: a backup begins in an empty folder.
    let nights = nightly::put_aside(from, &to)?;
    if !to.exists() {
        return Ok(None);
    }
    Ok(Some(Nights { nights, files: digest_of(&to)? }))
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
