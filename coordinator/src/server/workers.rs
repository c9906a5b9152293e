//! The Workers service: one task for each session, between a worker's stream and the driver.
//!
//! It checks what a peer may say before the driver hears of it: version, term, well-formed documents, blobs
//! that were uploaded. Whatever is wrong ends this session with a message that names the field; nothing else suffers.

use std::{pin::Pin, time::Duration};

use futures::Stream;
use graftwork_driver::Gone;
use graftwork_proto::{CoordinatorEnvelope, CoordinatorMessage, WorkerEnvelope, WorkerMessage, v1};
use graftwork_shared::{VERSION, digest::Digest, id::Term, version};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    BlobStore,
    access::{Pace, Rate},
    input::{Input, Join, Outgoing, Welcome},
    reported::Reported,
};

/// How long a peer may take to say hello.
const HELLO_WAIT: Duration = Duration::from_secs(10);

/// Messages that wait for a worker to read them. An assignment is the largest, and a worker has few places.
const OUTGOING_MESSAGES: usize = 256;

/// Serves worker sessions.
#[derive(Clone)]
pub(super) struct Workers {
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) blobs: BlobStore,
    /// Of the messages of each session.
    pub(super) rate: Rate,
}

#[tonic::async_trait]
impl v1::workers_server::Workers for Workers {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outgoing, messages) = mpsc::channel(OUTGOING_MESSAGES);
        let workers = self.clone();
        tokio::spawn(async move {
            if let Err(status) = workers.serve(request.into_inner(), &outgoing).await {
                tracing::info!(reason = status.message(), "a worker's session ended");
                // A peer that reads nothing hears nothing; its stream ends either way.
                let _ = outgoing.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

/// Why a peer is not let in; it is told so and the stream ends.
fn refuse(outgoing: &Outgoing, reason: String) {
    tracing::warn!(reason, "a worker was refused");
    let envelope =
        CoordinatorEnvelope { term: Term(0), trace: String::new(), message: CoordinatorMessage::Refused(reason) };
    let _ = outgoing.try_send(Ok(v1::CoordinatorMessage::from(envelope)));
}

impl Workers {
    async fn serve(&self, mut stream: Streaming<v1::WorkerMessage>, outgoing: &Outgoing) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_WAIT, next(&mut stream));
        let first = first.await.map_err(|_| Status::deadline_exceeded("no hello came within 10 s"))??;
        let Some(WorkerEnvelope { message: WorkerMessage::Hello(hello), .. }) = first else {
            return Err(Status::failed_precondition("the first message of a session must be a hello"));
        };
        if let Some(reason) = version::objection("worker", &hello.version, VERSION) {
            refuse(outgoing, reason);
            return Ok(());
        }
        let (welcome, welcomed) = oneshot::channel();
        self.tell(Input::Join(Box::new(Join { hello, outgoing: outgoing.clone(), welcome }))).await?;
        let welcome = welcomed.await.map_err(|_| stopped())?;
        let (worker, session) = (welcome.worker, welcome.session);
        let ended = self.read(stream, welcome).await;
        let gone = match &ended {
            Ok(()) => Gone::Link("its session ended".to_owned()),
            Err(status) if is_link_loss(status) => Gone::Link(format!("its session ended: {}", status.message())),
            Err(status) => Gone::Wrong(format!("its session was ended: {}", status.message())),
        };
        self.tell(Input::Left(worker, session, gone)).await?;
        ended
    }

    /// Reads until the stream ends, the worker errs, or the driver ends the session.
    async fn read(&self, mut stream: Streaming<v1::WorkerMessage>, welcome: Welcome) -> Result<(), Status> {
        let Welcome { worker, session, term, mut open } = welcome;
        let (mut pace, mut reported) = (Pace::new(self.rate), Reported::default());
        loop {
            let envelope = tokio::select! {
                // The driver ended it and has said why.
                _ = &mut open => return Ok(()),
                envelope = next(&mut stream) => envelope?,
            };
            let Some(envelope) = envelope else { return Ok(()) };
            pace.take().await;
            if envelope.term != term {
                let theirs = envelope.term;
                return Err(Status::failed_precondition(format!("the message is of {theirs}, but this is {term}")));
            }
            let _span = reported.span(&envelope.trace, &envelope.message);
            self.check(&envelope.message)?;
            self.tell(Input::Worker(worker, session, Box::new(envelope.message))).await?;
        }
    }

    fn check(&self, message: &WorkerMessage) -> Result<(), Status> {
        let uploaded = |field: &str, blob: Digest| {
            let here = self.blobs.has(blob);
            here.then_some(()).ok_or_else(|| Status::failed_precondition(format!("{field}: {blob} was not uploaded")))
        };
        match message {
            WorkerMessage::Hello(_) => {
                Err(Status::failed_precondition("hello: a session has one, and it is the first"))
            }
            WorkerMessage::Checkpoint(_, _, blob) => uploaded("checkpoint.blob", *blob),
            WorkerMessage::Finished(_, result) => {
                uploaded("finished.result.weights", result.weights)?;
                result.predictions.values().try_for_each(|blob| uploaded("finished.result.predictions", *blob))
            }
            WorkerMessage::Heartbeat(_)
            | WorkerMessage::Probe { .. }
            | WorkerMessage::Step(..)
            | WorkerMessage::Evaluated(..)
            | WorkerMessage::Paused(..)
            | WorkerMessage::Failed(..)
            | WorkerMessage::Released(_)
            | WorkerMessage::Leaving(_)
            | WorkerMessage::Holds(_)
            | WorkerMessage::Spent(..)
            | WorkerMessage::Prepared(_)
            | WorkerMessage::Broken(..)
            | WorkerMessage::Waits(..) => Ok(()),
        }
    }

    async fn tell(&self, input: Input) -> Result<(), Status> {
        self.inputs.send(input).await.map_err(|_| stopped())
    }
}

/// What a broken connection looks like from here. Whatever a peer says that cannot be has another code: it would say
/// the same again, so it is not waited for.
fn is_link_loss(status: &Status) -> bool {
    matches!(status.code(), Code::Cancelled | Code::Unknown | Code::Unavailable)
}

/// The coordinator is on its way out.
pub(super) fn stopped() -> Status {
    Status::unavailable("the coordinator stops")
}

async fn next(stream: &mut Streaming<v1::WorkerMessage>) -> Result<Option<WorkerEnvelope>, Status> {
    loop {
        let Some(message) = stream.message().await? else { return Ok(None) };
        if message.message.is_none() {
            continue; // A newer worker says what this version does not know.
        }
        return WorkerEnvelope::try_from(message)
            .map(Some)
            .map_err(|error| Status::invalid_argument(error.to_string()));
    }
}
