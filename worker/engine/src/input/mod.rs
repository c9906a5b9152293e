//! From rows to packed lanes: a thread of its own reads, tokenises and packs a bounded number of updates ahead.
//!
//! What an update holds is a function of the rows and their order alone. The thread may be early or late, never
//! different: it owns the position in the data, and every update carries the position after itself, so a checkpoint
//! taken after any update resumes at exactly the next row (invariant 3).

mod encoder;
mod pack;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use graftwork_dataset::{Access, DataError, GroupDigests, ReadRequest, RowReader};
use graftwork_shared::{
    assignment::Blame,
    digest::{Digest, Hasher},
};
use tokio::runtime::Handle;

pub(crate) use encoder::Rules;
pub use encoder::{Encoded, TextEncoder};
pub use pack::{BatchShape, deal};

use crate::{Lane, clock::thread_seconds};

/// Updates that wait packed, at most. A few hide the jitter of reading; more only take memory.
const UPDATES_AHEAD: usize = 4;

/// Why rows do not become lanes.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The rows themselves: files, columns, nulls, labels.
    #[error(transparent)]
    Data(Box<DataError>),
    /// The tokenizer file is not usable.
    #[error("{path}: {what}")]
    Tokenizer {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// A row cannot be tokenised.
    #[error("row {row}: {what}")]
    Row {
        /// The row's number.
        row: u64,
        /// What is wrong.
        what: String,
    },
    /// `max_length` leaves no room beside the special tokens.
    #[error("max_length {given} is too short: the tokenizer adds {added} special tokens; use at least {}", added + 1)]
    Length {
        /// The given length.
        given: u32,
        /// Special tokens of a row.
        added: usize,
    },
    /// An epoch had another number of rows than planned.
    #[error("epoch {epoch} ended after {found} rows, the plan counted {planned}; the data changed, plan again")]
    Rows {
        /// The epoch, from 0.
        epoch: u32,
        /// Rows of the manifest.
        planned: u64,
        /// Rows that were read.
        found: u64,
    },
    /// The input thread is gone.
    #[error("the input thread ended before its work")]
    Stopped,
}

impl From<DataError> for InputError {
    fn from(error: DataError) -> Self {
        Self::Data(Box::new(error))
    }
}

impl InputError {
    /// Whose fault it is: decides whether a retry can help.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Data(error) => error.blame(),
            Self::Stopped => Blame::Machine,
            _ => Blame::User,
        }
    }
}

/// A place in the training data, between two updates.
#[derive(Clone, Debug, PartialEq)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u32,
    /// Rows of this epoch before this place.
    pub cursor: u64,
    /// Chained digest of those rows.
    pub chain: Digest,
    /// Row-group digests as of those rows.
    pub groups: GroupDigests,
}

impl Position {
    /// The start of training.
    pub fn start() -> Self {
        Self { epoch: 0, cursor: 0, chain: chain_start(), groups: GroupDigests::default() }
    }
}

/// The rows of one optimizer update, and the place behind them.
#[derive(Debug)]
pub struct Update {
    /// Lanes in order, batch after batch; one without rows is `None`.
    pub lanes: Vec<Option<Lane>>,
    /// Which rows these are.
    pub consumed: Consumed,
}

/// The rows of one update, as numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Consumed {
    /// Rows of all lanes.
    pub rows: u64,
    /// Tokens of all lanes.
    pub tokens: u64,
    /// The place behind these rows: after the last row of an epoch, the start of the next one.
    pub position: Position,
    /// Digest of the epoch's rows, when these were its last.
    pub finished_epoch: Option<Digest>,
    /// What reading and packing cost since the input started.
    pub cost: InputCost,
}

/// What reading and packing cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InputCost {
    /// Bytes fetched from files.
    pub bytes_read: u64,
    /// CPU seconds of the input thread.
    pub core_seconds: f64,
}

/// What an input shall read and how it packs.
#[derive(Debug)]
pub struct InputRequest {
    /// Rows, columns and order; epoch, cursor and groups are overwritten from `position`.
    pub read: ReadRequest,
    /// Credentials and stores.
    pub access: Access,
    /// How updates are cut.
    pub shape: BatchShape,
    /// Where to go on.
    pub position: Position,
    /// Updates to make, through as many epochs as they need.
    pub updates: u64,
}

/// Packed updates, made ahead by a thread. Dropping it ends the thread at its next update.
#[derive(Debug)]
pub struct Input {
    updates: Receiver<Result<Update, InputError>>,
    packed: Arc<AtomicUsize>,
    taken: usize,
    late: u64,
    waited: Duration,
}

impl Input {
    /// Starts the thread. Rows are read on the runtime.
    pub fn start(runtime: &Handle, request: InputRequest, encoder: Arc<TextEncoder>) -> Self {
        let (sender, updates) = sync_channel(UPDATES_AHEAD);
        let runtime = runtime.clone();
        let packed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&packed);
        let make = move || {
            let packer = Packer { runtime, request, encoder, sender: &sender, packed: &count };
            if let Err(error) = packer.run() {
                // A receiver that is gone no longer wants to know.
                let _ = sender.send(Err(error));
            }
        };
        thread::Builder::new().name("input".to_owned()).spawn(make).expect("the system starts a thread");
        Self { updates, packed, taken: 0, late: 0, waited: Duration::ZERO }
    }

    /// The next update; blocks until it is packed. Call it as often as there are updates.
    pub fn next_update(&mut self) -> Result<Update, InputError> {
        let update = self.updates.try_recv().or_else(|error| {
            if error == TryRecvError::Disconnected {
                return Ok(Err(InputError::Stopped));
            }
            self.late += u64::from(self.taken > 0);
            let began = Instant::now();
            let update = self.updates.recv();
            self.waited += began.elapsed();
            update
        });
        self.taken += 1;
        update.unwrap_or(Err(InputError::Stopped))
    }

    /// The next update if it is packed already; `None` where it would have to be waited for, or where there is none.
    pub fn packed_update(&mut self) -> Option<Result<Update, InputError>> {
        let update = self.updates.try_recv().ok()?;
        self.taken += 1;
        Some(update)
    }

    /// Updates that are packed and wait to be taken.
    pub fn ready(&self) -> usize {
        self.packed.load(Ordering::Relaxed).saturating_sub(self.taken)
    }

    /// How many updates after the first were not ready when they were asked for.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// How long [`Self::next_update`] has blocked so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

struct Packer<'a> {
    runtime: Handle,
    request: InputRequest,
    encoder: Arc<TextEncoder>,
    sender: &'a SyncSender<Result<Update, InputError>>,
    packed: &'a AtomicUsize,
}

impl Packer<'_> {
    fn run(self) -> Result<(), InputError> {
        let mut position = self.request.position.clone();
        let (mut made, mut bytes_before) = (0, 0);
        while made < self.request.updates {
            let mut reader = RowReader::start(&self.runtime, self.read_from(&position), self.request.access.clone());
            loop {
                let Some(mut update) = self.pack(&mut reader, &position)? else { return Err(self.short(&position)) };
                update.consumed.cost.bytes_read += bytes_before;
                position.clone_from(&update.consumed.position);
                let (bytes, ended) = (update.consumed.cost.bytes_read, update.consumed.finished_epoch.is_some());
                made += 1;
                self.packed.fetch_add(1, Ordering::Relaxed);
                if self.sender.send(Ok(update)).is_err() || made == self.request.updates {
                    return Ok(());
                }
                if ended {
                    bytes_before = bytes;
                    break;
                }
            }
        }
        Ok(())
    }

    fn read_from(&self, position: &Position) -> ReadRequest {
        let Position { epoch, cursor, groups, .. } = position.clone();
        ReadRequest { epoch, cursor, groups, ..self.request.read.clone() }
    }

    fn short(&self, position: &Position) -> InputError {
        let planned = self.request.read.manifest.rows;
        InputError::Rows { epoch: position.epoch, planned, found: position.cursor }
    }

    /// The next update's rows, or `None` when the reader is at its end.
    fn pack(&self, reader: &mut RowReader, before: &Position) -> Result<Option<Update>, InputError> {
        let planned = self.request.read.manifest.rows;
        let wanted = (self.request.shape.rows() as u64).min(planned.saturating_sub(before.cursor));
        let mut examples = Vec::new();
        let mut chain = before.chain;
        while (examples.len() as u64) < wanted {
            let Some(row) = reader.next() else { break };
            let row = row?;
            chain = chain_next(&chain, &row.digest());
            examples.push(self.encoder.example(&row)?);
        }
        if examples.is_empty() {
            return Ok(None);
        }
        let (rows, tokens) = (examples.len() as u64, examples.iter().map(|row| row.tokens.ids.len() as u64).sum());
        let cursor = before.cursor + rows;
        let ended = cursor == planned;
        if ended && reader.next().transpose()?.is_some() {
            return Err(InputError::Rows { epoch: before.epoch, planned, found: cursor + 1 });
        }
        let groups = reader.groups();
        let position = if ended {
            Position { epoch: before.epoch + 1, cursor: 0, chain: chain_start(), groups }
        } else {
            Position { epoch: before.epoch, cursor, chain, groups }
        };
        let cost = InputCost { bytes_read: reader.bytes_read(), core_seconds: thread_seconds() };
        let lanes = self.request.shape.lanes(&examples);
        let consumed = Consumed { rows, tokens, position, finished_epoch: ended.then_some(chain), cost };
        Ok(Some(Update { lanes, consumed }))
    }
}

fn chain_start() -> Digest {
    Digest::from_bytes([0; 32])
}

fn chain_next(chain: &Digest, row: &Digest) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(chain.bytes());
    hasher.update(row.bytes());
    hasher.finish()
}
