//! Gangs: stages that start on several workers at once, or not at all; one promise a test.

use graftwork_scheduler::{Command, Event, Fact, Plan, Policy, Quota, WorkerInfo};
use graftwork_shared::{
    event::{EventKind, StepReport},
    id::{JobId, LeaseId, WorkerId},
    view::{QuotaOf, Refusal, StageState},
};

use crate::{
    fixture::{Machine, assigned, grouped, invited, name, plan, refusal, result, stage},
    group::{failure, fences, keyed, places, reasons, released},
};

/// A job of one stage that starts on so many workers.
fn gang(text: &str, workers: u32, priority: i32) -> Plan {
    let mut plan = grouped(8, 100);
    plan.stages[0] = stage(text, &[], 100);
    plan.stages[0].recipe.training.lanes = 8;
    text.clone_into(&mut plan.job.name);
    plan.job.base_model.location = format!("/base/{text}");
    (plan.job.resources.gang, plan.job.priority) = (workers, priority);
    plan.digest = plan.job.digest();
    plan
}

fn single(text: &str, priority: i32) -> Plan {
    let mut plan = plan(text, vec![stage(text, &[], 100)]);
    plan.job.priority = priority;
    plan.digest = plan.job.digest();
    plan
}

fn submit(machine: &mut Machine, plan: &Plan) -> (JobId, Vec<Command>) {
    let commands = machine.apply(Event::Submitted { plan: Box::new(plan.clone()), gone: Vec::new() });
    (plan.id(), machine.nothing_to_reuse(commands))
}

fn first_lease(machine: &Machine) -> LeaseId {
    let leases = machine.facts.iter().filter_map(|fact| match fact {
        Fact::StageLeased { lease, .. } => Some(*lease),
        _ => None,
    });
    leases.min().unwrap()
}

fn members(machine: &Machine, job: &JobId, stage: &str) -> usize {
    match machine.state_of(job, stage) {
        StageState::Running { others, .. } => 1 + others.len(),
        other => panic!("{stage} is {other:?}"),
    }
}

/// Workers of one place each that have nothing to do.
fn idle(machine: &mut Machine, workers: std::ops::Range<usize>) -> Vec<WorkerId> {
    workers.map(|number| machine.join(keyed(number)).0).collect()
}

/// A single stage on each of so many workers.
fn busy(machine: &mut Machine, workers: usize) -> Vec<(WorkerId, LeaseId)> {
    let place = |number: usize| {
        let (_, _) = submit(machine, &single(&format!("s{number}"), 0));
        let (_, commands) = machine.join(keyed(number));
        let (_, worker, lease) = assigned(&commands)[0].clone();
        (worker, lease)
    };
    (0..workers).map(place).collect()
}

fn end(machine: &mut Machine, (worker, lease): (WorkerId, LeaseId), stage: &str) -> Vec<Command> {
    machine.finish((worker, lease), result(stage, 100, 0.9))
}

#[test]
fn a_gang_starts_on_all_its_workers_in_one_decision_or_says_how_many_it_misses() {
    let mut machine = Machine::new();
    let workers = idle(&mut machine, 0..2);
    let (job, commands) = submit(&mut machine, &gang("g", 3, 0));
    assert!(assigned(&commands).is_empty());
    assert_eq!(refusal(&machine, &job, "g"), Refusal::Gang { needs: 3, free: 2, have: 2 });
    let stuck = commands.iter().any(|command| matches!(command, Command::Tell { kind: EventKind::Stuck { .. }, .. }));
    assert!(stuck, "no wait alone ends it: {commands:?}");
    let (third, commands) = machine.join(keyed(2));
    let leader = assigned(&commands)[0].clone();
    let mut all: Vec<WorkerId> = invited(&commands).iter().map(|(worker, _)| *worker).collect();
    assert!(invited(&commands).iter().all(|(_, lease)| *lease == leader.2));
    all.push(leader.1);
    all.sort_unstable();
    assert_eq!(all, [workers, vec![third]].concat());
}

#[test]
fn each_of_its_workers_is_taken_in_when_it_is_prepared() {
    let mut machine = Machine::new();
    idle(&mut machine, 0..3);
    let (job, commands) = submit(&mut machine, &gang("g", 3, 0));
    for (number, (worker, lease)) in invited(&commands).into_iter().enumerate() {
        let commands = machine.apply(Event::Prepared { worker, lease });
        assert_eq!(places(&commands).len(), 2 + number, "one that loads for long holds up nobody");
        assert_eq!(reasons(&commands), [format!("{worker} joined")]);
    }
    assert_eq!(members(&machine, &job, "g"), 3);
}

#[test]
fn nobody_that_is_served_behind_a_gang_takes_one_of_its_places() {
    let mut machine = Machine::new();
    let running = busy(&mut machine, 2);
    let (gang_job, _) = submit(&mut machine, &gang("g", 2, 0));
    let (other, _) = submit(&mut machine, &single("later", 0));
    let (high, _) = submit(&mut machine, &single("high", 1));
    let commands = end(&mut machine, running[0], "s0");
    assert_eq!(assigned(&commands)[0].0, "high", "whoever is served before it is");
    let (_, worker, lease) = assigned(&commands)[0].clone();
    let commands = end(&mut machine, (worker, lease), "high");
    assert!(assigned(&commands).is_empty(), "the place is kept: {commands:?}");
    assert_eq!(refusal(&machine, &gang_job, "g"), Refusal::Gang { needs: 2, free: 1, have: 2 });
    let behind = Refusal::Behind { job: gang_job.clone(), stage: name("g"), needs: 2 };
    assert_eq!(refusal(&machine, &other, "later"), behind);
    assert!(machine.scheduler.explain(&other).unwrap().to_string().contains("places are kept for g"));
    let commands = end(&mut machine, running[1], "s1");
    assert_eq!(assigned(&commands)[0].0, "g");
    assert_eq!(invited(&commands).len(), 1);
    assert!(matches!(refusal(&machine, &other, "later"), Refusal::Busy { .. }));
    assert!(machine.scheduler.view(&high).unwrap().outcome.is_none(), "it is being published");
}

#[test]
fn of_two_gangs_one_is_whole_before_the_other_gets_a_place() {
    let mut machine = Machine::new();
    let (first, _) = submit(&mut machine, &gang("g1", 3, 0));
    let (second, _) = submit(&mut machine, &gang("g2", 2, 0));
    idle(&mut machine, 0..2);
    assert!(matches!(machine.state_of(&second, "g2"), StageState::Running { .. }), "three there are not");
    machine.join(keyed(2));
    machine.join(keyed(3));
    assert_eq!(refusal(&machine, &first, "g1"), Refusal::Gang { needs: 3, free: 2, have: 4 });
    let (third, _) = submit(&mut machine, &gang("g3", 2, 0));
    assert!(matches!(refusal(&machine, &third, "g3"), Refusal::Behind { .. }), "two would be free for it");
    let (_, commands) = machine.join(keyed(4));
    assert_eq!((assigned(&commands)[0].0.as_str(), invited(&commands).len()), ("g1", 2));
}

#[test]
fn a_gang_that_can_never_be_whole_keeps_no_place() {
    let mut machine = Machine::new();
    let (gang_job, _) = submit(&mut machine, &gang("g", 3, 0));
    idle(&mut machine, 0..2);
    let (_, commands) = submit(&mut machine, &single("s", 0));
    assert_eq!(assigned(&commands)[0].0, "s");
    assert_eq!(refusal(&machine, &gang_job, "g"), Refusal::Gang { needs: 3, free: 1, have: 2 });
}

#[test]
fn members_that_cannot_reach_each_other_or_compute_otherwise_make_no_gang() {
    let mut machine = Machine::new();
    let of = |number: usize, host: &str, instructions: &str| WorkerInfo {
        reached_on: host.to_owned(),
        class: crate::fixture::class(instructions),
        ..keyed(number)
    };
    let (job, _) = submit(&mut machine, &gang("g", 2, 0));
    machine.join(of(0, "one", "avx2"));
    machine.join(of(1, "two", "avx2"));
    machine.join(of(2, "one", "avx512"));
    assert_eq!(refusal(&machine, &job, "g"), Refusal::Gang { needs: 2, free: 1, have: 1 });
    let (_, commands) = machine.join(of(3, "two", "avx2"));
    assert_eq!((assigned(&commands).len(), invited(&commands).len()), (1, 1));
}

#[test]
fn programs_of_versions_that_do_not_train_together_make_no_gang_and_either_trains_alone() {
    let mut machine = Machine::new();
    let of = |number: usize, exchange: u32| WorkerInfo { exchange, ..keyed(number) };
    let (job, _) = submit(&mut machine, &gang("g", 2, 0));
    machine.join(of(0, 1));
    machine.join(of(1, 2));
    assert_eq!(refusal(&machine, &job, "g"), Refusal::Gang { needs: 2, free: 1, have: 1 });
    let (_, commands) = submit(&mut machine, &single("s", 0));
    let (_, more) = submit(&mut machine, &single("t", 0));
    assert_eq!((assigned(&commands).len(), assigned(&more).len()), (1, 1));
    let (_, commands) = machine.join(of(2, 2));
    assert!(assigned(&commands).is_empty(), "the other one of its version has work");
    let (third, commands) = machine.join(of(3, 2));
    assert_eq!((assigned(&commands)[0].0.as_str(), invited(&commands).len()), ("g", 1));
    assert!(assigned(&commands)[0].1 == third || invited(&commands)[0].0 == third);
}

#[test]
fn its_members_are_not_taken_back_and_those_beyond_it_are() {
    let mut machine = Machine::new();
    idle(&mut machine, 0..2);
    let (job, commands) = submit(&mut machine, &gang("g", 2, 0));
    let (worker, lease) = invited(&commands)[0];
    machine.apply(Event::Prepared { worker, lease });
    let (third, commands) = machine.join(keyed(2));
    assert_eq!(invited(&commands), [(third, lease)], "it grows as any group does");
    machine.apply(Event::Prepared { worker: third, lease });
    assert_eq!(members(&machine, &job, "g"), 3);
    let (_, commands) = submit(&mut machine, &single("s", 0));
    assert_eq!(released(&commands), [(third, lease)]);
    let commands = machine.apply(Event::Released { worker: third, lease });
    assert_eq!(assigned(&commands)[0].0, "s");
    let (_, commands) = submit(&mut machine, &single("t", 0));
    assert!(released(&commands).is_empty(), "the gang stays whole");
}

#[test]
fn a_gang_that_loses_a_member_goes_on_and_is_filled_up() {
    let mut machine = Machine::new();
    idle(&mut machine, 0..2);
    let (job, commands) = submit(&mut machine, &gang("g", 2, 0));
    let (worker, lease) = invited(&commands)[0];
    machine.apply(Event::Prepared { worker, lease });
    machine.fail((worker, lease), failure(graftwork_shared::assignment::Blame::Machine));
    assert_eq!(members(&machine, &job, "g"), 1, "training goes on");
    let (_, commands) = machine.join(keyed(2));
    assert_eq!(invited(&commands).len(), 1);
}

#[test]
fn who_was_lost_from_a_gang_is_replaced_before_anything_else_of_its_priority_starts() {
    let mut machine = Machine::new();
    idle(&mut machine, 0..3);
    let (job, commands) = submit(&mut machine, &gang("g", 3, 0));
    let joined = invited(&commands);
    for (worker, lease) in &joined {
        machine.apply(Event::Prepared { worker: *worker, lease: *lease });
    }
    submit(&mut machine, &single("waits", 0));
    let (_, lease) = joined[0];
    for (worker, _) in &joined {
        machine.apply(Event::WorkerLeft { worker: *worker, reason: "killed".to_owned() });
    }
    assert_eq!(members(&machine, &job, "g"), 1, "training goes on");
    let (fourth, commands) = machine.join(keyed(3));
    assert_eq!((invited(&commands), assigned(&commands).len()), (vec![(fourth, lease)], 0));
    let (fifth, commands) = machine.join(keyed(4));
    assert_eq!(invited(&commands), [(fifth, lease)], "while the other one loads");
    let (_, commands) = machine.join(keyed(5));
    assert_eq!(assigned(&commands)[0].0, "waits", "it is whole again");
    assert!(released(&machine.apply(Event::Tick)).is_empty());
}

#[test]
fn a_stage_of_higher_priority_goes_before_a_gang_that_lacks_a_member() {
    let mut machine = Machine::new();
    idle(&mut machine, 0..2);
    let (_, commands) = submit(&mut machine, &gang("g", 2, 1));
    let (worker, lease) = invited(&commands)[0];
    machine.apply(Event::Prepared { worker, lease });
    submit(&mut machine, &single("low", 0));
    let (_, commands) = submit(&mut machine, &single("high", 2));
    // The whole gang is asked for its place, and takes nobody in meanwhile.
    assert_eq!(released(&commands).len(), 2);
    machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
    let (_, commands) = machine.join(keyed(2));
    assert_eq!((assigned(&commands)[0].0.as_str(), invited(&commands).len()), ("high", 0));
}

#[test]
fn helpers_elsewhere_are_taken_back_for_a_gang_that_lacks_members() {
    let mut machine = Machine::new();
    idle(&mut machine, 0..2);
    let (_, commands) = submit(&mut machine, &gang("g", 2, 0));
    let (worker, lease) = invited(&commands)[0];
    machine.apply(Event::Prepared { worker, lease });
    let (other, _) = submit(&mut machine, &grouped(8, 100));
    machine.join(keyed(2));
    let (_, commands) = machine.join(keyed(3));
    assert!(matches!(machine.state_of(&other, "a"), StageState::Running { .. }));
    let (helper, elsewhere) = invited(&commands)[0];
    machine.apply(Event::Prepared { worker: helper, lease: elsewhere });
    let commands = machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
    assert_eq!(released(&commands), [(helper, elsewhere)]);
    assert!(released(&machine.apply(Event::Tick)).is_empty(), "it is asked once");
    let commands = machine.apply(Event::Released { worker: helper, lease: elsewhere });
    assert_eq!(invited(&commands), [(helper, lease)]);
}

#[test]
fn helpers_are_taken_back_for_a_gang_as_many_as_it_misses() {
    let mut machine = Machine::new();
    let (_, _) = submit(&mut machine, &grouped(8, 100));
    let workers = idle(&mut machine, 0..4);
    let lease = first_lease(&machine);
    for worker in &workers[1..] {
        machine.apply(Event::Prepared { worker: *worker, lease });
    }
    let (_, commands) = submit(&mut machine, &gang("g", 2, 0));
    let back = released(&commands);
    assert_eq!(back.len(), 2, "{commands:?}");
    let (worker, lease) = back[0];
    assert!(assigned(&machine.apply(Event::Released { worker, lease })).is_empty());
    let (worker, lease) = back[1];
    let commands = machine.apply(Event::Released { worker, lease });
    assert_eq!((assigned(&commands)[0].0.as_str(), invited(&commands).len()), ("g", 1));
}

#[test]
fn an_urgent_gang_takes_the_places_that_lose_least_and_none_if_they_are_too_few() {
    let mut machine = Machine::new();
    let running = busy(&mut machine, 3);
    for ((worker, lease), step) in running.iter().zip([60, 5, 30]) {
        let report = StepReport { step, ..StepReport::default() };
        machine.apply(Event::Stepped { worker: *worker, lease: *lease, report });
    }
    let (_, commands) = submit(&mut machine, &gang("all", 4, 2));
    assert!(released(&commands).is_empty(), "it could never be whole");
    let (urgent, commands) = submit(&mut machine, &gang("g", 2, 1));
    let mut asked = released(&commands);
    asked.sort_unstable();
    assert_eq!(asked, [running[1], running[2]]);
    assert!(released(&machine.apply(Event::Tick)).is_empty(), "they are asked once");
    let (worker, lease) = running[1];
    assert!(assigned(&machine.apply(Event::Released { worker, lease })).is_empty());
    let (worker, lease) = running[2];
    let commands = machine.apply(Event::Released { worker, lease });
    assert_eq!((assigned(&commands)[0].0.as_str(), invited(&commands).len()), ("g", 1));
    assert_eq!(members(&machine, &urgent, "g"), 1);
}

#[test]
fn one_gang_gives_way_to_another_as_a_whole() {
    let mut machine = Machine::new();
    idle(&mut machine, 0..2);
    let (low, commands) = submit(&mut machine, &gang("low", 2, 0));
    let (worker, lease) = invited(&commands)[0];
    machine.apply(Event::Prepared { worker, lease });
    let (_, commands) = submit(&mut machine, &gang("high", 2, 1));
    assert_eq!(released(&commands).len(), 2, "both members are asked");
    let mut started = Vec::new();
    for (worker, lease) in released(&commands) {
        started.extend(machine.apply(Event::Released { worker, lease }));
    }
    assert_eq!((assigned(&started)[0].0.as_str(), invited(&started).len()), ("high", 1));
    assert_eq!(refusal(&machine, &low, "low"), Refusal::Gang { needs: 2, free: 0, have: 2 });
}

#[test]
fn a_quota_is_held_for_all_places_of_a_gang_at_once() {
    let quota = |places| Quota { places: Some(places), jobs: None };
    for (most, starts) in [(2, false), (3, true)] {
        let mut machine =
            Machine::with(Policy { quotas: [("me".to_owned(), quota(most))].into(), ..Policy::default() });
        idle(&mut machine, 0..4);
        let (_, commands) = submit(&mut machine, &single("s", 0));
        assert_eq!(assigned(&commands).len(), 1);
        let (job, commands) = submit(&mut machine, &gang("g", 2, 0));
        assert_eq!(assigned(&commands).len(), usize::from(starts));
        if !starts {
            let of = QuotaOf::Places;
            let expected = Refusal::Quota { owner: "me".to_owned(), of, has: 1, most, needs: 2 };
            assert_eq!(refusal(&machine, &job, "g"), expected);
        }
    }
}

/// An owner of another name, and jobs that may have helpers.
fn of(owner: &str, plan: Plan) -> Plan {
    let mut plan = crate::fixture::owned(owner, plan);
    plan.digest = plan.job.digest();
    plan
}

#[test]
fn a_gang_that_waits_for_quota_keeps_it_from_its_owners_helpers_and_later_stages() {
    let quota = Quota { places: Some(2), jobs: None };
    let mut machine = Machine::with(Policy { quotas: [("me".to_owned(), quota)].into(), ..Policy::default() });
    let (_, commands) = submit(&mut machine, &grouped(8, 100));
    assert!(commands.is_empty() || assigned(&commands).is_empty());
    let workers = idle(&mut machine, 0..4);
    let lease = first_lease(&machine);
    machine.apply(Event::Prepared { worker: workers[1], lease });
    let (gang_job, commands) = submit(&mut machine, &gang("g", 2, 0));
    assert_eq!(released(&commands), [(workers[1], lease)]);
    let commands = machine.apply(Event::Released { worker: workers[1], lease });
    assert!(invited(&commands).is_empty() && assigned(&commands).is_empty(), "one place is not enough: {commands:?}");
    let (later, commands) = submit(&mut machine, &single("later", 0));
    assert!(assigned(&commands).is_empty());
    let behind = Refusal::Behind { job: gang_job.clone(), stage: name("g"), needs: 2 };
    assert_eq!(refusal(&machine, &later, "later"), behind);
    let (_, commands) = submit(&mut machine, &of("bob", single("bobs", 0)));
    assert_eq!(assigned(&commands)[0].0, "bobs", "another owner has quota of its own");
    for _ in 0..3 {
        assert!(invited(&machine.apply(Event::Tick)).is_empty());
    }
    let commands = end(&mut machine, (workers[0], lease), "a");
    assert_eq!((assigned(&commands)[0].0.as_str(), invited(&commands).len()), ("g", 1));
}

#[test]
fn nobody_is_taken_back_for_a_gang_that_can_no_longer_be_whole() {
    let mut machine = Machine::new();
    submit(&mut machine, &grouped(8, 100));
    let workers = idle(&mut machine, 0..3);
    let lease = first_lease(&machine);
    machine.apply(Event::Prepared { worker: workers[1], lease });
    machine.apply(Event::Prepared { worker: workers[2], lease });
    let (job, commands) = submit(&mut machine, &gang("g", 3, 0));
    assert_eq!(released(&commands).len(), 2, "all three could make it whole");
    machine.apply(Event::WorkerLeft { worker: workers[2], reason: "killed".to_owned() });
    let commands = machine.apply(Event::Released { worker: workers[1], lease });
    assert_eq!(invited(&commands), [(workers[1], lease)], "it helps again");
    machine.apply(Event::Prepared { worker: workers[1], lease });
    for _ in 0..3 {
        assert!(released(&machine.apply(Event::Tick)).is_empty());
    }
    assert_eq!(refusal(&machine, &job, "g"), Refusal::Gang { needs: 3, free: 0, have: 2 });
}

#[test]
fn a_link_that_breaks_for_a_moment_gives_no_kept_place_away() {
    let mut machine = Machine::new();
    let running = busy(&mut machine, 2);
    let workers = idle(&mut machine, 2..4);
    submit(&mut machine, &gang("g", 4, 0));
    machine.apply(Event::LinkLost { worker: running[0].0, reason: "connection reset".to_owned() });
    let (later, commands) = submit(&mut machine, &single("later", 0));
    assert!(assigned(&commands).is_empty(), "{commands:?}");
    assert!(matches!(refusal(&machine, &later, "later"), Refusal::Behind { .. }));
    assert_eq!(workers.len(), 2);
}

#[test]
fn workers_that_cannot_be_of_a_gang_are_not_kept_for_it() {
    let mut machine = Machine::new();
    let wide = |number: usize| WorkerInfo { class: crate::fixture::class("avx512"), ..keyed(number) };
    let (worker, _) = machine.join(wide(0));
    let (_, commands) = submit(&mut machine, &gang("g", 1, 0));
    let lease = assigned(&commands)[0].2;
    machine.checkpoint((worker, lease), 10);
    machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
    // It goes on where it was computed alone, and one of the two there is taken.
    let resources = graftwork_shared::job::Resources { gang: 2, ..gang("g", 1, 0).job.resources };
    let job = gang("g", 1, 0).id();
    machine.apply(Event::Resources { job: job.clone(), resources });
    machine.join(wide(1));
    submit(&mut machine, &single("s", 5));
    machine.join(wide(2));
    machine.after(60_000, Event::Tick);
    let narrow = machine.join(keyed(3)).0;
    let (_, commands) = submit(&mut machine, &single("t", 0));
    assert_eq!(
        assigned(&commands).iter().map(|(stage, worker, _)| (stage.as_str(), *worker)).collect::<Vec<_>>(),
        [("t", narrow)]
    );
}

#[test]
fn a_gang_is_never_larger_than_may_train_it_together() {
    let mut machine = Machine::new();
    let mut plan = gang("g", 9, 0);
    plan.stages[0].recipe.training.lanes = 2;
    let (job, _) = submit(&mut machine, &plan);
    idle(&mut machine, 0..2);
    assert!(matches!(machine.state_of(&job, "g"), StageState::Running { .. }), "of two lanes");
}

#[test]
fn a_new_coordinator_knows_of_a_gang_what_its_facts_say() {
    let mut machine = Machine::new();
    idle(&mut machine, 0..2);
    let (job, commands) = submit(&mut machine, &gang("g", 2, 0));
    let (worker, lease) = invited(&commands)[0];
    machine.apply(Event::Prepared { worker, lease });
    let again = Machine::recover(machine.facts.clone(), machine.now_ms);
    assert_eq!(members(&again, &job, "g"), 2);
}

#[test]
fn whoever_still_loaded_when_the_coordinator_ended_is_asked_again_before_anything_else_starts() {
    let mut machine = Machine::new();
    idle(&mut machine, 0..2);
    let (job, commands) = submit(&mut machine, &gang("g", 2, 0));
    let (worker, lease) = invited(&commands)[0];
    let leader = usize::from(worker.0 == 1);
    submit(&mut machine, &single("waits", 0));
    let mut again = Machine::recover(machine.facts.clone(), machine.now_ms);
    again.apply(Event::WorkerJoined { session: 1, info: keyed(leader), leases: vec![lease] });
    assert_eq!(members(&again, &job, "g"), 1);
    let commands = again.apply(Event::WorkerJoined { session: 2, info: keyed(1 - leader), leases: vec![lease] });
    let (new, _) = invited(&commands)[0];
    assert_eq!((invited(&commands), assigned(&commands).len()), (vec![(new, lease)], 0));
    // It says that it has the lease, and not what it is to it: whatever that was is over before it begins.
    assert_eq!(fences(&commands), [(new, lease)]);
    let at = |of: fn(&Command) -> bool| commands.iter().position(of).unwrap();
    let fence = at(|command| matches!(command, Command::Fence { .. }));
    assert!(fence < at(|command| matches!(command, Command::Assign { .. })), "{commands:?}");
    let commands = again.apply(Event::Prepared { worker: new, lease });
    assert_eq!(places(&commands).len(), 2);
    assert_eq!(members(&again, &job, "g"), 2);
}
