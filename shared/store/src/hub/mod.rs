//! The hub folder: what users and AdapterHub's Python library read, and where results are found again.
//!
//! ```text
//! <hub>/<organisation>/<name>          → ../.releases/<digest>: what readers open; one rename swaps it
//! <hub>/.releases/<digest>/            a release's files; never changed after its name appears
//! <hub>/.index/<recipe>/<class>        the release that holds the result of a recipe in a numeric class
//! <hub>/.staging/                      releases being written; emptied by the next commit
//! <hub>/.lock                          one writer at a time
//! ```
//! The digest of a release covers the path and the SHA-256 of each of its files, so equal results give an equal tree,
//! and a second commit of the same release writes nothing. A reader that resolves `<organisation>/<name>` once sees one
//! release whole, however often the name is pointed elsewhere meanwhile.

mod commit;
mod lookup;

use std::path::{Path, PathBuf};

use graftwork_shared::{
    digest::{Digest, Hasher},
    id::Name,
};

use crate::{StoreError, disk::Disk};

/// The record inside every release.
pub const RECORD_FILE: &str = "graftwork.json";

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
    pub files: std::collections::BTreeMap<String, Vec<u8>>,
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

    /// The folder of the release that a name points to now, resolved once; `None` where nothing is published.
    pub fn current(&self, organisation: &str, name: &Name) -> Option<PathBuf> {
        std::fs::canonicalize(self.path(organisation, name)).ok().filter(|folder| folder.is_dir())
    }

    fn release_folder(&self, digest: &Digest) -> PathBuf {
        self.root.join(".releases").join(digest.to_string())
    }

    fn index_entry(&self, recipe: &Digest, class: &graftwork_shared::recipe::NumericClass) -> PathBuf {
        let class = Digest::of_value("graftwork numeric class", class);
        self.root.join(".index").join(recipe.to_string()).join(class.short())
    }
}

impl Release {
    /// Covers the path and the bytes of each file.
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        for (path, bytes) in &self.files {
            hasher.update(path.as_bytes());
            hasher.update(&[0]);
            hasher.update(Digest::of(bytes).bytes());
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests;
