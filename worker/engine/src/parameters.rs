//! Trained parameters: one flat fp32 tensor, of which every trained tensor is a view.
//!
//! All lanes read the same storage, each through leaves of its own, so that lanes can run on several threads at once.
//! Nothing may write to the storage while a lane runs; see [`crate::Network::set_parameters`].

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::{host, spans::signed};

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
    Frozen(Tensor),
}

impl Parameter {
    pub(crate) fn share(&self) -> Self {
        match self {
            Self::Trained(index) => Self::Trained(*index),
            Self::Frozen(tensor) => Self::Frozen(tensor.shallow_clone()),
        }
    }
}

/// One lane's view of the trained parameters, and their gradients.
pub(crate) struct Leaves {
    tensors: Vec<Tensor>,
    gradients: Vec<Tensor>,
    flat_gradient: Tensor,
}

impl Leaves {
    /// Leaves over `flat`. Without `gradients` they are plain views and nothing is recorded.
    pub(crate) fn new(layout: &Layout, flat: &Tensor, gradients: bool) -> Self {
        let leaf = |tensor: &TrainedTensor| tensor.view(flat).detach().set_requires_grad(gradients);
        let tensors = layout.tensors.iter().map(leaf).collect();
        let size = if gradients { layout.len } else { 0 };
        let flat_gradient = Tensor::zeros([signed(size)], (Kind::Float, flat.device()));
        let views = layout.tensors.iter().filter(|_| gradients).map(|tensor| tensor.view(&flat_gradient)).collect();
        Self { tensors, gradients: views, flat_gradient }
    }

    pub(crate) fn leaf(&self, index: usize) -> &Tensor {
        &self.tensors[index]
    }

    /// The tensor behind a parameter.
    pub(crate) fn get<'a>(&'a self, parameter: &'a Parameter) -> &'a Tensor {
        match parameter {
            Parameter::Trained(index) => &self.tensors[*index],
            Parameter::Frozen(tensor) => tensor,
        }
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
        let values =
            |range: &Range<usize>| to_host(&self.flat_gradient.narrow(0, signed(range.start), signed(range.len())));
        ranges.iter().flat_map(values).collect()
    }

    /// The flat gradient.
    pub(crate) fn into_gradient(self) -> Vec<f32> {
        to_host(&self.flat_gradient)
    }
}

/// Values of a tensor in row-major order.
pub(crate) fn to_host(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let mut values = vec![0.0; tensor.numel()];
    let count = values.len();
    tensor.copy_data(&mut values, count);
    values
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
    fn leaves_are_views_of_one_storage_and_their_gradients_lie_at_the_same_offsets() {
        let mut layout = Layout::default();
        let (first, second) = (layout.push("a", &[2]), layout.push("b", &[2, 1]));
        let flat = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]);
        let mut leaves = Leaves::new(&layout, &flat, true);
        assert_eq!(to_host(leaves.leaf(second)), [3.0, 4.0]);
        leaves.add_gradient(second, &Tensor::from_slice(&[5.0f32, 6.0]).view([2, 1]));
        leaves.add_gradient(second, &Tensor::from_slice(&[1.0f32, 1.0]).view([2, 1]));
        leaves.add_gradient(first, &Tensor::from_slice(&[9.0f32, 8.0]));
        assert_eq!(leaves.into_gradient(), [9.0, 8.0, 6.0, 7.0]);
    }
}
