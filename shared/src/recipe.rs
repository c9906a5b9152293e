//! A recipe: all that decides the bytes of one trained adapter or fusion, and nothing else.
//!
//! Two recipes with one digest give the same tensors within a numeric class (invariant 5). Names, owners, priorities,
//! places, workers and threads are therefore absent.

use serde::{Deserialize, Serialize};

use crate::{
    adapter::{AdapterConfig, FusionConfig},
    data::{Columns, SplitContent},
    digest::Digest,
    head::Head,
    id::Name,
    metric::Metric,
    training::Training,
};

/// Everything that decides the bytes of one stage's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// [`crate::NUMERICS_VERSION`] of the program that planned it.
    pub numerics_version: u32,
    /// Digest of the base model: configuration, weights and tokenizer.
    pub base_model: Digest,
    /// What is trained.
    pub method: Method,
    /// The head that is trained with it.
    pub head: Head,
    /// The metric that chooses the best weights.
    pub metric: Metric,
    /// Optimisation.
    pub training: Training,
    /// Columns of every split.
    pub columns: Columns,
    /// Training rows.
    pub train: SplitContent,
    /// Rows that choose the best weights.
    pub validation: SplitContent,
    /// Rows held out, scored once at the end.
    pub test: Option<SplitContent>,
    /// Layers without adapters at evaluation and inference (AdapterDrop).
    pub skip_layers: Vec<u32>,
}

/// What a stage trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// One adapter.
    Adapter(AdapterConfig),
    /// A fusion layer over adapters that stay frozen.
    Fusion {
        /// The fusion layer's options.
        config: FusionConfig,
        /// What is fused, in the order of attention.
        adapters: Vec<FusedAdapter>,
    },
}

/// One adapter that a fusion reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FusedAdapter {
    /// Its method and options.
    pub config: AdapterConfig,
    /// Digest of the recipe that trains it, or of the tensor file for an adapter from outside the job.
    pub origin: Digest,
}

impl Recipe {
    /// The digest by which results are reused.
    pub fn digest(&self) -> Digest {
        Digest::of_value("graftwork recipe", self)
    }
}

/// What must be alike for equal bytes. A worker reports its own; one stage runs in one class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NumericClass {
    /// `cpu`, or the model of the accelerator.
    pub device: String,
    /// Widest vector instructions that the math library may use: `avx512`, `avx2`, `sse4.2`, `neon`.
    pub instructions: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// CPU vendor, since math libraries choose kernels by it.
    pub vendor: String,
}

impl std::fmt::Display for NumericClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}/libtorch-{}", self.device, self.vendor, self.instructions, self.libtorch)
    }
}

/// Name of an adapter inside a composition of a stage, in the order of [`Method::Fusion`]'s list.
///
/// Tensors inside checkpoints carry these position names; publishing puts the user's names in their place.
pub fn slot(position: usize) -> Name {
    format!("slot{position}").parse().expect("a slot name is a name")
}

/// Name of the adapter, fusion head or head that a stage itself trains, inside its checkpoints.
pub fn trained_slot() -> Name {
    "trained".parse().expect("a fixed name is a name")
}
