//! Device memory and one stream, from the CUDA runtime that is loaded at run time.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    mem::ManuallyDrop,
    ptr,
};

use libloading::Library;

use super::search;
use crate::CollectiveError;

const SUCCESS: c_int = 0;
/// `cudaErrorNotReady`: the stream still works.
const NOT_READY: c_int = 600;
const TO_DEVICE: c_int = 1;
const TO_HOST: c_int = 2;
/// `cudaStreamNonBlocking`: it does not wait for the default stream, where libtorch computes.
const NON_BLOCKING: u32 = 1;
/// Buffers in the pool begin at multiples of this, as NCCL likes them.
const ALIGNMENT: usize = 512;

struct Runtime {
    set_device: unsafe extern "C" fn(c_int) -> c_int,
    malloc: unsafe extern "C" fn(*mut *mut c_void, usize) -> c_int,
    free: unsafe extern "C" fn(*mut c_void) -> c_int,
    copy: unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int, *mut c_void) -> c_int,
    stream_create: unsafe extern "C" fn(*mut *mut c_void, u32) -> c_int,
    stream_query: unsafe extern "C" fn(*mut c_void) -> c_int,
    stream_destroy: unsafe extern "C" fn(*mut c_void) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// A device with a stream of its own and a block of memory that grows to the largest move.
pub(super) struct Device {
    runtime: Runtime,
    number: c_int,
    pub(super) stream: *mut c_void,
    block: *mut c_void,
    capacity: usize,
}

// SAFETY: CUDA's runtime allows its handles on any thread; the device is made current before each use.
unsafe impl Send for Device {}

/// Reads a function's address. The caller's type must be that of CUDA's header.
unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F, CollectiveError> {
    // SAFETY: as promised by the caller; the library is never unloaded.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    let missing =
        |error: libloading::Error| CollectiveError::Library { library: "libcudart.so", reason: error.to_string() };
    found.map(|function| *function).map_err(missing)
}

impl Device {
    /// Opens a device, or gives CUDA's own words for why not.
    pub(super) fn open(number: u32) -> Result<Self, CollectiveError> {
        let library = ManuallyDrop::new(search::cuda_runtime()?.library);
        // SAFETY: names and types are those of cuda_runtime_api.h, stable over CUDA 12 and 13.
        let runtime = unsafe {
            Runtime {
                set_device: function(&library, "cudaSetDevice")?,
                malloc: function(&library, "cudaMalloc")?,
                free: function(&library, "cudaFree")?,
                copy: function(&library, "cudaMemcpyAsync")?,
                stream_create: function(&library, "cudaStreamCreateWithFlags")?,
                stream_query: function(&library, "cudaStreamQuery")?,
                stream_destroy: function(&library, "cudaStreamDestroy")?,
                error_string: function(&library, "cudaGetErrorString")?,
            }
        };
        let number = c_int::try_from(number).unwrap_or(c_int::MAX);
        let mut device = Self { runtime, number, stream: ptr::null_mut(), block: ptr::null_mut(), capacity: 0 };
        let refused = |reason| CollectiveError::Refused { library: "CUDA", operation: "a device", reason };
        device.make_current().map_err(refused)?;
        // SAFETY: CUDA writes one handle.
        let made = unsafe { (device.runtime.stream_create)(&raw mut device.stream, NON_BLOCKING) };
        device.said(made).map_err(refused)?;
        Ok(device)
    }

    /// CUDA's current device belongs to the thread, and the owner of a group may be another one each time.
    pub(super) fn make_current(&self) -> Result<(), String> {
        // SAFETY: a plain call.
        self.said(unsafe { (self.runtime.set_device)(self.number) })
    }

    /// Device memory for buffers of these lengths, one after the other. Valid until the next call.
    pub(super) fn buffers(&mut self, lengths: impl Iterator<Item = usize>) -> Result<Vec<*mut c_void>, String> {
        let mut total = 0;
        let mut starts = Vec::new();
        for length in lengths {
            starts.push(total);
            total += length.next_multiple_of(ALIGNMENT);
        }
        if total > self.capacity {
            // SAFETY: the stream is idle between moves, so nothing uses the block; CUDA writes one pointer.
            unsafe {
                self.said((self.runtime.free)(self.block))?;
                (self.block, self.capacity) = (ptr::null_mut(), 0);
                let made = (self.runtime.malloc)(&raw mut self.block, total);
                self.said(made)?;
            }
            self.capacity = total;
        }
        Ok(starts.into_iter().map(|start| self.block.wrapping_byte_add(start)).collect())
    }

    /// Stages bytes to the device, in the order of the stream.
    ///
    /// # Safety
    /// `to` is device memory of that length.
    pub(super) unsafe fn stage(&self, to: *mut c_void, from: &[u8]) -> Result<(), String> {
        let (bytes, size) = (from.as_ptr().cast(), from.len());
        // SAFETY: as promised by the caller. Host memory is pageable, so CUDA has read it when this returns.
        self.said(unsafe { (self.runtime.copy)(to, bytes, size, TO_DEVICE, self.stream) })
    }

    /// Fetches bytes from the device. Only on an idle stream, since it blocks until the stream is.
    ///
    /// # Safety
    /// `from` is device memory of that length.
    pub(super) unsafe fn fetch(&self, to: &mut [u8], from: *const c_void) -> Result<(), String> {
        let (bytes, size) = (to.as_mut_ptr().cast(), to.len());
        // SAFETY: as promised by the caller; the callers wait for the stream before they return.
        self.said(unsafe { (self.runtime.copy)(bytes, from, size, TO_HOST, self.stream) })
    }

    /// Whether all work of the stream is done.
    pub(super) fn is_idle(&self) -> Result<bool, String> {
        // SAFETY: the stream lives.
        match unsafe { (self.runtime.stream_query)(self.stream) } {
            NOT_READY => Ok(false),
            result => self.said(result).map(|()| true),
        }
    }

    fn said(&self, result: c_int) -> Result<(), String> {
        if result == SUCCESS {
            return Ok(());
        }
        // SAFETY: CUDA gives a text that stays, ended by 0.
        Err(unsafe { CStr::from_ptr((self.runtime.error_string)(result)) }.to_string_lossy().into_owned())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.make_current().is_ok() && !self.stream.is_null() {
            // SAFETY: the communicator is gone by now, so nothing uses them. The results have no receiver.
            unsafe {
                let _ = (self.runtime.free)(self.block);
                let _ = (self.runtime.stream_destroy)(self.stream);
            }
        }
    }
}
