//! What an import did: counts for people, and `import.json` beside the data.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use graftwork_shared::{data::Split, digest::Digest};
use serde::{Deserialize, Serialize};

use super::{ImportError, Options, values::LabelValue};

/// Name of the report inside the written folder.
pub(crate) const REPORT_FILE: &str = "import.json";

/// Changes whenever the same inputs and options would be written as other bytes.
const IMPORT_VERSION: u32 = 1;

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImportReport {
    /// Whether the folder already held this very import and was left untouched.
    #[serde(skip)]
    pub unchanged: bool,
    /// The inputs.
    pub sources: Vec<SourceFile>,
    /// Records read.
    pub records: u64,
    /// Records left out because a text is empty.
    pub dropped_empty: u64,
    /// Records left out because the options drop their label.
    pub dropped_labels: u64,
    /// Records left out because an earlier one has the same text.
    pub duplicates: u64,
    /// Class names in the order of their ids; empty for numbers.
    pub labels: Vec<String>,
    /// Rows written, by split.
    pub splits: BTreeMap<Split, SplitReport>,
    /// SHA-256 of each written Parquet file by name.
    pub files: BTreeMap<String, Digest>,
}

/// An input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Path inside the archive, or file name.
    pub name: String,
    /// Size as stored.
    pub bytes: u64,
    /// SHA-256 of these bytes.
    pub sha256: Digest,
}

/// Rows of one split.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SplitReport {
    /// Rows.
    pub rows: u64,
    /// Rows by class; empty for numbers.
    pub by_label: BTreeMap<String, u64>,
    /// Words of all texts, split at white space.
    pub words: u64,
    /// Sum of the numbers; 0 for classes.
    pub sum: f64,
}

impl SplitReport {
    /// Words of a row on the mean.
    pub fn mean_words(&self) -> f64 {
        self.words as f64 / self.rows.max(1) as f64
    }
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    /// Options without places, so that equal imports give equal bytes wherever they lie.
    options: Options,
    report: ImportReport,
}

impl ImportReport {
    /// Rows of a split.
    pub fn rows(&self, split: Split) -> u64 {
        self.splits.get(&split).map_or(0, |report| report.rows)
    }

    pub(crate) fn count(&mut self, split: Split, label: &LabelValue, texts: &[&str]) {
        let report = self.splits.entry(split).or_default();
        report.rows += 1;
        report.words += texts.iter().map(|text| text.split_whitespace().count() as u64).sum::<u64>();
        match label {
            LabelValue::Class(name) => *report.by_label.entry(name.clone()).or_default() += 1,
            LabelValue::Number(number) => report.sum += number,
        }
    }

    pub(crate) fn write(&self, options: &Options, folder: &Path) -> Result<(), ImportError> {
        let path = folder.join(REPORT_FILE);
        let written = Written { version: IMPORT_VERSION, options: placeless(options), report: self.clone() };
        let mut text = serde_json::to_string_pretty(&written).map_err(|error| ImportError::unwritable(&path, error))?;
        text.push('\n');
        let written = std::fs::File::create(&path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|error| ImportError::unwritable(&path, error))
    }
}

/// More inputs than this are written as one entry.
const MOST_SOURCES: usize = 20;

/// Thousands of documents would make a report that nobody reads: many inputs become one entry whose digest covers all.
pub(crate) fn fold(sources: Vec<SourceFile>) -> Vec<SourceFile> {
    let (Some(first), Some(last)) = (sources.first(), sources.last()) else { return sources };
    if sources.len() <= MOST_SOURCES {
        return sources;
    }
    vec![SourceFile {
        name: format!("{} files, {} to {}", sources.len(), first.name, last.name),
        bytes: sources.iter().map(|source| source.bytes).sum(),
        sha256: Digest::of_value("graftwork import sources", &sources),
    }]
}

fn placeless(options: &Options) -> Options {
    Options { inputs: Vec::new(), to: std::path::PathBuf::new(), ..options.clone() }
}

/// The report of the target folder, when it holds this very import, whole.
pub(crate) fn read_unchanged(options: &Options, sources: &[SourceFile]) -> Option<ImportReport> {
    let text = std::fs::read(options.to.join(REPORT_FILE)).ok()?;
    let written: Written = serde_json::from_slice(&text).ok()?;
    let same =
        written.version == IMPORT_VERSION && written.options == placeless(options) && written.report.sources == sources;
    let whole =
        || {
            written.report.files.iter().all(|(name, digest)| {
                std::fs::read(options.to.join(name)).is_ok_and(|bytes| Digest::of(&bytes) == *digest)
            })
        };
    (same && whole()).then_some(ImportReport { unchanged: true, ..written.report })
}
