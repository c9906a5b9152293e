//! fp32 tensors in host memory as slices, for kernels of our own. The only place that reads a tensor's address.

use tch::{Device, Kind, Tensor};

use crate::spans::{signed, unsigned};

/// The values of a contiguous fp32 tensor on the CPU; `None` for any other tensor.
pub(crate) fn values(tensor: &Tensor) -> Option<&[f32]> {
    usable(tensor).then(|| {
        // SAFETY: the tensor is dense fp32 in host memory with `numel` elements, and the borrow keeps it alive. Nothing
        // writes to it meanwhile: kernels read activations of their own lane, which no other thread knows.
        unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
    })
}

/// The values of a tensor that was just made, or of a view that overlaps no other one in use, and that is contiguous fp32 on
/// the CPU; `None` otherwise.
pub(crate) fn values_mut(tensor: &mut Tensor) -> Option<&mut [f32]> {
    usable(tensor).then(|| {
        // SAFETY: as above; callers pass tensors fresh from an allocation, or views of a lane's own gradient that do not
        // overlap, and the mutable borrow keeps this one from being read.
        unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
    })
}

/// A matrix in host memory whose values are not set yet.
pub(crate) fn fresh([rows, columns]: [usize; 2]) -> Tensor {
    Tensor::empty([signed(rows), signed(columns)], (Kind::Float, Device::Cpu))
}

/// A vector of numbers in host memory that a tensor writes into.
pub(crate) struct Written {
    /// Goes before the numbers do.
    tensor: Tensor,
    values: Vec<f32>,
}

impl Written {
    /// Zeros.
    pub(crate) fn zeros(count: usize) -> Self {
        let mut values: Vec<f32> = vec![0.0; count];
        // SAFETY: the pointer is taken to be written through, the vector has so many floats, never grows, and is touched by
        // nobody but the tensor until `into_values`.
        let tensor =
            unsafe { Tensor::from_blob(values.as_mut_ptr().cast(), &[signed(count)], &[1], Kind::Float, Device::Cpu) };
        Self { tensor, values }
    }

    /// What writes into it. Views of it must be gone before [`Written::into_values`] and before this is dropped.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The numbers, without a copy.
    pub(crate) fn into_values(self) -> Vec<f32> {
        drop(self.tensor);
        self.values
    }
}

/// The sizes of a matrix.
pub(crate) fn sizes(matrix: &Tensor) -> [usize; 2] {
    let (rows, columns) = matrix.size2().expect("a matrix");
    [unsigned(rows), unsigned(columns)]
}

#[cfg(test)]
thread_local! {
    /// Makes this thread compute as if its tensors lay on an accelerator: by libtorch alone.
    pub(crate) static OFF: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether kernels of our own are left out although tensors lie in host memory.
#[cfg(test)]
pub(crate) fn is_off() -> bool {
    OFF.get()
}

/// Whether kernels of our own are left out although tensors lie in host memory.
#[cfg(not(test))]
pub(crate) fn is_off() -> bool {
    false
}

fn usable(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.kind() == Kind::Float && tensor.is_contiguous() && tensor.numel() > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tensor_writes_stands_in_the_vector() {
        let written = Written::zeros(4);
        let _ = written.tensor().narrow(0, 1, 2).fill_(3.0);
        assert_eq!(written.into_values(), [0.0, 3.0, 3.0, 0.0]);
        assert!(Written::zeros(0).into_values().is_empty());
    }

    #[test]
    fn only_dense_floats_in_host_memory_are_slices() {
        let mut tensor = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([2, 2]);
        assert_eq!(values(&tensor), Some([1.0, 2.0, 3.0, 4.0].as_slice()));
        values_mut(&mut tensor).unwrap()[1] = 7.0;
        assert_eq!(values(&tensor), Some([1.0, 7.0, 3.0, 4.0].as_slice()));
        assert!(values(&tensor.tr()).is_none() && values(&tensor.to_kind(Kind::Double)).is_none());
    }
}
