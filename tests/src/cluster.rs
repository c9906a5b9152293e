//! A coordinator in a folder of its own, workers beside it, and links between them that can be cut. Beside the servers of
//! `scripts/servers.py` its state lies in a database and its blobs in an object store.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead as _, BufReader},
    net::{Shutdown, TcpListener},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use graftwork_shared::digest::Digest;

use crate::{Run, Servers, World, history, program, servers_run, tensor_digests};

/// What a cluster on loopback asks of its workers.
const TOKEN: &str = "of-the-clusters-workers";

/// The processes of a cluster on one machine; all are killed with the value.
pub struct Cluster {
    folder: tempfile::TempDir,
    /// Where the state lies, with the name of the database; `None`: in the folder.
    servers: Option<(Servers, String)>,
    options: Vec<String>,
    /// `IP:PORT` where workers reach the coordinator, with [`TOKEN`]; `None`: all use the socket.
    loopback: Option<String>,
    coordinator: Option<Child>,
    workers: Vec<Child>,
}

impl Cluster {
    /// A coordinator without workers: over a database and an object store where they run, and a folder elsewhere.
    pub fn new() -> Result<Self> {
        Self::with_options(&[])
    }

    /// The same, with further options of the coordinator at each of its starts.
    pub fn with_options(options: &[&str]) -> Result<Self> {
        let servers = servers_run().then(Servers::find).transpose()?;
        let servers = servers.map(|servers| servers.new_database().map(|database| (servers, database))).transpose()?;
        Self::over(servers, options)
    }

    /// The tensors of the long job, trained by one worker to which nothing happens.
    pub fn undisturbed(world: &World) -> Result<BTreeMap<String, Digest>> {
        let mut cluster = Self::new()?;
        let hub = cluster.path().join("hub");
        world.long_job("job.toml", &hub.display().to_string(), "")?;
        let (job, _) = cluster.ask(world, &["submit", "job.toml"], 0)?;
        cluster.start_worker()?;
        Run::watch(&cluster.address(), &job)?.finish(0)?;
        tensor_digests(&hub)
    }

    /// The same over a folder alone, for what is about the files in it.
    pub fn in_a_folder() -> Result<Self> {
        Self::over(None, &[])
    }

    fn over(servers: Option<(Servers, String)>, options: &[&str]) -> Result<Self> {
        let (folder, options) = (tempfile::tempdir()?, options.iter().map(|option| (*option).to_owned()).collect());
        let mut cluster = Self { folder, servers, options, loopback: None, coordinator: None, workers: Vec::new() };
        cluster.start_coordinator()?;
        Ok(cluster)
    }

    /// The same cluster, whose workers reach the coordinator over TCP from its next start on.
    pub fn over_loopback(mut self) -> Result<Self> {
        self.kill();
        // Free now; each start of the coordinator takes it again.
        self.loopback = Some(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string());
        self.start_coordinator()?;
        Ok(self)
    }

    /// Names to `graftwork verify` where the uploads of this cluster lie.
    pub fn name_uploads<'a>(&self, verify: &'a mut Command) -> &'a mut Command {
        match &self.servers {
            None => drop(verify.arg("--uploads").arg(self.path().join("state"))),
            Some((servers, database)) => servers.name_blobs(verify, "--uploads", database),
        }
        verify
    }

    /// Starts the coordinator, over the state that it left.
    pub fn start_coordinator(&mut self) -> Result<()> {
        let address = self.address();
        let mut command = Command::new(program());
        command.current_dir(self.path()).args(["coordinator", "--listen", &address]);
        match &self.servers {
            None => drop(command.args(["--state", "state"])),
            Some((servers, database)) => {
                servers.name(command.args(["--folder", "state"]), database, servers.port());
            }
        }
        command.args(&self.options);
        if let Some(loopback) = &self.loopback {
            command.args(["--listen", loopback, "--token-env", "CLUSTER_TOKEN"]).env("CLUSTER_TOKEN", TOKEN);
        }
        command.env("XDG_CACHE_HOME", self.path().join("cache")).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut coordinator = command.spawn()?;
        let lines = BufReader::new(coordinator.stderr.take().context("stderr is piped")?).lines();
        self.coordinator = Some(coordinator);
        let mut lines = lines.map_while(Result::ok);
        lines.find(|line| line.contains("listens on")).context("the coordinator says where it listens")?;
        // What it says later must not fill the pipe.
        thread::spawn(move || lines.count());
        Ok(())
    }

    /// Starts a worker of two threads; gives its process id.
    pub fn start_worker(&mut self) -> Result<u32> {
        match self.loopback.clone() {
            None => self.start_worker_through(&self.address()),
            Some(loopback) => self.start_worker_in(&[("GRAFTWORK_TOKEN", TOKEN)], &loopback, &[]),
        }
    }

    /// The same, over another address, as that of a [`Link`].
    pub fn start_worker_through(&mut self, address: &str) -> Result<u32> {
        self.start_worker_with(address, &[])
    }

    /// The same, with further options.
    pub fn start_worker_with(&mut self, address: &str, options: &[&str]) -> Result<u32> {
        self.start_worker_in(&[], address, options)
    }

    /// The same, with further variables in its environment.
    pub fn start_worker_in(&mut self, environment: &[(&str, &str)], address: &str, options: &[&str]) -> Result<u32> {
        let mut command = Command::new(program());
        command.current_dir(self.path()).args(["worker", "--coordinator", address, "--threads", "2"]);
        // Every update is told, so that one that is made twice is seen.
        command.args(["--report-every", "0"]).args(options).envs(environment.iter().copied());
        let worker = command.args(["--cache", "worker-cache"]).stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let pid = worker.id();
        self.workers.push(worker);
        Ok(pid)
    }

    /// kill -9 of the coordinator.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.take().into_iter().for_each(end);
    }

    /// kill -9 of a worker.
    pub fn kill_worker(&mut self, pid: u32) {
        self.workers.extract_if(.., |worker| worker.id() == pid).for_each(end);
    }

    /// SIGTERM to a worker, which finishes its step, hands over and ends; gives how it ended.
    pub fn stop_worker(&mut self, pid: u32) -> Result<ExitStatus> {
        let position = self.workers.iter().position(|worker| worker.id() == pid).context("no such worker")?;
        stop(self.workers.remove(position)).context("a worker")
    }

    /// Waits until a worker ends by itself; gives how it ended.
    pub fn wait_for_worker(&mut self, pid: u32) -> Result<ExitStatus> {
        let position = self.workers.iter().position(|worker| worker.id() == pid).context("no such worker")?;
        ended(self.workers.remove(position)).context("a worker")
    }

    /// SIGTERM to the coordinator; gives how it ended.
    pub fn stop_coordinator(&mut self) -> Result<ExitStatus> {
        stop(self.coordinator.take().context("no coordinator runs")?).context("the coordinator")
    }

    /// kill -9 of everything, and a coordinator that knows nothing and an empty hub in its place.
    pub fn begin_anew(&mut self) -> Result<()> {
        self.kill();
        match &mut self.servers {
            None => history::check(self.path())?,
            Some((servers, database)) => {
                let facts = history::facts_in(&servers.config(database))?;
                history::check_facts(&facts, &self.folder.path().join("state"))?;
                *database = servers.new_database()?;
            }
        }
        history::forget(&self.path().join("state"));
        for folder in ["state", "hub"].map(|name| self.path().join(name)) {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
        }
        self.start_coordinator()
    }

    /// kill -9 of everything.
    pub fn kill(&mut self) {
        self.workers.drain(..).for_each(end);
        self.kill_coordinator();
    }

    /// The folder: `state`, and what jobs publish into.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where the coordinator listens.
    pub fn address(&self) -> String {
        format!("unix://{}", self.path().join("door/socket").display())
    }

    /// Runs a command of the user, in the user's folder; gives stdout and stderr.
    pub fn ask(&self, world: &World, arguments: &[&str], code: i32) -> Result<(String, String)> {
        let mut command = Command::new(program());
        command.current_dir(world.path()).args(arguments).args(["--coordinator", &self.address()]);
        let Output { status, stdout, stderr } = command.output()?;
        let (stdout, stderr) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
        ensure!(status.code() == Some(code), "{arguments:?} ended with {status}: {stdout}{stderr}");
        Ok((stdout.trim().to_owned(), stderr))
    }

    /// A job of the user that publishes into this folder.
    pub fn job(&self, world: &World) -> Result<PathBuf> {
        world.job("job.toml", &self.path().join("hub").display().to_string(), "")
    }

    /// A way to the coordinator that can be cut.
    pub fn link(&self) -> Result<Link> {
        Link::open(&self.path().join("door/socket"), self.path().join("link"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
        match &self.servers {
            None => history::check_at_the_end(self.path()),
            Some((servers, database)) => {
                let facts = history::facts_in(&servers.config(database));
                history::check_facts_at_the_end(facts, &self.path().join("state"));
            }
        }
    }
}

/// SIGTERM, and the end that comes of it.
fn stop(process: Child) -> Result<ExitStatus> {
    let pid = process.id();
    ensure!(Command::new("kill").args(["-TERM", &pid.to_string()]).status()?.success(), "cannot send SIGTERM to {pid}");
    ended(process)
}

/// The end that comes within a minute.
fn ended(mut process: Child) -> Result<ExitStatus> {
    let (pid, until) = (process.id(), Instant::now() + Duration::from_mins(1));
    while Instant::now() < until {
        if let Some(status) = process.try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(20));
    }
    end(process);
    bail!("process {pid} was to end and did not within a minute")
}

/// One that has ended already is reaped all the same.
fn end(mut process: Child) {
    let _ = process.kill();
    let _ = process.wait();
}

/// Passes bytes between a socket of its own and the coordinator's.
pub struct Link {
    socket: PathBuf,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Link {
    fn open(target: &Path, socket: PathBuf) -> Result<Self> {
        let (listener, target) = (UnixListener::bind(&socket)?, target.to_owned());
        let open = Arc::new(Mutex::new(Vec::new()));
        let streams = Arc::clone(&open);
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near?, UnixStream::connect(&target)?);
                for (mut from, mut to) in [(near.try_clone()?, far.try_clone()?), (far.try_clone()?, near.try_clone()?)]
                {
                    thread::spawn(move || io::copy(&mut from, &mut to));
                }
                streams.lock().unwrap_or_else(PoisonError::into_inner).extend([near, far]);
            }
            io::Result::Ok(())
        });
        Ok(Self { socket, open })
    }

    /// Where to connect instead of to the coordinator.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Breaks every connection; new ones pass.
    pub fn cut(&self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // The other side may have closed it meanwhile.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
