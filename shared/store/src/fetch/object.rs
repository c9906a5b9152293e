//! Base models in an object store or behind plain HTTP: the fixed file names, one by one, without listing.

use std::{path::Path, path::PathBuf, sync::Arc};

use futures::StreamExt as _;
use graftwork_shared::digest::Digest;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, path::Path as Key};
use serde::Deserialize;
use url::Url;

use super::{
    MODEL_FILES, Wanted,
    partial::{Announced, Entry, Partial},
};
use crate::StoreError;

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

struct Place {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    url: String,
}

pub(super) async fn fetch(
    location: &str,
    token: Option<&str>,
    cache: &Path,
    wanted: Wanted,
) -> Result<PathBuf, StoreError> {
    let problem = |problem: String| StoreError::Location { location: location.to_owned(), problem };
    if wanted == Wanted::Adapter {
        return Err(problem("an adapter is a folder or hf://organisation/name@revision".to_owned()));
    }
    let url = Url::parse(location).map_err(|error| problem(error.to_string()))?;
    let place = Place::open(&url, token).map_err(|error| problem(error.to_string()))?;
    let mut files = Vec::new();
    for name in MODEL_FILES {
        files.extend(place.head(name).await?.map(|meta| (name.to_owned(), meta)));
    }
    if !wanted.key_files().iter().any(|key| files.iter().any(|(name, _)| name == key)) {
        return Err(problem(format!("it holds no {}", wanted.key_files().join(" or "))));
    }
    for shard in place.shards(&files).await? {
        let meta = place.head(&shard).await?;
        files.push((shard.clone(), meta.ok_or_else(|| StoreError::Missing(format!("{location}/{shard}")))?));
    }
    let identity: Vec<_> = files
        .iter()
        .map(|(name, meta)| (name, meta.size, meta.e_tag.clone().unwrap_or_else(|| meta.last_modified.to_string())))
        .collect();
    let version = format!("objects/{}", Digest::of_value("graftwork object version", &(url.as_str(), identity)));
    let partial = match Partial::open(&cache.join("models"), &version).await? {
        Entry::Complete(folder) => return Ok(folder),
        Entry::Open(partial) => partial,
    };
    for (name, meta) in &files {
        place.download(name, meta, &partial).await?;
    }
    partial.finish()
}

impl Place {
    fn open(url: &Url, token: Option<&str>) -> Result<Self, object_store::Error> {
        // Object stores read their own variables (AWS_ACCESS_KEY_ID, …); a token is for servers that speak HTTP.
        let variables = std::env::vars().map(|(name, value)| (name.to_ascii_lowercase(), value));
        let mut options: Vec<(String, String)> = variables.filter(|(name, _)| name.starts_with("aws_")).collect();
        if url.scheme() == "http" {
            options.push(("allow_http".to_owned(), "true".to_owned()));
        }
        let (store, prefix): (Arc<dyn ObjectStore>, Key) = match (url.scheme(), token) {
            ("http" | "https", token) => {
                let mut base = url.clone();
                base.set_path("");
                let mut client = object_store::ClientOptions::new().with_allow_http(url.scheme() == "http");
                if let Some(token) = token {
                    let mut headers = reqwest::header::HeaderMap::new();
                    let value = format!("Bearer {token}").parse().map_err(|error| object_store::Error::Generic {
                        store: "http",
                        source: Box::<dyn std::error::Error + Send + Sync>::from(format!("the token: {error}")),
                    })?;
                    headers.insert(reqwest::header::AUTHORIZATION, value);
                    client = client.with_default_headers(headers);
                }
                let builder = object_store::http::HttpBuilder::new().with_url(base.as_str());
                (Arc::new(builder.with_client_options(client).build()?), Key::from_url_path(url.path())?)
            }
            _ => {
                let (store, prefix) = object_store::parse_url_opts(url, options)?;
                (Arc::from(store), prefix)
            }
        };
        Ok(Self { store, prefix, url: url.as_str().trim_end_matches('/').to_owned() })
    }

    fn key(&self, name: &str) -> Key {
        self.prefix.clone().join(name)
    }

    fn error(&self, name: &str, error: &object_store::Error) -> StoreError {
        let url = format!("{}/{name}", self.url);
        match error {
            object_store::Error::NotFound { .. } => StoreError::Missing(url),
            object_store::Error::PermissionDenied { .. } => {
                StoreError::Refused { url, status: 403, detail: String::new() }
            }
            object_store::Error::Unauthenticated { .. } => {
                StoreError::Refused { url, status: 401, detail: String::new() }
            }
            other => StoreError::Network { url, problem: other.to_string() },
        }
    }

    async fn head(&self, name: &str) -> Result<Option<ObjectMeta>, StoreError> {
        match self.store.head(&self.key(name)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error(name, &error)),
        }
    }

    /// Names of weight files that the index lists; none when the weights are one file.
    async fn shards(&self, files: &[(String, ObjectMeta)]) -> Result<Vec<String>, StoreError> {
        let name = "model.safetensors.index.json";
        if !files.iter().any(|(file, _)| file == name) {
            return Ok(Vec::new());
        }
        let got = self.store.get(&self.key(name)).await.map_err(|error| self.error(name, &error))?;
        let bytes = got.bytes().await.map_err(|error| self.error(name, &error))?;
        let place = format!("{}/{name}", self.url);
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|error| StoreError::Damaged { place: place.clone(), problem: error.to_string() })?;
        let mut shards: Vec<String> = index.weight_map.into_values().collect();
        shards.sort();
        shards.dedup();
        if let Some(wrong) = shards.iter().find(|shard| !Wanted::Model.takes(shard)) {
            let problem = format!("{wrong:?} is not the name of a weight file");
            return Err(StoreError::Damaged { place, problem });
        }
        Ok(shards)
    }

    async fn download(&self, name: &str, meta: &ObjectMeta, partial: &Partial) -> Result<(), StoreError> {
        let have = partial.have(name);
        let from = if have <= meta.size { have } else { 0 };
        let mut file = partial.append(name, from).await?;
        if from < meta.size {
            let range = (from > 0).then_some(GetRange::Offset(from));
            let options = GetOptions { range, if_match: meta.e_tag.clone(), ..GetOptions::default() };
            let got = self.store.get_opts(&self.key(name), options).await.map_err(|error| self.error(name, &error))?;
            let mut chunks = got.into_stream();
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|error| self.error(name, &error))?;
                partial.write(name, &mut file, &chunk).await?;
            }
        }
        partial.close(name, file, &Announced { bytes: meta.size, sha256: None }).await
    }
}
