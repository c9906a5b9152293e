//! An object store: where it is, and how it is reached.
//!
//! A store is believed only after it was seen to keep its word (`proof.rs`): of writers that race to create one object,
//! exactly one may win, and nobody may overwrite it. Some stores ignore the condition silently, and some lose the race.

use std::{fmt, sync::Arc};

use graftwork_shared::{cause::told, digest::Digest};
use object_store::{Error, ObjectStore, PutMode, PutOptions, PutPayload, path::Path};

use super::{BlobError, fault::advice, kind::Kind};

/// A prefix in an object store. `Debug` shows no keys.
#[derive(Clone)]
pub(crate) struct Bucket {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    place: String,
    /// `None` for what only tests use.
    kind: Option<Kind>,
    /// Of the place and of the address at which it is reached.
    pub(super) identity: Digest,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("place", &self.place).finish_non_exhaustive()
    }
}

/// An address may hold a secret, and is noted on disk as its digest alone.
fn identity(place: &str, endpoint: Option<&str>) -> Digest {
    Digest::of(format!("{place} at {}", endpoint.unwrap_or("its usual address")).as_bytes())
}

impl Bucket {
    /// The prefix behind `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`; for the form of `keys` see
    /// [`Kind::open`]. Connects to nothing.
    pub(crate) fn open(url: &str, keys: Option<&str>) -> Result<Self, BlobError> {
        let endpoint = url.split_once("://").and_then(|(scheme, _)| Kind::of(scheme)?.endpoint());
        Self::open_at(url, keys, endpoint.as_deref())
    }

    /// The same at this address.
    pub(crate) fn open_at(url: &str, keys: Option<&str>, endpoint: Option<&str>) -> Result<Self, BlobError> {
        // Whatever cannot be read may hold keys, so it is not repeated.
        let wrong =
            |problem: &str| BlobError::Store { place: "the object store".to_owned(), problem: problem.to_owned() };
        let known = url.split_once("://").and_then(|(scheme, path)| Some((Kind::of(scheme)?, scheme, path)));
        let (kind, scheme, path) =
            known.ok_or_else(|| wrong("write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"))?;
        if path.contains(['@', '?', '#']) {
            return Err(wrong("a place holds no keys and no query: name a variable with --blobs-credentials-env"));
        }
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|error| wrong(&error.to_string()))?;
        if bucket.is_empty() || prefix.as_ref().is_empty() {
            let bucket = if kind == Kind::Azure { "CONTAINER" } else { "BUCKET" };
            return Err(wrong(&format!(
                "it needs a bucket and a prefix that nothing else uses: write {scheme}://{bucket}/PREFIX"
            )));
        }
        let store = kind.open(bucket, keys, endpoint).map_err(|problem| wrong(&problem))?;
        let place = format!("{scheme}://{bucket}/{prefix}");
        let identity = identity(&place, endpoint);
        Ok(Self { store, prefix, place, kind: Some(kind), identity })
    }

    /// Another implementation, as tests make them.
    #[cfg(test)]
    pub(in crate::server) fn of(store: Arc<dyn ObjectStore>, place: &str) -> Self {
        let (prefix, identity) = (Path::from("blobs"), identity(place, None));
        Self { store, prefix, place: place.to_owned(), kind: None, identity }
    }

    /// The store, as errors name it.
    pub(in crate::server) fn place(&self) -> &str {
        &self.place
    }

    /// What an error about this object says, behind what to do about it where that is known.
    pub(super) fn error(&self, key: &Path, error: &Error) -> BlobError {
        let words = told(error);
        let problem = match self.kind.and_then(|kind| advice(kind, error, &words)) {
            Some(advice) => format!("{advice} ({words})"),
            None => words,
        };
        BlobError::Store { place: format!("{} ({key})", self.place), problem }
    }

    /// Creates an object that must not be there yet.
    pub(super) async fn create(&self, key: &Path, bytes: PutPayload) -> object_store::Result<()> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store.put_opts(key, bytes, options).await.map(drop)
    }
}
