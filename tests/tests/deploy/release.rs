//! The archive of a release on a machine without Rust and without this repository: a job runs from it.
//!
//! A namespace of mounts hides the toolchain and the tree; what is left of the machine is what the archive asks for.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Mutex,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use graftwork_shared::digest::{Digest, Hasher};
use graftwork_tests::{World, program, tensor_digests};
use serde_json::Value;

use crate::{images, installed, process::ended, root, tool};

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
    // Those of the tree: building them once more takes half an hour.
    let built = root().join("target/release");
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "release"]).current_dir(root());
    make.arg(format!("RELEASE=--to {} --programs {}", to.display(), built.display()));
    // Of a make that runs these tests.
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL"] {
        make.env_remove(name);
    }
    let output = make.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

/// The release of this process's tests: half a gigabyte, packed once.
static PACKED: Mutex<Option<(tempfile::TempDir, PathBuf)>> = Mutex::new(None);

/// The archive of the release, with its checksum beside it.
fn archive() -> Result<PathBuf> {
    let mut packed = PACKED.lock().map_err(|_| anyhow!("packing the release failed in another test"))?;
    if let Some((_, archive)) = &*packed {
        return Ok(archive.clone());
    }
    let folder = tempfile::tempdir()?;
    let archive = pack(folder.path())?;
    *packed = Some((folder, archive.clone()));
    Ok(archive)
}

/// Removes the archive.
pub(crate) fn clear() {
    if let Ok(mut packed) = PACKED.lock() {
        packed.take();
    }
}

/// Unpacks the release into a new folder.
pub(crate) fn unpack(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut tar = Command::new("tar");
    let done = tar.arg("-xzf").arg(archive()?).arg("-C").arg(folder).args(["--strip-components", "1"]).status()?;
    ensure!(done.success(), "the archive cannot be unpacked");
    Ok(())
}

/// Runs a script in a bare environment, where the toolchain, the home and this repository are empty folders, and `/opt` is an
/// empty one of its own. The script's folder may lie in none of them.
fn bare(folder: &Path, script: &str) -> Result<Output> {
    let repository = fs::canonicalize(root())?;
    // The folder of libtorch may be a link to elsewhere.
    let libtorch = fs::canonicalize(repository.join(".graftwork/libtorch"))?;
    let places = ["/root", "/usr/local/cargo", "/usr/local/rustup", "/opt"].map(PathBuf::from);
    let mut hidden = String::new();
    // Links first: what they lead to may lie below what is hidden.
    for place in [libtorch, repository].into_iter().chain(places) {
        hidden += &format!("[ -d '{0}' ] && mount -t tmpfs none '{0}'; ", place.display());
    }
    let inside = format!(
        "{hidden} cd '{}' && exec env -i PATH=/usr/bin:/bin HOME=\"$PWD\" sh -euc '{script}'",
        folder.display()
    );
    Ok(Command::new("unshare").args(["--mount", "sh", "-c", &inside]).output()?)
}

/// What docs/install.md says of a release, as it is written there.
fn as_the_page_says() -> Result<String> {
    let page = fs::read_to_string(root().join("docs/install.md"))?;
    let block = page.split("```").find(|block| block.trim_start().starts_with("sha256sum --check "));
    let commands = block.context("docs/install.md says no more how a release is unpacked")?.trim().to_owned();
    ensure!(commands.lines().count() == 3 && !commands.contains('\''), "the test cannot run these: {commands}");
    Ok(commands)
}

pub(crate) fn a_job_runs_without_rust() -> Result<()> {
    let archive = archive()?;
    packed_elsewhere_it_is_the_same(&archive)?;
    let world = World::new()?;
    world.job("job.toml", "hub", "")?;
    let name = archive.file_name().and_then(|name| name.to_str()).context("a name")?;
    for name in [name.to_owned(), format!("{name}.sha256")] {
        fs::hard_link(archive.with_file_name(&name), world.path().join(&name))
            .or_else(|_| fs::copy(archive.with_file_name(&name), world.path().join(&name)).map(drop))?;
    }
    let script = format!(
        "for gone in cargo rustc {repository}/Cargo.toml; do\n\
         if command -v $gone || [ -e $gone ]; then echo $gone is here >&2; exit 9; fi; done\n{commands}\n\
         (cd /opt/graftwork && sha256sum --check --quiet SHA256SUMS)\n\
         /opt/graftwork/bin/graftwork run job.toml --progress plain\n\
         ldd /opt/graftwork/bin/graftwork-worker\n\
         cp -r /opt/graftwork/. unpacked",
        repository = fs::canonicalize(root())?.display(),
        commands = as_the_page_says()?,
    );
    let output = bare(world.path(), &script)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let torch = said.lines().find(|line| line.contains("libtorch_cpu.so =>")).context("libtorch is linked")?;
    ensure!(torch.contains("/opt/graftwork/bin/libtorch/lib/libtorch_cpu.so"), "another libtorch was found: {torch}");
    ensure!(!tensor_digests(&world.path().join("hub"))?.is_empty(), "nothing was published");
    the_contents_are_whole(&world.path().join("unpacked"))?;
    images::the_sources_are_in(&world.path().join("unpacked"))?;
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
    let by_its_name = "unpacked/bin/graftwork-worker --version > /dev/null";
    let output = bare(world.path(), by_its_name)?;
    ensure!(!output.status.success(), "the worker starts without any libtorch");
    let output = bare(world.path(), &format!("export LD_LIBRARY_PATH=\"$PWD/elsewhere/lib\"; {by_its_name}"))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The minor number of the newest glibc whose symbols a program names.
fn newest_glibc(program: &[u8]) -> u32 {
    let name = b"GLIBC_2.";
    let places = (0..program.len().saturating_sub(name.len())).filter(|at| program[*at..].starts_with(name));
    let digits = |at: usize| program[at + name.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    places.map(|at| digits(at).fold(0, |number, digit| 10 * number + u32::from(digit - b'0'))).max().unwrap_or(0)
}

/// A copy of the tree in another folder, without its history, packs the same programs into the same bytes.
fn packed_elsewhere_it_is_the_same(archive: &Path) -> Result<()> {
    let (folder, tree) = (tempfile::tempdir()?, fs::canonicalize(root())?);
    let script = format!(
        "tree='{}'; mkdir copy; git -C \"$tree\" ls-files -z | tar -C \"$tree\" --null -T - -cf - | tar -xf - -C copy\n\
         ln -s \"$tree/.graftwork\" copy/.graftwork; git -C copy init --quiet; git -C copy add --all\n\
         SOURCE_DATE_EPOCH=$(git -C \"$tree\" log -1 --format=%ct)\n\
         export SOURCE_DATE_EPOCH\n\
         python3 copy/scripts/release.py --to packed --programs \"$tree/target/release\"",
        tree.display()
    );
    let output = Command::new("sh").current_dir(folder.path()).args(["-euc", &script]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let other = PathBuf::from(String::from_utf8(output.stdout)?.trim());
    ensure!(other.starts_with(fs::canonicalize(folder.path())?), "{} was packed elsewhere", other.display());
    let digest = |path: &Path| -> Result<Digest> {
        let mut hasher = Hasher::new();
        std::io::copy(&mut fs::File::open(path)?, &mut hasher)?;
        Ok(hasher.finish())
    };
    ensure!(digest(archive)? == digest(&other)?, "packed in another folder it has other bytes");
    Ok(())
}

fn the_contents_are_whole(unpacked: &Path) -> Result<()> {
    for name in [
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "THIRD-PARTY.txt",
        "licences/libgomp-GPL-3.txt",
        "licences/libgomp-GCC-exception-3.1.txt",
        "completions/graftwork.bash",
        "completions/_graftwork",
        "completions/graftwork.fish",
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
    for program in ["bin/graftwork", "bin/graftwork-worker"] {
        let newest = newest_glibc(&fs::read(unpacked.join(program))?);
        ensure!((1..=34).contains(&newest), "{program} needs glibc 2.{newest}, and docs/install.md says 2.34");
    }
    // That they are true, the script has asked sha256sum.
    let sums = fs::read_to_string(unpacked.join("SHA256SUMS"))?;
    for name in ["sbom.cdx.json", "completions/graftwork.fish", "bin/graftwork-worker", "bin/libtorch/lib/libgomp.so.1"]
    {
        ensure!(sums.lines().any(|line| line.ends_with(&format!("  {name}"))), "SHA256SUMS does not have {name}");
    }
    every_licence_is_in(unpacked)?;
    the_sbom_tells(&unpacked.join("sbom.cdx.json"), unpacked)?;
    for name in ["graftwork", "graftwork-worker"] {
        let bytes = fs::read(unpacked.join("bin").join(name))?;
        let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        ensure!(!has("/../.graftwork/libtorch"), "{name} looks for libtorch where it was built");
    }
    Ok(())
}

/// Whatever is of others has the text of its licence, also where its own package carries none.
fn every_licence_is_in(unpacked: &Path) -> Result<()> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(unpacked.join("licences"))? {
        let entry = entry?;
        ensure!(entry.metadata()?.len() > 0, "{} is empty", entry.path().display());
        texts.push(entry.file_name().to_string_lossy().into_owned());
    }
    let told = fs::read_to_string(unpacked.join("THIRD-PARTY.txt"))?;
    // `tonic 0.14.9: MIT` has a file whose name begins with `tonic-0.14.9-`, and `libgomp, …` one with `libgomp-`.
    let named = told.lines().filter_map(|line| line.split([',', ':']).next());
    let lacking: Vec<&str> = named
        .filter(|name| {
            let begins = format!("{}-", name.replace(' ', "-"));
            !texts.iter().any(|text| text.starts_with(&begins))
        })
        .collect();
    ensure!(told.lines().count() > 100 && lacking.is_empty(), "no text of the licences of {lacking:?}");
    Ok(())
}

/// The libraries of the programs and of `bin/libtorch`, with licences, and what each is built of.
fn the_sbom_tells(path: &Path, unpacked: &Path) -> Result<()> {
    let sbom: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
    let components = sbom["components"].as_array().context("components")?;
    let told = |name: &str| components.iter().find(|component| component["name"] == name);
    for name in ["graftwork-worker", "torch", "tonic", "tch", "rustls", "nvidia-cuda-runtime"] {
        ensure!(told(name).is_some(), "{name} is not in the SBOM");
    }
    ensure!(told("insta").is_none(), "what only tests use is in the SBOM");
    let named = components.iter().all(|component| component["licenses"].is_array());
    ensure!(named, "a component without a licence");
    let gomp = fs::read(unpacked.join("bin/libtorch/lib/libgomp.so.1"))?;
    let hash = &told("libgomp").context("libgomp is not in the SBOM")?["hashes"][0]["content"];
    ensure!(*hash == Digest::of(&gomp).to_string(), "another libgomp is in the SBOM: {hash}");
    let needs = |name: &str| -> Result<String> {
        let reference = &told(name).context("a component")?["bom-ref"];
        let graph = sbom["dependencies"].as_array().context("dependencies")?;
        Ok(graph.iter().find(|entry| entry["ref"] == *reference).context("it is in the graph")?["dependsOn"]
            .to_string())
    };
    for (name, wanted) in [
        ("graftwork-worker", "graftwork-engine"),
        ("tch", "torch-sys"),
        ("torch-sys", "pypi/torch@"),
        ("torch", "libgomp"),
    ] {
        ensure!(needs(name)?.contains(wanted), "{name} is not built of {wanted}: {}", needs(name)?);
    }
    Ok(())
}

/// What the packer tells of the tree is valid by the published schema, each component is reached from the application, and a
/// document that is wrong is found out.
pub(crate) fn the_sbom_is_right() -> Result<()> {
    let python = tool("python").context("python")?;
    let write = "import json, sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True; import release\n\
                 print(json.dumps(release.sbom(*release.crates(), \"0.1.0\")))";
    let text = run(Command::new("python3").args(["-c", write]).arg(root().join("scripts")))?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("sbom.cdx.json");
    let check = |text: &str, code: i32| -> Result<String> {
        fs::write(&path, text)?;
        ended(Command::new(&python).arg(root().join("tests/deploy/sbom.py")).arg(&path), code)
    };
    let said = check(&text, 0)?;
    ensure!(said.contains("components are right"), "{said}");
    for (right, wrong, problem) in [
        ("\"alg\": \"SHA-256\"", "\"alg\": \"SHA-257\"", "is not one of"),
        ("\"BSD-3-Clause\"", "\"BSD-3\"", "is not valid under any of the given schemas"),
        ("[\"pkg:cargo/graftwork-worker@", "[\"pkg:cargo/graftwork-werker@", "is depended on and not told"),
    ] {
        ensure!(text.contains(right), "the SBOM has no {right} any more");
        let said = check(&text.replace(right, wrong), 1)?;
        ensure!(said.contains(problem), "{wrong}: {said}");
    }
    Ok(())
}

/// A command that succeeds; gives what it printed.
fn run(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = command.output()?;
    ensure!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    Ok(String::from_utf8(stdout)?)
}

/// Programs of the tree name the folders in which they were built; the packer sees that and stops.
pub(crate) fn a_program_that_names_a_folder_is_found_out() -> Result<()> {
    let look = "import pathlib, sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True; import release\n\
                release.check_no_folder_is_in(pathlib.Path(sys.argv[2]))";
    let looked =
        |program: &Path| Command::new("python3").args(["-c", look]).arg(root().join("scripts")).arg(program).output();
    let output = looked(&program())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("names a folder of this machine"), "{said}");
    let folder = tempfile::tempdir()?;
    let innocent = folder.path().join("program");
    fs::write(&innocent, "a panic at /crates/x.rs and at /graftwork/y.rs")?;
    let output = looked(&innocent)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
