//! Histories of nights: files by their paths, each a blob. What they say is nobody's here; that they stay is.

use std::collections::BTreeMap;

use graftwork_shared::digest::Digest;

use crate::{fact::Fact, machine::Scheduler, state::State};

/// By name; one without files is none.
pub(crate) type Histories = BTreeMap<String, BTreeMap<String, Digest>>;

impl Scheduler {
    /// What is as it is said to be needs no fact.
    pub(crate) fn on_keep_history(&mut self, history: String, mut files: BTreeMap<String, Option<Digest>>) {
        let known = self.state.histories.get(&history);
        files.retain(|path, blob| known.and_then(|known| known.get(path)) != blob.as_ref());
        if !files.is_empty() {
            self.record(Fact::HistoryKept { history, files, at_ms: self.now_ms });
        }
    }
}

impl State {
    /// The histories of nights, by name: the blob of each file by its path.
    pub fn histories(&self) -> &BTreeMap<String, BTreeMap<String, Digest>> {
        &self.histories
    }

    pub(crate) fn history_blobs(&self) -> impl Iterator<Item = Digest> {
        self.histories.values().flat_map(BTreeMap::values).copied()
    }

    /// Gives the blobs of files that are other ones or gone.
    pub(crate) fn fold_history(&mut self, history: &str, changes: &BTreeMap<String, Option<Digest>>) -> Vec<Digest> {
        let files = self.histories.entry(history.to_owned()).or_default();
        let mut dropped = Vec::new();
        for (path, blob) in changes {
            let earlier = match blob {
                Some(blob) => files.insert(path.clone(), *blob),
                None => files.remove(path),
            };
            blob.iter().for_each(|blob| self.index.add_file(*blob));
            earlier.iter().for_each(|earlier| self.index.remove_file(earlier));
            dropped.extend(earlier);
        }
        if files.is_empty() {
            self.histories.remove(history);
        }
        dropped
    }
}
