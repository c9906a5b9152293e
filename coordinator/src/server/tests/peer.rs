//! A client and a worker that do what a test tells them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use graftwork_proto::{
    CoordinatorEnvelope, CoordinatorMessage, Hello, Token, WorkerEnvelope, WorkerMessage, from_document, to_document,
    v1::{self, blobs_client::BlobsClient, jobs_client::JobsClient, workers_client::WorkersClient},
};
use graftwork_shared::{
    VERSION,
    assignment::{Assignment, Holdings, StageResult},
    digest::Digest,
    event::Event,
    id::{JobId, LeaseId, Term, WorkerId},
    job::Job,
    trace::TraceContext,
    view::JobView,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::{super::Running, fixture};

pub(super) async fn connect(running: &Running) -> Channel {
    Endpoint::from_shared(running.addresses()[0].to_string()).unwrap().connect().await.unwrap()
}

pub(super) async fn submit(channel: &Channel, job: &Job) -> Result<(JobId, bool), Status> {
    let request = v1::SubmitRequest { job: to_document(job), trace: "trace".to_owned(), spans: String::new() };
    let reply = JobsClient::new(channel.clone()).submit(request).await?.into_inner();
    Ok((reply.job.parse().unwrap(), reply.attached))
}

pub(super) async fn view(channel: &Channel, job: &JobId) -> JobView {
    let request = v1::JobRequest { job: job.to_string() };
    let reply = JobsClient::new(channel.clone()).view(request).await.unwrap().into_inner();
    from_document("view", &reply.json[0]).unwrap()
}

/// All events of a job up to its end.
pub(super) async fn watch(channel: &Channel, job: &JobId) -> Vec<Event> {
    let request = v1::JobRequest { job: job.to_string() };
    let mut stream = JobsClient::new(channel.clone()).watch(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(document) = stream.message().await.unwrap() {
        events.push(from_document("event", &document.json).unwrap());
    }
    events
}

pub(super) async fn put(channel: &Channel, bytes: &[u8]) -> Result<Digest, Status> {
    put_as(channel, bytes, "").await
}

/// Puts a blob as the worker of this key does under a place's first coordinator; as a command does if there is no key.
pub(super) async fn put_as(channel: &Channel, bytes: &[u8], key: &str) -> Result<Digest, Status> {
    let chunks: Vec<v1::Chunk> = bytes.chunks(1_000).map(|data| v1::Chunk { data: data.to_vec() }).collect();
    let mut request = tonic::Request::new(futures::stream::iter(chunks));
    if !key.is_empty() {
        request.metadata_mut().insert(graftwork_proto::KEY_HEADER, key.parse().unwrap());
        request.metadata_mut().insert(graftwork_proto::TERM_HEADER, "1".parse().unwrap());
    }
    let reply = BlobsClient::new(channel.clone()).put(request).await?;
    Ok(reply.into_inner().digest.parse().unwrap())
}

/// Puts a blob as a worker does that the coordinator of this term has welcomed.
pub(super) async fn put_for(channel: &Channel, bytes: &[u8], term: Term) -> Result<Digest, Status> {
    let mut blobs = BlobsClient::with_interceptor(channel.clone(), Token::default().with_term(term));
    let reply = blobs.put(futures::stream::iter([v1::Chunk { data: bytes.to_vec() }])).await?;
    Ok(reply.into_inner().digest.parse().unwrap())
}

pub(super) async fn get(channel: &Channel, digest: &str) -> Result<Vec<u8>, Status> {
    let request = v1::BlobDigest { digest: digest.to_owned() };
    let mut stream = BlobsClient::new(channel.clone()).get(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await? {
        bytes.extend(chunk.data);
    }
    Ok(bytes)
}

pub(super) fn hello() -> Hello {
    Hello {
        version: VERSION.to_owned(),
        host: "here".to_owned(),
        pid: 7,
        threads: 2,
        slots: 1,
        memory_bytes: 1 << 30,
        reached_on: String::new(),
        numeric_class: fixture::class("avx2"),
        numerics_version: 1,
        exchange: 1,
        key: String::new(),
        leases: Vec::new(),
        holdings: Holdings::default(),
    }
}

/// Beats for a session until it is dropped.
pub(super) struct Heart {
    leases: Arc<Mutex<Vec<LeaseId>>>,
    beating: JoinHandle<()>,
}

impl Heart {
    /// Lists these leases from now on.
    pub(super) fn hold(&self, leases: &[LeaseId]) {
        *self.leases.lock().unwrap() = leases.to_vec();
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

/// A worker's session.
pub(super) struct Peer {
    channel: Channel,
    outgoing: mpsc::Sender<v1::WorkerMessage>,
    incoming: Streaming<v1::CoordinatorMessage>,
    pub(super) term: Term,
    pub(super) worker: WorkerId,
}

impl Peer {
    /// Opens a session and says hello; what comes back is up to the coordinator.
    pub(super) async fn say(channel: &Channel, hello: Hello) -> Result<(Self, CoordinatorMessage), Status> {
        let (outgoing, messages) = mpsc::channel(64);
        let message = WorkerMessage::Hello(hello);
        let envelope = WorkerEnvelope { term: Term(0), trace: String::new(), message };
        outgoing.send(v1::WorkerMessage::from(envelope)).await.unwrap();
        let session = WorkersClient::new(channel.clone()).session(ReceiverStream::new(messages)).await?;
        let incoming = session.into_inner();
        let (channel, term, worker) = (channel.clone(), Term(0), WorkerId(0));
        let mut peer = Self { channel, outgoing, incoming, term, worker };
        let answer = peer.next().await?;
        Ok((peer, answer))
    }

    /// Opens a session as a worker should.
    pub(super) async fn join(channel: &Channel) -> Self {
        match Self::say(channel, hello()).await.unwrap() {
            (mut peer, CoordinatorMessage::Welcome { worker, .. }) => {
                peer.worker = worker;
                peer
            }
            (_, other) => panic!("{other:?}"),
        }
    }

    /// The next message; its term is remembered.
    pub(super) async fn next(&mut self) -> Result<CoordinatorMessage, Status> {
        let message = tokio::time::timeout(Duration::from_secs(10), self.incoming.message());
        let message = message.await.expect("a message within ten seconds")?;
        let message = message.ok_or_else(|| Status::unavailable("the stream ended"))?;
        let envelope = CoordinatorEnvelope::try_from(message).unwrap();
        self.term = envelope.term;
        let of_a_lease = matches!(
            envelope.message,
            CoordinatorMessage::Accepted(..)
                | CoordinatorMessage::Assign { .. }
                | CoordinatorMessage::Form(..)
                | CoordinatorMessage::Release(..)
        );
        if of_a_lease {
            assert!(envelope.trace.parse::<TraceContext>().is_ok(), "{:?} is in no trace", envelope.message);
        }
        Ok(envelope.message)
    }

    pub(super) async fn assignment(&mut self) -> (LeaseId, Assignment) {
        match self.next().await.unwrap() {
            CoordinatorMessage::Assign { lease, assignment, joining: false } => (lease, *assignment),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn send(&self, message: WorkerMessage) {
        let envelope = WorkerEnvelope { term: self.term, trace: String::new(), message };
        self.send_raw(v1::WorkerMessage::from(envelope)).await;
    }

    /// Says which leases it holds, again and again.
    pub(super) fn beat_every(&self, every: Duration) -> Heart {
        let leases = Arc::<Mutex<Vec<LeaseId>>>::default();
        let (held, outgoing, term) = (Arc::clone(&leases), self.outgoing.clone(), self.term);
        let beating = tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let message = WorkerMessage::Heartbeat(held.lock().unwrap().clone());
                let envelope = WorkerEnvelope { term, trace: String::new(), message };
                // The session may have ended, which the test sees.
                let _ = outgoing.send(v1::WorkerMessage::from(envelope)).await;
            }
        });
        Heart { leases, beating }
    }

    pub(super) async fn send_raw(&self, message: v1::WorkerMessage) {
        // The coordinator may have ended the session, which the test sees on the other stream.
        let _ = self.outgoing.send(message).await;
    }

    pub(super) async fn checkpoint(&mut self, lease: LeaseId, step: u64) -> Digest {
        let blob = put(&self.channel, format!("checkpoint {lease} {step}").as_bytes()).await.unwrap();
        self.send(WorkerMessage::Checkpoint(lease, step, blob)).await;
        assert_eq!(self.next().await.unwrap(), CoordinatorMessage::Accepted(lease, step));
        blob
    }

    /// A result after ten updates, whose blobs are uploaded.
    pub(super) async fn result(&self, stage: &str) -> StageResult {
        self.result_after(stage, 10).await
    }

    /// The same after more.
    pub(super) async fn result_after(&self, stage: &str, steps: u64) -> StageResult {
        let result = fixture::result(stage, steps, 0.9);
        for text in [format!("weights of {stage}"), format!("predictions of {stage}")] {
            put(&self.channel, text.as_bytes()).await.unwrap();
        }
        result
    }

    /// Trains whatever comes until this many stages are done.
    pub(super) async fn work(&mut self, stages: usize) {
        for _ in 0..stages {
            let (lease, assignment) = self.assignment().await;
            let result = self.result(assignment.stage.as_str()).await;
            self.send(WorkerMessage::Finished(lease, result)).await;
            assert_eq!(self.next().await.unwrap(), CoordinatorMessage::Accepted(lease, 10));
        }
    }
}
