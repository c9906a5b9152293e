//! `graftwork cert`: certificates for a cluster that has none.

use std::path::PathBuf;

use super::{DONE, Failure, OURS};
use crate::certificate::{self, CA, CA_KEY, COORDINATOR, COORDINATOR_KEY, CertError, WORKER, WORKER_KEY};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Folder for `ca.pem`, `ca.key`, and `coordinator` and `worker` with `.pem` and `.key`; made if missing. Nothing in it
    /// is overwritten.
    folder: PathBuf,
    /// A host name or IP address by which workers and people reach the coordinator; may be given again. With --renew,
    /// the names that it has, if none is given.
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Days for which the certificates of coordinator and workers count.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    days: u32,
    /// Make the certificates and keys of coordinator and workers anew, with the CA in the folder: who trusts that CA goes
    /// on.
    #[arg(long)]
    renew: bool,
}

fn failure(error: CertError) -> Failure {
    match error {
        CertError::Made(_) => Failure { code: OURS, error: error.into() },
        _ => Failure::input(error),
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let Arguments { folder, hosts, days, renew } = arguments;
    let made = if *renew { certificate::renew(folder, hosts, *days) } else { certificate::make(folder, hosts, *days) };
    let made = made.map_err(failure)?;
    let path = |name: &str| folder.join(name).display().to_string();
    if let Some(until) = made.ca_until {
        let date = until.date();
        eprintln!("{} is valid until {date}: give it to every worker and person, for --tls-ca", path(CA));
        eprintln!("{} signs certificates that they trust: keep it, and give it to nobody", path(CA_KEY));
    }
    let (names, date) = (made.coordinator.names.join(", "), made.coordinator.until.date());
    eprintln!("{} is valid until {date}, for {names}", path(COORDINATOR));
    let key = path(COORDINATOR_KEY);
    eprintln!("{key} is its key: the coordinator needs these two alone, with `--tls {}`", folder.display());
    let (worker, key, until) = (path(WORKER), path(WORKER_KEY), made.worker.until.date());
    eprintln!("{worker} is valid until {until}, and {key} is its key: with these two and {CA} in a folder,");
    eprintln!("workers encrypt what they exchange: `--group-tls FOLDER`");
    if *renew {
        eprintln!("start the coordinator again, and workers when it suits: work goes on meanwhile");
    }
    Ok(DONE)
}
