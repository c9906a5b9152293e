//! The archive of a release on a machine without Rust and without this repository: a job runs from it.
//!
//! A namespace of mounts hides the toolchain and the tree; what is left of the machine is what the archive asks for.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::digest::Digest;
use graftwork_tests::{World, tensor_digests};
use serde_json::Value;

use crate::{installed, root};

/// Why it cannot be tried here, if so.
pub(crate) fn lacks() -> Option<&'static str> {
    if std::env::var_os("GRAFTWORK_LONG_TESTS").is_none() {
        return Some("it packs half a gigabyte: GRAFTWORK_LONG_TESTS=1, as make test-deploy sets");
    }
    if !fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0) || !installed("unshare") {
        return Some("only root can hide the toolchain");
    }
    None
}

fn pack(to: &Path) -> Result<PathBuf> {
    let output = Command::new("python3").arg(root().join("scripts/release.py")).arg("--to").arg(to).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// Runs a script in a bare environment, where the toolchain, the home and this repository are empty folders.
fn bare(folder: &Path, script: &str) -> Result<Output> {
    let repository = fs::canonicalize(root())?;
    let hide = |path: &Path| format!("[ -d '{0}' ] && mount -t tmpfs none '{0}'; ", path.display());
    let mut hidden = ["/root", "/usr/local/cargo", "/usr/local/rustup"].map(|path| hide(Path::new(path))).concat();
    for part in ["target", "coordinator", "worker"] {
        hidden += &hide(&repository.join(part));
    }
    // The folder of libtorch may be a link to elsewhere.
    hidden += &hide(&fs::canonicalize(repository.join(".graftwork/libtorch"))?);
    let inside = format!(
        "{hidden} cd '{}' && exec env -i PATH=/usr/bin:/bin HOME=\"$PWD\" sh -euc '{script}'",
        folder.display()
    );
    Ok(Command::new("unshare").args(["--mount", "sh", "-c", &inside]).output()?)
}

pub(crate) fn a_job_runs_without_rust() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let archive = pack(&folder.path().join("one"))?;
    packed_twice_it_is_the_same(&archive, folder.path())?;
    let world = World::new()?;
    world.job("job.toml", "hub", "")?;
    let unpack = format!(
        "! command -v cargo && ! command -v rustc && cd {world} && \
         (cd {one} && sha256sum --check --quiet {name}.sha256) && mkdir unpacked && \
         tar -xzf {one}/{name} -C unpacked --strip-components 1 && cd unpacked && sha256sum --check --quiet SHA256SUMS",
        world = world.path().display(),
        one = folder.path().join("one").display(),
        name = archive.file_name().and_then(|name| name.to_str()).context("a name")?,
    );
    let output = bare(world.path(), &unpack)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    the_contents_are_whole(&world.path().join("unpacked"))?;
    let output =
        bare(world.path(), "unpacked/bin/graftwork run job.toml --progress plain; ldd unpacked/bin/graftwork-worker")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let torch = said.lines().find(|line| line.contains("libtorch_cpu.so =>")).context("libtorch is linked")?;
    ensure!(torch.contains("unpacked/bin/libtorch/lib/libtorch_cpu.so"), "another libtorch was found: {torch}");
    ensure!(!tensor_digests(&world.path().join("hub"))?.is_empty(), "nothing was published");
    another_libtorch_is_taken(&world)
}

/// The programs take the libtorch of a folder that is named, without being built again.
fn another_libtorch_is_taken(world: &World) -> Result<()> {
    let move_it = "mkdir -p elsewhere && mv unpacked/bin/libtorch/lib elsewhere/lib && ";
    let doctor = "unpacked/bin/graftwork worker --help > /dev/null";
    let output = bare(world.path(), &format!("{move_it} {doctor}"))?;
    ensure!(!output.status.success(), "it starts without any libtorch");
    let output = bare(world.path(), &format!("export GRAFTWORK_LIBTORCH=\"$PWD/elsewhere\"; {doctor}"))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = bare(world.path(), &format!("export GRAFTWORK_LIBTORCH=/nowhere; {doctor}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("no libtorch_cpu.so in /nowhere"), "{said}");
    Ok(())
}

fn packed_twice_it_is_the_same(archive: &Path, folder: &Path) -> Result<()> {
    let other = pack(&folder.join("two"))?;
    let (one, two) = (Digest::of(&fs::read(archive)?), Digest::of(&fs::read(&other)?));
    ensure!(one == two, "packed twice it has other bytes");
    fs::remove_dir_all(folder.join("two"))?;
    Ok(())
}

fn the_contents_are_whole(unpacked: &Path) -> Result<()> {
    for name in [
        "LICENSE-MIT",
        "THIRD-PARTY.txt",
        "completions/graftwork.bash",
        "completions/_graftwork",
        "man/man1/graftwork.1",
        "man/man1/graftwork-worker.1",
        "man/man1/graftwork-deploy-slurm.1",
        "deploy/systemd/graftwork-coordinator.service",
        "deploy/helm/graftwork/Chart.yaml",
        "docs/operations.md",
    ] {
        ensure!(unpacked.join(name).metadata().is_ok_and(|found| found.len() > 0), "{name} is missing");
    }
    let worker = fs::read_to_string(unpacked.join("man/man1/graftwork-worker.1"))?;
    ensure!(worker.contains("group") && worker.contains("metrics"), "the worker's page lacks its options");
    let sbom: Value = serde_json::from_str(&fs::read_to_string(unpacked.join("sbom.cdx.json"))?)?;
    let components = sbom["components"].as_array().context("components")?;
    for name in ["graftwork-worker", "torch", "tonic", "tch", "rustls"] {
        ensure!(components.iter().any(|component| component["name"] == name), "{name} is not in the SBOM");
    }
    ensure!(!components.iter().any(|component| component["name"] == "insta"), "what only tests use is in the SBOM");
    let named = components.iter().all(|component| component["licenses"].is_array());
    ensure!(named, "a component without a licence");
    for program in ["graftwork", "graftwork-worker"] {
        let bytes = fs::read(unpacked.join("bin").join(program))?;
        let hint = b"/../.graftwork/libtorch";
        ensure!(!bytes.windows(hint.len()).any(|part| part == hint), "{program} looks for libtorch where it was built");
    }
    Ok(())
}
