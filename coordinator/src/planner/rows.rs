//! The rows of a task: footers of every file, columns, splits, and labels where the job does not name them.

use std::{collections::BTreeMap, path::PathBuf};

use graftwork_dataset::{Access, DataError, OpenFile};
use graftwork_shared::{
    data::{Source, Split, SplitManifest},
    diagnostic::Diagnostic,
    digest::Digest,
    head::HeadOutput,
    job::{HeadKind, Task},
};

use super::problems::Problems;

/// Rows up to which every label is read when planning, so that a label outside the set is found before training.
const LABELS_CHECKED_ROWS: u64 = 500_000;

/// A task's rows, pinned down.
pub(super) struct Rows {
    pub(super) train: SplitManifest,
    pub(super) validation: SplitManifest,
    pub(super) test: Option<SplitManifest>,
    /// What the head predicts, labels included.
    pub(super) output: HeadOutput,
}

/// Opens the rows of a task, of which some may have been uploaded; every problem is added, and `None` says that there was one.
pub(super) async fn open(task: &Task, uploads: BTreeMap<Digest, PathBuf>, problems: &Problems<'_>) -> Option<Rows> {
    let at = |key: &str| format!("tasks.{}.{key}", task.name);
    let access = match Access::from_environment(task.data.credentials.as_deref()) {
        Ok(access) => access.with_uploads(uploads),
        Err(error) => {
            problems.error(&at("credentials"), "credentials", format!("task {}: {error}", task.name));
            return None;
        }
    };
    let opener = Opener { task, access: &access, problems };
    let opened = futures::join!(
        opener.files(Some(&task.data.train)),
        opener.files(task.data.validation.as_ref()),
        opener.files(task.data.test.as_ref()),
    );
    // What is wrong is told in this order, however fast each was read.
    let train = opener.tell(opened.0, "train");
    let validation = opener.tell(opened.1, "validation");
    let test = opener.tell(opened.2, "test");
    let (train, validation, test) = (train??, validation?, test?);
    let manifests = opener.select(&train, validation.as_deref(), test.as_deref()).await?;
    let output = opener.output(&train, &manifests).await?;
    let [train, validation, test] = manifests;
    Some(Rows { train: train?, validation: validation?, test, output })
}

struct Opener<'a> {
    task: &'a Task,
    access: &'a Access,
    problems: &'a Problems<'a>,
}

impl Opener<'_> {
    fn fail(&self, key: &str, code: &str, error: &DataError) {
        let path = format!("tasks.{}.{key}", self.task.name);
        self.problems.error(&path, code, format!("task {}: {error}", self.task.name));
    }

    async fn files(&self, source: Option<&Source>) -> Result<Option<Vec<OpenFile>>, DataError> {
        let Some(source) = source else { return Ok(None) };
        let files = graftwork_dataset::open(source, self.access).await?;
        graftwork_dataset::check_columns(&files, &self.task.data.columns, self.task.head.kind)?;
        Ok(Some(files))
    }

    /// The files, or `None` after what is wrong with those under this key was told.
    fn tell<T>(&self, opened: Result<T, DataError>, key: &str) -> Option<T> {
        let error = match opened {
            Ok(files) => return Some(files),
            Err(error) => error,
        };
        let (key, code) = match &error {
            DataError::MissingColumn { role, .. } if role == "text" => ("text", "missing-column"),
            DataError::MissingColumn { .. } => ("label", "missing-column"),
            DataError::ColumnType { role, .. } if role == "text" => ("text", "column-type"),
            DataError::ColumnType { .. } => ("head", "head-does-not-fit"),
            _ => (key, "data"),
        };
        self.fail(key, code, &error);
        None
    }

    /// Train, validation and test rows, by rule or by file.
    async fn select(
        &self,
        train: &[OpenFile],
        validation: Option<&[OpenFile]>,
        test: Option<&[OpenFile]>,
    ) -> Option<[Option<SplitManifest>; 3]> {
        let limit = self.task.data.rows;
        let Some(rule) = &self.task.data.split else {
            let Some(validation) = validation else {
                let path = format!("tasks.{}.train", self.task.name);
                let message = format!("task {} has no validation rows to choose the best weights by", self.task.name);
                let help = "name files with `validation`, or divide the rows with `split = { validation = 0.1 }`";
                self.problems.add(&path, Diagnostic::error("no-validation", message).help(help));
                return None;
            };
            let train = self.manifest(train, None, limit, "train").await;
            let validation = self.manifest(validation, None, None, "validation").await;
            let test = match test {
                Some(files) => Some(self.manifest(files, None, None, "test").await?),
                None => None,
            };
            return Some([Some(train?), Some(validation?), test]);
        };
        let part = |split| Some((rule.clone(), split));
        let trained = self.manifest(train, part(Split::Train), limit, "split").await;
        let validated = self.manifest(train, part(Split::Validation), None, "split").await;
        let tested = match (test, rule.test > 0.0) {
            (Some(files), _) => Some(self.manifest(files, None, None, "test").await?),
            (None, true) => Some(self.manifest(train, part(Split::Test), None, "split").await?),
            (None, false) => None,
        };
        Some([Some(trained?), Some(validated?), tested])
    }

    async fn manifest(
        &self,
        files: &[OpenFile],
        rule: Option<(graftwork_shared::data::SplitRule, Split)>,
        limit: Option<u64>,
        key: &str,
    ) -> Option<SplitManifest> {
        let selected = graftwork_dataset::select(files, rule, limit, self.access).await;
        selected.map_err(|error| self.fail(key, "data", &error)).ok()
    }

    /// What the head predicts. Labels come from the job, else from the files' metadata, else from all rows.
    async fn output(&self, train: &[OpenFile], manifests: &[Option<SplitManifest>; 3]) -> Option<HeadOutput> {
        if self.task.head.kind == HeadKind::Regression {
            return Some(HeadOutput::Regression);
        }
        let written = self.task.head.labels.clone().or_else(|| train.first().and_then(|file| file.labels.clone()));
        let rows: u64 = manifests.iter().flatten().map(|manifest| manifest.rows).sum();
        if let (Some(labels), true) = (&written, rows > LABELS_CHECKED_ROWS) {
            return self.at_least_two(labels.clone());
        }
        let mut found: Vec<String> = Vec::new();
        for (manifest, split) in manifests.iter().zip([Split::Train, Split::Validation, Split::Test]) {
            let Some(manifest) = manifest else { continue };
            let labels = graftwork_dataset::find_labels(manifest, &self.task.data.columns, self.access).await;
            let labels = labels.map_err(|error| self.fail("label", "label", &error)).ok()?;
            if let Some(allowed) = &written {
                self.all_allowed(train, &labels, allowed, split)?;
            }
            found.extend(labels);
        }
        let labels = written.unwrap_or_else(|| {
            // As `find_labels` orders one split: numbers by value, texts by bytes.
            found.sort();
            found.dedup();
            if found.iter().all(|label| label.parse::<i128>().is_ok()) {
                found.sort_by_key(|label| label.parse::<i128>().unwrap_or_default());
            }
            found
        });
        self.at_least_two(labels)
    }

    fn at_least_two(&self, labels: Vec<String>) -> Option<HeadOutput> {
        if labels.len() >= 2 {
            return Some(HeadOutput::Classification { labels });
        }
        let path = format!("tasks.{}.label", self.task.name);
        let found = labels.first().map_or_else(|| "no label".to_owned(), |label| format!("only the label {label:?}"));
        let message =
            format!("task {}: a classification needs at least 2 labels, but there is {found}", self.task.name);
        let help = "check the label column, or use a regression head";
        self.problems.add(&path, Diagnostic::error("one-label", message).help(help));
        None
    }

    /// Whether every label that stands in the rows is one of the allowed; integers may be class ids.
    fn all_allowed(&self, train: &[OpenFile], found: &[String], allowed: &[String], split: Split) -> Option<()> {
        let column = &self.task.data.columns.label;
        let field = train.first().and_then(|file| file.schema.field_with_name(column).ok());
        let plain =
            field.is_some_and(|field| field.data_type().is_integer() || field.data_type().to_string() == "Boolean");
        let integers = allowed.iter().all(|label| label.parse::<i128>().is_ok());
        let as_id = |label: &str| match label {
            "false" => Some(0),
            "true" => Some(1),
            number => number.parse::<usize>().ok(),
        };
        let fits = |label: &String| {
            allowed.contains(label) || (plain && !integers && as_id(label).is_some_and(|id| id < allowed.len()))
        };
        let Some(wrong) = found.iter().find(|label| !fits(label)) else { return Some(()) };
        let key = if self.task.head.labels.is_some() { "head" } else { "label" };
        let shown: Vec<String> = allowed.iter().take(12).map(|label| format!("{label:?}")).collect();
        let more = allowed.len().saturating_sub(12);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message = format!(
            "task {}: {split} rows have the label {wrong:?} in column {column:?}, which is not among the labels {}{more}",
            self.task.name,
            shown.join(", ")
        );
        let help = "add it to `labels`, mend the rows, or leave `labels` out to take those that the rows have";
        self.problems
            .add(&format!("tasks.{}.{key}", self.task.name), Diagnostic::error("unknown-label", message).help(help));
        None
    }
}
