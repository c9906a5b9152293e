//! The two projections of a bottleneck adapter.

use std::borrow::Cow;

use graftwork_shared::adapter::Scaling;
use tch::Tensor;

use crate::{
    bottleneck::{BottleneckWeights, bend},
    host,
    kernel::{Left, Panels, Start, add_rows, multiply, product, scale},
    parameters::{Leaves, Parameter, Way},
};

/// What the backward of an adapter reads beside its input.
pub(super) struct Saved {
    /// Behind the activation, `[t, r]`.
    pub(super) inner: Vec<f32>,
    /// The activation's slope, `[t, r]`.
    slope: Vec<f32>,
}

/// Whether the adapter is two projections with an activation between and a constant factor behind them, up to what a
/// fusion reads of it.
pub(super) fn is_plain_for_fusion(weights: &BottleneckWeights) -> bool {
    weights.norm_before.is_none() && weights.scaling.is_none()
}

/// The same for all of the adapter.
pub(super) fn is_plain(weights: &BottleneckWeights) -> bool {
    is_plain_for_fusion(weights) && weights.norm_after.is_none() && weights.gate.is_none()
}

/// The up projection of `x`, `[t, d]`, times the factor. What is saved serves a backward only where it is kept.
pub(super) fn up(weights: &BottleneckWeights, leaves: &Leaves, x: &[f32], keep: bool) -> (Vec<f32>, Saved) {
    let [down, down_bias] = &weights.down;
    let [width, hidden] = leaves.sizes(down);
    let rows = x.len() / hidden;
    let mut inner = vec![0.0; rows * width];
    let panels = leaves.packed(down, Way::Forward);
    product(Left::rows(x, hidden), rows, &panels, Start::Bias(leaves.values(down_bias)), &mut inner);
    let mut slope = vec![0.0; if keep { inner.len() } else { 0 }];
    let bend = bend(weights.config.non_linearity);
    if keep {
        bend.with_slope(&mut inner, &mut slope);
    } else {
        bend.alone(&mut inner);
    }
    let [up, up_bias] = &weights.up;
    let mut out = vec![0.0; rows * hidden];
    let panels = leaves.packed(up, Way::Forward);
    product(Left::rows(&inner, width), rows, &panels, Start::Bias(leaves.values(up_bias)), &mut out);
    if let Some(factor) = factor(weights) {
        scale(&mut out, factor);
    }
    (out, Saved { inner, slope })
}

/// From the gradient of what [`up`] gave, before the mask: gradients of the weights, and that of the input, added to
/// what `below` says.
pub(super) fn up_backward(
    weights: &BottleneckWeights,
    leaves: &mut Leaves,
    (x, saved): (&[f32], &Saved),
    (gradient, mask): (&[f32], Option<&Tensor>),
    below: Option<(Start, &mut [f32])>,
) {
    let [down, down_bias] = &weights.down;
    let [up, up_bias] = &weights.up;
    let [width, hidden] = leaves.sizes(down);
    let rows = x.len() / hidden;
    let mut gradient = Cow::Borrowed(gradient);
    if let Some(mask) = mask {
        multiply(gradient.to_mut(), mask_values(mask));
    }
    if let Some(factor) = factor(weights) {
        scale(gradient.to_mut(), factor);
    }
    let mut slopes = vec![0.0; rows * width];
    let panels = leaves.packed(up, Way::Backward);
    product(Left::rows(&gradient, hidden), rows, &panels, Start::Zero, &mut slopes);
    multiply(&mut slopes, &saved.slope);
    weight_gradient(leaves, up, (&gradient, hidden), (&saved.inner, width));
    bias_gradient(leaves, up_bias, &gradient);
    weight_gradient(leaves, down, (&slopes, width), (x, hidden));
    bias_gradient(leaves, down_bias, &slopes);
    if let Some((start, below)) = below {
        let panels = leaves.packed(down, Way::Backward);
        product(Left::rows(&slopes, width), rows, &panels, start, below);
    }
}

/// Adds `gᵀ x` to the gradient of a weight `[o, i]`, where it is trained: `g` is `[t, o]`, `x` is `[t, i]`.
pub(super) fn weight_gradient(
    leaves: &mut Leaves,
    weight: &Parameter,
    (gradient, outputs): (&[f32], usize),
    (x, inputs): (&[f32], usize),
) {
    if let Some(sum) = leaves.gradient(weight) {
        let panels = Panels::of_rows(x, [x.len() / inputs, inputs]);
        product(Left::turned(gradient, outputs), outputs, &panels, Start::Out, sum);
    }
}

/// Adds the rows of `g` to the gradient of a bias, where it is trained.
pub(super) fn bias_gradient(leaves: &mut Leaves, bias: &Parameter, gradient: &[f32]) {
    if let Some(sum) = leaves.gradient(bias) {
        add_rows(sum, gradient);
    }
}

/// The constant factor behind the up projection, unless it is one.
pub(super) fn factor(weights: &BottleneckWeights) -> Option<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "activations are f32")]
    match weights.config.scaling {
        // Multiplying by one changes no bit.
        Scaling::Constant(factor) if (factor - 1.0).abs() > 0.0 => Some(factor as f32),
        _ => None,
    }
}

/// A mask as a slice.
pub(super) fn mask_values(mask: &Tensor) -> &[f32] {
    host::values(mask).expect("masks of the processor are dense floats")
}
