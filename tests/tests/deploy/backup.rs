//! A state put aside while its coordinator leads, and brought back: the job goes on from its checkpoint. What is no whole
//! backup is refused and writes nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::event::EventKind;
use graftwork_tests::{Run, World, program, tensor_digests};

use crate::process::{Process, ask, coordinator, graftwork, socket, worker};

fn led(folder: &Path) -> Result<[Process; 2]> {
    let leader = Process::start(&mut coordinator(folder, &[]))?;
    leader.wait_for("listens on")?;
    Ok([leader, Process::start(&mut worker(folder, &[]))?])
}

pub(crate) fn a_state_is_put_aside_and_brought_back() -> Result<()> {
    let (world, folder) = (World::new()?, tempfile::tempdir()?);
    let (folder, hub) = (folder.path(), folder.path().join("hub"));
    world.long_job("job.toml", &hub.display().to_string(), "")?;
    let processes = led(folder)?;
    let job = ask(&world, folder, &["submit", "job.toml"], &[])?;
    Run::watch(&socket(folder), &job)?.wait_for_checkpoint("topic", 50)?;
    let night = folder.join("state/nightly/mail/nights/000001");
    fs::create_dir_all(&night)?;
    fs::write(night.join("night.json"), "{}")?;
    fs::write(night.join("answers.parquet"), "answers")?;
    let said = graftwork(folder, &["backup", "--state", "state", "--to", "aside"], 0)?;
    ensure!(said.contains("aside holds") && said.contains("up to term 1, 1 nights"), "{said}");
    drop(processes);
    // Of the time after the backup nothing is left.
    for gone in ["state", "hub"] {
        fs::remove_dir_all(folder.join(gone)).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
    }
    damaged_backups_are_refused(folder)?;
    killed_restores_are_run_again(folder)?;
    graftwork(folder, &["restore", "aside", "--state", "state"], 0)?;
    ensure!(fs::read(night.join("answers.parquet"))? == b"answers", "its nights are brought back");
    let said = graftwork(folder, &["restore", "aside", "--state", "state"], 1)?;
    ensure!(said.contains("nothing is written over it"), "{said}");
    let _processes = led(folder)?;
    let mut watch = Run::watch(&socket(folder), &job)?;
    let goes_on = |kind: &EventKind| matches!(kind, EventKind::StageStarted { from_step, .. } if *from_step >= 50);
    watch.wait_for("training that goes on from the checkpoint", |event| goes_on(&event.kind))?;
    watch.finish(0)?;
    ensure!(tensor_digests(&hub)?.len() >= 3, "three releases");
    Ok(())
}

fn damaged_backups_are_refused(folder: &Path) -> Result<()> {
    let blob = largest(&folder.join("aside/blobs"))?;
    let (bytes, manifest) = (fs::read(&blob)?, folder.join("aside/backup.json"));
    let refused = |words: &str| -> Result<()> {
        let said = graftwork(folder, &["restore", "aside", "--state", "state"], 1)?;
        ensure!(said.contains(words), "{words:?}: {said}");
        ensure!(!folder.join("state").exists(), "a state was written: {said}");
        Ok(())
    };
    fs::remove_file(&blob)?;
    refused("is not here")?;
    let mut wrong = bytes.clone();
    wrong[0] ^= 1;
    fs::write(&blob, wrong)?;
    refused("is damaged")?;
    fs::write(&blob, bytes)?;
    let answers = folder.join("aside/nightly/mail/nights/000001/answers.parquet");
    fs::write(&answers, "others!")?;
    refused("its nights have the digest")?;
    fs::write(&answers, "answers")?;
    let text = fs::read_to_string(&manifest)?;
    fs::write(&manifest, text.replace("\"format\": 1", "\"format\": 9"))?;
    refused("it has form 9")?;
    fs::write(&manifest, &text)?;
    let journal = folder.join("aside/journal.sqlite");
    let bytes = fs::read(&journal)?;
    fs::write(&journal, &bytes[..bytes.len() - 1])?;
    refused("its journal has the digest")?;
    fs::write(&journal, bytes)?;
    what_is_in_the_way_stays(folder)?;
    let said = graftwork(folder, &["restore", "nowhere", "--state", "state"], 1)?;
    ensure!(said.contains("nowhere is no whole backup"), "{said}");
    let said = graftwork(folder, &["backup", "--state", "nowhere", "--to", "other"], 1)?;
    ensure!(said.contains("holds no journal"), "{said}");
    let said = graftwork(folder, &["backup", "--state", "postgres://a@b/c", "--to", "other"], 1)?;
    ensure!(said.contains("needs --blobs s3:"), "{said}");
    Ok(())
}

/// kill -9 at whatever moment, and the same again: the state is there with its nights, and nothing else.
fn killed_restores_are_run_again(folder: &Path) -> Result<()> {
    for after_ms in [0, 5, 10, 20, 40, 80] {
        let at = folder.join(format!("killed-{after_ms}"));
        fs::create_dir(&at)?;
        let restore = || {
            let mut restore = Command::new(program());
            restore.current_dir(&at).args(["restore", "../aside", "--state", "state", "--nightly-history", "nights"]);
            restore
        };
        let mut killed = Process::start(&mut restore())?;
        thread::sleep(Duration::from_millis(after_ms));
        killed.kill();
        let again = restore().output()?;
        let said = String::from_utf8_lossy(&again.stderr);
        // One that had given both their name is not done twice.
        ensure!(again.status.success() || said.contains("nothing is written over it"), "{after_ms} ms: {said}");
        let answers = fs::read(at.join("nights/mail/nights/000001/answers.parquet"))?;
        ensure!(answers == b"answers" && at.join("state/journal.sqlite").exists(), "{after_ms} ms: {said}");
        let marks = ["state", "nights"].map(|place| at.join(place).join(".graftwork-unfinished").exists());
        ensure!(fs::read_dir(&at)?.count() == 2 && marks == [false; 2], "{after_ms} ms: something is left: {said}");
    }
    Ok(())
}

/// Nothing is removed that is not known to be ours, and no folder is replaced under whoever stands in it.
fn what_is_in_the_way_stays(folder: &Path) -> Result<()> {
    let others = folder.join("other.unfinished");
    fs::create_dir(&others)?;
    fs::write(others.join("notes"), "years of work")?;
    let said = graftwork(folder, &["restore", "aside", "--state", "other"], 1)?;
    ensure!(said.contains("other.unfinished is there and is no copy of ours"), "{said}");
    ensure!(fs::read(others.join("notes"))? == b"years of work", "somebody's notes are gone");
    fs::remove_dir_all(&others)?;
    let within = folder.join("within");
    fs::create_dir(&within)?;
    for place in [".", ""] {
        let said = graftwork(&within, &["restore", "../aside", "--state", place], 1)?;
        ensure!(said.contains("it does not end with a folder's name"), "{place:?}: {said}");
    }
    let said = graftwork(&within, &["restore", "../aside", "--state", "../within"], 1)?;
    ensure!(said.contains("in which this command runs"), "{said}");
    ensure!(fs::read_dir(&within)?.next().is_none(), "something was written into the folder");
    Ok(fs::remove_dir(within)?)
}

fn largest(blobs: &Path) -> Result<PathBuf> {
    let folders = fs::read_dir(blobs)?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let files = folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    files.map(|entry| entry.path()).max_by_key(|path| path.metadata().map_or(0, |found| found.len())).context("a blob")
}
