//! A thousand workers, a tenth of which die each hour, and up to 100,000 assignments: what one decision touches does not
//! grow with what there is to do, and the whole grows as n log n at most.
//!
//! `GRAFTWORK_LONG_TESTS=1` adds the largest crowd; `--nocapture` shows the curve.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

mod crowd;
mod fixture;

use std::collections::BTreeMap;

use crowd::{Crowd, Curve};
use graftwork_scheduler::{Policy, Quota};

/// 200 tasks and 40 fusions a job.
const TASKS: usize = 200;
const STAGES: u64 = 240;
const WORKERS: u64 = 1_000;

fn thousand(assignments: u64) -> Curve {
    let crowd = Crowd {
        workers: WORKERS,
        slots: 2,
        jobs: assignments.div_ceil(STAGES),
        tasks: TASKS,
        priorities: vec![0],
        deaths: 100,
        policy: Policy::default(),
        seed: 42,
        troubled: false,
        checked: false,
    };
    let curve = crowd.run();
    println!(
        "| {assignments} | {} | {} | {} | {:.1} | {} | {} ({}) | {:.1} | {:.1} | {:.1} | {:.1} | {} | {:x}",
        curve.assignments,
        curve.events,
        curve.deaths,
        curve.work as f64 / curve.events as f64,
        curve.most_of_submissions,
        curve.most_work,
        curve.most_by,
        curve.time_us(0.5),
        curve.time_us(0.99),
        curve.time_us(1.0),
        curve.seconds,
        curve.virtual_s,
        curve.digest,
    );
    curve
}

#[test]
fn what_a_decision_touches_does_not_grow_with_what_there_is_to_do() {
    thousand(2_000);
    thousand(20_000);
    if std::env::var_os("GRAFTWORK_LONG_TESTS").is_some() {
        thousand(100_000);
    }
}

#[test]
fn what_is_kept_is_what_a_search_would_find_in_a_crowd_with_priorities_and_quotas() {
    for (places, priorities) in [(None, vec![0, 2, 1]), (Some(5), vec![0]), (Some(4), vec![1, 0])] {
        let quota = Quota { places, jobs: None };
        let quotas = if places.is_some() { [("*".to_owned(), quota)].into() } else { BTreeMap::new() };
        let crowd = Crowd {
            workers: 9,
            slots: 2,
            jobs: 6,
            tasks: 10,
            priorities,
            deaths: 8_000,
            policy: Policy { quotas, ..Policy::default() },
            seed: 7,
            troubled: true,
            checked: true,
        };
        let curve = crowd.run();
        assert!(curve.deaths > 0);
        println!(
            "{} events, {} assignments, {} deaths, {:x}",
            curve.events, curve.assignments, curve.deaths, curve.digest
        );
    }
}
