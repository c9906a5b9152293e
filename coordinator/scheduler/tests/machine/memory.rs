//! What workers took of memory corrects what stages are expected to need. Stages of the fixture are planned with 1 MiB each,
//! beside 1 MiB of a worker's process.

use graftwork_scheduler::{Event, FACT_VERSION, Fact, Plan, State, WorkerInfo};
use graftwork_shared::{
    assignment::{MemoryPeak, StageResult},
    digest::Digest,
    id::{JobId, LeaseId, WorkerId},
    view::{Refusal, StageState},
};

use crate::fixture::{Machine, assigned, class, grouped, info, name, plan, refusal, result, stage};

const MIB: u64 = 1 << 20;

/// A result with the peak that came of these stages.
fn with_peak(stage: &str, bytes: u64, of: &[(&JobId, &str)]) -> StageResult {
    let stages = of.iter().map(|(job, stage)| ((*job).clone(), name(stage))).collect();
    StageResult { peak: Some(MemoryPeak { bytes, stages }), ..result(stage, 10, 0.9) }
}

fn measured(facts: &[Fact]) -> Vec<(u64, u64)> {
    let of = |fact: &Fact| match fact {
        Fact::MemoryMeasured { predicted_bytes, measured_bytes, .. } => Some((*predicted_bytes, *measured_bytes)),
        _ => None,
    };
    facts.iter().filter_map(of).collect()
}

fn needs_bytes(machine: &Machine, job: &JobId, stage: &str) -> u64 {
    let explained = machine.scheduler.explain(job).unwrap();
    let stage = explained.stages.into_iter().find(|explained| explained.stage == name(stage)).unwrap();
    stage.why.needs.unwrap().memory_bytes
}

/// A job of stages of ten updates.
fn job(text: &str, stages: &[&str]) -> Plan {
    plan(text, stages.iter().map(|text| stage(text, &[], 10)).collect())
}

fn runs(machine: &Machine, job: &JobId, stage: &str) -> bool {
    matches!(machine.state_of(job, stage), StageState::Running { .. })
}

/// A machine with a job of three stages of which two run, on a worker with room for three of them and two places.
fn two_of_three() -> (Machine, JobId, WorkerId, LeaseId) {
    let mut machine = Machine::new();
    let job = machine.submit(&job("three", &["a", "b", "c"]));
    let roomy = WorkerInfo { memory_bytes: 3 * MIB, key: "process".to_owned(), ..info(2) };
    let (worker, commands) = machine.join(roomy);
    assert_eq!(assigned(&commands).len(), 2);
    (machine, job, worker, assigned(&commands)[0].2)
}

#[test]
fn a_worker_that_took_more_than_was_predicted_gets_less_at_a_time() {
    let (mut machine, job, worker, lease) = two_of_three();
    // Of 3 MiB that were predicted with both it took 4: with one of them it is expected to take 2.68 MiB, 1.68 beside its process.
    machine.finish((worker, lease), with_peak("a", 4 * MIB, &[(&job, "a"), (&job, "b")]));
    assert_eq!(measured(&machine.facts), [(3 * MIB, 4 * MIB)]);
    assert!(runs(&machine, &job, "b") && !runs(&machine, &job, "c"));
    assert!(matches!(refusal(&machine, &job, "c"), Refusal::Busy { .. }));
    assert_eq!(needs_bytes(&machine, &job, "c") * 100 / MIB, 167);
    let text = machine.scheduler.explain(&job).unwrap().to_string();
    let why = "1 MiB were planned for it, but a worker took 4 MiB where 3 MiB were predicted";
    assert!(text.contains("it needs cpu and 2 MiB, and 1 of 2 places are free") && text.contains(why), "{text}");
    assert!(text.contains("its worker took 4 MiB with 2 in training, and 3 MiB were predicted"), "{text}");
    // What runs counts with what it is found to need, too.
    let (_, commands) = machine.join(WorkerInfo { memory_bytes: MIB, ..info(1) });
    assert!(assigned(&commands).is_empty(), "1 MiB was enough as it was planned");
    let lease = machine.facts.iter().find_map(|fact| match fact {
        Fact::StageLeased { stage, lease, .. } if *stage == name("b") => Some(*lease),
        _ => None,
    });
    machine.finish((worker, lease.unwrap()), result("b", 10, 0.9));
    assert!(runs(&machine, &job, "c"));
}

#[test]
fn a_peak_is_held_against_the_most_that_was_predicted_of_its_process() {
    let (mut machine, job, worker, lease) = two_of_three();
    machine.finish((worker, lease), with_peak("a", 3 * MIB, &[(&job, "a"), (&job, "b")]));
    let lease = machine.facts.iter().find_map(|fact| match fact {
        Fact::StageLeased { stage, lease, .. } if *stage == name("b") => Some(*lease),
        _ => None,
    });
    // The process kept what both took, and one of them lifts it by a little.
    machine.finish((worker, lease.unwrap()), with_peak("b", 3 * MIB + 9, &[(&job, "b")]));
    assert_eq!(measured(&machine.facts), [(3 * MIB, 3 * MIB), (3 * MIB, 3 * MIB + 9)]);
    assert_eq!(needs_bytes(&machine, &job, "c"), MIB);
}

#[test]
fn a_worker_that_says_nothing_changes_nothing() {
    let (mut machine, job, worker, lease) = two_of_three();
    // As a worker of an earlier version writes it.
    let text = serde_json::to_string(&result("a", 10, 0.9)).unwrap();
    assert!(!text.contains("peak\":"), "{text}");
    machine.finish((worker, lease), serde_json::from_str(&text).unwrap());
    assert!(runs(&machine, &job, "c"));
    assert_eq!((measured(&machine.facts), needs_bytes(&machine, &job, "c")), (Vec::new(), MIB));
}

#[test]
fn what_was_measured_outlives_the_coordinator() {
    let (mut machine, job, worker, lease) = two_of_three();
    machine.finish((worker, lease), with_peak("a", 4 * MIB, &[(&job, "a"), (&job, "b")]));
    let mut again = Machine::recover(machine.facts.clone(), machine.now_ms);
    assert_eq!(needs_bytes(&again, &job, "c"), needs_bytes(&machine, &job, "c"));
    let roomy = WorkerInfo { memory_bytes: 3 * MIB, key: "process".to_owned(), ..info(2) };
    let held = again.facts.iter().rev().find_map(|fact| match fact {
        Fact::StageLeased { lease, .. } => Some(*lease),
        _ => None,
    });
    let commands = again.apply(Event::WorkerJoined { session: 2, info: roomy, leases: held.into_iter().collect() });
    again.nothing_to_reuse(commands);
    assert!(runs(&again, &job, "b") && !runs(&again, &job, "c"), "the worker came back to the same decision");
    // And so does another job over the same base model, once this one is forgotten.
    again.finish((worker, held.unwrap()), result("b", 10, 0.9));
    again.apply(Event::Cancel { job: job.clone(), reason: "enough".to_owned() });
    for stage in ["a", "b"] {
        again.apply(Event::Published { key: crate::fixture::key(&job, stage), release: format!("org/{stage}") });
    }
    again.apply(Event::Forget { job: job.clone() });
    assert!(again.scheduler.explain(&job).is_none());
    let later = again.submit(&self::job("later", &["x"]));
    let again = Machine::recover(again.facts, 90_000);
    assert_eq!(needs_bytes(&again, &later, "x") * 100 / MIB, 167);
}

#[test]
fn an_earlier_versions_state_is_read_and_its_plans_are_left_as_they_are() {
    assert_eq!(FACT_VERSION, 7, "a state of version 5 has no memory");
    let (mut machine, job, worker, lease) = two_of_three();
    machine.finish((worker, lease), with_peak("a", 4 * MIB, &[(&job, "a"), (&job, "b")]));
    let mut text = serde_json::to_value(machine.scheduler.state()).unwrap();
    text.as_object_mut().unwrap().remove("memory").unwrap();
    let plan = text.pointer_mut(&format!("/jobs/{job}/plan")).unwrap().as_object_mut().unwrap();
    plan.remove("beside_bytes").unwrap();
    let state: State = serde_json::from_value(text).unwrap();
    let mut again = Machine::new();
    (again.scheduler, _) = graftwork_scheduler::Scheduler::start(again.scheduler.policy().clone(), state, 90_000);
    assert_eq!(needs_bytes(&again, &job, "c"), MIB);
    // Nothing was predicted of its worker's process, so a peak says nothing.
    let (_, commands) = again.join(info(1));
    let (stage, worker, lease) = assigned(&commands)[0].clone();
    again.finish((worker, lease), with_peak(&stage, 9 * MIB, &[(&job, &stage)]));
    assert_eq!(measured(&again.facts), []);
}

/// Trains one stage after another on one worker of this class, which take so many thousandths of what was predicted; gives
/// what the next one is expected to need.
fn after(machine: &mut Machine, instructions: &str, ratios: &[u64]) -> u64 {
    let at = machine.facts.len();
    let stages: Vec<String> = (0..=ratios.len()).map(|number| format!("s{number}")).collect();
    let of = machine.submit(&job(&format!("job{at}"), &stages.iter().map(String::as_str).collect::<Vec<_>>()));
    let (worker, mut commands) = machine.join(WorkerInfo { class: class(instructions), ..info(1) });
    for ratio in ratios {
        let (stage, worker, lease) = assigned(&commands)[0].clone();
        let numeric_class = class(instructions);
        let result = with_peak(&stage, 2 * MIB * ratio / 1_000, &[(&of, &stage)]);
        commands = machine.finish((worker, lease), StageResult { numeric_class, ..result });
    }
    let needs = needs_bytes(machine, &of, assigned(&commands)[0].0.as_str());
    machine.apply(Event::Cancel { job: of.clone(), reason: "enough".to_owned() });
    machine.apply(Event::WorkerLeft { worker, reason: "enough".to_owned() });
    needs
}

#[test]
fn one_peak_raises_what_is_expected_and_eight_lower_it_within_bounds() {
    let after = |ratios: &[u64]| after(&mut Machine::new(), "avx2", ratios) * 100 / MIB;
    assert_eq!(after(&[]), 100);
    assert_eq!(after(&[1_500]), 199, "of 2 MiB with the process, half as much again");
    assert_eq!(after(&[1_500, 700]), 199);
    assert_eq!(after(&[600; 7]), 100, "the plan's own stands among fewer than eight");
    assert_eq!(after(&[600; 8]), 79, "no less than nine tenths count");
    assert_eq!(after(&[1_500, 600, 600, 600, 600, 600, 600, 600, 600]), 79);
    assert_eq!(after(&[600, 600, 600, 600, 600, 600, 600, 600, 1_010]), 103, "rounded up");
    assert_eq!(after(&[90_000]), 299, "and no more than twice as much");
}

#[test]
fn a_checkpoint_counts_with_what_was_measured_in_its_class() {
    let mut machine = Machine::new();
    after(&mut machine, "avx2", &[1_500]);
    assert_eq!(after(&mut machine, "avx512", &[1_000]), MIB, "it runs in the class that took no more than predicted");
    let of = machine.submit(&job("both", &["a"]));
    assert_eq!(needs_bytes(&machine, &of, "a") * 100 / MIB, 199, "it may go to either class");
    let (worker, commands) = machine.join(WorkerInfo { class: class("avx512"), ..info(1) });
    machine.checkpoint((worker, assigned(&commands)[0].2), 5);
    machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
    assert_eq!(needs_bytes(&machine, &of, "a"), MIB);
}

#[test]
fn what_says_nothing_of_the_prediction_is_left_out() {
    let said = |change: &dyn Fn(&mut StageResult, &JobId), plan: &Plan| {
        let mut machine = Machine::new();
        let job = machine.submit(plan);
        let (_, commands) = machine.join(info(1));
        let (stage, worker, lease) = assigned(&commands)[0].clone();
        let mut result = with_peak(&stage, 4 * MIB, &[(&job, &stage)]);
        change(&mut result, &job);
        machine.finish((worker, lease), result);
        measured(&machine.facts).len()
    };
    let one = job("one", &["a"]);
    assert_eq!(said(&|_, _| {}, &one), 1);
    let stages = |result: &mut StageResult, stages| result.peak = Some(MemoryPeak { bytes: 4 * MIB, stages });
    assert_eq!(said(&|result, _| stages(result, Vec::new()), &one), 0);
    assert_eq!(said(&|result, job| stages(result, vec![(job.clone(), name("z"))]), &one), 0, "an unknown stage");
    let gone = JobId::of(&Digest::of(b"gone"));
    assert_eq!(said(&|result, _| stages(result, vec![(gone.clone(), name("a"))]), &one), 0, "a job that is gone");
    assert_eq!(said(&|_, _| {}, &Plan { beside_bytes: 0, ..one.clone() }), 0, "an earlier version's plan");
    // Members of a group have fewer lanes than were planned.
    let mut world = Machine::new();
    let job = world.submit(&grouped(4, 100));
    let (first, commands) = world.join(info(1));
    let lease = assigned(&commands)[0].2;
    let (second, _) = world.join(info(1));
    world.apply(Event::Prepared { worker: second, lease });
    assert_eq!(world.scheduler.epoch(lease), Some(1));
    let result = StageResult { steps: 100, ..with_peak("a", 4 * MIB, &[(&job, "a")]) };
    world.finish((first, lease), result);
    assert!(matches!(world.state_of(&job, "a"), StageState::Trained { .. }) && measured(&world.facts).is_empty());
    assert!(world.scheduler.explain(&job).unwrap().stages[0].why.took.is_none());
}

#[test]
fn another_base_model_keeps_its_own_numbers_and_few_are_kept() {
    let mut machine = Machine::new();
    after(&mut machine, "avx2", &[1_500]);
    let other = Plan { base_model_digest: Digest::of(b"other"), ..job("other", &["a"]) };
    let of = machine.submit(&other);
    assert_eq!(needs_bytes(&machine, &of, "a"), MIB);
    let mut state = machine.scheduler.state().clone();
    for number in 0..1_000_u64 {
        let (job, stage, class) = (of.clone(), name("a"), class("avx2"));
        let base_model = Digest::of(&(number / 10).to_le_bytes());
        let (predicted_bytes, measured_bytes) = (100, number);
        let fact = Fact::MemoryMeasured { job, stage, base_model, class, predicted_bytes, measured_bytes };
        state.fold(&fact).unwrap();
    }
    let text = serde_json::to_value(&state).unwrap();
    let kinds = text["memory"].as_array().unwrap();
    assert_eq!(kinds.len(), 64);
    let peaks: Vec<usize> = kinds.iter().map(|kind| kind["peaks"].as_array().unwrap().len()).collect();
    assert_eq!(peaks, vec![8; 64]);
    assert_eq!(kinds[63]["peaks"][7]["measured_bytes"], 999, "what was measured last stays");
}
