#!/usr/bin/env python3
"""Packs a release: both programs, libtorch, licences, an SBOM, completions, man pages, deployment files, checksums.

    scripts/release.py [--to FOLDER] [--programs FOLDER | --apart]     `make release` does it

Writes FOLDER/graftwork-VERSION-x86_64-linux/, the same as .tar.gz, and its .sha256. Nothing of it depends on when, where or
by whom it is packed: names are sorted, times are that of the last commit, owners are 0, and programs are stripped. What
the programs' own bytes depend on is told in docs/install.md; --apart, the default, builds them anew into target/archive,
without a folder of this machine in them, and --programs packs those that were built already. Needs Python 3.8, cargo, git and
strip, and --apart a C and C++ compiler that knows -ffile-prefix-map.
"""
import argparse
import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APART = ROOT / "target" / "archive"
LIBTORCH = ROOT / ".graftwork" / "libtorch"
# In the archive libtorch lies beside the programs, and a folder that the user names comes before it.
SEARCH = "$ORIGIN/libtorch/lib"
PROGRAMS = ("graftwork", "graftwork-worker")
RPATH, RUNPATH = 15, 29


def run(*command, **more):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, **more).stdout


def folders():
    """Folders of this machine that compilers write into programs, and what stands there instead; the last that fits counts."""
    cargo = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo").resolve()
    crates = sorted((cargo / "registry" / "src").glob("*"))
    return [(Path(run("rustc", "--print", "sysroot").strip()), "/rust"), (cargo, "/cargo"),
            *((folder, "/crates") for folder in crates), (ROOT, "/graftwork")]


def build():
    """Builds both programs apart from those of the tree, which may hold what an earlier state of the sources decided."""
    known = folders()
    for_rust = ",".join(json.dumps(f"--remap-path-prefix={folder}={instead}") for folder, instead in known)
    for_c = " ".join(f"-ffile-prefix-map={folder}={instead}" for folder, instead in known)
    if any(" " in str(folder) for folder, _ in known):
        sys.exit("release: a folder with a space in its name cannot be told to the C compiler: build in another one")
    flags = {name: f"{os.environ.get(name, '')} {for_c}".strip() for name in ("CFLAGS", "CXXFLAGS")}
    # RUSTFLAGS would take the place of the tree's own flags.
    environment = {key: value for key, value in os.environ.items() if key not in ("RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS")}
    environment.update(flags, CARGO_INCREMENTAL="0")
    subprocess.run(
        ["cargo", "build", "--release", "--locked", "--quiet", "-p", "graftwork", "-p", "graftwork-worker",
         "--target-dir", str(APART), "--config", f"target.x86_64-unknown-linux-gnu.rustflags=[{for_rust}]"],
        cwd=ROOT, check=True, env=environment, stdout=sys.stderr)
    return APART / "release"


def check_no_folder_is_in(path):
    data = path.read_bytes()
    for folder, _ in folders():
        if os.fsencode(folder) in data:
            at = data.index(os.fsencode(folder))
            sys.exit(f"release: {path.name} names a folder of this machine: {data[at:at + 120]!r}")


def dynamic(data):
    """Offset of the dynamic section's entries, and of the table of their texts, in a 64-bit ELF file."""
    table, size, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    for at in range(table, table + size * count, size):
        kind, offset, length, link = struct.unpack_from("<I", data, at + 4)[0], *struct.unpack_from("<QQI", data, at + 24)
        if kind == 6:
            texts = struct.unpack_from("<Q", data, table + size * link + 24)[0]
            return range(offset, offset + length, 16), texts
    sys.exit("release: the program has no dynamic section")


def set_search(path):
    """Replaces where the loader looks for libtorch. RUNPATH is asked after LD_LIBRARY_PATH, RPATH before it."""
    data = bytearray(path.read_bytes())
    entries, texts = dynamic(data)
    for at in entries:
        tag, value = struct.unpack_from("<qQ", data, at)
        if tag in (RPATH, RUNPATH):
            old = bytes(data[texts + value:data.index(0, texts + value)])
            if len(old) < len(SEARCH):
                sys.exit(f"release: no room for {SEARCH} in {path.name}")
            data[texts + value:texts + value + len(old)] = SEARCH.encode().ljust(len(old), b"\0")
            struct.pack_into("<q", data, at, RUNPATH)
            path.write_bytes(data)
            return
    sys.exit(f"release: {path.name} names no folder for libtorch")


def programs(folder, built):
    for name in PROGRAMS:
        target = folder / "bin" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built / name, target)
        subprocess.run(["strip", "--strip-all", str(target)], check=True)
        set_search(target)
        target.chmod(0o755)
    libraries = folder / "bin" / "libtorch" / "lib"
    libraries.mkdir(parents=True)
    for name in ("libtorch_cpu.so", "libc10.so", "libgomp.so.1"):
        shutil.copyfile(LIBTORCH / "torch" / "lib" / name, libraries / name)
    for name in ("libcudart.so.13", "libcupti.so.13"):
        shutil.copyfile(LIBTORCH / "nvidia" / "cu13" / "lib" / name, libraries / name)


def crates():
    """The packages that the two programs are built of, in order, and by package's id the ids of those that it is built of."""
    metadata = json.loads(run("cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"))
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    needs, left = {}, [key for key, package in packages.items() if package["name"] in PROGRAMS]
    while left:
        key = left.pop()
        if key in needs:
            continue
        needs[key] = sorted(dependency["pkg"] for dependency in nodes[key]["deps"]
                            if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"]))
        left += needs[key]
    return sorted((packages[key] for key in needs), key=lambda package: (package["name"], package["version"])), needs


def bought():
    """What is in the archive and is no crate: libtorch and the two libraries that it links."""
    every = json.loads((ROOT / "scripts" / "packages.json").read_text())
    return [package for package in every if package["part"] == "libtorch"]


LICENCES_OF_WHEELS = {"torch": "BSD-3-Clause"}


def of_cargo(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def of_python(package):
    return f"pkg:pypi/{package['name']}@{package['version']}"


def locked():
    """Checksums of the registry's crates, by name and version."""
    checksums, name = {}, ""
    for line in (ROOT / "Cargo.lock").read_text().splitlines():
        key, _, value = line.partition(" = ")
        if key == "name":
            name = value.strip('"')
        elif key == "version":
            of = (name, value.strip('"'))
        elif key == "checksum":
            checksums[of] = value.strip('"')
    return checksums


def library(name, purl, licence, sha256, **more):
    component = {"type": "library", "name": name, **more, "bom-ref": purl, "purl": purl, "licenses": [licence]}
    return {**component, "hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else component


def sbom(packages, needs, version):
    """What is in the archive, as CycloneDX: each library, and what each is built of or loads."""
    checksums, components, dependencies = locked(), [], {}
    by_id = {package["id"]: package for package in packages}
    for package in packages:
        told = package["license"]
        licence = {"expression": told.replace("/", " OR ")} if told else {"license": {"name": "told in its files, see licences/"}}
        checksum = checksums.get((package["name"], package["version"]))
        components.append(library(package["name"], of_cargo(package), licence, checksum, version=package["version"]))
        dependencies[of_cargo(package)] = [of_cargo(by_id[key]) for key in needs[package["id"]]]
    for package in bought():
        known = LICENCES_OF_WHEELS.get(package["name"])
        licence = {"license": {"id": known} if known else {"name": "NVIDIA CUDA Toolkit EULA"}}
        components.append(library(package["name"], of_python(package), licence, package["sha256"], version=package["version"]))
        dependencies[of_python(package)] = []
    # GCC's, as it lies in torch's wheel, which tells no version of it.
    gomp = "pkg:generic/libgomp"
    licence = {"expression": "GPL-3.0-or-later WITH GCC-exception-3.1"}
    components.append(library("libgomp", gomp, licence, digest(LIBTORCH / "torch" / "lib" / "libgomp.so.1")))
    dependencies[gomp] = []
    torch, *others = [of_python(package) for package in bought()]
    dependencies[torch] = [*others, gomp]
    (linked,) = [package for package in packages if package["name"] == "torch-sys"]
    dependencies[of_cargo(linked)] = [*dependencies[of_cargo(linked)], torch]
    dependencies["graftwork"] = [of_cargo(package) for package in packages if package["name"] in PROGRAMS]
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": {"type": "application", "name": "graftwork", "version": version, "bom-ref": "graftwork",
                                   "licenses": [{"expression": "MIT OR Apache-2.0"}]}},
        "components": components,
        "dependencies": [{"ref": reference, "dependsOn": sorted(set(on))} for reference, on in sorted(dependencies.items())],
    }


def without_a_text(package):
    """The text of a crate's licence, where its package carries none: that of this tree, with nobody's name in it."""
    told = package["license"] or ""
    name = "LICENSE-APACHE" if "Apache-2.0" in told else "LICENSE-MIT" if "MIT" in told else None
    if name is None:
        sys.exit(f"release: {package['name']} {package['version']} carries no text of its licence ({told or 'none is told'})")
    text = (ROOT / name).read_text()
    text = "\n".join(line for line in text.split("\n") if not line.startswith("Copyright (c) "))
    authors = ", ".join(package["authors"]) or "its authors"
    return f"{package['name']} {package['version']}, by {authors}: {told}. Its package carries no text, which is this:\n\n{text}"


def licences(folder, packages):
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        shutil.copyfile(ROOT / name, folder / name)
    place = folder / "licences"
    place.mkdir()
    lines = []
    for package in packages:
        if package["source"] is None:
            continue
        lines.append(f"{package['name']} {package['version']}: {package['license'] or 'see its files'}")
        source = Path(package["manifest_path"]).parent
        texts = [file for file in sorted(source.iterdir())
                 if file.is_file() and file.name.upper().startswith(("LICEN", "UNLICEN", "COPYING", "NOTICE", "COPYRIGHT"))]
        for file in texts:
            shutil.copyfile(file, place / f"{package['name']}-{package['version']}-{file.name}")
        if not texts:
            (place / f"{package['name']}-{package['version']}-LICENSE").write_text(without_a_text(package))
    for package in bought():
        lines.append(f"{package['name']} {package['version']}: see its files")
        infos = LIBTORCH.glob(f"{package['name'].replace('-', '_')}-*.dist-info/licenses/*")
        found = sorted(file for file in infos if file.is_file())
        if not found:
            sys.exit(f"release: the licence of {package['name']} is missing: remove {LIBTORCH} and run `make build` again")
        for file in found:
            shutil.copyfile(file, place / f"{package['name']}-{package['version']}-{file.name}")
    lines.append("libgomp, as torch's wheel has it: GPL-3.0-or-later WITH GCC-exception-3.1")
    # The wheel carries neither text.
    for file in sorted((ROOT / "scripts" / "licences").iterdir()):
        shutil.copyfile(file, place / f"libgomp-{file.name}")
    (folder / "THIRD-PARTY.txt").write_text("\n".join(lines) + "\n")


def words(folder):
    """Completions and man pages, as the programs of the archive tell them."""
    program = folder / "bin" / "graftwork"
    place = folder / "completions"
    place.mkdir()
    for shell, name in (("bash", "graftwork.bash"), ("zsh", "_graftwork"), ("fish", "graftwork.fish")):
        (place / name).write_text(run(str(program), "completions", shell))
    run(str(program), "man", str(folder / "man" / "man1"))


def deployment(folder):
    tracked = run("git", "ls-files", "deploy", "docs", "jobs", "README.md", "CHANGELOG.md").splitlines()
    for name in tracked:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)


def digest(path):
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            hashed.update(piece)
    return hashed.hexdigest()


def members(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def pack(folder, archive, when):
    with open(archive, "wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as squeezed:
        with tarfile.open(fileobj=squeezed, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for path in members(folder):
                member = tarfile.TarInfo(str(path.relative_to(folder.parent)))
                member.size, member.mtime = path.stat().st_size, when
                member.mode = 0o755 if path.parent.name == "bin" else 0o644
                with open(path, "rb") as file:
                    tar.addfile(member, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / "out" / "release")
    of = parser.add_mutually_exclusive_group()
    of.add_argument("--programs", type=Path, help="a folder with both programs, built already; they may name folders of this machine")
    of.add_argument("--apart", action="store_true", help="build programs that name none, the default: half an hour")
    options = parser.parse_args()
    apart = options.programs is None
    to, built = options.to.resolve(), build() if apart else options.programs.resolve()
    version = run(str(built / "graftwork"), "--version").split()[-1]
    if not (ROOT / "tests" / "fixtures" / "stores" / version).is_dir():
        sys.exit(f"release: version {version} has no store for the upgrade test: tests/fixtures/stores/README.md says how it is made")
    when = int(os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct"))
    name = f"graftwork-{version}-x86_64-linux"
    folder, archive = to / name, to / f"{name}.tar.gz"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    packages, needs = crates()
    programs(folder, built)
    if apart:
        for program in sorted((folder / "bin").glob("graftwork*")):
            check_no_folder_is_in(program)
    licences(folder, packages)
    (folder / "sbom.cdx.json").write_text(json.dumps(sbom(packages, needs, version), indent=1) + "\n")
    deployment(folder)
    words(folder)
    sums = [f"{digest(path)}  {path.relative_to(folder)}" for path in members(folder)]
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    pack(folder, archive, when)
    archive.with_name(archive.name + ".sha256").write_text(f"{digest(archive)}  {archive.name}\n")
    print(archive)


if __name__ == "__main__":
    main()
