"""What is measured of AdapterHub's library: `program.py` in a Python of its own, once for each measurement."""
import json
import pathlib
import statistics
import time

from . import watch
from .data import SPLIT_ROWS, made_texts
from .ours import BATCH, MOST_DROPPED, RATE, START_ROWS, STEADY_ROWS


class Peer:
    def __init__(self, options, data, scratch):
        self.python, self.base, self.data, self.scratch = options.peer_python, options.base, data, scratch
        self.device, self.precision = options.device, options.precision

    def suite_longest(self):
        return self.suite("longest")

    def suite_group(self):
        return self.suite("group")

    def suite_max(self):
        return self.suite("max")

    def suite(self, padding):
        done, events = self.train(self.data.suite, ["--padding", padding])
        figures = {f"accuracy_{event['name']}": event["accuracy"] for event in events}
        figures["mean_accuracy"] = statistics.mean(figures.values())
        rows = sum(event["rows"] for event in events)
        return {"wall_s": done["seconds"], "first_step_s": done["first_step"], "rows_per_second": rows / done["seconds"], **figures}

    def fusion3(self):
        return self.fusion(3)

    def fusion8(self):
        return self.fusion(8)

    def fusion(self, count):
        _, events = self.train([self.data.middle.first(STEADY_ROWS)], ["--fuse", str(count)])
        return {"examples_per_second": events[0]["examples_per_second"]}

    def lora(self):
        _, events = self.train([self.data.middle.first(STEADY_ROWS)], ["--method", "lora"])
        return {"examples_per_second": events[0]["examples_per_second"]}

    def adapter_drop(self):
        _, events = self.train([self.data.middle.first(STEADY_ROWS)], ["--drop", str(MOST_DROPPED)])
        return {"examples_per_second": events[0]["examples_per_second"]}

    def predict(self):
        done = self.run("predict", [self.data.pairs], ["--split", made_texts(self.scratch, SPLIT_ROWS)])
        event = next(event for event in done["events"] if event["event"] == "predicted")
        return {
            "rows": event["rows"], "eight_passes_seconds": event["seconds"],
            "one_pass_rows_per_second": event["rows"] / event["first"], "single_ms": event["single_ms"],
            "split8_rows_per_second": event["split_rows"] / event["split"],
        }

    def start(self):
        done, _ = self.train([self.data.short.first(START_ROWS)], [])
        return {"first_step_s": done["first_step"]}

    def four_tasks(self):
        done, _ = self.train([task.first(800) for task in self.data.four], [], memory=True)
        return {"pss_mb": done["pss_mb"]}

    def train(self, tasks, options, memory=False):
        done = self.run("train", tasks, options, memory)
        done["first_step"] = next(event["at"] for event in done["events"] if event["event"] == "first_step") - done["began"]
        return done, [event for event in done["events"] if event["event"] == "trained"]

    def run(self, what, tasks, options, memory=False):
        tasks = [
            {"name": task.name, "train": str(task.train), "validation": str(task.validation), "columns": task.columns, "rows": task.rows}
            for task in tasks
        ]
        program = pathlib.Path(__file__).with_name("program.py")
        command = [self.python, program, what, "--base", self.base, "--tasks", json.dumps(tasks), "--scratch", f"{self.scratch}/peer"]
        command += ["--batch", str(BATCH), "--learning-rate", str(RATE), "--device", self.device, "--precision", self.precision, *options]
        began = time.time()
        # Its threads wait as the library's own defaults say.
        done = watch.run(command, {"OMP_WAIT_POLICY": None, "OMP_NUM_THREADS": None}, memory=memory)
        events = [json.loads(line) for line in done["output"].splitlines() if line.startswith('{"event"')]
        return {**done, "began": began, "events": events}
