//! Rows for training: from Parquet in a folder or an object store, in a seeded order, a bounded number of bytes ahead.
//!
//! ```text
//! open ──► footers ──► check_columns, find_labels, select ──► SplitManifest   (planning: no rows, or one column)
//! SplitManifest + cursor ──► RowReader ──► Row, Row, …                          (training: columns needed, one window ahead)
//! import ──► Parquet with fixed splits                                          (before all that)
//! ```
//!
//! - [`open()`] reads footers alone and pins each file down by size, ETag or modification time, and footer digest. A
//!   [`RowReader`] refuses a file that is no longer that one.
//! - [`select()`] gives rows to splits by a hash of the row number or of a group's value.
//! - [`RowReader`] is a blocking iterator over one epoch. What a checkpoint keeps of it is one integer, the rows
//!   consumed, and [`GroupDigests`]. Resuming skips whole windows without reading them (with a split by group the
//!   group column of the skipped windows is read to count their rows).
//! - [`Access`] holds credentials; its docs say what the environment variable must look like.
//! - [`import`] turns tables and documents into Parquet.
//!
//! # Order of an epoch
//! A pure function of (manifest, seed, epoch). Row groups are cut into blocks of neighbouring rows, at most 8,192 rows
//! and 1/128 of a window each. Blocks are shuffled, gathered into windows of [`DEFAULT_WINDOW_BYTES`] (32 MiB of decoded
//! rows, estimated from the footers), and the rows of each window are shuffled. A data set that fits into one window is
//! shuffled perfectly. The worst case, a file sorted by label that fills many windows, is measured by the test
//! `the_order_mixes_a_file_that_is_sorted_by_label` (500,000 rows in 16 windows, batches of 16):
//!
//! | measure | here | perfect shuffle |
//! |---|---|---|
//! | mean distance between place in the file and in the epoch, of n rows | 0.334 n | 0.333 n |
//! | correlation of places, file and epoch | -0.004 | 0 |
//! | correlation of places, two epochs | 0.000 | 0 |
//! | standard deviation of the label share of a batch | 0.129 | 0.125 |
//! | batches of one label alone, of 31,250 | 2 | 1 |
//!
//! # Memory
//! Two windows are in memory at most: one that is consumed, one that is read ahead; 64 MiB of decoded rows by default.
//! A file without a page index is read by whole column chunks of a row group, once for each window that needs rows of
//! it, and never more than 64 MiB of chunks, or one chunk, at a time; [`import`] writes row groups of 8,192 rows with a
//! page index.
//!
//! # Never
//! Never a panic on what a file holds, a secret in a message, a row left out in silence, or a random number that is
//! not addressed by position.

mod access;
mod columns;
mod error;
mod file;
mod group;
pub mod import;
mod labels;
mod open;
mod order;
mod pattern;
mod reader;
mod row;
mod scan;
mod select;
mod shard;
mod window;

pub use access::Access;
pub use columns::{check_columns, type_in_words};
pub use error::DataError;
pub use group::GroupDigests;
pub use labels::find_labels;
pub use open::{OpenFile, locate_path, open};
pub use order::{DEFAULT_WINDOW_BYTES, Order};
pub use reader::{ReadRequest, RowReader};
pub use row::{Label, Row};
pub use select::select;

#[cfg(test)]
mod tests;
