#!/usr/bin/env python3
"""What the exchange between the members of a group costs: the share of the time that rank 0 does nothing but wait for it, and
the bytes that it sends for each update, for an adapter and a fusion on 1 to 8 workers of one thread.

    make quickstart && scripts/exchange.py [--ranks 1 2 4 8] [--wide]

--wide takes a BERT of 12 layers of 768 with random weights, whose fusion has a gradient of 87 MB, and measures that alone;
it is slow. All workers run on this machine, so beyond its cores they share them, and the shares are those of workers that do.
"""
import argparse
import array
import json
import random
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".graftwork"
DATA = HOME / "data" / "question_type"
BASE = HOME / "base" / "all-minilm-l6-v2"


def task(name, updates, rows):
    return f"""
[tasks.{name}]
train = "{DATA}/train.parquet"
validation = "{DATA}/validation.parquet"
rows = {rows}
training = {{ steps = {updates} }}
"""


def job(base, workers, fused, updates):
    rows = 64 * updates
    text = f"""
name = "exchange"
[base_model]
location = "{base}"
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
        return text + task("measured", updates, rows)
    fusion = f'\n[fusions.measured]\ntask = "a"\nadapters = ["a", "b", "c"]\ntraining = {{ steps = {updates} }}\n'
    return text + "".join(task(name, 1, rows) for name in "abc") + fusion


def reports(base, workers, fused, updates):
    """The step reports that the whole group trained."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "job.toml").write_text(job(base, workers, fused, updates))
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


def wide(folder):
    """A base model of 12 layers of 768 with the tokenizer of the usual one: what it computes means nothing."""
    config = json.loads((BASE / "config.json").read_text())
    config |= {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    (folder / "config.json").write_text(json.dumps(config))
    for path in BASE.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, folder)
    hidden, inner = 768, 3072
    shapes = {
        "embeddings.word_embeddings.weight": [config["vocab_size"], hidden],
        "embeddings.position_embeddings.weight": [config["max_position_embeddings"], hidden],
        "embeddings.token_type_embeddings.weight": [config["type_vocab_size"], hidden],
        "embeddings.LayerNorm.weight": [hidden], "embeddings.LayerNorm.bias": [hidden],
    }
    for layer in range(12):
        for name, shape in (
            *((f"attention.self.{name}", [hidden, hidden]) for name in ("query", "key", "value")),
            ("attention.output.dense", [hidden, hidden]), ("attention.output.LayerNorm", None),
            ("intermediate.dense", [inner, hidden]), ("output.dense", [hidden, inner]), ("output.LayerNorm", None),
        ):
            whole = f"encoder.layer.{layer}.{name}"
            shapes[f"{whole}.weight"] = shape or [hidden]
            shapes[f"{whole}.bias"] = (shape or [hidden])[:1]
    header, end = {}, 0
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if shape[1:] else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * count]}
        end += 4 * count
    text = json.dumps(header).encode()
    draw = random.Random(17)
    normal, ones, zeros = array.array("f", (draw.gauss(0, 0.02) for _ in range(1 << 20))), array.array("f", [1] * inner), array.array("f", [0] * inner)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            count = header[name]["data_offsets"][1] - header[name]["data_offsets"][0] >> 2
            source = normal if shape[1:] else ones if "LayerNorm.weight" in name else zeros
            while count:
                file.write(source[:count].tobytes())
                count -= min(count, len(source))
    return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 7, 8])
    parser.add_argument("--wide", action="store_true")
    options = parser.parse_args()
    print("| | ranks | waits for others | sent an update, MB | examples/s |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        # A stage with fewer than 20 updates left gets helpers only if at least two are left, with 32,768 tokens in all.
        base, updates = (wide(Path(folder)), 26) if options.wide else (BASE, 46)
        for fused in (True,) if options.wide else (False, True):
            for workers in options.ranks:
                of = reports(base, workers, fused, updates)
                if not of:
                    raise SystemExit(f"{workers} workers never trained together")
                wait, sent, rate = (statistics.median(said[key] for said in of)
                                    for key in ("exchange_wait", "sent_bytes", "examples_per_second"))
                what = "fusion of 3" if fused else "seq_bn"
                print(f"| {what} | {workers} | {wait:.1%} | {sent / 1e6:.2f} | {rate:.0f} |", flush=True)


if __name__ == "__main__":
    main()
