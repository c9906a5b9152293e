//! `graftwork-worker`, the program beside this one that links libtorch. It must have the same version.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, anyhow};
use graftwork_shared::VERSION;

use super::Failure;

const PROGRAM: &str = "graftwork-worker";

/// Variable with the folder of another libtorch than the one beside the programs: a CUDA build of the same version, or
/// that of Python's `torch`.
const LIBTORCH: &str = "GRAFTWORK_LIBTORCH";

/// Where the system's loader looks first.
const LIBRARIES: &str = "LD_LIBRARY_PATH";

/// What the loader is told, so that it finds the libtorch that the user names.
fn libraries() -> Result<Option<OsString>, Failure> {
    let Some(folder) = std::env::var_os(LIBTORCH).filter(|folder| !folder.is_empty()) else { return Ok(None) };
    let folder = PathBuf::from(folder);
    let places = [folder.join("lib"), folder.clone()];
    let found = places.into_iter().find(|place| place.join("libtorch_cpu.so").is_file());
    let found = found.ok_or_else(|| {
        Failure::input(anyhow!("{LIBTORCH}: there is no libtorch_cpu.so in {0} or {0}/lib", folder.display()))
    })?;
    let known = std::env::var_os(LIBRARIES).filter(|known| !known.is_empty());
    let all = std::iter::once(found).chain(known.iter().flat_map(std::env::split_paths));
    Ok(Some(std::env::join_paths(all).map_err(|error| Failure::input(anyhow!("{LIBTORCH}: {error}")))?))
}

/// Arguments that are handed over as they are.
#[derive(Debug, clap::Args)]
pub(crate) struct Passed {
    /// Arguments of graftwork-worker.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// The worker program of this installation.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    path: PathBuf,
    libraries: Option<OsString>,
}

impl Worker {
    /// Some other program in its place.
    #[cfg(test)]
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, libraries: None }
    }

    /// Finds the program beside this one.
    pub(crate) fn find() -> Result<Self, Failure> {
        let own = std::env::current_exe().context("finding this program's own path")?;
        let path = own.parent().unwrap_or(Path::new(".")).join(PROGRAM);
        if path.is_file() {
            return Ok(Self { path, libraries: libraries()? });
        }
        let words = format!(
            "{} is not there: {PROGRAM} must lie beside graftwork; install or build both (cargo build --release -p graftwork-worker)",
            path.display()
        );
        Err(Failure { code: super::OURS, error: anyhow!(words) })
    }

    /// Asks the program for its version; it must be this one's.
    pub(crate) fn check_version(&self) -> Result<(), Failure> {
        let output = self.command().arg("--version").output();
        let output = output.with_context(|| format!("starting {}", self.path.display()))?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(anyhow!("{} does not start: {reason}", self.path.display()).into());
        }
        if said.split_whitespace().last() == Some(VERSION) {
            return Ok(());
        }
        let path = self.path.display();
        Err(anyhow!("{path} is {said:?}, but this is graftwork {VERSION}: install both programs of one version").into())
    }

    /// A command that runs the program.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        // One torch thread for each trainer thread, sleeping instead of spinning: lanes are the unit of parallelism.
        command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "PASSIVE");
        if let Some(libraries) = &self.libraries {
            command.env(LIBRARIES, libraries);
        }
        command
    }
}

/// Becomes the worker program with one of its commands.
pub(super) fn exec(command: &str, passed: &Passed) -> Result<u8, Failure> {
    let worker = Worker::find()?;
    worker.check_version()?;
    // Its help speaks of the command that was typed.
    let error = worker.command().arg0("graftwork").arg(command).args(&passed.arguments).exec();
    Err(anyhow!(error).context(format!("starting {}", worker.path.display())).into())
}
