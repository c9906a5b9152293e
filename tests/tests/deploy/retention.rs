//! What `graftwork forget` and `--keep-jobs` leave on the disk: of an ended job nothing but what it published.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use graftwork_shared::digest::Digest;
use graftwork_tests::{Run, World};

use crate::{
    process::{Process, ask, coordinator, ended, socket, until, worker},
    root,
};

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
    only_releases_are_left(&blobs, &hub, &released)?;
    deleted_as_the_page_says(&hub, &released)
}

pub(crate) fn of_a_forgotten_job_only_its_releases_stay() -> Result<()> {
    let (world, folder) = (World::new()?, tempfile::tempdir()?);
    let (folder, hub) = (folder.path(), folder.path().join("hub"));
    world.job("job.toml", &hub.display().to_string(), "")?;
    let _leader = keeping(folder, "1")?;
    let told = |words: &[&str]| ask(&world, folder, words, &[]);
    let job = told(&["submit", "job.toml"])?;
    let refused = |why: &str| match told(&["forget", &job]) {
        Err(error) if error.to_string().contains(why) => Ok(()),
        other => bail!("{other:?} does not say {why:?}"),
    };
    refused("has not ended: cancel it first")?;
    let _trainer = Process::start(&mut worker(folder, &[]))?;
    Run::watch(&socket(folder), &job)?.finish(0)?;
    let released = predictions(&hub)?;
    ensure!(released.len() >= 4, "predictions of three adapters and a fusion: {}", released.len());

    told(&["forget", &job])?;
    let listed = told(&["status", "--output", "json"])?;
    ensure!(listed == "[]", "{listed}");
    refused(&format!("there is no job {job} here"))?;
    only_releases_are_left(&folder.join("state/blobs"), &hub, &released)
}

/// Uploads, results and checkpoints of a forgotten job go soon.
fn only_releases_are_left(blobs: &Path, hub: &Path, released: &[(PathBuf, Vec<u8>)]) -> Result<()> {
    let empty = || files(blobs).is_ok_and(|left| left.is_empty()).then_some(());
    until(Duration::from_secs(30), empty).with_context(|| format!("blobs are left: {:?}", files(blobs)))?;
    ensure!(predictions(hub)? == released, "what was released is another one now");
    Ok(())
}

/// The commands of docs/operations.md: a release, with its predictions, is in no place of the hub any more.
fn deleted_as_the_page_says(hub: &Path, released: &[(PathBuf, Vec<u8>)]) -> Result<()> {
    let page = fs::read_to_string(root().join("docs/operations.md"))?;
    let block = page.split("```").find(|block| block.contains("-samefile"));
    let block = block.context("docs/operations.md says no more how a release is deleted")?;
    let here = block.replace("/srv/hub", &hub.display().to_string()).replace("nlp/topic", "tests/mood");
    let commands: Vec<&str> = here.trim().lines().collect();
    let [find, remove] = commands[..] else { bail!("the test cannot run these: {here}") };
    let record = ended(Command::new("sh").args(["-c", find]), 0)?;
    let folder = Path::new(record.trim()).parent().context("a record lies in a folder")?.to_owned();
    let digest = folder.file_name().context("a digest")?.to_string_lossy().into_owned();
    ended(Command::new("sh").args(["-ec", &remove.replace("DIGEST", &digest)]), 0)?;
    let there =
        |(path, _): &(PathBuf, Vec<u8>)| !path.starts_with(hub.join("tests/mood")) && !path.starts_with(&folder);
    let kept: Vec<_> = released.iter().filter(|release| there(release)).cloned().collect();
    ensure!(!kept.is_empty() && kept.len() < released.len(), "nothing of it was there: {}", folder.display());
    ensure!(predictions(hub)? == kept, "it took something else with it");
    Ok(())
}
