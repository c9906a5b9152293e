//! Rows a second of the input alone, against the tokenizer library alone: one JSON object a line.
//!
//! `input_rate BASE_MODEL FILE COLUMN[,COLUMN] [SECONDS]`: `input` reads Parquet, tokenises and packs batches of 16 as
//! training does, on its one thread, epoch after epoch; `kept` is the same behind a run that left the token ids of all rows
//! on a shelf; `tokenizer` is the library's own `encode_fast` over the same texts in memory, on one thread. The label's
//! column is called `label`.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use graftwork_dataset::{Access, DEFAULT_WINDOW_BYTES, GroupDigests, Order, ReadRequest, RowReader, open, select};
use graftwork_engine::{BatchShape, Input, InputRequest, Position, Shelves, TextEncoder};
use graftwork_model::BaseModel;
use graftwork_shared::{
    data::{Columns, TextColumns},
    digest::Digest,
    head::HeadOutput,
};
use serde_json::json;
use tokio::runtime::Runtime;

type Failure = Box<dyn std::error::Error>;

const BATCH: usize = 16;
const LONGEST: u32 = 128;
const MOST_KEPT_BYTES: u64 = 1 << 30;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: input_rate BASE_MODEL FILE COLUMN[,COLUMN] [SECONDS]");
    let (base, file, columns) = (next()?, next()?, next()?);
    let duration = Duration::from_secs_f64(next().map_or(Ok(4.0), |text| text.parse())?);
    let model = BaseModel::open(Path::new(&base))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let read = request(&runtime, file, &columns)?;
    let rows: Vec<Vec<String>> = RowReader::start(runtime.handle(), read.clone(), Access::anonymous())
        .map(|row| row.map(|row| row.texts))
        .collect::<Result<_, _>>()?;
    let encoder = || TextEncoder::open(&model.tokenizer, LONGEST, model.description.type_vocab_size);
    println!("{}", input(&runtime, "input", (read.clone(), 0), Arc::new(encoder()?), duration)?);
    let folder = tempfile::tempdir()?;
    let shelves = Arc::new(Shelves::new(folder.path().to_owned(), MOST_KEPT_BYTES));
    let keeping = || encoder().map(|encoder| Arc::new(encoder.keeping(&shelves, &Digest::of(b"rows"))));
    input(&runtime, "filling", (read.clone(), rows.len()), keeping()?, duration)?;
    let kept = keeping()?;
    println!("{}", input(&runtime, "kept", (read, 0), kept.clone(), duration)?);
    if kept.tokenised() > 0 {
        return Err(format!("{} rows were not on the shelf: is there room for them?", kept.tokenised()).into());
    }
    println!("{}", library(&model.tokenizer, &rows, duration)?);
    Ok(())
}

fn request(runtime: &Runtime, file: String, columns: &str) -> Result<ReadRequest, Failure> {
    let access = Access::anonymous();
    let text = match columns.split_once(',') {
        Some((first, second)) => TextColumns::Pair(first.to_owned(), second.to_owned()),
        None => TextColumns::One(columns.to_owned()),
    };
    let columns = Columns { text, label: "label".to_owned() };
    let manifest = runtime.block_on(async {
        let files = open(&vec![file], &access).await?;
        select(&files, None, None, &access).await
    })?;
    let labels = runtime.block_on(graftwork_dataset::find_labels(&manifest, &columns, &access))?;
    Ok(ReadRequest {
        manifest,
        columns,
        output: HeadOutput::Classification { labels },
        order: Order::Shuffled { seed: 17, window_bytes: DEFAULT_WINDOW_BYTES },
        epoch: 0,
        cursor: 0,
        groups: GroupDigests::default(),
    })
}

/// Reads for so long, and so many rows at least.
fn input(
    runtime: &Runtime,
    kind: &str,
    (read, least): (ReadRequest, usize),
    encoder: Arc<TextEncoder>,
    duration: Duration,
) -> Result<serde_json::Value, Failure> {
    let shape = BatchShape { batch_size: BATCH, accumulation: 1, lanes: 2 };
    let (position, access) = (Position::start(), Access::anonymous());
    let request = InputRequest { read, access, shape, position, updates: u64::MAX };
    let began = Instant::now();
    let mut input = Input::start(runtime.handle(), request, encoder);
    let (mut rows, mut tokens, mut first) = (0, 0, None);
    while began.elapsed() < duration || rows < least as u64 {
        let update = input.next_update()?;
        first.get_or_insert_with(|| began.elapsed());
        rows += update.consumed.rows;
        tokens += update.consumed.tokens;
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(json!({
        "kind": kind,
        "rows_per_second": rows as f64 / seconds,
        "tokens_per_second": tokens as f64 / seconds,
        "first_batch_ms": first.map(|first| 1e3 * first.as_secs_f64()),
    }))
}

fn library(path: &Path, rows: &[Vec<String>], duration: Duration) -> Result<serde_json::Value, Failure> {
    let mut tokenizer = tokenizers::Tokenizer::from_file(path).map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    let (began, mut done, mut tokens) = (Instant::now(), 0_u64, 0);
    for texts in rows.iter().cycle() {
        let encoding = match texts.as_slice() {
            [first, second] => tokenizer.encode_fast((first.as_str(), second.as_str()), true),
            _ => tokenizer.encode_fast(texts[0].as_str(), true),
        };
        tokens += encoding.map_err(|error| error.to_string())?.get_ids().len();
        done += 1;
        if done.is_multiple_of(64) && began.elapsed() >= duration {
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(json!({
        "kind": "tokenizer",
        "rows_per_second": done as f64 / seconds,
        "tokens_per_second": tokens as f64 / seconds,
    }))
}
