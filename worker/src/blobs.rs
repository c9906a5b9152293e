//! Blobs over the wire: content-addressed bytes, put and fetched in chunks.
//!
//! The digest is checked on both ends: damaged bytes are asked for again and never handed on. A broken connection or
//! a coordinator that restarts costs a wait, not the work: every request is repeated for [`Blobs::new`]'s patience. Each try
//! names the coordinator that welcomed this worker last. Another one refuses it until it has welcomed the worker itself.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{TryStreamExt as _, stream::BoxStream};
use graftwork_proto::{
    CHUNK_BYTES, Token, pushback,
    v1::{BlobDigest, Chunk, blobs_client::BlobsClient},
};
use graftwork_shared::digest::Digest;
use graftwork_store::{StoreError, Uploads};
use tonic::{Code, Response, Status, Streaming, service::interceptor::InterceptedService, transport::Channel};

use crate::{backoff::Backoff, coordinators::Channels};

/// How often bytes may arrive damaged before the fault is taken for a lasting one.
const DAMAGED_ATTEMPTS: u32 = 4;

/// Why a blob could not be moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// The coordinator does not answer.
    #[error("the coordinator did not answer for {seconds} seconds while blob {digest} was moved: {problem}")]
    Unreachable {
        /// Which blob.
        digest: String,
        /// How long it was tried.
        seconds: u64,
        /// What the last attempt said.
        problem: String,
    },
    /// The coordinator answers, and says no.
    #[error("the coordinator refused blob {digest}: {problem}")]
    Refused {
        /// Which blob.
        digest: String,
        /// What it said.
        problem: String,
    },
    /// The bytes have another digest.
    #[error("blob {digest} arrived damaged {attempts} times; the last time its digest was {found}")]
    Damaged {
        /// Which blob.
        digest: String,
        /// How often it was tried.
        attempts: u32,
        /// The digest of what arrived.
        found: String,
    },
}

/// One attempt's end.
enum Attempt<T> {
    Done(T),
    Damaged(String),
    Broken(Status),
}

/// The coordinator's blobs.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    channels: Channels,
    token: Token,
    patience: Duration,
}

impl Blobs {
    /// Over these channels; requests are repeated as long as `patience` while the coordinator cannot be reached.
    pub(crate) fn new(channels: impl Into<Channels>, token: Token, patience: Duration) -> Self {
        Self { channels: channels.into(), token, patience }
    }

    fn client(&self) -> BlobsClient<InterceptedService<Channel, Token>> {
        let token = self.token.clone().with_term(self.channels.term());
        BlobsClient::with_interceptor(self.channels.current(), token)
    }

    /// Stores bytes; they are durable when this returns.
    pub(crate) async fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(bytes);
        self.repeat(digest, || self.put_once(bytes, digest)).await
    }

    /// Fetches bytes; they have this digest.
    pub(crate) async fn get(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        self.repeat(digest, || self.get_once(digest)).await
    }

    /// The stream of something uploaded; a break in it is the caller's to mend.
    async fn open(self, digest: Digest) -> Result<Streaming<Chunk>, StoreError> {
        let attempt = || async {
            let request = BlobDigest { digest: digest.to_string() };
            match self.client().get(request).await.map(Response::into_inner) {
                Err(status) if !is_final(&status) => Attempt::Broken(status),
                answered => Attempt::Done(answered.map_err(|status| of_upload(digest, &status))),
            }
        };
        let lost = |error: BlobError| StoreError::Network { url: place(digest), problem: error.to_string() };
        self.repeat(digest, attempt).await.map_err(lost)?
    }

    async fn put_once(&self, bytes: &[u8], digest: Digest) -> Attempt<Digest> {
        let mut chunks: Vec<Chunk> = bytes.chunks(CHUNK_BYTES).map(|chunk| Chunk { data: chunk.to_vec() }).collect();
        if chunks.is_empty() {
            chunks.push(Chunk { data: Vec::new() });
        }
        match self.client().put(tokio_stream::iter(chunks)).await {
            Ok(reply) => match reply.into_inner().digest {
                stored if stored == digest.to_string() => Attempt::Done(digest),
                other => Attempt::Damaged(other),
            },
            Err(status) => Attempt::Broken(status),
        }
    }

    async fn get_once(&self, digest: Digest) -> Attempt<Vec<u8>> {
        let request = BlobDigest { digest: digest.to_string() };
        let mut stream = match self.client().get(request).await {
            Ok(reply) => reply.into_inner(),
            Err(status) => return Attempt::Broken(status),
        };
        let mut bytes = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.data),
                Ok(None) => break,
                Err(status) => return Attempt::Broken(status),
            }
        }
        let found = Digest::of(&bytes);
        if found == digest { Attempt::Done(bytes) } else { Attempt::Damaged(found.to_string()) }
    }

    async fn repeat<T, F: Future<Output = Attempt<T>>>(
        &self,
        digest: Digest,
        attempt: impl Fn() -> F,
    ) -> Result<T, BlobError> {
        let started = Instant::now();
        let mut backoff = Backoff::new();
        let mut damaged = 0;
        loop {
            let mut asked = Duration::ZERO;
            match attempt().await {
                Attempt::Done(value) => return Ok(value),
                Attempt::Damaged(found) => {
                    damaged += 1;
                    if damaged == DAMAGED_ATTEMPTS {
                        return Err(BlobError::Damaged { digest: digest.short(), attempts: damaged, found });
                    }
                    tracing::warn!(blob = %digest.short(), %found, "a blob arrived damaged; trying again");
                }
                Attempt::Broken(status) if is_final(&status) => {
                    return Err(BlobError::Refused { digest: digest.short(), problem: describe(&status) });
                }
                Attempt::Broken(status) if started.elapsed() >= self.patience => {
                    let seconds = started.elapsed().as_secs();
                    return Err(BlobError::Unreachable { digest: digest.short(), seconds, problem: describe(&status) });
                }
                Attempt::Broken(status) => {
                    asked = pushback(&status).unwrap_or_default();
                    tracing::debug!(blob = %digest.short(), problem = %describe(&status), "a blob transfer broke");
                }
            }
            tokio::time::sleep(backoff.wait().max(asked)).await;
        }
    }
}

impl Uploads for Blobs {
    fn read(&self, blob: Digest) -> BoxStream<'static, Result<Bytes, StoreError>> {
        let opened = futures::stream::once(self.clone().open(blob));
        let chunks = opened.map_ok(move |chunks| chunks.map_err(move |status| of_upload(blob, &status)));
        Box::pin(chunks.try_flatten().map_ok(|chunk| Bytes::from(chunk.data)))
    }
}

/// What a broken transfer of something uploaded means: a coordinator that lacks it, or a connection to try again.
fn of_upload(digest: Digest, status: &Status) -> StoreError {
    if is_final(status) {
        return StoreError::Upload(status.message().to_owned());
    }
    StoreError::Network { url: place(digest), problem: describe(status) }
}

/// A blob, as errors of stores name it.
fn place(digest: Digest) -> String {
    format!("blob {} of the coordinator", digest.short())
}

/// Whether the coordinator's answer stays the same however often it is asked. Everything else may be the network, or
/// a limit that passes.
fn is_final(status: &Status) -> bool {
    let lasts = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
            | Code::ResourceExhausted
    );
    lasts && pushback(status).is_none()
}

fn describe(status: &Status) -> String {
    format!("{}: {}", status.code(), status.message())
}

#[cfg(test)]
mod tests;
