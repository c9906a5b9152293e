//! The files of one release, in AdapterHub's layout.

use graftwork_model::{
    HostTensor, Tensors, TrunkDescription,
    hub::{AdapterFolder, Files, FusionFolder, HeadFolder, ModelReference, SetupFolder},
    portable_order, rename, safetensors,
};
use graftwork_scheduler::{FusedSource, PlannedStage};
use graftwork_shared::{
    composition::Composition,
    data::Split,
    digest::Digest,
    recipe::{Method, trained_slot},
    record::TrainedRows,
};
use graftwork_store::{RECORD_FILE, Release};

use super::{PublishError, card, names, record};
use crate::server::{BlobStore, Publication};

/// Folder of predictions inside a release.
pub(super) const PREDICTIONS: &str = "predictions";

/// All files of a release.
pub(super) fn build(publication: &Publication, trunk: &TrunkDescription) -> Result<Release, PublishError> {
    let stage = publication.stage.stage();
    let job = &publication.stage.plan.job;
    let base_name = names::base_model(&job.base_model.location);
    let parts = Parts { publication, stage, trunk, model: ModelReference::of(trunk, &base_name) };
    let (files, composition) = match &stage.recipe.method {
        Method::Adapter(_) => (parts.adapter()?, Composition::single(stage.publish_as.clone())),
        Method::Fusion { .. } => parts.fusion()?,
    };
    let mut release = Release { files: files.into_iter().collect() };
    for (split, blob) in &publication.result.predictions {
        release.files.insert(prediction_path(*split), publication.stage.blobs.read(*blob)?);
    }
    let mut record = record::record(job, stage, &publication.result, composition);
    record.fused = parts.fused_rows();
    record.job = record::without_sweeps(record.job, &publication.stage.plan);
    record.sweep.clone_from(&publication.sweep);
    let card = card::card(&card::Card { record: &record, stage, trunk, base_name: &base_name });
    release.files.insert("README.md".to_owned(), card.into_bytes());
    record.files = release.files.iter().map(|(path, bytes)| (path.clone(), Digest::of(bytes))).collect();
    let mut text = serde_json::to_vec_pretty(&record)
        .map_err(|error| PublishError::Incomplete(format!("the record cannot be written: {error}")))?;
    text.push(b'\n');
    release.files.insert(RECORD_FILE.to_owned(), text);
    Ok(release)
}

pub(super) fn prediction_path(split: Split) -> String {
    format!("{PREDICTIONS}/{split}.jsonl")
}

struct Parts<'a> {
    publication: &'a Publication,
    stage: &'a PlannedStage,
    trunk: &'a TrunkDescription,
    model: ModelReference,
}

impl Parts<'_> {
    /// The rows behind each adapter of this job that a fusion reads.
    fn fused_rows(&self) -> Vec<Option<TrainedRows>> {
        let rows = |source: &FusedSource| match source {
            FusedSource::Stage(name) => {
                let result = self.publication.needed.get(name)?;
                Some(TrainedRows { steps: result.steps, digests: result.data.clone() })
            }
            FusedSource::External { .. } => None,
        };
        self.stage.fused.iter().map(rows).collect()
    }

    fn adapter(&self) -> Result<Files, PublishError> {
        let Method::Adapter(config) = &self.stage.recipe.method else {
            return Err(PublishError::Incomplete("the recipe trains no adapter".to_owned()));
        };
        let (tensors, head) = self.trained(self.stage.publish_as.as_str())?;
        let folder = AdapterFolder {
            name: self.stage.publish_as.to_string(),
            model: self.model.clone(),
            config: config.clone(),
            tensors,
            head: Some(head),
        };
        folder.check(self.trunk)?;
        Ok(folder.files()?)
    }

    fn fusion(&self) -> Result<(Files, Composition), PublishError> {
        let Method::Fusion { config, adapters } = &self.stage.recipe.method else {
            return Err(PublishError::Incomplete("the recipe trains no fusion".to_owned()));
        };
        let job = &self.publication.stage.plan.job;
        let fused = names::fused(job, self.stage);
        let weights = self.publication.fused_weights();
        if weights.len() != adapters.len() || fused.len() != adapters.len() {
            let problem =
                format!("the fusion reads {} adapters, but {} results are here", adapters.len(), weights.len());
            return Err(PublishError::Incomplete(problem));
        }
        let configs: Vec<_> = adapters.iter().map(|adapter| &adapter.config).collect();
        let order = portable_order(&configs, self.trunk.layers).unwrap_or_else(|| (0..adapters.len()).collect());
        let mut folders = Vec::new();
        for &position in &order {
            let (name, adapter) = (&fused[position], &adapters[position]);
            let tensors = read(&self.publication.stage.blobs, weights[position])?;
            let (mut tensors, _) = split_head(rename(tensors, trained_slot().as_str(), name.as_str()));
            // The fusion may leave out layers in which the adapter alone acts (AdapterDrop).
            tensors.retain(|name, _| !adapter.config.leaves_out(name));
            let folder = AdapterFolder {
                name: name.to_string(),
                model: self.model.clone(),
                config: adapter.config.clone(),
                tensors,
                head: None,
            };
            folder.check(self.trunk)?;
            folders.push(folder);
        }
        let children: Vec<_> = order.iter().map(|position| Composition::single(fused[*position].clone())).collect();
        let composition = Composition::Fuse { children, name: None };
        let (layer, head) = self.trained(self.stage.publish_as.as_str())?;
        let layer = FusionFolder {
            name: self.stage.publish_as.to_string(),
            adapter_names: folders.iter().map(|folder| folder.name.clone()).collect(),
            model: self.model.clone(),
            config: config.clone(),
            tensors: layer,
            head: None,
        };
        layer.check(&configs, self.trunk)?;
        // AdapterHub finds a fusion's layer by the joined names of its adapters.
        let joined = composition.fusion_name().unwrap_or_default();
        let tensors = rename(layer.tensors, &layer.name, &joined);
        let layer = FusionFolder { name: joined, tensors, head: Some(head), ..layer };
        let setup = SetupFolder {
            composition: composition.clone(),
            adapters: folders,
            fusions: vec![layer],
            heads: Vec::new(),
        };
        Ok((setup.files()?, composition))
    }

    /// What the stage trained, under the name that users read, and its head.
    fn trained(&self, name: &str) -> Result<(Tensors, HeadFolder), PublishError> {
        let tensors = read(&self.publication.stage.blobs, self.publication.result.weights)?;
        let (tensors, head) = split_head(rename(tensors, trained_slot().as_str(), name));
        let head = HeadFolder {
            name: name.to_owned(),
            model: self.model.clone(),
            head: self.stage.recipe.head.clone(),
            tensors: head,
        };
        head.check(self.trunk)?;
        Ok((tensors, head))
    }
}

fn read(blobs: &BlobStore, digest: Digest) -> Result<Tensors, PublishError> {
    let bytes = blobs.read(digest)?;
    let damaged = |error: graftwork_model::FormatError| error.of(format!("blob {}", digest.short()));
    Ok(safetensors::read(&bytes).map_err(damaged)?)
}

/// Heads have no base prefix; everything else belongs to the adapter or the fusion.
pub(super) fn split_head(tensors: Tensors) -> (Tensors, Tensors) {
    tensors.into_iter().partition(|(name, _): &(String, HostTensor)| !name.starts_with("heads."))
}
