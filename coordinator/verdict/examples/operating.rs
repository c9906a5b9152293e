//! Prints how often verdicts are wrong and how often they find what is there, as the tables of `docs/nightly.md`.
//!
//! `cargo run --release -p graftwork-verdict --example operating -- [NIGHTS]`

#[path = "../tests/world/mod.rs"]
mod world;

use graftwork_verdict::{CostFinding, Finding, Measure, Random, Series, Settings, Worse, changes, judge};
use world::World;

fn settings() -> Settings {
    Settings { draws: 5_000, ..Settings::default() }
}

fn main() {
    let nights: u32 = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(1_000);
    println!("Nights without any change, {nights} of each kind; at most 0.050 of them may name anything:\n");
    println!(
        "| tasks | rows | seeds | measure | threshold | named a score | named a gain |\n|---|---|---|---|---|---|---|"
    );
    let kinds = [(1, 1_000, 3), (12, 1_000, 3), (36, 500, 3), (12, 500, 5)];
    for (kind, (tasks, rows, seeds)) in (0..).zip(kinds) {
        for threshold in [0.0, 0.01] {
            quiet(&World { threshold, ..World::new(tasks, rows, seeds) }, nights, kind);
        }
    }
    quiet(&World { threshold: 0.0, measure: Measure::F1Macro, ..World::new(4, 500, 3) }, nights.min(300), 9);
    println!("\nOne task of the night drops, over 1,000 rows; the others stay:\n");
    println!(
        "| tasks | seeds | true drop | named | stated power | another one was named too |\n|---|---|---|---|---|---|"
    );
    for (tasks, seeds) in [(1, 3), (12, 3), (36, 3), (12, 5)] {
        for drop in [0.005, 0.01, 0.02, 0.03, 0.04, 0.06] {
            regressed(tasks, seeds, drop, nights.min(400));
        }
    }
    println!("\nEight costs over a history with 5 % noise a night; one grows for the last three nights:\n");
    println!("| nights | growth | named | named where nothing grew |\n|---|---|---|---|");
    for history in [12, 24, 40] {
        for growth in [0.0, 0.1, 0.2, 0.4] {
            costs(history, growth, nights.min(400));
        }
    }
}

fn quiet(world: &World, nights: u32, seed: u64) {
    let mut random = Random::new(100 + seed);
    let (mut drops, mut gains) = (0, 0);
    for _ in 0..nights {
        let verdicts = judge(&world.night(0.0, &mut random), &settings());
        drops += u32::from(verdicts.iter().any(|verdict| verdict.finding == Finding::Regressed));
        gains += u32::from(verdicts.iter().any(|verdict| verdict.finding == Finding::Improved));
    }
    let rate = |count: u32| f64::from(count) / f64::from(nights);
    println!(
        "| {} | {} | {} | {:?} | {} | {:.3} | {:.3} |",
        world.tasks,
        world.rows,
        world.seeds,
        world.measure,
        world.threshold,
        rate(drops),
        rate(gains)
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

fn costs(history: usize, growth: f64, nights: u32) {
    let mut random = Random::new(8);
    let (mut named, mut others) = (0, 0);
    for _ in 0..nights {
        let series: Vec<Series> = (0..8).map(|at| cost(at, history, growth, &mut random)).collect();
        let found = changes(&series, &settings());
        named += u32::from(found[0].finding == CostFinding::Regressed);
        others += u32::from(found[1..].iter().any(|change| change.finding == CostFinding::Regressed));
    }
    let rate = |count: u32| f64::from(count) / f64::from(nights);
    println!("| {history} | {:.0} % | {:.2} | {:.3} |", growth * 100.0, rate(named), rate(others));
}

fn cost(at: usize, history: usize, growth: f64, random: &mut Random) -> Series {
    let value = |night: usize, random: &mut Random| {
        let factor = if at == 0 && night + 3 >= history { 1.0 + growth } else { 1.0 };
        factor * (0.05 * random.normal()).exp()
    };
    let values = (0..history).map(|night| value(night, random)).collect();
    Series { name: format!("cost {at}"), values, worse: Worse::Higher }
}
