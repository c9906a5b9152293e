//! Whose arithmetic may go on with a stage, and which results are believed; one promise a test.

use graftwork_scheduler::{Event, WorkerInfo};
use graftwork_shared::{training::EarlyStopping, view::Refusal};

use crate::fixture::{Machine, assigned, class, fenced, info, plan, refusal, result, stage};

#[test]
fn a_checkpoint_is_continued_only_in_its_numeric_class() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (first, commands) = machine.join(info(1));
    let (_, _, lease) = assigned(&commands)[0].clone();
    machine.checkpoint((first, lease), 50);
    machine.apply(Event::WorkerLeft { worker: first, reason: "killed".to_owned() });
    machine.now_ms += 1_000;
    let (_, commands) = machine.join(WorkerInfo { class: class("avx512"), ..info(4) });
    assert!(assigned(&commands).is_empty());
    let refused = refusal(&machine, &job, "a");
    assert_eq!(
        refused,
        Refusal::NumericClass { needs: class("avx2").to_string(), have: vec![class("avx512").to_string()] }
    );
    let explained = machine.scheduler.explain(&job).unwrap();
    assert!(explained.stages[0].sentence.contains(&refused.to_string()), "{explained}");
    let (_, commands) = machine.join(info(1));
    assert_eq!(assigned(&commands)[0].0, "a");
}

#[test]
fn a_stage_goes_only_to_workers_of_its_numerics_version() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (newer, commands) = machine.join(WorkerInfo { numerics_version: 2, ..info(4) });
    assert!(assigned(&commands).is_empty());
    let refused = refusal(&machine, &job, "a");
    assert_eq!(refused, Refusal::NumericsVersion { needs: 1, have: vec![2] });
    assert!(refused.lasts() && refused.to_string().contains("numerics version 1"), "{refused}");
    let explained = machine.scheduler.explain(&job).unwrap();
    assert!(explained.stages[0].sentence.contains(&refused.to_string()), "{explained}");
    // Whoever does not say is not held back: it refuses what it does not compute.
    let (silent, commands) = machine.join(WorkerInfo { numerics_version: 0, ..info(1) });
    assert_eq!(assigned(&commands).iter().map(|(_, worker, _)| *worker).collect::<Vec<_>>(), [silent]);
    machine.apply(Event::WorkerLeft { worker: silent, reason: "killed".to_owned() });
    let commands = machine.after(60_000, Event::Heartbeat { worker: newer, leases: Vec::new() });
    assert!(assigned(&commands).is_empty(), "a version is no matter of time");
    let (alike, commands) = machine.join(info(1));
    assert_eq!(assigned(&commands).iter().map(|(_, worker, _)| *worker).collect::<Vec<_>>(), [alike]);
}

#[test]
fn a_result_after_fewer_or_more_updates_than_planned_is_not_accepted() {
    for (steps, early, believed) in [(99, false, false), (101, false, false), (101, true, false), (99, true, true)] {
        let mut machine = Machine::new();
        let mut training = stage("a", &[], 100);
        if early {
            training.recipe.training.early_stopping = Some(EarlyStopping { patience: 1, min_delta: 0.0 });
        }
        let job = machine.submit(&plan("one", vec![training]));
        let (worker, commands) = machine.join(info(1));
        let (_, _, lease) = assigned(&commands)[0].clone();
        let commands = machine.finish((worker, lease), result("a", steps, 0.9));
        assert_eq!(fenced(&commands) == [lease], !believed, "{steps} updates");
        if !believed {
            let Refusal::BackingOff { failure, .. } = refusal(&machine, &job, "a") else { panic!("it is tried again") };
            assert_eq!(failure.message, format!("a result came after {steps} updates, but the stage has 100"));
        }
    }
}

#[test]
fn a_result_of_another_class_than_the_workers_is_not_accepted() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("one", vec![stage("a", &[], 100)]));
    let (worker, commands) = machine.join(WorkerInfo { class: class("avx512"), ..info(1) });
    let (_, _, lease) = assigned(&commands)[0].clone();
    let commands = machine.finish((worker, lease), result("a", 100, 0.9));
    assert_eq!(fenced(&commands), [lease]);
    assert!(matches!(refusal(&machine, &job, "a"), Refusal::BackingOff { .. }));
}
