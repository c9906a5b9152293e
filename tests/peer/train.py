"""Trains one adapter a task with AdapterHub's `adapters` in its documented way; prints a JSON line for each task.

    python train.py --base FOLDER --data FOLDER --tasks trec cr [--seeds 1 2] [--rows N] [--epochs 2] [--padding group]

FOLDER/<task>/{train,validation}.parquet hold `text` or `text_a`, `text_b`, and `label`, a number or a name.
"""
import argparse
import json
import os
import time
import warnings

warnings.filterwarnings("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import pyarrow.parquet as parquet
import torch
from adapters import AdapterTrainer, AutoAdapterModel
from transformers import AutoTokenizer, DataCollatorWithPadding, TrainingArguments, set_seed, logging

logging.set_verbosity_error()


def rows_of(task, tokenizer, options):
    """The rows to train on and those held out, with labels numbered in sorted order, and how many labels there are."""
    folder = os.path.join(options.data, task)
    train, validation = (parquet.read_table(os.path.join(folder, f"{split}.parquet")) for split in ("train", "validation"))
    tables = [train.slice(0, options.rows) if options.rows else train, validation]
    labels = sorted({label for table in tables for label in table["label"].to_pylist()})
    numbers = {label: number for number, label in enumerate(labels)}

    def rows(table):
        names = ("text_a", "text_b") if "text_a" in table.column_names else ("text",)
        encoded = tokenizer(*(table[name].to_pylist() for name in names), truncation=True, max_length=options.max_length)
        return datasets.Dataset.from_dict({**encoded, "labels": [numbers[label] for label in table["label"].to_pylist()]})

    return *map(rows, tables), len(labels)


def train(task, seed, tokenizer, options):
    set_seed(seed)
    dropout = {} if options.dropout else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoAdapterModel.from_pretrained(options.base, **dropout)
    rows, held_out, labels = rows_of(task, tokenizer, options)
    model.add_adapter(task, config=options.method)
    model.add_classification_head(task, num_labels=labels)
    model.train_adapter(task)
    arguments = TrainingArguments(
        output_dir=options.scratch, learning_rate=options.learning_rate, num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch, per_device_eval_batch_size=64, group_by_length=options.padding == "group",
        report_to=[], save_strategy="no", logging_steps=10**6, disable_tqdm=True, use_cpu=True, seed=seed,
        label_names=["labels"],
    )
    trainer = AdapterTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    answers = trainer.predict(held_out)
    logits = answers.predictions[0] if isinstance(answers.predictions, tuple) else answers.predictions
    accuracy = float((logits.argmax(-1) == answers.label_ids).mean())
    print(json.dumps({"task": task, "seed": seed, "accuracy": accuracy, "examples_per_second": len(rows) * options.epochs / seconds}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[17])
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--method", default="seq_bn")
    parser.add_argument("--padding", choices=("longest", "group"), default="longest")
    parser.add_argument("--dropout", action="store_true", help="the base model's own dropout is on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", default="peer-scratch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    for task in options.tasks:
        for seed in options.seeds:
            train(task, seed, tokenizer, options)


if __name__ == "__main__":
    main()
