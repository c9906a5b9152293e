//! Uploaded files and folders: how a resolved job names them, and the list that stands for a folder.
//!
//! `graftwork submit` uploads what lies on the user's disk and writes `blob://DIGEST/NAME` in the path's place. The
//! digest says what it is: the file's bytes, or for a folder the bytes of its [`FolderList`]. The name is for people,
//! and tells the name of a base model; nothing is found by it. No job file can say `blob://`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

const SCHEME: &str = "blob://";

/// Most bytes of a list that is read: a folder of a model or an adapter has a few dozen files.
pub const MOST_LIST_BYTES: u64 = 1 << 20;

/// Where an uploaded file or folder lies.
pub fn location(digest: Digest, name: &str) -> String {
    format!("{SCHEME}{digest}/{name}")
}

/// The digest in a location of something uploaded; `None` for any other place.
pub fn digest(location: &str) -> Option<Digest> {
    let rest = location.strip_prefix(SCHEME)?;
    rest.split('/').next()?.parse().ok()
}

/// The name in a location of something uploaded; `None` for any other place.
pub fn name(location: &str) -> Option<&str> {
    digest(location)?;
    location.strip_prefix(SCHEME)?.split_once('/').map(|(_, name)| name)
}

/// A location without the name: what the place holds and not what it is called.
pub fn nameless(location: &str) -> String {
    digest(location).map_or_else(|| location.to_owned(), |digest| format!("{SCHEME}{digest}"))
}

/// The files of an uploaded folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FolderList {
    /// By their paths inside the folder, with `/`.
    pub files: BTreeMap<String, UploadedFile>,
}

/// One file of an uploaded folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadedFile {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub digest: Digest,
}

impl FolderList {
    /// The blob that stands for the folder.
    ///
    /// # Panics
    /// Never: texts and numbers can be written as JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers can be written as JSON")
    }

    /// Reads such a blob; paths that lead out of the folder are refused.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let list: Self = serde_json::from_slice(bytes).map_err(|error| format!("it lists no files: {error}"))?;
        let inside = |path: &str| path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0');
        match list.files.keys().find(|path| !inside(path)) {
            Some(path) => Err(format!("it lists {path:?}, which is no path inside a folder")),
            None => Ok(list),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_gives_digest_and_name_back() {
        let content = Digest::of(b"rows");
        let place = location(content, "train set.parquet");
        assert_eq!((digest(&place), name(&place)), (Some(content), Some("train set.parquet")));
        assert_eq!(nameless(&place), format!("blob://{content}"));
        assert_eq!(digest(&nameless(&place)), Some(content));
        for other in ["/data/train.parquet", "s3://bucket/x", "blob://", "blob://abc/x"] {
            assert_eq!((digest(other), name(other), nameless(other)), (None, None, other.to_owned()));
        }
    }

    #[test]
    fn a_list_of_files_is_read_as_it_was_written() {
        let file = UploadedFile { bytes: 3, digest: Digest::of(b"abc") };
        let list = FolderList { files: [("heads/config.json".to_owned(), file)].into() };
        assert_eq!(FolderList::from_bytes(&list.to_bytes()), Ok(list));
    }

    #[test]
    fn a_list_that_leads_out_of_its_folder_is_refused() {
        let file = UploadedFile { bytes: 3, digest: Digest::of(b"abc") };
        for path in ["../x", "/x", "a//b", "a/./b", "", "a/.."] {
            let list = FolderList { files: [(path.to_owned(), file)].into() };
            assert!(FolderList::from_bytes(&list.to_bytes()).unwrap_err().contains("no path inside"), "{path}");
        }
        assert!(FolderList::from_bytes(b"PAR1").is_err());
    }
}
