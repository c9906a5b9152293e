"""Which rows are measured: real texts in a folder, or what `make data` fetches."""
import json
import pathlib

# Name, whether it is a pair of texts, rows at most.
SUITE = [("trec", False, 0), ("cr", False, 0), ("mrpc", True, 0), ("sst2", False, 4000), ("snli", True, 0), ("tweet_emotion", False, 0)]
FETCHED = [
    ("question_type", False, 4000), ("sms_spam", False, 4000), ("movie_sentiment", False, 4000),
    ("tweet_sentiment", False, 4000), ("bbc_topic", False, 500),
]

# Rows that `BatchSplit` is measured on.
SPLIT_ROWS = 1600


class Task:
    def __init__(self, folder, name, pair, rows):
        self.name, self.pair, self.rows = name, pair, rows
        self.train, self.validation = (folder / name / f"{split}.parquet" for split in ("train", "validation"))
        self.columns = ["text_a", "text_b"] if pair else ["text"]

    def first(self, rows):
        """The task with so many training rows at most; 0 leaves them all."""
        fewer = Task(self.train.parent.parent, self.name, self.pair, self.rows)
        fewer.rows = min(filter(None, (rows, self.rows)), default=0)
        return fewer


class Data:
    """The suite, and the tasks that single figures are measured on."""

    def __init__(self, folder, fallback, rows):
        self.suite = tasks(folder, SUITE) if folder else []
        missing = [task.name for task in self.suite if not task.train.exists()]
        if folder and missing:
            names = ", ".join(name for name, *_ in SUITE)
            raise SystemExit(f"bench: {folder} has no train.parquet for {', '.join(missing)}; the suite needs {names}")
        self.is_suite = bool(self.suite)
        if self.is_suite:
            self.words = f"the suite's own texts in {folder}"
        else:
            self.suite = tasks(fallback, FETCHED)
            missing = [task.name for task in self.suite if not task.train.exists()]
            if missing:
                raise SystemExit(f"bench: {fallback} has no {', '.join(missing)}; `make data` fetches them, or name a folder with --data")
            self.words = "the sets of `make data`, not the suite's own: ratios are not those that the bars were set for"
        if rows:
            self.suite = [task.first(rows) for task in self.suite]
        by_name = {task.name: task for task in self.suite}
        pick = lambda *names: next(by_name[name] for name in names if name in by_name)
        self.middle = pick("cr", "movie_sentiment")
        self.short = pick("trec", "question_type")
        self.pairs = pick("snli", "tweet_sentiment")
        self.four = [pick("trec", "question_type"), pick("cr", "movie_sentiment"), pick("mrpc", "tweet_sentiment"), pick("snli", "sms_spam")]


def tasks(folder, names):
    return [Task(pathlib.Path(folder).resolve(), *name) for name in names]


def made_texts(folder, count):
    """A file of texts of 5 to 36 words: `BatchSplit` takes whole batches alone, and a data set rarely ends with one."""
    path = pathlib.Path(folder) / f"texts-{count}.jsonl"
    words = "the film was a slow and quiet story of seven people who never said what they had seen".split()
    texts = [" ".join(words[(row + word) % len(words)] for word in range(5 + row % 32)) for row in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
