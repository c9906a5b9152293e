//! Collects everything that is wrong, each with its place in the job file.

use std::sync::{Mutex, PoisonError};

use graftwork_shared::{
    diagnostic::{Diagnostic, Severity},
    job::Spans,
};

/// Problems so far. Planning goes on after each, so that all are told at once.
pub(super) struct Problems<'a> {
    spans: &'a Spans,
    /// Each with what it is about.
    list: Mutex<Vec<(String, Diagnostic)>>,
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
    pub(super) fn add(&self, path: &str, problem: Diagnostic) {
        let about = problem.message.clone();
        self.add_about(path, &about, problem);
    }

    /// A problem at the first of these key paths that the file has.
    pub(super) fn add_at_first(&self, paths: &[&str], problem: Diagnostic) {
        let path = paths.iter().find(|path| self.spans.of(path).is_some());
        self.add(path.copied().unwrap_or_default(), problem);
    }

    /// A problem with one thing, such as a column. What is wrong with it at one place of the job file is told once and
    /// not for each file that it concerns; two things are two problems.
    pub(super) fn add_about(&self, path: &str, about: &str, mut problem: Diagnostic) {
        problem.span = self.spans.of(path);
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |(other, said): &(String, Diagnostic)| {
            other == about && said.code == problem.code && said.span == problem.span
        };
        if !list.iter().any(told) {
            list.push((about.to_owned(), problem));
        }
    }

    /// All of them, errors first, in the order of the file.
    pub(super) fn into_list(self) -> Vec<Diagnostic> {
        let list = self.list.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<Diagnostic> = list.into_iter().map(|(_, problem)| problem).collect();
        let start = |problem: &Diagnostic| problem.span.as_ref().map_or(usize::MAX, |span| span.start);
        list.sort_by_key(|problem| (problem.severity != Severity::Error, start(problem)));
        list
    }
}
