//! Three members of which two do not reach each other, while all reach the coordinator: the stage goes on, whoever they are
//! and however the cut shows.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_scheduler::{Command, Event};
use graftwork_shared::{event::StepReport, id::WorkerId, view::StageState};

use crate::{
    fixture::{grouped, invited, result},
    group::{World, fences},
};

/// How a cut shows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shows {
    /// One of the two gives up, and says so.
    Breaks,
    /// Everybody waits for everybody, and says so.
    Stands,
}

/// Members connect, or wait, for so long before they say anything.
const PATIENCE_S: u64 = 20;

/// A checkpoint's distance.
const CHECKPOINT_S: u64 = 60;

/// Each member makes so many lanes a second; an update has twelve.
const LANES: u64 = 12;

const STEPS: u64 = 300;

/// What became of the stage.
#[derive(Debug)]
struct Course {
    seconds: u64,
    /// Of them, in which an update could be made.
    training: u64,
    /// By how many members, of the seconds in which an update could be made.
    together: BTreeMap<usize, u64>,
    /// Groups with both of the pair that were formed between two accepted checkpoints, at most.
    formed_in_vain: u32,
    failures: usize,
}

/// Trains a stage with three members, two of which are cut off from each other after a while.
fn course(pair: [usize; 2], shows: Shows, steps: u64) -> Course {
    let mut world = World::of(&grouped(12, steps), 3);
    let (lease, members) = (world.lease, world.members.clone());
    let cut = pair.map(|member| members[member]);
    let mut prepares: BTreeSet<WorkerId> = BTreeSet::new();
    let (mut lanes_done, mut checkpointed_s, mut formed_s, mut epoch) = (0, 0, 0, 0);
    let (mut in_vain, mut course) =
        (0, Course { seconds: 0, training: 0, together: BTreeMap::new(), formed_in_vain: 0, failures: 0 });
    for second in 1..40 * steps {
        world.machine.now_ms += 1_000;
        let now = world.now();
        let is_cut = second > 5 && cut.iter().all(|worker| now.contains(worker));
        if world.epoch() != epoch {
            (epoch, formed_s) = (world.epoch(), second);
            in_vain += u32::from(is_cut);
        }
        let mut events = Vec::new();
        for worker in &members {
            let held = world.machine.scheduler.holds(*worker, lease).map(|_| lease);
            events.push(Event::Heartbeat { worker: *worker, leases: held.into_iter().collect() });
        }
        let stands = is_cut && second - formed_s >= PATIENCE_S;
        let step = lanes_done / LANES;
        if !is_cut {
            course.training += 1;
            *course.together.entry(now.len()).or_default() += 1;
            lanes_done += now.len() as u64;
            let report = StepReport { step: lanes_done / LANES, group: epoch, ..StepReport::default() };
            events.push(Event::Stepped { worker: now[0], lease, report });
        } else if stands && shows == Shows::Breaks {
            events.push(Event::Broken { worker: cut[1], lease, epoch, reason: "rank 0 did not come".to_owned() });
        } else if stands {
            events.extend(now.iter().map(|worker| Event::Waits { worker: *worker, lease, epoch, step }));
        }
        events.extend(std::mem::take(&mut prepares).into_iter().map(|worker| Event::Prepared { worker, lease }));
        let mut commands: Vec<Command> = events.into_iter().flat_map(|event| world.machine.apply(event)).collect();
        let step = lanes_done / LANES;
        if !is_cut && step >= steps {
            world.machine.finish((now[0], lease), result("a", steps, 0.9));
            assert!(matches!(world.machine.state_of(&world.job, "a"), StageState::Trained { .. }));
            (course.seconds, course.failures) = (second, world.failures());
            assert!(!world.attempts_failed());
            return course;
        }
        if !is_cut && second - checkpointed_s >= CHECKPOINT_S && step > 0 {
            checkpointed_s = second;
            course.formed_in_vain = course.formed_in_vain.max(std::mem::take(&mut in_vain));
            commands.extend(world.machine.checkpoint((now[0], lease), step));
        }
        prepares.extend(invited(&commands).into_iter().map(|(worker, _)| worker));
        prepares.retain(|worker| !fences(&commands).contains(&(*worker, lease)));
    }
    panic!("{pair:?} {shows:?}: the stage does not end: {course:?}");
}

#[test]
fn a_group_of_three_in_which_one_pair_is_cut_goes_on() {
    for pair in [[0, 1], [0, 2], [1, 2]] {
        for shows in [Shows::Breaks, Shows::Stands] {
            let course = course(pair, shows, STEPS);
            println!("{pair:?} {shows:?}: {course:?}");
            // Three that break, and one for each that joins meanwhile.
            assert!(course.formed_in_vain <= 5, "{pair:?} {shows:?}: between two checkpoints, {course:?}");
            assert_eq!(course.failures, 0, "nobody is blamed");
            let alone = STEPS * LANES;
            assert!(course.seconds < alone * 3 / 4, "{pair:?} {shows:?}: alone it takes {alone} s, {course:?}");
        }
    }
}
