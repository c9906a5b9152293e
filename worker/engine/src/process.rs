//! What a process sets up once around libtorch: threads and devices. It computes nothing.

/// Gives the calling thread one libtorch thread: parallelism is one lane a thread, never inside a product.
pub fn use_one_thread() {
    tch::set_num_threads(1);
}

/// Number of CUDA devices that can be used; 0 where the CUDA part of libtorch is not loaded or finds no driver.
///
/// The CUDA part has to be loaded before the first call: libtorch keeps the answer for good.
pub fn cuda_devices() -> usize {
    if tch::Cuda::is_available() { usize::try_from(tch::Cuda::device_count()).unwrap_or(0) } else { 0 }
}
