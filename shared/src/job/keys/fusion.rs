//! The keys of a fusion and of its layer.

use super::{
    Bounds, Key,
    Missing::{Means, Required, Value},
    Section,
    Shape::{Adapter, Choice, Either, Flag, List, Name, Number, Variable},
    adapter::LAYERS,
    task::SCORE,
    training::TRAINING,
};

pub(super) static FUSION: Section = Section {
    name: "fusion",
    places: &["fusions.NAME"],
    about: "AdapterFusion (Pfeiffer et al. 2021): attention over frozen adapters, trained on the rows of one task. It \
            starts as soon as its adapters are ready.",
    keys: &[
        Key::new(
            "adapters",
            List(&Adapter, 2, 256),
            Required,
            "[\"tone\", \"spam\"]",
            "The adapters in the order of attention: tasks of this job, folders (with a `/`), or \
             `hf://ORGANISATION/NAME@REVISION`.",
        ),
        Key::new("task", Name, Required, "\"tone\"", "The task whose rows, head options and metric it uses."),
        Key::new(
            "credentials",
            Variable,
            Means("those of an `hf://` base model, else none"),
            "\"HF_TOKEN\"",
            "Name of the environment variable that holds a token for adapters from `hf://`; never the secret.",
        ),
        Key::new(
            "expect",
            SCORE,
            Means("no expectation"),
            "0.75",
            "The score expected on held-out rows, as in a task.",
        ),
        Key::table("training", &TRAINING, "The fusion's own training options."),
        Key::table("fusion", &FUSION_LAYER, "The fusion's own layer options."),
        Key::new(
            "skip_layers",
            LAYERS,
            Value("[]"),
            "[0, 1]",
            "Layers without adapters and fusion at evaluation and inference (AdapterDrop).",
        ),
        Key::new("publish_as", Name, Means("the fusion's name"), "\"both-v2\"", "Its name in the hub."),
    ],
    exclusive: &[],
};

pub(super) static FUSION_LAYER: Section = Section {
    name: "fusion_layer",
    places: &["defaults.fusion", "fusions.NAME.fusion"],
    about: "Options of a fusion layer, with AdapterHub's names and defaults.",
    keys: &[
        Key::new("key", Flag, Value("true"), "false", "A trained key projection."),
        Key::new("query", Flag, Value("true"), "false", "A trained query projection."),
        Key::new("value", Flag, Value("true"), "false", "A trained value projection: most of the trained numbers."),
        Key::new(
            "query_before_ln",
            Flag,
            Value("false"),
            "true",
            "The query is taken before the base model's layer norm.",
        ),
        Key::new(
            "regularization",
            Flag,
            Value("true"),
            "false",
            "Pulls each value matrix towards identity, by 0.01 times the squared distance.",
        ),
        Key::new("residual_before", Flag, Value("false"), "true", "The residual is added before attention."),
        Key::new(
            "value_before_softmax",
            Flag,
            Value("true"),
            "false",
            "Values are projected before the weighted sum instead of after it.",
        ),
        Key::new("value_initialized", Flag, Value("true"), "false", "The value matrix starts as identity."),
        Key::new(
            "dropout_prob",
            Either(&[Choice(&["base_model"]), Number(Bounds::below(0.0, 1.0))]),
            Value("\"base_model\""),
            "0.1",
            "Dropout on the attention scores; `base_model` takes the base model's attention dropout.",
        ),
    ],
    exclusive: &[],
};
