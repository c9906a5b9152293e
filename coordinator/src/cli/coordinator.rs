//! `graftwork coordinator`: leads workers until it is stopped.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use graftwork_shared::address::{Address, Host};

use super::{DONE, Failure, cache_folder, secret};
use crate::{
    planner::{PlannerDoor, Planning},
    publish::PublisherDoor,
    run::Signals,
    server::{self, Auth, Identity, Listen, Options, Tokens},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to listen: unix:///path/to/socket, IP:PORT or https://IP:PORT with TLS and tokens, http://127.0.0.1:PORT
    /// with a token; may be given again. Without a scheme, loopback is plain and everything else TLS. Without --listen,
    /// the socket `door/socket` in the state folder, which only this user can enter.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    listen: Vec<Listen>,
    /// Folder of the coordinator's state: journal and blobs.
    #[arg(long, value_name = "FOLDER", default_value = ".graftwork/coordinator")]
    state: PathBuf,
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
}

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

    fn auth(&self) -> Result<Auth, Failure> {
        if let Some(path) = &self.tokens {
            return Ok(Auth::Tokens(Tokens::read(path).map_err(Failure::input)?));
        }
        Ok(secret(self.token_env.as_deref())?.map_or(Auth::None, Auth::Token))
    }
}

pub(super) async fn run(arguments: Arguments) -> Result<u8, Failure> {
    let planning = Planning { cache: cache_folder(), machine: None, uploads: None };
    let planner = Arc::new(PlannerDoor::new(planning, None));
    let publisher = Arc::new(PublisherDoor { cache: cache_folder(), reuse: true });
    let state = std::path::absolute(&arguments.state)?;
    let mut options = Options::new(state.clone(), planner, publisher);
    options.tls = arguments.identity();
    options.auth = arguments.auth()?;
    options.listen = arguments.listen;
    if options.listen.is_empty() {
        options.listen.push(Listen::Unix(state.join("door").join("socket")));
    }
    let mut signals = Signals::listen()?;
    let mut running = server::start(options).await.map_err(Failure::input)?;
    for address in running.addresses() {
        eprintln!("graftwork coordinator {} listens on {address}", graftwork_shared::VERSION);
    }
    tokio::select! {
        error = running.wait() => return Err(error.into()),
        () = signals.stop() => eprintln!("stopping: workers checkpoint and leave"),
    }
    running.stop("the coordinator was stopped").await?;
    Ok(DONE)
}
