//! What a process sets up once around libtorch: threads, memory and devices. It computes nothing.

/// Gives the calling thread one libtorch thread: parallelism is one lane a thread, never inside a product.
pub fn use_one_thread() {
    tch::set_num_threads(1);
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    keep_freed_memory();
}

/// Makes the allocator keep what a lane has freed for the next lane. Otherwise it gives memory back after each lane and
/// asks for it anew, and the kernel's zeroing of fresh pages takes 5 % of a step.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    use std::{
        ffi::c_int,
        sync::atomic::{AtomicBool, Ordering},
    };
    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }
    /// Free memory at the end of a heap that is kept.
    const TRIM_THRESHOLD: (c_int, c_int) = (-1, 256 << 20);
    /// Size from which an allocation is a mapping of its own; the allocator takes no larger one.
    const MAPPING_THRESHOLD: (c_int, c_int) = (-3, 32 << 20);
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.swap(true, Ordering::Relaxed) {
        for (parameter, value) in [TRIM_THRESHOLD, MAPPING_THRESHOLD] {
            // SAFETY: the C library's own function, which takes these two numbers and sets one of its own under its
            // lock; it refuses what it does not know.
            unsafe { mallopt(parameter, value) };
        }
    }
}

/// Number of CUDA devices that can be used; 0 where the CUDA part of libtorch is not loaded or finds no driver.
///
/// The CUDA part has to be loaded before the first call: libtorch keeps the answer for good.
pub fn cuda_devices() -> usize {
    if tch::Cuda::is_available() { usize::try_from(tch::Cuda::device_count()).unwrap_or(0) } else { 0 }
}
