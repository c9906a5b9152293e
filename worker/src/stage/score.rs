//! Scoring one split: fixed batches of rows in their order, computed on the device threads a few at a time.
//!
//! Batches are cut by row count alone and summed up in their order, so the scores do not depend on the threads. Members
//! of a group compute a share of each wave of batches, and every one of them sums up all answers.

use std::sync::Arc;

use graftwork_collective::share;
use graftwork_dataset::{Access, GroupDigests, Order, ReadRequest};
use graftwork_engine::{
    BatchShape, EngineError, Input, InputCost, InputRequest, Lane, Network, Position, Prediction, Scored, TextEncoder,
};
use graftwork_shared::{assignment::Assignment, data::SplitManifest};

use super::{
    Host, failure,
    membership::{Halt, Membership},
    meter::{Meter, TaskCost, measured},
};
use crate::pool::Turn;

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
    /// The split is scored again later.
    pub(super) rows_return: bool,
    pub(super) on_gpu: bool,
}

/// A scored split, and the digests of its rows.
pub(super) struct ScoredSplit {
    pub(super) scored: Scored,
    pub(super) groups: GroupDigests,
}

impl<H: Host> Scorer<'_, H> {
    /// Scores the network's current weights.
    pub(super) fn score(
        &self,
        manifest: &SplitManifest,
        known: &GroupDigests,
        membership: &mut Membership,
        meter: &mut Meter,
    ) -> Result<ScoredSplit, Halt> {
        let recipe = &self.assignment.recipe;
        let batches = manifest.rows.div_ceil(ROWS);
        let mut input = Input::start(self.host.rows(), self.request(manifest, known, batches), self.encoder.clone());
        let mut scored = Scored::new(&recipe.head);
        let skip_layers: Arc<[u32]> = recipe.skip_layers.clone().into();
        let (mut left, mut groups, mut cost) = (batches, known.clone(), InputCost::default());
        while left > 0 {
            let mut wave = Vec::new();
            while wave.len() < WAVE && left > 0 {
                let update = input.next_update().map_err(|error| failure::of_input(&error))?;
                (groups, cost) = (update.consumed.position.groups, update.consumed.cost);
                wave.extend(update.lanes.into_iter().flatten().map(Arc::new));
                left -= 1;
            }
            let (rank, ranks) = membership.part();
            let own = &wave[share(wave.len(), ranks, rank)];
            let mut answers = Vec::with_capacity(own.len());
            let tasks = own.iter().map(|batch| self.task(Arc::clone(batch), &skip_layers));
            for (prediction, cost) in self.host.run(Turn::Behind, tasks.collect()) {
                meter.add_task(cost, self.on_gpu);
                answers.push(prediction.map_err(failure::of_engine)?);
            }
            let answers = membership.share(self.host, answers)?;
            for (batch, prediction) in wave.iter().zip(answers.iter().flatten()) {
                scored.add(batch, prediction).map_err(failure::of_engine)?;
            }
        }
        meter.add_input(cost);
        Ok(ScoredSplit { scored, groups })
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

    fn task(&self, batch: Arc<Lane>, skip_layers: &Arc<[u32]>) -> Task {
        let network = self.network.share().for_rows_that_return(self.rows_return);
        let skip_layers = Arc::clone(skip_layers);
        Box::new(move || measured(|| network.predict(&batch.tokens, &skip_layers)))
    }
}

type Task = Box<dyn FnOnce() -> Answer + Send>;
type Answer = (Result<Prediction, EngineError>, TaskCost);
