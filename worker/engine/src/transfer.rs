//! Numbers on their way between the host and a device. The only place where they pass, so that both ways are counted.
//!
//! What goes to a GPU lies in pinned memory and is copied while the device computes. What comes back makes the host wait
//! for all that the device was asked for: a step may do that once.

use std::cell::Cell;

use tch::{Device, Kind, Tensor, kind::Element};

thread_local! {
    static WAITS: Cell<u32> = const { Cell::new(0) };
    static COPIES: Cell<u32> = const { Cell::new(0) };
}

/// How often this thread has waited for a device, or would have if tensors did not lie in host memory, since the last
/// call.
#[cfg(test)]
pub(crate) fn take_waits() -> u32 {
    WAITS.take()
}

/// How often this thread has sent numbers to a device, or would have, since the last call.
#[cfg(test)]
pub(crate) fn take_copies() -> u32 {
    COPIES.take()
}

/// Numbers as a vector on a device.
pub(crate) fn to_device<T: Element>(values: &[T], device: Device) -> Tensor {
    moved(Tensor::from_slice(values), device)
}

/// A tensor in host memory on a device; itself where that is the host.
pub(crate) fn moved(tensor: Tensor, device: Device) -> Tensor {
    COPIES.set(COPIES.get() + 1);
    if device == Device::Cpu {
        return tensor;
    }
    // The allocator of pinned memory keeps what was copied until the device has read it.
    tensor.pin_memory(device).to_device_(device, tensor.kind(), true, false)
}

/// Values of a tensor in row-major order.
pub(crate) fn to_host(tensor: &Tensor) -> Vec<f32> {
    waited(tensor, Kind::Float, 0.0)
}

/// The same in double precision.
pub(crate) fn doubles_to_host(tensor: &Tensor) -> Vec<f64> {
    waited(tensor, Kind::Double, 0.0)
}

fn waited<T: Element + Clone>(tensor: &Tensor, kind: Kind, zero: T) -> Vec<T> {
    WAITS.set(WAITS.get() + 1);
    let tensor = tensor.detach().to_device(Device::Cpu).to_kind(kind).contiguous();
    let mut values = vec![zero; tensor.numel()];
    let count = values.len();
    tensor.copy_data(&mut values, count);
    values
}
