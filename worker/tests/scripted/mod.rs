//! A coordinator of a test: it speaks the real protocol over a real socket, and does what the test's script says.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use futures::Stream;
use graftwork_proto::{
    CoordinatorEnvelope, CoordinatorMessage, Hello, WorkerEnvelope, WorkerMessage,
    v1::{
        self,
        workers_server::{Workers, WorkersServer},
    },
};
use graftwork_shared::id::{Term, WorkerId};
use tokio::{net::UnixListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One session that a worker opened.
pub(crate) struct Session {
    incoming: Streaming<v1::WorkerMessage>,
    outgoing: mpsc::Sender<Result<v1::CoordinatorMessage, Status>>,
    /// The header in which a token travels.
    pub(crate) authorization: Option<String>,
}

impl Session {
    /// The next message that is no heartbeat, probe or cost; `None` when the worker ended the session.
    pub(crate) async fn next(&mut self) -> Option<WorkerEnvelope> {
        loop {
            let message = timeout(PATIENCE, self.incoming.message()).await.expect("a message in time");
            let envelope = WorkerEnvelope::try_from(message.ok().flatten()?).expect("a message that says what it must");
            let many = matches!(
                envelope.message,
                WorkerMessage::Heartbeat(_) | WorkerMessage::Probe { .. } | WorkerMessage::Spent(..)
            );
            if !many {
                return Some(envelope);
            }
        }
    }

    /// The next probe's number, and the round trip that it tells, in milliseconds; how many heartbeats came before it.
    pub(crate) async fn probe(&mut self) -> (u64, u64, usize) {
        let mut beats = 0;
        loop {
            let message = timeout(PATIENCE, self.incoming.message()).await.expect("a message in time");
            let envelope = WorkerEnvelope::try_from(message.unwrap().expect("a session")).unwrap();
            match envelope.message {
                WorkerMessage::Probe { number, round_trip_ms } => return (number, round_trip_ms, beats),
                WorkerMessage::Heartbeat(_) => beats += 1,
                _ => {}
            }
        }
    }

    /// The next heartbeat's leases.
    pub(crate) async fn heartbeat(&mut self) -> Vec<u64> {
        loop {
            let message = timeout(PATIENCE, self.incoming.message()).await.expect("a message in time");
            let envelope = WorkerEnvelope::try_from(message.unwrap().expect("a session")).unwrap();
            if let WorkerMessage::Heartbeat(leases) = envelope.message {
                return leases.into_iter().map(|lease| lease.0).collect();
            }
        }
    }

    /// The greeting, with the term that the worker knows.
    pub(crate) async fn hello(&mut self) -> (u64, Hello) {
        match self.next().await.expect("a greeting") {
            WorkerEnvelope { term, message: WorkerMessage::Hello(hello), .. } => (term.0, hello),
            other => panic!("not a greeting: {other:?}"),
        }
    }

    /// Says something in a term.
    pub(crate) async fn say(&self, term: u64, message: CoordinatorMessage) {
        let envelope = CoordinatorEnvelope { term: Term(term), trace: "trace".to_owned(), message };
        self.outgoing.send(Ok(envelope.into())).await.expect("the worker listens");
    }

    /// Says what this version does not know: a newer one's kind of message is read as none.
    pub(crate) async fn say_unknown(&self, term: u64) {
        let message = v1::CoordinatorMessage { term, trace: "trace".to_owned(), message: None };
        self.outgoing.send(Ok(message)).await.expect("the worker listens");
    }

    /// Greets and welcomes.
    pub(crate) async fn welcome(&mut self, term: u64) -> (u64, Hello) {
        let hello = self.hello().await;
        self.say(term, CoordinatorMessage::Welcome { worker: WorkerId(1), heartbeat_ms: 50 }).await;
        hello
    }
}

struct Door {
    sessions: mpsc::Sender<Session>,
}

#[tonic::async_trait]
impl Workers for Door {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.map(|header| header.to_str().unwrap().to_owned());
        let (outgoing, messages) = mpsc::channel(16);
        let session = Session { incoming: request.into_inner(), outgoing, authorization };
        self.sessions.send(session).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

/// A coordinator on a socket in a folder of its own.
pub(crate) struct Coordinator {
    folder: tempfile::TempDir,
    sessions: mpsc::Receiver<Session>,
}

impl Coordinator {
    pub(crate) fn listen() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sessions = serve(&folder.path().join("socket"));
        Self { folder, sessions }
    }

    pub(crate) async fn session(&mut self) -> Session {
        timeout(PATIENCE, self.sessions.recv()).await.expect("a worker in time").expect("the server runs")
    }

    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.folder.path().join("socket").display())
    }

    /// Starts a worker with these further arguments.
    pub(crate) fn worker(&self, arguments: &[&str]) -> Worker {
        let mut command = worker_command();
        command.args(["worker", "--threads", "1", "--coordinator", &self.address()]).args(arguments);
        Worker(Some(command.stderr(Stdio::piped()).spawn().unwrap()))
    }
}

fn serve(socket: &Path) -> mpsc::Receiver<Session> {
    let (sender, sessions) = mpsc::channel(4);
    let listener = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let server = Server::builder().add_service(WorkersServer::new(Door { sessions: sender }));
    tokio::spawn(server.serve_with_incoming(listener));
    sessions
}

/// The program under test.
pub(crate) fn worker_command() -> Command {
    Command::new(PathBuf::from(env!("CARGO_BIN_EXE_graftwork-worker")))
}

/// A worker process, which does not outlive its test.
pub(crate) struct Worker(Option<Child>);

impl Worker {
    pub(crate) fn id(&self) -> u32 {
        self.0.as_ref().expect("it runs").id()
    }

    /// Waits for its end: exit code, and what it logged.
    pub(crate) async fn end(mut self) -> (Option<i32>, String) {
        let child = self.0.take().expect("it runs");
        let id = child.id();
        let waiting = tokio::task::spawn_blocking(move || child.wait_with_output());
        let Ok(output) = timeout(PATIENCE, waiting).await else {
            kill(id, rustix::process::Signal::KILL);
            panic!("the worker does not end");
        };
        let Output { status, stderr, .. } = output.unwrap().unwrap();
        (status.code(), String::from_utf8_lossy(&stderr).into_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

pub(crate) fn kill(id: u32, signal: rustix::process::Signal) {
    let id = rustix::process::Pid::from_raw(id.try_into().unwrap()).unwrap();
    rustix::process::kill_process(id, signal).unwrap();
}
