//! A coordinator's client: the same calls for a private socket and for an address of a cluster.
//!
//! It repeats nothing that was heard: only a refusal that passes by itself, such as too many requests, is waited out.
//! Generated wire types never reach the rest of the program.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _};
use graftwork_proto::{
    Route, Token, from_document, pushback, to_document, traced, v1,
    v1::{blobs_client::BlobsClient, jobs_client::JobsClient},
};
use graftwork_scheduler::Explanation;
use graftwork_shared::{
    VERSION,
    address::Address,
    diagnostic::Diagnostic,
    digest::Digest,
    event::Event,
    id::JobId,
    job::{Job, Spans},
    trace::{TRACE_HEADER, TraceContext},
    view::JobView,
};
use graftwork_telemetry::Span;
use tonic::{Code, Response, Status, service::interceptor::InterceptedService, transport::Channel};

/// Name of the variable with the address of the coordinator that commands talk to.
pub(crate) const ADDRESS_VARIABLE: &str = "GRAFTWORK_COORDINATOR";

/// How long one of several coordinators may take to say what it is.
const ANSWER: Duration = Duration::from_secs(3);

/// Digests of one question; a coordinator answers more.
const DIGESTS_AT_A_TIME: usize = 10_000;

/// How long refusals that pass are waited out.
const PATIENCE: Duration = Duration::from_mins(1);

/// Why a coordinator did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody answers.
    #[error(
        "no coordinator answers at {address}: {problem}; check the address, or start one with `graftwork coordinator`"
    )]
    Unreachable {
        /// Where.
        address: String,
        /// What the connection says.
        problem: String,
    },
    /// The coordinator refused, for a reason that the user can mend.
    #[error("{0}")]
    Refused(String),
    /// The job cannot be planned.
    #[error("the coordinator cannot plan the job")]
    Plan(Vec<Diagnostic>),
    /// Too much is asked of the coordinator now; nothing of the request was heard.
    #[error("{words}; try again in {} ms", wait.as_millis())]
    Busy {
        /// Its words.
        words: String,
        /// When it is worth asking again.
        wait: Duration,
    },
    /// The connection broke under a request.
    #[error("the connection to the coordinator broke: {0}")]
    Broken(String),
    /// Anything else: a defect.
    #[error("the coordinator's answer: {0}")]
    Other(String),
}

impl ClientError {
    /// Whether the user's input is at fault: exit 1 and not 2.
    pub(crate) fn is_input(&self) -> bool {
        !matches!(self, Self::Broken(_) | Self::Other(_) | Self::Unreachable { .. } | Self::Busy { .. })
    }
}

/// A connection. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    jobs: JobsClient<InterceptedService<Channel, Token>>,
    blobs: BlobsClient<InterceptedService<Channel, Token>>,
    /// What may be behind a connection that breaks at once.
    hint: &'static str,
}

impl Client {
    /// Connects, and shows the token and this version with every request; of several coordinators to the first that
    /// answers: those that wait to lead do not listen.
    pub(crate) async fn connect(routes: &[Route], token: Token) -> Result<Self, ClientError> {
        if let [only] = routes {
            return Self::connect_to(only, token).await;
        }
        let mut problems = Vec::new();
        for route in routes {
            let client = match Self::connect_to(route, token.clone()).await {
                Ok(client) => client,
                Err(ClientError::Unreachable { address, problem }) => {
                    problems.push(format!("{address}: {problem}"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            // One that is frozen takes connections and says nothing.
            let answer = tokio::time::timeout(ANSWER, client.jobs.clone().coordinator(v1::Empty {})).await;
            match answer.map_err(|_| format!("no answer within {ANSWER:?}")) {
                Ok(Ok(_)) => return Ok(client),
                Ok(Err(status)) if status.code() != Code::Unavailable => return Err(client.refused(status)),
                Ok(Err(status)) => problems.push(format!("{}: {}", route.address(), status.message())),
                Err(problem) => problems.push(format!("{}: {problem}", route.address())),
            }
        }
        let all: Vec<String> = routes.iter().map(|route| route.address().to_string()).collect();
        Err(ClientError::Unreachable { address: all.join(", "), problem: problems.join("; ") })
    }

    async fn connect_to(route: &Route, token: Token) -> Result<Self, ClientError> {
        let channel = route.connect().await.map_err(|error| ClientError::Unreachable {
            address: route.address().to_string(),
            problem: error.to_string(),
        })?;
        let token = token.with_version(VERSION);
        let jobs = JobsClient::with_interceptor(channel.clone(), token.clone());
        let blobs = BlobsClient::with_interceptor(channel, token);
        Ok(Self {
            jobs: jobs.max_decoding_message_size(graftwork_proto::MAX_MESSAGE_BYTES),
            blobs: blobs.max_decoding_message_size(graftwork_proto::MAX_MESSAGE_BYTES),
            hint: route.hint(),
        })
    }

    /// Connects to a socket of this user.
    pub(crate) async fn local(socket: &Path) -> Result<Self, ClientError> {
        let route = Route::new(Address::Unix(socket.to_owned()), None);
        let route = route.map_err(|error| ClientError::Other(error.to_string()))?;
        Self::connect_to(&route, Token::default()).await
    }

    /// Asks until it is heard, or for [`PATIENCE`].
    async fn ask<T, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        request: impl Fn(Self) -> F,
    ) -> Result<T, ClientError> {
        let began = Instant::now();
        loop {
            match request(self.clone()).await {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) => match pushback(&status) {
                    Some(wait) if began.elapsed() + wait < PATIENCE => tokio::time::sleep(wait).await,
                    _ => return Err(self.refused(status)),
                },
            }
        }
    }

    /// Which of these blobs the coordinator holds.
    pub(crate) async fn has(&mut self, digests: &BTreeSet<Digest>) -> Result<BTreeSet<Digest>, ClientError> {
        let all: Vec<String> = digests.iter().map(ToString::to_string).collect();
        let mut here = BTreeSet::new();
        for some in all.chunks(DIGESTS_AT_A_TIME) {
            let asked = v1::BlobDigests { digests: some.to_vec() };
            let asking = |mut client: Self| {
                let asked = asked.clone();
                async move { client.blobs.has(asked).await }
            };
            let answer = self.ask(asking).await?;
            for digest in answer.digests {
                here.insert(digest.parse().map_err(|_| ClientError::Other(format!("{digest:?} is no digest")))?);
            }
        }
        Ok(here)
    }

    /// Uploads one blob in pieces; gives the digest of what arrived, durable. [`ClientError::Refused`] is the
    /// coordinator's own word, for example that its disk is full; everything else is the connection.
    pub(crate) async fn put(
        &mut self,
        pieces: impl Stream<Item = Vec<u8>> + Send + 'static,
    ) -> Result<Digest, ClientError> {
        let reply =
            self.blobs.put(pieces.map(|data| v1::Chunk { data })).await.map_err(|status| match status.code() {
                Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => self.refused(status),
                _ if pushback(&status).is_some() => self.refused(status),
                _ => ClientError::Refused(status.message().to_owned()),
            })?;
        let digest = reply.into_inner().digest;
        digest.parse().map_err(|_| ClientError::Other(format!("{digest:?} is no digest")))
    }

    /// Submits a job; answers once it is durable. `true` says that it was there already. `spans` place what the
    /// coordinator says of the job in its file, and `submission` is the beginning of its trace ([`submission`]).
    pub(crate) async fn submit(
        &mut self,
        job: &Job,
        spans: &Spans,
        submission: TraceContext,
    ) -> Result<(JobId, bool), ClientError> {
        let trace = submission.to_string();
        let request = v1::SubmitRequest { job: to_document(job), trace, spans: to_document(spans) };
        let asking = |mut client: Self| {
            let request = request.clone();
            async move { client.jobs.submit(request).await }
        };
        let reply = traced(submission, self.ask(asking)).await?;
        let id = reply
            .job
            .parse()
            .map_err(|error: graftwork_shared::id::NotAJobId| ClientError::Other(error.to_string()))?;
        Ok((id, reply.attached))
    }

    /// One job.
    pub(crate) async fn view(&mut self, job: &JobId) -> Result<JobView, ClientError> {
        let views = self.views(job.as_str()).await?;
        views.into_iter().next().ok_or_else(|| ClientError::Refused(format!("there is no job {job}")))
    }

    /// All jobs, newest first.
    pub(crate) async fn all(&mut self) -> Result<Vec<JobView>, ClientError> {
        self.views("").await
    }

    async fn views(&mut self, job: &str) -> Result<Vec<JobView>, ClientError> {
        let documents = self
            .ask(|mut client| async move { client.jobs.view(v1::JobRequest { job: job.to_owned() }).await })
            .await?;
        documents.json.iter().map(|text| from_document("view", text).map_err(other)).collect()
    }

    /// The job's events, from the first that is kept; ends when the job has ended.
    pub(crate) async fn watch(
        &mut self,
        job: &JobId,
    ) -> Result<impl Stream<Item = Result<Event, ClientError>> + Unpin + use<>, ClientError> {
        let stream = self.ask(|mut client| async move { client.jobs.watch(of(job)).await }).await?;
        let this = self.clone();
        Ok(stream.map(move |document| {
            from_document("event", &document.map_err(|status| this.refused(status))?.json).map_err(other)
        }))
    }

    /// Why each stage stands where it stands.
    pub(crate) async fn explain(&mut self, job: &JobId) -> Result<Explanation, ClientError> {
        let document = self.ask(|mut client| async move { client.jobs.explain(of(job)).await }).await?;
        from_document("explanation", &document.json).map_err(other)
    }

    /// Stops a job.
    pub(crate) async fn cancel(&mut self, job: &JobId) -> Result<(), ClientError> {
        self.ask(|mut client| async move { client.jobs.cancel(of(job)).await }).await.map(|_| ())
    }

    /// Forgets an ended job.
    pub(crate) async fn forget(&mut self, job: &JobId) -> Result<(), ClientError> {
        self.ask(|mut client| async move { client.jobs.forget(of(job)).await }).await.map(|_| ())
    }

    /// What a refusal means. A plan that cannot be comes as a list of diagnostics in the status's details.
    fn refused(&self, status: Status) -> ClientError {
        if let Ok(problems) = serde_json::from_slice::<Vec<Diagnostic>>(status.details())
            && !problems.is_empty()
        {
            return ClientError::Plan(problems);
        }
        let words = status.message().to_owned();
        if let Some(wait) = pushback(&status) {
            return ClientError::Busy { words, wait };
        }
        let cause = std::error::Error::source(&status).map(why_it_broke);
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::OutOfRange => ClientError::Refused(words),
            _ if cause.is_some() => ClientError::Broken(cause.unwrap_or_default() + self.hint),
            _ if words.is_empty() => ClientError::Other(status.code().to_string()),
            _ => ClientError::Other(words),
        }
    }
}

/// The beginning of a job's trace, below which its uploads stand too: below what the environment names, as a pipeline
/// does, or a new one.
pub(crate) fn submission() -> Span {
    let told = std::env::var(TRACE_HEADER.to_uppercase()).ok().and_then(|text| text.parse().ok());
    match told {
        Some(parent) => graftwork_telemetry::span("submit", parent),
        None => graftwork_telemetry::span_at("submit", graftwork_telemetry::new_trace(), None),
    }
}

fn of(job: &JobId) -> v1::JobRequest {
    v1::JobRequest { job: job.to_string() }
}

fn other(error: graftwork_proto::WireError) -> ClientError {
    ClientError::Other(error.to_string())
}

/// The innermost cause: the layers around it only say where it came through.
fn why_it_broke(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let words = cause.to_string();
    // TLS says so of every process that ends without a word, and adds an address of its manual.
    if words.contains("close_notify") { "it was closed without a word".to_owned() } else { words }
}
