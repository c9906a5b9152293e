//! Invariants 4 and 5 with real processes: whatever is killed, and with any number of threads, the published files
//! are the same bytes.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use graftwork_shared::{
    digest::Digest,
    event::{Event, EventKind},
};
use graftwork_tests::{Run, World, kill, published_digests};

fn published(world: &World, hub: &str) -> Result<BTreeMap<String, Digest>> {
    let digests = published_digests(&world.path().join(hub))?;
    ensure!(
        digests.keys().filter(|name| name.ends_with("adapter.safetensors")).count() >= 3,
        "too few releases: {digests:?}"
    );
    ensure!(digests.keys().any(|name| name.ends_with("model_adapter_fusion.safetensors")), "no fusion: {digests:?}");
    Ok(digests)
}

/// The digests of an undisturbed run, in a state and hub of its own.
fn undisturbed(world: &World, threads: &str) -> Result<BTreeMap<String, Digest>> {
    let job = world.job("job.toml", "hub", "")?;
    Run::start(&job, &["--state", "undisturbed", "--threads", threads])?.finish(0)?;
    let digests = published(world, "hub")?;
    std::fs::remove_dir_all(world.path().join("hub"))?;
    Ok(digests)
}

/// `Invariant::BytesFollowRecipe`.
#[test]
fn one_and_two_trainer_threads_publish_the_same_bytes() -> Result<()> {
    let world = World::new()?;
    assert_eq!(undisturbed(&world, "1")?, undisturbed(&world, "2")?);
    Ok(())
}

#[test]
fn a_killed_worker_changes_nothing() -> Result<()> {
    let world = World::new()?;
    let expected = undisturbed(&world, "2")?;
    for (stage, step) in [("topic", 4), ("mood", 16), ("mood_fused", 12)] {
        let job = world.job("job.toml", "hub", "")?;
        let state = format!("worker-{stage}");
        let mut run = Run::start(&job, &["--state", &state, "--threads", "2"])?;
        run.wait_for_checkpoint(stage, step)?;
        for pid in run.workers()? {
            kill(pid)?;
        }
        run.wait_for("the worker's loss", |event| matches!(event.kind, EventKind::WorkerLeft { .. }))?;
        run.finish(0)?;
        assert_eq!(published(&world, "hub")?, expected, "worker killed at step {step} of {stage}");
        std::fs::remove_dir_all(world.path().join("hub"))?;
    }
    Ok(())
}

#[test]
fn a_killed_coordinator_goes_on_with_the_same_command() -> Result<()> {
    let world = World::new()?;
    let expected = undisturbed(&world, "2")?;
    for (stage, step) in [("topic", 8), ("mood_fused", 4)] {
        let job = world.job("job.toml", "hub", "")?;
        let state = format!("coordinator-{stage}");
        let mut run = Run::start(&job, &["--state", &state, "--threads", "2"])?;
        run.wait_for_checkpoint(stage, step)?;
        run.kill()?;
        let mut again = Run::start(&job, &["--state", &state, "--threads", "2"])?;
        again.wait_for("taking the job up again", |event| {
            matches!(event.kind, EventKind::JobStarted { resumed: true, .. })
        })?;
        let started = again.wait_for("the stage", |event| {
            event.stage.as_ref().is_some_and(|name| name.as_str() == stage)
                && matches!(event.kind, EventKind::StageStarted { .. })
        })?;
        assert!(matches!(started.kind, EventKind::StageStarted { from_step, .. } if from_step >= step), "{started:?}");
        again.finish(0)?;
        assert_eq!(published(&world, "hub")?, expected, "coordinator killed at step {step} of {stage}");
        std::fs::remove_dir_all(world.path().join("hub"))?;
    }
    Ok(())
}

/// Whether an event is the one.
type Told = fn(&EventKind) -> bool;

/// Moments between two durable things: what a run has just told, and of which stage.
const MOMENTS: [(&str, Told); 6] = [
    ("topic", |kind| matches!(kind, EventKind::StageStarted { .. })),
    ("mood", |kind| matches!(kind, EventKind::Evaluated(_))),
    ("strength", |kind| matches!(kind, EventKind::StageFinished { .. })),
    ("topic", |kind| matches!(kind, EventKind::Published { .. })),
    ("mood_fused", |kind| matches!(kind, EventKind::Evaluated(evaluation) if evaluation.step > 12)),
    ("mood_fused", |kind| matches!(kind, EventKind::StageFinished { .. })),
];

#[test]
fn a_kill_while_scoring_finishing_or_publishing_changes_nothing() -> Result<()> {
    let world = World::new()?;
    let expected = undisturbed(&world, "2")?;
    for (moment, (stage, told)) in MOMENTS.into_iter().enumerate() {
        let of_stage = |event: &Event| event.stage.as_ref().is_some_and(|name| name.as_str() == stage);
        for killed in ["worker", "coordinator"] {
            let job = world.job("job.toml", "hub", "")?;
            let state = format!("{killed}-{moment}");
            let arguments = ["--state", state.as_str(), "--threads", "2"];
            let mut run = Run::start(&job, &arguments)?;
            run.wait_for("the moment", |event| of_stage(event) && told(&event.kind))?;
            if killed == "worker" {
                for pid in run.workers()? {
                    kill(pid)?;
                }
            } else {
                run.kill()?;
                run = Run::start(&job, &arguments)?;
            }
            run.finish(0)?;
            assert_eq!(published(&world, "hub")?, expected, "{killed} killed at moment {moment}, of {stage}");
            std::fs::remove_dir_all(world.path().join("hub"))?;
        }
    }
    Ok(())
}

#[test]
fn an_edited_task_trains_again_alone_with_the_fusions_that_use_it() -> Result<()> {
    let world = World::new()?;
    let job = world.job("job.toml", "hub", "")?;
    Run::start(&job, &["--state", "first"])?.finish(0)?;
    let job = world.job("job.toml", "hub", "[tasks.topic.training]\nseed = 18\n")?;
    let mut run = Run::start(&job, &["--state", "second"])?;
    let mut reused = BTreeMap::new();
    while let Some(event) = run.next_event()? {
        if let (Some(stage), EventKind::StageFinished { reused: again }) = (event.stage, event.kind) {
            reused.insert(stage.to_string(), again);
        }
    }
    run.finish(0)?;
    let expected = [("mood", true), ("mood_fused", false), ("strength", true), ("topic", false)];
    assert_eq!(reused, expected.map(|(name, again)| (name.to_owned(), again)).into());
    Ok(())
}
