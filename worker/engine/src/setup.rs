//! What a network is made of: adapters, fusions, heads, how they are combined, and which of them are trained.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{
    adapter::{AdapterConfig, FusionConfig},
    composition::Composition,
    head::Head,
    id::Name,
};

/// Everything about a network that is not a number in a tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Setup {
    /// How adapters are combined; `None` for a bare trunk with a head.
    pub composition: Option<Composition>,
    /// Options of every adapter that the composition names.
    pub adapters: BTreeMap<Name, AdapterConfig>,
    /// Options of every fusion layer, by the fusion's name.
    pub fusions: BTreeMap<String, FusionConfig>,
    /// Heads: one for each child of a final `Parallel` or `BatchSplit`, in their order, one otherwise.
    pub heads: Vec<(Name, Head)>,
    /// Which of them get gradients.
    pub trained: Trained,
}

/// The modules that get gradients; everything else is frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trained {
    /// Adapters.
    pub adapters: BTreeSet<Name>,
    /// Fusion layers.
    pub fusions: BTreeSet<String>,
    /// Heads.
    pub heads: BTreeSet<Name>,
}

impl Trained {
    /// Every adapter, fusion and head of a setup.
    pub fn all(setup: &Setup) -> Self {
        Self {
            adapters: setup.adapters.keys().cloned().collect(),
            fusions: setup.fusions.keys().cloned().collect(),
            heads: setup.heads.iter().map(|(name, _)| name.clone()).collect(),
        }
    }
}

/// Tensors of one adapter, fusion or head.
pub(crate) struct ModuleShapes {
    /// Full names and shapes.
    pub(crate) shapes: Vec<graftwork_model::Shape>,
    /// The module's name, which stands inside the tensors' names.
    pub(crate) name: String,
    pub(crate) trained: bool,
}
