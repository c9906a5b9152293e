//! Connections that break for a moment, and blobs that the disk has lost.

use std::{fs, path::PathBuf, time::Duration};

use graftwork_proto::{
    CoordinatorMessage, Hello, WorkerMessage,
    v1::{self, jobs_client::JobsClient},
};
use graftwork_shared::{
    assignment::{Blame, Failure},
    digest::Digest,
    event::{EventKind, Outcome},
    id::LeaseId,
    job::Device,
    view::StageState,
};
use tonic::{Code, transport::Channel};

use super::{
    Place,
    fixture::{plan, stage},
    fused_plan,
    peer::{Peer, connect, get, hello, put_as, submit, view, watch},
};

fn place() -> Place {
    Place::new(plan("one", vec![stage("a", &[], 10)])).with_files()
}

/// A process with a key, as it says hello while it holds these leases.
fn keyed(leases: Vec<LeaseId>) -> Hello {
    Hello { key: "key".to_owned(), leases, ..hello() }
}

async fn join(channel: &Channel, hello: Hello) -> Peer {
    match Peer::say(channel, hello).await.unwrap() {
        (mut peer, CoordinatorMessage::Welcome { worker, .. }) => {
            peer.worker = worker;
            peer
        }
        (_, other) => panic!("{other:?}"),
    }
}

fn blob_path(place: &Place, blob: Digest) -> PathBuf {
    let name = blob.to_string();
    place.folder.path().join("state/blobs").join(&name[..2]).join(name)
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..500 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within five seconds: {what}");
}

#[tokio::test]
async fn a_worker_whose_connection_broke_comes_back_and_its_result_counts() {
    let place = place();
    let running = place.start().await;
    let channel = connect(&running).await;
    let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
    let mut peer = join(&channel, keyed(Vec::new())).await;
    let (worker, (lease, _)) = (peer.worker, peer.assignment().await);
    for _ in 0..6 {
        drop(peer);
        peer = join(&channel, keyed(vec![lease])).await;
        assert_eq!(peer.worker, worker);
        peer.send(WorkerMessage::Heartbeat(vec![lease])).await;
    }
    let result = peer.result("a").await;
    peer.send(WorkerMessage::Finished(lease, result)).await;
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Accepted(lease, 10));
    let events = watch(&channel, &job).await;
    assert!(!events.iter().any(|event| matches!(event.kind, EventKind::AttemptFailed { .. })), "{events:?}");
    assert_eq!(view(&channel, &job).await.outcome, Some(Outcome::Succeeded));
}

#[tokio::test]
async fn a_worker_that_says_what_cannot_be_is_not_waited_for() {
    let place = place();
    let running = place.start().await;
    let channel = connect(&running).await;
    let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
    let mut peer = join(&channel, keyed(Vec::new())).await;
    let (lease, _) = peer.assignment().await;
    peer.send(WorkerMessage::Checkpoint(lease, 5, Digest::of(b"never uploaded"))).await;
    assert_eq!(peer.next().await.unwrap_err().code(), Code::FailedPrecondition);
    until("its lease ends", async || !matches!(view(&channel, &job).await.stages[0].state, StageState::Running { .. }))
        .await;
}

#[tokio::test]
async fn a_damaged_checkpoint_costs_its_steps_and_not_the_stage() {
    for damage in [true, false] {
        let place = place();
        let running = place.start().await;
        let channel = connect(&running).await;
        let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
        let mut peer = Peer::join(&channel).await;
        let (lease, _) = peer.assignment().await;
        let blob = peer.checkpoint(lease, 5).await;
        drop(running);
        if damage {
            fs::write(blob_path(&place, blob), b"rotten").unwrap();
        } else {
            fs::remove_file(blob_path(&place, blob)).unwrap();
        }
        let running = place.start().await;
        let channel = connect(&running).await;
        let mut peer = Peer::join(&channel).await;
        let (lease, assignment) = peer.assignment().await;
        assert_eq!(assignment.resume, Some(blob));
        let expected = if damage { Code::DataLoss } else { Code::NotFound };
        assert_eq!(get(&channel, &blob.to_string()).await.unwrap_err().code(), expected);
        let message = format!("the coordinator refused blob {blob}");
        peer.send(WorkerMessage::Failed(lease, Failure { blame: Blame::Machine, message })).await;
        let (lease, assignment) = peer.assignment().await;
        assert_eq!(assignment.resume, None);
        let result = peer.result("a").await;
        peer.send(WorkerMessage::Finished(lease, result)).await;
        let events = watch(&channel, &job).await;
        assert!(events.iter().any(|event| event.kind == EventKind::CheckpointLost { step: 5 }), "{events:?}");
        assert_eq!(view(&channel, &job).await.outcome, Some(Outcome::Succeeded));
    }
}

#[tokio::test]
async fn a_result_that_rots_before_it_is_published_is_trained_again() {
    let place = place();
    let running = place.start().await;
    let channel = connect(&running).await;
    let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
    let mut peer = Peer::join(&channel).await;
    let (lease, _) = peer.assignment().await;
    let result = peer.result("a").await;
    fs::write(blob_path(&place, result.weights), b"rotten").unwrap();
    peer.send(WorkerMessage::Finished(lease, result)).await;
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Accepted(lease, 10));
    peer.work(1).await;
    let events = watch(&channel, &job).await;
    assert!(events.iter().any(|event| event.kind == EventKind::ResultLost), "{events:?}");
    assert_eq!((view(&channel, &job).await.outcome, place.published()), (Some(Outcome::Succeeded), 2));
}

#[tokio::test]
async fn an_adapter_that_rots_before_it_is_fused_is_trained_again_first() {
    let place = Place::new(fused_plan()).with_files();
    let running = place.start().await;
    let channel = connect(&running).await;
    let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
    let mut peer = Peer::join(&channel).await;
    peer.work(2).await;
    let (lease, fusion) = peer.assignment().await;
    until("both are published", async || place.published() == 2).await;
    let rotten = fusion.adapters[0];
    fs::write(blob_path(&place, rotten), b"rotten").unwrap();
    assert_eq!(get(&channel, &rotten.to_string()).await.unwrap_err().code(), Code::DataLoss);
    let message = "the coordinator refused a blob".to_owned();
    peer.send(WorkerMessage::Failed(lease, Failure { blame: Blame::Machine, message })).await;
    let (lease, again) = peer.assignment().await;
    assert_eq!((again.stage.as_str(), again.resume), ("a", None));
    let result = peer.result("a").await;
    peer.send(WorkerMessage::Finished(lease, result)).await;
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Accepted(lease, 10));
    peer.work(1).await;
    watch(&channel, &job).await;
    assert_eq!(view(&channel, &job).await.outcome, Some(Outcome::Succeeded));
}

#[tokio::test]
async fn what_a_worker_put_and_never_spoke_of_goes_with_it() {
    let place = place();
    let running = place.start().await;
    let channel = connect(&running).await;
    let peer = join(&channel, keyed(Vec::new())).await;
    let blob = put_as(&channel, b"half a checkpoint", "key").await.unwrap();
    assert!(blob_path(&place, blob).is_file());
    drop(peer);
    until("the blob is gone", async || !blob_path(&place, blob).exists()).await;
}

#[tokio::test]
async fn a_second_submission_of_a_job_that_goes_on_brings_its_resources() {
    let place = place();
    let running = place.start().await;
    let channel = connect(&running).await;
    let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
    let mut cuda = Hello { key: String::new(), ..hello() };
    cuda.numeric_class.device = "cuda".to_owned();
    let mut peer = join(&channel, cuda).await;
    let mut again = place.plan.job.clone();
    again.resources.device = Device::Cuda;
    assert_eq!(submit(&channel, &again).await.unwrap(), (job.clone(), true));
    assert_eq!(peer.assignment().await.1.job, job);
}

#[tokio::test]
async fn a_job_that_no_worker_here_can_take_up_says_so_to_those_who_watch() {
    let mut plan = plan("large", vec![stage("a", &[], 10)]);
    plan.stages[0].memory_bytes = 4 << 30;
    let place = Place::new(plan);
    let running = place.start().await;
    let channel = connect(&running).await;
    let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
    let _peer = Peer::join(&channel).await;
    let request = v1::JobRequest { job: job.to_string() };
    let mut stream = JobsClient::new(channel.clone()).watch(request.clone()).await.unwrap().into_inner();
    let stuck = async {
        loop {
            let document = stream.message().await.unwrap().unwrap();
            let event: graftwork_shared::event::Event = serde_json::from_str(&document.json).unwrap();
            if let EventKind::Stuck { refusals } = event.kind {
                return refusals;
            }
        }
    };
    let refusals = tokio::time::timeout(Duration::from_secs(5), stuck).await.unwrap();
    let explained = JobsClient::new(channel).explain(request).await.unwrap().into_inner().json;
    for (_, refusal) in refusals {
        assert!(explained.contains(&refusal.to_string()), "{explained}");
    }
}
