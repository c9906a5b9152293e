//! The frozen building blocks: linear layers, layer norms and activations, each with a forward and an explicit
//! backward with respect to its input. No weight gradient is ever computed here (invariant 1).
//!
//! What goes in and comes out is fp32, and so are all weights but those of linear layers in another precision. Callers run
//! this code without autograd.

use std::sync::{Arc, OnceLock};

use graftwork_model::Activation;
use graftwork_shared::training::Precision;
use tch::{Kind, Tensor};

use crate::{
    host,
    kernel::{self, Bend, Left, Norm, Outputs, Panels, Start, normalise, normalise_alone, normalise_backward, product},
    packed::{PackedFile, Unpacked},
    timing::{Work, timed},
};

/// A frozen linear layer: weight `[o, i]`, bias `[o]`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight_oi: Tensor,
    bias_o: Tensor,
    packed: Arc<Packed>,
}

/// A linear layer's numbers in host memory: `[o, i]` and `[o]`.
#[derive(Clone, Copy)]
pub(crate) struct Frozen<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
}

/// A frozen weight as the kernels want it, packed when a pass first asks for it and shared by all threads.
#[derive(Debug, Default)]
struct Packed {
    forward: OnceLock<Panels>,
    backward: OnceLock<Panels>,
    /// A file with both, and the number of the first one in it.
    file: OnceLock<(Arc<PackedFile>, usize)>,
}

impl Packed {
    /// Panels from the file, or else packed now.
    fn get(&self, way: usize, sizes: [usize; 2], pack: impl FnOnce() -> Panels) -> &Panels {
        let cell = [&self.forward, &self.backward][way];
        cell.get_or_init(|| {
            let mapped = self.file.get().and_then(|(file, first)| file.panels(first + way, sizes));
            mapped.unwrap_or_else(pack)
        })
    }
}

/// Place of a weight's panels for `x Wᵀ`.
const FORWARD: usize = 0;
/// Place of a weight's panels for `g W`.
const BACKWARD: usize = 1;

/// A frozen layer norm over the last dimension.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    pub(crate) weight_d: Tensor,
    pub(crate) bias_d: Tensor,
    pub(crate) eps: f64,
}

/// What the backward of a layer norm reads.
pub(crate) enum SavedNorm {
    /// Of the kernel: rows before weight and bias, and 1 / deviation of each.
    Kernel { normal_td: Tensor, rstd: Vec<f32> },
    /// Of libtorch.
    Library { sum_td: Tensor, mean_t1: Tensor, rstd_t1: Tensor },
}

/// What the backward of an activation reads.
pub(crate) enum SavedBend {
    /// Of the kernel: the slope at each input.
    Slope(Tensor),
    /// Of libtorch: the input.
    Input(Tensor),
}

impl Linear {
    pub(crate) fn new(weight_oi: Tensor, bias_o: Tensor) -> Self {
        Self { weight_oi, bias_o, packed: Arc::default() }
    }

    /// `x Wᵀ + b`: `[t, i]` to `[t, o]`. May be recorded by autograd.
    pub(crate) fn forward(&self, x_ti: &Tensor) -> Tensor {
        let library = || {
            let kind = self.weight_oi.kind();
            in_kind(x_ti, kind).linear(&self.weight_oi, Some(&self.bias_o)).to_kind(Kind::Float)
        };
        timed(Work::Products, || if x_ti.requires_grad() { None } else { self.in_kernel(x_ti) }.unwrap_or_else(library))
    }

    /// Gradient of the input from the gradient of the output, `[t, o]` to `[t, i]`, added to `onto`.
    pub(crate) fn backward(&self, gradient_to: &Tensor, onto: Option<&Tensor>) -> Tensor {
        let library = || {
            let below_ti = in_kind(gradient_to, self.weight_oi.kind()).mm(&self.weight_oi).to_kind(Kind::Float);
            onto.map_or(below_ti.shallow_clone(), |onto| onto + below_ti)
        };
        timed(Work::Products, || self.backward_in_kernel(gradient_to, onto).unwrap_or_else(library))
    }

    fn in_kernel(&self, x_ti: &Tensor) -> Option<Tensor> {
        let (panels, bias) = (self.forward_panels()?, self.on_host()?.bias);
        let x = host::values(x_ti)?;
        let [outputs, inputs] = host::sizes(&self.weight_oi);
        let rows = x.len() / inputs;
        let mut out_to = host::fresh([rows, outputs]);
        product(Left::rows(x, inputs), rows, panels, Start::Bias(bias), host::values_mut(&mut out_to)?);
        Some(out_to)
    }

    fn backward_in_kernel(&self, gradient_to: &Tensor, onto: Option<&Tensor>) -> Option<Tensor> {
        if host::is_off() {
            return None;
        }
        let gradient = host::values(gradient_to)?;
        let start = match onto {
            Some(onto) => Start::Matrix(host::values(onto)?),
            None => Start::Zero,
        };
        let [outputs, inputs] = host::sizes(&self.weight_oi);
        let weight = host::values(&self.weight_oi)?;
        let sizes = [outputs, inputs];
        let panels = self.packed.get(BACKWARD, sizes, || Panels::of_rows(weight, sizes));
        let rows = gradient.len() / outputs;
        let mut below_ti = host::fresh([rows, inputs]);
        product(Left::rows(gradient, outputs), rows, panels, start, host::values_mut(&mut below_ti)?);
        Some(below_ti)
    }

    /// The weight and the bias as kernels read them; `None` where they cannot.
    pub(crate) fn on_host(&self) -> Option<Frozen<'_>> {
        if host::is_off() {
            return None;
        }
        Some(Frozen { weight: host::values(&self.weight_oi)?, bias: host::values(&self.bias_o)? })
    }

    /// The weight packed for `x Wᵀ`; `None` where kernels cannot read it.
    pub(crate) fn forward_panels(&self) -> Option<&Panels> {
        let weight = self.on_host()?.weight;
        let [outputs, inputs] = host::sizes(&self.weight_oi);
        let sizes = [inputs, outputs];
        Some(self.packed.get(FORWARD, sizes, || Panels::of_columns(weight, sizes)))
    }

    /// Both ways of packing the weight; `None` where kernels cannot read it.
    pub(crate) fn unpacked(&self) -> Option<[Unpacked<'_>; 2]> {
        let [outputs, inputs] = host::sizes(&self.weight_oi);
        let weight = host::values(&self.weight_oi)?;
        let [forward, backward] = [[inputs, outputs], [outputs, inputs]];
        Some([
            Unpacked { sizes: forward, pack: Box::new(move || Panels::of_columns(weight, forward)) },
            Unpacked { sizes: backward, pack: Box::new(move || Panels::of_rows(weight, backward)) },
        ])
    }

    /// Takes panels from a file in which both ways lie, the first one at this number. Without effect where they are
    /// packed already.
    pub(crate) fn packed_in(&self, file: &Arc<PackedFile>, first: usize) {
        self.packed.file.get_or_init(|| (Arc::clone(file), first));
    }

    /// How many of both ways were taken from a file.
    #[cfg(test)]
    pub(crate) fn mapped(&self) -> usize {
        [&self.packed.forward, &self.packed.backward]
            .iter()
            .filter_map(|cell| cell.get())
            .filter(|p| p.is_mapped())
            .count()
    }

    /// The same layer with its products in these numbers, from the weights of this one.
    pub(crate) fn in_precision(&self, precision: Precision) -> Self {
        let kind = match precision {
            Precision::Fp32 => return self.share(),
            Precision::Bf16 => Kind::BFloat16,
            Precision::Fp16 => Kind::Half,
        };
        Self::new(self.weight_oi.to_kind(kind), self.bias_o.to_kind(kind))
    }

    pub(crate) fn share(&self) -> Self {
        let (weight_oi, bias_o) = (self.weight_oi.shallow_clone(), self.bias_o.shallow_clone());
        Self { weight_oi, bias_o, packed: Arc::clone(&self.packed) }
    }
}

/// A tensor in these numbers; itself where it has them.
fn in_kind(x: &Tensor, kind: Kind) -> Tensor {
    if x.kind() == kind { x.shallow_clone() } else { x.to_kind(kind) }
}

impl LayerNorm {
    /// Layer norm of `a + b`, as the end of a post-norm block, and what its backward needs.
    pub(crate) fn forward_sum(&self, a_td: &Tensor, b_td: &Tensor) -> (Tensor, SavedNorm) {
        self.in_kernel([a_td, b_td]).unwrap_or_else(|| {
            let sum_td = a_td + b_td;
            let (out_td, mean_t1, rstd_t1) =
                sum_td.native_layer_norm(self.shape(), Some(&self.weight_d), Some(&self.bias_d), self.eps);
            (out_td, SavedNorm::Library { sum_td, mean_t1, rstd_t1 })
        })
    }

    /// The same where no backward follows.
    pub(crate) fn forward_sum_alone(&self, a_td: &Tensor, b_td: &Tensor) -> Tensor {
        self.alone_in_kernel(&[a_td, b_td]).unwrap_or_else(|| self.forward_sum(a_td, b_td).0)
    }

    /// Layer norm alone. May be recorded by autograd.
    pub(crate) fn forward(&self, x_td: &Tensor) -> Tensor {
        let in_kernel = if x_td.requires_grad() { None } else { self.alone_in_kernel(&[x_td]) };
        in_kernel
            .unwrap_or_else(|| x_td.layer_norm(self.shape(), Some(&self.weight_d), Some(&self.bias_d), self.eps, false))
    }

    /// Gradient of the sum that was normalised.
    pub(crate) fn backward(&self, saved: &SavedNorm, gradient_td: &Tensor) -> Tensor {
        match saved {
            SavedNorm::Kernel { normal_td, rstd } => {
                let gradient_td = gradient_td.contiguous();
                let read = |tensor| host::values(tensor).expect("a tensor of the forward pass, or one like it");
                let mut out_td = host::fresh(host::sizes(normal_td));
                let out = host::values_mut(&mut out_td).expect("a fresh tensor");
                let kept = (read(normal_td), rstd.as_slice());
                normalise_backward(read(&gradient_td), kept, read(&self.weight_d), None, out);
                out_td
            }
            SavedNorm::Library { sum_td, mean_t1, rstd_t1 } => {
                let scaled_td = gradient_td * &self.weight_d;
                let normal_td = (sum_td - mean_t1) * rstd_t1;
                let mean = |x: &Tensor| x.mean_dim([-1].as_slice(), true, Kind::Float);
                let along_t1 = mean(&(&scaled_td * &normal_td));
                let mean_t1 = mean(&scaled_td);
                (scaled_td - mean_t1 - normal_td * along_t1) * rstd_t1
            }
        }
    }

    fn alone_in_kernel(&self, terms: &[&Tensor]) -> Option<Tensor> {
        let mut out_td = host::fresh(host::sizes(terms[0]));
        let terms = terms.iter().map(|term| host::values(term)).collect::<Option<Vec<&[f32]>>>()?;
        normalise_alone(&terms, self.on_host()?, host::values_mut(&mut out_td)?);
        Some(out_td)
    }

    fn in_kernel(&self, [a_td, b_td]: [&Tensor; 2]) -> Option<(Tensor, SavedNorm)> {
        let sizes = host::sizes(a_td);
        let terms = [host::values(a_td)?, host::values(b_td)?];
        let norm = self.on_host()?;
        let (mut out_td, mut normal_td, mut rstd) = (host::fresh(sizes), host::fresh(sizes), vec![0.0; sizes[0]]);
        let (out, normal) = (host::values_mut(&mut out_td)?, host::values_mut(&mut normal_td)?);
        normalise(&terms, norm, Outputs { out, normal, rstd: &mut rstd });
        Some((out_td, SavedNorm::Kernel { normal_td, rstd }))
    }

    /// The norm as the kernels read it; `None` on another device.
    pub(crate) fn on_host(&self) -> Option<Norm<'_>> {
        if host::is_off() {
            return None;
        }
        Some(Norm { weight: host::values(&self.weight_d)?, bias: host::values(&self.bias_d)?, eps: self.eps })
    }

    pub(crate) fn share(&self) -> Self {
        Self { weight_d: self.weight_d.shallow_clone(), bias_d: self.bias_d.shallow_clone(), eps: self.eps }
    }

    fn shape(&self) -> [i64; 1] {
        [self.weight_d.size()[0]]
    }
}

/// The trunk's activation, and what its backward needs when that is asked for. `x` must have no other owner: on the
/// processor it becomes the result.
pub(crate) fn activate(kind: Activation, mut x: Tensor, keep: bool) -> (Tensor, Option<SavedBend>) {
    let sizes = host::sizes(&x);
    let bend = match kind {
        Activation::Gelu => Bend::Gelu,
        Activation::GeluNew => Bend::GeluNew,
        Activation::Relu => Bend::Relu,
        Activation::Silu => Bend::Silu,
        Activation::Tanh => Bend::Tanh,
    };
    if let Some(values) = host::values_mut(&mut x).filter(|_| !host::is_off()) {
        let slope = keep.then(|| {
            let mut slope = host::fresh(sizes);
            bend.with_slope(values, host::values_mut(&mut slope).expect("a fresh tensor"));
            SavedBend::Slope(slope)
        });
        if slope.is_none() {
            bend.alone(values);
        }
        return (x, slope);
    }
    let out = match kind {
        Activation::Gelu => x.gelu("none"),
        Activation::GeluNew => x.gelu("tanh"),
        Activation::Relu => x.relu(),
        Activation::Silu => x.silu(),
        Activation::Tanh => x.tanh(),
    };
    (out, keep.then_some(SavedBend::Input(x)))
}

/// Gradient of the activation's input from the gradient of its output, which must have no other owner.
pub(crate) fn activate_backward(kind: Activation, saved: &SavedBend, mut gradient: Tensor) -> Tensor {
    match saved {
        SavedBend::Slope(slope) => {
            let slope = host::values(slope).expect("a slope of the kernel");
            kernel::multiply(host::values_mut(&mut gradient).expect("a gradient like the output"), slope);
            gradient
        }
        SavedBend::Input(x) => library_backward(kind, x, &gradient),
    }
}

fn library_backward(kind: Activation, x: &Tensor, gradient: &Tensor) -> Tensor {
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
        let linear = Linear::new(normal(1, &[7, 5]), normal(2, &[7]));
        let (x, g, onto) = (normal(3, &[4, 5]), normal(4, &[4, 7]), normal(5, &[4, 5]));
        // Recorded, libtorch computes it.
        let expected = by_autograd(&x, &g, |x| linear.forward(x));
        assert_close(&linear.backward(&g, None), &expected, 1e-6);
        assert_close(&linear.backward(&g, Some(&onto)), &(expected + onto), 1e-6);
        assert_close(&linear.forward(&x), &x.linear(&linear.weight_oi, Some(&linear.bias_o)), 1e-6);
    }

    #[test]
    fn the_layer_norm_backward_is_the_gradient_of_the_sum() {
        let norm = LayerNorm { weight_d: normal(1, &[48]), bias_d: normal(2, &[48]), eps: 1e-12 };
        let (a, b, g) = (normal(3, &[9, 48]), normal(4, &[9, 48]), normal(5, &[9, 48]));
        let (out, saved) = norm.forward_sum(&a, &b);
        assert_close(&norm.forward_sum_alone(&a, &b), &out, 0.0);
        let recorded = (&a + &b).set_requires_grad(true);
        assert_close(&out, &norm.forward(&recorded).detach(), 1e-6);
        let (sum_td, eps) = (&a + &b, norm.eps);
        let (_, mean_t1, rstd_t1) = sum_td.native_layer_norm([48], Some(&norm.weight_d), Some(&norm.bias_d), eps);
        for saved in [saved, SavedNorm::Library { sum_td, mean_t1, rstd_t1 }] {
            assert_close(&norm.backward(&saved, &g), &by_autograd(&(&a + &b), &g, |x| norm.forward(x)), 1e-5);
        }
    }

    #[test]
    fn every_activation_has_its_own_derivative() {
        let (x, g) = (normal(1, &[6, 11]) * 2.0, normal(2, &[6, 11]));
        for kind in [Activation::Gelu, Activation::GeluNew, Activation::Relu, Activation::Silu, Activation::Tanh] {
            let plain = |x: &Tensor| match kind {
                Activation::Gelu => x.gelu("none"),
                Activation::GeluNew => x.gelu("tanh"),
                Activation::Relu => x.relu(),
                Activation::Silu => x.silu(),
                Activation::Tanh => x.tanh(),
            };
            let expected = by_autograd(&x, &g, plain);
            let (out, saved) = activate(kind, x.copy(), true);
            assert_close(&out, &plain(&x), 1e-6);
            assert_close(&activate(kind, x.copy(), false).0, &out, 0.0);
            for saved in [saved.unwrap(), SavedBend::Input(x.copy())] {
                assert_close(&activate_backward(kind, &saved, g.copy()), &expected, 2e-6);
            }
        }
    }
}
