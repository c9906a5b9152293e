//! Exact tests over the same rows before and after.
//!
//! If nothing changed, a row that came out differently could as well have come out the other way round. With one seed
//! that is McNemar's exact test. With several, one row is asked once for each seed and its answers hang together, so
//! rows are flipped whole: counting each pair of row and seed by itself would find more than there is.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, DiscreteCDF as _};

/// One-sided probabilities of a difference at least as far from none, if nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tails {
    /// Of a drop as large as this one.
    pub drop: f64,
    /// Of a gain as large as this one.
    pub gain: f64,
}

impl Tails {
    /// Nothing moved.
    pub const NONE: Self = Self { drop: 1.0, gain: 1.0 };

    /// Of either, in both directions.
    pub fn either(self) -> f64 {
        (2.0 * self.drop.min(self.gain)).min(1.0)
    }
}

/// McNemar's exact test: of the rows that changed, `lost` were right before and `won` are right after.
pub fn mcnemar(lost: u64, won: u64) -> Tails {
    let Ok(coin) = Binomial::new(0.5, lost + won) else { return Tails::NONE };
    // Chance that at most so many of the changed rows fall on one side.
    Tails { drop: coin.cdf(won), gain: coin.cdf(lost) }
}

/// Flips whole rows: `nets` holds for each row how many seeds more answer right after than before.
///
/// Exact: the distribution of the sum is built step by step. Equals [`mcnemar`] where no net is beyond 1.
pub fn sign_flips(nets: &[i32]) -> Tails {
    let sizes: Vec<usize> = nets.iter().filter(|net| **net != 0).map(|net| net.unsigned_abs() as usize).collect();
    let range: usize = sizes.iter().sum();
    if range == 0 {
        return Tails::NONE;
    }
    // Chance of each sum of the sizes that fall on the side of losses.
    let mut chances = vec![0.0_f64; range + 1];
    chances[0] = 1.0;
    let mut reached = 0;
    for size in sizes {
        reached += size;
        for lost in (0..=reached).rev() {
            let falls = if lost >= size { chances[lost - size] } else { 0.0 };
            chances[lost] = f64::midpoint(chances[lost], falls);
        }
    }
    let lost: usize = nets.iter().filter(|net| **net < 0).map(|net| net.unsigned_abs() as usize).sum();
    let tail = |from: usize| chances[from..].iter().sum::<f64>().min(1.0);
    Tails { drop: tail(lost), gain: tail(range - lost) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    /// Binomial tails by hand: 10 of 12 changed rows lost, (66 + 12 + 1) / 4096.
    #[test]
    fn mcnemar_is_a_binomial_tail() {
        let tails = mcnemar(10, 2);
        assert!((tails.drop - 79.0 / 4096.0).abs() < 1e-15, "{tails:?}");
        assert!((tails.gain - (1.0 - 13.0 / 4096.0)).abs() < 1e-12, "{tails:?}");
        // scipy 1.17.1: binomtest(5, 20).pvalue
        assert!((mcnemar(15, 5).either() - 0.041_389_465_332_031_25).abs() < 1e-12);
        assert_eq!(mcnemar(0, 0), Tails::NONE);
        assert!((mcnemar(7, 7).either() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_seed_is_mcnemars_test() {
        for (lost, won) in [(0, 0), (1, 0), (9, 3), (30, 41), (250, 200)] {
            let nets: Vec<i32> = [vec![-1; lost], vec![1; won], vec![0; 100]].concat();
            let (flips, binomial) = (sign_flips(&nets), mcnemar(lost as u64, won as u64));
            assert!((flips.drop - binomial.drop).abs() < 1e-10 && (flips.gain - binomial.gain).abs() < 1e-10);
        }
    }

    #[test]
    fn several_seeds_give_what_all_flips_give() {
        let nets = [-3, -2, 1, -1, 2, -3, 0, 1];
        let observed: i32 = nets.iter().sum();
        let moving: Vec<i32> = nets.iter().copied().filter(|net| *net != 0).collect();
        let sums: Vec<i32> = (0..1_u32 << moving.len())
            .map(|flips| moving.iter().enumerate().map(|(i, net)| if flips >> i & 1 == 1 { -net } else { *net }).sum())
            .collect();
        let share =
            |holds: &dyn Fn(&i32) -> bool| sums.iter().filter(|sum| holds(sum)).count() as f64 / sums.len() as f64;
        let tails = sign_flips(&nets);
        assert!((tails.drop - share(&|sum| *sum <= observed)).abs() < 1e-12, "{tails:?}");
        assert!((tails.gain - share(&|sum| *sum >= observed)).abs() < 1e-12, "{tails:?}");
    }

    /// Three seeds that agree are one piece of evidence, not three.
    #[test]
    fn seeds_that_agree_on_a_row_are_not_counted_thrice() {
        let mut random = Random::new(5);
        let (mut whole, mut split) = (0, 0);
        for _ in 0..2_000 {
            let nets: Vec<i32> = (0..60).map(|_| if random.uniform() < 0.5 { -3 } else { 3 }).collect();
            let lost = 3 * nets.iter().filter(|net| **net < 0).count() as u64;
            whole += u32::from(sign_flips(&nets).drop < 0.05);
            split += u32::from(mcnemar(lost, 180 - lost).drop < 0.05);
        }
        assert!(whole <= 120 && split > 250, "whole rows {whole}, pairs by themselves {split} of 2000");
    }
}
