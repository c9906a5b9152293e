//! Training as a state machine: lane outputs go in, an update of the parameters comes out.
//!
//! ```text
//! lanes ─► tree sum ─► fusion penalty ─► norm ─► cut ─► AdamW at the schedule's rate ─► parameters
//! ```
//!
//! The trainer owns every number that training changes, on plain buffers, and does all of this on one thread in one
//! order. It computes no lane, reads no clock and holds no tensor of libtorch: who computed the lanes, and when, cannot
//! reach it (invariant 5). [`crate::checkpoint`] writes all of its state and nothing else.

mod adamw;
mod gradient;
mod progress;
#[cfg(test)]
mod tests;

use graftwork_collective::{Fold, Tree};
use graftwork_shared::{
    assignment::Evaluation,
    metric::Metric,
    random::{Purpose, Stream},
    training::{AdapterDrop, Interval, Training},
};

pub use progress::Progress;

pub(crate) use adamw::{Factors, Moments};
pub(crate) use gradient::norm;

use crate::{
    Dropout, EngineError, LaneOptions, LaneOutput, Layout, Setup,
    input::{BatchShape, Consumed},
    kernel,
};
use gradient::ValueMatrix;

/// Why training cannot go on. Trying again gives the same.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Setup and layout do not fit.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The loss or the gradient is not a number any more.
    #[error(
        "training diverged at update {step}: the loss is {loss} and the gradient's norm {norm}; lower learning_rate or set clip_norm"
    )]
    Diverged {
        /// The update, from 1.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        norm: f64,
    },
    /// The number of lanes or of their numbers is not that of the plan.
    #[error("update {step} got {found} {what}, expected {expected}")]
    Count {
        /// The update, from 1.
        step: u64,
        /// What was counted.
        what: &'static str,
        /// How many came.
        found: usize,
        /// How many must come.
        expected: usize,
    },
}

/// What one update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// Mean loss over the update's rows before it, fusion penalty included.
    pub loss: f64,
    /// Norm of the gradient before the cut.
    pub gradient_norm: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
}

/// How to compute the lanes of one update; owned, so that it can travel to device threads.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOptions {
    /// Factor on each row's loss: 1 / rows of the update.
    pub loss_scale: f64,
    /// Number of the update, from 0.
    pub step: u64,
    /// Active dropout.
    pub dropout: Dropout,
    /// Layers without adapters in this update.
    pub skip_layers: Vec<u32>,
}

impl StepOptions {
    /// The options of each lane.
    pub fn lane(&self) -> LaneOptions<'_> {
        let (dropout, skip_layers) = (Some(self.dropout), self.skip_layers.as_slice());
        LaneOptions { loss_scale: self.loss_scale, step: self.step, dropout, skip_layers }
    }
}

/// What the lanes of one update add up to, along the fixed tree.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneSum {
    /// Mean loss over the update's rows.
    pub loss: f64,
    /// Its gradient, in the order of the layout; empty when no lane has rows.
    pub gradient: Vec<f32>,
}

impl LaneSum {
    /// The losses of all lanes, in order, with the sum of their gradients.
    pub fn of(losses: Vec<Option<f64>>, gradient: Vec<f32>) -> Self {
        let loss = Tree::new(losses.len()).fold(losses, |left, right| left + right);
        Self { loss: loss.unwrap_or_default(), gradient }
    }
}

/// Adds up lanes that come one after the other, in their order: of n there are at most log2 n + 1 gradients in memory.
#[derive(Debug, Default)]
pub struct LaneSums {
    fold: Fold<LaneOutput>,
    lanes: usize,
}

impl LaneSums {
    /// Takes the next lanes; those without rows are `None`.
    ///
    /// # Panics
    /// When gradients differ in length.
    pub fn extend(&mut self, lanes: Vec<Option<LaneOutput>>) {
        self.lanes += lanes.len();
        lanes.into_iter().for_each(|lane| self.fold.push(lane, both));
    }

    fn finish(self) -> LaneSum {
        let sum = self.fold.finish(both).unwrap_or(LaneOutput { loss: 0.0, gradient: Vec::new() });
        LaneSum { loss: sum.loss, gradient: sum.gradient }
    }
}

impl From<Vec<Option<LaneOutput>>> for LaneSums {
    fn from(lanes: Vec<Option<LaneOutput>>) -> Self {
        let mut sums = Self::default();
        sums.extend(lanes);
        sums
    }
}

fn both(mut left: LaneOutput, right: LaneOutput) -> LaneOutput {
    assert_eq!(left.gradient.len(), right.gradient.len(), "gradients of all lanes have one length");
    kernel::add(&mut left.gradient, &right.gradient);
    LaneOutput { loss: left.loss + right.loss, ..left }
}

/// The weights of the best evaluation so far.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Best {
    pub(crate) step: u64,
    pub(crate) parameters: Vec<f32>,
}

/// Everything that training changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Trainer {
    pub(crate) layout: Layout,
    pub(crate) parameters: Vec<f32>,
    pub(crate) moments: Moments,
    pub(crate) best: Option<Best>,
    pub(crate) progress: Progress,
    training: Training,
    metric: Metric,
    total_steps: u64,
    steps_of_epoch: u64,
    value_matrices: Vec<ValueMatrix>,
}

/// What a trainer is told once: the options and the size of the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// Optimisation.
    pub training: Training,
    /// The metric that chooses the best weights.
    pub metric: Metric,
    /// Rows of an epoch.
    pub rows: u64,
}

impl Trainer {
    /// A trainer at its first update. `parameters` are the initial weights in the order of `layout`.
    pub fn new(course: Course, setup: &Setup, layout: &Layout, parameters: Vec<f32>) -> Result<Self, TrainError> {
        if parameters.len() != layout.len {
            let (found, expected) = (parameters.len(), layout.len);
            return Err(TrainError::Count { step: 0, what: "parameters", found, expected });
        }
        Ok(Self {
            value_matrices: gradient::value_matrices(layout, setup)?,
            layout: layout.clone(),
            moments: Moments::new(parameters.len()),
            parameters,
            best: None,
            progress: Progress::default(),
            total_steps: course.training.total_steps(course.rows),
            steps_of_epoch: course.training.steps_per_epoch(course.rows).max(1),
            training: course.training,
            metric: course.metric,
        })
    }

    /// The trained numbers, in the order of the layout.
    pub fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    /// The weights to publish: the best scored ones where the job keeps them, the last ones otherwise.
    pub fn kept_parameters(&self) -> &[f32] {
        self.best.as_ref().map_or(&self.parameters, |best| &best.parameters)
    }

    /// The update after which [`Self::kept_parameters`] were scored.
    pub fn kept_step(&self) -> u64 {
        self.best.as_ref().map_or(self.progress.step, |best| best.step)
    }

    /// How far training is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Updates of the whole training, early stopping aside.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Whether training comes to a row more than once.
    pub fn repeats_rows(&self) -> bool {
        self.total_steps > self.steps_of_epoch
    }

    /// How often validation is scored, unless training ends early.
    pub fn evaluations(&self) -> u64 {
        let interval = match self.training.evaluate_every {
            Interval::Epoch => self.steps_of_epoch,
            Interval::Steps(steps) => steps.max(1),
        };
        self.total_steps.div_ceil(interval)
    }

    /// How rows are cut into lanes.
    pub fn shape(&self) -> BatchShape {
        BatchShape::of(&self.training)
    }

    /// How the next update's lanes are computed; the update has `rows` rows.
    pub fn step_options(&self, rows: u64) -> StepOptions {
        let step = self.progress.step;
        let skip_layers = match &self.training.adapter_drop {
            AdapterDrop::Off => Vec::new(),
            AdapterDrop::Layers(layers) => layers.clone(),
            AdapterDrop::DrawnUpTo(most) => {
                let drawn = Stream::new(self.training.seed, Purpose::AdapterDrop).below(0, step, u64::from(*most) + 1);
                (0..*most).filter(|&layer| u64::from(layer) < drawn).collect()
            }
        };
        let dropout = Dropout { seed: self.training.seed, base_model: self.training.base_model_dropout };
        StepOptions { loss_scale: 1.0 / rows.max(1) as f64, step, dropout, skip_layers }
    }

    /// One update from its lanes' outputs, in the order of the lanes; `consumed` is which rows they were.
    ///
    /// The gradient of a layer that AdapterDrop left out is zero: its moments fade and it moves by what is left of
    /// them.
    pub fn apply(&mut self, lanes: impl Into<LaneSums>, consumed: Consumed) -> Result<StepOutcome, TrainError> {
        let outcome = self.step(lanes)?;
        self.progress.take(consumed);
        Ok(outcome)
    }

    /// One update from what its lanes add up to, whoever computed them.
    pub fn apply_sum(&mut self, sum: LaneSum, consumed: Consumed) -> Result<StepOutcome, TrainError> {
        let outcome = self.step_sum(sum)?;
        self.progress.take(consumed);
        Ok(outcome)
    }

    /// The arithmetic of [`Self::apply`].
    pub(crate) fn step(&mut self, lanes: impl Into<LaneSums>) -> Result<StepOutcome, TrainError> {
        let (lanes, shape) = (lanes.into(), self.shape());
        let (found, expected) = (lanes.lanes, shape.lanes * shape.accumulation);
        if found != expected {
            return Err(TrainError::Count { step: self.progress.step + 1, what: "lanes", found, expected });
        }
        self.step_sum(lanes.finish())
    }

    fn step_sum(&mut self, LaneSum { mut loss, mut gradient }: LaneSum) -> Result<StepOutcome, TrainError> {
        let step = self.progress.step;
        let (found, expected) = (gradient.len(), self.parameters.len());
        if found != 0 && found != expected {
            return Err(TrainError::Count { step: step + 1, what: "gradients of a sum", found, expected });
        }
        gradient.resize(expected, 0.0);
        loss += gradient::add_fusion_penalty(&self.value_matrices, &self.parameters, &mut gradient);
        let norm = gradient::norm(&gradient);
        if !loss.is_finite() || !norm.is_finite() {
            return Err(TrainError::Diverged { step: step + 1, loss, norm });
        }
        if let Some(limit) = self.training.clip_norm {
            gradient::clip(&mut gradient, norm, limit);
        }
        let learning_rate = self.training.rate(step, self.total_steps);
        let factors = Factors::new(&self.training, step, learning_rate);
        for tensor in &self.layout.tensors {
            let range = tensor.offset..tensor.offset + tensor.elements();
            self.moments.update(range, &mut self.parameters, &gradient, &factors, tensor.decays);
        }
        self.progress.step += 1;
        Ok(StepOutcome { loss, gradient_norm: norm, learning_rate })
    }

    /// Records an evaluation of the current weights, and keeps them when they are the best so far and the job keeps
    /// the best. Of equal scores the earlier one is kept.
    pub fn record(&mut self, evaluation: Evaluation) {
        let score = |evaluation: &Evaluation| evaluation.metrics.get(&self.metric).copied().unwrap_or_default();
        let best_before = self
            .progress
            .evaluations
            .iter()
            .map(score)
            .fold(None, |best: Option<f64>, score| Some(best.map_or(score, |best| best.max(score))));
        if self.training.keep_best && best_before.is_none_or(|best| score(&evaluation) > best) {
            self.best = Some(Best { step: self.progress.step, parameters: self.parameters.clone() });
        }
        self.progress.evaluations.push(evaluation);
    }

    /// Whether validation is due: at the job's interval and at the end, once for each update.
    pub fn evaluation_is_due(&self) -> bool {
        self.progress.evaluation_is_due(&self.training, self.total_steps)
    }

    /// Whether training is over: every update is done, or validation no longer improves.
    pub fn is_finished(&self) -> bool {
        self.progress.step >= self.total_steps || self.progress.stops_early(&self.training, self.metric)
    }

    /// Whether the job wants a checkpoint after the updates done so far.
    pub fn checkpoint_is_due(&self) -> bool {
        self.progress.step > 0 && self.progress.step.is_multiple_of(self.training.checkpoint_every_steps.max(1))
    }
}
