//! `golden` and `follow`: the engine against what was recorded from another implementation. Lines go to stdout.

use std::path::Path;

use anyhow::Context;

/// Compares recorded cases; true when all are within tolerance.
pub(crate) fn golden(folder: &Path) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    graftwork_engine::golden(folder, &mut out).with_context(|| format!("golden cases in {}", folder.display()))
}

/// Follows recorded trajectories; true when all are within tolerance.
pub(crate) fn follow(folder: &Path, base_model: &Path) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    graftwork_engine::follow(folder, base_model, &mut out)
        .with_context(|| format!("trajectory in {}", folder.display()))
}
