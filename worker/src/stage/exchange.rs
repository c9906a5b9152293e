//! An update's lanes and their exchange with the other members of a group, side by side.
//!
//! ```text
//! device threads   lane … ─► head ─► top layers ─► … ─► lowest layer
//!                               └──────┬───────┴─────┬──────┘  parts of the gradient, as they are complete
//! this thread                        part 0        part 1 …       sums of own lanes ─► the group's sum ─► words
//! ```
//!
//! A part travels once all lanes of this member have completed it, so while lower layers are computed the sums of higher
//! ones are on their way. Small gradients are one part, which travels at the end. Parts follow from the layout, and sums
//! are those of whole gradients number by number, so how many parts there are changes no byte (invariant 5).

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Instant,
};

use graftwork_collective::{ExchangePlan, Way, partial_sums};
use graftwork_engine::{EngineError, Lane, LaneOutput, LaneSum, Network, Parts, StagedLane, StepOptions};
use graftwork_shared::training::Reduction;

use super::{
    Host,
    compute::{OwnLanes, Together},
    drive::Driver,
    failure,
    membership::{Halt, Membership},
    meter::{TaskCost, measured},
};
use crate::{pool::Turn, waiting::Waiting};

/// How gradients are cut and sent. Changes no byte, but must be the same for all members.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cuts {
    /// A part has at least so many numbers: each costs rounds of messages, which many small ones would only multiply.
    pub(crate) part_numbers: usize,
    /// Parts up to this many numbers go whole to everyone, larger ones in slices.
    pub(crate) small_numbers: usize,
    /// Parts that lanes may have completed and the exchange has not taken yet; a lane that has more waits.
    pub(crate) ahead_parts: usize,
}

impl Default for Cuts {
    /// Parts of 4 MB; slices where they pay (`Way::of`); no lane waits for the network.
    fn default() -> Self {
        Self { part_numbers: 1 << 20, small_numbers: Way::SMALL_NUMBERS, ahead_parts: usize::MAX }
    }
}

/// A part of one lane's gradient: the lane's place among those of this member, the part, its numbers.
type Given = (usize, usize, Vec<f32>);

/// What a device thread says of a lane, or of all lanes together.
struct Computed {
    /// Of each.
    losses: Result<Vec<f64>, EngineError>,
    cost: TaskCost,
    /// When it was done.
    at: Instant,
    /// What it has sent to the device of the next update's lanes.
    next: Option<Vec<StagedLane>>,
}

type Task = Box<dyn FnOnce() -> Computed + Send>;

impl<H: Host> Driver<'_, H> {
    /// What all lanes of an update add up to, of which some are this member's own.
    pub(super) fn compute_and_exchange(
        &mut self,
        plan: &ExchangePlan,
        own: OwnLanes,
        options: StepOptions,
    ) -> Result<LaneSum, Halt> {
        let (first, present) = (own.first, own.present());
        let cuts = self.host.cuts();
        // The tasks alone hold the other end, so whoever waits for parts hears when no lane is left to give any.
        let (give, given) = sync_channel(cuts.ahead_parts.min(self.parts.count() * present.len()));
        let tasks = self.tasks(own, options, give).into_iter().map(|task| waited_for(task, self.membership.waiting()));
        let tasks: Vec<Task> = tasks.collect();
        let mut exchange = Exchange {
            small_numbers: cuts.small_numbers,
            lane_by_lane: !self.host.lanes_together(),
            waits: Vec::new(),
            membership: &mut self.membership,
            parts: &self.parts,
            way: self.assignment.recipe.training.reduction,
            plan,
            first,
            present: &present,
        };
        let (mut done, mut exchanged) = (Instant::now(), None);
        let computed: Vec<Computed> = self.host.run_while(Turn::Behind, tasks, || {
            exchanged = Some(exchange.run(&given));
            // However it ended, no lane waits any more to hand anything on.
            drop(given);
        });
        let mut losses = Vec::with_capacity(computed.len());
        let waits = exchange.waits;
        for Computed { losses: of_task, cost, at, next } in computed {
            self.meter.add_task(cost, self.on_gpu);
            self.keep_staged(next);
            losses.extend(of_task.map_err(failure::of_engine)?);
            done = done.max(at);
        }
        let mut losses = losses.into_iter();
        let losses = present.into_iter().map(|present| if present { losses.next() } else { None }).collect();
        let gradient = exchanged.expect("a host does what it is given for meanwhile")?;
        let words = Instant::now();
        let losses = self.membership.end_exchange(self.host, losses)?;
        // Only once its own lanes are done a member does nothing but wait.
        let idle = waits.into_iter().chain([(words, Instant::now())]);
        self.membership.add_wait(idle.map(|(from, to)| to.saturating_duration_since(from.max(done))).sum());
        Ok(LaneSum::of(losses, gradient))
    }

    /// The lanes' tasks, each of which hands on its parts.
    fn tasks(&mut self, own: OwnLanes, options: StepOptions, give: SyncSender<Given>) -> Vec<Task> {
        let options = Arc::new(options);
        if self.host.lanes_together() {
            let places = own.present().into_iter().enumerate().filter_map(|(place, present)| present.then_some(place));
            let places = places.collect();
            let together = self.together(own, options);
            return vec![together_task(together, places, Arc::clone(&self.parts), give)];
        }
        let lanes = own.lanes.into_iter().enumerate().filter_map(|(place, lane)| Some((place, lane?)));
        let task = |(place, lane)| {
            let shared = (self.network.share(), Arc::clone(&self.parts), Arc::clone(&options));
            lane_task(shared, (place, lane), give.clone())
        };
        lanes.map(task).collect()
    }
}

/// As long as the task is not done, this member computes.
fn waited_for(task: Task, waiting: &Waiting) -> Task {
    let computes = waiting.compute();
    Box::new(move || {
        let _computes = computes;
        task()
    })
}

fn lane_task(
    (network, parts, options): (Network, Arc<Parts>, Arc<StepOptions>),
    (place, lane): (usize, Lane),
    give: SyncSender<Given>,
) -> Task {
    Box::new(move || {
        // Nobody listens any more once the group broke.
        let mut hand_on = |part, numbers| drop(give.send((place, part, numbers)));
        let (loss, cost) = measured(|| network.lane_in_parts(&lane, &options.lane(), &parts, &mut hand_on));
        Computed { losses: loss.map(|loss| vec![loss]), cost, at: Instant::now(), next: None }
    })
}

fn together_task(lanes: Together, places: Vec<usize>, parts: Arc<Parts>, give: SyncSender<Given>) -> Task {
    Box::new(move || {
        let ((outputs, next), cost) = measured(|| lanes.run());
        let hand_on = |(place, output): (usize, LaneOutput)| {
            // As above.
            parts.of(&output.gradient).for_each(|(part, numbers)| drop(give.send((place, part, numbers))));
            output.loss
        };
        let losses = outputs.map(|outputs| places.into_iter().zip(outputs).map(hand_on).collect());
        Computed { losses, cost, at: Instant::now(), next }
    })
}

/// The exchange of one update as one member sees it.
struct Exchange<'a> {
    membership: &'a mut Membership,
    parts: &'a Parts,
    way: Reduction,
    plan: &'a ExchangePlan,
    first: usize,
    /// Which of this member's lanes have rows.
    present: &'a [bool],
    small_numbers: usize,
    /// Whether a lane hands its parts on while it computes the rest.
    lane_by_lane: bool,
    /// From when to when it was in an exchange.
    waits: Vec<(Instant, Instant)>,
}

impl Exchange<'_> {
    /// Takes parts as lanes complete them; gives the sum of all lanes, empty when none has rows.
    fn run(&mut self, given: &Receiver<Given>) -> Result<Vec<f32>, Halt> {
        let count = self.parts.count();
        let mut waiting: Vec<Vec<Option<Vec<f32>>>> = vec![vec![None; self.present.len()]; count];
        let expected = self.present.iter().filter(|present| **present).count();
        let mut flat = Vec::new();
        for part in 0..count {
            while waiting[part].iter().flatten().count() < expected {
                let Ok((place, of, numbers)) = given.recv() else {
                    return Err(Halt::Broken("a lane of this member ended without its gradient".to_owned()));
                };
                waiting[of][place] = Some(numbers);
            }
            let lanes = std::mem::take(&mut waiting[part]);
            let sums = partial_sums(self.plan.tree(), self.first, lanes);
            let length = self.parts.len(part);
            let way = match self.way {
                Reduction::Exact => Way::cut_at(length, self.small_numbers),
                Reduction::Fast => Way::Native,
            };
            let began = Instant::now();
            let early = self.lane_by_lane && part + 1 < count && self.membership.waiting().computes();
            let sum = self.membership.sum_part(sums, (length, way), early)?;
            self.waits.push((began, Instant::now()));
            if let Some(sum) = sum {
                flat.resize((0..count).map(|part| self.parts.len(part)).sum(), 0.0);
                self.parts.place(part, &sum, &mut flat);
            }
        }
        Ok(flat)
    }
}
