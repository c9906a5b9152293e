//! AdapterFusion (Pfeiffer et al. 2021): attention of each token over the outputs of several adapters.
//!
//! Runs under autograd inside an island. With query `x`, adapter outputs `aᵢ` and projections `Q`, `K`, `V`, the
//! scores `(Q x)·(K aᵢ + b)` are computed as `(Kᵀ Q x)·aᵢ + (Q x)·b`, and `Σ sᵢ V aᵢ` as `V Σ sᵢ aᵢ`: three products
//! whatever the number of adapters, where the Python peer needs 1 + 2n.

use std::sync::{Arc, OnceLock};

use graftwork_shared::adapter::FusionConfig;
use tch::{Kind, Tensor};

use crate::{
    direct::Joined,
    parameters::{Leaves, Parameter},
    rows::FusionAttention,
    transfer::{doubles_to_host, to_host},
};

/// What the fusions of one pass tell of their attention, in the order of the pass.
#[derive(Default)]
pub(crate) struct Notes {
    told: Vec<FusionAttention>,
    /// Mean weights of some of them, `[n]` in double precision, which a device may still compute.
    unread: Vec<(usize, Tensor)>,
}

impl Notes {
    /// Takes a note.
    pub(crate) fn tell(&mut self, note: FusionAttention) {
        self.told.push(note);
    }

    /// Takes a note whose weights are read later.
    pub(crate) fn tell_later(&mut self, note: FusionAttention, weights_n: Tensor) {
        self.unread.push((self.told.len(), weights_n));
        self.told.push(note);
    }

    /// Reads logits, a vector of floats, and with them all weights that were left, so that a device is waited for once.
    pub(crate) fn read_with(self, logits: &Tensor) -> (Vec<f32>, Vec<FusionAttention>) {
        let Self { mut told, unread } = self;
        if unread.is_empty() {
            return (to_host(logits), told);
        }
        let (count, logits) = (logits.numel(), logits.to_kind(Kind::Double));
        let all: Vec<&Tensor> = std::iter::once(&logits).chain(unread.iter().map(|(_, weights)| weights)).collect();
        let mut numbers = doubles_to_host(&Tensor::cat(&all, 0)).into_iter();
        #[expect(clippy::cast_possible_truncation, reason = "they were floats")]
        let logits = numbers.by_ref().take(count).map(|number| number as f32).collect();
        for (note, weights) in &unread {
            told[*note].weights = numbers.by_ref().take(weights.numel()).collect();
        }
        (logits, told)
    }
}

/// One fusion layer's projections at one place of the trunk.
pub(crate) struct FusionWeights {
    pub(crate) config: FusionConfig,
    pub(crate) query: Option<[Parameter; 2]>,
    pub(crate) key: Option<[Parameter; 2]>,
    pub(crate) value_dd: Option<Parameter>,
    /// Projections of its adapters side by side, where all are frozen. A fusion has one block of a composition, so they are the
    /// same for every pass.
    pub(crate) joined: Arc<OnceLock<Arc<Joined>>>,
}

impl FusionWeights {
    pub(crate) fn new(config: &FusionConfig, mut take: impl FnMut(&str) -> Option<Parameter>) -> Self {
        let mut pair = |at: &str| Some([take(&format!("{at}.weight"))?, take(&format!("{at}.bias"))?]);
        let (query, key) = (pair("query"), pair("key"));
        Self { config: config.clone(), query, key, value_dd: take("value.weight"), joined: Arc::default() }
    }

    /// Fused output and attention: `query_td`, adapter outputs `n × [t, d]`, `residual_td` to `[t, d]` and `[t, n]`.
    ///
    /// `mask` acts on the scores in front of the softmax, as the peer's dropout does.
    pub(crate) fn forward(
        &self,
        leaves: &Leaves,
        [query_td, residual_td]: [&Tensor; 2],
        outputs: &[Tensor],
        mask: Option<Tensor>,
    ) -> (Tensor, Tensor) {
        let mut values_tnd = Tensor::stack(outputs, 1);
        if self.config.residual_before {
            // The peer adds it in place to a tensor that is key and value at once.
            values_tnd += residual_td.unsqueeze(1);
        }
        let query_td = match &self.query {
            Some([weight, bias]) => query_td.linear(leaves.get(weight), Some(leaves.get(bias))),
            None => query_td.shallow_clone(),
        };
        let mut scores_tn = match &self.key {
            Some([weight, bias]) => {
                let along = query_td.matmul(leaves.get(weight)).unsqueeze(1);
                let constant = query_td.matmul(leaves.get(bias)).unsqueeze(1);
                sum_last(&(&values_tnd * along)) + constant
            }
            None => sum_last(&(&values_tnd * query_td.unsqueeze(1))),
        };
        if let Some(mask) = mask {
            scores_tn *= mask;
        }
        let weights_tn = scores_tn.softmax(-1, Kind::Float);
        let context_td = (values_tnd * weights_tn.unsqueeze(2)).sum_dim_intlist([1].as_slice(), false, Kind::Float);
        let context_td = match &self.value_dd {
            Some(value) => context_td.linear(leaves.get(value), None::<&Tensor>),
            None => context_td,
        };
        let out_td = if self.config.residual_before { context_td } else { context_td + residual_td };
        (out_td, weights_tn.detach())
    }

    pub(crate) fn share(&self) -> Self {
        let pair = |pair: &Option<[Parameter; 2]>| pair.as_ref().map(|[weight, bias]| [weight.share(), bias.share()]);
        Self {
            config: self.config.clone(),
            query: pair(&self.query),
            key: pair(&self.key),
            value_dd: self.value_dd.as_ref().map(Parameter::share),
            joined: Arc::clone(&self.joined),
        }
    }
}

fn sum_last(x: &Tensor) -> Tensor {
    x.sum_dim_intlist([-1].as_slice(), false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::take_waits;

    fn note(layer: u32, weights: &[f64]) -> FusionAttention {
        FusionAttention { fusion: "f".to_owned(), layer, tokens: 3, weights: weights.to_vec() }
    }

    #[test]
    fn notes_are_read_with_the_logits_at_once_and_keep_every_bit() {
        let logits = [0.1_f32, -3e38, f32::NAN, f32::MIN_POSITIVE / 2.0];
        let weights = [0.1_f64, 0.9];
        let mut notes = Notes::default();
        notes.tell_later(note(0, &[]), Tensor::from_slice(&weights));
        notes.tell(note(1, &[0.5, 0.5]));
        notes.tell_later(note(2, &[]), Tensor::from_slice(&[1.0_f64]));
        take_waits();
        let (read, told) = notes.read_with(&Tensor::from_slice(&logits));
        assert_eq!(take_waits(), 1);
        assert_eq!(read.iter().map(|number| number.to_bits()).collect::<Vec<_>>(), logits.map(f32::to_bits));
        assert_eq!(told, [note(0, &weights), note(1, &[0.5, 0.5]), note(2, &[1.0])]);
    }
}
