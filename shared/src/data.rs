//! Data as jobs name it and as plans pin it down: sources, columns, split rules and file identities.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Where rows come from: each entry a path, a glob, a folder of shards, or a URL (`http(s)://`, `s3://`, `gs://`).
pub type Source = Vec<String>;

/// The text columns of a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TextColumns {
    /// One text.
    One(String),
    /// A pair of texts, joined as the base model's tokenizer joins pairs.
    Pair(String, String),
}

impl TextColumns {
    /// The column names in order.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::One(text) => vec![text],
            Self::Pair(first, second) => vec![first, second],
        }
    }
}

/// Where rows come from and what they may be used for, as far as somebody said so. It is for people, stands in records and
/// cards, and decides no row: no recipe knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Who made or collected them, or where they are found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Their licence: an SPDX identifier, or words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

impl Origin {
    /// Whether nothing was said.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}

/// How rows of one source are divided when a task names no separate validation or test files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitRule {
    /// Share of rows (or groups) for validation, 0 to 1.
    pub validation: f64,
    /// Share of rows (or groups) for test, 0 to 1.
    pub test: f64,
    /// Rows with the same value in this column stay together; without it each row is drawn alone.
    pub group_by: Option<String>,
    /// Seed of the draw.
    pub seed: u64,
}

/// The columns of a task and how its rows are selected: the part of a data set that does not name files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Columns {
    /// Text columns.
    pub text: TextColumns,
    /// Label column: integers, texts, or numbers for regression.
    pub label: String,
}

/// Which of a task's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Rows to train on.
    Train,
    /// Rows that choose the best weights.
    Validation,
    /// Rows held out until the end.
    Test,
}

impl Split {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// One Parquet file as planning saw it. A worker refuses a file whose identity changed since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Absolute path or URL.
    pub location: String,
    /// The digest of an uploaded file, an ETag, or the modification time in nanoseconds since 1970 where the store has no ETag.
    pub version: String,
    /// What of it decides bytes.
    pub content: FileContent,
}

/// What decides bytes of a file before its rows were read: size, row counts and footer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileContent {
    /// File size.
    pub bytes: u64,
    /// SHA-256 of the Parquet footer.
    pub footer: Digest,
    /// Rows of each row group, in order.
    pub row_group_rows: Vec<u64>,
    /// Uncompressed bytes of each row group, in order.
    pub row_group_bytes: Vec<u64>,
}

impl FileContent {
    /// Rows of the whole file.
    pub fn rows(&self) -> u64 {
        self.row_group_rows.iter().sum()
    }
}

/// The rows of one split: which files, and which of their rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitManifest {
    /// Files in order; row numbers count through them.
    pub files: Vec<FileIdentity>,
    /// Keeps the rows that this rule gives to this split; `None` keeps all.
    pub rule: Option<(SplitRule, Split)>,
    /// Only rows whose number is below this. Planning chooses it such that the wanted number is left after the rule.
    pub limit: Option<u64>,
    /// Rows that are left after rule and limit.
    pub rows: u64,
}

impl SplitManifest {
    /// What of the manifest enters a recipe: no location, no modification time.
    pub fn content(&self) -> SplitContent {
        SplitContent {
            files: self.files.iter().map(|file| file.content.clone()).collect(),
            rule: self.rule.clone(),
            limit: self.limit,
            rows: self.rows,
        }
    }
}

/// [`SplitManifest`] without places and times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitContent {
    /// Contents of the files in order.
    pub files: Vec<FileContent>,
    /// As in [`SplitManifest`].
    pub rule: Option<(SplitRule, Split)>,
    /// As in [`SplitManifest`].
    pub limit: Option<u64>,
    /// As in [`SplitManifest`].
    pub rows: u64,
}
