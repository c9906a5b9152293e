//! Benjamini and Hochberg's step-up over all tests of a night (1995).
//!
//! Where nothing changed, the chance of naming anything at all is at most the level; where something did, at most that
//! share of what is named is wrong in the mean. It holds for tests that are independent or move together, as two
//! measures of one task do (Benjamini and Yekutieli 2001).

/// The level at which each test would just be found, in the order of the tests.
pub fn adjusted(probabilities: &[f64]) -> Vec<f64> {
    let count = probabilities.len() as f64;
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    let mut levels = vec![1.0; probabilities.len()];
    let mut lowest = 1.0_f64;
    for (above, &test) in order.iter().enumerate() {
        lowest = lowest.min(probabilities[test] * count / (count - above as f64));
        levels[test] = lowest;
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    // R 4.5: p.adjust(c(.01, .04, .03, .005, .2, .5), "BH")
    #[test]
    fn levels_are_those_of_r() {
        let levels = adjusted(&[0.01, 0.04, 0.03, 0.005, 0.2, 0.5]);
        let expected = [0.03, 0.06, 0.06, 0.03, 0.24, 0.5];
        assert!(levels.iter().zip(expected).all(|(level, expected)| (level - expected).abs() < 1e-12), "{levels:?}");
    }

    #[test]
    fn one_test_is_itself_and_none_are_none() {
        assert_eq!(adjusted(&[0.3]), [0.3]);
        assert!(adjusted(&[]).is_empty());
        assert_eq!(adjusted(&[1.0, 1.0]), [1.0, 1.0]);
    }
}
