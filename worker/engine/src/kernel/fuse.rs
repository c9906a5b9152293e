//! Attention of each token over several bottlenecks that lie side by side.
//!
//! An adapter's output is Uᵢ hᵢ + uᵢ, with hᵢ behind its activation. So a row of `[t, r + n]` belongs to all of them: r
//! values for the columns of all Uᵢ, and one for each uᵢ behind them.

use std::ops::Range;

use super::{exponential, norm::dot, vectorised};

/// What scores are made of, and what they weigh.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sides<'a> {
    /// Columns of each adapter among the r, one behind the other.
    pub(crate) columns: &'a [Range<usize>],
    /// All hᵢ, `[t, r]`.
    pub(crate) inner: &'a [f32],
    /// The vector that scores are taken along, times all Uᵢ and uᵢ: `[t, r + n]`.
    pub(crate) along: &'a [f32],
    /// What scores are multiplied with, `[t, n]`.
    pub(crate) mask: Option<&'a [f32]>,
}

impl Sides<'_> {
    /// Rows of `inner` and of `along`.
    fn sizes(&self) -> [usize; 2] {
        let width = self.columns.last().map_or(0, |columns| columns.end);
        [width, width + self.columns.len()]
    }
}

vectorised! {
    /// Fills `attention`, `[t, n]`, and `weighted`, `[t, r + n]`: all sᵢ hᵢ, and the sᵢ. A score is hᵢ times the adapter's
    /// columns of `along`, plus the one behind them, plus a constant of the token.
    pub(crate) fn forward(sides: &Sides, constants: Option<&[f32]>, attention: &mut [f32], weighted: &mut [f32]) {
        let count = sides.columns.len();
        let [width, reach] = sides.sizes();
        for (token, weights) in attention.chunks_exact_mut(count).enumerate() {
            let inner = &sides.inner[token * width..][..width];
            let (along, offsets) = sides.along[token * reach..][..reach].split_at(width);
            for ((weight, columns), offset) in weights.iter_mut().zip(sides.columns).zip(offsets) {
                *weight = dot(&inner[columns.clone()], &along[columns.clone()]) + offset;
            }
            if let Some(constants) = constants {
                weights.iter_mut().for_each(|weight| *weight += constants[token]);
            }
            if let Some(mask) = sides.mask {
                weights.iter_mut().zip(&mask[token * count..]).for_each(|(weight, mask)| *weight *= mask);
            }
            let largest = weights.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
            weights.iter_mut().for_each(|weight| *weight = exponential(*weight - largest));
            let factor = 1.0 / weights.iter().sum::<f32>();
            weights.iter_mut().for_each(|weight| *weight *= factor);
            let (out, shares) = weighted[token * reach..][..reach].split_at_mut(width);
            shares.copy_from_slice(weights);
            for (weight, columns) in weights.iter().zip(sides.columns) {
                let inner = &inner[columns.clone()];
                out[columns.clone()].iter_mut().zip(inner).for_each(|(out, inner)| *out = weight * inner);
            }
        }
    }
}

/// What the backward fills.
pub(crate) struct Slopes<'a> {
    /// Gradient of each hᵢ, `[t, r]`.
    pub(crate) inner: &'a mut [f32],
    /// `[t, r + n]`: the gradient dᵢ of each score times hᵢ, and the dᵢ. Times all Uᵢ and uᵢ it is the gradient of what scores
    /// are taken along.
    pub(crate) along: &'a mut [f32],
    /// Gradient of each token's constant.
    pub(crate) constants: &'a mut [f32],
}

vectorised! {
    /// From the gradient of the weighted sum, times all Uᵢ and uᵢ, `[t, r + n]`.
    pub(crate) fn backward(sides: &Sides, attention: &[f32], gradient: &[f32], slopes: &mut Slopes) {
        let count = sides.columns.len();
        let [width, reach] = sides.sizes();
        for (token, of_constant) in slopes.constants.iter_mut().enumerate() {
            let inner = &sides.inner[token * width..][..width];
            let (along, _) = sides.along[token * reach..][..reach].split_at(width);
            let (gradient, offsets) = gradient[token * reach..][..reach].split_at(width);
            let weights = &attention[token * count..][..count];
            let of_inner = &mut slopes.inner[token * width..][..width];
            let (of_along, slopes) = slopes.along[token * reach..][..reach].split_at_mut(width);
            for ((slope, columns), offset) in slopes.iter_mut().zip(sides.columns).zip(offsets) {
                *slope = dot(&inner[columns.clone()], &gradient[columns.clone()]) + offset;
            }
            let mean: f32 = slopes.iter().zip(weights).map(|(slope, weight)| slope * weight).sum();
            slopes.iter_mut().zip(weights).for_each(|(slope, weight)| *slope = weight * (*slope - mean));
            if let Some(mask) = sides.mask {
                slopes.iter_mut().zip(&mask[token * count..]).for_each(|(slope, mask)| *slope *= mask);
            }
            *of_constant = slopes.iter().sum();
            for ((slope, weight), columns) in slopes.iter().zip(weights).zip(sides.columns) {
                let columns = columns.clone();
                for (of_along, inner) in of_along[columns.clone()].iter_mut().zip(&inner[columns.clone()]) {
                    *of_along = slope * inner;
                }
                let sources = gradient[columns.clone()].iter().zip(&along[columns.clone()]);
                for (of_inner, (gradient, along)) in of_inner[columns].iter_mut().zip(sources) {
                    *of_inner = weight * gradient + slope * along;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{kernel::Instructions, testing::cases};

    /// Numbers between -1 and 1 that repeat nowhere.
    fn some(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|at| (((at + 1) * (seed + 7)) as f32 * 0.731).sin()).collect()
    }

    fn columns(widths: &[usize]) -> Vec<Range<usize>> {
        let mut end = 0;
        let next = |&width: &usize| {
            end += width;
            end - width..end
        };
        widths.iter().map(next).collect()
    }

    /// The weighted sums times `gradient`, in double precision, one number after the other.
    fn plainly(sides: &Sides, constants: Option<&[f32]>, gradient: &[f32]) -> (Vec<f64>, f64) {
        let [width, reach] = sides.sizes();
        let (mut attention, mut sum) = (Vec::new(), 0.0);
        for token in 0..gradient.len() / reach {
            let at = |values: &[f32], row: usize, column: usize| f64::from(values[token * row + column]);
            let score = |(number, columns): (usize, &Range<usize>)| {
                let products = columns.clone().map(|k| at(sides.inner, width, k) * at(sides.along, reach, k));
                let constant = constants.map_or(0.0, |constants| f64::from(constants[token]));
                let score = products.sum::<f64>() + at(sides.along, reach, width + number) + constant;
                score * sides.mask.map_or(1.0, |mask| at(mask, sides.columns.len(), number))
            };
            let powers: Vec<f64> = sides.columns.iter().enumerate().map(score).map(f64::exp).collect();
            let all: f64 = powers.iter().sum();
            for ((number, columns), power) in sides.columns.iter().enumerate().zip(powers) {
                let products = columns.clone().map(|k| at(sides.inner, width, k) * at(gradient, reach, k));
                sum += power / all * (products.sum::<f64>() + at(gradient, reach, width + number));
                attention.push(power / all);
            }
        }
        (attention, sum)
    }

    fn near(a: f32, b: f64) -> bool {
        (f64::from(a) - b).abs() < 1e-5
    }

    /// Both directions for adapters of these widths beside the plain formula.
    fn check(tokens: usize, widths: &[usize], masked: bool) {
        let columns = columns(widths);
        let (width, count) = (columns.last().unwrap().end, widths.len());
        let reach = width + count;
        let (inner, along) = (some(1, tokens * width), some(2, tokens * reach));
        let (mask, constants, gradient) = (some(3, tokens * count), some(4, tokens), some(5, tokens * reach));
        let mask = masked.then_some(mask.as_slice());
        let sides = Sides { columns: &columns, inner: &inner, along: &along, mask };
        let constants = masked.then_some(constants.as_slice());

        let (attention, weighted) = Instructions::same(|| {
            let (mut attention, mut weighted) = (vec![9.0; tokens * count], vec![9.0; tokens * reach]);
            forward(&sides, constants, &mut attention, &mut weighted);
            (attention, weighted)
        });
        let (expected, sum) = plainly(&sides, constants, &gradient);
        assert!(attention.iter().zip(&expected).all(|(a, b)| near(*a, *b)), "{attention:?} {expected:?}");
        let told: f64 = weighted.iter().zip(&gradient).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!((told - sum).abs() < 1e-4, "{told} {sum}");

        let (of_inner, of_along, of_constants) = Instructions::same(|| {
            let (mut of_inner, mut of_along) = (vec![9.0; inner.len()], vec![9.0; along.len()]);
            let mut of_constants = vec![9.0; tokens];
            let mut slopes = Slopes { inner: &mut of_inner, along: &mut of_along, constants: &mut of_constants };
            backward(&sides, &attention, &gradient, &mut slopes);
            (of_inner, of_along, of_constants)
        });
        // By differences; `inner` is read twice, by scores and by the sum.
        let step = 1e-3_f32;
        let changed = |values: &[f32], at: usize, by: f32| {
            let mut values = values.to_vec();
            values[at] += by;
            values
        };
        let alike = |found: f32, slope: f64| (f64::from(found) - slope).abs() < 1e-3 * (1.0 + slope.abs());
        let slope = |sum: &dyn Fn(f32) -> f64| (sum(step) - sum(-step)) / (2.0 * f64::from(step));
        for (at, of_inner) in of_inner.iter().enumerate() {
            let sum = |by: f32| plainly(&Sides { inner: &changed(&inner, at, by), ..sides }, constants, &gradient).1;
            assert!(alike(*of_inner, slope(&sum)), "inner {at}");
        }
        for (at, of_constant) in of_constants.iter().enumerate().filter(|_| masked) {
            let sum = |by: f32| {
                let constants = constants.map(|constants| changed(constants, at, by));
                plainly(&sides, constants.as_deref(), &gradient).1
            };
            assert!(alike(*of_constant, slope(&sum)), "constant {at}");
        }
        // What `along` holds is a vector times Uᵢ and uᵢ, so its gradient is what comes out of it, column by column.
        for (at, of_along) in of_along.iter().enumerate() {
            let sum = |by: f32| plainly(&Sides { along: &changed(&along, at, by), ..sides }, constants, &gradient).1;
            assert!(alike(*of_along, slope(&sum)), "along {at}");
        }
    }

    #[test]
    fn attention_and_its_gradients_are_those_of_the_plain_formula() {
        check(3, &[4, 4, 4], false);
        check(3, &[24, 1, 17], true);
        check(3, &[5], true);
        check(3, &[33, 2], false);
    }

    proptest! {
        #![proptest_config(cases(32))]

        #[test]
        fn any_adapters_share_a_token_by_the_plain_formula(
            (tokens, masked) in (1..4_usize, any::<bool>()),
            widths in prop::collection::vec(1..34_usize, 1..=8),
        ) {
            check(tokens, &widths, masked);
        }
    }
}
