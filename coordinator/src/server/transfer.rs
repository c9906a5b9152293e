//! The Blobs service: bytes in and out, in chunks, on threads that may block.
//!
//! A blob is durable when Put answers. Whoever stalls holds no thread: each chunk is its own short piece of work, and
//! a stream on which nothing comes for a minute is ended. What a worker asks in the name of another coordinator is refused: a
//! late worker puts nothing here, and an old coordinator takes nothing from one that has turned to the next.

use std::{pin::Pin, time::Duration};

use futures::Stream;
use graftwork_proto::{CHUNK_BYTES, KEY_HEADER, TERM_HEADER, v1};
use graftwork_shared::{digest::Digest, id::Term};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::{BlobError, BlobStore, input::Input, workers::stopped};

/// How long the next chunk may take.
const CHUNK_WAIT: Duration = Duration::from_mins(1);

/// Most digests of one Has.
const MOST_DIGESTS: usize = 100_000;

/// Serves blobs.
#[derive(Clone)]
pub(super) struct Transfer {
    pub(super) blobs: BlobStore,
    pub(super) inputs: mpsc::Sender<Input>,
    /// Of this coordinator.
    pub(super) term: Term,
}

fn status(error: &BlobError) -> Status {
    let message = error.to_string();
    match error {
        BlobError::Missing(_) => Status::not_found(message),
        BlobError::Damaged { .. } => Status::data_loss(message),
        BlobError::TooLarge { .. } => Status::out_of_range(message),
        BlobError::Full { .. } => Status::resource_exhausted(message),
        BlobError::Io { .. } | BlobError::Unfit { .. } => Status::internal(message),
        // As of a coordinator that cannot be reached: asked again, it may answer.
        BlobError::Store { .. } => Status::unavailable(message),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| status(&error))
}

impl Transfer {
    /// Refuses what is of another term, as a coordinator that cannot be reached would: a worker asks again once it is
    /// welcomed. Commands are of no session, and say no term.
    fn check_term<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let Some(said) = request.metadata().get(TERM_HEADER) else {
            let of_session = request.metadata().contains_key(KEY_HEADER);
            let refused = || Status::unavailable(format!("the request is of a session and says no {TERM_HEADER}"));
            return if of_session { Err(refused()) } else { Ok(()) };
        };
        let theirs = said.to_str().ok().and_then(|text| text.parse().ok()).map(Term);
        let theirs = theirs.ok_or_else(|| Status::invalid_argument(format!("{TERM_HEADER}: it is no number")))?;
        if theirs == self.term {
            return Ok(());
        }
        Err(Status::unavailable(format!("the request is of {theirs}, but this is {}", self.term)))
    }

    /// Reads from a blob. When it is missing or damaged, the driver hears of it before whoever asked.
    async fn watched<T: Send + 'static>(
        &self,
        digest: Digest,
        read: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, Status> {
        let read = blocking(move || Ok(read())).await?;
        if let Err(BlobError::Missing(_) | BlobError::Damaged { .. }) = &read {
            self.inputs.send(Input::BlobLost(digest)).await.map_err(|_| stopped())?;
        }
        read.map_err(|error| status(&error))
    }
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("digest: {error}")))
}

#[tonic::async_trait]
impl v1::blobs_server::Blobs for Transfer {
    async fn put(&self, request: Request<Streaming<v1::Chunk>>) -> Result<Response<v1::BlobDigest>, Status> {
        self.check_term(&request)?;
        let key = request.metadata().get(KEY_HEADER).and_then(|key| key.to_str().ok()).map(str::to_owned);
        let mut stream = request.into_inner();
        let blobs = self.blobs.clone();
        let mut writer = blocking(move || blobs.writer()).await?;
        loop {
            let next = tokio::time::timeout(CHUNK_WAIT, stream.message());
            let next = next.await.map_err(|_| Status::deadline_exceeded("no chunk of the blob came for 60 s"))?;
            let Some(chunk) = next? else { break };
            writer = blocking(move || writer.write(&chunk.data).map(|()| writer)).await?;
        }
        let digest = blocking(move || writer.finish()).await?;
        match key {
            Some(key) => self.inputs.send(Input::Put(key, digest)).await.map_err(|_| stopped())?,
            // Of nobody who could be gone: it stays until the next start, or for whoever comes to refer to it.
            None => self.blobs.unpin(digest),
        }
        Ok(Response::new(v1::BlobDigest { digest: digest.to_string() }))
    }

    type GetStream = Pin<Box<dyn Stream<Item = Result<v1::Chunk, Status>> + Send>>;

    async fn get(&self, request: Request<v1::BlobDigest>) -> Result<Response<Self::GetStream>, Status> {
        self.check_term(&request)?;
        let digest = digest(&request.into_inner().digest)?;
        let blobs = self.blobs.clone();
        let here = self.clone();
        let reader = here.watched(digest, move || blobs.reader(digest)).await?;
        let chunks = futures::stream::try_unfold((here, reader), move |(here, mut reader)| async move {
            let next = here.watched(digest, move || Ok(reader.next(CHUNK_BYTES)?.map(|data| (data, reader)))).await?;
            Ok(next.map(|(data, reader)| (v1::Chunk { data }, (here, reader))))
        });
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn has(&self, request: Request<v1::BlobDigests>) -> Result<Response<v1::BlobDigests>, Status> {
        self.check_term(&request)?;
        let texts = request.into_inner().digests;
        if texts.len() > MOST_DIGESTS {
            let message = format!("digests: {} at a time, but at most {MOST_DIGESTS} are answered", texts.len());
            return Err(Status::out_of_range(message));
        }
        let asked = texts.iter().map(|text| digest(text)).collect::<Result<Vec<_>, _>>()?;
        let blobs = self.blobs.clone();
        let here =
            blocking(move || Ok(asked.into_iter().filter(|digest| blobs.has(*digest)).collect::<Vec<_>>())).await?;
        Ok(Response::new(v1::BlobDigests { digests: here.iter().map(ToString::to_string).collect() }))
    }
}
