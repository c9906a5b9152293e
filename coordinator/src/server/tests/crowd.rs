//! Five hundred workers over real gRPC, each with a session, heartbeats, reports, a checkpoint and results, on one
//! coordinator: no lease is lost or late, and the memory that it costs is told.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use graftwork_proto::{CoordinatorMessage, WorkerMessage};
use graftwork_shared::{
    event::Outcome,
    id::LeaseId,
    view::{JobView, StageState},
};
use tokio::sync::watch;
use tonic::transport::Channel;

use super::{
    Place,
    fixture::{plan, stage},
    peer::{Peer, connect, put, submit, view},
    sessions::report,
};

const WORKERS: usize = 500;

const ROUNDS: usize = 3;

const STAGES: usize = ROUNDS * WORKERS;

/// How long a stage trains before its checkpoint.
const TRAINING: Duration = Duration::from_secs(3);

/// The same of the last stages, as many as there are workers. It is longer than any silence may be, and nobody says a
/// word of the lease meanwhile, so heartbeats alone keep it.
const LAST_TRAINING: Duration = Duration::from_millis(SILENCE_MS + 2_000);

/// After how much silence a worker is given up: more than a machine with two busy cores takes to hear of 500 workers.
const SILENCE_MS: u64 = 10_000;

/// When an answer is late: half of that silence. A heartbeat that is heard so late has half of it left.
const LATE: Duration = Duration::from_millis(SILENCE_MS / 2);

/// Workers that share a connection, as processes behind one proxy would: the test has not the sockets of 500 machines.
const ON_ONE_CHANNEL: usize = 50;

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// What is said of a lease; that an earlier one is over, of which a heartbeat still spoke, may come in between.
async fn answer(peer: &mut Peer, lease: LeaseId) -> CoordinatorMessage {
    loop {
        match peer.next().await.unwrap() {
            CoordinatorMessage::Fenced(other) if other != lease => {}
            message => return message,
        }
    }
}

/// Trains one stage as a worker does: it reports, checkpoints and finishes. Gives how long its first answer took.
async fn train(peer: &mut Peer, channel: &Channel, (lease, stage): (LeaseId, &str)) -> Duration {
    for step in [2, 4] {
        peer.send(WorkerMessage::Step(lease, report(step))).await;
    }
    let is_last = lease > LeaseId(((ROUNDS - 1) * WORKERS) as u64);
    tokio::time::sleep(if is_last { LAST_TRAINING } else { TRAINING }).await;
    let blob = put(channel, format!("checkpoint of {stage}").as_bytes()).await.unwrap();
    let asked = Instant::now();
    peer.send(WorkerMessage::Checkpoint(lease, 5, blob)).await;
    assert_eq!(answer(peer, lease).await, CoordinatorMessage::Accepted(lease, 5), "a lease was lost");
    let answered = asked.elapsed();
    let result = peer.result(stage).await;
    peer.send(WorkerMessage::Finished(lease, result)).await;
    assert_eq!(answer(peer, lease).await, CoordinatorMessage::Accepted(lease, 10), "a lease was lost");
    answered
}

/// Works until all stages are trained; its heart beats all the while.
async fn work(mut peer: Peer, channel: Channel, done: Arc<watch::Sender<usize>>) -> Vec<(LeaseId, Duration)> {
    let heart = peer.beat_every(Duration::from_secs(1));
    let mut all = done.subscribe();
    let mut answers = Vec::new();
    loop {
        let message = tokio::select! {
            message = peer.next() => message.unwrap(),
            _ = all.wait_for(|done| *done == STAGES) => return answers,
        };
        match message {
            CoordinatorMessage::Assign { lease, assignment, .. } => {
                heart.hold(&[lease]);
                answers.push((lease, train(&mut peer, &channel, (lease, assignment.stage.as_str())).await));
                heart.hold(&[]);
                done.send_modify(|done| *done += 1);
            }
            // A heartbeat spoke of it when it was over already.
            CoordinatorMessage::Fenced(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn published(job: &JobView) -> usize {
    job.stages.iter().filter(|stage| matches!(stage.state, StageState::Published { .. })).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_workers_lose_no_lease() {
    let names: Vec<String> = (0..STAGES).map(|number| format!("s{number}")).collect();
    let plan = plan("crowd", names.iter().map(|name| stage(name, &[], 10)).collect());
    // Over a folder: with an object store on the same two cores it would be the store that is measured.
    let place = Place { database: None, bucket: None, ..Place::new(plan) };
    let running = place
        .start_with(|options| {
            options.heartbeat_ms = 1_000;
            options.silence_ms = SILENCE_MS;
        })
        .await;
    let before = resident_bytes();
    let channels = join_all((0..WORKERS.div_ceil(ON_ONE_CHANNEL)).map(|_| connect(&running))).await;
    let joins = (0..WORKERS).map(|number| Peer::join(&channels[number / ON_ONE_CHANNEL]));
    let peers = join_all(joins).await;
    let (job, _) = submit(&channels[0], &place.plan.job).await.unwrap();
    let began = Instant::now();
    let done = Arc::new(watch::Sender::new(0));
    let working = peers.into_iter().enumerate().map(|(number, peer)| {
        let channel = channels[number / ON_ONE_CHANNEL].clone();
        tokio::spawn(work(peer, channel, Arc::clone(&done)))
    });
    let mut answers = Vec::new();
    for worked in join_all(working).await {
        answers.extend(worked.unwrap());
    }
    let took = began.elapsed();
    while view(&channels[0], &job).await.outcome.is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let end = view(&channels[0], &job).await;
    assert_eq!((end.outcome, published(&end)), (Some(Outcome::Succeeded), STAGES));
    let leases: BTreeSet<LeaseId> = answers.iter().map(|(lease, _)| *lease).collect();
    let last = LeaseId(STAGES as u64);
    assert_eq!((leases.len(), leases.last()), (STAGES, Some(&last)), "each stage was handed out once");
    let mut answers: Vec<Duration> = answers.into_iter().map(|(_, answered)| answered).collect();
    answers.sort_unstable();
    let (median, slowest) = (answers[answers.len() / 2], answers[answers.len() * 99 / 100]);
    let grown = resident_bytes().saturating_sub(before);
    println!(
        "{STAGES} stages on {WORKERS} workers in {took:.1?}; a checkpoint was acknowledged after {median:.0?} (median) \
         or {slowest:.0?} (99th percentile); resident memory grew by {} MB, the workers' ends of the sessions included",
        grown >> 20,
    );
    assert!(slowest < LATE, "one answer of a hundred took {slowest:?} or longer");
    assert!(grown < 512 << 20, "{grown} bytes");
}
