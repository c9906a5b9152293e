//! The lanes of an update on the device threads, and what is ready of the next update meanwhile.
//!
//! On the processor each lane is a task of its own. An accelerator is one for all threads: there the lanes of an update are
//! one task, which asks for all of them, has the numbers of the next update's lanes sent as far as these are packed, and
//! then waits once. No byte depends on any of it.

use std::{ops::Range, sync::Arc};

use graftwork_engine::{
    Consumed, EngineError, InputError, Lane, LaneOutput, LaneSums, Network, StagedLane, StepOptions, Update,
};
use graftwork_shared::assignment::Failure;

use super::{
    Host,
    drive::Driver,
    failure,
    meter::{TaskCost, measured},
    network::run_one,
};
use crate::pool::Turn;

/// The update behind the one that is computed, which was packed in time.
pub(super) struct Ahead {
    update: Result<Update, InputError>,
    staged: Option<Staged>,
}

/// Those of an update's lanes within a range that have rows, sent to the device.
struct Staged {
    range: Range<usize>,
    lanes: Vec<StagedLane>,
}

/// This member's lanes of an update.
pub(super) struct OwnLanes {
    /// Place of the first one among all lanes.
    pub(super) first: usize,
    /// Those without rows are `None`.
    pub(super) lanes: Vec<Option<Lane>>,
    /// Those with rows, where they were sent to the device already.
    staged: Option<Vec<StagedLane>>,
}

impl OwnLanes {
    /// Which of them have rows.
    pub(super) fn present(&self) -> Vec<bool> {
        self.lanes.iter().map(Option::is_some).collect()
    }

    /// Whether they were sent to the device before their turn.
    pub(super) fn are_staged(&self) -> bool {
        self.staged.is_some()
    }
}

/// All lanes of an update as one task.
pub(super) struct Together {
    network: Network,
    lanes: Vec<Lane>,
    staged: Option<Vec<StagedLane>>,
    /// Lanes of the next update.
    next: Vec<Lane>,
    options: Arc<StepOptions>,
}

impl Together {
    /// Outputs of all lanes, and the next update's lanes once they are sent.
    pub(super) fn run(self) -> (Result<Vec<LaneOutput>, EngineError>, Option<Vec<StagedLane>>) {
        let Self { network, lanes, staged, next, options } = self;
        let stage = |lanes: &[Lane]| lanes.iter().map(|lane| network.stage(lane)).collect::<Result<Vec<_>, _>>();
        let staged = match staged.map_or_else(|| stage(&lanes), Ok) {
            Ok(staged) => staged,
            Err(error) => return (Err(error), None),
        };
        let mut of_next = None;
        // What is wrong with the next update is told when its turn comes.
        let outputs = network.lanes(&staged, &options.lane(), || of_next = stage(&next).ok());
        (Ok(outputs), of_next)
    }
}

impl<H: Host> Driver<'_, H> {
    /// This member's lanes of the next update, and which rows all of its lanes hold; blocks until it is packed.
    pub(super) fn next_update(&mut self) -> Result<(OwnLanes, Consumed), Failure> {
        let ahead = self.state.ahead.take();
        let Ahead { update, staged } =
            ahead.unwrap_or_else(|| Ahead { update: self.input().next_update(), staged: None });
        let Update { lanes, consumed } = update.map_err(|error| failure::of_input(&error))?;
        let own = self.membership.lanes(lanes.len());
        // The group may have changed since.
        let staged = staged.filter(|staged| staged.range == own).map(|staged| staged.lanes);
        let lanes = lanes.into_iter().skip(own.start).take(own.len()).collect();
        Ok((OwnLanes { first: own.start, lanes, staged }, consumed))
    }

    /// What the lanes add up to but for the last of them, and those: lanes whose gradients would take much memory together
    /// are computed and added some after the others, so that accumulation takes hardly more than one batch.
    pub(super) fn compute(
        &mut self,
        own: OwnLanes,
        options: StepOptions,
    ) -> Result<(LaneSums, Vec<Option<LaneOutput>>), Failure> {
        let (options, present) = (Arc::new(options), own.present());
        if self.host.lanes_together() {
            let task = self.together(own, options);
            let ((outputs, next), cost) = run_one(self.host, Turn::Behind, move || measured(|| task.run()));
            self.meter.add_task(cost, self.on_gpu);
            self.keep_staged(next);
            let mut outputs = outputs.map_err(failure::of_engine)?.into_iter();
            let lanes = present.into_iter().map(|present| if present { outputs.next() } else { None });
            return Ok((LaneSums::default(), lanes.collect()));
        }
        // Whole batches, so that their lanes share the threads.
        let at_once = self.host.lanes_at_once(self.trainer().parameters().len()).clamp(1, own.lanes.len().max(1));
        let at_once = at_once.next_multiple_of(self.trainer().shape().lanes);
        let mut lanes = own.lanes.into_iter();
        let (mut sums, mut last) = (LaneSums::default(), Vec::new());
        while lanes.len() > 0 {
            if !last.is_empty() {
                let cost;
                (sums, cost) = run_one(self.host, Turn::Behind, move || {
                    measured(move || {
                        sums.extend(last);
                        sums
                    })
                });
                self.meter.add_task(cost, self.on_gpu);
            }
            last = self.compute_some(lanes.by_ref().take(at_once).collect(), &options)?;
        }
        Ok((sums, last))
    }

    /// Loss and gradient of each lane, at the same time.
    fn compute_some(
        &mut self,
        lanes: Vec<Option<Lane>>,
        options: &Arc<StepOptions>,
    ) -> Result<Vec<Option<LaneOutput>>, Failure> {
        let present: Vec<bool> = lanes.iter().map(Option::is_some).collect();
        let task = |lane| lane_task(self.network.share(), lane, Arc::clone(options));
        let tasks = lanes.into_iter().flatten().map(task).collect();
        let mut outputs = Vec::new();
        for (output, cost) in self.host.run(Turn::Behind, tasks) {
            self.meter.add_task(cost, self.on_gpu);
            outputs.push(output.map_err(failure::of_engine)?);
        }
        let mut outputs = outputs.into_iter();
        Ok(present.into_iter().map(|present| if present { outputs.next() } else { None }).collect())
    }

    /// The task of these lanes, which also sends those of the next update, if it is packed already.
    pub(super) fn together(&mut self, own: OwnLanes, options: Arc<StepOptions>) -> Together {
        let mut next = Vec::new();
        if let Some(update) = self.input().packed_update() {
            if let Ok(Update { lanes, .. }) = &update {
                next = lanes[self.membership.lanes(lanes.len())].iter().flatten().cloned().collect();
            }
            self.state.ahead = Some(Ahead { update, staged: None });
        }
        let OwnLanes { lanes, staged, .. } = own;
        Together { network: self.network.share(), lanes: lanes.into_iter().flatten().collect(), staged, next, options }
    }

    /// Takes note of what a task has sent of the next update.
    pub(super) fn keep_staged(&mut self, lanes: Option<Vec<StagedLane>>) {
        if let (Some(Ahead { update: Ok(update), staged }), Some(lanes)) = (&mut self.state.ahead, lanes) {
            *staged = Some(Staged { range: self.membership.lanes(update.lanes.len()), lanes });
        }
    }
}

type LaneTask = Box<dyn FnOnce() -> (Result<LaneOutput, EngineError>, TaskCost) + Send>;

fn lane_task(network: Network, lane: Lane, options: Arc<StepOptions>) -> LaneTask {
    Box::new(move || measured(|| network.lane(&lane, &options.lane())))
}
