//! A history that coordinators keep with their state, and the folder in which this one works on it.
//!
//! The folder is a copy. When the history is opened it is made the same as what is kept, and whatever changes in it after
//! that goes back, all files of one change at once: so a night is kept whole or not at all, and whoever takes over, on
//! whatever host, goes on where it stands. What is of this host alone (the training of a night, what was said of stored
//! nights that were compared once more) stays here.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs, io,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use graftwork_shared::digest::Digest;

use super::history::{History, NIGHT, digest_of, remove};
use crate::{
    cli::Failure,
    server::{Files, Held, Histories, HistoryError},
};

/// What makes a folder a copy, and says of what.
pub(super) const COPY: &str = "copy";

/// What it says.
const OF: &str = "This is a copy of a history of nights that coordinators keep with their state in a database: what is changed \
                  here is gone when the next night begins.\n";

/// Folders whose files are kept; of `nights` those a folder further down.
const FOLDERS: [&str; 2] = ["pruned", "abandoned"];

/// The folder of the night under way.
const TONIGHT: &str = "tonight";

/// Where a history is kept, and what is known of it there.
#[derive(Debug)]
pub(super) struct Kept {
    histories: Histories,
    name: String,
    known: RefCell<Files>,
}

impl Kept {
    /// Brings a history into its folder. Gives the files that are lost; each is empty then, as one whose bytes were damaged.
    pub(super) fn bring(histories: Histories, name: String, folder: &Path) -> Result<(Self, Vec<String>), Failure> {
        let files = histories.files(&name).map_err(anyhow::Error::from)?;
        let lost = bring(folder, &files, |digest, to| histories.fetch(digest, to))?;
        Ok((Self { histories, name, known: RefCell::new(files) }, lost))
    }

    /// Where a night publishes, as every host reads it.
    pub(super) fn hub(&self, night: &str) -> String {
        format!("{}{}/{TONIGHT}/hub/{night}", crate::publish::NIGHTS, self.name)
    }

    /// Keeps what has changed in the folder.
    pub(super) fn settle(&self, folder: &Path) -> anyhow::Result<()> {
        let mut known = self.known.borrow_mut();
        let there = listed(folder).with_context(|| folder.display().to_string())?;
        let mut changed = BTreeMap::new();
        for (name, path) in &there {
            let found = digest_of(path).with_context(|| path.display().to_string())?;
            if known.get(name) != Some(&found) {
                changed.insert(name.clone(), Some(path.clone()));
            }
        }
        let gone = known.keys().filter(|name| !there.contains_key(*name));
        changed.extend(gone.map(|name| (name.clone(), None)));
        if changed.is_empty() {
            return Ok(());
        }
        for (name, blob) in self.histories.keep(&self.name, &changed)? {
            match blob {
                Some(blob) => known.insert(name, blob),
                None => known.remove(&name),
            };
        }
        Ok(())
    }
}

impl History {
    /// Opens one that is kept with a coordinator's state, whose copy lies in a folder of its name.
    pub(super) fn open_kept(folder: PathBuf, tell: fn(&str), histories: Histories) -> Result<Self, Failure> {
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut history = Self::open(folder, tell)?;
        let (kept, lost) = Kept::bring(histories, name, &history.folder)?;
        history.tell_lost(&lost);
        history.kept = Some(kept);
        Ok(history)
    }

    /// Makes it a copy of a history that a database holds, to look at. Gives the files that are lost there.
    pub(super) fn copy(&self, held: &Held) -> Result<Vec<String>, Failure> {
        bring(&self.folder, &held.files, |digest, to| held.fetch(digest, to))
    }

    pub(super) fn tell_lost(&self, files: &[String]) {
        for file in files {
            self.tell(&format!("{} is lost: the state has its bytes no more", self.folder.join(file).display()));
        }
    }

    /// Refuses to begin a night in a copy, of which nobody would hear.
    pub(super) fn check_own(&self) -> Result<(), Failure> {
        if self.kept.is_some() || !is_copy(&self.folder) {
            return Ok(());
        }
        let words = format!(
            "{} is a copy of a history that coordinators keep with their state: they run its nights, when they are due; \
             --compare, --repeat, --bisect and --export look at it",
            self.folder.display()
        );
        Err(Failure::input(anyhow!(words)))
    }

    /// Where a night publishes while it is trained.
    pub(super) fn hub(&self, night: &str) -> String {
        let own = || self.tonight_folder().join("hub").join(night).display().to_string();
        self.kept.as_ref().map_or_else(own, |kept| kept.hub(night))
    }

    /// What has changed in a copy is kept from here on, whatever becomes of this host.
    pub(super) fn settle(&self) -> anyhow::Result<()> {
        self.kept.as_ref().map_or(Ok(()), |kept| kept.settle(&self.folder))
    }
}

/// Makes a folder the same as what is kept. Gives the files that are lost.
fn bring(
    folder: &Path,
    files: &Files,
    fetch: impl Fn(Digest, &Path) -> Result<(), HistoryError>,
) -> Result<Vec<String>, Failure> {
    let there = listed(folder).with_context(|| folder.display().to_string())?;
    if !there.is_empty() && !is_copy(folder) {
        let words = format!(
            "{} holds a history of its own, and not a copy of one that is kept with a state: name another folder",
            folder.display()
        );
        return Err(Failure::input(anyhow!(words)));
    }
    graftwork_store::write_atomically(&folder.join(COPY), OF.as_bytes())?;
    for (name, path) in &there {
        if !files.contains_key(name) {
            fs::remove_file(path).with_context(|| path.display().to_string())?;
        }
    }
    if !files.contains_key(&format!("{TONIGHT}/{NIGHT}")) {
        remove(&folder.join(TONIGHT))?;
    }
    let mut lost = Vec::new();
    for (name, digest) in files {
        let Some(path) = place(folder, name) else {
            return Err(anyhow!("{name:?} is no file of a history of nights").into());
        };
        if there.contains_key(name) && digest_of(&path).is_ok_and(|found| found == *digest) {
            continue;
        }
        match fetch(*digest, &path) {
            Err(error) if error.is_loss() => {
                graftwork_store::write_atomically(&path, b"")?;
                lost.push(name.clone());
            }
            fetched => fetched.map_err(anyhow::Error::from)?,
        }
    }
    Ok(lost)
}

/// Whether a folder is a copy of a history that is kept elsewhere.
fn is_copy(folder: &Path) -> bool {
    folder.join(COPY).exists()
}

/// The files of a history that are kept, by their names there.
pub(crate) fn listed(folder: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut add = |below: &str| -> io::Result<()> {
        for (name, path) in entries(&folder.join(below))? {
            if path.is_file() {
                files.insert(format!("{below}/{name}"), path);
            }
        }
        Ok(())
    };
    FOLDERS.iter().try_for_each(|below| add(below))?;
    for (night, _) in entries(&folder.join("nights"))? {
        add(&format!("nights/{night}"))?;
    }
    let tonight = folder.join(TONIGHT).join(NIGHT);
    if tonight.exists() {
        files.insert(format!("{TONIGHT}/{NIGHT}"), tonight);
    }
    Ok(files)
}

/// What is in a folder, if it is one; files that are being written have names that begin with a dot.
fn entries(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

/// Where a file of this name lies below a folder; `None` for a name that would lead out of it.
pub(crate) fn place(folder: &Path, name: &str) -> Option<PathBuf> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !name.is_empty()).then(|| folder.join(name))
}
