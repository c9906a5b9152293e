//! A sweep: lists of values to trials, each with its whole adapter and training.

use std::collections::BTreeSet;

use super::{Problem, Resolver};
use crate::{
    adapter::AdapterConfig,
    job::{
        Task,
        keys::{BOTTLENECK, LORA, quoted},
        tree::{Item, Table, Value},
    },
    random::{Purpose, Stream},
    sweep::{Halving, MOST_TRIALS, Sweep, Trial, trial_name},
};

/// Swept keys of `[adapter]` in the order in which trials are numbered; `method` is before them.
const OF_ADAPTER: [&str; 4] = ["reduction_factor", "r", "alpha", "dropout"];
/// Swept keys of `[training]`, behind those of the adapter.
const OF_TRAINING: [&str; 3] = ["learning_rate", "weight_decay", "seed"];

/// The values of one key, in the file's order.
struct Axis<'t> {
    key: &'static str,
    item: &'t Item,
}

/// The trials of one method: every combination of the axes that it knows.
struct Family<'t> {
    method: Option<(Value, std::ops::Range<usize>)>,
    axes: Vec<Axis<'t>>,
}

impl Family<'_> {
    fn combinations(&self) -> u64 {
        self.axes.iter().fold(1, |all, axis| all.saturating_mul(axis.item.value.elements().len() as u64))
    }

    /// The entries of a combination, the last axis varying fastest.
    fn entries(&self, mut index: u64) -> Vec<(&'static str, Item)> {
        let item = |(value, span): (Value, std::ops::Range<usize>)| Item {
            key: span.clone(),
            span,
            value,
            used: std::cell::Cell::new(true),
        };
        let mut entries = Vec::new();
        for axis in self.axes.iter().rev() {
            let elements = axis.item.value.elements();
            let count = elements.len().max(1) as u64;
            let at = usize::try_from(index % count).unwrap_or_default();
            entries.extend(elements.get(at).map(|element| (axis.key, item(element.clone()))));
            index /= count;
        }
        entries.extend(self.method.clone().map(|method| ("method", item(method))));
        entries.reverse();
        entries
    }
}

impl<'t> Resolver<'t> {
    /// The sweep `own` of the task at `path`; `None` when nothing can be tried, which is reported.
    pub(super) fn sweep(&mut self, own: &'t Table, task: &'t Table, path: &str, rows: Option<u64>) -> Option<Sweep> {
        let refused = own.entries.iter().any(|(_, item)| matches!(item.value, Value::Refused));
        let named = path.trim_start_matches("tasks.");
        if trial_name(named, MOST_TRIALS).is_err() {
            let message =
                format!("{named:?} is too long for a task with a sweep: its trials are called `{named}-trial-1`");
            self.at(own.key.clone(), Problem::new("bad-name", message, "use a name of at most 54 characters"));
        }
        self.check_lists(own, task, path);
        let families = self.families(own, task);
        if families.iter().all(|family| family.axes.is_empty() && family.method.is_none()) {
            if !refused {
                let help = "add a list, such as `learning_rate = [1e-4, 1e-3]`, or remove the sweep";
                let message = "`sweep` has no list of values, so there is nothing to try";
                self.at(own.key.clone(), Problem::new("empty-sweep", message, help));
            }
            return None;
        }
        let combinations = families.iter().fold(0, |all: u64, family| all.saturating_add(family.combinations()));
        let chosen = self.chosen(own, path, combinations)?;
        let trials = chosen.into_iter().map(|index| self.trial(&families, index, task, path, rows)).collect();
        Some(Sweep { trials, combinations, halving: own.table("halving").map(halving) })
    }

    /// What is wrong with the lists whatever the trials.
    fn check_lists(&mut self, own: &Table, task: &Table, path: &str) {
        for (key, item) in &own.entries {
            let elements = item.value.elements();
            for (at, (value, span)) in elements.iter().enumerate() {
                let same = |(other, _): &(Value, _)| json(other) == json(value);
                if !matches!(value, Value::Refused) && elements[..at].iter().any(same) {
                    let message = format!("{} stands twice in `{key}`", json(value));
                    let help = "name each value once: the same options give the same bytes";
                    self.at(span.clone(), Problem::new("repeated-value", message, help));
                }
            }
            let table = if OF_TRAINING.contains(&key.as_str()) { "training" } else { "adapter" };
            if task.table(table).is_some_and(|table| table.has(key)) {
                let message = format!("`{key}` is swept here and set in `[{path}.{table}]`");
                self.at(item.key.clone(), Problem::new("conflict", message, "keep one of the two"));
            }
        }
    }

    /// The methods with the axes that each knows. An axis that none of them knows is an error.
    fn families(&mut self, own: &'t Table, task: &'t Table) -> Vec<Family<'t>> {
        let methods = own.get("method").map(|item| item.value.elements().to_vec()).unwrap_or_default();
        let fixed = self.method_of(task);
        let mut families: Vec<(Option<String>, Family<'t>)> = methods
            .into_iter()
            .map(|method| (method.0.text().map(str::to_owned), Family { method: Some(method), axes: Vec::new() }))
            .collect();
        if families.is_empty() {
            families.push((fixed, Family { method: None, axes: Vec::new() }));
        }
        for key in OF_ADAPTER.into_iter().chain(OF_TRAINING) {
            let Some(item) = own.get(key).filter(|item| !item.value.elements().is_empty()) else { continue };
            let mut known = false;
            for (method, family) in &mut families {
                if method.as_deref().is_none_or(|method| knows(method, key)) {
                    family.axes.push(Axis { key, item });
                    known = true;
                }
            }
            if !known {
                let methods: Vec<&str> = families.iter().filter_map(|(method, _)| method.as_deref()).collect();
                let kind = if LORA.contains(&key) { "LoRA" } else { "bottleneck adapters" };
                let message = format!("`{key}` is an option of {kind}, and what is tried here is {}", quoted(&methods));
                let help = format!("remove `{key}`, or add a method that has it");
                self.at(item.key.clone(), Problem::new("wrong-method", message, help));
            }
        }
        families.into_iter().map(|(_, family)| family).collect()
    }

    /// The combinations that are tried, in order.
    fn chosen(&mut self, own: &Table, path: &str, combinations: u64) -> Option<Vec<u64>> {
        let sample = own.table("sample");
        let wished = sample.and_then(|table| table.get("trials")).and_then(|item| item.value.whole::<u64>());
        if let Some(trials) = wished.filter(|trials| *trials < combinations) {
            let seed = sample.and_then(|table| table.get("seed")).and_then(|item| item.value.whole()).unwrap_or(1);
            let stream = Stream::new(seed, Purpose::Sweep);
            let mut drawn = BTreeSet::new();
            let mut draws = 0..;
            while (drawn.len() as u64) < trials {
                drawn.insert(stream.below(0, draws.next()?, combinations));
            }
            return Some(drawn.into_iter().collect());
        }
        if combinations > u64::from(MOST_TRIALS) {
            let message =
                format!("the lists of `sweep` give {combinations} trials, and a task has at most {MOST_TRIALS}");
            let help = "shorten a list, or draw some with `sample = { trials = 16 }`";
            self.at(own.key.clone(), Problem::new("too-many-trials", message, help));
            return None;
        }
        if wished.is_some() {
            let message = format!("`sample` is without effect: the lists give {combinations} trials in all");
            self.warn(&format!("{path}.sweep.sample"), Problem::new("no-effect", message, "remove it, or try fewer"));
        }
        Some((0..combinations).collect())
    }

    /// One trial: the task's own tables with the swept values in them.
    fn trial(&mut self, families: &[Family<'t>], mut index: u64, task: &Table, path: &str, rows: Option<u64>) -> Trial {
        let mut entries = Vec::new();
        for family in families {
            let combinations = family.combinations();
            if index < combinations {
                entries = family.entries(index);
                break;
            }
            index -= combinations;
        }
        let values = entries.iter().map(|(key, item)| ((*key).to_owned(), json(&item.value))).collect();
        let (of_training, of_adapter): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|(key, _)| OF_TRAINING.contains(key));
        let (adapter, training) = (with(task, "adapter", of_adapter), with(task, "training", of_training));
        // The overlaid tables live as long as this trial, so a resolver of its own reads them.
        let mut inner = Resolver {
            folder: self.folder,
            defaults: self.defaults,
            device: self.device,
            spans: std::mem::take(&mut self.spans),
            problems: std::mem::take(&mut self.problems),
        };
        let training = inner.training(Some(&training), path, rows);
        let adapter = inner.adapter(Some(&adapter), path).without(training.adapter_drop.fixed());
        (self.spans, self.problems) = (inner.spans, inner.problems);
        Trial { values, adapter, training }
    }

    /// Stages of trials must not have the names of others.
    pub(super) fn trial_names(
        &mut self,
        resolved: &[Option<Task>],
        tasks: &[(&str, &'t Table)],
        fusions: &[(&str, &'t Table)],
    ) {
        for task in resolved.iter().flatten() {
            let trials = task.sweep.as_ref().map_or(0, |sweep| sweep.trials.len());
            let names: Vec<_> =
                (1..).take(trials).filter_map(|number| trial_name(task.name.as_str(), number).ok()).collect();
            for (name, table) in tasks.iter().chain(fusions) {
                if names.iter().any(|trial| trial.as_str() == *name) {
                    let message = format!("{name:?} is the name of a trial of the task {:?} too", task.name.as_str());
                    let help = "rename one of the two";
                    self.at(table.key.clone(), Problem::new("duplicate-name", message, help));
                }
            }
        }
    }
}

/// Whether adapters of this method have an option of this name; training options go with every method.
fn knows(method: &str, key: &str) -> bool {
    let of = |options: &[&str]| options.contains(&key);
    match AdapterConfig::preset(method) {
        Some(AdapterConfig::Bottleneck(_)) => !of(LORA),
        Some(AdapterConfig::Lora(_)) => !of(BOTTLENECK),
        None => true,
    }
}

/// A copy of a task's table with these entries in place of its own.
fn with(task: &Table, name: &str, entries: Vec<(&'static str, Item)>) -> Table {
    let mut table = task.table(name).cloned().unwrap_or_else(|| Table { key: task.key.clone(), entries: Vec::new() });
    for (key, item) in entries {
        table.entries.retain(|(other, _)| other != key);
        table.entries.push((key.to_owned(), item));
    }
    table
}

fn halving(table: &Table) -> Halving {
    let value = |key: &str| table.get(key).map(|item| &item.value);
    Halving {
        factor: value("factor").and_then(Value::whole).unwrap_or(3),
        first: value("first").and_then(Value::number).unwrap_or(0.25),
        asynchronous: value("asynchronous").and_then(Value::flag).unwrap_or(false),
    }
}

/// A swept value for people and records. Whole numbers are numbers, so that 8 and 8.0 are one value.
fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Flag(flag) => (*flag).into(),
        Value::Whole(number) => (*number).into(),
        Value::Number(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
            #[expect(clippy::cast_possible_truncation, reason = "a whole number below 10^15")]
            let whole = *number as i64;
            whole.into()
        }
        Value::Number(number) => (*number).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(_) | Value::Table(_) | Value::Refused => serde_json::Value::Null,
    }
}
