//! The written folder: one Parquet file a split, aside first, then in place with one rename.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use graftwork_shared::{
    data::Split,
    digest::{Digest, Hasher},
    random::{Purpose, Stream},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::{metadata::KeyValue, properties::WriterProperties},
};

use super::{ImportError, LabelKind, Options, report::REPORT_FILE, values::LabelValue};
use crate::open::LABELS_KEY;

/// Rows of a row group: what a shuffled epoch reads at a time, so a group is read in one piece.
const GROUP_ROWS: usize = 8192;

/// Rows of a page at most: a block of an epoch never decodes much more than it needs.
const PAGE_ROWS: usize = 2048;

/// A row as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) texts: Vec<String>,
    pub(crate) label: LabelValue,
    pub(crate) group: Option<String>,
    pub(crate) extra: Vec<String>,
}

/// The folder while it is written.
pub(crate) struct Output {
    target: PathBuf,
    aside: PathBuf,
    schema: SchemaRef,
    properties: WriterProperties,
    shuffle: Option<Stream>,
    shards: BTreeMap<Split, Shard>,
}

struct Shard {
    path: PathBuf,
    writer: ArrowWriter<File>,
    waiting: Vec<Stored>,
}

impl Output {
    pub(crate) fn create(options: &Options, labels: &[String]) -> Result<Self, ImportError> {
        let target = std::path::absolute(&options.to).map_err(|error| ImportError::unwritable(&options.to, error))?;
        if target.exists() && !target.join(REPORT_FILE).is_file() && !is_empty(&target) {
            return Err(ImportError::FolderInUse { folder: target.display().to_string() });
        }
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside = target.with_file_name(format!(".{name}.part-{}", std::process::id()));
        let _ = fs::remove_dir_all(&aside);
        fs::create_dir_all(&aside).map_err(|error| ImportError::unwritable(&aside, error))?;
        let (schema, properties) = (schema(options), properties(labels));
        let shuffle = options.shuffle.map(|seed| Stream::new(seed, Purpose::BlockOrder));
        Ok(Self { target, aside, schema, properties, shuffle, shards: BTreeMap::new() })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.aside
    }

    pub(crate) fn write(&mut self, split: Split, row: Stored) -> Result<(), ImportError> {
        let shard = match self.shards.entry(split) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let path = self.aside.join(format!("{}.parquet", split.name()));
                let failed = |error: &dyn std::fmt::Display| ImportError::unwritable(&path, error);
                let file = File::create(&path).map_err(|error| failed(&error))?;
                let writer = ArrowWriter::try_new(file, Arc::clone(&self.schema), Some(self.properties.clone()))
                    .map_err(|error| failed(&error))?;
                entry.insert(Shard { path, writer, waiting: Vec::with_capacity(GROUP_ROWS) })
            }
        };
        shard.waiting.push(row);
        let whole = shard.waiting.len() == GROUP_ROWS && self.shuffle.is_none();
        if whole { shard.flush(&self.schema) } else { Ok(()) }
    }

    /// Closes and syncs the files. Returns their SHA-256 by name.
    pub(crate) fn finish(&mut self) -> Result<BTreeMap<String, Digest>, ImportError> {
        let mut files = BTreeMap::new();
        for (split, mut shard) in std::mem::take(&mut self.shards) {
            if let Some(draw) = self.shuffle {
                shard.shuffle(&draw, split);
            }
            shard.flush(&self.schema)?;
            let path = shard.path;
            let failed = |error: &dyn std::fmt::Display| ImportError::unwritable(&path, error);
            let file = shard.writer.into_inner().map_err(|error| failed(&error))?;
            file.sync_all().map_err(|error| failed(&error))?;
            let mut hasher = Hasher::new();
            let mut written = File::open(&path).map_err(|error| failed(&error))?;
            std::io::copy(&mut written, &mut hasher).map_err(|error| failed(&error))?;
            files.insert(format!("{}.parquet", split.name()), hasher.finish());
        }
        Ok(files)
    }

    /// Puts the folder in its place; an earlier import moves out of the way first and is removed last.
    pub(crate) fn publish(self) -> Result<(), ImportError> {
        let failed = |error: &dyn std::fmt::Display| ImportError::unwritable(&self.target, error);
        let sync = |folder: &Path| File::open(folder).and_then(|folder| folder.sync_all());
        sync(&self.aside).map_err(|error| failed(&error))?;
        let old = self.aside.with_extension("old");
        let had = self.target.exists();
        if had {
            let _ = fs::remove_dir_all(&old);
            fs::rename(&self.target, &old).map_err(|error| failed(&error))?;
        }
        fs::rename(&self.aside, &self.target).map_err(|error| failed(&error))?;
        if let Some(parent) = self.target.parent() {
            sync(parent).map_err(|error| failed(&error))?;
        }
        if had {
            fs::remove_dir_all(&old).map_err(|error| failed(&error))?;
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // After an error only; a published folder has no aside any more.
        let _ = fs::remove_dir_all(&self.aside);
    }
}

impl Shard {
    fn flush(&mut self, schema: &SchemaRef) -> Result<(), ImportError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        for rows in std::mem::take(&mut self.waiting).chunks(GROUP_ROWS) {
            batch(schema, rows)
                .map_err(|error| error.to_string())
                .and_then(|batch| self.writer.write(&batch).map_err(|error| error.to_string()))
                .map_err(|error| ImportError::unwritable(&self.path, error))?;
        }
        Ok(())
    }

    /// Orders the rows by a number drawn for each; equal numbers keep the order of the input.
    fn shuffle(&mut self, draw: &Stream, split: Split) {
        let drawn = (0..).zip(std::mem::take(&mut self.waiting));
        let mut drawn: Vec<(u64, Stored)> = drawn.map(|(index, row)| (draw.u64(split as u32, index), row)).collect();
        drawn.sort_by_key(|(number, _)| *number);
        self.waiting = drawn.into_iter().map(|(_, row)| row).collect();
    }
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn schema(options: &Options) -> SchemaRef {
    let map = &options.columns;
    let label = if options.label.kind == LabelKind::Number { DataType::Float64 } else { DataType::Utf8 };
    let mut fields = vec![Field::new("text", DataType::Utf8, false)];
    fields.extend(map.text_b.iter().map(|_| Field::new("text_b", DataType::Utf8, false)));
    fields.push(Field::new("label", label, false));
    fields.extend(map.group.iter().map(|_| Field::new("group", DataType::Utf8, false)));
    fields.extend(map.extra.iter().map(|name| Field::new(name, DataType::Utf8, false)));
    Arc::new(Schema::new(fields))
}

fn properties(labels: &[String]) -> WriterProperties {
    let level = ZstdLevel::try_new(6).expect("6 is a zstd level");
    let entries = (!labels.is_empty()).then(|| {
        let names = serde_json::Value::from(labels.to_vec()).to_string();
        vec![KeyValue::new(LABELS_KEY.to_owned(), names)]
    });
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS / 2)
        .set_key_value_metadata(entries)
        .build()
}

fn batch(schema: &SchemaRef, rows: &[Stored]) -> Result<RecordBatch, arrow_schema::ArrowError> {
    let texts = |pick: &dyn Fn(&Stored) -> String| -> ArrayRef {
        Arc::new(rows.iter().map(|row| Some(pick(row))).collect::<StringArray>())
    };
    let first = &rows[0];
    let mut columns = Vec::with_capacity(schema.fields().len());
    columns.extend((0..first.texts.len()).map(|index| texts(&|row| row.texts[index].clone())));
    columns.push(match first.label {
        LabelValue::Class(_) => texts(&|row| match &row.label {
            LabelValue::Class(name) => name.clone(),
            LabelValue::Number(number) => number.to_string(),
        }),
        LabelValue::Number(_) => {
            let number = |row: &Stored| match row.label {
                LabelValue::Number(number) => number,
                LabelValue::Class(_) => f64::NAN,
            };
            Arc::new(rows.iter().map(number).collect::<Float64Array>())
        }
    });
    if first.group.is_some() {
        columns.push(texts(&|row| row.group.clone().unwrap_or_default()));
    }
    columns.extend((0..first.extra.len()).map(|index| texts(&|row| row.extra[index].clone())));
    RecordBatch::try_new(Arc::clone(schema), columns)
}
