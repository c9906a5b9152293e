//! Leases that several workers hold: who joins, who leaves, who is taken back; one promise a test.

use graftwork_scheduler::{Command, Event, Fact, Plan, WorkerInfo};
use graftwork_shared::{assignment::Blame, digest::Digest, event::EventKind, id::WorkerId, job::Device};

use crate::{
    fixture::{Machine, assigned, class, fenced, grouped, info, invited, key, plan, stage},
    group::{World, failure, fences, keyed, places, reasons, released},
};

#[test]
fn a_joiner_is_formed_only_when_it_is_prepared() {
    let mut machine = Machine::new();
    let job = machine.submit(&grouped(4, 100));
    let (first, commands) = machine.join(info(1));
    let lease = assigned(&commands)[0].2;
    assert!(places(&commands).is_empty(), "one worker is no group");
    machine.checkpoint((first, lease), 30);
    let (second, commands) = machine.join(info(1));
    let Some(Command::Assign { assignment, joining: true, .. }) =
        commands.iter().find(|command| matches!(command, Command::Assign { .. }))
    else {
        panic!("{commands:?}");
    };
    assert!(assignment.resume.is_none() && assignment.attempt == 0, "it takes up the members' state");
    assert_eq!((invited(&commands), places(&commands)), (vec![(second, lease)], vec![]));
    assert_eq!(machine.scheduler.holds(second, lease), Some(&key(&job, "a")));
    assert_eq!(machine.scheduler.leads(second, lease), None);
    // One at a time, and none while it loads.
    let (third, commands) = machine.join(info(1));
    assert!(invited(&commands).is_empty());
    let commands = machine.apply(Event::Prepared { worker: second, lease });
    assert_eq!(places(&commands), [(first, 1, 0, 2, false), (second, 1, 1, 2, false)]);
    assert!(commands.iter().any(|command| matches!(command, Command::Form { checkpointed: 30, .. })));
    assert_eq!(reasons(&commands), [format!("{second} joined")]);
    assert_eq!(invited(&commands), [(third, lease)], "then the next");
    let explained = machine.scheduler.explain(&job).unwrap().to_string();
    assert!(explained.contains(&format!("runs on {first} (here:1), {second} (here:1); step 30")), "{explained}");
    assert!(machine.apply(Event::Prepared { worker: second, lease }).is_empty(), "it is said once");
}

#[test]
fn a_group_grows_only_where_it_helps() {
    let refused = |change: &dyn Fn(&mut Plan), info: WorkerInfo| {
        let mut plan = grouped(4, 100);
        change(&mut plan);
        let mut machine = Machine::new();
        machine.submit(&plan);
        machine.join(crate::fixture::info(1));
        let (_, commands) = machine.join(info);
        invited(&commands).is_empty()
    };
    assert!(!refused(&|_| {}, info(1)));
    assert!(refused(&|plan| plan.stages[0].recipe.training.lanes = 1, info(1)));
    assert!(refused(&|plan| plan.stages[0].total_steps = 19, info(1)), "so few steps are not worth loading");
    let few_of_many_rows = |updates: u64| {
        move |plan: &mut Plan| {
            plan.stages[0].total_steps = updates;
            plan.stages[0].recipe.training.accumulation = 64;
        }
    };
    assert!(!refused(&few_of_many_rows(2), info(1)), "two updates of 1,024 rows each are");
    assert!(refused(&few_of_many_rows(1), info(1)), "nobody joins within an update");
    assert!(refused(&|plan| plan.job.resources.workers_per_task = Some(1), info(1)));
    assert!(refused(&|_| {}, WorkerInfo { class: class("avx512"), ..info(1) }));
    assert!(refused(&|_| {}, WorkerInfo { memory_bytes: 1 << 10, ..info(1) }));
    assert!(refused(&|_| {}, WorkerInfo { reached_on: "elsewhere".to_owned(), ..info(1) }));
    for (numerics_version, exchange) in [(2, 1), (0, 1), (1, 2), (1, 0)] {
        assert!(refused(&|_| {}, WorkerInfo { numerics_version, exchange, ..info(1) }), "programs of other versions");
    }
    assert!(!refused(&|plan| plan.job.resources.workers_per_task = Some(2), info(1)));
}

#[test]
fn idle_workers_join_the_smallest_group_and_then_the_longest_work() {
    let mut plan = plan("three", vec![stage("a", &[], 100), stage("b", &[], 300), stage("c", &[], 200)]);
    plan.job.resources.workers_per_task = None;
    let mut machine = Machine::new();
    machine.submit(&plan);
    let (_, commands) = machine.join(info(3));
    let of = |stage: &str| assigned(&commands).into_iter().find(|(name, ..)| name == stage).unwrap().2;
    let expected = ["b", "c", "a"].map(of);
    let joined = (0..3).map(|_| {
        let (worker, commands) = machine.join(info(1));
        let lease = invited(&commands)[0].1;
        machine.apply(Event::Prepared { worker, lease });
        lease
    });
    assert_eq!(joined.collect::<Vec<_>>(), expected);
    // All have as many members as lanes now.
    let (_, commands) = machine.join(info(1));
    assert!(invited(&commands).is_empty());
}

#[test]
fn a_joiner_that_fails_is_told_of_and_asked_again_later_each_time() {
    let mut world = World::of(&grouped(4, 100), 1);
    let (worker, commands) = world.machine.join(info(1));
    assert_eq!(invited(&commands), [(worker, world.lease)]);
    for wait_ms in [500, 1_000] {
        // Whatever its blame: the members would find the user's error themselves.
        let commands = world.machine.fail((worker, world.lease), failure(Blame::User));
        let reason = "out of memory".to_owned();
        let told = EventKind::JoinFailed { worker, reason };
        assert!(commands.iter().any(|command| matches!(command, Command::Tell { kind, .. } if *kind == told)));
        assert_eq!(world.machine.scheduler.next_deadline(), Some(world.machine.now_ms + wait_ms));
        let commands = world.machine.after(wait_ms, Event::Tick);
        assert_eq!(invited(&commands), [(worker, world.lease)]);
    }
    assert_eq!((world.epoch(), world.failures()), (0, 0));
}

#[test]
fn a_worker_that_drains_leaves_its_group_without_blame() {
    let mut world = World::of(&grouped(4, 100), 3);
    let [first, second, third] = world.members[..] else { panic!() };
    world.machine.apply(Event::DrainWorker { worker: first, reason: "upgrade".to_owned() });
    let commands = world.machine.apply(Event::Released { worker: first, lease: world.lease });
    assert_eq!(places(&commands), [(second, 3, 0, 2, true), (third, 3, 1, 2, true)]);
    world.machine.apply(Event::Released { worker: third, lease: world.lease });
    world.machine.apply(Event::DrainWorker { worker: second, reason: "upgrade".to_owned() });
    world.machine.apply(Event::Released { worker: second, lease: world.lease });
    assert!(world.machine.facts.iter().any(|fact| matches!(fact, Fact::LeaseReleased { .. })));
    assert_eq!(world.failures(), 0);
}

#[test]
fn a_newcomer_that_never_had_the_state_gives_the_stage_back_and_it_goes_on_from_its_checkpoint() {
    let mut world = World::of(&grouped(4, 100), 1);
    let first = world.members[0];
    world.machine.checkpoint((first, world.lease), 30);
    let (second, _) = world.machine.join(keyed(1));
    world.machine.apply(Event::Prepared { worker: second, lease: world.lease });
    let commands = world.leave(0);
    assert_eq!(places(&commands), [(second, 2, 0, 1, true)]);
    assert!(commands.iter().any(|command| matches!(command, Command::Form { checkpointed: 30, .. })));
    let commands = world.machine.apply(Event::Released { worker: second, lease: world.lease });
    let assignment = commands.iter().find_map(|command| match command {
        Command::Assign { worker, assignment, joining: false, .. } if *worker == second => Some(assignment),
        _ => None,
    });
    let checkpoint = Digest::of(format!("checkpoint 30 of {}", world.lease).as_bytes());
    assert_eq!(assignment.unwrap().resume, Some(checkpoint), "at once, and what was since that is lost");
    assert_eq!((world.failures(), world.attempts_failed()), (0, false), "nothing counts against it");
}

#[test]
fn a_ready_stage_takes_a_member_back() {
    let mut world = World::of(&grouped(4, 100), 3);
    let [first, second, third] = world.members[..] else { panic!() };
    let other = plan("other", vec![stage("b", &[], 9)]);
    let commands = world.machine.apply(Event::Submitted { plan: Box::new(other), gone: Vec::new() });
    let commands = world.machine.nothing_to_reuse(commands);
    assert_eq!((released(&commands), assigned(&commands).len()), (vec![(third, world.lease)], 0));
    assert!(released(&world.machine.apply(Event::Tick)).is_empty(), "it is asked once");
    // Whoever comes meanwhile is for the stage that waits, and joins nothing.
    let commands = world.machine.apply(Event::Released { worker: third, lease: world.lease });
    assert_eq!(places(&commands), [(first, 3, 0, 2, true), (second, 3, 1, 2, true)]);
    assert_eq!(
        assigned(&commands).iter().map(|(stage, worker, _)| (stage.as_str(), *worker)).collect::<Vec<_>>(),
        [("b", third)]
    );
}

#[test]
fn a_joiner_is_taken_back_too_and_asked_again_when_its_link_broke() {
    let mut world = World::of(&grouped(4, 100), 2);
    let second = world.members[1];
    let other = plan("other", vec![stage("b", &[], 9), stage("c", &[], 9)]);
    let (joiner, commands) = world.machine.join(keyed(2));
    assert_eq!(invited(&commands), [(joiner, world.lease)]);
    let commands = world.machine.apply(Event::Submitted { plan: Box::new(other), gone: Vec::new() });
    let commands = world.machine.nothing_to_reuse(commands);
    assert_eq!(released(&commands), [(second, world.lease)]);
    assert_eq!(fences(&commands), [(joiner, world.lease)], "it has nothing to hand over");
    let commands = world.machine.apply(Event::Prepared { worker: joiner, lease: world.lease });
    assert!(places(&commands).is_empty(), "it is on its way out");
    world.lose_link(1);
    assert_eq!(released(&world.come_back(1)), [(second, world.lease)], "the first may not have been heard");
    let commands = world.machine.apply(Event::Released { worker: joiner, lease: world.lease });
    assert_eq!(assigned(&commands)[0].0, "b");
}

#[test]
fn a_worker_that_is_handed_a_stage_of_its_own_leaves_the_group_that_it_helps() {
    let mut machine = Machine::new();
    machine.submit(&grouped(4, 100));
    let (_, commands) = machine.join(info(2));
    let lease = assigned(&commands)[0].2;
    let (helper, _) = machine.join(info(2));
    machine.apply(Event::Prepared { worker: helper, lease });
    let other = plan("other", vec![stage("b", &[], 9)]);
    let commands = machine.apply(Event::Submitted { plan: Box::new(other), gone: Vec::new() });
    let commands = machine.nothing_to_reuse(commands);
    assert_eq!((assigned(&commands)[0].1, released(&commands)), (helper, vec![(helper, lease)]));
}

#[test]
fn cancelling_fences_every_member_and_the_joiner() {
    let mut world = World::of(&grouped(4, 100), 2);
    let (joiner, _) = world.machine.join(info(1));
    let commands = world.machine.apply(Event::Cancel { job: world.job.clone(), reason: "by the user".to_owned() });
    let all = [world.members.clone(), vec![joiner]].concat();
    assert_eq!(fences(&commands), all.iter().map(|worker| (*worker, world.lease)).collect::<Vec<_>>());
    assert_eq!(fenced(&commands).len(), 3);
}

#[test]
fn every_prefix_of_a_groups_facts_is_a_state_to_start_from() {
    let world = World::of(&grouped(4, 100), 3);
    for length in 0..=world.machine.facts.len() {
        Machine::recover(world.machine.facts[..length].to_vec(), 90_000);
    }
}

#[test]
fn groups_that_cannot_be_are_no_facts() {
    let world = World::of(&grouped(4, 100), 2);
    let (lease, first, second) = (world.lease, world.members[0], world.members[1]);
    for (epoch, members) in
        [(1, vec![first]), (2, Vec::new()), (2, vec![first, first]), (2, vec![first, WorkerId(second.0 + 1)])]
    {
        let mut state = world.machine.scheduler.state().clone();
        let fact = Fact::GroupFormed { lease, epoch, members, shares: Vec::new(), lost: None, at_ms: 0 };
        assert!(state.fold(&fact).is_err(), "{fact:?}");
    }
}

#[test]
fn a_job_of_another_device_gets_no_helper() {
    let mut plan = grouped(4, 100);
    plan.job.resources.device = Device::Cpu;
    let mut machine = Machine::new();
    let job = machine.submit(&plan);
    machine.join(info(1));
    let resources = graftwork_shared::job::Resources { device: Device::Cuda, ..plan.job.resources.clone() };
    machine.apply(Event::Resources { job, resources });
    let (_, commands) = machine.join(info(1));
    assert!(invited(&commands).is_empty());
}
