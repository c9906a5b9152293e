//! Rows before training: what was uploaded is fetched, and held-out rows are looked at.
//!
//! Held-out rows are looked at before training, so that a file that changed is refused at once and not after an hour.
//!
//! Footers only. The training rows need no look: their reader compares every file as it opens it, from the first row
//! on, and all readers compare again while they read.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context as _;
use graftwork_dataset::{Access, DataError, open};
use graftwork_shared::{
    assignment::{Assignment, Failure},
    data::SplitManifest,
    digest::Digest,
    upload::{self, UploadedFile},
};

use super::{Host, failure};

/// The uploaded files of an assignment, by digest, as files of this machine; each is fetched once and then read as any
/// local file.
pub(super) fn uploads<H: Host>(assignment: &Assignment, host: &H) -> Result<BTreeMap<Digest, PathBuf>, Failure> {
    let splits = [Some(&assignment.train), Some(&assignment.validation), assignment.test.as_ref()];
    let mut paths = BTreeMap::new();
    for file in splits.into_iter().flatten().flat_map(|manifest| &manifest.files) {
        let Some(digest) = upload::digest(&file.location) else { continue };
        let uploaded = UploadedFile { bytes: file.content.bytes, digest };
        let path = host.uploaded_file(uploaded).with_context(|| file.location.clone());
        paths.insert(digest, path.map_err(|error| failure::of_host(&error))?);
    }
    Ok(paths)
}

/// Refuses an assignment whose validation or test files are not those that were planned.
pub(super) fn check_held_out<H: Host>(assignment: &Assignment, access: &Access, host: &H) -> Result<(), Failure> {
    let splits = [Some(&assignment.validation), assignment.test.as_ref()];
    for manifest in splits.into_iter().flatten() {
        host.runtime()
            .block_on(check(manifest, access))
            .map_err(|error| Failure { blame: error.blame(), message: error.to_string() })?;
    }
    Ok(())
}

async fn check(manifest: &SplitManifest, access: &Access) -> Result<(), DataError> {
    let locations = manifest.files.iter().map(|file| file.location.clone()).collect();
    let found = open(&locations, access).await?;
    for (planned, found) in manifest.files.iter().zip(&found) {
        if *planned != found.identity {
            let [before, now] = [planned, &found.identity].map(|file| (file.content.bytes, &file.version));
            let change =
                format!("it had {} bytes and version {}, now it has {} and {}", before.0, before.1, now.0, now.1);
            return Err(DataError::Changed { location: planned.location.clone(), change });
        }
    }
    Ok(())
}
