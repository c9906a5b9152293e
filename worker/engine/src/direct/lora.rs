//! One LoRA beside a frozen linear layer.

use graftwork_shared::composition::Composition;
use tch::Tensor;

use super::{
    adapter::{mask_values, weight_gradient},
    is_off,
};
use crate::{
    dropout::{Address, Masks},
    host,
    kernel::{Left, Start, multiply, product, scale},
    lora::{LoraSite, LoraWeights},
    parameters::{Leaves, Way},
    spans::Spans,
};

/// What the backward of an update reads.
pub(crate) struct SavedUpdate {
    /// The adapter's number at its site.
    index: usize,
    /// What A has read, `[t, i]`.
    x_ti: Tensor,
    mask: Option<Tensor>,
    /// A x times the scale, `[t, r]`.
    inner: Vec<f32>,
}

/// Adds the update to `out_to`, which must have no other owner. `None` where the composition, the adapter's options or
/// the device ask for an island; then nothing was added.
pub(crate) fn update(
    site: &LoraSite,
    block: &Composition,
    (x_ti, out_to): (&Tensor, &mut Tensor),
    spans: &Spans,
    (leaves, masks): (&Leaves, Option<&Masks>),
) -> Option<SavedUpdate> {
    let index = only(site, block)?;
    let weights = &site.adapters[index].1;
    if weights.gate.is_some() || is_off() {
        return None;
    }
    let [rank, inputs] = leaves.sizes(&weights.a_ri);
    let out = host::values_mut(out_to)?;
    host::values(x_ti)?;
    let mask = masks.filter(|_| weights.dropout > 0.0).map(|masks| {
        let module = u32::try_from(index).expect("adapters of one setup");
        masks.tokens(Address { layer: site.layer, place: site.place, module }, spans, inputs, weights.dropout)
    });
    let x_ti = mask.as_ref().map_or_else(|| x_ti.shallow_clone(), |mask| x_ti * mask);
    let x = host::values(&x_ti)?;
    let rows = x.len() / inputs;
    let mut inner = vec![0.0; rows * rank];
    let panels = leaves.packed(&weights.a_ri, Way::Forward);
    product(Left::rows(x, inputs), rows, &panels, Start::Zero, &mut inner);
    scale(&mut inner, factor(weights));
    let panels = leaves.packed(&weights.b_or, Way::Forward);
    product(Left::rows(&inner, rank), rows, &panels, Start::Out, out);
    Some(SavedUpdate { index, x_ti, mask, inner })
}

/// Gradients of the matrices; adds that of the input to `below_ti`, which must have no other owner.
pub(crate) fn update_backward(
    site: &LoraSite,
    saved: &SavedUpdate,
    gradient_to: &Tensor,
    below_ti: Option<&mut Tensor>,
    leaves: &mut Leaves,
) {
    let weights = &site.adapters[saved.index].1;
    let [rank, inputs] = leaves.sizes(&weights.a_ri);
    let gradient = host::values(gradient_to).expect("dense floats, as in the forward pass");
    let x = host::values(&saved.x_ti).expect("what the forward pass has read");
    let rows = x.len() / inputs;
    let outputs = gradient.len() / rows;
    weight_gradient(leaves, &weights.b_or, (gradient, outputs), (&saved.inner, rank));
    let mut slopes = vec![0.0; rows * rank];
    let panels = leaves.packed(&weights.b_or, Way::Backward);
    product(Left::rows(gradient, outputs), rows, &panels, Start::Zero, &mut slopes);
    scale(&mut slopes, factor(weights));
    weight_gradient(leaves, &weights.a_ri, (&slopes, rank), (x, inputs));
    let Some(below_ti) = below_ti else { return };
    let panels = leaves.packed(&weights.a_ri, Way::Backward);
    let below = host::values_mut(below_ti).expect("a fresh result of the linear layer");
    match &saved.mask {
        None => product(Left::rows(&slopes, rank), rows, &panels, Start::Out, below),
        Some(mask) => {
            let mut masked = vec![0.0; below.len()];
            product(Left::rows(&slopes, rank), rows, &panels, Start::Zero, &mut masked);
            multiply(&mut masked, mask_values(mask));
            crate::kernel::add(below, &masked);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "activations are f32")]
fn factor(weights: &LoraWeights) -> f32 {
    weights.scale as f32
}

/// The only adapter of a block that serves here, if it serves all rows.
fn only(site: &LoraSite, block: &Composition) -> Option<usize> {
    match block {
        Composition::Single { adapter } => site.adapters.iter().position(|(name, _)| name == adapter),
        Composition::Stack { children } => {
            let serves = |child: &&Composition| {
                child.adapters().into_iter().any(|adapter| site.adapters.iter().any(|(name, _)| name == adapter))
            };
            let mut serving = children.iter().filter(serves);
            let only_one = serving.next()?;
            if serving.next().is_some() { None } else { only(site, only_one) }
        }
        _ => None,
    }
}
