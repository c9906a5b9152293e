"""The rows that must be reached, what each is measured by, and how its value follows from medians."""
import statistics


class Row:
    """`of` takes a function (measurement, figure) -> median and gives the value; bars are in the same unit.

    `least` may come without an `aim`.
    """

    def __init__(self, name, what, against, needs, of, least=None, aim=None, unit="×", lower=False):
        self.name, self.what, self.against, self.needs, self.of = name, what, against, needs, of
        self.least, self.aim, self.unit, self.lower = least, aim, unit, lower

    def value(self, samples):
        return self.of(lambda need, figure: statistics.median(sample[figure] for sample in samples[need]))

    def ends(self, samples):
        """The smallest and the largest value of a single run; runs are those that were taken in the same turn."""
        runs = range(min(len(samples[need]) for need in self.needs if samples.get(need)))
        values = [self.of(lambda need, figure, run=run: samples[need][run][figure]) for run in runs]
        return min(values), max(values)

    def reached(self, value):
        """"aim", "at least", "below", or nothing where there are no bars."""
        if self.least is None:
            return ""
        good = (lambda bar: value <= bar) if self.lower else (lambda bar: value >= bar)
        return "aim" if self.aim is not None and good(self.aim) else "at least" if good(self.least) else "below"

    def show(self, value):
        return "–" if value is None else f"{self.number(value)} {self.unit}"

    def number(self, value):
        return f"{100 * value:.0f}" if self.unit == "%" else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def ratio(over, below):
    return lambda median: median(*over) / median(*below)


def figure(measurement, name):
    return lambda median: median(measurement, name)


ROWS = [
    Row("suite", "suite, wall clock, start and evaluation included", "peer, longest in batch (its default), 2 threads",
        ["ours.suite", "peer.suite_longest"], ratio(("peer.suite_longest", "wall_s"), ("ours.suite", "wall_s")), 3.2, 4),
    Row("suite-group", "suite, wall clock", "peer, group_by_length",
        ["ours.suite", "peer.suite_group"], ratio(("peer.suite_group", "wall_s"), ("ours.suite", "wall_s")), 2, 2.5),
    Row("suite-max", "suite, wall clock", "peer, padding to 128",
        ["ours.suite", "peer.suite_max"], ratio(("peer.suite_max", "wall_s"), ("ours.suite", "wall_s")), 9, 12),
    Row("suite-score", "suite, mean accuracy on validation, points of a hundred above or below", "peer, longest in batch",
        ["ours.suite", "peer.suite_longest"], lambda median: 100 * (median("ours.suite", "mean_accuracy") - median("peer.suite_longest", "mean_accuracy")),
        unit="points"),
    Row("suite-input", "suite, largest share of a quarter second in which training waited for rows, behind the first of each task", "",
        ["ours.suite"], figure("ours.suite", "most_input_wait"), unit="%", lower=True),
    Row("suite-dropout", "suite with dropout on for both", "peer, longest in batch",
        ["ours.suite_with_dropout", "peer.suite_longest"], ratio(("peer.suite_longest", "wall_s"), ("ours.suite_with_dropout", "wall_s")), 3, 3.8),
    Row("fusion3", "fusion of 3 adapters, training", "peer, longest in batch",
        ["ours.fusion3", "peer.fusion3"], ratio(("ours.fusion3", "examples_per_second"), ("peer.fusion3", "examples_per_second")), 4, 5),
    Row("fusion8", "fusion of 8 adapters, training", "peer, longest in batch",
        ["ours.fusion8", "peer.fusion8"], ratio(("ours.fusion8", "examples_per_second"), ("peer.fusion8", "examples_per_second")), 6, 9),
    Row("kept", "first adapter at layer 3, one epoch, behind another seed's two", "nothing kept",
        ["ours.kept"], ratio(("ours.kept", "nothing_kept_s"), ("ours.kept", "filled_s"))),
    Row("lora", "LoRA, training", "peer, longest in batch",
        ["ours.lora", "peer.lora"], ratio(("ours.lora", "examples_per_second"), ("peer.lora", "examples_per_second"))),
    Row("adapter-drop", "AdapterDrop, none to five of the lowest layers left out in each update, training", "peer, longest in batch",
        ["ours.adapter_drop", "peer.adapter_drop"], ratio(("ours.adapter_drop", "examples_per_second"), ("peer.adapter_drop", "examples_per_second"))),
    Row("below", "first adapter at layer 3 of 6, second epoch on", "our own first epoch",
        ["ours.dropped"], ratio(("ours.dropped", "later_examples_per_second"), ("ours.dropped", "first_epoch_examples_per_second")), 1.8, 2.5),
    Row("parallel8", "inference, 8 adapters Parallel", "8 single passes of the peer",
        ["ours.predict", "peer.predict"],
        lambda median: (median("peer.predict", "eight_passes_seconds") / median("peer.predict", "rows"))
        * median("ours.predict", "parallel8_rows_per_second"), 3.5, 4.5),
    Row("split8", "inference, 8 adapters BatchSplit, two rows each, tokenising included", "peer",
        ["ours.predict", "peer.predict"], ratio(("ours.predict", "split8_rows_per_second"), ("peer.predict", "split8_rows_per_second"))),
    Row("single", "inference, one adapter, batches of 16, tokenising included", "peer",
        ["ours.predict", "peer.predict"], ratio(("ours.predict", "single_rows_per_second"), ("peer.predict", "one_pass_rows_per_second"))),
    Row("one-row", "inference, batch of one, tokens given, median time", "peer, 2 threads; ours 1",
        ["ours.single_rows", "peer.predict"], ratio(("peer.predict", "single_ms"), ("ours.single_rows", "median_ms"))),
    Row("sgemm16", "useful arithmetic / own sgemm rate, snli, batch 16, both cores", "",
        ["ours.steps"], figure("ours.steps", "batch16_threads2_share_of_sgemm"), 0.78, 0.9, "%"),
    Row("sgemm64", "useful arithmetic / own sgemm rate, snli, batch 64, both cores", "",
        ["ours.steps"], figure("ours.steps", "batch64_threads2_share_of_sgemm"), 0.82, 0.9, "%"),
    Row("cores", "two cores", "one core",
        ["ours.one_core", "ours.two_cores"], ratio(("ours.one_core", "seconds_from_first_step"), ("ours.two_cores", "seconds_from_first_step")), 1.85, 1.95),
    Row("memory", "peak memory, 4 tasks in training (PSS of all processes)", "peer's peak",
        ["ours.four_tasks", "peer.four_tasks"], ratio(("ours.four_tasks", "pss_mb"), ("peer.four_tasks", "pss_mb")), 1 / 3, 1 / 4, "%", lower=True),
    Row("adapter-memory", "memory for one more adapter in training", "its weights, gradient and two moments",
        ["ours.adapters"], ratio(("ours.adapters", "one_more_mb"), ("ours.adapters", "adapter_mb")), 1.5, 1.2, lower=True),
    Row("start", "command to first completed step, tokens cached, disk warm", "peer: see the record",
        ["ours.start", "peer.start"], figure("ours.start", "first_step_s"), 1.5, 0.8, "s", lower=True),
    Row("input", "Parquet, tokeniser and packer alone, rows a second", "the tokenizer library alone",
        ["ours.input"], ratio(("ours.input", "input_rows_per_second"), ("ours.input", "tokenizer_rows_per_second"))),
]

# What a GPU is measured by, with what must be reached against the library on the same one, at the same batch.
ON_GPU = {"suite": 2, "suite-group": 2, "fusion3": 2, "fusion8": 2, "lora": 2, "adapter-drop": 2, "parallel8": 2, "split8": 2, "single": 2}


def rows_on(device):
    if device == "cpu":
        return ROWS
    return [Row(row.name, row.what, row.against, row.needs, row.of, ON_GPU[row.name], unit=row.unit) for row in ROWS if row.name in ON_GPU]


# Figures of the page that no row needs; measured once.
PLOTS = ["ours.grid", "ours.roofline"]


