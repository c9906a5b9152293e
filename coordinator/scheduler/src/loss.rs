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
    job::JobState,
    machine::Scheduler,
    message::StageKey,
    phase::{Change, Phase},
    state::State,
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
        let losses = self.state.referring(&blob).into_iter().filter_map(|(id, at)| {
            let job = self.state.jobs().get(&id).filter(|job| job.ended.is_none())?;
            let loss = job.loss(at, blob)?;
            Some((id, job.plan.stages[at].name.clone(), loss))
        });
        let losses: Vec<(JobId, Name, Loss)> = losses.collect();
        self.count(losses.len());
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
                    self.set_reuse(&key, None);
                    EventKind::ResultLost
                }
            };
            self.tell(&key.job, Some(&key.stage), told);
        }
    }
}

impl JobState {
    /// What of a stage that is still needed is gone with this blob. What only an ended stage has is not
    /// missed: it is found again to be gone when the job is reopened and the stage needs it.
    pub(crate) fn loss(&self, at: usize, blob: Digest) -> Option<Loss> {
        let record = &self.stages[at];
        let checkpoint = record.checkpoint.as_ref().filter(|checkpoint| checkpoint.blob == blob);
        match (&record.phase, checkpoint) {
            (Phase::Pending | Phase::Running(_), Some(checkpoint)) => Some(Loss::Checkpoint { step: checkpoint.step }),
            (Phase::Trained, _) if record.result_blobs().any(|other| other == blob) => Some(Loss::Result),
            (Phase::Published { .. }, _)
                if record.result.as_ref().is_some_and(|result| result.weights == blob) && self.is_needed(at) =>
            {
                Some(Loss::Result)
            }
            _ => None,
        }
    }

    /// Whether a stage that is not done reads this one's result.
    fn is_needed(&self, at: usize) -> bool {
        self.index.shape.dependents[at].iter().any(|next| !self.stages[*next].phase.is_final())
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
