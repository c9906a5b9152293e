//! `graftwork-worker`: owns a device and does the mathematics. It serves a coordinator, predicts with adapters,
//! and compares the engine with recorded references.
//!
//! This is the only program that links libtorch. It keeps no state: what must survive lies with the coordinator.
//! Exit codes: 0 done, 1 the user's input, 2 ours or the machine's.

mod backoff;
mod blobs;
mod command;
mod computer;
mod coordinators;
mod doctor;
mod host;
mod logs;
mod meeting;
mod meters;
mod peak;
mod pool;
mod predict;
mod reference;
mod session;
mod stage;
mod trunks;
mod verbs;
mod waiting;

use std::{os::unix::process::CommandExt, process::ExitCode};

use clap::Parser;

/// What libgomp must find in the environment when it is loaded, before `main`: one thread, since lanes are the unit of
/// parallelism, and threads that sleep instead of spinning (with spinning, a busy neighbour cost a factor of 16).
const OPENMP: [(&str, &str); 2] = [("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE")];

/// Set for the second start, so that there is never a third.
const PREPARED: &str = "GRAFTWORK_WORKER_PREPARED";

fn main() -> ExitCode {
    if let Err(error) = prepare_openmp() {
        eprintln!("error: the worker cannot start itself again with its environment: {error}");
        return ExitCode::from(2);
    }
    let arguments = match command::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A closed terminal is no reason to fail over help.
            drop(error.print());
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    logs::start(arguments.log_format, arguments.command.log_level());
    if matches!(arguments.command, command::Command::Worker(_))
        && let Err(error) = graftwork_telemetry::start_traces("graftwork-worker")
    {
        eprintln!("error: {error}");
        return ExitCode::from(1);
    }
    let code = match arguments.command.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", graftwork_shared::cause::told(error.cause.as_ref()));
            error.code
        }
    };
    graftwork_telemetry::stop_traces();
    // Device threads may still be inside libtorch; its global destructors must not run under them.
    graftwork_engine::end_process(i32::from(code))
}

/// Starts this program again in the same process, unless the environment is right already.
fn prepare_openmp() -> std::io::Result<()> {
    let is_right = OPENMP.iter().all(|(name, value)| std::env::var(name).is_ok_and(|found| found == *value));
    if is_right || std::env::var_os(PREPARED).is_some() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let mut again = std::process::Command::new(std::env::current_exe()?);
    again.arg0(name).args(arguments).envs(OPENMP).env(PREPARED, "1");
    Err(again.exec())
}
