//! `graftwork submit` to a coordinator that sees nothing of the user's disk, and once more when the hub has lost what
//! came of it.

use std::{
    collections::BTreeSet,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::{digest::Digest, event::EventKind};
use graftwork_tests::{Cluster, Run, World, program, published_digests, tensor_digests};
use serde_json::{Value, json};

#[test]
fn a_job_trains_from_its_uploads_alone_to_the_bytes_of_a_local_run() -> Result<()> {
    let (world, mut elsewhere) = (World::new()?, Cluster::new()?);
    elsewhere.job(&world)?;
    let (job, said) = elsewhere.ask(&world, &["submit", "job.toml"], 0)?;
    ensure!(said.contains("uploaded 13 files"), "nine of rows, three of the base model and their list: {said}");
    for folder in ["data", "base"] {
        std::fs::remove_dir_all(world.path().join(folder))?;
    }
    // What was uploaded is kept with the job over kill -9.
    elsewhere.kill();
    elsewhere.start_coordinator()?;
    // Nothing that is not in use has room in its cache: rows that a fusion reads again are fetched again.
    let address = elsewhere.address();
    elsewhere.start_worker_with(&address, &["--fetched-gib", "0"])?;
    elsewhere.ask(&world, &["watch", &job], 0)?;
    let cached = std::fs::read_dir(elsewhere.path().join("worker-cache/uploads"))?;
    let cached = cached.flatten().filter(|entry| entry.path().is_dir()).count();
    ensure!((1..=6).contains(&cached), "{cached} of nine files are left, and two tasks are trained at a time");

    // The same content from another folder is the same job, and nothing of it travels again.
    let again = World::new()?;
    elsewhere.job(&again)?;
    let (same, said) = elsewhere.ask(&again, &["submit", "job.toml"], 0)?;
    ensure!(same == job && said.contains("nothing to upload: 13 files there already"), "{same}, {job}: {said}");

    let local = again.job("local.toml", "hub", "")?;
    Run::start(&local, &["--state", "state"])?.finish(0)?;
    assert_eq!(tensor_digests(&elsewhere.path().join("hub"))?, tensor_digests(&again.path().join("hub"))?);

    // Nobody can open what its readers cannot ask for.
    let card = std::fs::read_to_string(elsewhere.path().join("hub/tests/mood/README.md"))?;
    ensure!(card.contains("predict --base-model path/to/base ") && !card.contains("blob://"), "{card}");

    // A release is trained again from its record and the coordinator's blobs.
    let release = elsewhere.path().join("hub/tests/mood").display().to_string();
    let mut verify = Command::new(program());
    verify.current_dir(again.path()).args(["verify", "--retrain", &release]);
    let Output { status, stderr, .. } = verify.output()?;
    let said = String::from_utf8(stderr)?;
    ensure!(status.code() == Some(1) && said.contains("name its state folder, or its --blobs,"), "{said}");
    let Output { status, stdout, stderr } = elsewhere.name_uploads(&mut verify).output()?;
    let said = String::from_utf8([stdout, stderr].concat())?;
    ensure!(status.success() && said.contains("adapter.safetensors"), "{said}");
    Ok(())
}

#[test]
fn what_a_coordinator_fetched_to_plan_goes_before_something_new_would_pass_its_bound() -> Result<()> {
    let (world, bounded) = (World::new()?, Cluster::with_options(&["--fetched-gib", "0"])?);
    let models = || -> Result<usize> {
        let there = std::fs::read_dir(bounded.path().join("cache/graftwork/models/uploads"))?;
        Ok(there.flatten().filter(|entry| entry.path().is_dir()).count())
    };
    bounded.job(&world)?;
    let (first, _) = bounded.ask(&world, &["submit", "job.toml"], 0)?;
    ensure!(models()? == 1, "{} base models after the first job", models()?);
    // The same model in other bytes.
    let config = world.path().join("base/config.json");
    std::fs::write(&config, std::fs::read_to_string(&config)? + "\n")?;
    let (second, said) = bounded.ask(&world, &["submit", "job.toml"], 0)?;
    ensure!(first != second && models()? == 1, "{} base models after {second}: {said}", models()?);
    Ok(())
}

#[test]
fn a_damaged_upload_is_refused_and_submitting_again_mends_it() -> Result<()> {
    let (world, mut elsewhere) = (World::new()?, Cluster::in_a_folder()?);
    elsewhere.job(&world)?;
    let (job, _) = elsewhere.ask(&world, &["submit", "job.toml"], 0)?;
    let rows = Digest::of(&std::fs::read(world.path().join("data/mood/train.parquet"))?).to_string();
    let blob = elsewhere.path().join("state/blobs").join(&rows[..2]).join(&rows);
    let mut bytes = std::fs::read(&blob)?;
    // Behind the magic number: in the rows, not in the footer that planning reads.
    bytes[40] ^= 1;
    std::fs::write(&blob, bytes)?;
    elsewhere.start_worker()?;
    elsewhere.ask(&world, &["watch", &job], 1)?;
    let (report, _) = elsewhere.ask(&world, &["report", &job, "--output", "json"], 0)?;
    ensure!(report.contains("is damaged") && report.contains("submit the job again"), "{report}");
    let (same, said) = elsewhere.ask(&world, &["submit", "job.toml"], 0)?;
    ensure!(same == job && said.contains("uploaded 1 file,"), "{said}");
    elsewhere.ask(&world, &["watch", &job], 0)?;
    Ok(())
}

#[test]
fn shared_files_are_read_in_place_and_refused_when_they_changed() -> Result<()> {
    let (world, mut elsewhere) = (World::new()?, Cluster::new()?);
    elsewhere.job(&world)?;
    let root = world.path().display().to_string();
    let (job, said) = elsewhere.ask(&world, &["submit", "job.toml", "--shared-root", &root], 0)?;
    ensure!(!said.contains("upload"), "{said}");
    let data = world.path().join("data/mood");
    std::fs::copy(data.join("test.parquet"), data.join("validation.parquet"))?;
    elsewhere.start_worker()?;
    elsewhere.ask(&world, &["watch", &job], 1)?;
    let (report, _) = elsewhere.ask(&world, &["report", &job], 0)?;
    ensure!(report.contains("validation.parquet changed since planning"), "{report}");
    ensure!(report.contains("plan the job again"), "{report}");
    Ok(())
}

/// What came of each stage, with what that cost, and how often it was handed out. All four are published, and none is
/// an earlier result out of a hub.
fn results(world: &World, cluster: &Cluster, job: &str) -> Result<Vec<(Value, Value)>> {
    let stages = |verb: &str| -> Result<Vec<Value>> {
        let (told, _) = cluster.ask(world, &[verb, job, "--output", "json"], 0)?;
        let told: Value = serde_json::from_str(&told)?;
        Ok(told["stages"].as_array().context("a job has stages")?.clone())
    };
    let (seen, explained) = (stages("status")?, stages("explain")?);
    let own = json!({ "state": "published", "reused": false });
    ensure!(seen.len() == 4 && seen.iter().all(|stage| stage["state"] == own), "{seen:?}");
    ensure!(explained.len() == 4, "{explained:?}");
    let attempts = explained.iter().map(|stage| stage["attempts"].clone());
    Ok(seen.iter().map(|stage| stage["result"].clone()).zip(attempts).collect())
}

/// The whole hub is deleted: under a coordinator that goes on, and before the next one starts, which has nothing but
/// journal and blobs. A worker stands by and gets nothing to do.
#[test]
fn a_job_that_is_submitted_again_gives_back_what_the_hub_has_lost_and_trains_nothing() -> Result<()> {
    let (world, mut elsewhere) = (World::new()?, Cluster::new()?);
    elsewhere.job(&world)?;
    let (job, _) = elsewhere.ask(&world, &["submit", "job.toml"], 0)?;
    elsewhere.start_worker()?;
    Run::watch(&elsewhere.address(), &job)?.finish(0)?;
    let hub = elsewhere.path().join("hub");
    let before = (published_digests(&hub)?, results(&world, &elsewhere, &job)?);
    for restarted in [false, true] {
        std::fs::remove_dir_all(&hub)?;
        if restarted {
            elsewhere.kill();
            elsewhere.start_coordinator()?;
            elsewhere.start_worker()?;
        }
        let (same, said) = elsewhere.ask(&world, &["submit", "job.toml"], 0)?;
        ensure!(same == job && said.contains("nothing to upload: 13 files there already"), "{same}, {job}: {said}");
        let mut watch = Run::watch(&elsewhere.address(), &job)?;
        let mut again = BTreeSet::new();
        while let Some(event) = watch.next_event()? {
            let trained = matches!(event.kind, EventKind::StageStarted { .. } | EventKind::Step(_));
            ensure!(!trained, "it was trained again, restarted: {restarted}: {event:?}");
            if let (EventKind::Published { .. }, Some(stage)) = (&event.kind, &event.stage) {
                again.insert(stage.to_string());
            }
        }
        watch.finish(0)?;
        let all = ["mood", "mood_fused", "strength", "topic"].map(str::to_owned);
        assert_eq!(again, BTreeSet::from(all), "what was published again, restarted: {restarted}");
        let after = (published_digests(&hub)?, results(&world, &elsewhere, &job)?);
        assert_eq!(after, before, "restarted: {restarted}");
    }
    Ok(())
}
