//! A world of workers that join, group, die, freeze, quarrel, speak late and lie, around coordinators that are killed at any fact:
//! every job ends, nothing commits twice, and every turn keeps every invariant.
//!
//! Time is the simulation's own. A coordinator that is killed loses what its journal did not have: the world cuts the
//! facts at a random length at or behind what was acknowledged, and starts the next one over the fold.

use std::collections::BTreeSet;

use graftwork_scheduler::{Event, Fact};
use graftwork_shared::id::JobId;
use proptest::prelude::*;

use crate::{
    fixture::class,
    world::{World, plans},
};

/// One thing that the world does; the numbers choose among what there is.
#[derive(Clone, Debug)]
enum Deed {
    Submit(usize),
    Join {
        slots: u32,
        wide: bool,
    },
    Kill(usize),
    /// A connection breaks; with it the newest assignment may be lost.
    Break {
        peer: usize,
        forgets: bool,
    },
    /// One of those comes back.
    Return(usize),
    /// The disk loses one of the blobs that are referred to.
    Lose(usize),
    Freeze(usize),
    Thaw(usize),
    Train {
        peer: usize,
        steps: u64,
    },
    Fail {
        peer: usize,
        user: bool,
    },
    /// One worker speaks under whatever lease is live.
    Lie {
        peer: usize,
        lease: usize,
    },
    /// For a moment all goes well: every worker trains a little, and all that is said arrives.
    Calm(u64),
    /// One worker's groups break.
    Quarrel {
        peer: usize,
        late: bool,
    },
    Deliver,
    DeliverTwice,
    Publish {
        fails: bool,
    },
    Wait(u64),
    Drain(usize),
    Cancel(usize),
    Restart,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let any = 0..8_usize;
    let deed = prop_oneof![
        2 => (0..3_usize).prop_map(Deed::Submit),
        4 => (1..4_u32, prop::bool::weighted(0.2)).prop_map(|(slots, wide)| Deed::Join { slots, wide }),
        2 => any.clone().prop_map(Deed::Kill),
        3 => (any.clone(), prop::bool::weighted(0.2)).prop_map(|(peer, forgets)| Deed::Break { peer, forgets }),
        3 => any.clone().prop_map(Deed::Return),
        1 => any.clone().prop_map(Deed::Lose),
        1 => any.clone().prop_map(Deed::Freeze),
        1 => any.clone().prop_map(Deed::Thaw),
        12 => (any.clone(), 1..60_u64).prop_map(|(peer, steps)| Deed::Train { peer, steps }),
        1 => (any.clone(), prop::bool::weighted(0.1)).prop_map(|(peer, user)| Deed::Fail { peer, user }),
        1 => (any.clone(), any.clone()).prop_map(|(peer, lease)| Deed::Lie { peer, lease }),
        3 => (any.clone(), prop::bool::weighted(0.2)).prop_map(|(peer, late)| Deed::Quarrel { peer, late }),
        6 => (1..8_u64).prop_map(Deed::Calm),
        8 => Just(Deed::Deliver),
        1 => Just(Deed::DeliverTwice),
        4 => prop::bool::weighted(0.2).prop_map(|fails| Deed::Publish { fails }),
        4 => (1..6_000_u64).prop_map(Deed::Wait),
        1 => any.clone().prop_map(Deed::Drain),
        1 => prop::bool::weighted(0.1).prop_map(|cancel| if cancel { Deed::Cancel(0) } else { Deed::Wait(50) }),
        1 => Just(Deed::Restart),
    ];
    prop::collection::vec(deed, 20..160)
}

impl World {
    fn act(&mut self, deed: &Deed) {
        match deed {
            Deed::Submit(which) => {
                let plan = plans()[*which].clone();
                if !self.jobs.contains(&plan.id()) {
                    self.jobs.push(plan.id());
                }
                self.apply(Event::Submitted { plan: Box::new(plan), gone: Vec::new() });
            }
            Deed::Join { slots, wide } => self.join(*slots, class(if *wide { "avx512" } else { "avx2" })),
            Deed::Kill(number) => {
                if let Some(worker) = self.pick(*number) {
                    self.peers.remove(&worker);
                    self.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
                }
            }
            Deed::Break { peer, forgets } => {
                if let Some(worker) = self.pick(*peer) {
                    self.break_link(worker, *forgets);
                }
            }
            Deed::Return(number) => {
                if !self.apart.is_empty() {
                    let peer = self.apart.remove(number % self.apart.len());
                    self.connect(peer);
                }
            }
            Deed::Lose(number) => self.lose(*number),
            Deed::Freeze(number) | Deed::Thaw(number) => {
                if let Some(peer) = self.pick(*number).and_then(|worker| self.peers.get_mut(&worker)) {
                    peer.frozen = matches!(deed, Deed::Freeze(_));
                }
            }
            Deed::Train { peer, steps } => {
                if let Some(worker) = self.pick(*peer) {
                    self.train(worker, *steps);
                }
            }
            Deed::Fail { peer, user } => {
                if let Some(worker) = self.pick(*peer) {
                    self.fail(worker, *user);
                }
            }
            Deed::Lie { peer, lease } => self.lie(*peer, *lease),
            Deed::Calm(steps) => {
                for worker in self.peers.keys().copied().collect::<Vec<_>>() {
                    self.train(worker, *steps);
                }
                (0..64).for_each(|_| self.deliver(false));
            }
            Deed::Quarrel { peer, late } => {
                if let Some(worker) = self.pick(*peer) {
                    self.quarrel(worker, *late);
                }
            }
            Deed::Deliver => self.deliver(false),
            Deed::DeliverTwice => self.deliver(true),
            Deed::Publish { fails } => self.publish(*fails),
            Deed::Wait(wait_ms) => {
                self.machine.now_ms += wait_ms;
                self.apply(Event::Tick);
            }
            Deed::Drain(number) => {
                if let Some(worker) = self.pick(*number) {
                    self.apply(Event::DrainWorker { worker, reason: "drained".to_owned() });
                }
            }
            Deed::Cancel(number) => {
                if let Some(job) = self.jobs.get(*number).cloned() {
                    self.apply(Event::Cancel { job, reason: "cancelled".to_owned() });
                }
            }
            Deed::Restart => self.restart(),
        }
    }
}

/// Between two submissions of a job, each stage has at most one result and one release, and the job one end.
fn nothing_happens_twice(facts: &[Fact]) {
    let mut seen = BTreeSet::new();
    for fact in facts {
        match fact {
            Fact::JobReopened { plan, .. } => {
                let id = plan.id();
                seen.retain(|(job, ..): &(JobId, String, &str)| *job != id);
            }
            Fact::ResultLost { job, stage, .. } => {
                seen.retain(|(of, name, _)| of != job || name != stage.as_str());
            }
            Fact::StageTrained { job, stage, .. } => {
                assert!(seen.insert((job.clone(), stage.to_string(), "trained")), "{stage} was trained twice");
            }
            Fact::StagePublished { job, stage, .. } => {
                assert!(seen.insert((job.clone(), stage.to_string(), "published")), "{stage} was published twice");
            }
            Fact::JobEnded { job, .. } => {
                assert!(seen.insert((job.clone(), String::new(), "ended")), "{job} ended twice");
            }
            _ => {}
        }
    }
}

#[test]
fn the_worlds_workers_form_groups_that_break_and_lose_their_leaders() {
    let mut world = World::new();
    let formed =
        |world: &World| world.machine.facts.iter().filter(|fact| matches!(fact, Fact::GroupFormed { .. })).count();
    let deliver = |world: &mut World| (0..40).for_each(|_| world.act(&Deed::Deliver));
    let mut plan = plans()[1].clone();
    plan.job.resources.gang = 1;
    world.jobs.push(plan.id());
    world.apply(Event::Submitted { plan: Box::new(plan), gone: Vec::new() });
    world.act(&Deed::Join { slots: 3, wide: false });
    deliver(&mut world);
    for peer in 1..=2 {
        world.act(&Deed::Join { slots: 1, wide: false });
        world.act(&Deed::Train { peer, steps: 1 });
        deliver(&mut world);
    }
    assert_eq!(formed(&world), 2);
    for deed in [Deed::Quarrel { peer: 1, late: true }, Deed::Quarrel { peer: 2, late: false }] {
        world.act(&deed);
        deliver(&mut world);
        world.act(&Deed::Wait(300));
    }
    assert_eq!(formed(&world), 3);
    world.act(&Deed::Kill(0));
    assert_eq!(formed(&world), 5, "each helper leads now");
    world.calm_down();
    nothing_happens_twice(&world.machine.facts);
}

#[test]
fn places_for_one_stage_put_its_owners_gang_that_waits_behind_others() {
    use Deed::{Calm, Cancel, Deliver, Drain, Kill, Restart, Return, Submit, Train, Wait};
    let narrow = |slots| Deed::Join { slots, wide: false };
    let wide = || Deed::Join { slots: 1, wide: true };
    let split = |peer| Deed::Break { peer, forgets: false };
    // As it was found: a gang waits, and a later stage of its owner gets places, so that owner has had more than another one.
    #[rustfmt::skip]
    let deeds = [
        Submit(2), Submit(1), Cancel(0), narrow(1), Restart, narrow(1), narrow(1), Kill(0), wide(), split(0),
        Return(0), Calm(1), wide(), Calm(1), Return(0), Kill(0), narrow(2), Calm(1), Submit(0), Calm(1),
        narrow(1), Submit(2), narrow(1), Restart, Deliver, narrow(1), Calm(1), narrow(2), Drain(2), Wait(4000),
        split(6), Train { peer: 0, steps: 30 }, Drain(0),
    ];
    let act = || {
        let mut world = World::new();
        deeds.iter().for_each(|deed| world.act(deed));
        world
    };
    for kept in 0..act().machine.facts.len() {
        let mut world = act();
        world.machine.facts.truncate(kept);
        world.restart_alone();
        let known: Vec<JobId> = world.machine.scheduler.jobs();
        world.jobs.retain(|job| known.contains(job));
        world.calm_down();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_workers_and_coordinators_every_job_ends(deeds in deeds()) {
        let mut world = World::new();
        for deed in &deeds {
            world.act(deed);
        }
        world.calm_down();
        nothing_happens_twice(&world.machine.facts);
    }

    #[test]
    fn a_coordinator_killed_after_any_fact_leads_every_job_to_its_end(deeds in deeds(), cut in 0.0..1.0_f64) {
        let mut world = World::new();
        for deed in &deeds {
            world.act(deed);
        }
        let facts = std::mem::take(&mut world.machine.facts);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a small number")]
        let kept = (facts.len() as f64 * cut) as usize;
        world.machine.facts = facts[..kept].to_vec();
        world.restart_alone();
        let known: Vec<JobId> = world.machine.scheduler.jobs();
        world.jobs.retain(|job| known.contains(job));
        world.calm_down();
        nothing_happens_twice(&world.machine.facts);
    }
}
