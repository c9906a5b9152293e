//! Whether the files of a release are still those that were published.
//!
//! Whoever uses an adapter cannot see that a byte of it changed: the numbers are only others. A folder without a record
//! is somebody else's and is taken as it is.

use std::{collections::BTreeMap, path::Path};

use graftwork_shared::digest::Digest;
use serde::Deserialize;

use super::{Wanted, files_of};
use crate::{RECORD_FILE, StoreError};

/// What is read of a record; the rest may be of a later version.
#[derive(Deserialize)]
struct Recorded {
    files: BTreeMap<String, Digest>,
}

/// Holds every file of an adapter's folder that this program reads against the folder's record. Blocks.
pub(super) fn check(folder: &Path, location: &str) -> Result<(), StoreError> {
    let path = folder.join(RECORD_FILE);
    if !path.is_file() {
        return Ok(());
    }
    let damaged = |name: &str, problem: String| StoreError::Damaged { place: format!("{location}/{name}"), problem };
    let bytes = std::fs::read(&path).map_err(StoreError::file(&path))?;
    let recorded: Recorded =
        serde_json::from_slice(&bytes).map_err(|error| damaged(RECORD_FILE, format!("it cannot be read: {error}")))?;
    for (name, file) in files_of(folder, Wanted::Adapter)? {
        if name == RECORD_FILE {
            continue;
        }
        let found = Digest::of(&std::fs::read(&file).map_err(StoreError::file(&file))?);
        match recorded.files.get(&name) {
            Some(expected) if *expected == found => {}
            Some(expected) => {
                let (found, expected) = (found.short(), expected.short());
                let problem = format!("its SHA-256 is {found}, but it was published with {expected}; publish it again");
                return Err(damaged(&name, problem));
            }
            None => return Err(damaged(&name, "it is not in the record of this release".to_owned())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_release_that_changed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        let checked = || check(folder.path(), "hub/mood").map_err(|error| error.to_string());
        write("adapter_config.json", b"{}");
        write("adapter.safetensors", b"weights");
        assert_eq!(checked(), Ok(()), "a folder without a record");
        let files = ["{}", "weights"].map(|bytes| Digest::of(bytes.as_bytes()).to_string());
        let record =
            format!(r#"{{"files":{{"adapter_config.json":"{}","adapter.safetensors":"{}"}}}}"#, files[0], files[1]);
        write(RECORD_FILE, record.as_bytes());
        assert_eq!(checked(), Ok(()));
        write("adapter.safetensors", b"weightz");
        let error = checked().unwrap_err();
        assert!(error.starts_with("hub/mood/adapter.safetensors: its SHA-256 is "), "{error}");
        write("adapter.safetensors", b"weights");
        write("pytorch_adapter.bin", b"others");
        assert!(checked().unwrap_err().contains("not in the record"));
        write(RECORD_FILE, b"{");
        assert!(checked().unwrap_err().contains("cannot be read"));
    }
}
