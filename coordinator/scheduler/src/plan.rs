//! What a job was planned to: the stages, their order and all that their assignments need.
//!
//! A plan is a value. It is made once by the planner, journalled whole, and never computed again from the job, so
//! that a later program cannot change what an earlier one has planned (invariant 6).

use graftwork_shared::{
    assignment::Assignment,
    data::SplitManifest,
    digest::Digest,
    id::{JobId, Name},
    job::Job,
    recipe::Recipe,
    view::StageKind,
};
use serde::{Deserialize, Serialize};

use crate::sweep::{PlannedSweep, PlannedTrial};

/// A planned job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The resolved job.
    pub job: Job,
    /// Its digest: `job.digest()` of the job as it was submitted.
    pub digest: Digest,
    /// Digest of the base model.
    pub base_model_digest: Digest,
    /// Stages: tasks in the job file's order, then fusions. A stage needs only stages of this list, without cycles.
    pub stages: Vec<PlannedStage>,
    /// Memory that a worker is expected to take before any stage: its process and the base model. 0: it was planned by a
    /// version that did not say.
    #[serde(default)]
    pub beside_bytes: u64,
    /// Everything uploaded that the job reads: rows, lists of folders, and the files of those. Kept with the job.
    #[serde(default)]
    pub uploads: Vec<Digest>,
    /// Where its submission stands in a trace, as a `traceparent`; empty for none. Nothing is decided by it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trace: String,
}

/// One stage of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedStage {
    /// The task's or fusion's name.
    pub name: Name,
    /// Adapter or fusion.
    pub kind: StageKind,
    /// Stages whose results it reads.
    pub needs: Vec<Name>,
    /// For a fusion: the task whose rows and head it uses.
    pub task: Option<Name>,
    /// For a fusion: what it fuses, in the recipe's order. Empty for an adapter.
    pub fused: Vec<FusedSource>,
    /// What decides its bytes; labels are in `recipe.head`.
    pub recipe: Recipe,
    /// `recipe.digest()`.
    pub recipe_digest: Digest,
    /// Where the base model lies.
    pub base_model: String,
    /// Training rows.
    pub train: SplitManifest,
    /// Rows that choose the best weights.
    pub validation: SplitManifest,
    /// Rows held out.
    pub test: Option<SplitManifest>,
    /// Updates in all.
    pub total_steps: u64,
    /// Trained numbers, head included.
    pub trained_parameters: u64,
    /// Memory that training is expected to need, beside the base model.
    pub memory_bytes: u64,
    /// The score that the user expects on held-out rows.
    pub expect: Option<f64>,
    /// Its name in the hub.
    pub publish_as: Name,
    /// The method, in one line for people.
    pub method: String,
    /// For a task that is swept: its trials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<PlannedSweep>,
    /// For a trial: of which task. It is compared and never published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<PlannedTrial>,
    /// Name of the environment variable on the worker that holds the credentials for the rows.
    pub data_credentials: Option<String>,
    /// The same for the base model.
    pub base_model_credentials: Option<String>,
}

/// Where a fusion finds one of its adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FusedSource {
    /// The result of a stage of this plan; it is among the stage's `needs`.
    Stage(Name),
    /// An adapter from outside the job, in the coordinator's blob store since planning.
    External {
        /// Safetensors blob; its tensors carry the name `trained`, as a stage's result does.
        blob: Digest,
        /// Its name, for people.
        name: String,
    },
}

/// Why a plan cannot be scheduled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing to do.
    #[error("the plan has no stages")]
    Empty,
    /// Two stages of one name.
    #[error("two stages are named {0}")]
    Twice(Name),
    /// A stage that waits for one that there is not.
    #[error("stage {stage} needs {needs}, which is not a stage of the plan")]
    Unknown {
        /// The stage.
        stage: Name,
        /// What it needs.
        needs: Name,
    },
    /// Stages that wait for each other.
    #[error("stages wait for each other in a circle: {}", .0.iter().map(Name::as_str).collect::<Vec<_>>().join(", "))]
    Circle(Vec<Name>),
    /// A task whose trials are not stages that know it.
    #[error("the trials of stage {0} are not stages of the plan that it needs")]
    Trials(Name),
    /// A fused stage that is not waited for.
    #[error("stage {stage} fuses {fused} but does not need it")]
    NotNeeded {
        /// The fusion.
        stage: Name,
        /// What it fuses.
        fused: Name,
    },
}

impl Plan {
    /// The job's id.
    pub fn id(&self) -> JobId {
        JobId::of(&self.digest)
    }

    /// The stage of this name.
    pub fn stage(&self, name: &Name) -> Option<&PlannedStage> {
        self.stages.iter().find(|stage| stage.name == *name)
    }

    /// Checks what the scheduler relies on: unique names, known needs, no circle.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.stages.is_empty() {
            return Err(PlanError::Empty);
        }
        for (position, stage) in self.stages.iter().enumerate() {
            if self.stages[..position].iter().any(|earlier| earlier.name == stage.name) {
                return Err(PlanError::Twice(stage.name.clone()));
            }
            if let Some(needs) = stage.needs.iter().find(|needs| self.stage(needs).is_none()) {
                return Err(PlanError::Unknown { stage: stage.name.clone(), needs: needs.clone() });
            }
            if !self.check_sweep(stage) {
                return Err(PlanError::Trials(stage.name.clone()));
            }
            if let Some(fused) = stage.fused_stages().find(|fused| !stage.needs.contains(fused)) {
                return Err(PlanError::NotNeeded { stage: stage.name.clone(), fused: fused.clone() });
            }
        }
        self.check_order()
    }

    /// Removes stages whose needs are met until none is left; what stays waits in a circle.
    fn check_order(&self) -> Result<(), PlanError> {
        let mut left: Vec<&PlannedStage> = self.stages.iter().collect();
        loop {
            let before = left.len();
            let names: Vec<&Name> = left.iter().map(|stage| &stage.name).collect();
            left.retain(|stage| stage.needs.iter().any(|needs| names.contains(&needs)));
            if left.is_empty() {
                return Ok(());
            }
            if left.len() == before {
                return Err(PlanError::Circle(left.into_iter().map(|stage| stage.name.clone()).collect()));
            }
        }
    }
}

impl PlannedStage {
    /// Training work of one update in tokens, estimated from the rows' stored size; a row has at most `max_length`.
    pub(crate) fn tokens_per_step(&self) -> u64 {
        let bytes: u64 = self.train.files.iter().flat_map(|file| &file.content.row_group_bytes).sum();
        let rows: u64 = self.train.files.iter().map(|file| file.content.rows()).sum();
        // English text has about four bytes a token; the special tokens are the rest.
        let tokens = 2 + bytes / rows.max(1) / 4;
        let training = &self.recipe.training;
        let batch = u64::from(training.batch_size) * u64::from(training.accumulation);
        batch.max(1) * tokens.min(u64::from(training.max_length).max(1))
    }

    /// Whether it has the recipe that was planned before, over files that nobody touched since.
    pub(crate) fn is_still(&self, earlier: &Self) -> bool {
        self.recipe_digest == earlier.recipe_digest
            && (&self.train, &self.validation, &self.test) == (&earlier.train, &earlier.validation, &earlier.test)
    }

    /// The stages among what it fuses.
    pub fn fused_stages(&self) -> impl Iterator<Item = &Name> {
        self.fused.iter().filter_map(|fused| match fused {
            FusedSource::Stage(name) => Some(name),
            FusedSource::External { .. } => None,
        })
    }

    /// Its assignment, but for what only the moment knows: attempt, adapters, checkpoint and pause.
    pub(crate) fn assignment(&self, job: JobId) -> Assignment {
        Assignment {
            job,
            stage: self.name.clone(),
            attempt: 0,
            recipe: self.recipe.clone(),
            base_model: self.base_model.clone(),
            train: self.train.clone(),
            validation: self.validation.clone(),
            test: self.test.clone(),
            adapters: Vec::new(),
            resume: None,
            until: None,
            data_credentials: self.data_credentials.clone(),
            base_model_credentials: self.base_model_credentials.clone(),
        }
    }
}

impl FusedSource {
    /// Its name for people.
    pub fn name(&self) -> String {
        match self {
            Self::Stage(name) => name.to_string(),
            Self::External { name, .. } => name.clone(),
        }
    }
}
