"""What is measured of AdapterHub's library, in its documented way. Runs in the library's own Python (scripts/peer.sh).

    program.py train   --base DIR --tasks JSON --padding longest|group|max [--method seq_bn] [--dropout default|off] [--fuse N | --drop N]
    program.py predict --base DIR --tasks JSON [--passes 8] [--split FILE]

Prints one line of JSON for each event, with the time of day, so that whoever started it can count from the command on.
JSON is a list of {"name", "train", "validation", "columns", "rows"}; rows 0 takes all. Labels are numbers or names.
"""
import argparse
import json
import os
import random
import statistics
import time
import warnings

warnings.filterwarnings("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import pyarrow.parquet as parquet
import torch
from adapters import AdapterTrainer, AutoAdapterModel
from adapters.composition import BatchSplit, Fuse
from transformers import AutoTokenizer, DataCollatorWithPadding, TrainerCallback, TrainingArguments, logging, set_seed

logging.set_verbosity_error()
LONGEST = 128


def say(event, **facts):
    print(json.dumps({"event": event, "at": time.time(), **facts}), flush=True)


def rows_of(task, tokenizer, padding):
    """The rows to train on and those held out, with labels numbered in sorted order, and how many labels there are."""
    train, validation = (parquet.read_table(task[split]) for split in ("train", "validation"))
    tables = [train.slice(0, task["rows"]) if task["rows"] else train, validation]
    labels = sorted({label for table in tables for label in table["label"].to_pylist()})
    numbers = {label: number for number, label in enumerate(labels)}

    def rows(table):
        texts = [table[name].to_pylist() for name in task["columns"]]
        encoded = tokenizer(*texts, truncation=True, max_length=LONGEST, padding="max_length" if padding == "max" else False)
        return datasets.Dataset.from_dict({**encoded, "labels": [numbers[label] for label in table["label"].to_pylist()]})

    return *map(rows, tables), len(labels)


class Steps(TrainerCallback):
    """The times of the first and the last update."""

    def __init__(self):
        self.first = self.last = None
        self.count = 0

    def on_step_end(self, *_, **__):
        self.last = time.perf_counter()
        self.count += 1
        if self.first is None:
            self.first = self.last
            say("first_step")


class Drop(TrainerCallback):
    """AdapterDrop: each step leaves out the adapters of none to `most` of the lowest layers."""

    def __init__(self, name, most):
        self.name, self.most = name, most

    def on_step_begin(self, *_, model, **__):
        model.set_active_adapters(self.name, skip_layers=list(range(random.randint(0, self.most))))

    def on_train_end(self, *_, model, **__):
        model.set_active_adapters(self.name)


def fit(model, name, rows, held_out, tokenizer, options, callbacks):
    arguments = TrainingArguments(
        output_dir=options.scratch, learning_rate=options.learning_rate, num_train_epochs=1,
        per_device_train_batch_size=options.batch, per_device_eval_batch_size=64, group_by_length=options.padding == "group",
        report_to=[], save_strategy="no", logging_steps=10**6, disable_tqdm=True, use_cpu=options.device == "cpu", seed=17, label_names=["labels"],
        bf16=options.precision == "bf16", fp16=options.precision == "fp16",
    )
    collator = None if options.padding == "max" else DataCollatorWithPadding(tokenizer)
    steps = Steps()
    trainer = AdapterTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[steps, *callbacks])
    trainer.train()
    answers = trainer.predict(held_out)
    logits = answers.predictions[0] if isinstance(answers.predictions, tuple) else answers.predictions
    accuracy = float((logits.argmax(-1) == answers.label_ids).mean())
    pace = options.batch * (steps.count - 1) / (steps.last - steps.first) if steps.count > 1 else None
    say("trained", name=name, rows=len(rows), examples_per_second=pace, accuracy=accuracy)


def train(options, tasks):
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if options.dropout == "off" else {}
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    model = AutoAdapterModel.from_pretrained(options.base, **dropout)
    for task in tasks:
        name = task["name"]
        rows, held_out, labels = rows_of(task, tokenizer, options.padding)
        if options.fuse:
            # The speed of a fusion does not depend on what its adapters have learnt.
            parts = Fuse(*(f"part{number}" for number in range(options.fuse)))
            for part in parts:
                model.add_adapter(part, config="seq_bn")
            model.add_adapter_fusion(parts)
            model.add_classification_head(name, num_labels=labels)
            model.train_adapter_fusion(parts)
            model.active_head = name
        else:
            model.add_adapter(name, config=options.method)
            model.add_classification_head(name, num_labels=labels)
            model.train_adapter(name)
        callbacks = [Drop(name, options.drop)] if options.drop else []
        fit(model, name, rows, held_out, tokenizer, options, callbacks)


def predict(options, tasks):
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    model = AutoAdapterModel.from_pretrained(options.base)
    names = [f"part{number}" for number in range(options.passes)]
    for name in names:
        model.add_adapter(name, config="seq_bn")
        model.add_classification_head(name, num_labels=3)
    model.to(options.device).eval()
    task, = tasks
    table = parquet.read_table(task["validation"])
    texts = list(zip(*(table[name].to_pylist() for name in task["columns"])))

    def batches(size, rows):
        for first in range(0, len(rows), size):
            some = rows[first:first + size]
            yield tokenizer(*map(list, zip(*some)), truncation=True, max_length=LONGEST, padding=True, return_tensors="pt").to(options.device)

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.precision)
    with torch.inference_mode(), torch.autocast(options.device, kind, enabled=kind is not None):
        def go(setup, batches):
            """Seconds of the whole pass and of its middle batch; what a generator does for its batches is in them.

            Heads are those with the names of the adapters.
            """
            model.set_active_adapters(setup)
            times = [time.perf_counter()]
            for batch in batches:
                # Answers are wanted here, as of the other program.
                model(**batch).logits.cpu()
                times.append(time.perf_counter())
            return times[-1] - times[0], statistics.median(after - before for before, after in zip(times, times[1:]))

        go(names[0], batches(options.batch, texts[:64]))
        passes = [go(name, batches(options.batch, texts))[0] for name in names]
        # Of single rows our program is given tokens: these are encoded before the clock starts.
        _, single = go(names[0], list(batches(1, texts[:200])))
        split = {}
        if options.split:
            made = [(json.loads(line)["text"],) for line in open(options.split)]
            parts = BatchSplit(*names, batch_sizes=[options.batch // len(names)] * len(names))
            go(parts, batches(options.batch, made[:64]))
            split = {"split_rows": len(made), "split": go(parts, batches(options.batch, made))[0]}
    say("predicted", rows=len(texts), seconds=sum(passes), first=passes[0], single_ms=1e3 * single, **split)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "predict"))
    parser.add_argument("--base", required=True)
    parser.add_argument("--tasks", type=json.loads, required=True)
    parser.add_argument("--padding", choices=("longest", "group", "max"), default="longest")
    parser.add_argument("--dropout", choices=("default", "off"), default="default")
    parser.add_argument("--method", default="seq_bn")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--fuse", type=int, default=0)
    kind.add_argument("--drop", type=int, default=0)
    parser.add_argument("--split", help="file of texts, one line of JSON each, for a BatchSplit over all adapters")
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", default="peer-scratch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_seed(17)
    {"train": train, "predict": predict}[options.what](options, options.tasks)


if __name__ == "__main__":
    main()
