//! The commands of README.md and docs/*.md: each one is read by the program that it calls, and run on a small job where that
//! can be done here; those inside the text of ARCHITECTURE.md and in comments of deploy/ are read too. `elsewhere.rs` lists the
//! others, with the test that runs them and why, and `targets.rs` has make read the targets that pages name.
//!
//! A command that no longer parses, a target, a file or an example that is gone, and a command that nobody runs fail here.

mod elsewhere;
mod names;
mod page;
mod shell;
mod targets;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The pages that people read, by their names in the repository.
fn pages() -> Result<Vec<String>> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(root().join("docs"))? {
        let name = entry?.file_name().into_string().ok().context("a page's name is text")?;
        if Path::new(&name).extension().is_some_and(|end| end == "md") {
            pages.push(format!("docs/{name}"));
        }
    }
    pages.sort();
    pages.insert(0, "README.md".to_owned());
    ensure!(pages.len() >= 6, "pages are missing: {pages:?}");
    Ok(pages)
}

/// All that is wrong, at once.
fn none_of(problems: &[String]) -> Result<()> {
    if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("\n")) }
}

#[test]
fn every_command_is_read_by_its_program_and_names_what_is_there() -> Result<()> {
    let mut problems = Vec::new();
    let mut all = page::spans("ARCHITECTURE.md")?;
    for page in pages()? {
        all.extend(page::commands(&page)?.into_iter().chain(page::spans(&page)?));
    }
    let of_deployment = page::comments("deploy")?;
    ensure!(of_deployment.len() >= 7, "deploy/ has fewer comments with commands: {of_deployment:?}");
    all.extend(of_deployment);
    for command in &all {
        let problem = names::check(&command.text).err();
        problems.extend(problem.map(|problem| format!("{command}: {problem:#}")));
    }
    ensure!(all.len() > 100, "only {} commands were found in the pages", all.len());
    // One goes on in the next line, one begins with a variable, and one with what another program says.
    for wanted in [
        "cargo test --release -p graftwork-tests --test recovery -- --nocapture",
        "GRAFTWORK_LONG_TESTS=1 cargo test --release -p graftwork-scheduler --test scale -- --nocapture",
        "GRAFTWORK_CODE=$(git rev-parse HEAD) graftwork nightly job.toml",
        "scripts/compare.py --data FOLDER --rows 1500 --tasks cr mrpc",
        "graftwork worker --coordinator 10.0.0.7:7700 --tls-ca /etc/graftwork/ca.pem --threads 8",
    ] {
        ensure!(all.iter().any(|command| command.text == wanted), "{wanted:?} was not found in the pages");
    }
    none_of(&problems)
}

#[test]
fn a_command_that_is_wrong_is_found_out() -> Result<()> {
    for wrong in [
        "graftwork plam job.toml",
        "graftwork plan --outptu json job.toml",
        "graftwork coordinator --keep-jobs often",
        "graftwork worker --no-such-flag",
        "graftwork predict --adaptor x",
        "A=1 graftwork token tokens.toml ann --role king > x",
        "make quickstrat",
        "make bench BANCH=1",
        "cargo run -p graftwork-engine --example step_tame",
        "cargo test -p graftwork-engin",
        "cargo test -p graftwork-scheduler --test scale --test skale",
        "cargo test -p graftwork --bin graftwork -- --nocapture five_hundrid",
        "helm install graftwork deploy/helm/graftwrok",
        "conjure --all",
        "scripts/compare.py --dta FOLDER",
        "scripts/comparison.py",
        "docker compose exec coordinator graftwork statsu",
        "docker compose exec leader graftwork status",
        "docker compose up --scale trainer=4",
        "podman build -f deploy/container/laptop.Containerfile .",
    ] {
        ensure!(names::check(wrong).is_err(), "{wrong:?} passes");
    }
    names::check("A=1 graftwork plan job.toml && graftwork token tokens.toml ann --role read > x")
}

#[test]
fn what_runs_elsewhere_is_in_the_pages_and_has_its_test() -> Result<()> {
    let mut all = Vec::new();
    for page in pages()? {
        all.extend(page::commands(&page)?);
    }
    none_of(&elsewhere::problems(&all))
}

#[test]
fn the_commands_run() -> Result<()> {
    let mut shell = shell::Shell::new()?;
    let mut ran = 0;
    for page in pages()? {
        shell.begin(&page)?;
        for command in page::commands(&page)? {
            if elsewhere::test_of(&command).is_none() {
                shell.run(&command).with_context(|| command.to_string())?;
                ran += 1;
            }
        }
        shell.end()?;
    }
    ensure!(ran >= 30, "only {ran} commands ran");
    Ok(())
}
