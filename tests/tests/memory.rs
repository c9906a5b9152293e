//! Predicted memory against what the real program takes, on a real base model: within a tenth on every point of the
//! matrix with GRAFTWORK_LONG_TESTS, as the constants were fitted; within a quarter otherwise, since allocators, page sizes
//! and libraries of other machines differ. What was measured is printed, so that the constants can be fitted again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::program;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// Data, method, batch size, longest row, trainer threads.
type Point = (&'static str, &'static str, u32, u32, u32);

const POINTS: [Point; 7] = [
    ("question_type", "seq_bn", 16, 128, 1),
    ("question_type", "seq_bn", 16, 128, 2),
    ("question_type", "lora", 16, 128, 2),
    ("question_type", "double_seq_bn", 32, 128, 2),
    ("question_type", "seq_bn", 64, 128, 2),
    ("tweet_sentiment", "seq_bn", 32, 64, 2),
    ("bbc_topic", "seq_bn", 16, 128, 2),
];

/// What is fetched and imported for the quickstart.
fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.graftwork")
}

fn job((data, method, batch, longest, threads): Point) -> String {
    let home = home().display().to_string();
    format!(
        "name = \"memory\"\n[base_model]\nlocation = \"{home}/base/all-minilm-l6-v2\"\n\
         [publish]\nhub = \"hub\"\norganisation = \"tests\"\n[resources]\nworkers = 1\nthreads = {threads}\n\
         [tasks.one]\ntrain = \"{home}/data/{data}/train.parquet\"\n\
         validation = \"{home}/data/{data}/validation.parquet\"\ntext = \"text\"\nlabel = \"label\"\n\
         head = \"classification\"\nadapter = {{ method = \"{method}\" }}\n\
         [tasks.one.training]\nsteps = 8\nbatch_size = {batch}\nlanes = 2\nlearning_rate = 1e-3\nmax_length = {longest}\n"
    )
}

fn ask(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program()).current_dir(folder).args(arguments).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Bytes that were predicted for all processes that hold the model, and the worker's peak.
fn measure(point: Point) -> Result<[u64; 2]> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("job.toml"), job(point))?;
    let plan: Value = serde_json::from_str(&ask(folder.path(), &["plan", "job.toml", "--output", "json"])?)?;
    ask(folder.path(), &["run", "job.toml", "--progress", "json"])?;
    let state = fs::read_dir(folder.path().join(".graftwork/state"))?.next().context("a job's state")??;
    let report: Value = serde_json::from_slice(&fs::read(state.path().join("report.json"))?)?;
    let predicted = plan["estimate"]["memory_bytes"].as_u64().context("a prediction")?;
    let stages = report["stages"].as_array().or_else(|| report["job"]["stages"].as_array()).context("stages")?;
    let peak = stages.iter().filter_map(|stage| stage["usage"]["peak_memory_bytes"].as_u64()).max();
    Ok([predicted, peak.context("a peak")?])
}

fn check(point: Point) -> Result<()> {
    let [predicted, peak] = measure(point)?;
    let ratio = predicted as f64 / peak as f64;
    println!("{point:?}: {} MiB predicted, {} MiB measured, {ratio:.3}", predicted >> 20, peak >> 20);
    let tolerance = if std::env::var_os("GRAFTWORK_LONG_TESTS").is_some() { 0.1 } else { 0.25 };
    ensure!((ratio - 1.0).abs() <= tolerance, "{point:?}: {predicted} bytes were predicted and {peak} measured");
    Ok(())
}

fn main() -> ExitCode {
    let lacking = !home().join("data/bbc_topic/import.json").exists();
    if lacking {
        eprintln!("ignored: the base model and the data are not there (make test fetches them)");
    }
    let trials = POINTS.map(|point| {
        let (data, method, batch, longest, threads) = point;
        let name = format!("{data}_{method}_batch_{batch}_of_{longest}_on_{threads}");
        let run = move || check(point).map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(name, run).with_ignored_flag(lacking)
    });
    // Each worker has the machine to itself, so that its peak is its own.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}
