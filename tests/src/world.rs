//! A world small enough for a test: a BERT of two layers with random weights, three tasks that can be learnt, a job.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use arrow_array::{ArrayRef, Float32Array, Int32Array, RecordBatch, StringArray};
use graftwork_shared::{
    digest::Digest,
    random::{Purpose, Stream},
};
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::json;

use crate::{history, rows};

const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 64;
const LAYERS: usize = 2;
const POSITIONS: usize = 48;
const WORDS: [&str; 24] = [
    "who", "what", "where", "when", "film", "book", "city", "river", "good", "great", "fine", "bad", "awful", "poor",
    "the", "a", "of", "in", "is", "was", "very", "quite", "not", "and",
];

/// Sizes of a BERT that is made for a test.
#[derive(Clone, Copy, Debug)]
pub struct BaseSizes {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Width between the two feed-forward projections.
    pub intermediate: usize,
    /// Rows of the word table.
    pub vocabulary: usize,
    /// Rows of the position table.
    pub positions: usize,
}

/// A folder with everything that a job needs.
pub struct World {
    folder: tempfile::TempDir,
}

impl World {
    /// Writes base model and data; each world has the same bytes.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        write_base(&folder.path().join("base"))?;
        for (task, regression) in [("topic", false), ("mood", false), ("strength", true)] {
            for (split, rows, first) in [("train", 96, 0), ("validation", 32, 10_000), ("test", 32, 20_000)] {
                let path = folder.path().join("data").join(task).join(format!("{split}.parquet"));
                write_rows(&path, task, first..first + rows, regression, false)?;
            }
        }
        Ok(Self { folder })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a split of a task anew. Spoiled rows have another class than they should, or the opposite value.
    pub fn write_split(&self, task: &str, split: &str, numbers: std::ops::Range<u64>, spoiled: bool) -> Result<()> {
        let path = self.path().join("data").join(task).join(format!("{split}.parquet"));
        write_rows(&path, task, numbers, task == "strength", spoiled)
    }

    /// Writes rows of `mood` in one file, four of a group each, with the group's name in this column.
    pub fn write_groups(&self, path: &Path, column: &str) -> Result<()> {
        let source = fs::File::open(self.path().join("data/mood/train.parquet"))?;
        let rows = ParquetRecordBatchReaderBuilder::try_new(source)?.with_batch_size(1_000).build()?;
        let batch = rows.last().context("the file has rows")??;
        let groups = (0..batch.num_rows()).map(|row| format!("group {}", row / 4));
        let group: ArrayRef = Arc::new(StringArray::from_iter_values(groups));
        let schema = batch.schema();
        let columns = schema.fields().iter().map(|field| field.name().clone()).zip(batch.columns().iter().cloned());
        let columns: Vec<(String, ArrayRef)> = columns.chain([(column.to_owned(), group)]).collect();
        write_batch(path, &RecordBatch::try_from_iter(columns)?)
    }

    /// Writes a job over all three tasks and one fusion, publishing into `hub`; `more` is put at its end.
    pub fn job(&self, file: &str, hub: &str, more: &str) -> Result<PathBuf> {
        let tasks = ["topic", "mood", "strength"].map(task);
        let text = format!(
            "name = \"tiny\"\n[base_model]\nlocation = \"base\"\n[publish]\nhub = \"{hub}\"\norganisation = \"tests\"\n\
             [defaults.training]\nepochs = 2\nbatch_size = 8\nlanes = 2\nlearning_rate = 5e-3\nmax_length = 32\n\
             checkpoint_every = 4\n[defaults.adapter]\nmethod = \"seq_bn\"\nreduction_factor = 4\n\
             {}[fusions.mood_fused]\nadapters = [\"topic\", \"mood\", \"strength\"]\ntask = \"mood\"\n{more}",
            tasks.concat()
        );
        let path = self.path().join(file);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Writes a job that gives workers time to come and go: two tasks and a fusion, each of 1,440 updates in four lanes.
    /// `more` is put at the end of the file.
    pub fn long_job(&self, file: &str, hub: &str, more: &str) -> Result<PathBuf> {
        let text = format!(
            "name = \"long\"\n[base_model]\nlocation = \"base\"\n[publish]\nhub = \"{hub}\"\norganisation = \"tests\"\n\
             [defaults.training]\nepochs = 120\nbatch_size = 8\nlanes = 4\nlearning_rate = 1e-3\nmax_length = 32\n\
             checkpoint_every = 50\nevaluate_every = 100\n[defaults.adapter]\nmethod = \"seq_bn\"\nreduction_factor = 4\n\
             {}{}[fusions.mood_fused]\nadapters = [\"topic\", \"mood\"]\ntask = \"mood\"\n{more}",
            task("topic"),
            task("mood"),
        );
        let path = self.path().join(file);
        fs::write(&path, text)?;
        Ok(path)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        history::check_at_the_end(self.path());
    }
}

/// A task's table in a job file.
fn task(task: &str) -> String {
    let head = if task == "strength" { "regression" } else { "classification" };
    format!(
        "[tasks.{task}]\ntrain = \"data/{task}/train.parquet\"\nvalidation = \"data/{task}/validation.parquet\"\n\
         test = \"data/{task}/test.parquet\"\ntext = \"text\"\nlabel = \"label\"\nhead = \"{head}\"\n"
    )
}

/// SHA-256 of every file below a folder, by path inside it.
fn tree_digests(folder: &Path) -> Result<BTreeMap<String, Digest>> {
    let mut digests = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("cannot list {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder)?.to_string_lossy().into_owned();
                digests.insert(name, Digest::of(&fs::read(&path)?));
            }
        }
    }
    Ok(digests)
}

/// SHA-256 of every published file, by path in the hub, but for reports, which hold times and rates: everything else in a hub
/// is a function of the job alone.
pub fn published_digests(hub: &Path) -> Result<BTreeMap<String, Digest>> {
    let mut digests = tree_digests(hub)?;
    digests.retain(|name, _| !name.contains("report"));
    ensure!(digests.len() > 20, "too few files are published: {digests:?}");
    Ok(digests)
}

/// Digests of the published tensor files, by their paths in the hub; a release's own folder is named after its record,
/// which names places.
pub fn tensor_digests(hub: &Path) -> Result<BTreeMap<String, Digest>> {
    let mut digests = tree_digests(hub)?;
    digests.retain(|name, _| name.ends_with(".safetensors") && !name.starts_with('.'));
    ensure!(digests.len() >= 4, "too few releases: {digests:?}");
    Ok(digests)
}

fn write_base(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut vocabulary = vec!["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    vocabulary.extend(WORDS);
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "intermediate_size": INTERMEDIATE, "hidden_act": "gelu", "vocab_size": vocabulary.len(),
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
        "position_embedding_type": "absolute",
    });
    fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    fs::write(folder.join("tokenizer.json"), serde_json::to_string(&tokenizer(&vocabulary))?)?;
    let sizes = BaseSizes {
        layers: LAYERS,
        hidden: HIDDEN,
        intermediate: INTERMEDIATE,
        vocabulary: vocabulary.len(),
        positions: POSITIONS,
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = base_shapes(&sizes)
        .into_iter()
        .enumerate()
        .map(|(index, (name, shape))| {
            let bytes = values(u32::try_from(index).unwrap_or(u32::MAX), &name, shape.iter().product());
            (name, shape, bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| {
            Ok((name.clone(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>>>()?;
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None)?)?;
    Ok(())
}

fn tokenizer(vocabulary: &[&str]) -> serde_json::Value {
    let ids: serde_json::Map<_, _> =
        vocabulary.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special = |id: usize, word: &str| json!({"id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]"), special(4, "[MASK]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": ids}
    })
}

/// Names and shapes of the tensors of a BERT, its pooler among them.
pub fn base_shapes(sizes: &BaseSizes) -> Vec<(String, Vec<usize>)> {
    let BaseSizes { layers, hidden, intermediate, vocabulary, positions } = *sizes;
    let mut shapes = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![vocabulary, hidden]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![positions, hidden]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, hidden]),
    ];
    let mut linear = |name: String, outputs: usize, inputs: usize| {
        shapes.push((format!("{name}.weight"), vec![outputs, inputs]));
        shapes.push((format!("{name}.bias"), vec![outputs]));
    };
    for layer in 0..layers {
        let prefix = format!("encoder.layer.{layer}");
        for matrix in ["query", "key", "value"] {
            linear(format!("{prefix}.attention.self.{matrix}"), hidden, hidden);
        }
        linear(format!("{prefix}.attention.output.dense"), hidden, hidden);
        linear(format!("{prefix}.intermediate.dense"), intermediate, hidden);
        linear(format!("{prefix}.output.dense"), hidden, intermediate);
    }
    linear("pooler.dense".to_owned(), hidden, hidden);
    let norms = (0..layers).flat_map(|layer| {
        ["attention.output", "output"].map(|place| format!("encoder.layer.{layer}.{place}.LayerNorm"))
    });
    for norm in std::iter::once("embeddings.LayerNorm".to_owned()).chain(norms) {
        shapes.push((format!("{norm}.weight"), vec![hidden]));
        shapes.push((format!("{norm}.bias"), vec![hidden]));
    }
    shapes
}

fn values(index: u32, name: &str, count: usize) -> Vec<u8> {
    let mut values = vec![0.0; count];
    Stream::new(5, Purpose::InitialWeights).fill_normal(index, &mut values);
    let (scale, shift) = if name.ends_with("LayerNorm.weight") { (0.05, 1.0) } else { (0.15, 0.0) };
    values.iter().flat_map(|value| (value * scale + shift).to_le_bytes()).collect()
}

/// Rows whose label is decided by words in them: `topic` by its first kind of word, `mood` and `strength` by praise.
fn write_rows(path: &Path, task: &str, numbers: std::ops::Range<u64>, regression: bool, spoiled: bool) -> Result<()> {
    let draw = Stream::new(11, Purpose::Split);
    let pick = |row: u64, place: u64, words: &[&'static str]| {
        words[index(draw.below(place_of(task), row * 64 + place, words.len() as u64))]
    };
    let (mut texts, mut classes, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for row in numbers {
        let topic = index(draw.below(1, row, 3));
        let praise = index(draw.below(2, row, 2));
        let subject = pick(row, 1, [&WORDS[0..4], &WORDS[4..6], &WORDS[6..8]][topic]);
        let opinion = pick(row, 2, [&WORDS[11..14], &WORDS[8..11]][praise]);
        let fillers: Vec<&str> =
            (0..3 + draw.below(3, row, 9)).map(|place| pick(row, 3 + place, &WORDS[14..24])).collect();
        texts.push(format!("the {subject} is {opinion} {}", fillers.join(" ")));
        let (class, of) = if task == "topic" { (topic, 3) } else { (praise, 2) };
        classes.push(i32::try_from(if spoiled { (class + 1) % of } else { class })?);
        let value = if praise == 1 { 1.0 } else { -1.0 } + draw.uniform(4, row) * 0.5;
        values.push(if spoiled { -value } else { value });
    }
    let label: ArrayRef =
        if regression { Arc::new(Float32Array::from(values)) } else { Arc::new(Int32Array::from(classes)) };
    let text: ArrayRef = Arc::new(StringArray::from(texts));
    write_batch(path, &RecordBatch::try_from_iter([("text", text), ("label", label)])?)
}

fn write_batch(path: &Path, batch: &RecordBatch) -> Result<()> {
    fs::create_dir_all(path.parent().context("a file of a task has a folder")?)?;
    let mut writer = ArrowWriter::try_new(fs::File::create(path)?, batch.schema(), None)?;
    writer.write(batch)?;
    writer.close()?;
    rows::know(path)
}

fn place_of(task: &str) -> u32 {
    10 + u32::try_from(task.len()).unwrap_or(0)
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
