//! Groups whose members cannot reach each other while all of them reach the coordinator; one promise a test.

use graftwork_scheduler::{Command, Event};
use graftwork_shared::{event::StepReport, id::WorkerId};

use crate::{
    fixture::{grouped, invited},
    group::{World, fences, keyed, places, reasons},
};

/// Members beat, one second later; these say that they have waited for too long in this epoch.
fn beat(world: &mut World, waiting: &[usize], epoch: u64) -> Vec<Command> {
    world.machine.now_ms += 1_000;
    let mut commands = Vec::new();
    for (member, worker) in world.members.clone().into_iter().enumerate() {
        let lease = world.lease;
        let held = world.machine.scheduler.holds(worker, lease).map(|_| lease);
        commands.extend(world.machine.apply(Event::Heartbeat { worker, leases: held.into_iter().collect() }));
        if waiting.contains(&member) {
            commands.extend(world.machine.apply(Event::Waits { worker, lease, epoch, step: 30 }));
        }
    }
    commands
}

/// An update that all members made.
fn update(world: &mut World) {
    let (worker, lease, group) = (world.members[0], world.lease, world.epoch());
    world.machine.apply(Event::Stepped {
        worker,
        lease,
        report: StepReport { step: 30, group, ..StepReport::default() },
    });
}

fn others(world: &World, but: WorkerId) -> Vec<WorkerId> {
    world.now().into_iter().filter(|worker| *worker != but).collect()
}

#[test]
fn members_that_all_wait_for_each_other_are_parted_and_the_first_goes_on() {
    let mut world = World::of(&grouped(4, 100), 2);
    let [first, second] = world.members[..] else { panic!() };
    update(&mut world);
    let commands = beat(&mut world, &[0, 1], 1);
    assert_eq!(places(&commands), [(first, 2, 0, 1, true)]);
    assert_eq!(fences(&commands), [(second, world.lease)]);
    let reason = format!(
        "no member computes and each waits for the others after update 30, so some cannot reach each other; {second} \
         left out for 60 s"
    );
    assert_eq!(reasons(&commands), [reason]);
    assert_eq!((world.now(), world.failures(), world.attempts_failed()), (vec![first], 0, false), "nobody is blamed");
}

#[test]
fn a_member_that_computes_is_waited_for_however_long_it_takes() {
    let mut world = World::of(&grouped(4, 100), 3);
    update(&mut world);
    for second in 0..10_000 {
        // The one that computes is another one at times; whoever says that it waits has waited for ten seconds.
        let waiting: &[usize] = match second % 200 {
            0..10 | 100..110 => &[0],
            10..100 => &[0, 1],
            _ => &[0, 2],
        };
        assert!(places(&beat(&mut world, waiting, 2)).is_empty(), "after {second} s");
    }
    assert_eq!(world.now(), world.members);
    assert!(!places(&beat(&mut world, &[0, 1, 2], 2)).is_empty(), "but not once all wait");
}

#[test]
fn the_same_pair_is_not_formed_again_and_again() {
    let mut world = World::of(&grouped(4, 10_000), 2);
    let [first, second] = world.members[..] else { panic!() };
    let mut alone_ms = Vec::new();
    for round in 1..=4 {
        update(&mut world);
        let epoch = world.epoch();
        beat(&mut world, &[0, 1], epoch);
        assert_eq!(world.now(), [first], "round {round}");
        let parted_ms = world.machine.now_ms;
        for _ in 0..400 {
            assert!(invited(&beat(&mut world, &[], 0)).is_empty(), "not before there is progress");
        }
        world.machine.checkpoint((first, world.lease), 50 * round);
        while world.machine.scheduler.holds(second, world.lease).is_none() {
            beat(&mut world, &[], 0);
        }
        alone_ms.push(world.machine.now_ms - parted_ms);
        world.machine.apply(Event::Prepared { worker: second, lease: world.lease });
        assert_eq!(world.now(), [first, second]);
    }
    assert_eq!(alone_ms, [400_000, 400_000, 400_000, 480_000], "after a minute, two and four, and then after eight");
}

#[test]
fn a_newcomer_that_cannot_be_reached_is_left_out_alone() {
    let mut world = World::of(&grouped(8, 100), 3);
    update(&mut world);
    let (newcomer, _) = world.machine.join(keyed(3));
    let commands = world.machine.apply(Event::Prepared { worker: newcomer, lease: world.lease });
    assert_eq!(places(&commands).len(), 4);
    world.members.push(newcomer);
    // Some wait in the older group still, which was to go on until all had heard of the newer one.
    beat(&mut world, &[0, 1], 2);
    let epoch = world.epoch();
    let lease = world.lease;
    world.machine.now_ms += 1_000;
    let mut commands = Vec::new();
    for (worker, of) in world.members.clone().into_iter().zip([epoch - 1, epoch, epoch, epoch]) {
        commands.extend(world.machine.apply(Event::Waits { worker, lease, epoch: of, step: 30 }));
    }
    assert_eq!(fences(&commands), [(newcomer, lease)]);
    assert_eq!(world.now(), world.members[..3], "those that trained together go on together");
    assert_eq!(places(&commands).iter().map(|place| place.4).collect::<Vec<_>>(), [true; 3]);
}

#[test]
fn what_is_said_of_a_group_that_was_ended_at_once_counts_no_more() {
    let mut world = World::of(&grouped(4, 100), 3);
    let first = world.members[0];
    update(&mut world);
    // The third one stood still, so the others waited until it was given up.
    world.leave(2);
    world.members.pop();
    let left = others(&world, first);
    assert_eq!(left.len(), 1);
    let (epoch, late) = (world.epoch(), world.epoch() - 1);
    assert!(places(&beat(&mut world, &[0, 1], late)).is_empty());
    assert!(places(&beat(&mut world, &[0, 1], epoch + 1)).is_empty(), "nor of one that is not there yet");
    assert!(!places(&beat(&mut world, &[0, 1], epoch)).is_empty());
}

#[test]
fn members_that_are_apart_and_joiners_do_not_count() {
    let mut world = World::of(&grouped(4, 100), 2);
    let ([first, second], lease) = (world.members[..].try_into().unwrap(), world.lease);
    update(&mut world);
    let (joiner, _) = world.machine.join(keyed(2));
    world.machine.apply(Event::Waits { worker: joiner, lease, epoch: 1, step: 0 });
    let commands = world.machine.apply(Event::Waits { worker: first, lease, epoch: 1, step: 30 });
    assert!(places(&commands).is_empty(), "a joiner is no member");
    world.machine.apply(Event::Heartbeat { worker: first, leases: vec![lease] });
    world.machine.apply(Event::Waits { worker: second, lease, epoch: 1, step: 30 });
    world.lose_link(1);
    let commands = world.machine.apply(Event::Waits { worker: first, lease, epoch: 1, step: 30 });
    assert!(places(&commands).is_empty());
    assert_eq!(world.now(), world.members);
}
