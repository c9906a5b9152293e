//! One job and its stages, as far as they are durable.

use std::collections::BTreeMap;

use graftwork_shared::{
    assignment::{Failure, StageResult, Usage},
    digest::Digest,
    event::Outcome,
    id::Name,
    job::Device,
    recipe::NumericClass,
    view::Preempted,
};
use serde::{Deserialize, Serialize};

use crate::{
    index::JobIndex,
    phase::Phase,
    plan::{FusedSource, Plan, PlannedStage},
    sweep::SweepState,
};

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobState {
    pub(crate) plan: Plan,
    /// Number of its submission: earlier ones go first.
    pub(crate) order: u64,
    pub(crate) submitted_ms: u64,
    pub(crate) cancelled: Option<String>,
    pub(crate) ended: Option<(u64, Outcome)>,
    /// In the plan's order.
    pub(crate) stages: Vec<StageRecord>,
    /// By the swept task.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) sweeps: BTreeMap<Name, SweepState>,
    /// What is looked up of all this.
    #[serde(skip)]
    pub(crate) index: JobIndex,
}

/// One stage of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageRecord {
    pub(crate) phase: Phase,
    /// Where the next attempt goes on.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// How often it was handed out.
    pub(crate) attempts: u32,
    /// Failures since the last progress.
    pub(crate) failures: Vec<Failure>,
    /// Not before this time, in milliseconds since 1970.
    pub(crate) retry_at_ms: Option<u64>,
    pub(crate) result: Option<StageResult>,
    /// The result is an earlier one.
    pub(crate) reused: bool,
    /// Its place went to other stages.
    #[serde(default)]
    pub(crate) preempted: Option<Preempted>,
    /// Time that earlier attempts ran, in milliseconds, since the job was last submitted.
    #[serde(default)]
    pub(crate) ran_ms: u64,
    /// Wall time of attempts that gave no result, in milliseconds.
    pub(crate) lost_ms: u64,
    /// What else they cost.
    #[serde(default)]
    pub(crate) lost: Usage,
    /// What the attempt that runs is known to have cost.
    #[serde(default)]
    pub(crate) running: Usage,
}

/// An accepted checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) step: u64,
    pub(crate) blob: Digest,
    pub(crate) class: NumericClass,
}

impl StageRecord {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Pending,
            checkpoint: None,
            attempts: 0,
            failures: Vec::new(),
            retry_at_ms: None,
            result: None,
            reused: false,
            preempted: None,
            ran_ms: 0,
            lost_ms: 0,
            lost: Usage::default(),
            running: Usage::default(),
        }
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.checkpoint.iter().map(|checkpoint| checkpoint.blob).chain(self.result_blobs())
    }

    pub(crate) fn result_blobs(&self) -> impl Iterator<Item = Digest> {
        let blobs = |result: &StageResult| {
            std::iter::once(result.weights).chain(result.predictions.values().copied()).collect::<Vec<_>>()
        };
        self.result.iter().flat_map(blobs)
    }
}

impl PlannedStage {
    /// Blobs that its assignments name: adapters from outside.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.fused.iter().filter_map(|fused| match fused {
            FusedSource::External { blob, .. } => Some(*blob),
            FusedSource::Stage(_) => None,
        })
    }
}

impl JobState {
    pub(crate) fn new(plan: Plan, order: u64, submitted_ms: u64) -> Self {
        let stages = plan.stages.iter().map(|_| StageRecord::new()).collect();
        let sweeps = SweepState::all(&plan);
        let index = JobIndex::default();
        let mut job = Self { plan, order, submitted_ms, cancelled: None, ended: None, stages, sweeps, index };
        job.index = JobIndex::of(&job);
        job
    }

    /// Whether its stages run on processors.
    pub(crate) fn is_for_cpu(&self) -> bool {
        self.plan.job.resources.device == Device::Cpu
    }

    /// The position of a stage.
    pub(crate) fn position(&self, name: &Name) -> Option<usize> {
        self.index.position(name)
    }

    /// The planned stage of this name.
    pub(crate) fn planned(&self, name: &Name) -> Option<&PlannedStage> {
        self.plan.stages.get(self.position(name)?)
    }

    /// A stage's result by its name.
    pub(crate) fn result(&self, name: &Name) -> Option<&StageResult> {
        self.stages[self.position(name)?].result.as_ref()
    }

    /// Stages that the stage at this position waits for.
    pub(crate) fn waits_for(&self, position: usize) -> Vec<Name> {
        if let Some(trials) = self.waits_in_sweep(position) {
            return trials;
        }
        let needs = &self.plan.stages[position].needs;
        needs.iter().filter(|needs| self.result(needs).is_none()).cloned().collect()
    }

    /// A stage that it waits for and that will never have a result.
    pub(crate) fn hopeless_need(&self, position: usize) -> Option<(&Name, &Phase)> {
        if self.plan.stages[position].sweep.is_some() {
            return None; // what comes of trials without a result is the sweep's affair
        }
        self.plan.stages[position].needs.iter().find_map(|needs| {
            let record = &self.stages[self.position(needs)?];
            (record.result.is_none() && record.phase.is_final()).then_some((needs, &record.phase))
        })
    }

    /// The planned stages with where they stand.
    pub(crate) fn each(&self) -> impl Iterator<Item = (usize, &PlannedStage, &StageRecord)> {
        self.plan
            .stages
            .iter()
            .zip(&self.stages)
            .enumerate()
            .map(|(position, (stage, record))| (position, stage, record))
    }

    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        let stages = self.each().flat_map(|(_, stage, record)| stage.blobs().chain(record.blobs()));
        stages.chain(self.plan.uploads.iter().copied())
    }
}

impl StageRecord {
    /// Takes a checkpoint; gives the blob of the one before.
    pub(crate) fn accept(&mut self, step: u64, blob: Digest) -> Result<Option<Digest>, String> {
        let earlier = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
        if step <= earlier && self.checkpoint.is_some() {
            return Err(format!("checkpoint of step {step} after one of step {earlier}"));
        }
        let class = self.phase.grant().ok_or("the stage does not run")?.class.clone();
        self.failures.clear();
        Ok(self.checkpoint.replace(Checkpoint { step, blob, class }).map(|checkpoint| checkpoint.blob))
    }
}

impl JobState {
    /// Weight blobs of what a fusion reads, in the recipe's order. Its needs have their results.
    pub(crate) fn fused_blobs(&self, position: usize) -> Vec<Digest> {
        let blob = |fused: &FusedSource| match fused {
            FusedSource::Stage(name) => self.result(name).map(|result| result.weights),
            FusedSource::External { blob, .. } => Some(*blob),
        };
        self.plan.stages[position].fused.iter().filter_map(blob).collect()
    }
}
