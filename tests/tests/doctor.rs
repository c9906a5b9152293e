//! `graftwork doctor` tells what the worker program finds on this machine, to people and as JSON.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::program;
use serde_json::Value;

/// What it prints, whether it finds everything sound or not.
fn doctor(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program()).current_dir(folder).arg("doctor").args(arguments).output()?;
    ensure!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// With the library and without it, with GPUs and without them.
#[test]
fn the_doctor_says_which_nccl_is_here_and_why_it_cannot_be_used() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let found: Value = serde_json::from_str(&doctor(folder.path(), &["--output", "json"])?)?;
    let nccl = found["worker"]["nccl"].as_object().with_context(|| format!("the worker's findings in {found}"))?;
    let text = doctor(folder.path(), &[])?;
    let line = text.lines().find(|line| line.trim_start().starts_with("NCCL "));
    let line = line.with_context(|| format!("a line about NCCL in\n{text}"))?;
    let said: Vec<&str> = ["version", "refusal"].iter().filter_map(|part| nccl[*part].as_str()).collect();
    ensure!(!said.is_empty(), "neither a version nor a refusal: {nccl:?}");
    for words in said {
        ensure!(line.contains(words.lines().next().unwrap_or_default()), "{words:?} is not in {line:?}");
    }
    Ok(())
}
