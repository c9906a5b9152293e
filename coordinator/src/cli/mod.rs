//! What users type: arguments, what goes to stdout and stderr, and exit codes.
//!
//! Exit codes: 0 done; 1 the user's input; 2 ours or the machine's; 3 published, but an expectation was missed;
//! 130 interrupted, state kept. Data goes to stdout, everything else to stderr. No secret is ever an argument: options
//! name the environment variable that holds it.

mod backup;
mod beside;
mod cert;
mod completions;
mod coordinator;
mod deploy;
mod doctor;
mod import;
mod jobs;
mod plan;
mod servers;
mod token;
mod verify;
mod watch;
mod which;

use std::{borrow::Cow, ffi::OsStr, path::PathBuf};

pub(crate) use beside::Worker;
use clap::{CommandFactory as _, Parser, Subcommand};
use graftwork_proto::{Route, Token};
use graftwork_shared::{address::Address, credentials};
use graftwork_telemetry::TraceError;
pub(crate) use jobs::exit_code;
pub(crate) use plan::{JobFile, Output, Refused, show_problems};
pub(crate) use servers::Servers;

use crate::{
    client::{Client, ClientError},
    nightly, run,
};

/// Done.
pub(crate) const DONE: u8 = 0;
/// The user's input.
pub(crate) const INPUT: u8 = 1;
/// Ours, or the machine's.
pub(crate) const OURS: u8 = 2;
/// Published, but an expectation was missed.
pub(crate) const MISSED: u8 = 3;
/// Interrupted; the state is kept.
pub(crate) const INTERRUPTED: u8 = 130;

/// Trains many task adapters on one shared frozen transformer, fuses them, scores them and publishes them.
#[derive(Debug, Parser)]
#[command(name = "graftwork", version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a job and show its stages, rows, steps, parameters, expected memory and time; train nothing.
    Plan(plan::Arguments),
    /// Train, score and publish a job on this machine; the same command goes on after any interruption.
    Run(run::Arguments),
    /// Run a job with several seeds, keep its history, and say whether anything got worse; exits 1 when it did.
    Nightly(Box<nightly::Arguments>),
    /// Hand a job to a coordinator.
    Submit(jobs::Submit),
    /// Show jobs, or one job's stages.
    Status(jobs::Status),
    /// Watch a job until it ends.
    Watch(watch::Watch),
    /// Show what the workers of a local job wrote.
    Logs(jobs::Logs),
    /// Say why each stage of a job stands where it stands.
    Explain(jobs::Explain),
    /// Stop a job; what is published stays.
    Cancel(jobs::Cancel),
    /// Forget an ended job, with its results and uploads; what is published stays.
    Forget(jobs::Forget),
    /// Show a job's report.
    Report(jobs::Report),
    /// Turn tables and documents into Parquet with fixed splits.
    Import(Box<import::Arguments>),
    /// Predict with adapters: see `graftwork predict --help`.
    #[command(disable_help_flag = true)]
    Predict(beside::Passed),
    /// Serve a coordinator with this machine: see `graftwork worker --help`.
    #[command(disable_help_flag = true)]
    Worker(beside::Passed),
    /// Compare the engine with recorded reference cases: see `graftwork golden --help`.
    #[command(disable_help_flag = true)]
    Golden(beside::Passed),
    /// Follow a recorded training run step by step: see `graftwork follow --help`.
    #[command(disable_help_flag = true)]
    Follow(beside::Passed),
    /// Lead workers: take jobs, hand out work, publish.
    // Units start it with options of their own, and those of the machine stand behind them: the last one counts.
    #[command(args_override_self = true)]
    Coordinator(coordinator::Arguments),
    /// Start workers by another system: a job array of Slurm.
    Deploy(deploy::Arguments),
    /// Put a coordinator's state aside; it may be running.
    Backup(backup::Backup),
    /// Bring a coordinator's state back from a backup.
    Restore(backup::Restore),
    /// Make the certificates of a cluster that has none, or renew all but its CA's.
    Cert(cert::Arguments),
    /// Make a token with a role, for a worker or a person.
    Token(token::Arguments),
    /// Check a release against its record, or train it again and compare.
    Verify(verify::Arguments),
    /// Print the JSON schema of job files, for editors.
    Schema,
    /// Say what this installation runs on, and what is wrong with it.
    Doctor(doctor::Arguments),
    /// Write a page for `man` of each command.
    Man {
        /// The folder, made if missing.
        folder: PathBuf,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Where a command finds its coordinator.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Connection {
    /// The coordinator: unix:///path/to/socket, https://HOST:PORT, or http://127.0.0.1:PORT on loopback; several,
    /// separated by commas, where one leads and others wait. Without it, jobs of the state folder are looked at.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', env = crate::client::ADDRESS_VARIABLE)]
    pub(crate) coordinator: Vec<Address>,
    /// Environment variable that holds your token; GRAFTWORK_TOKEN if that is set.
    #[arg(long, value_name = "NAME")]
    pub(crate) token_env: Option<String>,
    /// The CA that made the coordinator's certificate: its ca.pem. Without it, the CAs of this machine are trusted.
    #[arg(long, value_name = "FILE", env = graftwork_proto::CA_VARIABLE)]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Folder with the states of local jobs.
    #[arg(long, value_name = "FOLDER", default_value = run::STATE)]
    pub(crate) state: PathBuf,
}

impl Connection {
    /// The coordinator that is named, if one is.
    pub(crate) async fn client(&self) -> Result<Option<Client>, Failure> {
        if self.coordinator.is_empty() {
            return Ok(None);
        }
        let route = |address: &Address| Route::new(address.clone(), self.tls_ca.as_deref());
        let routes: Vec<Route> =
            self.coordinator.iter().map(route).collect::<Result<_, _>>().map_err(Failure::input)?;
        let token = Token::from_environment(self.token_env.as_deref()).map_err(Failure::input)?;
        Ok(Some(Client::connect(&routes, token).await?))
    }
}

/// What ends a command early, with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) error: anyhow::Error,
}

impl Failure {
    /// The user's input is at fault.
    pub(crate) fn input(error: impl Into<anyhow::Error>) -> Self {
        Self { code: INPUT, error: error.into() }
    }
}

/// A word of a command that is printed to be typed again: whatever is in it, a shell takes it as one word.
pub(crate) fn pasted(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref().to_string_lossy();
    // What has a NUL in it can be no argument.
    shlex::try_quote(&word).map_or_else(|_| word.to_string(), Cow::into_owned)
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let code = match error.downcast_ref::<ClientError>() {
            Some(refused) if refused.is_input() => INPUT,
            Some(ClientError::Unreachable { .. }) => INPUT,
            _ => OURS,
        };
        Self { code, error }
    }
}

/// Does what the arguments say; gives the exit code.
pub(crate) fn main() -> u8 {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed terminal is no reason to fail over help.
            drop(error.print());
            return u8::from(error.use_stderr());
        }
    };
    start_log(&arguments.command);
    if let Err(error) = start_traces(&arguments.command) {
        eprintln!("error: {error}");
        return INPUT;
    }
    let ended = dispatch(arguments.command);
    graftwork_telemetry::stop_traces();
    match ended {
        Ok(code) => code,
        Err(Failure { code, error }) => {
            if let Some(ClientError::Plan(problems)) = error.downcast_ref() {
                show_problems("", "the job", problems);
            }
            eprintln!("error: {}", graftwork_shared::cause::told(error.as_ref()));
            code
        }
    }
}

fn dispatch(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Plan(arguments) => wait_for(plan::run(arguments)),
        Command::Run(arguments) => wait_for(run::run(arguments)),
        Command::Nightly(arguments) => wait_for(nightly::run(*arguments)),
        Command::Submit(arguments) => wait_for(jobs::submit(arguments)),
        Command::Status(arguments) => wait_for(jobs::status(arguments)),
        Command::Watch(arguments) => wait_for(watch::run(arguments)),
        Command::Logs(arguments) => jobs::logs(&arguments),
        Command::Explain(arguments) => wait_for(jobs::explain(arguments)),
        Command::Cancel(arguments) => wait_for(jobs::cancel(arguments)),
        Command::Forget(arguments) => wait_for(jobs::forget(arguments)),
        Command::Report(arguments) => wait_for(jobs::report(arguments)),
        Command::Import(arguments) => import::run(*arguments),
        Command::Predict(passed) => beside::exec("predict", &passed),
        Command::Worker(passed) => beside::exec("worker", &passed),
        Command::Golden(passed) => beside::exec("golden", &passed),
        Command::Follow(passed) => beside::exec("follow", &passed),
        Command::Coordinator(arguments) => wait_for(coordinator::run(arguments)),
        Command::Backup(arguments) => backup::backup(&arguments),
        Command::Restore(arguments) => backup::restore(&arguments),
        Command::Deploy(arguments) => deploy::run(arguments),
        Command::Cert(arguments) => cert::run(&arguments),
        Command::Token(arguments) => token::run(&arguments),
        Command::Verify(arguments) => wait_for(verify::run(arguments)),
        Command::Schema => {
            print(&(serde_json::to_string_pretty(&graftwork_shared::job::json_schema())? + "\n"));
            Ok(DONE)
        }
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Man { folder } => completions::man(Arguments::command(), &folder),
        Command::Completions { shell } => completions::run(Arguments::command(), shell),
    }
}

/// Runs async code; planning, serving and waiting share two threads, since mathematics happens elsewhere.
fn wait_for(act: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(act);
    // A blocking wait (a lock, a slow disk) must not hold up the end of the program.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    code
}

/// Writes data to stdout; a reader that has gone away is no error.
pub(crate) fn print(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Where downloads are kept: `XDG_CACHE_HOME/graftwork`, or `~/.cache/graftwork`; workers use the same.
pub(crate) fn cache_folder() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from).or_else(home);
    base.unwrap_or_else(std::env::temp_dir).join("graftwork")
}

/// The value of a variable that an option names.
pub(crate) fn secret(variable: Option<&str>) -> Result<Option<String>, Failure> {
    let Some(variable) = variable else { return Ok(None) };
    let unset = || anyhow::anyhow!("the environment variable {variable}, which an option names, is not set");
    credentials::of_operator(variable).map(Some).ok_or_else(|| Failure::input(unset()))
}

/// Commands through which jobs go send their spans to the collector that the environment names.
fn start_traces(command: &Command) -> Result<(), TraceError> {
    match command {
        Command::Coordinator(_) => graftwork_telemetry::start_traces("graftwork-coordinator"),
        Command::Run(_) | Command::Submit(_) => graftwork_telemetry::start_traces("graftwork"),
        _ => Ok(()),
    }
}

/// GRAFTWORK_LOG says what is logged to stderr; by default warnings, and for a coordinator what it does.
fn start_log(command: &Command) {
    let level = if matches!(command, Command::Coordinator(_)) { "info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("GRAFTWORK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let colors = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colors);
    let log = log.with_target(false);
    match command {
        Command::Coordinator(arguments) if arguments.logs_json() => log.json().flatten_event(true).init(),
        _ => log.compact().init(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use clap::Parser as _;

    use super::{Arguments, pasted};

    #[test]
    fn options_of_a_machine_count_instead_of_those_of_the_unit() {
        let unit = include_str!("../../../deploy/systemd/graftwork-coordinator.service");
        let (_, start) = unit.split_once("graftwork coordinator ").unwrap();
        let (of_unit, _) = start.split_once(" $OPTIONS").unwrap();
        let of_machine =
            "--state /srv/state --metrics 127.0.0.1:9700 --log-format text --listen 127.0.0.1:1 --listen 127.0.0.1:2";
        let words = ["graftwork", "coordinator"].into_iter().chain(of_unit.split_whitespace());
        let parsed = Arguments::try_parse_from(words.chain(of_machine.split_whitespace()));
        let super::Command::Coordinator(parsed) = parsed.unwrap_or_else(|error| panic!("{error}")).command else {
            panic!("another verb")
        };
        let said = format!("{parsed:?}");
        assert!(said.contains("\"/srv/state\"") && !said.contains("/var/lib/graftwork"), "{said}");
        assert!(said.contains("9700") && !said.contains("9464") && !parsed.logs_json(), "{said}");
        assert!(said.contains("listen: [Tcp(127.0.0.1:1), Tcp(127.0.0.1:2)]"), "both are listened to: {said}");
    }

    #[test]
    fn what_is_printed_to_be_typed_is_one_word_to_a_shell() {
        assert_eq!(pasted("jobs/nightly.toml"), "jobs/nightly.toml");
        for word in ["my jobs/a.toml", "a;touch b", "$(id)", "`id`", "it's", "a|b", "--x=\"y\"", ""] {
            let shell = Command::new("sh").args(["-c", &format!("printf %s {}", pasted(word))]).output().unwrap();
            assert_eq!(String::from_utf8(shell.stdout).unwrap(), word, "{}", pasted(word));
        }
    }
}
