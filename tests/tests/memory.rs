//! Predicted memory against what the real program takes, on a real base model and on two that are made on the spot: within
//! a tenth on every point of the matrix. What was measured is printed, so that the constants can be fitted again.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use graftwork_shared::random::{Purpose, Stream};
use graftwork_tests::{BaseSizes, base_shapes, program};
use libtest_mimic::{Arguments, Failed, Trial};
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;

/// A base model.
#[derive(Clone, Copy, Debug)]
struct Base {
    name: &'static str,
    /// Of one that is made with random weights; `None` of the one that is fetched.
    made: Option<BaseSizes>,
}

const MINILM: Base = Base { name: "minilm", made: None };

/// As wide and deep as BERT's base model. Few words, since only those pages of the word table count that are read.
const WIDE: Base = Base {
    name: "12_layers_of_768",
    made: Some(BaseSizes { layers: 12, hidden: 768, intermediate: 3072, vocabulary: 2_000, positions: 512 }),
};

const SMALL: Base = Base {
    name: "4_layers_of_256",
    made: Some(BaseSizes { layers: 4, hidden: 256, intermediate: 1024, vocabulary: 30_522, positions: 512 }),
};

/// Width of an attention head of those that are made.
const HEAD_WIDTH: usize = 64;

/// Rows that a base model that is made is validated on: the wide one takes its time.
const VALIDATED: usize = 16;

/// What is trained; a fusion is of two adapters.
#[derive(Clone, Copy, Debug)]
struct Point {
    base: Base,
    data: &'static str,
    method: &'static str,
    steps: u32,
    batch: u32,
    /// Tokens of the longest row.
    longest: u32,
    lanes: u32,
    /// Trainer threads.
    threads: u32,
}

const QUESTIONS: Point = Point {
    base: MINILM,
    data: "question_type",
    method: "seq_bn",
    steps: 8,
    batch: 16,
    longest: 128,
    lanes: 2,
    threads: 2,
};

const POINTS: [Point; 12] = [
    Point { threads: 1, ..QUESTIONS },
    QUESTIONS,
    Point { method: "lora", ..QUESTIONS },
    Point { method: "double_seq_bn", batch: 32, ..QUESTIONS },
    Point { method: "par_bn", batch: 32, ..QUESTIONS },
    Point { method: "scaled_par_bn", batch: 32, lanes: 4, ..QUESTIONS },
    Point { batch: 64, ..QUESTIONS },
    Point { method: "fusion", ..QUESTIONS },
    Point { data: "tweet_sentiment", batch: 32, longest: 64, ..QUESTIONS },
    Point { data: "bbc_topic", ..QUESTIONS },
    Point { base: WIDE, data: "bbc_topic", steps: 2, batch: 8, longest: 64, ..QUESTIONS },
    Point { base: SMALL, data: "bbc_topic", ..QUESTIONS },
];

/// Share of the measured bytes by which a prediction may be wrong.
const TOLERANCE: f64 = 0.1;

/// What was predicted of one point, in bytes, and the worker's peak.
#[derive(Clone, Copy, Debug)]
struct Measured {
    base_model: f64,
    process: f64,
    stages: f64,
    peak: f64,
}

/// All points measured so far.
static ALL: Mutex<Vec<Measured>> = Mutex::new(Vec::new());

/// What is fetched and imported for the quickstart.
fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.graftwork")
}

/// The base model that is fetched.
fn minilm() -> PathBuf {
    home().join("base/all-minilm-l6-v2")
}

impl Point {
    fn name(&self) -> String {
        let Self { base, data, method, batch, longest, lanes, threads, .. } = self;
        format!("{}_{data}_{method}_batch_{batch}_of_{longest}_in_{lanes}_lanes_on_{threads}", base.name)
    }

    fn job(&self) -> String {
        let Self { data, method, steps, batch, longest, lanes, threads, .. } = self;
        let data = home().join("data").join(data).display().to_string();
        let (base, validation) = match self.base.made {
            None => (minilm().display().to_string(), format!("{data}/validation.parquet")),
            Some(_) => ("base".to_owned(), "validation.parquet".to_owned()),
        };
        let training = format!(
            "steps = {steps}\nbatch_size = {batch}\nlanes = {lanes}\nlearning_rate = 1e-3\nmax_length = {longest}\n"
        );
        let task = |name: &str, method: &str| {
            format!(
                "[tasks.{name}]\ntrain = \"{data}/train.parquet\"\nvalidation = \"{validation}\"\ntext = \"text\"\n\
                 label = \"label\"\nhead = \"classification\"\nadapter = {{ method = \"{method}\" }}\n\
                 [tasks.{name}.training]\n{training}"
            )
        };
        let tasks = if *method == "fusion" {
            let (one, two) = (task("one", "seq_bn"), task("two", "seq_bn"));
            let fusion = "[fusions.both]\nadapters = [\"one\", \"two\"]\ntask = \"one\"\n[fusions.both.training]\n";
            format!("{one}{two}seed = 2\n{fusion}{training}")
        } else {
            task("one", method)
        };
        format!(
            "name = \"memory\"\n[base_model]\nlocation = \"{base}\"\n[publish]\nhub = \"hub\"\norganisation = \"tests\"\n\
             [resources]\nworkers = 1\nthreads = {threads}\n{tasks}"
        )
    }

    /// Writes the job, and a base model that is to be made, with fewer rows to validate it on.
    fn write(&self, folder: &Path) -> Result<()> {
        fs::write(folder.join("job.toml"), self.job())?;
        let Some(sizes) = &self.base.made else { return Ok(()) };
        let all = home().join("data").join(self.data).join("validation.parquet");
        write_first_rows(&all, &folder.join("validation.parquet"))?;
        write_base(&folder.join("base"), sizes)
    }
}

fn write_first_rows(of: &Path, to: &Path) -> Result<()> {
    let mut reader = ParquetRecordBatchReaderBuilder::try_new(File::open(of)?)?.with_batch_size(VALIDATED).build()?;
    let rows = reader.next().context("the file has rows")??;
    let mut writer = ArrowWriter::try_new(File::create(to)?, rows.schema(), None)?;
    writer.write(&rows)?;
    writer.close()?;
    Ok(())
}

/// Writes a BERT with random weights and the first words of the tokenizer that is fetched.
fn write_base(folder: &Path, sizes: &BaseSizes) -> Result<()> {
    fs::create_dir_all(folder)?;
    let read = |file: &str| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(minilm().join(file))?)?) };
    let mut config = read("config.json")?;
    for (key, size) in [
        ("num_hidden_layers", sizes.layers),
        ("hidden_size", sizes.hidden),
        ("num_attention_heads", sizes.hidden / HEAD_WIDTH),
        ("intermediate_size", sizes.intermediate),
        ("vocab_size", sizes.vocabulary),
        ("max_position_embeddings", sizes.positions),
    ] {
        config[key] = size.into();
    }
    fs::write(folder.join("config.json"), config.to_string())?;
    let mut tokenizer = read("tokenizer.json")?;
    let words = tokenizer["model"]["vocab"].as_object_mut().context("words of the tokenizer")?;
    words.retain(|_, id| id.as_u64().is_some_and(|id| id < sizes.vocabulary as u64));
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    write_weights(&folder.join("model.safetensors"), sizes)
}

/// All matrices begin with the same numbers, again and again: no memory depends on them.
fn write_weights(path: &Path, sizes: &BaseSizes) -> Result<()> {
    let shapes = base_shapes(sizes);
    let bytes = |shape: &[usize]| 4 * shape.iter().product::<usize>();
    let most = shapes.iter().map(|(_, shape)| bytes(shape)).max().unwrap_or(0);
    let mut drawn = vec![0.0; 1 << 16];
    Stream::new(17, Purpose::InitialWeights).fill_normal(0, &mut drawn);
    let drawn: Vec<u8> = drawn.iter().flat_map(|value| (value * 0.02_f32).to_le_bytes()).collect();
    let drawn = drawn.repeat(most.div_ceil(drawn.len()));
    let ones = 1.0_f32.to_le_bytes().repeat(sizes.hidden);
    let views = shapes
        .into_iter()
        .map(|(name, shape)| {
            let numbers = if name.ends_with("LayerNorm.weight") { &ones } else { &drawn };
            let bytes = bytes(&shape);
            Ok((name, TensorView::new(Dtype::F32, shape, &numbers[..bytes])?))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(safetensors::serialize_to_file(views, None, path)?)
}

fn ask(folder: &Path, arguments: &[&str]) -> Result<String> {
    // With an empty cache, so that each worker packs the weights itself: the most that it takes.
    let cache = folder.join("cache");
    let output = Command::new(program()).current_dir(folder).args(arguments).env("XDG_CACHE_HOME", cache).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn measure(point: &Point) -> Result<Measured> {
    let folder = tempfile::tempdir()?;
    point.write(folder.path())?;
    let plan: Value = serde_json::from_str(&ask(folder.path(), &["plan", "job.toml", "--output", "json"])?)?;
    ask(folder.path(), &["run", "job.toml", "--progress", "json"])?;
    let state = fs::read_dir(folder.path().join(".graftwork/state"))?.next().context("a job's state")??;
    let report: Value = serde_json::from_slice(&fs::read(state.path().join("report.json"))?)?;
    let stages = report["stages"].as_array().or_else(|| report["job"]["stages"].as_array()).context("stages")?;
    let peak = stages.iter().filter_map(|stage| stage["usage"]["peak_memory_bytes"].as_f64()).max_by(f64::total_cmp);
    let told = stages.iter().filter_map(|stage| stage.pointer("/result/peak/bytes")?.as_f64()).max_by(f64::total_cmp);
    ensure!(told > peak.map(|peak| 0.95 * peak), "{peak:?} was not told as a peak, but {told:?}");
    let predicted = |part: &str| plan["estimate"][part].as_f64().with_context(|| format!("the estimate's {part}"));
    Ok(Measured {
        base_model: predicted("base_model_bytes")?,
        process: predicted("process_bytes")?,
        stages: predicted("stages_bytes")?,
        peak: peak.context("a peak")?,
    })
}

fn check(point: &Point) -> Result<()> {
    let measured = measure(point)?;
    ALL.lock().unwrap_or_else(PoisonError::into_inner).push(measured);
    let Measured { base_model, process, stages, peak } = measured;
    let (predicted, mebibyte) = (base_model + process + stages, f64::from(1 << 20));
    let (name, ratio) = (point.name(), predicted / peak);
    println!("{name}: {:.0} MiB predicted, {:.0} MiB measured, {ratio:.3}", predicted / mebibyte, peak / mebibyte);
    ensure!((ratio - 1.0).abs() <= TOLERANCE, "{name}: {predicted} bytes were predicted and {peak} measured");
    Ok(())
}

/// The least squares of relative errors: what a process takes before any stage, and by how much a stage's part is to be
/// multiplied, for all points together.
fn fit(all: &[Measured]) -> Option<(f64, f64)> {
    let mut sums = [0.0; 5];
    for point in all {
        let weight = 1.0 / (point.peak * point.peak);
        let rest = point.peak - point.base_model;
        let terms = [1.0, point.stages, point.stages * point.stages, rest, rest * point.stages];
        sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += weight * term);
    }
    let [ones, stages, squares, rests, products] = sums;
    let determinant = ones * squares - stages * stages;
    let found = ((rests * squares - stages * products) / determinant, (ones * products - stages * rests) / determinant);
    (all.len() > 2 && determinant.abs() > f64::EPSILON * ones * squares).then_some(found)
}

fn say_fit() {
    let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((process, times)) = fit(&all) else { return };
    let worst = |process: Option<f64>, times: f64| {
        let error = |of: &Measured| {
            let predicted = of.base_model + process.unwrap_or(of.process) + times * of.stages;
            (predicted / of.peak - 1.0).abs()
        };
        all.iter().map(error).fold(0.0, f64::max)
    };
    println!(
        "worst error {:.1} %; with PROCESS_BYTES = {:.0} << 20 and TOKEN_BYTES times {times:.3} it is {:.1} %",
        100.0 * worst(None, 1.0),
        process / f64::from(1 << 20),
        100.0 * worst(Some(process), times)
    );
}

/// The fit finds the constants that points were made with.
fn the_fit_finds_what_is_there() -> Result<()> {
    let made = |base_model: f64, stages: f64| Measured {
        base_model,
        process: 0.0,
        stages,
        peak: base_model + 100.0 + 1.5 * stages,
    };
    let (process, times) = fit(&[made(50.0, 10.0), made(50.0, 40.0), made(80.0, 90.0)]).context("a fit")?;
    ensure!((process - 100.0).abs() < 1e-6 && (times - 1.5).abs() < 1e-9, "{process} and {times}");
    Ok(())
}

fn main() -> ExitCode {
    let lacking = !home().join("data/bbc_topic/import.json").exists();
    if lacking {
        eprintln!("ignored: the base model and the data are not there (make test fetches them)");
    }
    let mut trials = vec![Trial::test("the_fit_finds_what_is_there", || {
        the_fit_finds_what_is_there().map_err(|error| Failed::from(format!("{error:#}")))
    })];
    trials.extend(POINTS.map(|point| {
        let run = move || check(&point).map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(point.name(), run).with_ignored_flag(lacking)
    }));
    // Each worker has the machine to itself, so that its peak is its own.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let conclusion = libtest_mimic::run(&arguments, trials);
    say_fit();
    conclusion.exit_code()
}
