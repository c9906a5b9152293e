//! Scores over predictions, and the losses that evaluations report, in plain Rust.
//!
//! Definitions are scikit-learn's and scipy's; where those give no number (a correlation of constants) the score is 0,
//! which is what knowing nothing deserves. A score is never NaN. Sums run in `f64` in the order of the rows, so a
//! score depends on predictions alone (invariant 5).

use std::{cmp::Ordering, collections::BTreeMap};

use graftwork_shared::{head::HeadOutput, metric::Metric};

/// What a model said about rows with known labels; the two lists have one length.
#[derive(Clone, Debug, PartialEq)]
pub enum Predictions {
    /// Class ids.
    Classes {
        /// What the model said.
        predicted: Vec<u32>,
        /// What is right.
        labels: Vec<u32>,
    },
    /// Numbers.
    Values {
        /// What the model said.
        predicted: Vec<f32>,
        /// What is right.
        targets: Vec<f32>,
    },
}

impl Predictions {
    /// Every metric that fits a head of this output.
    pub fn scores(&self, output: &HeadOutput) -> BTreeMap<Metric, f64> {
        Metric::ALL
            .into_iter()
            .filter(|metric| metric.fits(output))
            .map(|metric| (metric, self.score(metric)))
            .collect()
    }

    /// One score, more is better: 0 to 1 for accuracy and F1, -1 to 1 for correlations. 0 without rows, for a metric
    /// of the other kind of prediction, and where the metric's definition divides by 0:
    ///
    /// - F1 of a class that is neither predicted nor present (left out of the macro mean, as scikit-learn does);
    /// - Matthews, Pearson and Spearman when all predictions or all labels are the same.
    pub fn score(&self, metric: Metric) -> f64 {
        match self {
            Self::Classes { predicted, labels } => {
                let counts = Counts::of(predicted, labels);
                match metric {
                    Metric::Accuracy | Metric::F1Micro => ratio(counts.right(), labels.len() as f64),
                    Metric::F1 => counts.f1(1),
                    Metric::F1Macro => counts.f1_macro(),
                    Metric::Matthews => counts.matthews(),
                    Metric::Pearson | Metric::Spearman => 0.0,
                }
            }
            Self::Values { predicted, targets } => {
                let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
                let (predicted, targets) = (wide(predicted), wide(targets));
                match metric {
                    Metric::Pearson => pearson(&predicted, &targets),
                    Metric::Spearman => pearson(&mean_ranks(&predicted), &mean_ranks(&targets)),
                    _ => 0.0,
                }
            }
        }
    }
}

/// Index of the largest logit; the first of equals.
pub fn largest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best
}

/// Cross-entropy of one row: `log(Σ exp(logits)) - logits[label]`.
pub(crate) fn cross_entropy(logits: &[f32], label: usize) -> f64 {
    let wide = || logits.iter().map(|&logit| f64::from(logit));
    let peak = wide().fold(f64::NEG_INFINITY, f64::max);
    wide().map(|logit| (logit - peak).exp()).sum::<f64>().ln() + peak - f64::from(logits[label])
}

/// Per class: rows predicted and right, rows predicted, rows labelled.
struct Counts(BTreeMap<u32, [f64; 3]>);

impl Counts {
    fn of(predicted: &[u32], labels: &[u32]) -> Self {
        let mut counts = BTreeMap::<u32, [f64; 3]>::new();
        for (&predicted, &label) in predicted.iter().zip(labels) {
            if predicted == label {
                counts.entry(label).or_default()[0] += 1.0;
            }
            counts.entry(predicted).or_default()[1] += 1.0;
            counts.entry(label).or_default()[2] += 1.0;
        }
        Self(counts)
    }

    fn sum(&self, term: impl Fn(&[f64; 3]) -> f64) -> f64 {
        self.0.values().map(term).sum()
    }

    fn right(&self) -> f64 {
        self.sum(|[right, ..]| *right)
    }

    fn f1(&self, class: u32) -> f64 {
        let [right, predicted, labelled] = self.0.get(&class).copied().unwrap_or_default();
        ratio(2.0 * right, predicted + labelled)
    }

    fn f1_macro(&self) -> f64 {
        ratio(self.0.keys().map(|&class| self.f1(class)).sum(), self.0.len() as f64)
    }

    /// The R_K statistic (Gorodkin 2004), which is the Matthews coefficient for two classes.
    fn matthews(&self) -> f64 {
        let rows = self.sum(|[_, _, labelled]| *labelled);
        let both = self.sum(|[_, predicted, labelled]| predicted * labelled);
        let spread = |square: f64| rows * rows - square;
        let (predicted, labelled) = (spread(self.sum(|[_, p, _]| p * p)), spread(self.sum(|[_, _, l]| l * l)));
        ratio(self.right() * rows - both, (predicted * labelled).sqrt())
    }
}

/// Pearson correlation; 0 when either side is constant or not finite.
fn pearson(first: &[f64], second: &[f64]) -> f64 {
    let mean = |values: &[f64]| ratio(values.iter().sum(), values.len() as f64);
    let (mean_first, mean_second) = (mean(first), mean(second));
    let (mut cross, mut square_first, mut square_second) = (0.0, 0.0, 0.0);
    for (a, b) in first.iter().zip(second) {
        let (a, b) = (a - mean_first, b - mean_second);
        cross += a * b;
        square_first += a * a;
        square_second += b * b;
    }
    ratio(cross, square_first.sqrt() * square_second.sqrt()).clamp(-1.0, 1.0)
}

/// Ranks from 1, ties at the mean of the ranks they share.
fn mean_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    // Partial order, so that 0.0 and -0.0 tie although total order keeps them apart.
    for ties in order.chunk_by(|&a, &b| values[a].partial_cmp(&values[b]) == Some(Ordering::Equal)) {
        let mean = f64::midpoint(start as f64 + 1.0, (start + ties.len()) as f64);
        for &row in ties {
            ranks[row] = mean;
        }
        start += ties.len();
    }
    ranks
}

/// The quotient, or 0 where it is none.
fn ratio(above: f64, below: f64) -> f64 {
    let quotient = above / below;
    if quotient.is_finite() { quotient } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(predicted: &[u32], labels: &[u32]) -> Predictions {
        Predictions::Classes { predicted: predicted.to_vec(), labels: labels.to_vec() }
    }

    fn values(predicted: &[f32], targets: &[f32]) -> Predictions {
        Predictions::Values { predicted: predicted.to_vec(), targets: targets.to_vec() }
    }

    #[track_caller]
    fn assert_scores(predictions: &Predictions, expected: &[(Metric, f64)]) {
        for (metric, value) in expected {
            let score = predictions.score(*metric);
            assert!((score - value).abs() < 1e-12, "{metric}: {score}, expected {value}");
        }
    }

    // Expected values: scikit-learn 1.9.1 and scipy 1.17.1.
    #[test]
    fn four_classes_score_as_in_scikit_learn() {
        let predictions = classes(&[0, 2, 2, 2, 1, 1, 3, 0, 1, 0, 3, 3], &[0, 1, 2, 2, 1, 0, 3, 2, 1, 0, 0, 3]);
        assert_scores(
            &predictions,
            &[
                (Metric::Accuracy, 2.0 / 3.0),
                (Metric::F1Macro, 0.676_190_476_190_476_2),
                (Metric::F1Micro, 2.0 / 3.0),
                (Metric::Matthews, 0.560_772_154_092_044_3),
            ],
        );
    }

    #[test]
    fn two_classes_score_as_in_scikit_learn() {
        let predictions = classes(&[0, 1, 0, 0, 1, 1, 1, 0, 0, 1], &[0, 1, 1, 0, 1, 0, 1, 1, 0, 0]);
        let (same, matthews) = (0.6, 0.2);
        let expected = [
            (Metric::Accuracy, same),
            (Metric::F1, same),
            (Metric::F1Macro, same),
            (Metric::F1Micro, same),
            (Metric::Matthews, matthews),
        ];
        assert_scores(&predictions, &expected);
    }

    #[test]
    fn a_class_that_never_occurs_is_left_out_of_the_macro_mean() {
        let predictions = classes(&[0, 3, 2, 0], &[0, 0, 2, 2]);
        let expected = [
            (Metric::F1Macro, 0.388_888_888_888_888_84),
            (Metric::Matthews, 0.223_606_797_749_978_96),
            (Metric::F1Micro, 0.5),
        ];
        assert_scores(&predictions, &expected);
    }

    #[test]
    fn constant_classes_score_zero_where_nothing_is_defined() {
        let predictions = classes(&[0, 0, 0, 0], &[0, 1, 0, 1]);
        assert_scores(&predictions, &[(Metric::F1, 0.0), (Metric::F1Macro, 1.0 / 3.0), (Metric::Matthews, 0.0)]);
        assert_scores(&classes(&[], &[]), &Metric::ALL.map(|metric| (metric, 0.0)));
    }

    #[test]
    fn correlations_are_those_of_scipy() {
        let predictions = values(&[0.1, 2.5, 2.5, -1.0, 4.25, 3.0, 2.5, 0.1], &[1., 2., 2., -3., 5., 2., 7.5, 0.5]);
        let score = predictions.score(Metric::Pearson);
        // The constants above are f64 in scipy and f32 here.
        assert!((score - 0.757_711_736_425_213_7).abs() < 1e-8, "{score}");
        assert_scores(&predictions, &[(Metric::Spearman, 0.817_626_233_818_269_9)]);
        let offset = values(&[1_000_001., 1_000_002., 1_000_004., 1_000_003.], &[1., 2., 3., 4.]);
        assert_scores(&offset, &[(Metric::Pearson, 0.8), (Metric::Spearman, 0.8)]);
        assert_scores(&values(&[1., 2.], &[5., 3.]), &[(Metric::Pearson, -1.0)]);
    }

    #[test]
    fn a_correlation_of_constants_is_zero_and_never_nan() {
        for predictions in [values(&[3.0; 4], &[1., 2., 3., 4.]), values(&[1.0], &[2.0]), values(&[], &[])] {
            assert_scores(&predictions, &Metric::ALL.map(|metric| (metric, 0.0)));
        }
        let broken = values(&[f32::NAN, 1.0, 2.0], &[1.0, 2.0, 3.0]);
        assert_scores(&broken, &[(Metric::Pearson, 0.0)]);
    }

    #[test]
    fn only_fitting_metrics_are_scored() {
        let scores = values(&[1., 2.], &[1., 2.]).scores(&HeadOutput::Regression);
        assert_eq!(scores.into_keys().collect::<Vec<_>>(), [Metric::Pearson, Metric::Spearman]);
        let labels = ["a", "b", "c"].map(str::to_owned).to_vec();
        let scores = classes(&[0, 1], &[0, 1]).scores(&HeadOutput::Classification { labels });
        assert!(!scores.contains_key(&Metric::F1) && scores.len() == 4);
    }

    #[test]
    fn cross_entropy_is_that_of_torch_and_survives_large_logits() {
        assert!((cross_entropy(&[1.0, -2.0, 0.5], 2) - 1.004_597).abs() < 1e-6);
        assert!((cross_entropy(&[100.0, 0.0, -100.0], 1) - 100.0).abs() < 1e-12);
        assert_eq!(largest(&[1.0, 3.0, 3.0]), 1);
    }
}
