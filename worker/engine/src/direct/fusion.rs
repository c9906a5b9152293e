//! AdapterFusion by its algebra: three products of its own and three of all adapters together serve any number of adapters,
//! and as many of each backward.
//!
//! With query x, adapter outputs aᵢ and projections Q, K, V: the scores (Q x)·(K aᵢ + b) are (Kᵀ Q x)·aᵢ + (Q x)·b,
//! whose constant cancels in the softmax unless a mask stands between, and Σ sᵢ V aᵢ is V Σ sᵢ aᵢ. An adapter's output is
//! Uᵢ hᵢ + uᵢ, so (Kᵀ Q x)·aᵢ is (Uᵢᵀ Kᵀ Q x)·hᵢ + uᵢ·(Kᵀ Q x), and Σ sᵢ aᵢ is Σ Uᵢ (sᵢ hᵢ) + Σ sᵢ uᵢ: outputs as wide as the
//! base model are made of no adapter. What residual stands in all outputs is the same for all of them: it cancels in the
//! softmax too, and is added to their sum.

use std::sync::Arc;

use super::{
    adapter::{bias_gradient, factor, mask_values, weight_gradient},
    end::{Below, Reads, Source},
    joined::{Bent, Joined, through},
};
use crate::{
    bottleneck::{BottleneckSite, BottleneckWeights, SiteContext, fusion_mask},
    fusion::FusionWeights,
    kernel::{Left, Panels, Start, add, add_rows, fuse, product},
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
    /// As the forward pass used them, so that the backward makes none.
    joined: Arc<Joined>,
    bent: Bent,
    /// The query projection; absent where the query is read as it is.
    query: Option<Vec<f32>>,
    /// Kᵀ Q x; absent without a key.
    along: Option<Vec<f32>>,
    /// The same times all up projections and biases, `[t, r + n]`.
    sides: Vec<f32>,
    /// `[t, n]`.
    attention: Vec<f32>,
    mask: Option<tch::Tensor>,
    /// All sᵢ hᵢ, and the sᵢ: `[t, r + n]`.
    weighted: Vec<f32>,
    /// Σ sᵢ aᵢ.
    fused: Vec<f32>,
}

fn weights_of<'a>(site: &'a BottleneckSite, adapters: &[usize]) -> Vec<&'a BottleneckWeights> {
    adapters.iter().map(|&index| &site.adapters[index].1).collect()
}

/// Projections side by side: kept for all passes, or made for this one where some of them are trained.
fn projections(fusion: &FusionWeights, adapters: &[&BottleneckWeights], leaves: &Leaves) -> Arc<Joined> {
    let make = || Arc::new(Joined::of(adapters, leaves));
    if adapters.iter().any(|adapter| adapter.is_trained()) {
        return make();
    }
    let kept = fusion.joined.get_or_init(make);
    debug_assert_eq!(kept.columns.len(), adapters.len(), "a fusion has the same adapters in every pass");
    Arc::clone(kept)
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
        let adapters = weights_of(self.site, &self.adapters);
        let joined = projections(weights, &adapters, leaves);
        let (hidden, count) = (joined.hidden(), adapters.len());
        let tokens = x.len() / hidden;
        let bent = joined.down(&adapters, x);
        let query = weights.query.as_ref().map(|[weight, bias]| {
            let mut out = vec![0.0; x.len()];
            let panels = leaves.packed(weight, Way::Forward);
            let (left, start) = (Left::rows(read(reads.query), hidden), Start::Bias(leaves.values(bias)));
            product(left, tokens, &panels, start, &mut out);
            out
        });
        let asked = query.as_deref().unwrap_or(read(reads.query));
        let along = weights.key.as_ref().map(|[weight, _]| through(&leaves.packed(weight, Way::Backward), asked, None));
        let sides = joined.up_turned(along.as_deref().unwrap_or(asked));
        let mask = fusion_mask(self.site, context, (self.fusion, weights), count, spans);
        // Without a mask what is the same for all adapters changes no weight.
        let constants = mask
            .is_some()
            .then(|| constants(weights, leaves, hidden, [asked, along.as_deref().unwrap_or(asked), residual]));
        let mut attention = vec![0.0; tokens * count];
        let mut weighted = vec![0.0; tokens * joined.reach()];
        let mask_of = mask.as_ref().map(mask_values);
        let of = fuse::Sides { columns: &joined.columns, inner: &bent.inner, along: &sides, mask: mask_of };
        fuse::forward(&of, constants.as_deref(), &mut attention, &mut weighted);
        let mut fused = joined.up(&weighted);
        if weights.config.residual_before {
            add(&mut fused, residual);
        }
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
            joined,
            bent,
            query,
            along,
            sides,
            attention,
            mask,
            weighted,
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
        let adapters = weights_of(site, &self.adapters);
        let trained = adapters.iter().any(|adapter| adapter.is_trained());
        let (joined, hidden) = (&self.joined, self.joined.hidden());
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
        let sides = fuse::Sides {
            columns: &joined.columns,
            inner: &self.bent.inner,
            along: &self.sides,
            mask: self.mask.as_ref().map(mask_values),
        };
        let (mut of_inner, mut of_sides) = (vec![0.0; self.bent.inner.len()], vec![0.0; self.sides.len()]);
        let mut of_constants = vec![0.0; of_fused.len() / hidden];
        let mut slopes = fuse::Slopes { inner: &mut of_inner, along: &mut of_sides, constants: &mut of_constants };
        fuse::backward(&sides, &self.attention, &joined.up_turned(&of_fused), &mut slopes);
        let mut of_along = joined.up(&of_sides);
        let residual = weights.config.residual_before.then(|| read(reads.residual));
        let along = self.along.as_deref().unwrap_or(asked);
        if let Some(residual) = residual {
            // Without a mask the gradients of all scores of a token are nothing together.
            let masked = self.mask.is_some();
            if masked {
                add_scaled(&mut of_along, &of_constants, residual);
            }
            if let Some(below) = below.as_deref_mut() {
                let below = below.of(reads.residual);
                add(below, &of_fused);
                if masked {
                    add_scaled(below, &of_constants, along);
                }
            }
        }
        if trained {
            let pairs = [(of_fused.as_slice(), self.weighted.as_slice()), (along, of_sides.as_slice())];
            up_gradients(leaves, (&adapters, joined), pairs);
        }
        let of_constants = self.mask.is_some().then_some(of_constants.as_slice());
        let of_asked = key_backward(weights, leaves, asked, (of_along, of_constants));
        if let Some([weight, bias]) = &weights.query {
            weight_gradient(leaves, weight, (&of_asked, hidden), (read(reads.query), hidden));
            bias_gradient(leaves, bias, &of_asked);
        }
        if let Some(below) = below.as_deref_mut() {
            query_backward(weights, (&*leaves, hidden), &of_asked, below.of(reads.query));
        }
        if below.is_some() || trained {
            joined.down_backward(&self.bent, &mut of_inner, below.map(|below| below.of(reads.adapter)));
        }
        if trained {
            down_gradients(leaves, (&adapters, joined), &of_inner, read(reads.adapter));
        }
    }
}

/// What is the same for all scores of a token, from what is asked, what scores are taken along and the residual.
fn constants(weights: &FusionWeights, leaves: &Leaves, hidden: usize, sources: [&[f32]; 3]) -> Vec<f32> {
    let bias = weights.key.as_ref().map(|[_, bias]| leaves.values(bias));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let constant = |((asked, along), residual)| {
        let of_key = bias.map_or(0.0, |bias| dot(asked, bias));
        if weights.config.residual_before { of_key + dot(along, residual) } else { of_key }
    };
    let [asked, along, residual] = sources.map(|source| source.chunks_exact(hidden));
    asked.zip(along).zip(residual).map(constant).collect()
}

/// From the gradients of what scores are taken along and of the constants: that of what is asked, and of the key.
fn key_backward(
    weights: &FusionWeights,
    leaves: &mut Leaves,
    asked: &[f32],
    (of_along, of_constants): (Vec<f32>, Option<&[f32]>),
) -> Vec<f32> {
    let Some([weight, bias]) = &weights.key else { return of_along };
    let [_, hidden] = leaves.sizes(weight);
    weight_gradient(leaves, weight, (asked, hidden), (&of_along, hidden));
    let mut out = through(&leaves.packed(weight, Way::Forward), &of_along, None);
    if let Some(of_constants) = of_constants {
        weight_gradient(leaves, bias, (of_constants, 1), (asked, hidden));
        let panels = Panels::of_rows(leaves.values(bias), [1, hidden]);
        product(Left::rows(of_constants, 1), of_constants.len(), &panels, Start::Out, &mut out);
    }
    out
}

/// Adds the gradients of trained up projections: sums of `gᵀ w` over pairs of `[t, d]` and `[t, r + n]`.
fn up_gradients(
    leaves: &mut Leaves,
    (adapters, joined): (&[&BottleneckWeights], &Joined),
    pairs: [(&[f32], &[f32]); 2],
) {
    let (hidden, reach) = (joined.hidden(), joined.reach());
    let mut sum = vec![0.0; hidden * reach];
    for (gradient, weighted) in pairs {
        let panels = Panels::of_rows(weighted, [weighted.len() / reach, reach]);
        product(Left::turned(gradient, hidden), hidden, &panels, Start::Out, &mut sum);
    }
    for ((number, adapter), columns) in adapters.iter().enumerate().zip(&joined.columns) {
        let factor = factor(adapter).unwrap_or(1.0);
        let [weight, bias] = &adapter.up;
        if let Some(gradient) = leaves.gradient(weight) {
            for (row, sum) in gradient.chunks_exact_mut(columns.len()).zip(sum.chunks_exact(reach)) {
                row.iter_mut().zip(&sum[columns.clone()]).for_each(|(row, sum)| *row += factor * sum);
            }
        }
        if let Some(gradient) = leaves.gradient(bias) {
            let sums = sum.iter().skip(joined.width() + number).step_by(reach);
            gradient.iter_mut().zip(sums).for_each(|(bias, sum)| *bias += factor * sum);
        }
    }
}

/// Adds the gradients of trained down projections, from those in front of the activations, `[t, r]`.
fn down_gradients(
    leaves: &mut Leaves,
    (adapters, joined): (&[&BottleneckWeights], &Joined),
    gradient: &[f32],
    x: &[f32],
) {
    let (hidden, width) = (joined.hidden(), joined.width());
    let (mut sum, mut bias_sum) = (vec![0.0; width * hidden], vec![0.0; width]);
    let panels = Panels::of_rows(x, [x.len() / hidden, hidden]);
    product(Left::turned(gradient, width), width, &panels, Start::Zero, &mut sum);
    add_rows(&mut bias_sum, gradient);
    for (adapter, columns) in adapters.iter().zip(&joined.columns) {
        let [weight, bias] = &adapter.down;
        if let Some(gradient) = leaves.gradient(weight) {
            add(gradient, &sum[columns.start * hidden..columns.end * hidden]);
        }
        if let Some(gradient) = leaves.gradient(bias) {
            add(gradient, &bias_sum[columns.clone()]);
        }
    }
}

/// Adds each row of `[t, d]` times its factor.
fn add_scaled(out: &mut [f32], factors: &[f32], rows: &[f32]) {
    let width = out.len() / factors.len();
    for ((out, row), factor) in out.chunks_exact_mut(width).zip(rows.chunks_exact(width)).zip(factors) {
        out.iter_mut().zip(row).for_each(|(out, row)| *out += factor * row);
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
