//! Scores of one split: predictions are gathered batch after batch, in the order of the rows, and become an
//! evaluation, one line for each example, and the mean attention of a fusion.
//!
//! All sums run on one thread in the order of the batches, so which thread computed a batch cannot change a byte.

use std::collections::BTreeMap;

use graftwork_shared::{
    assignment::Evaluation,
    head::{Head, HeadOutput},
};
use serde::Serialize;

use crate::{
    EngineError, FusionAttention, HeadLogits, Lane, Prediction, Targets,
    metrics::{Predictions, cross_entropy, largest},
};

/// Predictions of one split with what is right, for a network with one head.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    output: HeadOutput,
    outputs: usize,
    rows: Vec<u64>,
    logits: Vec<f32>,
    predictions: Predictions,
    loss_sum: f64,
    attention: BTreeMap<u32, Attention>,
}

/// Weights of one layer, each times the tokens it is a mean of.
#[derive(Clone, Debug, Default, PartialEq)]
struct Attention {
    tokens: f64,
    weights: Vec<f64>,
}

/// One line of a predictions file. Fields are in this order.
#[derive(Serialize)]
struct Line<'a, T: Serialize> {
    row: u64,
    label: T,
    prediction: T,
    logits: &'a [f32],
}

impl Scored {
    /// Nothing scored yet, for this head.
    pub fn new(head: &Head) -> Self {
        let (predicted, labels, targets) = (Vec::new(), Vec::new(), Vec::new());
        let predictions = match head.output {
            HeadOutput::Classification { .. } => Predictions::Classes { predicted, labels },
            HeadOutput::Regression => Predictions::Values { predicted: targets.clone(), targets },
        };
        Self {
            output: head.output.clone(),
            outputs: head.outputs(),
            rows: Vec::new(),
            logits: Vec::new(),
            predictions,
            loss_sum: 0.0,
            attention: BTreeMap::new(),
        }
    }

    /// Adds the next batch. Its targets must be of the head's kind and its logits one row for each of its rows.
    pub fn add(&mut self, batch: &Lane, prediction: &Prediction) -> Result<(), EngineError> {
        let wrong = |what: String| EngineError::Rows(what);
        let [HeadLogits { outputs, logits, .. }] = prediction.heads.as_slice() else {
            return Err(wrong(format!("{} heads answered, scores need one", prediction.heads.len())));
        };
        let rows = batch.rows.len();
        if *outputs != self.outputs || logits.len() != rows * outputs || batch.targets.len() != rows {
            let (found, targets) = (logits.len(), batch.targets.len());
            return Err(wrong(format!(
                "{rows} rows of {} outputs got {found} logits and {targets} targets",
                self.outputs
            )));
        }
        match (&mut self.predictions, &batch.targets) {
            (Predictions::Classes { predicted, labels }, Targets::Classes(classes)) => {
                for (logits, &class) in logits.chunks_exact(*outputs).zip(classes) {
                    let label = usize::try_from(class).ok().filter(|label| label < outputs);
                    let label = label.ok_or_else(|| wrong(format!("class {class} of a head with {outputs}")))?;
                    self.loss_sum += cross_entropy(logits, label);
                    predicted.push(id(largest(logits)));
                    labels.push(id(label));
                }
            }
            (Predictions::Values { predicted, targets }, Targets::Values(values)) => {
                for (&value, &target) in logits.iter().zip(values) {
                    self.loss_sum += (f64::from(value) - f64::from(target)).powi(2);
                    predicted.push(value);
                    targets.push(target);
                }
            }
            _ => return Err(wrong("targets are of another kind than the head".to_owned())),
        }
        self.rows.extend(&batch.rows);
        self.logits.extend(logits);
        prediction.fusion_attention.iter().for_each(|attention| self.add_attention(attention));
        Ok(())
    }

    fn add_attention(&mut self, of: &FusionAttention) {
        let sum = self.attention.entry(of.layer).or_default();
        sum.weights.resize(of.weights.len().max(sum.weights.len()), 0.0);
        sum.tokens += of.tokens as f64;
        for (sum, weight) in sum.weights.iter_mut().zip(&of.weights) {
            *sum += weight * of.tokens as f64;
        }
    }

    /// How many rows were scored.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Mean loss and every metric that fits the head, as of update `step`.
    pub fn evaluation(&self, step: u64) -> Evaluation {
        let loss = self.loss_sum / self.rows.len().max(1) as f64;
        Evaluation { step, loss, metrics: self.predictions.scores(&self.output) }
    }

    /// JSON lines, one for each row: `row`, `label`, `prediction` (class names, or numbers for regression), `logits`.
    pub fn lines(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, logits) in self.logits.chunks_exact(self.outputs).enumerate() {
            let row = self.rows[index];
            let written = match (&self.predictions, &self.output) {
                (Predictions::Classes { predicted, labels }, HeadOutput::Classification { labels: names }) => {
                    let name = |class: u32| names[class as usize].as_str();
                    let (label, prediction) = (name(labels[index]), name(predicted[index]));
                    serde_json::to_writer(&mut bytes, &Line { row, label, prediction, logits })
                }
                (Predictions::Values { predicted, targets }, _) => {
                    let (label, prediction) = (targets[index], predicted[index]);
                    serde_json::to_writer(&mut bytes, &Line { row, label, prediction, logits })
                }
                _ => unreachable!("predictions are made for the head's output"),
            };
            written.expect("numbers and names are JSON");
            bytes.push(b'\n');
        }
        bytes
    }

    /// Mean attention by layer, over all tokens scored: one weight for each fused adapter that acts in the layer.
    pub fn attention(&self) -> BTreeMap<u32, Vec<f64>> {
        let mean = |sum: &Attention| sum.weights.iter().map(|weight| weight / sum.tokens.max(1.0)).collect();
        self.attention.iter().map(|(&layer, sum)| (layer, mean(sum))).collect()
    }
}

fn id(class: usize) -> u32 {
    u32::try_from(class).expect("a head has fewer than 2^32 classes")
}

#[cfg(test)]
mod tests {
    use graftwork_shared::{metric::Metric, recipe::trained_slot};

    use super::*;
    use crate::Tokens;

    fn batch(first: u64, targets: Targets) -> Lane {
        let rows = (first..).take(targets.len()).collect();
        Lane { tokens: Tokens::default(), targets, rows }
    }

    fn prediction(outputs: usize, logits: &[f32], weights: &[f64]) -> Prediction {
        let head = HeadLogits { head: trained_slot(), outputs, logits: logits.to_vec() };
        let attention = |layer| FusionAttention {
            fusion: "trained".to_owned(),
            layer,
            tokens: logits.len() as u64,
            weights: weights.to_vec(),
        };
        Prediction { heads: vec![head], fusion_attention: vec![attention(0), attention(2)] }
    }

    fn two_classes() -> Head {
        Head::new(HeadOutput::Classification { labels: vec!["no".to_owned(), "yes".to_owned()] })
    }

    #[test]
    fn batches_add_up_to_scores_lines_and_attention() {
        let mut scored = Scored::new(&two_classes());
        scored
            .add(&batch(0, Targets::Classes(vec![1, 0])), &prediction(2, &[0.5, 1.5, 2.0, 0.0], &[0.25, 0.75]))
            .unwrap();
        scored.add(&batch(7, Targets::Classes(vec![0])), &prediction(2, &[0.0, 1.0], &[1.0, 0.0])).unwrap();
        let evaluation = scored.evaluation(9);
        assert_eq!((evaluation.step, evaluation.metrics[&Metric::Accuracy]), (9, 2.0 / 3.0));
        assert!((evaluation.loss - (0.313_261_7 + 0.126_928 + 1.313_261_7) / 3.0).abs() < 1e-6);
        let lines = String::from_utf8(scored.lines()).unwrap();
        assert_eq!(lines.lines().next().unwrap(), r#"{"row":0,"label":"yes","prediction":"yes","logits":[0.5,1.5]}"#);
        assert!(lines.ends_with("{\"row\":7,\"label\":\"no\",\"prediction\":\"yes\",\"logits\":[0.0,1.0]}\n"));
        assert_eq!(scored.attention(), BTreeMap::from([(0, vec![0.5, 0.5]), (2, vec![0.5, 0.5])]));
    }

    #[test]
    fn regression_is_scored_by_squared_error() {
        let mut scored = Scored::new(&Head::new(HeadOutput::Regression));
        scored.add(&batch(0, Targets::Values(vec![1.0, -1.0])), &prediction(1, &[2.0, -4.0], &[])).unwrap();
        assert!((scored.evaluation(1).loss - 5.0).abs() < 1e-12);
        assert!(scored.lines().starts_with(br#"{"row":0,"label":1.0,"prediction":2.0,"logits":[2.0]}"#));
    }

    #[test]
    fn logits_that_do_not_fit_the_rows_are_refused() {
        let mut scored = Scored::new(&two_classes());
        let rows = || batch(0, Targets::Classes(vec![1]));
        assert!(scored.add(&rows(), &prediction(2, &[0.0; 4], &[])).is_err());
        assert!(scored.add(&rows(), &prediction(3, &[0.0; 3], &[])).is_err());
        assert!(scored.add(&batch(0, Targets::Classes(vec![2])), &prediction(2, &[0.0; 2], &[])).is_err());
        assert!(scored.add(&batch(0, Targets::Values(vec![1.0])), &prediction(2, &[0.0; 2], &[])).is_err());
        assert_eq!(scored.rows(), 0);
    }
}
