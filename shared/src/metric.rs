//! Metrics by name. Their arithmetic over predictions is in `graftwork-engine`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::head::HeadOutput;

/// A score over predictions; for each of them more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of right classes.
    Accuracy,
    /// F1 of class 1 of two.
    F1,
    /// Mean F1 over classes.
    F1Macro,
    /// F1 over all decisions; equals accuracy where each row has one class.
    F1Micro,
    /// Matthews correlation coefficient.
    Matthews,
    /// Pearson correlation.
    Pearson,
    /// Spearman rank correlation, ties at their mean rank.
    Spearman,
}

impl Metric {
    /// Every metric, classification first.
    pub const ALL: [Self; 7] =
        [Self::Accuracy, Self::F1, Self::F1Macro, Self::F1Micro, Self::Matthews, Self::Pearson, Self::Spearman];

    /// The name used in job files and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 => "f1",
            Self::F1Macro => "f1_macro",
            Self::F1Micro => "f1_micro",
            Self::Matthews => "matthews",
            Self::Pearson => "pearson",
            Self::Spearman => "spearman",
        }
    }

    /// Whether this metric can score a head of this output. F1 without a mean needs exactly two classes.
    pub fn fits(self, output: &HeadOutput) -> bool {
        match (self, output) {
            (Self::Pearson | Self::Spearman, HeadOutput::Regression) => true,
            (Self::Pearson | Self::Spearman, _) | (_, HeadOutput::Regression) => false,
            (Self::F1, HeadOutput::Classification { labels }) => labels.len() == 2,
            (_, HeadOutput::Classification { .. }) => true,
        }
    }

    /// The metric used when a task names none.
    pub fn default_for(output: &HeadOutput) -> Self {
        match output {
            HeadOutput::Classification { .. } => Self::Accuracy,
            HeadOutput::Regression => Self::Spearman,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|metric| metric.name() == text).ok_or_else(|| text.to_owned())
    }
}
