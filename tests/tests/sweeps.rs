//! A sweep through the real programs: one worker, two, and two of which one is killed choose the same trial and publish
//! the same bytes; so does a coordinator that was killed, under one command and in a cluster (over a database and an
//! object store where they run). One whose choice depends on timing is marked as such.

use std::{
    collections::BTreeMap,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::{
    digest::Digest,
    event::{Event, EventKind},
    recipe::Method,
    record::Record,
};
use graftwork_tests::{Cluster, Run, World, kill, program, published_digests};

/// Six trials of `mood`, compared at updates 6, 12 and 24; the fusion of the world reads the best of them.
const SWEEP: &str = "[tasks.mood.sweep]\nlearning_rate = [1e-4, 1e-3, 5e-3]\nseed = [1, 2]\n\
                     [tasks.mood.sweep.halving]\nfactor = 2\nfirst = 0.25\n";

/// Its trials train for ten epochs and are compared at updates 30, 60 and 120: behind the first rung more is left than
/// can be trained until a kill is felt.
const LONGER: &str = "[tasks.mood.training]\nepochs = 10\n";

fn start(world: &World, state: &str, workers: u32) -> Result<Run> {
    let more = format!("{SWEEP}[resources]\nworkers = {workers}\n");
    let job = world.job("job.toml", "hub", &more)?;
    Run::start(&job, &["--state", state, "--threads", "2"])
}

fn of_trial(event: &Event) -> bool {
    event.stage.as_ref().is_some_and(|stage| stage.as_str().starts_with("mood-trial-"))
}

/// What was published, and the decisions on the way there, as every run must have them.
fn outcome(world: &World, run: Run, mut decisions: Vec<String>) -> Result<(BTreeMap<String, Digest>, Vec<String>)> {
    follow(run, &mut decisions)?;
    Ok((take_published(world)?, decisions))
}

/// Reads a run to its end, which must be a good one, and adds the decisions that it tells.
fn follow(mut run: Run, decisions: &mut Vec<String>) -> Result<()> {
    while let Some(event) = run.next_event()? {
        note(decisions, &event);
    }
    run.finish(0).map(drop)
}

/// What was published; the next run finds no hub.
fn take_published(world: &World) -> Result<BTreeMap<String, Digest>> {
    let hub = world.path().join("hub");
    let published = published_digests(&hub)?;
    std::fs::remove_dir_all(hub)?;
    Ok(published)
}

fn note(decisions: &mut Vec<String>, event: &Event) {
    match &event.kind {
        EventKind::RungDecided { rung, promoted, stopped, .. } => {
            decisions.push(format!("rung {rung}: {promoted:?} go on, {stopped:?} stop"));
        }
        EventKind::TrialChosen { trial, .. } => decisions.push(format!("trial {trial}")),
        _ => {}
    }
}

fn record(world: &World, stage: &str) -> Result<Record> {
    let path = world.path().join("hub/tests").join(stage).join("graftwork.json");
    serde_json::from_slice(&std::fs::read(&path)?).with_context(|| path.display().to_string())
}

/// The release of the best trial says of which sweep it is, is trained again from its record alone, and is what the
/// fusion reads; trials are in no hub.
fn check_releases(world: &World) -> Result<()> {
    let (mood, fused) = (record(world, "mood")?, record(world, "mood_fused")?);
    let sweep = mood.sweep.as_ref().context("the record tells of the sweep")?;
    ensure!(sweep.rungs == [6, 12, 24] && sweep.trials.len() == 6 && !sweep.asynchronous, "{sweep:?}");
    let reached: Vec<usize> = sweep.trials.iter().map(|trial| trial.scores.len()).collect();
    ensure!(
        reached.iter().filter(|rungs| **rungs == 1).count() == 3,
        "three trials stop at the first rung: {reached:?}"
    );
    let best = &sweep.trials[sweep.trial as usize - 1];
    ensure!(best.recipe == mood.recipe_digest && best.values == sweep.values, "{best:?}");
    let Method::Fusion { adapters, .. } = &fused.recipe.method else { anyhow::bail!("a fusion") };
    ensure!(adapters[1].origin == mood.recipe_digest, "the fusion reads the best trial");
    let trials = std::fs::read_dir(world.path().join("hub/tests"))?.flatten();
    ensure!(
        !trials.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().contains("trial")),
        "no trial is published"
    );
    for release in ["mood", "mood_fused"] {
        let mut verify = Command::new(program());
        verify.current_dir(world.path()).args(["verify", "--retrain", "--progress", "none"]);
        let Output { status, stdout, stderr } = verify.arg(format!("hub/tests/{release}")).output()?;
        ensure!(status.success(), "{release}: {}", String::from_utf8([stdout, stderr].concat())?);
    }
    Ok(())
}

#[test]
fn asynchronous_halving_is_marked_in_report_record_and_card() -> Result<()> {
    let world = World::new()?;
    let job = world.job("job.toml", "hub", &format!("{SWEEP}asynchronous = true\n[resources]\nworkers = 2\n"))?;
    let report = Run::start(&job, &["--threads", "2"])?.finish(0)?.stdout;
    ensure!(report.contains(", asynchronous: timing had a part in who went on"), "{report}");
    let sweep = record(&world, "mood")?.sweep.context("the record tells of the sweep")?;
    ensure!(sweep.asynchronous && sweep.trials.iter().any(|trial| trial.scores.len() == 3), "{sweep:?}");
    let card = std::fs::read_to_string(world.path().join("hub/tests/mood/README.md"))?;
    ensure!(card.contains("Trials were halved asynchronously"), "{card}");
    Ok(())
}

#[test]
fn workers_and_kills_change_neither_the_choice_nor_a_byte() -> Result<()> {
    let world = World::new()?;
    let mut decisions = Vec::new();
    follow(start(&world, "one", 1)?, &mut decisions)?;
    ensure!(decisions.len() == 3 && decisions[0].starts_with("rung 0: ["), "{decisions:?}");
    check_releases(&world)?;
    let expected = (take_published(&world)?, decisions);

    assert_eq!(outcome(&world, start(&world, "two", 2)?, Vec::new())?, expected, "two workers");

    // A worker is killed while trials train, behind a checkpoint.
    let mut run = start(&world, "killed", 2)?;
    let mut decisions = Vec::new();
    while let Some(event) = run.next_event()? {
        note(&mut decisions, &event);
        if of_trial(&event) && matches!(event.kind, EventKind::Checkpointed { step } if step > 6) {
            kill(*run.workers()?.first().context("a worker")?)?;
            break;
        }
    }
    assert_eq!(outcome(&world, run, decisions)?, expected, "a killed worker");

    // The coordinator is killed between two rungs, or once a trial is chosen; the same command goes on.
    for chosen in [false, true] {
        let state = format!("restarted-{chosen}");
        let mut run = start(&world, &state, 2)?;
        run.wait_for("a decision", |event| match event.kind {
            EventKind::RungDecided { .. } => !chosen,
            EventKind::TrialChosen { .. } => chosen,
            _ => false,
        })?;
        run.kill()?;
        // What it decided before it died is in its journal and in the record, and is not told again.
        let (published, told) = outcome(&world, start(&world, &state, 2)?, Vec::new())?;
        assert_eq!(published, expected.0, "a coordinator killed once a trial is chosen: {chosen}");
        ensure!(told.len() < expected.1.len(), "nothing is decided again: {told:?}");
    }
    Ok(())
}

#[test]
fn a_cluster_whose_coordinator_is_killed_between_rungs_ends_as_one_command_does() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    let hub = world.path().join("hub").display().to_string();
    let file = world.job("job.toml", &hub, &format!("{SWEEP}{LONGER}"))?;
    let mut decided = Vec::new();
    follow(Run::start(&file, &["--state", "alone", "--threads", "2"])?, &mut decided)?;
    let sweep = record(&world, "mood")?.sweep.context("the record tells of the sweep")?;
    ensure!(decided.len() == 3 && sweep.rungs == [30, 60, 120], "{decided:?}, {sweep:?}");
    let published = take_published(&world)?;

    // Rows are read where they lie, so that both jobs and their records name the same places.
    let (file, root) = (file.display().to_string(), world.path().display().to_string());
    let (job, _) = cluster.ask(&world, &["submit", &file, "--shared-root", &root], 0)?;
    let mut watch = Run::watch(&cluster.address(), &job)?;
    for _ in 0..2 {
        cluster.start_worker()?;
    }
    let (mut told, mut killed, mut told_before) = (Vec::new(), false, None);
    while let Some(event) = watch.next_event()? {
        if matches!(event.kind, EventKind::JobStarted { resumed: true, .. }) {
            told_before = Some(told.len());
        }
        note(&mut told, &event);
        if !killed && !told.is_empty() {
            cluster.kill_coordinator();
            cluster.start_coordinator()?;
            killed = true;
        }
    }
    watch.finish(0)?;
    let told_before = told_before.context("the next coordinator told nothing")?;
    ensure!(told_before < told.len(), "all was decided before the kill: {told:?}");
    // What the first one decided as it died is in its journal, and perhaps was told to nobody.
    let of_told = decided.iter().filter(|decision| told.contains(decision));
    ensure!(of_told.eq(&told), "{told:?} instead of {decided:?}");
    assert_eq!(record(&world, "mood")?.sweep, Some(sweep), "what came of each trial, and which of them won");
    assert_eq!(take_published(&world)?, published, "a cluster whose coordinator was killed");
    Ok(())
}
