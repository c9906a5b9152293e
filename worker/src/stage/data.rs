//! Held-out rows are looked at before training, so that a file that changed is refused at once and not after an hour.
//!
//! Footers only. The training rows need no look: their reader compares every file as it opens it, from the first row
//! on, and all readers compare again while they read.

use graftwork_dataset::{Access, DataError, open};
use graftwork_shared::{
    assignment::{Assignment, Failure},
    data::SplitManifest,
};

use super::Host;

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
