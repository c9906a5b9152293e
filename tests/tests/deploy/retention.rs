//! What `--keep-jobs` leaves on the disk: of an ended job nothing but what it published.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::digest::Digest;
use graftwork_tests::{Run, World};

use crate::process::{Process, ask, coordinator, socket, until, worker};

/// A coordinator that keeps ended jobs for so many days.
fn keeping(folder: &Path, days: &str) -> Result<Process> {
    let started = Process::start(&mut coordinator(folder, &["--keep-jobs", days]))?;
    started.wait_for("listens on")?;
    Ok(started)
}

/// All files below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() { all.extend(files(&path)?) } else { all.push(path) }
    }
    Ok(all)
}

/// The released predictions, and what is in them.
fn predictions(hub: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let named = |path: &PathBuf| path.extension().is_some_and(|end| end == "jsonl");
    files(hub)?.into_iter().filter(named).map(|path| Ok((path.clone(), fs::read(path)?))).collect()
}

pub(crate) fn of_an_old_job_only_its_releases_stay() -> Result<()> {
    let (world, folder) = (World::new()?, tempfile::tempdir()?);
    let (folder, hub, blobs) = (folder.path(), folder.path().join("hub"), folder.path().join("state/blobs"));
    world.job("job.toml", &hub.display().to_string(), "")?;
    let mut leader = keeping(folder, "1")?;
    let trainer = Process::start(&mut worker(folder, &[]))?;
    let job = ask(&world, folder, &["submit", "job.toml"], &[])?;
    Run::watch(&socket(folder), &job)?.finish(0)?;
    drop(trainer);
    leader.terminate()?;

    // A job of today is kept, with its uploads and what came of it.
    let mut leader = keeping(folder, "1")?;
    let listed = || ask(&world, folder, &["status", "--output", "json"], &[]);
    ensure!(listed()?.contains(&job), "{}", listed()?);
    let released = predictions(&hub)?;
    ensure!(released.len() >= 4, "predictions of three adapters and a fusion: {}", released.len());
    let rows = Digest::of(&fs::read(world.path().join("data/mood/train.parquet"))?);
    let (_, answers) = released.first().context("something is released")?;
    for (what, digest) in [("an upload", rows.to_string()), ("a result", Digest::of(answers).to_string())] {
        ensure!(blobs.join(&digest[..2]).join(&digest).exists(), "{what} is no blob: {:?}", files(&blobs)?);
    }
    leader.terminate()?;

    // A tenth of a second is less than it is old. Should that be wrong, the next look is a minute later.
    let _leader = keeping(folder, "0.000001")?;
    let gone = until(Duration::from_secs(90), || (listed().ok()? == "[]").then_some(()));
    gone.with_context(|| format!("{job} is not forgotten"))?;
    let empty = || files(&blobs).is_ok_and(|left| left.is_empty()).then_some(());
    until(Duration::from_secs(30), empty).with_context(|| format!("blobs are left: {:?}", files(&blobs)))?;
    ensure!(predictions(&hub)? == released, "what was released is another one now");
    Ok(())
}
