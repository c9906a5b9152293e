//! A thousand workers, a tenth of which die each hour, and up to 100,000 assignments: what one decision touches does not
//! grow with what there is to do, and the whole grows as n log n at most.
//!
//! `GRAFTWORK_LONG_TESTS=1` adds the largest crowd; `--nocapture` shows the curve. `GRAFTWORK_SCALE_DIGEST=1` shows a
//! digest of all decisions too, by which two versions of the scheduler can be compared.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

mod crowd;
mod fixture;

use std::collections::BTreeMap;

use crowd::{Crowd, Curve};
use graftwork_scheduler::{Policy, Quota};

/// Stages of a job: 200 tasks and 40 fusions of them.
const TASKS: usize = 200;
const STAGES: u64 = 240;

const WORKERS: u64 = 1_000;

/// What one event may touch, submissions aside: every worker twice (those with room are compared, and if the speed of
/// some is known, all that could do it say what is usual), and what lies around one stage. A worker that comes or goes is
/// told to each job that has not ended, beside that.
const MOST_WORK: u64 = 2 * WORKERS + 1_000;

/// Where a gang starts, those that have room are looked at for its leader and for its other members, and again all that
/// could have it for what is usual.
const MOST_WORK_OF_GANGS: u64 = MOST_WORK + 2 * WORKERS;

/// What a crowd's stages ask for: three sizes of tasks, and fusions. Of each kind the least that found no place is known.
const DEMANDS: u64 = 4;

/// What a submission may touch: each stage of its plan so often.
const MOST_WORK_OF_SUBMISSIONS: u64 = 16 * STAGES;

fn thousand(assignments: u64, gangs: bool) -> Crowd {
    Crowd {
        workers: WORKERS,
        slots: 2,
        jobs: assignments.div_ceil(STAGES),
        tasks: TASKS,
        priorities: vec![0],
        gangs,
        deaths: 100,
        policy: Policy::default(),
        seed: 42,
        troubled: false,
        checked: false,
    }
}

fn measured(crowd: Crowd) -> Curve {
    let curve = crowd.run();
    println!(
        "| {} | {} | {} | {:.1} | {} ({}) | {} | {:.1} | {:.1} | {:.1} | {} | {:x}",
        curve.assignments,
        curve.events,
        curve.deaths,
        curve.work as f64 / curve.events as f64,
        curve.most_work,
        curve.most_by,
        curve.most_of_submissions,
        curve.time_us(0.5),
        curve.time_us(0.99),
        curve.seconds,
        curve.virtual_s,
        curve.digest,
    );
    curve
}

fn hold(curves: &[Curve], most_work: u64) {
    for curve in curves {
        assert!(curve.most_work <= most_work, "{} touched {}", curve.most_by, curve.most_work);
        assert!(curve.most_of_submissions <= MOST_WORK_OF_SUBMISSIONS, "{}", curve.most_of_submissions);
        // Under a millisecond where nothing else runs; more is left for machines on which much does.
        assert!(curve.time_us(0.99) < 5_000.0, "99 of 100 events take up to {} us", curve.time_us(0.99));
    }
    for pair in curves.windows(2) {
        let size = |curve: &Curve| curve.assignments as f64 * (curve.assignments as f64).log2();
        let (grown, allowed) = (pair[1].work as f64 / pair[0].work as f64, size(&pair[1]) / size(&pair[0]));
        assert!(grown <= allowed, "the work grew {grown:.1} times, and n log n grew {allowed:.1} times");
    }
}

#[test]
fn what_a_decision_touches_does_not_grow_with_what_there_is_to_do() {
    println!(
        "| assignments | events | deaths | work of an event | most | of a submission | p50 us | p99 us | s | virtual s |"
    );
    let mut curves = Vec::from([2_000, 20_000].map(|assignments| measured(thousand(assignments, false))));
    if std::env::var_os("GRAFTWORK_LONG_TESTS").is_some() {
        curves.push(measured(thousand(100_000, false)));
    }
    hold(&curves, MOST_WORK);
}

#[test]
fn nor_does_it_where_many_gangs_wait() {
    let curves = [2_000, 10_000].map(|assignments| measured(thousand(assignments, true)));
    assert!(curves.iter().all(|curve| curve.gangs * 8 > curve.assignments), "a quarter of all stages are gangs");
    hold(&curves, MOST_WORK_OF_GANGS);
}

#[test]
fn where_some_jobs_go_first_each_worker_is_looked_at_once_for_each_kind_of_demand() {
    let workers = 250;
    let curve = measured(Crowd { workers, priorities: vec![0, 2, 1], ..thousand(3_000, false) });
    // A worker and the leases in its two places, beside what any other event touches.
    let most_work = workers * (3 * DEMANDS + 2) + 1_000;
    assert!(curve.most_work <= most_work, "{} touched {}", curve.most_by, curve.most_work);
}

#[test]
fn what_is_kept_is_what_a_search_would_find_in_a_crowd_with_priorities_and_quotas() {
    let crowds = [(7, None, vec![0, 2, 1], false), (8, Some(5), vec![0], false), (9, Some(4), vec![1, 0], false)];
    let with_gangs = [(10, None, vec![0, 0, 1], true), (11, Some(4), vec![0], true)];
    for (seed, places, priorities, gangs) in crowds.into_iter().chain(with_gangs) {
        let quota = Quota { places, jobs: None };
        let quotas = if places.is_some() { [("*".to_owned(), quota)].into() } else { BTreeMap::new() };
        let crowd = Crowd {
            workers: 9,
            slots: 2,
            jobs: 6,
            tasks: 10,
            priorities,
            gangs,
            deaths: 8_000,
            policy: Policy { quotas, ..Policy::default() },
            seed,
            troubled: true,
            checked: true,
        };
        let curve = crowd.run();
        assert!(curve.deaths > 0 && gangs == (curve.gangs > 0));
        println!(
            "{} events, {} assignments, {} deaths, {:x}",
            curve.events, curve.assignments, curve.deaths, curve.digest
        );
    }
}
