//! A job file that any version can run: each task and fusion once for every seed, written from the user's own keys.

use std::collections::BTreeSet;

use anyhow::anyhow;
use graftwork_shared::{
    id::Name,
    job::{AdapterRef, Job, with_places},
};
use toml::{Table, Value};

use super::super::expand::{expand, seeded};
use crate::cli::Failure;

/// What of a job file is measured, and into which folder it publishes.
#[derive(Clone, Copy)]
pub(in super::super) struct Parts<'p> {
    pub(in super::super) seeds: &'p [u64],
    /// Only these tasks and fusions; empty for all.
    pub(in super::super) only: &'p [Name],
    pub(in super::super) hub: &'p str,
}

/// Writes the job file; `replace` gives the place that stands for one in the text. `job` is what the text resolves to.
pub(in super::super) fn job_text(
    text: &str,
    job: &Job,
    parts: Parts<'_>,
    replace: &dyn Fn(&str) -> String,
) -> Result<String, Failure> {
    // It says what is wrong with a job that no night takes.
    expand(job)?;
    let wanted = wanted(job, parts.only)?;
    let mut file = with_places(text, replace)?;
    file.remove("nightly");
    table(&mut file, "publish").insert("hub".to_owned(), parts.hub.into());
    let (mut tasks, fusions) = (taken(&mut file, "tasks"), taken(&mut file, "fusions"));
    // It decides nothing, and earlier versions do not know it.
    tasks.iter_mut().filter_map(|(_, task)| task.as_table_mut()).for_each(|task| drop(task.remove("origin")));
    for &seed in parts.seeds {
        for (name, task) in tasks.iter().filter(|(name, _)| wanted.contains(name.as_str())) {
            let task = with_seed(task, seed)?;
            table(&mut file, "tasks").insert(suffixed(name, seed)?, task.into());
        }
        for (name, fusion) in fusions.iter().filter(|(name, _)| wanted.contains(name.as_str())) {
            let mut fusion = with_seed(fusion, seed)?;
            if let Some(Value::String(task)) = fusion.get_mut("task") {
                *task = suffixed(task, seed)?;
            }
            let adapters = fusion.get_mut("adapters").and_then(Value::as_array_mut).into_iter().flatten();
            for adapter in adapters {
                if let Value::String(text) = adapter
                    && !text.contains('/')
                {
                    *text = suffixed(text, seed)?;
                }
            }
            table(&mut file, "fusions").insert(suffixed(name, seed)?, fusion.into());
        }
    }
    Ok(toml::to_string(&file)?)
}

/// Tasks and fusions that are trained: those that are wanted, and what they need.
fn wanted<'j>(job: &'j Job, only: &[Name]) -> Result<BTreeSet<&'j str>, Failure> {
    let names = || job.tasks.iter().map(|task| &task.name).chain(job.fusions.iter().map(|fusion| &fusion.name));
    let mut wanted = BTreeSet::new();
    for name in only {
        let Some(known) = names().find(|known| *known == name) else {
            let there: Vec<&str> = names().map(Name::as_str).collect();
            return Err(Failure::input(anyhow!("the job has no task or fusion {name}: it has {}", there.join(", "))));
        };
        wanted.insert(known.as_str());
        if let Some(fusion) = job.fusion(name) {
            wanted.insert(fusion.task.as_str());
            wanted.extend(fusion.adapters.iter().filter_map(|adapter| match adapter {
                AdapterRef::Task(task) => Some(task.as_str()),
                AdapterRef::Folder(_) | AdapterRef::Hub(_) => None,
            }));
        }
    }
    if only.is_empty() {
        wanted.extend(names().map(Name::as_str));
    }
    Ok(wanted)
}

/// A table of a table, made if it is not there.
fn table<'t>(file: &'t mut Table, name: &str) -> &'t mut Table {
    let entry = file.entry(name.to_owned()).or_insert_with(|| Value::Table(Table::new()));
    if !entry.is_table() {
        *entry = Value::Table(Table::new());
    }
    entry.as_table_mut().expect("it is a table now")
}

/// The tables below a name, taken out of the file.
fn taken(file: &mut Table, name: &str) -> Table {
    match file.remove(name) {
        Some(Value::Table(tables)) => tables,
        _ => Table::new(),
    }
}

/// A task's or fusion's table for one seed.
fn with_seed(table_of: &Value, seed: u64) -> Result<Table, Failure> {
    let mut own = table_of.as_table().cloned().unwrap_or_default();
    if let Some(Value::String(name)) = own.get_mut("publish_as") {
        *name = suffixed(name, seed)?;
    }
    table(&mut own, "training").insert("seed".to_owned(), Value::Integer(i64::try_from(seed)?));
    Ok(own)
}

fn suffixed(name: &str, seed: u64) -> Result<String, Failure> {
    let name: Name = name.parse().map_err(|error| anyhow!("{name:?}: {error}"))?;
    Ok(seeded(&name, seed)?.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use graftwork_shared::{
        data::Origin,
        job::{Nightly, parse, resolved_place},
    };

    use super::*;

    const JOB: &str = include_str!("../../../../jobs/nightly.toml");
    const HERE: &str = "/home/ada/jobs";

    fn written(only: &[Name]) -> (Job, Job) {
        let job = parse(JOB, Path::new(HERE)).job.unwrap();
        let parts = Parts { seeds: &job.nightly.seeds, only, hub: "/nights/hub" };
        let text = job_text(JOB, &job, parts, &|place| resolved_place(Path::new(HERE), place)).unwrap();
        let parsed = parse(&text, Path::new("/elsewhere"));
        (job, parsed.job.unwrap_or_else(|| panic!("{:?}\n{text}", parsed.diagnostics)))
    }

    #[test]
    fn the_text_says_what_a_night_trains() {
        let (job, written) = written(&[]);
        let mut wanted = expand(&Job { nightly: Nightly::default(), ..job.clone() }).unwrap();
        wanted.publish.hub = "/nights/hub".to_owned();
        // What earlier versions do not know, and what decides nothing, is left out.
        assert!(wanted.tasks.iter().all(|task| !task.origin.is_unknown()), "the job says where its rows come from");
        wanted.tasks.iter_mut().for_each(|task| task.origin = Origin::default());
        assert_eq!(written.digest(), wanted.digest());
        assert_eq!(written.tasks.len(), job.tasks.len() * job.nightly.seeds.len());
    }

    /// A dozen tasks, three seeds, single adapters, fusions and AdapterDrop: what a night is to measure at least.
    #[test]
    fn the_benchmark_is_as_wide_as_it_was_asked_to_be() {
        let job = parse(JOB, Path::new(HERE)).job.unwrap();
        let (tasks, seeds, fusions) = (job.tasks.len(), job.nightly.seeds.len(), job.fusions.len());
        assert!(tasks >= 12 && seeds >= 3 && fusions >= 1, "{tasks} tasks, {seeds} seeds, {fusions} fusions");
        let dropping = job.tasks.iter().filter(|task| !task.adapter.leave_out().is_empty()).count();
        assert!((1..tasks).contains(&dropping), "{dropping} of {tasks} tasks drop adapters of the lowest layers");
    }

    #[test]
    fn one_fusion_takes_what_it_needs_with_it() {
        let (_, written) = written(&["arousal_fused".parse().unwrap()]);
        let names: Vec<&str> = written.tasks.iter().map(|task| task.name.as_str()).collect();
        assert_eq!(names[..2], ["word_pleasantness-seed-1", "word_arousal-seed-1"]);
        assert_eq!((written.tasks.len(), written.fusions.len()), (6, 3));
    }

    #[test]
    fn a_name_that_is_none_lists_those_there_are() {
        let job = parse(JOB, Path::new(HERE)).job.unwrap();
        let parts = Parts { seeds: &[1], only: &["spam".parse().unwrap()], hub: "/hub" };
        let refused = job_text(JOB, &job, parts, &str::to_owned).unwrap_err();
        assert!(
            refused.error.to_string().contains("no task or fusion spam: it has question_type"),
            "{}",
            refused.error
        );
    }
}
