//! The Jobs service: what people and programs ask, turned into inputs for the driver.
//!
//! Planning runs here and not in the driver's loop, since it reads files; only a planned job reaches the driver.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _};
use graftwork_proto::{from_document, to_document, trace_context, v1};
use graftwork_scheduler::{Plan, Standing};
use graftwork_shared::{
    diagnostic::Diagnostic,
    event::{Event, EventKind},
    id::{JobId, Name},
    job::{Job, Spans},
    trace::TraceContext,
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};
use tonic::{Request, Response, Status};

use super::{
    BlobStore, Planner, Publisher, StageOfPlan,
    access::{Caller, Places},
    input::{Input, Released, Submission},
    pins,
    workers::stopped,
};

/// Jobs that are planned at a time; planning reads many files.
const PLANNED_AT_A_TIME: usize = 4;

/// Serves requests about jobs.
#[derive(Clone)]
pub(super) struct Jobs {
    inputs: mpsc::Sender<Input>,
    blobs: BlobStore,
    planner: Arc<dyn Planner>,
    publisher: Arc<dyn Publisher>,
    planning: Arc<Semaphore>,
    /// Where submitters may publish.
    places: Arc<Places>,
}

type Answer<T> = Result<Response<T>, Status>;

fn job_id(text: &str) -> Result<JobId, Status> {
    text.parse().map_err(|_| {
        Status::invalid_argument(format!(
            "job: {text:?} is not a job id of 16 hexadecimal digits; see `graftwork status`"
        ))
    })
}

fn unknown(job: &JobId) -> Status {
    Status::not_found(format!("there is no job {job} here; `graftwork status` lists those there are"))
}

/// All problems of a job: the message counts them, the details are the diagnostics as a JSON list.
fn problems(diagnostics: &[Diagnostic]) -> Status {
    let texts: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
    let message = format!("the job cannot run: {}", texts.join("; "));
    // Statuses travel in headers, which are small.
    let message: String = message.chars().take(1_000).collect();
    let mut details = to_document(&diagnostics);
    if details.len() > 4_000 {
        details = to_document(&diagnostics.iter().take(8).collect::<Vec<_>>());
    }
    Status::with_details(tonic::Code::InvalidArgument, message, details.into())
}

impl Jobs {
    pub(super) fn new(
        inputs: mpsc::Sender<Input>,
        blobs: BlobStore,
        planner: Arc<dyn Planner>,
        publisher: Arc<dyn Publisher>,
        places: Places,
    ) -> Self {
        let planning = Arc::new(Semaphore::new(PLANNED_AT_A_TIME));
        Self { inputs, blobs, planner, publisher, planning, places: Arc::new(places) }
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Status> {
        let (to, answer) = oneshot::channel();
        self.inputs.send(input(to)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }

    /// Whose job it is, if it is there.
    async fn owner(&self, job: &JobId) -> Result<Option<String>, Status> {
        let views = self.ask(|to| Input::View(Some(job.clone()), to)).await?;
        Ok(views.into_iter().next().map(|view| view.owner))
    }

    /// Refuses to act on the job of another owner.
    async fn check_owner(&self, caller: &Caller, job: &JobId, what: &str) -> Result<(), Status> {
        match self.owner(job).await? {
            Some(owner) => caller.act_for(&owner, what),
            None => Ok(()),
        }
    }

    async fn plan(&self, job: Job, spans: Spans, blobs: BlobStore) -> Result<Plan, Status> {
        let _permit = self.planning.acquire().await.map_err(|_| stopped())?;
        let digest = job.digest();
        let plan = self.planner.plan(job, spans, blobs).await.map_err(|found| problems(&found))?;
        plan.check().map_err(|error| Status::internal(error.to_string()))?;
        if plan.digest != digest {
            return Err(Status::internal(format!("the plan is of job {}, not of {digest}", plan.digest)));
        }
        Ok(plan)
    }

    /// Published stages that the hub has no longer, or no longer whole.
    async fn gone(&self, plan: &Plan, releases: Vec<Released>) -> Vec<Name> {
        let mut plan = plan.clone();
        for Released { stage, trial, .. } in &releases {
            // A trial that the plan lacks now was trained for another plan, of which nothing is kept anyway.
            let _ = trial.map(|trial| plan.choose_trial(stage, trial));
        }
        let plan = Arc::new(plan);
        let mut gone = Vec::new();
        for Released { stage: name, place, .. } in releases {
            let stage = StageOfPlan { plan: Arc::clone(&plan), name: name.clone(), blobs: self.blobs.clone() };
            if plan.stage(&name).is_some() && !self.publisher.holds(stage, place).await {
                gone.push(name);
            }
        }
        gone
    }
}

#[tonic::async_trait]
impl v1::jobs_server::Jobs for Jobs {
    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Answer<v1::SubmitReply> {
        let caller = Caller::of(&request)?;
        let v1::SubmitRequest { job, trace, spans } = request.into_inner();
        let job: Job = from_document("job", &job).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (whose, places) = (caller.clone(), Arc::clone(&self.places));
        let submitted = tokio::task::spawn_blocking(move || whose.submits(job, &places)).await;
        let job = submitted.map_err(|error| Status::internal(error.to_string()))??;
        let spans = if spans.is_empty() { Ok(Spans::default()) } else { from_document("spans", &spans) };
        let spans = spans.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let id = JobId::of(&job.digest());
        let reply = |attached| Ok(Response::new(v1::SubmitReply { job: id.to_string(), attached }));
        let (standing, releases) = self.ask(|to| Input::Standing(id.clone(), to)).await?;
        let gone = match standing {
            Standing::Active => {
                // Its digest is the same, but what it asks of machines need not be. Whoever submits another's job
                // learns that it is there, and changes nothing.
                if self.owner(&id).await?.is_none_or(|owner| caller.may_act_for(&owner)) {
                    self.ask(|to| Input::Resources(id.clone(), job.resources, to)).await?;
                }
                return reply(true);
            }
            Standing::Ended => {
                self.check_owner(&caller, &id, "submit").await?;
                releases
            }
            Standing::Unknown => releases,
        };
        // Until the submission is answered: then a fact refers to what planning has put, or none ever will.
        let pinned = pins::for_request(&self.blobs, self.inputs.downgrade());
        let context = submission_context(&trace);
        let mut planning = graftwork_telemetry::span("plan", context).with("job", &id);
        let planned = self.plan(job, spans, pinned.clone()).await;
        let mut plan = planned.inspect_err(|status| planning.fail(status.message()))?;
        drop(planning);
        plan.trace = context.to_string();
        let gone = self.gone(&plan, gone).await;
        let submission = |attached| Input::Submit(Box::new(Submission { plan, gone, attached }));
        let attached = self.ask(submission).await?;
        drop(pinned);
        let attached = attached.map_err(|refusal| {
            let help = "wait until one has ended, or cancel one";
            Status::failed_precondition(format!("the job is not taken: {refusal}; {help}"))
        })?;
        reply(attached)
    }

    async fn view(&self, request: Request<v1::JobRequest>) -> Answer<v1::Documents> {
        let text = request.into_inner().job;
        let job = if text.is_empty() { None } else { Some(job_id(&text)?) };
        let views = self.ask(|to| Input::View(job.clone(), to)).await?;
        match job {
            Some(job) if views.is_empty() => Err(unknown(&job)),
            _ => Ok(Response::new(v1::Documents { json: views.iter().map(to_document).collect() })),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::Document, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::JobRequest>) -> Answer<Self::WatchStream> {
        let job = job_id(&request.into_inner().job)?;
        let watched = self.ask(|to| Input::Watch(job.clone(), to)).await?.ok_or_else(|| unknown(&job))?;
        let to_come = futures::stream::iter(watched.to_come).flat_map(BroadcastStream::new);
        let events = futures::stream::iter(watched.so_far.into_iter().map(Ok)).chain(to_come);
        Ok(Response::new(Box::pin(until_the_end(events))))
    }

    async fn explain(&self, request: Request<v1::JobRequest>) -> Answer<v1::Document> {
        let job = job_id(&request.into_inner().job)?;
        let explanation = self.ask(|to| Input::Explain(job.clone(), to)).await?.ok_or_else(|| unknown(&job))?;
        Ok(Response::new(v1::Document { json: to_document(&explanation) }))
    }

    async fn cancel(&self, request: Request<v1::JobRequest>) -> Answer<v1::Empty> {
        let caller = Caller::of(&request)?;
        let job = job_id(&request.into_inner().job)?;
        self.check_owner(&caller, &job, "cancel").await?;
        match self.ask(|to| Input::Cancel(job.clone(), to)).await? {
            Standing::Active => Ok(Response::new(v1::Empty {})),
            Standing::Ended => Err(Status::failed_precondition(format!("job {job} has ended already"))),
            Standing::Unknown => Err(unknown(&job)),
        }
    }

    async fn forget(&self, request: Request<v1::JobRequest>) -> Answer<v1::Empty> {
        let caller = Caller::of(&request)?;
        let job = job_id(&request.into_inner().job)?;
        self.check_owner(&caller, &job, "forget").await?;
        match self.ask(|to| Input::Forget(job.clone(), to)).await? {
            Standing::Ended => Ok(Response::new(v1::Empty {})),
            Standing::Active => Err(Status::failed_precondition(format!("job {job} has not ended: cancel it first"))),
            Standing::Unknown => Err(unknown(&job)),
        }
    }

    async fn coordinator(&self, _: Request<v1::Empty>) -> Answer<v1::Document> {
        let view = self.ask(Input::Coordinator).await?;
        Ok(Response::new(v1::Document { json: to_document(&view) }))
    }
}

/// Where a submission stands: below this request, where that stands in a trace; else where its sender says, or in a new
/// one.
fn submission_context(told: &str) -> TraceContext {
    let told = || told.parse().ok();
    trace_context().or_else(told).unwrap_or_else(graftwork_telemetry::new_trace)
}

/// Events as documents, up to and with the job's end. A watcher that lagged behind misses events and goes on.
fn until_the_end(
    events: impl Stream<Item = Result<Event, BroadcastStreamRecvError>> + Send + 'static,
) -> impl Stream<Item = Result<v1::Document, Status>> + Send {
    futures::stream::unfold(Some(Box::pin(events)), |events| async move {
        let mut events = events?;
        loop {
            if let Ok(event) = events.next().await? {
                // The job's own stream goes on for later submissions, so the end is seen here and not there.
                let ended = matches!(event.kind, EventKind::JobFinished { .. });
                return Some((Ok(v1::Document { json: to_document(&event) }), (!ended).then_some(events)));
            }
        }
    })
}
