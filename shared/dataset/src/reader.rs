//! The reader of one epoch: a task that decodes windows, a bounded channel, and a blocking door for the trainer.
//!
//! Two windows are in memory at most: the one that is consumed and the one that is read ahead. The order and what a
//! cursor means are those of [`crate::Order`]; the task adds nothing to them, so it may run anywhere (invariant 5).

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::FutureExt;
use graftwork_shared::{
    data::{Columns, SplitManifest},
    head::HeadOutput,
};
use tokio::{
    runtime::Handle,
    sync::mpsc::{self, Receiver, Sender},
    task::AbortHandle,
};

use crate::{
    Access, DataError, GroupDigests, Order, Row,
    labels::LabelReader,
    order::Plan,
    window::{Filled, Filler},
};

/// What to read.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// The rows.
    pub manifest: SplitManifest,
    /// The columns.
    pub columns: Columns,
    /// How labels are read.
    pub output: HeadOutput,
    /// The order.
    pub order: Order,
    /// Number of the epoch, from 0.
    pub epoch: u32,
    /// Rows of this epoch that were consumed already.
    pub cursor: u64,
    /// As [`RowReader::groups`] gave them at that cursor, or after the epoch before; `default()` at the very first.
    pub groups: GroupDigests,
}

/// A blocking iterator over the rows of one epoch. After an error, and after the last row, it gives `None`.
///
/// `next` blocks its thread until a row is there; it must not be called inside async code. Dropping the reader stops
/// its task.
pub struct RowReader {
    messages: Receiver<Result<Message, DataError>>,
    window: Option<(Filled, usize)>,
    /// An error that was found before or between rows.
    pending: Option<DataError>,
    ended: bool,
    groups: GroupDigests,
    locations: Vec<String>,
    expected: u64,
    fetched: Arc<AtomicU64>,
    task: AbortHandle,
}

enum Message {
    /// A window, and how many of its rows were consumed before.
    Window(Filled, usize),
    End,
}

impl RowReader {
    /// Starts reading on a task of the runtime, from the cursor on. Whatever is wrong comes out of `next`.
    pub fn start(runtime: &Handle, request: ReadRequest, access: Access) -> Self {
        let (sender, messages) = mpsc::channel(1);
        let fetched = Arc::new(AtomicU64::new(0));
        let mut groups = request.groups.clone();
        let counts: Vec<usize> = request.manifest.files.iter().map(|file| file.content.row_group_rows.len()).collect();
        let rows = request.manifest.rows;
        let pending = if request.cursor > rows {
            Some(DataError::Cursor { cursor: request.cursor, rows })
        } else {
            groups.resume(request.cursor, &counts).err()
        };
        let locations = request.manifest.files.iter().map(|file| file.location.clone()).collect();
        let task = runtime.spawn(read(request, access, sender, Arc::clone(&fetched))).abort_handle();
        if pending.is_some() {
            task.abort();
        }
        Self { messages, window: None, pending, ended: false, groups, locations, expected: rows, fetched, task }
    }

    /// Bytes fetched from files so far, footers included.
    pub fn bytes_read(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Row-group digests as of the rows handed out so far: what a checkpoint at this cursor keeps, and what the next
    /// epoch's request takes.
    pub fn groups(&self) -> GroupDigests {
        self.groups.clone()
    }

    fn fail(&mut self, error: DataError) -> Option<Result<Row, DataError>> {
        self.ended = true;
        self.window = None;
        self.task.abort();
        Some(Err(error))
    }

    /// Hands out a row of the window, after it entered the digests.
    fn take(&mut self) -> Option<Result<Row, DataError>> {
        let (window, position) = self.window.as_mut()?;
        if *position == window.rows() {
            self.window = None;
            return None;
        }
        let (row, file, group) = window.row(*position);
        *position += 1;
        if self.groups.consumed() == self.expected {
            return self.fail(DataError::RowCount { found: self.expected + 1, expected: self.expected });
        }
        if !self.groups.add(file as usize, group as usize, &row.digest()) {
            let location = self.locations[file as usize].clone();
            return self.fail(DataError::ChangedRows { location, row_group: group as usize });
        }
        // Not at the end marker: a checkpoint taken right after the last row must hold the whole epoch.
        if self.groups.consumed() == self.expected {
            self.groups.finish();
        }
        Some(Ok(row))
    }
}

impl Iterator for RowReader {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.pending.take() {
            return self.fail(error);
        }
        while !self.ended {
            if let Some(row) = self.take() {
                return Some(row);
            }
            match self.messages.blocking_recv() {
                Some(Ok(Message::Window(window, consumed))) => self.window = Some((window, consumed)),
                Some(Ok(Message::End)) if self.groups.consumed() == self.expected => self.ended = true,
                Some(Ok(Message::End)) => {
                    let (found, expected) = (self.groups.consumed(), self.expected);
                    return self.fail(DataError::RowCount { found, expected });
                }
                Some(Err(error)) => return self.fail(error),
                None => return self.fail(DataError::TaskLost),
            }
        }
        None
    }
}

impl Drop for RowReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for RowReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (consumed, rows) = (self.groups.consumed(), self.expected);
        f.debug_struct("RowReader").field("consumed", &consumed).field("rows", &rows).finish_non_exhaustive()
    }
}

/// The reading task. A closed channel means that nobody wants more.
async fn read(
    request: ReadRequest,
    access: Access,
    sender: Sender<Result<Message, DataError>>,
    fetched: Arc<AtomicU64>,
) {
    let reading = AssertUnwindSafe(read_windows(&request, &access, &sender, fetched)).catch_unwind();
    let last = match reading.await {
        Ok(Ok(())) => Ok(Message::End),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(DataError::TaskLost),
    };
    let _ = sender.send(last).await;
}

async fn read_windows(
    request: &ReadRequest,
    access: &Access,
    sender: &Sender<Result<Message, DataError>>,
    fetched: Arc<AtomicU64>,
) -> Result<(), DataError> {
    let plan = Plan::new(&request.manifest, request.order, request.epoch);
    let labels = LabelReader::new(&request.output);
    let filler = Filler::new(&request.manifest, &request.columns, labels, access, fetched);
    let (shards, group_shards) = (filler.shards(), filler.group_shards());
    let mut consumed = request.cursor;
    for window in &plan.windows {
        if consumed > 0 {
            let rows = filler.count(&group_shards, &plan, window).await?;
            if rows <= consumed {
                consumed -= rows;
                continue;
            }
        }
        // Room first, then the bytes: one window ahead, never two.
        let Ok(room) = sender.reserve().await else { return Ok(()) };
        let filled = filler.fill(&shards, &plan, window).await?;
        let skipped = usize::try_from(consumed).unwrap_or(usize::MAX).min(filled.rows());
        consumed = 0;
        room.send(Ok(Message::Window(filled, skipped)));
    }
    Ok(())
}
