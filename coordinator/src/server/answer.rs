//! How the driver takes inputs: each becomes an event for the machine, or an answer drawn from it.

use graftwork_proto::WorkerMessage;
use graftwork_scheduler::{Event, Scheduler, StageKey, Standing, WorkerInfo};
use graftwork_shared::{
    VERSION,
    event::{Event as Told, EventKind},
    id::{JobId, LeaseId, WorkerId},
    view::{JobView, StageView},
};

use super::{
    driver::Driver,
    input::{CoordinatorView, Gone, Input, Join, Released, Submission, Watched},
    story::Story,
};

/// Jobs whose stories are kept after their end.
const ENDED_STORIES: usize = 64;

impl Driver {
    pub(super) fn on_input(&mut self, input: Input) {
        match input {
            Input::Standing(job, to) => {
                let answer = (self.machine.standing(&job), releases(&self.machine, &job));
                self.reply(to, answer);
            }
            Input::Submit(submission) => self.on_submit(*submission),
            Input::View(job, to) => {
                let jobs = job.map_or_else(|| self.machine.jobs(), |job| vec![job]);
                let views = jobs.iter().filter_map(|job| self.view(job)).collect();
                self.reply(to, views);
            }
            Input::Watch(job, to) => {
                let watched = self.watch(&job);
                self.reply(to, watched);
            }
            Input::Explain(job, to) => {
                let explanation = self.machine.explain(&job);
                self.reply(to, explanation);
            }
            Input::Cancel(job, to) => {
                let standing = self.machine.standing(&job);
                self.apply(Event::Cancel { job, reason: "cancelled by the user".to_owned() }, Vec::new());
                self.reply(to, standing);
            }
            Input::Coordinator(to) => {
                let view = self.coordinator();
                self.reply(to, view);
            }
            Input::Join(join) => self.on_join(join),
            Input::Resources(job, resources, to) => {
                self.apply(Event::Resources { job, resources }, Vec::new());
                self.reply(to, ());
            }
            // What comes late from a session that was replaced, or ended, is of no worker any more.
            Input::Worker(worker, session, message) if self.is_open(worker, session) => {
                self.on_worker(worker, *message);
            }
            Input::Left(worker, session, gone) if self.is_open(worker, session) => {
                self.sessions.remove(&worker);
                let event = match gone {
                    Gone::Link(reason) => Event::LinkLost { worker, reason },
                    Gone::Wrong(reason) => Event::WorkerLeft { worker, reason },
                };
                self.apply(event, Vec::new());
            }
            Input::Worker(..) | Input::Left(..) => {}
            Input::Put(key, blob) => self.on_put(key, blob),
            Input::Settle(blobs) => self.settle(blobs),
            Input::BlobLost(blob) => {
                // It may have been put again since.
                if !self.blobs.has(blob) {
                    self.apply(Event::BlobLost { blob }, Vec::new());
                }
            }
            Input::Reusable(key, result) => {
                self.apply(Event::Reusable { key, result }, Vec::new());
            }
            Input::Published(key, Ok(release)) => {
                self.apply(Event::Published { key, release }, Vec::new());
            }
            Input::Published(key, Err(failure)) => {
                self.apply(Event::PublishFailed { key, failure }, Vec::new());
            }
            Input::Stop(reason) => {
                self.stop_at_ms = Some(self.clock.now_ms() + self.stop_ms);
                self.apply(Event::Stop { reason }, Vec::new());
            }
        }
    }

    fn is_open(&self, worker: WorkerId, session: u64) -> bool {
        self.sessions.get(&worker).is_some_and(|open| open.number == session)
    }

    fn on_submit(&mut self, submission: Submission) {
        let Submission { plan, gone, trace, attached } = submission;
        let id = plan.id();
        if self.machine.standing(&id) != Standing::Active {
            let trace = if trace.is_empty() { id.to_string() } else { trace };
            tracing::info!(job = %id, trace, "job submitted");
            self.stories.entry(id).or_insert_with(|| Story::new(String::new())).trace = trace;
            self.forget_old_stories();
        }
        let taken = self.apply(Event::Submitted { plan: Box::new(plan), gone }, Vec::new());
        self.reply(attached, !taken);
    }

    fn forget_old_stories(&mut self) {
        let ended = |job: &JobId| self.machine.standing(job) == Standing::Ended;
        let old: Vec<JobId> = self.machine.jobs().into_iter().filter(ended).skip(ENDED_STORIES).collect();
        self.stories.retain(|job, _| !old.contains(job));
    }

    fn on_join(&mut self, join: Box<Join>) {
        let hello = &join.hello;
        let info = WorkerInfo {
            place: format!("{}:{}", hello.host, hello.pid),
            threads: hello.threads,
            slots: hello.slots,
            memory_bytes: hello.memory_bytes,
            reached_on: hello.reached_on.clone(),
            class: hello.numeric_class.clone(),
            key: hello.key.clone(),
        };
        let leases = hello.leases.clone();
        self.joined += 1;
        let session = self.joined;
        self.joining.insert(session, join);
        self.apply(Event::WorkerJoined { session, info, leases }, Vec::new());
    }

    fn on_worker(&mut self, worker: WorkerId, message: WorkerMessage) {
        match message {
            // The session refuses a second hello.
            WorkerMessage::Hello(_) => {}
            WorkerMessage::Heartbeat(leases) => {
                self.apply(Event::Heartbeat { worker, leases }, Vec::new());
            }
            WorkerMessage::Step(lease, report) => self.on_progress(worker, lease, EventKind::Step(report)),
            WorkerMessage::Evaluated(lease, scores) => self.on_progress(worker, lease, EventKind::Evaluated(scores)),
            WorkerMessage::Checkpoint(lease, step, blob) => {
                let spoken = vec![self.spoken_of(worker, blob)];
                self.apply(Event::Checkpointed { worker, lease, step, blob }, spoken);
            }
            WorkerMessage::Finished(lease, result) => {
                let spoken = result_blobs(&result).map(|blob| self.spoken_of(worker, blob)).collect();
                self.apply(Event::Finished { worker, lease, result: Box::new(result) }, spoken);
            }
            WorkerMessage::Paused(lease, evaluation, finished) => {
                self.apply(Event::Paused { worker, lease, evaluation, finished }, Vec::new());
            }
            WorkerMessage::Failed(lease, failure) => {
                self.apply(Event::Failed { worker, lease, failure }, Vec::new());
            }
            WorkerMessage::Released(lease) => {
                self.apply(Event::Released { worker, lease }, Vec::new());
            }
            WorkerMessage::Spent(lease, usage) => {
                self.apply(Event::Spent { worker, lease, usage }, Vec::new());
            }
            WorkerMessage::Prepared(lease) => {
                self.apply(Event::Prepared { worker, lease }, Vec::new());
            }
            WorkerMessage::Broken(lease, epoch, reason) => {
                self.apply(Event::Broken { worker, lease, epoch, reason }, Vec::new());
            }
        }
    }

    /// Reports are for eyes: told if the lease is live and the worker speaks for its group, and not journalled.
    fn on_progress(&mut self, worker: WorkerId, lease: LeaseId, kind: EventKind) {
        if let Some(StageKey { job, stage }) = self.machine.leads(worker, lease).cloned() {
            self.tell(job, Some(stage), kind);
        }
        self.apply(Event::Progress { worker, lease }, Vec::new());
    }

    fn view(&self, job: &JobId) -> Option<JobView> {
        let mut view = self.machine.view(job)?;
        if let Some(story) = self.stories.get(job) {
            story.draw(&mut view);
        }
        Some(view)
    }

    fn watch(&self, job: &JobId) -> Option<Watched> {
        let view = self.machine.view(job)?;
        let (so_far, to_come) = self.stories.get(job).map(Story::watch).unzip();
        let mut so_far: Vec<Told> = so_far.unwrap_or_default();
        let ended = view.outcome.map(|outcome| Told {
            job: job.clone(),
            at_ms: view.ended_ms.unwrap_or_default(),
            stage: None,
            kind: EventKind::JobFinished { outcome },
        });
        let to_come = to_come.filter(|_| ended.is_none());
        // After a restart, or before its end was told, the end of a job is known while its story lacks it.
        let finished = |event: &Told| matches!(event.kind, EventKind::JobFinished { .. });
        so_far.extend(ended.filter(|_| !so_far.iter().any(finished)));
        Some(Watched { so_far, to_come })
    }

    fn coordinator(&self) -> CoordinatorView {
        CoordinatorView {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            term: self.machine.state().term(),
            started_ms: self.clock.start_ms(),
            stopping: self.stop_at_ms.is_some(),
            workers: self.machine.workers(),
            jobs: self.machine.jobs(),
        }
    }
}

fn releases(machine: &Scheduler, job: &JobId) -> Vec<Released> {
    let stages = machine.view(job).map(|view| view.stages).unwrap_or_default();
    let released = |stage: StageView| {
        let trial = stage.sweep.and_then(|sweep| sweep.chosen);
        Some(Released { stage: stage.name, place: stage.release?, trial })
    };
    stages.into_iter().filter_map(released).collect()
}

pub(super) fn result_blobs(
    result: &graftwork_shared::assignment::StageResult,
) -> impl Iterator<Item = graftwork_shared::digest::Digest> + '_ {
    std::iter::once(result.weights).chain(result.predictions.values().copied())
}
