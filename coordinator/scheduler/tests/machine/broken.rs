//! Groups that lose members, break, and are formed again; who may speak for them; one promise a test.

use graftwork_scheduler::{Command, Event};
use graftwork_shared::{assignment::Blame, event::StepReport, view::StageState};

use crate::{
    fixture::{Machine, assigned, grouped, info, invited, plan, result, stage},
    group::{World, failure, fences, keyed, places, reasons},
};

#[test]
fn a_lost_member_costs_no_attempt() {
    let mut world = World::of(&grouped(4, 100), 3);
    let [first, second, third] = world.members[..] else { panic!() };
    let commands = world.leave(1);
    assert_eq!(places(&commands), [(first, 3, 0, 2, true), (third, 3, 1, 2, true)]);
    assert!(reasons(&commands)[0].contains(&format!("{second} (here:1) is gone: killed")), "{commands:?}");
    assert!(!world.attempts_failed());
    assert_eq!((world.now(), world.failures()), (vec![first, third], 0), "and counts nothing");
    let commands = world.machine.finish((first, world.lease), result("a", 100, 0.9));
    assert!(commands.contains(&Command::Accept { worker: first, lease: world.lease, step: 100 }));
    assert_eq!(fences(&commands), [(third, world.lease)], "the others drop the work");
}

#[test]
fn the_next_member_leads_when_the_leader_is_lost() {
    let mut world = World::of(&grouped(4, 100), 3);
    let [_, second, third] = world.members[..] else { panic!() };
    let commands = world.leave(0);
    assert_eq!(places(&commands), [(second, 3, 0, 2, true), (third, 3, 1, 2, true)]);
    let commands = world.machine.checkpoint((second, world.lease), 50);
    assert!(commands.contains(&Command::Accept { worker: second, lease: world.lease, step: 50 }));
    world.leave(2);
    world.leave(1);
    assert!(world.attempts_failed(), "the last one's end is the attempt's end");
}

#[test]
fn a_stage_with_a_healthy_leader_outlives_any_number_of_lost_members() {
    let mut world = World::of(&grouped(8, 100), 7);
    let first = world.members[0];
    for member in 1..=6 {
        world.one_grace_later();
        world.leave(member);
        assert_eq!((world.failures(), world.attempts_failed()), (0, false), "{member} lost");
    }
    assert_eq!(world.now(), [first]);
    let commands = world.machine.finish((first, world.lease), result("a", 100, 0.9));
    assert!(commands.contains(&Command::Accept { worker: first, lease: world.lease, step: 100 }));
}

#[test]
fn a_group_that_loses_member_after_member_gets_no_more_before_there_is_progress() {
    let mut world = World::of(&grouped(8, 100), 1);
    let first = world.members[0];
    let mut asked = 0;
    for number in 1..=9 {
        let (worker, commands) = world.machine.join(keyed(number));
        if invited(&commands).is_empty() {
            break;
        }
        asked += 1;
        world.machine.apply(Event::Prepared { worker, lease: world.lease });
        world.machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
    }
    assert_eq!((asked, world.failures()), (5, 0));
    assert_eq!(invited(&world.machine.checkpoint((first, world.lease), 50)).len(), 1);
}

#[test]
fn a_poisonous_stage_stops_after_five_dead_holders_and_its_job_goes_on() {
    let mut machine = Machine::new();
    let job = machine.submit(&plan("poison", vec![stage("a", &[], 100), stage("b", &[], 90)]));
    let mut deaths = 0;
    let left = loop {
        let (worker, commands) = machine.join(info(1));
        let (name, _, lease) = assigned(&commands)[0].clone();
        if name == "b" {
            break (worker, lease);
        }
        deaths += 1;
        machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
        machine.now_ms += 60_000;
    };
    let StageState::Failed { failure } = machine.state_of(&job, "a") else { panic!() };
    assert_eq!(deaths, 5);
    assert!(failure.message.starts_with("5 attempts failed without progress between them: 1. worker-1"), "{failure:?}");
    machine.finish(left, result("b", 90, 0.9));
    assert!(matches!(machine.state_of(&job, "b"), StageState::Trained { .. }));
}

#[test]
fn a_members_own_failure_leaves_it_out_and_the_users_error_ends_the_stage() {
    let mut world = World::of(&grouped(4, 100), 3);
    let [first, second, third] = world.members[..] else { panic!() };
    let commands = world.machine.fail((second, world.lease), failure(Blame::Machine));
    assert_eq!(places(&commands), [(first, 3, 0, 2, true), (third, 3, 1, 2, true)]);
    assert!(invited(&commands).is_empty(), "not at once");
    let commands = world.machine.after(500, Event::Tick);
    assert_eq!(invited(&commands), [(second, world.lease)], "but after a wait");
    let commands = world.machine.fail((third, world.lease), failure(Blame::User));
    assert_eq!(fences(&commands), [(first, world.lease), (second, world.lease)], "a joiner too");
    assert!(matches!(world.machine.state_of(&world.job, "a"), StageState::Failed { .. }));
}

#[test]
fn a_late_member_cannot_commit() {
    let mut world = World::of(&grouped(4, 100), 3);
    let [first, second, third] = world.members[..] else { panic!() };
    world.lose_link(0);
    world.break_at(1, 2);
    assert_eq!(world.now(), [second, third]);
    let commands = world.come_back(0);
    assert_eq!(fences(&commands), [(first, world.lease)]);
    let late = world.machine.checkpoint((first, world.lease), 50);
    assert_eq!(fences(&late), [(first, world.lease)]);
    let commands = world.machine.finish((first, world.lease), result("a", 100, 0.9));
    assert_eq!(fences(&commands), [(first, world.lease)]);
    assert!(![late, commands.clone()].concat().iter().any(|command| matches!(command, Command::Accept { .. })));
    assert_eq!(world.now(), [second, third], "nothing came of it");
    assert_eq!(invited(&commands), [(first, world.lease)], "it dropped the work, and is free for new");
}

#[test]
fn a_member_that_speaks_for_the_stage_is_put_out() {
    let mut world = World::of(&grouped(4, 100), 3);
    let [first, second, third] = world.members[..] else { panic!() };
    let commands = world.machine.checkpoint((second, world.lease), 50);
    assert_eq!(fences(&commands), [(second, world.lease)]);
    assert_eq!(places(&commands), [(first, 3, 0, 2, true), (third, 3, 1, 2, true)]);
    let (joiner, commands) = world.machine.join(info(1));
    assert_eq!(invited(&commands), [(joiner, world.lease)]);
    let commands = world.machine.finish((joiner, world.lease), result("a", 100, 0.9));
    assert_eq!(fences(&commands), [(joiner, world.lease)]);
    assert!(matches!(world.machine.state_of(&world.job, "a"), StageState::Running { checkpoint_step: 0, .. }));
}

#[test]
fn a_member_that_is_apart_stays_one_and_hears_its_place_again() {
    let mut world = World::of(&grouped(4, 100), 3);
    let [first, second, _] = world.members[..] else { panic!() };
    assert!(places(&world.lose_link(1)).is_empty());
    let commands = world.leave(2);
    assert_eq!(places(&commands), [(first, 3, 0, 2, true), (second, 3, 1, 2, true)]);
    let commands = world.come_back(1);
    assert_eq!(places(&commands), [(second, 3, 1, 2, true)], "the other may have been lost on the way");
    world.lose_link(1);
    world.machine.after(1_000, Event::Heartbeat { worker: first, leases: vec![world.lease] });
    let commands = world.machine.after(500, Event::Tick);
    assert_eq!((places(&commands), world.now()), (vec![(first, 4, 0, 1, true)], vec![first]));
    assert!(!world.attempts_failed());
}

#[test]
fn a_broken_group_is_formed_without_whoever_is_apart() {
    for cause_first in [true, false] {
        let mut world = World::of(&grouped(4, 100), 3);
        let [first, second, third] = world.members[..] else { panic!() };
        let commands = if cause_first {
            world.lose_link(1);
            world.break_at(2, 2)
        } else {
            assert!(places(&world.break_at(2, 2)).is_empty(), "the cause may come a moment later");
            world.lose_link(1)
        };
        assert_eq!(places(&commands), [(first, 3, 0, 2, true), (third, 3, 1, 2, true)]);
        let expected = format!("{second} cannot be reached, and the group broke: {third} says: peer closed");
        assert_eq!(reasons(&commands), [expected]);
        assert!(places(&world.break_at(0, 2)).is_empty(), "of an older group nothing is heard");
        assert_eq!((world.epoch(), world.failures()), (3, 0), "two are healthy");
    }
}

#[test]
fn a_group_that_breaks_without_a_cause_tries_again_and_in_the_end_goes_on_alone() {
    let mut world = World::of(&grouped(4, 100), 3);
    let [first, second, third] = world.members[..] else { panic!() };
    for epoch in [2, 3] {
        assert!(places(&world.break_at(1, epoch)).is_empty());
        assert_eq!(world.machine.scheduler.next_deadline(), Some(world.machine.now_ms + 250));
        let commands = world.machine.after(250, Event::Tick);
        let next = epoch + 1;
        let expected = [(first, next, 0, 3, true), (second, next, 1, 3, true), (third, next, 2, 3, true)];
        assert_eq!(places(&commands), expected);
    }
    world.break_at(2, 4);
    let commands = world.machine.after(250, Event::Tick);
    assert_eq!(places(&commands), [(first, 5, 0, 1, true)]);
    assert_eq!(fences(&commands), [(second, world.lease), (third, world.lease)]);
    assert!(reasons(&commands)[0].starts_with("3 groups in a row broke"), "{commands:?}");
    assert_eq!(world.failures(), 0, "nobody was lost");
    let idle = |world: &mut World| {
        let heartbeat = |worker| Event::Heartbeat { worker, leases: Vec::new() };
        let more = [second, third].map(|worker| invited(&world.machine.apply(heartbeat(worker))));
        more.concat()
    };
    assert!(idle(&mut world).is_empty(), "not again before there is progress");
    world.machine.checkpoint((first, world.lease), 50);
    assert!(invited(&beat_on(&mut world, 40)).is_empty(), "after progress, and a wait");
    assert_eq!(invited(&beat_on(&mut world, 30)), [(second, world.lease)]);
    world.machine.apply(Event::Prepared { worker: second, lease: world.lease });
    assert_eq!(world.now(), [first, second]);
    assert!(invited(&beat_on(&mut world, 40)).is_empty(), "and the other one not at the same time");
    assert_eq!(invited(&beat_on(&mut world, 30)), [(third, world.lease)]);
}

#[test]
fn a_newcomer_with_which_the_group_breaks_each_time_is_left_out_alone() {
    let mut world = World::of(&grouped(8, 100), 3);
    let (worker, lease, group) = (world.members[0], world.lease, world.epoch());
    let report = StepReport { step: 30, group, ..StepReport::default() };
    world.machine.apply(Event::Stepped { worker, lease, report });
    let (newcomer, _) = world.machine.join(keyed(3));
    world.machine.apply(Event::Prepared { worker: newcomer, lease });
    let mut commands = Vec::new();
    for epoch in 3..6 {
        assert_eq!((world.epoch(), fences(&commands)), (epoch, vec![]));
        world.break_at(1, epoch);
        commands = world.machine.after(250, Event::Tick);
    }
    assert_eq!((world.now(), fences(&commands)), (world.members, vec![(newcomer, lease)]));
}

/// Members and those that were beat each second, for so many.
fn beat_on(world: &mut World, seconds: u64) -> Vec<Command> {
    let mut commands = Vec::new();
    for _ in 0..seconds {
        world.machine.now_ms += 1_000;
        for worker in world.members.clone() {
            let leases = world.machine.scheduler.holds(worker, world.lease).map(|_| world.lease);
            commands.extend(world.machine.apply(Event::Heartbeat { worker, leases: leases.into_iter().collect() }));
        }
    }
    commands
}

#[test]
fn a_checkpoint_between_breaks_forgets_them() {
    let mut world = World::of(&grouped(4, 100), 2);
    for round in 0..6 {
        let epoch = world.epoch();
        world.break_at(1, epoch);
        world.machine.after(250, Event::Tick);
        let (first, lease) = (world.members[0], world.lease);
        world.machine.checkpoint((first, lease), 10 + round);
    }
    assert_eq!(world.now(), world.members);
}

#[test]
fn a_joiner_whose_link_breaks_is_not_waited_for() {
    let mut world = World::of(&grouped(4, 100), 2);
    let (joiner, _) = world.machine.join(keyed(2));
    world.machine.apply(Event::LinkLost { worker: joiner, reason: "connection reset".to_owned() });
    assert_eq!(world.machine.scheduler.holds(joiner, world.lease), None);
    let (next, commands) = world.machine.join(keyed(3));
    assert_eq!(invited(&commands), [(next, world.lease)]);
    // One that comes back before its link was missed begins anew: what it said may be lost.
    let commands = world.come_back(3);
    assert_eq!(fences(&commands), [(next, world.lease)]);
    let commands = world.machine.apply(Event::Heartbeat { worker: next, leases: Vec::new() });
    assert_eq!(invited(&commands), [(next, world.lease)]);
}

#[test]
fn a_group_is_not_formed_with_members_that_cannot_hear_of_it() {
    let mut world = World::of(&grouped(4, 100), 2);
    let (joiner, _) = world.machine.join(keyed(2));
    world.lose_link(1);
    assert!(places(&world.machine.apply(Event::Prepared { worker: joiner, lease: world.lease })).is_empty());
    let commands = world.come_back(1);
    assert_eq!(places(&commands).iter().filter(|place| place.1 == 2).count(), 3, "{commands:?}");
}
