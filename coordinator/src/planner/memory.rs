//! The memory that workers are expected to need: a model with few constants, fitted to measured peaks.
//!
//! `tests/tests/memory.rs` holds it to the real program: on each point of its matrix the largest resident memory of a worker
//! is within a tenth of what is predicted here (`make test`, and `make fit-memory` alone). It also fits the two constants
//! again to what it measured and prints them, for when the engine has changed.

use graftwork_model::{Footprint, TrunkDescription};
use graftwork_shared::{data::SplitManifest, training::Training};

use super::estimate::tokens_per_row;

/// Bytes of a worker's process with libtorch, tokenizer and readers, before any model. Fitted.
const PROCESS_BYTES: u64 = 128 << 20;

/// Bytes that forward and backward keep for one token of a trunk with 6 layers of 384; grows with layers × width. Fitted.
const TOKEN_BYTES: u64 = 141_000;

/// Tokens of a lane that travel through the layers together, as the engine cuts them; a longer row travels alone.
const RUN_TOKENS: f64 = 512.0;

/// What a stage needs beside its process and the trunk.
pub(super) struct Stage<'a> {
    pub(super) footprint: &'a Footprint,
    pub(super) training: &'a Training,
    pub(super) rows: &'a SplitManifest,
    pub(super) trunk: &'a TrunkDescription,
    /// Trainer threads of a worker, where the job says how many.
    pub(super) threads: Option<u32>,
}

impl Stage<'_> {
    /// Bytes: its numbers, and the activations of the lanes in flight. What is kept between epochs lies on disk.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive numbers below 2^52")]
    pub(super) fn bytes(&self) -> u64 {
        let Self { footprint, training, rows, trunk, threads } = self;
        let mean = tokens_per_row(rows, training);
        let lane_rows = f64::from(training.batch_size) / f64::from(training.lanes.max(1));
        // Lengths scatter by about their mean's two thirds: the largest of many sums of so many rows.
        let most = lane_rows * (mean * (1.0 + 1.8 / lane_rows.max(1.0).sqrt())).min(f64::from(training.max_length));
        let longest = (2.0 * mean).min(f64::from(training.max_length));
        let run = most.min(RUN_TOKENS.max(longest));
        let lanes = f64::from(training.lanes.min(threads.unwrap_or(u32::MAX)).max(1));
        let scale = f64::from(trunk.layers) * f64::from(trunk.hidden_size) / (6.0 * 384.0);
        // Probabilities of attention: for each head and layer one for each token that it may look at.
        let attention = 4.0 * f64::from(trunk.layers) * f64::from(trunk.attention_heads) * longest;
        let activations = lanes * run * (TOKEN_BYTES as f64 * scale + attention);
        footprint.stage_bytes() + activations as u64
    }
}

fn layer_bytes(trunk: &TrunkDescription) -> u64 {
    let (hidden, inner) = (u64::from(trunk.hidden_size), u64::from(trunk.intermediate_size));
    4 * u64::from(trunk.layers) * (4 * hidden * hidden + 2 * hidden * inner)
}

/// Bytes of the base model's files in memory, which all workers of a machine share: tables, and the layers' weights packed
/// for both directions.
pub(super) fn trunk(trunk: &TrunkDescription) -> u64 {
    4 * u64::from(trunk.vocab_size + trunk.max_positions) * u64::from(trunk.hidden_size) + 2 * layer_bytes(trunk)
}

/// Bytes of each worker's process before any stage.
pub(super) fn process() -> u64 {
    PROCESS_BYTES
}
