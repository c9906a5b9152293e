//! Blobs between being put and being spoken of.
//!
//! Each is pinned, and the pin has an owner: a worker by its key, or a request. The pin ends when the fact that refers to
//! the blob is durable, or with its owner, so that a worker that dies in between leaves nothing.

use graftwork_scheduler::{Command, Event};
use graftwork_shared::{assignment::StageResult, digest::Digest, id::WorkerId};

use crate::core::{Act, Core, Machine};

/// Blobs that a worker may have put without having spoken of them; a result has a handful for each of its leases.
const MOST_UNSPOKEN: usize = 1_024;

/// The blobs of a result.
pub(crate) fn result_blobs(result: &StageResult) -> impl Iterator<Item = Digest> + '_ {
    std::iter::once(result.weights).chain(result.predictions.values().copied())
}

impl<R, M: Machine> Core<R, M> {
    /// A worker of this key has put a blob, which is pinned for what the worker will say of it.
    pub fn on_put(&mut self, key: String, blob: Digest) {
        if self.machine().knows_process(&key) {
            let uploads = self.uploads.entry(key).or_default();
            uploads.push(blob);
            // A worker speaks of what it has put before it puts much more.
            let forgotten = (uploads.len() > MOST_UNSPOKEN).then(|| uploads.remove(0));
            self.settle(forgotten);
        } else {
            // Of a user who is about to submit a job that names it, or of a worker that is not here yet, as after a
            // restart: it stays until the next start sweeps away what nothing refers to.
            self.unpin(blob);
        }
    }

    /// Ends pins; what nothing refers to goes.
    pub fn settle(&mut self, blobs: impl IntoIterator<Item = Digest>) {
        for blob in blobs {
            self.unpin(blob);
            self.discard(blob);
        }
    }

    /// What ends the pins of blobs of which their worker speaks now.
    pub(crate) fn spoken_of(&mut self, worker: WorkerId, event: &Event) -> Vec<Act<R>> {
        let blobs: Vec<Digest> = match event {
            Event::Checkpointed { blob, .. } => vec![*blob],
            Event::Finished { result, .. } => result_blobs(result).collect(),
            _ => Vec::new(),
        };
        blobs.into_iter().map(|blob| self.spoken_of_one(worker, blob)).collect()
    }

    fn spoken_of_one(&mut self, worker: WorkerId, blob: Digest) -> Act<R> {
        let key = self.machine().info(worker).map(|info| info.key.clone());
        let uploads = key.and_then(|key| self.uploads.get_mut(&key));
        match uploads.and_then(|uploads| Some(uploads.swap_remove(uploads.iter().position(|put| *put == blob)?))) {
            Some(blob) => Act::Settle(blob),
            None => Act::Command(Command::Discard { blob }),
        }
    }

    /// Ends the pins of workers that are gone for good.
    pub(crate) fn settle_uploads(&mut self) {
        if self.uploads.is_empty() {
            return;
        }
        let here = |key: &String| self.machine().knows_process(key);
        let gone: Vec<String> = self.uploads.keys().filter(|key| !here(key)).cloned().collect();
        for key in gone {
            let blobs = self.uploads.remove(&key).unwrap_or_default();
            self.settle(blobs);
        }
        self.uploads.retain(|_, blobs| !blobs.is_empty());
    }
}
