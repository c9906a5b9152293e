//! Tests of the job file: every error as a snapshot, the table of keys against the resolved types, and arbitrary text.

mod digests;
mod fuzz;
mod inheritance;
mod problems;
mod sweeps;
mod table;

use std::path::Path;

use super::{Job, Parsed, parse};
use crate::diagnostic::render;

/// The folder in which test files pretend to lie.
const FOLDER: &str = "/jobs";

/// Two tasks and what every job must have; tests add to it.
const BASE: &str = r#"
[base_model]
location = "model"
[tasks.spam]
train = "spam.parquet"
validation = "spam-validation.parquet"
[tasks.tone]
train = "tone.parquet"
validation = "tone-validation.parquet"
"#;

fn parsed(text: &str) -> Parsed {
    parse(text, Path::new(FOLDER))
}

/// The job of a text that has no errors; warnings are allowed.
fn job(text: &str) -> Job {
    let parsed = parsed(text);
    parsed.job.unwrap_or_else(|| panic!("{}", render(text, "job.toml", &parsed.diagnostics, false)))
}

/// Everything that is wrong with a text, as a user sees it.
fn shown(text: &str) -> String {
    render(text, "job.toml", &parsed(text).diagnostics, false)
}

/// The codes of everything that is wrong with a text.
fn codes(text: &str) -> Vec<String> {
    parsed(text).diagnostics.into_iter().map(|problem| problem.code).collect()
}
