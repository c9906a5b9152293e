//! One release into the hub, all or nothing.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use graftwork_shared::{digest::Digest, id::Name, recipe::NumericClass};

use super::{Hub, Release};
use crate::{
    StoreError,
    disk::{Disk, Lock},
};

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
        self.disk.remove_folder(&staging)?;
        let link = self.path(organisation, name);
        refuse_foreign(&link)?;
        let done = self.write_and_point(&staging, &link, release, result_of);
        // Behind a full disk this frees the space; behind a kill the next commit does it.
        self.disk.remove_folder(&staging).or_else(|error| if done.is_ok() { Err(error) } else { Ok(()) })?;
        done.map(|()| link).map_err(|error| match error {
            StoreError::DiskFull(_) => StoreError::DiskFull(self.root.clone()),
            other => other,
        })
    }

    fn write_and_point(
        &self,
        staging: &Path,
        link: &Path,
        release: &Release,
        result_of: Option<(Digest, &NumericClass)>,
    ) -> Result<(), StoreError> {
        let digest = release.digest();
        let folder = self.release_folder(&digest);
        if !holds(&folder, release) {
            let aside = staging.join(digest.to_string());
            write_all(&self.disk, &aside, release)?;
            self.disk.create_folder(&self.root.join(".releases"))?;
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
        let target = Path::new("..").join(".releases").join(digest.to_string());
        if std::fs::read_link(link).ok().as_ref() != Some(&target) {
            self.disk.create_folder(link.parent().unwrap_or(&self.root))?;
            self.disk.point(link, &target, &staging.join("link"))?;
        }
        Ok(())
    }
}

/// A folder that this program did not make is not overwritten.
fn refuse_foreign(link: &Path) -> Result<(), StoreError> {
    match std::fs::symlink_metadata(link) {
        Ok(metadata) if !metadata.is_symlink() => Err(StoreError::Location {
            location: link.display().to_string(),
            problem: "something that graftwork did not publish is there; move it away or publish under another name"
                .to_owned(),
        }),
        _ => Ok(()),
    }
}

fn legal_organisation(organisation: &str) -> Result<&str, StoreError> {
    organisation.parse::<Name>().map(|_| organisation).map_err(|error| StoreError::Location {
        location: organisation.to_owned(),
        problem: format!("the organisation is part of a path: {error}"),
    })
}

fn write_all(disk: &Disk, folder: &Path, release: &Release) -> Result<(), StoreError> {
    let mut folders = BTreeSet::from([folder.to_owned()]);
    for path in release.files.keys() {
        check_relative(path)?;
        let file = folder.join(path);
        folders.extend(file.ancestors().skip(1).take_while(|at| at.starts_with(folder)).map(Path::to_owned));
    }
    for each in &folders {
        disk.create_folder(each)?;
    }
    for (path, bytes) in &release.files {
        disk.write(&folder.join(path), bytes)?;
    }
    folders.iter().try_for_each(|each| disk.sync_folder(each))
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
