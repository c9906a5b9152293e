//! Adapters from outside the job: fetched, checked against the base model, and kept as blobs under a stage's name.

use std::collections::BTreeMap;

use graftwork_model::{ModelError, hub::AdapterFolder, rename, safetensors};
use graftwork_shared::{
    adapter::AdapterConfig,
    diagnostic::Diagnostic,
    digest::Digest,
    job::{AdapterRef, BaseModel, Job},
    recipe::trained_slot,
};
use graftwork_store::{StoreError, adapter_credentials};

use super::{Base, Planning, problems::Problems};

/// What a fusion can name.
const ADAPTERS: &str = "name a task of this job, a folder (relative to the job file's own), or hf://organisation/name";

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
        for (index, adapter) in fusion.adapters.iter().enumerate() {
            let (AdapterRef::Folder(location) | AdapterRef::Hub(location)) = adapter else { continue };
            if outside.0.contains_key(location) {
                continue;
            }
            let BaseModel { location: base_location, credentials: of_base } = &job.base_model;
            let own = fusion.credentials.as_deref();
            let credentials = adapter_credentials(location, own, base_location, of_base.as_deref());
            match read(location, credentials, base, planning).await {
                Ok(found) => {
                    outside.0.insert(location.clone(), found);
                }
                Err((message, help)) => {
                    let message = format!("fusion {}: adapter {location}: {message}", fusion.name);
                    let mut problem = Diagnostic::error("adapter", message);
                    problem.help = help.map(str::to_owned);
                    problems.add(&format!("fusions.{}.adapters.{index}", fusion.name), problem);
                }
            }
        }
    }
    outside
}

/// An adapter, or what is wrong with it and how to mend it.
type Read = Result<OutsideAdapter, (String, Option<&'static str>)>;

async fn read(location: &str, credentials: Option<&str>, base: Option<&Base>, planning: &Planning) -> Read {
    let folder = graftwork_store::fetch_adapter(location, credentials, &planning.cache, planning.uploads()).await;
    let folder = folder.map_err(|error| match &error {
        StoreError::Missing(_) => (error.to_string(), Some(ADAPTERS)),
        _ => (error.to_string(), error.help()),
    })?;
    if folder.join("adapter_setup.json").is_file() {
        let message = "it is a fusion with its adapters, and a fusion reads single adapters".to_owned();
        return Err((message, Some("name the adapters that it reads")));
    }
    let read = tokio::task::spawn_blocking(move || AdapterFolder::read(&folder)).await;
    let of_model = |error: ModelError| (error.to_string(), error.help());
    let adapter = read.map_err(|error| (error.to_string(), None))?.map_err(of_model)?;
    if let Some(base) = base {
        adapter.check(&base.model.description).map_err(of_model)?;
    }
    let tensors = rename(adapter.tensors, &adapter.name, trained_slot().as_str());
    let bytes = safetensors::write(&tensors, &BTreeMap::new());
    Ok(OutsideAdapter { name: adapter.name, config: adapter.config, blob: Digest::of(&bytes), bytes })
}
