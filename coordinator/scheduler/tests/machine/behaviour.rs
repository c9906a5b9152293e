//! What the scheduler promises, one promise a test. Every turn is also checked against all invariants.

use graftwork_scheduler::{Command, Event, Fact, Plan, Policy, Standing};
use graftwork_shared::{
    assignment::{Blame, Failure},
    event::Outcome,
    job::Device,
    view::{Refusal, StageState},
};

use crate::fixture::{Machine, assigned, class, fenced, info, key, name, plan, refusal, result, small_plan, stage};

fn machine_failure() -> Failure {
    Failure { blame: Blame::Machine, message: "out of memory".to_owned() }
}

fn user_failure() -> Failure {
    Failure { blame: Blame::User, message: "label 7 is not in the label set".to_owned() }
}

fn publish(machine: &mut Machine, job: &graftwork_shared::id::JobId, stage: &str) {
    machine.apply(Event::Published { key: key(job, stage), release: format!("org/{stage}") });
}

#[test]
fn a_job_goes_from_submission_to_its_end() {
    let mut machine = Machine::new();
    let job = machine.submit(&small_plan());
    assert_eq!(refusal(&machine, &job, "a"), Refusal::NoWorker);
    let (_, commands) = machine.join(info(2));
    let work = assigned(&commands);
    // b is longer, so it goes first; the fusion waits for both.
    assert_eq!(work.iter().map(|(stage, ..)| stage.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(machine.state_of(&job, "f"), StageState::Waiting { for_stages: vec![name("a"), name("b")] });
    let mut fusion = Vec::new();
    for (stage, worker, lease) in work {
        let steps = if stage == "a" { 100 } else { 200 };
        fusion = machine.finish((worker, lease), result(&stage, steps, 0.9));
        assert!(fusion.contains(&Command::Publish { key: key(&job, &stage) }));
    }
    let Some(Command::Assign { worker, lease, assignment, .. }) =
        fusion.iter().find(|command| matches!(command, Command::Assign { .. }))
    else {
        panic!("the fusion starts as soon as its adapters are trained: {fusion:?}");
    };
    assert_eq!(assignment.adapters, [result("a", 1, 0.9).weights, result("b", 1, 0.9).weights]);
    machine.finish((*worker, *lease), result("f", 50, 0.4));
    for stage in ["a", "b", "f"] {
        publish(&mut machine, &job, stage);
    }
    assert_eq!(machine.scheduler.view(&job).unwrap().outcome, Some(Outcome::ExpectationMissed));
    assert_eq!(machine.facts.iter().filter(|fact| matches!(fact, Fact::JobEnded { .. })).count(), 1);
}

#[test]
fn a_fusion_starts_when_its_own_adapters_are_trained() {
    let mut machine = Machine::new();
    let stages = vec![stage("a", &[], 10), stage("b", &[], 10), stage("slow", &[], 900), stage("f", &["a", "b"], 5)];
    let job = machine.submit(&plan("early", stages));
    let (_, commands) = machine.join(info(3));
    let work = assigned(&commands);
    let of =
        |stage: &str| work.iter().find(|(name, ..)| name == stage).map(|(_, worker, lease)| (*worker, *lease)).unwrap();
    machine.finish(of("a"), result("a", 10, 0.9));
    let commands = machine.finish(of("b"), result("b", 10, 0.9));
    assert_eq!(assigned(&commands)[0].0, "f");
    assert!(matches!(machine.state_of(&job, "slow"), StageState::Running { .. }));
}

#[test]
fn submitting_twice_attaches() {
    let mut machine = Machine::new();
    let job = machine.submit(&small_plan());
    let facts = machine.facts.len();
    machine.submit(&small_plan());
    assert_eq!((machine.facts.len(), machine.scheduler.standing(&job)), (facts, Standing::Active));
}

#[test]
fn a_late_worker_cannot_commit() {
    let mut machine = Machine::new();
    machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (old, commands) = machine.join(info(1));
    let (_, _, old_lease) = assigned(&commands)[0].clone();
    machine.checkpoint((old, old_lease), 50);
    machine.after(9_000, Event::Tick);
    let commands = machine.after(1_000, Event::Tick);
    assert!(commands.iter().any(|command| matches!(command, Command::Disconnect { worker, .. } if *worker == old)));
    let (new, _) = machine.join(info(1));
    let commands = machine.after(1_000, Event::Heartbeat { worker: new, leases: Vec::new() });
    let (_, _, lease) = assigned(&commands)[0].clone();
    assert!(lease > old_lease);
    for late in [
        machine.checkpoint((old, old_lease), 100),
        machine.finish((old, old_lease), result("a", 100, 0.9)),
        // A worker that is here, with a lease of another.
        machine.finish((new, old_lease), result("a", 100, 0.9)),
    ] {
        assert!(!late.iter().any(|command| matches!(command, Command::Accept { .. })), "{late:?}");
    }
    let commands = machine.finish((new, lease), result("a", 100, 0.9));
    assert!(commands.contains(&Command::Accept { worker: new, lease, step: 100 }));
    let again = machine.finish((new, lease), result("a", 100, 0.9));
    assert_eq!(fenced(&again), [lease], "a result is accepted once");
}

#[test]
fn a_worker_cannot_commit_under_anothers_live_lease() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (_, commands) = machine.join(info(1));
    let (_, _, lease) = assigned(&commands)[0].clone();
    let (liar, _) = machine.join(info(1));
    for commands in [
        machine.finish((liar, lease), result("a", 100, 0.9)),
        machine.checkpoint((liar, lease), 50),
        machine.fail((liar, lease), machine_failure()),
    ] {
        assert_eq!(commands, [Command::Fence { worker: liar, lease }]);
    }
    machine.apply(Event::Released { worker: liar, lease });
    assert!(matches!(machine.state_of(&job, "a"), StageState::Running { checkpoint_step: 0, .. }));
}

#[test]
fn a_retry_goes_on_from_the_last_accepted_checkpoint_and_waits_longer_each_time() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (worker, commands) = machine.join(info(1));
    let (_, _, lease) = assigned(&commands)[0].clone();
    machine.checkpoint((worker, lease), 25);
    let dropped = machine.checkpoint((worker, lease), 50);
    let first = graftwork_shared::digest::Digest::of(format!("checkpoint 25 of {lease}").as_bytes());
    assert!(dropped.contains(&Command::Discard { blob: first }));
    assert!(assigned(&machine.fail((worker, lease), machine_failure())).is_empty());
    let until_ms = machine.now_ms + 500;
    let expected = Refusal::BackingOff { failure: machine_failure(), attempts: 1, until_ms };
    assert_eq!(refusal(&machine, &job, "a"), expected);
    assert_eq!(machine.scheduler.next_deadline(), Some(until_ms));
    let commands = machine.after(500, Event::Tick);
    let resumed = commands.iter().find_map(|command| match command {
        Command::Assign { assignment, lease, .. } => Some((assignment.clone(), *lease)),
        _ => None,
    });
    let (assignment, lease) = resumed.unwrap();
    assert_eq!(assignment.attempt, 1);
    assert_ne!(assignment.resume, Some(first));
    machine.fail((worker, lease), machine_failure());
    assert!(
        matches!(refusal(&machine, &job, "a"), Refusal::BackingOff { attempts: 2, until_ms, .. } if until_ms == machine.now_ms + 1_000)
    );
}

#[test]
fn a_users_error_is_not_tried_again_and_the_rest_of_the_job_goes_on() {
    let mut machine = Machine::new();
    let job = machine.submit(&small_plan());
    let (worker, commands) = machine.join(info(2));
    let work = assigned(&commands);
    let (_, _, lease_b) = work[0].clone();
    let (_, _, lease_a) = work[1].clone();
    machine.fail((worker, lease_a), user_failure());
    assert_eq!(machine.state_of(&job, "a"), StageState::Failed { failure: user_failure() });
    let StageState::Cancelled { reason } = machine.state_of(&job, "f") else { panic!() };
    assert_eq!(reason, "it needs a, which failed");
    machine.finish((worker, lease_b), result("b", 200, 0.9));
    publish(&mut machine, &job, "b");
    assert_eq!(machine.scheduler.view(&job).unwrap().outcome, Some(Outcome::Failed));
}

#[test]
fn after_five_failures_without_progress_a_stage_fails_with_all_reasons() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (worker, mut commands) = machine.join(info(1));
    for attempt in 1..=5 {
        let (_, _, lease) = assigned(&commands)[0].clone();
        let message = format!("reason {attempt}");
        machine.fail((worker, lease), Failure { blame: Blame::Machine, message });
        machine.now_ms += 9_000;
        commands = machine.apply(Event::Heartbeat { worker, leases: Vec::new() });
    }
    let StageState::Failed { failure } = machine.state_of(&job, "a") else { panic!() };
    assert!((1..=5).all(|attempt| failure.message.contains(&format!("{attempt}. reason {attempt}"))), "{failure:?}");
}

#[test]
fn progress_gives_new_attempts() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (worker, mut commands) = machine.join(info(1));
    for step in 1..=9 {
        let (_, _, lease) = assigned(&commands)[0].clone();
        machine.checkpoint((worker, lease), step * 10);
        machine.fail((worker, lease), machine_failure());
        commands = machine.after(500, Event::Tick);
        machine.apply(Event::Heartbeat { worker, leases: Vec::new() });
    }
    assert!(matches!(machine.state_of(&job, "a"), StageState::Running { checkpoint_step: 90, .. }));
}

#[test]
fn a_checkpoint_that_cannot_be_ends_the_attempt() {
    for step in [40, 50, 101] {
        let mut machine = Machine::new();
        machine.submit(&plan("one", vec![stage("a", &[], 100)]));
        let (worker, commands) = machine.join(info(1));
        let (_, _, lease) = assigned(&commands)[0].clone();
        machine.checkpoint((worker, lease), 50);
        let commands = machine.checkpoint((worker, lease), step);
        if step == 50 {
            assert_eq!(commands, [Command::Accept { worker, lease, step }], "the same again is answered again");
        } else {
            assert_eq!(fenced(&commands), [lease], "step {step}");
        }
    }
}

#[test]
fn each_unfitting_worker_is_refused_with_its_reason() {
    let mut machine = Machine::new();
    let mut large = plan("large", vec![stage("a", &[], 10)]);
    large.stages[0].memory_bytes = 4 << 30;
    let mut cuda = plan("cuda", vec![stage("a", &[], 10)]);
    cuda.job.resources.device = Device::Cuda;
    let (large, cuda) = (machine.submit(&large), machine.submit(&cuda));
    machine.join(info(1));
    assert_eq!(refusal(&machine, &large, "a"), Refusal::Memory { needs_bytes: 4 << 30, largest_bytes: 1 << 30 });
    let device = Refusal::Device { needs: "cuda".to_owned(), have: vec!["cpu".to_owned()] };
    assert_eq!(refusal(&machine, &cuda, "a"), device);
}

#[test]
fn priority_goes_before_submission_and_the_refusal_names_who_goes_first() {
    let mut machine = Machine::new();
    let early = machine.submit(&plan("early", vec![stage("x", &[], 10)]));
    let mut urgent = plan("urgent", vec![stage("y", &[], 10), stage("z", &[], 20)]);
    urgent.job.priority = 5;
    machine.submit(&urgent);
    let (_, commands) = machine.join(info(1));
    assert_eq!(assigned(&commands)[0].0, "z");
    assert_eq!(refusal(&machine, &early, "x"), Refusal::Busy { workers: 1, slots: 1, ahead: vec![name("y")] });
}

#[test]
fn work_is_spread_over_workers() {
    let mut machine = Machine::new();
    let (first, _) = machine.join(info(2));
    let (second, _) = machine.join(info(2));
    let four = ["a", "b", "c", "d"].map(|text| stage(text, &[], 10));
    let commands = machine.apply(Event::Submitted { plan: Box::new(plan("four", four.to_vec())), gone: Vec::new() });
    let commands = machine.nothing_to_reuse(commands);
    let workers: Vec<_> = assigned(&commands).into_iter().map(|(_, worker, _)| worker).collect();
    assert_eq!(workers, [first, second, first, second]);
}

#[test]
fn a_reusable_result_needs_no_work() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let commands = machine.apply(Event::WorkerJoined { session: 1, info: info(1), leases: Vec::new() });
    let question = Command::LookForReuse { key: key(&job, "a"), classes: vec![class("avx2")] };
    assert!(commands.contains(&question) && assigned(&commands).is_empty());
    assert_eq!(refusal(&machine, &job, "a"), Refusal::LookingForReuse);
    let earlier = Some(Box::new(result("a", 100, 0.9)));
    let commands = machine.apply(Event::Reusable { key: key(&job, "a"), result: earlier });
    assert!(commands.contains(&Command::Publish { key: key(&job, "a") }) && assigned(&commands).is_empty());
    publish(&mut machine, &job, "a");
    assert_eq!(machine.state_of(&job, "a"), StageState::Published { reused: true });
    let view = machine.scheduler.view(&job).unwrap();
    assert_eq!((view.outcome, view.usage.core_seconds), (Some(Outcome::Succeeded), 0.0));
}

#[test]
fn cancelling_stops_what_runs_and_keeps_what_is_published() {
    let mut machine = Machine::new();
    let job = machine.submit(&small_plan());
    let (worker, commands) = machine.join(info(2));
    let (_, _, lease_b) = assigned(&commands)[0].clone();
    let (_, _, lease_a) = assigned(&commands)[1].clone();
    machine.finish((worker, lease_b), result("b", 200, 0.9));
    publish(&mut machine, &job, "b");
    let commands = machine.apply(Event::Cancel { job: job.clone(), reason: "by the user".to_owned() });
    assert_eq!(fenced(&commands), [lease_a]);
    assert_eq!(machine.state_of(&job, "b"), StageState::Published { reused: false });
    assert_eq!(machine.scheduler.view(&job).unwrap().outcome, Some(Outcome::Cancelled));
    assert!(machine.apply(Event::Cancel { job, reason: "twice".to_owned() }).is_empty());
}

#[test]
fn a_fenced_lease_takes_its_place_until_the_worker_has_dropped_it() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (worker, commands) = machine.join(info(1));
    let (_, _, lease) = assigned(&commands)[0].clone();
    machine.apply(Event::Cancel { job, reason: "by the user".to_owned() });
    let next =
        machine.apply(Event::Submitted { plan: Box::new(plan("two", vec![stage("b", &[], 9)])), gone: Vec::new() });
    assert!(assigned(&machine.nothing_to_reuse(next)).is_empty());
    let commands = machine.apply(Event::Heartbeat { worker, leases: vec![lease] });
    assert!(assigned(&commands).is_empty() && fenced(&commands) == [lease]);
    let commands = machine.apply(Event::Heartbeat { worker, leases: Vec::new() });
    assert_eq!(assigned(&commands)[0].0, "b");
}

#[test]
fn a_drained_worker_gives_its_work_back_without_blame() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (worker, commands) = machine.join(info(1));
    let (_, _, lease) = assigned(&commands)[0].clone();
    let commands = machine.apply(Event::DrainWorker { worker, reason: "maintenance".to_owned() });
    assert_eq!(commands, [Command::Drain { worker, reason: "maintenance".to_owned() }]);
    machine.checkpoint((worker, lease), 60);
    machine.apply(Event::Released { worker, lease });
    assert_eq!(refusal(&machine, &job, "a"), Refusal::NoWorker);
    let (_, commands) = machine.join(info(1));
    let [Command::Assign { assignment, .. }] =
        &commands.into_iter().filter(|c| matches!(c, Command::Assign { .. })).collect::<Vec<_>>()[..]
    else {
        panic!()
    };
    assert!(assignment.resume.is_some());
    assert!(machine.scheduler.explain(&job).unwrap().stages[0].failures.is_empty());
}

#[test]
fn a_stopping_coordinator_hands_out_nothing() {
    for sends_home in [false, true] {
        let mut machine = Machine::with(Policy { sends_home, ..Policy::default() });
        machine.submit(&small_plan());
        let (worker, commands) = machine.join(info(1));
        let (_, _, lease) = assigned(&commands)[0].clone();
        let drains = |commands: &[Command]| commands.iter().any(|command| matches!(command, Command::Drain { .. }));
        assert_eq!(drains(&machine.apply(Event::Stop { reason: "Ctrl-C".to_owned() })), sends_home);
        assert!(!machine.scheduler.is_idle());
        assert!(assigned(&machine.apply(Event::Released { worker, lease })).is_empty());
        assert!(machine.scheduler.is_idle());
        let (_, commands) = machine.join(info(4));
        assert!(assigned(&commands).is_empty());
        assert_eq!(drains(&commands), sends_home);
    }
}

#[test]
fn a_worker_that_leaves_gets_nothing_back_and_nobody_is_blamed() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (worker, commands) = machine.join(info(1));
    let (_, _, lease) = assigned(&commands)[0].clone();
    assert_eq!(machine.apply(Event::Leaving { worker }), [], "it knows already");
    machine.checkpoint((worker, lease), 60);
    assert!(assigned(&machine.apply(Event::Released { worker, lease })).is_empty());
    machine.apply(Event::LinkLost { worker, reason: "closed".to_owned() });
    assert!(machine.scheduler.workers().is_empty());
    let (_, commands) = machine.join(info(1));
    assert_eq!(assigned(&commands).len(), 1);
    assert!(machine.scheduler.explain(&job).unwrap().stages[0].failures.is_empty());
}

#[test]
fn a_failed_job_that_is_submitted_again_does_only_what_is_left() {
    let mut machine = Machine::new();
    let job = machine.submit(&small_plan());
    let (worker, commands) = machine.join(info(2));
    let (_, _, lease_b) = assigned(&commands)[0].clone();
    let (_, _, lease_a) = assigned(&commands)[1].clone();
    machine.checkpoint((worker, lease_a), 50);
    machine.fail((worker, lease_a), user_failure());
    machine.finish((worker, lease_b), result("b", 200, 0.9));
    publish(&mut machine, &job, "b");
    assert_eq!(machine.scheduler.standing(&job), Standing::Ended);
    let again = Event::Submitted { plan: Box::new(small_plan()), gone: Vec::new() };
    let commands = machine.apply(again.clone());
    let commands = machine.nothing_to_reuse(commands);
    assert_eq!(assigned(&commands)[0].0, "a");
    assert_eq!(machine.state_of(&job, "b"), StageState::Published { reused: false });
    assert!(matches!(machine.state_of(&job, "a"), StageState::Running { checkpoint_step: 50, .. }));
}

#[test]
fn a_succeeded_job_is_reopened_for_what_the_hub_has_lost_or_what_has_changed() {
    let mut machine = Machine::new();
    let mut two = plan("two", vec![stage("a", &[], 10), stage("b", &[], 20)]);
    let job = machine.submit(&two);
    let (_, commands) = machine.join(info(2));
    for (stage, worker, lease) in assigned(&commands) {
        machine.finish((worker, lease), result(&stage, if stage == "a" { 10 } else { 20 }, 0.9));
        publish(&mut machine, &job, &stage);
    }
    let again = |plan: &Plan, gone: Vec<_>| Event::Submitted { plan: Box::new(plan.clone()), gone };
    assert!(machine.apply(again(&two, Vec::new())).is_empty());
    let commands = machine.apply(again(&two, vec![name("a")]));
    assert!(commands.contains(&Command::Publish { key: key(&job, "a") }) && assigned(&commands).is_empty());
    publish(&mut machine, &job, "a");
    two.stages[1].recipe_digest = graftwork_shared::digest::Digest::of(b"the data changed");
    let commands = machine.apply(again(&two, Vec::new()));
    assert!(commands.contains(&Command::Discard { blob: result("b", 1, 0.9).weights }));
    assert_eq!(assigned(&machine.nothing_to_reuse(commands))[0].0, "b");
}

#[test]
fn publishing_is_tried_again_for_the_machines_errors_only() {
    for blame in [Blame::Machine, Blame::User] {
        let mut machine = Machine::new();
        let job = machine.submit(&plan("one", vec![stage("a", &[], 10)]));
        let (worker, commands) = machine.join(info(1));
        let (_, _, lease) = assigned(&commands)[0].clone();
        machine.finish((worker, lease), result("a", 10, 0.9));
        let failure = Failure { blame, message: "the hub folder is full".to_owned() };
        machine.apply(Event::PublishFailed { key: key(&job, "a"), failure });
        let commands = machine.after(500, Event::Tick);
        let again = commands.contains(&Command::Publish { key: key(&job, "a") });
        assert_eq!(again, blame == Blame::Machine);
        assert_eq!(machine.scheduler.view(&job).unwrap().outcome.is_some(), blame == Blame::User);
    }
}
