//! Coordinator and workers on hosts of their own: however many workers there are, and whatever the network and the machines
//! do, the published tensors are those of the undisturbed run on one worker. Part of `make test-all`; needs root for network
//! namespaces.
//!
//! Each fault meets members of a group whose updates were reported, so that they have the state, and has to show in what
//! is told, or in what the switch and the disk count: one that does nothing fails its test.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use graftwork_shared::{
    digest::Digest,
    event::{Event, EventKind},
    id::WorkerId,
};
use graftwork_tests::{
    Cluster, Formation, Hosts, Run, Story, Toll, Weather, World, no_hosts, no_servers, tensor_digests,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// Longer than a silence after which a worker is given up, and than a member's grace.
const LONG: Duration = Duration::from_secs(14);

/// Members that wait for each other in vain are parted within this time.
const PARTED: Duration = Duration::from_mins(1);

/// A job that ends not within this time is stuck.
const MOST: Duration = Duration::from_mins(5);

/// Workers, where nothing else is said. Each has a host of its own, the first of them the second one, behind the
/// coordinator's.
const WORKERS: usize = 3;

/// The stage of the job that is trained last, and by all workers.
const LAST: &str = "mood_fused";

/// What a member already had on its way when a fault began arrives within this time.
const ON_ITS_WAY_MS: u64 = 2_000;

/// A job under way on workers of which two are one group at least, where they are several.
struct UnderWay {
    hosts: Hosts,
    workers: usize,
    watch: Run,
    story: Story,
    told: Vec<Event>,
    /// The stage whose members meet the fault, and who they were before.
    stage: String,
    group: Formation,
}

impl UnderWay {
    fn start(world: &World, stage: Stage) -> Result<Self> {
        let mut hosts = Hosts::new(if stage == Stage::Pair { 6 } else { 5 })?;
        match stage {
            Stage::Plain | Stage::Workers(_) => hosts.start_coordinator()?,
            Stage::SlowDisk => {
                hosts.slow_disk(300)?;
                hosts.start_coordinator()?;
            }
            Stage::Pair => hosts.start_pair()?,
        }
        world.long_job("job.toml", &hosts.path().join("hub").display().to_string(), "")?;
        let job = hosts.ask(world, 1, &["submit", "job.toml"])?;
        let watch = hosts.watch(&job)?;
        let workers = stage.workers();
        (2..2 + workers).try_for_each(|host| hosts.start_worker(host))?;
        let (story, told, stage, group) = (Story::default(), Vec::new(), String::new(), Formation::default());
        let mut run = Self { hosts, workers, watch, story, told, stage, group };
        if workers > 1 {
            run.until("an update of a group", |run, event| run.story.together(event).is_some())?;
            let newest = run.told.last().context("an event")?;
            (run.stage, run.group) = run.story.together(newest).context("a group")?;
        }
        Ok(run)
    }

    fn next(&mut self) -> Result<bool> {
        let Some(event) = self.watch.next_event()? else { return Ok(false) };
        self.story.note(&event)?;
        self.told.push(event);
        Ok(true)
    }

    /// Reads on to an event after which this holds; gives its place.
    fn until(&mut self, what: &str, wanted: impl Fn(&Self, &Event) -> bool) -> Result<usize> {
        while self.next()? {
            let newest = self.told.len() - 1;
            if wanted(self, &self.told[newest]) {
                return Ok(newest);
            }
        }
        let told = self.told.iter().rev().filter(|event| !matches!(event.kind, EventKind::Step(_)));
        let last: Vec<_> = told.take(40).collect();
        bail!("the job ended before {what}; the last that was told besides updates, newest first: {last:#?}")
    }

    /// The members that made an update of this stage, as whoever leads them reports it.
    fn made(&self, event: &Event, stage: &str) -> Option<&[WorkerId]> {
        let EventKind::Step(report) = &event.kind else { return None };
        event.stage.as_ref().filter(|of| of.as_str() == stage)?;
        let formed = self.story.formed.get(stage).filter(|formed| formed.epoch == report.group)?;
        Some(&formed.members)
    }

    /// Reads on to an update of the last stage that so many members made, so that all of them have the state; gives them.
    fn until_trained_by(&mut self, count: usize) -> Result<Vec<WorkerId>> {
        let made = |run: &Self, event: &Event| run.made(event, LAST).is_some_and(|members| members.len() == count);
        self.until(&format!("{LAST} is trained by {count}"), made)?;
        Ok(self.story.formed[LAST].members.clone())
    }

    /// Reads on until the stage is trained without a member, so long after the fault began that nobody takes it back.
    fn until_gone(&mut self, lost: WorkerId, began: Instant) -> Result<()> {
        let (stage, epoch) = (self.stage.clone(), self.group.epoch);
        self.until(&format!("{stage} goes on without {lost}"), |run, _| {
            let formed = &run.story.formed[&stage];
            formed.epoch > epoch && !formed.members.contains(&lost) && run.story.left.contains(&lost)
        })?;
        println!("{stage} goes on without {lost} after {:?}", began.elapsed());
        sleep(LONG.saturating_sub(began.elapsed()));
        Ok(())
    }

    /// The member of this rank, and its host.
    fn member(&self, rank: usize) -> Result<(WorkerId, usize)> {
        let member = *self.group.members.get(rank).context("a member of that rank")?;
        Ok((member, self.hosts.host_of(self.story.processes[&member])?))
    }

    /// Cuts these ways until the stage goes on without this member.
    fn cut_until_gone(&mut self, lost: WorkerId, cut: Vec<(usize, usize)>) -> Result<()> {
        let began = Instant::now();
        self.hosts.weather(&Weather { cut: cut.clone(), ..Weather::default() })?;
        self.until_gone(lost, began)?;
        let toll = self.hosts.weather(&Weather::default())?;
        ensure!(cut_frames(&toll, &cut) > 0, "nothing went the way that was cut: {toll:?}");
        Ok(())
    }

    /// Has this weather for so long, and reads what was told meanwhile: between these times by the coordinator's clock,
    /// which is this machine's.
    fn weather_for(&mut self, time: Duration, weather: &Weather) -> Result<([u64; 2], Vec<Toll>)> {
        self.hosts.weather(weather)?;
        let began = now_ms();
        sleep(time);
        let ended = now_ms();
        let toll = self.hosts.weather(&Weather::default())?;
        self.until("anything later", |_, event| event.at_ms > ended)?;
        Ok(([began, ended], toll))
    }

    /// The updates that a group of several reported of its stage in this time.
    fn steps_together(&self, [from, to]: [u64; 2]) -> Vec<(u64, u64)> {
        let mut story = Story::default();
        let mut steps = Vec::new();
        for event in &self.told {
            // What was noted once can be noted again.
            let _ = story.note(event);
            if let (EventKind::Step(report), Some((stage, _))) = (&event.kind, story.together(event))
                && stage == self.stage
                && (from..to).contains(&event.at_ms)
            {
                steps.push((event.at_ms, report.step));
            }
        }
        steps
    }

    /// Waits for the end and compares.
    fn finish(mut self, expected: &BTreeMap<String, Digest>) -> Result<()> {
        let began = Instant::now();
        while self.next()? {}
        self.watch.finish(0)?;
        ensure!(began.elapsed() < MOST, "it took {:?}", began.elapsed());
        let found = tensor_digests(&self.hosts.path().join("hub"))?;
        ensure!(found == *expected, "other bytes than undisturbed: {found:?}");
        Ok(())
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn cut_frames(toll: &[Toll], ways: &[(usize, usize)]) -> u64 {
    toll.iter().filter(|toll| ways.contains(&(toll.from, toll.to))).map(|toll| toll.cut).sum()
}

fn both_ways(pairs: impl IntoIterator<Item = (usize, usize)>) -> Vec<(usize, usize)> {
    pairs.into_iter().flat_map(|(one, other)| [(one, other), (other, one)]).collect()
}

fn nothing_happens(run: &mut UnderWay) -> Result<()> {
    while run.next()? {}
    ensure!(run.story.left.is_empty() && run.story.failures == 0, "something happened: {:#?}", run.told);
    let largest = run.story.largest.get(LAST).copied().unwrap_or(1);
    ensure!(largest == run.workers, "{LAST} was trained by {largest} of {} workers", run.workers);
    Ok(())
}

/// The leader of the four is killed, and then two of the three that are left.
fn two_workers_become_four_and_then_one(run: &mut UnderWay) -> Result<()> {
    run.until_trained_by(2)?;
    (4..=5).try_for_each(|host| run.hosts.start_worker(host))?;
    for (count, killed) in [(4, 1), (3, 2)] {
        let members = run.until_trained_by(count)?;
        for member in &members[..killed] {
            let host = run.hosts.host_of(run.story.processes[member])?;
            run.hosts.kill_worker(host);
        }
    }
    run.until_trained_by(1)?;
    ensure!(run.story.failures == 0, "members that are lost cost no attempt: {}", run.story.failures);
    Ok(())
}

fn a_worker_is_killed(run: &mut UnderWay) -> Result<()> {
    let (leader, host) = run.member(0)?;
    let began = Instant::now();
    run.hosts.kill_worker(host);
    run.until_gone(leader, began)
}

fn a_worker_freezes_and_thaws(run: &mut UnderWay) -> Result<()> {
    let (follower, host) = run.member(1)?;
    let began = Instant::now();
    run.hosts.signal(host, "STOP")?;
    run.until_gone(follower, began)?;
    run.hosts.signal(host, "CONT")?;
    // It comes back, as another one.
    run.until("the frozen worker comes back", |_, event| matches!(event.kind, EventKind::WorkerJoined { .. })).map(drop)
}

fn a_worker_is_not_heard(run: &mut UnderWay) -> Result<()> {
    let (leader, host) = run.member(0)?;
    run.cut_until_gone(leader, vec![(host, 1)])
}

fn a_worker_does_not_hear(run: &mut UnderWay) -> Result<()> {
    let (leader, host) = run.member(0)?;
    run.cut_until_gone(leader, vec![(1, host)])
}

fn a_worker_is_cut_off_from_all(run: &mut UnderWay) -> Result<()> {
    let (follower, host) = run.member(1)?;
    let others = (1..2 + run.workers).filter(|other| *other != host);
    run.cut_until_gone(follower, both_ways(others.map(|other| (host, other))))
}

fn two_members_cannot_reach_each_other(run: &mut UnderWay) -> Result<()> {
    let ((_, one), (_, other)) = (run.member(0)?, run.member(1)?);
    let cut = both_ways([(one, other)]);
    let (stage, epoch, began) = (run.stage.clone(), run.group.epoch, Instant::now());
    let pair = [run.group.members[0], run.group.members[1]];
    run.hosts.weather(&Weather { cut: cut.clone(), ..Weather::default() })?;
    // While they are cut off from each other, and not once that is over.
    let goes_on = run.until(&format!("{stage} is trained on by one of {pair:?}"), |run, event| {
        let parted = |members: &[WorkerId]| !pair.iter().all(|member| members.contains(member));
        run.story.formed[&stage].epoch > epoch && run.made(event, &stage).is_some_and(parted)
    })?;
    let waited = began.elapsed();
    println!("{stage} goes on after {waited:?}: {:?}", run.told[goes_on]);
    ensure!(waited < PARTED, "it stood still for {waited:?}");
    sleep(LONG.saturating_sub(began.elapsed()));
    let toll = run.hosts.weather(&Weather::default())?;
    ensure!(cut_frames(&toll, &cut) > 0, "the members sent each other nothing: {toll:?}");
    ensure!(
        run.story.left.is_disjoint(&pair.into()) && run.story.failures == 0,
        "they were lost: {:?}",
        run.story.left
    );
    Ok(())
}

fn frames_take_200_ms(run: &mut UnderWay) -> Result<()> {
    let ((_, one), (_, other)) = (run.member(0)?, run.member(1)?);
    let ([began, ended], toll) = run.weather_for(LONG, &Weather { delay_ms: 200, ..Weather::default() })?;
    let between = |toll: &&Toll| [(one, other), (other, one)].contains(&(toll.from, toll.to));
    ensure!(toll.iter().filter(between).any(|toll| toll.delayed > 0), "nothing of the members came late: {toll:?}");
    // No update is made before the lanes of all are with all.
    let steps = run.steps_together([began + ON_ITS_WAY_MS, ended]);
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
        bail!("the group did not train on, if slowly: {steps:?}")
    };
    let fastest = (last.0 - first.0) / 200 + 2;
    let made = last.1.saturating_sub(first.1);
    println!("{made} updates in {} ms", last.0 - first.0);
    ensure!(made <= fastest, "more than {fastest} updates between {first:?} and {last:?}");
    Ok(())
}

fn one_frame_in_twenty_is_lost(run: &mut UnderWay) -> Result<()> {
    let ((_, one), (_, other)) = (run.member(0)?, run.member(1)?);
    let (_, toll) = run.weather_for(LONG, &Weather { loss: 0.05, ..Weather::default() })?;
    for way in [(one, other), (other, one), (1, one), (one, 1)] {
        let of_way = toll.iter().find(|toll| (toll.from, toll.to) == way);
        ensure!(of_way.is_some_and(|toll| toll.lost > 0), "nothing was lost from {way:?}: {toll:?}");
    }
    Ok(())
}

fn the_disk_is_slow(run: &mut UnderWay) -> Result<()> {
    let before = run.hosts.syncs_held_up()?;
    let safe = run.until("a checkpoint", |_, event| matches!(event.kind, EventKind::Checkpointed { .. }))?;
    let (stage, at_ms) = (run.told[safe].stage.clone(), run.told[safe].at_ms);
    let step = |event: &&Event| event.stage == stage && matches!(event.kind, EventKind::Step(_));
    let waited_ms = run.told[..safe].iter().rev().find(step).map_or(0, |earlier| at_ms - earlier.at_ms);
    let held_up = run.hosts.syncs_held_up()?;
    println!("{held_up} syncs were held up; a checkpoint was safe {waited_ms} ms after the last update before it");
    ensure!(held_up > before && waited_ms >= 300, "{before} syncs, then {held_up}; {waited_ms} ms");
    Ok(())
}

fn until_resumed(run: &mut UnderWay) -> Result<()> {
    let resumed = |_: &UnderWay, event: &Event| matches!(event.kind, EventKind::JobStarted { resumed: true, .. });
    run.until("the next coordinator takes the job up", resumed).map(drop)
}

fn the_coordinator_is_killed_and_started_again(run: &mut UnderWay) -> Result<()> {
    run.hosts.kill_coordinator();
    sleep(Duration::from_secs(2));
    run.hosts.start_coordinator()?;
    until_resumed(run)
}

fn the_leader_is_killed(run: &mut UnderWay) -> Result<()> {
    run.hosts.kill_coordinator();
    run.hosts.wait_for_standby()?;
    until_resumed(run)
}

fn the_leader_freezes_and_thaws(run: &mut UnderWay) -> Result<()> {
    run.hosts.signal(1, "STOP")?;
    run.hosts.wait_for_standby()?;
    run.hosts.signal(1, "CONT")?;
    let said = run.hosts.wait_for_the_first_to_end()?;
    ensure!(said.contains(" leads since "), "it ends for another reason: {said}");
    until_resumed(run)
}

fn the_leader_is_cut_off_from_all(run: &mut UnderWay) -> Result<()> {
    leader_cut_off(run, both_ways((2..=6).map(|other| (1, other))))
}

fn the_leader_is_cut_off_from_the_database(run: &mut UnderWay) -> Result<()> {
    leader_cut_off(run, both_ways([(1, 5)]))
}

fn leader_cut_off(run: &mut UnderWay, cut: Vec<(usize, usize)>) -> Result<()> {
    run.hosts.weather(&Weather { cut: cut.clone(), ..Weather::default() })?;
    run.hosts.wait_for_standby()?;
    let toll = run.hosts.weather(&Weather::default())?;
    ensure!(cut_frames(&toll, &cut) > 0, "nothing went the way that was cut: {toll:?}");
    let said = run.hosts.wait_for_the_first_to_end()?;
    ensure!(said.contains(" leads since ") || said.contains("so this one ends"), "it ends for another reason: {said}");
    until_resumed(run)
}

/// What the hosts are at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// One coordinator.
    Plain,
    /// The same with so many workers at the start.
    Workers(usize),
    /// One whose disk takes 300 ms for each sync.
    SlowDisk,
    /// One that leads and one that waits, on a database and an object store.
    Pair,
}

impl Stage {
    fn workers(self) -> usize {
        match self {
            Self::Workers(workers) => workers,
            Self::Plain | Self::SlowDisk | Self::Pair => WORKERS,
        }
    }
}

/// What happens, and on what.
type Trouble = (fn(&mut UnderWay) -> Result<()>, Stage);

fn main() -> ExitCode {
    let asked = std::env::var_os("GRAFTWORK_LONG_TESTS").is_some();
    let missing = if asked { no_hosts() } else { Some("`make test-all` runs it".to_owned()) };
    if let Some(reason) = &missing {
        eprintln!("skipped: {reason}");
    }
    let lacking = if missing.is_none() { no_servers() } else { None };
    if let Some(reason) = &lacking {
        eprintln!("skipped, what needs two coordinators: {reason}");
    }
    let troubles: [(&str, Trouble); 19] = [
        ("nothing_happens", (nothing_happens, Stage::Plain)),
        ("nothing_happens_to_one_worker", (nothing_happens, Stage::Workers(1))),
        ("nothing_happens_to_two_workers", (nothing_happens, Stage::Workers(2))),
        ("nothing_happens_to_four_workers", (nothing_happens, Stage::Workers(4))),
        ("two_workers_become_four_and_then_one", (two_workers_become_four_and_then_one, Stage::Workers(2))),
        ("a_worker_is_killed", (a_worker_is_killed, Stage::Plain)),
        ("a_worker_freezes_and_thaws", (a_worker_freezes_and_thaws, Stage::Plain)),
        ("a_worker_is_not_heard", (a_worker_is_not_heard, Stage::Plain)),
        ("a_worker_does_not_hear", (a_worker_does_not_hear, Stage::Plain)),
        ("a_worker_is_cut_off_from_all", (a_worker_is_cut_off_from_all, Stage::Plain)),
        ("two_members_cannot_reach_each_other", (two_members_cannot_reach_each_other, Stage::Plain)),
        ("frames_take_200_ms", (frames_take_200_ms, Stage::Plain)),
        ("one_frame_in_twenty_is_lost", (one_frame_in_twenty_is_lost, Stage::Plain)),
        ("each_sync_of_the_disk_takes_300_ms", (the_disk_is_slow, Stage::SlowDisk)),
        ("the_coordinator_is_killed_and_started_again", (the_coordinator_is_killed_and_started_again, Stage::Plain)),
        ("the_leader_is_killed", (the_leader_is_killed, Stage::Pair)),
        ("the_leader_freezes_and_thaws", (the_leader_freezes_and_thaws, Stage::Pair)),
        ("the_leader_is_cut_off_from_all", (the_leader_is_cut_off_from_all, Stage::Pair)),
        ("the_leader_is_cut_off_from_the_database", (the_leader_is_cut_off_from_the_database, Stage::Pair)),
    ];
    let trials = troubles.map(|(name, trouble)| {
        let ignored = missing.is_some() || (lacking.is_some() && trouble.1 == Stage::Pair);
        let run = move || run(trouble).map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(name, run).with_ignored_flag(ignored)
    });
    // The hosts of two runs would have the same names.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

fn run((happens, stage): Trouble) -> Result<()> {
    let world = World::new()?;
    let expected = Cluster::undisturbed(&world).context("undisturbed")?;
    let mut run = UnderWay::start(&world, stage)?;
    happens(&mut run)?;
    run.finish(&expected)
}
