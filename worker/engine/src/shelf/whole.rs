//! A file that is kept as a whole, such as packed weights: written once under another name, renamed when it is whole, and
//! then only read.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    sync::Arc,
};

use graftwork_shared::digest::Digest;

use super::{Shelves, room::fresh_name, volume};

/// A whole file, which nobody else removes while this lives.
#[derive(Debug)]
pub(crate) struct Whole {
    shelves: Arc<Shelves>,
    path: PathBuf,
    file: File,
}

impl Shelves {
    /// The file of a key, which `write` fills where it is not there yet; `None` where it can be neither read nor kept.
    pub(crate) fn whole(
        self: &Arc<Self>,
        kind: &str,
        key: &Digest,
        bytes: u64,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> Option<Whole> {
        let path = self.shelf_folder(kind, key).join("whole");
        let held = |file: File| Whole { shelves: Arc::clone(self), path: path.clone(), file };
        if let Some(file) = volume::open_shared(&path) {
            volume::touch(&file);
            return Some(held(file));
        }
        if self.has_ended() {
            return None;
        }
        let begun = path.with_file_name(format!("{}.begun", fresh_name()));
        let written = self.begin_file(&begun, bytes).and_then(|file| {
            let Some(file) = file else { return Ok(None) };
            let renamed = write(&file).and_then(|()| fs::rename(&begun, &path));
            if renamed.is_err() {
                let _ = fs::remove_file(&begun);
            }
            renamed.map(|()| Some(file))
        });
        match written {
            Ok(file) => file.map(held),
            Err(error) => {
                self.end(&error);
                None
            }
        }
    }
}

impl Whole {
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// It is not what was written: removes it, so that the next one who wants it writes it anew.
    pub(crate) fn damaged(&self) {
        volume::remove(&self.path);
        self.shelves.tell_damage(&self.path);
    }
}
