//! Pins of requests: what one puts stays until a fact refers to it, or none ever will. Pins of workers are the core's.

use graftwork_shared::digest::Digest;
use tokio::sync::mpsc;

use super::{BlobStore, input::Input};

/// How a worker that says this key is known again. The key itself is in no journal: whoever knows it could pass for the
/// worker.
pub(super) fn known_as(key: &str) -> String {
    if key.is_empty() { String::new() } else { Digest::of(format!("graftwork worker {key}").as_bytes()).to_string() }
}

/// A store for one request: what is put through it or its clones stays pinned until the last of them goes.
pub(super) fn for_request(blobs: &BlobStore, inputs: mpsc::WeakSender<Input>) -> BlobStore {
    let store = blobs.clone();
    blobs.noting(move |put| {
        let settle = |inputs: mpsc::Sender<Input>| inputs.try_send(Input::Settle(put.clone())).is_ok();
        // A coordinator that stops or is flooded only lets go; the next start sweeps what nothing refers to.
        if !inputs.upgrade().is_some_and(settle) {
            put.iter().for_each(|blob| store.unpin(*blob));
        }
    })
}
