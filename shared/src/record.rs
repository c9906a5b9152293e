//! The record of a release: binds published tensors to everything that decided them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    assignment::{Evaluation, StageResult},
    composition::Composition,
    data::{Split, SplitManifest},
    digest::Digest,
    id::Name,
    job::Job,
    recipe::{NumericClass, Recipe},
    sweep::SweepRecord,
};

/// `graftwork.json` in every release. Holds no secret, no clock and no rate, so equal results of one resolved job give
/// equal records. The job in it names places, since training again needs them: moving a job's folder changes the
/// record, and no other file of the release.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this layout.
    pub record_version: u32,
    /// Version of the program.
    pub code_version: String,
    /// The stage.
    pub stage: Name,
    /// The recipe.
    pub recipe: Recipe,
    /// Its digest.
    pub recipe_digest: Digest,
    /// How adapters are combined in this release, by their published names.
    pub composition: Composition,
    /// The resolved job.
    pub job: Job,
    /// Where the base model lay.
    pub base_model: String,
    /// Where the rows lay.
    pub data: BTreeMap<Split, SplitManifest>,
    /// Digests of the rows by split: SHA-256 over the sums, row group by row group, of the digests of the rows. What of
    /// a training split was trained on, where that was less than an epoch.
    pub data_digests: BTreeMap<Split, Digest>,
    /// Of which sweep it is the best trial. The job in the record is then the one that trains this trial alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<SweepRecord>,
    /// The rows behind each adapter that a fusion reads, in the order of attention; nothing for one from outside the
    /// job, whose bytes are in the recipe.
    #[serde(default)]
    pub fused: Vec<Option<TrainedRows>>,
    /// Digest of the rows consumed in each epoch.
    pub epochs: Vec<Digest>,
    /// The class in which it was computed.
    pub numeric_class: NumericClass,
    /// Updates done, and the update whose weights were kept.
    pub steps: [u64; 2],
    /// Every validation score on the way.
    pub validation: Vec<Evaluation>,
    /// Scores of the published weights.
    pub scores: BTreeMap<Split, Evaluation>,
    /// Attention of a fusion, `[layer][adapter]`.
    pub attention: Vec<Vec<f64>>,
    /// Trained numbers.
    pub trained_parameters: u64,
    /// SHA-256 of each other file of the release, by path inside it.
    pub files: BTreeMap<String, Digest>,
}

/// What an adapter was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainedRows {
    /// Updates done.
    pub steps: u64,
    /// As in [`Record::data_digests`].
    pub digests: BTreeMap<Split, Digest>,
}

/// Version of [`Record`]'s layout.
pub const RECORD_VERSION: u32 = 1;

impl Record {
    /// The part of a result that a record keeps.
    pub fn keep(&mut self, result: &StageResult) {
        self.data_digests.clone_from(&result.data);
        self.epochs.clone_from(&result.epochs);
        self.numeric_class = result.numeric_class.clone();
        self.steps = [result.steps, result.best_step];
        self.validation.clone_from(&result.validation);
        self.scores.clone_from(&result.scores);
        self.attention.clone_from(&result.attention);
        self.trained_parameters = result.trained_parameters;
    }
}
