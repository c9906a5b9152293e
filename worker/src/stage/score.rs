//! Scoring one split: fixed batches of rows in their order, computed on the device threads a few at a time.
//!
//! Batches are cut by row count alone and summed up in their order, so the scores do not depend on the threads.

use std::sync::Arc;

use graftwork_dataset::{Access, GroupDigests, Order, ReadRequest};
use graftwork_engine::{
    BatchShape, Input, InputCost, InputRequest, Lane, Network, Position, Prediction, Scored, TextEncoder,
};
use graftwork_shared::{
    assignment::{Assignment, Failure},
    data::SplitManifest,
};

use super::{
    Host, failure,
    meter::{Meter, measured},
};

/// Rows of a batch. A constant, because libtorch may choose other kernels for other sizes. Forward alone, 16 rows take as
/// long as a lane of 8 rows in training, so stages that take turns with this one lose little.
const ROWS: u64 = 16;

/// Batches that wait for the device threads at the same time, at most.
const WAVE: usize = 16;

/// What scoring a split needs.
pub(super) struct Scorer<'a, H> {
    pub(super) assignment: &'a Assignment,
    pub(super) host: &'a H,
    pub(super) access: &'a Access,
    pub(super) encoder: &'a Arc<TextEncoder>,
    pub(super) network: &'a Network,
    pub(super) on_gpu: bool,
}

/// A scored split, and the digests of its rows.
pub(super) struct ScoredSplit {
    pub(super) scored: Scored,
    pub(super) groups: GroupDigests,
}

impl<H: Host> Scorer<'_, H> {
    /// Scores the network's current weights. `None` when the host interrupted.
    pub(super) fn score(
        &self,
        manifest: &SplitManifest,
        known: &GroupDigests,
        meter: &mut Meter,
    ) -> Result<Option<ScoredSplit>, Failure> {
        let recipe = &self.assignment.recipe;
        let batches = manifest.rows.div_ceil(ROWS);
        let mut input = Input::start(self.host.rows(), self.request(manifest, known, batches), self.encoder.clone());
        let mut scored = Scored::new(&recipe.head);
        let skip_layers: Arc<[u32]> = recipe.skip_layers.clone().into();
        let (mut left, mut groups, mut cost) = (batches, known.clone(), InputCost::default());
        while left > 0 {
            if self.host.interrupted() {
                return Ok(None);
            }
            let mut tasks = Vec::new();
            while tasks.len() < WAVE && left > 0 {
                let update = input.next_update().map_err(|error| failure::of_input(&error))?;
                (groups, cost) = (update.consumed.position.groups, update.consumed.cost);
                tasks.extend(update.lanes.into_iter().flatten().map(|batch| self.task(batch, &skip_layers)));
                left -= 1;
            }
            for ((batch, prediction), cost) in self.host.run(tasks) {
                meter.add_task(cost, self.on_gpu);
                let prediction = prediction.map_err(failure::of_engine)?;
                scored.add(&batch, &prediction).map_err(failure::of_engine)?;
            }
        }
        meter.add_input(cost);
        Ok(Some(ScoredSplit { scored, groups }))
    }

    fn request(&self, manifest: &SplitManifest, known: &GroupDigests, batches: u64) -> InputRequest {
        let recipe = &self.assignment.recipe;
        let read = ReadRequest {
            manifest: manifest.clone(),
            columns: recipe.columns.clone(),
            output: recipe.head.output.clone(),
            order: Order::Sequential,
            epoch: 0,
            cursor: 0,
            groups: GroupDigests::default(),
        };
        let position = Position { groups: known.clone(), ..Position::start() };
        let shape = BatchShape::whole(usize::try_from(ROWS).expect("a small constant"));
        InputRequest { read, access: self.access.clone(), shape, position, updates: batches }
    }

    fn task(&self, batch: Lane, skip_layers: &Arc<[u32]>) -> Task {
        let (network, skip_layers) = (self.network.share(), Arc::clone(skip_layers));
        Box::new(move || {
            measured(|| {
                let prediction = network.predict(&batch.tokens, &skip_layers);
                (batch, prediction)
            })
        })
    }
}

type Task = Box<dyn FnOnce() -> Answer + Send>;
type Answer = ((Lane, Result<Prediction, graftwork_engine::EngineError>), super::meter::TaskCost);
