//! Coordinator and workers on hosts of their own: whatever the network and the machines do, the published tensors are
//! those of the undisturbed run on one worker. Part of `make test-all`; needs root for network namespaces.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::{
    digest::Digest,
    event::{Event, EventKind},
};
use graftwork_tests::{Cluster, Hosts, Run, Weather, World, no_hosts, tensor_digests};
use libtest_mimic::{Arguments, Failed, Trial};

/// Longer than a silence after which a worker is given up, and than a member's grace.
const LONG: Duration = Duration::from_secs(14);

/// A job that ends not within this time is stuck.
const MOST: Duration = Duration::from_mins(5);

/// The tensors of the job trained by one worker that nothing happens to.
fn undisturbed(world: &World) -> Result<BTreeMap<String, Digest>> {
    let mut cluster = Cluster::new()?;
    world.long_job("job.toml", &cluster.path().join("hub").display().to_string(), "")?;
    let (job, _) = cluster.ask(world, &["submit", "job.toml"], 0)?;
    cluster.start_worker()?;
    Run::watch(&cluster.address(), &job)?.finish(0)?;
    tensor_digests(&cluster.path().join("hub"))
}

/// A job under way on three workers, two of which are one group at least.
struct UnderWay {
    hosts: Hosts,
    watch: Run,
}

impl UnderWay {
    fn start(world: &World, stage: Stage) -> Result<Self> {
        let mut hosts = Hosts::new(if stage == Stage::Pair { 6 } else { 4 })?;
        match stage {
            Stage::Plain => hosts.start_coordinator()?,
            Stage::SlowDisk => {
                hosts.slow_disk(300)?;
                hosts.start_coordinator()?;
            }
            Stage::Pair => hosts.start_pair()?,
        }
        world.long_job("job.toml", &hosts.path().join("hub").display().to_string(), "")?;
        let job = hosts.ask(world, 1, &["submit", "job.toml"])?;
        let mut watch = hosts.watch(&job)?;
        (2..=4).try_for_each(|host| hosts.start_worker(host))?;
        let formed = |event: &Event| matches!(&event.kind, EventKind::GroupFormed { members, .. } if members.len() > 1);
        watch.wait_for("a group", formed)?;
        Ok(Self { hosts, watch })
    }

    fn step(&mut self, stage_step: u64) -> Result<()> {
        let far = |event: &Event| matches!(&event.kind, EventKind::Step(report) if report.step >= stage_step);
        self.watch.wait_for("training", far).map(drop)
    }

    /// Waits for the end and compares.
    fn finish(self, expected: &BTreeMap<String, Digest>) -> Result<()> {
        let began = Instant::now();
        self.watch.finish(0)?;
        ensure!(began.elapsed() < MOST, "it took {:?}", began.elapsed());
        let found = tensor_digests(&self.hosts.path().join("hub"))?;
        ensure!(found == *expected, "other bytes than undisturbed: {found:?}");
        Ok(())
    }

    fn weather_for(&mut self, time: Duration, weather: &Weather) -> Result<()> {
        self.hosts.weather(weather)?;
        sleep(time);
        self.hosts.weather(&Weather::default())
    }
}

fn nothing_happens(_: &mut UnderWay) -> Result<()> {
    Ok(())
}

fn a_worker_is_killed(run: &mut UnderWay) -> Result<()> {
    run.hosts.kill_worker(3);
    Ok(())
}

fn a_worker_freezes_and_thaws(run: &mut UnderWay) -> Result<()> {
    run.hosts.signal(2, "STOP")?;
    sleep(LONG);
    run.hosts.signal(2, "CONT")
}

fn a_worker_is_not_heard(run: &mut UnderWay) -> Result<()> {
    run.weather_for(LONG, &Weather { cut: vec![(2, 1)], ..Weather::default() })
}

fn a_worker_does_not_hear(run: &mut UnderWay) -> Result<()> {
    run.weather_for(LONG, &Weather { cut: vec![(1, 2)], ..Weather::default() })
}

fn a_worker_is_cut_off_from_all(run: &mut UnderWay) -> Result<()> {
    let cut = [1, 3, 4].into_iter().flat_map(|other| [(2, other), (other, 2)]).collect();
    run.weather_for(LONG, &Weather { cut, ..Weather::default() })
}

fn two_members_cannot_reach_each_other(run: &mut UnderWay) -> Result<()> {
    let cut = [(2, 3), (2, 4), (3, 4)].into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect();
    run.weather_for(LONG, &Weather { cut, ..Weather::default() })
}

fn frames_take_200_ms(run: &mut UnderWay) -> Result<()> {
    run.weather_for(LONG, &Weather { delay_ms: 200, ..Weather::default() })
}

fn one_frame_in_twenty_is_lost(run: &mut UnderWay) -> Result<()> {
    run.weather_for(LONG, &Weather { loss: 0.05, ..Weather::default() })
}

fn the_coordinator_is_killed_and_started_again(run: &mut UnderWay) -> Result<()> {
    run.hosts.kill_coordinator();
    sleep(Duration::from_secs(2));
    run.hosts.start_coordinator()
}

fn the_leader_is_killed(run: &mut UnderWay) -> Result<()> {
    run.hosts.kill_coordinator();
    run.hosts.wait_for_standby()
}

fn the_leader_freezes_and_thaws(run: &mut UnderWay) -> Result<()> {
    run.hosts.signal(1, "STOP")?;
    run.hosts.wait_for_standby()?;
    run.hosts.signal(1, "CONT")
}

fn the_leader_is_cut_off_from_all(run: &mut UnderWay) -> Result<()> {
    let cut = (2..=6).flat_map(|other| [(1, other), (other, 1)]).collect();
    run.hosts.weather(&Weather { cut, ..Weather::default() })?;
    run.hosts.wait_for_standby()?;
    run.hosts.weather(&Weather::default())
}

fn the_leader_is_cut_off_from_the_database(run: &mut UnderWay) -> Result<()> {
    run.hosts.weather(&Weather { cut: vec![(1, 5), (5, 1)], ..Weather::default() })?;
    run.hosts.wait_for_standby()?;
    run.hosts.weather(&Weather::default())
}

/// What the hosts are at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// One coordinator.
    Plain,
    /// One whose disk takes 300 ms for each sync.
    SlowDisk,
    /// One that leads and one that waits, on a database and an object store.
    Pair,
}

/// What happens, and on what.
type Trouble = (fn(&mut UnderWay) -> Result<()>, Stage);

fn main() -> ExitCode {
    let asked = std::env::var_os("GRAFTWORK_LONG_TESTS").is_some();
    let missing = if asked { no_hosts() } else { Some("`make test-all` runs it".to_owned()) };
    if let Some(reason) = &missing {
        eprintln!("skipped: {reason}");
    }
    let troubles: [(&str, Trouble); 15] = [
        ("nothing_happens", (nothing_happens, Stage::Plain)),
        ("a_worker_is_killed", (a_worker_is_killed, Stage::Plain)),
        ("a_worker_freezes_and_thaws", (a_worker_freezes_and_thaws, Stage::Plain)),
        ("a_worker_is_not_heard", (a_worker_is_not_heard, Stage::Plain)),
        ("a_worker_does_not_hear", (a_worker_does_not_hear, Stage::Plain)),
        ("a_worker_is_cut_off_from_all", (a_worker_is_cut_off_from_all, Stage::Plain)),
        ("two_members_cannot_reach_each_other", (two_members_cannot_reach_each_other, Stage::Plain)),
        ("frames_take_200_ms", (frames_take_200_ms, Stage::Plain)),
        ("one_frame_in_twenty_is_lost", (one_frame_in_twenty_is_lost, Stage::Plain)),
        ("each_sync_of_the_disk_takes_300_ms", (nothing_happens, Stage::SlowDisk)),
        ("the_coordinator_is_killed_and_started_again", (the_coordinator_is_killed_and_started_again, Stage::Plain)),
        ("the_leader_is_killed", (the_leader_is_killed, Stage::Pair)),
        ("the_leader_freezes_and_thaws", (the_leader_freezes_and_thaws, Stage::Pair)),
        ("the_leader_is_cut_off_from_all", (the_leader_is_cut_off_from_all, Stage::Pair)),
        ("the_leader_is_cut_off_from_the_database", (the_leader_is_cut_off_from_the_database, Stage::Pair)),
    ];
    let trials = troubles.map(|(name, trouble)| {
        let run = move || run(trouble).map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    });
    // The hosts of two runs would have the same names.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

fn run((happens, stage): Trouble) -> Result<()> {
    let world = World::new()?;
    let expected = undisturbed(&world).context("undisturbed")?;
    let mut run = UnderWay::start(&world, stage)?;
    run.step(30)?;
    happens(&mut run)?;
    run.finish(&expected)
}
