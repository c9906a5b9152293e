//! Batches: drawn by length, or of a file's texts.

use std::path::Path;

use graftwork_dataset::{Access, DEFAULT_WINDOW_BYTES, GroupDigests, Order, ReadRequest, RowReader, open, select};
use graftwork_engine::{Encoded, Lane, Network, Targets, TextEncoder, Tokens, deal};
use graftwork_model::BaseModel;
use graftwork_shared::{
    data::{Columns, TextColumns},
    head::HeadOutput,
    random::{Purpose, Stream},
};

use super::{Failure, options::Texts};

/// A log-normal distribution of lengths.
pub(crate) struct Lengths {
    pub(crate) name: String,
    median: f64,
    /// Of the logarithm.
    deviation: f64,
}

/// Longest row, in tokens.
const LONGEST: u32 = 128;

impl Lengths {
    pub(crate) fn usual() -> Vec<Self> {
        let of = |(name, median, deviation): (&str, f64, f64)| Self { name: name.to_owned(), median, deviation };
        [("short", 17.3, 0.54), ("pairs", 39.0, 0.38)].map(of).into()
    }

    pub(crate) fn exactly(tokens: &str) -> Result<Self, std::num::ParseFloatError> {
        Ok(Self { name: tokens.to_owned(), median: tokens.parse()?, deviation: 0.0 })
    }

    fn draw(&self, normal: f32) -> usize {
        let length = (self.median * (self.deviation * f64::from(normal)).exp()).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length from 4 to 128")]
        let length = length.clamp(4.0, f64::from(LONGEST)) as usize;
        length
    }
}

/// Rows of random tokens.
pub(crate) fn drawn(index: usize, rows: usize, lengths: &Lengths, network: &Network) -> Lane {
    let random = Stream::new(7, Purpose::WindowOrder);
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    let mut normal = vec![0.0; rows];
    random.fill_normal(index, &mut normal);
    let lengths: Vec<usize> = normal.iter().map(|&normal| lengths.draw(normal)).collect();
    let tokens: usize = lengths.iter().sum();
    let vocabulary = u64::from(network.description().vocab_size);
    let id = |token: usize| i64::try_from(random.below(1000 + index, token as u64, vocabulary)).unwrap_or(0);
    lane(Tokens { ids: (0..tokens).map(id).collect(), type_ids: vec![0; tokens], lengths })
}

/// The tokens of a file's rows, in the order of training.
pub(crate) fn encoded(base: &Path, texts: &Texts) -> Result<Vec<Encoded>, Failure> {
    let model = BaseModel::open(base)?;
    let encoder = TextEncoder::open(&model.tokenizer, LONGEST, model.description.type_vocab_size)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let access = Access::anonymous();
    let text = match texts.columns.as_slice() {
        [one] => TextColumns::One(one.clone()),
        [first, second] => TextColumns::Pair(first.clone(), second.clone()),
        _ => return Err("--columns takes one name or two".into()),
    };
    let columns = Columns { text, label: texts.label.clone() };
    let manifest = runtime.block_on(async {
        let files = open(&vec![texts.file.clone()], &access).await?;
        select(&files, None, None, &access).await
    })?;
    let labels = runtime.block_on(graftwork_dataset::find_labels(&manifest, &columns, &access))?;
    let request = ReadRequest {
        manifest,
        columns,
        output: HeadOutput::Classification { labels },
        order: Order::Shuffled { seed: 17, window_bytes: DEFAULT_WINDOW_BYTES },
        epoch: 0,
        cursor: 0,
        groups: GroupDigests::default(),
    };
    RowReader::start(runtime.handle(), request, access)
        .map(|row| {
            let row = row?;
            Ok(encoder.encode(row.number, &row.texts)?)
        })
        .collect()
}

/// The first batches of these rows.
pub(crate) fn batches(rows: &[Encoded], batch_size: usize, count: usize) -> Result<Vec<Lane>, Failure> {
    let batch = |rows: &[Encoded]| {
        let mut tokens = Tokens::default();
        for row in rows {
            tokens.ids.extend(&row.ids);
            tokens.type_ids.extend(&row.type_ids);
            tokens.lengths.push(row.ids.len());
        }
        lane(tokens)
    };
    let batches: Vec<Lane> = rows.chunks_exact(batch_size).take(count).map(batch).collect();
    if batches.is_empty() {
        Err(format!("{} rows are no batch of {batch_size}", rows.len()).into())
    } else {
        Ok(batches)
    }
}

fn lane(tokens: Tokens) -> Lane {
    let rows = tokens.lengths.len();
    let targets = Targets::Classes((0..rows).map(|row| i64::from(row % 2 == 0)).collect());
    Lane { tokens, targets, rows: (0..rows as u64).collect() }
}

/// A batch in so many lanes, as training deals its rows.
pub(crate) fn cut(batch: &Lane, lanes: usize) -> Vec<Lane> {
    let Tokens { ids, type_ids, lengths } = &batch.tokens;
    let Targets::Classes(classes) = &batch.targets else { unreachable!("batches of this example have classes") };
    let mut end = 0;
    let ends = lengths.iter().map(|length| {
        end += length;
        end
    });
    let ends: Vec<usize> = ends.collect();
    let lane = |places: &Vec<usize>| {
        let mut tokens = Tokens::default();
        for &row in places {
            let range = ends[row] - lengths[row]..ends[row];
            tokens.ids.extend(&ids[range.clone()]);
            tokens.type_ids.extend(&type_ids[range]);
            tokens.lengths.push(lengths[row]);
        }
        Lane {
            tokens,
            targets: Targets::Classes(places.iter().map(|&row| classes[row]).collect()),
            rows: places.iter().map(|&row| batch.rows[row]).collect(),
        }
    };
    deal(lengths, lanes).iter().map(lane).collect()
}
