//! A real server in this process that damages, drops and refuses as its script says.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures::Stream;
use graftwork_proto::{
    PUSHBACK_HEADER, Route, TERM_HEADER,
    v1::{
        BlobDigests,
        blobs_server::{Blobs as Service, BlobsServer},
    },
};
use graftwork_shared::id::Term;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Streaming, transport::Server};

use super::*;
use crate::coordinators::Coordinators;

/// What the server does to one request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    /// Flips a bit of the second chunk.
    Damage,
    /// Ends the stream in the middle.
    Cut,
    /// Answers that it is not available.
    Unavailable,
    /// Answers that it has no room.
    Full,
    /// Answers that it is asked too often for now.
    Busy,
}

/// How long a busy server asks to wait: longer than a first backoff.
const BUSY_MS: u64 = 300;

#[derive(Clone, Default)]
struct Scripted {
    acts: Arc<Mutex<VecDeque<Act>>>,
    blobs: Arc<Mutex<HashMap<String, Vec<u8>>>>,
    /// Whose requests it takes alone, if it is given.
    term: Arc<Mutex<Option<u64>>>,
}

impl Scripted {
    fn check_term<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let said = request.metadata().get(TERM_HEADER).map(|term| term.to_str().unwrap().parse::<u64>().unwrap());
        match *self.term.lock().unwrap() {
            Some(term) if said != Some(term) => Err(Status::unavailable("of another term")),
            _ => Ok(()),
        }
    }

    fn act(&self) -> Result<Option<Act>, Status> {
        match self.acts.lock().unwrap().pop_front() {
            Some(Act::Unavailable) => Err(Status::unavailable("restarting")),
            Some(Act::Full) => Err(Status::resource_exhausted("no space left")),
            Some(Act::Busy) => {
                let mut status = Status::resource_exhausted("too often");
                status.metadata_mut().insert(PUSHBACK_HEADER, BUSY_MS.into());
                Err(status)
            }
            act => Ok(act),
        }
    }
}

#[tonic::async_trait]
impl Service for Scripted {
    async fn put(&self, request: Request<Streaming<Chunk>>) -> Result<Response<BlobDigest>, Status> {
        self.check_term(&request)?;
        let act = self.act()?;
        let mut stream = request.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.message().await? {
            bytes.extend(chunk.data);
        }
        if act == Some(Act::Damage) {
            bytes[0] ^= 1;
        }
        if act == Some(Act::Cut) {
            return Err(Status::unknown("connection reset"));
        }
        let digest = Digest::of(&bytes).to_string();
        self.blobs.lock().unwrap().insert(digest.clone(), bytes);
        Ok(Response::new(BlobDigest { digest }))
    }

    type GetStream = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

    async fn get(&self, request: Request<BlobDigest>) -> Result<Response<Self::GetStream>, Status> {
        self.check_term(&request)?;
        let act = self.act()?;
        let blobs = self.blobs.lock().unwrap();
        let bytes = blobs.get(&request.into_inner().digest).ok_or_else(|| Status::not_found("no such blob"))?;
        let mut chunks: Vec<_> = bytes.chunks(CHUNK_BYTES).map(|chunk| Ok(Chunk { data: chunk.to_vec() })).collect();
        match act {
            Some(Act::Damage) => chunks[1].as_mut().unwrap().data[7] ^= 16,
            Some(Act::Cut) => chunks[1] = Err(Status::unavailable("cut")),
            _ => {}
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn has(&self, request: Request<BlobDigests>) -> Result<Response<BlobDigests>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

fn channel(address: &str) -> Channel {
    Route::new(address.parse().unwrap(), None).unwrap().lazy()
}

/// Serves it; gives its address.
async fn listen(service: Scripted) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = Server::builder().add_service(BlobsServer::new(service));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

async fn serve(acts: &[Act], patience: Duration) -> (Scripted, Blobs) {
    let service = Scripted::default();
    service.acts.lock().unwrap().extend(acts);
    let address = listen(service.clone()).await;
    let blobs = Blobs::new(channel(&address), Token::default(), patience);
    (service, blobs)
}

fn bytes() -> Vec<u8> {
    (0..CHUNK_BYTES * 5 / 2).map(|number| u8::try_from(number * 7 % 251).unwrap()).collect()
}

#[tokio::test]
async fn bytes_come_back_as_they_went() {
    let (_, blobs) = serve(&[], Duration::from_secs(5)).await;
    for bytes in [bytes(), Vec::new(), vec![1]] {
        let digest = blobs.put(&bytes).await.unwrap();
        assert_eq!(blobs.get(digest).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn damaged_and_broken_transfers_are_repeated() {
    let acts = [Act::Damage, Act::Unavailable, Act::Cut];
    let (service, blobs) = serve(&acts, Duration::from_secs(5)).await;
    let digest = blobs.put(&bytes()).await.unwrap();
    service.acts.lock().unwrap().extend(acts);
    assert_eq!(blobs.get(digest).await.unwrap(), bytes());
    assert!(service.acts.lock().unwrap().is_empty());
}

#[tokio::test]
async fn lasting_damage_is_an_error_and_never_handed_on() {
    let (service, blobs) = serve(&[], Duration::from_secs(5)).await;
    let digest = blobs.put(&bytes()).await.unwrap();
    service.acts.lock().unwrap().extend([Act::Damage; 10]);
    assert!(matches!(blobs.get(digest).await, Err(BlobError::Damaged { attempts: DAMAGED_ATTEMPTS, .. })));
}

#[tokio::test]
async fn a_refusal_is_not_repeated() {
    let (service, blobs) = serve(&[Act::Full, Act::Full], Duration::from_secs(5)).await;
    let error = blobs.put(&bytes()).await.unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(service.acts.lock().unwrap().len(), 1);
    service.acts.lock().unwrap().clear();
    assert!(matches!(blobs.get(Digest::of(b"unknown")).await, Err(BlobError::Refused { .. })));
}

#[tokio::test]
async fn a_limit_that_passes_is_waited_out() {
    let (service, blobs) = serve(&[Act::Busy, Act::Busy], Duration::from_secs(5)).await;
    let began = Instant::now();
    let digest = blobs.put(&bytes()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(2 * BUSY_MS));
    service.acts.lock().unwrap().push_back(Act::Busy);
    assert_eq!(blobs.get(digest).await.unwrap(), bytes());
}

#[tokio::test]
async fn a_coordinator_that_stays_away_is_an_error_in_the_end() {
    let (_, blobs) = serve(&[Act::Unavailable; 50], Duration::from_millis(300)).await;
    assert!(matches!(blobs.put(b"x").await, Err(BlobError::Unreachable { .. })));
}

#[tokio::test]
async fn a_coordinator_that_restarts_costs_a_wait_alone() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let blobs = Blobs::new(channel(&address.to_string()), Token::default(), Duration::from_secs(20));
    let put = tokio::spawn(async move { blobs.put(&bytes()).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!put.is_finished());
    let server = Server::builder().add_service(BlobsServer::new(Scripted::default()));
    tokio::spawn(server.serve(address));
    assert_eq!(put.await.unwrap().unwrap(), Digest::of(&bytes()));
}

#[tokio::test]
async fn what_is_put_waits_until_the_coordinator_that_leads_now_has_welcomed_this_worker() {
    let service = Scripted::default();
    *service.term.lock().unwrap() = Some(2);
    let address = listen(service.clone()).await.parse().unwrap();
    let coordinators = Coordinators::new(vec![address], None).unwrap();
    coordinators.led_by(Term(1));
    let blobs = Blobs::new(coordinators.lazy(), Token::default(), Duration::from_secs(20));
    let put = tokio::spawn(async move { blobs.put(&bytes()).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!put.is_finished() && service.blobs.lock().unwrap().is_empty());
    coordinators.led_by(Term(2));
    assert_eq!(put.await.unwrap().unwrap(), Digest::of(&bytes()));
}

#[tokio::test]
async fn what_was_uploaded_is_asked_for_until_the_coordinator_is_back() {
    let (_, blobs) = serve(&[], Duration::from_secs(5)).await;
    let digest = blobs.put(&bytes()).await.unwrap();
    let read = async |blobs: &Blobs, digest| -> Result<Vec<u8>, StoreError> {
        let parts: Vec<Bytes> = blobs.read(digest).try_collect().await?;
        Ok(parts.concat())
    };
    assert_eq!(read(&blobs, digest).await.unwrap(), bytes());
    let (service, blobs) = serve(&[], Duration::from_secs(20)).await;
    let digest = blobs.put(&bytes()).await.unwrap();
    service.acts.lock().unwrap().extend([Act::Unavailable; 6]);
    assert_eq!(read(&blobs, digest).await.unwrap(), bytes());
    assert!(service.acts.lock().unwrap().is_empty());
    let error = read(&blobs, Digest::of(b"never put")).await.unwrap_err();
    assert!(matches!(&error, StoreError::Upload(words) if words.contains("no such blob")), "{error}");
}
