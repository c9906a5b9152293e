//! A coordinator that waits takes over from one that is killed, frozen or cut off from the database, through the real
//! programs on PostgreSQL and an object store: the job ends with the same bytes as undisturbed (invariants 2, 4 and 5).
//!
//! Ignored without the servers that `scripts/servers.py` starts; `make test-servers` runs it with them.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::{digest::Digest, event::EventKind};
use graftwork_tests::{Cluster, Pair, Run, World, servers_run, tensor_digests};
use libtest_mimic::{Arguments, Failed, Trial};

/// What the row leads for by default, and what starting, finding the new leader and the first update may take on top.
const TAKEOVER: Duration = Duration::from_secs(6 + 12);

/// What one coordinator and one worker publish undisturbed.
fn undisturbed() -> Result<&'static BTreeMap<String, Digest>> {
    static EXPECTED: OnceLock<BTreeMap<String, Digest>> = OnceLock::new();
    if let Some(expected) = EXPECTED.get() {
        return Ok(expected);
    }
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    let hub = cluster.path().join("hub");
    world.long_job("job.toml", &hub.display().to_string(), "")?;
    let (job, _) = cluster.ask(&world, &["submit", "job.toml"], 0)?;
    cluster.start_worker()?;
    Run::watch(&cluster.address(), &job)?.finish(0)?;
    let digests = tensor_digests(&hub)?;
    Ok(EXPECTED.get_or_init(|| digests))
}

/// Disturbs the leader while the job trains, waits for the other one to train on, lets `after` look at the first, and
/// compares what is published.
fn taken_over(disturb: fn(&mut Pair) -> Result<()>, after: fn(&mut Pair) -> Result<()>) -> Result<Duration> {
    let (world, mut pair) = (World::new()?, Pair::start()?);
    let job = pair.submit(&world)?;
    pair.start_worker()?;
    Run::watch(&pair.addresses(), &job)?.wait_for_checkpoint("topic", 50)?;
    ensure!(pair.term()? == Some(1), "the first leads under term 1");
    disturb(&mut pair)?;
    let began = Instant::now();
    pair.coordinator(1).wait_for("listens on")?;
    let leads = began.elapsed();
    let mut watch = Run::watch(&pair.addresses(), &job)?;
    watch.wait_for("training again", |event| matches!(event.kind, EventKind::Step(_)))?;
    let trains = began.elapsed();
    println!("the other one leads after {leads:?} and trains after {trains:?}");
    ensure!(trains < TAKEOVER, "{trains:?}");
    after(&mut pair)?;
    watch.finish(0)?;
    ensure!(pair.term()? == Some(2), "the other one leads under term 2");
    assert_eq!(&tensor_digests(&pair.path().join("hub"))?, undisturbed()?);
    Ok(leads)
}

fn a_killed_leader_is_followed() -> Result<()> {
    taken_over(|pair| pair.coordinator(0).signal("-9"), |_| Ok(())).map(drop)
}

fn a_frozen_leader_is_followed_and_commits_nothing_when_it_wakes() -> Result<()> {
    taken_over(
        |pair| pair.coordinator(0).signal("-STOP"),
        |pair| {
            pair.coordinator(0).signal("-CONT")?;
            let (status, said) = pair.coordinator(0).wait()?;
            ensure!(status.code() == Some(2), "{status}: {said}");
            let last = said.lines().last().context("it says why it ends")?;
            ensure!(last.contains("another coordinator (") && last.contains(" leads since "), "{said}");
            ensure!(last.contains("under term 2"), "{said}");
            Ok(())
        },
    )
    .map(drop)
}

fn a_leader_cut_off_from_the_database_ends_and_is_followed() -> Result<()> {
    taken_over(
        |pair| {
            pair.coordinator(0).cut_off();
            Ok(())
        },
        |pair| {
            let (status, said) = pair.coordinator(0).wait()?;
            ensure!(status.code() == Some(2), "{status}: {said}");
            ensure!(said.contains("has not answered for 6 seconds") && said.contains("so this one ends"), "{said}");
            Ok(())
        },
    )
    .map(drop)
}

fn a_leader_that_is_stopped_is_followed_at_once() -> Result<()> {
    let leads = taken_over(
        |pair| {
            pair.coordinator(0).signal("-TERM")?;
            ensure!(pair.coordinator(0).wait()?.0.success(), "it ends well");
            Ok(())
        },
        |_| Ok(()),
    )?;
    ensure!(leads < Duration::from_secs(4), "{leads:?}");
    Ok(())
}

fn main() -> ExitCode {
    let lacking = !servers_run();
    if lacking {
        eprintln!("ignored: these need PostgreSQL and an object store (make test-servers, or scripts/servers.py)");
    }
    let trial = |name: &str, test: fn() -> Result<()>| {
        let run = move || test().map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(name, run).with_ignored_flag(lacking)
    };
    let trials = vec![
        trial("a_killed_leader_is_followed", a_killed_leader_is_followed),
        trial(
            "a_frozen_leader_is_followed_and_commits_nothing_when_it_wakes",
            a_frozen_leader_is_followed_and_commits_nothing_when_it_wakes,
        ),
        trial(
            "a_leader_cut_off_from_the_database_ends_and_is_followed",
            a_leader_cut_off_from_the_database_ends_and_is_followed,
        ),
        trial("a_leader_that_is_stopped_is_followed_at_once", a_leader_that_is_stopped_is_followed_at_once),
    ];
    let mut arguments = Arguments::from_args();
    // Takeover times are measured, and two cores train one job well.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}
