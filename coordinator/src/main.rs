//! `graftwork`: command line, planner, publisher and coordinator in one small program without libtorch.
//!
//! ```text
//! certificate  a CA and a certificate for a cluster that has none
//! cli          what users type: arguments, exit codes, output
//! planner      job + files → plan, or every problem at once
//! server       coordinator's shell around the pure scheduler
//! publish      results → releases in the hub folder
//! run          the embedded coordinator with local workers as children
//! nightly      the same job night after night: history, verdicts, and what is said of them
//! client       gRPC client of a coordinator
//! progress     what a person watches while it runs
//! upload       what `submit` sends to a coordinator before the job
//! downloads    where it keeps what it fetches
//! report       what a person reads when it ended
//! ```
//! Data goes to stdout, everything else to stderr. No secret is ever an argument.

mod certificate;
mod cli;
mod client;
mod downloads;
#[cfg(test)]
mod fixture;
mod nightly;
mod planner;
mod progress;
mod publish;
mod report;
mod run;
mod server;
mod upload;

fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(cli::main())
}
