//! What a job cost: every attempt counts, also one that failed, was killed or was given back.

#![allow(clippy::float_cmp, reason = "sums of a few halves and quarters are exact")]

use graftwork_scheduler::Event;
use graftwork_shared::{
    assignment::{Blame, Failure, Usage},
    id::{JobId, LeaseId, WorkerId},
};

use crate::fixture::{Machine, assigned, info, key, plan, result, stage};

/// One stage that runs.
fn running() -> (Machine, JobId, (WorkerId, LeaseId)) {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (_, commands) = machine.join(info(1));
    let (_, worker, lease) = assigned(&commands)[0].clone();
    (machine, job, (worker, lease))
}

fn spent(core_seconds: f64, examples: u64) -> Usage {
    Usage { core_seconds, examples, wall_seconds: 999.0, peak_memory_bytes: 7, ..Usage::default() }
}

fn tell(machine: &mut Machine, (worker, lease): (WorkerId, LeaseId), usage: Usage) {
    machine.apply(Event::Spent { worker, lease, usage });
}

/// Core-seconds, examples and seconds of wall time of the only stage; the job's are the same.
fn cost(machine: &Machine, job: &JobId) -> (f64, u64, f64) {
    let view = machine.scheduler.view(job).unwrap();
    assert_eq!(view.stages[0].usage, view.usage);
    (view.usage.core_seconds, view.usage.examples, view.usage.wall_seconds)
}

/// A coordinator that was killed and starts again.
fn recovered(machine: &Machine) -> Machine {
    Machine::recover(machine.facts.clone(), machine.now_ms)
}

fn failure(blame: Blame) -> Failure {
    Failure { blame, message: "the loss is no number".to_owned() }
}

#[test]
fn a_stage_that_failed_for_good_shows_what_it_spent() {
    let (mut machine, job, holder) = running();
    tell(&mut machine, holder, spent(1.0, 10));
    tell(&mut machine, holder, spent(4.0, 40));
    machine.now_ms += 6_000;
    machine.fail(holder, failure(Blame::User));
    assert_eq!(cost(&machine, &job), (4.0, 40, 6.0));
    assert_eq!(cost(&recovered(&machine), &job), (4.0, 40, 6.0));
}

#[test]
fn of_a_killed_worker_counts_what_it_told_last() {
    let (mut machine, job, holder) = running();
    tell(&mut machine, holder, spent(2.5, 20));
    assert_eq!(cost(&machine, &job).0, 2.5, "while it runs");
    machine.apply(Event::WorkerLeft { worker: holder.0, reason: "killed".to_owned() });
    assert_eq!(cost(&machine, &job), (2.5, 20, 0.0));
    assert_eq!(cost(&recovered(&machine), &job), (2.5, 20, 0.0));
}

#[test]
fn attempts_and_result_are_added_up() {
    let (mut machine, job, holder) = running();
    tell(&mut machine, holder, spent(2.0, 20));
    machine.fail(holder, failure(Blame::Machine));
    let commands = machine.after(500, Event::Tick);
    let (_, worker, lease) = assigned(&commands)[0].clone();
    tell(&mut machine, (worker, lease), spent(0.5, 5));
    assert_eq!(cost(&machine, &job).0, 2.5);
    let commands = machine.apply(Event::Released { worker, lease });
    let (_, worker, lease) = assigned(&commands)[0].clone();
    tell(&mut machine, (worker, lease), spent(0.75, 7));
    // Its result costs 1 core-second: that is all of its attempt.
    machine.finish((worker, lease), result("a", 100, 0.9));
    assert_eq!(cost(&machine, &job).0, 3.5);
    machine.apply(Event::Published { key: key(&job, "a"), release: "org/a".to_owned() });
    assert_eq!(cost(&recovered(&machine), &job).0, 3.5);
}

#[test]
fn a_killed_coordinator_remembers_what_was_spent_up_to_the_last_checkpoint() {
    let (mut machine, job, holder) = running();
    tell(&mut machine, holder, spent(3.0, 30));
    machine.checkpoint(holder, 50);
    tell(&mut machine, holder, spent(3.5, 35));
    assert_eq!(cost(&machine, &job).0, 3.5);
    assert_eq!(cost(&recovered(&machine), &job).0, 3.0);
}

#[test]
fn a_cancelled_stage_and_a_lost_result_cost_what_they_cost() {
    let (mut machine, job, holder) = running();
    tell(&mut machine, holder, spent(3.0, 30));
    machine.apply(Event::Cancel { job: job.clone(), reason: "by the user".to_owned() });
    assert_eq!(cost(&machine, &job).0, 3.0);
    // Whoever no longer holds the lease says nothing that counts.
    tell(&mut machine, holder, spent(9.0, 90));
    assert_eq!(cost(&machine, &job).0, 3.0);

    let (mut machine, job, holder) = running();
    let done = result("a", 100, 0.9);
    machine.finish(holder, done.clone());
    machine.apply(Event::BlobLost { blob: done.weights });
    assert_eq!(cost(&machine, &job).0, 1.0, "the result is gone, what it cost is not");
}
