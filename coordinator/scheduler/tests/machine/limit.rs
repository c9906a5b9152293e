//! Time limits: one promise a test.

use graftwork_scheduler::{Command, Event, Plan};
use graftwork_shared::{
    assignment::{Blame, Usage},
    event::Outcome,
    id::{JobId, LeaseId, WorkerId},
    job::Resources,
    view::StageState,
};

use crate::fixture::{Machine, assigned, fenced, info, plan, result, stage};

/// A job of two stages with a limit for each.
fn limited(limit_s: u64) -> Plan {
    let mut plan = plan("limited", vec![stage("a", &[], 200), stage("b", &[], 100)]);
    plan.job.resources.time_limit_s = Some(limit_s);
    plan
}

/// `a` runs on the only place.
fn running(limit_s: u64) -> (Machine, JobId, WorkerId, LeaseId) {
    let mut machine = Machine::new();
    let job = machine.submit(&limited(limit_s));
    let (worker, commands) = machine.join(info(1));
    let (stage, _, lease) = assigned(&commands)[0].clone();
    assert_eq!(stage, "a");
    (machine, job, worker, lease)
}

/// Time goes by while the worker is heard.
fn wait(machine: &mut Machine, worker: WorkerId, seconds: u64, leases: &[LeaseId]) -> Vec<Command> {
    let mut commands = Vec::new();
    for _ in 0..seconds {
        commands.extend(machine.after(1_000, Event::Heartbeat { worker, leases: leases.to_vec() }));
    }
    commands
}

#[test]
fn a_stage_that_trains_longer_than_its_limit_fails_by_the_users_fault_and_the_others_go_on() {
    let (mut machine, job, worker, lease) = running(20);
    wait(&mut machine, worker, 15, &[lease]);
    machine.checkpoint((worker, lease), 150);
    assert_eq!(machine.scheduler.next_deadline(), Some(machine.now_ms + 5_000));
    let commands = wait(&mut machine, worker, 5, &[lease]);
    assert_eq!(fenced(&commands), [lease]);
    let StageState::Failed { failure } = machine.state_of(&job, "a") else { panic!() };
    assert_eq!(failure.blame, Blame::User);
    assert!(failure.message.starts_with("it has trained for 20 s, which is its time limit"), "{failure:?}");
    assert!(machine.finish((worker, lease), result("a", 150, 0.9)).contains(&Command::Fence { worker, lease }));
    let commands = machine.apply(Event::Heartbeat { worker, leases: Vec::new() });
    let (stage, _, lease) = [assigned(&commands), running_again(&machine, &job)].concat()[0].clone();
    assert_eq!(stage, "b");
    machine.finish((worker, lease), result("b", 100, 0.9));
    machine.apply(Event::Published { key: crate::fixture::key(&job, "b"), release: "org/b".to_owned() });
    assert_eq!(machine.scheduler.view(&job).unwrap().outcome, Some(Outcome::Failed));
}

/// `b`, if it runs by now.
fn running_again(machine: &Machine, job: &JobId) -> Vec<(String, WorkerId, LeaseId)> {
    match machine.state_of(job, "b") {
        StageState::Running { worker, .. } => {
            let leases = (1..9).map(LeaseId).filter(|lease| machine.scheduler.holds(worker, *lease).is_some());
            leases.map(|lease| ("b".to_owned(), worker, lease)).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn waiting_between_attempts_is_free_and_running_adds_up() {
    let (mut machine, job, worker, lease) = running(20);
    wait(&mut machine, worker, 12, &[lease]);
    machine.checkpoint((worker, lease), 50);
    machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
    machine.now_ms += 1_000_000;
    let (worker, commands) = machine.join(info(2));
    let (_, _, lease) = assigned(&commands).into_iter().find(|(stage, ..)| stage == "a").unwrap();
    wait(&mut machine, worker, 7, &[lease]);
    assert!(matches!(machine.state_of(&job, "a"), StageState::Running { .. }));
    wait(&mut machine, worker, 1, &[lease]);
    assert!(matches!(machine.state_of(&job, "a"), StageState::Failed { .. }));
}

#[test]
fn time_without_a_coordinator_counts_only_as_far_as_the_worker_told() {
    let (mut machine, job, worker, lease) = running(20);
    wait(&mut machine, worker, 5, &[lease]);
    machine.apply(Event::Spent { worker, lease, usage: Usage { wall_seconds: 5.0, ..Usage::default() } });
    machine.checkpoint((worker, lease), 50);
    let mut machine = Machine::recover(machine.facts, machine.now_ms + 1_000_000);
    let (worker, commands) = machine.join(info(2));
    let (_, _, lease) = assigned(&commands).into_iter().find(|(stage, ..)| stage == "a").unwrap();
    wait(&mut machine, worker, 14, &[lease]);
    assert!(matches!(machine.state_of(&job, "a"), StageState::Running { .. }));
    wait(&mut machine, worker, 1, &[lease]);
    assert!(matches!(machine.state_of(&job, "a"), StageState::Failed { .. }));
}

#[test]
fn a_limit_may_change_while_the_job_runs_and_submitting_again_gives_new_time() {
    let (mut machine, job, worker, lease) = running(20);
    let resources = Resources { time_limit_s: Some(40), ..limited(20).job.resources };
    machine.apply(Event::Resources { job: job.clone(), resources });
    wait(&mut machine, worker, 30, &[lease]);
    machine.checkpoint((worker, lease), 100);
    assert!(matches!(machine.state_of(&job, "a"), StageState::Running { .. }));
    wait(&mut machine, worker, 10, &[lease]);
    assert!(matches!(machine.state_of(&job, "a"), StageState::Failed { .. }));
    machine.apply(Event::Cancel { job: job.clone(), reason: "by the user".to_owned() });
    machine.apply(Event::Heartbeat { worker, leases: Vec::new() });
    machine.submit(&limited(20));
    machine.apply(Event::Heartbeat { worker, leases: Vec::new() });
    let StageState::Running { checkpoint_step, .. } = machine.state_of(&job, "a") else {
        panic!("{}", machine.scheduler.explain(&job).unwrap())
    };
    assert_eq!(checkpoint_step, 100, "it goes on");
}

#[test]
fn a_limit_is_no_part_of_a_job_or_of_a_recipe() {
    let (with, without) = (limited(20), limited(30));
    assert_eq!(with.job.digest(), without.job.digest());
    assert_eq!(with.stages[0].recipe.digest(), without.stages[0].recipe.digest());
}
