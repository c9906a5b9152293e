//! Targets of the Makefile that pages name: make itself reads them, each command of ours that they would call is read by
//! its program, and those that take seconds run.

use std::{
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::{World, program};
use serde_json::Value;

use crate::{names, none_of, page, pages, root};

fn make(words: &[&str]) -> Result<String> {
    make_in(&root(), words)
}

/// Has make read the Makefile in another folder, to which its paths are relative.
fn make_in(folder: &Path, words: &[&str]) -> Result<String> {
    let mut make = Command::new("make");
    make.arg("--no-print-directory").arg("-f").arg(root().join("Makefile")).args(words).current_dir(folder);
    // Of a make that runs these tests.
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL"] {
        make.env_remove(name);
    }
    let Output { status, stdout, stderr } = make.output()?;
    ensure!(status.success(), "make {words:?}: {}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8(stdout)?)
}

/// What a shell would be given, apart into simple commands; of those only the ones that are ours.
fn ours(recipes: &str) -> Vec<String> {
    let whole = recipes.replace("\\\n", " ");
    let parts = whole.split(['\n', ';', '|', '&', '{', '}', '\'']).map(str::trim);
    let is_ours = |part: &&str| {
        let words = names::words(part);
        let first = words.iter().find(|word| !names::is_assignment(word)).map_or("", String::as_str);
        let of_the_tree = first.starts_with("scripts/") || first == "target/release/graftwork";
        of_the_tree || first == "cargo" || part.contains("python3 scripts/")
    };
    parts.filter(is_ours).map(str::to_owned).collect()
}

#[test]
fn every_target_of_a_page_is_read_with_what_it_calls() -> Result<()> {
    let (mut problems, mut targets, mut called) = (Vec::new(), 0, 0);
    for page in pages()?.into_iter().chain(["ARCHITECTURE.md".to_owned()]) {
        for command in page::commands(&page)?.into_iter().chain(page::spans(&page)?) {
            let words = names::words(&command.text);
            let Some(("make", rest)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) else {
                continue;
            };
            let dry: Vec<&str> = ["--dry-run"].into_iter().chain(rest.iter().map(String::as_str)).collect();
            let commands = ours(&make(&dry).with_context(|| command.to_string())?);
            if commands.is_empty() {
                problems.push(format!("{command}: it calls nothing of ours"));
            }
            (targets, called) = (targets + 1, called + commands.len());
            let wrong = commands.iter().filter_map(|text| Some((text, names::check(text).err()?)));
            problems.extend(wrong.map(|(text, problem)| format!("{command}: {text}: {problem:#}")));
        }
    }
    ensure!(targets > 20 && called > 50, "only {targets} targets with {called} commands");
    none_of(&problems)
}

/// Both targets, over the recordings that the engine's own tests have.
#[test]
fn recorded_numbers_are_followed_by_make() -> Result<()> {
    let ours = format!("GRAFTWORK={}", program().display());
    let fixtures = "worker/engine/fixtures";
    let golden = format!("GOLDEN={fixtures}/peer");
    let said = make(&["golden", &golden, &ours, "--assume-old=build"])?;
    ensure!(said.contains("22 passed, 0 failed"), "{said}");
    let base = format!("{fixtures}/tiny_bert/model.safetensors");
    let (trajectory, old) = (format!("TRAJECTORY={fixtures}/followed/lora"), format!("--assume-old={base}"));
    let said = make(&["follow", &trajectory, &format!("BASE={base}"), &ours, "--assume-old=build", &old])?;
    ensure!(said.contains("30 of 30 checks passed"), "{said}");
    let nowhere = make(&["golden", "GOLDEN=/nowhere", &ours, "--assume-old=build"]);
    ensure!(nowhere.is_err(), "a folder that is not there is followed");
    Ok(())
}

/// Both targets that train, with a small job in the place of their own, and nothing to fetch or to build before it.
#[test]
fn a_small_job_goes_through_quickstart_and_nightly() -> Result<()> {
    let world = World::new()?;
    world.job("small.toml", "hub", "[nightly]\nseeds = [1]\n")?;
    let ours = format!("GRAFTWORK={}", program().display());
    let ready = ["build", "data", "night-data"].map(|target| format!("--assume-old={target}"));
    for (target, left) in [
        ("quickstart", "hub/tests/mood_fused/graftwork.json"),
        ("nightly", ".graftwork/nightly/tiny/nights/000001/nightly.html"),
    ] {
        ensure!(!world.path().join(left).exists(), "{left} is there before make {target}");
        let words = [target, "JOB=small.toml", &ours].into_iter().chain(ready.iter().map(String::as_str));
        let said = make_in(world.path(), &words.collect::<Vec<_>>())?;
        ensure!(world.path().join(left).exists(), "make {target} left no {left}: {said}");
        ensure!(said.contains("mood_fused"), "make {target} tells no scores: {said}");
    }
    Ok(())
}

/// What an example prints.
fn example(name: &str, words: &[&str]) -> Result<String> {
    let example = program().with_file_name("examples").join(name);
    ensure!(example.exists(), "{} is not there: cargo build --release --workspace --examples", example.display());
    let mut command = Command::new(example);
    command.args(words).env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "PASSIVE");
    let Output { status, stdout, stderr } = command.output()?;
    ensure!(status.success(), "{name} {words:?}: {}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8(stdout)?)
}

/// Examples by which pages measure, with little to measure: what they say at their full size takes minutes.
#[test]
fn examples_that_measure_run_on_little() -> Result<()> {
    let (folder, base) = (tempfile::tempdir()?, root().join("worker/engine/fixtures/tiny_bert"));
    let base = base.to_str().context("a path is text")?;
    let little = ["--tokens", "10", "--batches", "4", "--cuts", "2x2", "--json"];
    let said = example("step_time", &[&[base, "seq_bn", "0.1"][..], &little].concat())?;
    let step: Value = serde_json::from_str(&said)?;
    ensure!(step["tokens_per_batch"] == 40.0 && step["lanes"] == 2, "{said}");
    ensure!(step["examples_per_second"].as_f64().is_some_and(|pace| pace > 0.0), "{said}");
    // As the page writes it, with every option.
    let world = World::new()?;
    let rows = world.path().join("data/topic/train.parquet");
    let (base, rows) = (world.path().join("base"), rows.to_str().context("a path is text")?);
    let base = base.to_str().context("a path is text")?;
    let of_a_file = ["--texts", rows, "--columns", "text", "--label", "label", "--batches", "16", "--cuts", "1x1"];
    let said = example("step_time", &[&[base, "lora", "0.1"][..], &of_a_file].concat())?;
    ensure!(said.starts_with("lora\n") && said.lines().last().is_some_and(|line| line.starts_with("texts ")), "{said}");

    let rows = folder.path().to_str().context("a path is text")?;
    let said = example("scale", &[rows, "1000", "2"])?;
    ensure!(said.contains("1000 rows in 2 shards") && said.contains("whole epoch: 1000 rows"), "{said}");

    let said = example("exchange", &["--small"])?;
    let ranks: Vec<&str> = said.lines().skip(2).filter_map(|line| line.split('|').nth(1)).map(str::trim).collect();
    ensure!(ranks == ["2", "2", "2", "3", "3", "3"], "{said}");
    Ok(())
}

/// An example that a page names, with fewer nights than the page has.
#[test]
fn verdicts_tables_are_printed_by_their_example() -> Result<()> {
    let begins = "cargo run --release -p graftwork-verdict --example operating -- ";
    let spans = page::spans("docs/nightly.md")?;
    ensure!(
        spans.iter().any(|span| span.text.starts_with(begins)),
        "docs/nightly.md does not say how its tables are made"
    );
    let said = example("operating", &["5"])?;
    // The page has the tables with these heads.
    let page = std::fs::read_to_string(root().join("docs/nightly.md"))?;
    let heads: Vec<&str> = said
        .lines()
        .zip(said.lines().skip(1))
        .filter(|(_, next)| next.starts_with("|---"))
        .map(|(head, _)| head)
        .collect();
    ensure!(heads.len() >= 3, "it prints {heads:?}");
    let lines = said.lines().filter(|line| line.starts_with("| ")).count();
    ensure!(lines > 40, "{lines} lines in all: {said}");
    for head in heads {
        ensure!(page.contains(head), "docs/nightly.md has no table with {head}");
    }
    Ok(())
}
