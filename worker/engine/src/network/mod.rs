//! A network: a shared trunk, adapters in a composition, heads, and the trained parameters.
//!
//! [`Network::lane`] is the one step of training that touches libtorch; [`Network::predict`] is everything else. Both
//! are pure functions of their arguments and the parameters, whatever thread they run on (invariant 5).

mod below;
mod build;
mod input;
mod parts;
mod pass;
mod scaled;
#[cfg(test)]
mod tests;
mod together;

use std::sync::{Arc, RwLock};

use graftwork_model::{Tensors, TrunkDescription};
use tch::Tensor;

use crate::{
    EngineError,
    head::HeadWeights,
    parameters::Layout,
    rows::{Lane, LaneOptions, LaneOutput, Prediction, Tokens},
    setup::Setup,
    sites::LayerSites,
    spans::Spans,
    transfer::{self, to_host},
    trunk::Trunk,
};

pub use below::Keep;
pub(crate) use input::Input;
pub use parts::Parts;
pub(crate) use pass::train;
pub use together::StagedLane;

/// A trunk with adapters and heads, ready to train and to predict. `Send`, not `Sync`: see [`Network::share`].
pub struct Network {
    trunk: Trunk,
    setup: Arc<Setup>,
    layout: Arc<Layout>,
    /// All trained parameters, `[layout.len]`.
    flat: Tensor,
    /// Held for reading while a lane runs and for writing while parameters are set.
    flat_lock: Arc<RwLock<()>>,
    layers: Vec<LayerSites>,
    heads: Vec<HeadWeights>,
    /// What lies below the first adapter; absent where nothing does.
    below: Option<Arc<below::Below>>,
    /// Rows that pass through this handle are expected to come again.
    rows_return: bool,
}

impl Network {
    /// Builds a network from its setup and the tensors of every adapter, fusion and head in it.
    ///
    /// Tensors have their full state-dict names with the setup's names in them; trained ones are copied into one flat
    /// buffer, frozen ones into tensors of their own. Tensors beyond those are ignored.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape, the composition is not legal, or adapters, fusions and heads do
    /// not fit the composition.
    pub fn new(trunk: Trunk, setup: Setup, weights: Tensors) -> Result<Self, EngineError> {
        build::network(trunk, setup, weights)
    }

    /// The same network for another thread: storage of trunk and parameters is shared.
    pub fn share(&self) -> Self {
        Self {
            trunk: self.trunk.share(),
            setup: Arc::clone(&self.setup),
            layout: Arc::clone(&self.layout),
            flat: self.flat.shallow_clone(),
            flat_lock: Arc::clone(&self.flat_lock),
            layers: self.layers.iter().map(LayerSites::share).collect(),
            heads: self.heads.iter().map(HeadWeights::share).collect(),
            below: self.below.as_ref().map(Arc::clone),
            rows_return: self.rows_return,
        }
    }

    /// The same handle, for rows that come again or do not: what lies below the first adapter is kept for those that
    /// do, and looked up for all.
    pub fn for_rows_that_return(mut self, they_do: bool) -> Self {
        self.rows_return = they_do;
        self
    }

    /// How much this network and all that share its storage may keep of what lies below the first adapter, so that
    /// later epochs and evaluations need not compute it again. Unless it is said, 256 MiB of memory where whole layers lie below,
    /// otherwise nothing. Changes no byte of a result.
    pub fn keep_below(&self, keep: &Keep) {
        if let Some(below) = &self.below {
            below.bound(keep);
        }
    }

    /// What the network was built from.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The trunk's sizes.
    pub fn description(&self) -> &TrunkDescription {
        self.trunk.description()
    }

    /// Order, shapes and offsets of the trained tensors.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The trained parameters in the order of the layout.
    pub fn parameters(&self) -> Vec<f32> {
        to_host(&self.flat)
    }

    /// Replaces the trained parameters, for this network and all that share its storage. Waits for running lanes.
    ///
    /// # Panics
    /// When the number of values is not the layout's length.
    pub fn set_parameters(&self, values: &[f32]) {
        assert_eq!(values.len(), self.layout.len, "as many values as trained parameters are needed");
        let _guard = self.flat_lock.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        tch::no_grad(|| self.flat.shallow_clone().copy_(&transfer::to_device(values, self.flat.device())));
    }

    /// Loss and gradient of one lane.
    ///
    /// # Errors
    /// When rows, targets and lengths do not fit each other, the trunk or the composition.
    pub fn lane(&self, lane: &Lane, options: &LaneOptions) -> Result<LaneOutput, EngineError> {
        self.with_lane(lane, |input| pass::lane(self, input, &lane.targets, options))
    }

    /// The same, but the gradient is handed on part by part, each as soon as it is complete: `give` is called once for each
    /// part, in their order, with its number and its values. Gives the loss.
    ///
    /// # Errors
    /// As those of [`Self::lane`]; then nothing was handed on.
    pub fn lane_in_parts(
        &self,
        lane: &Lane,
        options: &LaneOptions,
        parts: &Parts,
        give: &mut dyn FnMut(usize, Vec<f32>),
    ) -> Result<f64, EngineError> {
        self.with_lane(lane, |input| pass::lane_in_parts(self, (input, &lane.targets), options, parts, give))
    }

    /// The flat gradient cut into parts of at least `least` numbers (all of it, if there are not two of that size), in the
    /// order in which they are complete.
    pub fn parts(&self, least: usize) -> Parts {
        Parts::new(&self.layout, least)
    }

    fn with_lane<T>(&self, lane: &Lane, pass: impl FnOnce(&Input) -> T) -> Result<T, EngineError> {
        let input = self.checked(lane)?;
        let _guard = self.flat_lock.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(tch::no_grad(|| pass(&input)))
    }

    /// A lane's rows as this network computes them, if they and their targets fit it.
    fn checked(&self, lane: &Lane) -> Result<Input, EngineError> {
        self.check_tokens(&lane.tokens)?;
        let rows = lane.tokens.rows();
        if lane.rows.len() != rows || lane.targets.len() != rows {
            return Err(EngineError::Rows(format!(
                "a lane of {rows} rows has {} row numbers and {} targets",
                lane.rows.len(),
                lane.targets.len()
            )));
        }
        for head in &self.heads {
            head.check(&lane.targets)?;
        }
        let input = Input::new(&lane.tokens, &lane.rows, self.description());
        self.check_rows(&input.spans)?;
        Ok(self.filled(input))
    }

    /// Logits of every head, and how much attention each fusion gave to its adapters.
    ///
    /// # Errors
    /// When tokens do not fit the trunk or the composition.
    pub fn predict(&self, tokens: &Tokens, skip_layers: &[u32]) -> Result<Prediction, EngineError> {
        self.check_tokens(tokens)?;
        let input = Input::new(tokens, &vec![0; tokens.rows()], self.description());
        self.check_rows(&input.spans)?;
        let input = self.filled(input);
        let _guard = self.flat_lock.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(tch::no_grad(|| pass::predict(self, &input, skip_layers)))
    }

    /// Rows in the parts that [`Self::predict`] computes one after the other. Predicted apart, on whatever threads, they
    /// get the same bytes.
    ///
    /// # Errors
    /// When tokens do not fit the trunk.
    pub fn apart(&self, tokens: &Tokens) -> Result<Vec<Tokens>, EngineError> {
        self.check_tokens(tokens)?;
        let input = Input::new(tokens, &vec![0; tokens.rows()], self.description());
        let edges = self.runs(&input);
        let part =
            |edge: &[usize]| tokens.part(edge[0]..edge[1], input.spans.token(edge[0])..input.spans.token(edge[1]));
        Ok(edges.windows(2).map(part).collect())
    }

    fn check_tokens(&self, tokens: &Tokens) -> Result<(), EngineError> {
        let description = self.description();
        let longest = usize::try_from(description.max_tokens()).expect("a 32-bit size");
        tokens.check(description.vocab_size, description.type_vocab_size, longest)
    }

    fn check_rows(&self, spans: &Spans) -> Result<(), EngineError> {
        self.setup.composition.as_ref().map_or(Ok(()), |composition| crate::compose::check_rows(composition, spans))
    }
}
