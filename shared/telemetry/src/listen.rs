//! `GET /metrics`, `/healthz` and `/readyz`: one short answer for each connection.
//!
//! The rule is that of the other listeners: plain text on loopback alone, elsewhere TLS and a token. Health and readiness
//! are a word and are told to everybody who can connect, so that a probe needs no secret; numbers want the token where
//! there is one. Whoever dawdles is cut off, and what comes beyond a bound of connections is closed.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use graftwork_shared::address::Address;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::text;

/// Connections at a time.
const CONNECTIONS: usize = 64;

/// A connection ends after this time, whatever it has done.
const CONNECTION: Duration = Duration::from_secs(20);

/// Whoever shows a wrong token waits so long for the answer.
const WRONG_TOKEN: Duration = Duration::from_millis(500);

/// After an error of the system, such as too many open files.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// What is told.
pub trait Source: Send + Sync + 'static {
    /// Nothing is wrong with the process that starting it again would mend; else what.
    fn alive(&self) -> impl Future<Output = Result<(), String>> + Send;

    /// It does what it is for; else why not.
    fn ready(&self) -> impl Future<Output = Result<(), String>> + Send;

    /// The numbers of now as OpenMetrics text, or why there are none.
    fn metrics(&self) -> impl Future<Output = Result<String, String>> + Send;
}

/// Whether a token counts.
pub type Check = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// What guards an address.
#[derive(Clone, Default)]
pub struct Guard {
    /// The certificate, where it speaks TLS.
    pub tls: Option<TlsAcceptor>,
    /// Who may see the numbers; nobody is asked without it.
    pub token: Option<Check>,
}

/// Why an address is not listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Not an address of TCP.
    #[error("--metrics: {0} is no address of TCP: write 127.0.0.1:PORT, or https://IP:PORT with TLS and a token")]
    NotTcp(String),
    /// Others reach it, and something lacks.
    #[error("--metrics: {address} is reached by others, and so wants TLS and a token: {lacks}; or listen on 127.0.0.1")]
    Unguarded {
        /// The address.
        address: String,
        /// What lacks.
        lacks: &'static str,
    },
    /// The system.
    #[error("--metrics: {address}: {error}")]
    System {
        /// The address.
        address: String,
        /// What it says.
        error: io::Error,
    },
    /// Others are on each of the ports.
    #[error(
        "--metrics: {address} and the ports behind it are taken, {ports} in all: name another one, or more of them"
    )]
    AllTaken {
        /// The first address.
        address: String,
        /// How many there are.
        ports: u16,
    },
    /// The certificate or its key.
    #[error("{}: {problem}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// An address that answers; dropping it ends it.
#[derive(Debug)]
pub struct Listening {
    /// With the port that was taken.
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// TLS with this certificate and key, for HTTP/1.1.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, ListenError> {
    let wrong = |path: &Path, problem: String| ListenError::Certificate { path: path.to_owned(), problem };
    let read = |path: &Path| std::fs::read(path).map_err(|error| wrong(path, error.to_string()));
    let chain: Result<Vec<CertificateDer>, _> = CertificateDer::pem_slice_iter(&read(certificate)?).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| wrong(certificate, "it holds no certificate in PEM form".to_owned()))?;
    // The parser's own words could repeat what stands in the file.
    let private = PrivateKeyDer::from_pem_slice(&read(key)?);
    let private = private.map_err(|_| wrong(key, "it holds no private key in PEM form".to_owned()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|error| wrong(certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config).into())
}

/// Refuses an address that must not be served so; gives what is to be bound.
fn allowed(address: &Address, guard: &Guard) -> Result<(SocketAddr, Option<TlsAcceptor>), ListenError> {
    let not_tcp = || ListenError::NotTcp(address.to_string());
    let (host, wants_tls) = match address {
        Address::Unix(_) => return Err(not_tcp()),
        Address::Http(host) => (host, false),
        Address::Https(host) => (host, true),
    };
    let lacks = match (&guard.tls, &guard.token) {
        (None, None) => Some("neither a certificate nor a token is given"),
        (None, Some(_)) => Some("no certificate is given"),
        (Some(_), None) => Some("no token is given"),
        (Some(_), Some(_)) => None,
    };
    let only_tls_lacks = host.is_loopback() && guard.tls.is_some();
    if let (true, Some(lacks), false) = (wants_tls, lacks, only_tls_lacks) {
        return Err(ListenError::Unguarded { address: address.to_string(), lacks });
    }
    let ip = host.ip().ok_or_else(not_tcp)?;
    Ok((SocketAddr::new(ip, host.port()), guard.tls.clone().filter(|_| wants_tls)))
}

/// Listens and answers until the value is dropped.
pub async fn listen(address: &Address, guard: Guard, source: impl Source) -> Result<Listening, ListenError> {
    listen_on_a_free_port(address, 1, guard, source).await
}

/// Listens on the first free one of so many ports, from that of the address on, and answers until the value is dropped. So
/// any number of equal processes of one host tell their numbers, each on a port of its own, and whoever reads knows which.
pub async fn listen_on_a_free_port(
    address: &Address,
    ports: u16,
    guard: Guard,
    source: impl Source,
) -> Result<Listening, ListenError> {
    let (first, tls) = allowed(address, &guard)?;
    let failed = |error| ListenError::System { address: address.to_string(), error };
    let listener = bind(first, ports).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse if ports > 1 => ListenError::AllTaken { address: address.to_string(), ports },
        _ => failed(error),
    })?;
    let address = listener.local_addr().map_err(failed)?;
    let accepting = tokio::spawn(accept(listener, tls, Arc::new(Answers { token: guard.token, source })));
    Ok(Listening { address, accepting })
}

async fn bind(first: SocketAddr, ports: u16) -> io::Result<TcpListener> {
    let last = first.port().saturating_add(ports.saturating_sub(1));
    for port in first.port()..last {
        match TcpListener::bind(SocketAddr::new(first.ip(), port)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    TcpListener::bind(SocketAddr::new(first.ip(), last)).await
}

struct Answers<S> {
    token: Option<Check>,
    source: S,
}

async fn accept<S: Source>(listener: TcpListener, tls: Option<TlsAcceptor>, answers: Arc<Answers<S>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics was not accepted");
                sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (tls, answers) = (tls.clone(), Arc::clone(&answers));
        tokio::spawn(async move {
            let _place = place;
            if timeout(CONNECTION, connection(stream, tls, answers)).await.is_err() {
                tracing::debug!("a connection for metrics took too long");
            }
        });
    }
}

async fn connection<S: Source>(stream: TcpStream, tls: Option<TlsAcceptor>, answers: Arc<Answers<S>>) {
    match tls {
        None => serve(stream, answers).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => serve(stream, answers).await,
            Err(error) => tracing::debug!(%error, "a TLS handshake for metrics failed"),
        },
    }
}

async fn serve<S: Source>(stream: impl AsyncRead + AsyncWrite + Unpin, answers: Arc<Answers<S>>) {
    let answer = service_fn(|request| {
        let answers = Arc::clone(&answers);
        async move { Ok::<_, Infallible>(answers.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection for metrics broke");
    }
}

type Answer = Response<Full<Bytes>>;

fn said(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    answer
}

fn word(status: StatusCode, text: impl Into<String>) -> Answer {
    said(status, "text/plain; charset=utf-8", text.into() + "\n")
}

impl<S: Source> Answers<S> {
    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        if request.method() != Method::GET {
            return word(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered");
        }
        let state = match request.uri().path() {
            "/metrics" => return self.metrics(request).await,
            "/healthz" => self.source.alive().await,
            "/readyz" => self.source.ready().await,
            _ => return word(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz"),
        };
        state.map_or_else(|why| word(StatusCode::SERVICE_UNAVAILABLE, why), |()| word(StatusCode::OK, "ok"))
    }

    async fn metrics(&self, request: &Request<Incoming>) -> Answer {
        if let Some(check) = &self.token {
            let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            if !shown.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|token| check(token)) {
                sleep(WRONG_TOKEN).await;
                return word(StatusCode::UNAUTHORIZED, "metrics want a token that counts: authorization: Bearer TOKEN");
            }
        }
        match self.source.metrics().await {
            Ok(numbers) => said(StatusCode::OK, text::CONTENT_TYPE, numbers),
            Err(why) => word(StatusCode::SERVICE_UNAVAILABLE, why),
        }
    }
}

#[cfg(test)]
#[path = "listen/tests.rs"]
mod tests;
