//! What the driver does once it may: messages to workers, publications, stories, blobs that go.
//!
//! Nothing here waits. A worker that does not read its messages loses its session, so that a slow or hostile peer
//! holds up nobody.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use graftwork_driver::{Gone, Output};
use graftwork_proto::{CoordinatorEnvelope, CoordinatorMessage, Formation, v1};
use graftwork_scheduler::{Command, Fact, StageKey};
use graftwork_shared::{
    assignment::{Assignment, Blame, Failure},
    digest::Digest,
    event::{Event as Told, EventKind},
    id::{JobId, LeaseId, Name, WorkerId},
    recipe::NumericClass,
};
use tokio::sync::{mpsc::error::TrySendError, oneshot};
use tonic::Status;

use super::{
    Publication, StageOfPlan,
    answer::result_blobs,
    driver::{Driver, Reply, Session},
    input::{Input, Welcome},
    pins,
    story::Story,
    trail,
};

/// How long the hub may take to say whether it has an earlier result.
const REUSE_WAIT: Duration = Duration::from_secs(30);

impl Driver {
    pub(super) fn perform(&mut self, output: Output<Reply>) {
        match output {
            Output::Write(facts) => {
                self.forget_plans(&facts);
                self.trail.follow(&facts, self.core.machine(), self.clock.now_ms());
                self.journal.append(facts, self.core.machine().state());
            }
            Output::Reply(reply) => reply(),
            Output::Unpin(blob) => self.blobs.unpin(blob),
            Output::Meet(lease, epoch) => self.meetings.send_modify(|epochs| {
                match epoch {
                    Some(epoch) => epochs.insert(lease, epoch),
                    None => epochs.remove(&lease),
                };
            }),
            Output::End(worker) => drop(self.sessions.remove(&worker)),
            Output::TurnAway(session) => drop(self.joining.remove(&session)),
            Output::Command(command) => self.perform_command(command),
        }
    }

    fn perform_command(&mut self, command: Command) {
        match command {
            Command::Welcome { session, worker } => self.welcome(session, worker),
            Command::Assign { worker, lease, assignment, joining } => {
                let trace = self.lease_trace(&assignment, lease);
                self.send(worker, trace, CoordinatorMessage::Assign { lease, assignment, joining });
            }
            Command::Form { worker, lease, epoch, rank, ranks, at_once, checkpointed, shares } => {
                let formation = Formation { epoch, rank, ranks, at_once, checkpointed, shares };
                self.send(worker, self.trace_of(worker, lease), CoordinatorMessage::Form(lease, formation));
            }
            Command::Release { worker, lease, reason } => {
                self.send(worker, self.trace_of(worker, lease), CoordinatorMessage::Release(lease, reason));
            }
            Command::Accept { worker, lease, step } => {
                self.send(worker, self.trace_of(worker, lease), CoordinatorMessage::Accepted(lease, step));
            }
            Command::Fence { worker, lease } => self.fence(worker, lease),
            Command::Drain { worker, reason } => self.send(worker, String::new(), CoordinatorMessage::Drain(reason)),
            Command::Disconnect { worker, reason } => {
                if let Some(session) = self.sessions.remove(&worker) {
                    // A full queue says nothing more; the stream ends either way.
                    let _ = session.outgoing.try_send(Err(Status::deadline_exceeded(reason)));
                }
            }
            Command::LookForReuse { key, classes } => self.look_for_reuse(key, classes),
            Command::Publish { key } => self.publish(key),
            Command::Discard { blob } => self.discard(blob),
            Command::Tell { job, stage, kind } => self.tell(job, stage, kind),
        }
    }

    /// What the worker does stands below this.
    fn lease_trace(&self, assignment: &Assignment, lease: LeaseId) -> String {
        let plan = self.machine().plan(&assignment.job);
        plan.map(|plan| trail::lease_context(plan, &assignment.stage, lease).to_string()).unwrap_or_default()
    }

    /// The same of a lease that a worker holds already, or held until its work was accepted.
    fn trace_of(&self, worker: WorkerId, lease: LeaseId) -> String {
        let key = self.machine().holds(worker, lease);
        let plan = key.and_then(|key| Some((self.machine().plan(&key.job)?, &key.stage)));
        let live = plan.map(|(plan, stage)| trail::lease_context(plan, stage, lease).to_string());
        live.or_else(|| self.trail.accepted(lease).map(ToString::to_string)).unwrap_or_default()
    }

    fn welcome(&mut self, session: u64, worker: WorkerId) {
        let Some(join) = self.joining.remove(&session) else { return };
        let (keep, open) = oneshot::channel();
        let term = self.machine().state().term();
        if join.welcome.send(Welcome { worker, session, term, open }).is_err() {
            return self.core.on_unsaid((worker, session), Gone::Link("it left before it was welcomed".to_owned()));
        }
        self.sessions.insert(worker, Session { number: session, outgoing: join.outgoing, _open: keep });
        let heartbeat_ms = self.heartbeat_ms;
        self.send(worker, String::new(), CoordinatorMessage::Welcome { worker, heartbeat_ms });
    }

    fn fence(&mut self, worker: WorkerId, lease: LeaseId) {
        tracing::debug!(%worker, %lease, "fenced: the lease is not the live one");
        self.send(worker, String::new(), CoordinatorMessage::Fenced(lease));
    }

    pub(super) fn send(&mut self, worker: WorkerId, trace: String, message: CoordinatorMessage) {
        let Some(session) = self.sessions.get(&worker) else { return };
        let number = session.number;
        let envelope = CoordinatorEnvelope { term: self.machine().state().term(), trace, message };
        let gone = match session.outgoing.try_send(Ok(v1::CoordinatorMessage::from(envelope))) {
            Ok(()) => return,
            Err(TrySendError::Closed(_)) => Gone::Link("its connection is closed".to_owned()),
            Err(TrySendError::Full(_)) => Gone::Wrong("it does not read its messages".to_owned()),
        };
        self.core.on_unsaid((worker, number), gone);
    }

    fn discard(&mut self, blob: Digest) {
        if let Err(error) = self.blobs.discard(blob) {
            // It takes room until the next start sweeps it away; nothing depends on its going.
            tracing::warn!(%error, "a blob that is no longer needed cannot be removed");
        }
    }

    /// Facts that change a plan, or after which nobody asks for it.
    fn forget_plans(&mut self, facts: &[Fact]) {
        for fact in facts {
            match fact {
                Fact::JobReopened { plan, .. } => drop(self.plans.remove(&plan.id())),
                Fact::ResourcesChanged { job, .. }
                | Fact::TrialChosen { job, .. }
                | Fact::JobEnded { job, .. }
                | Fact::JobForgotten { job, .. } => {
                    self.plans.remove(job);
                }
                _ => {}
            }
        }
    }

    pub(super) fn tell(&mut self, job: JobId, stage: Option<Name>, kind: EventKind) {
        if let EventKind::Stuck { refusals } = &kind {
            let reasons = refusals.iter().map(|(stage, refusal)| format!("{stage}: {refusal}"));
            tracing::info!(%job, reasons = reasons.collect::<Vec<_>>().join("; "), "no worker here can take it up");
        }
        let event = Told { job: job.clone(), at_ms: self.clock.now_ms(), stage, kind };
        self.stories.entry(job).or_insert_with(Story::new).tell(event);
    }

    /// Stages share one copy of their job's plan.
    fn stage_of_plan(&mut self, key: &StageKey) -> Option<StageOfPlan> {
        let plan = match self.plans.get(&key.job) {
            Some(plan) => Arc::clone(plan),
            None => {
                let plan = Arc::new(self.machine().plan(&key.job)?.clone());
                self.plans.insert(key.job.clone(), Arc::clone(&plan));
                plan
            }
        };
        plan.stage(&key.stage)?;
        Some(StageOfPlan { plan, name: key.stage.clone(), blobs: self.blobs.clone() })
    }

    fn look_for_reuse(&mut self, key: StageKey, classes: Vec<NumericClass>) {
        let (Some(mut stage), sender) = (self.stage_of_plan(&key), self.sender.clone()) else { return };
        stage.blobs = pins::for_request(&self.blobs, sender.clone());
        let pinned = stage.blobs.clone();
        let publisher = Arc::clone(&self.publisher);
        tokio::spawn(async move {
            let asked =
                tokio::spawn(async move { tokio::time::timeout(REUSE_WAIT, publisher.reusable(stage, classes)).await });
            // A hub that is slow, or code that panics, costs a training and not the job.
            let result = match asked.await {
                Ok(Ok(result)) => result.map(Box::new),
                Ok(Err(_)) => {
                    tracing::warn!(stage = %key, "the hub did not answer in {REUSE_WAIT:?}; the stage is trained");
                    None
                }
                Err(error) => {
                    tracing::error!(stage = %key, %error, "looking for an earlier result failed; the stage is trained");
                    None
                }
            };
            if let Some(sender) = sender.upgrade() {
                let _ = sender.send(Input::Reusable(key, result)).await;
            }
            // Until here, so that what was found outlives the way to the driver.
            drop(pinned);
        });
    }

    fn publish(&mut self, key: StageKey) {
        let (Some(stage), Some(result)) = (self.stage_of_plan(&key), self.machine().result(&key).cloned()) else {
            return;
        };
        let needed = |name: &Name| {
            let key = StageKey { job: key.job.clone(), stage: name.clone() };
            Some((name.clone(), self.machine().result(&key)?.clone()))
        };
        let needed: BTreeMap<_, _> = stage.stage().needs.iter().filter_map(needed).collect();
        let sweep = self.machine().sweep_record(&key);
        let (publisher, sender, blobs) = (Arc::clone(&self.publisher), self.sender.clone(), self.blobs.clone());
        let parent = trail::stage_context(&stage.plan, &key.stage);
        tokio::spawn(async move {
            let mut span = graftwork_telemetry::span("publish", parent).with("stage", &key.stage);
            let publication = Publication { stage, result, needed, sweep };
            let read: Vec<Digest> = result_blobs(&publication.result).chain(publication.fused_weights()).collect();
            let published = tokio::spawn(async move { publisher.publish(publication).await }).await;
            let ended = published.unwrap_or_else(|error| {
                Err(Failure { blame: Blame::Machine, message: format!("publishing ended unexpectedly: {error}") })
            });
            if let Err(failure) = &ended {
                span.fail(&failure.message);
            }
            drop(span);
            if let Some(sender) = sender.upgrade() {
                // Reading sets a damaged blob aside, so what is lost is not here now.
                for blob in read.into_iter().filter(|blob| ended.is_err() && !blobs.has(*blob)) {
                    let _ = sender.send(Input::BlobLost(blob)).await;
                }
                let _ = sender.send(Input::Published(key, ended)).await;
            }
        });
    }
}
