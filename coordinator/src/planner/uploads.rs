//! What of a job was uploaded: which blobs it needs, and where its files lie in the coordinator's store.

use std::{collections::BTreeMap, path::PathBuf};

use graftwork_shared::{
    diagnostic::Diagnostic,
    digest::Digest,
    job::{AdapterRef, Job},
    upload::{self, FolderList},
};

use crate::server::BlobStore;

/// The uploaded files that the store holds, by digest. A place that is not among them is told when it is opened.
pub(super) fn files(job: &Job, blobs: Option<&BlobStore>) -> BTreeMap<Digest, PathBuf> {
    let Some(blobs) = blobs else { return BTreeMap::new() };
    let here = job.places().filter_map(upload::digest).filter(|digest| blobs.has(*digest));
    let local = |digest| match blobs.local(digest) {
        Ok(path) => Some((digest, path)),
        Err(error) => {
            tracing::warn!(%error, "an uploaded file cannot be read");
            None
        }
    };
    here.filter_map(local).collect()
}

/// Every blob that the job needs: its files, the lists of its folders, and the files of those.
pub(super) fn needed(job: &Job, blobs: &BlobStore) -> Vec<Digest> {
    let mut needed: Vec<Digest> = job.places().filter_map(upload::digest).collect();
    for list in folders(job).filter_map(upload::digest) {
        // A list that cannot be read is a problem of the place that it stands for.
        let read = blobs.read(list).ok().and_then(|bytes| FolderList::from_bytes(&bytes).ok());
        needed.extend(read.unwrap_or_default().files.values().map(|file| file.digest));
    }
    needed.sort_unstable();
    needed.dedup();
    needed
}

/// What is wrong with the uploads of a job that could not be planned. Reads them all: rows are otherwise looked at by
/// their footers alone, and verified by the workers that fetch them.
pub(super) fn damaged(job: &Job, blobs: &BlobStore) -> Vec<Diagnostic> {
    let wrong = needed(job, blobs).into_iter().filter_map(|digest| blobs.verify(digest).err());
    wrong
        .map(|error| {
            Diagnostic::error("upload", format!("uploaded file: {error}"))
                .help("submit the job again: it uploads what is missing")
        })
        .collect()
}

fn folders(job: &Job) -> impl Iterator<Item = &str> {
    let adapters = job.fusions.iter().flat_map(|fusion| &fusion.adapters).filter_map(|adapter| match adapter {
        AdapterRef::Folder(place) => Some(place.as_str()),
        AdapterRef::Hub(_) | AdapterRef::Task(_) => None,
    });
    std::iter::once(job.base_model.location.as_str()).chain(adapters)
}
