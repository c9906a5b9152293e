//! Rows of one row group, decoded: only the columns needed, only the pages that hold the wanted rows.
//!
//! Text columns are decoded as views, so a dictionary of long texts is held once however often it is used. Must never
//! panic on what a file holds.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::AtomicU64},
};

use arrow_array::{Array, ArrayRef, RecordBatch, StringViewArray, cast::AsArray};
use arrow_schema::{DataType, Field, Schema};
use futures::{FutureExt, TryStreamExt};
use graftwork_shared::data::{FileIdentity, SplitManifest};
use parquet::{
    arrow::{
        ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection, RowSelector},
    },
    errors::ParquetError,
};
use tokio::sync::{OnceCell, Semaphore};

use crate::{
    Access, DataError,
    access::store_error,
    error::undecodable,
    file::{FileBytes, caught, check_unchanged, read_footer, stat, with_page_index},
    open::plain_schema,
};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 8192;

/// MiB of column chunks that may be read at the same time. A file without a page index is read by whole chunks, and one
/// chunk alone may be larger than this; then it is read alone.
const ROOM_MIB: u32 = 64;

/// The files of a manifest, opened when first needed and held against their planned identity then.
pub(crate) struct Shards<C> {
    files: Vec<(FileIdentity, OnceCell<Shard>)>,
    access: Access,
    columns: Vec<String>,
    check: C,
    fetched: Arc<AtomicU64>,
    /// One permit a MiB.
    room: Semaphore,
}

#[derive(Debug)]
struct Shard {
    bytes: FileBytes,
    metadata: ArrowReaderMetadata,
    mask: ProjectionMask,
}

/// Rows of one row group: start and number, ascending and apart.
pub(crate) type Runs<'a> = &'a [(u64, u64)];

impl<C: Fn(&str, &Schema) -> Result<(), DataError>> Shards<C> {
    /// Files that will be read for these columns; `check` holds each file's columns against the task.
    pub(crate) fn new(manifest: &SplitManifest, columns: Vec<String>, access: &Access, check: C) -> Self {
        let files = manifest.files.iter().map(|file| (file.clone(), OnceCell::new())).collect();
        Self {
            files,
            access: access.clone(),
            columns,
            check,
            fetched: Arc::default(),
            room: Semaphore::new(ROOM_MIB as usize),
        }
    }

    pub(crate) fn counting(self, fetched: Arc<AtomicU64>) -> Self {
        Self { fetched, ..self }
    }

    /// Decodes runs of a row group: for each run its batches, whose columns are those of `columns` in that order.
    pub(crate) async fn read(&self, file: u32, group: u32, runs: Runs<'_>) -> Result<Vec<Vec<RecordBatch>>, DataError> {
        let (identity, cell) = &self.files[file as usize];
        let shard = cell.get_or_try_init(|| self.open(identity)).await?;
        let _room = self.room.acquire_many(shard.mebibytes(group as usize, runs)).await;
        let decoded = AssertUnwindSafe(self.decode(shard, group as usize, runs)).catch_unwind().await;
        let error = match decoded {
            Ok(Ok(batches)) => return Ok(batches),
            Ok(Err(error)) => error,
            Err(_) => ParquetError::General("the decoder gave up".to_owned()),
        };
        // A file that was replaced while it is read looks damaged; say what really happened.
        let (size, version) = stat(&shard.bytes.place).await?;
        check_unchanged(identity, size, &version)?;
        Err(read_error(identity, group as usize, &error))
    }

    async fn open(&self, identity: &FileIdentity) -> Result<Shard, DataError> {
        let place = self.access.place(&identity.location)?;
        let mut bytes = FileBytes::new(place, Arc::clone(&self.fetched));
        let footer = read_footer(&mut bytes, Some(identity)).await?;
        let damaged = |detail: String| DataError::DamagedFooter { location: identity.location.clone(), detail };
        let schema = plain_schema(&footer.metadata).map_err(damaged)?;
        (self.check)(&identity.location, &schema)?;
        let metadata = with_page_index(&mut bytes, footer).await?;
        let viewed = Arc::new(as_views(&schema));
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_schema(viewed);
        let metadata = caught(|| ArrowReaderMetadata::try_new(metadata, options))
            .and_then(|made| made.map_err(|error| undecodable(&error)))
            .map_err(damaged)?;
        let wanted = schema.fields().iter().enumerate().filter(|(_, field)| self.columns.contains(field.name()));
        let roots: Vec<usize> = wanted.map(|(index, _)| index).collect();
        let mask = ProjectionMask::roots(metadata.parquet_schema(), roots);
        Ok(Shard { bytes, metadata, mask })
    }

    async fn decode(&self, shard: &Shard, group: usize, runs: Runs<'_>) -> Result<Vec<Vec<RecordBatch>>, ParquetError> {
        let batches: Vec<RecordBatch> =
            ParquetRecordBatchStreamBuilder::new_with_metadata(shard.bytes.clone(), shard.metadata.clone())
                .with_row_groups(vec![group])
                .with_projection(shard.mask.clone())
                .with_row_selection(selection(runs))
                .with_batch_size(BATCH_ROWS)
                .build()?
                .try_collect()
                .await?;
        let batches = batches.iter().map(|batch| self.tidy(batch)).collect::<Result<Vec<_>, _>>()?;
        cut(&batches, runs)
    }

    /// Puts the columns into the asked order and frees what views no longer refer to.
    fn tidy(&self, batch: &RecordBatch) -> Result<RecordBatch, ParquetError> {
        let mut columns = Vec::with_capacity(self.columns.len());
        for name in &self.columns {
            let column = batch.column_by_name(name);
            let column = column.ok_or_else(|| ParquetError::General(format!("column {name:?} was not decoded")))?;
            columns.push((name, compact(column)));
        }
        Ok(RecordBatch::try_from_iter(columns)?)
    }
}

impl Shard {
    /// What reading these runs holds at a time, in MiB and at most all the room there is: their share of the wanted
    /// columns, or all of these where the file has no page index.
    fn mebibytes(&self, group: usize, runs: Runs<'_>) -> u32 {
        let metadata = self.metadata.metadata();
        let group = metadata.row_group(group);
        let wanted = group.columns().iter().enumerate().filter(|(leaf, _)| self.mask.leaf_included(*leaf));
        let bytes: u64 = wanted.map(|(_, column)| u64::try_from(column.uncompressed_size()).unwrap_or(0)).sum();
        let rows = u64::try_from(group.num_rows()).unwrap_or(0).max(1);
        let read = if metadata.page_index().is_some() { runs.iter().map(|(_, rows)| rows).sum() } else { rows };
        let bytes = u128::from(bytes) * u128::from(read) / u128::from(rows);
        u32::try_from(bytes >> 20).unwrap_or(u32::MAX).clamp(1, ROOM_MIB)
    }
}

/// The same columns with texts as views.
fn as_views(schema: &Schema) -> Schema {
    let view = |field: &Arc<Field>| match field.data_type() {
        DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    };
    Schema::new_with_metadata(schema.fields().iter().map(view).collect::<Vec<_>>(), schema.metadata().clone())
}

/// Views keep whole pages alive; where less than half of them is used, the used part is copied out.
fn compact(column: &ArrayRef) -> ArrayRef {
    let Some(views) = column.as_any().downcast_ref::<StringViewArray>() else { return Arc::clone(column) };
    let held: usize = views.data_buffers().iter().map(|buffer| buffer.as_slice().len()).sum();
    let used = views.total_buffer_bytes_used();
    if held > 2 * used { Arc::new(views.gc()) } else { Arc::clone(column) }
}

fn selection(runs: Runs<'_>) -> RowSelection {
    let mut selectors = Vec::with_capacity(runs.len() * 2);
    let mut at = 0;
    let rows = |count: u64| usize::try_from(count).expect("rows of a row group fit into memory addresses");
    for (start, count) in runs {
        if *start > at {
            selectors.push(RowSelector::skip(rows(start - at)));
        }
        selectors.push(RowSelector::select(rows(*count)));
        at = start + count;
    }
    RowSelection::from(selectors)
}

/// Cuts what was decoded in one go back into runs.
fn cut(batches: &[RecordBatch], runs: Runs<'_>) -> Result<Vec<Vec<RecordBatch>>, ParquetError> {
    let found: u64 = batches.iter().map(|batch| batch.num_rows() as u64).sum();
    let wanted: u64 = runs.iter().map(|(_, rows)| rows).sum();
    if found != wanted {
        return Err(ParquetError::General(format!("{found} rows were found where the footer promises {wanted}")));
    }
    let (mut index, mut offset) = (0, 0);
    let mut cut = Vec::with_capacity(runs.len());
    for (_, rows) in runs {
        let mut missing = usize::try_from(*rows).unwrap_or(usize::MAX);
        let mut parts = Vec::new();
        while missing > 0 {
            let batch = &batches[index];
            let taken = missing.min(batch.num_rows() - offset);
            if taken > 0 {
                parts.push(batch.slice(offset, taken));
            }
            (missing, offset) = (missing - taken, offset + taken);
            if offset == batch.num_rows() {
                (index, offset) = (index + 1, 0);
            }
        }
        cut.push(parts);
    }
    Ok(cut)
}

/// Tells a store that does not answer from a page that cannot be decoded.
fn read_error(identity: &FileIdentity, row_group: usize, error: &ParquetError) -> DataError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<object_store::Error>() {
            return store_error(&identity.location, error);
        }
        cause = error.source();
    }
    DataError::DamagedPage { location: identity.location.clone(), row_group, detail: undecodable(error) }
}

/// A column's values as texts.
pub(crate) fn texts(column: &ArrayRef) -> Result<StringViewArray, String> {
    if let Some(views) = column.as_string_view_opt() {
        return Ok(views.clone());
    }
    let cast = arrow_cast::cast(column, &DataType::Utf8View).map_err(|error| undecodable(&error))?;
    Ok(cast.as_string_view().clone())
}
