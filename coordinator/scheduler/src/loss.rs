//! Blobs that are gone: which stages miss one, and how they go on without it.
//!
//! Disks lose bytes. A lost checkpoint costs the steps behind it; a lost result is looked for in the hub and otherwise
//! trained again. Both are facts, so that no later attempt hopes for the blob again.

use graftwork_shared::{
    digest::Digest,
    event::EventKind,
    id::{JobId, Name},
};

use crate::{
    fact::Fact,
    machine::Scheduler,
    message::StageKey,
    phase::{Change, Phase},
    plan::PlannedStage,
    state::{JobState, StageRecord, State},
};

/// What a stage loses with a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Where the next attempt would go on.
    Checkpoint {
        /// Its step.
        step: u64,
    },
    /// The result, which is still to be published or fused.
    Result,
}

impl Scheduler {
    pub(crate) fn on_blob_lost(&mut self, blob: Digest) {
        let losses: Vec<(JobId, Name, Loss)> = self
            .state
            .jobs()
            .iter()
            .filter(|(_, job)| job.ended.is_none())
            .flat_map(|(id, job)| job.losses(blob).into_iter().map(|(stage, loss)| (id.clone(), stage, loss)))
            .collect();
        for (job, stage, loss) in losses {
            let key = StageKey { job: job.clone(), stage: stage.clone() };
            let told = match loss {
                Loss::Checkpoint { step } => {
                    self.record(Fact::CheckpointLost { job, stage, blob });
                    EventKind::CheckpointLost { step }
                }
                Loss::Result => {
                    self.record(Fact::ResultLost { job, stage, blob });
                    // What the publication under way says no longer counts, and the hub may have the result.
                    self.publishing.remove(&key);
                    self.reuse.remove(&key);
                    EventKind::ResultLost
                }
            };
            self.tell(&key.job, Some(&key.stage), told);
        }
    }
}

impl JobState {
    /// Stages of which something that is still needed is gone with this blob. What only an ended stage has is not
    /// missed: it is found again to be gone when the job is reopened and the stage needs it.
    pub(crate) fn losses(&self, blob: Digest) -> Vec<(Name, Loss)> {
        let loss = |(_, stage, record): (usize, &PlannedStage, &StageRecord)| {
            let checkpoint = record.checkpoint.as_ref().filter(|checkpoint| checkpoint.blob == blob);
            match (&record.phase, checkpoint) {
                (Phase::Pending | Phase::Running(_), Some(checkpoint)) => {
                    Some((stage.name.clone(), Loss::Checkpoint { step: checkpoint.step }))
                }
                (Phase::Trained, _) if record.result_blobs().any(|other| other == blob) => {
                    Some((stage.name.clone(), Loss::Result))
                }
                (Phase::Published { .. }, _)
                    if record.result.as_ref().is_some_and(|result| result.weights == blob)
                        && self.is_needed(&stage.name) =>
                {
                    Some((stage.name.clone(), Loss::Result))
                }
                _ => None,
            }
        };
        self.each().filter_map(loss).collect()
    }

    /// Whether a stage that is not done reads this one's result.
    fn is_needed(&self, name: &Name) -> bool {
        self.each().any(|(_, stage, record)| !record.phase.is_final() && stage.needs.contains(name))
    }
}

impl State {
    /// Gives the blobs to which the stage referred together with the lost one.
    pub(crate) fn fold_loss(&mut self, fact: &Fact, key: &StageKey, blob: Digest) -> Result<Vec<Digest>, String> {
        let record = self.stage(key)?;
        if !record.blobs().any(|other| other == blob) {
            return Err(format!("stage {key} has no blob {blob}"));
        }
        if matches!(fact, Fact::CheckpointLost { .. }) {
            record.checkpoint = None;
            return Ok(vec![blob]);
        }
        let record = self.change(key, Change::Lose)?;
        let dropped = record.blobs().collect();
        *record = record.without_result();
        Ok(dropped)
    }
}
