//! Local workers: child processes that die with this one and are started again, a bounded number of times, when they
//! die alone.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use futures::future::select_all;
use tokio::process::{Child, Command};

use crate::cli::{Failure, OURS, Worker};

/// Deaths without any checkpoint between them after which there is no point in starting workers again.
const MOST_DEATHS: u32 = 6;
/// How long workers may take to leave at the end before they are killed: nothing of theirs is lost by then.
const LEAVING: Duration = Duration::from_secs(3);

/// How each worker is started.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) worker: Worker,
    pub(super) socket: PathBuf,
    pub(super) threads: u32,
    pub(super) cuda: bool,
    pub(super) cache: PathBuf,
    pub(super) log: PathBuf,
}

/// The workers of this process.
pub(super) struct Pool {
    start: Start,
    children: Vec<Child>,
    deaths: u32,
}

impl Pool {
    /// Starts them. They wait for the socket, so that libtorch opens while the job is still being planned.
    pub(super) fn start(start: Start, count: u32) -> Result<Self, Failure> {
        let mut pool = Self { start, children: Vec::new(), deaths: 0 };
        for _ in 0..count {
            pool.children.push(pool.spawn()?);
        }
        Ok(pool)
    }

    fn spawn(&self) -> Result<Child, Failure> {
        let start = &self.start;
        let log = File::options().create(true).append(true).open(&start.log);
        let log = log.with_context(|| format!("opening {}", start.log.display()))?;
        let mut command = Command::from(start.worker.command());
        command
            .arg("session")
            .arg("--coordinator")
            .arg(format!("unix://{}", start.socket.display()))
            .arg("--threads")
            .arg(start.threads.to_string())
            .arg("--cache")
            .arg(&start.cache)
            .arg(format!("--die-with-parent={}", std::process::id()));
        if start.cuda {
            command.args(["--device", "cuda"]);
        }
        // A group of their own: Ctrl-C on the terminal reaches this process alone, which then asks them to stop.
        command.process_group(0).kill_on_drop(true).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command.spawn().context("starting graftwork-worker")?)
    }

    /// Waits until a worker dies; gives what killed it.
    pub(super) async fn died(&mut self) -> ExitStatus {
        if self.children.is_empty() {
            return std::future::pending().await;
        }
        let waits = self.children.iter_mut().map(|child| Box::pin(child.wait()));
        let (status, position, _) = select_all(waits).await;
        self.children.remove(position);
        // A child that cannot be waited for is as good as dead.
        status.unwrap_or_else(|_| ExitStatus::from_raw(9))
    }

    /// Starts another one in place of the dead, after a pause that grows; gives up after too many deaths.
    pub(super) async fn replace(&mut self, status: ExitStatus) -> Result<(), Failure> {
        self.deaths += 1;
        if self.deaths >= MOST_DEATHS {
            let words =
                format!("a worker ended {} times ({status}); its last words:\n{}", self.deaths, self.last_words());
            // Whether it is of another version is asked only now: asking costs as much as starting it.
            self.start.worker.check_version()?;
            return Err(Failure { code: OURS, error: anyhow!(words) });
        }
        tokio::time::sleep(Duration::from_millis(50 << self.deaths.min(6))).await;
        let child = self.spawn()?;
        self.children.push(child);
        Ok(())
    }

    /// Training moves on: earlier deaths no longer count.
    pub(super) fn on_progress(&mut self) {
        self.deaths = 0;
    }

    fn last_words(&self) -> String {
        tail(&self.start.log).unwrap_or_default()
    }

    /// Waits until all have left, and kills those that do not.
    pub(super) async fn leave(&mut self) {
        let all = async {
            for child in &mut self.children {
                let _ = child.wait().await;
            }
        };
        if tokio::time::timeout(LEAVING, all).await.is_err() {
            self.kill().await;
        }
    }

    /// Ends them at once.
    pub(super) async fn kill(&mut self) {
        for child in &mut self.children {
            let _ = child.kill().await;
        }
        self.children.clear();
    }
}

/// The end of a log.
fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(2000)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}
