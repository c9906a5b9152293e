//! AdapterFusion by its algebra: three products serve any number of adapters, forward and backward.
//!
//! With query x, adapter outputs aᵢ and projections Q, K, V: the scores (Q x)·(K aᵢ + b) are (Kᵀ Q x)·aᵢ + (Q x)·b,
//! whose constant cancels in the softmax unless a mask stands between, and Σ sᵢ V aᵢ is V Σ sᵢ aᵢ.

use super::{
    adapter::{self, bias_gradient, mask_values, up, up_backward, weight_gradient},
    end::{Below, Reads, Source},
};
use crate::{
    bottleneck::{BottleneckSite, SiteContext, fusion_mask},
    fusion::FusionWeights,
    kernel::{Left, Panels, Start, add, fuse, product},
    parameters::{Leaves, Way},
    rows::FusionAttention,
    spans::Spans,
};

/// A fusion and the adapters that it reads here, in order.
#[derive(Clone)]
pub(super) struct Fused<'a> {
    pub(super) site: &'a BottleneckSite,
    pub(super) fusion: usize,
    pub(super) adapters: Vec<usize>,
}

/// What the backward of a fusion reads.
pub(super) struct Saved {
    fusion: usize,
    adapters: Vec<usize>,
    reads: Reads,
    /// Of each adapter.
    ups: Vec<adapter::Saved>,
    /// What is fused: for each adapter `[t, d]`.
    values: Vec<Vec<f32>>,
    /// The query projection; absent where the query is read as it is.
    query: Option<Vec<f32>>,
    /// Kᵀ Q x; absent without a key.
    along: Option<Vec<f32>>,
    /// `[t, n]`.
    attention: Vec<f32>,
    mask: Option<tch::Tensor>,
    /// Σ sᵢ aᵢ.
    fused: Vec<f32>,
}

impl Fused<'_> {
    /// The adapter that decides how the block stands.
    pub(super) fn last(&self) -> usize {
        *self.adapters.last().expect("a fusion without adapters here is no part")
    }

    pub(super) fn weights(&self) -> &FusionWeights {
        &self.site.fusions[self.fusion].1
    }

    pub(super) fn forward<'v>(
        &self,
        context: &SiteContext,
        spans: &Spans,
        reads: Reads,
        read: impl Fn(Source) -> &'v [f32],
    ) -> (Vec<f32>, Saved) {
        let (leaves, weights) = (context.leaves, self.weights());
        let (x, residual) = (read(reads.adapter), read(reads.residual));
        let (mut values, mut ups) = (Vec::new(), Vec::new());
        for &index in &self.adapters {
            let (mut value, saved) = up(&self.site.adapters[index].1, leaves, x, true);
            if weights.config.residual_before {
                add(&mut value, residual);
            }
            values.push(value);
            ups.push(saved);
        }
        let hidden = leaves.sizes(&self.site.adapters[self.last()].1.down[0])[1];
        let query = weights.query.as_ref().map(|[weight, bias]| {
            let mut out = vec![0.0; x.len()];
            let panels = leaves.packed(weight, Way::Forward);
            let (left, start) = (Left::rows(read(reads.query), hidden), Start::Bias(leaves.values(bias)));
            product(left, x.len() / hidden, &panels, start, &mut out);
            out
        });
        let asked = query.as_deref().unwrap_or(read(reads.query));
        let along = weights.key.as_ref().map(|[weight, _]| through(&leaves.packed(weight, Way::Backward), asked, None));
        let mask = fusion_mask(self.site, context, (self.fusion, weights), self.adapters.len(), spans);
        // Without a mask the constant changes no weight.
        let constants = weights.key.as_ref().filter(|_| mask.is_some()).map(|[_, bias]| {
            let bias = leaves.values(bias);
            asked.chunks_exact(hidden).map(|row| row.iter().zip(bias).map(|(a, b)| a * b).sum()).collect::<Vec<f32>>()
        });
        let mut attention = vec![0.0; x.len() / hidden * values.len()];
        let mut fused = vec![0.0; x.len()];
        let slices: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let scores = fuse::Scores {
            along: along.as_deref().unwrap_or(asked),
            constants: constants.as_deref(),
            mask: mask.as_ref().map(mask_values),
        };
        fuse::forward(&slices, scores, &mut attention, &mut fused);
        let onto = (!weights.config.residual_before).then_some(residual);
        let out = match &weights.value_dd {
            Some(value) => through(&leaves.packed(value, Way::Forward), &fused, onto),
            None => {
                let mut out = fused.clone();
                if let Some(onto) = onto {
                    add(&mut out, onto);
                }
                out
            }
        };
        self.note(context, &attention);
        let saved = Saved {
            fusion: self.fusion,
            adapters: self.adapters.clone(),
            reads,
            ups,
            values,
            query,
            along,
            attention,
            mask,
            fused,
        };
        (out, saved)
    }

    /// Notes how much attention each adapter got.
    fn note(&self, context: &SiteContext, attention: &[f32]) {
        if let Some(notes) = context.attention {
            let count = self.adapters.len();
            let tokens = attention.len() / count;
            let mut weights = vec![0.0; count];
            for token in attention.chunks_exact(count) {
                weights.iter_mut().zip(token).for_each(|(sum, weight)| *sum += f64::from(*weight));
            }
            weights.iter_mut().for_each(|sum| *sum /= tokens as f64);
            let (fusion, layer) = (self.site.fusions[self.fusion].0.clone(), self.site.layer);
            notes.borrow_mut().tell(FusionAttention { fusion, layer, tokens: tokens as u64, weights });
        }
    }
}

impl Saved {
    /// From the gradient of the fusion's output: gradients of all weights, and of what it read.
    pub(super) fn backward<'v>(
        &self,
        site: &BottleneckSite,
        (slope, read): (Vec<f32>, impl Fn(Source) -> &'v [f32]),
        leaves: &mut Leaves,
        mut below: Option<&mut Below>,
    ) {
        let weights = &site.fusions[self.fusion].1;
        let reads = self.reads;
        let hidden = leaves.sizes(&site.adapters[self.adapters[0]].1.down[0])[1];
        if let Some(below) = below.as_deref_mut().filter(|_| !weights.config.residual_before) {
            add(below.of(reads.residual), &slope);
        }
        let of_fused = match &weights.value_dd {
            Some(value) => {
                weight_gradient(leaves, value, (&slope, hidden), (&self.fused, hidden));
                through(&leaves.packed(value, Way::Backward), &slope, None)
            }
            None => slope,
        };
        let asked = self.query.as_deref().unwrap_or(read(reads.query));
        let mut of_values: Vec<Vec<f32>> = self.values.iter().map(|value| vec![0.0; value.len()]).collect();
        let (mut of_along, mut of_constants) = (vec![0.0; of_fused.len()], vec![0.0; of_fused.len() / hidden]);
        let kept = fuse::Kept {
            values: &self.values.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            along: self.along.as_deref().unwrap_or(asked),
            attention: &self.attention,
            mask: self.mask.as_ref().map(mask_values),
        };
        let mut outs: Vec<&mut [f32]> = of_values.iter_mut().map(Vec::as_mut_slice).collect();
        fuse::backward(&kept, &of_fused, &mut outs, (&mut of_along, &mut of_constants));
        let of_asked = match &weights.key {
            Some([weight, bias]) => {
                weight_gradient(leaves, weight, (asked, hidden), (&of_along, hidden));
                let mut out = through(&leaves.packed(weight, Way::Forward), &of_along, None);
                if self.mask.is_some() {
                    weight_gradient(leaves, bias, (&of_constants, 1), (asked, hidden));
                    let panels = Panels::of_rows(leaves.values(bias), [1, hidden]);
                    product(Left::rows(&of_constants, 1), of_constants.len(), &panels, Start::Out, &mut out);
                }
                out
            }
            None => of_along,
        };
        if let Some([weight, bias]) = &weights.query {
            weight_gradient(leaves, weight, (&of_asked, hidden), (read(reads.query), hidden));
            bias_gradient(leaves, bias, &of_asked);
        }
        if let Some(below) = below.as_deref_mut() {
            query_backward(weights, (&*leaves, hidden), &of_asked, below.of(reads.query));
        }
        let needed = |index: usize| below.is_some() || site.adapters[index].1.is_trained();
        let x = read(reads.adapter);
        let needed: Vec<bool> = self.adapters.iter().map(|&index| needed(index)).collect();
        for (((&index, saved), gradient), _) in
            self.adapters.iter().zip(&self.ups).zip(of_values).zip(needed).filter(|(_, needed)| *needed)
        {
            if let Some(below) = below.as_deref_mut().filter(|_| weights.config.residual_before) {
                add(below.of(reads.residual), &gradient);
            }
            let below = below.as_deref_mut().map(|below| (Start::Out, below.of(reads.adapter)));
            up_backward(&site.adapters[index].1, leaves, (x, saved), (&gradient, None), below);
        }
    }
}

/// Adds the gradient of what a query projection has read to `below`.
fn query_backward(weights: &FusionWeights, (leaves, hidden): (&Leaves, usize), gradient: &[f32], below: &mut [f32]) {
    match &weights.query {
        Some([weight, _]) => {
            let panels = leaves.packed(weight, Way::Backward);
            product(Left::rows(gradient, hidden), gradient.len() / hidden, &panels, Start::Out, below);
        }
        None => add(below, gradient),
    }
}

/// `x` times a square matrix, added to `onto`.
fn through(panels: &Panels, x: &[f32], onto: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    let start = onto.map_or(Start::Zero, Start::Matrix);
    product(Left::rows(x, panels.sums()), x.len() / panels.sums(), panels, start, &mut out);
    out
}
