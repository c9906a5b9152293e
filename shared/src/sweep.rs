//! Sweeps: one task trained with many combinations of options, of which the best on validation rows becomes the task's.
//!
//! What is here is said by the job, kept in the record of a release, and shown: which trials there are, at which updates
//! they are compared, and what came of each. Who goes on is decided by the scheduler alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    adapter::AdapterConfig,
    digest::Digest,
    id::{Name, NotAName},
    training::Training,
};

/// Trials of one sweep at most: a number beyond it is a slip of the hand, since lists multiply.
pub const MOST_TRIALS: u32 = 256;

/// The trials of a task, every option written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// The trials; the first has number 1.
    pub trials: Vec<Trial>,
    /// How many combinations there are, of which `trials` may be a sample.
    pub combinations: u64,
    /// How trials are stopped before their end; `None` trains each of them to its end.
    pub halving: Option<Halving>,
}

/// One combination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The swept values by their keys.
    pub values: Values,
    /// The adapter with them.
    pub adapter: AdapterConfig,
    /// The optimisation with them.
    pub training: Training,
}

/// Swept values by their keys.
pub type Values = BTreeMap<String, Value>;

/// Successive halving (Jamieson and Talwalkar 2016): of the trials that reach a rung, the best go on to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Halving {
    /// One of so many goes on, and to a rung so many times as far.
    pub factor: u32,
    /// The first rung, as a share of a trial's updates.
    pub first: f64,
    /// ASHA (Li et al. 2020): a trial goes on as soon as it is among the best of those that came so far. Which trials
    /// go on then depends on timing.
    pub asynchronous: bool,
}

/// What came of a sweep, in the record of its release. Costs and what was reused are left out, so that equal sweeps
/// give equal records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepRecord {
    /// The number of the trial that is published.
    pub trial: u32,
    /// Its swept values.
    pub values: Values,
    /// Which trials went on depended on timing: training the sweep again may choose another trial.
    pub asynchronous: bool,
    /// How trials were stopped.
    pub halving: Option<Halving>,
    /// How many combinations there were.
    pub combinations: u64,
    /// Updates of each rung.
    pub rungs: Vec<u64>,
    /// Every trial, in order.
    pub trials: Vec<TrialRecord>,
}

/// What came of one trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialRecord {
    /// Its swept values.
    pub values: Values,
    /// The digest of its recipe.
    pub recipe: Digest,
    /// Its score at each rung that it reached.
    pub scores: Vec<RungScore>,
    /// Its own failure, for which it counted as the worst.
    pub failed: Option<String>,
}

/// A trial's validation score at a rung.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RungScore {
    /// The rung, from 0.
    pub rung: u32,
    /// The update whose weights were scored.
    pub step: u64,
    /// The task's metric; `None` where it is no number, which is worse than any.
    pub score: Option<f64>,
}

/// A sweep at one moment, as a part of its task's view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepView {
    /// How trials are stopped.
    pub halving: Option<Halving>,
    /// How many combinations there are.
    pub combinations: u64,
    /// Updates of each rung.
    pub rungs: Vec<u64>,
    /// The stages of its trials, in order.
    pub trials: Vec<Name>,
    /// The number of the trial that became the task's.
    pub chosen: Option<u32>,
    /// Updates that were not trained, because their trials were stopped or failed.
    pub saved_steps: u64,
    /// What those would have cost at the rate at which each trial trained.
    pub saved_core_seconds: f64,
}

/// What a stage is to a sweep, as a part of its view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialView {
    /// The task that is swept.
    pub task: Name,
    /// Its number, from 1.
    pub number: u32,
    /// Its swept values.
    pub values: Values,
    /// The rung to which it may train, from 0.
    pub rung: u32,
    /// Its scores so far.
    pub scores: Vec<RungScore>,
}

impl Halving {
    /// Updates at which trials of so many updates are compared; the last one is their end.
    pub fn rungs(halving: Option<&Self>, total_steps: u64) -> Vec<u64> {
        let mut rungs = Vec::new();
        if let Some(Self { factor, first, .. }) = halving {
            let mut share = *first;
            while share < 1.0 {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a share of a number of steps far below 2^52"
                )]
                let step = ((share * total_steps as f64).ceil() as u64).max(1);
                if step < total_steps && rungs.last().is_none_or(|last| *last < step) {
                    rungs.push(step);
                }
                share *= f64::from((*factor).max(2));
            }
        }
        rungs.push(total_steps);
        rungs
    }
}

impl RungScore {
    /// A score, if it is a number.
    pub fn new(rung: u32, step: u64, score: Option<f64>) -> Self {
        Self { rung, step, score: score.filter(|score| score.is_finite()) }
    }
}

impl std::fmt::Display for RungScore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.score {
            Some(score) => write!(f, "{score:.4}"),
            None => f.write_str("no number"),
        }
    }
}

/// The stage of a task's trial: `spam-trial-3`.
pub fn trial_name(task: &str, number: u32) -> Result<Name, NotAName> {
    format!("{task}-trial-{number}").parse()
}

/// Swept values in one line: `learning_rate 0.001, method lora`.
pub fn values_line(values: &Values) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    values.iter().map(|(key, value)| format!("{key} {}", word(value))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rungs(factor: u32, first: f64, total: u64) -> Vec<u64> {
        Halving::rungs(Some(&Halving { factor, first, asynchronous: false }), total)
    }

    #[test]
    fn rungs_grow_by_the_factor_and_end_with_the_training() {
        assert_eq!(Halving::rungs(None, 90), [90]);
        assert_eq!(rungs(3, 0.25, 100), [25, 75, 100]);
        assert_eq!(rungs(2, 0.125, 80), [10, 20, 40, 80]);
        assert_eq!(rungs(3, 0.5, 7), [4, 7]);
    }

    #[test]
    fn a_training_too_short_for_its_rungs_has_fewer() {
        assert_eq!(rungs(2, 0.01, 3), [1, 2, 3]);
        assert_eq!(rungs(4, 0.001, 1), [1]);
    }

    #[test]
    fn values_read_as_a_job_file_writes_them() {
        let values = Values::from([("method".to_owned(), "lora".into()), ("learning_rate".to_owned(), 1e-3.into())]);
        assert_eq!(values_line(&values), "learning_rate 0.001, method lora");
    }
}
