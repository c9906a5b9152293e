//! Rows that differ by adapters alone, and what the next layer's projections make of them.
//!
//! Behind the first adapters of a `Parallel` block a child's row is the layer norm of s + U a + b: s is the same for all
//! children, a has as many numbers as the child's bottleneck. Without its mean and times the norm's weight each of the three
//! may be multiplied with a projection alone, W (s + U a + b) · rstd + W β + bias, so W s is computed once for all children,
//! W [U b] once for all rows, and what is left of a product is as narrow as the bottleneck. For predictions on the processor.

use std::sync::{Arc, OnceLock};

use tch::Tensor;

use super::end::{SavedEnd, SavedKind, Source};
use crate::{
    block::{LayerNorm, Linear},
    bottleneck::{BottleneckSite, BottleneckWeights},
    host,
    kernel::{Left, Panels, Start, product, scale_rows},
    parameters::{Leaves, Parameter},
};

/// Products of a frozen adapter's up projection with the next layer's query, key and value, kept for all passes.
pub(crate) type Through = Arc<[OnceLock<Panels>; 3]>;

/// All children's rows, as far as they are the same and where they differ.
pub(crate) struct Near {
    /// `[t, d]`.
    common: Vec<f32>,
    children: Vec<Child>,
    /// The norm's bias, `[d]`.
    bias: Vec<f32>,
}

struct Child {
    /// Behind the bottleneck's activation, and a one: `[t, r + 1]`.
    inner: Vec<f32>,
    /// The up projection and its bias, `[r + 1, d]`.
    up: Vec<f32>,
    /// 1 / deviation of each row.
    rstd: Vec<f32>,
    /// Absent where the adapter is trained.
    through: Option<Through>,
}

/// One of a layer's projections of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projection {
    Query,
    Key,
    Value,
}

impl Near {
    /// `None` where children are not plain and narrow adapters on one and the same sum.
    pub(crate) fn of(
        saved: &SavedEnd,
        (site, norm): (&BottleneckSite, &LayerNorm),
        leaves: &Leaves,
        copies: usize,
    ) -> Option<Self> {
        let (hidden, input) = (host::values(&saved.hidden_td)?, host::values(&saved.input_td)?);
        let (weight, bias) = (host::values(&norm.weight_d)?, host::values(&norm.bias_d)?);
        (saved.parts.len() == copies).then_some(())?;
        let rows = hidden.len() / copies;
        let child = |part: &super::end::SavedPart| {
            let SavedKind::Adapter { index, saved, mask: None } = &part.kind else { return None };
            let weights = &site.adapters[*index].1;
            let alike = part.range.len() == rows && reads_the_sum(weights) && is_narrow(weights, leaves);
            let after = part.after.as_ref().filter(|_| alike)?;
            Some(Child::new(weights, leaves, (&saved.inner, &after.rstd), weight))
        };
        let children = saved.parts.iter().map(child).collect::<Option<_>>()?;
        let mut common: Vec<f32> = hidden[..rows].iter().zip(&input[..rows]).map(|(a, b)| a + b).collect();
        common.chunks_exact_mut(weight.len()).for_each(|row| centre(row, weight));
        Some(Self { common, children, bias: bias.to_vec() })
    }

    /// A projection of the layer behind, of all children's rows, one child after the other. `None` where kernels cannot read
    /// its weight.
    pub(crate) fn project(&self, linear: &Linear, projection: Projection) -> Option<Tensor> {
        let (panels, width) = (linear.forward_panels()?, self.bias.len());
        let (outputs, rows) = (panels.columns(), self.common.len() / width);
        let mut common = vec![0.0; rows * outputs];
        product(Left::rows(&self.common, width), rows, panels, Start::Zero, &mut common);
        let mut bias = vec![0.0; outputs];
        product(Left::rows(&self.bias, width), 1, panels, Start::Bias(linear.on_host()?.bias), &mut bias);
        let mut out_to = host::fresh([self.children.len() * rows, outputs]);
        let out = host::values_mut(&mut out_to)?;
        for (child, out) in self.children.iter().zip(out.chunks_exact_mut(rows * outputs)) {
            let through = || {
                let height = child.up.len() / width;
                let mut through = vec![0.0; height * outputs];
                product(Left::rows(&child.up, width), height, panels, Start::Zero, &mut through);
                Panels::of_rows(&through, [height, outputs])
            };
            let fresh;
            let through = match &child.through {
                Some(kept) => kept[projection as usize].get_or_init(through),
                None => {
                    fresh = through();
                    &fresh
                }
            };
            let inner = Left::rows(&child.inner, through.sums());
            product(inner, rows, through, Start::Matrix(&common), out);
            scale_rows(out, &child.rstd, &bias);
        }
        Some(out_to)
    }
}

impl Child {
    fn new(weights: &BottleneckWeights, leaves: &Leaves, (inner, rstd): (&[f32], &[f32]), norm_weight: &[f32]) -> Self {
        let [weight, bias] = &weights.up;
        let [hidden, width] = leaves.sizes(weight);
        let values = leaves.values(weight);
        let column = |column: usize| values[column..].iter().step_by(width).copied();
        let mut up: Vec<f32> = (0..width).flat_map(column).chain(leaves.values(bias).iter().copied()).collect();
        let factor = super::adapter::factor(weights).unwrap_or(1.0);
        for row in up.chunks_exact_mut(hidden) {
            row.iter_mut().for_each(|value| *value *= factor);
            centre(row, norm_weight);
        }
        let inner = inner.chunks_exact(width).flat_map(|row| row.iter().copied().chain([1.0])).collect();
        let through = match (weight, bias) {
            (Parameter::Frozen(weight), Parameter::Frozen(_)) => Some(Arc::clone(&weight.through)),
            _ => None,
        };
        Self { inner, up, rstd: rstd.to_vec(), through }
    }
}

/// Whether what stands beside the adapter's up projection in front of the norm is the block's output and its input.
fn reads_the_sum(weights: &BottleneckWeights) -> bool {
    let beside = super::end::Reads::of(weights, false).residual;
    weights.config.original_ln_after && (weights.config.is_parallel || beside == Source::Hidden)
}

/// Whether the bottleneck is so narrow that this pays, also where it is trained and W U is computed for each run of rows.
fn is_narrow(weights: &BottleneckWeights, leaves: &Leaves) -> bool {
    let [hidden, width] = leaves.sizes(&weights.up[0]);
    4 * (width + 1) <= hidden
}

/// Less its mean, times the norm's weight.
fn centre(row: &mut [f32], weight: &[f32]) {
    let mean = row.iter().copied().map(f64::from).sum::<f64>() / row.len() as f64;
    #[expect(clippy::cast_possible_truncation, reason = "activations are f32")]
    let mean = mean as f32;
    row.iter_mut().zip(weight).for_each(|(value, weight)| *value = (*value - mean) * weight);
}
