//! `make bench`, and its script once more over what that measured: one measurement of the real program, its record and page,
//! and the verdict on what must be reached. No figure is held against a bar here: this machine may be busy.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode, Output},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::program;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn bench(out: &Path, options: &[&str]) -> Result<Output> {
    let programs = program().parent().context("a folder of programs")?.to_owned();
    let mut command = Command::new("python3");
    command.arg(root().join("scripts/bench.py")).arg("--programs").arg(programs).arg("--out").arg(out);
    Ok(command.env_remove("GRAFTWORK_BENCH_DATA").args(["--runs", "1", "--rows", "64"]).args(options).output()?)
}

/// The same by make, with programs and data that are there already.
fn make_bench(out: &Path, options: &str) -> Result<Output> {
    let programs = program().parent().context("a folder of programs")?.display().to_string();
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "bench", "--assume-old=bench-programs", "--assume-old=data"]);
    make.arg(format!("BENCH=--programs {programs} --out {} --runs 1 --rows 64 {options}", out.display()));
    // Of a make that runs these tests.
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GRAFTWORK_BENCH_DATA"] {
        make.env_remove(name);
    }
    Ok(make.current_dir(root()).output()?)
}

fn record(out: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(out.join("record.json"))?)?)
}

fn row<'a>(record: &'a Value, name: &str) -> Result<&'a Value> {
    let rows = record["table"].as_array().context("a table")?;
    rows.iter().find(|row| row["row"] == name).with_context(|| format!("no row {name}"))
}

fn measured_is_recorded_and_judged() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path();
    let done = make_bench(out, "--only start")?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "{said}");
    ensure!(said.contains("the sets of `make data`, not the suite's own"), "{said}");
    let mut record = record(out)?;
    let seconds = record["samples"]["ours.start"][0]["first_step_s"].as_f64().context("a sample")?;
    ensure!(seconds > 0.0 && row(&record, "start")?["value"] == seconds, "{seconds} in {}", row(&record, "start")?);
    ensure!(record["samples"]["ours.start"][0]["cores_of_others"].is_f64(), "how busy the machine was is recorded");
    ensure!(row(&record, "suite")?["value"].is_null(), "nothing was measured of the suite");
    ensure!(fs::read_to_string(out.join("index.html"))?.contains("command to first completed step"));

    // With samples in its record, nothing is left to measure.
    for (wall, reached, code) in [(310.0, "below", 1), (330.0, "at least", 0), (400.0, "aim", 0)] {
        record["samples"]["ours.suite"] = json!([{ "wall_s": 100.0 }]);
        record["samples"]["peer.suite_longest"] = json!([{ "wall_s": wall }]);
        fs::write(out.join("record.json"), record.to_string())?;
        let done = bench(out, &["--peer", "--go-on", "--only", "suite"])?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(done.status.code() == Some(code) && said.contains(reached), "{wall}: {:?}\n{said}", done.status);
        ensure!(row(&self::record(out)?, "suite")?["reached"] == reached, "{wall} is not {reached}");
    }

    let other = bench(out, &["--go-on", "--only", "suite", "--rows", "65"])?;
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    ensure!(!other.status.success() && said.contains("was taken in another way (rows)"), "{said}");
    Ok(())
}

fn main() -> ExitCode {
    let lacking = !root().join(".graftwork/data/bbc_topic/import.json").exists();
    if lacking {
        eprintln!("ignored: the base model and the data are not there (make test fetches them)");
    }
    let run = || measured_is_recorded_and_judged().map_err(|error| Failed::from(format!("{error:#}")));
    let trial = Trial::test("measured_is_recorded_and_judged", run).with_ignored_flag(lacking);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}
