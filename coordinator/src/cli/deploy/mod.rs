//! `graftwork deploy`: workers where other systems start processes.

mod slurm;

use super::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    to: To,
}

#[derive(Debug, clap::Subcommand)]
enum To {
    /// Submit a job array of workers to Slurm. Each joins the coordinator, drains before its time is over, and is queued
    /// again.
    Slurm(Box<slurm::Arguments>),
}

pub(super) fn run(arguments: Arguments) -> Result<u8, Failure> {
    match arguments.to {
        To::Slurm(arguments) => slurm::run(&arguments),
    }
}
