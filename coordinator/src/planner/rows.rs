//! The rows of a task: footers of every file, columns, splits, and labels where the job does not name them.

use std::{collections::BTreeMap, path::PathBuf};

use graftwork_dataset::{Access, DataError, OpenFile};
use graftwork_shared::{
    data::{Columns, Source, Split, SplitManifest, SplitRule, TextColumns},
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

/// Files, and what is wrong with their columns.
type Opened = (Vec<OpenFile>, Vec<DataError>);

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

    /// The files of a source with all that is wrong with their columns.
    async fn files(&self, source: Option<&Source>) -> Result<Option<Opened>, DataError> {
        let Some(source) = source else { return Ok(None) };
        let files = graftwork_dataset::open(source, self.access).await?;
        let problems = column_problems(&files, &self.task.data.columns, self.task.head.kind);
        Ok(Some((files, problems)))
    }

    /// The files, or `None` after what is wrong with those under this key was told.
    fn tell(&self, opened: Result<Option<Opened>, DataError>, key: &str) -> Option<Option<Vec<OpenFile>>> {
        let (files, problems) = match opened {
            Ok(Some(opened)) => opened,
            Ok(None) => return Some(None),
            Err(error) => {
                self.fail(key, "data", &error);
                return None;
            }
        };
        for error in &problems {
            let (key, code, column) = match error {
                DataError::MissingColumn { role, column, .. } if role == "text" => ("text", "missing-column", column),
                DataError::MissingColumn { column, .. } => ("label", "missing-column", column),
                DataError::ColumnType { role, column, .. } if role == "text" => ("text", "column-type", column),
                DataError::ColumnType { column, .. } => ("head", "head-does-not-fit", column),
                other => {
                    self.fail(key, "data", other);
                    continue;
                }
            };
            // The files of a task mostly lack the same column.
            let path = format!("tasks.{}.{key}", self.task.name);
            let message = format!("task {}: {error}", self.task.name);
            self.problems.add_about(&path, column, Diagnostic::error(code, message));
        }
        problems.is_empty().then_some(Some(files))
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
        let limit = match limit {
            Some(wanted) => self.limit_behind(train, rule, wanted).await?,
            None => None,
        };
        let trained = self.manifest(train, part(Split::Train), limit, "split").await;
        let validated = self.manifest(train, part(Split::Validation), None, "split").await;
        let tested = match (test, rule.test > 0.0) {
            (Some(files), _) => Some(self.manifest(files, None, None, "test").await?),
            (None, true) => Some(self.manifest(train, part(Split::Test), None, "split").await?),
            (None, false) => None,
        };
        Some([Some(trained?), Some(validated?), tested])
    }

    /// The bound on row numbers below which the rule gives exactly `wanted` rows to training; `None` where it gives no
    /// more to it in all. A manifest's limit counts rows before the rule, so that a worker can skip what lies behind.
    async fn limit_behind(&self, files: &[OpenFile], rule: &SplitRule, wanted: u64) -> Option<Option<u64>> {
        let all: u64 = files.iter().map(|file| file.identity.content.rows()).sum();
        let (mut below, mut enough) = ((0, 0), (all, self.trained_below(files, rule, all).await?));
        if enough.1 <= wanted {
            return Some(None);
        }
        // Each row brings one training row or none. A guess along the line through both ends is near where rows are
        // drawn; every second one halves, for rows that lie group by group.
        let mut halve = false;
        while enough.0 - below.0 > 1 {
            let width = enough.0 - below.0;
            let share = (wanted - below.1) as f64 / (enough.1 - below.1).max(1) as f64;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a number of rows")]
            let step = if halve { width / 2 } else { (share * width as f64) as u64 };
            let limit = below.0 + step.clamp(1, width - 1);
            let rows = self.trained_below(files, rule, limit).await?;
            if rows >= wanted {
                enough = (limit, rows);
            } else {
                below = (limit, rows);
            }
            halve = !halve;
        }
        Some(Some(enough.0))
    }

    /// Training rows among the rows whose number is below a limit.
    async fn trained_below(&self, files: &[OpenFile], rule: &SplitRule, limit: u64) -> Option<u64> {
        let part = Some((rule.clone(), Split::Train));
        match graftwork_dataset::select(files, part, Some(limit), self.access).await {
            Ok(manifest) => Some(manifest.rows),
            Err(DataError::EmptySplit { .. }) => Some(0),
            Err(error) => {
                self.fail("split", "data", &error);
                None
            }
        }
    }

    async fn manifest(
        &self,
        files: &[OpenFile],
        rule: Option<(SplitRule, Split)>,
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
        let mut sound = true;
        for (manifest, split) in manifests.iter().zip([Split::Train, Split::Validation, Split::Test]) {
            let Some(manifest) = manifest else { continue };
            let labels = graftwork_dataset::find_labels(manifest, &self.task.data.columns, self.access).await;
            let labels = labels.map_err(|error| self.fail("label", "label", &error)).ok();
            let allowed = |allowed: &Vec<String>| self.all_allowed(train, labels.as_ref()?, allowed, split);
            sound &= labels.is_some() && written.as_ref().is_none_or(|written| allowed(written).is_some());
            found.extend(labels.into_iter().flatten());
        }
        if !sound {
            return None;
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
        let path = format!("tasks.{}.{key}", self.task.name);
        self.problems.add_about(&path, wrong, Diagnostic::error("unknown-label", message).help(help));
        None
    }
}

/// What is wrong with each column: all of them, not the first alone.
fn column_problems(files: &[OpenFile], columns: &Columns, kind: HeadKind) -> Vec<DataError> {
    let check = |text: &str, label: &str, kind| {
        let columns = Columns { text: TextColumns::One(text.to_owned()), label: label.to_owned() };
        graftwork_dataset::check_columns(files, &columns, kind).err()
    };
    // A text is a label that a classification takes, so each text column stands for its own label here.
    let texts = columns.text.names();
    let mut problems: Vec<DataError> =
        texts.iter().filter_map(|text| check(text, text, HeadKind::Classification)).collect();
    // The label is looked at beside any text column that is one.
    let fields = files.iter().flat_map(|file| file.schema.fields()).map(|field| field.name().as_str());
    let text = texts.into_iter().chain(fields).find(|name| check(name, name, HeadKind::Classification).is_none());
    problems.extend(text.and_then(|text| check(text, &columns.label, kind)));
    problems
}
