//! What a machine does to a job between two runs of the same command: other numerics, rotten bytes, an earlier end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{Run, World, program, published_digests};

/// `graftwork run` with variables set, to its end.
fn run_with(world: &World, job: &Path, state: &str, variables: &[(&str, &str)]) -> Result<Output> {
    let mut command = Command::new(program());
    command.current_dir(world.path()).args(["run", "--progress", "plain", "--state", state]).arg(job);
    Ok(command.envs(variables.iter().copied()).output()?)
}

/// The folder of the only job in a state folder.
fn job_folder(world: &World, state: &str) -> Result<PathBuf> {
    let entry = fs::read_dir(world.path().join(state))?.next().context("the state has a job")??;
    Ok(entry.path())
}

/// Kills a run behind a checkpoint of `mood`.
fn kill_half_way(world: &World, state: &str) -> Result<PathBuf> {
    let job = world.job("job.toml", "hub", "")?;
    let mut run = Run::start(&job, &["--state", state, "--threads", "2"])?;
    run.wait_for_checkpoint("mood", 8)?;
    run.kill()?;
    Ok(job)
}

#[test]
fn a_job_begun_in_another_numeric_class_is_explained_at_once_and_kept() -> Result<()> {
    let world = World::new()?;
    let job = kill_half_way(&world, "state")?;
    let begun = Instant::now();
    let refused = run_with(&world, &job, "state", &[("ATEN_CPU_CAPABILITY", "default")])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{said}");
    ensure!(said.contains("nothing of this job can run here: mood: its checkpoint was computed on"), "{said}");
    ensure!(said.contains("--again"), "{said}");
    ensure!(begun.elapsed() < Duration::from_mins(2), "it waits for nobody");
    let done = run_with(&world, &job, "state", &[])?;
    ensure!(done.status.code() == Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

#[test]
fn rotten_bytes_in_the_state_folder_cost_time_and_not_the_job() -> Result<()> {
    let world = World::new()?;
    let whole = world.job("job.toml", "hub", "")?;
    Run::start(&whole, &["--state", "undisturbed"])?.finish(0)?;
    let mut expected = published_digests(&world.path().join("hub"))?;
    fs::remove_dir_all(world.path().join("hub"))?;
    let job = kill_half_way(&world, "state")?;
    fs::remove_dir_all(world.path().join("hub")).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let mut damaged = 0;
    for folder in fs::read_dir(job_folder(&world, "state")?.join("blobs"))? {
        let folder = folder?.path();
        if folder.file_name().is_some_and(|name| name.len() == 2) {
            for blob in fs::read_dir(&folder)? {
                fs::write(blob?.path(), b"rotten")?;
                damaged += 1;
            }
        }
    }
    ensure!(damaged > 0, "there is a checkpoint to damage");
    let done = run_with(&world, &job, "state", &[])?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.code() == Some(0), "{said}");
    ensure!(said.contains("missing or damaged"), "{said}");
    let mut found = published_digests(&world.path().join("hub"))?;
    for digests in [&mut expected, &mut found] {
        digests.retain(|name, _| !name.ends_with("graftwork.json"));
    }
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn an_interrupted_job_that_was_reopened_is_not_taken_for_ended() -> Result<()> {
    let world = World::new()?;
    let job = kill_half_way(&world, "state")?;
    // As an earlier end would have left it.
    let stale = job_folder(&world, "state")?.join("report.json");
    fs::write(&stale, b"{}")?;
    let mut run = Run::start(&job, &["--state", "state", "--threads", "2"])?;
    run.wait_for_checkpoint("mood", 8)?;
    run.kill()?;
    ensure!(!stale.exists(), "the job is open");
    let mut again = Run::start(&job, &["--state", "state", "--threads", "2", "--again"])?;
    again.wait_for("going on", |event| {
        matches!(event.kind, graftwork_shared::event::EventKind::JobStarted { resumed: true, .. })
    })?;
    again.finish(0)?;
    Ok(())
}

#[test]
fn an_interrupted_job_can_be_looked_at_and_explained() -> Result<()> {
    let world = World::new()?;
    kill_half_way(&world, "state")?;
    let job = job_folder(&world, "state")?;
    let job = job.file_name().and_then(|name| name.to_str()).context("a job's folder has its id as name")?;
    let told = |arguments: &[&str]| {
        let mut command = Command::new(program());
        let output = command.current_dir(world.path()).args(arguments).args(["--state", "state"]).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let list = told(&["status"])?;
    ensure!(list.contains(job) && list.contains("interrupted; `graftwork run` with its file goes on"), "{list}");
    let explained = told(&["explain", job])?;
    ensure!(explained.contains("mood_fused") && explained.contains("waits"), "{explained}");
    for shown in [explained, told(&["report", job])?, told(&["status", job])?] {
        ensure!(shown.contains("interrupted; `graftwork run` with its file goes on"), "{shown}");
        ensure!(!shown.contains("graftwork worker"), "{shown}");
    }
    Ok(())
}

/// What the report of the only job in a state folder says that it cost.
fn core_seconds(world: &World, state: &str) -> Result<Vec<f64>> {
    let job = job_folder(world, state)?;
    let job = job.file_name().and_then(|name| name.to_str()).context("a job's folder has its id as name")?;
    let output = Command::new(program())
        .current_dir(world.path())
        .args(["report", "--output", "json", "--state", state, job])
        .output()?;
    let view: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let stages = view["stages"].as_array().context("a view has stages")?;
    stages.iter().map(|stage| stage["usage"]["core_seconds"].as_f64().context("a number")).collect()
}

#[test]
fn what_a_killed_job_spent_is_in_its_bill() -> Result<()> {
    let world = World::new()?;
    kill_half_way(&world, "state")?;
    let spent = core_seconds(&world, "state")?;
    ensure!(spent[1] > 0.0, "{spent:?} core-seconds: mood had a checkpoint");
    Ok(())
}
