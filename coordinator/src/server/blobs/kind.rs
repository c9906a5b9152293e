//! The object stores that blobs may lie in, and what each wants to be told.

use std::{sync::Arc, time::Duration};

use graftwork_shared::cause::told;
use object_store::{
    ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, S3ConditionalPut},
    azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
};
use reqwest::Url;

/// Whose protocol a store speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Amazon's S3, and whatever speaks as it does.
    Amazon,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

/// The first of these environment variables that says something.
fn variable(names: &[&str]) -> Option<String> {
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

impl Kind {
    /// By the scheme of an address.
    pub(super) fn of(scheme: &str) -> Option<Self> {
        match scheme {
            "s3" => Some(Self::Amazon),
            "gs" => Some(Self::Google),
            "az" => Some(Self::Azure),
            _ => None,
        }
    }

    /// The address that is to be asked instead of the usual one, where the environment names one.
    pub(super) fn endpoint(self) -> Option<String> {
        variable(self.endpoint_variables())
    }

    /// The variable that names it first.
    pub(super) fn endpoint_variable(self) -> &'static str {
        self.endpoint_variables()[0]
    }

    fn endpoint_variables(self) -> &'static [&'static str] {
        match self {
            Self::Amazon => &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"],
            Self::Google => &["GOOGLE_BASE_URL"],
            Self::Azure => &["AZURE_STORAGE_ENDPOINT"],
        }
    }

    /// What its buckets are called.
    pub(super) fn bucket(self) -> &'static str {
        match self {
            Self::Amazon | Self::Google => "bucket",
            Self::Azure => "container",
        }
    }

    /// An address in the form in which requests are made. One that is none is not repeated: it may be a secret.
    fn address(self, endpoint: &str) -> Result<String, String> {
        // A user's name, a password or a signed query would stand in the words of every error.
        let is_plain = |url: &Url| {
            let secrets = [url.password(), url.query(), url.fragment()];
            matches!(url.scheme(), "http" | "https") && url.username().is_empty() && secrets == [None; 3]
        };
        match Url::parse(endpoint) {
            Ok(url) if is_plain(&url) => Ok(url.as_str().trim_end_matches('/').to_owned()),
            _ => Err(format!("the address in {} is none: write https://HOST", self.endpoint_variable())),
        }
    }

    /// The variables of which one, being `true`, allows plain HTTP beyond this machine.
    fn plain_variables(self) -> &'static [&'static str] {
        match self {
            Self::Amazon => &["AWS_ALLOW_HTTP", "ALLOW_HTTP"],
            Self::Google | Self::Azure => &["ALLOW_HTTP"],
        }
    }

    /// The bucket (Azure's container) of this name. Connects to nothing. An error names no key, and is about the keys only
    /// where nothing else is wrong.
    pub(super) fn open(
        self,
        bucket: &str,
        keys: Option<&str>,
        endpoint: Option<&str>,
    ) -> Result<Arc<dyn ObjectStore>, String> {
        let endpoint = endpoint.map(|endpoint| self.address(endpoint)).transpose()?;
        let endpoint = endpoint.as_deref();
        let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        if let Some(endpoint) = endpoint.filter(|endpoint| plain && !is_loopback(endpoint)) {
            let names = self.plain_variables();
            if variable(names).as_deref() != Some("true") {
                return Err(format!(
                    "{endpoint} is plain HTTP beyond this machine, where all could read checkpoints and keys could be \
                     guessed from requests: use https://, or set {}=true if the network between is yours alone",
                    names[0]
                ));
            }
        }
        let retry = RetryConfig { max_retries: 5, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() };
        let options = ClientOptions::new().with_allow_http(plain);
        let expects = |form: &str| format!("the variable of --blobs-credentials-env must hold {form}");
        Ok(match self {
            Self::Amazon => {
                let region = variable(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
                let mut builder = AmazonS3Builder::new()
                    .with_bucket_name(bucket)
                    .with_region(region.unwrap_or_else(|| "us-east-1".to_owned()))
                    .with_conditional_put(S3ConditionalPut::ETagMatch)
                    .with_client_options(options)
                    .with_retry(retry);
                if let Some(endpoint) = endpoint {
                    builder = builder.with_endpoint(endpoint);
                }
                let parts = keys.map(|keys| keys.splitn(3, ':').collect::<Vec<_>>());
                builder = match parts.as_deref() {
                    None => builder.with_skip_signature(true),
                    Some(parts) if parts.contains(&"") || parts.len() < 2 => {
                        return Err(expects("ACCESS_KEY:SECRET_KEY or ACCESS_KEY:SECRET_KEY:SESSION_TOKEN"));
                    }
                    Some(parts) => {
                        let signed = builder.with_access_key_id(parts[0]).with_secret_access_key(parts[1]);
                        parts.get(2).map_or(signed.clone(), |token| signed.with_token(*token))
                    }
                };
                Arc::new(builder.build().map_err(|error| told(&error))?)
            }
            Self::Google => {
                let builder = GoogleCloudStorageBuilder::new()
                    .with_bucket_name(bucket)
                    .with_base_url(endpoint.unwrap_or("https://storage.googleapis.com"))
                    .with_client_options(options)
                    .with_retry(retry);
                let store = match keys {
                    None => builder.with_skip_signature(true).build().map_err(|error| told(&error)),
                    // What the library says of a key it cannot read may repeat some of it.
                    Some(key) => builder
                        .with_service_account_key(key)
                        .build()
                        .map_err(|_| expects("the key of a service account, the JSON text that Google gives")),
                };
                Arc::new(store?)
            }
            Self::Azure => {
                let form = || expects("ACCOUNT:ACCESS_KEY");
                let (account, key) = keys
                    .and_then(|keys| keys.split_once(':'))
                    .filter(|(account, key)| !account.is_empty() && !key.is_empty())
                    .ok_or_else(form)?;
                let builder = MicrosoftAzureBuilder::new().with_account(account).with_access_key(key);
                let mut builder = builder.with_container_name(bucket).with_client_options(options).with_retry(retry);
                if let Some(endpoint) = endpoint {
                    builder = builder.with_endpoint(endpoint.to_owned());
                }
                // It may repeat the key too.
                Arc::new(builder.build().map_err(|_| form())?)
            }
        })
    }
}
