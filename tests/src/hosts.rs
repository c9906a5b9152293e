//! Hosts of their own for coordinator and workers: network namespaces on one machine, joined by a switch that delays,
//! loses and cuts. Coordinators, workers, members of a group, commands and the database speak TLS, as between machines, and
//! show tokens or certificates; SeaweedFS is plain on this network, which is the test's alone.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_scheduler::Fact;
use serde::Deserialize;
use serde_json::json;

use crate::{Run, World, history, program};

/// Where the coordinator listens, on the first host, and where one listens that takes over from it.
const ADDRESS: &str = "https://10.77.0.1:7070";
const BOTH: &str = "https://10.77.0.1:7070,https://10.77.0.6:7070";

/// Six seconds of the row, and what a slow machine adds.
const TAKEOVER: Duration = Duration::from_secs(20);

/// Hosts of the database with the object store, and of the coordinator that waits.
const SERVERS: usize = 5;
const STANDBY: usize = 6;

/// How `scripts/servers.py` ends where one of its servers is not installed.
const SERVERS_MISSING: i32 = 75;

/// Why hosts cannot be made here; `None` when they can.
pub fn no_hosts() -> Option<String> {
    for (program, package) in [("ip", "iproute2"), ("python3", "python3")] {
        let version = Command::new(program).arg("-V").output();
        if !version.is_ok_and(|output| output.status.success()) {
            return Some(format!("`{program}` is not installed (package {package})"));
        }
    }
    let space = format!("gwprobe{}", std::process::id());
    let made = Command::new("ip").args(["netns", "add", &space]).output();
    if !made.is_ok_and(|output| output.status.success()) {
        return Some("network namespaces need root".to_owned());
    }
    let _ = Command::new("ip").args(["netns", "del", &space]).status();
    (!Path::new("/dev/net/tun").exists()).then(|| "/dev/net/tun is missing".to_owned())
}

/// Why no database and object store can be started here; `None` when they can, which is tried.
pub fn no_servers() -> Option<String> {
    let output = Command::new(servers_script()).arg("true").stdin(Stdio::null()).output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let reason = said.trim().trim_start_matches("servers: skipped: ");
    (output.status.code() == Some(SERVERS_MISSING)).then(|| reason.to_owned())
}

fn servers_script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/servers.py")
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

/// What became of the frames from one host to another.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Toll {
    /// From this host.
    pub from: usize,
    /// To this one.
    pub to: usize,
    /// Frames that passed at once.
    pub passed: u64,
    /// Frames that passed later.
    pub delayed: u64,
    /// Frames that were lost.
    pub lost: u64,
    /// Frames that did not pass because the way was cut.
    pub cut: u64,
}

/// PostgreSQL and SeaweedFS on a host of their own; the end of its stdin ends them.
struct Servers {
    script: Child,
    settings: BTreeMap<String, String>,
}

/// A coordinator on the first host and workers on others, and where asked for a second coordinator with a database and an
/// object store; all are killed with the value.
pub struct Hosts {
    folder: tempfile::TempDir,
    name: String,
    switch: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    tokens: BTreeMap<&'static str, String>,
    coordinators: BTreeMap<usize, Child>,
    workers: BTreeMap<usize, Child>,
    servers: Option<Servers>,
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
        let (tokens, workers, coordinators) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (servers, preload) = (None, None);
        let mut hosts = Self { folder, name, switch, orders, answers, tokens, coordinators, workers, servers, preload };
        let said = hosts.hear()?;
        ensure!(said == "ready", "the switch said {said:?} and not \"ready\"");
        finish(hosts.plain(1).args(["cert", "tls", "--host", "10.77.0.1", "--host", "10.77.0.6"]), 0)?;
        for (token, role) in [("worker", "join"), ("person", "admin")] {
            let text = finish(hosts.plain(1).args(["token", "tokens.toml", token, "--role", role]), 0)?;
            hosts.tokens.insert(token, text);
        }
        Ok(hosts)
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Changes what the network does from now on; gives what it did until now.
    pub fn weather(&mut self, weather: &Weather) -> Result<Vec<Toll>> {
        let Weather { delay_ms, loss, cut } = weather;
        let orders = self.orders.as_mut().context("the switch listens")?;
        writeln!(orders, "{}", json!({ "delay_ms": delay_ms, "loss": loss, "cut": cut }))?;
        let toll = self.hear()?;
        serde_json::from_str(&toll).with_context(|| format!("the switch said {toll:?}"))
    }

    /// Something that runs on a host.
    fn on(&self, host: usize, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-{host}", self.name)]).arg(program);
        command
    }

    /// A command on a host, as whoever has no token.
    fn plain(&self, host: usize) -> Command {
        let mut command = self.on(host, &program());
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
        // One byte in the file for each sync that was held up.
        let text = format!(
            "#include <fcntl.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
             static void hold_up(void) {{\n\
             int count = open(\"{}\", O_WRONLY | O_CREAT | O_APPEND, 0600);\n\
             usleep({milliseconds} * 1000); if (write(count, \".\", 1) != 1) _exit(70); close(count); }}\n\
             int fsync(int file) {{ hold_up(); return syscall(SYS_fsync, file); }}\n\
             int fdatasync(int file) {{ hold_up(); return syscall(SYS_fdatasync, file); }}\n",
            self.path().join("slow.count").display()
        );
        std::fs::write(&source, text)?;
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output()?;
        ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
        self.preload = Some(library);
        Ok(())
    }

    /// How many syncs the slow disk has held up.
    pub fn syncs_held_up(&self) -> Result<u64> {
        Ok(fs::metadata(self.path().join("slow.count")).context("no sync was held up")?.len())
    }

    /// Starts a database and an object store; coordinators that start later keep their state there.
    fn start_servers(&mut self) -> Result<()> {
        let mut command = self.on(SERVERS, &servers_script());
        command.args(["sh", "-c", "env | grep ^GRAFTWORK_TEST_; echo; exec cat"]);
        command.env("GRAFTWORK_SERVERS_ADDRESS", format!("10.77.0.{SERVERS}"));
        let mut script = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(script.stdout.take().context("stdout is piped")?).lines();
        let lines = lines.map_while(Result::ok).take_while(|line| !line.is_empty());
        let settings =
            lines.filter_map(|line| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
        let settings: BTreeMap<String, String> = settings.collect();
        ensure!(settings.contains_key("GRAFTWORK_TEST_STORE"), "the servers do not run: {:?}", settings.keys());
        self.servers = Some(Servers { script, settings });
        Ok(())
    }

    /// Starts the coordinator on the first host, over the state that it left.
    pub fn start_coordinator(&mut self) -> Result<()> {
        self.start_coordinator_on(1, "listens on")
    }

    /// Starts a database, an object store, and two coordinators of which the first leads and the second waits.
    pub fn start_pair(&mut self) -> Result<()> {
        self.start_servers()?;
        self.start_coordinator_on(1, "listens on")?;
        self.start_coordinator_on(STANDBY, "waits to take over")
    }

    fn start_coordinator_on(&mut self, host: usize, until: &str) -> Result<()> {
        let mut command = self.plain(host);
        let address = format!("10.77.0.{host}:7070");
        command.args(["coordinator", "--listen", &address, "--tls", "tls", "--tokens", "tokens.toml"]);
        match &self.servers {
            None => command.args(["--state", "state"]),
            Some(Servers { settings, .. }) => {
                command.args(["--state", &settings["GRAFTWORK_TEST_POSTGRES"]]);
                command.args(["--database-ca", &settings["GRAFTWORK_TEST_POSTGRES_CA"]]);
                command.args(["--database-password-env", "GRAFTWORK_TEST_PASSWORD"]);
                command.args([
                    "--blobs",
                    "s3://graftwork/hosts",
                    "--blobs-credentials-env",
                    "GRAFTWORK_TEST_STORE_KEYS",
                ]);
                command.args(["--folder", &format!("coordinator-{host}")]).envs(settings);
                // SeaweedFS speaks plain HTTP here, on a network that is the test's alone.
                command
                    .env("AWS_ALLOW_HTTP", "true")
                    .env("AWS_ENDPOINT_URL_S3", &settings["GRAFTWORK_TEST_STORE_ENDPOINT"])
            }
        };
        command.env("XDG_CACHE_HOME", self.path().join("cache"));
        command.envs(self.preload.iter().map(|library| ("LD_PRELOAD", library)));
        let mut coordinator = command.stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(coordinator.stderr.take().context("stderr is piped")?).lines();
        self.coordinators.insert(host, coordinator);
        let mut log = File::options().create(true).append(true).open(self.log(host))?;
        let mut lines = lines.map_while(Result::ok);
        loop {
            let line =
                lines.next().with_context(|| format!("the coordinator on host {host} does not say {until:?}"))?;
            writeln!(log, "{line}")?;
            if line.contains(until) {
                break;
            }
        }
        thread::spawn(move || lines.try_for_each(|line| writeln!(log, "{line}")));
        Ok(())
    }

    fn log(&self, host: usize) -> PathBuf {
        self.path().join(format!("coordinator-{host}.log"))
    }

    /// Waits until the coordinator that waited leads.
    pub fn wait_for_standby(&self) -> Result<()> {
        let began = Instant::now();
        while !fs::read_to_string(self.log(STANDBY))?.contains("listens on") {
            ensure!(began.elapsed() < TAKEOVER, "nobody has taken over after {TAKEOVER:?}");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Starts a worker of two threads on a host.
    pub fn start_worker(&mut self, host: usize) -> Result<()> {
        let mut command = self.with(host, "worker")?;
        command.args([
            "worker",
            "--coordinator",
            self.addresses(),
            "--threads",
            "2",
            "--cache",
            &format!("cache-{host}"),
        ]);
        // Every update is told, so that one that is made twice is seen.
        command.args(["--report-every", "0"]);
        command.args(["--group-tls", "tls", "--group-address", &format!("10.77.0.{host}")]);
        let log = File::options().create(true).append(true).open(self.path().join(format!("worker-{host}.log")))?;
        let worker = command.stderr(log).spawn()?;
        self.workers.insert(host, worker);
        Ok(())
    }

    /// kill -9 of the worker on a host.
    pub fn kill_worker(&mut self, host: usize) {
        self.workers.remove(&host).into_iter().for_each(end);
    }

    /// kill -9 of the coordinator on the first host.
    pub fn kill_coordinator(&mut self) {
        self.coordinators.remove(&1).into_iter().for_each(end);
    }

    /// Waits until the coordinator on the first host has ended by itself; gives all that it said.
    pub fn wait_for_the_first_to_end(&mut self) -> Result<String> {
        let began = Instant::now();
        let coordinator = self.coordinators.get_mut(&1).context("a coordinator on the first host")?;
        while coordinator.try_wait()?.is_none() {
            ensure!(began.elapsed() < TAKEOVER, "the first coordinator still runs after {TAKEOVER:?}");
            thread::sleep(Duration::from_millis(20));
        }
        // What it said last is still on its way.
        thread::sleep(Duration::from_millis(100));
        Ok(fs::read_to_string(self.log(1))?)
    }

    /// The host on which the worker of this process id runs.
    pub fn host_of(&self, process: u32) -> Result<usize> {
        let worker = self.workers.iter().find(|(_, worker)| worker.id() == process);
        worker.map(|(host, _)| *host).with_context(|| format!("no worker runs as process {process}"))
    }

    /// Sends a signal, such as STOP or CONT, to the worker, or else the coordinator, on a host.
    pub fn signal(&self, host: usize, signal: &str) -> Result<()> {
        let process = self.workers.get(&host).or_else(|| self.coordinators.get(&host));
        let pid = process.context("somebody on that host")?.id();
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status()?;
        ensure!(sent.success(), "cannot send {signal} to {pid}");
        Ok(())
    }

    /// Runs a command of the user on a host, in the user's folder; gives stdout.
    pub fn ask(&self, world: &World, host: usize, arguments: &[&str]) -> Result<String> {
        let mut command = self.with(host, "person")?;
        finish(command.current_dir(world.path()).args(arguments).args(["--coordinator", self.addresses()]), 0)
    }

    fn addresses(&self) -> &'static str {
        if self.servers.is_some() { BOTH } else { ADDRESS }
    }

    /// Watches a job from the host of the coordinator, or of the one that waits.
    pub fn watch(&self, job: &str) -> Result<Run> {
        let mut command = self.with(if self.servers.is_some() { STANDBY } else { 1 }, "person")?;
        command.args(["watch", job, "--progress", "json", "--coordinator", self.addresses()]);
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
        std::mem::take(&mut self.coordinators).into_values().for_each(end);
        let facts = self.servers.take().map(Servers::end);
        // Its end of stdin takes the namespaces down.
        drop(self.orders.take());
        let _ = self.switch.wait();
        match facts {
            None => history::check_at_the_end(self.path()),
            Some(facts) => history::check_facts_at_the_end(facts, &self.path().join("state")),
        }
    }
}

impl Servers {
    /// What the coordinators wrote, read through the database's socket, which no namespace hides.
    fn end(mut self) -> Result<Vec<Fact>> {
        let folder = Path::new(&self.settings["GRAFTWORK_TEST_POSTGRES_CA"]).parent().context("a folder")?;
        let (_, port) = self.settings["GRAFTWORK_TEST_POSTGRES"].rsplit_once(':').context("a port")?;
        let port = port.split('/').next().unwrap_or_default().parse()?;
        let mut config = tokio_postgres::Config::new();
        config.host_path(folder.join("database")).port(port).user("graftwork").dbname("postgres");
        config.password(&self.settings["GRAFTWORK_TEST_PASSWORD"]);
        let facts = history::facts_in(&config);
        drop(self.script.stdin.take());
        let _ = self.script.wait();
        facts
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
