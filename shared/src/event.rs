//! What people watch: facts about a running job, as they are streamed to `watch`, logs and progress displays.
//!
//! Events are for eyes. Nothing decides by them and nothing is recovered from them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    assignment::{Evaluation, Failure},
    id::{JobId, Name, WorkerId},
    sweep::RungScore,
    view::Refusal,
};

/// One line of a job's story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The job.
    pub job: JobId,
    /// Milliseconds since 1970, by the coordinator's clock.
    pub at_ms: u64,
    /// The stage, where it is about one.
    pub stage: Option<Name>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// The job was accepted, or taken up again after a restart.
    JobStarted {
        /// Stages in all.
        stages: u32,
        /// It goes on from an earlier start.
        resumed: bool,
    },
    /// A worker opened a session.
    WorkerJoined {
        /// The worker.
        worker: WorkerId,
        /// Its host and process.
        place: String,
        /// Trainer threads.
        threads: u32,
    },
    /// A worker's session ended.
    WorkerLeft {
        /// The worker.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// A stage was handed to a worker.
    StageStarted {
        /// The worker.
        worker: WorkerId,
        /// The step it goes on from.
        from_step: u64,
        /// Updates in all.
        total_steps: u64,
        /// Attempts before this one.
        attempt: u32,
    },
    /// The group of workers that trains a stage together is another one from now on.
    GroupFormed {
        /// Grows with every change; the worker that a stage starts on alone is epoch 0.
        epoch: u64,
        /// Its members; the first speaks for the stage.
        members: Vec<WorkerId>,
        /// Why it changed.
        reason: String,
    },
    /// A worker could not join those that train a stage; they go on without it.
    JoinFailed {
        /// The worker.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// A stage gave its place to one of higher priority, and is ready again.
    Preempted {
        /// The other stage's job.
        by_job: JobId,
        /// The other stage.
        by: Name,
        /// Step of the checkpoint from which it goes on; 0 for none.
        step: u64,
    },
    /// Training moved on.
    Step(StepReport),
    /// Validation was scored.
    Evaluated(Evaluation),
    /// A checkpoint is durable.
    Checkpointed {
        /// Its step.
        step: u64,
    },
    /// A stage has its result.
    StageFinished {
        /// Taken from an earlier result of the same recipe.
        reused: bool,
    },
    /// An attempt failed.
    AttemptFailed {
        /// Why.
        failure: Failure,
        /// Whether it is tried again.
        retried: bool,
    },
    /// Nothing of the job runs, and no worker here can take up what is left of it.
    Stuck {
        /// Why, by stage.
        refusals: BTreeMap<Name, Refusal>,
    },
    /// The checkpoint of a stage is missing or damaged: it starts over.
    CheckpointLost {
        /// Its step.
        step: u64,
    },
    /// The result of a stage is missing or damaged while it is needed: it is taken from the hub or trained again.
    ResultLost,
    /// A trial has its score at a rung.
    TrialScored {
        /// The score.
        score: RungScore,
        /// Taken from an earlier result of the same recipe.
        reused: bool,
    },
    /// The trials of a task were compared.
    RungDecided {
        /// At which rung, from 0.
        rung: u32,
        /// The rung to which some go on.
        to: u32,
        /// Numbers of those.
        promoted: Vec<u32>,
        /// Numbers of those that stop.
        stopped: Vec<u32>,
        /// Before all of the rung were there.
        asynchronous: bool,
    },
    /// The best trial became its task.
    TrialChosen {
        /// Its number.
        trial: u32,
        /// Its validation score.
        score: Option<f64>,
        /// Which it is depended on timing.
        asynchronous: bool,
    },
    /// A stage was published.
    Published {
        /// Where.
        release: String,
    },
    /// The job ended.
    JobFinished {
        /// How.
        outcome: Outcome,
    },
}

/// How training goes, as a mean over the updates since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Updates done.
    pub step: u64,
    /// Updates in all.
    pub total_steps: u64,
    /// Epochs done, with the fraction.
    pub epoch: f64,
    /// Mean loss.
    pub loss: f64,
    /// Learning rate of the last update.
    pub learning_rate: f64,
    /// Gradient norm of the last update, before clipping.
    pub gradient_norm: f64,
    /// Examples a second of wall time.
    pub examples_per_second: f64,
    /// Tokens a second of wall time.
    pub tokens_per_second: f64,
    /// Share of the time in which the trainer waited for rows.
    pub input_wait: f64,
    /// Share of the time spent in exchanges with the other members of its group, waiting for them included.
    #[serde(default)]
    pub exchange_wait: f64,
    /// Bytes of gradients that this member sent for an update.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Lanes of an update that this member computes; 0: it does not say.
    #[serde(default)]
    pub lanes: u32,
    /// Epoch of the group that made the last update; 0: whoever the stage was handed to, alone, or it does not say.
    #[serde(default)]
    pub group: u64,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything was trained and published, and every expectation was met.
    Succeeded,
    /// Everything was published, but an expectation was missed.
    ExpectationMissed,
    /// A stage failed for good.
    Failed,
    /// The user cancelled it.
    Cancelled,
}
