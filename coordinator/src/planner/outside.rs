//! Adapters from outside the job: fetched, checked against the base model, and kept as blobs under a stage's name.

use std::collections::BTreeMap;

use graftwork_model::{hub::AdapterFolder, rename, safetensors};
use graftwork_shared::{
    adapter::AdapterConfig,
    digest::Digest,
    job::{AdapterRef, Job},
    recipe::trained_slot,
};

use super::{Base, Planning, problems::Problems};

/// An adapter that is not trained by this job.
pub(super) struct OutsideAdapter {
    pub(super) name: String,
    pub(super) config: AdapterConfig,
    pub(super) blob: Digest,
    bytes: Vec<u8>,
}

/// Adapters from outside by their location.
#[derive(Default)]
pub(super) struct Outside(BTreeMap<String, OutsideAdapter>);

impl Outside {
    pub(super) fn get(&self, location: &str) -> Option<&OutsideAdapter> {
        self.0.get(location)
    }

    pub(super) fn into_blobs(self) -> Vec<(Digest, Vec<u8>)> {
        self.0.into_values().map(|adapter| (adapter.blob, adapter.bytes)).collect()
    }
}

/// Fetches every adapter from outside once.
pub(super) async fn fetch(job: &Job, base: Option<&Base>, planning: &Planning, problems: &Problems<'_>) -> Outside {
    let mut outside = Outside::default();
    for fusion in &job.fusions {
        for adapter in &fusion.adapters {
            let (AdapterRef::Folder(location) | AdapterRef::Hub(location)) = adapter else { continue };
            if outside.0.contains_key(location) {
                continue;
            }
            match read(location, job, base, planning).await {
                Ok(found) => {
                    outside.0.insert(location.clone(), found);
                }
                Err(message) => {
                    let message = format!("fusion {}: adapter {location}: {message}", fusion.name);
                    problems.error(&format!("fusions.{}.adapters", fusion.name), "adapter", message);
                }
            }
        }
    }
    outside
}

async fn read(location: &str, job: &Job, base: Option<&Base>, planning: &Planning) -> Result<OutsideAdapter, String> {
    // A hub that serves the base model with a token serves the adapter with the same one.
    let credentials = location.starts_with("hf://").then_some(job.base_model.credentials.as_deref()).flatten();
    let folder = graftwork_store::fetch_adapter(location, credentials, &planning.cache).await;
    let folder = folder.map_err(|error| error.to_string())?;
    let read = tokio::task::spawn_blocking(move || AdapterFolder::read(&folder)).await.map_err(|e| e.to_string())?;
    let adapter = read.map_err(|error| error.to_string())?;
    if let Some(base) = base {
        adapter.check(&base.model.description).map_err(|error| error.to_string())?;
    }
    let tensors = rename(adapter.tensors, &adapter.name, trained_slot().as_str());
    let bytes = safetensors::write(&tensors, &BTreeMap::new());
    Ok(OutsideAdapter { name: adapter.name, config: adapter.config, blob: Digest::of(&bytes), bytes })
}
