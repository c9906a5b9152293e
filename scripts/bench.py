#!/usr/bin/env python3
"""Measures Graftwork, and beside it AdapterHub's library, and holds the ratios against what must be reached.

    scripts/bench.py [--peer] [--device cuda [--precision fp32]] [--data DIR] [--rows N] [--runs N] [--only ROW…] [--go-on]

`make bench` measures Graftwork alone; `make bench-peer` installs the library too (scripts/peer.sh), measures both in turn,
and ends with 1 when a row is below "at least", with 2 when a measurement failed. The record (machine, versions, every
figure of every run) is written after each measurement, so that --go-on can go on with it; the page shows what is in it.

Rows: see scripts/benchmark/table.py. A whole run of `make bench-peer` takes hours, most of them in the library with
padding to 128; `--rows 400 --runs 1` takes minutes, and gives the start of a command more weight than it has.
"""
import argparse
import collections
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from benchmark import machine, page
from benchmark.data import Data
from benchmark.ours import Ours
from benchmark.peer import Peer
from benchmark.table import PLOTS, ROWS, rows_on
from benchmark.watch import Failed, Others

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A row of the table as it is shown.
Shown = collections.namedtuple("Shown", "row value text ends least aim reached runs")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="measure AdapterHub's library too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what both programs compute on; a GPU has rows of its own")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="numbers in which both base models multiply: fp32 on a processor; on a GPU bf16, unless another is named")
    parser.add_argument("--data", type=pathlib.Path, default=os.environ.get("GRAFTWORK_BENCH_DATA"), help="folder with the texts of the suite")
    parser.add_argument("--rows", type=int, default=0, help="training rows of each task at most; 0: all")
    parser.add_argument("--runs", type=int, default=5, help="runs of each measurement, in turn")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", choices=[row.name for row in ROWS] + ["plots"])
    parser.add_argument("--go-on", action="store_true", help="keep the samples of the record that were taken in the same way")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "out/bench")
    parser.add_argument("--base", type=pathlib.Path, default=ROOT / ".graftwork/base/all-minilm-l6-v2")
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release", help="folder of graftwork, graftwork-worker and examples")
    parser.add_argument("--peer-python", type=pathlib.Path, default=ROOT / ".graftwork/peer/bin/python")
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if options.device == "cuda" else "fp32")
    if options.precision != "fp32" and options.device == "cpu":
        parser.error(f"--precision {options.precision} needs --device cuda")
    for name in ("base", "programs", "out"):
        setattr(options, name, getattr(options, name).resolve())
    return options


def main():
    options = parse()
    data = Data(options.data, ROOT / ".graftwork/data", options.rows)
    all_rows = rows_on(options.device)
    rows = [row for row in all_rows if row.name in options.only or not options.only]
    if not rows and options.only != ["plots"]:
        raise SystemExit(f"bench: none of {', '.join(options.only)} is measured on {options.device}; there are {', '.join(row.name for row in all_rows)}")
    record = begin(options, data)
    say(f"rows: {data.words}")
    say(f"machine: {record['machine']['processor']}, {record['machine']['cores']} cores, load {record['machine']['load']}")
    failed = measure(options, data, rows, record)
    save(options, record)
    show(rows, record)
    warn(rows, record["samples"])
    say(f"{options.out}/record.json, {options.out}/index.html")
    return 2 if failed else verdict(rows, record, options.peer)


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def begin(options, data):
    """A new record, or the one that is there if it was taken in the same way."""
    way = {"device": options.device, "rows": options.rows, "data": data.words, "programs": machine.programs(options.programs)}
    # Ratios hold within one machine alone, and figures for one base model.
    way["machine"] = machine.kind()
    way["base_model"] = machine.digest(options.base / "model.safetensors")
    if options.precision != "fp32":
        way["precision"] = options.precision
    path = options.out / "record.json"
    old = json.loads(path.read_text()) if options.go_on and path.exists() else None
    if old and old["way"] != way:
        changed = [name for name in {**old["way"], **way} if old["way"].get(name) != way.get(name)]
        raise SystemExit(f"bench: {path} was taken in another way ({', '.join(changed)}); measure without --go-on, or name another --out")
    record = old or {"way": way, "began": time.strftime("%Y-%m-%d %H:%M:%S %z"), "samples": {}}
    record["machine"] = machine.facts()
    record["versions"] = machine.versions(options, ROOT)
    record["pieces"] = machine.pieces(ROOT / "target/criterion", options.programs / "graftwork-worker")
    return record


def measure(options, data, rows, record):
    """Every measurement in turn, run after run; what fails once is not tried again. Returns what failed."""
    needs = list(dict.fromkeys(need for row in rows for need in row.needs if options.peer or need.startswith("ours.")))
    once = PLOTS if options.device == "cpu" and (not options.only or "plots" in options.only) else []
    failed = {}
    with tempfile.TemporaryDirectory(prefix="graftwork-bench-") as scratch:
        programs = {"ours": Ours(options, data, scratch), "peer": Peer(options, data, scratch)}
        for run in range(options.runs):
            for need in needs + (once if run == 0 else []):
                samples = record["samples"].setdefault(need, [])
                if len(samples) > run or need in failed:
                    continue
                began, others = time.monotonic(), Others()
                program, name = need.split(".")
                try:
                    sample = getattr(programs[program], name)()
                except Failed as problem:
                    failed[need] = str(problem)
                    say(f"{need} failed: {problem}")
                    continue
                sample["cores_of_others"] = others.cores()
                samples.append(sample)
                first = ", ".join(f"{figure} {value:.4g}" for figure, value in list(sample.items())[:3])
                say(f"run {run + 1} of {options.runs}, {need}: {first} ({time.monotonic() - began:.0f} s)")
                save(options, record)
    record["failed"] = failed
    return failed


def verdict(rows, record, with_peer):
    below = [row.name for row in rows if outcome(row, record["samples"])[1] == "below"]
    if below:
        say(f"below what is asked: {', '.join(below)}")
    return 1 if below and with_peer else 0


def outcome(row, samples):
    """A row's value and the bar that it reaches; none where something was not measured."""
    needs = [need for need in row.needs if row.name != "start" or need.startswith("ours.")]
    if not all(samples.get(need) for need in needs):
        return None, ""
    value = row.value(samples)
    return value, row.reached(value)


def table(rows, samples):
    for row in rows:
        value, reached = outcome(row, samples)
        bars = (row.show(row.least), row.show(row.aim)) if row.least is not None else ("", "")
        runs = 0 if value is None else min(len(samples[need]) for need in row.needs if samples.get(need))
        ends = " – ".join(row.number(end) for end in row.ends(samples)) if runs > 1 else ""
        yield Shown(row, value, "not measured" if value is None else row.show(value), ends, *bars, reached, runs)


def show(rows, record):
    width = max((len(row.what) for row in rows), default=0)
    print(f"{'':15} {'':{width}}  {'value':>14} {'single runs':>16} {'at least':>10} {'aim':>10}  reached   runs")
    for row, _, text, ends, least, aim, reached, runs in table(rows, record["samples"]):
        print(f"{row.name:15} {row.what:{width}}  {text:>14} {ends:>16} {least:>10} {aim:>10}  {reached:8}  {runs:4}")
    print("\nMedians (all figures are in the record):")
    for need in dict.fromkeys(need for row in rows for need in row.needs):
        figures = list(record.get("medians", {}).get(need, {}).items())[:3]
        if figures:
            print(f"{need:26} " + ", ".join(f"{name} {value:,.4g}" for name, value in figures))


def warn(rows, samples):
    """Others that used more than a twentieth of a core make a figure worth little."""
    needs = dict.fromkeys(need for row in rows for need in row.needs)
    most = {need: max(sample.get("cores_of_others", 0.0) for sample in samples[need]) for need in needs if samples.get(need)}
    disturbed = [f"{need} ({cores:.2f} cores)" for need, cores in most.items() if cores > 0.05]
    if disturbed:
        say(f"other programs used the machine meanwhile, so these figures say little: {', '.join(disturbed)}")


def save(options, record):
    options.out.mkdir(parents=True, exist_ok=True)
    record["medians"] = {
        need: {figure: statistics.median(sample[figure] for sample in samples) for figure in samples[0]}
        for need, samples in record["samples"].items() if samples
    }
    rows = list(table(rows_on(options.device), record["samples"]))
    record["table"] = [
        {"row": row.name, "what": row.what, "against": row.against, "value": value, "unit": row.unit,
         "at_least": row.least, "aim": row.aim, "reached": reached, "runs": runs}
        for row, value, _, _, _, _, reached, runs in rows
    ]
    for name, text in (("record.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n"), ("index.html", page.page(record, rows))):
        new = options.out / f"{name}.new"
        new.write_text(text)
        new.replace(options.out / name)


if __name__ == "__main__":
    sys.exit(main())
