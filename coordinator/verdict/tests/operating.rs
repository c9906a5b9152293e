//! How often verdicts are wrong, over thousands of nights: never more often than they say.

mod world;

use graftwork_verdict::{CostFinding, Finding, Measure, Random, Series, Settings, Worse, changes, judge};
use world::World;

/// Nights of each kind.
const NIGHTS: u32 = 1_000;

fn settings() -> Settings {
    Settings { draws: 2_000, ..Settings::default() }
}

/// Two standard errors above a rate.
fn at_most(rate: f64, nights: u32) -> f64 {
    rate + 2.0 * (rate * (1.0 - rate) / f64::from(nights)).sqrt()
}

fn alarms(world: &World, nights: u32, seed: u64) -> f64 {
    let mut random = Random::new(seed);
    let named = (0..nights).filter(|_| {
        let verdicts = judge(&world.night(0.0, &mut random), &settings());
        verdicts.iter().any(|verdict| verdict.finding == Finding::Regressed)
    });
    named.count() as f64 / f64::from(nights)
}

#[test]
fn nights_without_a_change_are_named_at_most_as_often_as_stated() {
    // Without a practical threshold, so that the tests alone are held to what they promise.
    let twelve = World { threshold: 0.0, ..World::new(12, 400, 3) };
    let few = World { threshold: 0.0, ..World::new(2, 300, 3) };
    // Seeds whose scores hardly spread: only the rows' luck is left.
    let tame = World { threshold: 0.0, seed_shift: 0.0, ..World::new(6, 400, 5) };
    // So many rows that the seeds decide, which spread further in some tasks than in others.
    let many = World { threshold: 0.0, ..World::new(12, 1_000, 3) };
    for (world, nights, seed) in [(twelve, NIGHTS, 1), (few, NIGHTS, 2), (tame, NIGHTS, 3), (many, 3 * NIGHTS, 77)] {
        let rate = alarms(&world, nights, seed);
        println!("{world:?}: {rate}");
        assert!(rate <= at_most(0.05, nights), "{world:?}: {rate}");
    }
}

#[test]
fn bootstrapped_measures_keep_to_it_too() {
    let world = World { threshold: 0.0, measure: Measure::F1Macro, ..World::new(3, 300, 3) };
    let rate = alarms(&world, 300, 4);
    assert!(rate <= at_most(0.05, 300), "{rate}");
}

/// Two points on 1,000 rows, alone among others that did not change.
#[test]
fn a_drop_of_two_points_on_a_thousand_rows_is_found_as_often_as_stated() {
    for (tasks, seeds) in [(1, 3), (12, 3), (12, 5)] {
        let world = World { threshold: 0.005, ..World::new(tasks, 1_000, seeds) };
        let mut random = Random::new(5 + tasks as u64);
        let (mut found, mut stated) = (0.0, 0.0);
        let nights = 300;
        for _ in 0..nights {
            let verdicts = judge(&world.night(0.02, &mut random), &settings());
            found += f64::from(u8::from(verdicts[0].finding == Finding::Regressed));
            stated += verdicts[0].power_at(0.02);
        }
        let (found, stated) = (found / f64::from(nights), stated / f64::from(nights));
        println!("{tasks} tasks, {seeds} seeds: stated {stated:.3}, found {found:.3}");
        assert!(found >= stated - 0.05, "{tasks} tasks, {seeds} seeds: stated {stated}, found {found}");
        assert!(found <= stated + 0.3, "{tasks} tasks, {seeds} seeds: stated {stated}, found {found}");
    }
}

#[test]
fn the_drop_that_is_stated_as_detectable_is_detected() {
    let world = World { threshold: 0.01, ..World::new(12, 1_000, 3) };
    let mut random = Random::new(9);
    let quiet =
        (0..20).map(|_| judge(&world.night(0.0, &mut random), &settings())[0].detectable.expect("seeds differ"));
    let size = quiet.sum::<f64>() / 20.0;
    let nights = 200;
    let named =
        (0..nights).filter(|_| judge(&world.night(size, &mut random), &settings())[0].finding == Finding::Regressed);
    let rate = named.count() as f64 / f64::from(nights);
    println!("a drop of {size:.4} is named in {rate:.3} of the nights");
    assert!(rate >= 0.74, "{size}: {rate}");
}

fn history(nights: usize, change: f64, last: usize, random: &mut Random) -> Vec<Series> {
    let night = |night: usize, series: usize, random: &mut Random| {
        let factor = if series == 0 && night + last >= nights { 1.0 + change } else { 1.0 };
        factor * (0.05 * random.normal()).exp()
    };
    let series = |series: usize, random: &mut Random| Series {
        name: format!("cost {series}"),
        values: (0..nights).map(|at| night(at, series, random)).collect(),
        worse: Worse::Higher,
    };
    (0..8).map(|at| series(at, random)).collect()
}

#[test]
fn steady_costs_are_named_at_most_as_often_as_stated() {
    let settings = Settings { cost_threshold: 0.0, ..settings() };
    let mut random = Random::new(6);
    let named = (0..NIGHTS).filter(|_| {
        changes(&history(20, 0.0, 3, &mut random), &settings)
            .iter()
            .any(|change| change.finding == CostFinding::Regressed)
    });
    let rate = named.count() as f64 / f64::from(NIGHTS);
    println!("false alarms over costs: {rate:.3}");
    assert!(rate <= at_most(0.05, NIGHTS), "{rate}");
}

#[test]
fn the_cost_that_is_stated_as_detectable_is_detected() {
    let mut random = Random::new(7);
    let quiet = changes(&history(24, 0.0, 3, &mut random), &settings());
    let (size, last) = quiet[0].detectable.expect("24 nights are enough");
    let nights = 200;
    let named = (0..nights)
        .filter(|_| changes(&history(24, size, last, &mut random), &settings())[0].finding == CostFinding::Regressed);
    let rate = named.count() as f64 / f64::from(nights);
    println!("{size:.3} more over {last} nights is named in {rate:.3}");
    assert!(rate >= 0.7, "{size} over {last} nights: {rate}");
}
