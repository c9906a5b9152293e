//! A long stage that would hold up its job gets helpers before short ones start; one promise a test.

use graftwork_scheduler::{Command, Event, Plan, Why};
use graftwork_shared::{
    event::StepReport,
    id::{JobId, LeaseId, WorkerId},
    view::Refusal,
};

use crate::{
    fixture::{Machine, assigned, invited, name, plan, refusal, result, stage},
    group::{failure, keyed, reasons, released},
};

/// A long task of so many updates and lanes, and short ones of 10 updates.
fn tailed(long: u64, short: usize) -> Plan {
    let mut stages = vec![stage("long", &[], long)];
    stages[0].recipe.training.lanes = 8;
    stages.extend((0..short).map(|at| stage(&format!("s{at}"), &[], 10)));
    let mut plan = plan("tailed", stages);
    plan.job.resources.workers_per_task = None;
    plan.digest = plan.job.digest();
    plan
}

struct World {
    machine: Machine,
    job: JobId,
    /// Who leads the long stage.
    long: (WorkerId, LeaseId),
    commands: Vec<Command>,
}

/// All workers are there before the job is.
fn world(plan: &Plan, workers: usize) -> World {
    let mut machine = Machine::new();
    (0..workers).for_each(|number| drop(machine.join(keyed(number))));
    let commands = machine.apply(Event::Submitted { plan: Box::new(plan.clone()), gone: Vec::new() });
    let commands = machine.nothing_to_reuse(commands);
    let (_, worker, lease) = assigned(&commands).into_iter().find(|(stage, ..)| stage == "long").unwrap();
    World { machine, job: plan.id(), long: (worker, lease), commands }
}

fn started(commands: &[Command]) -> Vec<String> {
    assigned(commands).into_iter().map(|(stage, ..)| stage).collect()
}

fn why(machine: &Machine, job: &JobId, stage: &str) -> Why {
    let stages = machine.scheduler.explain(job).unwrap().stages;
    stages.into_iter().find(|explained| explained.stage == name(stage)).unwrap().why
}

fn tell(machine: &mut Machine, (worker, lease): (WorkerId, LeaseId), step: u64, tokens_per_second: f64) {
    let report = StepReport { step, lanes: 2, tokens_per_second, examples_per_second: 1.0, ..StepReport::default() };
    machine.apply(Event::Stepped { worker, lease, report });
}

#[test]
fn a_long_stage_gets_a_helper_before_a_further_short_one_starts() {
    let world = world(&tailed(1_000, 8), 4);
    let helpers = invited(&world.commands);
    assert_eq!(helpers.len(), 1, "one loads at a time: {:?}", world.commands);
    assert_eq!(helpers[0].1, world.long.1);
    assert_eq!(started(&world.commands).len(), 3, "the long one, and two short ones: {:?}", world.commands);
    let told = why(&world.machine, &world.job, "long").holds_up.unwrap();
    assert!(told.times > 1.0 && told.alone_ms.is_none(), "nothing is measured yet: {told:?}");
}

#[test]
fn where_rates_are_known_it_says_how_long_in_seconds() {
    let mut world = world(&tailed(1_000, 8), 2);
    assert!(invited(&world.commands).is_empty(), "of two places one is for the rest");
    let short = assigned(&world.commands)[1].clone();
    // Rows of 100 bytes have 27 tokens.
    let training = &tailed(1_000, 8).stages[0].recipe.training;
    let tokens = 27.0 * f64::from(training.batch_size) * f64::from(training.accumulation);
    tell(&mut world.machine, world.long, 100, 10.0 * tokens);
    tell(&mut world.machine, (short.1, short.2), 5, 10.0 * tokens);
    let (third, commands) = world.machine.join(keyed(2));
    assert_eq!((invited(&commands), started(&commands)), (vec![(third, world.long.1)], vec![]));
    let told = why(&world.machine, &world.job, "long");
    assert_eq!(
        told.holds_up.unwrap().to_string(),
        "would hold up the job: about 90 s alone, 4 s for all the rest",
        "900 updates at ten a second, and 80 on two places"
    );
    assert!(told.to_string().contains("it has helpers, as it would hold up the job"), "{told}");
    let waiting = why(&world.machine, &world.job, "s7").to_string();
    assert!(waiting.contains("long is helped first, as it would hold up the job: about 90 s alone"), "{waiting}");
    assert!(matches!(refusal(&world.machine, &world.job, "s7"), Refusal::Busy { .. }));
    let commands = world.machine.apply(Event::Prepared { worker: third, lease: world.long.1 });
    let reason = format!("{third} joined, as the stage would hold up the job: about 90 s alone, 4 s for all the rest");
    assert_eq!(reasons(&commands), [reason]);
}

#[test]
fn it_says_on_how_many_workers_it_would_take_so_long() {
    let mut world = world(&tailed(1_000, 12), 5);
    assert_eq!(why(&world.machine, &world.job, "long").holds_up.unwrap().workers, 1);
    let (helper, lease) = invited(&world.commands)[0];
    let commands = world.machine.apply(Event::Prepared { worker: helper, lease });
    // Of five places it may have two; of seven it would outlast the rest with a third one.
    assert!(invited(&commands).is_empty(), "{commands:?}");
    let mut commands = Vec::new();
    for number in 5..9 {
        commands.extend(world.machine.join(keyed(number)).1);
    }
    assert_eq!(invited(&commands).len(), 1, "{commands:?}");
    let told = why(&world.machine, &world.job, "long").holds_up.unwrap();
    assert_eq!(told.workers, 2);
    assert!(told.to_string().contains(" times as long on 2 workers as all the rest takes"), "{told}");
    let old: graftwork_scheduler::HoldsUp = serde_json::from_str(r#"{"times": 2.0}"#).unwrap();
    assert!(old.to_string().contains("2.0 times as long alone"), "{old}");
}

#[test]
fn it_never_gets_more_than_its_share_of_the_places() {
    // Alone it takes longer than all the rest on the other places; with a helper the rest would be the tail.
    let world = world(&tailed(30, 4), 4);
    let mut machine = world.machine;
    let helpers = invited(&world.commands);
    assert_eq!(helpers.len(), 0, "15 for each of two is no longer than 40 on two places: {:?}", world.commands);
    assert_eq!(started(&world.commands).len(), 4);
    let short = assigned(&world.commands)[1].clone();
    let commands = machine.finish((short.1, short.2), result(&short.0, 10, 0.9));
    assert!(invited(&commands).is_empty(), "nor than 30: {commands:?}");
    assert_eq!(started(&commands).len(), 1, "a short one starts");
}

#[test]
fn its_helpers_are_not_taken_back_for_other_stages_as_long_as_it_would_hold_up_the_job() {
    let mut world = world(&tailed(1_000, 8), 4);
    let (helper, lease) = invited(&world.commands)[0];
    let commands = world.machine.apply(Event::Prepared { worker: helper, lease });
    assert!(released(&commands).is_empty(), "short ones of its job wait");
    let other = plan("other", vec![stage("x", &[], 50)]);
    let commands = world.machine.apply(Event::Submitted { plan: Box::new(other), gone: Vec::new() });
    let commands = world.machine.nothing_to_reuse(commands);
    assert!(released(&commands).is_empty(), "its job's turn paid for the place");
    let mut urgent = plan("urgent", vec![stage("y", &[], 50)]);
    urgent.job.priority = 1;
    urgent.digest = urgent.job.digest();
    let commands = world.machine.apply(Event::Submitted { plan: Box::new(urgent), gone: Vec::new() });
    let commands = world.machine.nothing_to_reuse(commands);
    assert_eq!(released(&commands), [(helper, lease)], "a higher priority takes a helper rather than a whole stage");
}

#[test]
fn once_it_no_longer_would_its_helper_helps_as_others_do() {
    let mut world = world(&tailed(1_000, 8), 4);
    let (helper, lease) = invited(&world.commands)[0];
    world.machine.apply(Event::Prepared { worker: helper, lease });
    let commands = world.machine.checkpoint(world.long, 970);
    assert_eq!(released(&commands), [(helper, lease)], "15 for each of two, and 40 on each other place");
    assert!(why(&world.machine, &world.job, "long").holds_up.is_none());
}

#[test]
fn a_helper_is_not_sent_away_by_the_rates_of_other_stages() {
    // By its tokens it holds up nothing; but it does a tenth of what short ones do.
    let mut world = world(&tailed(40, 8), 4);
    assert!(invited(&world.commands).is_empty());
    let short = assigned(&world.commands)[1].clone();
    tell(&mut world.machine, (short.1, short.2), 1, 1_000.0);
    tell(&mut world.machine, world.long, 1, 100.0);
    let commands = world.machine.finish((short.1, short.2), result(&short.0, 10, 0.9));
    let (helper, lease) = invited(&commands)[0];
    // Its new group has said nothing yet.
    let commands = world.machine.apply(Event::Prepared { worker: helper, lease });
    assert!(released(&commands).is_empty(), "{commands:?}");
    assert!(why(&world.machine, &world.job, "long").holds_up.is_some());
}

#[test]
fn a_helper_that_fails_is_no_reason_to_wait_for_it() {
    let mut world = world(&tailed(1_000, 8), 4);
    let (helper, lease) = invited(&world.commands)[0];
    let commands = world.machine.fail((helper, lease), failure(graftwork_shared::assignment::Blame::Machine));
    assert!(invited(&commands).is_empty() && started(&commands).len() == 1, "its place is a short one's: {commands:?}");
    assert!(why(&world.machine, &world.job, "long").holds_up.is_none());
}

#[test]
fn a_stage_that_may_not_have_helpers_gets_none_and_short_ones_start() {
    let mut alone = tailed(1_000, 8);
    alone.job.resources.workers_per_task = Some(1);
    alone.digest = alone.job.digest();
    let world = world(&alone, 4);
    assert_eq!((invited(&world.commands).len(), started(&world.commands).len()), (0, 4));
}
