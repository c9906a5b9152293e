//! What would have been found: the drop that a test names as often as it promises.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF as _, Normal, StudentsT};

use crate::Spread;

/// What moves the mean difference over seeds when nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Standard error from the rows that were asked.
    pub rows: f64,
    /// Seeds of each night.
    pub seeds: u32,
    /// How far seeds spread, where that is known.
    pub spread: Option<Spread>,
}

impl Noise {
    /// Standard error from the seeds of both nights.
    pub fn of_seeds(&self) -> f64 {
        self.spread.map_or(0.0, |spread| (2.0 * spread.variance / f64::from(self.seeds.max(1))).sqrt())
    }

    /// Standard error from both. What a single row's answer owes to the seed is in both parts, so this is too large
    /// rather than too small.
    pub fn total(&self) -> f64 {
        // Not `hypot`: the one of newer C libraries is not in older ones.
        let seeds = self.of_seeds();
        (self.rows * self.rows + seeds * seeds).sqrt()
    }

    /// The smaller of the two, of those that there are: the standard error is not below it.
    fn least(&self) -> f64 {
        let parts = [self.rows, self.of_seeds()].into_iter().filter(|part| *part > 0.0);
        parts.reduce(f64::min).unwrap_or(0.0)
    }

    /// One-sided probability that seeds alone give a mean difference of at least this much.
    pub fn seeds_alone(&self, difference: f64) -> Option<f64> {
        let spread = self.spread?;
        let error = self.of_seeds();
        if error == 0.0 {
            return Some(if difference > 0.0 { 0.0 } else { 1.0 });
        }
        let student = StudentsT::new(0.0, 1.0, spread.freedom).ok()?;
        Some(student.sf(difference / error))
    }

    /// The smallest difference that both tests name at this level, and that is large enough to matter.
    pub fn named_from(&self, level: f64, threshold: f64) -> f64 {
        let by_rows = normal().inverse_cdf(1.0 - level) * self.rows;
        let student = self.spread.and_then(|spread| StudentsT::new(0.0, 1.0, spread.freedom).ok());
        let by_seeds = student.map_or(0.0, |student| student.inverse_cdf(1.0 - level) * self.of_seeds());
        by_rows.max(by_seeds).max(threshold)
    }

    /// The least chance with which a true drop of this size is named. More noise carries a small drop over the bound more
    /// often and a large one less often, so a small one is held against the least noise and a large one against the most.
    pub fn power(&self, drop: f64, level: f64, threshold: f64) -> f64 {
        let beyond = drop - self.named_from(level, threshold);
        let noise = if beyond >= 0.0 { self.total() } else { self.least() };
        if noise == 0.0 {
            return if beyond >= 0.0 { 1.0 } else { 0.0 };
        }
        normal().cdf(beyond / noise)
    }

    /// The smallest true drop that is named with this chance.
    pub fn detectable(&self, power: f64, level: f64, threshold: f64) -> f64 {
        self.named_from(level, threshold) + normal().inverse_cdf(power) * self.total()
    }

    /// Half the width of an interval that holds the true difference with this chance.
    pub fn half_width(&self, chance: f64) -> f64 {
        let tail = f64::midpoint(1.0, chance);
        let student = self.spread.and_then(|spread| StudentsT::new(0.0, 1.0, spread.freedom).ok());
        let quantile = student.map_or_else(|| normal().inverse_cdf(tail), |student| student.inverse_cdf(tail));
        quantile * self.total()
    }
}

pub(crate) fn normal() -> Normal {
    Normal::standard()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREAD: Spread = Spread { variance: 1e-4, freedom: 10.0 };

    #[test]
    fn rows_alone_give_the_usual_sizes() {
        let noise = Noise { rows: 0.01, seeds: 1, spread: None };
        // 1.6449 and 0.8416 standard errors.
        assert!((noise.detectable(0.8, 0.05, 0.0) - 0.024_864_8).abs() < 1e-6);
        assert!((noise.power(0.024_864_8, 0.05, 0.0) - 0.8).abs() < 1e-4);
        assert!((noise.half_width(0.95) - 0.019_599_6).abs() < 1e-6);
        assert_eq!(noise.seeds_alone(0.1), None);
    }

    #[test]
    fn seeds_widen_what_is_needed() {
        let rows = Noise { rows: 0.004, seeds: 3, spread: None };
        let both = Noise { spread: Some(SPREAD), ..rows };
        let error = (2.0 * 1e-4 / 3.0_f64).sqrt();
        assert!((both.of_seeds() - error).abs() < 1e-12);
        // R: qt(0.95, 10) = 1.812461, pt(2, 10, lower.tail = FALSE) = 0.03669402
        assert!((both.named_from(0.05, 0.0) - 1.812_461 * error).abs() < 1e-7);
        assert!((both.seeds_alone(2.0 * error).unwrap() - 0.036_694_02).abs() < 1e-7);
        assert!(both.detectable(0.8, 0.05, 0.0) > rows.detectable(0.8, 0.05, 0.0));
        assert!((both.named_from(0.05, 0.5) - 0.5).abs() < 1e-12, "the threshold is a bound of its own");
    }

    /// Whatever the noise is between its parts and both together, the stated chance is no larger than the true one.
    #[test]
    fn stated_power_is_the_least_of_all_noise_that_may_be() {
        let noise = Noise { rows: 0.006, seeds: 3, spread: Some(SPREAD) };
        let named_from = noise.named_from(0.01, 0.0);
        for drop in [0.005, 0.01, 0.015, 0.02, 0.03, 0.05] {
            let stated = noise.power(drop, 0.01, 0.0);
            for error in [noise.rows, noise.of_seeds(), noise.total()] {
                assert!(stated <= normal().cdf((drop - named_from) / error) + 1e-12, "{drop} with {error}");
            }
        }
        let detectable = noise.detectable(0.8, 0.01, 0.0);
        assert!((noise.power(detectable, 0.01, 0.0) - 0.8).abs() < 1e-9);
    }

    #[test]
    fn without_noise_everything_beyond_the_threshold_is_found() {
        let noise = Noise { rows: 0.0, seeds: 1, spread: None };
        assert!(noise.power(0.02, 0.01, 0.01) > 0.999 && noise.power(0.005, 0.01, 0.01) < 0.001);
        let sure = Noise { spread: Some(Spread { variance: 0.0, freedom: 4.0 }), ..noise };
        assert_eq!((sure.seeds_alone(0.1), sure.seeds_alone(0.0)), (Some(0.0), Some(1.0)));
    }
}
