//! Ended jobs are forgotten with their blobs; others are not, and what they share stays.

use graftwork_scheduler::{Command, Event, Fact, Standing};
use graftwork_shared::{digest::Digest, id::JobId};

use crate::fixture::{Machine, assigned, info, key, plan, result, stage};

fn ended(machine: &mut Machine, name: &str, weights: &str) -> JobId {
    let job = machine.submit(&plan(name, vec![stage("a", &[], 100)]));
    let (worker, commands) = machine.join(info(1));
    let (_, _, lease) = assigned(&commands)[0].clone();
    machine.finish((worker, lease), result(weights, 100, 0.9));
    machine.apply(Event::Published { key: key(&job, "a"), release: "org/a".to_owned() });
    assert_eq!(machine.scheduler.standing(&job), Standing::Ended);
    machine.apply(Event::WorkerLeft { worker, reason: "done".to_owned() });
    job
}

fn discarded(commands: &[Command]) -> Vec<Digest> {
    commands
        .iter()
        .filter_map(|command| if let Command::Discard { blob } = command { Some(*blob) } else { None })
        .collect()
}

fn weights(text: &str) -> Digest {
    result(text, 100, 0.9).weights
}

#[test]
fn an_ended_job_goes_with_its_blobs_and_may_come_again() {
    let mut machine = Machine::new();
    let job = ended(&mut machine, "one", "one");
    let commands = machine.apply(Event::Forget { job: job.clone() });
    assert!(discarded(&commands).contains(&weights("one")), "{commands:?}");
    assert_eq!(machine.scheduler.standing(&job), Standing::Unknown);
    assert!(matches!(machine.facts.last(), Some(Fact::JobForgotten { .. })));
    assert!(machine.apply(Event::Forget { job: job.clone() }).is_empty(), "there is nothing left of it");
    assert_eq!(ended(&mut machine, "one", "one"), job);
    let after = Machine::recover(machine.facts.clone(), machine.now_ms);
    assert_eq!(after.scheduler.standing(&job), Standing::Ended);
}

#[test]
fn a_job_that_has_not_ended_stays() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    assert!(machine.apply(Event::Forget { job: job.clone() }).is_empty());
    assert_eq!(machine.scheduler.standing(&job), Standing::Active);
}

#[test]
fn what_another_job_has_too_stays() {
    let mut machine = Machine::new();
    let (one, _) = (ended(&mut machine, "one", "shared"), ended(&mut machine, "two", "shared"));
    let commands = machine.apply(Event::Forget { job: one });
    assert!(!discarded(&commands).contains(&weights("shared")), "{commands:?}");
}

#[test]
fn old_jobs_are_those_that_ended_before() {
    let mut machine = Machine::new();
    let job = ended(&mut machine, "one", "one");
    let now_ms = machine.now_ms;
    assert!(machine.scheduler.ended_before(now_ms).is_empty());
    assert_eq!(machine.scheduler.ended_before(now_ms + 1), [job]);
}
