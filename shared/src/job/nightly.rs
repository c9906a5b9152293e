//! What a nightly run of a job compares, how strictly, and which changes are expected.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{id::Name, schedule::Schedule};

/// Nights kept at most, so that a slip of the hand does not fill a disk.
pub const MOST_NIGHTS: u32 = 10_000;

/// The table `[nightly]`; not part of the digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nightly {
    /// Seeds with which every task and every fusion is trained.
    pub seeds: Vec<u64>,
    /// When a coordinator runs a night by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<Schedule>,
    /// Nights whose answers and pages are kept.
    pub keep: u32,
    /// Drop of a score from which on it matters.
    pub threshold: f64,
    /// Relative change of a cost from which on it matters.
    pub cost_threshold: f64,
    /// Chance that a night without any change names anything, a score or a cost, at most.
    pub false_alarm: f64,
    /// Chance with which the drop that is stated as detectable would have been found.
    pub power: f64,
    /// Name of the environment variable that holds the address to which the end of a night is posted.
    pub webhook: Option<String>,
    /// Changes that are expected, by task or fusion.
    pub expected: BTreeMap<Name, Expected>,
}

/// Why a change is expected. Each reason counts once: for the first night that shows the change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Why its scores may fall.
    pub score: Option<String>,
    /// Why its time may grow.
    pub cost: Option<String>,
}

impl Default for Nightly {
    fn default() -> Self {
        Self {
            seeds: vec![1, 2, 3],
            cron: None,
            keep: 30,
            threshold: 0.01,
            cost_threshold: 0.1,
            false_alarm: 0.05,
            power: 0.8,
            webhook: None,
            expected: BTreeMap::new(),
        }
    }
}

impl Nightly {
    /// Whether nothing was said about nights.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
