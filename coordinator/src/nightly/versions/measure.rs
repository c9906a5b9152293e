//! One version measures: its own `graftwork run` trains a job file, and what it publishes and reports is read.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, anyhow};
use clap::ValueEnum as _;
use graftwork_shared::{event::Outcome, job::Job, view::JobView};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;

use super::{
    super::{
        answers::Book,
        night::{Code, LAYOUT, Night, gather},
    },
    PROGRAM, Version,
};
use crate::{
    cli::{Failure, INTERRUPTED, OURS},
    run::{Processes, Signals},
};

/// One version's part of a comparison.
pub(in super::super) struct Side<'s> {
    pub(in super::super) version: &'s Version,
    /// The job file's text, with absolute places.
    pub(in super::super) text: &'s str,
    /// What the text resolves to here, for what is kept.
    pub(in super::super) job: &'s Job,
    /// Folder of its state; the same one goes on.
    pub(in super::super) folder: &'s Path,
    pub(in super::super) processes: &'s Processes,
}

/// What a version measured.
pub(in super::super) struct Measured {
    pub(in super::super) night: Night,
    pub(in super::super) book: Book,
    pub(in super::super) view: JobView,
}

/// Trains and reads; `None` when the user stopped it, and the same goes on.
pub(in super::super) async fn measure(side: Side<'_>, signals: &mut Signals) -> Result<Option<Measured>, Failure> {
    let file = side.folder.join("job.toml");
    graftwork_store::write_atomically(&file, side.text.as_bytes())?;
    let Some(report) = run(&side, &file, signals).await? else { return Ok(None) };
    let name = &side.version.name;
    let view: JobView = serde_json::from_str(&report).with_context(|| {
        format!("{name} reports in another form than this version reads, so they cannot be compared")
    })?;
    if view.outcome == Some(Outcome::Cancelled) {
        return Err(Failure::input(anyhow!("the job of {name} was cancelled")));
    }
    let (measurements, book, failed) = gather(&view)?;
    let night = Night {
        layout: LAYOUT,
        number: 0,
        began_ms: view.submitted_ms,
        ended_ms: view.ended_ms.unwrap_or(view.submitted_ms),
        resumed: 0,
        shared: false,
        code: Code {
            version: version(side.version)?,
            numerics: numerics(&view)?,
            name: name.clone(),
            programs: side.version.digest()?,
        },
        job: side.job.clone(),
        measurements,
        failed,
        missed: view.outcome == Some(Outcome::ExpectationMissed),
        usage: view.usage,
        recoveries: Vec::new(),
        answers: None,
        judged: None,
    };
    Ok(Some(Measured { night, book, view }))
}

/// Runs the job; gives its report, or `None` when it was interrupted.
async fn run(side: &Side<'_>, file: &Path, signals: &mut Signals) -> Result<Option<String>, Failure> {
    let program = side.version.programs.join(PROGRAM);
    let mut command = tokio::process::Command::new(&program);
    command.arg("run").arg("--state").arg(side.folder.join("state")).args(["--output", "json"]);
    let Processes { workers, threads, progress } = side.processes;
    for (option, value) in [("--workers", workers), ("--threads", threads)] {
        if let Some(value) = value {
            command.arg(option).arg(value.to_string());
        }
    }
    if let Some(mode) = progress.to_possible_value() {
        command.arg("--progress").arg(mode.get_name());
    }
    // A group of its own: Ctrl-C on the terminal reaches this process alone, which passes it on.
    // An error on this side ends it too, and its workers with it.
    command.arg(file).process_group(0).kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    let mut stdout = child.stdout.take().context("its output is piped")?;
    let reading = tokio::spawn(async move {
        let mut report = String::new();
        stdout.read_to_string(&mut report).await.map(|_| report)
    });
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            () = signals.stop() => {
                if let Some(process) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                    // It may have ended just now.
                    let _ = kill_process(process, Signal::TERM);
                }
            }
        }
    };
    if status.code() == Some(i32::from(INTERRUPTED)) {
        return Ok(None);
    }
    let report = reading.await??;
    if report.trim().is_empty() {
        let words = format!("{} ended with {status} and gave no report; its words stand above", side.version.name);
        return Err(Failure { code: OURS, error: anyhow!(words) });
    }
    Ok(Some(report))
}

/// The version that the program says it is.
fn version(version: &Version) -> Result<String, Failure> {
    let program: PathBuf = version.programs.join(PROGRAM);
    let output = std::process::Command::new(&program).arg("--version").output();
    let said = output.with_context(|| format!("starting {}", program.display()))?.stdout;
    let said = String::from_utf8_lossy(&said);
    Ok(said.split_whitespace().last().unwrap_or("unknown").to_owned())
}

/// The numerics version that stands in the record of a release; 0 where nothing was published.
fn numerics(view: &JobView) -> Result<u32, Failure> {
    let Some(release) = view.stages.iter().find_map(|stage| stage.release.as_ref()) else { return Ok(0) };
    let path = Path::new(release).join("graftwork.json");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let record: serde_json::Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let number = record.pointer("/recipe/numerics_version").and_then(serde_json::Value::as_u64);
    let number = number.and_then(|number| u32::try_from(number).ok());
    Ok(number.with_context(|| format!("{} says no numerics version", path.display()))?)
}
