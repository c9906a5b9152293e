//! How far training is, and what follows from it: evaluations that are due, and the early stop.
//!
//! All of it is part of a checkpoint. What is due is a function of this state alone, so that a run that was
//! interrupted anywhere does the same things in the same order as one that was not.

use graftwork_dataset::GroupDigests;
use graftwork_shared::{
    assignment::Evaluation,
    digest::Digest,
    metric::Metric,
    training::{Interval, Training},
};
use serde::{Deserialize, Serialize};

use crate::input::{Consumed, Position};

/// How far training is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Updates done.
    pub step: u64,
    /// The epoch of the next row, from 0.
    pub epoch: u32,
    /// Rows of this epoch that were trained.
    pub cursor: u64,
    /// Chained digest of those rows.
    pub chain: Digest,
    /// Digest of the rows of each finished epoch.
    pub epochs: Vec<Digest>,
    /// Row-group digests of the training data so far.
    pub groups: GroupDigests,
    /// Every evaluation, in order.
    pub evaluations: Vec<Evaluation>,
    /// Examples trained.
    pub examples: u64,
    /// Tokens trained.
    pub tokens: u64,
}

impl Default for Progress {
    fn default() -> Self {
        let Position { epoch, cursor, chain, .. } = Position::start();
        Self {
            step: 0,
            epoch,
            cursor,
            chain,
            epochs: Vec::new(),
            groups: GroupDigests::default(),
            evaluations: Vec::new(),
            examples: 0,
            tokens: 0,
        }
    }
}

impl Progress {
    /// Where reading goes on.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, cursor: self.cursor, chain: self.chain, groups: self.groups.clone() }
    }

    /// Epochs done, with the fraction, when an epoch has `rows` rows.
    pub fn epochs_done(&self, rows: u64) -> f64 {
        f64::from(self.epoch) + self.cursor as f64 / rows.max(1) as f64
    }

    /// Digests of the rows of every epoch, the unfinished last one included.
    pub fn epoch_digests(&self) -> Vec<Digest> {
        let unfinished = (self.cursor > 0).then_some(self.chain);
        self.epochs.iter().copied().chain(unfinished).collect()
    }

    pub(super) fn take(&mut self, consumed: Consumed) {
        Position { epoch: self.epoch, cursor: self.cursor, chain: self.chain, groups: self.groups } = consumed.position;
        self.epochs.extend(consumed.finished_epoch);
        self.examples += consumed.rows;
        self.tokens += consumed.tokens;
    }

    pub(super) fn evaluation_is_due(&self, training: &Training, total_steps: u64) -> bool {
        if self.evaluations.last().is_some_and(|evaluation| evaluation.step == self.step) {
            return false;
        }
        let at_interval = match training.evaluate_every {
            Interval::Epoch => self.step > 0 && self.cursor == 0,
            Interval::Steps(steps) => self.step > 0 && self.step.is_multiple_of(steps.max(1)),
        };
        at_interval || self.step >= total_steps
    }

    /// Whether the last `patience` evaluations brought no growth above `min_delta`.
    pub(super) fn stops_early(&self, training: &Training, metric: Metric) -> bool {
        let Some(stopping) = training.early_stopping else { return false };
        let (mut reference, mut without_growth) = (f64::NEG_INFINITY, 0);
        for evaluation in &self.evaluations {
            let score = evaluation.metrics.get(&metric).copied().unwrap_or_default();
            if score > reference + stopping.min_delta {
                (reference, without_growth) = (score, 0);
            } else {
                without_growth += 1;
            }
        }
        without_growth >= stopping.patience.max(1)
    }
}

#[cfg(test)]
mod tests {
    use graftwork_shared::training::EarlyStopping;

    use super::*;

    fn evaluated(scores: &[f64]) -> Progress {
        let evaluation = |(step, &score)| Evaluation { step, loss: 0.0, metrics: [(Metric::Accuracy, score)].into() };
        Progress { evaluations: (1..).zip(scores).map(evaluation).collect(), ..Progress::default() }
    }

    #[test]
    fn training_stops_when_growth_is_too_small_for_too_long() {
        let early_stopping = Some(EarlyStopping { patience: 2, min_delta: 0.01 });
        let training = Training { early_stopping, ..Training::default() };
        let stops = |scores: &[f64]| evaluated(scores).stops_early(&training, Metric::Accuracy);
        assert!(!stops(&[]) && !stops(&[0.5]) && !stops(&[0.5, 0.505]));
        assert!(stops(&[0.5, 0.505, 0.509]));
        // Small steps add up: growth counts from the last score that counted.
        assert!(!stops(&[0.5, 0.505, 0.515]));
        assert!(!evaluated(&[0.5; 9]).stops_early(&Training::default(), Metric::Accuracy));
    }

    #[test]
    fn validation_is_scored_at_the_interval_and_at_the_end_once() {
        let training = Training { evaluate_every: Interval::Steps(4), ..Training::default() };
        let due = |step| Progress { step, cursor: 1, ..Progress::default() }.evaluation_is_due(&training, 10);
        assert_eq!((0..=10).filter(|&step| due(step)).collect::<Vec<_>>(), [4, 8, 10]);
        let again = Progress { step: 3, ..evaluated(&[0.1, 0.2, 0.3]) };
        assert!(!again.evaluation_is_due(&training, 3));
        let by_epoch = Training::default();
        let at = |step, cursor| Progress { step, cursor, ..Progress::default() };
        assert!(at(5, 0).evaluation_is_due(&by_epoch, 10) && !at(5, 3).evaluation_is_due(&by_epoch, 10));
        assert!(!at(0, 0).evaluation_is_due(&by_epoch, 10));
    }
}
