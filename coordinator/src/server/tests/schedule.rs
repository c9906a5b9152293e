//! Scheduling as peers meet it: quotas, time limits, work that is taken from a stage of lower priority.

use graftwork_proto::{CoordinatorMessage, WorkerMessage};
use graftwork_scheduler::Quota;
use graftwork_shared::{assignment::Blame, event::EventKind, view::StageState};
use tonic::Code;

use super::{
    Place,
    fixture::{plan, stage},
    peer::{Peer, connect, submit, view, watch},
};

#[tokio::test]
async fn a_job_beyond_its_owners_quota_is_refused_with_the_bound() {
    let place = Place::new(plan("one", vec![stage("a", &[], 10)]));
    let quota = Quota { places: None, jobs: Some(1) };
    let running = place.start_with(|options| options.quotas = [("*".to_owned(), quota)].into()).await;
    let channel = connect(&running).await;
    submit(&channel, &place.plan.job).await.unwrap();
    assert!(submit(&channel, &place.plan.job).await.unwrap().1, "it is there already");
    let mut second = place.plan.job.clone();
    second.publish.organisation = "other".to_owned();
    let refused = submit(&channel, &second).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let words = "the job is not taken: me has 1 jobs that have not ended, and its quota is 1";
    assert!(refused.message().starts_with(words), "{}", refused.message());
    second.owner = "another".to_owned();
    submit(&channel, &second).await.unwrap();
}

#[tokio::test]
async fn a_running_stage_gives_its_place_to_a_job_of_higher_priority_and_goes_on_later() {
    let place = Place::new(plan("one", vec![stage("a", &[], 10)]));
    let running = place.start().await;
    let channel = connect(&running).await;
    let (first, _) = submit(&channel, &place.plan.job).await.unwrap();
    let mut peer = Peer::join(&channel).await;
    let (lease, assignment) = peer.assignment().await;
    assert_eq!(assignment.job, first);
    let mut urgent = place.plan.job.clone();
    urgent.publish.organisation = "other".to_owned();
    urgent.priority = 1;
    let (second, _) = submit(&channel, &urgent).await.unwrap();
    let CoordinatorMessage::Release(asked, reason) = peer.next().await.unwrap() else { panic!() };
    assert_eq!((asked, reason), (lease, format!("a of job {second} has a higher priority and no place")));
    let blob = peer.checkpoint(lease, 5).await;
    peer.send(WorkerMessage::Released(lease)).await;
    let (lease, assignment) = peer.assignment().await;
    assert_eq!((assignment.job, assignment.resume), (second.clone(), None));
    let given = view(&channel, &first).await.stages[0].preempted.clone().unwrap();
    assert_eq!((given.times, given.by_job, given.step), (1, second.clone(), 5));
    let result = peer.result("a").await;
    peer.send(WorkerMessage::Finished(lease, result)).await;
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Accepted(lease, 10));
    let (lease, assignment) = peer.assignment().await;
    assert_eq!((assignment.job, assignment.resume), (first.clone(), Some(blob)));
    let result = peer.result("a").await;
    peer.send(WorkerMessage::Finished(lease, result)).await;
    let events = watch(&channel, &first).await;
    let told = events.iter().filter(|event| matches!(event.kind, EventKind::Preempted { step: 5, .. }));
    assert_eq!(told.count(), 1, "{events:?}");
    assert!(!events.iter().any(|event| matches!(event.kind, EventKind::AttemptFailed { .. })), "{events:?}");
}

#[tokio::test]
async fn a_stage_beyond_its_time_limit_fails_and_its_worker_drops_it() {
    let mut place = Place::new(plan("one", vec![stage("a", &[], 10)]));
    place.plan.job.resources.time_limit_s = Some(1);
    let running = place.start().await;
    let channel = connect(&running).await;
    let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
    let mut peer = Peer::join(&channel).await;
    let (lease, _) = peer.assignment().await;
    assert_eq!(peer.next().await.unwrap(), CoordinatorMessage::Fenced(lease));
    let StageState::Failed { failure } = view(&channel, &job).await.stages[0].state.clone() else { panic!() };
    assert_eq!(failure.blame, Blame::User);
    assert!(failure.message.starts_with("it has trained for 1 s, which is its time limit"), "{}", failure.message);
}
