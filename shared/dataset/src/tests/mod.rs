//! Tests that write small Parquet files and read them through the crate's own door.

mod damage;
mod errors;
mod importing;
mod reading;
mod remote;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use graftwork_shared::{
    data::{Columns, SplitManifest, TextColumns},
    head::HeadOutput,
};
use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{Access, DataError, GroupDigests, OpenFile, Order, ReadRequest, Row, RowReader};

pub(super) struct Folder {
    folder: TempDir,
    pub(super) runtime: Runtime,
}

impl Folder {
    pub(super) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { folder: TempDir::new().unwrap(), runtime }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A shard of `rows` rows with columns text, label (0 or 1) and group, in row groups of `group_rows`.
    pub(super) fn shard(&self, name: &str, first: i64, rows: i64, group_rows: usize) -> PathBuf {
        let numbers = first..first + rows;
        let texts: StringArray = numbers.clone().map(|n| Some(format!("text number {n}"))).collect();
        let labels = Int64Array::from_iter_values(numbers.clone().map(|n| n % 2));
        let groups: StringArray = numbers.map(|n| Some(format!("group {}", n / 7))).collect();
        let columns: Vec<(&str, ArrayRef)> =
            vec![("text", Arc::new(texts)), ("label", Arc::new(labels)), ("group", Arc::new(groups))];
        self.write(name, columns, group_rows)
    }

    pub(super) fn write(&self, name: &str, columns: Vec<(&str, ArrayRef)>, group_rows: usize) -> PathBuf {
        let path = self.path(name);
        write(&path, &RecordBatch::try_from_iter(columns).unwrap(), group_rows);
        path
    }

    pub(super) fn open(&self, entries: &[&str]) -> Result<Vec<OpenFile>, DataError> {
        let source = entries.iter().map(|entry| self.text(entry)).collect();
        self.runtime.block_on(crate::open(&source, &Access::anonymous()))
    }

    pub(super) fn manifest(&self, entries: &[&str]) -> SplitManifest {
        let files = self.open(entries).unwrap();
        self.runtime.block_on(crate::select(&files, None, None, &Access::anonymous())).unwrap()
    }

    pub(super) fn start(&self, request: ReadRequest) -> RowReader {
        RowReader::start(self.runtime.handle(), request, Access::anonymous())
    }

    pub(super) fn rows(&self, request: ReadRequest) -> Result<Vec<Row>, DataError> {
        self.start(request).collect()
    }
}

fn write(path: &Path, batch: &RecordBatch, group_rows: usize) {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(parquet::basic::ZstdLevel::try_new(1).unwrap()))
        .set_max_row_group_row_count(Some(group_rows))
        .set_data_page_row_count_limit(64)
        .set_write_batch_size(64)
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

pub(super) fn columns() -> Columns {
    Columns { text: TextColumns::One("text".to_owned()), label: "label".to_owned() }
}

pub(super) fn two_classes() -> HeadOutput {
    HeadOutput::Classification { labels: vec!["no".to_owned(), "yes".to_owned()] }
}

pub(super) fn request(manifest: SplitManifest, order: Order) -> ReadRequest {
    let (columns, output) = (columns(), two_classes());
    ReadRequest { manifest, columns, output, order, epoch: 0, cursor: 0, groups: GroupDigests::default() }
}
