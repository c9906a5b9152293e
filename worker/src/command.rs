//! The command line of the worker, and what each verb calls.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use clap::{Parser, Subcommand};
use graftwork_certificate::CertificateError;
use graftwork_collective::tls::Identity;
use graftwork_engine::Device;
use graftwork_proto::{CA_VARIABLE, DialError, Token};
use graftwork_shared::{address::Address, credentials, digest::Digest, job::MOST_THREADS};
use graftwork_telemetry::{Check, Guard, ListenError};
use tokio::runtime::Runtime;

use crate::{
    computer::{self, DeviceChoice, NoCuda},
    coordinators::Coordinators,
    doctor,
    logs::LogFormat,
    meeting::Reached,
    meters::Meters,
    predict::{self, PredictError},
    reference,
    session::{self, SessionError},
    stage, trunks, verbs,
};

/// Exit code for what the user can mend.
const USER: u8 = 1;

/// Exit code for what only we or the machine's owner can.
const OURS: u8 = 2;

/// An error with its exit code.
#[derive(Debug)]
pub(crate) struct CommandError {
    pub(crate) cause: anyhow::Error,
    pub(crate) code: u8,
}

impl From<anyhow::Error> for CommandError {
    fn from(cause: anyhow::Error) -> Self {
        let unreachable = cause.downcast_ref::<SessionError>();
        let ours = matches!(unreachable, Some(SessionError::Unreachable { .. })) || cause.is::<std::io::Error>();
        Self { cause, code: if ours { OURS } else { USER } }
    }
}

impl From<PredictError> for CommandError {
    fn from(error: PredictError) -> Self {
        let code = if error.is_ours() { OURS } else { USER };
        Self { cause: error.into(), code }
    }
}

macro_rules! user_errors {
    ($($error:ty),+) => {
        $(impl From<$error> for CommandError {
            fn from(error: $error) -> Self {
                Self { cause: error.into(), code: USER }
            }
        })+
    };
}
user_errors!(DialError, CertificateError, NoCuda, ListenError);

/// The program's version stands last: `graftwork` reads it there.
fn version() -> &'static str {
    static VERSION: LazyLock<String> =
        LazyLock::new(|| format!("(libtorch {}) {}", computer::libtorch_version(), graftwork_shared::VERSION));
    &VERSION
}

/// Trains, evaluates and predicts on one device. Usually started by `graftwork`.
#[derive(Debug, Parser)]
#[command(name = "graftwork-worker", version = version(), max_term_width = 100)]
pub(crate) struct Arguments {
    /// Form of the log lines on stderr; GRAFTWORK_LOG filters them.
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub(crate) log_format: LogFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a coordinator: take assignments, train them, upload results.
    // Units start it with options of their own, and those of the machine stand behind them: the last one counts.
    #[command(args_override_self = true)]
    Worker(SessionArguments),
    /// Predict with adapters from folders, a hub folder or a Hugging Face compatible hub.
    Predict(Box<predict::Arguments>),
    /// Compare the engine with recorded reference cases; exit 1 above tolerance.
    Golden {
        /// Folder with the cases.
        folder: PathBuf,
        /// What computes.
        #[arg(long, value_enum, default_value = "cpu")]
        device: DeviceChoice,
    },
    /// Follow recorded training trajectories step by step; exit 1 above tolerance.
    Follow {
        /// Folder with the trajectories.
        folder: PathBuf,
        /// Folder of the base model from which they start.
        #[arg(long)]
        base_model: PathBuf,
        /// What computes.
        #[arg(long, value_enum, default_value = "cpu")]
        device: DeviceChoice,
    },
    /// Say what this process runs on.
    Doctor {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Print the options of all verbs as JSON, for completion scripts.
    #[command(hide = true)]
    Verbs,
}

/// No disk of a worker is larger.
const MOST_KEPT_GIB: i64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct SessionArguments {
    /// unix:///path/to/socket, https://HOST:PORT, or http://127.0.0.1:PORT on loopback; several, separated by commas,
    /// where others wait to take over from the one that leads.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', required = true)]
    coordinator: Vec<Address>,
    /// Device threads; by default one for each processor.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_THREADS)))]
    threads: Option<u32>,
    /// Assignments at a time; by default as many as threads.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_THREADS)))]
    slots: Option<u32>,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceChoice,
    /// Environment variable that holds this worker's token, of the role join; GRAFTWORK_TOKEN if that is set.
    #[arg(long, value_name = "NAME")]
    token_env: Option<String>,
    /// The CA that made the coordinator's certificate: its ca.pem. Without it, the CAs of this machine are trusted.
    #[arg(long, value_name = "FILE", env = CA_VARIABLE)]
    tls_ca: Option<PathBuf>,
    /// Environment variable of this process that jobs may name as `credentials`; may be given again. They may name no
    /// other where the coordinator is not on a socket of this machine.
    #[arg(long, value_name = "NAME")]
    job_credentials: Vec<String>,
    /// Folder for fetched base models; by default ~/.cache/graftwork.
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// GiB of the cache folder for what would otherwise be computed again: token ids, and values of base models below
    /// the first adapter. What was used the longest ago goes first; 0 keeps nothing.
    #[arg(long, value_name = "GIB", default_value_t = 4, env = "GRAFTWORK_KEEP_GIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=MOST_KEPT_GIB))]
    keep_gib: u32,
    /// GiB of the cache folder for fetched base models and uploads. What was used the longest ago goes first, and nothing
    /// that is in use, so a stage that reads more than this trains all the same; 0 keeps only what is in use.
    #[arg(long, value_name = "GIB", default_value_t = 12, env = "GRAFTWORK_FETCHED_GIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=MOST_KEPT_GIB))]
    fetched_gib: u32,
    /// End when the process that started this one ends; with its id, even if it has ended already.
    #[arg(long, value_name = "PID", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    die_with_parent: Option<i32>,
    /// Address of this machine that other workers reach: members of a group exchange gradients over it. One beyond this
    /// machine needs --group-tls, or --private-network.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    group_address: IpAddr,
    /// Folder with `ca.pem`, `worker.pem` and `worker.key`, as `graftwork cert` makes them: members of a group then
    /// exchange over TLS, show each other that certificate, and want one of that CA. Workers form groups with those alone
    /// that do so too. GPUs exchange over NCCL, which has no TLS.
    #[arg(long, value_name = "FOLDER")]
    group_tls: Option<PathBuf>,
    /// The network of --group-address is ours alone: nobody else reads or changes what passes on it, so that members of a
    /// group may exchange in plain text.
    #[arg(long)]
    private_network: bool,
    /// Where metrics, health and readiness are told over HTTP: 127.0.0.1:PORT, or https://IP:PORT, which wants
    /// --metrics-cert, --metrics-key and --metrics-token-env. /healthz and /readyz answer to everybody.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<Address>,
    /// Ports from that one on of which the first free one is taken: for several workers of one host.
    #[arg(long, value_name = "NUMBER", requires = "metrics", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    metrics_ports: u16,
    /// The certificate of that address, in PEM form.
    #[arg(long, value_name = "FILE", requires_all = ["metrics", "metrics_key"])]
    metrics_cert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE", requires = "metrics_cert")]
    metrics_key: Option<PathBuf>,
    /// Environment variable that holds the token, of at least 16 characters, that /metrics wants.
    #[arg(long, value_name = "NAME", requires = "metrics")]
    metrics_token_env: Option<String>,
    /// Milliseconds between two reports of how a stage's training goes, which people watch; 0 reports every update.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = stage::REPORT_EVERY_MS)]
    report_every: u64,
    /// Never give up looking for a lost coordinator. Of this and --patience the one that stands last counts.
    #[arg(long, overrides_with = "patience")]
    persist: bool,
    /// Seconds for which a lost coordinator is looked for by a worker that trains nothing; one that trains goes on under its
    /// lease until it has something to tell, waits with that for a day, and is patient then.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
}

impl Command {
    /// What is logged when GRAFTWORK_LOG says nothing.
    pub(crate) fn log_level(&self) -> &'static str {
        if matches!(self, Self::Worker(_)) { "info" } else { "warn" }
    }

    /// Does it; gives the exit code.
    pub(crate) fn run(self) -> Result<u8, CommandError> {
        match self {
            Self::Worker(arguments) => serve(arguments).map(|()| 0),
            Self::Predict(arguments) => match predict::run(&arguments, runtime()?.handle()) {
                // A reader that has seen enough, such as `head`, is no error.
                Err(PredictError::System(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(0),
                ended => Ok(ended.map(|()| 0)?),
            },
            Self::Golden { folder, device } => Ok(verdict(reference::golden(&folder, device.open()?)?)),
            Self::Follow { folder, base_model, device } => {
                Ok(verdict(reference::follow(&folder, &base_model, device.open()?)?))
            }
            Self::Doctor { json } => Ok(doctor::run(json).map(|()| 0)?),
            Self::Verbs => {
                verbs::print();
                Ok(0)
            }
        }
    }
}

fn verdict(within_tolerance: bool) -> u8 {
    u8::from(!within_tolerance)
}

fn serve(arguments: SessionArguments) -> Result<(), CommandError> {
    let (watched, ports) = (arguments.watched()?, arguments.metrics_ports);
    let device = arguments.device.open()?;
    trunks::keep_at_most(u64::from(arguments.keep_gib) << 30);
    trunks::keep_fetched_at_most(u64::from(arguments.fetched_gib) << 30);
    let threads = arguments.threads.unwrap_or_else(|| u32::try_from(computer::processors()).unwrap_or(1));
    // Decoding a large page holds a thread for as long as it takes: heartbeats and blobs must not wait behind it.
    let (rows, messages) = (runtime()?, runtime()?);
    let _inside = messages.enter();
    let reached = arguments.reached(device)?;
    let serves_others = arguments.coordinator.iter().any(|address| !matches!(address, Address::Unix(_)));
    if serves_others || !arguments.job_credentials.is_empty() {
        credentials::allow_only(arguments.job_credentials);
    }
    let meters = Meters::default();
    reached.identity.iter().for_each(|identity| meters.show_certificate(identity.ends_s()));
    let options = session::Options {
        meters: meters.clone(),
        coordinators: Coordinators::new(arguments.coordinator, arguments.tls_ca.as_deref())?,
        token: Token::from_environment(arguments.token_env.as_deref())?,
        threads,
        slots: arguments.slots.unwrap_or(threads),
        device,
        cache_folder: arguments.cache.unwrap_or_else(trunks::default_cache),
        patience: (!arguments.persist).then(|| Duration::from_secs(arguments.patience)),
        parent: arguments.die_with_parent,
        reached,
        report_every: Duration::from_millis(arguments.report_every),
        rows: rows.handle().clone(),
    };
    Ok(messages.block_on(async {
        let _listening = match watched {
            Some((address, guard)) => {
                let listening = graftwork_telemetry::listen_on_a_free_port(&address, ports, guard, meters).await?;
                tracing::info!(address = %listening.address, "metrics are told");
                Some(listening)
            }
            None => None,
        };
        session::serve(options).await
    })?)
}

/// Fewest bytes of a token for metrics, as for a coordinator's.
const TOKEN_BYTES: usize = 16;

impl SessionArguments {
    /// How members of a group reach this worker; refused where others could read or change what they exchange.
    fn reached(&self, device: Device) -> Result<Reached, CommandError> {
        let identity = self.group_tls.as_deref().map(Identity::read).transpose()?;
        let plain = match (&identity, device) {
            (_, Device::Cuda(_)) => Some("NCCL, which GPUs exchange over, has no TLS"),
            (None, _) => Some("without --group-tls members of a group exchange in plain text"),
            (Some(_), _) => None,
        };
        if plain.is_none() {
            tracing::info!("members of a group exchange over TLS");
        }
        let address = self.group_address;
        if let (false, Some(plain)) = (address.is_loopback(), plain) {
            if !self.private_network {
                let cause = anyhow::anyhow!(
                    "--group-address {address} is reached from other machines, and {plain}; if that network is yours \
                     alone, say so with --private-network"
                );
                return Err(CommandError { cause, code: USER });
            }
            tracing::warn!(%address, "{plain}: this network must be yours alone");
        }
        // What GPUs exchange is not over TLS, whatever is named.
        let identity = identity.filter(|_| !matches!(device, Device::Cuda(_)));
        Ok(Reached { address, identity })
    }

    /// Where metrics are told, and to whom.
    fn watched(&self) -> Result<Option<(Address, Guard)>, CommandError> {
        let Some(address) = self.metrics.clone() else { return Ok(None) };
        let tls = match (&self.metrics_cert, &self.metrics_key) {
            (Some(certificate), Some(key)) => Some(graftwork_telemetry::acceptor(certificate, key)?),
            _ => None,
        };
        let token = self.metrics_token_env.as_deref().map(metrics_token).transpose()?;
        Ok(Some((address, Guard { tls, token })))
    }
}

/// Whether the token is the one of this variable. Digests are compared, so that the time tells nothing of it.
fn metrics_token(variable: &str) -> Result<Check, anyhow::Error> {
    let token = credentials::of_operator(variable).unwrap_or_default();
    anyhow::ensure!(
        token.len() >= TOKEN_BYTES,
        "the environment variable {variable} of --metrics-token-env must hold a token of at least {TOKEN_BYTES} characters"
    );
    let digest = Digest::of(token.as_bytes());
    Ok(Arc::new(move |shown: &str| Digest::of(shown.as_bytes()) == digest))
}

/// Two threads are enough to read rows, or to move messages; mathematics has its own.
fn runtime() -> Result<Runtime, CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| CommandError { cause: error.into(), code: OURS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_machine_count_instead_of_those_of_the_unit() {
        let unit = include_str!("../../deploy/systemd/graftwork-worker@.service");
        let (_, start) = unit.split_once("graftwork worker ").unwrap();
        let (of_unit, _) = start.split_once(" $$OPTIONS'").unwrap();
        let parsed = |of_machine: &str| {
            let words = ["graftwork-worker", "worker"].into_iter().chain(of_unit.split_whitespace());
            let parsed = Arguments::try_parse_from(words.chain(of_machine.split_whitespace()));
            let Arguments { log_format, command: Command::Worker(parsed) } =
                parsed.unwrap_or_else(|error| panic!("{error}"))
            else {
                panic!("another verb")
            };
            (log_format, parsed)
        };
        let (log_format, parsed_alone) = parsed("--coordinator 10.0.0.7:7700 --log-format text");
        assert!(parsed_alone.persist && matches!(log_format, LogFormat::Text), "the unit's own one");
        let (_, last) = parsed("--coordinator 10.0.0.7:7700 --patience 900 --persist");
        assert!(last.persist);
        let (log_format, parsed) = parsed(
            "--coordinator 10.0.0.7:7700 --metrics 127.0.0.1:9700 --metrics-ports 2 --cache /fast --persist --patience 900 \
             --log-format text",
        );
        assert_eq!((parsed.persist, parsed.patience), (false, 900));
        assert_eq!(parsed.metrics.map(|address| address.to_string()).as_deref(), Some("http://127.0.0.1:9700"));
        assert_eq!((parsed.metrics_ports, parsed.cache), (2, Some("/fast".into())));
        assert!(matches!(log_format, LogFormat::Text) && parsed.coordinator.len() == 1);
    }
}
