//! A piece of the network that libtorch differentiates: an adapter site or a head.
//!
//! Its inputs are detached, so no graph ever reaches into the trunk, and its incoming gradient is handed in.

use tch::{Kind, Tensor};

use crate::{
    parameters::Leaves,
    timing::{Work, timed},
};

#[cfg(test)]
thread_local! {
    /// How many islands this thread has computed.
    pub(crate) static ISLANDS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// A site's forward pass, kept until its backward.
pub(crate) struct Island {
    /// The result, still attached to the site's own graph.
    out: Tensor,
    /// Detached inputs that need a gradient; empty where nothing below is trained.
    inputs: Vec<Tensor>,
    /// Indices of the trained leaves that the site reads.
    leaves: Vec<usize>,
}

impl Island {
    /// Runs `site` on detached inputs. The second value is the result, detached.
    ///
    /// `input_gradient` says whether the backward will hand out gradients of the inputs; `leaves` are the trained
    /// tensors that the site may read.
    pub(crate) fn forward(
        inputs: &[&Tensor],
        input_gradient: bool,
        leaves: Vec<usize>,
        site: impl FnOnce(&[Tensor]) -> Tensor,
    ) -> (Self, Tensor) {
        #[cfg(test)]
        ISLANDS.set(ISLANDS.get() + 1);
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.detach().set_requires_grad(input_gradient)).collect();
        let out = timed(Work::Islands, || tch::with_grad(|| site(&inputs)));
        let value = out.detach();
        let inputs = if input_gradient { inputs } else { Vec::new() };
        (Self { out, inputs, leaves }, value)
    }

    /// Gradients of the inputs, in order, from the gradient of the result; those of the leaves are added to `leaves`.
    ///
    /// An input that did not enter the result gets zeros. The list is empty when no input gradient was asked for.
    pub(crate) fn backward(self, gradient: &Tensor, leaves: &mut Leaves) -> Vec<Tensor> {
        timed(Work::Islands, || {
            let objective = tch::with_grad(|| (&self.out * gradient).sum(Kind::Float));
            self.backward_of(&objective, leaves)
        })
    }

    /// As [`Island::backward`], for a result that is itself the loss.
    pub(crate) fn backward_of_loss(self, leaves: &mut Leaves) -> Vec<Tensor> {
        let objective = self.out.shallow_clone();
        self.backward_of(&objective, leaves)
    }

    fn backward_of(self, objective: &Tensor, leaves: &mut Leaves) -> Vec<Tensor> {
        if !objective.requires_grad() {
            return self.inputs.iter().map(Tensor::zeros_like).collect();
        }
        let trained: Vec<Tensor> = self.leaves.iter().map(|&leaf| leaves.leaf(leaf).shallow_clone()).collect();
        let wanted: Vec<&Tensor> = self.inputs.iter().chain(&trained).collect();
        let mut gradients = Tensor::run_backward(&[objective], &wanted, false, false);
        let of_leaves = gradients.split_off(self.inputs.len());
        for (leaf, gradient) in self.leaves.iter().zip(of_leaves) {
            if gradient.defined() {
                leaves.add_gradient(*leaf, &gradient);
            }
        }
        let filled = gradients.into_iter().zip(&self.inputs);
        filled.map(|(gradient, input)| if gradient.defined() { gradient } else { input.zeros_like() }).collect()
    }
}
