#!/usr/bin/env python3
"""What the exchange between the members of a group costs: the share of the time that rank 0 does nothing but wait for it, and
the bytes that it sends for each update, for an adapter and a fusion on 1, 2, 4 and 8 workers of one thread.

    make quickstart && scripts/exchange.py

All workers run on this machine, so beyond its cores they share them, and the shares are those of workers that do.
"""
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".graftwork"
DATA = HOME / "data" / "question_type"
UPDATES = 60


def task(name, updates):
    return f"""
[tasks.{name}]
train = "{DATA}/train.parquet"
validation = "{DATA}/validation.parquet"
rows = 3000
training = {{ steps = {updates} }}
"""


def job(workers, fused):
    text = f"""
name = "exchange"
[base_model]
location = "{HOME}/base/all-minilm-l6-v2"
[publish]
hub = "hub"
organisation = "exchange"
[resources]
workers = {workers}
threads = 1
[defaults.adapter]
method = "seq_bn"
[defaults.training]
batch_size = 64
lanes = 8
learning_rate = 1e-3
max_length = 64
"""
    if not fused:
        return text + task("measured", UPDATES)
    fusion = f'\n[fusions.measured]\ntask = "a"\nadapters = ["a", "b", "c"]\ntraining = {{ steps = {UPDATES} }}\n'
    return text + "".join(task(name, 1) for name in "abc") + fusion


def reports(workers, fused):
    """The step reports that the whole group trained."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "job.toml").write_text(job(workers, fused))
        command = [ROOT / "target/release/graftwork", "run", "job.toml", "--progress", "json"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    members, found = 1, []
    for line in (run.stdout + run.stderr).splitlines():
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("stage") != "measured":
            continue
        kind = event.get("kind", event)
        inner = next((value for value in kind.values() if isinstance(value, dict)), kind) if isinstance(kind, dict) else {}
        for said in (event, kind, inner):
            if isinstance(said, dict) and "members" in said:
                members = len(said["members"])
            if isinstance(said, dict) and "exchange_wait" in said:
                found.append((members, said))
                break
    return [said for of, said in found if of == workers]


def main():
    print("| | ranks | waits for others | sent an update, MB | examples/s |\n|---|---|---|---|---|")
    for fused in (False, True):
        for workers in (1, 2, 4, 8):
            of = reports(workers, fused)
            if not of:
                raise SystemExit(f"{workers} workers never trained together")
            wait, sent, rate = (statistics.median(said[key] for said in of)
                                for key in ("exchange_wait", "sent_bytes", "examples_per_second"))
            what = "fusion of 3" if fused else "seq_bn"
            print(f"| {what} | {workers} | {wait:.1%} | {sent / 1e6:.2f} | {rate:.0f} |", flush=True)


if __name__ == "__main__":
    main()
