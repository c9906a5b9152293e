//! Work goes on under its lease while its coordinator is killed and started again: nothing is handed out a second time,
//! and every published file has the bytes of the undisturbed run.

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::{
    digest::Digest,
    event::{Event, EventKind},
};
use graftwork_tests::{Cluster, Run, World, published_digests};
use serde_json::Value;

/// Trains the long job with two workers, killing the coordinator so often while one `watch` goes on over all of it; gives
/// what was published.
fn train(world: &World, cluster: &mut Cluster, kills: u64) -> Result<BTreeMap<String, Digest>> {
    cluster.begin_anew()?;
    world.long_job("job.toml", &cluster.path().join("hub").display().to_string(), "")?;
    let (job, _) = cluster.ask(world, &["submit", "job.toml"], 0)?;
    for _ in 0..2 {
        cluster.start_worker()?;
    }
    let mut watch = Run::watch(&cluster.address(), &job)?;
    for _ in 0..kills {
        let steps = |event: &Event| matches!(event.kind, EventKind::Step(report) if report.step >= 20);
        watch.wait_for("training", steps)?;
        watch.wait_for("a checkpoint", |event| matches!(event.kind, EventKind::Checkpointed { .. }))?;
        cluster.kill_coordinator();
        cluster.start_coordinator()?;
        // The same one shows what the next coordinator tells.
        watch.wait_for("the next coordinator", |event| matches!(event.kind, EventKind::JobStarted { .. }))?;
    }
    watch.finish(0)?;
    let (explained, _) = cluster.ask(world, &["explain", &job, "--output", "json"], 0)?;
    let explained: serde_json::Value = serde_json::from_str(&explained)?;
    for stage in explained["stages"].as_array().into_iter().flatten() {
        ensure!(stage["attempts"] == 1 && stage["failures"] == serde_json::json!([]), "handed out again: {stage}");
    }
    published_digests(&cluster.path().join("hub"))
}

#[test]
fn no_work_is_handed_out_twice_when_coordinators_are_killed() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    let undisturbed = train(&world, &mut cluster, 0)?;
    let disturbed = train(&world, &mut cluster, 4)?;
    ensure!(undisturbed == disturbed, "other bytes: {undisturbed:?}\n{disturbed:?}");
    Ok(())
}

/// It is away for longer than the worker is patient, and for a checkpoint at least.
#[test]
fn a_worker_outlives_its_patience_with_a_lost_coordinator_while_it_trains_and_only_then() -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    let hub = cluster.path().join("hub").display().to_string();
    world.long_job("job.toml", &hub, "[resources]\nworkers_per_task = 1\n")?;
    let (job, _) = cluster.ask(&world, &["submit", "job.toml"], 0)?;
    let worker = cluster.start_worker_with(&cluster.address(), &["--patience", "2"])?;
    let mut watch = Run::watch(&cluster.address(), &job)?;
    watch.wait_for("a checkpoint", |event| matches!(event.kind, EventKind::Checkpointed { .. }))?;
    cluster.kill_coordinator();
    sleep(4 * PATIENCE);
    cluster.start_coordinator()?;
    Run::watch(&cluster.address(), &job)?.finish(0)?;
    let (explained, _) = cluster.ask(&world, &["explain", &job, "--output", "json"], 0)?;
    let explained: serde_json::Value = serde_json::from_str(&explained)?;
    for stage in explained["stages"].as_array().into_iter().flatten() {
        ensure!(stage["attempts"] == 1 && stage["failures"] == serde_json::json!([]), "handed out again: {stage}");
    }
    cluster.kill_coordinator();
    let began = Instant::now();
    let status = cluster.wait_for_worker(worker)?;
    ensure!(status.code() == Some(2) && began.elapsed() >= PATIENCE, "{status} after {:?}", began.elapsed());
    Ok(())
}

/// What is known of memory by `explain`: what the worker took for each stage, or what a waiting one is expected to need.
fn known(world: &World, cluster: &Cluster, job: &str, place: &str) -> Result<Vec<Value>> {
    let (explained, _) = cluster.ask(world, &["explain", job, "--output", "json"], 0)?;
    let explained: Value = serde_json::from_str(&explained)?;
    let stages = explained["stages"].as_array().into_iter().flatten();
    Ok(stages.filter_map(|stage| stage.pointer(place).cloned()).collect())
}

#[test]
fn what_a_worker_took_of_memory_is_known_to_the_next_coordinator() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    cluster.job(&world)?;
    let (job, _) = cluster.ask(&world, &["submit", "job.toml"], 0)?;
    let worker = cluster.start_worker()?;
    Run::watch(&cluster.address(), &job)?.finish(0)?;
    let took = known(&world, &cluster, &job, "/why/took")?;
    let (report, _) = cluster.ask(&world, &["report", &job, "--output", "json"], 0)?;
    let report: Value = serde_json::from_str(&report)?;
    let stages = report["stages"].as_array().or_else(|| report["job"]["stages"].as_array()).context("stages")?;
    let peaks: Vec<f64> =
        stages.iter().filter_map(|stage| stage.pointer("/usage/peak_memory_bytes")?.as_f64()).collect();
    ensure!(!took.is_empty(), "no stage tells of a peak, of {peaks:?}");
    for peak in &took {
        // Almost all of it is the process, which is what a larger model's prediction begins with.
        let [measured, predicted] =
            ["measured_bytes", "predicted_bytes"].map(|name| peak[name].as_f64().unwrap_or(0.0));
        ensure!(measured > predicted / 3.0 && measured < predicted * 3.0, "{peak}");
        ensure!(peaks.iter().any(|known| (known / measured - 1.0).abs() < 0.05), "{measured} is none of {peaks:?}");
    }
    cluster.kill_worker(worker);
    cluster.kill_coordinator();
    cluster.start_coordinator()?;
    ensure!(known(&world, &cluster, &job, "/why/took")? == took, "a restart forgot a peak");
    // A later job over the same base model counts with it.
    world.long_job("later.toml", &cluster.path().join("hub").display().to_string(), "")?;
    let (later, _) = cluster.ask(&world, &["submit", "later.toml"], 0)?;
    let needs = known(&world, &cluster, &later, "/why/needs/corrected/measured_bytes")?;
    let measured = |needs: &Value| took.iter().any(|peak| peak["measured_bytes"] == *needs);
    ensure!(!needs.is_empty() && needs.iter().all(measured), "{needs:?} follows from none of {took:?}");
    Ok(())
}
