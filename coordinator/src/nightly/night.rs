//! What is kept of a night, and how it is gathered from a job that has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, ensure};
use graftwork_shared::{
    NUMERICS_VERSION, VERSION,
    assignment::Usage,
    cause::told,
    data::Split,
    digest::{Digest, Hasher},
    id::Name,
    job::Job,
    metric::Metric,
    recipe::NumericClass,
    view::{JobView, StageKind, StageState, StageView},
};
use graftwork_verdict::{Measure, Scorer};
use graftwork_web::Problem;
use serde::{Deserialize, Serialize};

use super::{
    answers::{Asked, Book},
    expand::measured,
    passing::may_pass,
};
use crate::{cli::Worker, run::Recovery};

/// Version of the layout of a night's files.
pub(super) const LAYOUT: u32 = 1;

/// A stored night.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Night {
    /// Version of this layout.
    pub(super) layout: u32,
    /// Its number, from 1; 0 for what is no night of the history.
    pub(super) number: u64,
    /// Milliseconds since 1970.
    pub(super) began_ms: u64,
    /// Milliseconds since 1970.
    pub(super) ended_ms: u64,
    /// Times it went on after an interruption.
    pub(super) resumed: u32,
    /// It ran on workers that serve other jobs too and live on behind it; earlier versions did not keep it.
    #[serde(default)]
    pub(super) shared: bool,
    /// What was measured.
    pub(super) code: Code,
    /// The resolved job with its seeds.
    pub(super) job: Job,
    /// Each task and fusion with each seed.
    pub(super) measurements: Vec<Measurement>,
    /// What has no measurement, and why.
    pub(super) failed: Vec<Problem>,
    /// An expectation of the job file was missed.
    pub(super) missed: bool,
    /// What it used.
    pub(super) usage: Usage,
    /// How long training stood still after each loss, as far as somebody saw it.
    #[serde(default)]
    pub(super) recoveries: Vec<Recovery>,
    /// Digest of the file of its answers; earlier versions did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) answers: Option<Digest>,
    /// Set once it was compared.
    pub(super) judged: Option<Judged>,
}

impl Night {
    /// What people call it.
    pub(super) fn title(&self) -> String {
        if self.number == 0 { self.code.name.clone() } else { format!("night {}", self.number) }
    }

    /// What later nights ask of one whose answers and pages are gone: scores, costs, code, what came of it.
    pub(super) fn numbers(&self) -> Self {
        let mut numbers = self.clone();
        (numbers.job.tasks, numbers.job.fusions) = (Vec::new(), Vec::new());
        numbers.measurements.iter_mut().for_each(|measured| measured.attention = Vec::new());
        numbers
    }
}

/// What comparing a night left for the nights to come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Judged {
    /// No regression that was not expected: it may be a baseline.
    pub(super) good: bool,
    /// The night it was compared with.
    pub(super) baseline: Option<u64>,
    /// Reasons for expected changes that were used up, in this night or an earlier one.
    pub(super) used: BTreeSet<String>,
    /// The night at which the history of a cost begins anew, since growth was expected there.
    pub(super) cost_since: BTreeMap<String, u64>,
    /// Scores and costs that got worse and were not expected to; earlier versions did not keep it.
    #[serde(default)]
    pub(super) regressions: u64,
}

/// The code that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Code {
    /// Version of the programs.
    pub(super) version: String,
    /// Version of the numerics.
    pub(super) numerics: u32,
    /// As the user names it, else the digest of the programs.
    pub(super) name: String,
    /// First digits of the digest of the programs, whatever they are called; earlier versions did not keep it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) programs: String,
}

/// This program as it runs, also after another one took its place on the disk.
const RUNNING: &str = "/proc/self/exe";

impl Code {
    /// The programs that run now.
    pub(super) fn now(named: Option<&str>) -> anyhow::Result<Self> {
        let worker = Worker::find().map_err(|failure| failure.error)?;
        Self::of("programs", &[RUNNING.into(), worker.command().get_program().into()], named)
    }

    /// A coordinator that runs now; its workers may be of other machines.
    pub(super) fn of_coordinator(named: Option<&str>) -> anyhow::Result<Self> {
        Self::of("coordinator", &[RUNNING.into()], named)
    }

    /// Whether its name is that of a git commit, so that commits between two of them can be looked for.
    pub(super) fn is_commit(&self) -> bool {
        (7..=40).contains(&self.name.len()) && self.name.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    fn of(kind: &str, programs: &[PathBuf], named: Option<&str>) -> anyhow::Result<Self> {
        let programs = digest(programs)?;
        let name = named.map_or_else(|| format!("{kind} {programs}"), str::to_owned);
        Ok(Self { version: VERSION.to_owned(), numerics: NUMERICS_VERSION, name, programs })
    }
}

/// First digits of the digest of programs.
pub(super) fn digest(programs: &[PathBuf]) -> anyhow::Result<String> {
    let mut hasher = Hasher::new();
    for program in programs {
        let mut file = std::fs::File::open(program).with_context(|| program.display().to_string())?;
        std::io::copy(&mut file, &mut hasher)?;
    }
    Ok(hasher.finish().short())
}

/// One task or fusion with one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Measurement {
    /// The task or fusion.
    pub(super) task: Name,
    /// Its seed.
    pub(super) seed: u64,
    /// Adapter or fusion.
    pub(super) kind: StageKind,
    /// The method in a line.
    pub(super) method: String,
    /// The metric that counts.
    pub(super) metric: Metric,
    /// The rows it was measured on.
    pub(super) split: Split,
    /// Digest of those rows.
    pub(super) data: Option<Digest>,
    /// Class names; empty for numbers.
    pub(super) labels: Vec<String>,
    /// All scores.
    pub(super) scores: BTreeMap<Metric, f64>,
    /// Digest of the recipe.
    pub(super) recipe: Digest,
    /// Digest of the trained tensors.
    pub(super) weights: Digest,
    /// Where it was computed.
    pub(super) numeric_class: NumericClass,
    /// What the attempt that gave it cost.
    pub(super) usage: Usage,
    /// Attention of a fusion, `[layer][adapter]`.
    pub(super) attention: Vec<Vec<f64>>,
}

/// How far a score that is computed again may lie from the one that the worker reported.
const SAME_SCORE: f64 = 1e-6;

/// Reads results and answers of all stages that have them; what has none is told, and so is what can never be read. An
/// error says what may be read later, or that the job is none of a night.
pub(super) fn gather(view: &JobView) -> anyhow::Result<(Vec<Measurement>, Book, Vec<Problem>)> {
    let (mut measurements, mut book, mut failed) = (Vec::new(), Book::default(), Vec::new());
    for stage in &view.stages {
        let (task, seed) = measured(&stage.name).ok_or_else(|| anyhow!("{} is no stage of a night", stage.name))?;
        let measured = match measurement(stage, task.clone(), seed) {
            Err(error) if !may_pass(&error) => Err(told(error.as_ref())),
            measured => measured?,
        };
        match measured {
            Ok((measurement, asked)) => {
                book.0.insert((task, seed), asked);
                measurements.push(measurement);
            }
            Err(reason) => {
                let message = format!("with seed {seed} has no score: {reason}");
                failed.push(Problem { name: task.to_string(), message, fails: true });
            }
        }
    }
    Ok((measurements, book, failed))
}

type Measured = Result<(Measurement, Asked), String>;

fn measurement(stage: &StageView, task: Name, seed: u64) -> anyhow::Result<Measured> {
    let (Some(result), Some(release)) = (&stage.result, &stage.release) else {
        return Ok(Err(match &stage.state {
            StageState::Failed { failure } => failure.message.clone(),
            StageState::Cancelled { reason } => reason.clone(),
            _ => "it was not published".to_owned(),
        }));
    };
    let split = if result.scores.contains_key(&Split::Test) { Split::Test } else { Split::Validation };
    let scores = result.scores.get(&split).map(|evaluation| evaluation.metrics.clone()).unwrap_or_default();
    let path = Path::new(release).join("predictions").join(format!("{split}.jsonl"));
    let lines = std::fs::read(&path).with_context(|| format!("reading the answers of {}", stage.name))?;
    let asked = Asked::read(&lines, &stage.labels).with_context(|| path.display().to_string())?;
    for (metric, score) in &scores {
        let again = Scorer::new(measure(*metric), &asked.right, &asked.given).plain();
        ensure!(
            (again - score).abs() <= SAME_SCORE,
            "the answers of {} give {metric} {again}, and {score} was reported: this is a defect of Graftwork",
            stage.name
        );
    }
    let measurement = Measurement {
        task,
        seed,
        kind: stage.kind,
        method: stage.method.clone(),
        metric: stage.metric,
        split,
        data: result.data.get(&split).copied(),
        labels: stage.labels.clone(),
        scores,
        recipe: stage.recipe,
        weights: result.weights,
        numeric_class: result.numeric_class.clone(),
        usage: result.usage,
        attention: result.attention.clone(),
    };
    Ok(Ok((measurement, asked)))
}

/// The measure that computes a metric.
pub(super) fn measure(metric: Metric) -> Measure {
    match metric {
        Metric::Accuracy | Metric::F1Micro => Measure::Accuracy,
        Metric::F1 => Measure::F1,
        Metric::F1Macro => Measure::F1Macro,
        Metric::Matthews => Measure::Matthews,
        Metric::Pearson => Measure::Pearson,
        Metric::Spearman => Measure::Spearman,
    }
}
