//! Runs the commands of a page one after the other, as a reader would, with the real programs.
//!
//! What a reader has and this machine has not is put in its place: folders of the system lie below one folder, addresses are
//! of loopback, and the models and rows of the job are small ones. Everything else runs as it is written.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command as Program, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use graftwork_tests::{World, program};

use crate::{
    names::words,
    page::{self, Command},
    root,
};

/// How long a program may take to say that it is there.
const PATIENCE: Duration = Duration::from_mins(1);

/// A program that goes on beside the commands; killed with the value.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        // One that has ended already is reaped all the same.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the commands of one page after the other run.
pub(crate) struct Shell {
    folder: tempfile::TempDir,
    /// The folder of the page.
    here: PathBuf,
    environment: BTreeMap<String, String>,
    beside: Vec<Beside>,
    /// The job that was run or submitted last.
    job: String,
    /// Tokens by role.
    tokens: BTreeMap<String, String>,
    ports: [u16; 3],
    /// Commands that want what later ones make.
    later: Vec<Command>,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Shell {
    pub(crate) fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let here = folder.path().to_owned();
        let ports = [free_port()?, free_port()?, free_port()?];
        Ok(Self {
            folder,
            here,
            environment: BTreeMap::new(),
            beside: Vec::new(),
            job: String::new(),
            tokens: BTreeMap::new(),
            ports,
            later: Vec::new(),
        })
    }

    /// An empty folder with the job of README.md, its model and its rows, for the commands of a page.
    pub(crate) fn begin(&mut self, page: &str) -> Result<()> {
        self.beside.clear();
        self.environment.clear();
        self.here = self.folder.path().join(page.replace(['/', '.'], "-"));
        for name in ["models", "data", "home"] {
            fs::create_dir_all(self.here.join(name))?;
        }
        let world = World::new()?;
        copy(&world.path().join("base"), &self.here.join("models/all-minilm-l6-v2"))?;
        copy(&world.path().join("data/topic"), &self.here.join("data/question_type"))?;
        world.write_groups(&self.here.join("data/movie/rows.parquet"), "movie")?;
        // The small model reads no longer rows.
        let job = page::job("README.md")?.replace("[defaults.training]\n", "[defaults.training]\nmax_length = 32\n");
        ensure!(job.contains("max_length = 32"), "the job of README.md has no [defaults.training] any more");
        Ok(fs::write(self.here.join("job.toml"), job)?)
    }

    /// What waited for later commands; then everything beside ends.
    pub(crate) fn end(&mut self) -> Result<()> {
        for command in std::mem::take(&mut self.later) {
            self.now(&command).with_context(|| command.to_string())?;
        }
        self.beside.clear();
        Ok(())
    }

    /// Runs a command, or keeps it for the end of its page.
    pub(crate) fn run(&mut self, command: &Command) -> Result<()> {
        if command.text.starts_with("target/release/graftwork predict ") {
            self.later.push(command.clone());
            return Ok(());
        }
        self.now(command)
    }

    fn now(&mut self, command: &Command) -> Result<()> {
        let text = self.in_place(&command.text)?;
        let words = words(&text);
        let verb = match words.as_slice() {
            [first, rest @ ..] if first == "export" => {
                let pairs = rest.iter().filter_map(|word| word.split_once('='));
                self.environment.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
                return Ok(());
            }
            [first, verb, ..] if first == "graftwork" => verb.as_str(),
            _ => bail!("no rule says how it runs"),
        };
        match verb {
            "coordinator" => {
                // The next block is another cluster.
                self.beside.clear();
                if text.contains("--hub-root") {
                    self.publish_below(&self.folder.path().join("data/hub"))?;
                }
                self.start(&text, "listens on")
            }
            "worker" => self.start(&text, ""),
            "restore" => {
                self.beside.clear();
                let state = words.last().context("it names a state")?;
                fs::rename(state, format!("{state}-before"))?;
                self.done(&text).map(drop)
            }
            "deploy" => {
                let tls = self.here.join("home/tls");
                self.done(&format!("graftwork cert {} --host 10.0.0.7", tls.display()))?;
                let said = self.done(&format!("{text} --dry-run"))?;
                let script = fs::read_to_string(said.trim())?;
                ensure!(script.contains("#SBATCH --array=0-15"), "it wrote another script: {script}");
                Ok(())
            }
            _ => {
                let said = self.done(&text)?;
                self.remember(verb, &words, &said)
            }
        }
    }

    /// The command with what there is here in the place of what a reader has.
    fn in_place(&self, text: &str) -> Result<String> {
        let below = |name: &str| self.folder.path().join(name).display().to_string();
        let [port, metrics, of_worker] = self.ports;
        let token = |role: &str| self.tokens.get(role).cloned().unwrap_or_default();
        let mut text = text.to_owned();
        for (from, to) in [
            ("/data/", below("data/")),
            ("/var/lib/", below("var/")),
            ("/backup/", below("backup/")),
            // Without a scheme, loopback would be plain.
            ("https://10.0.0.7:7700", "10.0.0.7:7700".to_owned()),
            ("10.0.0.7:7700", format!("https://127.0.0.1:{port}")),
            ("0.0.0.0:7700", format!("https://127.0.0.1:{port}")),
            ("--host 10.0.0.7", "--host 127.0.0.1".to_owned()),
            ("10.0.0.8", "127.0.0.1".to_owned()),
            ("127.0.0.1:9464", format!("127.0.0.1:{metrics}")),
            ("127.0.0.1:9465", format!("127.0.0.1:{of_worker}")),
            ("graftwork-join-…", token("join")),
            ("graftwork-submit-…", token("submit")),
            ("target/release/graftwork", "graftwork".to_owned()),
            (".graftwork/base/", "models/".to_owned()),
            ("out/hub/quickstart/", "out/hub/my-team/".to_owned()),
            ("--repeat 12:", "--repeat 1:".to_owned()),
        ] {
            text = text.replace(from, &to);
        }
        for folder in ["data", "var", "backup"] {
            fs::create_dir_all(self.folder.path().join(folder))?;
        }
        let words = text.split(' ').map(|word| if word == "JOB" { self.job.as_str() } else { word });
        Ok(words.collect::<Vec<_>>().join(" "))
    }

    fn program(&self, text: &str) -> Result<Program> {
        let programs = program().parent().context("programs lie in a folder")?.to_owned();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Program::new("sh");
        command.args(["-c", text]).current_dir(&self.here).envs(&self.environment).stdin(Stdio::null());
        command.env("PATH", format!("{}:{path}", programs.display())).env("HOME", self.here.join("home"));
        command.env_remove("XDG_CACHE_HOME");
        Ok(command)
    }

    /// Runs it to its end, which must be a good one; gives what it printed.
    fn done(&self, text: &str) -> Result<String> {
        let Output { status, stdout, stderr } = self.program(text)?.output()?;
        let (said, told) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        // The small model need not reach what the job expects of a real one.
        let trains = ["run", "watch", "nightly"].iter().any(|verb| text.starts_with(&format!("graftwork {verb} ")));
        let missed = status.code() == Some(3) && trains;
        ensure!(status.success() || missed, "{text}\nended with {status}: {said}{told}");
        Ok(said.into_owned())
    }

    /// Starts what goes on, and waits until it says this.
    fn start(&mut self, text: &str, says: &str) -> Result<()> {
        let mut child = self.program(&format!("exec {text}"))?.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stderr.take().context("stderr is piped")?).lines();
        self.beside.push(Beside(child));
        let said = Arc::<Mutex<Vec<String>>>::default();
        let heard = Arc::clone(&said);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let began = Instant::now();
        loop {
            let all = said.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
            if all.contains(says) {
                return Ok(());
            }
            let ended = self.beside.last_mut().context("it was started")?.0.try_wait()?;
            ensure!(ended.is_none() && began.elapsed() < PATIENCE, "{text}\nsaid no {says:?}: {ended:?} {all}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn remember(&mut self, verb: &str, words: &[String], said: &str) -> Result<()> {
        match verb {
            "submit" => said.trim().clone_into(&mut self.job),
            "run" => {
                let all: serde_json::Value = serde_json::from_str(&self.done("graftwork status --output json")?)?;
                all[0]["id"].as_str().context("the job has an id")?.clone_into(&mut self.job);
            }
            "token" => {
                let role = words.iter().skip_while(|word| *word != "--role").nth(1).context("a token has a role")?;
                let token = said.split_whitespace().find(|word| word.starts_with("graftwork-"));
                // One that went into a file is not needed here.
                self.tokens.extend(token.map(|token| (role.clone(), token.to_owned())));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whoever submits with a token publishes below a folder that the coordinator names.
    fn publish_below(&self, hub: &Path) -> Result<()> {
        let path = self.here.join("job.toml");
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains("hub = \"out/hub\""), "the job publishes elsewhere");
        Ok(fs::write(path, text.replace("hub = \"out/hub\"", &format!("hub = \"{}\"", hub.display())))?)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Program::new("cp").arg("-r").arg(from).arg(to).current_dir(root()).status()?;
    ensure!(copied.success(), "{} cannot be copied", from.display());
    Ok(())
}
