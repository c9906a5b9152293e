//! The keys of `[nightly]`.

use super::{
    Bounds, Key,
    Missing::{Means, Value},
    Section,
    Shape::{Cron, List, Named, Number, Text, Variable, Whole},
};
use crate::job::MOST_NIGHTS;

pub(super) static NIGHTLY: Section = Section {
    name: "nightly",
    places: &["nightly"],
    about: "What `graftwork nightly` compares, and how strictly. None of it changes a published byte.",
    keys: &[
        Key::new(
            "seeds",
            List(&Whole(0, i64::MAX), 1, 64),
            Value("[1, 2, 3]"),
            "[7, 8]",
            "Seeds with which every task and fusion is trained, in the place of `training.seed`. With one alone nobody \
             can tell a change from another seed's luck.",
        )
        .undigested(),
        Key::new(
            "cron",
            Cron,
            Means("a night runs when `graftwork nightly` is called"),
            "\"0 2 * * *\"",
            "When a coordinator with `--nightly` and this file runs a night by itself: minute, hour, day of the month, month \
             and day of the week, in UTC. A time that passes while a night runs, or while no coordinator leads, is made up \
             for once.",
        )
        .undigested(),
        Key::new(
            "keep",
            Whole(2, MOST_NIGHTS as i64),
            Value("30"),
            "90",
            "Nights whose answers and pages are kept, the last good one in any case; scores and costs of 400 older ones stay.",
        )
        .undigested(),
        Key::new(
            "threshold",
            Number(Bounds::closed(0.0, 1.0)),
            Value("0.01"),
            "0.02",
            "Drop of a score from which on it matters, beside being told from chance.",
        )
        .undigested(),
        Key::new(
            "cost_threshold",
            Number(Bounds::closed(0.0, 10.0)),
            Value("0.1"),
            "0.25",
            "Relative growth of time or memory from which on it matters, beside being told from noise.",
        )
        .undigested(),
        Key::new(
            "false_alarm",
            Number(Bounds::above(0.0, 0.5)),
            Value("0.05"),
            "0.01",
            "Chance that a night without any change names anything, at most: a score or a cost, for worse or for better. \
             Less of it needs a larger change.",
        )
        .undigested(),
        Key::new(
            "power",
            Number(Bounds::below(0.5, 1.0)),
            Value("0.8"),
            "0.9",
            "Chance with which the drop that a verdict states as detectable would have been found.",
        )
        .undigested(),
        Key::new(
            "webhook",
            Variable,
            Means("nothing is posted"),
            "\"NIGHTLY_WEBHOOK\"",
            "Name of the environment variable that holds the address to which the end of a night is posted as JSON.",
        )
        .undigested(),
        Key::new(
            "expected",
            Named(&EXPECTED),
            Means("no change is expected"),
            "{ spam = { score = \"half of the rows from May on\" } }",
            "Changes that are expected, by task or fusion.",
        )
        .undigested(),
    ],
    exclusive: &[],
};

static EXPECTED: Section = Section {
    name: "expected",
    places: &["nightly.expected.NAME"],
    about: "Why a change of this task or fusion is expected. Each reason counts once, for the first night that shows the \
            change, which becomes the next baseline; a later change needs another reason.",
    keys: &[
        Key::new(
            "score",
            Text,
            Means("no drop is expected"),
            "\"the test rows were mended\"",
            "Why its scores may fall.",
        )
        .undigested(),
        Key::new("cost", Text, Means("no growth is expected"), "\"rows are twice as long\"", "Why its time may grow.")
            .undigested(),
    ],
    exclusive: &[],
};
