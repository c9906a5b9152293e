//! From checked values to the resolved [`Job`]: defaults, inheritance, and what keys say together.
//!
//! A value that was refused is read as its default, so that the other checks still run; the job is only handed out
//! when no error is left.

mod adapter;
mod fusion;
mod layers;
mod nightly;
mod sweep;
mod task;
mod training;

use std::{collections::BTreeMap, ops::Range, path::Path};

use layers::Layers;

use super::{
    BaseModel, Device, Job, Publish, Resources, Spans, place,
    tree::{Item, Table, Value},
};
use crate::{diagnostic::Diagnostic, id::Name};

/// A job, more places, and what is wrong with what keys say together.
pub(crate) struct Resolved {
    /// The job, when every name could be read.
    pub(crate) job: Option<Job>,
    /// Places by dotted path, inherited keys included.
    pub(crate) spans: Spans,
    /// Problems between keys.
    pub(crate) problems: Vec<Diagnostic>,
}

/// Resolves a checked tree; relative paths start at `folder`.
pub(crate) fn resolve(tree: &Table, spans: Spans, folder: &Path) -> Resolved {
    let device = resources(tree.table("resources")).device;
    let mut resolver = Resolver { folder, defaults: tree.table("defaults"), device, spans, problems: Vec::new() };
    let job = resolver.job(tree);
    Resolved { job, spans: resolver.spans, problems: resolver.problems }
}

struct Resolver<'t> {
    folder: &'t Path,
    defaults: Option<&'t Table>,
    device: Device,
    spans: Spans,
    problems: Vec<Diagnostic>,
}

/// What is wrong, and how to mend it.
struct Problem {
    code: &'static str,
    message: String,
    help: String,
}

impl Problem {
    fn new(code: &'static str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { code, message: message.into(), help: help.into() }
    }
}

impl<'t> Resolver<'t> {
    fn job(&mut self, tree: &'t Table) -> Option<Job> {
        let text = |key: &str, default: &str| tree.text(key).unwrap_or_else(|| default.to_owned());
        let (name, owner) = (text("name", "job"), text("owner", "local"));
        let priority = tree.get("priority").and_then(|item| item.value.whole()).unwrap_or(0);
        let base_model = self.base_model(tree.table("base_model"));
        let publish = self.publish(tree.table("publish"))?;
        let resources = resources(tree.table("resources"));
        self.check_gang(&resources);
        self.check_default_adapter();
        let tasks = named(tree, "tasks");
        let fusions = named(tree, "fusions");
        let resolved_tasks: Vec<_> = tasks.iter().map(|(name, table)| self.task(name, table)).collect();
        let resolved_fusions: Vec<_> =
            fusions.iter().map(|(name, table)| self.fusion(name, table, &tasks, &fusions)).collect();
        self.shared_names(&tasks, &fusions);
        self.trial_names(&resolved_tasks, &tasks, &fusions);
        let names: Vec<&str> = tasks.iter().chain(&fusions).map(|(name, _)| *name).collect();
        let nightly = self.nightly(tree.table("nightly"), &names);
        if !tasks.is_empty() {
            self.unused_defaults();
        }
        Some(Job {
            name,
            owner,
            priority,
            base_model,
            publish,
            resources,
            tasks: resolved_tasks.into_iter().collect::<Option<_>>()?,
            fusions: resolved_fusions.into_iter().collect::<Option<_>>()?,
            nightly,
        })
    }

    fn base_model(&mut self, table: Option<&Table>) -> BaseModel {
        let location = table.and_then(|table| table.text("location")).unwrap_or_default();
        self.pinned(&location, "base_model.location");
        let credentials = table.and_then(|table| table.text("credentials"));
        self.pointless_credentials(credentials.is_some(), &[&location], "base_model.credentials");
        // One that is missing is said to be, and is no folder.
        let location = if location.is_empty() { location } else { place::resolved(self.folder, &location) };
        BaseModel { location, credentials }
    }

    fn publish(&mut self, table: Option<&Table>) -> Option<Publish> {
        let text = |key: &str| table.and_then(|table| table.text(key));
        let hub = place::resolved(self.folder, &text("hub").unwrap_or_else(|| "hub".to_owned()));
        let organisation = text("organisation").unwrap_or_else(|| "local".to_owned());
        let organisation = organisation.parse::<Name>().ok()?.to_string();
        Some(Publish { hub, organisation, license: text("license") })
    }

    /// Tasks and fusions share one set of names, and no two publish to one name.
    fn shared_names(&mut self, tasks: &[(&str, &'t Table)], fusions: &[(&str, &'t Table)]) {
        let mut published: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (kind, tables) in [("tasks", tasks), ("fusions", fusions)] {
            for (name, table) in tables {
                if let Some((_, other)) = fusions.iter().find(|(other, _)| kind == "tasks" && other == name) {
                    let help = "tasks and fusions share one set of names: rename one of the two";
                    let message = format!("{name:?} is the name of a task and of a fusion");
                    for place in [&table.key, &other.key] {
                        self.at(place.clone(), Problem::new("duplicate-name", message.clone(), help));
                    }
                }
                let own = table.text("publish_as");
                let path = format!("{kind}.{name}{}", if own.is_some() { ".publish_as" } else { "" });
                let name = own.unwrap_or_else(|| (*name).to_owned());
                self.check_name_in_torch(&name, kind, &path);
                published.entry(name).or_default().push(path);
            }
        }
        for (name, paths) in published.iter().filter(|(_, paths)| paths.len() > 1) {
            let default_names = paths.iter().all(|path| !path.ends_with(".publish_as"));
            if default_names {
                continue; // a task and a fusion of one name, reported above
            }
            for path in paths {
                let others: Vec<String> = paths
                    .iter()
                    .filter(|other| *other != path)
                    .map(|other| format!("`{}`", other.trim_end_matches(".publish_as")))
                    .collect();
                let message = format!("{name:?} is the published name of {} too", others.join(" and "));
                self.refuse(path, Problem::new("duplicate-publish", message, "give each a `publish_as` of its own"));
            }
        }
    }

    /// A published name becomes a key of torch's `ModuleDict` where AdapterHub's Python library loads the release.
    fn check_name_in_torch(&mut self, name: &str, kind: &str, path: &str) {
        if !name.parse::<Name>().is_ok_and(|name| name.is_taken_in_torch()) {
            return;
        }
        let message = format!(
            "{name:?} cannot be a published name: it is an attribute of torch.nn.ModuleDict, so AdapterHub's Python library \
             could not load the release"
        );
        let other = format!("{name}_{}", kind.trim_end_matches('s'));
        let help = if path.ends_with(".publish_as") {
            format!("use another name, such as {other:?}")
        } else {
            format!("use another name, such as {other:?}, or keep it inside the job and add `publish_as = {other:?}`")
        };
        self.refuse(path, Problem::new("name-taken-in-torch", message, help));
    }

    /// A default that nothing reads is without effect.
    fn unused_defaults(&mut self) {
        let Some(defaults) = self.defaults else { return };
        let mut idle = Vec::new();
        for (name, item) in &defaults.entries {
            let place = format!("[defaults.{name}]");
            match &item.value {
                Value::Table(_) if !item.used.get() => idle.push((item, format!("`{place}`"))),
                Value::Table(table) => {
                    let unread =
                        |(_, item): &&(String, Item)| !item.used.get() && !matches!(item.value, Value::Refused);
                    let keys = table.entries.iter().filter(unread);
                    idle.extend(keys.map(|(key, item)| (item, format!("`{key}` in `{place}`"))));
                }
                _ => {}
            }
        }
        for (item, what) in idle {
            if self.problems.iter().any(|problem| problem.span.as_ref() == Some(&item.key)) {
                continue; // an error says already why nothing can inherit it
            }
            let message = format!("{what} is without effect: nothing inherits it");
            let help = "remove it, or check that a task or fusion does not set something else in its place";
            self.problems.push(Diagnostic::warning("no-effect", message).at(item.key.clone()).help(help));
        }
    }

    /// The layers of a table: its own keys over the defaults'. Inherited keys get the places of the defaults.
    fn layers(&mut self, own: Option<&'t Table>, default: Option<&'t Table>, path: &str) -> Layers<'t> {
        for (name, item) in default.iter().flat_map(|table| &table.entries) {
            self.spans.0.entry(format!("{path}.{name}")).or_insert_with(|| item.span.clone());
        }
        Layers { own, inherited: default }
    }

    /// A gang that may never be whole.
    fn check_gang(&mut self, resources: &Resources) {
        let Some(most) = resources.workers_per_task.filter(|most| *most < resources.gang) else { return };
        let message = format!("a task cannot start on {} workers when at most {most} may train it", resources.gang);
        let help = format!("set `gang` to at most {most}, or `workers_per_task` to more");
        self.refuse("resources.gang", Problem::new("gang-above-workers", message, help));
    }

    /// A table of `[defaults]`.
    fn default_table(&self, name: &str) -> Option<&'t Table> {
        self.defaults?.table(name)
    }

    fn refuse(&mut self, path: &str, problem: Problem) {
        let span = self.spans.of(path).unwrap_or_default();
        self.at(span, problem);
    }

    fn at(&mut self, span: Range<usize>, problem: Problem) {
        self.problems.push(Diagnostic::error(problem.code, problem.message).at(span).help(problem.help));
    }

    fn warn(&mut self, path: &str, problem: Problem) {
        let span = self.spans.of(path).unwrap_or_default();
        self.problems.push(Diagnostic::warning(problem.code, problem.message).at(span).help(problem.help));
    }

    /// Warns of a hub address without a revision: what it names may change.
    fn pinned(&mut self, address: &str, path: &str) {
        if address.starts_with("hf://") && !address.contains('@') {
            let message = format!("{address} names no revision, so what it means may change");
            self.warn(path, Problem::new("no-revision", message, format!("write {address}@REVISION")));
        }
    }

    fn pointless_credentials(&mut self, given: bool, places: &[&str], path: &str) {
        if given && !places.is_empty() && places.iter().all(|text| !text.is_empty() && place::scheme(text).is_none()) {
            let message = "`credentials` is without effect: every place here is a local path";
            self.warn(path, Problem::new("no-effect", message, "remove it"));
        }
    }

    fn name(text: &str) -> Option<Name> {
        text.parse().ok()
    }
}

/// The tables under `tasks` or `fusions`.
fn named<'t>(tree: &'t Table, key: &str) -> Vec<(&'t str, &'t Table)> {
    let tables = tree.table(key).into_iter().flat_map(|table| &table.entries);
    tables.filter_map(|(name, item)| Some((name.as_str(), item.value.table()?))).collect()
}

fn resources(table: Option<&Table>) -> Resources {
    let value = |key: &str| table.and_then(|table| table.get(key)).map(|item| &item.value);
    Resources {
        workers: value("workers").and_then(Value::whole).unwrap_or(1),
        threads: value("threads").and_then(Value::whole),
        device: value("device").and_then(Value::word).unwrap_or(Device::Cpu),
        workers_per_task: value("workers_per_task").and_then(Value::whole),
        gang: value("gang").and_then(Value::whole).unwrap_or(1),
        time_limit_s: value("time_limit").and_then(Value::whole),
    }
}

/// Layer numbers in order, each once, so that lists that say the same are the same.
fn layer_set(value: &Value) -> Option<Vec<u32>> {
    let mut layers: Vec<u32> = value.each(Value::whole)?;
    layers.sort_unstable();
    layers.dedup();
    Some(layers)
}
