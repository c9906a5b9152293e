//! Two coordinators on one PostgreSQL database and one object store, of which one leads.
//!
//! The servers are those of `scripts/servers.py`. Each coordinator reaches the database through a proxy of its own, which
//! can hold up everything that passes, as a network does that is cut.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{Servers, World, history, program};

/// How long a program may take to say or do what is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// Two coordinators, a worker that knows both, and their folder; all processes are killed with the value.
pub struct Pair {
    folder: tempfile::TempDir,
    servers: Servers,
    database: String,
    coordinators: Vec<Coordinator>,
    /// What both are told beside their places.
    options: Vec<String>,
    worker: Option<Child>,
}

impl Pair {
    /// Two coordinators of which the first leads and the second waits.
    pub fn start() -> Result<Self> {
        Self::with_options(&[])
    }

    /// The same with options for both.
    pub fn with_options(options: &[&str]) -> Result<Self> {
        let servers = Servers::find()?;
        let database = servers.new_database()?;
        let folder = tempfile::tempdir()?;
        let options = options.iter().map(ToString::to_string).collect();
        let mut pair = Self { folder, servers, database, coordinators: Vec::new(), options, worker: None };
        for (name, line) in [("a", "listens on"), ("b", "waits to take over")] {
            let coordinator = Coordinator::start(&pair, name)?;
            coordinator.wait_for(line)?;
            pair.coordinators.push(coordinator);
        }
        Ok(pair)
    }

    /// One of them.
    pub fn coordinator(&mut self, index: usize) -> &mut Coordinator {
        &mut self.coordinators[index]
    }

    /// The addresses of both.
    pub fn addresses(&self) -> String {
        ["a", "b"].map(|name| self.address(name)).join(",")
    }

    fn address(&self, name: &str) -> String {
        format!("unix://{}", self.path().join(name).join("door/socket").display())
    }

    /// The folder, and what jobs publish into.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a worker of two threads that knows both.
    pub fn start_worker(&mut self) -> Result<()> {
        self.start_worker_of(2)
    }

    /// The same, with so many threads, and places for as many stages.
    pub fn start_worker_of(&mut self, threads: usize) -> Result<()> {
        let mut command = Command::new(program());
        command.current_dir(self.path()).args(["worker", "--coordinator", &self.addresses()]);
        command.args(["--threads", &threads.to_string()]);
        // Every update is told, so that one that is made twice is seen.
        command.args(["--report-every", "0", "--cache", "worker-cache"]).stdin(Stdio::null()).stderr(Stdio::null());
        self.worker = Some(command.spawn()?);
        Ok(())
    }

    /// Submits the long job; gives its id.
    pub fn submit(&self, world: &World) -> Result<String> {
        let hub = self.path().join("hub").display().to_string();
        world.long_job("job.toml", &hub, "")?;
        let mut command = Command::new(program());
        command.current_dir(world.path()).args(["submit", "job.toml", "--coordinator", &self.addresses()]);
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Names their state to a command.
    pub fn name<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.servers.name(command, &self.database, self.servers.port());
        command
    }

    /// The term of the leader's row.
    pub fn term(&self) -> Result<Option<i64>> {
        self.servers.ask(&self.database, "SELECT term FROM graftwork.leader")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.coordinators.clear();
        if let Some(mut worker) = self.worker.take() {
            // One that has ended already is reaped all the same.
            let _ = worker.kill();
            let _ = worker.wait();
        }
        let facts = history::facts_in(&self.servers.config(&self.database));
        history::check_facts_at_the_end(facts, &self.path().join("b/state"));
    }
}

/// One coordinator, and what it says.
pub struct Coordinator {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    wire: Wire,
}

impl Coordinator {
    fn start(pair: &Pair, name: &str) -> Result<Self> {
        let wire = Wire::lay(pair.servers.port())?;
        let mut command = Command::new(program());
        command.current_dir(pair.path()).args(["coordinator", "--folder", name, "--listen", &pair.address(name)]);
        command.args(&pair.options);
        pair.servers.name(&mut command, &pair.database, wire.port);
        command.env("XDG_CACHE_HOME", pair.path().join("cache")).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let lines = BufReader::new(child.stderr.take().context("stderr is piped")?).lines();
        let said = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&said);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, said, wire })
    }

    fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Waits until it says this.
    pub fn wait_for(&self, words: &str) -> Result<()> {
        let began = Instant::now();
        while !self.said().contains(words) {
            ensure!(began.elapsed() < PATIENCE, "it did not say {words:?} but:\n{}", self.said());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Sends it a signal, as `kill` names it.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status()?;
        ensure!(sent.success(), "cannot send {signal}");
        Ok(())
    }

    /// Cuts it off from the database.
    pub fn cut_off(&self) {
        self.wire.cut.store(true, Ordering::SeqCst);
    }

    /// Waits until it ends; gives all that it said.
    pub fn wait(&mut self) -> Result<(ExitStatus, String)> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                // What it said last is still on its way.
                thread::sleep(Duration::from_millis(100));
                return Ok((status, self.said()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("it does not end; it said:\n{}", self.said())
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A way to the database that can be cut: then nothing passes, and nobody is told.
struct Wire {
    port: u16,
    cut: Arc<AtomicBool>,
}

impl Wire {
    fn lay(target: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (port, cut) = (listener.local_addr()?.port(), Arc::<AtomicBool>::default());
        let is_cut = Arc::clone(&cut);
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near?, TcpStream::connect(("127.0.0.1", target))?);
                for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
                    let is_cut = Arc::clone(&is_cut);
                    thread::spawn(move || pass(from, to, &is_cut));
                }
            }
            io::Result::Ok(())
        });
        Ok(Self { port, cut })
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, is_cut: &AtomicBool) -> io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let count = from.read(&mut bytes)?;
        while is_cut.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        if count == 0 {
            return to.shutdown(std::net::Shutdown::Both);
        }
        to.write_all(&bytes[..count])?;
    }
}
