//! Blobs in a folder: written aside, synced, renamed to their digest, and the folder synced before anyone hears of it.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use graftwork_shared::digest::Digest;

use super::{BlobError, io_error};

/// The folder.
#[derive(Debug)]
pub(super) struct Folder(pub(super) PathBuf);

pub(super) fn sync(path: &Path) -> Result<(), BlobError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error(path))
}

impl Folder {
    /// Where the blob of this digest lies, whether it exists or not.
    pub(super) fn path(&self, digest: Digest) -> PathBuf {
        let name = digest.to_string();
        self.0.join(&name[..2]).join(name)
    }

    pub(super) fn open(&self, digest: Digest) -> Result<File, BlobError> {
        let path = self.path(digest);
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BlobError::Missing(digest),
            _ => io_error(&path)(error),
        })
    }

    /// Gives a synced file its name.
    pub(super) fn keep(&self, aside: &Path, digest: Digest) -> Result<(), BlobError> {
        let target = self.path(digest);
        let folder = target.parent().expect("a blob lies in a folder");
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(io_error(folder))?;
            sync(&self.0)?;
        }
        // A blob that is there already is replaced by the same bytes, which also mends a damaged one.
        fs::rename(aside, &target).map_err(io_error(&target))?;
        sync(folder)
    }

    pub(super) fn set_aside(&self, digest: Digest) -> Result<String, BlobError> {
        let aside = self.0.join(format!("damaged-{digest}"));
        let path = self.path(digest);
        fs::rename(&path, &aside).map_err(io_error(&path))?;
        Ok(aside.display().to_string())
    }

    pub(super) fn remove(&self, digest: Digest) -> Result<(), BlobError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&path)(error)),
            _ => Ok(()),
        }
    }

    /// All blobs.
    pub(super) fn all(&self) -> Result<Vec<Digest>, BlobError> {
        let folder = &self.0;
        let mut all = Vec::new();
        for entry in fs::read_dir(folder).map_err(io_error(folder))? {
            let entry = entry.map_err(io_error(folder))?.path();
            let two_digits = entry.file_name().is_some_and(|name| name.len() == 2);
            if !two_digits || !entry.is_dir() {
                continue;
            }
            for blob in fs::read_dir(&entry).map_err(io_error(&entry))? {
                let blob = blob.map_err(io_error(&entry))?;
                all.extend(blob.file_name().to_str().and_then(|name| name.parse::<Digest>().ok()));
            }
        }
        Ok(all)
    }

    pub(super) fn sweep(&self, goes: impl Fn(&Digest) -> bool) -> Result<u64, BlobError> {
        let gone: Vec<Digest> = self.all()?.into_iter().filter(goes).collect();
        gone.iter().try_for_each(|digest| self.remove(*digest))?;
        Ok(gone.len() as u64)
    }
}
