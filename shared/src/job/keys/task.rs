//! The keys of a task: rows, head, adapter, training.

use super::{
    Bounds, Key,
    Missing::{Means, Required, Value},
    Section,
    Shape::{self, Choice, Either, Flag, List, Name, Number, Place, Table, Text, Variable, Whole},
    adapter::{ADAPTER, LAYERS},
    sweep::SWEEP,
    training::{MANY, TRAINING},
};

/// The word for a classification head.
const CLASSIFICATION: &str = "classification";
/// The word for a regression head.
const REGRESSION: &str = "regression";
/// The words for metrics; a test keeps them equal to [`crate::metric::Metric::ALL`].
const METRICS: &[&str] = &["accuracy", "f1", "f1_macro", "f1_micro", "matthews", "pearson", "spearman"];

/// A path, glob, folder or URL of Parquet files.
const ROWS: Shape = Place(&["http", "https", "s3", "gs"]);
/// One of them or several.
const SOURCE: Shape = Either(&[ROWS, List(&ROWS, 1, usize::MAX)]);
const KINDS: Shape = Choice(&[CLASSIFICATION, REGRESSION]);
/// A score of any metric.
pub(super) const SCORE: Shape = Number(Bounds::closed(-1.0, 1.0));

pub(crate) static TASK: Section = Section {
    name: "task",
    places: &["tasks.NAME"],
    about: "One task: its rows in Parquet files, its head, its adapter. Relative paths start at the job file's folder.",
    keys: &[
        Key::new(
            "train",
            SOURCE,
            Required,
            "\"data/train.parquet\"",
            "Training rows: a Parquet file, a glob (`*`, `?`, `[0-9]`, `**`), a folder of shards or a URL, or a list of \
             these; all rows when `split` divides them.",
        ),
        Key::new(
            "validation",
            SOURCE,
            Means("`split` makes them"),
            "\"v.parquet\"",
            "Rows that choose the best weights.",
        ),
        Key::new(
            "test",
            SOURCE,
            Means("`split` makes them, or there are none"),
            "\"t.parquet\"",
            "Held-out rows, scored once at the end.",
        ),
        Key::new(
            "split",
            Table(&SPLIT),
            Means("`validation` and `test` name files"),
            "{ validation = 0.2, test = 0.0 }",
            "Divides the rows of `train` by a seeded draw.",
        ),
        Key::new(
            "text",
            Either(&[Text, List(&Text, 1, 2)]),
            Value("\"text\""),
            "[\"question\", \"answer\"]",
            "The text column, or the two columns of a pair.",
        ),
        Key::new("label", Text, Value("\"label\""), "\"class\"", "The label column: class ids, texts, or numbers."),
        Key::new(
            "rows",
            Either(&[Choice(&["all"]), Whole(1, MANY)]),
            Value("\"all\""),
            "2500",
            "Only the first so many training rows, after `split` divided them.",
        ),
        Key::new(
            "credentials",
            Variable,
            Means("no credentials"),
            "\"DATA_KEY\"",
            "Name of the environment variable on the worker that holds credentials for the rows; never the secret.",
        ),
        Key::table("origin", &ORIGIN, "Where the rows come from, and under which licence."),
        Key::new(
            "head",
            Either(&[KINDS, Table(&HEAD)]),
            Value("\"classification\""),
            "\"regression\"",
            "What is predicted: a kind, or a table of options.",
        ),
        Key::new(
            "metric",
            Choice(METRICS),
            Means("`accuracy` for classification, `spearman` for regression"),
            "\"f1_macro\"",
            "The score that chooses the best weights.",
        ),
        Key::new(
            "expect",
            SCORE,
            Means("no expectation"),
            "0.85",
            "The score expected on held-out rows (`test`, or `validation` without it); a miss is shown and ends \
             `graftwork run` with exit status 3.",
        ),
        Key::table("adapter", &ADAPTER, "The task's own adapter options."),
        Key::table("training", &TRAINING, "The task's own training options."),
        Key::new(
            "sweep",
            Table(&SWEEP),
            Means("one training"),
            "{ learning_rate = [1e-4, 1e-3] }",
            "Trains the task with several values and keeps the best.",
        ),
        Key::new(
            "skip_layers",
            LAYERS,
            Value("[]"),
            "[0, 1]",
            "Layers whose adapters are left out at evaluation and inference (AdapterDrop).",
        ),
        Key::new("publish_as", Name, Means("the task's name"), "\"spam-v2\"", "Its name in the hub."),
    ],
    exclusive: &[("validation", "split")],
};

static SPLIT: Section = Section {
    name: "split",
    places: &["tasks.NAME.split"],
    about: "Divides one source into training, validation and test rows by a seeded draw.",
    keys: &[
        Key::new(
            "validation",
            Number(Bounds { least: 0.0, most: 1.0, with_least: false, with_most: false }),
            Value("0.1"),
            "0.2",
            "Share of rows, or of groups, for validation.",
        ),
        Key::new(
            "test",
            Number(Bounds::below(0.0, 1.0)),
            Means("`0.1`, or `0.0` where the task names test files"),
            "0.2",
            "Share of rows, or of groups, held out.",
        ),
        Key::new(
            "group_by",
            Text,
            Means("each row is drawn alone"),
            "\"movie\"",
            "Rows with the same value in this column stay together.",
        ),
        Key::new("seed", Whole(0, i64::MAX), Value("1"), "7", "Seed of the draw."),
    ],
    exclusive: &[],
};

static ORIGIN: Section = Section {
    name: "origin",
    places: &["tasks.NAME.origin"],
    about: "What is known of the rows, for people: it stands in the record and on the card of what is published, with those \
            of a fusion's adapters, and changes no result.",
    keys: &[
        Key::new(
            "source",
            Text,
            Means("the card says that it is not stated"),
            "\"TREC questions, Li and Roth 2002\"",
            "Who made or collected the rows, or where they are found.",
        ),
        Key::new(
            "license",
            Text,
            Means("the card says that it is not stated"),
            "\"cc-by-4.0\"",
            "The licence of the rows: an SPDX identifier, or words.",
        ),
    ],
    exclusive: &[],
};

const KIND: Key =
    Key::new("kind", KINDS, Value("\"classification\""), "\"regression\"", "One of several classes, or one number.");
const HEAD_LAYERS: Key = Key::new("layers", Whole(1, 4), Value("2"), "1", "Linear layers.");
const ACTIVATION: Key = Key::new(
    "activation",
    Choice(&["tanh", "relu", "gelu"]),
    Value("\"tanh\""),
    "\"relu\"",
    "Activation between the layers; without effect when there is one.",
);
const POOLER: Key =
    Key::new("use_pooler", Flag, Value("false"), "true", "Reads the base model's pooler instead of the first token.");

static HEAD: Section = Section {
    name: "head",
    places: &["tasks.NAME.head"],
    about: "The prediction head on the first token.",
    keys: &[
        KIND,
        Key::new(
            "labels",
            List(&Text, 2, 65_536),
            Means("found in the data"),
            "[\"ham\", \"spam\"]",
            "Class names in the order of their ids; a row with another label is an error.",
        ),
        HEAD_LAYERS,
        ACTIVATION,
        POOLER,
    ],
    exclusive: &[],
};

pub(super) static DEFAULT_HEAD: Section = Section {
    name: "default_head",
    places: &["defaults.head"],
    about: "Head options that every task inherits.",
    keys: &[KIND, HEAD_LAYERS, ACTIVATION, POOLER],
    exclusive: &[],
};

#[cfg(test)]
mod tests {
    #[test]
    fn the_words_for_metrics_are_those_of_the_metrics() {
        assert_eq!(super::METRICS, crate::metric::Metric::ALL.map(crate::metric::Metric::name));
    }
}
