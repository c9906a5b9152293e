//! A world for tests, small enough to be made by each of them: a BERT of one layer, and Parquet files of some rows.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{ArrayRef, Float32Array, Int32Array, RecordBatch, StringArray};
use graftwork_model::{HostTensor, Tensors, safetensors};
use graftwork_shared::job::{Job, Parsed};

const HIDDEN: usize = 8;
const INNER: usize = 16;
const WORDS: usize = 12;
const POSITIONS: usize = 20;

/// A folder with a base model and data, that goes with the value.
pub(crate) struct World {
    folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().unwrap() };
        world.base(1);
        for name in ["train", "validation", "test"] {
            world.rows(
                &format!("{name}.parquet"),
                &["good film", "bad film", "fine book", "poor book"],
                &["good", "bad", "good", "bad"],
            );
        }
        world
    }

    /// Writes the base model, of so many layers.
    pub(crate) fn base(&self, layers: usize) {
        write_base(&self.path("base"), layers);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file with columns `text` and `label`, labels as texts.
    pub(crate) fn rows(&self, name: &str, texts: &[&str], labels: &[&str]) {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("text", Arc::new(StringArray::from(texts.to_vec()))),
            ("label", Arc::new(StringArray::from(labels.to_vec()))),
        ];
        self.write(name, columns);
    }

    /// Writes a file with columns `text`, `class` (integers) and `score` (numbers).
    pub(crate) fn numbers(&self, name: &str, classes: &[i32]) {
        let texts: Vec<String> = (0..classes.len()).map(|row| format!("row {row}")).collect();
        let scores: Vec<f32> = classes.iter().map(|class| *class as f32 / 2.0).collect();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("text", Arc::new(StringArray::from(texts))),
            ("class", Arc::new(Int32Array::from(classes.to_vec()))),
            ("score", Arc::new(Float32Array::from(scores))),
        ];
        self.write(name, columns);
    }

    fn write(&self, name: &str, columns: Vec<(&str, ArrayRef)>) {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = fs::File::create(self.path(name)).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    /// Parses a job file in this folder: the fixed head with base model and hub, then `tasks`.
    pub(crate) fn parse(&self, tasks: &str) -> (String, Parsed) {
        let text = format!(
            "name = \"tiny\"\n[base_model]\nlocation = \"base\"\n[publish]\nhub = \"hub\"\norganisation = \"lab\"\n\
             [defaults.training]\nepochs = 2\nbatch_size = 2\nmax_length = 16\n[defaults.adapter]\nmethod = \"seq_bn\"\n\
             reduction_factor = 2\n{tasks}"
        );
        let parsed = graftwork_shared::job::parse(&text, self.folder.path());
        (text, parsed)
    }

    /// A job without problems of its own.
    pub(crate) fn job(&self, tasks: &str) -> (String, Job, graftwork_shared::job::Spans) {
        let (text, parsed) = self.parse(tasks);
        let job = parsed.job.unwrap_or_else(|| panic!("{:#?}", parsed.diagnostics));
        (text, job, parsed.spans)
    }
}

/// One task over the fixture's files.
pub(crate) const TASK: &str = "[tasks.mood]\ntrain = \"train.parquet\"\nvalidation = \"validation.parquet\"\n\
                               test = \"test.parquet\"\n";

fn write_base(folder: &Path, layers: usize) {
    fs::create_dir_all(folder).unwrap();
    let config = serde_json::json!({
        "model_type": "bert", "hidden_size": HIDDEN, "num_hidden_layers": layers, "num_attention_heads": 2,
        "intermediate_size": INNER, "hidden_act": "gelu", "vocab_size": WORDS, "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let vocabulary = serde_json::json!({ "[UNK]": 0, "good": 1, "bad": 2 });
    let model = serde_json::json!({ "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" });
    let tokenizer = serde_json::json!({ "version": "1.0", "added_tokens": [], "model": model });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut tensors = Tensors::new();
    let mut add = |name: &str, shape: &[usize]| {
        let count: usize = shape.iter().product();
        tensors.insert(name.to_owned(), HostTensor { shape: shape.to_vec(), values: vec![0.5; count] });
    };
    for (name, rows) in [("word", WORDS), ("position", POSITIONS), ("token_type", 2)] {
        add(&format!("embeddings.{name}_embeddings.weight"), &[rows, HIDDEN]);
    }
    let mut linears = vec![("intermediate.dense", INNER, HIDDEN), ("output.dense", HIDDEN, INNER)];
    linears.extend(
        ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
            .map(|name| (name, HIDDEN, HIDDEN)),
    );
    for layer in 0..layers {
        for (name, outputs, inputs) in &linears {
            add(&format!("encoder.layer.{layer}.{name}.weight"), &[*outputs, *inputs]);
            add(&format!("encoder.layer.{layer}.{name}.bias"), &[*outputs]);
        }
        for norm in ["attention.output", "output"] {
            add(&format!("encoder.layer.{layer}.{norm}.LayerNorm.weight"), &[HIDDEN]);
            add(&format!("encoder.layer.{layer}.{norm}.LayerNorm.bias"), &[HIDDEN]);
        }
    }
    for part in ["weight", "bias"] {
        add(&format!("embeddings.LayerNorm.{part}"), &[HIDDEN]);
    }
    fs::write(folder.join("model.safetensors"), safetensors::write(&tensors, &BTreeMap::new())).unwrap();
}
