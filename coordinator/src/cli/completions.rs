//! `graftwork completions` and `graftwork man`: a script for a shell, and pages for `man`, with the options of the verbs that the worker program carries out.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context as _;

use clap::{Arg, ArgAction, Command, builder::PossibleValuesParser};
use serde::Deserialize;

use super::{DONE, Failure, Worker, print};

/// An option of the worker program, as it tells it.
#[derive(Deserialize)]
struct Told {
    long: String,
    short: Option<char>,
    help: Option<String>,
    takes_value: bool,
    values: Vec<String>,
}

/// The command with the options of the verbs that the worker program carries out.
fn whole(command: Command) -> Command {
    match worker_verbs() {
        Ok(verbs) => verbs.into_iter().fold(command, with_options),
        Err(problem) => {
            eprintln!("warning: the options of worker and predict are missing: {problem}");
            command
        }
    }
}

/// Writes a page for each verb, and one for the program, into a folder.
pub(super) fn man(command: Command, folder: &Path) -> Result<u8, Failure> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let mut command = whole(command).disable_help_subcommand(true);
    command.build();
    pages(&command, "", folder)?;
    Ok(DONE)
}

fn pages(command: &Command, above: &str, folder: &Path) -> Result<(), Failure> {
    if command.is_hide_set() {
        return Ok(());
    }
    let name = if above.is_empty() { command.get_name().to_owned() } else { format!("{above}-{}", command.get_name()) };
    let page = command.clone().name(name.clone()).display_name(name.clone());
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    let path = folder.join(format!("{name}.1"));
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    command.get_subcommands().try_for_each(|verb| pages(verb, &name, folder))
}

pub(super) fn run(command: Command, shell: clap_complete::Shell) -> Result<u8, Failure> {
    let mut command = whole(command);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "graftwork", &mut script);
    print(&String::from_utf8_lossy(&script));
    Ok(DONE)
}

fn worker_verbs() -> Result<BTreeMap<String, Vec<Told>>, String> {
    let worker = Worker::find().map_err(|failure| failure.error.to_string())?;
    worker.check_version().map_err(|failure| failure.error.to_string())?;
    let output = worker.command().arg("verbs").output().map_err(|error| error.to_string())?;
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

/// The command with these options instead of words that are handed over as they are.
fn with_options(command: Command, (verb, options): (String, Vec<Told>)) -> Command {
    if command.find_subcommand(&verb).is_none() {
        return command;
    }
    command.mut_subcommand(verb, |known| {
        let about = known.get_about().cloned();
        let named = Command::new(known.get_name().to_owned()).args(options.into_iter().map(argument));
        about.into_iter().fold(named, Command::about)
    })
}

fn argument(told: Told) -> Arg {
    let Told { long, short, help, takes_value, values } = told;
    let mut argument = Arg::new(long.clone()).long(long);
    argument = short.into_iter().fold(argument, Arg::short);
    argument = help.into_iter().fold(argument, Arg::help);
    argument = argument.action(if takes_value { ArgAction::Set } else { ArgAction::SetTrue });
    if values.is_empty() { argument } else { argument.value_parser(PossibleValuesParser::new(values)) }
}
