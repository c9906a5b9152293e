//! Which rows each epoch of a stage must have been trained on, computed from the files by code of its own.
//!
//! It follows what `shared/dataset/src/lib.rs` states: a file of one row group that fits into one window is one block, and
//! an epoch is its rows shuffled by Fisher and Yates, where draw `i` is the number at epoch and `i` of the seed's stream
//! for windows. An update takes the next rows, as many as its batches hold, and ends at the latest with its epoch. What a
//! result says of an epoch is a chain of SHA-256 over the digests of its rows. Neither the reader nor the engine is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::Path,
    sync::{Mutex, PoisonError},
    time::UNIX_EPOCH,
};

use anyhow::{Context as _, Result, bail};
use arrow_array::{Array as _, Float32Array, Int32Array, StringArray};
use graftwork_scheduler::PlannedStage;
use graftwork_shared::{
    data::{FileIdentity, SplitManifest, TextColumns},
    digest::{Digest, Hasher},
    head::HeadOutput,
    random::{Purpose, Stream},
    upload,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// Decoded bytes of a window, and how much of it one block may take, by the same words.
const WINDOW_BYTES: u64 = 32 << 20;
const BLOCKS_OF_A_WINDOW: u64 = 128;
const BYTES_BESIDE_A_ROW: u64 = 32;

/// A row's text and its label as the file has it.
#[derive(Clone)]
struct Row {
    text: String,
    label: Label,
}

#[derive(Clone, Copy)]
enum Label {
    Whole(i32),
    Number(f32),
}

/// Rows of every file that worlds of this process wrote, by what a plan calls the file.
static FILES: Mutex<BTreeMap<String, Vec<Row>>> = Mutex::new(BTreeMap::new());

/// Recipes whose rows were computed.
static COMPUTED: Mutex<BTreeSet<Digest>> = Mutex::new(BTreeSet::new());

/// For how many recipes the histories of this process were held to rows that were computed here, and not only to those
/// of another run.
pub fn recipes_computed() -> usize {
    COMPUTED.lock().unwrap_or_else(PoisonError::into_inner).len()
}

/// Takes note of a file of a world, as it is now.
pub(crate) fn know(file: &Path) -> Result<()> {
    let rows = read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let modified = fs::metadata(file)?.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    files.insert(Digest::of(&fs::read(file)?).to_string(), rows.clone());
    files.insert(in_place(&file.display().to_string(), &modified.to_string()), rows);
    Ok(())
}

fn in_place(location: &str, version: &str) -> String {
    format!("{location} of {version}")
}

fn read(file: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(File::open(file)?)?.build()? {
        let batch = batch?;
        let column = |name: &str| batch.column_by_name(name).with_context(|| format!("no column {name}"));
        let (texts, labels) = (column("text")?.as_any(), column("label")?.as_any());
        let texts = texts.downcast_ref::<StringArray>().context("texts")?;
        for row in 0..batch.num_rows() {
            let label = match (labels.downcast_ref::<Int32Array>(), labels.downcast_ref::<Float32Array>()) {
                (Some(labels), _) => Label::Whole(labels.value(row)),
                (_, Some(labels)) => Label::Number(labels.value(row)),
                _ => bail!("labels of another type"),
            };
            rows.push(Row { text: texts.value(row).to_owned(), label });
        }
    }
    Ok(rows)
}

/// Digests of the epochs that a stage has after so many updates; `None` where the file is none of this process's worlds,
/// or a rule takes some of its rows.
///
/// # Panics
/// When a file of a world is too large to be one block, or a label is not among the recipe's: the worlds of tests have
/// grown, and this must grow with them.
pub(crate) fn expected(stage: &PlannedStage, updates: u64) -> Option<Vec<Digest>> {
    let rows = rows_of(&stage.train)?;
    let recipe = &stage.recipe;
    assert_eq!(recipe.columns.text, TextColumns::One("text".to_owned()), "worlds have one column of texts");
    let digests: Vec<Digest> = (0..).zip(&rows).map(|(number, row)| digest(number, row, &recipe.head.output)).collect();
    let training = &recipe.training;
    let of_update = u64::from(training.batch_size) * u64::from(training.accumulation);
    let all = digests.len() as u64;
    let of_epoch = all.div_ceil(of_update);
    let epochs = updates.div_ceil(of_epoch);
    let order = Stream::new(training.seed, Purpose::WindowOrder);
    let chain = |epoch: u64| {
        let mut rows = digests.clone();
        for last in (1..rows.len()).rev() {
            let epoch = u32::try_from(epoch).expect("fewer epochs than 2^32");
            let other = order.below(epoch, last as u64, last as u64 + 1);
            rows.swap(last, usize::try_from(other).expect("a place among the rows"));
        }
        let trained = ((updates - epoch * of_epoch).min(of_epoch) * of_update).min(all);
        rows.iter().take(usize::try_from(trained).expect("so many rows")).fold(Digest::from_bytes([0; 32]), joined)
    };
    COMPUTED.lock().unwrap_or_else(PoisonError::into_inner).insert(stage.recipe_digest);
    Some((0..epochs).map(chain).collect())
}

fn rows_of(manifest: &SplitManifest) -> Option<Vec<Row>> {
    let [FileIdentity { location, version, content }] = manifest.files.as_slice() else { return None };
    let key = upload::digest(location).map_or_else(|| in_place(location, version), |digest| digest.to_string());
    if manifest.rule.is_some() || manifest.limit.is_some() {
        return None;
    }
    let rows = FILES.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()?;
    let ([count], [bytes]) = (content.row_group_rows.as_slice(), content.row_group_bytes.as_slice()) else {
        panic!("{location} has several row groups")
    };
    let block_rows = WINDOW_BYTES / BLOCKS_OF_A_WINDOW / (bytes / count + BYTES_BESIDE_A_ROW);
    assert!(*count == rows.len() as u64 && *count <= block_rows, "{location} is one block: {count} rows");
    Some(rows)
}

/// Number, text and label, each with its length or kind in front, little-endian.
fn digest(number: u64, row: &Row, output: &HeadOutput) -> Digest {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((row.text.len() as u64).to_le_bytes());
    bytes.extend(row.text.as_bytes());
    match (row.label, output) {
        (Label::Whole(label), HeadOutput::Classification { labels }) => {
            let class = labels.iter().position(|known| *known == label.to_string());
            let class = u32::try_from(class.expect("a label of the recipe")).expect("few classes");
            bytes.push(b'c');
            bytes.extend(class.to_le_bytes());
        }
        (Label::Number(value), HeadOutput::Regression) => {
            bytes.push(b'v');
            bytes.extend(value.to_bits().to_le_bytes());
        }
        (Label::Whole(_), HeadOutput::Regression) | (Label::Number(_), HeadOutput::Classification { .. }) => {
            panic!("the labels of a world are of another kind than its head")
        }
    }
    Digest::of(&bytes)
}

fn joined(chain: Digest, row: &Digest) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(chain.bytes());
    hasher.update(row.bytes());
    hasher.finish()
}
