//! Trained parameters: one flat fp32 tensor, of which every trained tensor is a view.
//!
//! All lanes read the same storage, each through leaves of its own, so that lanes can run on several threads at once.
//! Nothing may write to the storage while a lane runs; see [`crate::Network::set_parameters`].

use std::{
    ops::{Deref, Range},
    sync::{Arc, OnceLock},
};

use tch::{Device, Kind, Tensor};

use crate::{
    direct::Through,
    host::{self, Written},
    kernel::{Left, Panels, Start, product},
    rows::LaneOutput,
    spans::signed,
    transfer::to_host,
};

/// One trained tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainedTensor {
    /// Full state-dict name.
    pub name: String,
    /// Sizes of its dimensions.
    pub shape: Vec<usize>,
    /// Its first element within the flat buffer.
    pub offset: usize,
    /// Whether weight decay acts on it: weights decay, biases and layer norms do not.
    pub decays: bool,
}

/// The order of all trained tensors within the flat buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// By offset, without gaps.
    pub tensors: Vec<TrainedTensor>,
    /// Elements of the flat buffer.
    pub len: usize,
}

impl Layout {
    /// Appends a tensor and returns its index.
    pub(crate) fn push(&mut self, name: &str, shape: &[usize]) -> usize {
        let offset = self.len;
        self.len += shape.iter().product::<usize>();
        let decays = name.rsplit('.').next() != Some("bias") && !name.contains(".adapter_norm_");
        self.tensors.push(TrainedTensor { name: name.to_owned(), shape: shape.to_vec(), offset, decays });
        self.tensors.len() - 1
    }
}

impl TrainedTensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its part of a flat buffer, as a view of its own shape.
    fn view(&self, flat: &Tensor) -> Tensor {
        let shape: Vec<i64> = self.shape.iter().map(|&size| signed(size)).collect();
        flat.narrow(0, signed(self.offset), signed(self.elements())).view(shape.as_slice())
    }
}

/// Where a parameter of an adapter site or head lives.
#[derive(Debug)]
pub(crate) enum Parameter {
    /// In the flat buffer: index into the layout.
    Trained(usize),
    /// In a tensor of its own that never changes.
    Frozen(Frozen),
}

/// A tensor that never changes, and how kernels want it.
#[derive(Debug)]
pub(crate) struct Frozen {
    tensor: Tensor,
    /// Packed both ways when a pass first asks for it, and shared by all threads.
    packed: Arc<[OnceLock<Panels>; 2]>,
    /// Of an up projection: see [`crate::direct::Near`].
    pub(crate) through: Through,
}

/// What a weight `[o, i]` is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// `x Wᵀ`.
    Forward,
    /// `g W`.
    Backward,
}

/// A packed weight: kept from one pass to the next, or packed for this product alone.
pub(crate) enum PackedWeight<'a> {
    Kept(&'a Panels),
    Fresh(Panels),
}

impl Deref for PackedWeight<'_> {
    type Target = Panels;

    fn deref(&self) -> &Panels {
        match self {
            Self::Kept(panels) => panels,
            Self::Fresh(panels) => panels,
        }
    }
}

impl Parameter {
    /// One that is never trained.
    pub(crate) fn frozen(tensor: Tensor) -> Self {
        Self::Frozen(Frozen { tensor, packed: Arc::default(), through: Arc::default() })
    }

    pub(crate) fn share(&self) -> Self {
        match self {
            Self::Trained(index) => Self::Trained(*index),
            Self::Frozen(Frozen { tensor, packed, through }) => Self::Frozen(Frozen {
                tensor: tensor.shallow_clone(),
                packed: Arc::clone(packed),
                through: Arc::clone(through),
            }),
        }
    }
}

/// Losses and flat gradient of a lane, which a device may still compute.
pub(crate) struct Unread {
    gradient: Tensor,
    /// `[n]`.
    losses: Tensor,
}

impl Unread {
    /// The numbers of several lanes, for which a device is waited for once.
    pub(crate) fn read(lanes: &[Self]) -> Vec<LaneOutput> {
        let all: Vec<&Tensor> = lanes.iter().flat_map(|lane| [&lane.gradient, &lane.losses]).collect();
        if all.is_empty() {
            return Vec::new();
        }
        let numbers = to_host(&Tensor::cat(&all, 0));
        let mut rest = numbers.as_slice();
        let mut next = |of: &Tensor| {
            let (these, others) = rest.split_at(of.numel());
            rest = others;
            these
        };
        let one = |lane: &Self| {
            let gradient = next(&lane.gradient).to_vec();
            LaneOutput { loss: sum(next(&lane.losses)), gradient }
        };
        lanes.iter().map(one).collect()
    }
}

fn sum(losses: &[f32]) -> f64 {
    losses.iter().copied().map(f64::from).sum()
}

/// A lane's gradient: in host memory as the vector that is asked for in the end.
enum Flat {
    Host(Written),
    Device(Tensor),
}

impl Flat {
    fn tensor(&self) -> &Tensor {
        match self {
            Self::Host(written) => written.tensor(),
            Self::Device(tensor) => tensor,
        }
    }
}

/// One lane's view of the trained parameters, and their gradients.
pub(crate) struct Leaves {
    tensors: Vec<Tensor>,
    /// Views of the flat gradient, which go before it does.
    gradients: Vec<Tensor>,
    flat_gradient: Flat,
    /// Whether autograd may record what is done with them.
    recorded: bool,
}

impl Leaves {
    /// Leaves over `flat`. Without `gradients` they are plain views and nothing is recorded.
    pub(crate) fn new(layout: &Layout, flat: &Tensor, gradients: bool) -> Self {
        let leaf = |tensor: &TrainedTensor| tensor.view(flat).detach().set_requires_grad(gradients);
        let tensors = layout.tensors.iter().map(leaf).collect();
        let size = if gradients { layout.len } else { 0 };
        let on_host = flat.device() == Device::Cpu && !host::is_off();
        let flat_gradient = if on_host {
            Flat::Host(Written::zeros(size))
        } else {
            Flat::Device(Tensor::zeros([signed(size)], (Kind::Float, flat.device())))
        };
        let view = |tensor: &TrainedTensor| tensor.view(flat_gradient.tensor());
        let views = layout.tensors.iter().filter(|_| gradients).map(view).collect();
        Self { tensors, gradients: views, flat_gradient, recorded: gradients }
    }

    pub(crate) fn leaf(&self, index: usize) -> &Tensor {
        &self.tensors[index]
    }

    /// The tensor behind a parameter.
    pub(crate) fn get<'a>(&'a self, parameter: &'a Parameter) -> &'a Tensor {
        match parameter {
            Parameter::Trained(index) => &self.tensors[*index],
            Parameter::Frozen(frozen) => &frozen.tensor,
        }
    }

    /// A weight `[o, i]` as products want it, for kernels in host memory; packed once for all passes where it never
    /// changes.
    pub(crate) fn packed<'a>(&self, parameter: &'a Parameter, way: Way) -> PackedWeight<'a> {
        let pack = || {
            let [outputs, inputs] = self.sizes(parameter);
            match way {
                Way::Forward => Panels::of_columns(self.values(parameter), [inputs, outputs]),
                Way::Backward => Panels::of_rows(self.values(parameter), [outputs, inputs]),
            }
        };
        match parameter {
            Parameter::Trained(_) => PackedWeight::Fresh(pack()),
            Parameter::Frozen(frozen) => PackedWeight::Kept(frozen.packed[way as usize].get_or_init(pack)),
        }
    }

    /// `x Wᵀ + b`, `[t, i]` to `[t, o]`. Where nothing is recorded, a row's result does not depend on the others.
    pub(crate) fn linear(&self, x_ti: &Tensor, weight: &Parameter, bias: Option<&Parameter>) -> Tensor {
        let library = || x_ti.linear(self.get(weight), bias.map(|bias| self.get(bias)));
        if self.recorded { library() } else { self.in_kernel(x_ti, weight, bias).unwrap_or_else(library) }
    }

    fn in_kernel(&self, x_ti: &Tensor, weight: &Parameter, bias: Option<&Parameter>) -> Option<Tensor> {
        if host::is_off() {
            return None;
        }
        let x = host::values(x_ti)?;
        let [outputs, inputs] = self.sizes(weight);
        let rows = x.len() / inputs;
        let mut out_to = host::fresh([rows, outputs]);
        let start = bias.map_or(Start::Zero, |bias| Start::Bias(self.values(bias)));
        let panels = self.packed(weight, Way::Forward);
        product(Left::rows(x, inputs), rows, &panels, start, host::values_mut(&mut out_to)?);
        Some(out_to)
    }

    /// A parameter's values, for kernels in host memory.
    pub(crate) fn values<'a>(&'a self, parameter: &'a Parameter) -> &'a [f32] {
        host::values(self.get(parameter)).expect("parameters of the processor are dense floats")
    }

    /// The sizes of a parameter that is a matrix.
    pub(crate) fn sizes(&self, parameter: &Parameter) -> [usize; 2] {
        host::sizes(self.get(parameter))
    }

    /// The sum of a parameter's gradients so far, for kernels in host memory; `None` where it is not trained.
    pub(crate) fn gradient(&mut self, parameter: &Parameter) -> Option<&mut [f32]> {
        match parameter {
            Parameter::Trained(index) => host::values_mut(self.gradients.get_mut(*index)?),
            Parameter::Frozen(_) => None,
        }
    }

    pub(crate) fn add_gradient(&mut self, index: usize, gradient: &Tensor) {
        let _ = self.gradients[index].g_add_(gradient);
    }

    /// The gradient so far at these places of the flat buffer, one behind the other.
    pub(crate) fn gradient_at(&self, ranges: &[Range<usize>]) -> Vec<f32> {
        let values = |range: &Range<usize>| {
            to_host(&self.flat_gradient.tensor().narrow(0, signed(range.start), signed(range.len())))
        };
        ranges.iter().flat_map(values).collect()
    }

    /// The sum of scalar losses and the flat gradient, for which a device is waited for once.
    pub(crate) fn into_output(self, losses: &[Tensor]) -> LaneOutput {
        let Self { gradients, flat_gradient, .. } = self;
        drop(gradients);
        match flat_gradient {
            Flat::Host(written) => {
                let loss = sum(&to_host(&together(losses)));
                LaneOutput { loss, gradient: written.into_values() }
            }
            Flat::Device(gradient) => Unread::read(&[Unread { gradient, losses: together(losses) }]).remove(0),
        }
    }

    /// Scalar losses and the flat gradient, to be read later.
    pub(crate) fn into_unread(self, losses: &[Tensor]) -> Unread {
        let gradient = match self.flat_gradient {
            Flat::Device(gradient) => gradient,
            // It goes with the leaves.
            Flat::Host(written) => written.tensor().copy(),
        };
        Unread { gradient, losses: together(losses) }
    }
}

/// Losses as a vector.
fn together(losses: &[Tensor]) -> Tensor {
    let losses: Vec<Tensor> = losses.iter().map(|loss| loss.detach().view([1])).collect();
    Tensor::cat(&losses, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_and_layer_norms_do_not_decay() {
        let mut layout = Layout::default();
        for name in ["x.adapter_down.0.weight", "x.adapter_down.0.bias", "x.adapter_norm_after.weight", "x.scaling"] {
            layout.push(name, &[2, 3]);
        }
        let decays: Vec<bool> = layout.tensors.iter().map(|tensor| tensor.decays).collect();
        assert_eq!(decays, [true, false, false, true]);
        assert_eq!((layout.tensors[3].offset, layout.len), (18, 24));
    }

    #[test]
    fn what_never_changes_is_packed_once_for_all_threads() {
        let mut layout = Layout::default();
        let trained = Parameter::Trained(layout.push("a", &[2, 3]));
        let values: Vec<f32> = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].to_vec();
        let frozen = Parameter::frozen(Tensor::from_slice(&values).view([2, 3]));
        let leaves = Leaves::new(&layout, &Tensor::from_slice(&values), false);
        for (way, sizes) in [(Way::Forward, [3, 2]), (Way::Backward, [2, 3])] {
            let of = |parameter| {
                let packed = leaves.packed(parameter, way);
                let sizes = [packed.sums(), packed.columns()];
                (sizes, packed.bytes().to_vec(), packed.bytes().as_ptr(), matches!(packed, PackedWeight::Kept(_)))
            };
            let (first, shared, fresh) = (of(&frozen), of(&frozen.share()), of(&trained));
            assert_eq!((first.0, first.2, first.3), (sizes, shared.2, true));
            assert_eq!((&fresh.1, fresh.3), (&first.1, false));
        }
    }

    #[test]
    fn a_row_of_a_layer_has_the_same_bytes_whatever_its_neighbours_where_nothing_is_recorded() {
        let mut layout = Layout::default();
        let weight = Parameter::Trained(layout.push("a.weight", &[5, 48]));
        let bias = Parameter::frozen(crate::testing::normal(2, &[5]));
        let flat = crate::testing::normal(1, &[5 * 48]);
        let [plain, recorded] = [false, true].map(|recorded| Leaves::new(&layout, &flat, recorded));
        let x = crate::testing::normal(3, &[30, 48]);
        for bias in [Some(&bias), None] {
            let together = plain.linear(&x, &weight, bias);
            crate::testing::assert_close(&together, &recorded.linear(&x, &weight, bias).detach(), 1e-5);
            for row in 0..30 {
                let alone = plain.linear(&x.narrow(0, row, 1), &weight, bias);
                assert_eq!(host::values(&alone), host::values(&together.narrow(0, row, 1)), "row {row}");
            }
        }
    }

    #[test]
    fn leaves_are_views_of_one_storage_and_their_gradients_lie_at_the_same_offsets() {
        let mut layout = Layout::default();
        let (first, second) = (layout.push("a", &[2]), layout.push("b", &[2, 1]));
        let flat = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]);
        let mut leaves = Leaves::new(&layout, &flat, true);
        assert_eq!(to_host(leaves.leaf(second)), [3.0, 4.0]);
        leaves.add_gradient(second, &Tensor::from_slice(&[5.0f32, 6.0]).view([2, 1]));
        leaves.add_gradient(second, &Tensor::from_slice(&[1.0f32, 1.0]).view([2, 1]));
        leaves.add_gradient(first, &Tensor::from_slice(&[9.0f32, 8.0]));
        let losses = [0.5f32, 0.25].map(|loss| Tensor::from_slice(&[loss]).view([]));
        let expected = LaneOutput { loss: 0.75, gradient: vec![9.0, 8.0, 6.0, 7.0] };
        assert_eq!(leaves.into_output(&losses), expected);
        // Of several lanes each has its own.
        let unread = [1.0_f32, 3.0].map(|number| {
            let mut leaves = Leaves::new(&layout, &flat, true);
            leaves.add_gradient(first, &Tensor::from_slice(&[number, number]));
            leaves.into_unread(&[Tensor::from_slice(&[number]).view([])])
        });
        let of = |loss, number| LaneOutput { loss, gradient: vec![number, number, 0.0, 0.0] };
        assert_eq!(Unread::read(&unread), [of(1.0, 1.0), of(3.0, 3.0)]);
        assert!(Unread::read(&[]).is_empty());
    }
}
