//! `make bench`, and its script once more over what that measured: one measurement of the real program, its record and page,
//! and the verdict on what must be reached; the other programs that measure or compare, with little to measure. No figure is
//! held against a bar here: this machine may be busy.
//!
//! AdapterHub's library is installed by `make test-all` (scripts/peer.sh); without it what needs it is skipped.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode, Output},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{World, program};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

/// What must be reached, by row of the table: at least, and the aim.
const BARS: [(&str, f64, f64); 14] = [
    ("suite", 3.2, 4.0),
    ("suite-group", 2.0, 2.5),
    ("suite-max", 9.0, 12.0),
    ("suite-dropout", 3.0, 3.8),
    ("fusion3", 4.0, 5.0),
    ("fusion8", 6.0, 9.0),
    ("below", 1.8, 2.5),
    ("parallel8", 3.5, 4.5),
    ("sgemm16", 0.78, 0.9),
    ("sgemm64", 0.82, 0.9),
    ("cores", 1.85, 1.95),
    ("memory", 1.0 / 3.0, 1.0 / 4.0),
    ("adapter-memory", 1.5, 1.2),
    ("start", 1.5, 0.8),
];
const PLOTS: [&str; 4] =
    ["Throughput by batch and length", "Roofline", "From one core to two", "Memory by number of adapters"];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn bench(out: &Path, options: &[&str]) -> Result<Output> {
    let programs = program().parent().context("a folder of programs")?.to_owned();
    let mut command = Command::new("python3");
    command.arg(root().join("scripts/bench.py")).arg("--programs").arg(programs).arg("--out").arg(out);
    Ok(command.env_remove("GRAFTWORK_BENCH_DATA").args(["--runs", "1", "--rows", "64"]).args(options).output()?)
}

/// A target of the Makefile, with programs, data and library that are there already.
fn make(target: &str, options: &str) -> Result<Output> {
    let mut make = Command::new("make");
    make.args(["--no-print-directory", target, "--assume-old=bench-programs", "--assume-old=data"]);
    make.arg(format!("BENCH={options}"));
    // Of a make that runs these tests.
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GRAFTWORK_BENCH_DATA"] {
        make.env_remove(name);
    }
    Ok(make.current_dir(root()).output()?)
}

fn make_bench(target: &str, out: &Path, options: &str) -> Result<Output> {
    let programs = program().parent().context("a folder of programs")?.display().to_string();
    make(target, &format!("--programs {programs} --out {} --runs 1 --rows 64 {options}", out.display()))
}

fn record(out: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(out.join("record.json"))?)?)
}

fn rows(record: &Value) -> Result<&Vec<Value>> {
    record["table"].as_array().context("a table")
}

fn row<'a>(record: &'a Value, name: &str) -> Result<&'a Value> {
    rows(record)?.iter().find(|row| row["row"] == name).with_context(|| format!("no row {name}"))
}

/// Machine and versions, and the bars of every row.
fn check_what_it_is_held_against(record: &Value) -> Result<()> {
    let (machine, versions) = (&record["machine"], &record["versions"]);
    let known = machine["processor"].as_str().is_some_and(|name| !name.is_empty())
        && ["cores", "memory_mb"].iter().all(|figure| machine[figure].as_u64().is_some_and(|count| count > 0))
        && machine["instructions"].is_array();
    ensure!(known, "a machine: {machine}");
    let of_ours = versions["graftwork"].as_str().is_some_and(|version| version.starts_with("graftwork "));
    ensure!(of_ours && ["commit", "libtorch", "rustc"].iter().all(|name| versions[name].is_string()), "{versions}");

    let near = |bar: &Value, asked: f64| bar.as_f64().is_some_and(|bar| (bar - asked).abs() < 1e-9);
    for row in rows(record)? {
        let held = match BARS.iter().find(|(name, ..)| row["row"] == *name) {
            Some(&(_, least, aim)) => near(&row["at_least"], least) && near(&row["aim"], aim),
            None => row["at_least"].is_null() && row["aim"].is_null(),
        };
        ensure!(held, "other bars than are asked: {row}");
    }
    for (name, ..) in BARS {
        row(record, name)?;
    }
    Ok(())
}

/// Samples of all that the page draws, made up.
fn drawn() -> [(&'static str, Value); 4] {
    let grid = json!({
        "tokens10_batch4_tokens_per_second": 900.0, "tokens40_batch4_tokens_per_second": 1200.0,
        "tokens10_batch16_tokens_per_second": 1000.0, "tokens40_batch16_tokens_per_second": 1300.0,
    });
    let roofline = json!({
        "threads2_peak_gflops": 200.0, "threads2_bandwidth_gigabytes_per_second": 20.0,
        "threads2_product1_intensity": 0.5, "threads2_product1_gflops": 9.0, "threads2_product1_sgemm_gflops": 8.0,
        "threads2_product64_intensity": 28.0, "threads2_product64_gflops": 180.0, "threads2_product64_sgemm_gflops": 170.0,
    });
    let steps = json!({
        "batch16_threads1_examples_per_second": 50.0, "batch16_threads2_examples_per_second": 98.0,
        "batch64_threads1_examples_per_second": 48.0, "batch64_threads2_examples_per_second": 95.0,
        "batch16_threads2_tokens_per_batch": 440.0, "batch64_threads2_tokens_per_batch": 1700.0,
        "batch16_threads2_useful_gflops": 150.0, "batch64_threads2_useful_gflops": 140.0,
        "batch16_threads2_share_of_sgemm": 0.9, "batch64_threads2_share_of_sgemm": 0.85,
    });
    let adapters = json!({
        "pss_mb_1": 300.0, "pss_mb_8": 335.0, "pss_mb_32": 455.0, "pss_mb_128": 935.0,
        "adapter_mb": 4.0, "one_more_mb": 5.0,
    });
    [("ours.grid", grid), ("ours.roofline", roofline), ("ours.steps", steps), ("ours.adapters", adapters)]
}

fn check_plots(out: &Path) -> Result<()> {
    let page = fs::read_to_string(out.join("index.html"))?;
    for title in PLOTS {
        let figure = page.split("<figure>").find(|figure| figure.starts_with(&format!("<h3>{title}</h3>")));
        let plot = figure.and_then(|figure| figure.split("</figure>").next());
        ensure!(plot.is_some_and(|plot| plot.contains("<svg")), "no plot {title}");
    }
    Ok(())
}

/// The verdict on the suite with a record that leaves nothing to measure.
fn judge(out: &Path, record: &mut Value, device: &str, (wall, reached, code): (f64, &str, i32)) -> Result<()> {
    record["samples"]["ours.suite"] = json!([{ "wall_s": 100.0, "mean_accuracy": 0.75, "most_input_wait": 0.02 }]);
    record["samples"]["peer.suite_longest"] = json!([{ "wall_s": wall, "mean_accuracy": 0.7 }]);
    fs::write(out.join("record.json"), record.to_string())?;
    let done = bench(out, &["--peer", "--go-on", "--device", device, "--only", "suite"])?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.code() == Some(code) && said.contains(reached), "{wall}: {:?}\n{said}", done.status);
    ensure!(row(&self::record(out)?, "suite")?["reached"] == reached, "{wall} is not {reached} on {device}");
    Ok(())
}

fn measured_is_recorded_and_judged() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path();
    let done = make_bench("bench", out, "--only start")?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "{said}");
    ensure!(said.contains("the sets of `make data`, not the suite's own"), "{said}");
    let mut record = record(out)?;
    let seconds = record["samples"]["ours.start"][0]["first_step_s"].as_f64().context("a sample")?;
    ensure!(seconds > 0.0 && row(&record, "start")?["value"] == seconds, "{seconds} in {}", row(&record, "start")?);
    ensure!(record["samples"]["ours.start"][0]["cores_of_others"].is_f64(), "how busy the machine was is recorded");
    ensure!(row(&record, "suite")?["value"].is_null(), "nothing was measured of the suite");
    ensure!(fs::read_to_string(out.join("index.html"))?.contains("command to first completed step"));
    check_what_it_is_held_against(&record)?;

    for (need, sample) in drawn() {
        record["samples"][need] = json!([sample]);
    }
    for verdict in [(310.0, "below", 1), (330.0, "at least", 0), (400.0, "aim", 0)] {
        judge(out, &mut record, "cpu", verdict)?;
    }
    check_plots(out)?;

    let other = bench(out, &["--go-on", "--only", "suite", "--rows", "65"])?;
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    ensure!(!other.status.success() && said.contains("was taken in another way (rows)"), "{said}");

    let here = record["way"]["machine"].clone();
    record["way"]["machine"] = json!(["another processor"]);
    fs::write(out.join("record.json"), record.to_string())?;
    let other = bench(out, &["--go-on", "--only", "suite"])?;
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    ensure!(!other.status.success() && said.contains("was taken in another way (machine)"), "{said}");
    record["way"]["machine"] = here;

    // On a GPU both programs multiply in bf16, unless another precision is named.
    record["way"]["device"] = json!("cuda");
    record["way"]["precision"] = json!("bf16");
    for verdict in [(190.0, "below", 1), (210.0, "at least", 0)] {
        judge(out, &mut record, "cuda", verdict)?;
    }
    Ok(())
}

/// Everything that is measured of ours alone.
fn every_row_of_ours_is_measured() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let done = make_bench("bench", folder.path(), "--rows 1600")?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success() && !said.contains(" failed: "), "{said}");
    let record = record(folder.path())?;
    for name in ["suite-input", "below", "kept", "sgemm16", "sgemm64", "cores", "adapter-memory", "start", "input"] {
        let value =
            row(&record, name)?["value"].as_f64().with_context(|| format!("{name} was not measured: {said}"))?;
        ensure!(value.is_finite() && value >= 0.0, "{name}: {value}");
    }
    for need in
        ["suite_with_dropout", "fusion3", "fusion8", "lora", "adapter_drop", "predict", "single_rows", "four_tasks"]
    {
        ensure!(record["samples"][format!("ours.{need}")][0].is_object(), "{need} was not measured: {said}");
    }
    check_plots(folder.path())
}

/// The suite, over the sets of `make data`.
fn the_library_is_measured_beside_ours() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let done = make_bench("bench-peer", folder.path(), "--only suite")?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    // make ends with 2 whatever the script ended with, which is 1 where so little is below what must be reached.
    ensure!(matches!(done.status.code(), Some(0 | 2)) && !said.contains(" failed: "), "{said}");
    let record = record(folder.path())?;
    let value = row(&record, "suite")?["value"].as_f64().with_context(|| format!("it was not measured: {said}"))?;
    ensure!(value > 0.0, "{value}");
    Ok(())
}

fn scores_are_compared_with_the_library() -> Result<()> {
    let world = World::new()?;
    let mut compare = Command::new("python3");
    compare.arg(root().join("scripts/compare.py")).arg("--graftwork").arg(program());
    compare.arg("--data").arg(world.path().join("data")).arg("--base").arg(world.path().join("base"));
    let done =
        compare.args(["--tasks", "topic", "mood", "--seeds", "2", "--epochs", "1", "--max-length", "48"]).output()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let lines = said.lines().filter(|line| line.contains("accuracy")).count();
    // 1: ours was below, as one of so little data may be.
    let ended = matches!(done.status.code(), Some(0 | 1)) && lines == 6;
    ensure!(ended, "{:?}: {said}{}", done.status, String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn what_an_exchange_costs_is_measured() -> Result<()> {
    let done = Command::new("python3").arg(root().join("scripts/exchange.py")).args(["--ranks", "2"]).output()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let rows: Vec<Vec<&str>> = said.lines().skip(2).map(|line| line.split('|').map(str::trim).collect()).collect();
    let what: Vec<&str> = rows.iter().filter_map(|row| row.get(1).copied()).collect();
    let failed = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success() && what == ["seq_bn", "fusion of 3"], "{said}{failed}");
    for row in rows {
        let sent: f64 = row[4].parse().with_context(|| said.clone())?;
        ensure!(row[2] == "2" && sent > 0.0, "{said}");
    }
    Ok(())
}

/// Each piece once, without statistics.
fn pieces_are_measured_alone() -> Result<()> {
    let done = make("bench-pieces", "--test")?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    for group in ["product/", "product_once/", "elementwise/", "attention/", "fusion/", "optimizer/", "input/"] {
        ensure!(said.contains(&format!("Testing {group}")), "nothing of {group} was measured: {said}");
    }
    Ok(())
}

fn main() -> ExitCode {
    let there = |path: &str| root().join(path).exists();
    let long = std::env::var_os("GRAFTWORK_LONG_TESTS").is_some();
    let fetched = (!there(".graftwork/data/bbc_topic/import.json"))
        .then_some("the base model and the data are not there: make test fetches them");
    // Who asks for it wants to hear that it cannot run.
    let library = (!long && !there(".graftwork/peer/ready"))
        .then_some("AdapterHub's library is not installed: make test-all installs it");
    let unasked = (!long).then_some("it takes minutes: GRAFTWORK_LONG_TESTS=1, as make test-all sets");
    let trial = |name: &str, lacks: Option<&str>, test: fn() -> Result<()>| {
        let named = lacks.map_or_else(|| name.to_owned(), |lacks| format!("{name} (skipped: {lacks})"));
        Trial::test(named, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
            .with_ignored_flag(lacks.is_some())
    };
    let trials = vec![
        trial("measured_is_recorded_and_judged", fetched, measured_is_recorded_and_judged),
        trial("every_row_of_ours_is_measured", fetched.or(unasked), every_row_of_ours_is_measured),
        trial(
            "the_library_is_measured_beside_ours",
            fetched.or(library).or(unasked),
            the_library_is_measured_beside_ours,
        ),
        trial("scores_are_compared_with_the_library", library.or(unasked), scores_are_compared_with_the_library),
        trial("what_an_exchange_costs_is_measured", fetched.or(unasked), what_an_exchange_costs_is_measured),
        trial("pieces_are_measured_alone", fetched.or(unasked), pieces_are_measured_alone),
    ];
    // They measure: one after the other.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit_code()
}
