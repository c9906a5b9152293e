//! Programs beside a test: started, listened to line by line, killed with the value.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use graftwork_tests::{World, program};

/// A command that ends with this code; gives what it said on both outputs.
pub(crate) fn ended(command: &mut Command, code: i32) -> Result<String> {
    let Output { status, stdout, stderr } = command.output()?;
    let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    ensure!(status.code() == Some(code), "{command:?} ended with {status}: {said}");
    Ok(said)
}

/// The same of `graftwork` in a folder.
pub(crate) fn graftwork(folder: &Path, words: &[&str], code: i32) -> Result<String> {
    ended(Command::new(program()).current_dir(folder).args(words), code)
}

/// A running program.
pub(crate) struct Process {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts it; what it says on both outputs is kept.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|output| Box::new(output) as Box<dyn Read + Send>),
            child.stderr.take().map(|output| Box::new(output) as Box<dyn Read + Send>),
        ];
        for output in outputs.into_iter().flatten() {
            let said = Arc::clone(&said);
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    said.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            });
        }
        Ok(Self { child, said })
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> Vec<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first line with these words, within half a minute.
    pub(crate) fn wait_for(&self, words: &str) -> Result<String> {
        let found = until(Duration::from_secs(30), || self.said().into_iter().find(|line| line.contains(words)));
        found.with_context(|| format!("it never said {words:?}: {}", self.said().join("\n")))
    }

    /// The end of the first line with these words: an address, or a port.
    pub(crate) fn told(&self, words: &str) -> Result<String> {
        let line = self.wait_for(words)?;
        Ok(line.rsplit([' ', '=']).next().unwrap_or_default().to_owned())
    }

    /// SIGTERM, and its end.
    pub(crate) fn terminate(&mut self) -> Result<()> {
        let done = Command::new("kill").arg(self.child.id().to_string()).status()?;
        ensure!(done.success(), "no signal could be sent");
        let ended = until(Duration::from_secs(30), || self.child.try_wait().ok().flatten());
        ended.context("it did not end within 30 s of SIGTERM").map(drop)
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        // One that has ended already is reaped all the same.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Looks until there is something, at most so long.
pub(crate) fn until<T>(at_most: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if began.elapsed() > at_most {
            return None;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// A coordinator with its state in this folder, listening on a socket in it.
pub(crate) fn coordinator(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.current_dir(folder).args(["coordinator", "--state", "state", "--listen", &socket(folder)]).args(more);
    command.env("XDG_CACHE_HOME", folder.join("cache"));
    command
}

/// Where it listens.
pub(crate) fn socket(folder: &Path) -> String {
    format!("unix://{}", folder.join("door/socket").display())
}

/// A worker of two threads.
pub(crate) fn worker(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.current_dir(folder).args(["worker", "--coordinator", &socket(folder), "--threads", "2"]);
    command.args(["--cache", "worker-cache"]).args(more);
    command
}

/// A command of the user; gives what it printed.
pub(crate) fn ask(world: &World, folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<String> {
    let mut command = Command::new(program());
    command.current_dir(world.path()).args(arguments).args(["--coordinator", &socket(folder)]);
    let output = command.envs(environment.iter().copied()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{arguments:?} ended with {}: {said}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// `GET path` of a plain address: status and body.
pub(crate) fn get(address: &str, path: &str, header: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {address}\r\n{header}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    match status {
        Some(status) => Ok((status, body.to_owned())),
        None => bail!("no status: {head}"),
    }
}
