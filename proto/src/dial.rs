//! How a coordinator is dialled, by workers and commands alike: TLS, keep-alive, token, and words for what fails.
//!
//! A token is read from the environment and sent as a header that no log shows; [`Token`] has no text form. With a CA
//! of one's own, no other is trusted.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use graftwork_shared::{address::Address, cause::told, credentials, id::Term, trace::TRACE_HEADER};
use tokio_rustls::rustls::{
    self, CertificateError,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{KEY_HEADER, TERM_HEADER, VERSION_HEADER, trace::trace_context};

/// Variable that holds the token, when no option names another.
pub const TOKEN_VARIABLE: &str = "GRAFTWORK_TOKEN";

/// Variable with the file of the CA, when no option gives it.
pub const CA_VARIABLE: &str = "GRAFTWORK_CA";

/// Metadata of a refusal that will pass: milliseconds until it is worth asking again, by gRPC's own name for it.
pub const PUSHBACK_HEADER: &str = "grpc-retry-pushback-ms";

/// A peer that does not answer a ping within this time is gone; half-open connections are found by it.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The same where there is another coordinator to turn to: whoever leads may be frozen, and then the other takes over.
const SHORT_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// A host that does not take a connection within this time is not there.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest wait that a refusal may ask for; whoever asks for more is not believed.
const LONGEST_PUSHBACK: Duration = Duration::from_secs(30);

/// What is wrong with what was given for dialling.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The file of the CA.
    #[error("the CA's certificate {}: {problem}; give the ca.pem that `graftwork cert` made", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The token's variable.
    #[error("the environment variable {0} that holds the token is not set, or holds characters that no token has")]
    Token(String),
    /// The transport does not take the address.
    #[error("{address}: {problem}")]
    Unusable {
        /// The address.
        address: String,
        /// What the transport says.
        problem: String,
    },
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// Whoever answers is not who was asked for: trying again does not help.
    Distrusted(String),
    /// Nobody answers, or not now.
    Unreachable(String),
}

/// Reads a CA's file, and checks that it is one.
fn read_ca(path: &Path) -> Result<Certificate, DialError> {
    let wrong = |problem: String| DialError::Ca { path: path.to_owned(), problem };
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    match CertificateDer::pem_slice_iter(&pem).next() {
        Some(Ok(_)) => Ok(Certificate::from_pem(pem)),
        Some(Err(error)) => Err(wrong(format!("{error:?}"))),
        None => Err(wrong("it holds no certificate in PEM form".to_owned())),
    }
}

/// The way to a coordinator.
#[derive(Clone, Debug)]
pub struct Route {
    address: Address,
    endpoint: Endpoint,
}

impl Route {
    /// Prepares the way; connects to nothing. Over TLS the CA of this file is trusted and no other, and without one the
    /// CAs of this machine; a way without TLS reads no file.
    pub fn new(address: Address, ca: Option<&Path>) -> Result<Self, DialError> {
        let text = address.to_string();
        let unusable =
            |error: tonic::transport::Error| DialError::Unusable { address: text.clone(), problem: told(&error) };
        let mut endpoint = Endpoint::from_shared(text.clone()).map_err(unusable)?;
        if let Address::Https(host) = &address {
            let config = ClientTlsConfig::new().domain_name(host.name());
            let config = match ca {
                None => config.with_native_roots(),
                Some(path) => config.ca_certificate(read_ca(path)?),
            };
            endpoint = endpoint.tls_config(config).map_err(unusable)?;
        }
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        Ok(Self { address, endpoint })
    }

    /// The same way, given up soon when nobody answers, since there is another one.
    #[must_use]
    pub fn impatient(self) -> Self {
        let endpoint = self.endpoint.http2_keep_alive_interval(SHORT_KEEP_ALIVE).keep_alive_timeout(SHORT_KEEP_ALIVE);
        Self { endpoint, ..self }
    }

    /// Where it leads.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// A channel that connects when it is used, and again after a break.
    pub fn lazy(&self) -> Channel {
        self.endpoint.connect_lazy()
    }

    /// A channel that is connected.
    pub async fn connect(&self) -> Result<Channel, ConnectError> {
        self.endpoint.connect().await.map_err(|error| self.explain(&error))
    }

    /// What a failure to connect means, in words that say how to mend it.
    fn explain(&self, error: &(dyn std::error::Error + 'static)) -> ConnectError {
        if let Some(found) = of_tls(error) {
            return self.explain_tls(found);
        }
        ConnectError::Unreachable(innermost(error))
    }

    fn explain_tls(&self, error: &rustls::Error) -> ConnectError {
        use rustls::Error::{InvalidCertificate, InvalidMessage};
        let host = if let Address::Https(host) = &self.address { host.name() } else { "" };
        match error {
            // Another CA of the same name made a signature that this one did not.
            InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => ConnectError::Distrusted(format!(
                "its certificate is of a CA that is not trusted here; give that CA's ca.pem with --tls-ca or {CA_VARIABLE}"
            )),
            InvalidCertificate(CertificateError::NotValidForName) => {
                ConnectError::Distrusted(format!("its certificate is not for {host}; {}", for_name(host)))
            }
            InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
                let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
                let names = names.join(", ");
                ConnectError::Distrusted(format!("its certificate is for {names}, not for {host}; {}", for_name(host)))
            }
            InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                ConnectError::Unreachable(
                    "its certificate has expired; renew it with `graftwork cert FOLDER --renew`, or set this clock right"
                        .to_owned(),
                )
            }
            InvalidCertificate(_) => ConnectError::Distrusted(error.to_string()),
            InvalidMessage(_) => ConnectError::Unreachable(
                "it does not speak TLS; for a plain coordinator on loopback write http://".to_owned(),
            ),
            _ => ConnectError::Unreachable(error.to_string()),
        }
    }

    /// What may be behind a connection that broke before anything was answered.
    pub fn hint(&self) -> &'static str {
        match self.address {
            Address::Http(_) => "; if the coordinator speaks TLS there, write https://",
            Address::Unix(_) | Address::Https(_) => "",
        }
    }
}

/// A name of a certificate without the kind that the verifier puts around it, as in `DnsName("x")`.
fn bare(name: &str) -> &str {
    let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inside.trim_matches('"')
}

fn for_name(host: &str) -> String {
    format!("use one of its names, or renew it with `graftwork cert FOLDER --renew --host {host}`")
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Distrusted(words) | Self::Unreachable(words)) = self;
        f.write_str(words)
    }
}

/// The cause that TLS names, wherever it is wrapped.
fn of_tls<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| cause.source());
    }
    None
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// How long a refusal asks to wait; `None` when asking again does not help, or nothing was said.
pub fn pushback(status: &Status) -> Option<Duration> {
    let milliseconds = status.metadata().get(PUSHBACK_HEADER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(milliseconds).min(LONGEST_PUSHBACK))
}

/// Who asks, as a secret, empty on a private socket; and what else goes with every request.
#[derive(Clone, Default)]
pub struct Token {
    header: Option<MetadataValue<Ascii>>,
    key: Option<MetadataValue<Ascii>>,
    version: Option<MetadataValue<Ascii>>,
    term: Option<MetadataValue<Ascii>>,
}

impl Token {
    /// Reads the token from the variable that an option names, else from [`TOKEN_VARIABLE`] where that is set.
    pub fn from_environment(variable: Option<&str>) -> Result<Self, DialError> {
        let name = variable.unwrap_or(TOKEN_VARIABLE);
        let wrong = || DialError::Token(name.to_owned());
        match (credentials::of_operator(name), variable) {
            (Some(text), _) => Self::new(&text).ok_or_else(wrong),
            (None, None) if std::env::var_os(name).is_none_or(|set| set.to_str().is_some()) => Ok(Self::default()),
            (None, _) => Err(wrong()),
        }
    }

    /// This token; `None` when no header can hold it.
    pub fn new(text: &str) -> Option<Self> {
        let mut header: MetadataValue<Ascii> = format!("Bearer {text}").parse().ok()?;
        header.set_sensitive(true);
        Some(Self { header: Some(header), ..Self::default() })
    }

    /// The same, with the key of this process for what is uploaded.
    pub fn with_key(self, key: &str) -> Self {
        Self { key: key.parse().ok(), ..self }
    }

    /// The same, with the version of a program that has no session to say it in.
    pub fn with_version(self, version: &str) -> Self {
        Self { version: version.parse().ok(), ..self }
    }

    /// The same, for the coordinator of this term alone. It says none if that is 0, which no coordinator has.
    pub fn with_term(self, term: Term) -> Self {
        Self { term: (term.0 > 0).then(|| term.0.into()), ..self }
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
        let said = [(KEY_HEADER, &self.key), (VERSION_HEADER, &self.version), (TERM_HEADER, &self.term)];
        for (name, value) in said {
            if let Some(value) = value {
                request.metadata_mut().insert(name, value.clone());
            }
        }
        if let Some(context) = trace_context().and_then(|context| context.to_string().parse().ok()) {
            request.metadata_mut().insert(TRACE_HEADER, context);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_never_printed() {
        let mut token = Token::new("secret").unwrap();
        let request = token.call(Request::new(())).unwrap();
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer secret");
        assert!(!format!("{token:?} {request:?}").contains("secret"));
        assert!(Token::new("two\nlines").is_none());
    }

    #[test]
    fn what_is_said_beside_the_token_goes_with_every_request() {
        let said = |mut token: Token| token.call(Request::new(())).unwrap().into_parts().0;
        let metadata = said(Token::default().with_key("key").with_version("1.2.3").with_term(Term(7)));
        let values = [KEY_HEADER, VERSION_HEADER, TERM_HEADER].map(|name| metadata.get(name).unwrap());
        assert_eq!(values, ["key", "1.2.3", "7"]);
        assert!(said(Token::default().with_term(Term(0))).is_empty());
    }

    #[test]
    fn a_file_without_a_certificate_is_no_ca() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        let said = Route::new("https://127.0.0.1:1".parse().unwrap(), Some(path)).unwrap_err().to_string();
        assert!(said.contains("Cargo.toml: it holds no certificate in PEM form"), "{said}");
        assert!(Route::new("http://127.0.0.1:1".parse().unwrap(), Some(path)).is_ok(), "it is not needed");
    }

    #[test]
    fn only_a_refusal_that_passes_says_how_long_to_wait() {
        let mut busy = Status::resource_exhausted("too many");
        assert_eq!(pushback(&busy), None);
        busy.metadata_mut().insert(PUSHBACK_HEADER, "250".parse().unwrap());
        assert_eq!(pushback(&busy), Some(Duration::from_millis(250)));
        busy.metadata_mut().insert(PUSHBACK_HEADER, "99999999".parse().unwrap());
        assert_eq!(pushback(&busy), Some(LONGEST_PUSHBACK));
    }
}
