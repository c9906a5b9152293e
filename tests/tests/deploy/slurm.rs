//! Workers of a real Slurm on this machine: they train, are told that their time is over, hand over, and are queued again.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::event::EventKind;
use graftwork_tests::{Cluster, Guarded, Run, World, program, tensor_digests};

use crate::{installed, process::until, root};

/// Why it cannot be tried here, if so: a Slurm that is installed is started once to see whether it does.
pub(crate) fn lacks() -> Option<&'static str> {
    if std::env::var_os("GRAFTWORK_LONG_TESTS").is_none() {
        return Some("it waits for Slurm's own minutes: GRAFTWORK_LONG_TESTS=1, as make test-deploy sets");
    }
    if !["slurmctld", "slurmd", "sbatch", "munged"].iter().all(|name| installed(name)) {
        return Some("Slurm is not installed");
    }
    if !is_root() {
        return Some("only root can start a Slurm of one's own");
    }
    let error = Slurm::start().err()?;
    eprintln!("{error:#}");
    Some("Slurm is installed and does not start here")
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|found| std::os::unix::fs::MetadataExt::uid(&found) == 0)
}

/// A Slurm below a folder of its own, stopped with the value.
struct Slurm {
    folder: tempfile::TempDir,
}

impl Slurm {
    fn start() -> Result<Self> {
        // Munge wants every folder above its socket to be nobody else's, and may not follow into a private one.
        let folder = tempfile::Builder::new().prefix("graftwork-slurm").tempdir_in("/tmp")?;
        let slurm = Self { folder };
        let output = Slurm::script(&["start", slurm.path(), &free_ports()?.to_string()]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(slurm)
    }

    fn path(&self) -> &str {
        self.folder.path().to_str().expect("a temporary path is text")
    }

    fn script(arguments: &[&str]) -> Command {
        let mut command = Command::new(root().join("tests/deploy/slurm.sh"));
        command.args(arguments);
        command
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("etc/slurm.conf")
    }

    fn ask(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = Command::new(program).env("SLURM_CONF", self.configuration()).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {arguments:?}: {said}");
        Ok(said)
    }

    /// The tasks of all jobs, by their names (`ARRAY_INDEX`): the number of the job that each one is, and its state.
    fn tasks(&self) -> BTreeMap<String, (String, String)> {
        let said = self.ask("squeue", &["-h", "-r", "-o", "%i %A %T"]).unwrap_or_default();
        let tasks = said.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let named = tasks.filter_map(|words| <[String; 3]>::try_from(words).ok());
        named.map(|[name, number, state]| (name, (number, state))).collect()
    }

    fn is(&self, task: &str, wanted: &str) -> bool {
        self.tasks().get(task).is_some_and(|(_, state)| state == wanted)
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let _ = Slurm::script(&["stop", self.path()]).status();
    }
}

/// The first of three ports that are free now.
fn free_ports() -> Result<u16> {
    for first in (20_000..60_000).step_by(97) {
        let taken = |port| TcpListener::bind(("127.0.0.1", port)).is_err();
        if !(first..first + 3).any(taken) {
            return Ok(first);
        }
    }
    anyhow::bail!("no three ports in a row are free")
}

/// A job that is not done when Slurm signals, which it does half a minute after the start at the earliest. It has few
/// checkpoints, each of which is a fact, so that its history is read from the first one on.
fn longer_job(world: &World, hub: &Path) -> Result<()> {
    let path = world.long_job("job.toml", &hub.display().to_string(), "")?;
    let mut text = fs::read_to_string(&path)?;
    for (line, longer) in [
        ("epochs = 120\n", "epochs = 1200\n"),
        ("checkpoint_every = 50\n", "checkpoint_every = 500\n"),
        ("evaluate_every = 100\n", "evaluate_every = 1000\n"),
    ] {
        ensure!(text.contains(line), "the long job has no line {line:?}");
        text = text.replace(line, longer);
    }
    Ok(fs::write(path, text)?)
}

fn undisturbed(world: &World) -> Result<BTreeMap<String, graftwork_shared::digest::Digest>> {
    let mut cluster = Cluster::new()?;
    let hub = cluster.path().join("hub");
    longer_job(world, &hub)?;
    let (job, _) = cluster.ask(world, &["submit", "job.toml"], 0)?;
    cluster.start_worker()?;
    Run::watch(&cluster.address(), &job)?.finish(0)?;
    tensor_digests(&hub)
}

pub(crate) fn trains_drains_and_queues_again() -> Result<()> {
    let world = World::new()?;
    let expected = undisturbed(&world)?;
    let guarded = Guarded::new("info")?;
    let slurm = Slurm::start()?;
    let hub = guarded.path().join("hub");
    longer_job(&world, &hub)?;
    let (job, _) = guarded.ask(&world, "ann", &["submit", "job.toml"], 0)?;
    let folder = slurm.folder.path().join("workers");
    let id = submit(&guarded, &slurm, &folder)?;
    let began = Instant::now();
    let both = || {
        let tasks = slurm.tasks();
        (tasks.len() == 2 && tasks.values().all(|(_, state)| state == "RUNNING")).then_some(tasks)
    };
    let tasks = until(Duration::from_mins(1), both).with_context(|| format!("not both run: {:?}", slurm.tasks()))?;
    // The task whose own number is that of the array is the one whose time ends; the other one has longer.
    let own = tasks.iter().find(|(_, (number, _))| *number == id).context("no task has the array's number")?.0;
    let other = tasks.keys().find(|task| *task != own).context("there are two tasks")?;
    slurm.ask("scontrol", &["update", &format!("jobid={other}"), "TimeLimit=30"])?;
    let mut watch = guarded.with("reader")?;
    watch.args(["watch", &job, "--progress", "json", "--coordinator", guarded.address()]);
    let mut watch = Run::watching(watch, guarded.path().join("state"))?;
    watch.wait_for("training", |event| matches!(event.kind, EventKind::Step(_)))?;
    // Two minutes are its time, and a hundred seconds before their end it is told, which Slurm looks after twice a minute.
    let queued = until(Duration::from_secs(150), || slurm.is(own, "PENDING").then_some(()));
    queued.with_context(|| format!("{own} was not queued again: {:?} {}", slurm.tasks(), log(&folder)))?;
    println!("queued again after {:?}", began.elapsed());
    ensure!(slurm.is(other, "RUNNING"), "{other} was queued again too: {:?}", slurm.tasks());
    // Whoever goes on is the one that was queued again.
    slurm.ask("scancel", &[other])?;
    let said = log(&folder);
    ensure!(said.contains("worker leaves"), "it did not drain: {said}");
    // From here on it has the time that it needs; Slurm lets a job that was queued again wait for two minutes.
    slurm.ask("scontrol", &["update", &format!("jobid={own}"), "TimeLimit=30"])?;
    let goes_on = |kind: &EventKind| matches!(kind, EventKind::StageStarted { from_step, .. } if *from_step > 0);
    watch.wait_for("training that goes on from a checkpoint", |event| goes_on(&event.kind))?;
    watch.finish(0)?;
    println!("done after {:?}", began.elapsed());
    ensure!(tensor_digests(&hub)? == expected, "other bytes than undisturbed");
    let (told, _) = guarded.ask(&world, "reader", &["explain", &job], 0)?;
    ensure!(!told.contains("failed"), "draining counted as a failure: {told}");
    for secret in guarded.secrets()? {
        let kept = slurm.ask("scontrol", &["show", "job", &id])? + &script_of(&folder)?;
        ensure!(!kept.contains(&secret), "Slurm keeps a secret");
    }
    slurm.ask("scancel", &[&id])?;
    until(Duration::from_mins(1), || slurm.tasks().is_empty().then_some(())).context("it does not end when cancelled")
}

fn submit(guarded: &Guarded, slurm: &Slurm, folder: &Path) -> Result<String> {
    let file = guarded.path().join("join.token");
    fs::write(&file, guarded.token("worker")?)?;
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let mut deploy = Command::new(program());
    deploy.env("SLURM_CONF", slurm.configuration()).env_remove("GRAFTWORK_TOKEN").args(["deploy", "slurm"]);
    deploy.args(["--coordinator", guarded.address(), "--workers", "2", "--cpus", "2", "--time", "2", "--drain", "100"]);
    deploy.arg("--token-file").arg(&file).arg("--tls-ca").arg(guarded.path().join("tls/ca.pem"));
    deploy.arg("--folder").arg(folder).arg("--argument=--cache").arg(format!("--argument={}/cache", folder.display()));
    let output = deploy.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn script_of(folder: &Path) -> Result<String> {
    Ok(fs::read_to_string(folder.join("graftwork.sbatch"))?)
}

/// What the workers wrote.
fn log(folder: &Path) -> String {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let logs = files.filter(|path| path.extension().is_some_and(|end| end == "log"));
    logs.filter_map(|path| fs::read_to_string(path).ok()).collect()
}
