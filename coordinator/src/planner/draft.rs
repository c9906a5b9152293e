//! The files that a job with errors of its own names, so that what is wrong in the file and what is wrong with the data
//! are told together.
//!
//! Only what the errors do not concern is opened: a task whose own keys are in doubt would be checked against columns
//! that nobody asked for.

use std::{collections::BTreeMap, path::Path};

use futures::future::join_all;
use graftwork_shared::{
    diagnostic::{Diagnostic, Severity},
    job::{Job, Spans},
};

use super::{Planning, check_hub, open_base, outside, problems::Problems, rows};

/// Sub-tables of a task that say nothing about its rows.
const BESIDE_ROWS: [&str; 2] = ["training", "adapter"];

/// What is wrong with the base model, with the hub, and with the rows of the tasks that none of the errors `said` concerns.
pub(crate) async fn check_draft(job: &Job, spans: &Spans, said: &[Diagnostic], cache: &Path) -> Vec<Diagnostic> {
    let doubts = Doubts::of(spans, said);
    let problems = Problems::new(spans);
    if !doubts.concern("publish") {
        check_hub(&job.publish.hub, None, &problems);
    }
    let planning = Planning { cache: cache.to_owned().into(), machine: None, uploads: None, nights: None };
    let base = async {
        if doubts.concern("base_model") || job.base_model.location.is_empty() {
            return None;
        }
        open_base(job, &planning, &problems).await
    };
    let sound = job.tasks.iter().filter(|task| !doubts.concern_rows(task.name.as_str()));
    let opened = join_all(sound.map(|task| rows::open(task, BTreeMap::new(), &problems)));
    let (base, _) = futures::join!(base, opened);
    if !doubts.concern("fusions") {
        outside::fetch(job, base.as_ref(), &planning, &problems).await;
    }
    problems.into_list()
}

/// Where the errors stand: key paths, and whether a key is unknown there.
struct Doubts<'a>(Vec<(&'a str, bool)>);

impl<'a> Doubts<'a> {
    /// An error stands at the key paths that begin last before it or with it.
    fn of(spans: &'a Spans, said: &[Diagnostic]) -> Self {
        let mut doubts = Vec::new();
        for error in said.iter().filter(|problem| problem.severity == Severity::Error) {
            let Some(at) = &error.span else { continue };
            let starts = spans.0.values().map(|span| span.start).filter(|start| *start <= at.start);
            let Some(nearest) = starts.max() else { continue };
            let there = spans.0.iter().filter(|(_, span)| span.start == nearest).map(|(path, _)| path.as_str());
            // What tasks inherit has the place of the default: the error is in the default alone.
            let (defaults, own): (Vec<_>, Vec<_>) = there.partition(|path| below(path, "defaults").is_some());
            let paths = if defaults.is_empty() { own } else { defaults };
            doubts.extend(paths.into_iter().map(|path| (path, error.code == "unknown-key")));
        }
        Self(doubts)
    }

    fn concern(&self, table: &str) -> bool {
        self.0.iter().any(|(path, _)| below(path, table).is_some())
    }

    /// An unknown key may be a misspelt one of the rows, wherever in the task's table it stands.
    fn concern_rows(&self, task: &str) -> bool {
        let table = format!("tasks.{task}");
        let beside = |rest: &str| BESIDE_ROWS.contains(&rest.split('.').next().unwrap_or_default());
        self.0.iter().any(|(path, unknown)| match below(path, "defaults") {
            Some(rest) => !beside(rest),
            None => below(path, &table).is_some_and(|rest| *unknown || !beside(rest)),
        })
    }
}

/// What is left of a key path below a table; empty for the table itself.
fn below<'p>(path: &'p str, table: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(table)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('.') }
}
