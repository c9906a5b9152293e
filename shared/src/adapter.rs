//! Adapter methods and their options, in the terms of the papers and with the defaults of AdapterHub's presets.
//!
//! Option names are those of AdapterHub's `adapter_config.json`, so that a reader of either knows both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One adapter method with all of its options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "snake_case")]
pub enum AdapterConfig {
    /// Bottleneck adapters: sequential (Pfeiffer et al. 2021), double (Houlsby et al. 2019), parallel (He et al. 2022).
    Bottleneck(Bottleneck),
    /// Low-rank adaptation (Hu et al. 2022).
    Lora(Lora),
}

/// Options of a bottleneck adapter: `scaling · up(act(down(x)))` plus residuals and layer norms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the options are AdapterHub's, each a flag of its own")]
pub struct Bottleneck {
    /// An adapter after the attention block.
    pub mh_adapter: bool,
    /// An adapter after the feed-forward block.
    pub output_adapter: bool,
    /// Bottleneck width is `hidden_size / reduction_factor`, at least 1.
    pub reduction_factor: ReductionFactor,
    /// Activation between the projections.
    pub non_linearity: NonLinearity,
    /// The trunk's own layer norm is applied before the adapter.
    pub original_ln_before: bool,
    /// The trunk's own layer norm is applied after the adapter.
    pub original_ln_after: bool,
    /// A trained layer norm in front of the down projection.
    pub ln_before: bool,
    /// A trained layer norm behind the up projection.
    pub ln_after: bool,
    /// How weights start.
    pub init_weights: InitWeights,
    /// The adapter reads the input of the sub-layer instead of its output.
    pub is_parallel: bool,
    /// Factor on the up projection's output.
    pub scaling: Scaling,
    /// A trained gate on the adapter's output.
    pub use_gating: bool,
    /// The residual is taken before the trunk's layer norm.
    pub residual_before_ln: bool,
    /// The adapter's own residual is taken before its `ln_before`.
    pub adapter_residual_before_ln: bool,
    /// Layers without an adapter.
    pub leave_out: Vec<u32>,
    /// Dropout behind the down projection's activation, 0 to 1.
    pub dropout: f64,
}

/// Options of LoRA: `W x + (alpha / r) · B A x`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the options are AdapterHub's, each a flag of its own")]
pub struct Lora {
    /// Adapt the attention projections named in `attn_matrices`.
    pub selfattn_lora: bool,
    /// Adapt the first feed-forward projection.
    pub intermediate_lora: bool,
    /// Adapt the second feed-forward projection.
    pub output_lora: bool,
    /// Layers without LoRA.
    pub leave_out: Vec<u32>,
    /// Rank of the update.
    pub r: u32,
    /// The update is scaled by `alpha / r`.
    pub alpha: f64,
    /// Dropout on the input of A, 0 to 1.
    pub dropout: f64,
    /// Which attention projections, in the order q, k, v.
    pub attn_matrices: Vec<AttentionMatrix>,
    /// How weights start.
    pub init_weights: InitWeights,
    /// A trained gate on the update.
    pub use_gating: bool,
}

/// A projection of self-attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionMatrix {
    /// Query.
    Q,
    /// Key.
    K,
    /// Value.
    V,
}

/// Activations that bottleneck adapters may use, by the names of AdapterHub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonLinearity {
    /// max(0, x)
    Relu,
    /// Exact GELU (erf).
    Gelu,
    /// GELU by its tanh approximation.
    GeluNew,
    /// x · sigmoid(x)
    Swish,
    /// x · sigmoid(x), the other name.
    Silu,
    /// tanh
    Tanh,
    /// Leaky ReLU, slope 0.01.
    Leakyrelu,
    /// No activation.
    Linear,
}

/// How adapter weights start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitWeights {
    /// Weights N(0, 0.02), biases 0.
    Bert,
    /// Down projection Kaiming-uniform with a = √5, up projection and biases 0.
    MamAdapter,
    /// LoRA: A Kaiming-uniform with a = √5, B 0.
    Lora,
    /// Normal with standard deviation 0.01, cut at two deviations.
    Houlsby,
}

/// The factor on an adapter's output.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scaling {
    /// A constant.
    Constant(f64),
    /// Trained.
    Trained(TrainedScaling),
}

/// A trained factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainedScaling {
    /// One factor, starting at 1.
    Learned,
    /// One factor for each hidden channel, starting at 1.
    Channel,
}

/// Reduction factor: one for all layers, or one for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ReductionFactor {
    /// The same in every layer.
    All(f64),
    /// By layer index; the key `default` serves the rest.
    Layers(BTreeMap<String, f64>),
}

impl ReductionFactor {
    /// The factor of a layer, or `None` when the map names neither the layer nor a default.
    pub fn of(&self, layer: u32) -> Option<f64> {
        match self {
            Self::All(factor) => Some(*factor),
            Self::Layers(map) => map.get(&layer.to_string()).or_else(|| map.get("default")).copied(),
        }
    }
}

/// Preset names, AdapterHub's and the older ones, that [`AdapterConfig::preset`] knows.
pub const PRESETS: [&str; 9] = [
    "seq_bn",
    "double_seq_bn",
    "par_bn",
    "scaled_par_bn",
    "lora",
    "pfeiffer",
    "houlsby",
    "parallel",
    "scaled_parallel",
];

impl AdapterConfig {
    /// The options behind a preset name, or `None` for a name that is not in [`PRESETS`].
    pub fn preset(name: &str) -> Option<Self> {
        let sequential = Bottleneck::sequential();
        Some(match name {
            "seq_bn" | "pfeiffer" => Self::Bottleneck(sequential),
            "double_seq_bn" | "houlsby" => Self::Bottleneck(Bottleneck {
                mh_adapter: true,
                original_ln_before: false,
                non_linearity: NonLinearity::Swish,
                ..sequential
            }),
            "par_bn" | "parallel" => Self::Bottleneck(Bottleneck::parallel()),
            "scaled_par_bn" | "scaled_parallel" => Self::Bottleneck(Bottleneck {
                scaling: Scaling::Trained(TrainedScaling::Learned),
                ..Bottleneck::parallel()
            }),
            "lora" => Self::Lora(Lora::default()),
            _ => return None,
        })
    }

    /// Layers that the method leaves out by its own options.
    pub fn leave_out(&self) -> &[u32] {
        match self {
            Self::Bottleneck(config) => &config.leave_out,
            Self::Lora(config) => &config.leave_out,
        }
    }

    /// The same adapter without a module in these layers either.
    #[must_use]
    pub fn without(mut self, layers: &[u32]) -> Self {
        let leave_out = match &mut self {
            Self::Bottleneck(config) => &mut config.leave_out,
            Self::Lora(config) => &mut config.leave_out,
        };
        leave_out.extend(layers);
        leave_out.sort_unstable();
        leave_out.dedup();
        self
    }

    /// Whether a tensor named as AdapterHub does (`bert.encoder.layer.3.…`) stands in a layer that is left out.
    pub fn leaves_out(&self, tensor: &str) -> bool {
        let layer = tensor.split_once(".layer.").and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
        layer.is_some_and(|layer| self.leave_out().contains(&layer))
    }
}

impl Bottleneck {
    /// The sequential bottleneck of AdapterFusion (Pfeiffer et al. 2021), `seq_bn`.
    pub fn sequential() -> Self {
        Self {
            mh_adapter: false,
            output_adapter: true,
            reduction_factor: ReductionFactor::All(16.0),
            non_linearity: NonLinearity::Relu,
            original_ln_before: true,
            original_ln_after: true,
            ln_before: false,
            ln_after: false,
            init_weights: InitWeights::Bert,
            is_parallel: false,
            scaling: Scaling::Constant(1.0),
            use_gating: false,
            residual_before_ln: true,
            adapter_residual_before_ln: false,
            leave_out: Vec::new(),
            dropout: 0.0,
        }
    }

    /// The parallel bottleneck (He et al. 2022), `par_bn`.
    pub fn parallel() -> Self {
        Self {
            reduction_factor: ReductionFactor::All(2.0),
            original_ln_before: false,
            init_weights: InitWeights::MamAdapter,
            is_parallel: true,
            scaling: Scaling::Constant(4.0),
            ..Self::sequential()
        }
    }

    /// Bottleneck width in a layer of this hidden size: `hidden_size / reduction_factor`, at least 1.
    /// `None` when the reduction factor names neither the layer nor a default.
    pub fn width(&self, hidden_size: u32, layer: u32) -> Option<u32> {
        let factor = self.reduction_factor.of(layer)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive quotient below 2^32")]
        let width = (f64::from(hidden_size) / factor).floor() as u32;
        Some(width.max(1))
    }
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            selfattn_lora: true,
            intermediate_lora: false,
            output_lora: false,
            leave_out: Vec::new(),
            r: 8,
            alpha: 8.0,
            dropout: 0.0,
            attn_matrices: vec![AttentionMatrix::Q, AttentionMatrix::V],
            init_weights: InitWeights::Lora,
            use_gating: false,
        }
    }
}

/// Options of an AdapterFusion layer (Pfeiffer et al. 2021).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the options are AdapterHub's, each a flag of its own")]
pub struct FusionConfig {
    /// A trained key projection.
    pub key: bool,
    /// A trained query projection.
    pub query: bool,
    /// A trained value projection.
    pub value: bool,
    /// The query is taken before the trunk's layer norm.
    pub query_before_ln: bool,
    /// Pulls each value matrix towards identity: `0.01 · ‖I − V‖²` for each layer, added to the loss of the same step.
    pub regularization: bool,
    /// The residual is added before attention.
    pub residual_before: bool,
    /// Values are projected before the weighted sum.
    pub value_before_softmax: bool,
    /// Value starts as identity (off-diagonal 1e-6).
    pub value_initialized: bool,
    /// Dropout on the attention scores; `None` takes the trunk's attention dropout.
    pub dropout_prob: Option<f64>,
}

impl Default for FusionConfig {
    fn default() -> Self {
        Self {
            key: true,
            query: true,
            value: true,
            query_before_ln: false,
            regularization: true,
            residual_before: false,
            value_before_softmax: true,
            value_initialized: true,
            dropout_prob: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_name_is_known() {
        for name in PRESETS {
            assert!(AdapterConfig::preset(name).is_some(), "{name}");
        }
        assert!(AdapterConfig::preset("compacter").is_none());
    }

    #[test]
    fn a_bottleneck_is_at_least_one_wide() {
        let mut config = Bottleneck::sequential();
        assert_eq!(config.width(384, 0), Some(24));
        config.reduction_factor = ReductionFactor::All(1000.0);
        assert_eq!(config.width(384, 0), Some(1));
        config.reduction_factor = ReductionFactor::Layers([("1".to_owned(), 8.0)].into());
        assert_eq!((config.width(64, 1), config.width(64, 0)), (Some(8), None));
    }
}
