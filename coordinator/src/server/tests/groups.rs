//! Groups on the wire: joining, forming, breaking, and the place where members meet.

use std::time::Duration;

use graftwork_proto::{
    CoordinatorMessage, Formation, WorkerMessage,
    v1::{self, groups_client::GroupsClient, meet_request::What},
};
use graftwork_shared::{
    event::EventKind,
    id::{JobId, LeaseId, Term},
    view::StageState,
};
use tonic::{Code, Status, transport::Channel};

use super::{
    super::{Auth, Listen, Running},
    Place,
    fixture::grouped,
    peer::{Peer, connect, submit, view, watch},
    sessions::report,
};

/// Two workers that train one stage together, in epoch 1.
struct Pair {
    running: Running,
    channel: Channel,
    job: JobId,
    lease: LeaseId,
    first: Peer,
    second: Peer,
}

async fn pair(place: &Place) -> Pair {
    let running = place.start().await;
    let channel = connect(&running).await;
    let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
    let mut first = Peer::join(&channel).await;
    let (lease, _) = first.assignment().await;
    first.checkpoint(lease, 5).await;
    let mut second = Peer::join(&channel).await;
    let CoordinatorMessage::Assign { lease: joined, assignment, joining: true } = second.next().await.unwrap() else {
        panic!("the second is asked to join");
    };
    assert!(joined == lease && assignment.resume.is_none(), "it takes up the state of the members");
    second.send(WorkerMessage::Prepared(lease)).await;
    for (rank, peer) in [&mut first, &mut second].into_iter().enumerate() {
        let rank = u32::try_from(rank).unwrap();
        let formation = Formation { epoch: 1, rank, ranks: 2, at_once: false, checkpointed: 5, shares: Vec::new() };
        assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Form(lease, formation));
    }
    Pair { running, channel, job, lease, first, second }
}

/// Meets under a place's first coordinator.
async fn meet(channel: &Channel, (lease, epoch): (LeaseId, u64), name: &str, what: What) -> Result<Met, Status> {
    let request = v1::MeetRequest { lease: lease.0, epoch, name: name.to_owned(), what: Some(what), term: 1 };
    let reply = GroupsClient::new(channel.clone()).meet(request).await?.into_inner();
    Ok((reply.value, reply.sum))
}

type Met = (Vec<u8>, i64);

fn code(met: Result<Met, Status>) -> Code {
    met.unwrap_err().code()
}

#[tokio::test]
async fn two_workers_train_one_stage_and_the_first_finishes_it() {
    let place = Place::new(grouped(4, 100));
    let Pair { channel, job, lease, mut first, mut second, running: _running } = pair(&place).await;
    let state = view(&channel, &job).await.stages[0].state.clone();
    let expected = StageState::Running { worker: first.worker, others: vec![second.worker], checkpoint_step: 5 };
    assert_eq!(state, expected);
    let watching = tokio::spawn({
        let (channel, job) = (channel.clone(), job.clone());
        async move { watch(&channel, &job).await }
    });
    second.send(WorkerMessage::Step(lease, report(7))).await;
    second.send(WorkerMessage::Heartbeat(vec![lease])).await;
    first.send(WorkerMessage::Step(lease, report(6))).await;
    first.checkpoint(lease, 50).await;
    let result = first.result_after("a", 100).await;
    first.send(WorkerMessage::Finished(lease, result)).await;
    assert_eq!(first.next().await.unwrap(), CoordinatorMessage::Accepted(lease, 100));
    assert_eq!(second.next().await.unwrap(), CoordinatorMessage::Fenced(lease));
    let events = watching.await.unwrap();
    let steps = events.iter().filter_map(|event| match &event.kind {
        EventKind::Step(report) => Some(report.step),
        _ => None,
    });
    assert_eq!(steps.collect::<Vec<_>>(), [6], "rank 0 alone reports");
    let formed = events.iter().find_map(|event| match &event.kind {
        EventKind::GroupFormed { epoch: 1, members, .. } => Some(members.clone()),
        _ => None,
    });
    assert_eq!(formed.unwrap(), [first.worker, second.worker]);
    assert_eq!(place.published(), 1);
}

#[tokio::test]
async fn a_member_that_dies_is_left_out_and_the_other_goes_on() {
    let place = Place::new(grouped(4, 100));
    let Pair { channel, job, lease, first, mut second, running: _running } = pair(&place).await;
    drop(first);
    let formation = Formation { epoch: 2, rank: 0, ranks: 1, at_once: true, checkpointed: 5, shares: Vec::new() };
    assert_eq!(second.next().await.unwrap(), CoordinatorMessage::Form(lease, formation));
    second.checkpoint(lease, 60).await;
    let result = second.result_after("a", 100).await;
    second.send(WorkerMessage::Finished(lease, result)).await;
    assert_eq!(second.next().await.unwrap(), CoordinatorMessage::Accepted(lease, 100));
    let events = watch(&channel, &job).await;
    assert!(!events.iter().any(|event| matches!(event.kind, EventKind::AttemptFailed { .. })));
}

#[tokio::test]
async fn a_broken_group_is_told_to_form_again_and_a_follower_cannot_commit() {
    let place = Place::new(grouped(4, 100));
    let Pair { lease, mut first, mut second, channel: _channel, running: _running, .. } = pair(&place).await;
    second.send(WorkerMessage::Broken(lease, 0, "of an older group".to_owned())).await;
    second.send(WorkerMessage::Broken(lease, 1, "rank 0 closed".to_owned())).await;
    for (rank, peer) in [(0, &mut first), (1, &mut second)] {
        let formation = Formation { epoch: 2, rank, ranks: 2, at_once: true, checkpointed: 5, shares: Vec::new() };
        assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Form(lease, formation));
    }
    let result = second.result_after("a", 100).await;
    second.send(WorkerMessage::Finished(lease, result)).await;
    assert_eq!(second.next().await.unwrap(), CoordinatorMessage::Fenced(lease));
    let formation = Formation { epoch: 3, rank: 0, ranks: 1, at_once: true, checkpointed: 5, shares: Vec::new() };
    assert_eq!(first.next().await.unwrap(), CoordinatorMessage::Form(lease, formation));
}

#[tokio::test]
async fn members_meet_over_values_and_numbers() {
    let place = Place::new(grouped(4, 100));
    let Pair { channel, lease, first: _first, second: _second, running: _running, .. } = pair(&place).await;
    let here = (lease, 1);
    let waiting = tokio::spawn({
        let channel = channel.clone();
        async move { meet(&channel, here, "rank 0", What::WaitMs(30_000)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(meet(&channel, here, "rank 0", What::Set(b"first".to_vec())).await.unwrap(), (Vec::new(), 0));
    assert_eq!(waiting.await.unwrap().unwrap(), (b"first".to_vec(), 0));
    meet(&channel, here, "rank 0", What::Set(b"again".to_vec())).await.unwrap();
    assert_eq!(meet(&channel, here, "rank 0", What::WaitMs(0)).await.unwrap(), (b"again".to_vec(), 0));
    for sum in [2, 4, 6] {
        assert_eq!(meet(&channel, here, "count", What::Add(2)).await.unwrap(), (Vec::new(), sum));
    }
    assert_eq!(code(meet(&channel, here, "nobody", What::WaitMs(20)).await), Code::NotFound);
}

#[tokio::test]
async fn nothing_of_an_older_group_is_kept_or_answered() {
    let place = Place::new(grouped(4, 100));
    let Pair { channel, lease, mut first, second, running: _running, .. } = pair(&place).await;
    meet(&channel, (lease, 1), "x", What::Set(b"old".to_vec())).await.unwrap();
    for stranger in [(lease, 0), (lease, 2), (LeaseId(lease.0 + 1), 1)] {
        assert_eq!(code(meet(&channel, stranger, "x", What::WaitMs(10)).await), Code::FailedPrecondition);
    }
    let waiting = tokio::spawn({
        let channel = channel.clone();
        async move { meet(&channel, (lease, 1), "never set", What::WaitMs(30_000)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(second);
    assert!(matches!(first.next().await.unwrap(), CoordinatorMessage::Form(_, Formation { epoch: 2, .. })));
    assert_eq!(code(waiting.await.unwrap()), Code::FailedPrecondition, "it is told at once");
    assert_eq!(code(meet(&channel, (lease, 1), "x", What::WaitMs(0)).await), Code::FailedPrecondition);
    assert_eq!(code(meet(&channel, (lease, 2), "x", What::WaitMs(0)).await), Code::NotFound);
    let result = first.result_after("a", 100).await;
    first.send(WorkerMessage::Finished(lease, result)).await;
    assert_eq!(first.next().await.unwrap(), CoordinatorMessage::Accepted(lease, 100));
    assert_eq!(code(meet(&channel, (lease, 2), "x", What::WaitMs(0)).await), Code::FailedPrecondition);
}

#[tokio::test]
async fn whoever_meets_under_another_term_meets_nobody() {
    let place = Place::new(grouped(4, 100));
    let Pair { channel, lease, first, second: _second, running: _running, .. } = pair(&place).await;
    let under = |term| {
        let what = Some(What::Add(1));
        let request = v1::MeetRequest { lease: lease.0, epoch: 1, name: "x".to_owned(), what, term };
        let mut client = GroupsClient::new(channel.clone());
        async move { client.meet(request).await.map(|reply| reply.into_inner().sum) }
    };
    assert_eq!(first.term, Term(1));
    for other in [0, 2] {
        let refused = under(other).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(&Term(other).to_string()), "{}", refused.message());
    }
    assert_eq!(under(1).await.unwrap(), 1);
}

#[tokio::test]
async fn what_is_met_over_is_small() {
    let place = Place::new(grouped(4, 100));
    let Pair { channel, lease, first: _first, second: _second, running: _running, .. } = pair(&place).await;
    let here = (lease, 1);
    let large = vec![7; (64 << 10) + 1];
    meet(&channel, here, "x", What::Set(large[1..].to_vec())).await.unwrap();
    assert_eq!(code(meet(&channel, here, "x", What::Set(large)).await), Code::InvalidArgument);
    for name in ["", &"n".repeat(257)] {
        assert_eq!(code(meet(&channel, here, name, What::Add(1)).await), Code::InvalidArgument);
    }
    let request = v1::MeetRequest { lease: lease.0, epoch: 1, name: "x".to_owned(), what: None, term: 1 };
    let refused = GroupsClient::new(channel.clone()).meet(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    for number in 0..4_095 {
        meet(&channel, here, &number.to_string(), What::Add(1)).await.unwrap();
    }
    assert_eq!(code(meet(&channel, here, "one more", What::Add(1)).await), Code::ResourceExhausted);
    assert!(meet(&channel, here, "x", What::WaitMs(0)).await.is_ok());
}

#[tokio::test]
async fn a_stranger_without_the_token_meets_nobody() {
    let place = Place::new(grouped(4, 100));
    let running = place
        .start_with(|options| {
            options.listen = vec![Listen::Tcp(([127, 0, 0, 1], 0).into())];
            options.auth = Auth::Token("a secret of some length".to_owned());
        })
        .await;
    let channel = connect(&running).await;
    assert_eq!(code(meet(&channel, (LeaseId(1), 1), "x", What::Add(1)).await), Code::Unauthenticated);
    let mut request = tonic::Request::new(v1::MeetRequest {
        lease: 1,
        epoch: 1,
        name: "x".to_owned(),
        what: Some(What::Add(1)),
        term: 1,
    });
    request.metadata_mut().insert("authorization", "Bearer a secret of some length".parse().unwrap());
    let refused = GroupsClient::new(channel).meet(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "let in, but there is no such lease");
}

#[tokio::test]
async fn a_restart_ends_the_group_with_its_lease() {
    let place = Place::new(grouped(4, 100));
    let Pair { running, lease, first, .. } = pair(&place).await;
    drop(running);
    let running = place.start().await;
    let channel = connect(&running).await;
    let mut peer = Peer::join(&channel).await;
    for term in [first.term, peer.term] {
        let request =
            v1::MeetRequest { lease: lease.0, epoch: 1, name: "x".to_owned(), what: Some(What::Add(1)), term: term.0 };
        let refused = GroupsClient::new(channel.clone()).meet(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
    }
    assert!(peer.term > first.term && peer.term > Term(0));
    assert!(peer.assignment().await.0 > lease);
}
