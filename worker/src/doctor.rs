//! `doctor`: what this process runs on, for a person or as JSON. It trains nothing and changes nothing.

use std::{io::Write, path::PathBuf};

use graftwork_collective::nccl;
use graftwork_engine::Device;
use graftwork_shared::recipe::NumericClass;
use serde::Serialize;

use crate::computer::{self, Memory};

/// What was found. An unavailable part says why.
#[derive(Debug, Serialize)]
struct Findings {
    version: &'static str,
    libtorch: String,
    numeric_class: NumericClass,
    processor: String,
    threads: usize,
    memory: Memory,
    cuda: Part<usize>,
    nccl: Nccl,
}

/// How far NCCL works here.
#[derive(Debug, Serialize)]
struct Nccl {
    library: Option<PathBuf>,
    version: Option<String>,
    unique_id: bool,
    /// Why no group can be formed over it.
    refusal: Option<String>,
}

impl From<nccl::Report> for Nccl {
    fn from(report: nccl::Report) -> Self {
        let nccl::Report { library, version, unique_id, refusal } = report;
        Self { library, version, unique_id, refusal: refusal.map(|refusal| refusal.to_string()) }
    }
}

/// A part that may be missing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Part<T> {
    Available(T),
    Unavailable(String),
}

impl<T> From<Result<T, String>> for Part<T> {
    fn from(result: Result<T, String>) -> Self {
        result.map_or_else(Self::Unavailable, Self::Available)
    }
}

/// Looks, and prints to stdout.
pub(crate) fn run(json: bool) -> anyhow::Result<()> {
    // First of all: libtorch keeps its first answer about CUDA for good.
    let cuda = Part::from(computer::load_cuda());
    let device = if matches!(cuda, Part::Available(_)) { Device::Cuda(0) } else { Device::Cpu };
    let findings = Findings {
        version: graftwork_shared::VERSION,
        libtorch: computer::libtorch_version(),
        numeric_class: computer::numeric_class(device),
        processor: computer::processor("model name"),
        threads: computer::processors(),
        memory: Memory::read(),
        cuda,
        nccl: nccl::probe(None).into(),
    };
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, &findings)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", describe(&findings))?;
    }
    Ok(())
}

fn describe(findings: &Findings) -> String {
    const GIGABYTE: f64 = 1024.0 * 1024.0 * 1024.0;
    let gigabytes = |bytes: u64| bytes as f64 / GIGABYTE;
    let cuda = match &findings.cuda {
        Part::Available(devices) => format!("{devices} devices"),
        Part::Unavailable(reason) => format!("not available: {reason}"),
    };
    let version = findings.nccl.version.as_ref();
    let nccl = match (&findings.nccl.refusal, version.map(|version| format!("version {version}"))) {
        (None, version) => version.unwrap_or_else(|| "available".to_owned()),
        (Some(reason), Some(version)) => format!("{version} is loaded, but cannot be used: {reason}"),
        (Some(reason), None) => format!("not available: {reason}"),
    };
    [
        ("worker", findings.version.to_owned()),
        ("libtorch", findings.libtorch.clone()),
        ("processor", findings.processor.clone()),
        ("numeric class", findings.numeric_class.to_string()),
        ("threads", findings.threads.to_string()),
        (
            "memory",
            format!(
                "{:.1} GiB, {:.1} GiB available",
                gigabytes(findings.memory.total_bytes),
                gigabytes(findings.memory.available_bytes)
            ),
        ),
        ("CUDA", cuda),
        ("NCCL", nccl),
    ]
    .iter()
    .fold(String::new(), |text, (name, value)| text + &format!("{name:<14} {value}\n"))
}
