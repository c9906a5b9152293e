//! `golden` and `follow`: the engine against what was recorded from another implementation. Lines go to stdout.

use std::path::Path;

use anyhow::Context;
use graftwork_engine::Device;

/// Compares recorded cases; true when all are within tolerance.
pub(crate) fn golden(folder: &Path, device: Device) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    graftwork_engine::golden(folder, device, &mut out).with_context(|| format!("golden cases in {}", folder.display()))
}

/// Follows recorded trajectories; true when all are within tolerance.
pub(crate) fn follow(folder: &Path, base_model: &Path, device: Device) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    graftwork_engine::follow(folder, base_model, device, &mut out)
        .with_context(|| format!("trajectory in {}", folder.display()))
}
