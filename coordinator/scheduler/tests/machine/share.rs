//! Fair share between owners, and quotas: one promise a test.

use graftwork_scheduler::{Command, Event, Plan, Policy, Quota};
use graftwork_shared::{
    assignment::{StageResult, Usage},
    id::{JobId, WorkerId},
    view::{QuotaOf, Refusal, StageState},
};

use crate::fixture::{Machine, assigned, info, invited, owned, plan, result, stage};

const HOUR_MS: u64 = 3_600_000;

fn of(owner: &str, job: &str, stages: &[&str]) -> Plan {
    owned(owner, plan(job, stages.iter().map(|text| stage(text, &[], 10)).collect()))
}

fn names(commands: &[Command]) -> Vec<String> {
    assigned(commands).into_iter().map(|(stage, ..)| stage).collect()
}

fn refusal(machine: &Machine, job: &JobId, stage: &str) -> Refusal {
    match machine.state_of(job, stage) {
        StageState::Ready { refusal } => refusal,
        other => panic!("{stage} is {other:?}"),
    }
}

/// Submits; the hub answers at once that it has nothing.
fn submit(machine: &mut Machine, plan: &Plan) -> JobId {
    let commands = machine.apply(Event::Submitted { plan: Box::new(plan.clone()), gone: Vec::new() });
    machine.nothing_to_reuse(commands);
    plan.id()
}

/// A result that cost so many core-seconds.
fn costing(stage: &str, core_seconds: f64) -> StageResult {
    StageResult { usage: Usage { core_seconds, ..Usage::default() }, ..result(stage, 10, 0.9) }
}

/// One worker with one place, on which one after the other is trained at this cost; gives the order of the stages.
fn served(machine: &mut Machine, cost: f64, stages: usize) -> Vec<String> {
    let (_, commands) = machine.join(info(1));
    let mut work = assigned(&commands);
    let mut order = Vec::new();
    for _ in 0..stages {
        let (stage, worker, lease) = work.pop().unwrap();
        work = assigned(&machine.finish((worker, lease), costing(&stage, cost)));
        order.push(stage);
    }
    order
}

#[test]
fn owners_of_one_priority_take_turns_whoever_submitted_first() {
    let mut machine = Machine::new();
    machine.submit(&of("ann", "many", &["a1", "a2", "a3", "a4"]));
    machine.submit(&of("bob", "few", &["b1", "b2"]));
    let (_, commands) = machine.join(info(6));
    assert_eq!(names(&commands), ["a1", "b1", "a2", "b2", "a3", "a4"], "ties go by submission");
}

#[test]
fn whoever_used_much_waits_for_whoever_used_little() {
    let mut machine = Machine::new();
    submit(&mut machine, &of("ann", "all", &["a1", "a2", "a3"]));
    let (worker, commands) = machine.join(info(1));
    submit(&mut machine, &of("bob", "other", &["b1", "b2", "b3"]));
    let mut work = assigned(&commands);
    let mut order = Vec::new();
    while let Some((stage, _, lease)) = work.pop() {
        let cost = if stage == "a1" { 1_000.0 } else { 400.0 };
        work = assigned(&machine.finish((worker, lease), costing(&stage, cost)));
        order.push(stage);
    }
    assert_eq!(order, ["a1", "b1", "b2", "b3", "a2", "a3"], "until bob has had as much");
}

#[test]
fn what_was_used_long_ago_hardly_counts() {
    for (hours, first) in [(0, "b1"), (30, "a2")] {
        let mut machine = Machine::new();
        machine.submit(&of("ann", "first", &["a1"]));
        served(&mut machine, 1_000.0, 1);
        machine.apply(Event::WorkerLeft { worker: WorkerId(1), reason: "stopped".to_owned() });
        machine.now_ms += hours * HOUR_MS;
        machine.submit(&of("bob", "before", &["b0"]));
        served(&mut machine, 0.001, 1);
        machine.apply(Event::WorkerLeft { worker: WorkerId(2), reason: "stopped".to_owned() });
        machine.submit(&of("ann", "second", &["a2"]));
        machine.submit(&of("bob", "other", &["b1"]));
        let (_, commands) = machine.join(info(1));
        assert_eq!(names(&commands), [first], "after {hours} hours");
    }
}

#[test]
fn shares_are_the_same_after_a_restart() {
    let mut machine = Machine::new();
    machine.submit(&of("ann", "first", &["a1"]));
    served(&mut machine, 1_000.0, 1);
    let mut machine = Machine::recover(machine.facts, machine.now_ms);
    machine.submit(&of("ann", "second", &["a2"]));
    machine.submit(&of("bob", "other", &["b1"]));
    let (_, commands) = machine.join(info(1));
    assert_eq!(names(&commands), ["b1"]);
}

#[test]
fn attempts_that_gave_nothing_are_used_too() {
    let mut machine = Machine::new();
    machine.submit(&of("ann", "first", &["a1"]));
    let (worker, commands) = machine.join(info(1));
    let (_, _, lease) = assigned(&commands)[0].clone();
    let usage = Usage { core_seconds: 500.0, ..Usage::default() };
    machine.apply(Event::Spent { worker, lease, usage });
    submit(&mut machine, &of("bob", "other", &["b1"]));
    machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
    machine.now_ms += 1_000;
    let (_, commands) = machine.join(info(1));
    assert_eq!(names(&commands), ["b1"], "though a1 stands before it");
}

#[test]
fn priority_goes_before_shares_and_places_that_are_taken_count() {
    let mut machine = Machine::new();
    let mut urgent = of("ann", "urgent", &["u1", "u2"]);
    urgent.job.priority = 1;
    machine.submit(&urgent);
    machine.submit(&of("ann", "plain", &["a1", "a2"]));
    machine.submit(&of("bob", "other", &["b1", "b2"]));
    let (_, commands) = machine.join(info(6));
    assert_eq!(names(&commands), ["u1", "u2", "b1", "b2", "a1", "a2"]);
}

fn bounded(owner: &str, places: Option<u32>, jobs: Option<u32>) -> Machine {
    let quotas = [(owner.to_owned(), Quota { places, jobs })].into();
    Machine::with(Policy { quotas, ..Policy::default() })
}

#[test]
fn an_owner_has_no_more_places_than_its_quota() {
    let mut machine = bounded("ann", Some(2), None);
    let job = machine.submit(&of("ann", "many", &["a1", "a2", "a3"]));
    machine.submit(&of("bob", "other", &["b1", "b2"]));
    let (worker, commands) = machine.join(info(5));
    assert_eq!(names(&commands), ["a1", "b1", "a2", "b2"]);
    let expected = Refusal::Quota { owner: "ann".to_owned(), of: QuotaOf::Places, has: 2, most: 2, needs: 1 };
    assert_eq!(refusal(&machine, &job, "a3"), expected);
    let told = machine.scheduler.explain(&job).unwrap().to_string();
    assert!(told.contains("a3  ready, but ann has 2 places of workers, and its quota is 2"), "{told}");
    let (_, _, lease) = assigned(&commands)[0].clone();
    assert_eq!(names(&machine.finish((worker, lease), result("a1", 10, 0.9))), ["a3"]);
}

#[test]
fn helpers_count_and_are_given_back_for_a_stage_of_the_same_owner() {
    let grouped = |owner: &str| {
        let mut plan = owned(owner, crate::fixture::grouped(4, 100));
        plan.job.priority = 1;
        plan
    };
    let mut machine = bounded("*", Some(2), None);
    machine.submit(&grouped("ann"));
    let (_, commands) = machine.join(info(1));
    let (_, _, lease) = assigned(&commands)[0].clone();
    let (helper, commands) = machine.join(info(1));
    assert_eq!(invited(&commands), [(helper, lease)]);
    machine.apply(Event::Prepared { worker: helper, lease });
    let (_, commands) = machine.join(info(1));
    assert!(invited(&commands).is_empty(), "a third place would be one too many");
    let plan = of("ann", "second", &["a1"]);
    let commands = machine.apply(Event::Submitted { plan: Box::new(plan), gone: Vec::new() });
    let commands = machine.nothing_to_reuse(commands);
    let released = |command: &Command| matches!(command, Command::Release { worker, lease: l, .. } if (*worker, *l) == (helper, lease));
    assert!(commands.iter().any(released), "{commands:?}");
    let commands = machine.apply(Event::Released { worker: helper, lease });
    assert_eq!(names(&commands), ["a1"]);
}

#[test]
fn one_job_too_many_is_refused_and_no_fact() {
    let mut machine = bounded("*", None, Some(1));
    let first = of("ann", "first", &["a1"]);
    let job = machine.submit(&first);
    let second = of("ann", "second", &["a2"]);
    let expected = Refusal::Quota { owner: "ann".to_owned(), of: QuotaOf::Jobs, has: 1, most: 1, needs: 1 };
    assert_eq!(machine.scheduler.too_many_jobs(&second), Some(expected));
    assert_eq!(machine.scheduler.too_many_jobs(&first), None, "it is there already");
    assert_eq!(machine.scheduler.too_many_jobs(&of("bob", "other", &["b1"])), None);
    assert!(machine.apply(Event::Submitted { plan: Box::new(second.clone()), gone: Vec::new() }).is_empty());
    machine.apply(Event::Cancel { job, reason: "by the user".to_owned() });
    assert_eq!(machine.scheduler.too_many_jobs(&second), None);
    let id = machine.submit(&second);
    assert!(machine.scheduler.view(&id).is_some());
}

#[test]
fn an_owner_without_any_place_is_told_so_for_good() {
    let mut machine = bounded("ann", Some(0), None);
    let job = machine.submit(&of("ann", "none", &["a1"]));
    let (_, commands) = machine.join(info(1));
    assert!(assigned(&commands).is_empty() && refusal(&machine, &job, "a1").lasts());
}
