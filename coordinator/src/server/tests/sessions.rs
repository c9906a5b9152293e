//! Workers that work, come late, lie, or are not what they say; coordinators that are killed between.

use graftwork_proto::{
    CoordinatorMessage, Hello, Token, WorkerMessage, pushback,
    v1::{self, blobs_client::BlobsClient, jobs_client::JobsClient},
};
use graftwork_shared::{
    VERSION,
    diagnostic::Diagnostic,
    digest::Digest,
    event::{EventKind, Outcome, StepReport},
    id::{LeaseId, Term},
    view::StageState,
};
use tonic::Code;

use super::{
    Place,
    fixture::{plan, stage},
    fused_plan,
    peer::{Peer, connect, get, hello, put, put_for, submit, view, watch},
};

fn one() -> graftwork_scheduler::Plan {
    plan("one", vec![stage("a", &[], 10)])
}

pub(super) fn report(step: u64) -> StepReport {
    StepReport {
        step,
        total_steps: 10,
        epoch: 0.5,
        loss: 1.0,
        learning_rate: 0.1,
        gradient_norm: 1.0,
        examples_per_second: 1.0,
        tokens_per_second: 1.0,
        input_wait: 0.0,
        ..StepReport::default()
    }
}

#[tokio::test]
async fn two_workers_take_a_job_to_its_end() {
    let place = Place::new(fused_plan());
    let running = place.start().await;
    let channel = connect(&running).await;
    let (job, attached) = submit(&channel, &place.plan.job).await.unwrap();
    assert!(!attached);
    let watching = tokio::spawn({
        let (channel, job) = (channel.clone(), job.clone());
        async move { watch(&channel, &job).await }
    });
    let mut peers = [Peer::join(&channel).await, Peer::join(&channel).await];
    let [first, second] = &mut peers;
    tokio::join!(first.work(1), second.work(1));
    let (lease, fusion) = tokio::select! {
        work = first.assignment() => work,
        work = second.assignment() => work,
    };
    assert_eq!((fusion.stage.as_str(), fusion.adapters.len()), ("f", 2));
    assert_eq!(get(&channel, &fusion.adapters[0].to_string()).await.unwrap(), b"weights of a");
    let holder = if view(&channel, &job).await.stages[2].state
        == (StageState::Running { worker: first.worker, others: Vec::new(), checkpoint_step: 0 })
    {
        first
    } else {
        second
    };
    holder.send(WorkerMessage::Step(lease, report(3))).await;
    let result = holder.result("f").await;
    holder.send(WorkerMessage::Finished(lease, result)).await;
    let events = watching.await.unwrap();
    assert!(events.iter().any(|event| event.kind == EventKind::Step(report(3))));
    let last = &events.last().unwrap().kind;
    assert_eq!(*last, EventKind::JobFinished { outcome: Outcome::Succeeded });
    let seen = view(&channel, &job).await;
    assert_eq!((seen.outcome, place.published()), (Some(Outcome::Succeeded), 3));
    assert_eq!(seen.stages[2].curve, [report(3)]);
    assert!((seen.usage.core_seconds - 3.0).abs() < 1e-9);
}

#[tokio::test]
async fn submitting_twice_attaches_also_after_a_restart_and_after_the_end() {
    let place = Place::new(one());
    for round in 0..3 {
        let running = place.start().await;
        let channel = connect(&running).await;
        let (job, attached) = submit(&channel, &place.plan.job).await.unwrap();
        assert_eq!(attached, round > 0, "round {round}");
        assert!(submit(&channel, &place.plan.job).await.unwrap().1);
        if round == 1 {
            Peer::join(&channel).await.work(1).await;
            watch(&channel, &job).await;
        }
        if round == 2 {
            assert_eq!(
                watch(&channel, &job).await.last().unwrap().kind,
                EventKind::JobFinished { outcome: Outcome::Succeeded }
            );
        }
    }
    assert_eq!(place.published(), 1);
}

#[tokio::test]
async fn a_killed_coordinator_goes_on_from_the_accepted_checkpoint() {
    let place = Place::new(one());
    let running = place.start().await;
    let channel = connect(&running).await;
    let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
    let mut peer = Peer::join(&channel).await;
    let (old_lease, _) = peer.assignment().await;
    let superseded = peer.checkpoint(old_lease, 4).await;
    let blob = peer.checkpoint(old_lease, 5).await;
    assert_eq!(get(&channel, &superseded.to_string()).await.unwrap_err().code(), Code::NotFound);
    let term = peer.term;
    drop(running);

    let running = place.start().await;
    let channel = connect(&running).await;
    let mut peer = Peer::join(&channel).await;
    assert_eq!(peer.term, Term(term.0 + 1));
    let (lease, assignment) = peer.assignment().await;
    assert_eq!((assignment.resume, assignment.attempt), (Some(blob), 1));
    assert!(get(&channel, &blob.to_string()).await.is_ok());
    assert!(lease > old_lease);
    // What the old coordinator's worker would still say counts for nothing.
    let result = peer.result("a").await;
    peer.send(WorkerMessage::Finished(old_lease, result.clone())).await;
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Fenced(old_lease));
    // The blobs of a message that counts for nothing are gone with it.
    let result = peer.result("a").await;
    peer.send(WorkerMessage::Finished(lease, result.clone())).await;
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Accepted(lease, 10));
    peer.send(WorkerMessage::Finished(lease, result)).await;
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Fenced(lease));
    watch(&channel, &job).await;
    assert_eq!((view(&channel, &job).await.outcome, place.published()), (Some(Outcome::Succeeded), 1));
}

#[tokio::test]
async fn a_late_worker_cannot_commit() {
    let place = Place::new(one());
    let running = place.start_with(|options| options.silence_ms = 300).await;
    let channel = connect(&running).await;
    submit(&channel, &place.plan.job).await.unwrap();
    let mut frozen = Peer::join(&channel).await;
    let (old_lease, _) = frozen.assignment().await;
    let peer = Peer::join(&channel).await;
    let heart = |peer: &Peer| WorkerMessage::Heartbeat(if peer.worker.0 == 1 { vec![old_lease] } else { vec![] });
    let ended = loop {
        peer.send(heart(&peer)).await;
        tokio::select! {
            ended = frozen.next() => break ended.unwrap_err(),
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
        }
    };
    assert_eq!(ended.code(), Code::DeadlineExceeded);
    // It comes back, with what it believes to hold.
    let mut late = Peer::join(&channel).await;
    late.send(WorkerMessage::Heartbeat(vec![old_lease])).await;
    let mut fenced = false;
    for _ in 0..2 {
        let message = tokio::select! {
            message = late.next() => message.unwrap(),
            () = tokio::time::sleep(std::time::Duration::from_millis(200)) => break,
        };
        fenced |= message == CoordinatorMessage::Fenced(old_lease);
    }
    assert!(fenced);
    assert_eq!(place.published(), 0);
}

#[tokio::test]
async fn a_probe_is_echoed_at_once_and_changes_nothing() {
    let place = Place::new(one());
    let running = place.start().await;
    let mut peer = Peer::join(&connect(&running).await).await;
    for (number, round_trip_ms) in [(1, 0), (2, 350)] {
        peer.send(WorkerMessage::Probe { number, round_trip_ms }).await;
        assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Echo(number));
    }
}

#[tokio::test]
async fn a_worker_of_another_version_is_refused_with_both_versions() {
    let place = Place::new(one());
    let running = place.start().await;
    let channel = connect(&running).await;
    let (_, answer) = Peer::say(&channel, Hello { version: "9.9.9".to_owned(), ..hello() }).await.unwrap();
    let CoordinatorMessage::Refused(reason) = answer else { panic!("{answer:?}") };
    assert!(reason.contains("9.9.9") && reason.contains(VERSION), "{reason}");
}

/// A raw message, so that what typed messages cannot say can be said.
fn raw(term: Term, message: v1::worker_message::Message) -> v1::WorkerMessage {
    v1::WorkerMessage { term: term.0, trace: String::new(), message: Some(message) }
}

#[tokio::test]
async fn a_peer_that_says_what_cannot_be_loses_its_session_and_nothing_else_suffers() {
    use v1::worker_message::Message;
    let place = Place::new(one());
    let running = place.start().await;
    let channel = connect(&running).await;
    let mut good = Peer::join(&channel).await;
    let blob = Digest::of(b"never uploaded").to_string();
    let huge = "x".repeat(17 << 20);
    let cases = [
        (Message::Step(v1::Step { lease: 1, report: "{".to_owned() }), "step.report"),
        (Message::Finished(v1::Finished { lease: 1, result: "{}".to_owned() }), "finished.result: missing field"),
        (Message::Checkpoint(v1::Checkpoint { lease: 1, step: 1, blob: "x".to_owned() }), "checkpoint.blob"),
        (Message::Checkpoint(v1::Checkpoint { lease: 1, step: 1, blob }), "was not uploaded"),
        (
            Message::Hello(
                v1::WorkerMessage::from(graftwork_proto::WorkerEnvelope {
                    term: Term(0),
                    trace: String::new(),
                    message: WorkerMessage::Hello(hello()),
                })
                .message
                .map(|message| match message {
                    Message::Hello(hello) => hello,
                    _ => unreachable!(),
                })
                .unwrap(),
            ),
            "hello",
        ),
        (Message::Step(v1::Step { lease: 1, report: huge }), ""),
    ];
    for (message, expected) in cases {
        let mut peer = Peer::join(&channel).await;
        peer.send_raw(raw(peer.term, message)).await;
        let status = peer.next().await.unwrap_err();
        assert!(status.message().contains(expected), "{expected}: {status:?}");
    }
    let mut old = Peer::join(&channel).await;
    old.send_raw(raw(Term(77), Message::Heartbeat(v1::Heartbeat::default()))).await;
    let status = old.next().await.unwrap_err();
    assert_eq!(status.message(), "the message is of term 77, but this is term 1");
    let mut silent = Peer::join(&channel).await;
    silent.send_raw(v1::WorkerMessage::default()).await;
    // What a newer worker may say beyond this version is left out.
    let nothing = tokio::time::timeout(std::time::Duration::from_millis(200), silent.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    // The good one still works.
    submit(&channel, &place.plan.job).await.unwrap();
    good.work(1).await;
}

#[tokio::test]
async fn problems_of_a_job_come_all_at_once() {
    let place = Place::new(one());
    let running = place.start().await;
    let channel = connect(&running).await;
    let mut job = place.plan.job.clone();
    job.name = "wrong".to_owned();
    let status = submit(&channel, &job).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let problems: Vec<Diagnostic> = serde_json::from_slice(status.details()).unwrap();
    assert_eq!(problems.iter().map(|problem| problem.code.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let mut client = JobsClient::new(channel);
    let malformed = v1::SubmitRequest { job: "{\"name\": 3}".to_owned(), trace: String::new(), spans: String::new() };
    assert!(client.submit(malformed).await.unwrap_err().message().starts_with("job: "));
    let unknown = v1::JobRequest { job: "0123456789abcdef".to_owned() };
    assert_eq!(client.explain(unknown.clone()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.cancel(unknown).await.unwrap_err().code(), Code::NotFound);
    let wrong = v1::JobRequest { job: "../x".to_owned() };
    assert_eq!(client.view(wrong).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn cancelling_fences_the_worker_and_ends_the_job() {
    let place = Place::new(one());
    let running = place.start().await;
    let channel = connect(&running).await;
    let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
    let mut peer = Peer::join(&channel).await;
    let (lease, _) = peer.assignment().await;
    JobsClient::new(channel.clone()).cancel(v1::JobRequest { job: job.to_string() }).await.unwrap();
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Fenced(lease));
    assert_eq!(view(&channel, &job).await.outcome, Some(Outcome::Cancelled));
}

#[tokio::test]
async fn stopping_sends_workers_home_where_it_shall_and_the_next_start_goes_on() {
    let place = Place::new(one());
    let running = place.start_with(|options| options.sends_home = true).await;
    let channel = connect(&running).await;
    submit(&channel, &place.plan.job).await.unwrap();
    let mut peer = Peer::join(&channel).await;
    let (lease, _) = peer.assignment().await;
    let stopping = tokio::spawn(running.stop("Ctrl-C"));
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Drain("Ctrl-C".to_owned()));
    let blob = peer.checkpoint(lease, 5).await;
    peer.send(WorkerMessage::Released(lease)).await;
    drop(peer);
    let begun = std::time::Instant::now();
    stopping.await.unwrap().unwrap();
    assert!(begun.elapsed().as_millis() < 1_500, "it does not wait for workers that have left");
    let running = super::start(place.options()).await.unwrap();
    let mut peer = Peer::join(&connect(&running).await).await;
    assert_eq!(peer.assignment().await.1.resume, Some(blob));
}

#[tokio::test]
async fn blobs_go_in_and_come_out_whole_or_with_an_error() {
    let place = Place::new(one()).with_files();
    let running = place.start().await;
    let channel = connect(&running).await;
    let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = put(&channel, &bytes).await.unwrap();
    assert_eq!(get(&channel, &digest.to_string()).await.unwrap(), bytes);
    let missing = Digest::of(b"missing").to_string();
    assert_eq!(get(&channel, &missing).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(get(&channel, "x").await.unwrap_err().code(), Code::InvalidArgument);
    let has = v1::BlobDigests { digests: vec![missing, digest.to_string()] };
    let here = BlobsClient::new(channel.clone()).has(has).await.unwrap().into_inner().digests;
    assert_eq!(here, [digest.to_string()]);
    let blobs = place.folder.path().join("state/blobs");
    let text = digest.to_string();
    std::fs::write(blobs.join(&text[..2]).join(&text), b"damaged").unwrap();
    assert_eq!(get(&channel, &text).await.unwrap_err().code(), Code::DataLoss);
    std::fs::remove_dir(blobs.join("incoming")).unwrap();
    assert_eq!(put(&channel, b"x").await.unwrap_err().code(), Code::Internal);
    std::fs::create_dir(blobs.join("incoming")).unwrap();
    assert!(put(&channel, b"x").await.is_ok());
}

#[tokio::test]
async fn what_a_worker_puts_for_another_coordinator_is_refused_until_this_one_has_welcomed_it() {
    let place = Place::new(one());
    let running = place.start().await;
    let channel = connect(&running).await;
    let before = Peer::join(&channel).await.term;
    let here = put_for(&channel, b"in time", before).await.unwrap();
    assert_eq!(get(&channel, &here.to_string()).await.unwrap(), b"in time");
    drop(running);

    let running = place.start().await;
    let channel = connect(&running).await;
    let now = Term(before.0 + 1);
    let late = Digest::of(b"late").to_string();
    // Of the coordinator before, and of one that leads already while this one does not know it.
    for term in [before, Term(now.0 + 1)] {
        let refused = put_for(&channel, b"late", term).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "the worker asks again");
        assert_eq!(refused.message(), format!("the request is of {term}, but this is {now}"));
        let mut blobs = BlobsClient::with_interceptor(channel.clone(), Token::default().with_term(term));
        let wanted = v1::BlobDigest { digest: late.clone() };
        assert_eq!(blobs.get(wanted).await.unwrap_err().code(), Code::Unavailable, "and not that it is missing");
    }
    let mut blobs = BlobsClient::with_interceptor(channel.clone(), Token::default().with_key("process"));
    let wanted = v1::BlobDigest { digest: late.clone() };
    assert_eq!(blobs.get(wanted).await.unwrap_err().code(), Code::Unavailable, "a session that says no term");
    assert_eq!(get(&channel, &late).await.unwrap_err().code(), Code::NotFound, "nothing was kept");
    let welcomed = Peer::join(&channel).await;
    assert_eq!(welcomed.term, now);
    put_for(&channel, b"late", now).await.unwrap();
    assert_eq!(get(&channel, &late).await.unwrap(), b"late");
}

#[tokio::test]
async fn a_lease_that_never_was_is_fenced() {
    let place = Place::new(one());
    let running = place.start().await;
    let mut peer = Peer::join(&connect(&running).await).await;
    peer.send(WorkerMessage::Released(LeaseId(99))).await;
    peer.send(WorkerMessage::Step(LeaseId(99), report(1))).await;
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Fenced(LeaseId(99)));
}

#[tokio::test]
async fn a_coordinator_that_stops_waits_for_no_worker_and_the_next_one_takes_it_up() {
    let place = Place::new(one());
    let running = place.start().await;
    let channel = connect(&running).await;
    submit(&channel, &place.plan.job).await.unwrap();
    let key = "a key that nobody guesses".to_owned();
    let known = Hello { key: key.clone(), ..hello() };
    let (mut peer, _) = Peer::say(&channel, known.clone()).await.unwrap();
    let (lease, _) = peer.assignment().await;
    let blob = peer.checkpoint(lease, 5).await;
    let begun = std::time::Instant::now();
    running.stop("an upgrade").await.unwrap();
    assert!(begun.elapsed().as_millis() < 1_500, "{:?}", begun.elapsed());
    assert!(peer.next().await.is_err(), "nobody is told to leave");
    let running = place.start().await;
    let channel = connect(&running).await;
    let (mut peer, answer) = Peer::say(&channel, Hello { leases: vec![lease], ..known }).await.unwrap();
    assert!(matches!(answer, CoordinatorMessage::Welcome { .. }), "{answer:?}");
    let result = peer.result("a").await;
    peer.send(WorkerMessage::Finished(lease, result)).await;
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Accepted(lease, 10));
    assert_ne!(blob, Digest::of(b""));
}

#[tokio::test]
async fn a_worker_one_minor_version_apart_is_welcome() {
    let place = Place::new(one());
    let running = place.start().await;
    let channel = connect(&running).await;
    for (version, welcome) in others() {
        let (_, answer) = Peer::say(&channel, Hello { version, ..hello() }).await.unwrap();
        assert_eq!(matches!(answer, CoordinatorMessage::Welcome { .. }), welcome, "{answer:?}");
    }
}

/// Other versions, and whether they work with this one.
fn others() -> [(String, bool); 3] {
    let mut numbers = VERSION.split('.').map(|number| number.parse::<u64>().unwrap());
    let (major, minor) = (numbers.next().unwrap(), numbers.next().unwrap());
    [(major, minor + 1, true), (major, minor + 2, false), (major + 1, minor, false)]
        .map(|(major, minor, works)| (format!("{major}.{minor}.0"), works))
}

#[tokio::test]
async fn a_command_one_minor_version_apart_is_served_and_others_are_told_both_versions() {
    let place = Place::new(one());
    let running = place.start().await;
    let channel = connect(&running).await;
    for (version, served) in others() {
        let token = Token::default().with_version(&version);
        let answer = JobsClient::with_interceptor(channel.clone(), token).coordinator(v1::Empty {}).await;
        if served {
            answer.unwrap();
            continue;
        }
        let refused = answer.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let said = refused.message();
        assert!(said.contains(&format!("{version:?}")) && said.contains(&format!("{VERSION:?}")), "{said}");
        assert!(said.starts_with("the command is version") && said.ends_with("upgrade the older one"), "{said}");
        assert_eq!(pushback(&refused), None, "asking again does not help");
    }
    // Other clients of the protocol have no version of ours.
    JobsClient::new(channel).coordinator(v1::Empty {}).await.unwrap();
}
