//! Prediction heads: what stands on the trunk's first token.

use serde::{Deserialize, Serialize};

/// A prediction head, with AdapterHub's options and defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// What it predicts.
    pub output: HeadOutput,
    /// Linear layers; between two of them stands the activation.
    pub layers: u32,
    /// Activation between the layers.
    pub activation: HeadActivation,
    /// Dropout in front of each layer; `None` takes the trunk's hidden dropout. Only active with base-model dropout.
    pub dropout: Option<f64>,
    /// Reads the trunk's pooler instead of the first token.
    pub use_pooler: bool,
    /// Linear layers have a bias.
    pub bias: bool,
}

/// What a head predicts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HeadOutput {
    /// One of several classes; cross-entropy loss.
    Classification {
        /// Class names in the order of their ids.
        labels: Vec<String>,
    },
    /// One number; mean squared error.
    Regression,
}

/// Activation between a head's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadActivation {
    /// tanh
    Tanh,
    /// max(0, x)
    Relu,
    /// Exact GELU.
    Gelu,
}

impl Head {
    /// AdapterHub's default head: two layers with tanh between them.
    pub fn new(output: HeadOutput) -> Self {
        Self { output, layers: 2, activation: HeadActivation::Tanh, dropout: None, use_pooler: false, bias: true }
    }

    /// Numbers in one row of logits.
    pub fn outputs(&self) -> usize {
        match &self.output {
            HeadOutput::Classification { labels } => labels.len(),
            HeadOutput::Regression => 1,
        }
    }
}
