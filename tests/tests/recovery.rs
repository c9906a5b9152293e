//! How long training stands still after a kill -9, over a Unix socket and over TCP on loopback, and with the default
//! settings, but that workers report every update so that the next one is seen at once: measured, and held to what is
//! promised.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use graftwork_shared::event::{Event, EventKind};
use graftwork_tests::{Cluster, Run, World};

/// A median of more is a broken promise.
const AFTER_WORKER: Duration = Duration::from_secs(3);
const AFTER_COORDINATOR: Duration = Duration::from_secs(2);

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// How workers reach the coordinator.
#[derive(Clone, Copy, Debug)]
enum Over {
    Socket,
    Loopback,
}

/// A cluster with a worker that trains a long job, each stage on one worker at most.
fn training(over: Over) -> Result<(World, Cluster, String, u32)> {
    let (world, cluster) = (World::new()?, Cluster::new()?);
    let mut cluster = match over {
        Over::Socket => cluster,
        Over::Loopback => cluster.over_loopback()?,
    };
    let hub = cluster.path().join("hub").display().to_string();
    world.long_job("job.toml", &hub, "[resources]\nworkers_per_task = 1\n")?;
    let (job, _) = cluster.ask(&world, &["submit", "job.toml"], 0)?;
    let worker = cluster.start_worker()?;
    Ok((world, cluster, job, worker))
}

fn is_step(event: &Event) -> bool {
    matches!(event.kind, EventKind::Step(_))
}

#[test]
fn a_killed_workers_stage_trains_again_within_three_seconds() -> Result<()> {
    [Over::Socket, Over::Loopback].into_iter().try_for_each(kill_a_worker)
}

fn kill_a_worker(over: Over) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..3 {
        let (_world, mut cluster, job, first) = training(over)?;
        let mut watch = Run::watch(&cluster.address(), &job)?;
        watch.wait_for_checkpoint("topic", 50)?;
        cluster.start_worker()?;
        watch.wait_for("another worker", |event| matches!(event.kind, EventKind::WorkerJoined { .. }))?;
        cluster.kill_worker(first);
        let killed = Instant::now();
        let failed =
            watch.wait_for("the lost attempt", |event| matches!(event.kind, EventKind::AttemptFailed { .. }))?;
        watch.wait_for("training again", |event| event.stage == failed.stage && is_step(event))?;
        times.push(killed.elapsed());
    }
    println!("{over:?}: from kill -9 of a worker to its stage's next update: {times:?}");
    ensure!(median(times.clone()) < AFTER_WORKER, "{over:?}: {times:?}");
    Ok(())
}

#[test]
fn a_restarted_coordinator_trains_on_within_two_seconds() -> Result<()> {
    [Over::Socket, Over::Loopback].into_iter().try_for_each(kill_the_coordinator)
}

fn kill_the_coordinator(over: Over) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..3 {
        let (_world, mut cluster, job, _) = training(over)?;
        let mut watch = Run::watch(&cluster.address(), &job)?;
        watch.wait_for_checkpoint("mood", 50)?;
        cluster.kill_coordinator();
        let killed = Instant::now();
        cluster.start_coordinator()?;
        let mut again = Run::watch(&cluster.address(), &job)?;
        again.wait_for("training again", is_step)?;
        times.push(killed.elapsed());
    }
    println!("{over:?}: from kill -9 of the coordinator to the next update under the next one: {times:?}");
    ensure!(median(times.clone()) < AFTER_COORDINATOR, "{over:?}: {times:?}");
    Ok(())
}
