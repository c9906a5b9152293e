//! Hosts of their own for coordinator and workers: network namespaces on one machine, joined by a switch that delays,
//! loses and cuts. Every connection goes over TLS with tokens, as between machines.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{Run, World, history, program};

/// Where the coordinator listens: the first host.
const ADDRESS: &str = "https://10.77.0.1:7070";

/// Why hosts cannot be made here; `None` when they can.
pub fn no_hosts() -> Option<String> {
    let version = Command::new("ip").arg("-V").output();
    if !version.is_ok_and(|output| output.status.success()) {
        return Some("`ip` is not installed (package iproute2)".to_owned());
    }
    let space = format!("gwprobe{}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &space]).output();
    if !made.is_ok_and(|output| output.status.success()) {
        return Some("network namespaces need root".to_owned());
    }
    let _ = Command::new("ip").args(["netns", "del", &space]).status();
    (!Path::new("/dev/net/tun").exists()).then(|| "/dev/net/tun is missing".to_owned())
}

/// What the network does to frames.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Milliseconds on each way.
    pub delay_ms: u32,
    /// Share of frames that are lost.
    pub loss: f64,
    /// Pairs of hosts, from 1, between which nothing passes in this direction.
    pub cut: Vec<(usize, usize)>,
}

/// A coordinator on the first host and workers on others; all are killed with the value.
pub struct Hosts {
    folder: tempfile::TempDir,
    name: String,
    switch: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    tokens: BTreeMap<&'static str, String>,
    coordinator: Option<Child>,
    workers: BTreeMap<usize, Child>,
    preload: Option<PathBuf>,
}

impl Hosts {
    /// So many hosts, and nothing on them yet but certificates and tokens.
    pub fn new(hosts: usize) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let name = format!("gw{}", std::process::id());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hosts/switch.py");
        let mut switch = Command::new("python3")
            .arg(script)
            .args([&name, &hosts.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("python3 runs the switch")?;
        let orders = switch.stdin.take();
        let answers = BufReader::new(switch.stdout.take().context("stdout is piped")?);
        let (tokens, workers) = (BTreeMap::new(), BTreeMap::new());
        let mut hosts =
            Self { folder, name, switch, orders, answers, tokens, coordinator: None, workers, preload: None };
        hosts.expect("ready")?;
        finish(hosts.plain(1).args(["cert", "tls", "--host", "10.77.0.1"]), 0)?;
        for (token, role) in [("worker", "join"), ("person", "admin")] {
            let text = finish(hosts.plain(1).args(["token", "tokens.toml", token, "--role", role]), 0)?;
            hosts.tokens.insert(token, text);
        }
        Ok(hosts)
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line.trim() == word, "the switch said {line:?} and not {word:?}");
        Ok(())
    }

    /// Changes what the network does from now on.
    pub fn weather(&mut self, weather: &Weather) -> Result<()> {
        let Weather { delay_ms, loss, cut } = weather;
        let orders = self.orders.as_mut().context("the switch listens")?;
        writeln!(orders, "{}", json!({ "delay_ms": delay_ms, "loss": loss, "cut": cut }))?;
        self.expect("done")
    }

    /// A command on a host, as whoever has no token.
    fn plain(&self, host: usize) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-{host}", self.name)]).arg(program());
        command.current_dir(self.path()).env("GRAFTWORK_CA", self.path().join("tls/ca.pem")).stdin(Stdio::null());
        command
    }

    fn with(&self, host: usize, token: &str) -> Result<Command> {
        let mut command = self.plain(host);
        command.env("GRAFTWORK_TOKEN", self.tokens.get(token).context("a token of the cluster")?);
        Ok(command)
    }

    /// From the next start on, the coordinator's disk takes so long for each sync.
    pub fn slow_disk(&mut self, milliseconds: u32) -> Result<()> {
        let (source, library) = (self.path().join("slow.c"), self.path().join("slow.so"));
        let text = format!(
            "#include <unistd.h>\n#include <sys/syscall.h>\n\
             int fsync(int file) {{ usleep({milliseconds} * 1000); return syscall(SYS_fsync, file); }}\n\
             int fdatasync(int file) {{ usleep({milliseconds} * 1000); return syscall(SYS_fdatasync, file); }}\n"
        );
        std::fs::write(&source, text)?;
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output()?;
        ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
        self.preload = Some(library);
        Ok(())
    }

    /// Starts the coordinator on the first host, over the state that it left.
    pub fn start_coordinator(&mut self) -> Result<()> {
        let mut command = self.plain(1);
        command.args(["coordinator", "--state", "state", "--listen", "10.77.0.1:7070"]);
        command.args(["--tls", "tls", "--tokens", "tokens.toml"]).env("XDG_CACHE_HOME", self.path().join("cache"));
        command.envs(self.preload.iter().map(|library| ("LD_PRELOAD", library)));
        let mut coordinator = command.stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(coordinator.stderr.take().context("stderr is piped")?).lines();
        self.coordinator = Some(coordinator);
        let mut lines = lines.map_while(Result::ok);
        lines.find(|line| line.contains("listens on")).context("the coordinator says where it listens")?;
        let mut log = File::options().create(true).append(true).open(self.path().join("coordinator.log"))?;
        std::thread::spawn(move || lines.try_for_each(|line| writeln!(log, "{line}")));
        Ok(())
    }

    /// Starts a worker of two threads on a host.
    pub fn start_worker(&mut self, host: usize) -> Result<()> {
        let mut command = self.with(host, "worker")?;
        command.args(["worker", "--coordinator", ADDRESS, "--threads", "2", "--cache", &format!("cache-{host}")]);
        command.args(["--group-address", &format!("10.77.0.{host}")]);
        let log = File::options().create(true).append(true).open(self.path().join(format!("worker-{host}.log")))?;
        let worker = command.stderr(log).spawn()?;
        self.workers.insert(host, worker);
        Ok(())
    }

    /// kill -9 of the worker on a host.
    pub fn kill_worker(&mut self, host: usize) {
        self.workers.remove(&host).into_iter().for_each(end);
    }

    /// kill -9 of the coordinator.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.take().into_iter().for_each(end);
    }

    /// Sends a signal, such as STOP or CONT, to the worker on a host.
    pub fn signal_worker(&self, host: usize, signal: &str) -> Result<()> {
        let pid = self.workers.get(&host).context("a worker on that host")?.id();
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status()?;
        ensure!(sent.success(), "cannot send {signal} to {pid}");
        Ok(())
    }

    /// Runs a command of the user on a host, in the user's folder; gives stdout.
    pub fn ask(&self, world: &World, host: usize, arguments: &[&str]) -> Result<String> {
        let mut command = self.with(host, "person")?;
        finish(command.current_dir(world.path()).args(arguments).args(["--coordinator", ADDRESS]), 0)
    }

    /// Watches a job from the coordinator's host.
    pub fn watch(&self, job: &str) -> Result<Run> {
        let mut command = self.with(1, "person")?;
        command.args(["watch", job, "--progress", "json", "--coordinator", ADDRESS]);
        Run::watching(command, self.path().join("state"))
    }

    /// The folder: `state`, logs, and what jobs publish into.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        std::mem::take(&mut self.workers).into_values().for_each(end);
        self.kill_coordinator();
        // Its end of stdin takes the namespaces down.
        drop(self.orders.take());
        let _ = self.switch.wait();
        history::check_at_the_end(self.path());
    }
}

fn finish(command: &mut Command, code: i32) -> Result<String> {
    let Output { status, stdout, stderr } = command.output()?;
    let (stdout, stderr) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    ensure!(status.code() == Some(code), "{command:?} ended with {status}: {stdout}{stderr}");
    Ok(stdout.trim().to_owned())
}

/// One that has ended already is reaped all the same; a stopped one is killed too.
fn end(mut process: Child) {
    let _ = process.kill();
    let _ = process.wait();
}
