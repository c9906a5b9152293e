//! One release into the hub, all or nothing.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use graftwork_shared::{digest::Digest, id::Name, recipe::NumericClass};

use super::{Hub, RECORD_FILE, RELEASES, Release};
use crate::{
    StoreError,
    disk::{Disk, Lock, is_absent},
};

/// Inside the staging folder: earlier releases whose names a file system without exchange takes away for a moment.
const REPLACED: &str = "replaced";

impl Hub {
    /// Publishes a release under `<organisation>/<name>` and remembers it as the result of a recipe. Blocks; returns
    /// the path that readers use. When it fails, readers see what was there before.
    pub fn commit(
        &self,
        organisation: &str,
        name: &Name,
        release: &Release,
        result_of: Option<(Digest, &NumericClass)>,
    ) -> Result<PathBuf, StoreError> {
        let organisation = legal_organisation(organisation)?;
        self.disk.create_folder(&self.root)?;
        let _lock = Lock::wait(self.root.join(".lock"))?;
        let staging = self.root.join(".staging");
        // What a killed writer left; the lock says that nobody writes there now.
        self.clear(&staging)?;
        let place = self.path(organisation, name);
        refuse_foreign(&place)?;
        let done = self.write(&staging, &place, release, result_of);
        // Behind a full disk this frees the space; behind a kill the next commit does it.
        self.clear(&staging).or_else(|error| if done.is_ok() { Err(error) } else { Ok(()) })?;
        done.map(|()| place).map_err(|error| match error {
            StoreError::DiskFull(_) => StoreError::DiskFull(self.root.clone()),
            other => other,
        })
    }

    fn write(
        &self,
        staging: &Path,
        place: &Path,
        release: &Release,
        result_of: Option<(Digest, &NumericClass)>,
    ) -> Result<(), StoreError> {
        let digest = release.digest();
        let folder = self.release_folder(&digest);
        if !holds(&folder, release) {
            let aside = staging.join(digest.to_string());
            write_all(&self.disk, &aside, release)?;
            self.disk.create_folder(&self.root.join(RELEASES))?;
            // Only a damaged copy of the same release can be in the way.
            self.disk.remove_folder(&folder)?;
            self.disk.rename(&aside, &folder)?;
        }
        self.disk.create_folder(staging)?;
        if let Some((recipe, class)) = result_of {
            let entry = self.index_entry(&recipe, class);
            if std::fs::read(&entry).ok().as_deref() != Some(digest.to_string().as_bytes()) {
                let aside = staging.join("index");
                self.disk.create_folder(entry.parent().unwrap_or(&self.root))?;
                self.disk.write(&aside, digest.to_string().as_bytes())?;
                self.disk.rename(&aside, &entry)?;
            }
        }
        // A link is what earlier versions of this program put there: a copy of the folder around it would lack the files.
        if place.is_symlink() || !holds(place, release) {
            let named = staging.join("named");
            self.link_all(&folder, &named, release)?;
            self.disk.create_folder(place.parent().unwrap_or(&self.root))?;
            let inside = place.strip_prefix(&self.root).unwrap_or(place);
            self.disk.replace(&named, place, &staging.join(REPLACED).join(inside))?;
        }
        Ok(())
    }

    /// A folder with the files of the release, which take no space of their own.
    fn link_all(&self, release_folder: &Path, folder: &Path, release: &Release) -> Result<(), StoreError> {
        let folders = folders(folder, release)?;
        folders.iter().try_for_each(|each| self.disk.create_folder(each))?;
        for path in release.files.keys() {
            self.disk.link(&release_folder.join(path), &folder.join(path))?;
        }
        folders.iter().try_for_each(|each| self.disk.sync_folder(each))
    }

    /// Empties the staging folder. Releases that had lost their names when a writer stopped get them back.
    fn clear(&self, staging: &Path) -> Result<(), StoreError> {
        let replaced = staging.join(REPLACED);
        for organisation in entries(&replaced) {
            for release in entries(&replaced.join(&organisation)) {
                let place = self.root.join(&organisation).join(&release);
                if is_absent(&place) {
                    self.disk.rename(&replaced.join(&organisation).join(&release), &place)?;
                }
            }
        }
        self.disk.remove_folder(staging)
    }
}

fn entries(folder: &Path) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

/// What this program did not make is not overwritten: a folder without a record, or a link to somewhere else.
fn refuse_foreign(place: &Path) -> Result<(), StoreError> {
    let ours = if place.is_symlink() {
        std::fs::read_link(place).is_ok_and(|target| target.starts_with(Path::new("..").join(RELEASES)))
    } else {
        is_absent(place) || place.join(RECORD_FILE).is_file()
    };
    if ours {
        return Ok(());
    }
    Err(StoreError::Location {
        location: place.display().to_string(),
        problem: "something that graftwork did not publish is there; move it away or publish under another name"
            .to_owned(),
    })
}

fn legal_organisation(organisation: &str) -> Result<&str, StoreError> {
    organisation.parse::<Name>().map(|_| organisation).map_err(|error| StoreError::Location {
        location: organisation.to_owned(),
        problem: format!("the organisation is part of a path: {error}"),
    })
}

fn write_all(disk: &Disk, folder: &Path, release: &Release) -> Result<(), StoreError> {
    let folders = folders(folder, release)?;
    folders.iter().try_for_each(|each| disk.create_folder(each))?;
    for (path, bytes) in &release.files {
        disk.write(&folder.join(path), bytes)?;
    }
    folders.iter().try_for_each(|each| disk.sync_folder(each))
}

/// The folder of a release and those inside it.
fn folders(folder: &Path, release: &Release) -> Result<BTreeSet<PathBuf>, StoreError> {
    let mut folders = BTreeSet::from([folder.to_owned()]);
    for path in release.files.keys() {
        check_relative(path)?;
        let file = folder.join(path);
        folders.extend(file.ancestors().skip(1).take_while(|at| at.starts_with(folder)).map(Path::to_owned));
    }
    Ok(folders)
}

fn check_relative(path: &str) -> Result<(), StoreError> {
    let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
    if path.split('/').any(bad) {
        let problem = "a file of a release must lie inside it".to_owned();
        return Err(StoreError::Location { location: path.to_owned(), problem });
    }
    Ok(())
}

/// Whether the folder has exactly the bytes of the release.
fn holds(folder: &Path, release: &Release) -> bool {
    folder.is_dir()
        && release.files.iter().all(|(path, bytes)| std::fs::read(folder.join(path)).is_ok_and(|found| found == *bytes))
}
