//! The history checker is fed histories that cannot be, one for each thing that it must name.

use std::collections::BTreeMap;

use graftwork_scheduler::{
    Event, Fact,
    history::{Broken, Finding, History, check},
};
use graftwork_shared::{
    assignment::StageResult,
    digest::Digest,
    event::{Event as Told, EventKind, Outcome, StepReport},
    id::{JobId, LeaseId, Term, WorkerId},
};

use crate::fixture::{Machine, assigned, info, key, name, plan, result, stage};

/// The rows of two epochs.
fn epochs() -> Vec<Digest> {
    vec![Digest::of(b"first"), Digest::of(b"second")]
}

/// A sound history: a stage of 100 updates with a checkpoint, a restart, a second attempt, a result and a release.
fn sound() -> (Vec<Fact>, JobId, [LeaseId; 2]) {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (worker, commands) = machine.join(info(1));
    let first = assigned(&commands)[0].2;
    machine.checkpoint((worker, first), 50);
    let mut machine = Machine::recover(machine.facts, machine.now_ms + 1_000);
    let (worker, commands) = machine.join(info(1));
    let second = assigned(&commands)[0].2;
    machine.checkpoint((worker, second), 80);
    machine.finish((worker, second), StageResult { epochs: epochs(), ..result("a", 100, 0.9) });
    machine.apply(Event::Published { key: key(&job, "a"), release: "org/a".to_owned() });
    (machine.facts, job, [first, second])
}

fn rows() -> BTreeMap<Digest, Vec<Digest>> {
    [(stage("a", &[], 100).recipe_digest, epochs())].into()
}

fn told(job: &JobId, kinds: Vec<EventKind>) -> Vec<Told> {
    let event = |kind: EventKind| {
        let of_job = matches!(kind, EventKind::JobFinished { .. } | EventKind::JobStarted { .. });
        let stage = (!of_job).then(|| name("a"));
        Told { job: job.clone(), at_ms: 0, stage, kind }
    };
    kinds.into_iter().map(event).collect()
}

fn step(step: u64) -> EventKind {
    EventKind::Step(StepReport { step, total_steps: 100, ..StepReport::default() })
}

/// A report of those who train in this epoch.
fn step_in(group: u64, step: u64) -> EventKind {
    EventKind::Step(StepReport { step, total_steps: 100, group, ..StepReport::default() })
}

fn formed(epoch: u64, members: &[u64]) -> EventKind {
    let members = members.iter().copied().map(WorkerId).collect();
    EventKind::GroupFormed { epoch, members, reason: String::new() }
}

fn started(from_step: u64) -> EventKind {
    EventKind::StageStarted { worker: WorkerId(1), from_step, total_steps: 100, attempt: 0 }
}

fn read(facts: &[Fact], told: &[Told]) -> Vec<Finding> {
    check(&History { facts, told, rows: &rows(), in_lockstep: true, every_update: false })
}

/// The facts after a change, and what is found in them.
fn forged(change: impl FnOnce(&mut Vec<Fact>)) -> Vec<Broken> {
    let (mut facts, ..) = sound();
    change(&mut facts);
    read(&facts, &[]).into_iter().map(|finding| finding.broken).collect()
}

fn place(facts: &[Fact], wanted: impl Fn(&Fact) -> bool) -> usize {
    facts.iter().position(wanted).unwrap()
}

fn result_of(facts: &mut [Fact]) -> &mut StageResult {
    let results = facts.iter_mut().filter_map(|fact| match fact {
        Fact::StageTrained { result, .. } => Some(result),
        _ => None,
    });
    results.last().unwrap()
}

#[test]
fn a_sound_history_has_no_findings() {
    let (facts, job, _) = sound();
    let kinds = vec![
        started(0),
        step(10),
        step(50),
        EventKind::Checkpointed { step: 50 },
        step(70),
        started(50),
        step(60),
        step(80),
        EventKind::Checkpointed { step: 80 },
        step(100),
        EventKind::StageFinished { reused: false },
        EventKind::Published { release: "org/a".to_owned() },
        EventKind::JobFinished { outcome: Outcome::Succeeded },
    ];
    assert_eq!(read(&facts, &told(&job, kinds)), []);
}

#[test]
fn a_step_that_was_accepted_before_is_a_step_applied_twice() {
    let found = forged(|facts| {
        let last = facts.iter().rposition(|fact| matches!(fact, Fact::CheckpointAccepted { .. })).unwrap();
        if let Fact::CheckpointAccepted { step, .. } = &mut facts[last] {
            *step = 50;
        }
    });
    assert_eq!(found, [Broken::StepTwice]);
    assert_eq!(forged(|facts| result_of(facts).steps = 101), [Broken::StepTwice]);
}

#[test]
fn a_result_without_all_updates_misses_steps() {
    assert_eq!(forged(|facts| result_of(facts).steps = 99), [Broken::StepMissed]);
}

#[test]
fn rows_that_are_not_those_of_an_undisturbed_run_differ() {
    assert_eq!(forged(|facts| result_of(facts).epochs[1] = Digest::of(b"a row twice")), [Broken::RowsDiffer]);
    assert_eq!(forged(|facts| result_of(facts).epochs.truncate(1)), [Broken::RowsDiffer]);
    assert_eq!(forged(|facts| result_of(facts).epochs.push(Digest::of(b"more"))), [Broken::RowsDiffer]);
}

#[test]
fn a_commit_under_a_lease_that_ended_is_outside_it() {
    let (facts, _, [first, second]) = sound();
    let committed = |lease: LeaseId| {
        let blob = Digest::of(b"late");
        let mut forged = facts.clone();
        let at = place(&facts, |fact| matches!(fact, Fact::StageTrained { .. }));
        forged.insert(at, Fact::CheckpointAccepted { lease, step: 90, blob });
        read(&forged, &[]).into_iter().map(|finding| finding.broken).collect::<Vec<_>>()
    };
    assert_eq!(committed(first), [Broken::CommitOutsideLease], "of the earlier term");
    assert_eq!(committed(LeaseId(99)), [Broken::CommitOutsideLease], "of nobody");
    assert_eq!(committed(second), [], "the live one");
    let found = forged(|facts| {
        let at = place(facts, |fact| matches!(fact, Fact::StageTrained { .. }));
        if let Fact::StageTrained { lease, .. } = &mut facts[at] {
            *lease = Some(first);
        }
    });
    assert!(found.contains(&Broken::CommitOutsideLease), "{found:?}");
}

#[test]
fn two_leases_of_a_stage_and_numbers_given_twice_are_named() {
    let lease_again = |change: fn(&mut Fact)| {
        forged(|facts| {
            let at = facts.iter().rposition(|fact| matches!(fact, Fact::StageLeased { .. })).unwrap();
            let mut again = facts[at].clone();
            change(&mut again);
            facts.insert(at + 1, again);
        })
    };
    let next = |fact: &mut Fact| {
        if let Fact::StageLeased { lease, .. } = fact {
            *lease = LeaseId(lease.0 + 1);
        }
    };
    assert!(lease_again(next).contains(&Broken::TwoLeases));
    assert!(lease_again(|_| ()).contains(&Broken::TwoLeases));
    let found = forged(|facts| {
        let at = facts.iter().rposition(|fact| matches!(fact, Fact::WorkerEntered { .. })).unwrap();
        let again = facts[at].clone();
        facts.insert(at, again);
    });
    assert_eq!(found, [Broken::TwoLeases]);
}

#[test]
fn what_is_final_stays_final() {
    for end in ["result", "release", "job"] {
        let found = forged(|facts| {
            let at = place(facts, |fact| match fact {
                Fact::StageTrained { .. } => end == "result",
                Fact::StagePublished { .. } => end == "release",
                Fact::JobEnded { .. } => end == "job",
                _ => false,
            });
            let mut again = facts[at].clone();
            if let Fact::StageTrained { lease, .. } = &mut again {
                *lease = None;
            }
            facts.push(again);
        });
        assert_eq!(found, [Broken::FinalChanged], "a second {end}");
    }
}

#[test]
fn a_term_that_begins_again_was_lost() {
    let found = forged(|facts| facts.push(Fact::TermStarted { term: Term(2), at_ms: 0 }));
    assert_eq!(found, [Broken::AcknowledgedLost]);
}

#[test]
fn what_was_told_and_is_no_fact_is_lost() {
    let (facts, job, _) = sound();
    for kind in [
        EventKind::Checkpointed { step: 60 },
        EventKind::Published { release: "org/b".to_owned() },
        EventKind::JobFinished { outcome: Outcome::Failed },
    ] {
        let found = read(&facts, &told(&job, vec![kind.clone()]));
        assert_eq!(
            found.iter().map(|finding| finding.broken).collect::<Vec<_>>(),
            [Broken::AcknowledgedLost],
            "{kind:?}"
        );
    }
    let cut = place(&facts, |fact| matches!(fact, Fact::StageTrained { .. }));
    let found = read(&facts[..cut], &told(&job, vec![EventKind::StageFinished { reused: false }]));
    assert_eq!(found[0].broken, Broken::AcknowledgedLost);
}

#[test]
fn steps_that_are_reported_again_or_begun_from_nowhere_are_named() {
    let (facts, job, _) = sound();
    let found = |kinds| read(&facts, &told(&job, kinds)).into_iter().map(|finding| finding.broken).collect::<Vec<_>>();
    assert_eq!(found(vec![started(0), step(10), step(10)]), [Broken::StepTwice]);
    assert_eq!(found(vec![started(0), step(60), EventKind::Checkpointed { step: 50 }]), [Broken::StepTwice]);
    assert_eq!(found(vec![started(50), step(10), step(20)]), [], "it found other rows and started over");
    assert_eq!(found(vec![started(60)]), [Broken::StepMissed]);
    let formed = || formed(1, &[1]);
    assert_eq!(found(vec![started(50), step(70), formed(), step(70)]), [], "one stood an update back");
    let back = [49, 60, 69];
    assert!(back.iter().all(|at| found(vec![started(50), step(70), formed(), step(*at)]) == [Broken::StepTwice]));
}

/// Whoever trained was cut off before it heard of the newcomer, which begins anew. Real hosts showed it.
#[test]
fn a_newcomer_that_is_left_alone_makes_no_step_twice_and_whoever_had_the_state_does() {
    let (facts, job, _) = sound();
    let found = |kinds| read(&facts, &told(&job, kinds)).into_iter().map(|finding| finding.broken).collect::<Vec<_>>();
    let lost = |of: EventKind, then: u64| {
        found(vec![started(0), step(27), formed(1, &[1, 2]), of, formed(2, &[2]), step_in(2, then), step_in(2, 30)])
    };
    assert_eq!(lost(step_in(0, 28), 1), [], "the other one trained alone to the end");
    assert_eq!(lost(step_in(1, 28), 1), [Broken::StepTwice], "both made that update");
    assert_eq!(lost(step_in(1, 28), 27), [Broken::StepTwice], "two updates back");
    assert_eq!(lost(step_in(1, 28), 28), [], "one stood an update back");
    let safe = |then| found(vec![started(50), step(70), formed(1, &[1, 2]), formed(2, &[2]), step_in(2, then)]);
    assert_eq!(safe(49), [Broken::StepTwice], "a newcomer that far behind fails its attempt");
    let back = vec![started(0), step_in(0, 20), formed(1, &[1, 2]), step_in(1, 30), formed(2, &[1])];
    let back = [back, vec![formed(3, &[1, 2]), step_in(2, 40), formed(4, &[2]), step_in(4, 1)]].concat();
    assert_eq!(found(back), [], "who comes back comes without a state");
}

#[test]
fn what_a_killed_coordinator_did_not_tell_any_more_may_have_changed_who_goes_on() {
    let (facts, job, _) = sound();
    let resumed = EventKind::JobStarted { stages: 1, resumed: true };
    let found = |kinds| read(&facts, &told(&job, kinds)).into_iter().map(|finding| finding.broken).collect::<Vec<_>>();
    // The stage was handed out twice.
    let first = || vec![started(0), step(50), EventKind::Checkpointed { step: 50 }, step(70)];
    assert_eq!(found([first(), vec![resumed.clone(), step(60)]].concat()), [], "the second time was not told");
    assert_eq!(found([first(), vec![resumed.clone(), step(49)]].concat()), [Broken::StepTwice], "it was safe");
    let all = [first(), vec![started(50), step(70), resumed, step(60)]].concat();
    assert_eq!(found(all), [Broken::StepTwice], "nothing is missing");
}

#[test]
fn an_update_that_was_not_reported_is_missed_where_every_update_is_and_reports_may_be_rare_elsewhere() {
    let (facts, job, _) = sound();
    let found = |every_update: bool, kinds: Vec<EventKind>| {
        let (told, rows) = (told(&job, kinds), rows());
        let history = History { facts: &facts, told: &told, rows: &rows, in_lockstep: true, every_update };
        check(&history).into_iter().map(|finding| finding.broken).collect::<Vec<_>>()
    };
    let of_each = |kinds| found(true, kinds);
    assert_eq!(of_each(vec![started(0), step(1), step(2), step(3)]), []);
    let gap = || vec![started(0), step(1), step(2), step(4), step(5)];
    assert_eq!(of_each(gap()), [Broken::StepMissed]);
    assert_eq!(found(false, gap()), [], "nobody said that each of them is reported");
    assert_eq!(of_each(vec![started(0), step(2)]), [Broken::StepMissed], "the first one of all");
    assert_eq!(of_each(vec![started(50), step(52)]), [Broken::StepMissed], "the first one of an attempt that goes on");
    assert_eq!(of_each(vec![started(50), step(51), step(52)]), []);
    assert_eq!(of_each(vec![started(50), step(1), step(2)]), [], "it found other rows and started over");
    assert_eq!(of_each(vec![started(50), step(1), step(3)]), [Broken::StepMissed], "so it did, and left one out");
}

#[test]
fn reports_that_were_lost_with_a_coordinator_or_with_whoever_led_a_group_are_no_missed_updates() {
    let (facts, job, _) = sound();
    let found = |kinds: Vec<EventKind>| {
        let (told, rows) = (told(&job, kinds), rows());
        let history = History { facts: &facts, told: &told, rows: &rows, in_lockstep: true, every_update: true };
        check(&history).into_iter().map(|finding| finding.broken).collect::<Vec<_>>()
    };
    let killed = |then: u64| {
        let resumed = EventKind::JobStarted { stages: 1, resumed: true };
        found(vec![started(0), step(1), resumed, step(9), step(then)])
    };
    assert_eq!(killed(10), [], "it trained on while nobody led");
    assert_eq!(killed(11), [Broken::StepMissed], "the next coordinator heard both");
    let led = |then: u64| found(vec![started(0), step(1), formed(1, &[2, 1]), step_in(1, 4), step_in(1, then)]);
    assert_eq!(led(5), []);
    assert_eq!(led(6), [Broken::StepMissed]);
    assert_eq!(found(vec![started(0), step(1), started(0), step(1), step(2)]), [], "another attempt");
    // Whoever began to watch late.
    assert_eq!(found(vec![step(7), step(8)]), []);
}
