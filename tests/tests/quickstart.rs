//! The quickstart job itself, on its real model and data: whatever is killed, and on one thread or two, every published
//! file has the bytes of the undisturbed run (invariant 5).
//!
//! It trains the whole job four times, so `make test-all` runs it; `same_bytes.rs` proves the same on a tiny world in
//! `make test`.

use std::{collections::BTreeMap, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::{digest::Digest, event::EventKind};
use graftwork_tests::{Run, kill, published_digests};
use libtest_mimic::{Arguments, Failed, Trial};

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Writes the job with absolute places and a hub below `folder`; gives its path.
fn job(folder: &Path) -> Result<std::path::PathBuf> {
    let repository = Path::new(REPOSITORY).canonicalize()?;
    let text = std::fs::read_to_string(repository.join("jobs/quickstart.toml"))?;
    let text = text.replace("../.graftwork/", &format!("{}/.graftwork/", repository.display()));
    let path = folder.join("quickstart.toml");
    std::fs::write(&path, text.replace("../out/hub", "hub"))?;
    Ok(path)
}

fn published(folder: &Path) -> Result<BTreeMap<String, Digest>> {
    let digests = published_digests(&folder.join("hub"))?;
    ensure!(digests.len() > 40, "too few files are published: {digests:?}");
    Ok(digests)
}

/// Stages and steps; a process is killed at the stage's next checkpoint.
type Kills<'a> = &'a [(&'a str, u64)];

/// The digests of a run from nothing on `threads` threads, in which first workers and then coordinators are killed.
fn run(job: &Path, threads: &str, worker_kills: Kills, coordinator_kills: Kills) -> Result<BTreeMap<String, Digest>> {
    let folder = job.parent().context("a job file lies in a folder")?;
    for left in ["hub", "state"].map(|name| folder.join(name)).iter().filter(|path| path.exists()) {
        std::fs::remove_dir_all(left)?;
    }
    let arguments = ["--state", "state", "--threads", threads];
    let mut run = Run::start(job, &arguments)?;
    for (stage, step) in worker_kills {
        run.wait_for_checkpoint(stage, *step)?;
        for pid in run.workers()? {
            kill(pid)?;
        }
        run.wait_for("the worker's loss", |event| matches!(event.kind, EventKind::WorkerLeft { .. }))?;
    }
    for (stage, step) in coordinator_kills {
        run.wait_for_checkpoint(stage, *step)?;
        run.kill()?;
        run = Run::start(job, &arguments)?;
        let resumed = |kind: &EventKind| matches!(kind, EventKind::JobStarted { resumed: true, .. });
        run.wait_for("taking the job up again", |event| resumed(&event.kind))?;
    }
    run.finish(0).context("every expectation of the quickstart is met")?;
    published(folder)
}

fn whatever_is_killed_the_files_are_the_same() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let job = job(folder.path())?;
    let expected = run(&job, "2", &[], &[])?;
    let same = |what: &str, found: &BTreeMap<String, Digest>| {
        let changed: Vec<_> = expected.iter().filter(|(name, digest)| found.get(*name) != Some(digest)).collect();
        ensure!(changed.is_empty() && found.len() == expected.len(), "{what} changed {changed:?}");
        Ok(())
    };
    let kills = [("tweet_sentiment", 50), ("question_type", 200), ("film_few_fused", 19)];
    same("killed workers", &run(&job, "2", &kills, &[])?)?;
    let kills = [("movie_sentiment", 50), ("tweet_intensity", 100), ("film_few_fused", 19)];
    same("killed coordinators", &run(&job, "2", &[], &kills)?)?;
    same("one thread", &run(&job, "1", &[], &[])?)
}

fn main() -> ExitCode {
    let skipped = std::env::var_os("GRAFTWORK_LONG_TESTS").is_none();
    if skipped {
        eprintln!("skipped: the whole quickstart four times takes a quarter of an hour; `make test-all` runs it");
    }
    let test = || whatever_is_killed_the_files_are_the_same().map_err(|error| Failed::from(format!("{error:#}")));
    let trial = Trial::test("whatever_is_killed_the_files_are_the_same", test).with_ignored_flag(skipped);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}
