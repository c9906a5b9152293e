//! Nights that never were, compared: what is named, what is excused, what is left out.

mod asked;
mod kept;
mod stored;
mod taken_over;

use std::{collections::BTreeMap, path::Path};

use graftwork_shared::{
    assignment::Usage,
    data::Split,
    digest::Digest,
    id::Name,
    job::{Expected, Job, Nightly},
    metric::Metric,
    recipe::NumericClass,
    view::StageKind,
};
use graftwork_verdict::{Answers, CostFinding, Finding, Random};
use graftwork_web::{NightOutcome, NightlyView, Problem};

use super::{
    answers::{Asked, Book},
    compare::{self, Commands, Known},
    night::{Code, Judged, LAYOUT, Measurement, Night},
    output,
    scores::Opened,
};
use crate::fixture::{TASK, World};

const ROWS: u64 = 600;

fn job() -> Job {
    let (_, parsed) = World::new().parse(TASK);
    parsed.job.unwrap_or_else(|| panic!("{:?}", parsed.diagnostics))
}

/// A night in which each task answers this share of its rows rightly, other ones with each seed and each night.
fn night(number: u64, tasks: &[(&str, f64)]) -> (Night, Book) {
    let mut book = Book::default();
    let mut measurements = Vec::new();
    for (task, share) in tasks {
        for seed in 1..=3 {
            let name: Name = task.parse().unwrap();
            let mut luck = Random::named(100 * number + seed, task);
            let right: Vec<u32> = (0..ROWS).map(|row| u32::from(row % 2 == 0)).collect();
            let answer = |right: &u32| if luck.uniform() < *share { *right } else { 1 - right };
            let given: Vec<u32> = right.iter().map(answer).collect();
            let correct = right.iter().zip(&given).filter(|(right, given)| right == given).count();
            measurements.push(Measurement {
                task: name.clone(),
                seed,
                kind: StageKind::Adapter,
                method: "seq_bn".to_owned(),
                metric: Metric::Accuracy,
                split: Split::Test,
                data: Some(Digest::of(b"rows")),
                labels: ["no", "yes"].map(str::to_owned).to_vec(),
                scores: [(Metric::Accuracy, correct as f64 / ROWS as f64)].into(),
                recipe: Digest::of(b"recipe"),
                weights: Digest::of(format!("{task} {seed} {number}").as_bytes()),
                numeric_class: NumericClass {
                    device: "cpu".to_owned(),
                    instructions: "avx2".to_owned(),
                    libtorch: "2".to_owned(),
                    vendor: "V".to_owned(),
                },
                usage: Usage { core_seconds: 10.0, examples: 1_000, ..Usage::default() },
                attention: Vec::new(),
            });
            let (right, given) = (Answers::Classes(right), Answers::Classes(given));
            book.0.insert((name, seed), Asked { rows: (0..ROWS).collect(), right, given });
        }
    }
    let night = Night {
        layout: LAYOUT,
        number,
        began_ms: number * 86_400_000,
        ended_ms: number * 86_400_000 + 60_000,
        resumed: 0,
        shared: false,
        code: Code {
            version: "0.1.0".to_owned(),
            numerics: 2,
            name: format!("commit {number}"),
            programs: "0123456789ab".to_owned(),
        },
        job: job(),
        measurements,
        failed: Vec::new(),
        missed: false,
        usage: Usage { core_seconds: 60.0, peak_memory_bytes: 400 << 20, ..Usage::default() },
        recoveries: Vec::new(),
        answers: None,
        judged: None,
    };
    (night, book)
}

fn judged(mut night: Night, good: bool, used: &[&str]) -> Night {
    let used = used.iter().map(|mark| (*mark).to_owned()).collect();
    night.judged = Some(Judged { good, used, ..Judged::default() });
    night
}

fn commands() -> Commands {
    Commands::of_night(Path::new("job.toml"), "graftwork nightly job.toml", 2)
}

fn compared(before: &(Night, Book), after: &(Night, Book), nightly: &Nightly) -> compare::Compared {
    let nights = [judged(before.0.clone(), true, &[]), after.0.clone()];
    let (before, after) = (Opened { night: &nights[0], book: &before.1 }, Opened { night: &nights[1], book: &after.1 });
    compare::compare(after, Some(before), known(&nights), nightly, &commands())
}

fn known(nights: &[Night]) -> Known<'_> {
    Known { nights, notes: &[] }
}

fn named(view: &NightlyView) -> Vec<&str> {
    view.scores.iter().filter(|row| row.verdict.finding == Finding::Regressed).map(|row| row.task.as_str()).collect()
}

const STEADY: [(&str, f64); 4] = [("a", 0.9), ("b", 0.8), ("c", 0.95), ("d", 0.7)];

#[test]
fn a_drop_is_named_with_its_rows_and_the_command_that_repeats_it() {
    let before = night(1, &STEADY);
    let steady = compared(&before, &night(2, &STEADY), &Nightly::default());
    assert_eq!((steady.view.outcome, steady.judged.good), (NightOutcome::Good, true), "{:?}", steady.view.scores);
    // Quiet nights say too what they would have found, and how often they are wrong.
    let found: Vec<f64> = steady.view.scores.iter().filter_map(|row| row.verdict.detectable).collect();
    let (least, most) = (found.iter().copied().fold(1.0, f64::min), found.iter().copied().fold(0.0, f64::max));
    let error = format!(
        "a drop of {least:.4} to {most:.4}, depending on the score, would have been found with 80 %, at most 5 % of \
         nights without a change name anything"
    );
    assert!(found.len() == 4 && least > 0.0 && least < most, "{found:?}");
    assert!(output::terminal(&steady.view, false).contains(&format!("\n{error}\n")), "{error}");
    assert!(output::markdown(&steady.view).contains(&format!("Of each score: {error}.\n")), "{error}");
    let stricter = Nightly { false_alarm: 0.01, power: 0.9, ..Nightly::default() };
    let stricter = output::terminal(&compared(&before, &night(2, &STEADY), &stricter).view, false);
    assert!(stricter.contains("found with 90 %, at most 1 % of nights"), "{stricter}");
    let worse = compared(&before, &night(2, &[("a", 0.9), ("b", 0.6), ("c", 0.95), ("d", 0.7)]), &Nightly::default());
    assert_eq!((worse.view.outcome, worse.judged.good), (NightOutcome::Regressed, false));
    assert_eq!(named(&worse.view), ["b"]);
    let row = &worse.view.scores[0];
    assert!(row.repeat.ends_with("--repeat 2:b") && row.sentence().contains("would have been found"), "{row:?}");
    assert!(row.flipped.len() == graftwork_web::MOST_FLIPS && row.flipped[0].worse >= row.flipped[49].worse);
    assert!(
        row.flipped.iter().all(|flip| flip.before.len() == 3 && flip.after.iter().any(|answer| *answer != flip.label))
    );
    let mut told = worse.view.clone();
    told.commits = (1..=25).map(|number| format!("commit {number} by `@b`")).collect();
    told.scores[0].bisect = Some("graftwork nightly job.toml --bisect 2:b".to_owned());
    let text = output::terminal(&told, false);
    let listed = "\ncommits between the two nights:\n  commit 1 by `@b`\n  commit 2 by `@b`\n";
    assert!(text.contains(listed) && text.contains("  commit 20 by `@b`\n  and 5 more\n"), "{text}");
    let text = output::markdown(&told);
    let listed = "\nCommits between the two nights:\n\n- `commit 1 by '@b'`\n- `commit 2 by '@b'`\n";
    assert!(text.contains(listed) && text.contains("- `commit 20 by '@b'`\n- and 5 more\n"), "{text}");
    assert!(text.contains("Find its commit with `graftwork nightly job.toml --bisect 2:b`."), "{text}");
    let text = output::junit(&told);
    assert!(text.contains("find its commit: graftwork nightly") && text.contains("\ncommit: commit 2 by"), "{text}");
    for text in [output::terminal(&worse.view, false), output::markdown(&worse.view), output::headline(&worse.view)] {
        assert!(text.contains("REGRESSED: b"), "{text}");
    }
    assert!(output::junit(&worse.view).contains("failures=\"1\""));
}

#[test]
fn a_reason_excuses_one_night_and_no_more() {
    let before = night(1, &STEADY);
    let worse = night(2, &[("a", 0.9), ("b", 0.6), ("c", 0.95), ("d", 0.7)]);
    let mut nightly = Nightly::default();
    let reason = Expected { score: Some("rows were mended".to_owned()), cost: None };
    nightly.expected.insert("b".parse().unwrap(), reason);
    let excused = compared(&before, &worse, &nightly);
    assert_eq!((excused.view.outcome, excused.judged.good), (NightOutcome::Expected, true));
    assert_eq!(excused.view.scores[0].expected.as_deref(), Some("rows were mended"));
    let mark = "score of b: rows were mended";
    assert!(excused.judged.used.contains(mark));
    // A night later the reason is used up, whatever is compared.
    let nights = [judged(before.0, true, &[mark]), worse.0];
    let (first, second) = (Opened { night: &nights[0], book: &before.1 }, Opened { night: &nights[1], book: &worse.1 });
    let later = compare::compare(second, Some(first), known(&nights), &nightly, &commands());
    assert_eq!(later.view.outcome, NightOutcome::Regressed);
    assert!(later.judged.used.contains(mark), "it stays used up");
}

#[test]
fn a_night_that_fails_for_something_else_uses_no_reason_up() {
    let before = night(1, &STEADY);
    let worse = night(2, &[("a", 0.9), ("b", 0.6), ("c", 0.7), ("d", 0.7)]);
    let mut nightly = Nightly::default();
    let reason = Expected { score: Some("rows were mended".to_owned()), cost: None };
    nightly.expected.insert("b".parse().unwrap(), reason);
    let failed = compared(&before, &worse, &nightly);
    assert_eq!((failed.view.outcome, failed.judged.good), (NightOutcome::Regressed, false));
    assert!(failed.view.scores.iter().any(|row| row.task == "b" && row.expected.is_some()), "b alone was expected");
    assert!(failed.judged.used.is_empty(), "its baseline stays, and so does the reason: {:?}", failed.judged.used);
}

#[test]
fn what_cannot_be_compared_is_said_and_fails_nothing_but_what_failed() {
    let before = night(1, &[("a", 0.9), ("b", 0.8), ("gone", 0.8)]);
    let mut after = night(2, &[("a", 0.9), ("b", 0.8), ("new", 0.8)]);
    for measured in after.0.measurements.iter_mut().filter(|measured| measured.task.as_str() == "b") {
        measured.data = Some(Digest::of(b"other rows"));
    }
    let view = compared(&before, &after, &Nightly::default()).view;
    let told: Vec<String> =
        view.problems.iter().map(|problem| format!("{} {}", problem.name, problem.message)).collect();
    assert_eq!(
        told,
        [
            "b cannot be compared with night 1: its held-out rows are other ones",
            "new is new: night 1 did not measure it",
            "gone is gone: night 1 measured it, and the job no longer has it",
        ]
    );
    assert_eq!((view.outcome, view.scores.len()), (NightOutcome::Good, 1));
    let message = "with seed 2 has no score: its loss is not a number".to_owned();
    after.0.failed.push(Problem { name: "gone".to_owned(), message, fails: true });
    let view = compared(&before, &after, &Nightly::default()).view;
    assert_eq!(view.outcome, NightOutcome::Regressed);
    assert!(output::headline(&view).ends_with("REGRESSED: gone"), "{}", output::headline(&view));
    assert!(!view.problems.iter().any(|problem| problem.message.contains("is gone")), "it is told once");
}

#[test]
fn the_baseline_is_the_last_good_night_before() {
    let stored = |number, good| judged(night(number, &[("a", 0.9)]).0, good, &[]);
    let nights = [stored(1, true), stored(2, true), stored(3, false), night(4, &[("a", 0.9)]).0];
    let baselines = |number| compare::baselines(&nights, number).map(|night| night.number).collect::<Vec<_>>();
    assert_eq!((baselines(4), baselines(2), baselines(1)), (vec![2, 1], vec![1], vec![]));
    let set_aside = compare::without_verdict(&nights, 4);
    assert_eq!((set_aside.good, set_aside.baseline), (false, None));
    let alone = compare::compare(
        Opened { night: &nights[0], book: &night(1, &[("a", 0.9)]).1 },
        None,
        known(&nights[..1]),
        &Nightly::default(),
        &commands(),
    );
    assert_eq!((alone.view.outcome, alone.judged.good), (NightOutcome::First, true));
}

/// Twenty nights, in the last five of which something takes so many times as much.
fn nights_that_grow(grow: fn(&mut Night, f64)) -> Vec<Night> {
    let night = |number| {
        let mut night = night(number, &[("a", 0.9), ("b", 0.9)]).0;
        let noise = 1.0 + 0.01 * (number % 3) as f64;
        night.measurements.iter_mut().for_each(|measured| measured.usage.core_seconds *= noise);
        night.usage.peak_memory_bytes += (number % 3) << 22;
        grow(&mut night, if number > 15 { 1.35 } else { 1.0 });
        judged(night, true, &[])
    };
    (1..=20).map(night).collect()
}

/// Those of `a` are slower.
fn slower_a(night: &mut Night, factor: f64) {
    let of_a = night.measurements.iter_mut().filter(|measured| measured.task.as_str() == "a");
    of_a.for_each(|measured| measured.usage.core_seconds *= factor);
}

fn grown(nights: &[Night], nightly: &Nightly) -> compare::Compared {
    let book = night(20, &[("a", 0.9), ("b", 0.9)]).1;
    let (first, last) = (Opened { night: &nights[18], book: &book }, Opened { night: &nights[19], book: &book });
    compare::compare(last, Some(first), known(nights), nightly, &commands())
}

fn slower(reason: bool) -> compare::Compared {
    let mut nights = nights_that_grow(slower_a);
    // A night that was interrupted, and was far slower for it, is no part of the history.
    nights[9].resumed = 1;
    nights[9].measurements[0].usage.core_seconds *= 30.0;
    let mut nightly = Nightly::default();
    if reason {
        let cost = Some("rows are longer".to_owned());
        nightly.expected.insert("a".parse().unwrap(), Expected { score: None, cost });
    }
    grown(&nights, &nightly)
}

#[test]
fn lasting_growth_of_time_is_named_since_its_night_and_may_be_expected() {
    let named = slower(false);
    let cost = &named.view.costs[0];
    assert_eq!((cost.task.as_deref(), cost.change.finding, cost.since), (Some("a"), CostFinding::Regressed, 16));
    assert_eq!(cost.values.len(), 19, "the interrupted night is left out");
    assert_eq!((cost.repeat.as_str(), cost.last_before()), ("graftwork nightly job.toml --repeat 2:a", Some(15)));
    let written = [output::terminal(&named.view, false), output::markdown(&named.view), output::junit(&named.view)];
    for text in written {
        assert!(text.contains("easure it once more") && text.contains(&cost.repeat), "{text}");
    }
    assert_eq!(named.view.outcome, NightOutcome::Regressed);
    assert!(output::headline(&named.view).contains("a: core-seconds for 1,000 examples"));
    assert!(named.view.costs[1..].iter().all(|cost| !cost.fails()), "{:?}", named.view.costs);
    for cost in &named.view.costs {
        let sentence = cost.sentence();
        assert!(sentence.contains("found with 80 %, at most 5 % of nights without a change name"), "{sentence}");
    }
    let excused = slower(true);
    assert_eq!(excused.view.outcome, NightOutcome::Expected);
    assert_eq!(excused.judged.cost_since.get("a: core-seconds for 1,000 examples"), Some(&16));
}

#[test]
fn lasting_growth_of_memory_is_named_since_its_night() {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size in memory")]
    let grow = |night: &mut Night, factor: f64| {
        night.usage.peak_memory_bytes = (night.usage.peak_memory_bytes as f64 * factor) as u64;
    };
    let named = grown(&nights_that_grow(grow), &Nightly::default()).view;
    let cost = &named.costs[0];
    assert_eq!((cost.change.name.as_str(), cost.since), ("the night: peak memory, MiB", 16));
    assert!(cost.task.is_none() && cost.repeat == named.again, "the whole night measures it: {cost:?}");
    assert_eq!((named.outcome, named.costs.iter().filter(|cost| cost.fails()).count()), (NightOutcome::Regressed, 1));
    assert!(
        output::headline(&named).ends_with("REGRESSED: the night: peak memory, MiB"),
        "{}",
        output::headline(&named)
    );
}

/// Whatever else their workers did makes such nights longer and larger: no verdict is built on it, not even beside a night
/// with workers of its own.
#[test]
fn nights_on_shared_workers_say_nothing_of_wall_time_and_memory() {
    fn grow(night: &mut Night, factor: f64) {
        night.shared = true;
        if factor > 1.0 {
            night.ended_ms += 600_000;
            night.usage.peak_memory_bytes *= 3;
        }
    }
    let numbers = |view: &NightlyView, name: &str| {
        let cost = view.costs.iter().find(|cost| cost.change.name == name);
        cost.map(|cost| cost.values.len())
    };
    let by_itself = grown(&nights_that_grow(grow), &Nightly::default()).view;
    assert_eq!(by_itself.outcome, NightOutcome::Good, "{:?}", by_itself.costs);
    let (wall, memory) = ("the night: wall seconds", "the night: peak memory, MiB");
    assert_eq!([wall, memory].map(|name| numbers(&by_itself, name)), [None, None]);
    assert_eq!(numbers(&by_itself, "the night: core-seconds"), Some(20), "these are the night's own");
    let alone = |night: &mut Night, factor: f64| {
        grow(night, factor);
        night.shared = night.number < 18;
    };
    let last = grown(&nights_that_grow(alone), &Nightly::default()).view;
    assert_eq!([wall, memory].map(|name| numbers(&last, name)), [Some(3), Some(3)]);
    assert_eq!(last.outcome, NightOutcome::Good, "{:?}", last.costs);
}

#[test]
fn a_slower_accelerator_is_named_by_its_own_seconds() {
    let on_gpu = |night: &mut Night, factor: f64| {
        for measured in &mut night.measurements {
            let factor = if measured.task.as_str() == "b" { factor } else { 1.0 };
            measured.usage.gpu_seconds = 4.0 * measured.usage.core_seconds * factor;
        }
    };
    let named = grown(&nights_that_grow(on_gpu), &Nightly::default()).view;
    let failing: Vec<&str> =
        named.costs.iter().filter(|cost| cost.fails()).map(|cost| cost.change.name.as_str()).collect();
    assert_eq!(failing, ["b: GPU-seconds for 1,000 examples"]);
    // Without one there is nothing to name.
    let without = grown(&nights_that_grow(slower_a), &Nightly::default()).view;
    assert!(!without.costs.iter().any(|cost| cost.change.name.contains("GPU")), "{:?}", without.costs);
}
