//! The images of the container files: what they promise, and whether they build from a release and run a job.
//!
//! No registry is asked for their base: Debian's own packages make one of the same name here.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::VERSION;
use graftwork_tests::{Run, World, program, tensor_digests};
use serde_json::{Value, json};

use crate::{
    installed,
    process::{Process, ask, socket},
    release, root,
};

const FILES: [&str; 3] = ["coordinator", "worker", "worker-cuda"];

/// The user that both images name.
const USER: u32 = 65_532;

/// Why they cannot be built here, if so.
pub(crate) fn lacks() -> Option<&'static str> {
    release::lacks().or_else(|| {
        let tools = ["buildah", "debootstrap"].iter().all(|name| installed(name));
        (!tools).then_some("buildah or debootstrap is not installed")
    })
}

/// Instructions of a container file with their arguments; continued lines are one.
fn instructions(name: &str) -> Result<Vec<(String, String)>> {
    let path = root().join(format!("deploy/container/{name}.Containerfile"));
    let text = fs::read_to_string(path)?.replace("\\\n", " ");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (word, rest) = line.split_once(' ').with_context(|| format!("{name}: {line:?} is no instruction"))?;
            Ok((word.to_owned(), rest.trim().to_owned()))
        })
        .collect()
}

pub(crate) fn the_container_files_are_right() -> Result<()> {
    for name in FILES {
        let all = instructions(name)?;
        let known = ["FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "STOPSIGNAL", "ENTRYPOINT", "CMD"];
        let unknown: Vec<_> = all.iter().filter(|(word, _)| !known.contains(&word.as_str())).collect();
        ensure!(unknown.is_empty(), "{name}: {unknown:?}");
        let bases = all.iter().filter(|(word, _)| word == "FROM");
        let tag = |base: &str| {
            let base = base.split(' ').next().unwrap_or_default();
            base.rsplit_once(':').is_some_and(|(_, tag)| tag != "latest")
        };
        ensure!(bases.clone().all(|(_, base)| tag(base)), "{name}: a base has no version: {bases:?}");
        // What an earlier stage makes is in the image only as far as it is copied.
        let last = all.iter().rposition(|(word, _)| word == "FROM").with_context(|| format!("{name}: no base"))?;
        let all = &all[last..];
        let of = |wanted: &str| -> Vec<&str> {
            all.iter().filter(|(word, _)| word == wanted).map(|(_, rest)| rest.as_str()).collect()
        };
        ensure!(of("USER") == [format!("{USER}:{USER}")], "{name}: it runs as {:?}", of("USER"));
        let user = all.iter().position(|(word, _)| word == "USER").context("checked above")?;
        let after = all[user..].iter().filter(|(word, _)| word == "RUN" || word == "COPY").count();
        ensure!(after == 0, "{name}: what comes behind USER would be that user's to change");
        ensure!(of("STOPSIGNAL") == ["SIGTERM"] && of("ENTRYPOINT") == ["[\"graftwork\"]"], "{name}: {all:?}");
        let secret = all.iter().any(|(_, rest)| ["TOKEN", "PASSWORD", "SECRET"].iter().any(|word| rest.contains(word)));
        ensure!(!secret, "{name}: it names a secret");
    }
    gpus_have_the_libtorch_of_the_programs()
}

/// The image for GPUs fetches the libtorch that the programs are built with, puts it where libtorch looks for NVIDIA's
/// libraries, and tells the programs where.
fn gpus_have_the_libtorch_of_the_programs() -> Result<()> {
    let packages: Value = serde_json::from_str(&fs::read_to_string(root().join("scripts/packages.json"))?)?;
    let torch = packages.as_array().context("packages")?.iter().find(|package| package["name"] == "torch");
    let version = torch.and_then(|torch| torch["version"].as_str()).context("torch has a version")?;
    let all = instructions("worker-cuda")?;
    let has = |word: &str, text: &str| all.iter().any(|(found, rest)| found == word && rest.contains(text));
    for (word, text) in [
        ("RUN", format!("pip install --no-cache-dir --target /torch torch=={version}").as_str()),
        ("COPY", "--from=torch /torch/torch/lib /opt/torch/torch/lib"),
        ("COPY", "--from=torch /torch/nvidia /opt/torch/nvidia"),
        ("ENV", "GRAFTWORK_LIBTORCH=/opt/torch/torch "),
    ] {
        ensure!(has(word, text), "worker-cuda: no {word} with {text:?}: {all:?}");
    }
    ensure!(!has("COPY", "bin/libtorch"), "worker-cuda: it has a second libtorch, for processors");
    Ok(())
}

/// All that the container files copy of a release is in an unpacked one.
pub(crate) fn the_sources_are_in(unpacked: &Path) -> Result<()> {
    for name in FILES {
        for (_, paths) in instructions(name)?.iter().filter(|(word, _)| word == "COPY") {
            if paths.starts_with("--from=") {
                continue;
            }
            let mut paths: Vec<&str> = paths.split_whitespace().collect();
            paths.pop().context("COPY has a target")?;
            for path in paths {
                ensure!(unpacked.join(path).exists(), "{name}: {path} is not in the archive");
            }
        }
    }
    Ok(())
}

/// Images and containers below a folder of their own.
struct Images {
    folder: tempfile::TempDir,
}

impl Images {
    fn buildah(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("buildah");
        command
            .arg("--root")
            .arg(self.folder.path().join("images"))
            .arg("--runroot")
            .arg(self.folder.path().join("run"));
        let output = command.args(["--storage-driver", "vfs"]).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "buildah {arguments:?}: {}{said}", String::from_utf8_lossy(&output.stdout));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// A base of the name that the container files ask for, made of Debian's packages.
    fn base(&self) -> Result<()> {
        let (system, name) = (self.folder.path().join("debian"), "docker.io/library/debian:12-slim");
        let mut bootstrap = Command::new("debootstrap");
        let output = bootstrap.args(["--variant=minbase", "bookworm"]).arg(&system).output()?;
        ensure!(output.status.success(), "debootstrap: {}", String::from_utf8_lossy(&output.stdout));
        let container = self.buildah(&["from", "scratch"])?;
        self.buildah(&["copy", "--quiet", &container, &system.display().to_string(), "/"])?;
        self.buildah(&["commit", "--quiet", &container, name])?;
        self.buildah(&["rm", &container])?;
        Ok(fs::remove_dir_all(system)?)
    }

    /// Builds an image as its file says, and gives the root of a container of it.
    fn build(&self, name: &str, unpacked: &Path) -> Result<PathBuf> {
        let (file, image) = (format!("deploy/container/{name}.Containerfile"), format!("graftwork-{name}:{VERSION}"));
        let file = unpacked.join(file).display().to_string();
        let context = unpacked.display().to_string();
        self.buildah(&[
            "build",
            "--quiet",
            "--pull-never",
            "--isolation",
            "chroot",
            "-f",
            &file,
            "-t",
            &image,
            &context,
        ])?;
        let about: Value = serde_json::from_str(&self.buildah(&["inspect", "--type", "image", &image])?)?;
        let config = &about["OCIv1"]["config"];
        ensure!(config["User"] == format!("{USER}:{USER}"), "{name}: {config}");
        ensure!(config["Entrypoint"] == json!(["graftwork"]) && config["StopSignal"] == "SIGTERM", "{name}: {config}");
        let container = self.buildah(&["from", "--pull-never", &image])?;
        Ok(PathBuf::from(self.buildah(&["mount", &container])?))
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        // What is mounted would keep the folder.
        let _ = self.buildah(&["umount", "--all"]);
        let _ = self.buildah(&["rm", "--all"]);
    }
}

/// Starts a container's program as the Compose file does: its user, a root that cannot be written, and these volumes.
fn started(system: &Path, volumes: &[(&Path, &str)], words: &str) -> Result<Process> {
    let system = system.display();
    let mut script = format!("mount --bind '{system}' '{system}'; mount -t proc none '{system}/proc'; ");
    script += &format!("mount --rbind /dev '{system}/dev'; mount -t tmpfs none '{system}/tmp'; ");
    for (folder, place) in volumes {
        script += &format!("mount --bind '{}' '{system}{place}'; ", folder.display());
    }
    script += &format!("mount -o remount,bind,ro '{system}'; exec chroot --userspec={USER}:{USER} '{system}' ");
    script += &format!("env -i PATH=/opt/graftwork/bin:/usr/bin:/bin XDG_CACHE_HOME=/tmp graftwork {words}");
    Process::start(Command::new("unshare").args(["--mount", "sh", "-euc", &script]))
}

/// The images build, and a coordinator and a worker of them run a job over the socket that they share.
pub(crate) fn the_images_build_and_run_a_job() -> Result<()> {
    let images = Images { folder: tempfile::tempdir()? };
    images.base()?;
    let (world, shared) = (World::new()?, tempfile::tempdir()?);
    let shared = shared.path();
    // Whoever owns a volume must be able to reach it.
    fs::set_permissions(shared, fs::Permissions::from_mode(0o755))?;
    let unpacked = images.folder.path().join("release");
    release::unpack(&unpacked)?;
    let volume = |name: &str| -> Result<PathBuf> {
        let path = shared.join(name);
        fs::create_dir(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        chown(&path, Some(USER), Some(USER))?;
        Ok(path)
    };
    let (state, door, hub, cache) = (volume("state")?, volume("door")?, volume("hub")?, volume("cache")?);
    let system = images.build("coordinator", &unpacked)?;
    let words = "coordinator --state=/state --listen=unix:///door/socket --log-format=json";
    let leader = started(&system, &[(&state, "/state"), (&door, "/door"), (&hub, "/hub")], words)?;
    leader.wait_for("listens on")?;
    let system = images.build("worker", &unpacked)?;
    let words = "worker --coordinator=unix:///door/socket --threads=2 --cache=/cache --persist --log-format=json";
    let worker = started(&system, &[(&door, "/door"), (&cache, "/cache")], words)?;
    world.job("job.toml", "/hub", "")?;
    let job = ask(&world, shared, &["submit", "job.toml"], &[])?;
    let mut watch = Command::new(program());
    watch.args(["watch", &job, "--progress", "json", "--coordinator", &socket(shared)]);
    let ended = Run::watching(watch, state)?.finish(0);
    ended.with_context(|| format!("{}\n{}", leader.said().join("\n"), worker.said().join("\n")))?;
    ensure!(!tensor_digests(&hub)?.is_empty(), "nothing was published");
    Ok(())
}
