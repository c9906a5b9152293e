//! Broken connections, lost blobs, and jobs that nobody here can take up: one promise a test.

use std::collections::BTreeMap;

use graftwork_scheduler::{Command, Event, Fact, Plan, Policy, WorkerInfo};
use graftwork_shared::{
    assignment::Assignment,
    digest::Digest,
    event::{EventKind, Outcome},
    id::{JobId, LeaseId, WorkerId},
    job::{Device, Resources},
    view::{Refusal, StageState},
};

use crate::fixture::{Machine, assigned, class, fenced, info, key, name, plan, result, small_plan, stage};

fn one() -> Plan {
    plan("one", vec![stage("a", &[], 100)])
}

/// A worker with a key of its own.
pub(crate) fn keyed(key: &str) -> WorkerInfo {
    WorkerInfo { key: key.to_owned(), ..info(1) }
}

/// Submits a job of one stage to one worker; gives the worker and its lease.
pub(crate) fn working(machine: &mut Machine) -> (JobId, WorkerId, LeaseId) {
    let job = machine.submit(&one());
    let (worker, commands) = machine.join(keyed("k"));
    (job, worker, assigned(&commands)[0].2)
}

pub(crate) fn lose_link(machine: &mut Machine, worker: WorkerId) -> Vec<Command> {
    machine.apply(Event::LinkLost { worker, reason: "connection reset".to_owned() })
}

pub(crate) fn come_back(machine: &mut Machine, info: WorkerInfo, leases: Vec<LeaseId>) -> Vec<Command> {
    machine.apply(Event::WorkerJoined { session: 2, info, leases })
}

fn assignment(commands: &[Command]) -> &Assignment {
    let mut assignments = commands.iter().filter_map(|command| match command {
        Command::Assign { assignment, .. } => Some(&**assignment),
        _ => None,
    });
    assignments.next().unwrap()
}

pub(crate) fn failures(machine: &Machine, job: &JobId) -> usize {
    machine.scheduler.explain(job).unwrap().stages[0].failures.len()
}

pub(crate) fn told(commands: &[Command]) -> Vec<&EventKind> {
    let told = commands.iter().filter_map(|command| match command {
        Command::Tell { kind, .. } => Some(kind),
        _ => None,
    });
    told.collect()
}

#[test]
fn a_worker_whose_beats_come_late_and_unevenly_is_waited_for_longer_but_not_for_ever() {
    let mut machine = Machine::new();
    let silence_ms = machine.scheduler.policy().silence_ms;
    let (steady, _) = machine.join(keyed("steady"));
    let (late, _) = machine.join(keyed("late"));
    let beat = |worker| Event::Heartbeat { worker, leases: Vec::new() };
    let mut since_late = 0;
    for second in 1..=60 {
        machine.after(1_000, beat(steady));
        since_late += 1;
        // Every 4 to 9 seconds.
        if since_late >= 4 + second % 6 {
            machine.apply(beat(late));
            since_late = 0;
        }
    }
    machine.apply(beat(late));
    let gone = |machine: &Machine, worker| machine.scheduler.workers().iter().all(|known| known.id != worker);
    machine.after(silence_ms + 500, Event::Tick);
    assert!(gone(&machine, steady), "whoever beat each second is given up after {silence_ms} ms");
    assert!(!gone(&machine, late));
    machine.after(6 * silence_ms, Event::Tick);
    assert!(gone(&machine, late));
}

#[test]
fn a_worker_far_away_is_waited_for_longer_but_not_for_ever() {
    let mut machine = Machine::new();
    let silence_ms = machine.scheduler.policy().silence_ms;
    let far = [("near", 40), ("far", 3_000), ("farther", 60_000), ("unmeasured", 0)];
    let far = far.map(|(key, round_trip_ms)| {
        let (worker, _) = machine.join(keyed(key));
        machine.apply(Event::RoundTrip { worker, round_trip_ms });
        worker
    });
    let here = |machine: &Machine| -> Vec<WorkerId> {
        machine.scheduler.workers().into_iter().map(|known| known.id).collect()
    };
    for (wait_ms, stay) in [(silence_ms - 1, 0..4), (1, 1..3), (19_999, 1..3), (1, 2..3), (5 * silence_ms, 0..0)] {
        machine.after(wait_ms, Event::Tick);
        assert_eq!(here(&machine), far[stay], "{} ms without a word", machine.now_ms - 1_000);
    }
}

#[test]
fn a_worker_far_away_is_not_given_up_while_its_words_wait_for_a_coordinator_that_stood_still() {
    let mut machine = Machine::new();
    let (worker, _) = machine.join(keyed("far"));
    machine.apply(Event::RoundTrip { worker, round_trip_ms: 4_000 });
    machine.after(11_000, Event::Tick);
    let commands = machine.after(20_000, Event::StoodStill { gap_ms: 20_000 });
    assert!(commands.is_empty(), "it has 40 s, of which 11 were listened to: {commands:?}");
    machine.apply(Event::Heartbeat { worker, leases: Vec::new() });
    machine.after(9_999, Event::Tick);
    assert_eq!(machine.scheduler.workers().len(), 1);
    machine.after(1, Event::Tick);
    assert!(machine.scheduler.workers().is_empty(), "what was measured before says nothing about the way of now");
}

#[test]
fn a_worker_that_comes_back_in_time_keeps_its_leases_and_its_result_counts() {
    let mut machine = Machine::new();
    let (job, worker, lease) = working(&mut machine);
    for _ in 0..9 {
        assert!(told(&lose_link(&mut machine, worker)).is_empty(), "it is not gone yet");
        assert!(matches!(machine.state_of(&job, "a"), StageState::Running { .. }));
        machine.now_ms += 3_000;
        let commands = come_back(&mut machine, keyed("k"), vec![lease]);
        assert_eq!(commands, [Command::Welcome { session: 2, worker }]);
        machine.apply(Event::Heartbeat { worker, leases: vec![lease] });
    }
    assert_eq!(failures(&machine, &job), 0);
    let commands = machine.finish((worker, lease), result("a", 100, 0.9));
    assert!(commands.contains(&Command::Accept { worker, lease, step: 100 }));
}

#[test]
fn nothing_is_handed_to_a_worker_that_is_apart_nor_are_its_leases_to_another() {
    let mut machine = Machine::new();
    let (_, worker, _) = working(&mut machine);
    lose_link(&mut machine, worker);
    machine.apply(Event::Submitted { plan: Box::new(plan("two", vec![stage("b", &[], 9)])), gone: Vec::new() });
    let (other, commands) = machine.join(keyed("other"));
    let stages: Vec<_> = assigned(&commands).into_iter().map(|(stage, worker, _)| (stage, worker)).collect();
    assert_eq!(stages, [("b".to_owned(), other)]);
}

#[test]
fn a_worker_that_does_not_come_back_in_time_was_killed_and_that_counts() {
    let mut machine = Machine::new();
    let (job, worker, lease) = working(&mut machine);
    machine.join(keyed("another"));
    lose_link(&mut machine, worker);
    let deadline = machine.scheduler.next_deadline().unwrap();
    assert_eq!(deadline, machine.now_ms + 1_500);
    machine.after(1_500, Event::Tick);
    assert_eq!(failures(&machine, &job), 1);
    // Late, it is a new worker, and its work is fenced.
    let commands = come_back(&mut machine, keyed("k"), vec![lease]);
    assert!(!commands.contains(&Command::Welcome { session: 2, worker }));
    let late = machine.apply(Event::Heartbeat { worker: WorkerId(worker.0 + 2), leases: vec![lease] });
    assert_eq!(fenced(&late), [lease]);
}

#[test]
fn only_the_same_process_takes_its_leases_up_again() {
    let strangers = [
        keyed("another"),
        WorkerInfo { place: "elsewhere:1".to_owned(), ..keyed("k") },
        WorkerInfo { class: class("avx512"), ..keyed("k") },
        info(1),
    ];
    for stranger in strangers {
        let mut machine = Machine::new();
        let (_, worker, lease) = working(&mut machine);
        lose_link(&mut machine, worker);
        let (new, _) = machine.join(stranger);
        assert_ne!(new, worker);
        let commands = machine.finish((new, lease), result("a", 100, 0.9));
        assert_eq!(fenced(&commands), [lease]);
    }
    // Without a key nobody can come back, so it is not waited for.
    let mut machine = Machine::new();
    let job = machine.submit(&one());
    let (worker, _) = machine.join(info(1));
    lose_link(&mut machine, worker);
    assert_eq!(failures(&machine, &job), 1);
}

#[test]
fn what_was_lost_with_the_connection_is_handed_out_again_without_blame() {
    let mut machine = Machine::new();
    let (job, worker, lease) = working(&mut machine);
    lose_link(&mut machine, worker);
    let commands = come_back(&mut machine, keyed("k"), Vec::new());
    let again = assigned(&commands);
    assert!(again[0].1 == worker && again[0].2 > lease, "{commands:?}");
    assert_eq!(failures(&machine, &job), 0);
}

#[test]
fn a_connection_that_was_not_missed_yet_is_replaced_by_the_next() {
    let mut machine = Machine::new();
    let (_, worker, lease) = working(&mut machine);
    let commands = come_back(&mut machine, keyed("k"), vec![lease]);
    assert_eq!(commands, [Command::Welcome { session: 2, worker }]);
    // The end of the old one may be told late; whoever speaks after that is here.
    lose_link(&mut machine, worker);
    for _ in 0..4 {
        machine.after(5_000, Event::Heartbeat { worker, leases: vec![lease] });
    }
    machine.checkpoint((worker, lease), 50);
    assert_eq!(machine.scheduler.workers().len(), 1);
}

#[test]
fn a_stopping_coordinator_waits_for_no_worker_that_is_apart() {
    let mut machine = Machine::with(Policy { sends_home: true, ..Policy::default() });
    let (job, worker, _) = working(&mut machine);
    lose_link(&mut machine, worker);
    machine.apply(Event::Stop { reason: "Ctrl-C".to_owned() });
    assert!(machine.scheduler.is_idle());
    assert_eq!(failures(&machine, &job), 0);
}

#[test]
fn a_stage_whose_checkpoint_is_lost_starts_over_also_after_a_restart() {
    let mut machine = Machine::new();
    let (job, worker, lease) = working(&mut machine);
    machine.checkpoint((worker, lease), 50);
    let blob = Digest::of(format!("checkpoint 50 of {lease}").as_bytes());
    machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
    let commands = machine.apply(Event::BlobLost { blob });
    assert!(told(&commands).contains(&&EventKind::CheckpointLost { step: 50 }));
    assert!(machine.apply(Event::BlobLost { blob }).is_empty(), "it is lost once");
    let mut machine = Machine::recover(machine.facts, 90_000);
    // A worker of another class may take it up now.
    let (_, commands) = machine.join(WorkerInfo { class: class("avx512"), ..info(1) });
    assert_eq!(assignment(&commands).resume, None);
    assert!(matches!(machine.state_of(&job, "a"), StageState::Running { checkpoint_step: 0, .. }));
}

#[test]
fn a_result_that_is_lost_before_it_is_published_is_looked_for_in_the_hub_and_else_trained_again() {
    for in_hub in [false, true] {
        let mut machine = Machine::new();
        let (job, worker, lease) = working(&mut machine);
        machine.finish((worker, lease), result("a", 100, 0.9));
        let commands = machine.apply(Event::BlobLost { blob: result("a", 1, 0.9).weights });
        let question = Command::LookForReuse { key: key(&job, "a"), classes: vec![class("avx2")] };
        assert!(commands.contains(&question), "{commands:?}");
        assert!(told(&commands).contains(&&EventKind::ResultLost));
        // What the publication says that was under way is no longer heard.
        let failure = graftwork_shared::assignment::Failure {
            blame: graftwork_shared::assignment::Blame::Machine,
            message: "publishing: blob is damaged".to_owned(),
        };
        machine.apply(Event::PublishFailed { key: key(&job, "a"), failure });
        assert_eq!(failures(&machine, &job), 0);
        let found = in_hub.then(|| Box::new(result("a", 100, 0.9)));
        let commands = machine.apply(Event::Reusable { key: key(&job, "a"), result: found });
        if !in_hub {
            let (_, worker, lease) = assigned(&commands)[0].clone();
            machine.finish((worker, lease), result("a", 100, 0.9));
        }
        machine.apply(Event::Published { key: key(&job, "a"), release: "org/a".to_owned() });
        assert_eq!(machine.scheduler.view(&job).unwrap().outcome, Some(Outcome::Succeeded), "in hub: {in_hub}");
    }
}

/// A job whose adapters are published and whose fusion runs.
fn fusing(machine: &mut Machine) -> (JobId, WorkerId, LeaseId) {
    let job = machine.submit(&small_plan());
    let (_, commands) = machine.join(info(2));
    let mut last = Vec::new();
    for (stage, worker, lease) in assigned(&commands) {
        last = machine.finish((worker, lease), result(&stage, if stage == "a" { 100 } else { 200 }, 0.9));
    }
    for stage in ["a", "b"] {
        machine.apply(Event::Published { key: key(&job, stage), release: format!("org/{stage}") });
    }
    let (stage, worker, lease) = assigned(&last)[0].clone();
    assert_eq!(stage, "f");
    (job, worker, lease)
}

#[test]
fn a_fusion_waits_for_an_adapter_that_is_lost_and_goes_on_with_it() {
    let mut machine = Machine::new();
    let (job, worker, lease) = fusing(&mut machine);
    let commands = machine.apply(Event::BlobLost { blob: result("a", 1, 0.9).weights });
    assert!(told(&commands).contains(&&EventKind::ResultLost));
    let failure = graftwork_shared::assignment::Failure {
        blame: graftwork_shared::assignment::Blame::Machine,
        message: "the coordinator refused blob: not found".to_owned(),
    };
    machine.fail((worker, lease), failure);
    machine.now_ms += 1_000;
    assert_eq!(machine.state_of(&job, "f"), StageState::Waiting { for_stages: vec![name("a")] });
    machine.apply(Event::Tick);
    let found = Some(Box::new(result("a", 100, 0.9)));
    let commands = machine.apply(Event::Reusable { key: key(&job, "a"), result: found });
    assert_eq!(assigned(&commands)[0].0, "f");
}

#[test]
fn what_nobody_needs_is_not_missed() {
    let mut machine = Machine::new();
    let (job, worker, lease) = fusing(&mut machine);
    machine.finish((worker, lease), result("f", 50, 0.9));
    machine.apply(Event::Published { key: key(&job, "f"), release: "org/f".to_owned() });
    for stage in ["a", "b", "f"] {
        assert!(machine.apply(Event::BlobLost { blob: result(stage, 1, 0.9).weights }).is_empty());
    }
    assert!(machine.apply(Event::BlobLost { blob: Digest::of(b"never heard of") }).is_empty());
}

#[test]
fn a_cancelled_job_ends_even_if_a_result_is_lost_on_the_way_to_the_hub() {
    let mut machine = Machine::new();
    let (job, worker, lease) = fusing(&mut machine);
    machine.finish((worker, lease), result("f", 50, 0.9));
    machine.apply(Event::Cancel { job: job.clone(), reason: "by the user".to_owned() });
    machine.apply(Event::BlobLost { blob: result("a", 1, 0.9).weights });
    assert_eq!(machine.scheduler.view(&job).unwrap().outcome, Some(Outcome::Cancelled));
}

fn stuck(commands: &[Command]) -> Option<&BTreeMap<graftwork_shared::id::Name, Refusal>> {
    told(commands).into_iter().find_map(|kind| match kind {
        EventKind::Stuck { refusals } => Some(refusals),
        _ => None,
    })
}

#[test]
fn a_job_that_no_worker_here_can_take_up_is_told_once_until_that_changes() {
    let mut large = one();
    large.stages[0].memory_bytes = 4 << 30;
    let mut machine = Machine::new();
    machine.submit(&large);
    let commands = machine.apply(Event::WorkerJoined { session: 1, info: info(1), leases: Vec::new() });
    let refusal = Refusal::Memory { needs_bytes: 4 << 30, largest_bytes: 1 << 30 };
    assert_eq!(stuck(&commands), Some(&[(name("a"), refusal)].into()));
    assert_eq!(stuck(&machine.apply(Event::Tick)), None, "once");
    let (wide, commands) = machine.join(WorkerInfo { memory_bytes: 8 << 30, ..info(1) });
    assert_eq!((stuck(&commands), assigned(&commands).len()), (None, 1));
    let commands = machine.apply(Event::WorkerLeft { worker: wide, reason: "killed".to_owned() });
    assert_eq!(stuck(&commands), None, "an attempt waits");
    assert!(stuck(&machine.after(500, Event::Tick)).is_some(), "and again");
}

#[test]
fn a_job_is_not_stuck_while_something_of_it_runs_or_may_yet_run() {
    let mut machine = Machine::new();
    let mut mixed = plan("mixed", vec![stage("a", &[], 10), stage("large", &[], 10), stage("f", &["a"], 5)]);
    mixed.stages[1].memory_bytes = 4 << 30;
    let job = machine.submit(&mixed);
    assert_eq!(stuck(&machine.apply(Event::Tick)), None, "nobody is here yet");
    let (worker, commands) = machine.join(info(1));
    assert_eq!(stuck(&commands), None);
    let commands = machine.finish((worker, assigned(&commands)[0].2), result("a", 10, 0.9));
    assert_eq!(stuck(&commands), None);
    machine.apply(Event::Published { key: key(&job, "a"), release: "org/a".to_owned() });
    let commands = machine.finish((worker, assigned(&commands)[0].2), result("f", 5, 0.9));
    assert_eq!(stuck(&commands), None, "it is being published");
    let commands = machine.apply(Event::Published { key: key(&job, "f"), release: "org/f".to_owned() });
    assert_eq!(stuck(&commands).unwrap().keys().collect::<Vec<_>>(), [&name("large")]);
}

#[test]
fn a_job_that_goes_on_takes_new_wishes_for_machines_over() {
    let mut machine = Machine::new();
    let job = machine.submit(&one());
    let cuda = WorkerInfo {
        class: graftwork_shared::recipe::NumericClass { device: "cuda".to_owned(), ..class("avx2") },
        ..info(1)
    };
    let (_, commands) = machine.join(cuda);
    assert!(assigned(&commands).is_empty());
    let resources = Resources { device: Device::Cuda, ..one().job.resources };
    let commands = machine.apply(Event::Resources { job: job.clone(), resources: resources.clone() });
    assert_eq!(assigned(&machine.nothing_to_reuse(commands)).len(), 1);
    assert_eq!(machine.scheduler.plan(&job).unwrap().job.resources, resources);
    let again = Event::Resources { job, resources };
    machine.apply(again);
    let changes = machine.facts.iter().filter(|fact| matches!(fact, Fact::ResourcesChanged { .. })).count();
    assert_eq!(changes, 1);
    Machine::recover(machine.facts, 90_000);
}
