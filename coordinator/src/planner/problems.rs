//! Collects everything that is wrong, each with its place in the job file.

use std::sync::{Mutex, PoisonError};

use graftwork_shared::{
    diagnostic::{Diagnostic, Severity},
    job::Spans,
};

/// Problems so far. Planning goes on after each, so that all are told at once.
pub(super) struct Problems<'a> {
    spans: &'a Spans,
    list: Mutex<Vec<Diagnostic>>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(spans: &'a Spans) -> Self {
        Self { spans, list: Mutex::default() }
    }

    /// An error at a key path such as `tasks.spam.train`.
    pub(super) fn error(&self, path: &str, code: &str, message: impl Into<String>) {
        self.add(path, Diagnostic::error(code, message));
    }

    /// A problem at a key path.
    pub(super) fn add(&self, path: &str, mut problem: Diagnostic) {
        problem.span = self.spans.of(path);
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        // What is wrong at one place of the job file is told once, not for each file or task that it concerns.
        let told =
            |other: &Diagnostic| other.code == problem.code && other.span == problem.span && problem.span.is_some();
        if !list.iter().any(|other| *other == problem || told(other)) {
            list.push(problem);
        }
    }

    /// All of them, errors first, in the order of the file.
    pub(super) fn into_list(self) -> Vec<Diagnostic> {
        let mut list = self.list.into_inner().unwrap_or_else(PoisonError::into_inner);
        let start = |problem: &Diagnostic| problem.span.as_ref().map_or(usize::MAX, |span| span.start);
        list.sort_by_key(|problem| (problem.severity != Severity::Error, start(problem)));
        list
    }
}
