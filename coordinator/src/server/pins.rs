//! Blobs between being put and being spoken of.
//!
//! Each is pinned, and the pin has an owner: a worker by its key, or a request. The pin ends when the fact that refers to
//! the blob is durable, or with its owner, so that a worker that dies in between leaves nothing.

use graftwork_scheduler::Command;
use graftwork_shared::{digest::Digest, id::WorkerId};
use tokio::sync::mpsc;

use super::{
    BlobStore,
    driver::{Act, Driver},
    input::Input,
};

impl Driver {
    pub(super) fn on_put(&mut self, key: &str, blob: Digest) {
        let key = known_as(key);
        if self.machine.workers().iter().any(|worker| worker.info.key == key) {
            self.uploads.entry(key).or_default().push(blob);
        } else {
            // Of a user who is about to submit a job that names it, or of a worker that is not here yet, as after a
            // restart: it stays until the next start sweeps away what nothing refers to.
            self.blobs.unpin(blob);
        }
    }

    /// What ends the pin of a blob of which its worker speaks now.
    pub(super) fn spoken_of(&mut self, worker: WorkerId, blob: Digest) -> Act {
        let workers = self.machine.workers();
        let key = workers.iter().find(|known| known.id == worker).map(|known| known.info.key.clone());
        let uploads = key.and_then(|key| self.uploads.get_mut(&key));
        match uploads.and_then(|uploads| Some(uploads.swap_remove(uploads.iter().position(|put| *put == blob)?))) {
            Some(blob) => Act::Settle(blob),
            None => Act::Command(Command::Discard { blob }),
        }
    }

    /// Ends the pins of workers that are gone for good.
    pub(super) fn settle_uploads(&mut self) {
        if self.uploads.is_empty() {
            return;
        }
        let here: Vec<String> = self.machine.workers().into_iter().map(|worker| worker.info.key).collect();
        let gone: Vec<String> = self.uploads.keys().filter(|key| !here.contains(key)).cloned().collect();
        for key in gone {
            let blobs = self.uploads.remove(&key).unwrap_or_default();
            self.settle(blobs);
        }
        self.uploads.retain(|_, blobs| !blobs.is_empty());
    }
}

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
