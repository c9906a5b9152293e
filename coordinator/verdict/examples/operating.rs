//! Prints how often verdicts are wrong and how often they find what is there, as the tables of `docs/nightly.md`.
//!
//! `cargo run --release -p graftwork-verdict --example operating -- [NIGHTS]`

#[path = "../tests/world/mod.rs"]
mod world;

use graftwork_verdict::{CostFinding, Finding, Measure, Random, Settings, changes, judge};
use world::{COSTS, HISTORY, Named, World, costs, quiet};

fn settings() -> Settings {
    Settings { draws: 5_000, ..Settings::default() }
}

fn main() {
    let nights: u32 = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(1_000);
    println!(
        "Nights without any change, {nights} of each kind, each with {COSTS} costs over {HISTORY} nights; at most 0.050 of \
         them may name anything:\n"
    );
    println!("| tasks | rows | seeds | measure | thresholds | named anything | a drop | a gain | growth | relief |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let kinds = [(1, 1_000, 3), (12, 1_000, 3), (36, 500, 3), (12, 500, 5)];
    for (kind, (tasks, rows, seeds)) in (0..).zip(kinds) {
        for threshold in [0.0, 0.01] {
            alarms(&World { threshold, ..World::new(tasks, rows, seeds) }, nights, kind);
        }
    }
    alarms(&World { threshold: 0.0, measure: Measure::F1Macro, ..World::new(4, 500, 3) }, nights, 9);
    println!("\nOne task of the night drops, over 1,000 rows; the others stay:\n");
    println!(
        "| tasks | seeds | true drop | named | stated power | another one was named too |\n|---|---|---|---|---|---|"
    );
    for (tasks, seeds) in [(1, 3), (12, 3), (36, 3), (12, 5)] {
        for drop in [0.005, 0.01, 0.02, 0.03, 0.04, 0.06] {
            regressed(tasks, seeds, drop, nights.min(1_000));
        }
    }
    println!("\nEight costs over a history with 5 % noise a night; one grows for the last nights:\n");
    println!("| nights | grown for the last | growth | named | named where nothing grew |\n|---|---|---|---|---|");
    for history in [24, 40, 80] {
        for (last, growth) in [(3, 0.2), (3, 0.4), (5, 0.1), (5, 0.2), (5, 0.4)] {
            grown(history, (last, growth), nights.min(400));
        }
    }
}

fn alarms(world: &World, nights: u32, seed: u64) {
    // Costs go without their threshold where scores do.
    let threshold = if world.threshold > 0.0 { settings().cost_threshold } else { 0.0 };
    let settings = Settings { cost_threshold: threshold, ..settings() };
    let mut random = Random::new(100 + seed);
    let named: Vec<Named> = (0..nights).map(|_| quiet(world, &settings, &mut random)).collect();
    let rate = |of: fn(&Named) -> bool| named.iter().filter(|night| of(night)).count() as f64 / f64::from(nights);
    println!(
        "| {} | {} | {} | {:?} | {} and {threshold} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} |",
        world.tasks,
        world.rows,
        world.seeds,
        world.measure,
        world.threshold,
        rate(|night| night.anything()),
        rate(|night| night.drops),
        rate(|night| night.gains),
        rate(|night| night.growth),
        rate(|night| night.relief),
    );
}

fn regressed(tasks: usize, seeds: u64, drop: f64, nights: u32) {
    let world = World::new(tasks, 1_000, seeds);
    let mut random = Random::new(7);
    let (mut named, mut stated, mut others) = (0, 0.0, 0);
    for _ in 0..nights {
        let verdicts = judge(&world.night(drop, &mut random), &settings());
        named += u32::from(verdicts[0].finding == Finding::Regressed);
        stated += verdicts[0].power_at(drop);
        others += u32::from(verdicts[1..].iter().any(|verdict| verdict.finding == Finding::Regressed));
    }
    let rate = |count: f64| count / f64::from(nights);
    println!(
        "| {tasks} | {seeds} | {drop:.3} | {:.2} | {:.2} | {:.3} |",
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
