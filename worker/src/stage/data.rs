//! The rows of an assignment as they lie there when an attempt begins; what was uploaded is fetched first.
//!
//! A file with another size or footer than was planned is another file, and is refused at once and not after an hour.
//! A file that only has another version (touched, copied, restored, or mounted elsewhere) is taken as it is now, and
//! its readers hold it to that. Nothing that an earlier attempt did over the other version is believed: a checkpoint is
//! gone on with only when the rows behind it are read again and have the digests that it holds, and when the validation
//! rows give its weights the score that it holds. Otherwise the stage starts over, so that its bytes are those of the
//! files as they are (invariant 5).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use graftwork_dataset::{Access, DEFAULT_WINDOW_BYTES, DataError, GroupDigests, Order, ReadRequest, RowReader, open};
use graftwork_engine::Progress;
use graftwork_shared::{
    assignment::{Assignment, Failure},
    data::{Split, SplitManifest},
    digest::Digest,
    recipe::Recipe,
    upload::{self, UploadedFile},
};
use graftwork_store::Fetched;

use super::{Host, failure};
use crate::computer::program;

/// The uploaded files of an assignment, by digest, as files of this machine; each is fetched once and then read as any
/// local file.
pub(super) fn uploads<H: Host>(assignment: &Assignment, host: &H) -> Result<BTreeMap<Digest, Fetched>, Failure> {
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

/// Digest of the files that a recipe's rows come from, of the columns of their texts, and of this program: stages that read
/// the same texts have the same one, however they cut them into splits.
pub(super) fn files_digest(recipe: &Recipe) -> Digest {
    let splits = [Some(&recipe.train), Some(&recipe.validation), recipe.test.as_ref()];
    let files = splits.into_iter().flatten().flat_map(|split| &split.files).map(|file| file.footer);
    Digest::of_value("graftwork files of texts", &(files.collect::<BTreeSet<_>>(), &recipe.columns.text, program()))
}

/// An assignment whose files were looked at.
pub(super) struct Pinned {
    /// The assignment, with the files' versions as they are now.
    pub(super) assignment: Assignment,
    /// Splits with a file of another version than planned.
    moved: BTreeSet<Split>,
}

impl Pinned {
    /// Whether a file of any split has another version than planned.
    pub(super) fn has_moved(&self) -> bool {
        !self.moved.is_empty()
    }

    /// Whether a file of the split has another version than planned.
    pub(super) fn moved(&self, split: Split) -> bool {
        self.moved.contains(&split)
    }
}

/// Opens the footer of every file of an assignment.
///
/// # Errors
/// A file with another size or footer than was planned, and all that reading can meet.
pub(super) fn pin<H: Host>(assignment: &Assignment, access: &Access, host: &H) -> Result<Pinned, Failure> {
    let mut pinned = Pinned { assignment: assignment.clone(), moved: BTreeSet::new() };
    let Assignment { train, validation, test, .. } = &mut pinned.assignment;
    let splits = [(Split::Train, Some(train)), (Split::Validation, Some(validation)), (Split::Test, test.as_mut())];
    for (split, manifest) in splits {
        let Some(manifest) = manifest else { continue };
        let moved = host.rows().block_on(pin_split(manifest, access)).map_err(|error| failure::of_data(&error))?;
        if let Some(location) = moved {
            tracing::info!(%split, location, "a file has another version than planned and the same size and footer");
            pinned.moved.insert(split);
        }
    }
    Ok(pinned)
}

/// Takes the versions of today; returns a file that has another one.
async fn pin_split(manifest: &mut SplitManifest, access: &Access) -> Result<Option<String>, DataError> {
    let locations = manifest.files.iter().map(|file| file.location.clone()).collect();
    let found = open(&locations, access).await?;
    let mut moved = None;
    for (planned, found) in manifest.files.iter_mut().zip(found) {
        let found = found.identity;
        if planned.content != found.content {
            let [before, now] = [&*planned, &found].map(|file| (file.content.bytes, &file.version));
            let change =
                format!("it had {} bytes and version {}, now it has {} and {}", before.0, before.1, now.0, now.1);
            return Err(DataError::Changed { location: planned.location.clone(), change });
        }
        if planned.version != found.version {
            planned.version = found.version;
            moved = Some(planned.location.clone());
        }
    }
    Ok(moved)
}

/// Whether the rows that a checkpoint was trained on are those of today's files: reads them again and compares digests.
pub(super) fn was_trained_on<H: Host>(
    assignment: &Assignment,
    progress: &Progress,
    access: &Access,
    host: &H,
) -> Result<bool, Failure> {
    let recipe = &assignment.recipe;
    // After a whole epoch the digests cover every row, in whatever order they come.
    let (order, rows) = if progress.epoch == 0 {
        (Order::Shuffled { seed: recipe.training.seed, window_bytes: DEFAULT_WINDOW_BYTES }, progress.cursor)
    } else {
        (Order::Sequential, assignment.train.rows)
    };
    if rows == 0 {
        return Ok(true);
    }
    let request = ReadRequest {
        manifest: assignment.train.clone(),
        columns: recipe.columns.clone(),
        output: recipe.head.output.clone(),
        order,
        epoch: 0,
        cursor: 0,
        groups: GroupDigests::default(),
    };
    let mut reader = RowReader::start(host.rows(), request, access.clone());
    for _ in 0..rows {
        match reader.next() {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(failure::of_data(&error)),
            None => return Ok(false),
        }
    }
    Ok(reader.groups().digest() == progress.groups.digest())
}
