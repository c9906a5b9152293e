//! `predict`: a text or a file through any composition of stored adapters. Data goes to stdout, the rest to stderr.
//!
//! Rows are read, predicted and printed batch by batch, in order; memory does not grow with the file.

mod answer;
mod assemble;
mod compose;
mod part;
mod texts;

use std::{
    collections::{BTreeMap, VecDeque},
    io::BufWriter,
    path::{Path, PathBuf},
};

use graftwork_engine::{EngineError, InputError, Network, Prediction, TextEncoder, Tokens, Trunk};
use graftwork_model::{BaseModel, ModelError, TrunkDescription};
use graftwork_shared::{composition::CompositionError, head::Head, id::Name, training::Precision};
use graftwork_store::{NoUploads, StoreError};
use tokio::runtime::Handle;

use crate::{
    computer::{self, DeviceChoice, NoCuda, PrecisionChoice},
    pool::{Pending, Pool, TaskFailed},
    trunks,
};
use answer::{Answer, HeadAnswer, OutputForm, Printer};
use assemble::{Assembled, Wishes, assemble};
use part::Part;
use texts::Texts;

/// Why there is no prediction.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PredictError {
    /// The command line does not say enough, or says what does not fit.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A row cannot be used.
    #[error("{place}: {problem}")]
    Row {
        /// The row.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A location cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What lies at a location does not fit.
    #[error("{location}: {error}")]
    Model {
        /// The location.
        location: String,
        /// What is wrong.
        error: ModelError,
    },
    /// The text of a composition.
    #[error("--compose: {0}")]
    Compose(compose::ComposeError),
    /// The composition itself.
    #[error(transparent)]
    Composition(#[from] CompositionError),
    /// The network.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Texts and tokens.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The device.
    #[error(transparent)]
    Device(#[from] NoCuda),
    /// The computation broke down.
    #[error("the prediction broke down: {0}")]
    Broken(TaskFailed),
    /// Output cannot be written, or threads cannot be started.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

impl From<compose::ComposeError> for PredictError {
    fn from(error: compose::ComposeError) -> Self {
        Self::Compose(error)
    }
}

impl From<TaskFailed> for PredictError {
    fn from(error: TaskFailed) -> Self {
        Self::Broken(error)
    }
}

impl PredictError {
    /// Whether the user can do nothing about it.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::System(_))
    }
}

/// What to predict with, and for.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("input").required(true).args(["text", "file"])))]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["adapter", "setup"])))]
pub(crate) struct Arguments {
    /// Base model: a folder, hf://org/name@revision, or an object-store URL.
    #[arg(long, value_name = "LOCATION")]
    base_model: String,
    /// An adapter: a folder in AdapterHub's layout, a release in a hub folder, or hf://org/name@revision. Repeatable.
    #[arg(long, value_name = "[NAME=]LOCATION")]
    adapter: Vec<String>,
    /// A setup with its own composition, such as the release of a fusion.
    #[arg(long, value_name = "LOCATION", conflicts_with_all = ["adapter", "compose"])]
    setup: Option<String>,
    /// How several adapters work together: Stack[a, b], Parallel[a, b], Average[a:0.3, b:0.7], Split[a:16, b:48],
    /// BatchSplit[a:1, b:1], nested as AdapterHub allows.
    #[arg(long, value_name = "COMPOSITION")]
    compose: Option<String>,
    /// The adapter whose head reads the result; by default the last one.
    #[arg(long, value_name = "NAME")]
    head: Option<String>,
    /// A text.
    #[arg(long)]
    text: Option<String>,
    /// The second text of a pair.
    #[arg(long, requires = "text")]
    text_pair: Option<String>,
    /// A file of texts: .txt (one a line), .csv, .tsv, .jsonl or .parquet.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Column of the text in the file.
    #[arg(long, requires = "file")]
    column: Option<String>,
    /// Column of the second text of a pair.
    #[arg(long, requires = "column")]
    pair_column: Option<String>,
    /// Form of the output.
    #[arg(long, value_enum, default_value = "text")]
    output: OutputForm,
    /// Layers without adapters, such as 0,1, or none; by default those of the adapter's record.
    #[arg(long, value_name = "LAYERS")]
    skip_layers: Option<String>,
    /// Rows computed together.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch_size: u16,
    /// Tokens after which a text is cut; by default as in training.
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<u32>,
    /// Device threads; by default one for each processor.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// What computes.
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceChoice,
    /// Numbers in which the base model multiplies; others than fp32 need --device cuda. Adapters and heads are fp32.
    #[arg(long, value_enum, default_value = "fp32")]
    precision: PrecisionChoice,
    /// Environment variable with the credentials for the base model.
    #[arg(long, value_name = "NAME")]
    base_model_credentials_env: Option<String>,
    /// Environment variable with the credentials for adapters and setups; by default the base model's, where both lie on
    /// the same hub.
    #[arg(long, value_name = "NAME")]
    adapter_credentials_env: Option<String>,
    /// Folder for what is fetched; by default ~/.cache/graftwork.
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
}

/// Predicts and prints.
pub(crate) fn run(arguments: &Arguments, runtime: &Handle) -> Result<(), PredictError> {
    let precision = precision(arguments.precision, arguments.device)?;
    let device = arguments.device.open()?;
    // The rows come first: a wrong file is told before a model is opened.
    let rows = match (&arguments.text, &arguments.file) {
        (Some(text), _) => texts::given(text, arguments.text_pair.as_deref())?,
        (None, Some(file)) => {
            let columns: Vec<String> = arguments.column.iter().chain(&arguments.pair_column).cloned().collect();
            texts::from_file(file, &columns)?
        }
        (None, None) => return Err(PredictError::Usage("give a --text or a --file".to_owned())),
    };
    let cache = arguments.cache.clone().unwrap_or_else(trunks::default_cache);
    let credentials = arguments.base_model_credentials_env.as_deref();
    let folder =
        runtime.block_on(graftwork_store::fetch_base_model(&arguments.base_model, credentials, &cache, &NoUploads))?;
    let location = arguments.base_model.clone();
    let base = BaseModel::open(&folder).map_err(|error| PredictError::Model { location, error })?;
    let assembled = load(arguments, runtime, &cache, &base.description)?;
    let longest = base.description.max_tokens();
    if let Some(given) = arguments.max_length.filter(|given| *given > longest) {
        return Err(PredictError::Usage(format!(
            "--max-length {given} is more than the {longest} that the base model takes"
        )));
    }
    let max_length = arguments.max_length.or(assembled.max_length).unwrap_or(longest).min(longest);
    let predictor = Predictor {
        encoder: TextEncoder::open(&base.tokenizer, max_length, base.description.type_vocab_size)?,
        heads: assembled.setup.heads.clone(),
        skip_layers: assembled.skip_layers,
        batch_rows: assembled.batch_rows.unwrap_or(usize::from(arguments.batch_size)),
        is_cut: assembled.batch_rows.is_some(),
        network: Network::new(Trunk::open(&base, device)?.in_precision(precision), assembled.setup, assembled.tensors)?
            .for_rows_that_return(false),
        pool: Pool::start(
            arguments.threads.map_or_else(computer::processors, usize::from),
            graftwork_engine::use_one_thread,
        )?,
    };
    let mut printer = Printer::new(BufWriter::new(std::io::stdout().lock()), arguments.output);
    predictor.predict(rows, |answer| printer.print(answer))?;
    Ok(printer.finish()?)
}

/// The processor has products in fp32 alone, in predictions as in training.
fn precision(wished: PrecisionChoice, device: DeviceChoice) -> Result<Precision, PredictError> {
    let wished = Precision::from(wished);
    if wished != Precision::Fp32 && device == DeviceChoice::Cpu {
        return Err(PredictError::Usage(format!(
            "--precision {wished}: the processor multiplies in fp32 alone; add --device cuda, or leave out --precision"
        )));
    }
    Ok(wished)
}

fn load(
    arguments: &Arguments,
    runtime: &Handle,
    cache: &Path,
    trunk: &TrunkDescription,
) -> Result<Assembled, PredictError> {
    let mut parts = BTreeMap::new();
    for given in arguments.adapter.iter().chain(&arguments.setup) {
        let (name, location) = named(given)?;
        let credentials = graftwork_store::adapter_credentials(
            location,
            arguments.adapter_credentials_env.as_deref(),
            &arguments.base_model,
            arguments.base_model_credentials_env.as_deref(),
        );
        let folder = runtime.block_on(graftwork_store::fetch_adapter(location, credentials, cache, &NoUploads))?;
        let part = Part::read(location, &folder, name.as_ref(), trunk)?;
        let name = match name {
            Some(name) => name,
            None => default_name(&part, location),
        };
        if parts.insert(name.clone(), part).is_some() {
            return Err(PredictError::Usage(format!(
                "two adapters are called {name}; tell them apart by --adapter NAME={location}"
            )));
        }
    }
    let head = arguments.head.as_deref().map(parse_name).transpose()?;
    let skip_layers = arguments.skip_layers.as_deref().map(|text| layers(text, trunk.layers)).transpose()?;
    let wishes =
        Wishes { compose: arguments.compose.as_deref(), head: head.as_ref(), skip_layers: skip_layers.as_deref() };
    assemble(&parts, &wishes)
}

/// `NAME=LOCATION`, or a location alone. What stands before the sign is a name only when it can be one.
fn named(given: &str) -> Result<(Option<Name>, &str), PredictError> {
    match given.split_once('=') {
        Some((name, location)) if !name.contains(['/', ':', '?']) => Ok((Some(parse_name(name)?), location)),
        _ => Ok((None, given)),
    }
}

fn parse_name(text: &str) -> Result<Name, PredictError> {
    text.parse().map_err(|error: graftwork_shared::id::NotAName| PredictError::Usage(error.to_string()))
}

/// An adapter's own name; for a setup the last part of its location, as far as it can be a name.
fn default_name(part: &Part, location: &str) -> Name {
    let own = match &part.composition {
        graftwork_shared::composition::Composition::Single { adapter } => Some(adapter.clone()),
        _ => last_part(location).parse().ok(),
    };
    own.unwrap_or_else(|| "setup".parse().expect("a fixed name is a name"))
}

/// `fused` of `hub/team/fused/` and of `hf://team/fused@main`.
fn last_part(location: &str) -> &str {
    let path = location.trim_end_matches('/');
    let last = path.rsplit('/').next().unwrap_or(path);
    last.split('@').next().unwrap_or(last)
}

fn layers(text: &str, count: u32) -> Result<Vec<u32>, PredictError> {
    if text.trim() == "none" {
        return Ok(Vec::new());
    }
    let layer = |word: &str| word.trim().parse().ok().filter(|layer: &u32| *layer < count);
    let layers = text.split(',').map(|word| {
        let wrong = || format!("--skip-layers: {:?} is no layer; the base model has layers 0 to {}", word, count - 1);
        layer(word).ok_or_else(|| PredictError::Usage(wrong()))
    });
    layers.collect()
}

/// Parts for each thread that are under way: one is computed, the others wait.
const AHEAD: usize = 3;

/// A network with its texts' way in and its answers' way out.
struct Predictor {
    network: Network,
    encoder: TextEncoder,
    heads: Vec<(Name, Head)>,
    skip_layers: Vec<u32>,
    batch_rows: usize,
    /// The composition cuts batches, so that each must be whole.
    is_cut: bool,
    pool: Pool,
}

impl Predictor {
    /// Predicts all rows and hands on the answers in the rows' order. While parts of batches are computed, later ones are
    /// read and encoded, as many as keep the threads busy. Answers of batches in front of a row that cannot be used are handed
    /// on.
    fn predict(
        &self,
        rows: texts::Rows,
        mut take: impl FnMut(&Answer) -> std::io::Result<()>,
    ) -> Result<(), PredictError> {
        let mut parts = self.parts(rows);
        let (mut under_way, mut problem, mut first) = (VecDeque::new(), None, 0);
        loop {
            while problem.is_none() && under_way.len() < AHEAD * self.pool.threads() {
                match parts.next() {
                    Some(Ok(tokens)) => under_way.push_back((tokens.rows(), self.start(tokens))),
                    Some(Err(error)) => problem = Some(error),
                    None => break,
                }
            }
            let Some((rows, pending)) = under_way.pop_front() else { return problem.map_or(Ok(()), Err) };
            for answer in self.answers(&pending.wait()??, rows, first) {
                take(&answer)?;
            }
            first += rows as u64;
        }
    }

    fn start(&self, tokens: Tokens) -> Pending<Result<Prediction, EngineError>> {
        let network = self.network.share();
        let skip_layers = self.skip_layers.clone();
        self.pool.submit(move || network.predict(&tokens, &skip_layers))
    }

    /// Batches in the parts in which they are computed anyway, so that the last ones are shared out evenly.
    fn parts(&self, mut rows: texts::Rows) -> impl Iterator<Item = Result<Tokens, PredictError>> {
        let mut number = 0;
        let batches = std::iter::from_fn(move || self.next_batch(&mut rows, &mut number).transpose());
        batches.flat_map(|batch| match batch.and_then(|tokens| Ok(self.network.apart(&tokens)?)) {
            Ok(parts) => parts.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }

    /// The next batch of rows, the first of which has this number; `None` behind the last one.
    fn next_batch(&self, rows: &mut texts::Rows, number: &mut u64) -> Result<Option<Tokens>, PredictError> {
        let batch: Vec<Texts> = rows.take(self.batch_rows).collect::<Result<_, _>>()?;
        if self.is_cut && !batch.is_empty() && batch.len() < self.batch_rows {
            return Err(PredictError::Usage(format!(
                "BatchSplit takes {} rows at a time, but {} are left at the end",
                self.batch_rows,
                batch.len()
            )));
        }
        let mut tokens = Tokens::default();
        for texts in &batch {
            let encoded = self.encoder.encode(*number, texts)?;
            *number += 1;
            tokens.lengths.push(encoded.ids.len());
            tokens.ids.extend(encoded.ids);
            tokens.type_ids.extend(encoded.type_ids);
        }
        Ok((!batch.is_empty()).then_some(tokens))
    }

    /// The answers for `rows` rows from row `first` on. The heads of a `BatchSplit` saw one run of rows each.
    fn answers(&self, prediction: &Prediction, rows: usize, first: u64) -> Vec<Answer> {
        let mut answers: Vec<Answer> =
            (first..).take(rows).map(|row| Answer { row, predictions: Vec::new() }).collect();
        let mut run_start = 0;
        for (logits, (name, head)) in prediction.heads.iter().zip(&self.heads) {
            let run = logits.logits.chunks_exact(logits.outputs.max(1));
            let count = run.len();
            for (answer, row) in answers.iter_mut().skip(run_start).zip(run) {
                answer.predictions.push(HeadAnswer::new(name, head, row));
            }
            run_start = if run_start + count >= rows { 0 } else { run_start + count };
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_may_be_given_a_name() {
        let name = |given| named(given).map(|(name, location)| (name.map(|name| name.to_string()), location));
        assert_eq!(name("a=folder/x").unwrap(), (Some("a".to_owned()), "folder/x"));
        assert_eq!(name("folder=x/y").unwrap(), (Some("folder".to_owned()), "x/y"));
        assert_eq!(name("./a=b").unwrap(), (None, "./a=b"));
        assert_eq!(name("https://host/x?v=1").unwrap(), (None, "https://host/x?v=1"));
        assert!(name("a b=x").is_err());
    }

    #[test]
    fn a_setup_is_called_by_the_end_of_its_location() {
        for location in ["hub/team/fused", "hub/team/fused/", "hf://team/fused@main", "fused"] {
            assert_eq!(last_part(location), "fused");
        }
    }

    #[test]
    fn layers_outside_the_model_are_refused() {
        assert_eq!(layers("0, 2", 3).unwrap(), [0, 2]);
        assert!(layers("none", 3).unwrap().is_empty());
        assert!(layers("3", 3).unwrap_err().to_string().contains("layers 0 to 2"));
        assert!(layers("", 3).is_err());
    }
}
