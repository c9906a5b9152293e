//! `graftwork doctor`: what this installation runs on, and what is wrong with it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use graftwork_shared::{VERSION, cause::told};
use serde_json::{Value, json};

use super::{DONE, Failure, OURS, Output, Worker, cache_folder, print};
use crate::run;

/// Less free space than this is worth a word.
const LITTLE_SPACE_BYTES: u64 = 1 << 30;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How it is printed.
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// Folder with the states of local jobs.
    #[arg(long, value_name = "FOLDER", default_value = run::STATE)]
    state: PathBuf,
}

struct Finding {
    what: &'static str,
    value: String,
    problem: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let mut findings = vec![Finding { what: "graftwork", value: VERSION.to_owned(), problem: None }];
    findings.push(folder("state folder", &arguments.state));
    findings.push(folder("download cache", &cache_folder()));
    let worker = worker();
    match &worker {
        Ok(_) => findings.push(Finding { what: "graftwork-worker", value: VERSION.to_owned(), problem: None }),
        Err(problem) => {
            let problem = Some(problem.clone());
            findings.push(Finding { what: "graftwork-worker", value: "not usable".to_owned(), problem });
        }
    }
    let sound = findings.iter().all(|finding| finding.problem.is_none());
    if arguments.output == Output::Json {
        let own: Vec<Value> =
            findings.iter().map(|f| json!({ "what": f.what, "value": f.value, "problem": f.problem })).collect();
        let document = json!({ "sound": sound, "findings": own, "worker": worker.ok() });
        print(&(serde_json::to_string_pretty(&document)? + "\n"));
    } else {
        let lines = findings.iter().map(|f| match &f.problem {
            None => format!("✓ {:<18} {}\n", f.what, f.value),
            Some(problem) => format!("✗ {:<18} {}: {problem}\n", f.what, f.value),
        });
        print(&lines.collect::<String>());
        if worker.is_ok() {
            print(&worker_text().lines().map(|line| format!("  {line}\n")).collect::<String>());
        }
    }
    Ok(if sound { DONE } else { OURS })
}

fn folder(what: &'static str, path: &Path) -> Finding {
    let problem = match graftwork_store::free_bytes(path) {
        Err(error) => Some(error.to_string()),
        Ok(free) if free < LITTLE_SPACE_BYTES => Some(format!("only {} are free", crate::report::bytes(free))),
        Ok(_) => writable(path).err().map(|error| told(error.as_ref())),
    };
    let free = graftwork_store::free_bytes(path).map_or("?".to_owned(), crate::report::bytes);
    Finding { what, value: format!("{} ({free} free)", path.display()), problem }
}

/// Whether this user can write there, or in the nearest folder that exists.
fn writable(path: &Path) -> anyhow::Result<()> {
    let absolute = std::path::absolute(path)?;
    let nearest = absolute.ancestors().find(|folder| folder.is_dir()).context("no folder exists on the way")?;
    rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK).with_context(|| format!("{}", nearest.display()))
}

/// What the worker says of itself.
fn worker() -> Result<Value, String> {
    let words = |failure: Failure| told(failure.error.as_ref());
    let worker = Worker::find().map_err(words)?;
    worker.check_version().map_err(words)?;
    let output = worker.command().args(["doctor", "--json"]).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("its doctor does not speak JSON: {error}"))
}

/// The same for a person.
fn worker_text() -> String {
    let output = Worker::find().ok().and_then(|worker| worker.command().arg("doctor").output().ok());
    output.map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).into_owned())
}
