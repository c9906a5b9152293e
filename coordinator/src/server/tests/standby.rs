//! Two coordinators over one database and one object store, as their peers meet them.

use std::time::Duration;

use super::{
    super::{Options, start},
    Place,
    fixture::{plan, stage},
    peer::{Peer, connect, get, submit, view},
    servers,
};

/// Another coordinator of the same cluster, with a folder of its own.
fn other(place: &Place) -> Options {
    let mut options = place.options();
    options.state_folder = place.folder.path().join("other");
    options.listen = vec![super::Listen::Unix(options.state_folder.join("socket"))];
    options
}

#[tokio::test]
#[ignore = "needs PostgreSQL and an object store: scripts/servers.py"]
async fn a_coordinator_that_waits_goes_on_with_jobs_and_checkpoints() {
    let place = Place::new(plan("one", vec![stage("a", &[], 10)]));
    assert!(place.database.is_some() && place.bucket.is_some(), "run this through scripts/servers.py");
    let leader = place.start().await;
    let waiting = tokio::spawn(start(other(&place)));
    let channel = connect(&leader).await;
    let (job, _) = submit(&channel, &place.plan.job).await.unwrap();
    let mut peer = Peer::join(&channel).await;
    let (lease, _) = peer.assignment().await;
    let blob = peer.checkpoint(lease, 5).await;
    tokio::time::sleep(Duration::from_millis(servers::PLACE_LEASE_MS * 4 / 3)).await;
    assert!(!waiting.is_finished(), "the leader renews its lead while nothing happens");
    drop(leader);
    let running = tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap().unwrap();
    let channel = connect(&running).await;
    assert_eq!(view(&channel, &job).await.id, job);
    assert_eq!(get(&channel, &blob.to_string()).await.unwrap(), format!("checkpoint {lease} 5").into_bytes());
    let mut peer = Peer::join(&channel).await;
    let (_, assignment) = peer.assignment().await;
    assert_eq!((peer.term.0, assignment.resume), (2, Some(blob)));
}

#[tokio::test]
#[ignore = "needs PostgreSQL and an object store: scripts/servers.py"]
async fn a_leader_whose_row_was_taken_ends_with_the_name_of_the_next() {
    let place = Place::new(plan("one", vec![stage("a", &[], 10)]));
    let mut leader = place.start().await;
    let database = place.database.as_ref().expect("run this through scripts/servers.py");
    servers::run(
        database,
        "UPDATE graftwork.leader SET term = term + 1, leader = 'x', who = 'elsewhere:7', addresses = 'unix:///there'",
    );
    let error = tokio::time::timeout(Duration::from_secs(5), leader.wait()).await.unwrap().to_string();
    assert!(error.contains("another coordinator (elsewhere:7 at unix:///there) leads since 2"), "{error}");
    assert!(error.contains("under term 2"), "{error}");
}
