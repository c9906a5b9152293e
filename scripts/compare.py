#!/usr/bin/env python3
"""Trains the same tasks with Graftwork and with AdapterHub's library, over several seeds, and compares.

    scripts/compare.py --data FOLDER --tasks trec cr mrpc [--seeds 5] [--rows 1500] [--epochs 2]

FOLDER/<task>/{train,validation}.parquet hold `text` or `text_a`, `text_b`, and `label`, a number or a name. Both programs
take the same rows, base model, adapter, learning rate, batch and epochs, and score the last weights on validation.
Needs `make build` and scripts/peer.sh. Prints a table; exits 1 when the 95 % interval of a difference of means lies below 0.
"""
import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Student's t for a two-sided 95 % interval by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def of_peer(options, seeds):
    command = [str(options.peer), str(ROOT / "tests/peer/train.py"), "--base", str(options.base), "--data", str(options.data)]
    command += ["--tasks", *options.tasks, "--seeds", *map(str, seeds), "--rows", str(options.rows)]
    command += ["--epochs", str(options.epochs), "--padding", options.padding, "--dropout", "--threads", str(options.threads)]
    command += ["--max-length", str(options.max_length)]
    with tempfile.TemporaryDirectory() as scratch:
        lines = subprocess.run(command + ["--scratch", scratch], check=True, stdout=subprocess.PIPE, text=True).stdout
    results = [json.loads(line) for line in lines.splitlines() if line.startswith("{\"task\"")]
    return {(result["task"], result["seed"]): (result["accuracy"], result["examples_per_second"]) for result in results}


def ours(options, seeds, dropout):
    job = [
        'name = "comparison"', "[base_model]", f'location = "{options.base}"', "[publish]", 'hub = "hub"',
        'organisation = "comparison"', "[defaults.adapter]", 'method = "seq_bn"', "[defaults.training]",
        f"epochs = {options.epochs}", f"max_length = {options.max_length}", "learning_rate = 1e-3", "batch_size = 16", "evaluate_every = 1000000",
        "keep_best = false", f"base_model_dropout = {str(dropout).lower()}",
    ]
    for task in options.tasks:
        folder = options.data / task
        for seed in seeds:
            pair = task in options.pairs
            job += [
                f"[tasks.{task}_{seed}]", f'train = "{folder}/train.parquet"', f'validation = "{folder}/validation.parquet"',
                'text = ["text_a", "text_b"]' if pair else 'text = "text"', 'label = "label"', 'head = "classification"',
                f"rows = {options.rows}" if options.rows else "", f"training = {{ seed = {seed} }}",
            ]
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "job.toml"
        path.write_text("\n".join(job) + "\n")
        command = [str(options.graftwork), "run", str(path), "--state", f"{scratch}/state", "--progress", "none", "--threads", str(options.threads)]
        subprocess.run(command, check=True, cwd=scratch, stdout=subprocess.DEVNULL)
        report = next(pathlib.Path(scratch).glob("state/*/report.json"))
        stages = json.loads(report.read_text())["stages"]
    results = {}
    for stage in stages:
        task, seed = stage["name"].rsplit("_", 1)
        result, usage = stage["result"], stage["result"]["usage"]
        score = result["scores"]["validation"]["metrics"]["accuracy"]
        results[task, int(seed)] = (score, usage["examples"] / usage["core_seconds"])
    return results


def interval(values):
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def difference(ours, peers):
    """Difference of the means with its 95 % interval, for unequal variances (Welch 1947)."""
    errors = [statistics.variance(values) / len(values) for values in (ours, peers)]
    if not any(errors):
        return statistics.mean(ours) - statistics.mean(peers), 0.0
    degrees = sum(errors) ** 2 / sum(error**2 / (len(values) - 1) for error, values in zip(errors, (ours, peers)))
    return statistics.mean(ours) - statistics.mean(peers), student(int(degrees)) * math.sqrt(sum(errors))


def student(degrees):
    return STUDENT.get(degrees, 1.96 if degrees > 30 else 2.26 if degrees < 12 else 2.18)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--pairs", nargs="*", default=["mrpc"], help="tasks of two texts")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a text at most")
    parser.add_argument("--padding", choices=("longest", "group"), default="group")
    parser.add_argument("--threads", type=int, default=2, help="of both programs")
    parser.add_argument("--base", type=pathlib.Path, default=ROOT / ".graftwork/base/all-minilm-l6-v2")
    parser.add_argument("--peer", type=pathlib.Path, default=ROOT / ".graftwork/peer/bin/python")
    parser.add_argument("--graftwork", type=pathlib.Path, default=ROOT / "target/release/graftwork")
    options = parser.parse_args()
    options.data, options.base = options.data.resolve(), options.base.resolve()
    os.environ["HF_HUB_OFFLINE"] = "1"
    seeds = list(range(1, options.seeds + 1))
    programs = {
        "peer, dropout on": of_peer(options, seeds),
        "ours, dropout on": ours(options, seeds, True),
        "ours, dropout off": ours(options, seeds, False),
    }
    below = False
    for task in options.tasks:
        peers = [programs["peer, dropout on"][task, seed][0] for seed in seeds]
        for program, results in programs.items():
            scores = [results[task, seed][0] for seed in seeds]
            mean, half = interval(scores)
            rate = statistics.median(results[task, seed][1] for seed in seeds)
            unit = "examples/s" if program.startswith("peer") else "examples/core-s"
            line = f"{task:<16} {program:<18} accuracy {mean:.4f} ± {half:.4f}  {rate:6.1f} {unit:<15}"
            if program.startswith("ours"):
                gap, half = difference(scores, peers)
                below |= gap + half < 0
                line += f"  {gap:+.4f} ± {half:.4f}{'  BELOW' if gap + half < 0 else ''}"
            print(line, flush=True)
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
