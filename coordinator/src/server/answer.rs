//! How the driver takes inputs: each becomes an event for the core, or an answer drawn from it.

use std::time::Duration;

use graftwork_proto::{CoordinatorMessage, WorkerMessage};
use graftwork_scheduler::{Event, Scheduler, Standing, WorkerInfo};
use graftwork_shared::{
    VERSION,
    event::{Event as Told, EventKind},
    id::{JobId, WorkerId},
    view::{JobView, StageView},
};
use tokio::sync::oneshot;

use super::{
    driver::Driver,
    gauges::Measured,
    input::{CoordinatorView, Input, Join, Released, Session, Submission, Watched},
    pins,
    story::Story,
};

/// Jobs whose stories are kept after their end.
const ENDED_STORIES: usize = 64;

impl Driver {
    pub(super) fn on_input(&mut self, input: Input) {
        match input {
            Input::Standing(job, to) => {
                let answer = (self.machine().standing(&job), releases(self.machine(), &job));
                self.reply(to, answer);
            }
            Input::Submit(submission) => self.on_submit(*submission),
            Input::View(job, to) => {
                let jobs = job.map_or_else(|| self.machine().jobs(), |job| vec![job]);
                let views = jobs.iter().filter_map(|job| self.view(job)).collect();
                self.reply(to, views);
            }
            Input::Watch(job, to) => {
                let watched = self.watch(&job);
                self.reply(to, watched);
            }
            Input::Explain(job, to) => {
                let explanation = self.machine().explain(&job);
                self.reply(to, explanation);
            }
            Input::Cancel(job, to) => {
                let standing = self.machine().standing(&job);
                self.apply(Event::Cancel { job, reason: "cancelled by the user".to_owned() });
                self.reply(to, standing);
            }
            Input::Forget(job, to) => {
                let standing = self.machine().standing(&job);
                self.forget(job);
                self.reply(to, standing);
            }
            Input::ForgetOlder(age_ms) => {
                let before_ms = self.clock.now_ms().saturating_sub(age_ms);
                self.machine().ended_before(before_ms).into_iter().for_each(|job| self.forget(job));
            }
            Input::History(name, to) => {
                let files = self.machine().state().histories().get(&name).cloned().unwrap_or_default();
                self.reply(to, files);
            }
            Input::KeepHistory(history, files, to) => {
                self.apply(Event::KeepHistory { history, files });
                self.reply(to, ());
            }
            Input::Coordinator(to) => {
                let view = self.coordinator();
                self.reply(to, view);
            }
            Input::Measure(to) => {
                // Whoever asked may have gone.
                let _ = to.send(self.measure());
            }
            Input::Join(join) => self.on_join(join),
            Input::Resources(job, resources, to) => {
                self.apply(Event::Resources { job, resources });
                self.reply(to, ());
            }
            Input::Worker(worker, session, message) => self.on_worker((worker, session), *message),
            Input::Left(worker, session, gone) => self.core.on_left(self.clock.now_ms(), (worker, session), gone),
            Input::Put(key, blob) => self.core.on_put(pins::known_as(&key), blob),
            Input::Settle(blobs) => self.core.settle(blobs),
            Input::BlobLost(blob) => {
                // It may have been put again since.
                if !self.blobs.has(blob) {
                    self.apply(Event::BlobLost { blob });
                }
            }
            Input::Reusable(key, result) => {
                self.apply(Event::Reusable { key, result });
            }
            Input::Published(key, Ok(release)) => {
                self.apply(Event::Published { key, release });
            }
            Input::Published(key, Err(failure)) => {
                self.apply(Event::PublishFailed { key, failure });
            }
            Input::Unfit(error) => self.unfit = Some(error),
            Input::Stop(reason) => self.core.stop(self.clock.now_ms(), reason),
        }
    }

    fn apply(&mut self, event: Event) -> bool {
        self.core.on_event(self.clock.now_ms(), event)
    }

    fn forget(&mut self, job: JobId) {
        if self.apply(Event::Forget { job: job.clone() }) {
            self.stories.remove(&job);
        }
    }

    /// Answers once everything decided so far is durable.
    fn reply<T: Send + 'static>(&mut self, to: oneshot::Sender<T>, value: T) {
        // Whoever asked may have gone.
        self.core.reply(Box::new(move || drop(to.send(value))));
    }

    fn on_submit(&mut self, submission: Submission) {
        let Submission { plan, gone, attached } = submission;
        if let Some(refusal) = self.machine().too_many_jobs(&plan) {
            tracing::info!(job = %plan.id(), %refusal, "a job is not taken");
            return self.reply(attached, Err(refusal));
        }
        let id = plan.id();
        if self.machine().standing(&id) != Standing::Active {
            self.stories.entry(id).or_insert_with(Story::new);
            self.forget_old_stories();
        }
        let taken = self.apply(Event::Submitted { plan: Box::new(plan), gone });
        self.reply(attached, Ok(!taken));
    }

    fn forget_old_stories(&mut self) {
        let machine = self.core.machine();
        let ended = |job: &JobId| machine.standing(job) == Standing::Ended;
        let old: Vec<JobId> = machine.jobs().into_iter().filter(ended).skip(ENDED_STORIES).collect();
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
            numerics_version: hello.numerics_version,
            exchange: hello.exchange,
            key: pins::known_as(&hello.key),
            holdings: hello.holdings.clone(),
        };
        let leases = hello.leases.clone();
        self.joined += 1;
        let session = self.joined;
        self.joining.insert(session, join);
        self.core.on_join(self.clock.now_ms(), (session, Event::WorkerJoined { session, info, leases }));
    }

    fn on_worker(&mut self, (worker, session): (WorkerId, Session), message: WorkerMessage) {
        let event = match message {
            // The session refuses a second hello.
            WorkerMessage::Hello(_) => return,
            WorkerMessage::Step(lease, report) => {
                let kind = EventKind::Step(report);
                return self.core.on_report(self.clock.now_ms(), (worker, session), lease, kind);
            }
            WorkerMessage::Evaluated(lease, scores) => {
                let kind = EventKind::Evaluated(scores);
                return self.core.on_report(self.clock.now_ms(), (worker, session), lease, kind);
            }
            WorkerMessage::Heartbeat(leases) => Event::Heartbeat { worker, leases },
            WorkerMessage::Probe { number, round_trip_ms } => {
                self.echo((worker, session), number);
                Event::RoundTrip { worker, round_trip_ms }
            }
            WorkerMessage::Checkpoint(lease, step, blob) => Event::Checkpointed { worker, lease, step, blob },
            WorkerMessage::Finished(lease, result) => Event::Finished { worker, lease, result: Box::new(result) },
            WorkerMessage::Paused(lease, evaluation, finished) => Event::Paused { worker, lease, evaluation, finished },
            WorkerMessage::Failed(lease, failure) => Event::Failed { worker, lease, failure },
            WorkerMessage::Released(lease) => Event::Released { worker, lease },
            WorkerMessage::Leaving(reason) => {
                tracing::info!(%worker, reason, "a worker leaves");
                Event::Leaving { worker }
            }
            WorkerMessage::Holds(holdings) => Event::Holds { worker, holdings },
            WorkerMessage::Spent(lease, usage) => Event::Spent { worker, lease, usage },
            WorkerMessage::Prepared(lease) => Event::Prepared { worker, lease },
            WorkerMessage::Waits(lease, epoch, step) => Event::Waits { worker, lease, epoch, step },
            WorkerMessage::Broken(lease, epoch, reason) => Event::Broken { worker, lease, epoch, reason },
        };
        self.core.on_worker(self.clock.now_ms(), (worker, session), event);
    }

    /// Through the loop, so that the round trip that is measured holds whatever a heartbeat waits for.
    fn echo(&mut self, (worker, session): (WorkerId, Session), number: u64) {
        if self.core.is_open(worker, session) {
            self.send(worker, String::new(), CoordinatorMessage::Echo(number));
        }
    }

    fn view(&self, job: &JobId) -> Option<JobView> {
        let mut view = self.machine().view(job)?;
        if let Some(story) = self.stories.get(job) {
            story.draw(&mut view);
        }
        Some(view)
    }

    fn watch(&self, job: &JobId) -> Option<Watched> {
        let view = self.machine().view(job)?;
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

    fn measure(&self) -> Measured {
        let waiting_facts = self.journal.waiting();
        let since_ms = if waiting_facts > 0 { self.caught_up_ms } else { self.clock.now_ms() };
        Measured {
            census: self.machine().census(),
            counts: self.trail.counts.clone(),
            term: self.machine().state().term(),
            started_ms: self.clock.start_ms(),
            stopping: self.core.is_stopping(),
            waiting_facts,
            behind: Duration::from_millis(self.clock.now_ms().saturating_sub(since_ms)),
        }
    }

    fn coordinator(&self) -> CoordinatorView {
        CoordinatorView {
            version: VERSION.to_owned(),
            pid: std::process::id(),
            term: self.machine().state().term(),
            started_ms: self.clock.start_ms(),
            stopping: self.core.is_stopping(),
            workers: self.machine().workers(),
            jobs: self.machine().jobs(),
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
