//! One Parquet file: its footer by ranged reads, its identity, and a byte source that counts what it fetches.
//!
//! Must never panic on what a file holds: the decoder runs behind `catch_unwind`, and every number of the footer is
//! held against the file's size before it is used.

use std::{
    ops::Range,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use graftwork_shared::{
    data::{FileContent, FileIdentity},
    digest::Digest,
    upload,
};
use object_store::{ObjectMeta, ObjectStoreExt};
use parquet::{
    arrow::{arrow_reader::ArrowReaderOptions, async_reader::AsyncFileReader},
    errors::ParquetError,
    file::metadata::{ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader},
};

use crate::{
    DataError,
    access::{Place, is_url, store_error},
    error::undecodable,
};

/// Fetched at once from the end of a file: holds the whole footer of nearly every file.
const TAIL_BYTES: u64 = 64 << 10;

/// Magic, footer length and magic again: no Parquet file is shorter.
const SMALLEST: u64 = 12;

const MAGIC: &[u8] = b"PAR1";

/// The bytes of one file; fetches are counted.
#[derive(Clone, Debug)]
pub(crate) struct FileBytes {
    pub(crate) place: Place,
    /// Its size, once known: a damaged page index may ask for bytes beyond it, or for a terabyte.
    pub(crate) size: u64,
    pub(crate) fetched: Arc<AtomicU64>,
}

impl FileBytes {
    pub(crate) fn new(place: Place, fetched: Arc<AtomicU64>) -> Self {
        Self { place, size: 0, fetched }
    }

    fn inside(&self, range: &Range<u64>) -> Result<u64, ParquetError> {
        if range.start <= range.end && range.end <= self.size {
            return Ok(range.end - range.start);
        }
        let (start, end, size) = (range.start, range.end, self.size);
        Err(ParquetError::General(format!("bytes {start} to {end} are asked for, but the file has {size}")))
    }
}

impl AsyncFileReader for FileBytes {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        match self.inside(&range) {
            Ok(bytes) => self.fetched.fetch_add(bytes, Ordering::Relaxed),
            Err(error) => return async { Err(error) }.boxed(),
        };
        self.place.store.get_range(&self.place.path, range).map_err(ParquetError::from).boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        match ranges.iter().map(|range| self.inside(range)).sum::<Result<u64, _>>() {
            Ok(bytes) => self.fetched.fetch_add(bytes, Ordering::Relaxed),
            Err(error) => return async { Err(error) }.boxed(),
        };
        let place = self.place.clone();
        async move { Ok(place.store.get_ranges(&place.path, &ranges).await?) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        // Footers are read once, by `read_footer`, which checks them; the decoder is always given that one.
        async { Err(ParquetError::General("the footer is read before the rows".to_owned())) }.boxed()
    }
}

/// A footer and what pins its file down.
#[derive(Clone, Debug)]
pub(crate) struct Footer {
    pub(crate) identity: FileIdentity,
    pub(crate) metadata: ParquetMetaData,
}

/// Size and version of a file, without opening it.
pub(crate) async fn stat(place: &Place) -> Result<(u64, String), DataError> {
    let meta = place.store.head(&place.path).await.map_err(|error| store_error(&place.location, &error))?;
    Ok((meta.size, version(place, &meta)))
}

/// The digest of an uploaded file, which is its name; the store's ETag; for a local file, and where there is none, the modification time in nanoseconds since 1970.
fn version(place: &Place, meta: &ObjectMeta) -> String {
    if let Some(digest) = upload::digest(&place.location) {
        return digest.to_string();
    }
    match &meta.e_tag {
        // A local "ETag" holds the inode, which differs between machines that mount the same folder.
        Some(tag) if is_url(&place.location) => tag.clone(),
        _ => {
            let (seconds, nanoseconds) = (meta.last_modified.timestamp(), meta.last_modified.timestamp_subsec_nanos());
            (i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)).to_string()
        }
    }
}

/// Reads and checks a footer: one request for the size, one for the tail, a third when the footer is longer than that.
///
/// With a planned identity the file must still be that one: size and version are held against it before anything is
/// read, the footer's digest after.
pub(crate) async fn read_footer(source: &mut FileBytes, planned: Option<&FileIdentity>) -> Result<Footer, DataError> {
    let location = source.place.location.clone();
    let (size, version) = stat(&source.place).await?;
    source.size = size;
    if let Some(planned) = planned {
        check_unchanged(planned, size, &version)?;
    }
    let truncated = |missing: String| DataError::Truncated { location: location.clone(), bytes: size, missing };
    if size < SMALLEST {
        return Err(truncated(format!("the smallest one has {SMALLEST} bytes")));
    }
    let tail = fetch(source, size - size.min(TAIL_BYTES)..size).await?;
    let Some(trailer) = tail.last_chunk::<8>() else {
        return Err(truncated("its last bytes could not be read".to_owned()));
    };
    if &trailer[4..] == b"PARE" {
        return Err(DataError::DamagedFooter {
            location,
            detail: "the footer is encrypted, which is not supported".to_owned(),
        });
    }
    if &trailer[4..] != MAGIC {
        return Err(truncated("the footer at its end, which closes with the letters PAR1, is missing".to_owned()));
    }
    let length = u64::from(u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]));
    let footer_start = size
        .checked_sub(length + 8)
        .filter(|start| *start >= MAGIC.len() as u64)
        .ok_or_else(|| truncated(format!("its footer alone has {length} bytes")))?;
    let in_tail = length + 8 <= tail.len() as u64;
    let footer = if in_tail {
        let start = tail.len() - usize::try_from(length).unwrap_or(usize::MAX) - 8;
        tail.slice(start..tail.len() - 8)
    } else {
        fetch(source, footer_start..size - 8).await?
    };
    let damaged = |detail: String| DataError::DamagedFooter { location: location.clone(), detail };
    let metadata = caught(|| ParquetMetaDataReader::decode_metadata(&footer))
        .and_then(|decoded| decoded.map_err(|error| undecodable(&error)))
        .map_err(damaged)?;
    let (row_group_rows, row_group_bytes) = check_footer(&metadata, footer_start, &truncated, &damaged)?;
    if row_group_rows.iter().sum::<u64>() == 0 {
        return Err(DataError::EmptyShard { location });
    }
    let content = FileContent { bytes: size, footer: Digest::of(&footer), row_group_rows, row_group_bytes };
    if planned.is_some_and(|planned| planned.content != content) {
        return Err(DataError::Changed {
            location,
            change: "size and time are the same, its footer is another".to_owned(),
        });
    }
    Ok(Footer { identity: FileIdentity { location, version, content }, metadata })
}

/// Whether size and version are still those that planning saw.
pub(crate) fn check_unchanged(planned: &FileIdentity, size: u64, version: &str) -> Result<(), DataError> {
    let change = if planned.content.bytes != size {
        format!("it had {} bytes and has {size} now", planned.content.bytes)
    } else if planned.version != version {
        if is_url(&planned.location) {
            format!("its ETag was {} and is {version} now", planned.version)
        } else {
            format!("it was last written at {} then, and at {} by now", moment(&planned.version), moment(version))
        }
    } else {
        return Ok(());
    };
    Err(DataError::Changed { location: planned.location.clone(), change })
}

/// A modification time for people; what is none is told as it stands.
fn moment(nanoseconds: &str) -> String {
    let time = nanoseconds.parse().map(chrono::DateTime::from_timestamp_nanos);
    time.map_or_else(|_| nanoseconds.to_owned(), |time| time.to_string())
}

/// Adds the page locations to a footer, where the file has them.
pub(crate) async fn with_page_index(source: &mut FileBytes, footer: Footer) -> Result<Arc<ParquetMetaData>, DataError> {
    let location = source.place.location.clone();
    let mut reader = ParquetMetaDataReader::new_with_metadata(footer.metadata)
        .with_column_index_policy(PageIndexPolicy::Skip)
        .with_offset_index_policy(PageIndexPolicy::Optional);
    let loaded = AssertUnwindSafe(reader.load_page_index(source)).catch_unwind().await;
    let failed = |detail: String| DataError::DamagedFooter { location, detail: format!("page index: {detail}") };
    match loaded {
        Ok(Ok(())) => reader.finish().map(Arc::new).map_err(|error| failed(undecodable(&error))),
        Ok(Err(error)) => Err(failed(undecodable(&error))),
        Err(_) => Err(failed("the decoder gave up".to_owned())),
    }
}

async fn fetch(source: &mut FileBytes, range: Range<u64>) -> Result<Bytes, DataError> {
    source.fetched.fetch_add(range.end - range.start, Ordering::Relaxed);
    let place = &source.place;
    place.store.get_range(&place.path, range).await.map_err(|error| store_error(&place.location, &error))
}

/// Rows and uncompressed bytes of each row group, after every range was held against the file.
fn check_footer(
    metadata: &ParquetMetaData,
    footer_start: u64,
    truncated: &impl Fn(String) -> DataError,
    damaged: &impl Fn(String) -> DataError,
) -> Result<(Vec<u64>, Vec<u64>), DataError> {
    let mut rows = Vec::with_capacity(metadata.num_row_groups());
    let mut bytes = Vec::with_capacity(metadata.num_row_groups());
    for (index, group) in metadata.row_groups().iter().enumerate() {
        let count = u64::try_from(group.num_rows())
            .ok()
            .filter(|rows| *rows < 1 << 40)
            .ok_or_else(|| damaged(format!("row group {index} claims {} rows", group.num_rows())))?;
        for column in group.columns() {
            let end = column_end(column)
                .ok_or_else(|| damaged(format!("row group {index} has a column at an impossible place")))?;
            if end > footer_start {
                return Err(truncated(format!(
                    "row group {index} ends at byte {end}, but the footer begins at byte {footer_start}"
                )));
            }
        }
        rows.push(count);
        bytes.push(u64::try_from(group.total_byte_size()).unwrap_or(0));
    }
    let claimed = metadata.file_metadata().num_rows();
    if u64::try_from(claimed).ok() != rows.iter().try_fold(0_u64, |sum, rows| sum.checked_add(*rows)) {
        return Err(damaged(format!("it claims {claimed} rows, its row groups hold another number")));
    }
    Ok((rows, bytes))
}

fn column_end(column: &ColumnChunkMetaData) -> Option<u64> {
    let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
    u64::try_from(start).ok()?.checked_add(u64::try_from(column.compressed_size()).ok()?)
}

/// Runs a decoder that may panic on damaged bytes.
pub(crate) fn caught<T>(decode: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(decode)).map_err(|_| "the decoder gave up".to_owned())
}
