//! A state moves from a folder to PostgreSQL and an object store, and back into a folder, each time from under a coordinator
//! that leads: the job goes on from its checkpoint, and publishes what it publishes undisturbed.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::event::EventKind;
use graftwork_tests::{Cluster, Run, Servers, World, program, servers_run, tensor_digests};

use crate::process::{Process, ask, coordinator, ended, graftwork, socket, worker};

/// Why it cannot be tried here, if so.
pub(crate) fn lacks() -> Option<&'static str> {
    (!servers_run()).then_some("no PostgreSQL and object store: make test-servers starts them")
}

/// A database and a prefix of one name, as a command is told of them.
pub(crate) struct Place<'a> {
    servers: &'a Servers,
    database: String,
    prefix: String,
}

impl<'a> Place<'a> {
    /// A new database, and a prefix of the same name.
    pub(crate) fn make(servers: &'a Servers, name: &str) -> Result<Self> {
        servers.make(name)?;
        Ok(Self { servers, database: name.to_owned(), prefix: name.to_owned() })
    }

    pub(crate) fn command(&self, folder: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.current_dir(folder).args(words);
        self.servers.name_both(&mut command, &self.database, &self.prefix, self.servers.port());
        command
    }

    pub(crate) fn run(&self, folder: &Path, words: &[&str], code: i32) -> Result<String> {
        ended(&mut self.command(folder, words), code)
    }
}

/// Waits until a stage goes on from a checkpoint, and gives its step.
fn goes_on(watch: &mut Run) -> Result<u64> {
    let event = watch.wait_for("topic that goes on from its checkpoint", |event| {
        let topic = event.stage.as_ref().is_some_and(|stage| stage.as_str() == "topic");
        topic && matches!(event.kind, EventKind::StageStarted { from_step, .. } if from_step > 0)
    })?;
    match event.kind {
        EventKind::StageStarted { from_step, .. } => Ok(from_step),
        other => anyhow::bail!("not the start of a stage: {other:?}"),
    }
}

pub(crate) fn a_state_moves_to_servers_and_back() -> Result<()> {
    let world = World::new()?;
    let expected = Cluster::undisturbed(&world)?;
    let folder = tempfile::tempdir()?;
    let (folder, hub) = (folder.path(), folder.path().join("hub"));
    world.long_job("job.toml", &hub.display().to_string(), "")?;
    // A night of the folder is kept in the database, and a file again when it comes back.
    let night = folder.join("state/nightly/mail/nights/000001");
    fs::create_dir_all(&night)?;
    for (file, text) in [("night.json", "{}"), ("answers.parquet", "answers")] {
        fs::write(night.join(file), text)?;
    }
    let here = [Process::start(&mut coordinator(folder, &[]))?];
    here[0].wait_for("listens on")?;
    let own_worker = Process::start(&mut worker(folder, &[]))?;
    let job = ask(&world, folder, &["submit", "job.toml"], &[])?;
    Run::watch(&socket(folder), &job)?.wait_for_checkpoint("topic", 50)?;
    graftwork(folder, &["backup", "--state", "state", "--to", "first"], 0)?;
    drop((here, own_worker));

    let servers = Servers::find()?;
    let name = format!("moved_{}", std::process::id());
    let place = Place::make(&servers, &name)?;
    let said = place.run(folder, &["backup", "--to", "none"], 1)?;
    ensure!(said.contains(&format!("{name} holds no journal")), "{said}");
    let said = place.run(folder, &["restore", "first"], 0)?;
    ensure!(said.contains("is as it was"), "{said}");
    let said = place.run(folder, &["restore", "first"], 1)?;
    ensure!(said.contains("holds a journal already"), "{said}");

    let listen = socket(folder);
    let mut leads = place.command(folder, &["coordinator", "--listen", &listen, "--folder", "own"]);
    let there = Process::start(leads.env("XDG_CACHE_HOME", folder.join("cache")))?;
    there.wait_for("listens on")?;
    let its_worker = Process::start(&mut worker(folder, &[]))?;
    let mut watch = Run::watch(&socket(folder), &job)?;
    let step = goes_on(&mut watch)?;
    watch.wait_for_checkpoint("topic", step + 100)?;
    let said = place.run(folder, &["backup", "--to", "second"], 0)?;
    ensure!(said.contains(", 1 nights"), "{said}");
    drop((there, its_worker));
    what_is_used_is_refused(&servers, &name, folder)?;

    fs::remove_dir_all(folder.join("state")).context("removing the first state")?;
    graftwork(folder, &["restore", "second", "--state", "state"], 0)?;
    ensure!(fs::read(night.join("answers.parquet"))? == b"answers", "its night is brought back");
    let back = Process::start(&mut coordinator(folder, &[]))?;
    back.wait_for("listens on")?;
    let _last_worker = Process::start(&mut worker(folder, &[]))?;
    let mut watch = Run::watch(&socket(folder), &job)?;
    let further = goes_on(&mut watch)?;
    ensure!(further >= step + 100, "it went on from step {further}, but a later checkpoint was put aside");
    watch.finish(0)?;
    ensure!(tensor_digests(&hub)? == expected, "other bytes than undisturbed");
    Ok(())
}

/// A prefix with blobs of a state that has gone on since is not written into, and the database stays empty.
fn what_is_used_is_refused(servers: &Servers, name: &str, folder: &Path) -> Result<()> {
    let other = format!("{name}_other");
    servers.make(&other)?;
    let place = Place { servers, database: other, prefix: name.to_owned() };
    let said = place.run(folder, &["restore", "first"], 1)?;
    ensure!(said.contains("holds blobs of another state"), "{said}");
    let said = place.run(folder, &["backup", "--to", "none"], 1)?;
    ensure!(said.contains("holds no journal"), "{said}");
    Ok(())
}
