//! Follows a training run that the Python peer recorded, step by step, through the real trainer.
//!
//! A recording is a folder: `settings.json`, `start.safetensors`, `batches.safetensors`, `end.safetensors` and
//! `steps.json`. Every micro-batch becomes one lane, so the arithmetic is that of any other training. The recording
//! adds fusion's penalty to the loss of the same step, as Graftwork does; the peer's own trainer adds it one step late,
//! and a run of that trainer would not be followed.

mod recording;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use graftwork_model::{BaseModel, ModelError, Tensors};

use crate::{
    Device, EngineError, Network, Trunk,
    trainer::{TrainError, Trainer},
};
use recording::Recording;

/// Largest difference of a step's loss.
const LOSS_TOLERANCE: f64 = 1e-4;
/// Largest relative difference of a step's gradient norm, and of its learning rate.
const NORM_TOLERANCE: f64 = 1e-3;
/// Largest distance of a tensor at the end, relative to its norm.
const TENSOR_TOLERANCE: f64 = 1e-3;

/// Why a recording cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// A file does not hold what a recording holds.
    #[error("{}: {what}", path.display())]
    Recording {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A weight file or the base model is not usable.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The network cannot be built or computed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Training cannot go on.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The report cannot be written.
    #[error("cannot write the report: {0}")]
    Write(io::Error),
}

impl From<io::Error> for FollowError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

/// Follows the recording in `folder` on the base model in `base_model` on a device, and writes a line for each check and a summary
/// to `out`. True when every loss is within 1e-4, every gradient norm within 1e-3 of itself, and every trained tensor
/// at the end within 1e-3 of its norm. Tensors whose true gradient is zero are named and left out.
pub fn follow(folder: &Path, base_model: &Path, device: Device, out: &mut dyn Write) -> Result<bool, FollowError> {
    let recording = Recording::read(folder)?;
    let base = BaseModel::open_without_tokenizer(base_model)?;
    let network = Network::new(Trunk::open(&base, device)?, recording.setup.clone(), recording.start.clone())?;
    let mut trainer = Trainer::new(recording.course(), &recording.setup, network.layout(), network.parameters())?;
    let mut report = Report { out, checks: 0, failed: 0 };
    for (lanes, peer) in recording.updates.iter().zip(&recording.steps) {
        let rows = lanes.iter().map(|lane| lane.rows.len() as u64).sum();
        let options = trainer.step_options(rows);
        let outputs = lanes.iter().map(|lane| network.lane(lane, &options.lane()).map(Some));
        let ours = trainer.step(outputs.collect::<Result<Vec<_>, _>>()?)?;
        network.set_parameters(trainer.parameters());
        let what = |quantity: &str| format!("step {:2} {quantity}", peer.step);
        report.number(&what("loss"), [ours.loss, peer.loss], LOSS_TOLERANCE)?;
        let relative = |peer: f64| NORM_TOLERANCE * peer.abs();
        report.number(&what("norm"), [ours.gradient_norm, peer.gradient_norm], relative(peer.gradient_norm))?;
        report.number(&what("rate"), [ours.learning_rate, peer.learning_rate], relative(peer.learning_rate))?;
    }
    compare_tensors(&mut report, &recording, &trainer)?;
    let (passed, checks) = (report.checks - report.failed, report.checks);
    writeln!(report.out, "{}: {passed} of {checks} checks passed", folder.display())?;
    Ok(report.failed == 0 && checks > 0)
}

fn compare_tensors(report: &mut Report<'_>, recording: &Recording, trainer: &Trainer) -> Result<(), FollowError> {
    let ours: Tensors = trainer.kept_tensors();
    for (name, tensor) in &ours {
        // Adding one vector to all keys of a softmax changes nothing, so this gradient is noise on both sides.
        if name.contains(".adapter_fusion_layer.") && name.ends_with(".key.bias") {
            writeln!(report.out, "{name}: left out, its true gradient is zero")?;
            continue;
        }
        let peer = recording.end_of(name, tensor.values.len())?;
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let pairs = || tensor.values.iter().zip(peer).map(|(&ours, &peer)| (f64::from(ours), f64::from(peer)));
        let distance = norm(&mut pairs().map(|(ours, peer)| ours - peer));
        let size = norm(&mut pairs().map(|(_, peer)| peer));
        report.check(distance <= TENSOR_TOLERANCE * size, &format!("{name}: {:.1e} of its norm", distance / size))?;
    }
    Ok(())
}

struct Report<'a> {
    out: &'a mut dyn Write,
    checks: usize,
    failed: usize,
}

impl Report<'_> {
    fn number(&mut self, what: &str, [ours, peer]: [f64; 2], tolerance: f64) -> Result<(), FollowError> {
        let distance = (ours - peer).abs();
        self.check(distance <= tolerance, &format!("{what} {ours:.6}, peer {peer:.6}, apart {distance:.1e}"))
    }

    fn check(&mut self, passed: bool, line: &str) -> Result<(), FollowError> {
        self.checks += 1;
        self.failed += usize::from(!passed);
        Ok(writeln!(self.out, "{} {line}", if passed { "ok  " } else { "FAIL" })?)
    }
}
