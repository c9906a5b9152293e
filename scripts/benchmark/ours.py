"""What is measured of Graftwork: each function runs real commands once and returns figures by name."""
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import time

from . import watch
from .data import SPLIT_ROWS, made_texts

# Training of the suite, the same for the peer.
BATCH, RATE = 16, 1e-3
# Rows of measurements that need only a steady pace.
STEADY_ROWS = 1600
# Rows of the measurement of a start.
START_ROWS = 1000
# So many of the lowest layers lose their adapters at most in training with AdapterDrop.
MOST_DROPPED = 5


class Ours:
    def __init__(self, options, data, scratch):
        self.programs, self.base, self.data, self.scratch = options.programs, options.base, data, pathlib.Path(scratch)
        self.device, self.precision = options.device, options.precision
        # Where eight adapters are published that predictions can read.
        self.hub = None

    # -- the suite ------------------------------------------------------------------------------------------------

    def suite(self):
        return self.run_suite({})

    def suite_with_dropout(self):
        return self.run_suite({"base_model_dropout": True})

    def run_suite(self, training):
        job = self.job([section(task.name, task) for task in self.data.suite], {"epochs": 1, **training})
        done = self.run(job)
        rows = sum(stage["rows"][0] for stage in done.stages)
        figures = {f"accuracy_{stage['name']}": score(stage) for stage in done.stages}
        figures["mean_accuracy"] = statistics.mean(figures.values())
        # The largest share of the time between two reports in which training waited for rows. Those of a stage's first update
        # are read when it starts, so they stand apart.
        waits = {}
        for event in done.events:
            if event["event"] == "step":
                waits.setdefault(event["stage"], []).append(event["input_wait"])
        figures["most_input_wait"] = max((wait for stage in waits.values() for wait in stage[1:]), default=0.0)
        figures["most_first_input_wait"] = max((stage[0] for stage in waits.values()), default=0.0)
        return {"wall_s": done.seconds, "first_step_s": done.first_step, "rows_per_second": rows / done.seconds, **figures}

    # -- paces of single stages -----------------------------------------------------------------------------------

    def fusion3(self):
        return self.fusion(3)

    def fusion8(self):
        return self.fusion(8)

    def fusion(self, count):
        task = self.data.middle.first(STEADY_ROWS)
        names = [f"part{number}" for number in range(count)]
        # Stages of one recipe would be trained once.
        parts = [section(name, task, f"steps = 1, seed = {seed}") for seed, name in enumerate(names)]
        fused = f'[fusions.fused]\nadapters = {json.dumps(names)}\ntask = "part0"\n'
        done = self.run(self.job([*parts, fused], {"epochs": 1}))
        if count == 8:
            self.hub = done.folder / "hub/bench"
        return {"examples_per_second": done.pace("fused")}

    def dropped(self):
        """The first adapter in layer 3: what lies below it is computed in the first epoch alone."""
        task = self.data.middle.first(STEADY_ROWS)
        training = {"epochs": 3, "evaluate_every": 1000000}
        done = self.run(self.job([section("dropped", task)], training, "leave_out = [0, 1, 2]"))
        return {"first_epoch_examples_per_second": done.pace("dropped", 0, 1), "later_examples_per_second": done.pace("dropped", 1, 3)}

    def kept(self):
        """A job as `dropped`'s, of one epoch: with nothing kept, and behind another seed's of two, which keeps what returns."""
        task = self.data.middle.first(STEADY_ROWS)
        job = lambda seed, epochs: self.job([section("kept", task, f"seed = {seed}")], {"epochs": epochs}, "leave_out = [0, 1, 2]")
        nothing = self.run(job(1, 1), environment={"GRAFTWORK_KEEP_GIB": "0"})
        folder = self.fresh()
        self.run(job(2, 2), folder=folder)
        filled = self.run(job(1, 1), folder=folder)
        runs = {"nothing_kept": nothing, "filled": filled}
        seconds = {f"{name}_s": run.seconds for name, run in runs.items()}
        return {**seconds, **{f"{name}_first_step_s": run.first_step for name, run in runs.items()}}

    def lora(self):
        done = self.run(self.job([section("lora", self.data.middle.first(STEADY_ROWS))], {"epochs": 1}, method="lora"))
        return {"examples_per_second": done.pace("lora")}

    def adapter_drop(self):
        """AdapterDrop: each update leaves out the adapters of none to five of the lowest layers."""
        training = {"epochs": 1, "adapter_drop.up_to": MOST_DROPPED}
        return {"examples_per_second": self.run(self.job([section("drop", self.data.middle.first(STEADY_ROWS))], training)).pace("drop")}

    def one_core(self):
        return self.cores({0}, 1)

    def two_cores(self):
        return self.cores({0, 1}, 2)

    def cores(self, cpus, threads):
        tasks = [task.first(STEADY_ROWS) for task in (self.data.middle, self.data.pairs)]
        done = self.run(self.job([section(task.name, task) for task in tasks], {"epochs": 1}, threads=threads), cpus=cpus)
        return {"seconds_from_first_step": done.seconds - done.first_step}

    def start(self):
        """A command like one that was given before: tokens and all else that is kept on disk are there.

        Updates are reported a quarter of a second apart, so the rows must last longer than that: the first report of fewer
        is the last one, behind the evaluation.
        """
        job = self.job([section("start", self.data.short.first(START_ROWS))], {"epochs": 1})
        folder = self.fresh()
        self.run(job, folder=folder)
        return {"first_step_s": self.run(job, folder=folder, options=["--again"]).first_step}

    # -- prediction -----------------------------------------------------------------------------------------------

    def predict(self):
        """Whole commands on a file, less the same command on one text."""
        if self.hub is None:
            self.fusion(8)
        names = [f"part{number}" for number in range(8)]
        figures = {}
        for figure, adapters, compose in (
            ("single", names[:1], None),
            ("parallel8", names, f"Parallel[{', '.join(names)}]"),
            ("split8", names, f"BatchSplit[{', '.join(f'{name}:2' for name in names)}]"),
        ):
            command = [self.programs / "graftwork", "predict", "--base-model", self.base, "--output", "jsonl", "--max-length", "128"]
            command += ["--device", self.device, "--precision", self.precision]
            for name in adapters:
                command += ["--adapter", f"{name}={self.hub / name}"]
            command += ["--compose", compose] if compose else []
            columns = self.data.pairs.columns
            file = ["--file", self.data.pairs.validation, "--column", columns[0], *(["--pair-column", columns[1]] if columns[1:] else [])]
            text = ["--text", "A short text."]
            if figure == "split8":
                file = ["--file", made_texts(self.scratch, SPLIT_ROWS), "--column", "text"]
                text = ["--file", made_texts(self.scratch, BATCH), "--column", "text"]
            whole = watch.run(command + file)
            alone = watch.run(command + text)
            done = whole["output"].count("\n") - alone["output"].count("\n")
            figures[f"{figure}_rows"] = done
            figures[f"{figure}_seconds"] = whole["seconds"] - alone["seconds"]
            figures[f"{figure}_rows_per_second"] = done / figures[f"{figure}_seconds"]
        return figures

    # -- the step, kernels and input, by the engine's examples ----------------------------------------------------

    def steps(self):
        figures = {}
        for line in self.step_time("seq_bn", 3, self.data.pairs.train, ["--batches", "16,64", "--cuts", "1x1,2x2"]):
            name = f"batch{line['batch']}_threads{line['threads']}"
            for figure in ("share_of_sgemm", "useful_gflops", "sgemm_gflops", "examples_per_second", "tokens_per_second", "tokens_per_batch"):
                figures[f"{name}_{figure}"] = line[figure]
        return figures

    def single_rows(self):
        """Passes over single rows whose tokens are in memory, on one thread."""
        line, = self.step_time("seq_bn+predict", 2, self.data.pairs.validation, ["--batches", "1", "--cuts", "1x1"])
        return {"median_ms": line["step_ms_median"], "90_percent_ms": line["step_ms_90"]}

    def step_time(self, preset, seconds, file, options):
        texts = ["--texts", file, "--columns", ",".join(self.data.pairs.columns)]
        return self.example("step_time", [self.base, preset, seconds, *texts, *options, "--json"])

    def grid(self):
        options = ["--tokens", "10,20,40,80,120", "--batches", "4,16,64", "--cuts", "2x2", "--json"]
        lines = self.example("step_time", [self.base, "seq_bn", 1, *options])
        names = ("examples_per_second", "tokens_per_second", "useful_gflops")
        return {f"tokens{line['rows']}_batch{line['batch']}_{name}": line[name] for line in lines for name in names}

    def roofline(self):
        figures = {}
        for line in self.example("roofline", [0.4]):
            name = f"threads{line['threads']}_{line['kind']}{line.get('rows', '')}"
            figures.update({f"{name}_{figure}": value for figure, value in line.items() if isinstance(value, float)})
        return figures

    def input(self):
        lines = self.example("input_rate", [self.base, self.data.pairs.train, ",".join(self.data.pairs.columns), 3])
        return {f"{line['kind']}_rows_per_second": line["rows_per_second"] for line in lines}

    def example(self, name, arguments):
        environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        output = watch.run([self.programs / "examples" / name, *arguments], environment)["output"]
        return [json.loads(line) for line in output.splitlines()]

    # -- memory ---------------------------------------------------------------------------------------------------

    def four_tasks(self):
        """Four tasks in training at once on two threads, from the submission to the end of the job."""
        tasks = [section(task.name, task.first(800)) for task in self.data.four]
        with self.cluster(slots=4) as cluster:
            job = cluster.submit(self.job(tasks, {"epochs": 1}))
            together = []

            def done():
                stages = cluster.stages(job)
                together.append(sum(bool(stage.get("curve")) and not stage.get("result") for stage in stages))
                return all(stage.get("result") for stage in stages)

            sampler = watch.Sampler(cluster.pss_mb)
            try:
                wait(done, 900, "the end of four tasks", cluster.folder)
            finally:
                sampler.stop()
        if max(together) < 4:
            raise watch.Failed(f"only {max(together)} tasks trained at the same time")
        return {"pss_mb": max(sampler.samples)}

    def adapters(self):
        """One worker with so many tasks in training, under a coordinator; the sum over both."""
        figures = {}
        for count in (1, 8, 32, 128):
            figures[f"pss_mb_{count}"], numbers = self.in_training(count)
        # Weights, gradient and two moments, of four bytes each.
        figures["adapter_mb"] = 16 * numbers / (1 << 20)
        figures["one_more_mb"] = (figures["pss_mb_128"] - figures["pss_mb_8"]) / 120
        return figures

    def in_training(self, count):
        task = self.data.short.first(320)
        never = {"epochs": 100000, "evaluate_every": 1000000, "checkpoint_every": 1000000}
        with self.cluster(slots=count) as cluster:
            job = cluster.submit(self.job([section(f"task{number}", task, f"seed = {number}") for number in range(count)], never))
            trained = lambda: sum(bool(stage.get("curve")) for stage in cluster.stages(job)) == count
            wait(trained, 60 + 3 * count, f"{count} tasks in training", cluster.folder)
            sampler = watch.Sampler(cluster.pss_mb)
            time.sleep(2)
            sampler.stop()
            return max(sampler.samples), cluster.stages(job)[0]["trained_parameters"]

    def cluster(self, slots):
        return Cluster(self.programs / "graftwork", self.fresh(), slots)

    # -- jobs -----------------------------------------------------------------------------------------------------

    def job(self, sections, training, adapter="", threads=2, method="seq_bn"):
        training = {**training, **({"precision": self.precision} if self.precision != "fp32" else {})}
        values = "\n".join(f"{key} = {json.dumps(value)}" for key, value in training.items())
        return (
            f'name = "bench"\n[base_model]\nlocation = "{self.base}"\n[publish]\nhub = "hub"\norganisation = "bench"\n'
            f'[resources]\nthreads = {threads}\ndevice = "{self.device}"\n[defaults.adapter]\nmethod = "{method}"\n{adapter}\n'
            f"[defaults.training]\nlearning_rate = {RATE}\nbatch_size = {BATCH}\n{values}\n" + "\n".join(sections)
        )

    def fresh(self):
        """An empty folder; what earlier measurements left is gone, but for the hub that predictions read."""
        for old in self.scratch.glob("run-*"):
            if self.hub is None or old not in self.hub.parents:
                shutil.rmtree(old)
        number = max((int(old.name[4:]) for old in self.scratch.glob("run-*")), default=0) + 1
        folder = self.scratch / f"run-{number}"
        folder.mkdir()
        return folder

    def run(self, job, folder=None, cpus=None, options=(), environment=None):
        """`graftwork run`, with a state and a cache of its own."""
        folder = folder or self.fresh()
        (folder / "job.toml").write_text(job)
        events = []

        def hear(line, seconds):
            if line.startswith("{"):
                events.append({**json.loads(line), "seconds": seconds})

        command = [self.programs / "graftwork", "run", "job.toml", "--state", folder / "state", "--progress", "json", *options]
        environment = {"XDG_CACHE_HOME": str(folder / "cache"), **(environment or {})}
        done = watch.run(command, environment, cpus, hear, folder=folder)
        report = max(folder.glob("state/*/report.json"), key=os.path.getmtime)
        return Done(folder, events, done, stages_of(json.loads(report.read_text())))


class Cluster:
    """A coordinator and one worker of two threads, in a folder of their own; both are killed at the end."""

    def __init__(self, program, folder, slots):
        self.program, self.folder = program, folder
        state, cache = folder / "state", folder / "cache"
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "GRAFTWORK_COORDINATOR": f"unix://{state}/door/socket"}
        self.processes, self.log = [], open(folder / "log", "w")
        try:
            self.start("coordinator", "--state", state)
            wait(lambda: (state / "door/socket").exists(), 30, "the coordinator's socket", folder)
            self.start("worker", "--coordinator", self.environment["GRAFTWORK_COORDINATOR"], "--threads", 2, "--slots", slots)
        except watch.Failed:
            self.end()
            raise

    def start(self, *words):
        command = [str(word) for word in (self.program, *words)]
        self.processes.append(subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=self.log, stderr=self.log))

    def ask(self, *words):
        return watch.run([self.program, *words], self.environment, folder=self.folder)["output"]

    def submit(self, job):
        (self.folder / "job.toml").write_text(job)
        return self.ask("submit", "--shared-root", "/", "job.toml").split()[0]

    def stages(self, job):
        return stages_of(json.loads(self.ask("status", job, "--output", "json")))

    def pss_mb(self):
        return watch.pss_mb([process.pid for process in self.processes])

    def end(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGKILL)
            process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


class Done:
    """A job that has run."""

    def __init__(self, folder, events, done, stages):
        self.folder, self.events, self.stages = folder, events, stages
        self.seconds = done["seconds"]
        self.first_step = next(event["seconds"] for event in events if event["event"] == "step")

    def pace(self, stage, since=0.0, until=float("inf")):
        """Examples a second between the first and the last report of these epochs before any evaluation."""
        steps = []
        for event in self.events:
            if event["stage"] == stage and event["event"] == "evaluated":
                break
            if event["stage"] == stage and event["event"] == "step" and since < event["epoch"] <= until:
                steps.append(event)
        if len(steps) < 3:
            raise watch.Failed(f"{stage} took only {len(steps)} reported steps; give it more rows")
        first, last = steps[0], steps[-1]
        return BATCH * (last["step"] - first["step"]) / (last["at_ms"] - first["at_ms"]) * 1e3


def section(name, task, training=""):
    text = json.dumps(task.columns) if task.pair else '"text"'
    rows = f"rows = {task.rows}\n" if task.rows else ""
    own = f"training = {{ {training} }}\n" if training else ""
    return (
        f'[tasks.{name}]\ntrain = "{task.train}"\nvalidation = "{task.validation}"\ntext = {text}\nlabel = "label"\n'
        f'head = "classification"\n{rows}{own}'
    )


def stages_of(view):
    return view.get("stages") or view["job"]["stages"]


def score(stage):
    metrics = stage["result"]["scores"]["validation"]["metrics"]
    return metrics["accuracy"]


def wait(holds, seconds, what, folder):
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            log = (folder / "log").read_text()[-2000:]
            raise watch.Failed(f"{what} did not come within {seconds} s:\n{log}")
        time.sleep(0.3)
