//! A cluster behind TLS and tokens, set up by the commands that a user types. Beside the servers of `scripts/servers.py` its
//! state lies in them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, ensure};

use crate::{Servers, World, history, program, servers_run};

/// Name and role of each token that is made.
const TOKENS: [(&str, &str); 5] =
    [("worker", "join"), ("reader", "read"), ("ann", "submit"), ("bob", "submit"), ("root", "admin")];

/// A coordinator on a TLS port, and its workers; all are killed with the value.
pub struct Guarded {
    folder: tempfile::TempDir,
    /// Where the state lies if not in the folder, with the name of the database.
    servers: Option<(Servers, String)>,
    coordinator: Child,
    workers: Vec<Child>,
    address: String,
    tokens: BTreeMap<String, String>,
    said: Arc<Mutex<String>>,
}

impl Guarded {
    /// Makes certificates and tokens, and starts a coordinator that logs at this level.
    pub fn new(log: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        run(command(folder.path()).args(["cert", "tls", "--host", "127.0.0.1"]), 0)?;
        let mut tokens = BTreeMap::new();
        for (name, role) in TOKENS {
            let (token, _) = run(command(folder.path()).args(["token", "tokens.toml", name, "--role", role]), 0)?;
            tokens.insert(name.to_owned(), token);
        }
        let mut start = command(folder.path());
        start.args(["coordinator", "--listen", "https://127.0.0.1:0"]);
        let servers = servers_run().then(Servers::find).transpose()?;
        let servers = servers.map(|servers| servers.new_database().map(|database| (servers, database))).transpose()?;
        match &servers {
            None => drop(start.args(["--state", "state"])),
            Some((servers, database)) => servers.name(start.args(["--folder", "state"]), database, servers.port()),
        }
        start.args(["--tls", "tls", "--tokens", "tokens.toml", "--hub-root", "hub"]).env("GRAFTWORK_LOG", log);
        start.env("XDG_CACHE_HOME", folder.path().join("cache"));
        let mut coordinator = start.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(coordinator.stderr.take().context("stderr is piped")?).lines();
        let said = Arc::new(Mutex::new(String::new()));
        let address = listening(&mut lines, &said)?;
        let all = Arc::clone(&said);
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| keep(&all, &line)));
        Ok(Self { folder, servers, coordinator, workers: Vec::new(), address, tokens, said })
    }

    /// A worker that shows a token, with its log in a file of that name, and exchanges over TLS.
    pub fn start_worker(&mut self, name: &str) -> Result<()> {
        self.start_worker_with(name, &["--group-tls", "tls"])
    }

    /// The same with these options instead.
    pub fn start_worker_with(&mut self, name: &str, options: &[&str]) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_of(name))?;
        let worker = self.worker(name)?.args(options).stderr(log).spawn()?;
        self.workers.push(worker);
        Ok(())
    }

    /// The command of a worker that shows a token.
    pub fn worker(&self, name: &str) -> Result<Command> {
        let mut worker = self.with(name)?;
        worker.args(["worker", "--coordinator", &self.address, "--threads", "2", "--cache", "worker-cache"]);
        // Every update is told, so that one that is made twice is seen.
        worker.args(["--report-every", "0"]);
        worker.current_dir(self.path()).stdin(Stdio::null());
        Ok(worker)
    }

    /// A command that trusts the cluster's CA and shows a token.
    pub fn with(&self, name: &str) -> Result<Command> {
        let mut with = command(self.path());
        with.env("GRAFTWORK_CA", self.path().join("tls/ca.pem"));
        // With a line's end, as a secret of Kubernetes has it that was made of a file.
        let token = self.tokens.get(name).context("a token of the cluster")?;
        with.env("GRAFTWORK_TOKEN", format!("{}\n", token.trim_end()));
        Ok(with)
    }

    /// Runs a command of a user who has a token, in the user's folder; gives stdout and stderr.
    pub fn ask(&self, world: &World, name: &str, arguments: &[&str], code: i32) -> Result<(String, String)> {
        let mut command = self.with(name)?;
        run(command.current_dir(world.path()).args(arguments).args(["--coordinator", &self.address]), code)
    }

    /// The folder: `tls`, `tokens.toml`, `state`, and what jobs publish into.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The token of this name.
    pub fn token(&self, name: &str) -> Result<&str> {
        self.tokens.get(name).map(String::as_str).context("a token of the cluster")
    }

    /// Where the coordinator listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Everything that coordinator and workers have written to their logs.
    pub fn logs(&self) -> Result<String> {
        let mut text = self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, _) in TOKENS {
            let path = self.log_of(name);
            if path.exists() {
                text.push_str(&fs::read_to_string(path)?);
            }
        }
        Ok(text)
    }

    /// The secrets: tokens without the words before them, bodies of keys, and what the servers ask for.
    pub fn secrets(&self) -> Result<Vec<String>> {
        let mut secrets: Vec<String> =
            self.tokens.values().filter_map(|token| token.rsplit('-').next()).map(str::to_owned).collect();
        for key in ["tls/ca.key", "tls/coordinator.key", "tls/worker.key"] {
            let text = fs::read_to_string(self.path().join(key))?;
            secrets.push(text.lines().nth(1).context("a line of the key")?.to_owned());
        }
        secrets.extend(self.servers.iter().flat_map(|(servers, _)| servers.secrets()).map(str::to_owned));
        Ok(secrets)
    }

    fn log_of(&self, name: &str) -> PathBuf {
        self.path().join(format!("{name}.log"))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        for process in self.workers.iter_mut().chain([&mut self.coordinator]) {
            // One that has ended already is reaped all the same.
            let _ = process.kill();
            let _ = process.wait();
        }
        match &self.servers {
            None => history::check_at_the_end(self.path()),
            Some((servers, database)) => {
                let facts = history::facts_in(&servers.config(database));
                history::check_facts_at_the_end(facts, &self.path().join("state"));
            }
        }
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new(program());
    command.current_dir(folder);
    for variable in ["GRAFTWORK_CA", "GRAFTWORK_TOKEN", "GRAFTWORK_COORDINATOR", "GRAFTWORK_LOG"] {
        command.env_remove(variable);
    }
    command
}

fn run(command: &mut Command, code: i32) -> Result<(String, String)> {
    let Output { status, stdout, stderr } = command.output()?;
    let (stdout, stderr) = (String::from_utf8(stdout)?, String::from_utf8(stderr)?);
    ensure!(status.code() == Some(code), "{command:?} ended with {status}: {stdout}{stderr}");
    Ok((stdout.trim().to_owned(), stderr))
}

fn keep(said: &Mutex<String>, line: &str) {
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    said.push_str(line);
    said.push('\n');
}

/// Reads on to the line that says where the coordinator listens.
fn listening(lines: &mut impl Iterator<Item = std::io::Result<String>>, said: &Mutex<String>) -> Result<String> {
    for line in lines.map_while(Result::ok) {
        keep(said, &line);
        if let Some((_, address)) = line.split_once(" listens on ") {
            return Ok(address.to_owned());
        }
    }
    anyhow::bail!(
        "the coordinator did not say where it listens: {}",
        said.lock().unwrap_or_else(PoisonError::into_inner)
    )
}
