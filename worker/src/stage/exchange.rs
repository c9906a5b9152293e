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
        mpsc::{Receiver, Sender, channel},
    },
    time::Instant,
};

use graftwork_collective::{ExchangePlan, Way, partial_sums};
use graftwork_engine::{EngineError, Lane, LaneSum, Network, Parts, StepOptions};
use graftwork_shared::training::Reduction;

use super::{
    Host,
    drive::Driver,
    failure,
    membership::{Halt, Membership},
    meter::{TaskCost, measured},
};
use crate::pool::Turn;

/// How gradients are cut and sent. Changes no byte, but must be the same for all members.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cuts {
    /// A part has at least so many numbers: each costs rounds of messages, which many small ones would only multiply.
    pub(crate) part_numbers: usize,
    /// Parts up to this many numbers go whole to everyone, larger ones in slices.
    pub(crate) small_numbers: usize,
}

impl Default for Cuts {
    /// Parts of 4 MB; slices where they pay (`Way::of`).
    fn default() -> Self {
        Self { part_numbers: 1 << 20, small_numbers: Way::SMALL_NUMBERS }
    }
}

/// A part of one lane's gradient: the lane's place among those of this member, the part, its numbers.
type Given = (usize, usize, Vec<f32>);

/// What a device thread says of a lane: its loss, what it cost, and when it was done.
type Computed = (Result<f64, EngineError>, TaskCost, Instant);

impl<H: Host> Driver<'_, H> {
    /// What all lanes of an update add up to. `lanes` are this member's own, from the `first`th on.
    pub(super) fn compute_and_exchange(
        &mut self,
        plan: &ExchangePlan,
        first: usize,
        lanes: Vec<Option<Lane>>,
        options: StepOptions,
    ) -> Result<LaneSum, Halt> {
        let present: Vec<bool> = lanes.iter().map(Option::is_some).collect();
        let (options, (give, given)) = (Arc::new(options), channel());
        let tasks =
            lanes.into_iter().enumerate().filter_map(|(place, lane)| Some((place, lane?))).map(|(place, lane)| {
                let shared = (self.network.share(), Arc::clone(&self.parts), Arc::clone(&options));
                lane_task(shared, (place, lane), give.clone())
            });
        let tasks: Vec<_> = tasks.collect();
        // So that whoever waits for parts hears when no lane is left to give any.
        drop(give);
        let mut exchange = Exchange {
            small_numbers: self.host.cuts().small_numbers,
            waits: Vec::new(),
            membership: &mut self.membership,
            parts: &self.parts,
            way: self.assignment.recipe.training.reduction,
            plan,
            first,
            present: &present,
        };
        let (mut done, mut exchanged) = (Instant::now(), None);
        let computed: Vec<Computed> =
            self.host.run_while(Turn::Together, tasks, || exchanged = Some(exchange.run(&given)));
        let mut losses = Vec::with_capacity(computed.len());
        let waits = exchange.waits;
        for (loss, cost, at) in computed {
            self.meter.add_task(cost, self.on_gpu);
            losses.push(loss.map_err(failure::of_engine)?);
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
}

fn lane_task(
    (network, parts, options): (Network, Arc<Parts>, Arc<StepOptions>),
    (place, lane): (usize, Lane),
    give: Sender<Given>,
) -> Box<dyn FnOnce() -> Computed + Send> {
    Box::new(move || {
        // Nobody listens any more once the group broke.
        let mut hand_on = |part, numbers| drop(give.send((place, part, numbers)));
        let (loss, cost) = measured(|| network.lane_in_parts(&lane, &options.lane(), &parts, &mut hand_on));
        (loss, cost, Instant::now())
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
            let sum = self.membership.sum_part(sums, (length, way))?;
            self.waits.push((began, Instant::now()));
            if let Some(sum) = sum {
                flat.resize((0..count).map(|part| self.parts.len(part)).sum(), 0.0);
                self.parts.place(part, &sum, &mut flat);
            }
        }
        Ok(flat)
    }
}
