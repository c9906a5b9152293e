//! Pre-emption: who gives its place to whom, and that there is an end to it; one promise a test.

use graftwork_scheduler::{Command, Event, Fact, Plan, WorkerInfo};
use graftwork_shared::{
    event::{EventKind, StepReport},
    id::{JobId, LeaseId, WorkerId},
    view::StageState,
};

use crate::{
    fixture::{Machine, assigned, info, plan, result, stage},
    group::{fences, keyed, released},
};

fn of(priority: i32, job: &str, stages: &[(&str, u64)]) -> Plan {
    let mut plan = plan(job, stages.iter().map(|(text, steps)| stage(text, &[], *steps)).collect());
    plan.job.priority = priority;
    plan
}

fn submit(machine: &mut Machine, plan: &Plan) -> (JobId, Vec<Command>) {
    let commands = machine.apply(Event::Submitted { plan: Box::new(plan.clone()), gone: Vec::new() });
    (plan.id(), machine.nothing_to_reuse(commands))
}

fn step(machine: &mut Machine, (worker, lease): (WorkerId, LeaseId), step: u64) -> Vec<Command> {
    machine.apply(Event::Stepped { worker, lease, report: StepReport { step, ..StepReport::default() } })
}

fn preempted(machine: &Machine) -> usize {
    machine.facts.iter().filter(|fact| matches!(fact, Fact::StagePreempted { .. })).count()
}

/// Stages of a job of priority 0, each on a worker of its own.
fn running(stages: &[(&str, u64)]) -> (Machine, JobId, Vec<(String, WorkerId, LeaseId)>) {
    let mut machine = Machine::new();
    let job = machine.submit(&of(0, "plain", stages));
    let work = (0..stages.len()).map(|number| assigned(&machine.join(keyed(number)).1)[0].clone());
    let work = work.collect::<Vec<_>>();
    (machine, job, work)
}

#[test]
fn the_running_stage_of_lower_priority_that_loses_least_checkpoints_and_gives_its_place() {
    let (mut machine, job, work) = running(&[("a", 300), ("b", 200), ("c", 100)]);
    for ((_, worker, lease), done) in work.iter().zip([90, 60, 80]) {
        step(&mut machine, (*worker, *lease), done);
    }
    machine.checkpoint((work[0].1, work[0].2), 85);
    let (urgent, commands) = submit(&mut machine, &of(1, "urgent", &[("x", 10)]));
    assert_eq!(released(&commands), [(work[0].1, work[0].2)], "5 updates are less than 60 or 80");
    let (_, worker, lease) = work[0].clone();
    assert!(released(&machine.apply(Event::Tick)).is_empty(), "it is asked once");
    machine.checkpoint((worker, lease), 91);
    let commands = machine.apply(Event::Released { worker, lease });
    let told = EventKind::Preempted { by_job: urgent.clone(), by: crate::fixture::name("x"), step: 91 };
    assert!(commands.iter().any(|command| matches!(command, Command::Tell { kind, .. } if *kind == told)));
    assert_eq!(assigned(&commands)[0].0, "x");
    let view = machine.scheduler.view(&job).unwrap().stages[0].clone();
    let given = view.preempted.unwrap();
    assert_eq!((given.times, given.by_job, given.step), (1, urgent, 91));
    let explained = machine.scheduler.explain(&job).unwrap();
    assert!(explained.stages[0].failures.is_empty(), "it costs no attempt");
    assert!(explained.to_string().contains("its place went to x of job"), "{explained}");
    // It goes on from its checkpoint when there is room again.
    let (_, worker, lease) = assigned(&commands)[0].clone();
    let commands = machine.finish((worker, lease), result("x", 10, 0.9));
    assert_eq!(assigned(&commands)[0].0, "a");
    assert!(matches!(machine.state_of(&job, "a"), StageState::Running { checkpoint_step: 91, .. }));
    Machine::recover(machine.facts, 90_000);
}

#[test]
fn nothing_is_taken_from_the_same_priority_or_while_there_is_room() {
    let (mut machine, _, _) = running(&[("a", 300)]);
    let (_, commands) = submit(&mut machine, &of(0, "same", &[("x", 10)]));
    assert!(released(&commands).is_empty());
    let (mut machine, _, _) = running(&[("a", 300)]);
    machine.join(info(1));
    let (_, commands) = submit(&mut machine, &of(1, "urgent", &[("x", 10)]));
    assert!(released(&commands).is_empty() && assigned(&commands).len() == 1);
}

#[test]
fn each_urgent_stage_takes_one_place_and_no_more() {
    let (mut machine, _, work) = running(&[("a", 400), ("b", 300), ("c", 200), ("d", 100)]);
    let (_, commands) = submit(&mut machine, &of(1, "urgent", &[("x", 20), ("y", 10)]));
    assert_eq!(released(&commands).len(), 2);
    for (worker, lease) in released(&commands) {
        let commands = machine.apply(Event::Released { worker, lease });
        assert_eq!((assigned(&commands).len(), released(&commands).len()), (1, 0), "{commands:?}");
    }
    assert_eq!((preempted(&machine), work.len()), (2, 4));
}

#[test]
fn a_place_that_comes_anyway_is_waited_for() {
    let (mut machine, job, work) = running(&[("a", 300), ("b", 200)]);
    machine.apply(Event::Cancel { job, reason: "by the user".to_owned() });
    submit(&mut machine, &of(0, "plain again", &[("c", 100)]));
    let commands = submit(&mut machine, &of(1, "urgent", &[("x", 10)])).1;
    assert!(released(&commands).is_empty(), "the workers drop what was cancelled");
    let (_, worker, _) = work[0].clone();
    assert_eq!(assigned(&machine.apply(Event::Heartbeat { worker, leases: Vec::new() }))[0].0, "x");
}

#[test]
fn a_group_gives_its_place_as_a_whole() {
    let mut world = crate::group::World::of(&crate::fixture::grouped(4, 100), 2);
    let [first, second] = world.members[..] else { panic!() };
    let lease = world.lease;
    let commands = submit(&mut world.machine, &of(1, "urgent", &[("x", 10), ("y", 10)])).1;
    // The helper is taken back for the one, and what is left goes for the other.
    assert_eq!(released(&commands), [(second, lease), (first, lease)]);
    let commands = world.machine.apply(Event::Released { worker: second, lease });
    assert_eq!(assigned(&commands).len(), 1);
    let commands = world.machine.apply(Event::Released { worker: first, lease });
    assert_eq!((assigned(&commands).len(), preempted(&world.machine)), (1, 1));
}

#[test]
fn whoever_comes_back_after_its_link_broke_is_asked_again() {
    let (mut machine, _, work) = running(&[("a", 300)]);
    let (_, worker, lease) = work[0].clone();
    submit(&mut machine, &of(1, "urgent", &[("x", 10)]));
    machine.apply(Event::LinkLost { worker, reason: "connection reset".to_owned() });
    let commands = machine.apply(Event::WorkerJoined { session: 2, info: keyed(0), leases: vec![lease] });
    assert_eq!(released(&commands), [(worker, lease)]);
}

#[test]
fn whoever_does_not_answer_in_time_is_fenced_without_blame() {
    let (mut machine, job, work) = running(&[("a", 300)]);
    let (_, worker, lease) = work[0].clone();
    submit(&mut machine, &of(1, "urgent", &[("x", 10)]));
    let mut commands = Vec::new();
    for _ in 0..30 {
        commands = machine.after(1_000, Event::Heartbeat { worker, leases: vec![lease] });
    }
    assert_eq!((fences(&commands)[0], preempted(&machine)), ((worker, lease), 1));
    assert!(machine.scheduler.explain(&job).unwrap().stages[0].failures.is_empty());
    let commands = machine.apply(Event::Heartbeat { worker, leases: Vec::new() });
    assert_eq!(assigned(&commands)[0].0, "x");
}

#[test]
fn a_stage_that_gave_its_place_is_safe_until_it_has_moved_on() {
    let (mut machine, job, work) = running(&[("a", 300)]);
    let (_, worker, lease) = work[0].clone();
    machine.checkpoint((worker, lease), 50);
    submit(&mut machine, &of(1, "first", &[("x", 10)]));
    let commands = machine.apply(Event::Released { worker, lease });
    let commands = machine.finish((worker, assigned(&commands)[0].2), result("x", 10, 0.9));
    let (again, _, lease) = assigned(&commands)[0].clone();
    assert_eq!(again, "a");
    let (_, commands) = submit(&mut machine, &of(1, "second", &[("y", 10)]));
    assert!(released(&commands).is_empty(), "it has not moved on");
    let told = machine.scheduler.explain(&job).unwrap().to_string();
    assert!(told.contains("step 50 of 300 is safe"), "{told}");
    assert_eq!(released(&machine.checkpoint((worker, lease), 60)), [(worker, lease)]);
    let commands = machine.apply(Event::Released { worker, lease });
    assert_eq!((assigned(&commands)[0].0.as_str(), preempted(&machine)), ("y", 2));
}

#[test]
fn jobs_of_many_priorities_on_one_place_do_not_take_it_from_each_other_in_turns() {
    let mut machine = Machine::new();
    let jobs: Vec<JobId> =
        (0..6).map(|priority| machine.submit(&of(priority, &format!("job {priority}"), &[("s", 100)]))).collect();
    let (worker, commands) = machine.join(info(1));
    let mut commands = commands;
    let mut held = assigned(&commands).pop().map(|(_, _, lease)| (lease, 0));
    for turn in 0..200_u64 {
        // Each urgent job fails a little, so that others get in between.
        if let Some((lease, trained)) = held {
            let asked = released(&commands).contains(&(worker, lease));
            commands = if asked {
                held = None;
                machine.apply(Event::Released { worker, lease })
            } else if trained == 3 {
                held = None;
                machine.finish((worker, lease), result("s", 100, 0.9))
            } else if turn % 7 == 3 {
                held = None;
                let failure = crate::group::failure(graftwork_shared::assignment::Blame::Machine);
                machine.fail((worker, lease), failure)
            } else {
                held = Some((lease, trained + 1));
                machine.after(300, Event::Heartbeat { worker, leases: vec![lease] })
            };
        } else {
            commands = machine.after(300, Event::Heartbeat { worker, leases: Vec::new() });
        }
        if let Some((_, _, lease)) = assigned(&commands).pop() {
            held = Some((lease, 0));
        }
    }
    let trained = |job: &&JobId| !matches!(machine.state_of(job, "s"), StageState::Trained { .. });
    assert_eq!(jobs.iter().filter(trained).count(), 0, "all are done");
    assert!(preempted(&machine) <= jobs.len(), "none of them twice without progress: {}", preempted(&machine));
}

#[test]
fn an_urgent_stage_that_no_pre_emption_can_help_takes_nothing() {
    let (mut machine, _, _) = running(&[("a", 300)]);
    let mut large = of(1, "large", &[("x", 10)]);
    large.stages[0].memory_bytes = 4 << 30;
    assert!(released(&submit(&mut machine, &large).1).is_empty());
    let mut machine = Machine::new();
    machine.submit(&of(0, "plain", &[("a", 300)]));
    machine.join(WorkerInfo { slots: 1, ..info(1) });
    let mut cuda = of(1, "cuda", &[("x", 10)]);
    cuda.job.resources.device = graftwork_shared::job::Device::Cuda;
    assert!(released(&submit(&mut machine, &cuda).1).is_empty());
}
