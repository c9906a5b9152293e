//! `graftwork coordinator`: leads workers until it is stopped.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

use graftwork_scheduler::Quota;

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
    /// Places of workers that an owner's stages may have at a time, such as `nlp=4`; `*=4` is for every owner that is not
    /// named. May be given again.
    #[arg(long, value_name = "OWNER=PLACES", value_parser = bound)]
    quota: Vec<(String, u32)>,
    /// Jobs of an owner that may be there without having ended; one more is refused. As with --quota.
    #[arg(long, value_name = "OWNER=JOBS", value_parser = bound)]
    most_jobs: Vec<(String, u32)>,
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
    options.quotas = quotas(arguments.quota, arguments.most_jobs);
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
