"""What was measured on: machine, versions, and the figures of the benchmarks of pieces if there are any."""
import hashlib
import json
import os
import pathlib
import platform
import subprocess

# What `ours.py` runs; some rows need no example.
PROGRAMS = ("graftwork", "graftwork-worker", "examples/step_time", "examples/roofline", "examples/input_rate")
# What measures.
MEASURING = ("data.py", "ours.py", "peer.py", "program.py", "watch.py")


def processor():
    """What the system says of the first core."""
    cpu = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        cpu.setdefault(key.strip(), value.strip())
    return cpu


def kind():
    """What two machines have in common that figures of both may stand in one record for."""
    cpu = processor()
    names = ("model name", "vendor_id", "cpu family", "model", "stepping")
    gpu = first_line("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return [*(cpu.get(name, "") for name in names), os.cpu_count(), gpu]


def facts():
    cpu = processor()
    memory = next(line for line in pathlib.Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    wanted = ("avx2", "fma", "avx512f", "avx512vl", "avx512_bf16", "amx_bf16")
    return {
        "processor": cpu.get("model name", platform.machine()),
        "megahertz": cpu.get("cpu MHz"),
        "cores": os.cpu_count(),
        "instructions": [flag for flag in wanted if flag in cpu.get("flags", "").split()],
        "memory_mb": int(memory.split()[1]) // 1024,
        "kernel": platform.release(),
        "gpu": first_line("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "load": os.getloadavg()[0],
    }


def programs(folder):
    """Digests of the programs that are there, and of what measures, so that figures of other ones are not mixed in."""
    files = {name: folder / name for name in PROGRAMS}
    files |= {name: pathlib.Path(__file__).with_name(name) for name in MEASURING}
    return {name: digest(path) for name, path in files.items() if path.exists()}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def first_line(*command, folder=None):
    """What a command says first; nothing where there is no such command."""
    try:
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=folder).stdout.strip().split("\n")[0]
    except OSError:
        return ""


def versions(options, root):
    libtorch = root / ".graftwork/libtorch/torch/build-version"
    found = {
        "graftwork": first_line(options.programs / "graftwork", "--version"),
        "commit": first_line("git", "rev-parse", "HEAD", folder=root),
        "libtorch": libtorch.read_text().strip() if libtorch.exists() else "",
        "rustc": first_line("rustc", "--version"),
    }
    if options.peer:
        names = ("adapters", "torch", "transformers")
        words = [f"import {', '.join(names)}", *(f"print('{name}', {name}.__version__, end=' ')" for name in names)]
        found["peer"] = first_line(options.peer_python, "-c", "; ".join(words))
    return found


def pieces(folder, program):
    """Median and its 95 % interval in nanoseconds, of each benchmark that `cargo bench -p graftwork-engine` has run.

    Those that were taken before this program was built are of another one, and left out.
    """
    found = {}
    built = program.stat().st_mtime if program.exists() else 0
    for path in sorted(folder.glob("**/new/estimates.json")):
        if path.stat().st_mtime < built:
            continue
        median = json.loads(path.read_text())["median"]
        interval = median["confidence_interval"]
        name = str(path.parent.parent.relative_to(folder))
        found[name] = [median["point_estimate"], interval["lower_bound"], interval["upper_bound"]]
    return found
