//! A recorded run in memory: settings, initial and final tensors, micro-batches as lanes, and the peer's log.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use graftwork_model::{Dtype, Tensors, safetensors};
use graftwork_shared::{
    adapter::{AdapterConfig, FusionConfig},
    composition::Composition,
    head::{Head, HeadOutput},
    id::Name,
    metric::Metric,
    training::{Length, Schedule, Training, Warmup},
};
use serde::Deserialize;

use super::FollowError;
use crate::{Lane, Setup, Targets, Tokens, Trained, trainer::Course};

/// What a recording's `settings.json` says; keys that only describe where it came from are not read.
#[derive(Debug, Deserialize)]
struct Settings {
    config: String,
    fuse: bool,
    steps: usize,
    batch: u32,
    accumulate: u32,
    lr: f64,
    decay: f64,
    warmup: u64,
    clip: f64,
    classes: usize,
    betas: [f64; 2],
    epsilon: f64,
}

/// One line of the peer's log.
#[derive(Debug, Deserialize)]
pub(super) struct PeerStep {
    pub(super) step: usize,
    pub(super) loss: f64,
    pub(super) gradient_norm: f64,
    pub(super) learning_rate: f64,
}

/// A recorded run.
pub(super) struct Recording {
    folder: PathBuf,
    settings: Settings,
    pub(super) setup: Setup,
    pub(super) start: Tensors,
    end: Tensors,
    /// The lanes of each update.
    pub(super) updates: Vec<Vec<Lane>>,
    pub(super) steps: Vec<PeerStep>,
}

impl Recording {
    pub(super) fn read(folder: &Path) -> Result<Self, FollowError> {
        let settings: Settings = read_json(&folder.join("settings.json"))?;
        let steps: Vec<PeerStep> = read_json(&folder.join("steps.json"))?;
        if steps.len() != settings.steps || settings.classes == 0 {
            let what = format!("{} steps of {} and {} classes", steps.len(), settings.steps, settings.classes);
            return Err(FollowError::Recording { path: folder.join("steps.json"), what });
        }
        let setup =
            setup(&settings).map_err(|what| FollowError::Recording { path: folder.join("settings.json"), what })?;
        Ok(Self {
            folder: folder.to_owned(),
            setup,
            start: safetensors::read_file(&folder.join("start.safetensors"))?,
            end: safetensors::read_file(&folder.join("end.safetensors"))?,
            updates: read_updates(&folder.join("batches.safetensors"), &settings)?,
            settings,
            steps,
        })
    }

    /// The training options of the recording, with every micro-batch as one lane.
    pub(super) fn course(&self) -> Course {
        let settings = &self.settings;
        let training = Training {
            length: Length::Steps(settings.steps as u64),
            batch_size: settings.batch,
            lanes: 1,
            accumulation: settings.accumulate,
            learning_rate: settings.lr,
            schedule: Schedule::Linear,
            warmup: Warmup::Steps(settings.warmup),
            weight_decay: settings.decay,
            betas: settings.betas,
            epsilon: settings.epsilon,
            clip_norm: Some(settings.clip),
            keep_best: false,
            ..Training::default()
        };
        let rows = settings.steps as u64 * u64::from(settings.batch) * u64::from(settings.accumulate);
        Course { training, metric: Metric::Accuracy, rows }
    }

    /// The peer's values of a tensor at the end.
    pub(super) fn end_of(&self, name: &str, count: usize) -> Result<&[f32], FollowError> {
        let tensor = self.end.get(name).filter(|tensor| tensor.values.len() == count);
        tensor.map(|tensor| tensor.values.as_slice()).ok_or_else(|| FollowError::Recording {
            path: self.folder.join("end.safetensors"),
            what: format!("tensor {name} is missing or has not {count} values"),
        })
    }
}

/// The network of a recording: adapter `t` with head `t`, or a fusion of the adapters `a`, `b` and `c` with head `t`.
fn setup(settings: &Settings) -> Result<Setup, String> {
    let name = |text: &str| text.parse::<Name>().map_err(|error| error.to_string());
    let config = AdapterConfig::preset(&settings.config)
        .ok_or_else(|| format!("config {:?} is not the name of a method that is known here", settings.config))?;
    let output = match settings.classes {
        1 => HeadOutput::Regression,
        classes => HeadOutput::Classification { labels: (0..classes).map(|class| class.to_string()).collect() },
    };
    let names = if settings.fuse { vec![name("a")?, name("b")?, name("c")?] } else { vec![name("t")?] };
    let children: Vec<_> = names.iter().cloned().map(Composition::single).collect();
    let composition = match children.as_slice() {
        [single] => single.clone(),
        _ => Composition::Fuse { children, name: None },
    };
    let fusion = composition.fusion_name();
    let mut setup = Setup {
        adapters: names.into_iter().map(|name| (name, config.clone())).collect(),
        fusions: fusion.into_iter().map(|name| (name, FusionConfig::default())).collect(),
        composition: Some(composition),
        heads: vec![(name("t")?, Head::new(output))],
        trained: Trained::default(),
    };
    setup.trained = Trained::all(&setup);
    if settings.fuse {
        setup.trained.adapters.clear();
    }
    Ok(setup)
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, FollowError> {
    let text = fs::read(path).map_err(|error| FollowError::Read { path: path.to_owned(), error })?;
    serde_json::from_slice(&text).map_err(|error| wrong(path, error.to_string()))
}

fn wrong(path: &Path, what: String) -> FollowError {
    FollowError::Recording { path: path.to_owned(), what }
}

/// A tensor of integers, or of numbers for regression's labels.
enum Numbers {
    Whole(Vec<i64>),
    Real(Vec<f32>),
}

type Columns = BTreeMap<String, (Vec<usize>, Numbers)>;

fn read_updates(path: &Path, settings: &Settings) -> Result<Vec<Vec<Lane>>, FollowError> {
    let bytes = fs::read(path).map_err(|error| FollowError::Read { path: path.to_owned(), error })?;
    let raw = safetensors::read_raw(&bytes).map_err(|error| wrong(path, error.to_string()))?;
    let mut columns = Columns::new();
    for (name, tensor) in raw {
        let numbers = match tensor.dtype {
            Dtype::I64 => {
                Numbers::Whole(tensor.bytes.as_chunks().0.iter().map(|word| i64::from_le_bytes(*word)).collect())
            }
            Dtype::F32 => {
                Numbers::Real(tensor.bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect())
            }
            // torch's default tensors of Python floats are F32, those of pyarrow's doubles as well.
            other => return Err(wrong(path, format!("tensor {name} is {other:?}, expected I64 or F32"))),
        };
        columns.insert(name, (tensor.shape, numbers));
    }
    let mut first_row = 0;
    let mut lane = |step: usize, micro: u32| {
        let lane = read_lane(&columns, &format!("{step}.{micro}"), first_row).map_err(|what| wrong(path, what))?;
        first_row += lane.rows.len() as u64;
        Ok(lane)
    };
    (0..settings.steps).map(|step| (0..settings.accumulate).map(|micro| lane(step, micro)).collect()).collect()
}

/// One micro-batch, its padding taken off.
fn read_lane(columns: &Columns, at: &str, first_row: u64) -> Result<Lane, String> {
    let get = |what: &str| columns.get(&format!("{at}.{what}")).ok_or_else(|| format!("tensor {at}.{what} is missing"));
    let ((shape, ids), (mask_shape, mask), (_, labels)) = (get("input_ids")?, get("attention_mask")?, get("labels")?);
    let (Numbers::Whole(ids), Numbers::Whole(mask), [rows, width]) = (ids, mask, shape.as_slice()) else {
        return Err(format!("{at}: input ids and mask must be two-dimensional integers"));
    };
    if mask_shape != shape {
        return Err(format!("{at}: the mask's shape is {mask_shape:?}, that of the ids {shape:?}"));
    }
    let mut tokens = Tokens::default();
    for (ids, mask) in ids.chunks_exact(*width).zip(mask.chunks_exact(*width)) {
        let length = mask.iter().take_while(|&&kept| kept == 1).count();
        if mask[length..].contains(&1) {
            return Err(format!("{at}: padding stands in front of tokens"));
        }
        tokens.ids.extend(&ids[..length]);
        tokens.lengths.push(length);
    }
    tokens.type_ids = read_types(columns, at, &tokens, *width)?;
    let targets = match labels {
        Numbers::Whole(classes) => Targets::Classes(classes.clone()),
        Numbers::Real(values) => Targets::Values(values.clone()),
    };
    if targets.len() != *rows {
        return Err(format!("{at}: {} labels for {rows} rows", targets.len()));
    }
    Ok(Lane { tokens, targets, rows: (first_row..).take(*rows).collect() })
}

/// Segment ids of the kept tokens: zeros where the recording has none.
fn read_types(columns: &Columns, at: &str, tokens: &Tokens, width: usize) -> Result<Vec<i64>, String> {
    match columns.get(&format!("{at}.token_type_ids")) {
        None => Ok(vec![0; tokens.ids.len()]),
        Some((shape, Numbers::Whole(types))) if shape.as_slice() == [tokens.rows(), width] => {
            let rows = types.chunks_exact(width).zip(&tokens.lengths);
            Ok(rows.flat_map(|(types, &length)| types[..length].to_vec()).collect())
        }
        Some(_) => Err(format!("{at}: segment ids do not have the shape of the ids")),
    }
}
