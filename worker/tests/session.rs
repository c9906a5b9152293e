//! The worker program against scripted coordinators: greeting, faults, signals, ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

mod scripted;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use graftwork_proto::{CoordinatorMessage, WorkerMessage};
use graftwork_shared::{
    adapter::AdapterConfig,
    assignment::{Assignment, Failure},
    data::{Columns, SplitManifest, TextColumns},
    digest::Digest,
    head::{Head, HeadOutput},
    id::{JobId, LeaseId},
    metric::Metric,
    recipe::{Method, Recipe},
    training::Training,
};
use rustix::process::Signal;
use scripted::{Coordinator, PATIENCE, kill, worker_command};

/// An assignment whose base model is nowhere.
fn impossible() -> Box<Assignment> {
    let manifest = || SplitManifest { files: Vec::new(), rule: None, limit: None, rows: 0 };
    let recipe = Recipe {
        numerics_version: graftwork_shared::NUMERICS_VERSION,
        base_model: Digest::of(b"base"),
        method: Method::Adapter(AdapterConfig::preset("seq_bn").unwrap()),
        head: Head::new(HeadOutput::Regression),
        metric: Metric::Spearman,
        training: Training::default(),
        columns: Columns { text: TextColumns::One("text".to_owned()), label: "label".to_owned() },
        train: manifest().content(),
        validation: manifest().content(),
        test: None,
        skip_layers: Vec::new(),
    };
    Box::new(Assignment {
        job: JobId::of(&Digest::of(b"job")),
        stage: "sentiment".parse().unwrap(),
        attempt: 0,
        recipe,
        base_model: "/nowhere/at/all".to_owned(),
        train: manifest(),
        validation: manifest(),
        test: None,
        adapters: Vec::new(),
        resume: None,
        until: None,
        data_credentials: None,
        base_model_credentials: None,
    })
}

#[tokio::test]
async fn a_worker_says_what_it_is_and_leaves_when_it_is_drained() {
    let mut coordinator = Coordinator::listen();
    let worker = coordinator.worker(&["--slots", "3"]);
    let mut session = coordinator.session().await;
    let (term, hello) = session.welcome(5).await;
    assert_eq!((term, hello.pid, hello.threads, hello.slots), (0, worker.id(), 1, 3));
    assert_eq!(hello.version, graftwork_shared::VERSION);
    assert_eq!(hello.numeric_class.device, "cpu");
    assert!(hello.numeric_class.libtorch.starts_with("2."), "{:?}", hello.numeric_class);
    assert!(hello.memory_bytes > 1 << 20);
    assert!(session.heartbeat().await.is_empty());
    session.say(5, CoordinatorMessage::Drain("upgrade".to_owned())).await;
    assert!(session.next().await.is_none());
    drop(session);
    assert_eq!(worker.end().await.0, Some(0));
}

#[tokio::test]
async fn an_assignment_that_fails_costs_neither_the_worker_nor_its_session() {
    let mut coordinator = Coordinator::listen();
    let _worker = coordinator.worker(&[]);
    let mut session = coordinator.session().await;
    session.welcome(5).await;
    for lease in [11, 12] {
        session
            .say(5, CoordinatorMessage::Assign { lease: LeaseId(lease), assignment: impossible(), joining: false })
            .await;
        let said = session.next().await.unwrap();
        let WorkerMessage::Failed(failed, Failure { message, .. }) = said.message else { panic!("{said:?}") };
        assert_eq!((failed, said.term.0, said.trace.as_str()), (LeaseId(lease), 5, "trace"));
        assert!(message.contains("the source names no file"), "{message}");
    }
    assert!(session.heartbeat().await.is_empty());
}

#[tokio::test]
async fn what_a_newer_coordinator_says_beyond_this_version_is_left_out_and_the_session_goes_on() {
    let mut coordinator = Coordinator::listen();
    let _worker = coordinator.worker(&[]);
    let mut session = coordinator.session().await;
    session.say_unknown(5).await;
    session.welcome(5).await;
    session.say_unknown(5).await;
    session.say(5, CoordinatorMessage::Assign { lease: LeaseId(11), assignment: impossible(), joining: false }).await;
    session.say_unknown(5).await;
    let said = session.next().await.expect("the session goes on");
    assert!(matches!(said.message, WorkerMessage::Failed(LeaseId(11), _)), "{said:?}");
    assert!(session.heartbeat().await.is_empty());
}

#[tokio::test]
async fn a_broken_session_is_opened_again() {
    let mut coordinator = Coordinator::listen();
    let _worker = coordinator.worker(&[]);
    let mut session = coordinator.session().await;
    let (_, first) = session.welcome(5).await;
    session.heartbeat().await;
    drop(session);
    let mut session = coordinator.session().await;
    let (term, again) = session.welcome(4).await;
    assert_eq!(term, 5, "the worker tells the latest term that it saw");
    assert_eq!((again.key.len(), &again.key), (64, &first.key), "by its key it is known again");
    assert!(session.next().await.is_none(), "a coordinator of an older term is not served");
    let mut session = coordinator.session().await;
    session.welcome(6).await;
    assert!(session.heartbeat().await.is_empty());
}

#[tokio::test]
async fn a_worker_measures_the_way_to_its_coordinator_and_beats_less_often_on_a_long_one() {
    let mut coordinator = Coordinator::listen();
    let _worker = coordinator.worker(&[]);
    let mut session = coordinator.session().await;
    session.welcome(5).await;
    let (number, told_ms, _) = session.probe().await;
    assert_eq!((number, told_ms), (1, 0), "nothing is measured yet");
    tokio::time::sleep(Duration::from_millis(400)).await;
    session.say(5, CoordinatorMessage::Echo(number)).await;
    let (mut number, told_ms, beats) = session.probe().await;
    assert_eq!(number, 2, "one probe is on its way at a time");
    assert!(beats >= 2, "the heart beats meanwhile");
    assert!(told_ms >= 1_200, "{told_ms} ms: the one that was measured, and as much as it could differ");
    let began = Instant::now();
    for _ in 0..3 {
        session.say(5, CoordinatorMessage::Echo(number)).await;
        number = session.probe().await.0;
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(600), "{took:?} for three beats, where one each 50 ms is asked for");
}

#[tokio::test]
async fn a_refused_worker_tells_the_reason() {
    let mut coordinator = Coordinator::listen();
    let worker = coordinator.worker(&[]);
    let mut session = coordinator.session().await;
    session.hello().await;
    session.say(5, CoordinatorMessage::Refused("this is version 0.2.0".to_owned())).await;
    let (code, log) = worker.end().await;
    assert_eq!(code, Some(1));
    assert!(log.contains("refused this worker: this is version 0.2.0"), "{log}");
}

#[tokio::test]
async fn a_signal_releases_and_ends_well() {
    let mut coordinator = Coordinator::listen();
    for signal in [Signal::TERM, Signal::INT] {
        let worker = coordinator.worker(&[]);
        let mut session = coordinator.session().await;
        session.welcome(5).await;
        session.heartbeat().await;
        kill(worker.id(), signal);
        while session.next().await.is_some() {}
        drop(session);
        assert_eq!(worker.end().await.0, Some(0), "{signal:?}");
    }
}

#[tokio::test]
async fn a_coordinator_that_is_not_there_is_given_up_in_the_end() {
    let mut command = worker_command();
    command.args(["worker", "--threads", "1", "--patience", "1", "--coordinator", "unix:///nowhere/socket"]);
    let begun = Instant::now();
    let output = command.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(log.contains("no coordinator at unix:///nowhere/socket"), "{log}");
    assert!(begun.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_token_is_sent_and_never_logged() {
    let mut coordinator = Coordinator::listen();
    let mut command = worker_command();
    command.env("SECRET_OF_A_TEST", "s3cr3t").env("GRAFTWORK_LOG", "trace");
    command.args(["worker", "--token-env", "SECRET_OF_A_TEST", "--coordinator", &coordinator.address()]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut session = coordinator.session().await;
    assert_eq!(session.authorization.as_deref(), Some("Bearer s3cr3t"));
    assert!(!format!("{:?}", session.hello().await).contains("s3cr3t"), "it travels as a header alone");
    session.say(1, CoordinatorMessage::Refused("bye".to_owned())).await;
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("bye") && !log.contains("s3cr3t"), "{log}");
    let output = worker_command()
        .args(["worker", "--token-env", "NOT_SET_AT_ALL", "--coordinator", "unix:///x"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("NOT_SET_AT_ALL"));
}

#[tokio::test]
async fn a_worker_dies_with_its_parent() {
    let coordinator = Coordinator::listen();
    // The shell is the parent; it prints the worker's id and stays.
    let mut shell = Command::new("sh")
        .args(["-c", "\"$0\" worker --coordinator \"$1\" --threads 1 --die-with-parent 2>/dev/null & echo $!; wait"])
        .args([env!("CARGO_BIN_EXE_graftwork-worker"), &coordinator.address()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let id: i32 = line.trim().parse().unwrap();
    let mut coordinator = coordinator;
    let mut session = coordinator.session().await;
    session.welcome(5).await;
    session.heartbeat().await;
    shell.kill().unwrap();
    shell.wait().unwrap();
    let killed = Instant::now();
    while is_alive(id) {
        assert!(killed.elapsed() < Duration::from_secs(5), "the worker outlives its parent");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A process that has ended but was not waited for yet does not live.
fn is_alive(id: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = status.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
    state.is_some_and(|state| state != 'Z')
}
