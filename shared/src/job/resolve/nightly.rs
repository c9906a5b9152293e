//! `[nightly]`: defaults, and names that must be tasks or fusions.

use super::{Problem, Resolver, named};
use crate::{
    job::{
        Nightly,
        nightly::Expected,
        tree::{Table, Value},
    },
    schedule::Schedule,
};

impl<'t> Resolver<'t> {
    /// The table, or what holds without it.
    pub(super) fn nightly(&mut self, table: Option<&'t Table>, known: &[&str]) -> Nightly {
        let defaults = Nightly::default();
        let Some(table) = table else { return defaults };
        let value = |key: &str| table.get(key).map(|item| &item.value);
        let number = |key: &str, default: f64| value(key).and_then(Value::number).unwrap_or(default);
        let mut nightly = Nightly {
            seeds: value("seeds").and_then(|seeds| seeds.each(Value::whole)).unwrap_or(defaults.seeds),
            cron: table.text("cron").and_then(|line| Schedule::parse(&line).ok()),
            keep: value("keep").and_then(Value::whole).unwrap_or(defaults.keep),
            threshold: number("threshold", defaults.threshold),
            cost_threshold: number("cost_threshold", defaults.cost_threshold),
            false_alarm: number("false_alarm", defaults.false_alarm),
            power: number("power", defaults.power),
            webhook: table.text("webhook"),
            expected: defaults.expected,
        };
        let mut sorted = nightly.seeds.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find_map(|pair| (pair[0] == pair[1]).then_some(pair[0])) {
            let message = format!("seed {twice} stands twice in `seeds`");
            self.refuse("nightly.seeds", Problem::new("duplicate-seed", message, "each seed trains once: remove one"));
        }
        for (name, table) in named(table, "expected") {
            let path = format!("nightly.expected.{name}");
            let reasons = Expected { score: table.text("score"), cost: table.text("cost") };
            let (true, Some(parsed)) = (known.contains(&name), Self::name(name)) else {
                let message = format!("{name:?} is neither a task nor a fusion of this job");
                self.refuse(&path, Problem::new("unknown-task", message, format!("there are {}", known.join(", "))));
                continue;
            };
            if reasons == Expected::default() {
                let message = format!("`[{path}]` gives no reason, so it is without effect");
                self.warn(&path, Problem::new("no-effect", message, "add `score = \"why it may fall\"`, or remove it"));
            }
            nightly.expected.insert(parsed, reasons);
        }
        nightly
    }
}
