//! Scores over answers, where each row counts with a weight: that is how often a bootstrap drew it.
//!
//! Definitions are those of `graftwork_engine`: scikit-learn's and scipy's, and 0 where those give no number. With all
//! weights 1 a score here equals the one that a worker reports; whoever collects a night checks that.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// A score; more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Share of right classes.
    Accuracy,
    /// F1 of class 1.
    F1,
    /// Mean F1 over the classes that occur.
    F1Macro,
    /// Matthews correlation coefficient.
    Matthews,
    /// Pearson correlation.
    Pearson,
    /// Spearman rank correlation.
    Spearman,
}

/// What is right, or what a model said, row by row.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answers {
    /// Class ids.
    Classes(Vec<u32>),
    /// Numbers.
    Numbers(Vec<f64>),
}

/// A model that answers no number where it answered none before gives the same answers.
impl PartialEq for Answers {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Classes(these), Self::Classes(those)) => these == those,
            (Self::Numbers(these), Self::Numbers(those)) => {
                let same = |(this, that): (&f64, &f64)| this == that || (this.is_nan() && that.is_nan());
                these.len() == those.len() && these.iter().zip(those).all(same)
            }
            _ => false,
        }
    }
}

/// How far a number lies from what is right; what is none lies further than any.
pub fn distance(given: f64, truth: f64) -> f64 {
    let distance = (given - truth).abs();
    if distance.is_nan() { f64::INFINITY } else { distance }
}

impl Answers {
    /// How many rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(ids) => ids.len(),
            Self::Numbers(numbers) => numbers.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Scores one model's answers again and again under other weights.
#[derive(Clone, Debug)]
pub struct Scorer(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// Class ids of truth and answer, and the number of classes.
    Classes {
        measure: Measure,
        truth: Vec<u32>,
        given: Vec<u32>,
        classes: usize,
    },
    Pearson {
        truth: Vec<f64>,
        given: Vec<f64>,
    },
    /// Both sides in groups of ties from the lowest on.
    Spearman {
        truth: Vec<Vec<usize>>,
        given: Vec<Vec<usize>>,
    },
    /// The measure does not fit the answers.
    Nothing,
}

impl Scorer {
    /// Prepares a measure over answers; a measure that does not fit them scores 0, as a worker says.
    pub fn new(measure: Measure, truth: &Answers, given: &Answers) -> Self {
        Self(match (measure, truth, given) {
            (Measure::Pearson, Answers::Numbers(truth), Answers::Numbers(given)) => {
                Kind::Pearson { truth: truth.clone(), given: given.clone() }
            }
            (Measure::Spearman, Answers::Numbers(truth), Answers::Numbers(given)) => {
                Kind::Spearman { truth: ties(truth), given: ties(given) }
            }
            (Measure::Pearson | Measure::Spearman, ..) => Kind::Nothing,
            (measure, Answers::Classes(truth), Answers::Classes(given)) => {
                let classes = truth.iter().chain(given).max().map_or(0, |id| *id as usize + 1);
                Kind::Classes { measure, truth: truth.clone(), given: given.clone(), classes }
            }
            _ => Kind::Nothing,
        })
    }

    /// The score when row `i` counts `weights[i]` times.
    pub fn score(&self, weights: &[f64]) -> f64 {
        match &self.0 {
            Kind::Classes { measure, truth, given, classes } => {
                let mut counts = vec![[0.0; 3]; *classes];
                for ((&truth, &given), &weight) in truth.iter().zip(given).zip(weights) {
                    if truth == given {
                        counts[given as usize][0] += weight;
                    }
                    counts[given as usize][1] += weight;
                    counts[truth as usize][2] += weight;
                }
                of_classes(*measure, &counts)
            }
            Kind::Pearson { truth, given } => pearson(truth, given, weights),
            Kind::Spearman { truth, given } => {
                pearson(&mean_ranks(truth, weights), &mean_ranks(given, weights), weights)
            }
            Kind::Nothing => 0.0,
        }
    }

    /// The score over all rows once.
    pub fn plain(&self) -> f64 {
        let rows = match &self.0 {
            Kind::Classes { truth, .. } => truth.len(),
            Kind::Pearson { truth, .. } => truth.len(),
            Kind::Spearman { truth, .. } => truth.iter().map(Vec::len).sum(),
            Kind::Nothing => 0,
        };
        self.score(&vec![1.0; rows])
    }
}

/// From weights of right, given and true rows of each class.
fn of_classes(measure: Measure, counts: &[[f64; 3]]) -> f64 {
    let sum = |term: fn(&[f64; 3]) -> f64| counts.iter().map(term).sum::<f64>();
    let f1 = |[right, given, truth]: &[f64; 3]| ratio(2.0 * right, given + truth);
    let (right, rows) = (sum(|count| count[0]), sum(|count| count[2]));
    match measure {
        Measure::F1 => counts.get(1).map_or(0.0, f1),
        Measure::F1Macro => {
            let seen = || counts.iter().filter(|[_, given, truth]| given + truth > 0.0);
            ratio(seen().map(f1).sum(), seen().count() as f64)
        }
        Measure::Matthews => {
            let both = sum(|[_, given, truth]| given * truth);
            let given = rows * rows - sum(|[_, given, _]| given * given);
            let truth = rows * rows - sum(|[_, _, truth]| truth * truth);
            ratio(right * rows - both, (given * truth).sqrt())
        }
        _ => ratio(right, rows),
    }
}

fn pearson(first: &[f64], second: &[f64], weights: &[f64]) -> f64 {
    let rows: f64 = weights.iter().sum();
    let mean = |values: &[f64]| values.iter().zip(weights).map(|(value, weight)| value * weight).sum::<f64>() / rows;
    let (mean_first, mean_second) = (mean(first), mean(second));
    let (mut cross, mut square_first, mut square_second) = (0.0, 0.0, 0.0);
    for ((a, b), weight) in first.iter().zip(second).zip(weights) {
        let (a, b) = (a - mean_first, b - mean_second);
        cross += weight * a * b;
        square_first += weight * a * a;
        square_second += weight * b * b;
    }
    ratio(cross, square_first.sqrt() * square_second.sqrt()).clamp(-1.0, 1.0)
}

/// Rows with equal values together, lowest first.
fn ties(values: &[f64]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    // Partial order, so that 0.0 and -0.0 tie although total order keeps them apart.
    let equal = |a: &usize, b: &usize| values[*a].partial_cmp(&values[*b]) == Some(Ordering::Equal);
    order.chunk_by(equal).map(<[usize]>::to_vec).collect()
}

/// Ranks from 1 by row, ties at the mean of the ranks that they share.
fn mean_ranks(ties: &[Vec<usize>], weights: &[f64]) -> Vec<f64> {
    let mut ranks = vec![0.0; weights.len()];
    let mut below = 0.0;
    for rows in ties {
        let here: f64 = rows.iter().map(|row| weights[*row]).sum();
        rows.iter().for_each(|row| ranks[*row] = below + f64::midpoint(1.0, here));
        below += here;
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

    #[track_caller]
    fn assert_score(measure: Measure, given: &Answers, truth: &Answers, expected: f64) {
        let score = Scorer::new(measure, truth, given).plain();
        assert!((score - expected).abs() < 1e-12, "{measure:?}: {score}, expected {expected}");
    }

    // The same cases and values as the engine's own test (scikit-learn 1.9.1 and scipy 1.17.1).
    #[test]
    fn scores_are_those_of_the_engine() {
        let given = Answers::Classes(vec![0, 2, 2, 2, 1, 1, 3, 0, 1, 0, 3, 3]);
        let truth = Answers::Classes(vec![0, 1, 2, 2, 1, 0, 3, 2, 1, 0, 0, 3]);
        assert_score(Measure::Accuracy, &given, &truth, 2.0 / 3.0);
        assert_score(Measure::F1Macro, &given, &truth, 0.676_190_476_190_476_2);
        assert_score(Measure::Matthews, &given, &truth, 0.560_772_154_092_044_3);
        let given = Answers::Classes(vec![0, 1, 0, 0, 1, 1, 1, 0, 0, 1]);
        let truth = Answers::Classes(vec![0, 1, 1, 0, 1, 0, 1, 1, 0, 0]);
        assert_score(Measure::F1, &given, &truth, 0.6);
        let given = Answers::Numbers(vec![0.1, 2.5, 2.5, -1.0, 4.25, 3.0, 2.5, 0.1]);
        let truth = Answers::Numbers(vec![1., 2., 2., -3., 5., 2., 7.5, 0.5]);
        assert_score(Measure::Pearson, &given, &truth, 0.757_711_736_425_213_7);
        assert_score(Measure::Spearman, &given, &truth, 0.817_626_233_818_269_9);
    }

    #[test]
    fn what_is_not_defined_is_zero() {
        let constant = Answers::Numbers(vec![3.0; 4]);
        let truth = Answers::Numbers(vec![1., 2., 3., 4.]);
        assert_score(Measure::Pearson, &constant, &truth, 0.0);
        assert_score(Measure::Spearman, &constant, &truth, 0.0);
        let broken = Answers::Numbers(vec![f64::NAN, 1.0, 2.0, 3.0]);
        assert_score(Measure::Pearson, &broken, &truth, 0.0);
        assert_score(Measure::Accuracy, &constant, &truth, 0.0);
        assert_score(Measure::Spearman, &Answers::Classes(vec![1]), &Answers::Classes(vec![1]), 0.0);
        assert_score(Measure::F1, &Answers::Classes(vec![]), &Answers::Classes(vec![]), 0.0);
    }

    #[test]
    fn what_is_no_number_is_the_same_as_itself_and_worse_than_any() {
        let broken = Answers::Numbers(vec![f64::NAN, 0.5]);
        assert_eq!(broken, broken.clone());
        assert_ne!(broken, Answers::Numbers(vec![0.0, 0.5]));
        assert_ne!(broken, Answers::Numbers(vec![f64::NAN]));
        assert!(distance(f64::NAN, 1.0) > distance(1e300, 1.0) && distance(1.5, 1.0) > distance(0.75, 1.0));
    }

    /// A weight is a number of copies of the row.
    #[test]
    fn weights_count_as_copies() {
        let weights = [2.0, 0.0, 1.0, 3.0];
        let copies = |values: [f64; 4]| {
            let rows = values.into_iter().zip([2, 0, 1, 3]).flat_map(|(value, copies)| vec![value; copies]);
            Answers::Numbers(rows.collect())
        };
        let (truth, given) = ([1.0, 5.0, 2.0, 2.0], [0.5, 9.0, 0.5, 4.0]);
        for measure in [Measure::Pearson, Measure::Spearman] {
            let weighted = Scorer::new(measure, &Answers::Numbers(truth.to_vec()), &Answers::Numbers(given.to_vec()));
            assert_score(measure, &copies(given), &copies(truth), weighted.score(&weights));
        }
        let (truth, given) = (Answers::Classes(vec![0, 1, 1, 0]), Answers::Classes(vec![0, 1, 0, 1]));
        let accuracy = Scorer::new(Measure::Accuracy, &truth, &given).score(&weights);
        assert!((accuracy - 2.0 / 6.0).abs() < 1e-12, "{accuracy}");
    }
}
