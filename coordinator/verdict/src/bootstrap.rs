//! The paired bootstrap: rows are drawn again, the same ones for both nights and for all seeds.

use serde::{Deserialize, Serialize};

use crate::{Random, Scorer, Tails};

/// Draws after which it is looked whether more are needed.
const FIRST: u32 = 500;
/// Differences beyond the one observed after which no further draw can change the verdict (Besag and Clifford 1991).
const ENOUGH: u32 = 20;

/// What drawing rows again gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resampled {
    /// One-sided probabilities.
    pub tails: Tails,
    /// Standard deviation of the difference over draws.
    pub deviation: f64,
    /// Draws that were made.
    pub draws: u32,
}

/// Draws rows again for the mean over pairs of (after - before).
///
/// At most `most` draws are made; fewer where the smaller tail is plainly large. A tail is never 0: the observed
/// difference counts as one draw.
pub fn paired_bootstrap(pairs: &[(Scorer, Scorer)], rows: usize, most: u32, random: &mut Random) -> Resampled {
    let difference = |weights: &[f64]| {
        let sum: f64 = pairs.iter().map(|(before, after)| after.score(weights) - before.score(weights)).sum();
        sum / pairs.len() as f64
    };
    let mut weights = vec![1.0; rows];
    let observed = difference(&weights);
    if rows == 0 || pairs.is_empty() {
        return Resampled { tails: Tails::NONE, deviation: 0.0, draws: 0 };
    }
    let (mut sum, mut square, mut lower, mut higher, mut draws) = (0.0, 0.0, 0, 0, 0);
    while draws < most && (draws < FIRST || lower.min(higher) < ENOUGH) {
        weights.fill(0.0);
        (0..rows).for_each(|_| weights[random.below(rows)] += 1.0);
        // Where there is no difference at all, draws spread around 0 as they now spread around the observed one.
        let moved = difference(&weights) - observed;
        sum += moved;
        square += moved * moved;
        lower += u32::from(moved <= observed);
        higher += u32::from(moved >= observed);
        draws += 1;
    }
    let count = f64::from(draws);
    let tail = |beyond: u32| f64::from(beyond + 1) / (count + 1.0);
    let variance = (square - sum * sum / count) / (count - 1.0).max(1.0);
    let tails = Tails { drop: tail(lower), gain: tail(higher) };
    Resampled { tails, deviation: variance.max(0.0).sqrt(), draws }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answers, Measure, mcnemar};

    fn scorer(truth: &[u32], given: &[u32]) -> Scorer {
        Scorer::new(Measure::Accuracy, &Answers::Classes(truth.to_vec()), &Answers::Classes(given.to_vec()))
    }

    /// 400 rows: 30 lost, 10 won. The spread is known in closed form, and the tail is near McNemar's.
    #[test]
    fn accuracy_spreads_as_it_must() {
        let truth = vec![1; 400];
        let before: Vec<u32> = (0..400).map(|row| u32::from(!(30..40).contains(&row))).collect();
        let after: Vec<u32> = (0..400).map(|row| u32::from(row >= 30)).collect();
        let pairs = [(scorer(&truth, &before), scorer(&truth, &after))];
        let found = paired_bootstrap(&pairs, 400, 20_000, &mut Random::new(1));
        let expected = ((0.1 - 0.05 * 0.05) / 400.0_f64).sqrt();
        assert!((found.deviation / expected - 1.0).abs() < 0.03, "{found:?}, expected {expected}");
        let exact = mcnemar(30, 10).drop;
        assert!(found.tails.drop < 4.0 * exact && found.tails.drop > exact / 10.0, "{found:?}, McNemar {exact}");
        assert!(found.tails.gain > 0.99 && found.draws > 5_000, "{found:?}");
    }

    #[test]
    fn equal_seeds_draw_equal_rows_and_plain_cases_end_early() {
        let truth: Vec<u32> = (0..200).map(|row| row % 2).collect();
        let mut given = truth.clone();
        given[3] ^= 1;
        let mut other = truth.clone();
        other[8] ^= 1;
        let pairs = [(scorer(&truth, &given), scorer(&truth, &other))];
        let draw = |seed| paired_bootstrap(&pairs, 200, 10_000, &mut Random::new(seed));
        assert_eq!(draw(4), draw(4));
        assert_ne!(draw(4), draw(5));
        assert_eq!(draw(4).draws, FIRST);
    }

    #[test]
    fn nothing_to_compare_is_no_evidence() {
        let found = paired_bootstrap(&[], 10, 1_000, &mut Random::new(1));
        assert_eq!((found.tails, found.draws), (Tails::NONE, 0));
        let same = (scorer(&[1, 0], &[1, 1]), scorer(&[1, 0], &[1, 1]));
        let found = paired_bootstrap(&[same], 2, 1_000, &mut Random::new(1));
        assert!(found.tails.drop > 0.99 && found.deviation == 0.0, "{found:?}");
    }
}
