//! What a job looks like from outside at one moment: the one value behind `status`, `watch`, `report`, the pages
//! and their tests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    assignment::{Evaluation, Failure, StageResult, Usage},
    digest::Digest,
    event::{Outcome, StepReport},
    id::{JobId, Name, WorkerId},
    metric::Metric,
    sweep::{SweepView, TrialView},
};

/// A job at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// Its digest.
    pub digest: Digest,
    /// Its name.
    pub name: String,
    /// Who pays.
    pub owner: String,
    /// Where its base model lies.
    pub base_model: String,
    /// Digest of the base model.
    pub base_model_digest: Digest,
    /// The hub folder its results go to.
    pub hub: String,
    /// Milliseconds since 1970 when it was submitted.
    pub submitted_ms: u64,
    /// Milliseconds since 1970 when it ended.
    pub ended_ms: Option<u64>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Stages: tasks in the job file's order, then fusions.
    pub stages: Vec<StageView>,
    /// What it cost so far.
    pub usage: Usage,
}

/// A stage at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageView {
    /// The task's or fusion's name.
    pub name: Name,
    /// Adapter or fusion.
    pub kind: StageKind,
    /// The stages it waits for.
    pub needs: Vec<Name>,
    /// For a fusion: the names of the fused adapters in the order of attention.
    pub fused: Vec<String>,
    /// For a fusion: the task whose rows it uses.
    pub task: Option<Name>,
    /// The method, in one line for people, such as `seq_bn with reduction_factor 8`.
    pub method: String,
    /// Training, validation and test rows.
    pub rows: [u64; 3],
    /// Class names; empty for regression.
    pub labels: Vec<String>,
    /// Digest of its recipe.
    pub recipe: Digest,
    /// Updates in all.
    pub total_steps: u64,
    /// Trained numbers.
    pub trained_parameters: u64,
    /// The metric that counts.
    pub metric: Metric,
    /// What the user expects of it.
    pub expect: Option<f64>,
    /// For a task that is swept: its trials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<SweepView>,
    /// For a trial: of which task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialView>,
    /// Where it stands.
    pub state: StageState,
    /// Why it stands there, as `explain` says it, for a stage that waits or runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Step reports so far, oldest first, thinned to at most 500.
    pub curve: Vec<StepReport>,
    /// Validation scores so far.
    pub validation: Vec<Evaluation>,
    /// The result, once there is one.
    pub result: Option<StageResult>,
    /// What it cost so far: its result, where that was not taken from an earlier one, and all attempts that gave none.
    #[serde(default)]
    pub usage: Usage,
    /// Its place went to stages of higher priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preempted: Option<Preempted>,
    /// The release, once published.
    pub release: Option<String>,
}

/// That a stage gave its place to others, and the last time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preempted {
    /// How often.
    pub times: u32,
    /// The other stage's job.
    pub by_job: JobId,
    /// The other stage.
    pub by: Name,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Step of the checkpoint that it had, and goes on from; 0 for none.
    pub step: u64,
}

impl std::fmt::Display for Preempted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let times = if self.times > 1 { format!(", {} times in all", self.times) } else { String::new() };
        write!(
            f,
            "at step {} its place went to {} of job {}, which has a higher priority{times}",
            self.step, self.by, self.by_job
        )
    }
}

/// What a stage trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    /// A task's adapter.
    Adapter,
    /// A fusion layer.
    Fusion,
}

/// Where a stage stands.
///
/// ```text
/// Waiting ──► Ready ──► Running ──► Trained ──► Published
///                ▲         │
///                └─ retry ─┴──► Failed      any ──► Cancelled
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum StageState {
    /// Needs stages that are not trained.
    Waiting {
        /// Those stages.
        for_stages: Vec<Name>,
    },
    /// Could start now, but does not yet.
    Ready {
        /// Why not.
        refusal: Refusal,
    },
    /// On a worker.
    Running {
        /// The worker; of a group the one that speaks for it.
        worker: WorkerId,
        /// Further members of its group.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        others: Vec<WorkerId>,
        /// Step of the last durable checkpoint.
        checkpoint_step: u64,
    },
    /// Has its result.
    Trained {
        /// Taken from an earlier result of the same recipe.
        reused: bool,
    },
    /// In the hub.
    Published {
        /// Taken from an earlier result of the same recipe.
        reused: bool,
    },
    /// Failed for good.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// Stopped by the user, or needs a stage that failed.
    Cancelled {
        /// Why.
        reason: String,
    },
    /// A trial that does not go on.
    Stopped {
        /// The rung that it reached, from 0.
        rung: u32,
    },
    /// A trial that became its task.
    Chosen,
}

/// Why a ready stage does not run: the same value in the log, `explain`, the page and the tests (invariant 7).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "refusal", rename_all = "snake_case")]
pub enum Refusal {
    /// No worker has a session.
    NoWorker,
    /// The hub is being asked for an earlier result of the same recipe.
    LookingForReuse,
    /// No worker has the kind of device that the job asks for.
    Device {
        /// What the job asks for: `cpu` or `cuda`.
        needs: String,
        /// The devices there are.
        have: Vec<String>,
    },
    /// No worker has the memory that it is expected to need.
    Memory {
        /// Bytes it is expected to need.
        needs_bytes: u64,
        /// Bytes of the largest worker.
        largest_bytes: u64,
    },
    /// All places for assignments are taken.
    Busy {
        /// Workers with a session.
        workers: u32,
        /// Their places.
        slots: u32,
        /// Ready stages that go first.
        ahead: Vec<Name>,
    },
    /// Its owner has as much as it may have at a time.
    Quota {
        /// The owner.
        owner: String,
        /// Of what.
        of: QuotaOf,
        /// How many it has.
        has: u32,
        /// How many it may have.
        most: u32,
        /// How many more it needs at once.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        needs: u32,
    },
    /// It starts on several workers at once, and too few are free.
    Gang {
        /// On how many.
        needs: u32,
        /// Those of one numeric class that reach each other and have room.
        free: u32,
        /// Those that there are.
        have: u32,
    },
    /// Another stage is served first that starts on several workers at once: places are kept for it.
    Behind {
        /// Its job.
        job: JobId,
        /// The stage.
        stage: Name,
        /// On how many.
        needs: u32,
    },
    /// An attempt failed and the next one waits.
    BackingOff {
        /// The failure.
        failure: Failure,
        /// Attempts so far.
        attempts: u32,
        /// Milliseconds since 1970 when it is tried again.
        until_ms: u64,
    },
    /// It was planned for another numerics version than any worker computes.
    NumericsVersion {
        /// The version it needs.
        needs: u32,
        /// The versions there are.
        have: Vec<u32>,
    },
    /// Its checkpoint was computed in another numeric class than any worker's.
    NumericClass {
        /// The class it needs.
        needs: String,
        /// The classes there are.
        have: Vec<String>,
    },
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(number: &u32) -> bool {
    *number == 1
}

/// What a quota bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaOf {
    /// Places of workers.
    Places,
    /// Jobs that have not ended.
    Jobs,
}

impl Refusal {
    /// Whether it stays until another worker comes or the job changes: no wait alone ends it.
    pub fn lasts(&self) -> bool {
        match self {
            Self::Device { .. } | Self::Memory { .. } | Self::NumericsVersion { .. } | Self::NumericClass { .. } => {
                true
            }
            Self::Quota { most, needs, .. } => most < needs,
            Self::Gang { needs, have, .. } => have < needs,
            Self::NoWorker
            | Self::LookingForReuse
            | Self::Busy { .. }
            | Self::Behind { .. }
            | Self::BackingOff { .. } => false,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoWorker => write!(f, "no worker is connected; start one with `graftwork worker`"),
            Self::LookingForReuse => write!(f, "the hub is being asked for an earlier result of the same recipe"),
            Self::Device { needs, have } => {
                write!(f, "the job asks for device {needs}, and workers here have {}", have.join(", "))
            }
            Self::Memory { needs_bytes, largest_bytes } => write!(
                f,
                "it is expected to need {} MiB of memory, and the largest worker has {} MiB",
                needs_bytes.div_ceil(1 << 20),
                largest_bytes >> 20
            ),
            Self::Busy { workers, slots, ahead } => {
                write!(f, "all {slots} places on {workers} worker(s) are taken")?;
                match ahead.as_slice() {
                    [] => Ok(()),
                    names => write!(f, "; {} ready stage(s) go first: {}", names.len(), join(names)),
                }
            }
            Self::Quota { owner, of: QuotaOf::Places, has, most, needs } => {
                write!(f, "{owner} has {has} places of workers, and its quota is {most}")?;
                if *needs > 1 { write!(f, "; it needs {needs} more at once") } else { Ok(()) }
            }
            Self::Gang { needs, free, have } => {
                write!(
                    f,
                    "it starts on {needs} workers at once (resources.gang), and {free} of {have} that could train it \
                     together are free"
                )?;
                let help = "; start more of one kind that reach each other, or ask for fewer";
                f.write_str(if have < needs { help } else { "" })
            }
            Self::Behind { job, stage, needs } => {
                write!(
                    f,
                    "places are kept for {stage} of job {job}, which is served first and starts on {needs} workers at \
                     once"
                )
            }
            Self::Quota { owner, of: QuotaOf::Jobs, has, most, .. } => {
                write!(f, "{owner} has {has} jobs that have not ended, and its quota is {most}")
            }
            Self::BackingOff { failure, attempts, until_ms } => {
                write!(f, "attempt {attempts} failed ({}); the next one starts at {until_ms} ms", failure.message)
            }
            Self::NumericsVersion { needs, have } => {
                let have: Vec<String> = have.iter().map(u32::to_string).collect();
                write!(
                    f,
                    "it was planned for numerics version {needs}, and workers here compute version {}; start a worker \
                     of the program that planned it, or cancel the job and submit it again",
                    have.join(", ")
                )
            }
            Self::NumericClass { needs, have } => write!(
                f,
                "its checkpoint was computed on {needs}, and equal bytes need the same; workers here are {}",
                if have.is_empty() { "none".to_owned() } else { have.join(", ") }
            ),
        }
    }
}

fn join(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

impl StageView {
    /// The score that the user's expectation is held against: on test rows, or validation rows where there are none.
    pub fn held_out_score(&self) -> Option<f64> {
        use crate::data::Split;
        let scores: &BTreeMap<Split, Evaluation> = &self.result.as_ref()?.scores;
        let evaluation = scores.get(&Split::Test).or_else(|| scores.get(&Split::Validation))?;
        evaluation.metrics.get(&self.metric).copied()
    }

    /// Whether the expectation is missed; `None` without an expectation or a score. A score that is not a number misses.
    pub fn missed(&self) -> Option<bool> {
        let (score, expect) = (self.held_out_score()?, self.expect?);
        Some(score.is_nan() || score < expect)
    }
}
