//! Training options: everything about optimisation that decides published bytes.

use serde::{Deserialize, Serialize};

/// How one adapter or fusion is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// How long.
    pub length: Length,
    /// Rows of one global batch. An optimizer update takes `batch_size × accumulation` rows.
    pub batch_size: u32,
    /// Into how many lanes a batch is cut; each lane is computed alone, at most `batch_size`.
    pub lanes: u32,
    /// Batches whose gradients are averaged into one update.
    pub accumulation: u32,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the learning rate falls after warm-up.
    pub schedule: Schedule,
    /// How the learning rate rises from 0 to its peak.
    pub warmup: Warmup,
    /// AdamW's decay, on weights only: no bias, no layer norm.
    pub weight_decay: f64,
    /// AdamW's betas.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub epsilon: f64,
    /// The gradient's norm over all trained tensors is cut to this.
    pub clip_norm: Option<f64>,
    /// Tokens of a row at most, special tokens included.
    pub max_length: u32,
    /// Seed of initial weights, row order and dropout.
    pub seed: u64,
    /// The trunk's own dropout (hidden and attention) is active while training.
    pub base_model_dropout: bool,
    /// When validation is scored. It is always scored at the end.
    pub evaluate_every: Interval,
    /// Updates between checkpoints.
    pub checkpoint_every_steps: u64,
    /// Stop when validation no longer improves.
    pub early_stopping: Option<EarlyStopping>,
    /// Publish the best scored weights instead of the last.
    pub keep_best: bool,
    /// Layers whose adapters are dropped while training.
    pub adapter_drop: AdapterDrop,
    /// How gradients of several workers are added. The default is in no digest.
    #[serde(default, skip_serializing_if = "Reduction::is_exact")]
    pub reduction: Reduction,
    /// Numbers in which the trunk's products are computed. The default is in no digest.
    #[serde(default, skip_serializing_if = "Precision::is_full")]
    pub precision: Precision,
}

/// How gradients of several workers are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Along one fixed tree over lanes: the same bytes for any number of workers.
    #[default]
    Exact,
    /// By the transport's own all-reduce: bytes depend on how many workers there are, and when.
    Fast,
}

impl Reduction {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_exact(&self) -> bool {
        *self == Self::Exact
    }
}

/// Numbers in which the frozen trunk multiplies. Whatever they are, adapters, heads, norms, attention, gradients and the
/// optimizer are fp32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 24 bits of which 23 are written, and a range of 1e-38 to 3e38.
    #[default]
    Fp32,
    /// 8 bits, the range of fp32.
    Bf16,
    /// 11 bits, 6e-8 to 65,504; losses are scaled so that gradients stay in there.
    Fp16,
}

impl Precision {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_full(&self) -> bool {
        *self == Self::Fp32
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        })
    }
}

/// How long training lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Passes over the training rows.
    Epochs(u32),
    /// Optimizer updates.
    Steps(u64),
}

/// The learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Falls in a line to 0.
    Linear,
    /// Falls along half a cosine to 0.
    Cosine,
    /// Stays.
    Constant,
}

/// Warm-up, in updates or as a share of all updates (rounded up).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// This many updates.
    Steps(u64),
    /// This share of all updates, 0 to 1.
    Fraction(f64),
}

/// When validation is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interval {
    /// At the end of each epoch.
    Epoch,
    /// Every so many updates.
    Steps(u64),
}

/// Stops training when the metric has not grown by more than `min_delta` in `patience` evaluations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// Evaluations without growth before the stop.
    pub patience: u32,
    /// Growth that counts.
    pub min_delta: f64,
}

/// AdapterDrop (Rücklé et al. 2021): leaving out the adapters of the lowest layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterDrop {
    /// Adapters everywhere.
    Off,
    /// These layers have no adapter, in every step and at inference: a resolved task leaves them out of its adapter
    /// (`leave_out`), a resolved fusion out of its recipe's `skip_layers` and of the adapters that it reads.
    Layers(Vec<u32>),
    /// Robust AdapterDrop: each step draws n from 0 to this number and drops the first n layers.
    DrawnUpTo(u32),
}

impl Training {
    /// Updates of one epoch over this many rows; the last one may be smaller.
    pub fn steps_per_epoch(&self, rows: u64) -> u64 {
        rows.div_ceil(u64::from(self.batch_size) * u64::from(self.accumulation))
    }

    /// Updates of the whole training, early stopping aside.
    pub fn total_steps(&self, rows: u64) -> u64 {
        match self.length {
            Length::Epochs(epochs) => self.steps_per_epoch(rows) * u64::from(epochs),
            Length::Steps(steps) => steps,
        }
    }

    /// Updates of warm-up.
    pub fn warmup_steps(&self, total_steps: u64) -> u64 {
        match self.warmup {
            Warmup::Steps(steps) => steps.min(total_steps),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a number of steps far below 2^52"
            )]
            Warmup::Fraction(share) => (share * total_steps as f64).ceil() as u64,
        }
    }

    /// The learning rate of update `step` (from 0) of `total_steps`, as `transformers` computes it.
    pub fn rate(&self, step: u64, total_steps: u64) -> f64 {
        let warmup = self.warmup_steps(total_steps);
        let float = |n: u64| n as f64;
        if step < warmup {
            return self.learning_rate * float(step) / float(warmup.max(1));
        }
        let progress = float(step - warmup) / float((total_steps - warmup).max(1));
        let factor = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => (1.0 - progress).max(0.0),
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()).max(0.0),
        };
        self.learning_rate * factor
    }
}

impl AdapterDrop {
    /// Layers that never have an adapter.
    pub fn fixed(&self) -> &[u32] {
        match self {
            Self::Layers(layers) => layers,
            Self::Off | Self::DrawnUpTo(_) => &[],
        }
    }
}

impl Default for Training {
    fn default() -> Self {
        Self {
            length: Length::Epochs(3),
            batch_size: 16,
            lanes: 2,
            accumulation: 1,
            learning_rate: 1e-4,
            schedule: Schedule::Linear,
            warmup: Warmup::Fraction(0.0),
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            clip_norm: Some(1.0),
            max_length: 128,
            seed: 17,
            base_model_dropout: false,
            evaluate_every: Interval::Epoch,
            checkpoint_every_steps: 50,
            early_stopping: None,
            keep_best: true,
            adapter_drop: AdapterDrop::Off,
            reduction: Reduction::Exact,
            precision: Precision::Fp32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_over_warm_up_and_falls_to_zero() {
        let training = Training { learning_rate: 1e-3, warmup: Warmup::Steps(5), ..Training::default() };
        assert!(training.rate(0, 50).abs() < 1e-15);
        assert!((training.rate(5, 50) - 1e-3).abs() < 1e-15);
        assert!((training.rate(49, 50) - 1e-3 / 45.0).abs() < 1e-12);
    }

    #[test]
    fn steps_count_the_last_small_batch() {
        let training = Training { batch_size: 8, accumulation: 2, ..Training::default() };
        assert_eq!(training.steps_per_epoch(33), 3);
        assert_eq!(training.total_steps(33), 9);
    }
}
