//! Measured rates: where stages go, whose lanes move, and what explain says of it; one promise a test.

use std::time::Duration;

use graftwork_scheduler::{Command, Event, OtherClass, OtherVersion, Slow, StageExplanation, Versions, WorkerInfo};
use graftwork_shared::{
    assignment::Holdings,
    event::StepReport,
    id::{JobId, LeaseId, WorkerId},
    recipe::NumericClass,
};

use crate::{
    fixture::{Machine, assigned, class, grouped, info, invited, name, plan, result, stage},
    group::{World, keyed, places, reasons, released},
    swept::{Run, swept, whole},
};

fn report(step: u64, lanes: u32, computing: f64) -> StepReport {
    StepReport {
        step,
        lanes,
        exchange_wait: 1.0 - computing,
        examples_per_second: 16.0,
        tokens_per_second: 320.0,
        ..StepReport::default()
    }
}

fn tell(machine: &mut Machine, (worker, lease): (WorkerId, LeaseId), report: StepReport) -> Vec<Command> {
    machine.apply(Event::Stepped { worker, lease, report })
}

fn explained(machine: &Machine, job: &JobId, stage: &str) -> StageExplanation {
    let stages = machine.scheduler.explain(job).unwrap().stages;
    stages.into_iter().find(|explained| explained.stage == name(stage)).unwrap()
}

fn shares(commands: &[Command]) -> Vec<Vec<u32>> {
    let shares = commands.iter().filter_map(|command| match command {
        Command::Form { shares, .. } => Some(shares.clone()),
        _ => None,
    });
    shares.collect()
}

/// All members tell, step by step, how long they compute; gives what was commanded.
fn run(world: &mut World, steps: std::ops::Range<u64>, members: &[(u32, f64)]) -> Vec<Command> {
    run_at(100, world, steps, members)
}

/// Of updates that take so many milliseconds.
fn run_at(step_ms: u64, world: &mut World, steps: std::ops::Range<u64>, members: &[(u32, f64)]) -> Vec<Command> {
    let mut all = Vec::new();
    for step in steps {
        world.machine.now_ms += step_ms;
        for (worker, (lanes, computing)) in world.members.clone().into_iter().zip(members) {
            all.extend(tell(&mut world.machine, (worker, world.lease), report(step, *lanes, *computing)));
        }
    }
    all
}

#[test]
fn a_straggler_gets_fewer_lanes_once_it_was_slow_for_long_enough() {
    let mut world = World::of(&grouped(8, 1_000), 2);
    let [first, second] = world.members[..] else { panic!() };
    assert!(places(&run(&mut world, 1..20, &[(4, 0.2), (4, 0.5)])).is_empty(), "not after a few updates");
    let commands = run(&mut world, 20..40, &[(4, 0.2), (4, 0.5)]);
    assert_eq!(places(&commands), [(first, 2, 0, 2, false), (second, 2, 1, 2, false)], "between two updates");
    assert_eq!(shares(&commands), [[6, 2], [6, 2]], "lanes in proportion to their rates, in waves of two threads");
    assert_eq!(reasons(&commands), [format!("lanes move: {second} takes 2.5 times as long")]);
    assert_eq!((world.failures(), world.now()), (0, vec![first, second]));
    // Now both compute as long, and the slow one is known to be slow: nothing changes.
    assert!(places(&run(&mut world, 40..500, &[(6, 0.6), (2, 0.5)])).is_empty());
    let slow = explained(&world.machine, &world.job, "a").why.slow;
    let Some(Slow::Straggler { worker, times, lanes: (2, 8) }) = slow.last().cloned() else { panic!("{slow:?}") };
    assert!(worker == second && (2.4..2.6).contains(&times), "{times}");
    // A member that comes back hears the same shares.
    world.lose_link(1);
    assert_eq!(shares(&world.come_back(1)), [[6, 2]]);
}

#[test]
fn lanes_go_back_when_nobody_is_slow_any_more_but_not_in_turns() {
    let mut world = World::of(&grouped(8, 10_000), 2);
    run(&mut world, 1..30, &[(4, 0.2), (4, 0.5)]);
    assert_eq!(world.epoch(), 2);
    assert!(places(&run(&mut world, 30..200, &[(6, 0.8), (2, 0.3)])).is_empty(), "not within 30 s");
    let commands = run(&mut world, 200..400, &[(6, 0.8), (2, 0.3)]);
    assert_eq!((shares(&commands), world.epoch()), (vec![Vec::new(); 2], 3));
    assert_eq!(reasons(&commands), ["lanes move: none is slow any more"]);
    let mut formed = 0;
    for round in 0..40_u64 {
        let slow = if round % 2 == 0 { 0.5 } else { 0.2 };
        let commands = run(&mut world, 400 + round * 100..500 + round * 100, &[(4, 0.2), (4, slow)]);
        formed += places(&commands).len() / 2;
    }
    assert!(formed <= 4, "400 s of whims moved lanes {formed} times");
}

#[test]
fn a_member_without_which_the_group_is_faster_gives_the_lease_back() {
    let mut world = World::of(&grouped(2, 1_000), 2);
    let [first, second] = world.members[..] else { panic!() };
    let commands = run(&mut world, 1..30, &[(1, 0.2), (1, 0.95)]);
    assert_eq!(released(&commands), [(second, world.lease)]);
    let commands = world.machine.apply(Event::Released { worker: second, lease: world.lease });
    assert_eq!(places(&commands), [(first, 2, 0, 1, true)]);
    assert!(invited(&commands).is_empty(), "nor is it asked again at once");
    assert_eq!(world.failures(), 0);
}

#[test]
fn a_hiccup_over_many_quick_updates_makes_no_straggler() {
    let mut world = World::of(&grouped(2, 10_000), 2);
    assert!(released(&run_at(4, &mut world, 1..400, &[(1, 0.2), (1, 0.95)])).is_empty(), "within 2 s");
    assert!(released(&run_at(4, &mut world, 400..410, &[(1, 0.5), (1, 0.5)])).is_empty());
    assert!(released(&run_at(4, &mut world, 410..800, &[(1, 0.2), (1, 0.95)])).is_empty(), "counted anew");
    assert_eq!(released(&run_at(4, &mut world, 800..920, &[(1, 0.2), (1, 0.95)])).len(), 1);
}

#[test]
fn nobody_is_a_straggler_where_all_wait_for_messages() {
    let mut world = World::of(&grouped(2, 1_000), 2);
    let commands = run_at(800, &mut world, 1..100, &[(1, 0.01), (1, 0.15)]);
    assert!(released(&commands).is_empty() && places(&commands).is_empty(), "{commands:?}");
}

#[test]
fn members_of_equal_speed_and_unequal_shares_are_no_stragglers() {
    let mut world = World::of(&grouped(8, 1_000), 3);
    // 8 lanes on 3 members of 2 threads: one wave, or two.
    assert!(places(&run(&mut world, 1..100, &[(2, 0.4), (3, 0.8), (3, 0.8)])).is_empty());
    // What waits for rows, or for others, does not compute.
    let mut world = World::of(&grouped(8, 1_000), 2);
    for step in 1..100 {
        let [first, second] = world.members[..] else { panic!() };
        let lease = world.lease;
        tell(&mut world.machine, (first, lease), report(step, 4, 0.3));
        let waits = StepReport { input_wait: 0.6, ..report(step, 4, 0.9) };
        assert!(places(&tell(&mut world.machine, (second, lease), waits)).is_empty());
    }
}

#[test]
fn a_stage_goes_to_the_faster_of_two_workers_that_stand_equal() {
    let mut machine = Machine::new();
    machine.submit(&plan("first", vec![stage("a", &[], 100), stage("b", &[], 100)]));
    let (slow, commands) = machine.join(keyed(0));
    let (stage_of_slow, _, slow_lease) = assigned(&commands)[0].clone();
    let (fast, commands) = machine.join(keyed(1));
    let (stage_of_fast, _, fast_lease) = assigned(&commands)[0].clone();
    let rate = |tokens_per_second| StepReport { tokens_per_second, ..report(10, 2, 1.0) };
    tell(&mut machine, (slow, slow_lease), rate(100.0));
    tell(&mut machine, (fast, fast_lease), rate(300.0));
    machine.finish((slow, slow_lease), result(&stage_of_slow, 100, 0.9));
    machine.finish((fast, fast_lease), result(&stage_of_fast, 100, 0.9));
    let second = plan("second", vec![stage("long", &[], 900), stage("short", &[], 9)]);
    let commands = machine.apply(Event::Submitted { plan: Box::new(second.clone()), gone: Vec::new() });
    let work = assigned(&machine.nothing_to_reuse(commands));
    let to = |stage: &str| work.iter().find(|(name, ..)| name == stage).unwrap().1;
    assert_eq!((to("long"), to("short")), (fast, slow), "the longest chain has the first choice");
    let here = explained(&machine, &second.id(), "long").why.here.unwrap();
    assert_eq!((here.worker, here.of, here.speed.map(f64::round)), (fast, 2, Some(150.0)));
    let words = format!(
        "{fast} was chosen of 2 workers with room: it had nothing else to do, 150 tokens a second on a core, the base \
         model was loaded, the rows were there"
    );
    assert_eq!(here.to_string(), words);
}

#[test]
fn among_workers_of_equal_speed_the_base_model_counts_and_then_the_rows() {
    let mut machine = Machine::new();
    machine.submit(&plan("first", vec![stage("a", &[], 100)]));
    let (_, commands) = machine.join(keyed(0));
    let held = assigned(&commands)[0].2;
    // The one that has it is not the first by number.
    let (second, _) = machine.join(keyed(1));
    let (third, _) = machine.join(keyed(2));
    machine.finish((WorkerId(1), held), result("a", 100, 0.9));
    machine.apply(Event::WorkerLeft { worker: WorkerId(1), reason: "stopped".to_owned() });
    let mut other = stage("b", &[], 100);
    other.recipe.base_model = graftwork_shared::digest::Digest::of(b"another");
    let commands = machine.apply(Event::Submitted {
        plan: Box::new(plan("other", vec![other.clone(), stage("c", &[], 90)])),
        gone: Vec::new(),
    });
    let work = assigned(&machine.nothing_to_reuse(commands));
    assert_eq!(work.iter().map(|(_, worker, _)| *worker).collect::<Vec<_>>(), [second, third]);
    for (stage, worker, lease) in work {
        machine.finish((worker, lease), result(&stage, if stage == "c" { 90 } else { 100 }, 0.9));
    }
    let commands =
        machine.apply(Event::Submitted { plan: Box::new(plan("again", vec![stage("d", &[], 100)])), gone: Vec::new() });
    let work = assigned(&machine.nothing_to_reuse(commands));
    assert_eq!(work[0].1, third, "it has the base model of this one");
}

#[test]
fn what_a_worker_says_that_it_holds_counts_before_it_was_handed_anything() {
    let mut machine = Machine::new();
    let wanted = stage("a", &[], 100);
    let (_, second) = (machine.join(keyed(0)), machine.join(keyed(1)).0);
    let base_models = [wanted.recipe.base_model].into();
    let holdings = Holdings { base_models, ..Holdings::default() };
    machine.apply(Event::Holds { worker: second, holdings: holdings.clone() });
    let commands =
        machine.apply(Event::Submitted { plan: Box::new(plan("first", vec![wanted.clone()])), gone: Vec::new() });
    let (_, worker, lease) = assigned(&machine.nothing_to_reuse(commands))[0].clone();
    assert_eq!(worker, second);
    // What comes with a lease is not forgotten when the worker has not loaded it yet.
    machine.apply(Event::Holds { worker, holdings: Holdings::default() });
    machine.finish((worker, lease), result("a", 100, 0.9));
    let commands =
        machine.apply(Event::Submitted { plan: Box::new(plan("then", vec![stage("b", &[], 100)])), gone: Vec::new() });
    assert_eq!(assigned(&machine.nothing_to_reuse(commands))[0].1, second);
}

#[test]
fn explain_says_what_is_needed_what_is_free_who_is_ahead_and_when_it_may_start() {
    let mut machine = Machine::new();
    machine.submit(&plan("running", vec![stage("a", &[], 100)]));
    let (worker, commands) = machine.join(WorkerInfo { memory_bytes: 5 << 20, ..info(1) });
    let lease = assigned(&commands)[0].2;
    let waiting = machine.submit(&plan("waiting", vec![stage("b", &[], 200), stage("c", &[], 100)]));
    let why = explained(&machine, &waiting, "c").why;
    assert_eq!(why.earliest_ms, None, "no rate is known");
    // 10 of 100 updates of 16 rows, 16 rows a second.
    tell(&mut machine, (worker, lease), report(10, 2, 1.0));
    let why = explained(&machine, &waiting, "b").why;
    let rows = f64::from(stage("b", &[], 1).recipe.training.batch_size);
    let expected = Duration::from_secs_f64(90.0 * rows / 16.0);
    assert_eq!(why.earliest_in_ms.map(Duration::from_millis), Some(expected));
    let ahead = explained(&machine, &waiting, "c").why.ahead.unwrap();
    assert_eq!((ahead.stages, ahead.first), (1, vec![(waiting.clone(), name("b"))]));
    let free = why.free.unwrap();
    assert_eq!((free.workers, free.places, free.free_places, free.memory_bytes), (1, 1, 0, 4 << 20));
    let needs = why.needs.unwrap();
    assert_eq!((needs.device.as_str(), needs.memory_bytes, needs.class), ("cpu", 1 << 20, None));
    let text = machine.scheduler.explain(&waiting).unwrap().to_string();
    assert!(text.contains("it needs cpu and 1 MiB, and 0 of 1 places are free; it may start in "), "{text}");
    // The page shows the same words.
    let view = machine.scheduler.view(&waiting).unwrap();
    assert!(view.stages.iter().all(|stage| text.contains(&stage.why.split("; ").next().unwrap_or("?").to_owned())));
    assert!(
        view.stages[0].why.contains("it needs cpu and 1 MiB, and 0 of 1 places are free"),
        "{}",
        view.stages[0].why
    );
    let json = serde_json::to_string(&machine.scheduler.explain(&waiting).unwrap()).unwrap();
    let back: graftwork_scheduler::Explanation = serde_json::from_str(&json).unwrap();
    assert_eq!(back, machine.scheduler.explain(&waiting).unwrap());
}

#[test]
fn a_trial_is_expected_to_leave_its_place_at_its_rung() {
    let mut run = Run::start(swept(3, whole(2)), &[1]);
    let first = run.next("s-trial-1").unwrap();
    assert_eq!(first.until, Some(10));
    tell(&mut run.machine, (first.worker, first.lease), report(5, 2, 1.0));
    let why = explained(&run.machine, &run.job, "s-trial-2").why;
    // 5 of the 10 updates up to its rung, of 40 in all, with 16 rows a second.
    let rows = f64::from(stage("b", &[], 1).recipe.training.batch_size);
    assert_eq!(why.earliest_in_ms.map(Duration::from_millis), Some(Duration::from_secs_f64(5.0 * rows / 16.0)));
}

#[test]
fn explain_says_that_a_stage_waits_for_rows_or_for_the_other_workers() {
    let mut world = World::of(&grouped(8, 1_000), 2);
    let (first, lease) = (world.members[0], world.lease);
    tell(&mut world.machine, (first, lease), StepReport { input_wait: 0.5, ..report(5, 4, 0.6) });
    let why = explained(&world.machine, &world.job, "a").why;
    assert_eq!(why.slow[0], Slow::Input { share: 0.5 });
    assert!(matches!(why.slow[1], Slow::Communication { share } if (share - 0.4).abs() < 1e-9));
    let text = why.to_string();
    let words =
        "slow: it waits for rows 50 % of the time; slow: exchanges with the other workers take 40 % of the time";
    assert!(text.ends_with(words), "{text}");
}

#[test]
fn an_idle_worker_of_another_class_is_named_where_it_could_have_helped() {
    let mut world = World::of(&grouped(2, 1_000), 1);
    let other_class = |world: &World| explained(&world.machine, &world.job, "a").why.other_class;
    assert!(other_class(&world).is_empty());
    let (other, commands) = world.machine.join(WorkerInfo { class: class("avx512"), ..keyed(1) });
    assert!(invited(&commands).is_empty());
    let [own, needs] = ["avx512", "avx2"].map(|instructions| class(instructions).to_string());
    let expected = OtherClass { worker: other, class: own.clone(), needs: needs.clone() };
    assert_eq!(other_class(&world), [expected]);
    let sentence = world.machine.scheduler.explain(&world.job).unwrap().to_string();
    let words = format!("{other} is idle and may not help: it computes on {own}, and equal bytes need {needs}");
    assert!(sentence.contains(&words), "{sentence}");
    // One of another device, and one with work of its own, are none.
    let gpu = WorkerInfo { class: NumericClass { device: "cuda:H100".to_owned(), ..class("avx512") }, ..keyed(2) };
    world.machine.join(gpu);
    assert_eq!(other_class(&world).len(), 1);
    let plan = Box::new(plan("another", vec![stage("b", &[], 100)]));
    let commands = world.machine.apply(Event::Submitted { plan, gone: Vec::new() });
    world.machine.nothing_to_reuse(commands);
    assert!(other_class(&world).is_empty(), "it has work of its own");
    // A group that is whole needs nobody.
    let (second, _) = world.machine.join(keyed(3));
    world.machine.apply(Event::Prepared { worker: second, lease: world.lease });
    world.machine.join(WorkerInfo { class: class("avx512"), ..keyed(4) });
    assert_eq!((world.now().len(), other_class(&world)), (2, Vec::new()));
}

#[test]
fn an_idle_worker_that_the_members_do_not_reach_is_named_where_it_could_have_helped() {
    let mut world = World::of(&grouped(2, 1_000), 1);
    let (other, commands) = world.machine.join(WorkerInfo { reached_on: "over TLS".to_owned(), ..keyed(1) });
    assert!(invited(&commands).is_empty());
    let sentence = world.machine.scheduler.explain(&world.job).unwrap().to_string();
    let words =
        format!("{other} is idle and may not help: other members reach it over TLS, and the stage's in plain text");
    assert!(sentence.contains(&words), "{sentence}");
}

#[test]
fn an_idle_worker_of_another_version_is_named_where_it_could_have_helped() {
    for (numerics, exchange, words) in [(2, 1, "numerics 2 and exchange 1"), (1, 0, "numerics 1 and exchange unknown")]
    {
        let mut world = World::of(&grouped(2, 1_000), 1);
        let (other, commands) = world.machine.join(WorkerInfo { numerics_version: numerics, exchange, ..keyed(1) });
        assert!(invited(&commands).is_empty());
        let explained = explained(&world.machine, &world.job, "a");
        let needs = Versions { numerics: 1, exchange: 1 };
        let expected = OtherVersion { worker: other, versions: Versions { numerics, exchange }, needs };
        assert_eq!(explained.why.other_version, [expected]);
        let sentence = world.machine.scheduler.explain(&world.job).unwrap().to_string();
        let words = format!(
            "{other} is idle and may not help: its program has {words}, and members of one group must have numerics 1 and \
             exchange 1"
        );
        assert!(sentence.contains(&words), "{sentence}");
    }
}
