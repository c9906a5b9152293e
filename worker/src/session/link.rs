//! One connection to the coordinator at a time: dialled with patience, read in order, written without waiting.
//!
//! What arrives on a link that was closed is never seen: the link owns its stream.

use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use graftwork_proto::{
    ConnectError, CoordinatorEnvelope, MAX_MESSAGE_BYTES, Route, Token, WorkerEnvelope, WorkerMessage, v1,
    v1::workers_client::WorkersClient,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// Messages that may wait for the connection.
const OUTBOUND: usize = 1024;

/// Places in the queue that reports leave free for what counts.
const RESERVED: usize = 256;

/// How long a leaving worker waits for its last words to be taken.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why no link came about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DialError {
    /// The coordinator does not want this worker; asking again does not help.
    Refused(String),
    /// Nobody answers.
    Unreachable(String),
}

/// What happens on a link.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// It is open; the greeting was sent.
    Opened,
    /// It could not be opened.
    Failed(DialError),
    /// It broke, or its peer does not speak our language.
    Lost(String),
    /// The coordinator said something.
    Message(Box<CoordinatorEnvelope>),
}

/// A link to the coordinator.
pub(super) enum Link {
    None,
    Dialling(BoxFuture<'static, Result<Open, DialError>>),
    Open(Box<Open>),
    /// What was to be said could not be queued: the peer does not read.
    Clogged,
}

/// An open link.
pub(super) struct Open {
    outbound: mpsc::Sender<v1::WorkerMessage>,
    inbound: Streaming<v1::CoordinatorMessage>,
}

impl Link {
    /// Opens a link after `wait`. The greeting goes first, since a coordinator may answer only when it has read it.
    pub(super) fn dial(route: Route, token: Token, greeting: WorkerEnvelope, wait: Duration) -> Self {
        Self::Dialling(dial(route, token, greeting, wait).boxed())
    }

    /// Waits for the next event. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> LinkEvent {
        match self {
            Self::None => std::future::pending().await,
            Self::Clogged => LinkEvent::Lost("the coordinator does not read what it is told".to_owned()),
            Self::Dialling(dialling) => match dialling.await {
                Ok(open) => {
                    *self = Self::Open(Box::new(open));
                    LinkEvent::Opened
                }
                Err(error) => {
                    *self = Self::None;
                    LinkEvent::Failed(error)
                }
            },
            Self::Open(open) => match open.next().await {
                Ok(Some(message)) => match CoordinatorEnvelope::try_from(message) {
                    Ok(envelope) => LinkEvent::Message(Box::new(envelope)),
                    Err(error) => LinkEvent::Lost(format!("a message that cannot be understood: {error}")),
                },
                Ok(None) => LinkEvent::Lost("the coordinator ended the session".to_owned()),
                Err(status) if refuses(&status) => LinkEvent::Failed(DialError::Refused(status.message().to_owned())),
                Err(status) => LinkEvent::Lost(describe(&status)),
            },
        }
    }

    /// Says something, without waiting. Reports give way when the queue is nearly full; a full queue ends the link.
    pub(super) fn say(&mut self, envelope: WorkerEnvelope) {
        let Self::Open(open) = self else { return };
        let report = matches!(
            envelope.message,
            WorkerMessage::Step(..) | WorkerMessage::Evaluated(..) | WorkerMessage::Spent(..)
        );
        if report && open.outbound.capacity() < RESERVED {
            return;
        }
        if let Err(mpsc::error::TrySendError::Full(_)) = open.outbound.try_send(envelope.into()) {
            *self = Self::Clogged;
        }
    }

    /// Ends the link after what was said has been taken, or was not for a while.
    pub(super) async fn close(self) {
        let Self::Open(open) = self else { return };
        let Open { outbound, mut inbound } = *open;
        drop(outbound);
        let drained = async { while let Ok(Some(_)) = inbound.message().await {} };
        if timeout(LAST_WORDS, drained).await.is_err() {
            tracing::debug!("the coordinator did not close the session");
        }
    }
}

impl Open {
    /// The next message that this version knows; what a newer coordinator says beyond is left out. Cancelling it loses
    /// nothing.
    async fn next(&mut self) -> Result<Option<v1::CoordinatorMessage>, Status> {
        loop {
            match self.inbound.message().await? {
                Some(message) if message.message.is_none() => {}
                message => return Ok(message),
            }
        }
    }
}

async fn dial(route: Route, token: Token, greeting: WorkerEnvelope, wait: Duration) -> Result<Open, DialError> {
    tokio::time::sleep(wait).await;
    let channel = route.connect().await.map_err(|error| match error {
        ConnectError::Distrusted(_) => DialError::Refused(error.to_string()),
        ConnectError::Unreachable(words) => DialError::Unreachable(words),
    })?;
    let (outbound, messages) = mpsc::channel(OUTBOUND);
    outbound.try_send(greeting.into()).map_err(|_| DialError::Unreachable("the queue is closed".to_owned()))?;
    let mut client = WorkersClient::with_interceptor(channel, token)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    match client.session(ReceiverStream::new(messages)).await {
        Ok(reply) => Ok(Open { outbound, inbound: reply.into_inner() }),
        Err(status) if refuses(&status) => Err(DialError::Refused(status.message().to_owned())),
        Err(status) => Err(DialError::Unreachable(describe(&status) + route.hint())),
    }
}

/// Whether a status means that asking again does not help.
fn refuses(status: &Status) -> bool {
    matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented)
}

fn describe(status: &Status) -> String {
    let mut text = format!("{}: {}", status.code(), status.message());
    if let Some(source) = std::error::Error::source(status) {
        text = format!("{text} ({})", graftwork_shared::cause::told(source));
    }
    text
}
