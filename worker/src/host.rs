//! What a stage's controller thread stands on: device threads, blobs, base models, and the way to the session.
//!
//! A stage may be abandoned at any time (its lease was fenced). Then nothing more of it may reach the coordinator, and
//! it must stop at once: every call of the host unwinds the controller thread, silently and up to [`run`]. The same
//! way a broken device task leaves the driver, with its failure.

use std::{
    cell::Cell,
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use graftwork_collective::{Aborter, Backend, CollectiveError, FormRequest, Group, form};
use graftwork_engine::{Device, Shelves, Trunk};
use graftwork_proto::{Formation, traced};
use graftwork_shared::{
    assignment::{Assignment, Evaluation, Failure, Holdings, Usage},
    digest::Digest,
    event::StepReport,
    id::LeaseId,
    trace::TraceContext,
    upload::UploadedFile,
};
use graftwork_store::Fetched;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    blobs::Blobs,
    computer::peak_memory_bytes,
    meeting::{Meeting, Place},
    meters::{Meters, Update},
    peak::Stages,
    pool::{Pool, Turn, failure_of, panic_message, thread_cpu_time},
    session::StageEvent,
    stage::{self, StageEnd},
    trunks::{self, Trunks},
    waiting::Waiting,
};

/// What all stages of a process share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) pool: Arc<Pool>,
    pub(crate) trunks: Arc<Trunks>,
    pub(crate) blobs: Blobs,
    pub(crate) cache_folder: PathBuf,
    pub(crate) events: mpsc::Sender<(LeaseId, StageEvent)>,
    pub(crate) runtime: Handle,
    pub(crate) rows: Handle,
    pub(crate) device: Device,
    pub(crate) place: Place,
    pub(crate) meters: Meters,
    pub(crate) report_every: Duration,
    /// Training rows that were read, by the footer of their first file.
    pub(crate) rows_read: Arc<Mutex<BTreeSet<Digest>>>,
    pub(crate) stages: Stages,
}

impl Shared {
    /// What need not be loaded again; `None` at a moment in which that changes.
    pub(crate) fn holdings(&self) -> Option<Holdings> {
        let rows = self.rows_read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(Holdings { base_models: self.trunks.opened()?, rows })
    }
}

/// The session's hand on one stage.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    interrupted: CancellationToken,
    abandoned: CancellationToken,
    accepted: watch::Sender<Option<u64>>,
    formation: watch::Sender<Formation>,
    group: Arc<Mutex<Entered>>,
    waiting: Waiting,
    /// What is done for the stage stands below this.
    trace: TraceContext,
}

/// The group that the stage is in, or forms.
#[derive(Debug, Default)]
struct Entered {
    epoch: u64,
    /// Ends its waits.
    aborter: Aborter,
    /// It is not formed yet.
    forms: bool,
    /// The highest epoch that was told to begin at once.
    at_once: u64,
}

impl Control {
    /// A stage that may go on.
    pub(crate) fn new(trace: TraceContext) -> Self {
        Self {
            trace,
            interrupted: CancellationToken::new(),
            abandoned: CancellationToken::new(),
            accepted: watch::Sender::new(None),
            formation: watch::Sender::new(Formation::ALONE),
            group: Arc::default(),
            waiting: Waiting::default(),
        }
    }

    /// Asks the stage to checkpoint and stop.
    pub(crate) fn interrupt(&self) {
        self.interrupted.cancel();
        let group = self.group();
        if group.forms {
            group.aborter.abort();
        }
    }

    /// Tells of the stage's next formation.
    pub(crate) fn form(&self, formation: Formation) {
        let (epoch, at_once) = (formation.epoch, formation.at_once);
        self.formation.send_if_modified(|known| {
            let newer = epoch > known.epoch;
            if newer {
                *known = formation;
            }
            newer
        });
        let mut group = self.group();
        if at_once {
            group.at_once = group.at_once.max(epoch);
        }
        if group.epoch < group.at_once {
            group.aborter.abort();
        }
    }

    /// The handle for a group that is about to be formed: aborted already if its time is over.
    fn enter(&self, epoch: u64) -> Aborter {
        let aborter = Aborter::new();
        let mut group = self.group();
        *group = Entered { epoch, aborter: aborter.clone(), forms: true, at_once: group.at_once };
        if self.abandoned.is_cancelled() || self.interrupted.is_cancelled() || group.at_once > epoch {
            aborter.abort();
        }
        aborter
    }

    fn group(&self) -> MutexGuard<'_, Entered> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoch and the updates done of a stage that computes nothing, and has waited for its fellows for too long.
    pub(crate) fn waits(&self) -> Option<(u64, u64)> {
        self.waiting.too_long(Instant::now())
    }

    /// Drops the stage's work at once.
    pub(crate) fn abandon(&self) {
        self.abandoned.cancel();
        self.group().aborter.abort();
    }

    /// Tells that the checkpoint of this step was accepted.
    pub(crate) fn accept(&self, step: u64) {
        self.accepted.send_replace(Some(step));
    }
}

/// Members finish an update, or the scoring of a split, before they come, and compute as long as they need within an
/// operation: waiting for them is never a fault. This bounds what nobody looks at any more. One that is lost, and members
/// that wait for each other in vain, end the wait much earlier: the coordinator then tells of the next formation.
const LONGEST: Duration = Duration::from_hours(24);

/// Payload that unwinds the controller thread of an abandoned stage.
struct Abandoned;

/// The host of one stage.
struct StageHost<'a> {
    shared: Shared,
    control: Control,
    lease: LeaseId,
    assignment: &'a Assignment,
    began: Instant,
    /// What the stage last said that it cost, without CPU time of this host's threads.
    cost: Cell<Usage>,
    /// CPU time of device threads, in nanoseconds.
    device_cpu: AtomicU64,
    /// Keeps the base model open that the stage uses.
    used: Cell<Option<Arc<()>>>,
}

/// Runs a stage to its end on the calling thread and tells the session how it ended; an abandoned one ends in silence.
pub(crate) fn run(shared: &Shared, control: &Control, lease: LeaseId, assignment: &Assignment, joining: bool) {
    // Whoever joins others has fewer lanes than were planned, and what a GPU's worker takes of the host nobody predicts.
    let as_planned = !joining && shared.device == Device::Cpu;
    let stage = (assignment.job.clone(), assignment.stage.clone());
    let running = shared.stages.begin(stage, assignment.recipe.base_model, as_planned);
    let host = StageHost {
        shared: shared.clone(),
        control: control.clone(),
        lease,
        assignment,
        began: Instant::now(),
        cost: Cell::default(),
        device_cpu: AtomicU64::new(0),
        used: Cell::default(),
    };
    let mut span = graftwork_telemetry::span_at("train", control.trace.child("train"), Some(control.trace))
        .with("stage", &assignment.stage)
        .with("attempt", assignment.attempt);
    tracing::info!(joining, "the stage begins");
    let event = match catch_unwind(AssertUnwindSafe(|| stage::run_stage(assignment, joining, &host))) {
        Ok(Ok(StageEnd::Finished(mut result))) => {
            host.cost.set(result.usage);
            result.usage = host.spent();
            result.peak = running.peak();
            StageEvent::Finished(Box::new(result))
        }
        Ok(Ok(StageEnd::Paused { scores, finished })) => StageEvent::Paused(Box::new(scores), finished),
        Ok(Ok(StageEnd::Interrupted)) => StageEvent::Stopped,
        Ok(Err(failure)) => StageEvent::Failed(failure),
        Err(payload) => match payload.downcast::<Failure>() {
            Ok(failure) => StageEvent::Failed(*failure),
            Err(payload) if payload.is::<Abandoned>() => {
                span.fail("the lease was lost");
                return;
            }
            Err(payload) => StageEvent::Failed(failure_of(&panic_message(payload.as_ref()))),
        },
    };
    if let StageEvent::Failed(failure) = &event {
        span.fail(&failure.message);
    }
    drop(span);
    let how = match &event {
        StageEvent::Finished(_) => "finished",
        StageEvent::Paused(..) => "paused",
        StageEvent::Failed(_) => "failed",
        _ => "stopped",
    };
    tracing::info!(how, "the stage ends");
    shared.meters.ended(matches!(event, StageEvent::Failed(_)));
    if !control.abandoned.is_cancelled() {
        // An attempt without a result cost something too. The session is gone only when the process ends.
        let spent = (!matches!(event, StageEvent::Finished(_))).then(|| StageEvent::Spent(host.spent()));
        for event in spent.into_iter().chain([event]) {
            drop(shared.events.blocking_send((lease, event)));
        }
    }
}

impl StageHost<'_> {
    /// Waits for an async piece of work, unless the stage is abandoned meanwhile.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.wait_below(self.control.trace.child("train"), work)
    }

    /// The same; requests of the work stand there in the trace.
    fn wait_below<T>(&self, trace: TraceContext, work: impl Future<Output = T>) -> T {
        let value = self.shared.runtime.block_on(traced(trace, async {
            tokio::select! {
                biased;
                () = self.control.abandoned.cancelled() => None,
                value = work => Some(value),
            }
        }));
        value.unwrap_or_else(|| resume_unwind(Box::new(Abandoned)))
    }

    /// What this attempt has cost so far; the stage's own part as it last said.
    fn spent(&self) -> Usage {
        let cost = self.cost.get();
        let device = Duration::from_nanos(self.device_cpu.load(Ordering::Relaxed));
        Usage {
            core_seconds: cost.core_seconds + (device + thread_cpu_time()).as_secs_f64(),
            wall_seconds: self.began.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_memory_bytes(),
            ..cost
        }
    }

    fn leave_if_abandoned(&self) {
        if self.control.abandoned.is_cancelled() {
            resume_unwind(Box::new(Abandoned));
        }
    }

    /// Passes on what must arrive.
    fn tell(&self, event: StageEvent) {
        // The session is gone only when the process ends.
        drop(self.wait(self.shared.events.send((self.lease, event))));
    }

    /// Passes on what is for eyes alone; it is lost when the session is busy.
    fn mention(&self, event: StageEvent) {
        self.leave_if_abandoned();
        drop(self.shared.events.try_send((self.lease, event)));
    }
}

/// Bytes of gradients that lanes of one stage have in memory before they are added up, where each thread has a lane.
const GRADIENT_BYTES: usize = 32 << 20;

fn lanes_at_once(gradients: usize, threads: usize) -> usize {
    (GRADIENT_BYTES / (size_of::<f32>() * gradients.max(1))).max(threads)
}

impl stage::Host for StageHost<'_> {
    fn run_while<T: Send + 'static>(
        &self,
        turn: Turn,
        tasks: Vec<Box<dyn FnOnce() -> T + Send>>,
        meanwhile: impl FnOnce(),
    ) -> Vec<T> {
        self.leave_if_abandoned();
        match self.shared.pool.run_while(turn, tasks, meanwhile) {
            Ok(ran) => {
                let nanoseconds = u64::try_from(ran.cpu.as_nanos()).unwrap_or(u64::MAX);
                self.device_cpu.fetch_add(nanoseconds, Ordering::Relaxed);
                ran.values
            }
            Err(failed) => resume_unwind(Box::new(failure_of(&failed.message))),
        }
    }

    /// An accelerator is one for all device threads.
    fn lanes_together(&self) -> bool {
        self.shared.device != Device::Cpu
    }

    fn lanes_at_once(&self, gradients: usize) -> usize {
        lanes_at_once(gradients, self.shared.pool.threads())
    }

    fn report_every(&self) -> Duration {
        self.shared.report_every
    }

    fn get_blob(&self, digest: Digest) -> anyhow::Result<Vec<u8>> {
        Ok(self.wait(self.shared.blobs.get(digest))?)
    }

    fn uploaded_file(&self, file: UploadedFile) -> anyhow::Result<Fetched> {
        let Shared { blobs, cache_folder, .. } = &self.shared;
        Ok(self.wait(graftwork_store::fetch_uploaded_file(file, trunks::cache(cache_folder), blobs))?)
    }

    fn put_blob(&self, bytes: Vec<u8>) -> anyhow::Result<Digest> {
        Ok(self.wait(self.shared.blobs.put(&bytes))?)
    }

    fn on_checkpoint(&self, step: u64, blob: Digest) -> anyhow::Result<()> {
        let mut accepted = self.control.accepted.subscribe();
        let event = (self.lease, StageEvent::Uploaded(step, blob));
        self.wait(self.shared.events.send(event)).context("the session ended")?;
        let span = graftwork_telemetry::span("checkpoint", self.control.trace.child("train")).with("step", step);
        let waited = self.wait(accepted.wait_for(|accepted| accepted.is_some_and(|accepted| accepted >= step)));
        drop(span);
        if waited.is_err() {
            bail!("the session ended before the checkpoint of step {step} was accepted");
        }
        self.shared.meters.checkpoint();
        Ok(())
    }

    fn on_step(&self, report: StepReport) {
        let rows = self.assignment.train.files.first().map(|file| file.content.footer);
        let mut read = self.shared.rows_read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.len() < Holdings::MOST {
            read.extend(rows);
        }
        drop(read);
        self.mention(StageEvent::Stepped(report));
    }

    fn on_update(&self, update: Update) {
        self.shared.meters.update(update);
    }

    fn on_evaluation(&self, evaluation: &Evaluation) {
        self.mention(StageEvent::Evaluated(evaluation.clone()));
    }

    fn on_cost(&self, cost: Usage) {
        self.cost.set(cost);
        self.mention(StageEvent::Spent(self.spent()));
    }

    fn interrupted(&self) -> bool {
        self.leave_if_abandoned();
        self.control.interrupted.is_cancelled()
    }

    fn formation(&self) -> Formation {
        self.control.formation.borrow().clone()
    }

    fn next_formation(&self, after: u64) -> Option<Formation> {
        let mut formation = self.control.formation.subscribe();
        self.wait(async {
            tokio::select! {
                () = self.control.interrupted.cancelled() => None,
                // The sender lives in this host.
                told = formation.wait_for(|formation| formation.epoch > after) => told.ok().map(|told| told.clone()),
            }
        })
    }

    fn form(&self, formation: Formation) -> Result<Box<dyn Group>, CollectiveError> {
        self.leave_if_abandoned();
        let backend = match self.shared.device {
            Device::Cuda(device) => Backend::Nccl { device: u32::try_from(device).unwrap_or(0), library: None },
            _ => self.shared.place.backend(),
        };
        let request = FormRequest {
            backend,
            form_deadline: LONGEST,
            deadline: LONGEST,
            aborter: self.control.enter(formation.epoch),
            ..FormRequest::new(
                self.lease.to_string(),
                formation.epoch,
                formation.rank as usize,
                formation.ranks as usize,
            )
        };
        let meeting = Meeting::new(&self.shared.place, self.shared.runtime.clone(), self.lease, formation.epoch);
        let formed = form(request, Arc::new(meeting));
        self.control.group().forms = false;
        self.leave_if_abandoned();
        formed
    }

    fn waiting(&self) -> Waiting {
        self.control.waiting.clone()
    }

    fn on_prepared(&self) {
        self.tell(StageEvent::Prepared);
    }

    fn on_broken(&self, epoch: u64, reason: String) {
        self.tell(StageEvent::Broken(epoch, reason));
    }

    fn trunk(&self, location: &str, digest: Digest) -> anyhow::Result<Trunk> {
        self.leave_if_abandoned();
        let credentials = self.assignment.base_model_credentials.as_deref();
        let (trunk, used) = self.shared.trunks.get(&self.shared.runtime, location, credentials, digest)?;
        self.used.set(Some(used));
        Ok(trunk)
    }

    fn shelves(&self) -> Option<Arc<Shelves>> {
        self.shared.trunks.shelves()
    }

    fn rows(&self) -> &Handle {
        &self.shared.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_gradients_are_added_soon_and_every_thread_has_a_lane() {
        // An adapter of MiniLM, a fusion of it, and one of a BERT of 12 layers.
        assert_eq!([340_000, 2_700_000, 21_000_000].map(|numbers| lanes_at_once(numbers, 2)), [24, 3, 2]);
        assert_eq!((lanes_at_once(21_000_000, 16), lanes_at_once(0, 2)), (16, 1 << 23));
    }
}
