//! Targets of the Makefile that pages name: make itself reads them, each command of ours that they would call is read by
//! its program, and those that take seconds run.

use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use graftwork_tests::program;

use crate::{names, none_of, page, pages, root};

fn make(words: &[&str]) -> Result<String> {
    let mut make = Command::new("make");
    make.arg("--no-print-directory").args(words).current_dir(root());
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

/// An example that a page names, with fewer nights than the page has.
#[test]
fn verdicts_tables_are_printed_by_their_example() -> Result<()> {
    let begins = "cargo run --release -p graftwork-verdict --example operating -- ";
    let spans = page::spans("docs/nightly.md")?;
    ensure!(
        spans.iter().any(|span| span.text.starts_with(begins)),
        "docs/nightly.md does not say how its tables are made"
    );
    let example = program().with_file_name("examples").join("operating");
    ensure!(example.exists(), "{} is not there: cargo build --release --workspace --examples", example.display());
    let Output { status, stdout, stderr } = Command::new(example).arg("5").output()?;
    let said = String::from_utf8(stdout)?;
    ensure!(status.success(), "{}", String::from_utf8_lossy(&stderr));
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
