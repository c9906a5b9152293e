//! `graftwork backup` and `graftwork restore`: a coordinator's state, put aside and brought back, in a folder or on servers,
//! and the histories of its nights.

use std::path::PathBuf;

use super::{DONE, Failure, coordinator::FOLDER, servers::Servers};
use crate::server::{BackupError, Manifest, back_up, restore as bring_back};

#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    /// Where the coordinator's state lies, as it was told: a folder, or postgres://USER@HOST:PORT/NAME. It may be running.
    #[arg(long, value_name = "FOLDER|ADDRESS", default_value = FOLDER)]
    state: String,
    #[command(flatten)]
    servers: Servers,
    /// Folder with the histories of its nights, as the coordinator was told; by default `nightly` in the state folder, or those
    /// that the database holds.
    #[arg(long, value_name = "FOLDER")]
    nightly_history: Option<PathBuf>,
    /// The backup: a folder that is not there yet.
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// A backup, of a state of either kind.
    backup: PathBuf,
    /// Where the state is to lie: a folder that is not there yet, or a database that holds none.
    #[arg(long, value_name = "FOLDER|ADDRESS")]
    state: String,
    #[command(flatten)]
    servers: Servers,
    /// Where the histories of its nights are to lie: a folder that is not there yet; by default `nightly` in the state folder, or
    /// the database.
    #[arg(long, value_name = "FOLDER")]
    nightly_history: Option<PathBuf>,
}

pub(super) fn backup(arguments: &Backup) -> Result<u8, Failure> {
    let home = arguments.servers.home(&arguments.state)?;
    let manifest = back_up(&home, arguments.nightly_history.as_deref(), &arguments.to).map_err(failure)?;
    eprintln!("{} holds {}", arguments.to.display(), words(&manifest));
    Ok(DONE)
}

pub(super) fn restore(arguments: &Restore) -> Result<u8, Failure> {
    let home = arguments.servers.home(&arguments.state)?;
    let histories = arguments.nightly_history.as_deref();
    let manifest = bring_back(&arguments.backup, &home, histories).map_err(failure)?;
    let state = &arguments.state;
    eprintln!("{state} is as it was: {}; start a coordinator with --state {state}", words(&manifest));
    Ok(DONE)
}

fn failure(error: BackupError) -> Failure {
    let code = if error.is_input() { super::INPUT } else { super::OURS };
    Failure { code, error: error.into() }
}

fn words(manifest: &Manifest) -> String {
    let Manifest { version, term, facts, blobs, bytes, .. } = manifest;
    let megabytes = *bytes as f64 / 1e6;
    let nights = match manifest.nights() {
        0 => ", no histories of nights".to_owned(),
        nights => format!(", {nights} nights"),
    };
    format!("{facts} facts up to term {term}{nights}, and {blobs} blobs of {megabytes:.1} MB, by version {version}")
}
