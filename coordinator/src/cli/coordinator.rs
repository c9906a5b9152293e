//! `graftwork coordinator`: leads workers until it is stopped.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use super::{DONE, Failure, cache_folder, secret};
use crate::{
    planner::{PlannerDoor, Planning},
    publish::PublisherDoor,
    run::Signals,
    server::{self, Listen, Options},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where to listen: unix:///path/to/socket, or host:port on loopback with a token; may be given again. Without it,
    /// the socket `door/socket` in the state folder, which only this user can enter.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    listen: Vec<Listen>,
    /// Folder of the coordinator's state: journal and blobs.
    #[arg(long, value_name = "FOLDER", default_value = ".graftwork/coordinator")]
    state: PathBuf,
    /// Environment variable that holds the token that clients and workers on TCP must show.
    #[arg(long, value_name = "NAME")]
    token_env: Option<String>,
}

fn address(text: &str) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
        let path = std::path::absolute(path).map_err(|error| error.to_string())?;
        return Ok(Listen::Unix(path));
    }
    let plain = text.strip_prefix("http://").unwrap_or(text);
    let plain = plain.replacen("localhost:", "127.0.0.1:", 1);
    plain
        .parse::<SocketAddr>()
        .map(Listen::Tcp)
        .map_err(|_| "write 127.0.0.1:PORT or unix:///path/to/socket".to_owned())
}

pub(super) async fn run(arguments: Arguments) -> Result<u8, Failure> {
    let planning = Planning { cache: cache_folder(), machine: None, uploads: None };
    let planner = Arc::new(PlannerDoor::new(planning, None));
    let publisher = Arc::new(PublisherDoor { cache: cache_folder(), reuse: true });
    let state = std::path::absolute(arguments.state)?;
    let mut options = Options::new(state.clone(), planner, publisher);
    options.listen = arguments.listen;
    if options.listen.is_empty() {
        options.listen.push(Listen::Unix(state.join("door").join("socket")));
    }
    options.token = secret(arguments.token_env.as_deref())?;
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
