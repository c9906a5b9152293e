//! Prints how often verdicts are wrong and how often they find what is there, as the tables of `docs/nightly.md`.
//!
//! `cargo run --release -p graftwork-verdict --example operating -- [NIGHTS]`

#[path = "../tests/world/mod.rs"]
mod world;

use std::collections::BTreeSet;

use graftwork_verdict::{CostFinding, Finding, Random, Settings, changes, judge};
use world::{CLASSES, COSTS, F1_MACRO, HISTORY, NUMBERS, Named, World, costs, quiet};

fn settings() -> Settings {
    Settings { draws: 5_000, ..Settings::default() }
}

fn main() {
    let nights: u32 = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(1_000);
    println!(
        "Nights without any change, each with {COSTS} costs over {HISTORY} nights; at most 0.050 of \
         them may name anything:\n"
    );
    println!(
        "| nights | tasks | rows | seeds | scores | earlier nights | thresholds | named anything | a drop | a gain | growth | relief |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    let kinds = [(1, 1_000, 3), (12, 1_000, 3), (36, 500, 3), (12, 500, 5)];
    for (kind, (tasks, rows, seeds)) in (0..).zip(kinds) {
        for threshold in [0.0, 0.01] {
            alarms(&World { threshold, ..World::new(tasks, rows, seeds) }, nights, kind);
        }
    }
    alarms(&World { threshold: 0.0, scores: &[F1_MACRO], ..World::new(4, 500, 3) }, nights, 9);
    for earlier in [0, 5] {
        alarms(&World { threshold: 0.0, scores: &[CLASSES], earlier, ..World::new(6, 500, 3) }, nights, 10);
    }
    // Ranks are slow to draw again.
    for earlier in [0, 5] {
        alarms(&World { threshold: 0.0, scores: &[NUMBERS], earlier, ..World::new(6, 500, 3) }, nights.min(300), 11);
    }
    for earlier in [0, 5] {
        alarms(&World { threshold: 0.0, ..World::benchmark(500, earlier) }, nights.min(300), 12);
    }
    println!("\nOne task of the night drops, over 1,000 rows; the others stay:\n");
    head_of_drops();
    for (tasks, seeds) in [(1, 3), (12, 3), (36, 3), (12, 5)] {
        for drop in [0.005, 0.01, 0.02, 0.03, 0.04, 0.06] {
            regressed(&World::new(tasks, 1_000, seeds), drop, nights.min(1_000));
        }
    }
    // Two points, and what finds them.
    let without_history = [(1, 5, 0), (1, 7, 0), (12, 7, 0), (12, 9, 0), (36, 11, 0)];
    for (tasks, seeds, earlier) in
        without_history.into_iter().chain([(1, 3, 20), (12, 3, 20), (12, 5, 20), (12, 7, 20)])
    {
        regressed(&World { earlier, ..World::new(tasks, 1_000, seeds) }, 0.02, nights.min(1_000));
    }
    // What is drawn again, which is slow.
    for scores in [&[F1_MACRO], &[NUMBERS]] {
        for drop in [0.02, 0.03, 0.05] {
            regressed(&World { scores, ..World::new(3, 1_000, 3) }, drop, nights.min(200));
        }
    }
    println!("\nEight costs over a history with 5 % noise a night; one grows for the last nights:\n");
    println!("| nights | grown for the last | growth | named | named where nothing grew |\n|---|---|---|---|---|");
    for history in [24, 40, 80] {
        for (last, growth) in [(3, 0.2), (3, 0.4), (5, 0.1), (5, 0.2), (5, 0.4)] {
            grown(history, (last, growth), nights.min(400));
        }
    }
    // Slowest of all, so behind all that whoever cannot wait wants to see.
    println!("\nNights like those of the benchmark, one task of which drops:\n");
    head_of_drops();
    for drop in [0.02, 0.04] {
        regressed(&World::benchmark(1_000, 5), drop, nights.min(200));
    }
}

/// The tasks of a world as a table names them.
fn asked(world: &World) -> String {
    match world.fusions.len() {
        0 => world.tasks.to_string(),
        fusions => format!("{} + {fusions} fusions", world.tasks),
    }
}

/// The scores of its tasks.
fn scored(world: &World) -> String {
    let scores = world.scores.iter().flat_map(|scores| scores.iter());
    let names: BTreeSet<String> = scores.map(|measure| format!("{measure:?}")).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn alarms(world: &World, nights: u32, seed: u64) {
    // Costs go without their threshold where scores do.
    let threshold = if world.threshold > 0.0 { settings().cost_threshold } else { 0.0 };
    let settings = Settings { cost_threshold: threshold, ..settings() };
    let mut random = Random::new(100 + seed);
    let named: Vec<Named> = (0..nights).map(|_| quiet(world, &settings, &mut random)).collect();
    let rate = |of: fn(&Named) -> bool| named.iter().filter(|night| of(night)).count() as f64 / f64::from(nights);
    println!(
        "| {nights} | {} | {} | {} | {} | {} | {} and {threshold} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} |",
        asked(world),
        world.rows,
        world.seeds,
        scored(world),
        world.earlier,
        world.threshold,
        rate(|night| night.anything()),
        rate(|night| night.drops),
        rate(|night| night.gains),
        rate(|night| night.growth),
        rate(|night| night.relief),
    );
}

fn head_of_drops() {
    println!(
        "| nights | tasks | seeds | score | earlier nights | true drop | named | stated power | another one was named too |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
}

fn regressed(world: &World, drop: f64, nights: u32) {
    let own = world.scores[0].len();
    let mut random = Random::new(7);
    let (mut named, mut stated, mut others) = (0, 0.0, 0);
    for _ in 0..nights {
        let verdicts = judge(&world.night(drop, &mut random), &settings());
        named += u32::from(verdicts[0].finding == Finding::Regressed);
        stated += verdicts[0].power_at(drop);
        others += u32::from(verdicts[own..].iter().any(|verdict| verdict.finding == Finding::Regressed));
    }
    let rate = |count: f64| count / f64::from(nights);
    println!(
        "| {nights} | {} | {} | {:?} | {} | {drop:.3} | {:.2} | {:.2} | {:.3} |",
        asked(world),
        world.seeds,
        world.scores[0][0],
        world.earlier,
        rate(f64::from(named)),
        rate(stated),
        rate(f64::from(others))
    );
}

fn grown(history: usize, (last, growth): (usize, f64), nights: u32) {
    let mut random = Random::new(8);
    let (mut named, mut others) = (0, 0);
    for _ in 0..nights {
        let found = changes(&costs(8, history, (1.0 + growth, last), &mut random), &settings());
        named += u32::from(found[0].finding == CostFinding::Regressed);
        others += u32::from(found[1..].iter().any(|change| change.finding == CostFinding::Regressed));
    }
    let rate = |count: u32| f64::from(count) / f64::from(nights);
    println!("| {history} | {last} | {:.0} % | {:.2} | {:.3} |", growth * 100.0, rate(named), rate(others));
}
