//! The keys of a sweep: lists of values, and which trials are stopped early.

use super::{
    Bounds, Key,
    Missing::{Means, Required, Value},
    Section,
    Shape::{Choice, Flag, List, Number, Table, Whole},
};
use crate::{adapter::PRESETS, sweep::MOST_TRIALS};

/// Values of one key at most.
const MOST: usize = MOST_TRIALS as usize;

/// Without a list a key has the task's one value.
const ONE: super::Missing = Means("the task's one value");

pub(crate) static SWEEP: Section = Section {
    name: "sweep",
    places: &["tasks.NAME.sweep"],
    about: "Trains the task with every combination of these lists, or a sample of them, and keeps the one with the best \
            `metric` on validation rows: that one is scored on test rows, published and read by fusions. An option of one \
            kind of method multiplies the trials of that kind alone. Trials are numbered in the order of this table, the \
            last key varying fastest, and their stages are called `NAME-trial-1` and so on; of equal scores the lower \
            number counts. A trial whose training fails counts as the worst.",
    keys: &[
        Key::new("method", List(&Choice(&PRESETS), 1, MOST), ONE, "[\"seq_bn\", \"par_bn\"]", "Adapter methods."),
        Key::new(
            "reduction_factor",
            List(&Number(Bounds::above(0.0, 1e6)), 1, MOST),
            ONE,
            "[8, 16]",
            "Bottleneck: reduction factors.",
        ),
        Key::new("r", List(&Whole(1, 65_536), 1, MOST), ONE, "[4, 8]", "LoRA: ranks."),
        Key::new("alpha", List(&Number(Bounds::above(0.0, 1e6)), 1, MOST), ONE, "[8, 16]", "LoRA: values of alpha."),
        Key::new("dropout", List(&Number(Bounds::below(0.0, 1.0)), 1, MOST), ONE, "[0.0, 0.1]", "Adapter dropout."),
        Key::new(
            "learning_rate",
            List(&Number(Bounds::above(0.0, 1.0)), 1, MOST),
            ONE,
            "[1e-4, 3e-4, 1e-3]",
            "Peak learning rates.",
        ),
        Key::new(
            "weight_decay",
            List(&Number(Bounds::closed(0.0, 1.0)), 1, MOST),
            ONE,
            "[0.0, 0.01]",
            "Values of AdamW's decay.",
        ),
        Key::new("seed", List(&Whole(0, i64::MAX), 1, MOST), ONE, "[1, 2, 3]", "Seeds of training."),
        Key::new(
            "sample",
            Table(&SAMPLE),
            Means("every combination"),
            "{ trials = 8 }",
            "Only so many combinations, drawn without repetition.",
        ),
        Key::new(
            "halving",
            Table(&HALVING),
            Means("every trial trains to its end"),
            "{ factor = 3, first = 0.25 }",
            "Stops the worse trials early.",
        ),
    ],
    exclusive: &[],
};

static SAMPLE: Section = Section {
    name: "sample",
    places: &["tasks.NAME.sweep.sample"],
    about: "A seeded draw of combinations.",
    keys: &[
        Key::new("trials", Whole(1, MOST_TRIALS as i64), Required, "2", "How many combinations are tried."),
        Key::new("seed", Whole(0, i64::MAX), Value("1"), "7", "Seed of the draw."),
    ],
    exclusive: &[],
};

static HALVING: Section = Section {
    name: "halving",
    places: &["tasks.NAME.sweep.halving"],
    about: "Successive halving: all trials train to the first rung; when each of them has its score there, the best go on \
            to the next one and the others stop. Whole rungs are compared, so the outcome depends neither on timing nor on \
            workers nor on faults. The learning rate's schedule is that of the whole training, and the scoring at rungs \
            changes no byte of a trial: the best one has the bytes of a task that was never compared.",
    keys: &[
        Key::new(
            "factor",
            Whole(2, 64),
            Value("3"),
            "2",
            "One of so many trials goes on, at least one, and the next rung is so many times as far.",
        ),
        Key::new(
            "first",
            Number(Bounds { least: 0.0, most: 1.0, with_least: false, with_most: false }),
            Value("0.25"),
            "0.5",
            "The first rung, as a share of a trial's updates, rounded up.",
        ),
        Key::new(
            "asynchronous",
            Flag,
            Value("false"),
            "true",
            "Lets a trial go on as soon as it is among the best of those that came so far (ASHA): workers never wait, but \
             which trials go on, and so which is published, depends on timing. Marked in report, card and record.",
        ),
    ],
    exclusive: &[],
};
