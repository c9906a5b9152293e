//! The hub folder: what users and AdapterHub's Python library read, and where results are found again.
//!
//! ```text
//! <hub>/<organisation>/<name>/         what people and AdapterHub read: a folder whose files are those of a release
//! <hub>/.releases/<digest>/            the same files; never changed after the folder's name appears
//! <hub>/.index/<recipe>/<class>        the release that holds the result of a recipe in a numeric class
//! <hub>/.staging/                      releases being written; emptied by the next commit
//! <hub>/.lock                          one writer at a time
//! ```
//! The digest of a release covers the path and the SHA-256 of each of its files, so equal results give an equal tree,
//! and a second commit of the same release writes nothing.
//!
//! A named folder is no link, so that a copy of it, or of its organisation, is complete; its files are hard links to
//! those below `.releases`, so it takes no space. A new release of the name takes the folder's place in one exchange of
//! names. Where the file system cannot exchange (NFS), the name is gone between two renames; after a kill just there the
//! next commit gives it back. Who reads by name file by file may see the first files of one release and the last ones
//! of the next; [`Hub::settled`] gives the folder that stays as it is.

mod commit;
mod lookup;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use graftwork_shared::{
    digest::{Digest, Hasher},
    id::Name,
};

use crate::{StoreError, disk::Disk};

/// The record inside every release.
pub const RECORD_FILE: &str = "graftwork.json";

/// Folder of all releases by digest.
const RELEASES: &str = ".releases";

/// A hub folder. Its functions block on the disk; call them outside async code.
#[derive(Debug)]
pub struct Hub {
    root: PathBuf,
    disk: Disk,
}

/// A release to be: every file by its path inside the release.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// Bytes by relative path, `/` between folders.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A result that the hub holds already.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The release's folder, which never changes.
    pub folder: PathBuf,
    /// Its record.
    pub record: graftwork_shared::record::Record,
}

impl Hub {
    /// The hub in a local folder, which is made when it is not there.
    pub fn open(location: &str) -> Result<Self, StoreError> {
        let problem =
            |problem: &str| StoreError::Location { location: location.to_owned(), problem: problem.to_owned() };
        if location.is_empty() {
            return Err(problem("a hub is a local folder, and this is empty"));
        }
        if location.contains("://") {
            return Err(problem("a hub is a local folder"));
        }
        let root = PathBuf::from(location);
        let hub = Self { root, disk: Disk::real() };
        hub.disk.create_folder(&hub.root)?;
        Ok(hub)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path that people and AdapterHub's `load_adapter` use for a release, whether it exists or not.
    pub fn path(&self, organisation: &str, name: &Name) -> PathBuf {
        self.root.join(organisation).join(name.as_str())
    }

    /// The folder of the release that has the name now, which stays as it is; `None` where nothing is published.
    pub fn current(&self, organisation: &str, name: &Name) -> Option<PathBuf> {
        std::fs::canonicalize(self.path(organisation, name)).ok().filter(|folder| folder.is_dir()).map(Self::settled)
    }

    /// The folder below `.releases` that holds the release of a named folder for good, so that a later release does not
    /// change it under a reader; the folder itself where it lies in no hub. The record alone, read once, says which.
    pub fn settled(folder: PathBuf) -> PathBuf {
        let settled = || {
            let record = std::fs::read(folder.join(RECORD_FILE)).ok()?;
            let mut listed: serde_json::Value = serde_json::from_slice(&record).ok()?;
            let mut files: BTreeMap<_, _> = serde_json::from_value(listed.get_mut("files")?.take()).ok()?;
            files.insert(RECORD_FILE.to_owned(), Digest::of(&record));
            let digest = digest_of(&files);
            let settled = folder.parent()?.parent()?.join(RELEASES).join(digest.to_string());
            settled.is_dir().then_some(settled)
        };
        settled().unwrap_or(folder)
    }

    fn release_folder(&self, digest: &Digest) -> PathBuf {
        self.root.join(RELEASES).join(digest.to_string())
    }

    fn index_entry(&self, recipe: &Digest, class: &graftwork_shared::recipe::NumericClass) -> PathBuf {
        let class = Digest::of_value("graftwork numeric class", class);
        self.root.join(".index").join(recipe.to_string()).join(class.short())
    }
}

impl Release {
    /// Covers the path and the bytes of each file.
    pub fn digest(&self) -> Digest {
        digest_of(&self.files.iter().map(|(path, bytes)| (path.clone(), Digest::of(bytes))).collect())
    }
}

/// The digest of a release from the SHA-256 of each of its files.
fn digest_of(files: &BTreeMap<String, Digest>) -> Digest {
    let mut hasher = Hasher::new();
    for (path, digest) in files {
        hasher.update(path.as_bytes());
        hasher.update(&[0]);
        hasher.update(digest.bytes());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests;
