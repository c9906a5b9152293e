//! The order of an epoch: a pure function of (manifest, order, epoch).
//!
//! 1. Row groups are cut into blocks of neighbouring rows, at most 8,192 rows and 1/128 of a window each; their sizes
//!    are estimated from the footers, so nothing is read.
//! 2. Shuffled: blocks are put in a seeded order (Fisher–Yates, `Purpose::BlockOrder`, position epoch and block).
//! 3. Blocks are gathered in this order into windows until a window's stated bytes are reached.
//! 4. Shuffled: the rows of a window are put in a seeded order (Fisher–Yates, `Purpose::WindowOrder`, position epoch
//!    and row slot of the epoch).
//!
//! Must never read a file, a clock or other random numbers: a cursor of a checkpoint means the same rows on every
//! worker (invariants 3 and 5).

use std::ops::Range;

use graftwork_shared::{
    data::SplitManifest,
    random::{Purpose, Stream},
};

/// Decoded bytes of one window of a shuffled epoch. Two windows are in memory at most: one that is consumed and one
/// that is read ahead, 64 MiB together.
pub const DEFAULT_WINDOW_BYTES: u64 = 32 << 20;

/// Windows of a sequential epoch only bound memory; they do not change the order.
const SEQUENTIAL_WINDOW_BYTES: u64 = 16 << 20;

/// Most rows of one block.
const BLOCK_ROWS: u64 = 8192;

/// Blocks of a window at least: what a window mixes comes from at least so many places of the data set.
const BLOCKS_PER_WINDOW: u64 = 128;

/// What a decoded row costs beside its column bytes: a 16-byte view, its label and its place in the shuffled order.
const ROW_OVERHEAD_BYTES: u64 = 32;

/// In which order rows come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they lie in the files.
    Sequential,
    /// Shuffled anew in each epoch.
    Shuffled {
        /// Seed of the order; each epoch draws its own.
        seed: u64,
        /// Decoded bytes of one window; [`DEFAULT_WINDOW_BYTES`] unless memory is scarce. Another value is another
        /// order.
        window_bytes: u64,
    },
}

/// Neighbouring rows of one row group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// File in the manifest.
    pub(crate) file: u32,
    /// Row group in the file.
    pub(crate) group: u32,
    /// First row within the row group.
    pub(crate) start: u64,
    /// Rows.
    pub(crate) rows: u64,
    /// Number of the first row through all files.
    pub(crate) number: u64,
    /// Estimated decoded bytes.
    bytes: u64,
}

/// Windows of an epoch; positions count rows before a split rule drops some.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) blocks: Vec<Block>,
    pub(crate) windows: Vec<Window>,
    shuffle: Option<(Stream, u32)>,
}

/// A run of blocks that is in memory at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) blocks: Range<usize>,
    /// Row slots of the epoch in front of this window.
    pub(crate) first_slot: u64,
}

impl Plan {
    pub(crate) fn new(manifest: &SplitManifest, order: Order, epoch: u32) -> Self {
        let window_bytes = match order {
            Order::Sequential => SEQUENTIAL_WINDOW_BYTES,
            Order::Shuffled { window_bytes, .. } => window_bytes.max(1),
        };
        let mut blocks = cut(manifest, window_bytes);
        let shuffle = match order {
            Order::Sequential => None,
            Order::Shuffled { seed, .. } => {
                shuffle(&mut blocks, &Stream::new(seed, Purpose::BlockOrder), epoch, 0);
                Some((Stream::new(seed, Purpose::WindowOrder), epoch))
            }
        };
        Self { windows: gather(&blocks, window_bytes), blocks, shuffle }
    }

    /// Puts what a window holds (rows in the order of its blocks) into the order of the epoch.
    pub(crate) fn shuffle_window<T>(&self, window: &Window, rows: &mut [T]) {
        if let Some((stream, epoch)) = &self.shuffle {
            shuffle(rows, stream, *epoch, window.first_slot);
        }
    }
}

/// Fisher–Yates; draw `i` takes position `first + i`.
fn shuffle<T>(items: &mut [T], stream: &Stream, epoch: u32, first: u64) {
    for last in (1..items.len()).rev() {
        let other = stream.below(epoch, first + last as u64, last as u64 + 1);
        items.swap(last, usize::try_from(other).expect("a number below a length"));
    }
}

fn cut(manifest: &SplitManifest, window_bytes: u64) -> Vec<Block> {
    let end = manifest.limit.unwrap_or(u64::MAX);
    let mut blocks = Vec::new();
    let mut number = 0;
    for (file, identity) in (0..).zip(&manifest.files) {
        let groups = identity.content.row_group_rows.iter().zip(&identity.content.row_group_bytes);
        for (group, (&rows, &bytes)) in (0..).zip(groups) {
            let row_bytes = bytes / rows.max(1) + ROW_OVERHEAD_BYTES;
            let most = (window_bytes / BLOCKS_PER_WINDOW / row_bytes).clamp(1, BLOCK_ROWS);
            // Even blocks: a short last block would be as dear to read as a whole one.
            let block_rows = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
            let mut start = 0;
            while start < rows && number + start < end {
                let taken = block_rows.min(rows - start).min(end - number - start);
                blocks.push(Block {
                    file,
                    group,
                    start,
                    rows: taken,
                    number: number + start,
                    bytes: taken * row_bytes,
                });
                start += taken;
            }
            number += rows;
        }
    }
    blocks
}

fn gather(blocks: &[Block], window_bytes: u64) -> Vec<Window> {
    let mut windows = Vec::new();
    let (mut first, mut first_slot, mut slots, mut bytes) = (0, 0, 0, 0);
    for (index, block) in blocks.iter().enumerate() {
        if bytes > 0 && bytes + block.bytes > window_bytes {
            windows.push(Window { blocks: first..index, first_slot });
            (first, first_slot, bytes) = (index, slots, 0);
        }
        bytes += block.bytes;
        slots += block.rows;
    }
    if first < blocks.len() {
        windows.push(Window { blocks: first..blocks.len(), first_slot });
    }
    windows
}

#[cfg(test)]
mod tests;
