//! Access to places: local folders and object stores, with credentials that never leave this file.
//!
//! Credentials come from one environment variable that the job names. Its value is
//!
//! - for `s3://`: `ACCESS_KEY:SECRET_KEY` or `ACCESS_KEY:SECRET_KEY:SESSION_TOKEN`
//! - for `gs://`: an HMAC key of Google's S3-compatible interface, `ACCESS_KEY:SECRET_KEY`
//! - for `http://` and `https://`: a token, sent as `Authorization: Bearer TOKEN`
//!
//! Without a variable stores are read without signature. What is no secret comes from the usual variables:
//! `AWS_REGION` or `AWS_DEFAULT_REGION` (default `us-east-1`) and `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`.
//!
//! Must never print, store or return a secret: URLs with a user name, a password or a query (where signatures hide)
//! are refused, and `Debug` shows the variable's name alone.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path as FilePath, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use graftwork_shared::{
    credentials::{self, CredentialError},
    digest::Digest,
    upload,
};
use object_store::{
    ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder, http::HttpBuilder, local::LocalFileSystem,
    path::Path,
};
use url::Url;

use crate::DataError;

/// Where an error of something uploaded sends the user.
const NOT_UPLOADED: &str = "the coordinator does not hold it; submit the job again, which uploads what is missing";

/// How files are reached. Cheap to clone; clones share the stores opened so far.
#[derive(Clone)]
pub struct Access {
    credentials: Option<Credentials>,
    /// Uploaded files by their digest, and where they lie on this machine.
    uploads: Arc<BTreeMap<Digest, PathBuf>>,
    /// Connection pools by `scheme://host:port`; a cache, not state.
    stores: Arc<Mutex<BTreeMap<String, Arc<dyn ObjectStore>>>>,
}

#[derive(Clone)]
struct Credentials {
    variable: String,
    secret: String,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variable = self.credentials.as_ref().map(|credentials| credentials.variable.as_str());
        f.debug_struct("Access").field("credentials", &variable).finish_non_exhaustive()
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::anonymous()
    }
}

/// One file or prefix in a store.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) path: Path,
    /// Absolute path or URL, as errors and identities name it.
    pub(crate) location: String,
}

impl Access {
    /// Reads local files and public objects.
    pub fn anonymous() -> Self {
        Self { credentials: None, uploads: Arc::default(), stores: Arc::default() }
    }

    /// Credentials from this environment variable, in the format that the module describes; `None` is
    /// [`Access::anonymous`]. Errors when the variable is named but not set.
    pub fn from_environment(variable: Option<&str>) -> Result<Self, DataError> {
        let Some(variable) = variable else { return Ok(Self::anonymous()) };
        match credentials::secret(variable) {
            Ok(secret) => Ok(Self::with_secret(variable, &secret)),
            Err(CredentialError::Unset(_)) => Err(DataError::Credentials {
                variable: variable.to_owned(),
                found: "is not set here".to_owned(),
                scheme: "s3".to_owned(),
                expected: format!("{S3_FORMAT} (for http: a bearer token), in the environment of this process"),
            }),
            Err(error) => Err(DataError::Forbidden(error)),
        }
    }

    /// Credentials that were read from a variable elsewhere.
    pub(crate) fn with_secret(variable: &str, secret: &str) -> Self {
        let credentials = Credentials { variable: variable.to_owned(), secret: secret.to_owned() };
        Self { credentials: Some(credentials), uploads: Arc::default(), stores: Arc::default() }
    }

    /// Takes a store for that of `scheme://host`.
    #[cfg(test)]
    pub(crate) fn pretend(&self, base: &str, store: Arc<dyn ObjectStore>) {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).insert(base.to_owned(), store);
    }

    /// The same, and uploaded files (`blob://DIGEST/NAME`) where they lie on this machine.
    pub fn with_uploads(self, files: BTreeMap<Digest, PathBuf>) -> Self {
        Self { uploads: Arc::new(files), ..self }
    }

    /// The place behind an absolute path, a URL, or the location of an uploaded file.
    pub(crate) fn place(&self, location: &str) -> Result<Place, DataError> {
        if let Some(digest) = upload::digest(location) {
            let missing = || DataError::MissingFile { location: location.to_owned(), nearby: NOT_UPLOADED.to_owned() };
            let file = self.uploads.get(&digest).ok_or_else(missing)?;
            let file = std::path::absolute(file).map_err(|error| wrong(location, &error.to_string()))?;
            let path = Path::from_absolute_path(file).map_err(|error| wrong(location, &error.to_string()))?;
            let store = self.cached("file", || Ok(Arc::new(LocalFileSystem::new())))?;
            return Ok(Place { store, path, location: location.to_owned() });
        }
        if !is_url(location) {
            let path = Path::from_absolute_path(FilePath::new(location))
                .map_err(|error| wrong(location, &format!("{error}; use an absolute path")))?;
            let store = self.cached("file", || Ok(Arc::new(LocalFileSystem::new())))?;
            return Ok(Place { store, path, location: location.to_owned() });
        }
        let url = parse_url(location)?;
        let base = url[..url::Position::BeforePath].to_owned();
        let path = Path::from_url_path(url.path())
            .map_err(|error| wrong(location, &format!("{error}; write the path percent-encoded")))?;
        let store = self.cached(&base, || self.connect(&url, &base))?;
        Ok(Place { store, path, location: location.to_owned() })
    }

    fn cached(
        &self,
        base: &str,
        open: impl FnOnce() -> Result<Arc<dyn ObjectStore>, DataError>,
    ) -> Result<Arc<dyn ObjectStore>, DataError> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores.get(base) {
            return Ok(Arc::clone(store));
        }
        let store = open()?;
        stores.insert(base.to_owned(), Arc::clone(&store));
        Ok(store)
    }

    fn connect(&self, url: &Url, base: &str) -> Result<Arc<dyn ObjectStore>, DataError> {
        let failed = |error: object_store::Error| wrong(base, &error.to_string());
        match url.scheme() {
            "http" | "https" => {
                if self.credentials.is_some() && !credentials::may_be_sent(url.scheme(), url.host_str()) {
                    return Err(wrong(base, "credentials are sent over https:// alone, beyond this machine"));
                }
                let store =
                    HttpBuilder::new().with_url(base).with_retry(retry()).with_client_options(self.http_options()?);
                Ok(Arc::new(store.build().map_err(failed)?))
            }
            "s3" => {
                let region = first_variable(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
                let mut store = AmazonS3Builder::new().with_region(region.unwrap_or_else(|| "us-east-1".to_owned()));
                if let Some(endpoint) = first_variable(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]) {
                    store = store.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint);
                }
                Ok(Arc::new(self.sign(store, url)?.build().map_err(failed)?))
            }
            _ => {
                let store = AmazonS3Builder::new().with_region("auto").with_endpoint("https://storage.googleapis.com");
                Ok(Arc::new(self.sign(store, url)?.build().map_err(failed)?))
            }
        }
    }

    fn sign(&self, store: AmazonS3Builder, url: &Url) -> Result<AmazonS3Builder, DataError> {
        let store = store.with_bucket_name(url.host_str().unwrap_or_default()).with_retry(retry());
        let Some(credentials) = &self.credentials else { return Ok(store.with_skip_signature(true)) };
        let parts: Vec<&str> = credentials.secret.splitn(3, ':').collect();
        if parts.len() < 2 || parts.iter().any(|part| part.is_empty()) {
            return Err(DataError::Credentials {
                variable: credentials.variable.clone(),
                found: format!("holds {} part(s) between colons", parts.iter().filter(|part| !part.is_empty()).count()),
                scheme: url.scheme().to_owned(),
                expected: S3_FORMAT.to_owned(),
            });
        }
        let signed = store.with_access_key_id(parts[0]).with_secret_access_key(parts[1]);
        Ok(match parts.get(2) {
            Some(token) => signed.with_token(*token),
            None => signed,
        })
    }

    fn http_options(&self) -> Result<ClientOptions, DataError> {
        let options = ClientOptions::new().with_allow_http(true);
        let Some(credentials) = &self.credentials else { return Ok(options) };
        let value = format!("Bearer {}", credentials.secret);
        let mut value = object_store::HeaderValue::from_str(&value).map_err(|_| DataError::Credentials {
            variable: credentials.variable.clone(),
            found: "holds a character that no HTTP header may have".to_owned(),
            scheme: "http".to_owned(),
            expected: "a bearer token".to_owned(),
        })?;
        value.set_sensitive(true);
        let mut headers = object_store::HeaderMap::new();
        headers.insert("authorization", value);
        Ok(options.with_default_headers(headers))
    }
}

/// A hiccup is ridden out here; an outage is reported soon, as something that trying again can help.
fn retry() -> RetryConfig {
    RetryConfig { max_retries: 5, retry_timeout: Duration::from_secs(30), ..RetryConfig::default() }
}

const S3_FORMAT: &str = "ACCESS_KEY:SECRET_KEY or ACCESS_KEY:SECRET_KEY:SESSION_TOKEN";

pub(crate) fn is_url(location: &str) -> bool {
    location.contains("://")
}

/// A URL of a known scheme without secrets inside.
pub(crate) fn parse_url(location: &str) -> Result<Url, DataError> {
    let shown = location.split(['?', '#']).next().unwrap_or_default();
    let shown = match (shown.find("://"), shown.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}://…@{}", &shown[..scheme], &shown[at + 1..]),
        _ => shown.to_owned(),
    };
    let url = Url::parse(location).map_err(|error| wrong(&shown, &error.to_string()))?;
    if !["http", "https", "s3", "gs"].contains(&url.scheme()) {
        return Err(wrong(&shown, "the scheme must be http, https, s3 or gs; a local file is written as its path"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(&shown, "a URL must not hold credentials; put them into the variable that the job names"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong(&shown, "a URL must not have a query or a fragment; use the file's plain address"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(wrong(&shown, "it names no host or bucket"));
    }
    Ok(url)
}

pub(crate) fn wrong(location: &str, reason: &str) -> DataError {
    DataError::Location { location: location.to_owned(), reason: reason.to_owned() }
}

fn first_variable(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// A store's error in our words. The store's text names URLs, which hold no secret here.
pub(crate) fn store_error(location: &str, error: &object_store::Error) -> DataError {
    match error {
        object_store::Error::NotFound { .. } => {
            let nearby = if upload::digest(location).is_some() { NOT_UPLOADED } else { "check the name" };
            DataError::MissingFile { location: location.to_owned(), nearby: nearby.to_owned() }
        }
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            let help = if is_url(location) {
                "name the variable that holds its credentials in the job (`credentials`)"
            } else {
                "let this user read it"
            };
            DataError::Refused { location: location.to_owned(), help: help.to_owned() }
        }
        object_store::Error::Generic { source, .. } if denied(source.as_ref()) => {
            DataError::Refused { location: location.to_owned(), help: "let this user read it".to_owned() }
        }
        other => DataError::Unreachable { location: location.to_owned(), detail: chain(other) },
    }
}

fn denied(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// The last cause of an error: the one that says something.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let root = std::iter::successors(Some(error), |error| error.source()).last();
    root.map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_never_show() {
        let access = Access::with_secret("DATA_KEY", "AKIA1:very-secret");
        assert_eq!(format!("{access:?}"), "Access { credentials: Some(\"DATA_KEY\"), .. }");
        for url in ["https://me:hunter2@host/a.parquet", "https://host/a.parquet?X-Amz-Signature=hunter2"] {
            let error = access.place(url).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
            assert!(error.contains("host/a.parquet"), "{error}");
        }
        let error = Access::with_secret("DATA_KEY", "hunter2").place("s3://bucket/a.parquet").unwrap_err().to_string();
        assert!(!error.contains("hunter2") && error.contains("DATA_KEY") && error.contains("ACCESS_KEY:SECRET_KEY"));
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let error = Access::from_environment(Some("NO_SUCH_VARIABLE_OF_A_JOB")).unwrap_err().to_string();
        assert!(error.contains("NO_SUCH_VARIABLE_OF_A_JOB is not set here"), "{error}");
        let error = Access::from_environment(Some("GRAFTWORK_TOKEN")).unwrap_err().to_string();
        assert!(error.contains("GRAFTWORK_TOKEN is Graftwork's own"), "{error}");
    }

    #[test]
    fn a_secret_goes_over_plain_text_to_this_machine_alone() {
        let access = Access::with_secret("DATA_KEY", "token");
        let error = access.place("http://data.example/a.parquet").unwrap_err().to_string();
        assert!(error.contains("over https:// alone"), "{error}");
        assert!(access.place("http://127.0.0.1:1/a.parquet").is_ok());
        assert!(access.place("https://data.example/a.parquet").is_ok());
        assert!(Access::anonymous().place("http://data.example/a.parquet").is_ok());
    }

    #[test]
    fn unknown_schemes_are_refused_with_the_known_ones() {
        let error = Access::anonymous().place("ftp://host/a.parquet").unwrap_err().to_string();
        assert!(error.contains("http, https, s3 or gs"), "{error}");
        assert!(Access::anonymous().place("s3://bucket/a/b.parquet").is_ok());
        assert!(Access::anonymous().place("gs://bucket/a/b.parquet").is_ok());
        assert!(Access::anonymous().place("http://127.0.0.1:1/a.parquet").is_ok());
    }
}
