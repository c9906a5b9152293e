//! Import: tables and documents in, Parquet with fixed splits out.
//!
//! Reads CSV, TSV, JSON lines and documents (one text a file, its folder the label), plain or compressed (gz, bz2,
//! zst), from a path, a glob, or a member of a zip archive (`archive.whl!folder/*.txt`; wheels are zip archives, and
//! nothing inside them runs). Writes `train.parquet`, `validation.parquet` and `test.parquet` (zstd, row groups of
//! 8,192 rows, page index) with the class names as file metadata, and `import.json`: sources with their SHA-256,
//! options and counts.
//!
//! Equal inputs and options give equal bytes. The folder appears whole or not at all (an earlier import steps aside
//! first, so a kill in that moment leaves none), and is left untouched when it already holds this very import. A row is never changed in silence: what is dropped is counted by reason.

mod error;
mod input;
mod options;
mod output;
mod recipe;
mod report;
mod table;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::data::Split;

pub use error::ImportError;
pub use options::{ColumnMap, Dedupe, Encoding, Format, LabelKind, LabelOptions, LabelRange, Options, SplitOptions};
pub use recipe::{Recipe, Recipes, run_recipe};
pub use report::{ImportReport, SourceFile, SplitReport};

use input::Input;
use output::{Output, Stored};
use values::{Draws, LabelValue, Labeller, text_key};

/// Runs an import. Blocks; reads tables as streams, so they may be larger than memory, but `shuffle` holds all rows and
/// a member of an archive is unpacked whole.
///
/// Errors: options that contradict each other, an input that is missing or malformed (file and line), a missing
/// column, a label outside the dictionary, a split without rows, a target folder that holds something else.
pub fn run(options: &Options) -> Result<ImportReport, ImportError> {
    options.check()?;
    let inputs = input::find(&options.inputs)?;
    let sources = report::fold(inputs.iter().map(Input::identify).collect::<Result<Vec<_>, _>>()?);
    if let Some(report) = report::read_unchanged(options, &sources) {
        return Ok(report);
    }
    let labels = final_labels(options, &inputs)?;
    let mut output = Output::create(options, &labels)?;
    let mut importer = Importer::new(options, labels);
    for input in &inputs {
        importer.take(input, &mut |split, row| output.write(split, row))?;
    }
    let mut report = importer.finish(sources)?;
    report.files = output.finish()?;
    report.write(options, output.folder())?;
    output.publish()?;
    Ok(report)
}

/// Class names in the order of their ids: as given, or found by a first pass over the inputs.
fn final_labels(options: &Options, inputs: &[Input]) -> Result<Vec<String>, ImportError> {
    if !options.label.order.is_empty() || options.label.kind == LabelKind::Number {
        return Ok(options.label.order.clone());
    }
    let mut importer = Importer::new(options, Vec::new());
    for input in inputs {
        importer.take(input, &mut |_, _| Ok(()))?;
    }
    Ok(importer.found_labels())
}

/// Turns records into rows of splits, and counts.
struct Importer<'a> {
    options: &'a Options,
    labeller: Labeller<'a>,
    draws: Draws<'a>,
    seen: BTreeSet<[u8; 16]>,
    report: ImportReport,
    labels: Vec<String>,
    found: BTreeSet<String>,
    kept: u64,
}

impl<'a> Importer<'a> {
    fn new(options: &'a Options, labels: Vec<String>) -> Self {
        Self {
            options,
            labeller: Labeller::new(&options.label),
            draws: Draws::new(&options.split),
            seen: BTreeSet::new(),
            report: ImportReport::default(),
            labels,
            found: BTreeSet::new(),
            kept: 0,
        }
    }

    fn take(
        &mut self,
        input: &Input,
        write: &mut dyn FnMut(Split, Stored) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        table::read(input, self.options, &mut |line, values| self.row(input, line, values, write))
    }

    fn row(
        &mut self,
        input: &Input,
        line: u64,
        values: &BTreeMap<&str, String>,
        write: &mut dyn FnMut(Split, Stored) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let map = &self.options.columns;
        self.report.records += 1;
        let value = |column: &str| values.get(column).map_or("", String::as_str);
        let texts: Vec<&str> =
            [Some(&map.text), map.text_b.as_ref()].into_iter().flatten().map(|name| value(name)).collect();
        if texts.iter().any(|text| text.is_empty()) {
            self.report.dropped_empty += 1;
            return Ok(());
        }
        let raw = value(&map.label);
        let Some(label) = self.labeller.read(raw).map_err(|bad| bad.at(&input.name, line, &map.label))? else {
            self.report.dropped_labels += 1;
            return Ok(());
        };
        let dedupe = self.options.dedupe;
        if dedupe != Dedupe::Off && !self.seen.insert(text_key(dedupe, &texts)) {
            self.report.duplicates += 1;
            return Ok(());
        }
        if let LabelValue::Class(name) = &label {
            self.found.insert(name.clone());
        }
        let group = map.group.as_ref().map(|name| values::until(value(name), map.group_until.as_deref()).to_owned());
        let column = self.options.split.column.as_ref().map(|name| value(name));
        let split = self.draws.split(self.kept, group.as_deref(), column);
        let split = split.map_err(|bad| bad.at(&input.name, line))?;
        self.kept += 1;
        self.report.count(split, &label, &texts);
        let texts = texts.into_iter().map(str::to_owned).collect();
        let extra = map.extra.iter().map(|name| value(name).to_owned()).collect();
        write(split, Stored { texts, label, group, extra })
    }

    fn found_labels(&self) -> Vec<String> {
        let mut labels: Vec<String> = self.found.iter().cloned().collect();
        if labels.iter().all(|label| label.parse::<i128>().is_ok()) {
            labels.sort_by_key(|label| label.parse::<i128>().unwrap_or_default());
        }
        labels
    }

    /// The report, once every split and every class has rows.
    fn finish(mut self, sources: Vec<SourceFile>) -> Result<ImportReport, ImportError> {
        for (split, share) in self.draws.wanted() {
            if share && self.report.rows(split) == 0 {
                return Err(ImportError::EmptySplit { split: split.name().to_owned(), rows: self.kept });
            }
        }
        if let Some(unused) = self.labels.iter().find(|label| !self.found.contains(*label)) {
            return Err(ImportError::UnusedLabel { label: unused.clone() });
        }
        self.report.sources = sources;
        self.report.labels = self.labels;
        Ok(self.report)
    }
}
