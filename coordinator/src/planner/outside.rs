//! Adapters from outside the job: fetched, checked against the base model, and kept as blobs under a stage's name.

use std::collections::BTreeMap;

use graftwork_model::{ModelError, hub::AdapterFolder, rename, safetensors};
use graftwork_shared::{
    adapter::AdapterConfig,
    diagnostic::Diagnostic,
    digest::Digest,
    job::{AdapterRef, BaseModel, Fusion, Job},
    recipe::trained_slot,
};
use graftwork_store::StoreError;

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
        for adapter in &fusion.adapters {
            let (AdapterRef::Folder(location) | AdapterRef::Hub(location)) = adapter else { continue };
            if outside.0.contains_key(location) {
                continue;
            }
            let credentials = credentials(location, fusion, &job.base_model);
            match read(location, credentials, base, planning).await {
                Ok(found) => {
                    outside.0.insert(location.clone(), found);
                }
                Err((message, help)) => {
                    let message = format!("fusion {}: adapter {location}: {message}", fusion.name);
                    let mut problem = Diagnostic::error("adapter", message);
                    problem.help = help.map(str::to_owned);
                    problems.add(&format!("fusions.{}.adapters", fusion.name), problem);
                }
            }
        }
    }
    outside
}

/// The variable whose secret may be shown where an adapter lies: the fusion's own, or the base model's where both lie on
/// the one hub that `HF_ENDPOINT` names. A secret for another place (`s3://` keys, say) never goes there.
fn credentials<'j>(location: &str, fusion: &'j Fusion, base: &'j BaseModel) -> Option<&'j str> {
    let on_hub = |location: &str| location.starts_with("hf://");
    if !on_hub(location) {
        return None;
    }
    let of_base = base.credentials.as_deref().filter(|_| on_hub(&base.location));
    fusion.credentials.as_deref().or(of_base)
}

/// An adapter, or what is wrong with it and how to mend it.
type Read = Result<OutsideAdapter, (String, Option<&'static str>)>;

async fn read(location: &str, credentials: Option<&str>, base: Option<&Base>, planning: &Planning) -> Read {
    let folder = graftwork_store::fetch_adapter(location, credentials, &planning.cache, planning.uploads()).await;
    let folder = folder.map_err(|error| match &error {
        StoreError::Missing(_) => (error.to_string(), Some(ADAPTERS)),
        _ => (error.to_string(), error.help()),
    })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fusion(credentials: &str) -> Fusion {
        let text = format!(
            "[base_model]\nlocation = \"b\"\n[tasks.a]\ntrain = \"a.parquet\"\nvalidation = \"b.parquet\"\n[fusions.f]\n\
             adapters = [\"a\", \"hf://lab/x@main\"]\ntask = \"a\"\n{credentials}"
        );
        let parsed = graftwork_shared::job::parse(&text, std::path::Path::new("/jobs"));
        parsed.job.unwrap_or_else(|| panic!("{:?}", parsed.diagnostics)).fusions.remove(0)
    }

    #[test]
    fn a_hub_sees_no_secret_of_another_place() {
        let base = |location: &str| BaseModel { location: location.to_owned(), credentials: Some("KEYS".to_owned()) };
        let adapter = "hf://lab/x@main";
        let (without, with) = (fusion(""), fusion("credentials = \"HF_TOKEN\""));
        assert_eq!(credentials(adapter, &without, &base("hf://lab/base@main")), Some("KEYS"));
        for elsewhere in ["s3://bucket/base", "https://host/base", "/models/base"] {
            assert_eq!(credentials(adapter, &without, &base(elsewhere)), None, "{elsewhere}");
            assert_eq!(credentials(adapter, &with, &base(elsewhere)), Some("HF_TOKEN"), "{elsewhere}");
        }
        assert_eq!(credentials("/adapters/x", &with, &base("hf://lab/base@main")), None);
    }
}
