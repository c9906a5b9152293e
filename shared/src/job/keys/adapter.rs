//! The keys of an adapter: its method, and the options of each kind of method.

use super::{
    Bounds, Key,
    Missing::{Preset, Value},
    Section,
    Shape::{ByLayer, Choice, Either, Flag, List, Number, Whole},
};
use crate::adapter::PRESETS;

/// Highest layer number that a job may name; real models end far below.
pub(super) const LAST_LAYER: i64 = 1023;

/// A list of layer numbers.
pub(super) const LAYERS: super::Shape = List(&Whole(0, LAST_LAYER), 0, usize::MAX);

/// Above 0; the upper bound only catches slips.
const FACTOR: super::Shape = Number(Bounds::above(0.0, 1e6));

/// Options that only bottleneck adapters have.
pub(crate) const BOTTLENECK: &[&str] = &[
    "mh_adapter",
    "output_adapter",
    "reduction_factor",
    "non_linearity",
    "original_ln_before",
    "original_ln_after",
    "ln_before",
    "ln_after",
    "is_parallel",
    "scaling",
    "residual_before_ln",
    "adapter_residual_before_ln",
];

/// Options that only LoRA has.
pub(crate) const LORA: &[&str] = &["selfattn_lora", "intermediate_lora", "output_lora", "r", "alpha", "attn_matrices"];

pub(crate) static ADAPTER: Section = Section {
    name: "adapter",
    places: &["defaults.adapter", "tasks.NAME.adapter"],
    about: "The adapter: a method, whose preset gives every option its default, and options that differ from it. \
            Names are those of AdapterHub's `adapter_config.json`. A task that names another method than \
            `[defaults.adapter]` inherits no option from there.",
    keys: &[
        Key::new(
            "method",
            Choice(&PRESETS),
            Value("\"seq_bn\""),
            "\"double_seq_bn\"",
            "The method; `pfeiffer`, `houlsby`, `parallel` and `scaled_parallel` are the older names of `seq_bn`, \
             `double_seq_bn`, `par_bn` and `scaled_par_bn`.",
        ),
        Key::new("mh_adapter", Flag, Preset, "true", "Bottleneck: an adapter after the attention block."),
        Key::new("output_adapter", Flag, Preset, "false", "Bottleneck: an adapter after the feed-forward block."),
        Key::new(
            "reduction_factor",
            Either(&[FACTOR, ByLayer(&FACTOR)]),
            Preset,
            "{ 0 = 8, default = 32 }",
            "Bottleneck: the width is the hidden size divided by this, at least 1; a table gives each layer its own. \
             Smaller factors train more numbers.",
        ),
        Key::new(
            "non_linearity",
            Choice(&["relu", "gelu", "gelu_new", "swish", "silu", "tanh", "leakyrelu", "linear"]),
            Preset,
            "\"gelu\"",
            "Bottleneck: activation between the projections.",
        ),
        Key::new(
            "original_ln_before",
            Flag,
            Preset,
            "false",
            "Bottleneck: the base model's own layer norm is applied before the adapter.",
        ),
        Key::new(
            "original_ln_after",
            Flag,
            Preset,
            "false",
            "Bottleneck: the base model's own layer norm is applied after the adapter.",
        ),
        Key::new(
            "ln_before",
            Flag,
            Preset,
            "true",
            "Bottleneck: a trained layer norm in front of the down projection.",
        ),
        Key::new("ln_after", Flag, Preset, "true", "Bottleneck: a trained layer norm behind the up projection."),
        Key::new(
            "is_parallel",
            Flag,
            Preset,
            "true",
            "Bottleneck: the adapter reads the input of the block instead of its output.",
        ),
        Key::new(
            "scaling",
            Either(&[FACTOR, Choice(&["learned", "channel"])]),
            Preset,
            "\"learned\"",
            "Bottleneck: factor on the adapter's output; `learned` trains one number, `channel` one for each channel.",
        ),
        Key::new(
            "residual_before_ln",
            Flag,
            Preset,
            "false",
            "Bottleneck: the residual is taken before the base model's layer norm.",
        ),
        Key::new(
            "adapter_residual_before_ln",
            Flag,
            Preset,
            "true",
            "Bottleneck: the adapter's own residual is taken before its trained layer norm.",
        ),
        Key::new("selfattn_lora", Flag, Preset, "false", "LoRA: adapt the projections in `attn_matrices`."),
        Key::new("intermediate_lora", Flag, Preset, "true", "LoRA: adapt the first feed-forward projection."),
        Key::new("output_lora", Flag, Preset, "true", "LoRA: adapt the second feed-forward projection."),
        Key::new("r", Whole(1, 65_536), Preset, "4", "LoRA: rank of the update. A higher rank trains more numbers."),
        Key::new("alpha", FACTOR, Preset, "16", "LoRA: the update is scaled by `alpha / r`."),
        Key::new(
            "attn_matrices",
            List(&Choice(&["q", "k", "v"]), 1, 3),
            Preset,
            "[\"q\", \"k\", \"v\"]",
            "LoRA: which attention projections are adapted.",
        ),
        Key::new(
            "init_weights",
            Choice(&["bert", "mam_adapter", "houlsby", "lora"]),
            Preset,
            "\"houlsby\"",
            "How weights start: `bert`, `mam_adapter` or `houlsby` for bottlenecks, `lora` or `bert` for LoRA.",
        ),
        Key::new("use_gating", Flag, Preset, "true", "A trained gate on the adapter's output."),
        Key::new("leave_out", LAYERS, Preset, "[0, 1]", "Layers, counted from 0, that get no adapter."),
        Key::new(
            "dropout",
            Number(Bounds::below(0.0, 1.0)),
            Preset,
            "0.1",
            "Dropout inside the adapter while training, as a share.",
        ),
    ],
    exclusive: &[],
};
