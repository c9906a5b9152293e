//! An object store: where it is, and how it is reached.
//!
//! A store is believed only after it was seen to keep its word (`proof.rs`): of writers that race to create one object,
//! exactly one may win, and nobody may overwrite it. Some stores ignore the condition silently, and some lose the race.

use std::{fmt, sync::Arc, time::Duration};

use graftwork_shared::{cause::told, digest::Digest};
use object_store::{
    Error, ObjectStore, PutMode, PutOptions, PutPayload, RetryConfig,
    aws::{AmazonS3Builder, S3ConditionalPut},
    path::Path,
};

use super::BlobError;

/// A prefix in an object store. `Debug` shows no keys.
#[derive(Clone)]
pub(crate) struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    place: String,
    /// Of the place and of the address at which it is reached.
    pub(super) identity: Digest,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("place", &self.place).finish_non_exhaustive()
    }
}

fn variable(names: [&str; 2]) -> Option<String> {
    names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// Whether an `http://` address is of this machine.
fn is_loopback(endpoint: &str) -> bool {
    let rest = endpoint.trim_start_matches("http://");
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let host = match host.strip_prefix('[') {
        Some(host) => host.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// An address may hold a secret, and is noted on disk as its digest alone.
fn identity(place: &str, endpoint: Option<&str>) -> Digest {
    Digest::of(format!("{place} at {}", endpoint.unwrap_or("its usual address")).as_bytes())
}

impl Bucket {
    /// The prefix behind `s3://BUCKET/PREFIX`; `keys` are `ACCESS_KEY:SECRET_KEY[:SESSION_TOKEN]`. Connects to nothing.
    pub(crate) fn open(url: &str, keys: Option<&str>) -> Result<Self, BlobError> {
        let endpoint = variable(["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
        Self::open_at(url, keys, endpoint.as_deref())
    }

    /// The same at this address.
    pub(crate) fn open_at(url: &str, keys: Option<&str>, endpoint: Option<&str>) -> Result<Self, BlobError> {
        // Whatever cannot be read may hold keys, so it is not repeated.
        let wrong =
            |problem: &str| BlobError::Store { place: "the object store".to_owned(), problem: problem.to_owned() };
        let path = url.strip_prefix("s3://").ok_or_else(|| wrong("write s3://BUCKET/PREFIX"))?;
        if path.contains(['@', '?', '#']) {
            return Err(wrong("a place holds no keys and no query: name a variable with --blobs-credentials-env"));
        }
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|error| wrong(&error.to_string()))?;
        if bucket.is_empty() || prefix.as_ref().is_empty() {
            return Err(wrong("it needs a bucket and a prefix that nothing else uses: write s3://BUCKET/PREFIX"));
        }
        let retry = RetryConfig { max_retries: 5, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(variable(["AWS_REGION", "AWS_DEFAULT_REGION"]).unwrap_or_else(|| "us-east-1".to_owned()))
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_retry(retry);
        if let Some(endpoint) = endpoint {
            let plain = endpoint.starts_with("http://");
            if plain && !is_loopback(endpoint) && variable(["AWS_ALLOW_HTTP", "ALLOW_HTTP"]).as_deref() != Some("true")
            {
                return Err(wrong(&format!(
                    "{endpoint} is plain HTTP beyond this machine, where all could read checkpoints and keys could be \
                     guessed from requests: use https://, or set AWS_ALLOW_HTTP=true if the network between is yours alone"
                )));
            }
            builder = builder.with_allow_http(plain).with_endpoint(endpoint);
        }
        let parts = keys.map(|keys| keys.splitn(3, ':').collect::<Vec<_>>());
        builder = match parts.as_deref() {
            None => builder.with_skip_signature(true),
            Some([key, secret]) if !key.is_empty() && !secret.is_empty() => {
                builder.with_access_key_id(*key).with_secret_access_key(*secret)
            }
            Some([key, secret, token]) if ![key, secret, token].contains(&&"") => {
                builder.with_access_key_id(*key).with_secret_access_key(*secret).with_token(*token)
            }
            Some(_) => {
                return Err(wrong(
                    "the variable of --blobs-credentials-env must hold ACCESS_KEY:SECRET_KEY or \
                     ACCESS_KEY:SECRET_KEY:SESSION_TOKEN",
                ));
            }
        };
        let place = format!("s3://{bucket}/{prefix}");
        let store = builder.build().map_err(|error| wrong(&told(&error)))?;
        let identity = identity(&place, endpoint);
        Ok(Self { store: Arc::new(store), prefix, place, identity })
    }

    /// Another implementation, as tests make them.
    #[cfg(test)]
    pub(in crate::server) fn of(store: Arc<dyn ObjectStore>, place: &str) -> Self {
        Self { store, prefix: Path::from("blobs"), place: place.to_owned(), identity: identity(place, None) }
    }

    /// The store, as errors name it.
    pub(in crate::server) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn error(&self, key: &Path, error: &Error) -> BlobError {
        BlobError::Store { place: format!("{} ({key})", self.place), problem: told(error) }
    }

    /// Creates an object that must not be there yet.
    pub(super) async fn create(&self, key: &Path, bytes: PutPayload) -> object_store::Result<()> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store.put_opts(key, bytes, options).await.map(drop)
    }
}
