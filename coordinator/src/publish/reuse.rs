//! A result out of a release: what training the recipe again would give.

use std::{collections::BTreeMap, path::Path};

use graftwork_model::{
    Tensors,
    hub::{AdapterFolder, HeadFolder, SetupFolder},
    rename, safetensors,
};
use graftwork_shared::{
    assignment::{StageResult, Usage},
    recipe::{Method, NumericClass, trained_slot},
    record::Record,
};
use graftwork_store::{Found, Hub};
use tokio::runtime::Handle;

use super::{PublishError, release::prediction_path, rows};
use crate::server::StageOfPlan;

/// An earlier result of the stage's recipe in one of the classes over the rows that lie there now, its blobs put into
/// the store. Blocks while it reads the rows.
pub(super) fn find(
    (stage, hub): (&StageOfPlan, &str),
    classes: &[NumericClass],
    runtime: &Handle,
) -> Result<Option<StageResult>, PublishError> {
    // Asking does not make a hub.
    if !Path::new(hub).is_dir() {
        return Ok(None);
    }
    let planned = stage.stage();
    let Some(Found { folder, record }) = Hub::open(hub)?.lookup(planned.recipe_digest, classes) else {
        return Ok(None);
    };
    if let Some(changed) = rows::changed(&stage.plan, planned, &record, runtime)? {
        tracing::warn!("{}: rows of {changed} changed since it was trained, so it is trained again", planned.name);
        return Ok(None);
    }
    let tensors = match &planned.recipe.method {
        Method::Adapter(_) => adapter(&folder)?,
        Method::Fusion { .. } => fusion(&folder)?,
    };
    let weights = stage.blobs.put(&safetensors::write(&tensors, &BTreeMap::new()))?;
    let mut predictions = BTreeMap::new();
    for split in record.scores.keys() {
        let path = prediction_path(*split);
        if record.files.contains_key(&path) {
            let file = folder.join(path);
            let bytes = std::fs::read(&file)
                .map_err(|error| PublishError::Incomplete(format!("{}: {error}", file.display())))?;
            predictions.insert(*split, stage.blobs.put(&bytes)?);
        }
    }
    Ok(Some(result(record, weights, predictions)))
}

fn result(
    record: Record,
    weights: graftwork_shared::digest::Digest,
    predictions: BTreeMap<graftwork_shared::data::Split, graftwork_shared::digest::Digest>,
) -> StageResult {
    StageResult {
        weights,
        steps: record.steps[0],
        best_step: record.steps[1],
        validation: record.validation,
        scores: record.scores,
        predictions,
        data: record.data_digests,
        epochs: record.epochs,
        attention: record.attention,
        trained_parameters: record.trained_parameters,
        numeric_class: record.numeric_class,
        // Nothing was spent this time.
        usage: Usage::default(),
        peak: None,
    }
}

fn adapter(folder: &Path) -> Result<Tensors, PublishError> {
    let adapter = AdapterFolder::read(folder)?;
    let head = adapter.head.ok_or_else(|| no_head(folder))?;
    Ok(under_the_slot(adapter.tensors, &adapter.name, head))
}

fn fusion(folder: &Path) -> Result<Tensors, PublishError> {
    let setup = SetupFolder::read(folder)?;
    let fusion = setup.fusions.into_iter().next();
    let fusion = fusion.ok_or_else(|| PublishError::Incomplete(format!("{} holds no fusion", folder.display())))?;
    let head = fusion.head.or_else(|| setup.heads.into_iter().next()).ok_or_else(|| no_head(folder))?;
    Ok(under_the_slot(fusion.tensors, &fusion.name, head))
}

fn under_the_slot(tensors: Tensors, name: &str, head: HeadFolder) -> Tensors {
    let slot = trained_slot();
    let mut tensors = rename(tensors, name, slot.as_str());
    tensors.extend(rename(head.tensors, &head.name, slot.as_str()));
    tensors
}

fn no_head(folder: &Path) -> PublishError {
    PublishError::Incomplete(format!("{} holds no head", folder.display()))
}
