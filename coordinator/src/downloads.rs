//! Where a process keeps what it fetches to plan and to publish: base models and adapters, by their content, so nothing is lost
//! when something of it goes.

use std::path::PathBuf;

use graftwork_store::Cache;

/// A folder for what is fetched, and how much of it may be what nobody uses.
#[derive(Clone, Debug)]
pub(crate) struct Downloads {
    folder: PathBuf,
    most_bytes: Option<u64>,
}

impl Downloads {
    /// What was used the longest ago, and is not in use, goes before something new would make it more bytes.
    pub(crate) fn bounded(folder: PathBuf, most_bytes: u64) -> Self {
        Self { folder, most_bytes: Some(most_bytes) }
    }
}

impl From<PathBuf> for Downloads {
    /// Nothing is ever removed.
    fn from(folder: PathBuf) -> Self {
        Self { folder, most_bytes: None }
    }
}

impl<'a> From<&'a Downloads> for Cache<'a> {
    fn from(downloads: &'a Downloads) -> Self {
        let folder = downloads.folder.as_path();
        downloads.most_bytes.map_or_else(|| folder.into(), |most_bytes| Self::bounded(folder, most_bytes))
    }
}
