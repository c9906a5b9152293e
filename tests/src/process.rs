//! The real programs as child processes, their events read line by line.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use graftwork_shared::event::{Event, EventKind};

use crate::history;

/// The `graftwork` program that lies beside the test binaries.
///
/// # Panics
/// When it was not built; `make test` builds it first.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let folder = test.ancestors().nth(2).expect("test binaries lie in target/release/deps");
    let program = folder.join("graftwork");
    let worker = folder.join("graftwork-worker");
    assert!(
        program.exists() && worker.exists(),
        "{} is missing: build the programs first (cargo build --release -p graftwork -p graftwork-worker)",
        if program.exists() { worker.display() } else { program.display() },
    );
    program
}

/// A running `graftwork run --progress json`, or `watch` of a job elsewhere.
pub struct Run {
    child: Child,
    events: std::io::Lines<BufReader<Box<dyn Read + Send>>>,
    seen: Vec<String>,
    /// The state folder of which it tells.
    state: PathBuf,
}

/// How a program ended, and what it said.
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Run {
    /// Starts `graftwork run JOB --progress json MORE…` in the job's folder.
    pub fn start(job: &Path, more: &[&str]) -> Result<Self> {
        let folder = job.parent().context("a job file lies in a folder")?;
        let named = more.iter().position(|word| *word == "--state").and_then(|at| more.get(at + 1));
        let state = folder.join(named.copied().unwrap_or(".graftwork/state"));
        if more.contains(&"--again") {
            history::forget(&state);
        }
        Self::telling(
            Command::new(program()).current_dir(folder).args(["run", "--progress", "json"]).args(more).arg(job),
            state,
        )
    }

    /// Starts `graftwork nightly JOB --progress json` in the job's folder, with its history in `history`.
    pub fn nightly(job: &Path, history: &str) -> Result<Self> {
        let folder = job.parent().context("a job file lies in a folder")?;
        let state = folder.join(history).join("tonight/state");
        history::forget(&state);
        let words = ["nightly", "--progress", "json", "--threads", "2", "--history", history];
        Self::telling(Command::new(program()).current_dir(folder).args(words).arg(job), state)
    }

    /// Starts a command that tells its progress on stderr.
    fn telling(command: &mut Command, state: PathBuf) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        Ok(Self::of(child, Box::new(stderr), state))
    }

    /// Starts `graftwork watch JOB --progress json` at a coordinator.
    pub fn watch(coordinator: &str, job: &str) -> Result<Self> {
        let mut command = Command::new(program());
        command.args(["watch", job, "--progress", "json", "--coordinator", coordinator]);
        // Of a pair, the one that takes over.
        let last = coordinator.rsplit(',').next().unwrap_or_default();
        let socket = Path::new(last.trim_start_matches("unix://"));
        let folder = socket.ancestors().nth(2).context("a cluster's socket lies two folders deep")?;
        Self::watching(command, folder.join("state"))
    }

    /// Starts a command that watches a job with JSON lines; the coordinator's state lies in this folder.
    pub fn watching(mut command: Command, state: PathBuf) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        Ok(Self::of(child, Box::new(stdout), state))
    }

    fn of(child: Child, events: Box<dyn Read + Send>, state: PathBuf) -> Self {
        Self { child, events: BufReader::new(events).lines(), seen: Vec::new(), state }
    }

    /// Reads on to the next event; `None` when the program closed its standard error.
    pub fn next_event(&mut self) -> Result<Option<Event>> {
        for line in self.events.by_ref() {
            let line = line?;
            let event = serde_json::from_str(&line);
            self.seen.push(line);
            if let Ok(event) = event {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Reads on to the first event that `wanted` accepts.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        while let Some(event) = self.next_event()? {
            if wanted(&event) {
                return Ok(event);
            }
        }
        bail!("the program ended before {what}; it said:\n{}", self.seen.join("\n"))
    }

    /// Reads on to a durable checkpoint of a stage at or after a step.
    pub fn wait_for_checkpoint(&mut self, stage: &str, step: u64) -> Result<()> {
        let wanted = |event: &Event| {
            event.stage.as_ref().is_some_and(|name| name.as_str() == stage)
                && matches!(event.kind, EventKind::Checkpointed { step: at } if at >= step)
        };
        self.wait_for(&format!("a checkpoint of {stage} at step {step}"), wanted).map(drop)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process ids of the workers: the program's children.
    pub fn workers(&self) -> Result<Vec<u32>> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let mut pids = read_pids(&path)?;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            pids.extend(read_pids(&task?.path().join("children").to_string_lossy())?);
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// kill -9 of the program itself: coordinator and command line.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for the end, and fails when the program did not exit with `code`.
    pub fn finish(self, code: i32) -> Result<Finished> {
        let finished = self.wait()?;
        if finished.status.code() != Some(code) {
            let Finished { status, stdout, stderr } = &finished;
            bail!("expected exit code {code}, got {status}; it said:\n{stdout}\n{stderr}");
        }
        Ok(finished)
    }

    /// Waits for the end, whatever it is.
    pub fn wait(mut self) -> Result<Finished> {
        for line in self.events.by_ref() {
            self.seen.push(line?);
        }
        let mut stdout = String::new();
        // That of `watch` are its events.
        if let Some(mut piped) = self.child.stdout.take() {
            piped.read_to_string(&mut stdout)?;
        }
        let status = self.child.wait()?;
        Ok(Finished { status, stdout, stderr: self.seen.join("\n") })
    }
}

/// kill -9.
pub fn kill(pid: u32) -> Result<()> {
    ensure!(Command::new("kill").args(["-9", &pid.to_string()]).status()?.success(), "cannot kill {pid}");
    Ok(())
}

impl Drop for Run {
    fn drop(&mut self) {
        // A test that fails must not leave processes behind; one that ended is reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        history::heard(&self.state, self.seen.iter().filter_map(|line| serde_json::from_str(line).ok()).collect());
    }
}

fn read_pids(path: &str) -> Result<Vec<u32>> {
    Ok(std::fs::read_to_string(path)?.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}
