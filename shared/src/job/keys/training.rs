//! The keys of training.

use super::{
    Bounds, Key,
    Missing::{Means, Required, Value},
    Section,
    Shape::{Choice, Either, Flag, List, Number, Table, Whole},
    adapter::{LAST_LAYER, LAYERS},
};

/// Updates and rows end far below; the bound keeps products within 64 bits.
pub(super) const MANY: i64 = 1_000_000_000_000;

/// A share below one.
const BELOW_ONE: super::Shape = Number(Bounds::below(0.0, 1.0));

pub(crate) static TRAINING: Section = Section {
    name: "training",
    places: &["defaults.training", "tasks.NAME.training", "fusions.NAME.training"],
    about: "Optimisation with AdamW. Every key here decides published bytes.",
    keys: &[
        Key::new("epochs", Whole(1, 1_000_000), Value("3"), "1", "Passes over the training rows."),
        Key::new("steps", Whole(1, MANY), Means("`epochs` decides"), "100", "Optimizer updates, instead of `epochs`."),
        Key::new("batch_size", Whole(1, 65_536), Value("16"), "32", "Rows of one global batch, whatever the workers."),
        Key::new(
            "lanes",
            Whole(1, 256),
            Value("2"),
            "4",
            "Into how many parts a batch is cut, at most `batch_size`; each is computed alone, so as many threads can \
             share one task. A smaller batch takes as many lanes as it has rows.",
        ),
        Key::new(
            "accumulation",
            Whole(1, 65_536),
            Value("1"),
            "2",
            "Batches whose gradients are averaged into one update.",
        ),
        Key::new("learning_rate", Number(Bounds::above(0.0, 1.0)), Value("1e-4"), "1e-3", "Peak learning rate."),
        Key::new(
            "schedule",
            Choice(&["linear", "cosine", "constant"]),
            Value("\"linear\""),
            "\"cosine\"",
            "How the learning rate falls after warm-up: in a line or along half a cosine to 0, or not at all.",
        ),
        Key::new(
            "warmup",
            BELOW_ONE,
            Value("0.0"),
            "0.06",
            "Share of all updates over which the learning rate rises from 0 to its peak.",
        ),
        Key::new(
            "warmup_steps",
            Whole(0, MANY),
            Means("`warmup` decides"),
            "10",
            "The same in updates, instead of `warmup`.",
        ),
        Key::new(
            "weight_decay",
            Number(Bounds::closed(0.0, 1.0)),
            Value("0.0"),
            "0.01",
            "AdamW's decay, on weights only: not on biases, not on layer norms.",
        ),
        Key::new("betas", List(&BELOW_ONE, 2, 2), Value("[0.9, 0.999]"), "[0.9, 0.98]", "AdamW's two betas."),
        Key::new("epsilon", Number(Bounds::above(0.0, 1.0)), Value("1e-8"), "1e-6", "AdamW's epsilon."),
        Key::new(
            "clip_norm",
            Either(&[Number(Bounds::above(0.0, 1e6)), Choice(&["off"])]),
            Value("1.0"),
            "\"off\"",
            "The gradient's norm over all trained tensors is cut to this.",
        ),
        Key::new(
            "max_length",
            Whole(4, 65_536),
            Value("128"),
            "64",
            "Tokens of a row at most, special tokens included; longer rows are cut. Long rows cost the most time.",
        ),
        Key::new("seed", Whole(0, i64::MAX), Value("17"), "1", "Seed of initial weights, row order and dropout."),
        Key::new(
            "base_model_dropout",
            Flag,
            Value("false"),
            "true",
            "The base model's own dropout is active while training, as in Hugging Face's trainer.",
        ),
        Key::new(
            "evaluate_every",
            Either(&[Choice(&["epoch"]), Whole(1, MANY)]),
            Value("\"epoch\""),
            "100",
            "When validation is scored: at the end of each epoch, or every so many updates; always at the end.",
        ),
        Key::new(
            "checkpoint_every",
            Whole(1, MANY),
            Value("50"),
            "200",
            "Updates between checkpoints: what a lost worker costs at most.",
        ),
        Key::new(
            "early_stopping",
            Either(&[Choice(&["off"]), Table(&EARLY_STOPPING)]),
            Value("\"off\""),
            "{ patience = 2 }",
            "Stops training when the metric on validation no longer grows.",
        ),
        Key::new(
            "keep_best",
            Flag,
            Value("true"),
            "false",
            "Publish the weights that scored best on validation instead of the last.",
        ),
        Key::new(
            "adapter_drop",
            Either(&[Choice(&["off"]), Table(&ADAPTER_DROP)]),
            Value("\"off\""),
            "{ layers = [0, 1] }",
            "AdapterDrop: train without the adapters of some layers, which makes them faster.",
        ),
        Key::new(
            "reduction",
            Choice(&["exact", "fast"]),
            Value("\"exact\""),
            "\"fast\"",
            "How gradients of several workers are added: along a fixed tree, so that any number of workers gives the same \
             bytes, or by the transport's own all-reduce, which sends less and gives up that promise.",
        ),
        Key::new(
            "precision",
            Choice(&["fp32", "bf16", "fp16"]),
            Value("\"fp32\""),
            "\"bf16\"",
            "Numbers in which the base model multiplies; whatever is trained stays fp32. Other ones than fp32 need \
             `device = \"cuda\"`.",
        ),
    ],
    exclusive: &[("epochs", "steps"), ("warmup", "warmup_steps")],
};

static EARLY_STOPPING: Section = Section {
    name: "early_stopping",
    places: &[
        "defaults.training.early_stopping",
        "tasks.NAME.training.early_stopping",
        "fusions.NAME.training.early_stopping",
    ],
    about: "When training stops before its end.",
    keys: &[
        Key::new("patience", Whole(1, 1_000_000), Required, "2", "Evaluations without growth before the stop."),
        Key::new(
            "min_delta",
            Number(Bounds::below(0.0, 1.0)),
            Value("0.0"),
            "0.001",
            "Growth of the metric that counts as growth.",
        ),
    ],
    exclusive: &[],
};

static ADAPTER_DROP: Section = Section {
    name: "adapter_drop",
    places: &[
        "defaults.training.adapter_drop",
        "tasks.NAME.training.adapter_drop",
        "fusions.NAME.training.adapter_drop",
    ],
    about: "AdapterDrop (Rücklé et al. 2021): exactly one of the two keys.",
    keys: &[
        Key::new(
            "layers",
            LAYERS,
            Means("`up_to` decides"),
            "[0, 1]",
            "These layers have no adapter, in every step and at inference.",
        ),
        Key::new(
            "up_to",
            Whole(1, LAST_LAYER),
            Means("`layers` decides"),
            "3",
            "Each step draws n from 0 to this number and leaves out the adapters of the first n layers.",
        ),
    ],
    exclusive: &[("layers", "up_to")],
};
