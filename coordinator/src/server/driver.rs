//! The loop that owns the scheduler: `loop { input = select().await; apply(input) }`.
//!
//! Only the select waits. What waits for which fact is `graftwork-driver`'s, which the simulation runs too; here its
//! outputs are carried out, and what came of them goes back in. What waits for others (the hub) is spawned and comes
//! back as an input. Domain state has no mutex: it is this loop's alone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use graftwork_driver::Core;
use graftwork_scheduler::{Plan, Scheduler};
use graftwork_shared::id::{JobId, WorkerId};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    BlobError, BlobStore, Publisher, ServerError,
    input::{Input, Join, Outgoing},
    journal::{Journal, JournalError},
    meet::Epochs,
    reasons::{EVERY_MS, Reasons},
    story::Story,
    trail::Trail,
};

/// Milliseconds since 1970 that never go back while the process lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
    start_ms: u64,
}

impl Clock {
    pub(super) fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { start: Instant::now(), start_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.start_ms + u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn start_ms(&self) -> u64 {
        self.start_ms
    }
}

/// A worker's session as the driver holds it; dropping it ends the session.
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) outgoing: Outgoing,
    pub(super) _open: oneshot::Sender<()>,
}

/// An answer that waits for its facts.
pub(super) type Reply = Box<dyn FnOnce() + Send>;

/// See the module's documentation.
pub(super) struct Driver {
    pub(super) core: Core<Reply>,
    pub(super) journal: Journal,
    pub(super) blobs: BlobStore,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) clock: Clock,
    pub(super) heartbeat_ms: u64,
    /// For what runs beside the loop.
    pub(super) sender: mpsc::WeakSender<Input>,
    pub(super) sessions: HashMap<WorkerId, Session>,
    pub(super) joining: HashMap<u64, Box<Join>>,
    pub(super) joined: u64,
    pub(super) stories: BTreeMap<JobId, Story>,
    /// Plans as the hub is asked about them.
    pub(super) plans: HashMap<JobId, Arc<Plan>>,
    /// Which groups may meet.
    pub(super) meetings: watch::Sender<Epochs>,
    /// What is told of facts.
    pub(super) trail: Trail,
    /// What is told of reasons.
    pub(super) reasons: Reasons,
    /// Why the object store is used no more.
    pub(super) unfit: Option<BlobError>,
    /// When all facts were last on disk.
    pub(super) caught_up_ms: u64,
}

impl Driver {
    /// Runs until it is stopped or cannot go on; the state folder is free when it returns.
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> Result<(), ServerError> {
        let ended = self.lead(&mut inputs).await;
        let journal = self.journal;
        tokio::task::spawn_blocking(move || journal.close()).await.map_err(|_| ServerError::Ended("journal"))?;
        ended
    }

    async fn lead(&mut self, inputs: &mut mpsc::Receiver<Input>) -> Result<(), ServerError> {
        loop {
            self.act()?;
            self.reasons.look(self.core.machine(), self.clock.now_ms());
            if let Some(unfit) = self.unfit.take() {
                return Err(unfit.into());
            }
            let now_ms = self.clock.now_ms();
            if self.core.has_stopped(now_ms) {
                return Ok(());
            }
            let deadline_ms = self.core.next_deadline();
            let wait =
                Duration::from_millis(deadline_ms.map_or(EVERY_MS, |at| at.saturating_sub(now_ms).min(EVERY_MS)));
            let has_room = self.core.has_room();
            tokio::select! {
                biased;
                changed = self.journal.durable.changed() => {
                    if changed.is_err() && self.journal.durable.borrow().failure.is_none() {
                        return Err(ServerError::Ended("journal"));
                    }
                }
                input = inputs.recv(), if has_room => match input {
                    Some(input) => self.on_input(input),
                    None => return Ok(()),
                },
                () = tokio::time::sleep(wait), if has_room => self.core.tick(self.clock.now_ms()),
            }
        }
    }

    pub(super) fn machine(&self) -> &Scheduler {
        self.core.machine()
    }

    /// Carries out what may be.
    fn act(&mut self) -> Result<(), ServerError> {
        let durable = self.journal.durable.borrow_and_update().clone();
        self.core.durable(durable.number);
        if self.journal.waiting() == 0 {
            self.caught_up_ms = self.clock.now_ms();
        }
        while let Some(output) = self.core.poll() {
            self.perform(output);
        }
        match durable.failure {
            Some(failure) => Err(ServerError::Journal(JournalError::Stopped(failure))),
            None => Ok(()),
        }
    }
}
