//! Whether a release was trained on the rows that lie there now.
//!
//! A recipe knows a file by its size and footer, and an edit can keep both. So a recipe that is the same is no proof: an
//! earlier result counts again only when every row is read and has the digest that the release recorded. That costs one
//! pass over the columns that the stage uses, and no training.

use std::collections::BTreeMap;

use graftwork_dataset::{Access, DEFAULT_WINDOW_BYTES, DataError, GroupDigests, Order, ReadRequest, RowReader};
use graftwork_scheduler::{FusedSource, Plan, PlannedStage};
use graftwork_shared::{
    data::{Split, SplitManifest},
    digest::Digest,
    id::Name,
    record::Record,
};
use tokio::runtime::Handle;

/// The stage over whose rows, as they are now, the recorded result was not trained: the one asked about, or one whose
/// adapter it fuses. `None` when all are the same. Blocks while it reads.
pub(crate) fn changed(
    plan: &Plan,
    stage: &PlannedStage,
    record: &Record,
    runtime: &Handle,
) -> Result<Option<Name>, DataError> {
    if digests(stage, record.steps[0], runtime)? != record.data_digests {
        return Ok(Some(stage.name.clone()));
    }
    for (position, source) in stage.fused.iter().enumerate() {
        // What comes from outside is in the recipe with all its bytes.
        let FusedSource::Stage(name) = source else { continue };
        let same = match (plan.stage(name), record.fused.get(position)) {
            (Some(fused), Some(Some(rows))) => digests(fused, rows.steps, runtime)? == rows.digests,
            _ => false,
        };
        if !same {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}

/// Digests of the rows of each split, as training of so many updates records them.
pub(super) fn digests(
    stage: &PlannedStage,
    steps: u64,
    runtime: &Handle,
) -> Result<BTreeMap<Split, Digest>, DataError> {
    let access = Access::from_environment(stage.data_credentials.as_deref())?;
    let training = &stage.recipe.training;
    let whole = |manifest: &SplitManifest| (Order::Sequential, manifest.rows);
    let trained = if steps < training.steps_per_epoch(stage.train.rows) {
        let batch = u64::from(training.batch_size) * u64::from(training.accumulation);
        let shuffled = Order::Shuffled { seed: training.seed, window_bytes: DEFAULT_WINDOW_BYTES };
        (shuffled, stage.train.rows.min(steps * batch))
    } else {
        // Over a whole epoch the order does not matter.
        whole(&stage.train)
    };
    let mut splits =
        vec![(Split::Train, &stage.train, trained), (Split::Validation, &stage.validation, whole(&stage.validation))];
    splits.extend(stage.test.as_ref().map(|test| (Split::Test, test, whole(test))));
    let mut digests = BTreeMap::new();
    for (split, manifest, (order, rows)) in splits {
        let request = ReadRequest {
            manifest: manifest.clone(),
            columns: stage.recipe.columns.clone(),
            output: stage.recipe.head.output.clone(),
            order,
            epoch: 0,
            cursor: 0,
            groups: GroupDigests::default(),
        };
        let mut reader = RowReader::start(runtime, request, access.clone());
        for _ in 0..rows {
            reader.next().unwrap_or(Err(DataError::TaskLost))?;
        }
        digests.insert(split, reader.groups().digest());
    }
    Ok(digests)
}
