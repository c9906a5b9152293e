//! What a watched job has shown so far: which process each worker is, and who trains what.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use graftwork_shared::{
    event::{Event, EventKind},
    id::WorkerId,
};

/// The newest formation of a stage's group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formation {
    /// Its epoch.
    pub epoch: u64,
    /// Its members; the first speaks for the stage.
    pub members: Vec<WorkerId>,
}

/// See the module's documentation.
#[derive(Default)]
pub struct Story {
    /// Process of each worker.
    pub processes: BTreeMap<WorkerId, u32>,
    /// Who trains each stage, once it has had a group.
    pub formed: BTreeMap<String, Formation>,
    /// Largest group of each stage.
    pub largest: BTreeMap<String, usize>,
    /// Workers whose sessions ended.
    pub left: BTreeSet<WorkerId>,
    /// Attempts that failed or were lost.
    pub failures: usize,
}

impl Story {
    /// Takes an event in.
    pub fn note(&mut self, event: &Event) -> Result<()> {
        let stage = event.stage.as_ref().map(ToString::to_string).unwrap_or_default();
        match &event.kind {
            EventKind::WorkerJoined { worker, place, .. } => {
                let digits = |c: char| !c.is_ascii_digit();
                let process = place.rsplit(digits).find(|part| !part.is_empty()).context("a place names a process")?;
                self.processes.insert(*worker, process.parse()?);
            }
            EventKind::WorkerLeft { worker, .. } => {
                self.left.insert(*worker);
            }
            EventKind::StageStarted { worker, .. } => {
                self.formed.insert(stage, Formation { epoch: 0, members: vec![*worker] });
            }
            EventKind::GroupFormed { epoch, members, .. } => {
                let largest = self.largest.entry(stage.clone()).or_insert(1);
                *largest = members.len().max(*largest);
                self.formed.insert(stage, Formation { epoch: *epoch, members: members.clone() });
            }
            EventKind::AttemptFailed { .. } => self.failures += 1,
            _ => {}
        }
        Ok(())
    }

    /// The group that made this report's updates, if it is one of several members: all of them have the state.
    pub fn together(&self, event: &Event) -> Option<(String, Formation)> {
        let (EventKind::Step(report), Some(stage)) = (&event.kind, &event.stage) else { return None };
        let formed = self.formed.get(stage.as_str())?;
        let of_now = formed.epoch == report.group && formed.members.len() > 1;
        of_now.then(|| (stage.to_string(), formed.clone()))
    }
}
