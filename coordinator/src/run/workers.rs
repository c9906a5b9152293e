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
use tokio::{
    process::{Child, Command},
    time::Instant,
};

use crate::cli::{Failure, OURS, Worker};

/// Deaths without any checkpoint between them after which there is no point in starting workers again.
const MOST_DEATHS: u32 = 6;
/// How long workers may take to leave at the end before they are killed: nothing of theirs is lost by then.
const LEAVING: Duration = Duration::from_secs(3);

/// What a worker would start itself again for, and open libtorch twice.
const OPENMP: [(&str, &str); 2] = [("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE")];

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
    /// When those that died alone are started again.
    due: Vec<Instant>,
    deaths: u32,
}

/// What happens to workers.
pub(super) enum Change {
    /// One ended, so.
    Died(ExitStatus),
    /// One is to be started again.
    Due,
}

impl Pool {
    /// Starts them. They wait for the socket, so that libtorch opens while the job is still being planned.
    pub(super) fn start(start: Start, count: u32) -> Result<Self, Failure> {
        let mut pool = Self { start, children: Vec::new(), due: Vec::new(), deaths: 0 };
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
            .envs(OPENMP)
            .arg("worker")
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

    /// Waits until a worker dies, or another one is due in a dead one's place. Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) -> Change {
        let due = self.due.iter().min().copied();
        tokio::select! {
            status = died(&mut self.children) => Change::Died(status),
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Change::Due,
        }
    }

    /// Plans another one in place of a dead one, after a pause that grows, or starts it; gives up after too many deaths.
    pub(super) fn on_change(&mut self, change: Change) -> Result<(), Failure> {
        let status = match change {
            Change::Died(status) => status,
            Change::Due => {
                let now = Instant::now();
                let (over, later) = self.due.iter().partition(|due| **due <= now);
                self.due = later;
                let over: Vec<Instant> = over;
                return over.iter().try_for_each(|_| self.spawn().map(|child| self.children.push(child)));
            }
        };
        self.deaths += 1;
        if self.deaths >= MOST_DEATHS {
            let words =
                format!("a worker ended {} times ({status}); its last words:\n{}", self.deaths, self.last_words());
            // Whether it is of another version is asked only now: asking costs as much as starting it.
            self.start.worker.check_version()?;
            return Err(Failure { code: OURS, error: anyhow!(words) });
        }
        self.due.push(Instant::now() + Duration::from_millis(50 << self.deaths.min(6)));
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
        self.due.clear();
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

/// Waits until one of these dies; gives what killed it.
async fn died(children: &mut Vec<Child>) -> ExitStatus {
    if children.is_empty() {
        return std::future::pending().await;
    }
    let waits = children.iter_mut().map(|child| Box::pin(child.wait()));
    let (status, position, _) = select_all(waits).await;
    children.remove(position);
    // A child that cannot be waited for is as good as dead.
    status.unwrap_or_else(|_| ExitStatus::from_raw(9))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_before_a_new_worker_holds_up_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let start = Start {
            // A program that does not know what it is asked: it ends at once.
            worker: Worker::at("/bin/false".into()),
            socket: path("socket"),
            threads: 1,
            cuda: false,
            cache: path("cache"),
            log: path("log"),
        };
        let mut pool = Pool::start(start, 1).unwrap();
        pool.deaths = 4;
        let begun = Instant::now();
        for deaths in [5, 6] {
            let Change::Died(status) = pool.changed().await else { panic!("nothing is due yet") };
            let noted = Instant::now();
            let ended = pool.on_change(Change::Died(status));
            assert!(noted.elapsed() < Duration::from_millis(200), "noting death {deaths} waits for nothing");
            if deaths == 6 {
                assert!(format!("{:#}", ended.unwrap_err().error).contains("does not start"));
                break;
            }
            ended.unwrap();
            // Something else happens meanwhile, and the pause is not forgotten.
            assert!(tokio::time::timeout(Duration::from_millis(50), pool.changed()).await.is_err());
            assert!(matches!(pool.changed().await, Change::Due));
            pool.on_change(Change::Due).unwrap();
            assert!(begun.elapsed() >= Duration::from_millis(1_600), "the pause is kept");
        }
    }
}
