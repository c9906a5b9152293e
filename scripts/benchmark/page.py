"""The page of a record: the table with both bars, plots, and every figure. Self-contained."""
import html
import re
import statistics

from .plot import COLOURS, Axis, Plot, bars, gauge, number

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f23; margin: 0 auto; max-width: 1120px; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; }
p { margin: 6px 0; } .quiet, figcaption { color: #57606a; font-size: 13px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: #57606a; font-weight: 600; border-bottom: 1px solid #c9d1d9; padding: 5px 10px 5px 0; }
td { border-bottom: 1px solid #e6e9ec; padding: 6px 10px 6px 0; vertical-align: middle; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.aim { color: #24713a; font-weight: 600; } .least { color: #2563a8; font-weight: 600; } .below { color: #b3261e; font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 24px 36px; }
figure { margin: 0; } figure h3 { font-size: 15px; margin: 0 0 2px; } figcaption span { display: inline-block; margin-right: 14px; }
svg { width: 100%; height: auto; display: block; } svg.gauge { width: 176px; height: 20px; }
.grid { stroke: #e6e9ec; } .axis { stroke: #8b949e; fill: none; } .tick { font-size: 12px; fill: #57606a; } .name { font-size: 12.5px; fill: #1b1f23; }
details { margin-top: 8px; } details td { padding: 2px 10px 2px 0; } summary { cursor: pointer; }
"""


def page(record, rows):
    machine, versions = record["machine"], record["versions"]
    facts = f"{machine['processor']}, {machine['cores']} cores, {', '.join(machine['instructions'])}, {machine['memory_mb'] // 1024} GB"
    named = lambda name, version: version if version.startswith((name, "adapters")) else f"{name} {version}"
    programs = " · ".join(named(name, version) for name, version in versions.items() if version)
    way = f"{record['way']['rows'] or 'all'} training rows of each task at most; {record['way']['data']}"
    parts = [
        "<h1>How fast Graftwork is</h1>",
        f'<p class="quiet">{html.escape(record["began"])} · {html.escape(facts)}<br>{html.escape(programs)}<br>{html.escape(way)}</p>',
        "<h2>What must be reached</h2>",
        "<p>Medians of runs taken in turn. Grey marks are what is asked, green ones the aim; the tinted side is the good one.</p>",
        table(rows), f'<h2>Where it comes from</h2><div class="plots">{"".join(plots(record))}</div>', pieces(record), figures(record),
    ]
    title = "Graftwork: benchmarks"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def table(rows):
    lines = []
    for shown in rows:
        row, kind = shown.row, {"at least": "least"}.get(shown.reached, shown.reached)
        drawn = gauge(shown.value, row.least, row.aim, row.lower) if row.least is not None else ""
        against = f'<div class="quiet">against {html.escape(row.against)}</div>' if row.against else ""
        lines.append(
            f"<tr><td>{html.escape(row.what)}{against}</td><td class=n><b>{html.escape(shown.text)}</b></td>"
            f'<td class="n quiet">{shown.ends}</td><td class=n>{shown.least}</td>'
            f'<td class=n>{shown.aim}</td><td>{drawn}</td><td class="{kind}">{shown.reached}</td><td class=n>{shown.runs or ""}</td></tr>'
        )
    head = "<tr><th>what</th><th class=n>value</th><th class=n>single runs</th><th class=n>at least</th><th class=n>aim</th><th></th><th>reached</th><th class=n>runs</th></tr>"
    return f'<div class="wide"><table>{head}{"".join(lines)}</table></div>'


def plots(record):
    medians = record.get("medians", {})
    drawn = [
        ("Throughput by batch and length", "Training, seq_bn, two lanes on two threads, rows of equal length.", by_length(medians.get("ours.grid"))),
        ("Roofline", "Products of the trunk by rows of a lane, 1 to 512, and the whole step; two threads.", roofline(medians)),
        ("From one core to two", "Training on real pairs, examples a second; and a whole job from its first step on.", scaling(medians)),
        ("Memory by number of adapters", "PSS of coordinator and worker, all tasks in training at once.", memory(medians.get("ours.adapters"))),
    ]
    for title, words, svg in drawn:
        if svg:
            yield f'<figure><h3>{title}</h3><p class="quiet">{words}</p>{svg}</figure>'


def by_length(grid):
    if not grid:
        return ""
    batches, lengths = set(), set()
    for found in filter(None, (re.match(r"tokens(\d+)_batch(\d+)_", name) for name in grid)):
        lengths.add(int(found[1]))
        batches.add(int(found[2]))
    of = lambda length, batch: (length, grid[f"tokens{length}_batch{batch}_tokens_per_second"])
    lines = {batch: [of(length, batch) for length in sorted(lengths)] for batch in sorted(batches)}
    most = max(value for line in lines.values() for _, value in line)
    plot = Plot(Axis(min(lengths), max(lengths), log=True, ticks=sorted(lengths)), Axis(0, 1.1 * most), "tokens of a row", "tokens a second")
    for (batch, line), colour in zip(lines.items(), COLOURS):
        plot.line(line, colour, f"batch of {batch}")
    return plot.svg()


def roofline(medians):
    roof = medians.get("ours.roofline")
    if not roof:
        return ""
    found = (re.fullmatch(r"threads2_product(\d+)_gflops", name) for name in roof)
    rows = sorted(int(name[1]) for name in found if name)
    of = lambda row, figure: roof[f"threads2_product{row}_{figure}"]
    ours = [(of(row, "intensity"), of(row, "gflops")) for row in rows]
    library = [(of(row, "intensity"), of(row, "sgemm_gflops")) for row in rows]
    peak, bandwidth = roof["threads2_peak_gflops"], roof["threads2_bandwidth_gigabytes_per_second"]
    low, high = 0.3, 200
    plot = Plot(Axis(low, high, log=True), Axis(4, 1.5 * peak, log=True), "operations for each byte", "GFLOP/s")
    knee = peak / bandwidth
    first = max(low, 4.2 / bandwidth)
    roof_name = f"roof: {number(peak)} GFLOP/s, {number(bandwidth)} GB/s"
    plot.line([(first, first * bandwidth), (knee, peak), (high, peak)], "#444", roof_name, marks=False)
    plot.line(library, COLOURS[1], "libtorch's sgemm", dashed=True)
    plot.line(ours, COLOURS[0], "our products")
    steps = medians.get("ours.steps", {})
    of = lambda batch, figure: steps[f"batch{batch}_threads2_{figure}"]
    points = [(intensity(of(batch, "tokens_per_batch") / 2), of(batch, "useful_gflops")) for batch in (16, 64) if steps]
    if points:
        plot.points(points, COLOURS[2], "whole step on real pairs, useful arithmetic", 5)
    return plot.svg()


def intensity(tokens):
    """Operations for each byte of a layer's products; a lane's rows travel at most 512 tokens at a time."""
    rows = min(tokens, 512)
    products = [(384, 384)] * 4 + [(384, 1536), (1536, 384)]
    operations = sum(2 * rows * sums * columns for sums, columns in products)
    return operations / sum(4 * (rows * sums + sums * columns + rows * columns) for sums, columns in products)


def scaling(medians):
    steps = medians.get("ours.steps")
    if not steps:
        return ""
    groups = []
    for batch in (16, 64):
        one, two = (steps[f"batch{batch}_threads{threads}_examples_per_second"] for threads in (1, 2))
        groups.append((f"steps alone, batch of {batch}", [("one core", one, ""), ("two cores", two, f" · {two / one:.2f} ×")]))
    drawn = bars(groups, "examples/s")
    jobs = [medians.get(f"ours.{name}_core{'s' * (name == 'two')}", {}).get("seconds_from_first_step") for name in ("one", "two")]
    if all(jobs):
        two = ("two cores", jobs[1], f" · {jobs[0] / jobs[1]:.2f} ×")
        drawn += bars([("a job, evaluation and publishing included", [("one core", jobs[0], ""), two])], "s")
    return drawn


def memory(adapters):
    if not adapters:
        return ""
    counts = [1, 8, 32, 128]
    points = [(count, adapters[f"pss_mb_{count}"]) for count in counts]
    least = [(count, points[0][1] + (count - 1) * adapters["adapter_mb"]) for count in counts]
    plot = Plot(Axis(0, 128, ticks=counts), Axis(0, 1.1 * max(value for _, value in points + least)), "tasks in training", "MB")
    plot.line(least, COLOURS[4], "weights, gradients and moments alone", dashed=True, marks=False)
    plot.line(points, COLOURS[0], f"measured; one more takes {adapters['one_more_mb']:.1f} MB, its numbers are {adapters['adapter_mb']:.1f}")
    return plot.svg()


def pieces(record):
    if not record.get("pieces"):
        return ""
    lines = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=n>{number(median / 1e3)}</td><td class=n>{number(low / 1e3)} – {number(high / 1e3)}</td></tr>"
        for name, (median, low, high) in record["pieces"].items()
    )
    head = "<tr><th>piece</th><th class=n>median, µs</th><th class=n>95 % interval</th></tr>"
    return f"<h2>Pieces</h2><details><summary>Kernels and input, each alone, by criterion</summary><table>{head}{lines}</table></details>"


def figures(record):
    lines = []
    for need, samples in record["samples"].items():
        for name in samples[0] if samples else ():
            values = [sample[name] for sample in samples]
            ends = f"{number(min(values))} – {number(max(values))}" if len(values) > 1 else ""
            median = number(statistics.median(values))
            cells = f"<td>{need}</td><td>{html.escape(name)}</td><td class=n>{median}</td><td class=n>{ends}</td><td class=n>{len(values)}</td>"
            lines.append(f"<tr>{cells}</tr>")
    failures = record.get("failed", {}).items()
    failed = "".join(f"<p class=below>{html.escape(need)} failed: {html.escape(why[:300])}</p>" for need, why in failures)
    head = "<tr><th>measurement</th><th>figure</th><th class=n>median</th><th class=n>range</th><th class=n>runs</th></tr>"
    return f"<h2>Every figure</h2>{failed}<details><summary>{len(lines)} figures; raw samples are in record.json</summary><table>{head}{''.join(lines)}</table></details>"
