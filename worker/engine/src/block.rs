//! The frozen building blocks: linear layers, layer norms and activations, each with a forward and an explicit
//! backward with respect to its input. No weight gradient is ever computed here (invariant 1).
//!
//! All tensors are fp32; callers run this code without autograd.

use graftwork_model::Activation;
use tch::{Kind, Tensor};

use crate::timing::{Work, timed};

/// A frozen linear layer: weight `[o, i]`, bias `[o]`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight_oi: Tensor,
    pub(crate) bias_o: Tensor,
}

/// A frozen layer norm over the last dimension.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    pub(crate) weight_d: Tensor,
    pub(crate) bias_d: Tensor,
    pub(crate) eps: f64,
}

/// What the backward of a layer norm reads.
pub(crate) struct SavedNorm {
    sum_td: Tensor,
    mean_t1: Tensor,
    rstd_t1: Tensor,
}

impl Linear {
    /// `x Wᵀ + b`: `[t, i]` to `[t, o]`.
    pub(crate) fn forward(&self, x_ti: &Tensor) -> Tensor {
        timed(Work::Products, || x_ti.linear(&self.weight_oi, Some(&self.bias_o)))
    }

    /// Gradient of the input from the gradient of the output: `[t, o]` to `[t, i]`.
    pub(crate) fn backward(&self, gradient_to: &Tensor) -> Tensor {
        timed(Work::Products, || gradient_to.mm(&self.weight_oi))
    }

    pub(crate) fn share(&self) -> Self {
        Self { weight_oi: self.weight_oi.shallow_clone(), bias_o: self.bias_o.shallow_clone() }
    }
}

impl LayerNorm {
    /// Layer norm of `a + b`, as the end of a post-norm block, and what its backward needs.
    pub(crate) fn forward_sum(&self, a_td: &Tensor, b_td: &Tensor) -> (Tensor, SavedNorm) {
        let sum_td = a_td + b_td;
        let (out_td, mean_t1, rstd_t1) =
            sum_td.native_layer_norm(self.shape(), Some(&self.weight_d), Some(&self.bias_d), self.eps);
        (out_td, SavedNorm { sum_td, mean_t1, rstd_t1 })
    }

    /// Layer norm alone; also used under autograd.
    pub(crate) fn forward(&self, x_td: &Tensor) -> Tensor {
        x_td.layer_norm(self.shape(), Some(&self.weight_d), Some(&self.bias_d), self.eps, false)
    }

    /// Gradient of the sum that was normalised.
    pub(crate) fn backward(&self, saved: &SavedNorm, gradient_td: &Tensor) -> Tensor {
        let scaled_td = gradient_td * &self.weight_d;
        let normal_td = (&saved.sum_td - &saved.mean_t1) * &saved.rstd_t1;
        let mean = |x: &Tensor| x.mean_dim([-1].as_slice(), true, Kind::Float);
        let along_t1 = mean(&(&scaled_td * &normal_td));
        let mean_t1 = mean(&scaled_td);
        (scaled_td - mean_t1 - normal_td * along_t1) * &saved.rstd_t1
    }

    pub(crate) fn share(&self) -> Self {
        Self { weight_d: self.weight_d.shallow_clone(), bias_d: self.bias_d.shallow_clone(), eps: self.eps }
    }

    fn shape(&self) -> [i64; 1] {
        [self.weight_d.size()[0]]
    }
}

/// The trunk's activation.
pub(crate) fn activate(kind: Activation, x: &Tensor) -> Tensor {
    match kind {
        Activation::Gelu => x.gelu("none"),
        Activation::GeluNew => x.gelu("tanh"),
        Activation::Relu => x.relu(),
        Activation::Silu => x.silu(),
        Activation::Tanh => x.tanh(),
    }
}

/// Gradient of the activation's input `x` from the gradient of its output.
pub(crate) fn activate_backward(kind: Activation, x: &Tensor, gradient: &Tensor) -> Tensor {
    match kind {
        Activation::Gelu => x.gelu_backward(gradient, "none"),
        Activation::GeluNew => x.gelu_backward(gradient, "tanh"),
        Activation::Relu => gradient * x.gt(0.0).to_kind(Kind::Float),
        Activation::Silu => {
            let gate = x.sigmoid();
            gradient * (&gate * (x * (1.0 - &gate) + 1.0))
        }
        Activation::Tanh => gradient * (1.0 - x.tanh().square()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, normal};

    fn by_autograd(x: &Tensor, gradient: &Tensor, f: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let x = x.detach().set_requires_grad(true);
        let out = f(&x);
        Tensor::run_backward(&[(out * gradient).sum(Kind::Float)], &[&x], false, false).remove(0)
    }

    #[test]
    fn the_linear_backward_is_the_gradient_of_its_input() {
        let linear = Linear { weight_oi: normal(1, &[7, 5]), bias_o: normal(2, &[7]) };
        let (x, g) = (normal(3, &[4, 5]), normal(4, &[4, 7]));
        assert_close(&linear.backward(&g), &by_autograd(&x, &g, |x| linear.forward(x)), 1e-6);
    }

    #[test]
    fn the_layer_norm_backward_is_the_gradient_of_the_sum() {
        let norm = LayerNorm { weight_d: normal(1, &[48]), bias_d: normal(2, &[48]), eps: 1e-12 };
        let (a, b, g) = (normal(3, &[9, 48]), normal(4, &[9, 48]), normal(5, &[9, 48]));
        let (out, saved) = norm.forward_sum(&a, &b);
        assert_close(&out, &norm.forward(&(&a + &b)), 1e-6);
        assert_close(&norm.backward(&saved, &g), &by_autograd(&(a + b), &g, |x| norm.forward(x)), 1e-5);
    }

    #[test]
    fn every_activation_has_its_own_derivative() {
        let (x, g) = (normal(1, &[6, 11]) * 2.0, normal(2, &[6, 11]));
        for kind in [Activation::Gelu, Activation::GeluNew, Activation::Relu, Activation::Silu, Activation::Tanh] {
            let expected = by_autograd(&x, &g, |x| activate(kind, x));
            assert_close(&activate_backward(kind, &x, &g), &expected, 1e-6);
        }
    }
}
