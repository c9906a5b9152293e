//! The scheduler's unit of work, as it is handed to a worker, and what comes back.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    data::{Split, SplitManifest},
    digest::Digest,
    id::{JobId, Name},
    metric::Metric,
    recipe::{NumericClass, Recipe},
};

/// One stage's training, from its last acknowledged checkpoint to its result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The job.
    pub job: JobId,
    /// The stage: a task's or a fusion's name.
    pub stage: Name,
    /// How often this stage was handed out before.
    pub attempt: u32,
    /// What decides bytes.
    pub recipe: Recipe,
    /// Where the base model lies: a folder, `hf://org/name@revision`, or an object-store URL.
    pub base_model: String,
    /// Where the rows lie.
    pub train: SplitManifest,
    /// Where the rows lie.
    pub validation: SplitManifest,
    /// Where the rows lie.
    pub test: Option<SplitManifest>,
    /// Blobs with the tensors of the adapters that a fusion reads, in the recipe's order.
    pub adapters: Vec<Digest>,
    /// Blob of the checkpoint to go on from.
    pub resume: Option<Digest>,
    /// The update after which it pauses: it scores validation, makes its state durable and gives the lease back. `None`
    /// goes on to the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Name of the environment variable on the worker that holds the credentials for the rows, and for nothing else.
    pub data_credentials: Option<String>,
    /// The same for the base model. Two places have two secrets: neither is ever shown to the other's host.
    pub base_model_credentials: Option<String>,
}

/// What training measured at one evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Updates done.
    pub step: u64,
    /// Mean loss on the split.
    pub loss: f64,
    /// Scores by metric.
    pub metrics: BTreeMap<Metric, f64>,
}

/// What a worker reports when a stage is done. Blobs were uploaded before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageResult {
    /// Safetensors blob: the trained adapter or fusion, and its head.
    pub weights: Digest,
    /// Updates done.
    pub steps: u64,
    /// The update whose weights these are.
    pub best_step: u64,
    /// Every validation score on the way.
    pub validation: Vec<Evaluation>,
    /// Scores of the published weights by split.
    pub scores: BTreeMap<Split, Evaluation>,
    /// Blobs of JSON lines, one per example: row, label, prediction, logits.
    pub predictions: BTreeMap<Split, Digest>,
    /// Digest of the rows by split, from the sums of their digests in each row group.
    pub data: BTreeMap<Split, Digest>,
    /// Digest of the rows consumed, for each epoch in order.
    pub epochs: Vec<Digest>,
    /// Mean attention that a fusion pays to each adapter, `[layer][adapter]`, over the validation rows.
    pub attention: Vec<Vec<f64>>,
    /// Trained numbers, head included.
    pub trained_parameters: u64,
    /// The class in which it was computed.
    pub numeric_class: NumericClass,
    /// What the attempt that gave it cost.
    pub usage: Usage,
    /// The most memory that the worker's process ever took, if that was while the stage ran and no stage told of it before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak: Option<MemoryPeak>,
}

/// The most memory that a worker's process ever took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPeak {
    /// Resident memory.
    pub bytes: u64,
    /// All stages that it trained at that time.
    pub stages: Vec<(JobId, Name)>,
}

/// What work cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds of CPU time of trainer threads.
    pub core_seconds: f64,
    /// Seconds of an accelerator's time.
    pub gpu_seconds: f64,
    /// Seconds from assignment to result, waiting included.
    pub wall_seconds: f64,
    /// Bytes of rows read.
    pub bytes_read: u64,
    /// Examples trained.
    pub examples: u64,
    /// Tokens trained, padding excluded (there is none).
    pub tokens: u64,
    /// Peak resident memory of the worker process while the stage ran; stages that run side by side share it.
    pub peak_memory_bytes: u64,
}

impl Usage {
    /// Adds another usage to this one; of peaks, keeps the higher.
    pub fn add(&mut self, other: &Self) {
        self.core_seconds += other.core_seconds;
        self.gpu_seconds += other.gpu_seconds;
        self.wall_seconds += other.wall_seconds;
        self.bytes_read += other.bytes_read;
        self.examples += other.examples;
        self.tokens += other.tokens;
        self.peak_memory_bytes = self.peak_memory_bytes.max(other.peak_memory_bytes);
    }
}

/// What a worker need not fetch or load again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// Base models that it has opened, by digest.
    pub base_models: BTreeSet<Digest>,
    /// Training rows that it has read, by the footer of their first file.
    pub rows: BTreeSet<Digest>,
}

impl Holdings {
    /// Digests of a kind that a worker says at most.
    pub const MOST: usize = 4096;

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.base_models.is_empty() && self.rows.is_empty()
    }
}

/// Whose fault a failure is: decides whether a retry can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The job or its data: trying again gives the same.
    User,
    /// The machine, the network or another process: trying again can help.
    Machine,
}

/// Why an attempt ended without a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whose fault.
    pub blame: Blame,
    /// What happened, with the value and the bound, for the user.
    pub message: String,
}
