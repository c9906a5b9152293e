//! `graftwork run`: a coordinator on a private socket, local workers as child processes, the report, the end.
//!
//! The state lies in `<state>/<job id>` and is locked by the coordinator in it. kill -9 of this process takes the
//! workers with it and loses nothing that was acknowledged: the same command goes on. A second command for a job that
//! is being trained watches it.

mod attach;
mod embedded;
mod recovery;
mod signals;
mod workers;

use std::path::PathBuf;

use anyhow::anyhow;
use graftwork_shared::{
    diagnostic::Diagnostic,
    id::JobId,
    job::{Job, MOST_THREADS, MOST_WORKERS, Spans},
    view::JobView,
};
pub(crate) use recovery::{Lost, Recoveries, Recovery};
pub(crate) use signals::Signals;

use crate::{
    cli::{Failure, INPUT, INTERRUPTED, JobFile, Output, Refused, exit_code, pasted, print, show_problems},
    progress::Mode,
    report, server,
};

/// Folder of local states, unless `--state` names another.
pub(crate) const STATE: &str = ".graftwork/state";
/// What local workers wrote, inside a job's state folder.
pub(crate) const LOG: &str = "workers.log";

/// Local workers, and how their progress is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Processes {
    /// Worker processes, instead of what the job says.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_WORKERS)))]
    pub(crate) workers: Option<u32>,
    /// Trainer threads of each worker, instead of what the job says.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_THREADS)))]
    pub(crate) threads: Option<u32>,
    /// How progress is shown on stderr.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) progress: Mode,
}

impl Processes {
    /// What decides how work goes on, as it was typed.
    pub(crate) fn words(&self) -> impl Iterator<Item = String> {
        let workers = self.workers.map(|workers| format!("--workers {workers}"));
        workers.into_iter().chain(self.threads.map(|threads| format!("--threads {threads}")))
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The job file.
    file: PathBuf,
    /// Folder with the states of local jobs; each job has a folder of its own in it.
    #[arg(long, value_name = "FOLDER", default_value = STATE)]
    state: PathBuf,
    #[command(flatten)]
    processes: Processes,
    /// How the report is printed on stdout.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// Train everything again when the job has ended already, without earlier results; an interrupted job goes on.
    #[arg(long)]
    again: bool,
}

/// What training one job on this machine needs.
#[derive(Clone, Debug)]
pub(crate) struct Training {
    pub(crate) job: Job,
    pub(crate) spans: Spans,
    /// The job's own state folder.
    pub(crate) folder: PathBuf,
    pub(crate) workers: u32,
    pub(crate) threads: u32,
    pub(crate) progress: Mode,
    /// An ended job starts over.
    pub(crate) again: bool,
    /// Earlier results of the hub are taken.
    pub(crate) reuse: bool,
    /// The command that goes on after an interruption.
    pub(crate) go_on: String,
}

/// How training ended for the command that waited.
#[derive(Debug)]
pub(crate) enum End {
    /// The job has ended; and after which losses training went on, as far as this process saw them.
    Ended(Box<JobView>, Vec<Recovery>),
    /// It cannot be planned.
    Refused(Vec<Diagnostic>),
    /// It was interrupted, and would be planned otherwise now; in words. Nothing was touched.
    Changed(String),
    /// The user stopped it; the state is kept.
    Interrupted,
}

/// Trainer threads of each worker: as the command line says, else the job, else the cores shared among the workers.
pub(crate) fn threads(job: &Job, wished: Option<u32>) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
    wished.or(job.resources.threads).unwrap_or((cores / job.resources.workers.max(1)).max(1))
}

pub(crate) async fn run(arguments: Arguments) -> Result<u8, Failure> {
    let file = match JobFile::read(&arguments.file)? {
        Ok(file) => file,
        Err(refused) => {
            let Refused { name, text, problems } = refused.with_data_problems(&arguments.file).await?;
            show_problems(&text, &name, &problems);
            return Ok(INPUT);
        }
    };
    let JobFile { name, text, mut job, spans, warnings } = file;
    show_problems(&text, &name, &warnings);
    job.resources.workers = arguments.processes.workers.unwrap_or(job.resources.workers);
    let id = JobId::of(&job.digest());
    let folder = std::path::absolute(arguments.state.join(id.as_str()))?;
    let training = Training {
        workers: job.resources.workers,
        threads: threads(&job, arguments.processes.threads),
        job,
        spans,
        folder: folder.clone(),
        progress: arguments.processes.progress,
        again: arguments.again,
        reuse: !arguments.again,
        go_on: go_on(&arguments),
    };
    match train(training).await? {
        End::Refused(problems) => {
            show_problems(&text, &name, &problems);
            Ok(INPUT)
        }
        End::Interrupted => Ok(INTERRUPTED),
        End::Changed(words) => {
            let words = format!("{words}; run it with --again to start over with what is there now");
            Err(Failure::input(anyhow!(words)))
        }
        End::Ended(view, _) => {
            let paths = report::write(&view, &folder)?;
            match arguments.output {
                Output::Json => print(&report::json(&view)?),
                Output::Human => {
                    use std::io::IsTerminal as _;
                    print(&report::table(&view, false, std::io::stdout().is_terminal()));
                    paths.iter().for_each(|path| eprintln!("report: {}", path.display()));
                    eprintln!("hub:    {}", view.hub);
                }
            }
            Ok(exit_code(&view))
        }
    }
}

/// Trains a job, or watches the process that does.
pub(crate) async fn train(training: Training) -> Result<End, Failure> {
    let mut signals = Signals::listen()?;
    if let Some(holder) = server::holder(&training.folder)? {
        return attach::watch(&training, &holder, &mut signals).await;
    }
    embedded::train(training, &mut signals).await
}

/// The command as it was typed, without `--again`: that would only start over what has ended.
fn go_on(arguments: &Arguments) -> String {
    let mut words = vec!["graftwork run".to_owned()];
    if arguments.state.as_path() != std::path::Path::new(STATE) {
        words.push(format!("--state {}", pasted(&arguments.state)));
    }
    words.extend(arguments.processes.words());
    words.push(pasted(&arguments.file));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::fixture::{TASK, World};

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        run: Arguments,
    }

    #[test]
    fn the_command_line_takes_as_many_workers_as_the_job_file() {
        let world = World::new();
        for (workers, taken) in [(65, true), (MOST_WORKERS, true), (MOST_WORKERS + 1, false)] {
            let line = Line::try_parse_from(["run", "job.toml", "--workers", &workers.to_string()]);
            assert_eq!(
                line.is_ok_and(|line| line.run.processes.workers == Some(workers)),
                taken,
                "--workers {workers}"
            );
            let (_, parsed) = world.parse(&format!("{TASK}[resources]\nworkers = {workers}\n"));
            assert_eq!(parsed.job.is_some_and(|job| job.resources.workers == workers), taken, "workers = {workers}");
        }
    }
}
