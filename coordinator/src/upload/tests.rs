//! What is uploaded, and how it ends when the coordinator does not take it.

use std::sync::{Arc, Mutex};

use futures::stream::BoxStream;
use graftwork_proto::{
    PUSHBACK_HEADER, Route, Token, VERSION_HEADER,
    v1::{
        BlobDigest, BlobDigests, Chunk,
        blobs_server::{Blobs, BlobsServer},
    },
};
use graftwork_shared::upload;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{send::UploadError, *};
use crate::{
    client::{Client, submission},
    fixture::{TASK, World},
};

/// A coordinator's blobs that take what is put, or answer as a test says after the first chunk.
#[derive(Clone, Default)]
struct Scripted {
    blobs: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    refuse: Arc<Mutex<Option<Status>>>,
    /// Refuses so many with a limit that passes.
    busy: Arc<Mutex<u32>>,
    /// The version that was said last.
    version: Arc<Mutex<Option<String>>>,
}

#[tonic::async_trait]
impl Blobs for Scripted {
    async fn put(&self, request: Request<Streaming<Chunk>>) -> Result<Response<BlobDigest>, Status> {
        let mut stream = request.into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.message().await? {
            let mut busy = self.busy.lock().unwrap();
            if *busy > 0 {
                *busy -= 1;
                let mut status = Status::resource_exhausted("too often");
                status.metadata_mut().insert(PUSHBACK_HEADER, 20_u64.into());
                return Err(status);
            }
            if let Some(status) = self.refuse.lock().unwrap().clone() {
                return Err(status);
            }
            bytes.extend(chunk.data);
        }
        let digest = Digest::of(&bytes).to_string();
        self.blobs.lock().unwrap().insert(digest.clone(), bytes);
        Ok(Response::new(BlobDigest { digest }))
    }

    type GetStream = BoxStream<'static, Result<Chunk, Status>>;

    async fn get(&self, _: Request<BlobDigest>) -> Result<Response<Self::GetStream>, Status> {
        Err(Status::unimplemented("nobody reads here"))
    }

    async fn has(&self, request: Request<BlobDigests>) -> Result<Response<BlobDigests>, Status> {
        let version = request.metadata().get(VERSION_HEADER).map(|version| version.to_str().unwrap().to_owned());
        *self.version.lock().unwrap() = version;
        let mut digests = request.into_inner().digests;
        digests.retain(|digest| self.blobs.lock().unwrap().contains_key(digest));
        Ok(Response::new(BlobDigests { digests }))
    }
}

async fn serve() -> (Scripted, Client) {
    let service = Scripted::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let server = Server::builder().add_service(BlobsServer::new(service.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (service, Client::connect(&[Route::new(address, None).unwrap()], Token::default()).await.unwrap())
}

fn prepare(world: &World, tasks: &str, shared: &[PathBuf]) -> Result<Upload, Vec<Diagnostic>> {
    let (_, job, spans) = world.job(tasks);
    Upload::prepare(job, &spans, shared)
}

#[tokio::test]
async fn local_files_become_their_digests_and_go_once() {
    let world = World::new();
    let uploaded = prepare(&world, TASK, &[]).unwrap();
    let rows = Digest::of(&std::fs::read(world.path("train.parquet")).unwrap());
    // The fixture's three files hold the same rows, so there is one blob for all.
    assert_eq!(uploaded.job.tasks[0].data.train, [upload::location(rows, "train.parquet")]);
    assert_eq!(upload::name(&uploaded.job.base_model.location), Some("base"));
    let (service, mut client) = serve().await;
    send(&uploaded, &mut client, submission().context()).await.unwrap();
    assert_eq!(service.blobs.lock().unwrap().len(), 5, "rows, and the base model's three files with their list");
    *service.refuse.lock().unwrap() = Some(Status::internal("nothing is put again"));
    send(&uploaded, &mut client, submission().context()).await.unwrap();
}

#[tokio::test]
async fn a_command_says_its_version() {
    let (service, mut client) = serve().await;
    client.has(&[Digest::of(b"rows")].into()).await.unwrap();
    assert_eq!(service.version.lock().unwrap().as_deref(), Some(graftwork_shared::VERSION));
}

#[tokio::test]
async fn a_limit_that_passes_is_waited_out() {
    let world = World::new();
    let uploaded = prepare(&world, TASK, &[]).unwrap();
    let (service, mut client) = serve().await;
    *service.busy.lock().unwrap() = 3;
    send(&uploaded, &mut client, submission().context()).await.unwrap();
    assert_eq!((service.blobs.lock().unwrap().len(), *service.busy.lock().unwrap()), (5, 0));
}

#[tokio::test]
async fn globs_and_folders_are_uploaded_file_by_file() {
    let world = World::new();
    std::fs::create_dir(world.path("shards")).unwrap();
    for (name, text) in [("shards/b.parquet", "b"), ("shards/a.parquet", "a")] {
        world.rows(name, &[text], &["good"]);
    }
    for source in ["shards", "shards/*.parquet"] {
        let task = TASK.replace("\"train.parquet\"", &format!("\"{source}\""));
        let uploaded = prepare(&world, &task, &[]).unwrap();
        let names: Vec<_> = uploaded.job.tasks[0].data.train.iter().map(|place| upload::name(place).unwrap()).collect();
        assert_eq!(names, ["a.parquet", "b.parquet"]);
    }
}

#[test]
fn moving_data_changes_neither_job_nor_place() {
    let (first, second) = (World::new(), World::new());
    let [one, two] = [&first, &second].map(|world| {
        let mut job = prepare(world, TASK, &[]).unwrap().job;
        "/hub".clone_into(&mut job.publish.hub);
        job
    });
    assert_eq!(one, two);
    let mut renamed = two.clone();
    let digest = upload::digest(&renamed.tasks[0].data.train[0]).unwrap();
    renamed.tasks[0].data.train[0] = upload::location(digest, "another name.parquet");
    assert_eq!(renamed.digest(), one.digest(), "a file counts by its content");
    second.rows("train.parquet", &["new", "rows"], &["good", "bad"]);
    assert_ne!(prepare(&second, TASK, &[]).unwrap().job.digest(), one.digest());
}

#[test]
fn what_lies_below_a_shared_root_stays_where_it_is() {
    let world = World::new();
    let (_, job, _) = world.job(TASK);
    let uploaded = prepare(&world, TASK, &[world.path("")]).unwrap();
    assert_eq!((uploaded.job, uploaded.contents.len()), (job.clone(), 0));
    let uploaded = prepare(&world, TASK, &[world.path("base")]).unwrap();
    assert_eq!(uploaded.job.base_model, job.base_model);
    assert!(upload::digest(&uploaded.job.tasks[0].data.train[0]).is_some());
}

#[test]
fn all_that_is_missing_is_told_at_its_place() {
    let world = World::new();
    std::fs::remove_file(world.path("train.parquet")).unwrap();
    std::fs::remove_file(world.path("base/config.json")).unwrap();
    let (text, job, spans) = world.job(TASK);
    let problems = Upload::prepare(job, &spans, &[]).err().unwrap();
    let places: Vec<&str> = problems.iter().map(|problem| &text[problem.span.clone().unwrap()]).collect();
    assert_eq!(places, ["\"base\"", "\"train.parquet\""]);
    assert!(problems[0].message.contains("holds no config.json"), "{}", problems[0]);
    assert!(problems[1].help.as_ref().unwrap().contains("--shared-root"), "{}", problems[1]);
}

#[tokio::test]
async fn a_full_disk_and_a_broken_connection_have_their_own_words() {
    let world = World::new();
    world.rows("train.parquet", &["x".repeat(3_000_000).as_str()], &["good"]);
    let uploaded = prepare(&world, TASK, &[]).unwrap();
    let (service, mut client) = serve().await;
    *service.refuse.lock().unwrap() = Some(Status::resource_exhausted("the disk of /state is full: free some space"));
    let error = send(&uploaded, &mut client, submission().context()).await.unwrap_err();
    assert!(matches!(error, UploadError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("the disk of /state is full"), "{error}");
    *service.refuse.lock().unwrap() = Some(Status::unavailable("connection reset"));
    let error = send(&uploaded, &mut client, submission().context()).await.unwrap_err();
    assert!(matches!(error, UploadError::Broken { .. }), "{error}");
    assert!(error.to_string().contains("run the same command again"), "{error}");
    *service.refuse.lock().unwrap() = None;
    send(&uploaded, &mut client, submission().context()).await.unwrap();
}

#[tokio::test]
async fn a_file_that_changes_meanwhile_is_not_taken_for_another() {
    let world = World::new();
    let uploaded = prepare(&world, TASK, &[]).unwrap();
    for name in ["train", "validation", "test"] {
        world.rows(&format!("{name}.parquet"), &["other"], &["good"]);
    }
    let error = send(&uploaded, &mut serve().await.1, submission().context()).await.unwrap_err();
    assert!(matches!(error, UploadError::Changed(_)), "{error}");
}
