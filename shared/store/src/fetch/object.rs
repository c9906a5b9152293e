//! Base models in an object store or behind plain HTTP: the fixed file names, one by one, without listing.

use std::sync::Arc;

use futures::StreamExt as _;
use graftwork_shared::{credentials, digest::Digest};
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, aws::AmazonS3Builder,
    http::HttpBuilder, path::Path as Key,
};
use serde::Deserialize;
use url::Url;

use super::{
    Cache, Fetched, MODEL_FILES, TORCH_WEIGHTS, Wanted,
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
    cache: Cache<'_>,
    wanted: Wanted,
) -> Result<Fetched, StoreError> {
    let problem = |problem: String| StoreError::Location { location: location.to_owned(), problem };
    if wanted == Wanted::Adapter {
        return Err(problem("an adapter is a folder or hf://organisation/name@revision".to_owned()));
    }
    let url = Url::parse(location).map_err(|error| problem(error.to_string()))?;
    let place = Place::open(&url, token).map_err(problem)?;
    let mut files = Vec::new();
    let mut refused = None;
    for name in MODEL_FILES {
        match place.head(name).await {
            Ok(meta) => files.extend(meta.map(|meta| (name.to_owned(), meta))),
            // S3 refuses to say that an object is not there to whoever may not list the bucket.
            Err(error @ StoreError::Refused { status: 403, .. }) if !wanted.key_files().contains(&name) => {
                refused = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    let chosen: Vec<String> =
        wanted.choose(files.iter().map(|(name, _)| name.as_str())).into_iter().map(str::to_owned).collect();
    files.retain(|(name, _)| chosen.contains(name));
    let weights = files.iter().any(|(name, _)| name.starts_with("model.safetensors") || name == TORCH_WEIGHTS);
    if let (false, Some(error)) = (weights, refused) {
        return Err(error);
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
    let version = format!("models/objects/{}", Digest::of_value("graftwork object version", &(url.as_str(), identity)));
    let partial = match Partial::open(cache, &version).await? {
        Entry::Complete(folder) => return Ok(folder),
        Entry::Open(partial) => partial,
    };
    for (name, meta) in &files {
        place.download(name, meta, &partial).await?;
    }
    partial.finish()
}

/// What the variable for `s3://` and `gs://` holds, as for rows.
const KEYS: &str = "ACCESS_KEY:SECRET_KEY or ACCESS_KEY:SECRET_KEY:SESSION_TOKEN";

impl Place {
    fn open(url: &Url, secret: Option<&str>) -> Result<Self, String> {
        let said = |error: object_store::Error| error.to_string();
        let prefix = Key::from_url_path(url.path()).map_err(|error| error.to_string())?;
        let store: Arc<dyn ObjectStore> = match url.scheme() {
            "http" | "https" => {
                let base = &url[..url::Position::BeforePath];
                if secret.is_some() && !credentials::may_be_sent(url.scheme(), url.host_str()) {
                    return Err("a token is sent over https:// alone, beyond this machine".to_owned());
                }
                let builder = HttpBuilder::new().with_url(base).with_client_options(bearer(secret)?);
                Arc::new(builder.build().map_err(said)?)
            }
            "s3" => Arc::new(signed(amazon(), url, secret)?.build().map_err(said)?),
            // Google's store speaks the same protocol at an address of its own.
            "gs" => {
                let google = AmazonS3Builder::new().with_region("auto").with_endpoint("https://storage.googleapis.com");
                Arc::new(signed(google, url, secret)?.build().map_err(said)?)
            }
            other => return Err(format!("{other}:// is not one of hf://, s3://, gs://, http:// and https://")),
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
        partial.expect(name, meta.size).await;
        let have = partial.have(name);
        let from = if have <= meta.size { have } else { 0 };
        let mut file = partial.append(name, from).await?;
        if from < meta.size {
            let range = (from > 0).then_some(GetRange::Offset(from));
            let options = GetOptions { range, if_match: meta.e_tag.clone(), ..GetOptions::default() };
            let got = self.store.get_opts(&self.key(name), options).await.map_err(|error| self.error(name, &error))?;
            let chunks = got.into_stream().map(|chunk| chunk.map_err(|error| self.error(name, &error)));
            partial.fill(name, &mut file, chunks).await?;
        }
        partial.close(name, file, &Announced { bytes: meta.size, sha256: None }).await
    }
}

fn amazon() -> AmazonS3Builder {
    let variable = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    let region = variable(["AWS_REGION", "AWS_DEFAULT_REGION"]).unwrap_or_else(|| "us-east-1".to_owned());
    let builder = AmazonS3Builder::new().with_region(region);
    match variable(["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]) {
        Some(endpoint) => builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint),
        None => builder,
    }
}

fn signed(builder: AmazonS3Builder, url: &Url, secret: Option<&str>) -> Result<AmazonS3Builder, String> {
    let builder = builder.with_bucket_name(url.host_str().unwrap_or_default());
    let Some(secret) = secret else { return Ok(builder.with_skip_signature(true)) };
    match secret.splitn(3, ':').collect::<Vec<_>>()[..] {
        [key, secret] if !key.is_empty() && !secret.is_empty() => {
            Ok(builder.with_access_key_id(key).with_secret_access_key(secret))
        }
        [key, secret, session] if ![key, secret, session].contains(&"") => {
            Ok(builder.with_access_key_id(key).with_secret_access_key(secret).with_token(session))
        }
        _ => Err(format!("the variable with its credentials must hold {KEYS}")),
    }
}

fn bearer(token: Option<&str>) -> Result<ClientOptions, String> {
    let options = ClientOptions::new().with_allow_http(true);
    let Some(token) = token else { return Ok(options) };
    let mut value = object_store::HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| "the variable with its token holds a character that no HTTP header may have".to_owned())?;
    value.set_sensitive(true);
    let mut headers = object_store::HeaderMap::new();
    headers.insert("authorization", value);
    Ok(options.with_default_headers(headers))
}
