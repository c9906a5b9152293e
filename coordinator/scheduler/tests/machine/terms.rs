//! What outlives a coordinator, and what does not: one promise a test.

use graftwork_scheduler::{Command, Event, Fact, Policy, Scheduler, WorkerInfo};
use graftwork_shared::{
    digest::Digest,
    id::{JobId, LeaseId, WorkerId},
    view::StageState,
};

use crate::{
    fixture::{Machine, assigned, fenced, grouped, info, invited, plan, result, stage},
    group::{World, keyed, places, without_versions},
};

/// A coordinator that was killed while one worker trained, and has just started again.
struct Restarted {
    machine: Machine,
    job: JobId,
    worker: WorkerId,
    lease: LeaseId,
}

fn restarted() -> Restarted {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (worker, commands) = machine.join(keyed(0));
    let lease = assigned(&commands)[0].2;
    machine.checkpoint((worker, lease), 40);
    let machine = Machine::recover(machine.facts, 90_000);
    Restarted { machine, job, worker, lease }
}

impl Restarted {
    fn come_back(&mut self, number: usize, leases: Vec<LeaseId>) -> Vec<Command> {
        let info = keyed(number);
        let commands = self.machine.apply(Event::WorkerJoined { session: 2, info, leases });
        self.machine.nothing_to_reuse(commands)
    }

    fn failures(&self) -> usize {
        self.machine.scheduler.explain(&self.job).unwrap().stages[0].failures.len()
    }

    fn is_live(&self) -> bool {
        self.machine.scheduler.epoch(self.lease).is_some()
    }
}

fn welcomed(commands: &[Command]) -> Vec<WorkerId> {
    let welcomed = commands.iter().filter_map(|command| match command {
        Command::Welcome { worker, .. } => Some(*worker),
        _ => None,
    });
    welcomed.collect()
}

#[test]
fn a_worker_comes_back_to_the_next_coordinator_under_its_lease() {
    let mut after = restarted();
    let (worker, lease) = (after.worker, after.lease);
    assert!(after.is_live());
    let commands = after.come_back(0, vec![lease]);
    assert_eq!((welcomed(&commands), assigned(&commands), fenced(&commands)), (vec![worker], vec![], vec![]));
    after.machine.checkpoint((worker, lease), 60);
    after.machine.finish((worker, lease), result("a", 100, 0.9));
    assert!(matches!(after.machine.state_of(&after.job, "a"), StageState::Trained { .. }));
    let leased = after.machine.facts.iter().filter(|fact| matches!(fact, Fact::StageLeased { .. }));
    assert_eq!((leased.count(), after.failures()), (1, 0));
}

#[test]
fn nobody_else_gets_the_work_while_its_holder_may_come_back() {
    let mut after = restarted();
    assert_eq!(assigned(&after.come_back(1, Vec::new())), []);
    let wait = Policy::default().return_ms;
    assert_eq!(after.machine.scheduler.next_deadline(), Some(90_000 + wait));
    assert_eq!(assigned(&after.machine.after(wait - 1, Event::Tick)), []);
    assert!(after.is_live());
}

#[test]
fn whoever_does_not_come_back_costs_no_attempt() {
    let mut after = restarted();
    let other = welcomed(&after.come_back(1, Vec::new()))[0];
    let beat = Event::Heartbeat { worker: other, leases: Vec::new() };
    assert_eq!(assigned(&after.machine.after(Policy::default().return_ms - 1, beat)), []);
    let commands = after.machine.after(1, Event::Tick);
    let (stage, worker, lease) = assigned(&commands)[0].clone();
    assert_eq!((stage.as_str(), worker), ("a", other));
    assert!(matches!(after.machine.state_of(&after.job, "a"), StageState::Running { checkpoint_step: 40, .. }));
    assert_eq!(after.failures(), 0);
    // It comes too late: its old lease is fenced, and what it says under it is not heard.
    let old = after.lease;
    let late = welcomed(&after.come_back(0, vec![old]))[0];
    assert!(late > after.worker, "a worker's number is never used again");
    assert_eq!(fenced(&after.machine.apply(Event::Heartbeat { worker: late, leases: vec![old] })), [old]);
    after.machine.checkpoint((late, old), 90);
    assert!(matches!(after.machine.state_of(&after.job, "a"), StageState::Running { checkpoint_step: 40, .. }));
    assert!(after.machine.scheduler.holds(other, lease).is_some());
}

#[test]
fn a_worker_that_comes_back_without_its_lease_gives_it_up() {
    let mut after = restarted();
    let commands = after.come_back(0, Vec::new());
    let (_, worker, lease) = assigned(&commands)[0].clone();
    assert_eq!((welcomed(&commands), worker), (vec![after.worker], after.worker));
    assert!(lease > after.lease && after.failures() == 0);
}

#[test]
fn a_group_goes_on_under_the_next_coordinator_without_those_who_do_not_return() {
    let mut world = World::of(&grouped(4, 100), 3);
    let (lease, members, epoch) = (world.lease, world.members.clone(), world.epoch());
    world.machine = Machine::recover(world.machine.facts, 90_000);
    assert_eq!((world.epoch(), world.now()), (epoch, members.clone()));
    assert_eq!(world.machine.scheduler.epochs(), [(lease, epoch)].into());
    for member in [0, 1] {
        let rank = u32::try_from(member).unwrap();
        assert_eq!(places(&world.come_back(member)), [(members[member], epoch, rank, 3, true)]);
    }
    let beat = Event::Heartbeat { worker: members[0], leases: vec![lease] };
    assert_eq!(places(&world.machine.after(Policy::default().return_ms - 1, beat)), []);
    let commands = world.machine.after(1, Event::Tick);
    let formed = [(members[0], epoch + 1, 0, 2, true), (members[1], epoch + 1, 1, 2, true)];
    assert_eq!(places(&commands), formed);
    assert_eq!((world.now(), world.failures()), (members[..2].to_vec(), 0));
}

#[test]
fn a_group_that_broke_meanwhile_is_mended_when_its_members_say_so() {
    let mut world = World::of(&grouped(4, 100), 2);
    let epoch = world.epoch();
    world.machine = Machine::recover(world.machine.facts, 90_000);
    world.come_back(0);
    // The other one cannot be reached yet, so it is left out, and comes as a new one.
    let commands = world.break_at(0, epoch);
    assert_eq!(places(&commands), [(world.members[0], epoch + 1, 0, 1, true)]);
    assert_eq!(fenced(&world.come_back(1)), [world.lease]);
}

#[test]
fn a_member_of_which_earlier_facts_do_not_say_the_versions_says_them_when_it_comes_back() {
    for order in [[0, 1], [1, 0]] {
        let mut world = World::of(&grouped(4, 100), 2);
        world.machine = Machine::recover(without_versions(&world.machine.facts), 90_000);
        let (newcomer, commands) = world.machine.join(keyed(2));
        assert!(invited(&commands).is_empty());
        assert!(invited(&world.come_back(order[0])).is_empty(), "the other one is not here");
        assert_eq!(invited(&world.come_back(order[1])), [(newcomer, world.lease)]);
        world.machine.apply(Event::Prepared { worker: newcomer, lease: world.lease });
        assert_eq!(world.now(), [world.members.clone(), vec![newcomer]].concat());
    }
}

#[test]
fn one_that_was_heard_before_it_came_back_says_them_too() {
    let mut world = World::of(&grouped(4, 100), 1);
    world.machine = Machine::recover(without_versions(&world.machine.facts), 90_000);
    world.machine.apply(Event::Heartbeat { worker: world.members[0], leases: vec![world.lease] });
    let (newcomer, commands) = world.machine.join(keyed(1));
    assert!(invited(&commands).is_empty(), "what it says to members is not known");
    assert_eq!(invited(&world.come_back(0)), [(newcomer, world.lease)]);
}

#[test]
fn nobody_is_asked_to_join_a_gang_whose_leader_has_not_said_yet_what_it_says_to_members() {
    let mut plan = grouped(8, 100);
    plan.job.resources.gang = 2;
    plan.digest = plan.job.digest();
    let mut machine = Machine::new();
    machine.join(keyed(0));
    machine.join(keyed(1));
    let commands = machine.apply(Event::Submitted { plan: Box::new(plan), gone: Vec::new() });
    let commands = machine.nothing_to_reuse(commands);
    let (_, leader, lease) = assigned(&commands)[0].clone();
    let mut again = Machine::recover(without_versions(&machine.facts), 90_000);
    let (_, commands) = again.join(WorkerInfo { numerics_version: 0, exchange: 0, ..keyed(2) });
    assert!(invited(&commands).is_empty(), "the leader may well say something");
    let info = keyed(usize::try_from(leader.0 - 1).unwrap());
    let commands = again.apply(Event::WorkerJoined { session: 1, info, leases: vec![lease] });
    assert!(invited(&commands).is_empty(), "and it does");
    let (newer, commands) = again.join(keyed(3));
    assert_eq!(invited(&commands), [(newer, lease)]);
}

#[test]
fn a_wish_of_before_is_kept_by_the_next_coordinator() {
    let mut after = restarted();
    let job = after.job.clone();
    let commands = after.machine.apply(Event::Cancel { job, reason: "by the user".to_owned() });
    assert_eq!(fenced(&commands), [after.lease]);
    assert_eq!(fenced(&after.come_back(0, vec![after.lease])), [after.lease]);
}

#[test]
fn workers_that_cannot_be_known_again_are_not_waited_for() {
    let mut machine = Machine::new();
    machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    machine.join(info(1));
    assert!(Machine::recover(machine.facts.clone(), 90_000).scheduler.is_idle());
    // A coordinator whose workers end with it waits for nobody.
    let after = restarted();
    let policy = Policy { grace_ms: 0, ..Policy::default() };
    let (scheduler, first) = Scheduler::start(policy, after.machine.scheduler.state().clone(), 91_000);
    assert!(scheduler.is_idle() && matches!(first.facts[0], Fact::TermStarted { .. }));
}

#[test]
fn a_journal_of_before_workers_could_be_known_again_still_folds() {
    let after = restarted();
    let facts = after.machine.facts.iter().filter(|fact| !matches!(fact, Fact::TermContinued { .. }));
    let old = facts.map(|fact| match fact {
        Fact::WorkerEntered { worker, info, .. } => {
            Fact::WorkerJoined { worker: *worker, place: info.place.clone(), class: info.class.clone() }
        }
        other => other.clone(),
    });
    let first = Fact::TermStarted { term: graftwork_shared::id::Term(1), at_ms: 0 };
    let old: Vec<Fact> = std::iter::once(first).chain(old).collect();
    let machine = Machine::recover(old, 90_000);
    assert!(machine.scheduler.is_idle());
    assert!(machine.scheduler.state().refers_to(Digest::of(format!("checkpoint 40 of {}", after.lease).as_bytes())));
}
