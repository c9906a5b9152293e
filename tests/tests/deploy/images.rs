//! The images of the container files: what they promise, and whether they build from a release and run a job.
//!
//! No registry is asked for their base: Debian's own packages make one of the same name here.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use graftwork_shared::VERSION;
use graftwork_tests::{World, tensor_digests};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    installed,
    process::{Process, ended, get, until},
    release, root, tool,
};

const FILES: [&str; 3] = ["coordinator", "worker", "worker-cuda"];

/// The user that both images name.
const USER: u32 = 65_532;

/// Why they cannot be built here, if so.
pub(crate) fn lacks() -> Option<&'static str> {
    release::lacks().or_else(|| {
        let tools = ["buildah", "debootstrap"].iter().all(|name| installed(name));
        let read = tool("python").is_some();
        (!tools || !read).then_some("buildah or debootstrap is not installed, or scripts/deploy-tools.sh was not run")
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

    /// Builds an image as its file says, and mounts a container of it.
    fn build(&self, name: &str, unpacked: &Path) -> Result<Image> {
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
        let variables = config["Env"].as_array().context("an image has variables")?;
        Ok(Image {
            system: PathBuf::from(self.buildah(&["mount", &container])?),
            environment: variables.iter().filter_map(|pair| pair.as_str().map(str::to_owned)).collect(),
            folder: config["WorkingDir"].as_str().context("an image has a folder")?.to_owned(),
        })
    }
}

/// An image, as the root of a container of it.
struct Image {
    system: PathBuf,
    environment: Vec<String>,
    folder: String,
}

/// How the Compose file starts containers of a service.
#[derive(Debug, Deserialize)]
struct Service {
    user: String,
    command: Vec<String>,
    environment: BTreeMap<String, String>,
    volumes: Vec<String>,
    replicas: usize,
}

impl Service {
    fn read(name: &str) -> Result<Self> {
        let mut asked = Command::new(tool("python").context("python")?);
        asked.arg(root().join("tests/deploy/compose.py")).arg(root().join("deploy/compose/compose.yaml")).arg(name);
        Ok(serde_json::from_str(&ended(&mut asked, 0)?)?)
    }

    /// A program in a container of this service: its user, variables and volumes, and a root that cannot be written. Volumes
    /// lie below `shared`: a named one is the image's user's from the beginning, and what is mounted of the host stays as it is.
    fn contained(&self, image: &Image, shared: &Path, words: &[&str]) -> Result<Command> {
        let system = image.system.display();
        let mut script = format!("mount --bind '{system}' '{system}'; mount -t proc none '{system}/proc'; ");
        script += &format!("mount --rbind /dev '{system}/dev'; mount -t tmpfs none '{system}/tmp'; ");
        for volume in &self.volumes {
            let mut parts = volume.split(':');
            let (name, place) = (parts.next().unwrap_or_default(), parts.next().context("a volume has a place")?);
            let folder = shared.join(name.trim_start_matches("./"));
            if !folder.exists() && !name.starts_with('.') {
                made(&folder)?;
            }
            // The image need not have the place of a folder of the host.
            fs::create_dir_all(image.system.join(place.trim_start_matches('/')))?;
            script += &format!("mount --bind '{}' '{system}{place}'; ", folder.display());
            if parts.next() == Some("ro") {
                script += &format!("mount -o remount,bind,ro '{system}{place}'; ");
            }
        }
        script += &format!("mount -o remount,bind,ro '{system}'; exec chroot --userspec={} '{system}' ", self.user);
        script += &format!("env --ignore-environment --chdir='{}' ", image.folder);
        let own = self.environment.iter().map(|(name, value)| format!("{name}={value}"));
        for pair in image.environment.iter().cloned().chain(own) {
            script += &format!("'{pair}' ");
        }
        script += &format!("graftwork {}", words.join(" "));
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-euc", &script]);
        Ok(command)
    }

    fn start(&self, image: &Image, shared: &Path) -> Result<Process> {
        let words: Vec<&str> = self.command.iter().map(String::as_str).collect();
        Process::start(&mut self.contained(image, shared, &words)?)
    }
}

/// A folder that only the images' user can enter.
fn made(folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    Ok(chown(folder, Some(USER), Some(USER))?)
}

impl Drop for Images {
    fn drop(&mut self) {
        // What is mounted would keep the folder.
        let _ = self.buildah(&["umount", "--all"]);
        let _ = self.buildah(&["rm", "--all"]);
    }
}

/// The images build, and what the Compose file starts of them runs a job that is submitted as docs/install.md says: a
/// coordinator and two workers, which share socket and cache.
pub(crate) fn the_images_build_and_run_a_job() -> Result<()> {
    let images = Images { folder: tempfile::tempdir()? };
    images.base()?;
    let (world, shared) = (World::new()?, tempfile::tempdir()?);
    let shared = shared.path();
    // Whoever owns a volume must be able to reach it.
    fs::set_permissions(shared, fs::Permissions::from_mode(0o755))?;
    let unpacked = images.folder.path().join("release");
    release::unpack(&unpacked)?;
    let commands = as_the_page_says()?;
    // What the page makes, here without docker.
    world.job("job.toml", "/hub", "")?;
    ended(Command::new("sh").current_dir(shared).args(["-euc", &commands[0]]), 0)?;
    let copy = format!("cp -r '{}'/. data && chmod -R a+rX data", world.path().display());
    ended(Command::new("sh").current_dir(shared).args(["-euc", &copy]), 0)?;
    let (service, image) = (Service::read("coordinator")?, images.build("coordinator", &unpacked)?);
    let leader = service.start(&image, shared)?;
    leader.wait_for("listens on")?;
    let (of_workers, image_of_workers) = (Service::read("worker")?, images.build("worker", &unpacked)?);
    let start = |_| of_workers.start(&image_of_workers, shared);
    let workers = (0..of_workers.replicas).map(start).collect::<Result<Vec<_>>>()?;
    ensure!(workers.len() == 2, "the Compose file starts {} workers", workers.len());
    let said = || {
        let all = workers.iter().chain([&leader]).map(|running| running.said().join("\n"));
        all.collect::<Vec<_>>().join("\n\n")
    };
    let connected = || {
        let (_, text) = get("127.0.0.1:9464", "/metrics", "").ok()?;
        text.contains("graftwork_workers{state=\"connected\"} 2.0\n").then_some(())
    };
    until(Duration::from_mins(1), connected).with_context(|| format!("two workers never came: {}", said()))?;
    for address in ["127.0.0.1:9465", "127.0.0.1:9466"] {
        ensure!(get(address, "/readyz", "")?.0 == 200, "no worker is ready at {address}: {}", said());
    }
    let run = |words: &str| -> Result<String> {
        let words: Vec<&str> = words.split(' ').collect();
        ended(&mut service.contained(&image, shared, &words)?, 0).with_context(said)
    };
    let submitted = run(&commands[1])?;
    let job = submitted.lines().find(|line| line.len() == 16).with_context(|| format!("no job: {submitted}"))?;
    run(&commands[2].replace("JOB", job))?;
    ensure!(!tensor_digests(&shared.join("hub"))?.is_empty(), "nothing was published");
    ensure!(fs::read_dir(shared.join("cache"))?.next().is_some(), "the workers share no cache");
    Ok(())
}

/// What docs/install.md says of one host: the command that makes the folders, and what is run in the coordinator's container to
/// submit a job and to watch it.
fn as_the_page_says() -> Result<[String; 3]> {
    let page = fs::read_to_string(root().join("docs/install.md"))?;
    let block = page.split("```").find(|block| block.contains("docker compose up"));
    let block = block.context("docs/install.md says no more how containers are started")?;
    let lines: Vec<&str> = block.trim().lines().collect();
    let within: Vec<&str> =
        lines.iter().filter_map(|line| line.strip_prefix("docker compose exec coordinator graftwork ")).collect();
    match (lines.as_slice(), within.as_slice()) {
        ([first, ..], [submit, watch]) if first.starts_with("mkdir ") => {
            Ok([(*first).to_owned(), (*submit).to_owned(), (*watch).to_owned()])
        }
        _ => bail!("the test cannot run these: {block}"),
    }
}
