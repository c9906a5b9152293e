//! Invariant 5 over many workers: one, four, two that become four and then one while members are killed, two of whom one
//! is slow, or two whose places go to an urgent job meanwhile, publish the same bytes through the real programs.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use graftwork_shared::{
    data::Split,
    digest::Digest,
    event::{Event, EventKind},
    id::WorkerId,
    record::Record,
    training::Length,
};
use graftwork_tests::{Cluster, Run, Story, World, program, published_digests, recipes_computed};

/// What a job has published.
#[derive(Debug, PartialEq, Eq)]
struct Published {
    /// SHA-256 of every file.
    files: BTreeMap<String, Digest>,
    /// Updates behind each release, as its record tells them.
    updates: BTreeMap<String, u64>,
}

impl Published {
    fn of(world: &World, cluster: &Cluster, job: &str) -> Result<Self> {
        let files = published_digests(&cluster.path().join("hub"))?;
        Ok(Self { files, updates: updates(world, cluster, job)? })
    }
}

/// The updates of each release: as many as its rows, batches and epochs make, and as the plan has.
fn updates(world: &World, cluster: &Cluster, job: &str) -> Result<BTreeMap<String, u64>> {
    let (status, _) = cluster.ask(world, &["status", job, "--output", "json"], 0)?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let mut updates = BTreeMap::new();
    for stage in status["stages"].as_array().context("a job has stages")? {
        let name = stage["name"].as_str().context("a stage has a name")?;
        let record = fs::read(cluster.path().join("hub/tests").join(name).join("graftwork.json"))?;
        let record: Record = serde_json::from_slice(&record).with_context(|| format!("the record of {name}"))?;
        let training = &record.recipe.training;
        let Length::Epochs(epochs) = training.length else { bail!("{name} has no epochs: {training:?}") };
        let rows = record.data.get(&Split::Train).context("a stage has rows to train on")?.rows;
        let rows_of_update = u64::from(training.batch_size) * u64::from(training.accumulation);
        let planned = rows.div_ceil(rows_of_update) * u64::from(epochs);
        let [made, kept] = record.steps;
        ensure!(
            made == planned && stage["total_steps"] == planned && kept <= made,
            "{name}: {made} updates were made and {kept} kept, of {planned}; the plan says {}",
            stage["total_steps"]
        );
        updates.insert(name.to_owned(), made);
    }
    Ok(updates)
}

/// Runs the long job on this many workers; `at` sees each event and may change the cluster.
fn run(
    world: &World,
    cluster: &mut Cluster,
    workers: usize,
    at: impl FnMut(&Event, &Story, &mut Cluster) -> Result<()>,
) -> Result<(Published, Story)> {
    world.long_job("job.toml", &cluster.path().join("hub").display().to_string(), "")?;
    run_job(world, cluster, (workers, &[]), at)
}

/// The same with the job that is written already, and with these options of workers.
fn run_job(
    world: &World,
    cluster: &mut Cluster,
    (workers, options): (usize, &[&str]),
    mut at: impl FnMut(&Event, &Story, &mut Cluster) -> Result<()>,
) -> Result<(Published, Story)> {
    cluster.begin_anew()?;
    let (job, _) = cluster.ask(world, &["submit", "job.toml"], 0)?;
    let mut watch = Run::watch(&cluster.address(), &job)?;
    for _ in 0..workers {
        cluster.start_worker_with(&cluster.address(), options)?;
    }
    let mut story = Story::default();
    while let Some(event) = watch.next_event()? {
        story.note(&event)?;
        at(&event, &story, cluster)?;
    }
    watch.finish(0)?;
    Ok((Published::of(world, cluster, &job)?, story))
}

/// The members that made an update of the fusion, as whoever leads them reports it.
fn of_fusion(event: &Event, story: &Story) -> Option<Vec<WorkerId>> {
    let EventKind::Step(report) = &event.kind else { return None };
    event.stage.as_ref().filter(|stage| stage.as_str() == "mood_fused")?;
    let formed = story.formed.get("mood_fused").filter(|formed| formed.epoch == report.group)?;
    Some(formed.members.clone())
}

/// A release that four workers made is trained again by one, from its record, to the same SHA-256.
fn verify_alone(cluster: &Cluster) -> Result<()> {
    let mut verify = Command::new(program());
    verify.current_dir(cluster.path()).args(["verify", "--retrain", "hub/tests/mood_fused"]);
    let Output { status, stdout, stderr } = cluster.name_uploads(&mut verify).output()?;
    let said = String::from_utf8([stdout, stderr].concat())?;
    ensure!(status.success() && said.contains("model_adapter_fusion.safetensors"), "{said}");
    Ok(())
}

#[test]
fn one_worker_four_and_two_that_become_four_and_one_publish_the_same_bytes() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    let (alone, story) = run(&world, &mut cluster, 1, |_, _, _| Ok(()))?;
    ensure!(story.largest.is_empty(), "one worker forms no group: {:?}", story.largest);
    let updates = ["mood", "mood_fused", "topic"].map(|stage| (stage.to_owned(), 1_440_u64));
    assert_eq!(alone.updates, BTreeMap::from(updates), "96 rows in batches of 8, 120 times");

    for workers in [2, 3] {
        let (some, story) = run(&world, &mut cluster, workers, |_, _, _| Ok(()))?;
        ensure!(story.largest.get("mood_fused") == Some(&workers), "the last stage takes all: {:?}", story.largest);
        assert_eq!(some, alone, "{workers} workers");
    }
    let (four, story) = run(&world, &mut cluster, 4, |_, _, _| Ok(()))?;
    ensure!(story.largest.get("mood_fused") == Some(&4), "the last stage takes every worker: {:?}", story.largest);
    assert_eq!(four, alone, "four workers");
    verify_alone(&cluster)?;

    // Two workers, a third and a fourth while the fusion trains, then the leader is killed, then two more.
    // Each at the first update that the group of then reports, so that everyone in it has the state.
    let (mut act, mut resting) = (0, None);
    let (changing, story) = run(&world, &mut cluster, 2, |event, story, cluster| {
        let Some(members) = of_fusion(event, story) else { return Ok(()) };
        let mut kill = |count: usize| {
            members[..count].iter().for_each(|member| cluster.kill_worker(story.processes[member]));
        };
        match (act, members.len()) {
            (0, 2) => {
                cluster.start_worker()?;
                cluster.start_worker()?;
                // Whoever waits for it computes nothing, so the two have time to come.
                resting = Some(rest(story.processes[&members[1]], Duration::from_secs(5)));
            }
            (1, 4) => kill(1),
            (2, 3) => kill(2),
            (3, 1) => {}
            _ => return Ok(()),
        }
        act += 1;
        Ok(())
    })?;
    if let Some(resting) = resting {
        ensure!(resting.join().is_ok(), "a member was not let go on");
    }
    ensure!(act == 4, "only {act} of the four changes came about: {:?}", story.largest);
    ensure!(story.failures == 0, "members that are lost cost no attempt: {}", story.failures);
    assert_eq!(changing, alone, "two workers, four, and one");
    // The histories of all runs but the last were read by now, and held to rows that the test computed itself.
    ensure!(recipes_computed() >= 3, "of {} recipes the rows were computed", recipes_computed());
    Ok(())
}

/// Rolling upgrade: members of a group are told to end one by one, the leader too, while another one comes for each.
#[test]
fn workers_that_are_told_to_end_hand_over_and_cost_no_attempt() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    let (alone, _) = run(&world, &mut cluster, 1, |_, _, _| Ok(()))?;
    let (mut act, mut replaced) = (0, None);
    let (rolled, story) = run(&world, &mut cluster, 2, |event, story, cluster| {
        let Some(members) = of_fusion(event, story).filter(|members| members.len() == 2 && act < 2) else {
            return Ok(());
        };
        if replaced.is_some_and(|gone| members.contains(&gone)) {
            return Ok(());
        }
        // The follower first, then whoever leads.
        let leaver = members[1 - act];
        cluster.start_worker()?;
        let status = cluster.stop_worker(story.processes[&leaver])?;
        ensure!(status.success(), "it was asked to end: {status}");
        (act, replaced) = (act + 1, Some(leaver));
        Ok(())
    })?;
    ensure!(act == 2, "only {act} of the two members were replaced: {:?}", story.largest);
    ensure!(story.failures == 0, "handing over costs no attempt: {}", story.failures);
    assert_eq!(rolled, alone, "members replaced one by one");
    Ok(())
}

/// A fusion of so many lanes that a member keeps some of them though it takes several times as long as the other one.
const MANY_LANES: &str = "[fusions.mood_fused.training]\nepochs = 200\nbatch_size = 16\nlanes = 16\n\
    evaluate_every = 100\ncheckpoint_every = 100\n";

/// Stops a process for so long, which is less than the silence after which a worker is given up.
fn rest(pid: u32, time: Duration) -> JoinHandle<()> {
    thread::spawn(move || {
        for (signal, time) in [("-STOP", time), ("-CONT", Duration::ZERO)] {
            let sent = Command::new("kill").args([signal, &pid.to_string()]).status();
            assert!(sent.is_ok_and(|status| status.success()), "process {pid} felt no {signal}");
            thread::sleep(time);
        }
    })
}

/// A process that is stopped for three quarters of the time until this goes, several times between two reports.
struct Slowed {
    over: Arc<AtomicBool>,
    signals: Option<JoinHandle<()>>,
}

impl Slowed {
    fn begin(pid: u32) -> Self {
        let over = Arc::<AtomicBool>::default();
        let is_over = Arc::clone(&over);
        let signals = thread::spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                for (signal, milliseconds) in [("-STOP", 30), ("-CONT", 10)] {
                    // One that has ended feels nothing.
                    let _ = Command::new("kill").args([signal, &pid.to_string()]).status();
                    thread::sleep(Duration::from_millis(milliseconds));
                }
            }
        });
        Self { over, signals: Some(signals) }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(signals) = self.signals.take() {
            // It cannot panic.
            let _ = signals.join();
        }
    }
}

/// What tells it are the reports of both members, which come as often as they do by default.
#[test]
fn a_follower_that_becomes_slow_hands_lanes_over_and_the_bytes_are_the_same() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    world.job("job.toml", &cluster.path().join("hub").display().to_string(), MANY_LANES)?;
    let (alone, _) = run_job(&world, &mut cluster, (1, &[]), |_, _, _| Ok(()))?;
    let (mut slowed, mut moved) = (None::<(WorkerId, Slowed)>, false);
    let often = ["--report-every", "250"];
    let (uneven, story) = run_job(&world, &mut cluster, (2, &often), |event, story, _| {
        if let EventKind::GroupFormed { members, reason, .. } = &event.kind {
            let hands_over = |(follower, _): &mut (WorkerId, Slowed)| {
                members.contains(follower) && reason.starts_with("lanes move: ")
            };
            moved |= slowed.take_if(hands_over).is_some();
        } else if let Some(members) = of_fusion(event, story)
            && members.len() == 2
            && slowed.is_none()
            && !moved
        {
            slowed = Some((members[1], Slowed::begin(story.processes[&members[1]])));
        }
        Ok(())
    })?;
    ensure!(moved, "no lanes moved: {:?}", story.formed);
    ensure!(story.failures == 0 && story.left.is_empty(), "{} failures, {:?} left", story.failures, story.left);
    assert_eq!(uneven, alone, "one of two members is slow");
    Ok(())
}

/// A job that asks for two workers at once waits for the second one, says so, and publishes what one worker publishes.
#[test]
fn a_gang_starts_with_its_second_worker_and_publishes_the_same_bytes() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    let (alone, _) = run(&world, &mut cluster, 1, |_, _, _| Ok(()))?;
    cluster.begin_anew()?;
    world.long_job("job.toml", &cluster.path().join("hub").display().to_string(), "[resources]\ngang = 2\n")?;
    let (job, _) = cluster.ask(&world, &["submit", "job.toml"], 0)?;
    let mut watch = Run::watch(&cluster.address(), &job)?;
    cluster.start_worker()?;
    watch.wait_for("that it cannot start", |event| matches!(event.kind, EventKind::Stuck { .. }))?;
    let (explained, _) = cluster.ask(&world, &["explain", &job], 0)?;
    ensure!(explained.contains("it starts on 2 workers at once (resources.gang), and 1 of 1"), "{explained}");
    cluster.start_worker()?;
    let (mut story, mut started) = (Story::default(), 0);
    while let Some(event) = watch.next_event()? {
        story.note(&event)?;
        started += usize::from(matches!(event.kind, EventKind::StageStarted { .. }));
    }
    watch.finish(0)?;
    ensure!(started > 0 && story.failures == 0, "{started} stages started, {} failures", story.failures);
    ensure!(story.largest.get("mood_fused") == Some(&2), "the fusion had both workers: {:?}", story.largest);
    assert_eq!(Published::of(&world, &cluster, &job)?, alone, "a gang of two");
    Ok(())
}

/// Writes a job of one short task that goes before the long one, and starts on two workers at once or not at all.
fn write_urgent(world: &World, hub: &Path) -> Result<()> {
    let path = world.job("urgent.toml", &hub.display().to_string(), "")?;
    let tiny = fs::read_to_string(&path)?;
    let (one_task, _) = tiny.split_once("[tasks.mood]").context("the job's second task")?;
    fs::write(&path, format!("priority = 1\n{one_task}[resources]\ngang = 2\n"))?;
    Ok(())
}

/// A job that has succeeded, and when it ended, in milliseconds since 1970.
fn ended_ms(world: &World, cluster: &Cluster, job: &str) -> Result<u64> {
    let (status, _) = cluster.ask(world, &["status", job, "--output", "json"], 0)?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    ensure!(status["outcome"] == "succeeded", "{status}");
    status["ended_ms"].as_u64().context("when it ended")
}

/// A gang is asked for its places while it trains, since the urgent one needs both: its members stop after the same update,
/// make it durable, and go on from there once the urgent job's stage is trained.
#[test]
fn a_gang_gives_its_places_to_an_urgent_one_as_a_whole_and_publishes_the_same_bytes_later() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    // A third of the long job's updates is long enough.
    let hub = cluster.path().join("hub").display().to_string();
    let write = |more: &str| -> Result<()> {
        let job = world.long_job("job.toml", &hub, more)?;
        Ok(fs::write(&job, fs::read_to_string(&job)?.replacen("epochs = 120", "epochs = 40", 1))?)
    };
    write("")?;
    let (alone, _) = run_job(&world, &mut cluster, (1, &[]), |_, _, _| Ok(()))?;
    write("[resources]\ngang = 2\n")?;
    write_urgent(&world, &cluster.path().join("urgent"))?;
    let (mut urgent, mut reported) = (String::new(), 0);
    let (mut given, mut taken_up) = (Vec::new(), Vec::new());
    let one_place = ["--slots", "1"];
    let (preempted, story) = run_job(&world, &mut cluster, (2, &one_place), |event, story, cluster| {
        match &event.kind {
            EventKind::Step(report) => {
                reported = report.step;
                if urgent.is_empty() && story.together(event).is_some() {
                    urgent = cluster.ask(&world, &["submit", "urgent.toml"], 0)?.0;
                }
            }
            EventKind::Preempted { .. } => given.push((event.clone(), reported)),
            EventKind::StageStarted { from_step, .. } => {
                taken_up.extend(given.iter().filter(|(earlier, _)| earlier.stage == event.stage).map(|_| *from_step));
            }
            _ => {}
        }
        Ok(())
    })?;
    let [(Event { job, stage: Some(stage), kind: EventKind::Preempted { by_job, by, step }, .. }, reported)] =
        given.as_slice()
    else {
        bail!("not one stage gave its place, once: {given:?}; urgent was {urgent:?}")
    };
    ensure!(by_job.to_string() == urgent && by.as_str() == "topic", "its place went to {by} of {by_job}");
    ensure!(*step > 0 && step >= reported, "update {reported} of {stage} was reported, and {step} is safe");
    ensure!(taken_up == [*step], "{stage} stopped after update {step} and went on from {taken_up:?}");
    ensure!(story.failures == 0 && story.left.is_empty(), "{} failures, {:?} left", story.failures, story.left);
    let long = job.to_string();
    let (explained, _) = cluster.ask(&world, &["explain", &long], 0)?;
    let told = format!("at step {step} its place went to {by} of job {urgent}, which has a higher priority");
    ensure!(explained.contains(&told), "{explained}");
    let [urgent, long] = [&urgent, &long].map(|job| ended_ms(&world, &cluster, job));
    let (urgent, long) = (urgent.context("the urgent job")?, long.context("the long job")?);
    ensure!(urgent < long, "the urgent job ended at {urgent}, the long one at {long}");
    assert_eq!(preempted, alone, "a gang that gave its places and took them up again");
    Ok(())
}

/// The transport's own all-reduce trains too; that its bytes are outside the promise is in the record and on the card.
#[test]
fn a_fast_reduction_over_two_workers_is_recorded_and_told_on_the_card() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    let fast = "[fusions.mood_fused.training]\nreduction = \"fast\"\n";
    world.long_job("job.toml", &cluster.path().join("hub").display().to_string(), fast)?;
    let (job, _) = cluster.ask(&world, &["submit", "job.toml"], 0)?;
    let mut watch = Run::watch(&cluster.address(), &job)?;
    cluster.start_worker()?;
    cluster.start_worker()?;
    let (mut story, mut together) = (Story::default(), 0);
    while let Some(event) = watch.next_event()? {
        story.note(&event)?;
        together += u32::from(of_fusion(&event, &story).is_some_and(|members| members.len() == 2));
    }
    watch.finish(0)?;
    ensure!(together > 10, "two workers made {together} updates of the fusion: {:?}", story.largest);
    let told = |name: &str| -> Result<(bool, bool)> {
        let release = cluster.path().join("hub/tests").join(name);
        let record: serde_json::Value = serde_json::from_slice(&fs::read(release.join("graftwork.json"))?)?;
        let card = fs::read_to_string(release.join("README.md"))?;
        let recorded = record["recipe"]["training"]["reduction"] == "fast";
        Ok((recorded, card.contains("added by the transport's own all-reduce")))
    };
    assert_eq!(told("mood_fused")?, (true, true));
    assert_eq!(told("mood")?, (false, false), "the others are within it");
    Ok(())
}
