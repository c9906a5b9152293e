//! What an import is told, with the defaults. The same words serve the command line and recipe files.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::ImportError;

/// One import.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Inputs in order, merged: paths or globs, or `ARCHIVE!MEMBER` with a glob as member. Compressed by ending
    /// (`.gz`, `.bz2`, `.zst`).
    pub inputs: Vec<String>,
    /// The folder to write. It must not exist, or hold an earlier import.
    pub to: PathBuf,
    /// How inputs are laid out; by default told by their ending.
    pub format: Option<Format>,
    /// Character between fields: `,` in CSV, tab in TSV.
    pub delimiter: Option<char>,
    /// Character around fields; `"` in CSV, none in TSV. An empty text means none.
    pub quote: Option<String>,
    /// Names of the fields, for tables without a header line. With a header they replace it.
    pub names: Vec<String>,
    /// The first line (after `skip`) names the fields. By default so unless `names` are given.
    pub header: Option<bool>,
    /// Fields of a line at most: the last one takes the rest of the line, delimiters included. Needs an empty quote.
    pub fields: Option<usize>,
    /// Lines to leave out in front of each input.
    pub skip: u64,
    /// Only the last so many records of each input.
    pub last: Option<u64>,
    /// How bytes become text.
    pub encoding: Encoding,
    /// Which fields are used, by name. Besides a table's own fields there are `source` (the input's file name) and
    /// `folder` (the folder it lies in); documents have these two and `text`.
    pub columns: ColumnMap,
    /// How labels are read.
    pub label: LabelOptions,
    /// Which rows count as the same; of those the first is kept.
    pub dedupe: Dedupe,
    /// Stores the rows of each split in an order drawn with this seed, so that the first so many are a fair sample of
    /// an input sorted by class or time. Holds all rows in memory until the end; by default rows keep their order.
    pub shuffle: Option<u64>,
    /// How rows are divided.
    pub split: SplitOptions,
}

/// Layout of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Comma-separated values.
    Csv,
    /// Tab-separated values.
    Tsv,
    /// One JSON object a line.
    JsonLines,
    /// Each file is one text.
    Documents,
}

/// How bytes become text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// UTF-8; anything else is an error with file and line.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// UTF-8; a field that is not is read as Latin-1.
    #[serde(rename = "utf-8-or-latin-1")]
    Utf8OrLatin1,
}

/// Which fields are used, and under which names they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ColumnMap {
    /// Field with the text, stored as `text`.
    pub text: String,
    /// Field with the second text of a pair, stored as `text_b`.
    pub text_b: Option<String>,
    /// Field with the label, stored as `label`.
    pub label: String,
    /// Field whose equal values stay in one split, stored as `group`.
    pub group: Option<String>,
    /// The group is what stands in front of this text: `_` makes `12_3` and `12_4` the group `12`.
    pub group_until: Option<String>,
    /// More fields to keep, stored as texts under their own names.
    pub extra: Vec<String>,
}

/// How labels are read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabelOptions {
    /// Classes or numbers.
    pub kind: LabelKind,
    /// The label is what stands in front of this text: `:` makes `DESC:manner` the label `DESC`.
    pub until: Option<String>,
    /// Values that are left out with their rows; the empty text stands for no label.
    pub drop: Vec<String>,
    /// Dictionary from values to class names; a value that is not in it is an error. Empty keeps values as names.
    pub names: BTreeMap<String, String>,
    /// Classes by the size of a number, tried in order; a number that none takes is an error.
    pub ranges: Vec<LabelRange>,
    /// Class names in the order of their ids. Empty takes those found, integers in numeric order, others by bytes.
    pub order: Vec<String>,
}

/// What a label is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelKind {
    /// One of several classes, stored by name.
    #[default]
    Class,
    /// A number, stored as a 64-bit float.
    Number,
}

/// Numbers below a bound are one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelRange {
    /// Numbers below this; without it every number.
    pub below: Option<f64>,
    /// The class; without it the row is left out.
    pub class: Option<String>,
}

/// Which rows count as the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dedupe {
    /// None.
    #[default]
    Off,
    /// Equal texts.
    Exact,
    /// Equal words: case, digits, punctuation, links (`http…`), mentions (`@…`) and the retweet mark `RT` do not count.
    /// Texts without any such word are compared as they are.
    Words,
}

/// How rows are divided into train, validation and test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SplitOptions {
    /// Share of rows, or of groups where `columns.group` is set, for validation; 0 writes no validation file.
    pub validation: f64,
    /// Share of rows or groups for test; 0 writes no test file.
    pub test: f64,
    /// Seed of the draw.
    pub seed: u64,
    /// A field that names each row's split (`train`, `validation`, `valid`, `dev`, `test`); shares are not used then.
    pub column: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            inputs: Vec::new(),
            to: PathBuf::new(),
            format: None,
            delimiter: None,
            quote: None,
            names: Vec::new(),
            header: None,
            fields: None,
            skip: 0,
            last: None,
            encoding: Encoding::default(),
            columns: ColumnMap::default(),
            label: LabelOptions::default(),
            dedupe: Dedupe::default(),
            shuffle: None,
            split: SplitOptions::default(),
        }
    }
}

impl Default for ColumnMap {
    fn default() -> Self {
        Self {
            text: "text".to_owned(),
            text_b: None,
            label: "label".to_owned(),
            group: None,
            group_until: None,
            extra: Vec::new(),
        }
    }
}

impl Default for SplitOptions {
    fn default() -> Self {
        Self { validation: 0.1, test: 0.1, seed: 17, column: None }
    }
}

/// Names that the written columns have, so that no extra field may take them.
const STORED_NAMES: [&str; 4] = ["text", "text_b", "label", "group"];

impl Options {
    /// The fields that are read, each once.
    pub(crate) fn wanted(&self) -> Vec<&str> {
        let map = &self.columns;
        let optional = [map.text_b.as_ref(), map.group.as_ref(), self.split.column.as_ref()];
        let all = [&map.text, &map.label].into_iter().chain(optional.into_iter().flatten()).chain(&map.extra);
        let mut wanted: Vec<&str> = Vec::new();
        for name in all {
            if !wanted.contains(&name.as_str()) {
                wanted.push(name);
            }
        }
        wanted
    }

    /// Contradictions that need no input to be seen.
    pub(crate) fn check(&self) -> Result<(), ImportError> {
        let wrong = |text: String| Err(ImportError::Options { reason: text });
        if self.inputs.is_empty() {
            return wrong("no input is named".to_owned());
        }
        if self.to.as_os_str().is_empty() {
            return wrong("no folder to write is named".to_owned());
        }
        let legal = |share: f64| (0.0..1.0).contains(&share);
        let split = &self.split;
        if !legal(split.validation) || !legal(split.test) || split.validation + split.test >= 1.0 {
            return wrong(format!(
                "split shares are validation {} and test {}; each must be at least 0 and both together below 1",
                split.validation, split.test
            ));
        }
        if let Some(name) = self.columns.extra.iter().find(|name| STORED_NAMES.contains(&name.as_str())) {
            return wrong(format!("extra column {name:?} has a name that import itself writes"));
        }
        if self.quote.as_ref().is_some_and(|quote| quote.len() > 1) {
            return wrong(format!("quote {:?} is not one ASCII character", self.quote.as_deref().unwrap_or_default()));
        }
        if self.delimiter.is_some_and(|delimiter| !delimiter.is_ascii()) {
            return wrong("the delimiter is not an ASCII character".to_owned());
        }
        if self.fields == Some(0)
            || (self.fields.is_some() && self.quote.as_ref().is_none_or(|quote| !quote.is_empty()))
        {
            return wrong("`fields` must be at least 1 and needs an empty `quote`".to_owned());
        }
        self.check_label()
    }

    fn check_label(&self) -> Result<(), ImportError> {
        let wrong = |text: String| Err(ImportError::Options { reason: text });
        let label = &self.label;
        let classes = !(label.names.is_empty() && label.ranges.is_empty() && label.order.is_empty());
        if label.kind == LabelKind::Number && classes {
            return wrong("a number label takes no dictionary, ranges or order".to_owned());
        }
        if !label.names.is_empty() && !label.ranges.is_empty() {
            return wrong("a label takes a dictionary or ranges, not both".to_owned());
        }
        let produced = label.names.values().chain(label.ranges.iter().filter_map(|range| range.class.as_ref()));
        for name in produced {
            if !label.order.is_empty() && !label.order.contains(name) {
                return wrong(format!("class {name:?} is missing in the order of classes"));
            }
        }
        Ok(())
    }
}
