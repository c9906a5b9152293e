//! `graftwork coordinator`: leads workers until it is stopped.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::anyhow;
use graftwork_scheduler::Quota;
use graftwork_shared::{
    address::{Address, Host},
    credentials,
};
use graftwork_telemetry::{Guard, Listening};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::{DONE, Failure, cache_folder, secret, servers::Servers};
use crate::{
    downloads::Downloads,
    nightly::ByItself,
    planner::{PlannerDoor, Planning},
    publish::PublisherDoor,
    run::Signals,
    server::{self, Auth, Gauges, Identity, Leadership, Listen, NIGHTS, Options, Places, Tokens},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to listen: unix:///path/to/socket, IP:PORT or https://IP:PORT with TLS and tokens, http://127.0.0.1:PORT
    /// with a token; may be given again. Without a scheme, loopback is plain and everything else TLS. Without --listen,
    /// the socket `door/socket` in the state folder, which only this user can enter.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    listen: Vec<Listen>,
    /// Where the state lies: a folder, or postgres://USER@HOST:PORT/NAME. Of several coordinators with one database one
    /// leads; the others wait, and one of them takes over when the leader ends, freezes or is cut off.
    #[arg(long, value_name = "FOLDER|ADDRESS", default_value = FOLDER)]
    state: String,
    #[command(flatten)]
    servers: Servers,
    /// Seconds for which the leader leads without a word from it; renewed every third of them. Shorter takes over
    /// sooner, longer rides out longer interruptions of the database.
    #[arg(long, value_name = "SECONDS", default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=600))]
    lease: u64,
    /// Folder of this coordinator alone: socket, and copies of blobs on their way. Without it, the state folder, or
    /// .graftwork/coordinator where the state lies in a database.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Where metrics, health and readiness are told over HTTP: 127.0.0.1:PORT, or https://IP:PORT, which wants the
    /// certificate of --tls and --tokens: /metrics then wants a token of the role read, submit or admin. /healthz and
    /// /readyz answer to everybody.
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<Address>,
    /// Form of the log lines on stderr, for people or one JSON object a line; GRAFTWORK_LOG filters them.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Folder with `coordinator.pem` and `coordinator.key`, as `graftwork cert` makes them.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["tls_cert", "tls_key"])]
    tls: Option<PathBuf>,
    /// The coordinator's certificate, and those between it and the CA, in PEM form.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// File of the tokens that count, as `graftwork token` makes it. It is read at the start.
    #[arg(long, value_name = "FILE", conflicts_with = "token_env")]
    tokens: Option<PathBuf>,
    /// Environment variable that holds one token for everything; on loopback alone.
    #[arg(long, value_name = "NAME")]
    token_env: Option<String>,
    /// Environment variable of this process that jobs may name as `credentials`; may be given again. With --tokens, where
    /// others submit jobs, they may name no other.
    #[arg(long, value_name = "NAME")]
    job_credentials: Vec<String>,
    /// Folder below which tokens of the role submit may publish; may be given again.
    #[arg(long = "hub-root", value_name = "FOLDER")]
    hub_roots: Vec<PathBuf>,
    /// Forget jobs so many days after their end: their plans, results and uploads go, and what is published stays.
    /// Without it none is forgotten by itself; `graftwork forget` forgets one.
    #[arg(long, value_name = "DAYS")]
    keep_jobs: Option<f64>,
    /// GiB of this machine's cache folder for base models and adapters that the coordinator fetched. What was used the longest
    /// ago goes first, and nothing that is in use.
    #[arg(long, value_name = "GIB", default_value_t = 12, env = "GRAFTWORK_FETCHED_GIB")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=MOST_KEPT_GIB))]
    fetched_gib: u32,
    /// Run nights of this job by itself, each when the `cron` of its table `[nightly]` is due; may be given again. One night
    /// at a time; a time that passed while none could run is made up for once.
    #[arg(long, value_name = "JOB")]
    nightly: Vec<PathBuf>,
    /// Folder in which each of them has its history; by default `nightly` in the state folder, which backups take along. Without
    /// it, a state in a database holds the histories too, so that whoever takes over goes on with them; a folder would have to
    /// be one that every coordinator of that database sees. No job of a token is published into it.
    #[arg(long, value_name = "FOLDER", requires = "nightly")]
    nightly_history: Option<PathBuf>,
    /// What to call the code that such nights measure, such as a commit; by default a digest of this program.
    #[arg(long, value_name = "TEXT", env = "GRAFTWORK_CODE")]
    nightly_code: Option<String>,
    /// Places of workers that an owner's stages may have at a time, such as `nlp=4`; `*=4` is for every owner that is not
    /// named. May be given again.
    #[arg(long, value_name = "OWNER=PLACES", value_parser = bound)]
    quota: Vec<(String, u32)>,
    /// Jobs of an owner that may be there without having ended; one more is refused. As with --quota.
    #[arg(long, value_name = "OWNER=JOBS", value_parser = bound)]
    most_jobs: Vec<(String, u32)>,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    // Documented variants would make the whole help a long one.
    Text,
    Json,
}

fn bound(text: &str) -> Result<(String, u32), String> {
    let parts = text.rsplit_once('=').filter(|(owner, _)| !owner.trim().is_empty());
    let (owner, number) = parts.ok_or("write OWNER=NUMBER, such as nlp=4, or *=4 for every other owner")?;
    let number = number.parse().map_err(|_| format!("{number:?} is not a whole number from 0 to {}", u32::MAX))?;
    Ok((owner.to_owned(), number))
}

/// What the options say together. An owner that is named has the bounds of its own name alone.
fn quotas(places: Vec<(String, u32)>, jobs: Vec<(String, u32)>) -> BTreeMap<String, Quota> {
    let mut quotas: BTreeMap<String, Quota> = BTreeMap::new();
    for (owner, places) in places {
        quotas.entry(owner).or_default().places = Some(places);
    }
    for (owner, jobs) in jobs {
        quotas.entry(owner).or_default().jobs = Some(jobs);
    }
    quotas
}

/// Folder of the copies of histories that are kept with a state in a database, in the coordinator's own.
const COPIES: &str = "histories";

/// No disk of a coordinator is larger.
const MOST_KEPT_GIB: i64 = 1 << 20;

/// Where a coordinator keeps its things when nothing is said.
pub(super) const FOLDER: &str = ".graftwork/coordinator";

fn address(text: &str) -> Result<Listen, String> {
    let socket = |host: &Host| {
        let ip = host.ip().ok_or("a listener needs an IP address of this machine; 0.0.0.0 is all of them")?;
        Ok::<_, String>(SocketAddr::new(ip, host.port()))
    };
    match text.parse::<Address>().map_err(|error| error.to_string())? {
        Address::Unix(path) => Ok(Listen::Unix(path)),
        Address::Http(host) => socket(&host).map(Listen::Tcp),
        Address::Https(host) => socket(&host).map(Listen::Tls),
    }
}

impl Arguments {
    fn identity(&self) -> Option<Identity> {
        let folder = self.tls.as_deref().map(Identity::in_folder);
        folder.or_else(|| Some(Identity { certificate: self.tls_cert.clone()?, key: self.tls_key.clone()? }))
    }

    /// Whether log lines are JSON.
    pub(super) fn logs_json(&self) -> bool {
        self.log_format == LogFormat::Json
    }

    /// Listens for whoever watches over this coordinator, if that is asked for.
    async fn listen_for_metrics(&self, gauges: Gauges) -> Result<Option<Listening>, Failure> {
        let Some(address) = &self.metrics else { return Ok(None) };
        let tls = match (address, self.identity()) {
            (Address::Https(_), Some(Identity { certificate, key })) => {
                Some(graftwork_telemetry::acceptor(&certificate, &key).map_err(Failure::input)?)
            }
            _ => None,
        };
        let guard = Guard { tls, token: self.auth()?.check() };
        let listening = graftwork_telemetry::listen(address, guard, gauges).await.map_err(Failure::input)?;
        eprintln!("graftwork coordinator {} tells metrics on {}", graftwork_shared::VERSION, listening.address);
        Ok(Some(listening))
    }

    fn auth(&self) -> Result<Auth, Failure> {
        if let Some(path) = &self.tokens {
            return Ok(Auth::Tokens(Tokens::read(path).map_err(Failure::input)?));
        }
        Ok(secret(self.token_env.as_deref())?.map_or(Auth::None, Auth::Token))
    }
}

pub(super) async fn run(arguments: Arguments) -> Result<u8, Failure> {
    if arguments.tokens.is_some() || !arguments.job_credentials.is_empty() {
        credentials::allow_only(arguments.job_credentials.iter().cloned());
    }
    raise_open_files();
    let cache = Downloads::bounded(cache_folder(), u64::from(arguments.fetched_gib) << 30);
    let database = arguments.servers.database(&arguments.state)?;
    let kept = database.is_some() && arguments.nightly_history.is_none();
    let bucket = arguments.servers.bucket(database.is_some())?;
    let folder = match (&arguments.folder, &database) {
        (Some(folder), _) => folder,
        (None, None) => Path::new(&arguments.state),
        (None, Some(_)) => Path::new(FOLDER),
    };
    let folder = std::path::absolute(folder)?;
    let leadership = database.map(|database| Leadership { database, lease_ms: arguments.lease * 1_000 });
    let histories =
        arguments.nightly_history.clone().unwrap_or_else(|| folder.join(if kept { COPIES } else { NIGHTS }));
    let histories = std::path::absolute(histories)?;
    let (by_owner, nights) = (arguments.tokens.is_some(), Some(histories.clone()));
    let planning = Planning { cache: cache.clone(), machine: None, uploads: None, nights: nights.clone() };
    let planner = Arc::new(PlannerDoor::new(planning, None));
    let publisher = Arc::new(PublisherDoor { cache, reuse: true, by_owner, nights });
    let mut options = Options::new(folder.clone(), planner, publisher);
    options.bucket = bucket;
    options.leadership = leadership;
    options.tls = arguments.identity();
    options.auth = arguments.auth()?;
    let _metrics = arguments.listen_for_metrics(options.gauges.clone()).await?;
    options.listen = arguments.listen;
    let gauges = options.gauges.clone();
    let mut by_itself =
        ByItself { files: arguments.nightly, histories, code: arguments.nightly_code, gauges, kept: None };
    by_itself.check()?;
    let private = options.listen.iter().any(|listen| matches!(listen, Listen::Unix(_)));
    // Nights come to it as jobs of its own user do.
    if options.listen.is_empty() || (!private && !by_itself.files.is_empty()) {
        options.listen.push(Listen::Unix(folder.join("door").join("socket")));
    }
    let hubs = arguments.hub_roots.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
    options.places = Places { hubs, histories: vec![by_itself.histories.clone()] };
    options.keep_ms = arguments.keep_jobs.map(days).transpose()?;
    options.quotas = quotas(arguments.quota, arguments.most_jobs);
    let mut signals = Signals::listen()?;
    let mut running = tokio::select! {
        started = server::start(options) => started.map_err(Failure::input)?,
        // It may have to wait for long until it leads; nothing of it needs an end.
        () = signals.stop() => return Ok(DONE),
    };
    for address in running.addresses() {
        eprintln!("graftwork coordinator {} listens on {address}", graftwork_shared::VERSION);
    }
    let socket = running.addresses().iter().find_map(|listen| match listen {
        Listen::Unix(path) => Some(path.clone()),
        Listen::Tcp(_) | Listen::Tls(_) => None,
    });
    by_itself.kept = kept.then(|| running.histories());
    // Its nights end with this function; what is under way is on the disk.
    let nights = socket.filter(|_| !by_itself.files.is_empty()).map(|socket| by_itself.start(socket)).transpose()?;
    tokio::select! {
        error = running.wait() => return Err(error.into()),
        () = signals.stop() => eprintln!("stopping: workers go on under their leases, and the next coordinator takes them up"),
    }
    // Before the coordinator goes: what is under way would see it go.
    drop(nights);
    running.stop("the coordinator was stopped").await?;
    Ok(DONE)
}

/// Milliseconds of so many days.
fn days(days: f64) -> Result<u64, Failure> {
    let milliseconds = std::time::Duration::try_from_secs_f64(days * 86_400.0).ok().map(|kept| kept.as_millis());
    let kept = milliseconds.and_then(|kept| u64::try_from(kept).ok());
    kept.ok_or_else(|| Failure::input(anyhow!("--keep-jobs {days}: write a number of days that is not negative")))
}

/// As many files as this process may have at all: each connection is one.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_owners_are_read_and_put_together() {
        assert_eq!(bound("a=b=3"), Ok(("a=b".to_owned(), 3)));
        assert!(bound("=3").unwrap_err().starts_with("write OWNER=NUMBER"));
        assert_eq!(bound("nlp=-1").unwrap_err(), "\"-1\" is not a whole number from 0 to 4294967295");
        let quotas = quotas(vec![bound("nlp=4").unwrap(), bound("*=2").unwrap()], vec![bound("nlp=9").unwrap()]);
        assert_eq!(quotas["nlp"], Quota { places: Some(4), jobs: Some(9) });
        assert_eq!(quotas["*"], Quota { places: Some(2), jobs: None });
    }
}
