//! Blobs as an object store keeps them: whoever puts one writes an object whose name is used once, and knows the objects
//! that were there when it started and its own.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_scheduler::{Event, StageKey};
use graftwork_shared::{assignment::StageResult, digest::Digest, id::LeaseId};

use crate::{
    ledger::Disk,
    seen::Seen,
    world::{Deed, World},
};

impl World {
    pub(crate) fn on_put(&mut self, process: usize, lease: LeaseId, blob: Digest) {
        let kept = !self.disk.full;
        if kept {
            self.put(blob);
            let coordinator = self.coordinator.as_mut().unwrap();
            coordinator.core.on_put(format!("process {process}"), blob);
        } else {
            self.note(Seen::BlobRefused);
        }
        self.answer(process, Deed::PutDone(process, lease, blob, kept));
    }

    pub(crate) fn on_get(&mut self, process: usize, lease: LeaseId) {
        let work = self.processes.get(&process).and_then(|process| process.leases.get(&lease));
        let Some(assignment) = work.map(|work| work.assignment.clone()) else { return };
        let wanted = assignment.resume.iter().chain(&assignment.adapters);
        let leads = self.leads();
        let coordinator = self.coordinator.as_mut().unwrap();
        let missing: Vec<Digest> = wanted.copied().filter(|blob| !has(&self.disk, &coordinator.index, *blob)).collect();
        let now_ms = coordinator.now_ms(self.now);
        for blob in &missing {
            let referred = leads && coordinator.core.machine().state().refers_to(*blob);
            assert!(!referred || self.disk.lost.contains(blob), "{blob} was removed while it is referred to");
            coordinator.core.on_event(now_ms, Event::BlobLost { blob: *blob });
        }
        self.answer(process, Deed::GetDone(process, lease, missing.is_empty()));
    }

    /// The hub has an earlier result or not; what it has is put and pinned until its fact is durable.
    pub(crate) fn on_reuse(&mut self, key: StageKey) {
        let coordinator = self.coordinator.as_mut().unwrap();
        let now_ms = coordinator.now_ms(self.now);
        let recipe = coordinator.core.machine().plan(&key.job).and_then(|plan| plan.stage(&key.stage));
        let found = recipe.and_then(|stage| self.hub.get(&stage.recipe_digest)).filter(|_| !self.disk.full).cloned();
        let put: Vec<Digest> = found.iter().flat_map(blobs).collect();
        put.iter().for_each(|blob| self.put(*blob));
        let coordinator = self.coordinator.as_mut().unwrap();
        coordinator.core.on_event(now_ms, Event::Reusable { key, result: found.map(Box::new) });
        coordinator.core.settle(put);
    }

    /// What a coordinator finds as it starts: the blobs, and those of them to which nothing refers, of which it makes
    /// objects of its own. Objects that stand for what another one holds too go.
    pub(crate) fn list(&mut self, start: u64, referred: &BTreeSet<Digest>) -> (BTreeMap<Digest, u64>, Vec<Digest>) {
        let mut index: BTreeMap<Digest, u64> = self.disk.objects.iter().copied().collect();
        let awaits = !self.faults.sends_home;
        index.retain(|blob, _| awaits || referred.contains(blob));
        self.disk.objects.retain(|(blob, start)| index.get(blob) == Some(start));
        self.disk.lost.retain(|blob| !index.contains_key(blob));
        let unheard: Vec<Digest> = index.keys().copied().filter(|blob| !referred.contains(blob)).collect();
        for blob in &unheard {
            if let Some(writer) = index.insert(*blob, start) {
                self.disk.objects.remove(&(*blob, writer));
            }
            self.disk.objects.insert((*blob, start));
        }
        (index, unheard)
    }

    /// The coordinator keeps a blob, and pins it.
    pub(crate) fn put(&mut self, blob: Digest) {
        let coordinator = self.coordinator.as_mut().unwrap();
        *coordinator.pins.entry(blob).or_insert(0) += 1;
        // One of an earlier term may be let go by whoever wrote it.
        let is_own = self.disk.objects.contains(&(blob, coordinator.start));
        if !is_own {
            coordinator.index.insert(blob, coordinator.start);
            self.disk.objects.insert((blob, coordinator.start));
            // What one that leads no more puts is not where the leader looks.
            if coordinator.term == self.disk.term {
                self.disk.lost.remove(&blob);
            }
        }
    }

    /// The coordinator lets a blob go.
    pub(crate) fn discard(&mut self, blob: Digest) {
        let coordinator = self.coordinator.as_mut().unwrap();
        if let Some(start) = coordinator.index.remove(&blob) {
            self.disk.objects.remove(&(blob, start));
        }
        if self.disk.state.refers_to(blob) {
            self.is_kept(blob);
        }
    }

    /// A blob to which facts on the disk refer is there for whoever leads, now or next.
    pub(crate) fn is_kept(&self, blob: Digest) {
        let kept = match self.leader() {
            Some(leader) => has(&self.disk, &leader.index, blob),
            None => self.disk.latest(blob).is_some(),
        };
        assert!(kept || self.disk.lost.contains(&blob), "{blob} was removed while it is referred to");
    }
}

/// Whether a coordinator has a blob.
pub(crate) fn has(disk: &Disk, index: &BTreeMap<Digest, u64>, blob: Digest) -> bool {
    index.get(&blob).is_some_and(|start| disk.objects.contains(&(blob, *start)))
}

/// The blobs of a result.
pub(crate) fn blobs(result: &StageResult) -> Vec<Digest> {
    std::iter::once(result.weights).chain(result.predictions.values().copied()).collect()
}
