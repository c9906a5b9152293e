//! Workers that are out of reach and keep what they hold, and those who do not; one promise a test.

use graftwork_scheduler::{Command, Event, Policy, WorkerInfo};
use graftwork_shared::{
    id::{JobId, WorkerId},
    view::{Refusal, StageState},
};

use crate::{
    faults::{come_back, failures, keyed, lose_link, told, working},
    fixture::{Machine, assigned, class, grouped, plan, refusal, result, stage},
    group::{World, released},
};

/// What `explain` says of the only stage.
fn explained(machine: &Machine, job: &JobId) -> String {
    machine.scheduler.explain(job).unwrap().to_string()
}

#[test]
fn a_worker_that_nobody_could_replace_keeps_its_leases_and_its_late_result_counts() {
    let broken = |machine: &mut Machine, worker| drop(lose_link(machine, worker));
    let silent = |_: &mut Machine, _| {};
    for lose in [&broken as &dyn Fn(&mut Machine, WorkerId), &silent] {
        let mut machine = Machine::new();
        let (job, worker, lease) = working(&mut machine);
        lose(&mut machine, worker);
        assert!(!explained(&machine, &job).contains("keeps it"));
        for _ in 0..600 {
            assert!(told(&machine.after(500, Event::Tick)).is_empty(), "it is not gone");
            let next_ms = machine.scheduler.next_deadline().unwrap();
            assert!(next_ms > machine.now_ms, "nobody is woken in vain");
        }
        assert_eq!(failures(&machine, &job), 0);
        let words = format!("nobody else could have it, so {worker} keeps it");
        assert!(explained(&machine, &job).contains(&words), "{}", explained(&machine, &job));
        let commands = come_back(&mut machine, keyed("k"), vec![lease]);
        assert_eq!(commands, [Command::Welcome { session: 2, worker }]);
        assert!(!explained(&machine, &job).contains("keeps it"));
        let commands = machine.finish((worker, lease), result("a", 100, 0.9));
        assert!(commands.contains(&Command::Accept { worker, lease, step: 100 }));
    }
}

#[test]
fn a_worker_is_kept_until_somebody_comes_who_could_have_its_stage() {
    let mut machine = Machine::new();
    let (job, worker, lease) = working(&mut machine);
    machine.checkpoint((worker, lease), 50);
    lose_link(&mut machine, worker);
    machine.after(20_000, Event::Tick);
    let beat = |machine: &mut Machine, other| {
        machine.after(1_000, Event::Heartbeat { worker: other, leases: Vec::new() });
        failures(machine, &job)
    };
    let (avx512, _) = machine.join(WorkerInfo { class: class("avx512"), ..keyed("of another class") });
    assert_eq!(beat(&mut machine, avx512), 0);
    let (small, _) = machine.join(WorkerInfo { memory_bytes: 1 << 10, ..keyed("of too little memory") });
    assert_eq!(beat(&mut machine, small), 0);
    let (other, _) = machine.join(keyed("suited"));
    assert_eq!(beat(&mut machine, other), 1);
    let commands = machine.after(1_000, Event::Tick);
    assert_eq!(
        assigned(&commands).into_iter().map(|(stage, worker, _)| (stage, worker)).collect::<Vec<_>>(),
        [("a".to_owned(), other)]
    );
    let commands = come_back(&mut machine, keyed("k"), vec![lease]);
    assert!(!commands.contains(&Command::Welcome { session: 2, worker }));
}

#[test]
fn a_coordinator_that_hears_nobody_gives_nobody_up_who_holds_something() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("two", vec![stage("a", &[], 100), stage("b", &[], 100)]));
    let held: Vec<_> = ["k", "l"].map(|key| machine.join(keyed(key)).1).iter().flat_map(|all| assigned(all)).collect();
    let (idle, _) = machine.join(keyed("idle"));
    // Their last words came at different times, the idle one's last of all.
    for (_, worker, lease) in &held {
        machine.after(700, Event::Heartbeat { worker: *worker, leases: vec![*lease] });
    }
    machine.after(700, Event::Heartbeat { worker: idle, leases: Vec::new() });
    for _ in 0..60 {
        machine.after(500, Event::Tick);
    }
    assert_eq!(here(&machine), [held[0].1, held[1].1], "the idle one has nothing to keep");
    assert_eq!(failures(&machine, &job), 0);
    assert!(explained(&machine, &job).contains("nobody at all is heard of"), "{}", explained(&machine, &job));
    // One is heard again. The other one may take some seconds more to be back; then it is away, and what it has waits for room.
    let beat = Event::Heartbeat { worker: held[0].1, leases: vec![held[0].2] };
    machine.apply(beat.clone());
    let return_ms = machine.scheduler.policy().return_ms;
    for _ in 0..return_ms / 500 {
        machine.after(500, beat.clone());
        assert_eq!(machine.scheduler.workers().len(), 2);
    }
    machine.after(500, beat);
    assert_eq!(here(&machine), [held[0].1]);
    assert!(matches!(machine.state_of(&job, &held[1].0), StageState::Ready { .. }));
}

fn here(machine: &Machine) -> Vec<WorkerId> {
    machine.scheduler.workers().into_iter().map(|known| known.id).collect()
}

/// Lets so much time go by.
fn wait(machine: &mut Machine, ms: u64) -> Vec<Command> {
    (0..ms / 500).flat_map(|_| machine.after(500, Event::Tick)).collect()
}

#[test]
fn nobody_is_kept_where_a_worker_that_went_is_not_waited_for() {
    let broken = |machine: &mut Machine, worker| lose_link(machine, worker);
    let silent = |machine: &mut Machine, _| wait(machine, Policy::default().silence_ms + 500);
    for lose in [&broken as &dyn Fn(&mut Machine, WorkerId) -> Vec<Command>, &silent] {
        let mut machine = Machine::with(Policy { grace_ms: 0, ..Policy::default() });
        let (job, worker, _) = working(&mut machine);
        lose(&mut machine, worker);
        assert_eq!((here(&machine), failures(&machine, &job)), (Vec::new(), 1));
    }
}

#[test]
fn a_worker_is_kept_for_a_day_at_most() {
    let mut machine = Machine::new();
    let (job, worker, _) = working(&mut machine);
    lose_link(&mut machine, worker);
    let day_ms = 24 * 3_600_000;
    // A coordinator that stands still for an hour knows of nobody's silence, so it looks often.
    while machine.now_ms + 1_000 < day_ms {
        machine.after(1_000, Event::Tick);
    }
    assert_eq!((here(&machine), failures(&machine, &job)), (vec![worker], 0));
    wait(&mut machine, 120_000);
    assert_eq!((here(&machine), failures(&machine, &job)), (Vec::new(), 1));
}

#[test]
fn a_worker_that_was_known_before_a_restart_is_not_kept() {
    let mut machine = Machine::new();
    let (job, _, _) = working(&mut machine);
    let mut machine = Machine::recover(machine.facts, 90_000);
    let return_ms = machine.scheduler.policy().return_ms;
    wait(&mut machine, return_ms + 1_000);
    assert!(here(&machine).is_empty());
    assert!(matches!(machine.state_of(&job, "a"), StageState::Ready { .. }));
}

#[test]
fn a_gang_does_not_count_on_a_worker_that_is_kept() {
    let mut machine = Machine::new();
    let mut large = plan("large", vec![stage("a", &[], 100)]);
    large.stages[0].memory_bytes = 1 << 25;
    machine.submit(&large);
    let (worker, commands) = machine.join(keyed("k"));
    let lease = assigned(&commands)[0].2;
    lose_link(&mut machine, worker);
    wait(&mut machine, 20_000);
    // Too small for what the other one trains, so that one stays kept.
    let (other, _) = machine.join(WorkerInfo { memory_bytes: 1 << 22, ..keyed("l") });
    let mut wide = grouped(8, 100);
    wide.job.resources.gang = 2;
    wide.digest = wide.job.digest();
    let job = machine.submit(&wide);
    let commands = machine.after(500, Event::Heartbeat { worker: other, leases: Vec::new() });
    machine.nothing_to_reuse(commands);
    assert_eq!(here(&machine), [worker, other]);
    assert_eq!(refusal(&machine, &job, "a"), Refusal::Gang { needs: 2, free: 1, have: 1 });
    let commands = come_back(&mut machine, keyed("k"), vec![lease]);
    machine.nothing_to_reuse(commands);
    assert_eq!(refusal(&machine, &job, "a"), Refusal::Gang { needs: 2, free: 1, have: 2 });
}

/// Everybody is out of reach for half a minute.
fn cut_off(world: &mut World) -> Vec<Command> {
    wait(&mut world.machine, 30_000)
}

#[test]
fn a_group_that_was_cut_off_with_everybody_else_goes_on_as_it_was() {
    let mut world = World::of(&grouped(4, 100), 2);
    let (epoch, lease) = (world.epoch(), world.lease);
    let commands = cut_off(&mut world);
    assert!(told(&commands).is_empty(), "{commands:?}");
    let first = world.machine.after(500, Event::Heartbeat { worker: world.members[0], leases: vec![lease] });
    assert!(told(&first).is_empty(), "the other one is waited for: {first:?}");
    let second = world.machine.after(500, Event::Heartbeat { worker: world.members[1], leases: vec![lease] });
    assert!(told(&second).is_empty(), "{second:?}");
    assert_eq!((world.now(), world.epoch(), world.failures()), (world.members.clone(), epoch, 0));
}

#[test]
fn a_member_that_does_not_come_back_with_the_others_is_gone_and_they_go_on() {
    let mut world = World::of(&grouped(4, 100), 2);
    cut_off(&mut world);
    let (first, lease) = (world.members[0], world.lease);
    let beat = Event::Heartbeat { worker: first, leases: vec![lease] };
    let return_ms = world.machine.scheduler.policy().return_ms;
    let since = world.machine.now_ms;
    while world.now().len() == 2 {
        world.machine.after(500, beat.clone());
        assert!(world.machine.now_ms <= since + return_ms + 1_000, "it is not waited for any longer");
    }
    assert!(world.machine.now_ms >= since + return_ms, "it had its time");
    assert_eq!((world.now(), world.failures()), (vec![first], 0));
}

#[test]
fn a_kept_member_that_could_not_be_told_to_give_its_place_is_told_when_it_is_heard() {
    let mut world = World::of(&grouped(4, 100), 2);
    cut_off(&mut world);
    let mut urgent = plan("urgent", vec![stage("x", &[], 10)]);
    urgent.job.priority = 1;
    urgent.digest = urgent.job.digest();
    world.machine.submit(&urgent);
    let (lease, members) = (world.lease, world.members.clone());
    let mut beat = |worker| {
        let commands = world.machine.after(500, Event::Heartbeat { worker, leases: vec![lease] });
        released(&world.machine.nothing_to_reuse(commands))
    };
    assert_eq!(beat(members[0]), [(members[0], lease)], "nobody is told anything who cannot hear it");
    assert_eq!(beat(members[1]), [(members[1], lease)]);
    assert_eq!([beat(members[0]), beat(members[1])].concat(), [], "each is asked once");
}
