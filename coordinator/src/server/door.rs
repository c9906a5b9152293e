//! What the server asks of the rest of the program: planning a job, and putting results into the hub.
//!
//! The server calls these outside its loop and waits for them as for any other event; they may take their time. They
//! may be called again for the same stage after a restart, so publishing must be repeatable (all or nothing).

use std::{collections::BTreeMap, sync::Arc};

use futures::future::BoxFuture;
use graftwork_scheduler::{FusedSource, Plan, PlannedStage};
use graftwork_shared::{
    assignment::{Failure, StageResult},
    diagnostic::Diagnostic,
    digest::Digest,
    id::Name,
    job::{Job, Spans},
    recipe::NumericClass,
    sweep::SweepRecord,
};

use super::BlobStore;

/// Turns a resolved job into stages.
pub(crate) trait Planner: Send + Sync + 'static {
    /// Plans a job, or says everything that is wrong with it. `plan.digest` must be `job.digest()`.
    /// Adapters from outside the job are put into the blob store as the plan's `FusedSource::External` blobs; what was
    /// uploaded for the job is there already. `spans` place what is said in the user's file.
    fn plan(&self, job: Job, spans: Spans, blobs: BlobStore) -> BoxFuture<'_, Result<Plan, Vec<Diagnostic>>>;
}

/// Puts results into the hub, and finds earlier ones there.
pub(crate) trait Publisher: Send + Sync + 'static {
    /// Publishes one stage, all or nothing; publishing the same again is no error. Gives the release's place.
    /// [`Failure::blame`] decides whether the server tries again.
    fn publish(&self, publication: Publication) -> BoxFuture<'_, Result<String, Failure>>;

    /// An earlier result of exactly this recipe, computed in one of these classes, its blobs put into the blob
    /// store; `None` when there is none or it cannot be read.
    fn reusable(&self, stage: StageOfPlan, classes: Vec<NumericClass>) -> BoxFuture<'_, Option<StageResult>>;

    /// Whether the hub still holds this release of the stage, whole. Asked when an ended job is submitted again.
    fn holds(&self, stage: StageOfPlan, release: String) -> BoxFuture<'_, bool>;
}

/// A stage, its plan, and the blobs of its coordinator.
#[derive(Clone)]
pub(crate) struct StageOfPlan {
    /// The whole plan.
    pub(crate) plan: Arc<Plan>,
    /// The stage; one of the plan's.
    pub(crate) name: Name,
    /// Blobs.
    pub(crate) blobs: BlobStore,
}

/// What publishing one stage needs.
#[derive(Clone)]
pub(crate) struct Publication {
    /// The stage.
    pub(crate) stage: StageOfPlan,
    /// Its result.
    pub(crate) result: StageResult,
    /// Results of the stages that it needs, by name.
    pub(crate) needed: BTreeMap<Name, StageResult>,
    /// Of which sweep it is the best trial.
    pub(crate) sweep: Option<SweepRecord>,
}

impl StageOfPlan {
    /// The stage itself.
    pub(crate) fn stage(&self) -> &PlannedStage {
        self.plan.stage(&self.name).expect("a stage is named after one of its plan")
    }
}

impl Publication {
    /// Weight blobs of the adapters that a fusion reads, in the recipe's order; empty for an adapter.
    pub(crate) fn fused_weights(&self) -> Vec<Digest> {
        let weights = |source: &FusedSource| match source {
            FusedSource::Stage(name) => self.needed.get(name).map(|result| result.weights),
            FusedSource::External { blob, .. } => Some(*blob),
        };
        self.stage.stage().fused.iter().filter_map(weights).collect()
    }
}
