//! `graftwork submit` to a coordinator that sees nothing of the user's disk.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::digest::Digest;
use graftwork_tests::{Run, World, program, tree_digests};

/// A coordinator in a folder of its own, and a worker beside it; both are killed with the value.
struct Elsewhere {
    folder: tempfile::TempDir,
    processes: Vec<Child>,
}

impl Elsewhere {
    fn new() -> Result<Self> {
        let mut elsewhere = Self { folder: tempfile::tempdir()?, processes: Vec::new() };
        elsewhere.start_coordinator()?;
        Ok(elsewhere)
    }

    fn start_coordinator(&mut self) -> Result<()> {
        let address = self.address();
        let mut command = Command::new(program());
        command.current_dir(self.path()).args(["coordinator", "--listen", &address, "--state", "state"]);
        command.env("XDG_CACHE_HOME", self.path().join("cache")).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut coordinator = command.spawn()?;
        let lines = BufReader::new(coordinator.stderr.take().context("stderr is piped")?).lines();
        self.processes.push(coordinator);
        let mut lines = lines.map_while(Result::ok);
        lines.find(|line| line.contains("listens on")).context("the coordinator says where it listens")?;
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.count());
        Ok(())
    }

    /// kill -9 of everything.
    fn kill(&mut self) {
        for mut process in self.processes.drain(..) {
            // One that has ended already is reaped all the same.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn address(&self) -> String {
        format!("unix://{}", self.path().join("door/socket").display())
    }

    fn start_worker(&mut self) -> Result<()> {
        let address = self.address();
        let mut command = Command::new(program());
        command.current_dir(self.path()).args(["worker", "--coordinator", &address, "--threads", "2"]);
        command.args(["--cache", "worker-cache"]).stdin(Stdio::null()).stderr(Stdio::null());
        self.processes.push(command.spawn()?);
        Ok(())
    }

    /// Runs a command of the user, in the user's folder; gives stdout and stderr.
    fn ask(&self, world: &World, arguments: &[&str], code: i32) -> Result<(String, String)> {
        let mut command = Command::new(program());
        command.current_dir(world.path()).args(arguments).args(["--coordinator", &self.address()]);
        let Output { status, stdout, stderr } = command.output()?;
        let (stdout, stderr) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
        ensure!(status.code() == Some(code), "{arguments:?} ended with {status}: {stdout}{stderr}");
        Ok((stdout.trim().to_owned(), stderr))
    }

    /// A job of the user that publishes into this folder.
    fn job(&self, world: &World) -> Result<PathBuf> {
        world.job("job.toml", &self.path().join("hub").display().to_string(), "")
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Digests of the published tensor files, by their paths in the hub; a release's own folder is named after its record,
/// which names places.
fn tensors(hub: &Path) -> Result<Vec<(String, Digest)>> {
    let digests = tree_digests(hub)?;
    let is_tensors = |name: &str| name.ends_with(".safetensors") && !name.starts_with('.');
    let mut found: Vec<_> = digests.into_iter().filter(|(name, _)| is_tensors(name)).collect();
    found.sort();
    ensure!(found.len() >= 4, "too few releases: {found:?}");
    Ok(found)
}

#[test]
fn a_job_trains_from_its_uploads_alone_to_the_bytes_of_a_local_run() -> Result<()> {
    let (world, mut elsewhere) = (World::new()?, Elsewhere::new()?);
    elsewhere.job(&world)?;
    let (job, said) = elsewhere.ask(&world, &["submit", "job.toml"], 0)?;
    ensure!(said.contains("uploaded 13 files"), "nine of rows, three of the base model and their list: {said}");
    for folder in ["data", "base"] {
        std::fs::remove_dir_all(world.path().join(folder))?;
    }
    // What was uploaded is kept with the job over kill -9.
    elsewhere.kill();
    elsewhere.start_coordinator()?;
    elsewhere.start_worker()?;
    elsewhere.ask(&world, &["watch", &job], 0)?;

    // The same content from another folder is the same job, and nothing of it travels again.
    let again = World::new()?;
    elsewhere.job(&again)?;
    let (same, said) = elsewhere.ask(&again, &["submit", "job.toml"], 0)?;
    ensure!(same == job && said.contains("nothing to upload: 13 files there already"), "{same}, {job}: {said}");

    let local = again.job("local.toml", "hub", "")?;
    Run::start(&local, &["--state", "state"])?.finish(0)?;
    assert_eq!(tensors(&elsewhere.path().join("hub"))?, tensors(&again.path().join("hub"))?);

    // A release is trained again from its record and the coordinator's blobs.
    let release = elsewhere.path().join("hub/tests/mood").display().to_string();
    let mut verify = Command::new(program());
    verify.current_dir(again.path()).args(["verify", "--retrain", &release]);
    let Output { status, stderr, .. } = verify.output()?;
    let said = String::from_utf8(stderr)?;
    ensure!(status.code() == Some(1) && said.contains("name its state folder with --uploads"), "{said}");
    let state = elsewhere.path().join("state").display().to_string();
    let Output { status, stdout, stderr } = verify.args(["--uploads", &state]).output()?;
    let said = String::from_utf8([stdout, stderr].concat())?;
    ensure!(status.success() && said.contains("adapter.safetensors"), "{said}");
    Ok(())
}

#[test]
fn a_damaged_upload_is_refused_and_submitting_again_mends_it() -> Result<()> {
    let (world, mut elsewhere) = (World::new()?, Elsewhere::new()?);
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
    let (report, _) = elsewhere.ask(&world, &["report", &job, "--json"], 0)?;
    ensure!(report.contains("is damaged") && report.contains("submit the job again"), "{report}");
    let (same, said) = elsewhere.ask(&world, &["submit", "job.toml"], 0)?;
    ensure!(same == job && said.contains("uploaded 1 file,"), "{said}");
    elsewhere.ask(&world, &["watch", &job], 0)?;
    Ok(())
}

#[test]
fn shared_files_are_read_in_place_and_refused_when_they_changed() -> Result<()> {
    let (world, mut elsewhere) = (World::new()?, Elsewhere::new()?);
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
