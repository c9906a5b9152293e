//! What a restart finds: facts fold into the same state, and what cannot be scheduled or folded is refused.

use graftwork_scheduler::{Event, Fact, Plan, PlanError, State};
use graftwork_shared::{digest::Digest, event::Outcome, id::LeaseId, view::StageState};

use crate::fixture::{Machine, assigned, info, key, name, plan, result, small_plan, stage};

#[test]
fn a_restart_ends_leases_without_blame_and_goes_on_from_the_checkpoint() {
    let mut machine = Machine::new();
    let job = machine.submit(&small_plan());
    let (worker, commands) = machine.join(info(2));
    let (_, _, lease) = assigned(&commands)[0].clone();
    machine.checkpoint((worker, lease), 150);
    let term = machine.scheduler.state().term();
    let mut machine = Machine::recover(machine.facts, 90_000);
    assert_eq!(machine.scheduler.state().term().0, term.0 + 1);
    assert_eq!(machine.scheduler.explain(&job).unwrap().stages[1].failures, []);
    let (again, commands) = machine.join(info(2));
    assert!(again > worker, "a worker's number is never used again");
    assert!(assigned(&commands).iter().all(|(_, _, new)| *new > lease));
    assert!(matches!(machine.state_of(&job, "b"), StageState::Running { checkpoint_step: 150, .. }));
}

#[test]
fn the_fold_of_every_prefix_of_facts_is_a_state_to_start_from() {
    let mut machine = Machine::new();
    let job = machine.submit(&small_plan());
    let (worker, commands) = machine.join(info(2));
    for (stage, worker, lease) in assigned(&commands) {
        machine.checkpoint((worker, lease), 50);
        machine.finish((worker, lease), result(&stage, 100, 0.9));
    }
    machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
    machine.apply(Event::Published { key: key(&job, "a"), release: "org/a".to_owned() });
    for length in 0..=machine.facts.len() {
        let again = Machine::recover(machine.facts[..length].to_vec(), 90_000);
        assert!(again.scheduler.is_idle() || length > 6, "{length}");
    }
}

#[test]
fn facts_that_do_not_fit_are_refused() {
    let mut state = State::default();
    let accepted = Fact::CheckpointAccepted { lease: LeaseId(7), step: 1, blob: Digest::of(b"x") };
    let error = state.fold(&accepted).unwrap_err().to_string();
    assert_eq!(error, "the fact checkpoint_accepted does not fit the facts before it: lease 7 is not live");
    let plan = Box::new(small_plan());
    let submitted = Fact::JobSubmitted { plan, at_ms: 0 };
    state.fold(&submitted).unwrap();
    assert!(state.fold(&submitted).unwrap_err().to_string().contains("was submitted before"));
    let ended = Fact::JobEnded { job: small_plan().id(), outcome: Outcome::Succeeded, at_ms: 0 };
    assert!(state.fold(&ended).is_err(), "a job does not end while its stages have not");
}

#[test]
fn plans_that_cannot_be_scheduled_are_refused() {
    let check = |stages| plan("x", stages).check();
    assert_eq!(check(vec![]), Err(PlanError::Empty));
    assert_eq!(check(vec![stage("a", &[], 1), stage("a", &[], 1)]), Err(PlanError::Twice(name("a"))));
    let unknown = PlanError::Unknown { stage: name("f"), needs: name("b") };
    assert_eq!(check(vec![stage("f", &["b"], 1)]), Err(unknown));
    let circle = vec![stage("a", &["b"], 1), stage("b", &["a"], 1), stage("c", &[], 1)];
    assert_eq!(check(circle), Err(PlanError::Circle(vec![name("a"), name("b")])));
}

#[test]
fn uploads_are_kept_as_long_as_their_job() {
    let mut machine = Machine::new();
    let uploads = vec![Digest::of(b"rows"), Digest::of(b"base model")];
    let plan = Plan { uploads: uploads.clone(), ..small_plan() };
    machine.submit(&plan);
    let state = machine.scheduler.state();
    assert!(uploads.iter().all(|upload| state.refers_to(*upload) && state.blobs().contains(upload)));
    assert!(!state.refers_to(Digest::of(b"something else")));
}
