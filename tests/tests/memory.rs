//! Predicted memory against what the real program takes, on a real base model: within a tenth on every point of the
//! matrix. What was measured is printed, so that the constants can be fitted again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::program;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// Data, method (a fusion is of two adapters), batch size, longest row, trainer threads.
type Point = (&'static str, &'static str, u32, u32, u32);

const POINTS: [Point; 8] = [
    ("question_type", "seq_bn", 16, 128, 1),
    ("question_type", "seq_bn", 16, 128, 2),
    ("question_type", "lora", 16, 128, 2),
    ("question_type", "double_seq_bn", 32, 128, 2),
    ("question_type", "seq_bn", 64, 128, 2),
    ("question_type", "fusion", 16, 128, 2),
    ("tweet_sentiment", "seq_bn", 32, 64, 2),
    ("bbc_topic", "seq_bn", 16, 128, 2),
];

/// Share of the measured bytes by which a prediction may be wrong.
const TOLERANCE: f64 = 0.1;

/// What was predicted of one point, in bytes, and the worker's peak.
#[derive(Clone, Copy, Debug)]
struct Measured {
    base_model: f64,
    process: f64,
    stages: f64,
    peak: f64,
}

/// All points measured so far.
static ALL: Mutex<Vec<Measured>> = Mutex::new(Vec::new());

/// What is fetched and imported for the quickstart.
fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.graftwork")
}

fn job((data, method, batch, longest, threads): Point) -> String {
    let home = home().display().to_string();
    let training =
        format!("steps = 8\nbatch_size = {batch}\nlanes = 2\nlearning_rate = 1e-3\nmax_length = {longest}\n");
    let (method, fusion) = match method {
        "fusion" => (
            "seq_bn",
            format!(
                "[tasks.two]\ntrain = \"{home}/data/{data}/train.parquet\"\n\
                     validation = \"{home}/data/{data}/validation.parquet\"\ntext = \"text\"\nlabel = \"label\"\n\
                     head = \"classification\"\nadapter = {{ method = \"seq_bn\" }}\n\
                     [tasks.two.training]\nseed = 2\n{training}\
                     [fusions.both]\nadapters = [\"one\", \"two\"]\ntask = \"one\"\n[fusions.both.training]\n{training}"
            ),
        ),
        method => (method, String::new()),
    };
    format!(
        "name = \"memory\"\n[base_model]\nlocation = \"{home}/base/all-minilm-l6-v2\"\n\
         [publish]\nhub = \"hub\"\norganisation = \"tests\"\n[resources]\nworkers = 1\nthreads = {threads}\n\
         [tasks.one]\ntrain = \"{home}/data/{data}/train.parquet\"\n\
         validation = \"{home}/data/{data}/validation.parquet\"\ntext = \"text\"\nlabel = \"label\"\n\
         head = \"classification\"\nadapter = {{ method = \"{method}\" }}\n\
         [tasks.one.training]\n{training}{fusion}"
    )
}

fn ask(folder: &Path, arguments: &[&str]) -> Result<String> {
    // With an empty cache, so that each worker packs the weights itself: the most that it takes.
    let cache = folder.join("cache");
    let output = Command::new(program()).current_dir(folder).args(arguments).env("XDG_CACHE_HOME", cache).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn measure(point: Point) -> Result<Measured> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("job.toml"), job(point))?;
    let plan: Value = serde_json::from_str(&ask(folder.path(), &["plan", "job.toml", "--output", "json"])?)?;
    ask(folder.path(), &["run", "job.toml", "--progress", "json"])?;
    let state = fs::read_dir(folder.path().join(".graftwork/state"))?.next().context("a job's state")??;
    let report: Value = serde_json::from_slice(&fs::read(state.path().join("report.json"))?)?;
    let stages = report["stages"].as_array().or_else(|| report["job"]["stages"].as_array()).context("stages")?;
    let peak = stages.iter().filter_map(|stage| stage["usage"]["peak_memory_bytes"].as_f64()).max_by(f64::total_cmp);
    let told = stages.iter().filter_map(|stage| stage.pointer("/result/peak/bytes")?.as_f64()).max_by(f64::total_cmp);
    ensure!(told > peak.map(|peak| 0.95 * peak), "{peak:?} was not told as a peak, but {told:?}");
    let predicted = |part: &str| plan["estimate"][part].as_f64().with_context(|| format!("the estimate's {part}"));
    Ok(Measured {
        base_model: predicted("base_model_bytes")?,
        process: predicted("process_bytes")?,
        stages: predicted("stages_bytes")?,
        peak: peak.context("a peak")?,
    })
}

fn check(point: Point) -> Result<()> {
    let measured = measure(point)?;
    ALL.lock().unwrap_or_else(PoisonError::into_inner).push(measured);
    let Measured { base_model, process, stages, peak } = measured;
    let (predicted, mebibyte) = (base_model + process + stages, f64::from(1 << 20));
    let ratio = predicted / peak;
    println!("{point:?}: {:.0} MiB predicted, {:.0} MiB measured, {ratio:.3}", predicted / mebibyte, peak / mebibyte);
    ensure!((ratio - 1.0).abs() <= TOLERANCE, "{point:?}: {predicted} bytes were predicted and {peak} measured");
    Ok(())
}

/// The least squares of relative errors: what a process takes before any stage, and by how much a stage's part is to be
/// multiplied, for all points together.
fn fit(all: &[Measured]) -> Option<(f64, f64)> {
    let mut sums = [0.0; 5];
    for point in all {
        let weight = 1.0 / (point.peak * point.peak);
        let rest = point.peak - point.base_model;
        let terms = [1.0, point.stages, point.stages * point.stages, rest, rest * point.stages];
        sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += weight * term);
    }
    let [ones, stages, squares, rests, products] = sums;
    let determinant = ones * squares - stages * stages;
    let found = ((rests * squares - stages * products) / determinant, (ones * products - stages * rests) / determinant);
    (all.len() > 2 && determinant.abs() > f64::EPSILON * ones * squares).then_some(found)
}

fn say_fit() {
    let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((process, times)) = fit(&all) else { return };
    let worst = |process: Option<f64>, times: f64| {
        let error = |of: &Measured| {
            let predicted = of.base_model + process.unwrap_or(of.process) + times * of.stages;
            (predicted / of.peak - 1.0).abs()
        };
        all.iter().map(error).fold(0.0, f64::max)
    };
    println!(
        "worst error {:.1} %; with PROCESS_BYTES = {:.0} << 20 and TOKEN_BYTES times {times:.3} it is {:.1} %",
        100.0 * worst(None, 1.0),
        process / f64::from(1 << 20),
        100.0 * worst(Some(process), times)
    );
}

/// The fit finds the constants that points were made with.
fn the_fit_finds_what_is_there() -> Result<()> {
    let made = |base_model: f64, stages: f64| Measured {
        base_model,
        process: 0.0,
        stages,
        peak: base_model + 100.0 + 1.5 * stages,
    };
    let (process, times) = fit(&[made(50.0, 10.0), made(50.0, 40.0), made(80.0, 90.0)]).context("a fit")?;
    ensure!((process - 100.0).abs() < 1e-6 && (times - 1.5).abs() < 1e-9, "{process} and {times}");
    Ok(())
}

fn main() -> ExitCode {
    let lacking = !home().join("data/bbc_topic/import.json").exists();
    if lacking {
        eprintln!("ignored: the base model and the data are not there (make test fetches them)");
    }
    let mut trials = vec![Trial::test("the_fit_finds_what_is_there", || {
        the_fit_finds_what_is_there().map_err(|error| Failed::from(format!("{error:#}")))
    })];
    trials.extend(POINTS.map(|point| {
        let (data, method, batch, longest, threads) = point;
        let name = format!("{data}_{method}_batch_{batch}_of_{longest}_on_{threads}");
        let run = move || check(point).map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(name, run).with_ignored_flag(lacking)
    }));
    // Each worker has the machine to itself, so that its peak is its own.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let conclusion = libtest_mimic::run(&arguments, trials);
    say_fit();
    conclusion.exit_code()
}
