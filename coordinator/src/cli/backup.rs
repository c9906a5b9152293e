//! `graftwork backup` and `graftwork restore`: a coordinator's state, put aside and brought back.

use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::{DONE, Failure, coordinator::FOLDER};
use crate::server::{BackupError, Database, Manifest, back_up, restore as bring_back};

#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    /// The coordinator's state folder; it may be running.
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    state: String,
    /// The backup: a folder that is not there yet.
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// A backup.
    backup: PathBuf,
    /// The state folder to be: one that is not there yet.
    #[arg(long, value_name = "FOLDER")]
    state: PathBuf,
}

pub(super) fn backup(arguments: &Backup) -> Result<u8, Failure> {
    if Database::is_address(&arguments.state) {
        return Err(Failure::input(anyhow!(
            "a state in PostgreSQL is backed up by the database's own means (pg_dump, or its archive of writes) and by \
             versions of the bucket: docs/operations.md says how they go together"
        )));
    }
    let manifest = back_up(Path::new(&arguments.state), &arguments.to).map_err(failure)?;
    eprintln!("{} holds {}", arguments.to.display(), words(&manifest));
    Ok(DONE)
}

pub(super) fn restore(arguments: &Restore) -> Result<u8, Failure> {
    let manifest = bring_back(&arguments.backup, &arguments.state).map_err(failure)?;
    eprintln!("{} is as it was: {}; start a coordinator with --state {0}", arguments.state.display(), words(&manifest));
    Ok(DONE)
}

/// What names nothing that is there is the user's to mend; a disk is not.
fn failure(error: BackupError) -> Failure {
    match error {
        BackupError::NoState { .. } | BackupError::Exists { .. } | BackupError::Wrong { .. } => Failure::input(error),
        error => Failure { code: super::OURS, error: error.into() },
    }
}

fn words(manifest: &Manifest) -> String {
    let Manifest { version, term, facts, blobs, bytes, .. } = manifest;
    let megabytes = *bytes as f64 / 1e6;
    format!("{facts} facts up to term {term}, and {blobs} blobs of {megabytes:.1} MB, by version {version}")
}
