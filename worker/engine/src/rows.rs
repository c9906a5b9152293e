//! What goes into a lane and what comes out: packed rows, options, gradients and predictions. Values only.

use std::ops::Range;

use graftwork_shared::id::Name;
use serde::{Deserialize, Serialize};

use crate::EngineError;

/// Packed rows without padding: the tokens of row 0, then of row 1, and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids of all rows, special tokens included.
    pub ids: Vec<i64>,
    /// Segment ids, one for each token; zeros where the model has one segment type.
    pub type_ids: Vec<i64>,
    /// Tokens of each row, each at least 1; their sum is the number of ids.
    pub lengths: Vec<usize>,
}

/// What the heads should have said, one for each row of the lane.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Class ids, for classification heads.
    Classes(Vec<i64>),
    /// Numbers, for regression heads.
    Values(Vec<f32>),
}

/// A fixed slice of a global batch: the unit of parallelism.
#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    /// The rows' tokens.
    pub tokens: Tokens,
    /// The rows' targets.
    pub targets: Targets,
    /// The rows' numbers within the data; they address dropout, so that a mask does not depend on the packing.
    pub rows: Vec<u64>,
}

/// How a lane is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LaneOptions<'a> {
    /// Factor on each row's loss, usually 1 / rows of the global batch, so that lanes add up to the batch's mean.
    pub loss_scale: f64,
    /// Number of the optimizer update, from 0: addresses dropout.
    pub step: u64,
    /// Dropout, or `None` for a pass without any.
    pub dropout: Option<Dropout>,
    /// Layers whose adapters and fusions are left out in this pass (AdapterDrop).
    pub skip_layers: &'a [u32],
}

/// Which dropout is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropout {
    /// Seed of the masks.
    pub seed: u64,
    /// The trunk's own dropout too, and what takes its probability from the trunk: heads and fusions without a
    /// probability of their own. Adapters' dropout is active in any case.
    pub base_model: bool,
}

/// Loss and gradient of one lane.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneOutput {
    /// Sum over rows and heads of the row losses, each times `loss_scale`.
    pub loss: f64,
    /// Gradient of `loss` over all trained parameters, in the order of [`crate::Layout`].
    pub gradient: Vec<f32>,
}

/// What a network says about rows. Its serialised form keeps every bit, of numbers that are none too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Logits, one entry for each head.
    pub heads: Vec<HeadLogits>,
    /// Attention of active fusions, one entry for each fusion and layer.
    pub fusion_attention: Vec<FusionAttention>,
}

/// One head's logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadLogits {
    /// The head.
    pub head: Name,
    /// Numbers in a row.
    pub outputs: usize,
    /// `[rows, outputs]`, row after row. A head of a `BatchSplit` has the rows of its run alone.
    #[serde(with = "bits")]
    pub logits: Vec<f32>,
}

/// Numbers as their bits: text has no form for those that are none.
mod bits {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) trait Bits: Copy {
        fn bits(self) -> u64;
        fn of(bits: u64) -> Option<Self>;
    }

    impl Bits for f32 {
        fn bits(self) -> u64 {
            self.to_bits().into()
        }

        fn of(bits: u64) -> Option<Self> {
            u32::try_from(bits).ok().map(Self::from_bits)
        }
    }

    impl Bits for f64 {
        fn bits(self) -> u64 {
            self.to_bits()
        }

        fn of(bits: u64) -> Option<Self> {
            Some(Self::from_bits(bits))
        }
    }

    pub(super) fn serialize<N: Bits, S: Serializer>(numbers: &[N], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(numbers.iter().map(|number| number.bits()))
    }

    pub(super) fn deserialize<'de, N: Bits, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<N>, D::Error> {
        let wrong = |bits: &u64| serde::de::Error::custom(format!("{bits} is not the bits of a number"));
        let bits = Vec::<u64>::deserialize(deserializer)?;
        bits.iter().map(|bits| N::of(*bits).ok_or_else(|| wrong(bits))).collect()
    }
}

/// How much attention a fusion layer gave to each of its adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FusionAttention {
    /// The fusion.
    pub fusion: String,
    /// The trunk's layer.
    pub layer: u32,
    /// Tokens that were averaged: all of them, in the last layer those that a head reads.
    pub tokens: u64,
    /// Mean weight of each fused adapter that acts in this layer, in order; they sum to 1.
    #[serde(with = "bits")]
    pub weights: Vec<f64>,
}

impl Targets {
    /// How many rows have a target.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(classes) => classes.len(),
            Self::Values(values) => values.len(),
        }
    }

    /// Those of rows `from..to`.
    pub(crate) fn part(&self, from: usize, to: usize) -> Self {
        match self {
            Self::Classes(classes) => Self::Classes(classes[from..to].to_vec()),
            Self::Values(values) => Self::Values(values[from..to].to_vec()),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Tokens {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Rows `rows`, whose tokens are `tokens`.
    pub(crate) fn part(&self, rows: Range<usize>, tokens: Range<usize>) -> Self {
        Self {
            ids: self.ids[tokens.clone()].to_vec(),
            type_ids: self.type_ids[tokens].to_vec(),
            lengths: self.lengths[rows].to_vec(),
        }
    }

    /// Checks lengths and ids against a model's limits.
    pub(crate) fn check(&self, vocabulary: u32, types: u32, longest: usize) -> Result<(), EngineError> {
        let wrong = |what: String| Err(EngineError::Rows(what));
        let total: usize = self.lengths.iter().sum();
        if self.lengths.is_empty() || total != self.ids.len() || total != self.type_ids.len() {
            return wrong(format!(
                "{} rows of {total} tokens in sum need as many ids and segment ids, but there are {} and {}",
                self.lengths.len(),
                self.ids.len(),
                self.type_ids.len()
            ));
        }
        if let Some(row) = self.lengths.iter().position(|&length| length == 0 || length > longest) {
            let length = self.lengths[row];
            return wrong(format!("row {row} of the lane has {length} tokens, the model takes 1 to {longest}"));
        }
        if let Some(id) = self.ids.iter().find(|&&id| !(0..i64::from(vocabulary)).contains(&id)) {
            return wrong(format!("token id {id} is outside the vocabulary of {vocabulary}"));
        }
        if let Some(id) = self.type_ids.iter().find(|&&id| !(0..i64::from(types)).contains(&id)) {
            return wrong(format!("segment id {id} is outside the model's {types} segment types"));
        }
        Ok(())
    }
}
