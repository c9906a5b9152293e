//! A coordinator's client: the same calls for a private socket and for an address of a cluster.
//!
//! It never retries what changes something, and it never shows generated wire types to the rest of the program.

use std::{collections::BTreeSet, time::Duration};

use futures::{Stream, StreamExt as _};
use graftwork_proto::{
    from_document, to_document, v1,
    v1::{blobs_client::BlobsClient, jobs_client::JobsClient},
};
use graftwork_scheduler::Explanation;
use graftwork_shared::{
    diagnostic::Diagnostic,
    digest::Digest,
    event::Event,
    id::JobId,
    job::{Job, Spans},
    view::JobView,
};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// Name of the variable with the address of the coordinator that commands talk to.
pub(crate) const ADDRESS_VARIABLE: &str = "GRAFTWORK_COORDINATOR";

/// How long one of several coordinators may take to say what it is.
const ANSWER: Duration = Duration::from_secs(3);

/// Digests of one question; a coordinator answers more.
const DIGESTS_AT_A_TIME: usize = 10_000;

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
    /// An address that cannot be one.
    #[error("{0:?} is no address of a coordinator; write unix:///path/to/socket or http://host:port")]
    Address(String),
    /// The coordinator refused, for a reason that the user can mend.
    #[error("{0}")]
    Refused(String),
    /// The job cannot be planned.
    #[error("the coordinator cannot plan the job")]
    Plan(Vec<Diagnostic>),
    /// Anything else: the connection, or a defect.
    #[error("the coordinator's answer: {0}")]
    Other(String),
}

impl ClientError {
    /// Whether the user's input is at fault: exit 1 and not 2.
    pub(crate) fn is_input(&self) -> bool {
        !matches!(self, Self::Other(_) | Self::Unreachable { .. })
    }
}

/// Puts the token into every request.
#[derive(Clone, Debug)]
struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A connection. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    jobs: JobsClient<InterceptedService<Channel, Token>>,
    blobs: BlobsClient<InterceptedService<Channel, Token>>,
}

impl Client {
    /// Connects to `unix:/path`, `unix:///path`, `host:port` or `http://host:port`; of several, separated by commas, to
    /// the first that answers: coordinators that wait to lead do not listen.
    pub(crate) async fn connect(addresses: &str, token: Option<&str>) -> Result<Self, ClientError> {
        if !addresses.contains(',') {
            return Self::connect_to(addresses, token).await;
        }
        let mut problems = Vec::new();
        for address in addresses.split(',') {
            let mut client = match Self::connect_to(address, token).await {
                Ok(client) => client,
                Err(ClientError::Unreachable { problem, .. }) => {
                    problems.push(format!("{address}: {problem}"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            // One that is frozen takes connections and says nothing.
            let answer = tokio::time::timeout(ANSWER, client.jobs.coordinator(v1::Empty {})).await;
            match answer.map_err(|_| format!("no answer within {ANSWER:?}")) {
                Ok(Ok(_)) => return Ok(client),
                Ok(Err(status)) if status.code() != Code::Unavailable => return Err(refused(status)),
                Ok(Err(status)) => problems.push(format!("{address}: {}", status.message())),
                Err(problem) => problems.push(format!("{address}: {problem}")),
            }
        }
        Err(ClientError::Unreachable { address: addresses.to_owned(), problem: problems.join("; ") })
    }

    async fn connect_to(address: &str, token: Option<&str>) -> Result<Self, ClientError> {
        let wrong = || ClientError::Address(address.to_owned());
        let full = if address.contains("://") || address.starts_with("unix:") {
            address.to_owned()
        } else {
            format!("http://{address}")
        };
        let endpoint = Endpoint::from_shared(full).map_err(|_| wrong())?.connect_timeout(Duration::from_secs(5));
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| ClientError::Unreachable { address: address.to_owned(), problem: innermost(&error) })?;
        let token = token.map(|token| format!("Bearer {token}").parse()).transpose();
        let token =
            Token(token.map_err(|_| ClientError::Refused("the token holds characters that no header may".to_owned()))?);
        let jobs = JobsClient::with_interceptor(channel.clone(), token.clone());
        let blobs = BlobsClient::with_interceptor(channel, token);
        Ok(Self {
            jobs: jobs.max_decoding_message_size(graftwork_proto::MAX_MESSAGE_BYTES),
            blobs: blobs.max_decoding_message_size(graftwork_proto::MAX_MESSAGE_BYTES),
        })
    }

    /// Which of these blobs the coordinator holds.
    pub(crate) async fn has(&mut self, digests: &BTreeSet<Digest>) -> Result<BTreeSet<Digest>, ClientError> {
        let all: Vec<String> = digests.iter().map(ToString::to_string).collect();
        let mut here = BTreeSet::new();
        for some in all.chunks(DIGESTS_AT_A_TIME) {
            let asked = v1::BlobDigests { digests: some.to_vec() };
            let answer = self.blobs.has(asked).await.map_err(refused)?.into_inner();
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
                Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => refused(status),
                _ => ClientError::Refused(status.message().to_owned()),
            })?;
        let digest = reply.into_inner().digest;
        digest.parse().map_err(|_| ClientError::Other(format!("{digest:?} is no digest")))
    }

    /// Submits a job; answers once it is durable. `true` says that it was there already. `spans` place what the
    /// coordinator says of the job in its file.
    pub(crate) async fn submit(&mut self, job: &Job, spans: &Spans) -> Result<(JobId, bool), ClientError> {
        let trace = format!("cli-{}", std::process::id());
        let request = v1::SubmitRequest { job: to_document(job), trace, spans: to_document(spans) };
        let reply = self.jobs.submit(request).await.map_err(refused)?.into_inner();
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
        let documents = self.jobs.view(v1::JobRequest { job: job.to_owned() }).await.map_err(refused)?.into_inner();
        documents.json.iter().map(|text| from_document("view", text).map_err(other)).collect()
    }

    /// The job's events, from the first that is kept; ends when the job has ended.
    pub(crate) async fn watch(
        &mut self,
        job: &JobId,
    ) -> Result<impl Stream<Item = Result<Event, ClientError>> + Unpin + use<>, ClientError> {
        let stream = self.jobs.watch(v1::JobRequest { job: job.to_string() }).await.map_err(refused)?.into_inner();
        Ok(stream.map(|document| from_document("event", &document.map_err(refused)?.json).map_err(other)))
    }

    /// Why each stage stands where it stands.
    pub(crate) async fn explain(&mut self, job: &JobId) -> Result<Explanation, ClientError> {
        let document = self.jobs.explain(v1::JobRequest { job: job.to_string() }).await.map_err(refused)?.into_inner();
        from_document("explanation", &document.json).map_err(other)
    }

    /// Stops a job.
    pub(crate) async fn cancel(&mut self, job: &JobId) -> Result<(), ClientError> {
        self.jobs.cancel(v1::JobRequest { job: job.to_string() }).await.map_err(refused).map(|_| ())
    }
}

fn other(error: graftwork_proto::WireError) -> ClientError {
    ClientError::Other(error.to_string())
}

/// A refused plan comes as a list of diagnostics in the status's details.
fn refused(status: Status) -> ClientError {
    if let Ok(problems) = serde_json::from_slice::<Vec<Diagnostic>>(status.details())
        && !problems.is_empty()
    {
        return ClientError::Plan(problems);
    }
    let words = status.message().to_owned();
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated => ClientError::Refused(words),
        _ if words.is_empty() => ClientError::Other(status.code().to_string()),
        _ => ClientError::Other(words),
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
