//! The way to a coordinator: address, TLS, keep-alive, token and patience.
//!
//! The token is read from the environment and sent as a header; it must never be logged, so [`Token`] has no text
//! form.

use std::{fmt, time::Duration};

use graftwork_shared::cause::told;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Channel, ClientTlsConfig, Endpoint},
};

/// A peer that does not answer a ping within this time is gone; half-open connections are found by it.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The same where there is another coordinator to turn to: whoever leads may be frozen, and then the other takes over.
const SHORT_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// A host that does not take a connection within this time is not there.
const CONNECT: Duration = Duration::from_secs(5);

/// Shortest and longest wait between two attempts.
const WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Why a coordinator cannot be reached at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    /// Not one of the address forms.
    #[error(
        "{0:?} is not the address of a coordinator: use unix:///path/to/socket, http://host:port or https://host:port"
    )]
    Form(String),
    /// The address or TLS settings cannot be used.
    #[error("{address}: {problem}")]
    Unusable {
        /// The address.
        address: String,
        /// What the transport says.
        problem: String,
    },
    /// The environment variable of the token.
    #[error("the environment variable {0} (--token-env) is not set, or holds characters that a token cannot have")]
    Token(String),
}

/// Where a coordinator listens.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    text: String,
    endpoint: Endpoint,
}

impl Address {
    /// Reads an address and prepares its endpoint; connects to nothing.
    pub(crate) fn parse(text: &str) -> Result<Self, AddressError> {
        let unusable =
            |error: tonic::transport::Error| AddressError::Unusable { address: text.to_owned(), problem: told(&error) };
        let socket = text.strip_prefix("unix://").is_some_and(|path| path.starts_with('/'));
        let secure = text.starts_with("https://");
        if !socket && !secure && !text.starts_with("http://") {
            return Err(AddressError::Form(text.to_owned()));
        }
        let mut endpoint = Endpoint::from_shared(text.to_owned()).map_err(unusable)?;
        if secure {
            endpoint = endpoint.tls_config(ClientTlsConfig::new().with_native_roots()).map_err(unusable)?;
        }
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        Ok(Self { text: text.to_owned(), endpoint })
    }

    /// The same, given up sooner when it falls silent.
    pub(crate) fn impatient(self) -> Self {
        let endpoint = self.endpoint.connect_timeout(SHORT_KEEP_ALIVE).http2_keep_alive_interval(SHORT_KEEP_ALIVE);
        Self { endpoint: endpoint.keep_alive_timeout(SHORT_KEEP_ALIVE), ..self }
    }

    /// A channel that connects when it is used, and again after a break.
    pub(crate) fn lazy(&self) -> Channel {
        self.endpoint.connect_lazy()
    }

    /// A channel that is connected.
    pub(crate) async fn connect(&self) -> Result<Channel, String> {
        self.endpoint.connect().await.map_err(|error| format!("{self}: {}", told(&error)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Who this worker is, as a secret; empty on a private socket.
#[derive(Clone, Default)]
pub(crate) struct Token {
    text: String,
    header: Option<MetadataValue<Ascii>>,
    key: Option<MetadataValue<Ascii>>,
}

impl Token {
    /// Reads the token from an environment variable, or takes none.
    pub(crate) fn from_environment(variable: Option<&str>) -> Result<Self, AddressError> {
        let Some(variable) = variable else { return Ok(Self::default()) };
        let wrong = || AddressError::Token(variable.to_owned());
        let text = std::env::var(variable).map_err(|_| wrong())?;
        let mut header: MetadataValue<Ascii> = format!("Bearer {text}").parse().map_err(|_| wrong())?;
        header.set_sensitive(true);
        Ok(Self { text, header: Some(header), key: None })
    }

    /// The same, with the key of this process for what is uploaded.
    pub(crate) fn with_key(self, key: &str) -> Self {
        Self { key: key.parse().ok(), ..self }
    }

    /// The secret itself, for the greeting.
    pub(crate) fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.header.is_some() { "Token(hidden)" } else { "Token(none)" })
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
        if let Some(key) = &self.key {
            request.metadata_mut().insert(graftwork_proto::KEY_HEADER, key.clone());
        }
        Ok(request)
    }
}

/// Growing waits between attempts.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// Starts with the shortest wait.
    pub(crate) fn new() -> Self {
        Self { next: WAITS.0 }
    }

    /// The wait before the next attempt.
    pub(crate) fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(WAITS.1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_of_other_forms_are_refused() {
        for wrong in ["", "localhost:1", "unix:relative", "unix://relative/socket", "ftp://host:1"] {
            assert!(matches!(Address::parse(wrong), Err(AddressError::Form(_))), "{wrong}");
        }
        for right in ["unix:///tmp/a b/socket", "http://127.0.0.1:4700", "https://trainer.example:443"] {
            assert_eq!(Address::parse(right).unwrap().to_string(), right);
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let header = Some("Bearer secret".parse().unwrap());
        let token = Token { text: "secret".to_owned(), header, key: None };
        assert!(!format!("{token:?}").contains("secret"));
    }

    #[test]
    fn waits_grow_to_their_bound() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..8).map(|_| backoff.wait()).collect();
        assert!(waits.is_sorted());
        assert_eq!((waits[0], waits[7]), WAITS);
    }
}
