//! Attention of each token over the outputs of several adapters.

use super::{exponential, norm::dot, vectorised};

/// What scores are made of: `values[i][t] · along[t]`, plus a constant of the token, times a mask `[t, n]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scores<'a> {
    pub(crate) along: &'a [f32],
    pub(crate) constants: Option<&'a [f32]>,
    pub(crate) mask: Option<&'a [f32]>,
}

/// What the backward reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept<'a> {
    pub(crate) values: &'a [&'a [f32]],
    pub(crate) along: &'a [f32],
    pub(crate) attention: &'a [f32],
    pub(crate) mask: Option<&'a [f32]>,
}

vectorised! {
    /// Fills `attention`, `[t, n]`, and the weighted sums of the values, `[t, d]`.
    pub(crate) fn forward(values: &[&[f32]], scores: Scores, attention: &mut [f32], fused: &mut [f32]) {
        let count = values.len();
        let width = fused.len() / (attention.len() / count);
        for (token, weights) in attention.chunks_exact_mut(count).enumerate() {
            let range = token * width..(token + 1) * width;
            let along = &scores.along[range.clone()];
            for (weight, value) in weights.iter_mut().zip(values) {
                *weight = dot(&value[range.clone()], along);
            }
            if let Some(constants) = scores.constants {
                weights.iter_mut().for_each(|weight| *weight += constants[token]);
            }
            if let Some(mask) = scores.mask {
                weights.iter_mut().zip(&mask[token * count..]).for_each(|(weight, mask)| *weight *= mask);
            }
            let largest = weights.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
            weights.iter_mut().for_each(|weight| *weight = exponential(*weight - largest));
            let factor = 1.0 / weights.iter().sum::<f32>();
            weights.iter_mut().for_each(|weight| *weight *= factor);
            let fused = &mut fused[range.clone()];
            fused.fill(0.0);
            for (weight, value) in weights.iter().zip(values) {
                fused.iter_mut().zip(&value[range.clone()]).for_each(|(fused, value)| *fused += weight * value);
            }
        }
    }
}

/// From the gradient of the weighted sums: gradients of each value, of `along` and of the constants.
pub(crate) fn backward(kept: &Kept, gradient: &[f32], of_values: &mut [&mut [f32]], of: (&mut [f32], &mut [f32])) {
    backward_tokens(kept, gradient, of_values, of.0, of.1);
}

vectorised! {
    fn backward_tokens(
        kept: &Kept,
        gradient: &[f32],
        of_values: &mut [&mut [f32]],
        of_along: &mut [f32],
        of_constants: &mut [f32],
    ) {
        let count = kept.values.len();
        let width = gradient.len() / of_constants.len();
        let mut slopes = vec![0.0; count];
        for (token, of_constant) in of_constants.iter_mut().enumerate() {
            let range = token * width..(token + 1) * width;
            let (gradient, along) = (&gradient[range.clone()], &kept.along[range.clone()]);
            let weights = &kept.attention[token * count..][..count];
            for (slope, value) in slopes.iter_mut().zip(kept.values) {
                *slope = dot(&value[range.clone()], gradient);
            }
            let mean: f32 = slopes.iter().zip(weights).map(|(slope, weight)| slope * weight).sum();
            slopes.iter_mut().zip(weights).for_each(|(slope, weight)| *slope = weight * (*slope - mean));
            if let Some(mask) = kept.mask {
                slopes.iter_mut().zip(&mask[token * count..]).for_each(|(slope, mask)| *slope *= mask);
            }
            *of_constant = slopes.iter().sum();
            let of_along = &mut of_along[range.clone()];
            of_along.fill(0.0);
            for (place, value) in kept.values.iter().enumerate() {
                let (slope, weight) = (slopes[place], weights[place]);
                let value = &value[range.clone()];
                of_along.iter_mut().zip(value).for_each(|(sum, value)| *sum += slope * value);
                let of_value = &mut of_values[place][range.clone()];
                for ((of_value, gradient), along) in of_value.iter_mut().zip(gradient).zip(along) {
                    *of_value = weight * gradient + slope * along;
                }
            }
        }
    }
}
