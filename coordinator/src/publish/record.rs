//! The record of a release.

use std::collections::BTreeMap;

use graftwork_scheduler::{Plan, PlannedStage};
use graftwork_shared::{
    VERSION,
    assignment::StageResult,
    composition::Composition,
    data::{Split, SplitManifest},
    id::Name,
    job::{AdapterRef, Job, Nightly, Resources},
    recipe::Method,
    record::{RECORD_VERSION, Record},
};

/// The part of a job that one stage needs: itself, and for a fusion the tasks that it reads. What it asks of machines is
/// left out, because it decides no byte.
pub(crate) fn job_of_stage(job: &Job, stage: &Name) -> Job {
    let fusions: Vec<_> = job.fusions.iter().filter(|fusion| fusion.name == *stage).cloned().collect();
    let needed = |name: &Name| {
        name == stage
            || fusions.iter().any(|fusion| {
                fusion.task == *name
                    || fusion.adapters.iter().any(|adapter| matches!(adapter, AdapterRef::Task(task) if task == name))
            })
    };
    let tasks = job.tasks.iter().filter(|task| needed(&task.name)).cloned().collect();
    let resources = Resources::of_device(job.resources.device);
    Job { priority: 0, resources, tasks, fusions, nightly: Nightly::default(), ..job.clone() }
}

/// The job in which each swept task is the trial that it became, so that training from the record trains that one alone.
pub(super) fn without_sweeps(mut job: Job, plan: &Plan) -> Job {
    for task in job.tasks.iter_mut().filter(|task| task.sweep.is_some()) {
        let Some(stage) = plan.stage(&task.name) else { continue };
        if let Method::Adapter(adapter) = &stage.recipe.method {
            task.adapter = adapter.clone();
            task.training = stage.recipe.training.clone();
            task.sweep = None;
        }
    }
    job
}

/// The record, but for the digests of the files.
pub(super) fn record(job: &Job, stage: &PlannedStage, result: &StageResult, composition: Composition) -> Record {
    let splits = [
        (Split::Train, Some(&stage.train)),
        (Split::Validation, Some(&stage.validation)),
        (Split::Test, stage.test.as_ref()),
    ];
    let data = splits.into_iter().filter_map(|(split, manifest)| Some((split, without_times(manifest?)))).collect();
    let mut record = Record {
        record_version: RECORD_VERSION,
        code_version: VERSION.to_owned(),
        stage: stage.name.clone(),
        recipe: stage.recipe.clone(),
        recipe_digest: stage.recipe_digest,
        composition,
        job: job_of_stage(job, &stage.name),
        base_model: stage.base_model.clone(),
        data,
        data_digests: BTreeMap::new(),
        sweep: None,
        fused: Vec::new(),
        epochs: Vec::new(),
        numeric_class: result.numeric_class.clone(),
        steps: [0, 0],
        validation: Vec::new(),
        scores: BTreeMap::new(),
        attention: Vec::new(),
        trained_parameters: 0,
        files: BTreeMap::new(),
    };
    record.keep(result);
    record
}

/// Copying a file gives it another time and the same rows; footer and data digests are what binds.
fn without_times(manifest: &SplitManifest) -> SplitManifest {
    let mut manifest = manifest.clone();
    for file in &mut manifest.files {
        file.version.clear();
    }
    manifest
}
