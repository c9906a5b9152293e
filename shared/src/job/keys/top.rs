//! The keys at the top of a job file, and the tables that every job has.

use super::{
    Key,
    Missing::{Means, Required, Value},
    Section,
    Shape::{Choice, Duration, Either, Name, Named, Place, Table, Text, Variable, Whole},
    adapter::ADAPTER,
    fusion::{FUSION, FUSION_LAYER},
    nightly::NIGHTLY,
    task::{DEFAULT_HEAD, TASK},
    training::TRAINING,
};
use crate::job::{MOST_THREADS, MOST_WORKERS};

/// Schemes of addresses where a base model may lie.
const MODEL_SCHEMES: &[&str] = &["hf", "s3", "gs", "http", "https"];

pub(crate) static TOP: Section = Section {
    name: "job",
    places: &[""],
    about: "A job trains one adapter for each task on one frozen base model, then the fusions, and publishes them all.",
    keys: &[
        Key::new("name", Text, Value("\"job\""), "\"quickstart\"", "Name of the job, for people.").undigested(),
        Key::new("owner", Text, Value("\"local\""), "\"nlp-team\"", "Who the job's use of machines is counted for.")
            .undigested(),
        Key::new(
            "priority",
            Whole(-1000, 1000),
            Value("0"),
            "5",
            "Jobs of a higher number go first, and where no place is free take that of running work of a lower number, which \
             checkpoints and goes on later.",
        )
        .undigested(),
        Key::new(
            "base_model",
            Table(&BASE_MODEL),
            Required,
            "{ location = \"models/roberta\" }",
            "The frozen base model.",
        ),
        Key::table("publish", &PUBLISH, "Where results go."),
        Key::table("resources", &RESOURCES, "What the job asks of machines.").undigested(),
        Key::table("defaults", &DEFAULTS, "Settings that every task and fusion inherits unless it has its own."),
        Key::new(
            "tasks",
            Named(&TASK),
            Required,
            "{ more = { train = \"b.parquet\", validation = \"c.parquet\" } }",
            "The tasks by name; each trains one adapter and one head.",
        ),
        Key::new(
            "fusions",
            Named(&FUSION),
            Means("no fusions"),
            "{ both = { adapters = [\"spam\", \"tone\"], task = \"spam\" } }",
            "The fusions by name; tasks and fusions share one set of names.",
        ),
        Key::table("nightly", &NIGHTLY, "How nights of `graftwork nightly` are compared.").undigested(),
    ],
    exclusive: &[],
};

static BASE_MODEL: Section = Section {
    name: "base_model",
    places: &["base_model"],
    about: "The frozen base model: BERT or RoBERTa, with its `config.json`, safetensors weights and `tokenizer.json`. \
            Its bytes never change.",
    keys: &[
        Key::new(
            "location",
            Place(MODEL_SCHEMES),
            Required,
            "\"hf://sentence-transformers/all-MiniLM-L6-v2@main\"",
            "A folder, `hf://ORGANISATION/NAME@REVISION`, or an object-store URL.",
        ),
        Key::new(
            "credentials",
            Variable,
            Means("no credentials"),
            "\"HF_TOKEN\"",
            "Name of the environment variable on the worker that holds the token for it; never the token itself.",
        ),
    ],
    exclusive: &[],
};

static PUBLISH: Section = Section {
    name: "publish",
    places: &["publish"],
    about: "Where results go. Each adapter and each fusion becomes `ORGANISATION/NAME` in the hub, all or nothing.",
    keys: &[
        Key::new("hub", Place(&[]), Value("\"hub\""), "\"../out/hub\"", "The hub folder; made when it does not exist."),
        Key::new("organisation", Name, Value("\"local\""), "\"nlp\"", "The first part of every published name."),
        Key::new(
            "license",
            Text,
            Means("no licence on the cards"),
            "\"apache-2.0\"",
            "SPDX identifier of the licence that is put on the cards.",
        ),
    ],
    exclusive: &[],
};

static RESOURCES: Section = Section {
    name: "resources",
    places: &["resources"],
    about: "What the job asks of machines. None of it changes a published byte.",
    keys: &[
        Key::new(
            "workers",
            Whole(1, MOST_WORKERS as i64),
            Value("1"),
            "2",
            "Worker processes that `graftwork run` starts on this machine.",
        )
        .undigested(),
        Key::new(
            "threads",
            Either(&[Choice(&["all"]), Whole(1, MOST_THREADS as i64)]),
            Value("\"all\""),
            "2",
            "Trainer threads of each worker; `all` takes one for each core.",
        )
        .undigested(),
        Key::new("device", Choice(&["cpu", "cuda"]), Value("\"cpu\""), "\"cuda\"", "The kind of device to train on.")
            .undigested(),
        Key::new(
            "workers_per_task",
            Whole(1, 1024),
            Means("no bound but the lanes"),
            "1",
            "Most workers that train one task together; never more than its lanes. 1 keeps each task on one worker.",
        )
        .undigested(),
        Key::new(
            "gang",
            Whole(1, 1024),
            Value("1"),
            "2",
            "Workers on which each task and each fusion starts at once; it waits until so many are free, and places are kept \
             for it meanwhile. Never more than may train it together. Losing one later stops nothing.",
        )
        .undigested(),
        Key::new(
            "time_limit",
            Duration,
            Means("no limit"),
            "\"2h\"",
            "How long each task and each fusion may train, waiting not counted; one that needs longer fails. Training is \
             never cut short to publish what there is.",
        )
        .undigested(),
    ],
    exclusive: &[],
};

static DEFAULTS: Section = Section {
    name: "defaults",
    places: &["defaults"],
    about: "Settings that every task and fusion inherits, key by key, unless it has its own.",
    keys: &[
        Key::table("adapter", &ADAPTER, "Adapter method and options of every task."),
        Key::table("training", &TRAINING, "Training of every task and every fusion."),
        Key::table("head", &DEFAULT_HEAD, "Head of every task."),
        Key::table("fusion", &FUSION_LAYER, "Layer options of every fusion."),
    ],
    exclusive: &[],
};
