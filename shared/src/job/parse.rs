//! From text to [`Job`], or to every problem at once.
//!
//! Three passes: the syntax (with recovery, so that more than the first slip is found), each value by itself against
//! the table of keys, then what keys say together. Must never fail or panic, whatever the text.

use std::{collections::BTreeSet, path::Path};

use toml::de::DeTable;

use super::{Job, Spans, check::check, resolve::resolve};
use crate::diagnostic::{Diagnostic, SECRET, Severity, position};

/// What a job file says, and everything that is wrong with it.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The job, unless a diagnostic is an error.
    pub job: Option<Job>,
    /// What could be read of a job with errors: values that were refused stand at their defaults. It must not run; it
    /// lets what the errors do not concern be checked further, so that all problems come at once.
    pub draft: Option<Job>,
    /// Where each key of the file stands, inherited ones included, for checks that are made later.
    pub spans: Spans,
    /// Every problem, in the order of the file; those without a place first.
    pub diagnostics: Vec<Diagnostic>,
}

/// Parses and checks a job file.
///
/// Relative local paths are taken from `folder`, the folder of the job file, which should be absolute: resolved paths
/// are tidied as texts (no `.`, no `..`, no double or last `/`), so the same file in the same place has one digest.
/// Addresses with a scheme stay as they are.
pub fn parse(text: &str, folder: &Path) -> Parsed {
    let (root, errors) = DeTable::parse_recoverable(text);
    let checked = check(root.get_ref(), !errors.is_empty());
    let mut diagnostics = checked.problems;
    let mut spans = checked.spans;
    let mut job = None;
    if errors.is_empty() {
        let resolved = resolve(&checked.tree, spans, folder);
        diagnostics.extend(resolved.problems);
        spans = resolved.spans;
        job = resolved.job;
    } else {
        // What stands on a line with a syntax error was guessed by the recovery, and some guesses have no place at
        // all: there, only the syntax error is reliable.
        let line = |at: usize| position(text, at).line;
        let broken: BTreeSet<usize> = errors.iter().filter_map(|error| Some(line(error.span()?.start))).collect();
        let reliable = |span: &std::ops::Range<usize>| !span.is_empty() && !broken.contains(&line(span.start));
        diagnostics.retain(|problem| problem.code == SECRET || problem.span.as_ref().is_some_and(reliable));
        diagnostics.extend(errors.iter().map(|error| syntax_error(error, text)));
    }
    let place = |problem: &Diagnostic| problem.span.as_ref().map(|span| (span.start, span.end));
    diagnostics.sort_by(|a, b| (place(a), &a.code, &a.message).cmp(&(place(b), &b.code, &b.message)));
    diagnostics.dedup();
    let mut draft = None;
    if diagnostics.iter().any(|problem| problem.severity == Severity::Error) {
        draft = job.take();
    }
    Parsed { job, draft, spans, diagnostics }
}

fn syntax_error(error: &toml::de::Error, text: &str) -> Diagnostic {
    let message = error.message();
    let help = if message.contains("duplicate key") {
        "a key and a table may stand only once: merge the two"
    } else if message.contains("string values must be quoted") || message.contains("invalid boolean") {
        "put texts in quotes: only numbers, dates, true and false stand without them"
    } else {
        "see https://toml.io for how TOML is written"
    };
    let mut lower: String = message.chars().take(1).flat_map(char::to_lowercase).collect();
    lower.extend(message.chars().skip(1));
    let span = error.span().unwrap_or(text.len()..text.len());
    Diagnostic::error("syntax", lower).at(span).help(help)
}
