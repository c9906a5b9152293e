//! Whether a command is read by its program, and whether what it names is there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use graftwork_tests::program;

use crate::root;

/// Programs of other people, whose options are theirs; files of the repository that they name are looked for.
const OTHERS: [&str; 11] =
    ["chmod", "chown", "find", "helm", "kubectl", "ln", "mkdir", "podman", "rm", "sha256sum", "tar"];

/// Words of the pages that stand for what a reader has.
const STANDS_FOR: [(&str, &str); 5] = [
    ("JOB", "0123456789abcdef"),
    ("JOB.toml", "job.toml"),
    ("DAYS", "7"),
    ("GIB", "4"),
    ("$GRAFTWORK_COORDINATOR", "unix:///data/graftwork/door/socket"),
];

/// Words of a command; quotes and `$(…)` hold together.
pub(crate) fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut within) = (Vec::new(), String::new(), false, false);
    for letter in text.chars().chain([' ']) {
        within = (within || letter == '(' && word.ends_with('$')) && letter != ')';
        match letter {
            '"' | '\'' => quoted = !quoted,
            ' ' if !quoted && !within => words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
            _ => word.push(letter),
        }
    }
    words
}

/// Checks each simple command of a line.
pub(crate) fn check(text: &str) -> Result<()> {
    for part in text.split("&&").flat_map(|part| part.split(['|', ';'])) {
        let part = part.split(" > ").next().unwrap_or_default();
        let mut words = words(part);
        words.retain(|word| word != "…");
        let assigned = words.iter().take_while(|word| is_assignment(word)).count();
        words.drain(..assigned);
        if words.is_empty() {
            continue;
        }
        check_words(&words)?;
    }
    Ok(())
}

pub(crate) fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
    })
}

fn check_words(words: &[String]) -> Result<()> {
    for word in words {
        let of_the_tree = ["deploy/", "scripts/", "jobs/", "docs/"].iter().any(|folder| word.starts_with(folder));
        ensure!(!of_the_tree || root().join(word).exists(), "{word} is not in the repository");
    }
    let (first, rest) = words.split_first().context("a command has a word")?;
    match first.rsplit('/').next().unwrap_or_default() {
        "graftwork" => parses(rest),
        "make" => targets(rest),
        "cargo" => crates(rest),
        "docker" => services(rest),
        "python3" => check_words(rest),
        _ if first.starts_with("scripts/") => script(first, rest),
        "export" => Ok(()),
        other if OTHERS.contains(&other) => Ok(()),
        other => bail!("no test knows the program {other}"),
    }
}

/// The program itself reads the arguments: it stops at the `--help` behind them, or before that at what is wrong.
fn parses(arguments: &[String]) -> Result<()> {
    let stands_for = |word: &String| {
        let known = STANDS_FOR.iter().find(|(placeholder, _)| placeholder == word);
        known.map_or_else(|| word.clone(), |(_, value)| (*value).to_owned())
    };
    let mut command = Command::new(program());
    command.args(arguments.iter().map(stands_for)).arg("--help").stdin(Stdio::null());
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Services that are named to `docker compose`, and what is run in one of them.
fn services(arguments: &[String]) -> Result<()> {
    let Some(("compose", rest)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) else {
        bail!("no test knows what docker does with {arguments:?}")
    };
    let file = fs::read_to_string(root().join("deploy/compose/compose.yaml"))?;
    let known = |name: &str| file.contains(&format!("\n  {name}:\n    <<: *rights\n"));
    let scaled = rest.windows(2).filter(|pair| pair[0] == "--scale").filter_map(|pair| pair[1].split_once('='));
    let run_in = rest.windows(2).filter(|pair| pair[0] == "exec").map(|pair| pair[1].as_str());
    for name in scaled.map(|(name, _)| name).chain(run_in) {
        ensure!(known(name), "the Compose file has no service {name}");
    }
    match rest.iter().position(|word| word == "graftwork") {
        Some(at) => parses(&rest[at + 1..]),
        None => Ok(()),
    }
}

/// A script that tells its options by `--help` has those that are named.
fn script(path: &str, arguments: &[String]) -> Result<()> {
    let options: Vec<&String> = arguments.iter().filter(|word| word.starts_with("--")).collect();
    let text = fs::read_to_string(root().join(path)).with_context(|| format!("{path} is not in the repository"))?;
    if options.is_empty() || !text.contains("argparse") {
        return Ok(());
    }
    let output = Command::new("python3").arg(root().join(path)).arg("--help").stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{path} --help: {}", String::from_utf8_lossy(&output.stderr).trim());
    let help = String::from_utf8(output.stdout)?;
    let told = |option: &str| help.split([' ', ',', '[', ']', '\n']).any(|word| word == option);
    match options.iter().find(|option| !told(option)) {
        Some(option) => bail!("{path} has no option {option}"),
        None => Ok(()),
    }
}

fn targets(arguments: &[String]) -> Result<()> {
    let makefile = fs::read_to_string(root().join("Makefile"))?;
    for argument in arguments {
        if let Some((variable, _)) = argument.split_once('=') {
            ensure!(makefile.contains(&format!("$({variable})")), "the Makefile does not look at {variable}");
        } else {
            let is_there = makefile.lines().any(|line| line.starts_with(&format!("{argument}:")));
            ensure!(is_there, "the Makefile has no target {argument}");
        }
    }
    Ok(())
}

/// Where the packages lie.
fn members() -> Result<Vec<PathBuf>> {
    let manifest = fs::read_to_string(root().join("Cargo.toml"))?;
    let members = manifest.split("members").nth(1).context("the workspace has members")?;
    let members = members.split(']').next().unwrap_or_default().split('"').skip(1).step_by(2);
    Ok(members.map(|member| root().join(member)).collect())
}

/// Where a package lies.
fn package(name: &str) -> Result<PathBuf> {
    for folder in members()? {
        if fs::read_to_string(folder.join("Cargo.toml"))?.contains(&format!("name = \"{name}\"\n")) {
            return Ok(folder);
        }
    }
    bail!("no package is called {name}")
}

/// Packages, examples and tests that are named to cargo.
fn crates(arguments: &[String]) -> Result<()> {
    let (ours, of_the_program) =
        arguments.split_at(arguments.iter().position(|word| word == "--").unwrap_or(arguments.len()));
    let after = |option: &'static str| ours.windows(2).filter(move |pair| pair[0] == option).map(|pair| &pair[1]);
    let folders = after("-p").next().map_or_else(members, |name| Ok(vec![package(name)?]))?;
    for (option, place) in [("--example", "examples"), ("--test", "tests"), ("--bench", "benches")] {
        for name in after(option) {
            let is_in =
                |place: &Path| place.join(format!("{name}.rs")).exists() || place.join(name).join("main.rs").exists();
            ensure!(
                folders.iter().any(|folder| is_in(&folder.join(place))),
                "there is no {name} in {place} of {folders:?}"
            );
        }
    }
    let filters = of_the_program.iter().filter(|word| !word.starts_with('-'));
    for name in filters.filter(|_| ours.first().is_some_and(|verb| verb == "test")) {
        let has = folders.iter().map(|folder| has_test(folder, name)).collect::<Result<Vec<_>>>()?;
        ensure!(has.contains(&true), "no test in {folders:?} has {name} in its name");
    }
    Ok(())
}

/// Whether a function below a folder has this in its name.
fn has_test(folder: &Path, part: &str) -> Result<bool> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            has_test(&path, part)?
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path)?;
            let mut names = text.lines().filter_map(|line| line.split_once("fn ")?.1.split_once('('));
            names.any(|(name, _)| name.contains(part))
        } else {
            false
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}
