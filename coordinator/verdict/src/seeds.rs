//! What another seed would give.
//!
//! Two trainings that differ in a seed alone give other scores, so a difference that holds for these models need not
//! hold for the way in which they are trained. How far seeds spread is taken from both nights and from earlier ones.
//! Three seeds tell little of a spread, so the spreads of all measurements are moved towards what they have in common:
//! the moderated variances of Smyth (2004), which is how thousands of genes with three replicates each are tested.

use serde::{Deserialize, Serialize};
use statrs::{
    distribution::{ContinuousCDF as _, StudentsT},
    function::gamma::digamma,
};

/// How far the score of one seed lies from that of another, as a variance with its degrees of freedom.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Variance of one seed's score.
    pub variance: f64,
    /// Degrees of freedom, with what the other measurements add.
    pub freedom: f64,
}

/// Scores of one measurement: for each night that trained anew, one score a seed.
pub type Groups = Vec<Vec<f64>>;

/// Degrees of freedom that others may add at most: tasks do differ, however alike few of them look. Twelve tasks whose seeds
/// spread up to twice as far in one as in another, over 1,000 rows with three seeds, were named in 5.6 % of 6,000 quiet nights
/// with 24, in 5.0 % with 12 and in 4.6 % with 8; a drop of two points then in 28, 26 and 25 %.
const MOST_SHARED: f64 = 8.0;

/// The spread of each measurement; `None` where no night has two seeds.
pub fn spreads(measurements: &[Groups]) -> Vec<Option<Spread>> {
    let own: Vec<Option<Spread>> = measurements.iter().map(pooled).collect();
    let Some(shared) = shared(&own) else { return own };
    let moderate = |own: Spread| {
        let freedom = own.freedom + shared.freedom;
        let squares = own.freedom * own.variance + shared.freedom * shared.variance;
        Spread { variance: squares / freedom, freedom }
    };
    own.into_iter().map(|own| own.map(moderate)).collect()
}

/// Half the width of the 95 % interval of a mean over seeds, by Student's t; `None` with fewer than two of them.
pub fn half_width(scores: &[f64]) -> Option<f64> {
    let count = scores.len() as f64;
    let Spread { variance, freedom } = pooled(&vec![scores.to_vec()])?;
    let student = StudentsT::new(0.0, 1.0, freedom).ok()?;
    Some(student.inverse_cdf(0.975) * (variance / count).sqrt())
}

/// The variance within groups.
fn pooled(groups: &Groups) -> Option<Spread> {
    let (mut squares, mut freedom) = (0.0, 0.0);
    for group in groups.iter().filter(|group| group.len() > 1) {
        let mean = group.iter().sum::<f64>() / group.len() as f64;
        squares += group.iter().map(|score| (score - mean).powi(2)).sum::<f64>();
        freedom += (group.len() - 1) as f64;
    }
    (freedom > 0.0).then(|| Spread { variance: squares / freedom, freedom })
}

/// What the spreads have in common: the scaled inverse chi-square of which they are draws.
fn shared(own: &[Option<Spread>]) -> Option<Spread> {
    let spreads: Vec<Spread> = own.iter().flatten().copied().filter(|spread| spread.variance > 0.0).collect();
    if spreads.len() < 3 {
        return None;
    }
    let count = spreads.len() as f64;
    let half = |spread: &Spread| spread.freedom / 2.0;
    let logs: Vec<f64> = spreads.iter().map(|s| s.variance.ln() - digamma(half(s)) + half(s).ln()).collect();
    let mean = logs.iter().sum::<f64>() / count;
    let spread = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let beyond = spread - spreads.iter().map(|s| trigamma(half(s))).sum::<f64>() / count;
    let freedom = if beyond > 0.0 { 2.0 * inverse_trigamma(beyond) } else { f64::INFINITY };
    let freedom = freedom.min(MOST_SHARED);
    let variance = (mean + digamma(freedom / 2.0) - (freedom / 2.0).ln()).exp();
    Some(Spread { variance, freedom })
}

/// The second derivative of the logarithm of the gamma function, for x above 0.
fn trigamma(mut x: f64) -> f64 {
    let mut sum = 0.0;
    while x < 8.0 {
        sum += 1.0 / (x * x);
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    // The asymptotic series (Abramowitz and Stegun 6.4.12).
    let series = inverse * (1.0 / 6.0 - inverse * (1.0 / 30.0 - inverse * (1.0 / 42.0 - inverse / 30.0)));
    sum + 1.0 / x + inverse / 2.0 + series / x
}

/// Where [`trigamma`] has a value: it falls steadily, so halving an interval finds it.
fn inverse_trigamma(value: f64) -> f64 {
    let (mut low, mut high) = (1e-8_f64, 1e8_f64);
    for _ in 0..200 {
        let middle = (low * high).sqrt();
        if trigamma(middle) > value {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low * high).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    #[test]
    fn trigamma_and_its_inverse_are_right() {
        // pi^2 / 6, pi^2 / 2, and scipy's polygamma(1, 10).
        let known = [(1.0, 1.644_934_066_848_226_4), (0.5, 4.934_802_200_544_679), (10.0, 0.105_166_335_681_685_74)];
        for (x, value) in known {
            assert!((trigamma(x) - value).abs() < 1e-9, "{x}: {}", trigamma(x));
            assert!((inverse_trigamma(value) - x).abs() < 1e-6 * x);
        }
    }

    #[test]
    fn groups_are_pooled_around_their_own_means() {
        let spread = pooled(&vec![vec![1.0, 2.0, 3.0], vec![11.0, 13.0], vec![5.0]]).unwrap();
        assert!((spread.variance - 4.0 / 3.0).abs() < 1e-12, "{spread:?}");
        assert!((spread.freedom - 3.0).abs() < 1e-12);
        assert_eq!(pooled(&vec![vec![1.0], vec![2.0]]), None);
    }

    #[test]
    fn an_interval_of_a_mean_is_students() {
        // Quantiles of t with 2, 1 and 4 degrees of freedom: 4.302653, 12.706205, 2.776445.
        for (scores, quantile, deviation) in [
            (vec![0.91, 0.92, 0.93], 4.302_653, 0.01),
            (vec![0.5, 0.7], 12.706_205, 0.02_f64.sqrt()),
            (vec![1.0, 2.0, 3.0, 4.0, 5.0], 2.776_445, 2.5_f64.sqrt()),
        ] {
            let wanted = quantile * deviation / (scores.len() as f64).sqrt();
            let found = half_width(&scores).unwrap();
            assert!((found - wanted).abs() < 1e-5 * wanted, "{scores:?}: {found}, not {wanted}");
        }
        assert_eq!(half_width(&[0.5]), None);
        assert_eq!(half_width(&[0.5, 0.5]), Some(0.0));
    }

    /// Drawn from one variance, all come near it; a measurement without seeds stays without.
    #[test]
    fn spreads_that_are_alike_are_moved_together() {
        let mut random = Random::new(2);
        let mut group = |deviation: f64| (0..3).map(|_| 0.8 + deviation * random.normal()).collect::<Vec<_>>();
        let mut measurements: Vec<Groups> = (0..20).map(|_| vec![group(0.01), group(0.01)]).collect();
        measurements.push(vec![vec![0.8]]);
        let found = spreads(&measurements);
        assert_eq!(found[20], None);
        for spread in found[..20].iter().flatten() {
            assert!(spread.variance > 0.4e-4 && spread.variance < 2.5e-4 && spread.freedom > 10.0, "{spread:?}");
        }
        let alone = spreads(&measurements[..1])[0].unwrap();
        assert!((alone.freedom - 4.0).abs() < 1e-12, "{alone:?}");
    }

    #[test]
    fn spreads_that_differ_much_keep_their_own() {
        let mut random = Random::new(3);
        let mut group = |deviation: f64| (0..3).map(|_| deviation * random.normal()).collect::<Vec<_>>();
        let deviation = |index: i32| 10_f64.powi(-(index % 4));
        let measurements: Vec<Groups> =
            (0..20).map(|index| (0..4).map(|_| group(deviation(index))).collect()).collect();
        for (index, spread) in (0..20).zip(spreads(&measurements)) {
            let spread = spread.unwrap();
            assert!(spread.freedom < 9.5, "{spread:?}");
            let ratio = spread.variance / deviation(index).powi(2);
            assert!(ratio > 0.1 && ratio < 10.0, "{index}: {ratio}");
        }
    }
}
