//! What this process runs on: processor, memory, libtorch, CUDA, NCCL. It reads, and changes nothing but what
//! [`load_cuda`] loads.
//!
//! The numeric class is read from the processor and the libraries themselves and never configured, because equal
//! bytes are promised within it (invariant 5).

use std::{fs, path::Path};

use graftwork_engine::Device;
use graftwork_shared::{digest::Digest, recipe::NumericClass, training::Precision};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use serde::Serialize;

/// Which device a user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DeviceChoice {
    /// The processor.
    Cpu,
    /// The first CUDA device.
    Cuda,
}

/// Which numbers a user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PrecisionChoice {
    /// 24 bits.
    Fp32,
    /// 8 bits, with the range of fp32.
    Bf16,
    /// 11 bits.
    Fp16,
}

impl From<PrecisionChoice> for Precision {
    fn from(choice: PrecisionChoice) -> Self {
        match choice {
            PrecisionChoice::Fp32 => Self::Fp32,
            PrecisionChoice::Bf16 => Self::Bf16,
            PrecisionChoice::Fp16 => Self::Fp16,
        }
    }
}

/// Why the device that was asked for cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("no CUDA device can be used: {0}; leave out --device cuda to run on the processor")]
pub(crate) struct NoCuda(String);

impl DeviceChoice {
    /// The device, loaded and ready. For CUDA this must come before anything else asks libtorch about CUDA, since it
    /// keeps its first answer for good.
    pub(crate) fn open(self) -> Result<Device, NoCuda> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => load_cuda().map(|_| Device::Cuda(0)).map_err(NoCuda),
        }
    }
}

/// Loads the CUDA part of libtorch and counts its devices; otherwise says why there are none.
pub(crate) fn load_cuda() -> Result<usize, String> {
    // SAFETY: loading runs the library's initialisers; it is libtorch's own and registers CUDA with this libtorch.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| format!("libtorch_cuda.so cannot be loaded ({})", one_line(&error)))?;
    // Its kernels stay registered, so it must never be unloaded.
    std::mem::forget(library);
    match graftwork_engine::cuda_devices() {
        0 => Err("libtorch_cuda.so is loaded, but there is no driver or no device".to_owned()),
        devices => Ok(devices),
    }
}

/// The version of the libtorch that is loaded, as it says itself.
pub(crate) fn libtorch_version() -> String {
    // SAFETY: `uint64_t aoti_torch_abi_version()` is part of libtorch's stable C interface: one byte each for major,
    // minor and patch from the top.
    let version = unsafe {
        Library::this().get::<unsafe extern "C" fn() -> u64>(b"aoti_torch_abi_version\0").map(|version| version())
    };
    match version.map(u64::to_be_bytes) {
        Ok([major, minor, patch, ..]) => format!("{major}.{minor}.{patch}"),
        Err(_) => "unknown".to_owned(),
    }
}

/// The class of results that this process computes.
pub(crate) fn numeric_class(device: Device) -> NumericClass {
    NumericClass {
        device: match device {
            Device::Cuda(number) => cuda_model(number),
            _ => "cpu".to_owned(),
        },
        instructions: instructions(),
        libtorch: libtorch_version(),
        vendor: processor("vendor_id"),
    }
}

/// This very program, as a file: what another build of the same version computes is not taken for what this one would.
pub(crate) fn program() -> Digest {
    let file = fs::metadata("/proc/self/exe");
    let built = file.and_then(|file| Ok((file.len(), file.modified()?)));
    let built = built.ok().map(|(bytes, at)| {
        let since = at.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
        (bytes, since.as_secs(), since.subsec_nanos())
    });
    Digest::of_value("graftwork program", &(graftwork_shared::VERSION, built))
}

/// The accelerator's model as its driver tells it.
fn cuda_model(number: usize) -> String {
    let folders = fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let mut folders: Vec<_> = folders.map(|entry| entry.path()).collect();
    folders.sort();
    let text = folders.get(number).and_then(|folder| fs::read_to_string(folder.join("information")).ok());
    let model = text.as_deref().and_then(|text| field(text, "Model"));
    model.unwrap_or_else(|| "cuda".to_owned())
}

/// The widest vector instructions that libtorch's own kernels and its math library may choose, with whatever the
/// environment changes about the choice.
fn instructions() -> String {
    let mut class = widest_instructions().to_owned();
    for variable in ["ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"] {
        if let Ok(value) = std::env::var(variable) {
            class = format!("{class} {variable}={value}");
        }
    }
    class
}

#[cfg(target_arch = "x86_64")]
fn widest_instructions() -> &'static str {
    use std::arch::is_x86_feature_detected as has;
    // The same features by which libtorch chooses its kernels.
    if has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") && has!("fma") {
        "avx512"
    } else if has!("avx2") && has!("fma") {
        "avx2"
    } else {
        "sse4.2"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn widest_instructions() -> &'static str {
    "neon"
}

/// A field of the first processor in `/proc/cpuinfo`.
pub(crate) fn processor(name: &str) -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    field(&text, name).unwrap_or_else(|| "unknown".to_owned())
}

/// The host's name.
pub(crate) fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "unknown".to_owned() } else { name.trim().to_owned() }
}

/// Memory of the machine in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// What this process may use: the machine's memory, or its control group's limit where that is lower.
    pub(crate) total_bytes: u64,
    /// What is free without swapping.
    pub(crate) available_bytes: u64,
}

impl Memory {
    /// Reads `/proc/meminfo` and the control group's limit.
    pub(crate) fn read() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let mut memory = Self::from_meminfo(&text);
        let limit = fs::read_to_string(Path::new("/sys/fs/cgroup/memory.max")).ok();
        if let Some(limit) = limit.and_then(|text| text.trim().parse::<u64>().ok()) {
            memory.total_bytes = memory.total_bytes.min(limit);
            memory.available_bytes = memory.available_bytes.min(limit);
        }
        memory
    }

    fn from_meminfo(text: &str) -> Self {
        Self {
            total_bytes: byte_field(text, "MemTotal").unwrap_or(0),
            available_bytes: byte_field(text, "MemAvailable").unwrap_or(0),
        }
    }
}

/// The largest resident memory that this process has had, in bytes.
pub(crate) fn peak_memory_bytes() -> u64 {
    byte_field(&fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmHWM").unwrap_or(0)
}

/// A field whose value is so many kilobytes, in bytes.
fn byte_field(text: &str, name: &str) -> Option<u64> {
    let value = field(text, name)?;
    let kilobytes: u64 = value.strip_suffix(" kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The value behind `name:` in a text of lines.
fn field(text: &str, name: &str) -> Option<String> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(key, _)| key.trim() == name)?;
    Some(value.trim().to_owned())
}

/// Processors that this process may use.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn one_line(error: &libloading::Error) -> String {
    graftwork_shared::cause::told(error).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_tells_its_own_version() {
        let version = libtorch_version();
        assert!(version.starts_with("2."), "{version}");
        let class = numeric_class(Device::Cpu);
        assert_eq!((class.device.as_str(), class.libtorch.as_str()), ("cpu", version.as_str()));
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:        2048 kB\nMemFree:  1 kB\nMemAvailable:    1024 kB\n";
        let expected = Memory { total_bytes: 2048 * 1024, available_bytes: 1024 * 1024 };
        assert_eq!(Memory::from_meminfo(text), expected);
        assert_eq!(Memory::from_meminfo("MemTotal: x"), Memory::default());
        assert!(Memory::read().total_bytes > 0);
        assert!(peak_memory_bytes() > 1 << 20);
    }
}
