//! The real scheduler and the real driver's core in a world with a time of its own: scripted workers, connections,
//! journal, disk, hub and clocks, in which everything breaks that can.
//!
//! A seed decides everything. After each event the scheduler's turn is held against the house's invariants, and whatever
//! leaves the coordinator against the facts on its disk. Then the world heals, and every job ends. A seed that fails says
//! how to run it again; `GRAFTWORK_SIMULATION_SEEDS` asks for more seeds, `GRAFTWORK_SIMULATION_SEED` for one, and
//! `GRAFTWORK_SIMULATION_TRACE` for a line on each thing that happens in it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

mod blobs;
mod chaos;
mod coordinator;
mod dice;
mod faults;
#[path = "../../../scheduler/tests/fixture/mod.rs"]
mod fixture;
mod lead;
mod ledger;
mod life;
mod network;
mod plans;
#[path = "../../../../worker/src/session/round_trip.rs"]
mod round_trip;
mod seen;
mod worker;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dice::Dice;
use faults::Faults;
use seen::{Counts, Seen, WANTED};
use world::World;

/// Seeds of `make test`.
const SEEDS: u64 = 2_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

/// How long a processor has worked for this thread. What runs beside it does not count, unlike on a clock.
fn worked() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(spent).unwrap()
}

/// What came of worlds.
struct Ran {
    /// The numbers of those that failed.
    failed: Vec<u64>,
    /// Processor time of a thread on average: how long it takes where nothing else runs.
    worked: Duration,
}

/// Runs worlds on all cores.
fn run_all(count: u64, live: impl Fn(u64) + Sync) -> Ran {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let work = || {
        let mut failed = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count {
                return (failed, worked());
            }
            if catch_unwind(AssertUnwindSafe(|| live(seed))).is_err() {
                eprintln!(
                    "again: GRAFTWORK_SIMULATION_SEED={seed} cargo test --release -p graftwork-driver --test simulation seeds"
                );
                failed.push(seed);
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ran: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        let all: Duration = ran.iter().map(|(_, worked)| *worked).sum();
        Ran {
            failed: ran.into_iter().flat_map(|(failed, _)| failed).collect(),
            worked: all / u32::try_from(threads).unwrap(),
        }
    })
}

#[test]
fn worlds_of_all_seeds_keep_every_invariant_and_end_every_job() {
    if let Some(seed) = number("GRAFTWORK_SIMULATION_SEED") {
        return World::new(seed, None).live();
    }
    let (count, begun) = (number("GRAFTWORK_SIMULATION_SEEDS").unwrap_or(SEEDS), Instant::now());
    let seen = Mutex::new(Counts::new());
    let Ran { failed, worked } = run_all(count, |seed| {
        let mut world = World::new(seed, None);
        world.live();
        let mut all = seen.lock().unwrap();
        world.counts().into_iter().for_each(|(seen, times)| *all.entry(seen).or_default() += times);
    });
    let seen = seen.into_inner().unwrap();
    println!("{count} seeds in {:?}, of which a thread worked for {worked:?}: {seen:?}", begun.elapsed());
    assert!(failed.is_empty(), "{} of {count} seeds failed: {failed:?}", failed.len());
    let times = |what: &Seen| seen.get(what).copied().unwrap_or(0);
    let too_rare: Vec<_> = WANTED.iter().filter(|(what, least)| times(what) < least * count / 1_000).collect();
    assert!(count < SEEDS || too_rare.is_empty(), "these did not happen as often in 1,000 worlds: {too_rare:?}");
    let short = count > SEEDS || worked < Duration::from_mins(2);
    assert!(short, "the seeds of make test may take two minutes of each thread: {worked:?}");
}

/// Has the coordinator die at each write of a world in turn, before and after the commit.
fn dies_at_each_write(seed: u64, faults: &Faults) {
    let writes = {
        let mut world = World::new(seed, Some(faults.clone()));
        world.live();
        world.writes
    };
    assert!(writes > 30, "only {writes} writes");
    let Ran { failed, .. } = run_all(2 * writes, |number| {
        let crash_at = Some((number / 2 + 1, number % 2 == 1));
        let mut world = World::new(seed, Some(Faults { crash_at, ..faults.clone() }));
        world.live();
        assert!(world.writes > number / 2, "it lives as long as the one before");
    });
    assert!(failed.is_empty(), "seed {seed}, dying at these of {writes} writes, before and after: {failed:?}");
}

#[test]
fn a_coordinator_that_dies_at_any_write_before_or_after_the_commit_loses_nothing() {
    dies_at_each_write(7, &Faults::none());
}

#[test]
fn one_with_every_job_that_dies_at_any_write_loses_nothing() {
    let all = |seed: &u64| World::new(*seed, Some(Faults::none())).plans.len() == plans::PLANS;
    dies_at_each_write((0..10_000).find(all).unwrap(), &Faults::none());
}

#[test]
fn one_that_dies_at_any_write_among_other_faults_loses_nothing() {
    let drawn = |seed: u64| Faults::draw(&mut Dice::new(seed));
    let busy = |seed: &u64| {
        let faults = drawn(*seed);
        let several = faults.kinds().count() > 4 && faults.break_link > 0 && faults.kill > 0;
        several && faults.crash == 0 && faults.crash_at_write == 0 && faults.twice > 0
    };
    let seed = (0..10_000).find(busy).unwrap();
    dies_at_each_write(seed, &drawn(seed));
}

#[test]
fn a_worker_that_reaches_no_other_one_any_more_holds_up_no_job() {
    let stood = AtomicU64::new(0);
    let Ran { failed, .. } = run_all(20, |seed| {
        let mut world = World::new(seed, Some(Faults { part: 3_000, stays_apart: true, ..Faults::none() }));
        world.live();
        stood.fetch_add(world.counts().get(&Seen::StoodStill).copied().unwrap_or(0), Ordering::Relaxed);
    });
    let stood = stood.into_inner();
    assert!(failed.is_empty() && stood > 0, "{failed:?} failed, and groups stood still in {stood} worlds");
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in 0..8 {
        let lived = || {
            let mut world = World::new(seed, None);
            world.live();
            (world.counts(), world.now, world.disk.texts)
        };
        assert_eq!(lived(), lived(), "seed {seed}");
    }
}
