//! What every request passes before a service hears of it: token, rate, version, role, in this order.
//!
//! A refusal is a gRPC status like any other. What passes carries its [`Caller`] on. Commands say their version; a request
//! that says none is no command of ours (a worker's, or another client's) and passes.

use std::{
    convert::Infallible,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use graftwork_proto::{PUSHBACK_HEADER, VERSION_HEADER};
use graftwork_shared::{VERSION, version};
use tonic::{Status, body::Body, codegen::http};
use tower_layer::Layer;
use tower_service::Service;

use super::{Caller, Failures, Keys, Limits, Rates, Role, limits::Rate, role};

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(in super::super) struct Peer {
    /// Its address; `None` on a private socket.
    pub(in super::super) address: Option<IpAddr>,
    /// It has shown a token that counts.
    proven: Arc<AtomicBool>,
}

impl Peer {
    /// A peer that has shown nothing yet; on a private socket it need not.
    pub(in super::super) fn new(address: Option<IpAddr>) -> Self {
        Self { address, proven: Arc::new(AtomicBool::new(address.is_none())) }
    }

    /// Whether it has shown a token that counts.
    pub(in super::super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }
}

/// The gate of one listener.
#[derive(Clone)]
pub(in super::super) struct Gate {
    keys: Keys,
    rates: Arc<Rates>,
    failures: Arc<Failures>,
    failure_delay: Duration,
}

/// Why a request goes no further.
struct Refusal {
    status: Status,
    delay: Duration,
}

impl Refusal {
    /// Refused now, and worth asking again after a while.
    fn for_now(words: String, wait: Duration) -> Self {
        let mut status = Status::resource_exhausted(words);
        // Rounded up: whoever comes back a moment early is refused again.
        let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        status.metadata_mut().insert(PUSHBACK_HEADER, milliseconds.into());
        Self { status, delay: Duration::ZERO }
    }
}

impl Gate {
    /// A gate for these keys; failures are counted over all listeners.
    pub(in super::super) fn new(keys: Keys, limits: &Limits, failures: Arc<Failures>) -> Self {
        let of = |role| match role {
            Some(Role::Read | Role::Submit | Role::Admin) => limits.of_people,
            Some(Role::Join) | None => limits.of_workers,
        };
        let rates: Vec<Rate> = match &keys {
            Keys::Open => vec![limits.of_workers],
            Keys::Tokens(tokens) => tokens.roles().map(of).collect(),
        };
        let rates = Arc::new(Rates::new(rates.into_iter(), Instant::now()));
        Self { keys, rates, failures, failure_delay: limits.failure_delay }
    }

    fn admit(&self, request: &mut http::Request<Body>) -> Result<(), Refusal> {
        let now = Instant::now();
        let (place, caller) = match &self.keys {
            Keys::Open => (0, Caller { name: "of this user".into(), role: None, owner: None, most_priority: i32::MAX }),
            Keys::Tokens(_) => self.identify(request, now)?,
        };
        self.rates.take(place, now).map_err(|(rate, wait)| {
            let Rate { per_second, burst } = rate;
            let name = &caller.name;
            let words = format!("token {name:?} asks too often: {burst} requests at once and {per_second} a second");
            Refusal::for_now(words, wait)
        })?;
        check_version(request)?;
        let path = request.uri().path();
        let (deed, wanted) = role::wanted(path);
        if let Some(role) = caller.role
            && !wanted.contains(&role)
        {
            let (name, role) = (&caller.name, role.name());
            let wanted: Vec<&str> = wanted.iter().map(|role| role.name()).collect();
            let wanted = wanted.join(" or ");
            let words = format!(
                "token {name:?} has the role {role}, but {deed} needs {wanted}; `graftwork token` makes one for it"
            );
            return Err(Refusal { status: Status::permission_denied(words), delay: Duration::ZERO });
        }
        request.extensions_mut().insert(caller);
        Ok(())
    }

    /// Whose token the request shows.
    fn identify(&self, request: &http::Request<Body>, now: Instant) -> Result<(usize, Caller), Refusal> {
        let Keys::Tokens(tokens) = &self.keys else { return Err(self.refuse("this listener has no tokens")) };
        let peer = request.extensions().get::<Peer>();
        let address = peer.and_then(|peer| peer.address);
        // A connection that has shown a right one is never kept waiting for what its neighbours do.
        if let Some(address) = address
            && !peer.is_some_and(Peer::is_proven)
            && let Some(wait) = self.failures.wait(address, now)
        {
            let words = format!("{address} has shown too many wrong tokens, and is heard again in a while");
            return Err(Refusal::for_now(words, wait));
        }
        let shown = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer "));
        if let Some((place, caller)) = shown.and_then(|shown| tokens.find(shown)) {
            if let Some(peer) = peer {
                peer.proven.store(true, Ordering::Relaxed);
            }
            return Ok((place, caller.clone()));
        }
        if let Some(address) = address {
            self.failures.count(address, now);
        }
        Err(self.refuse(if shown.is_some() {
            "the token is none of this coordinator's"
        } else {
            "this coordinator wants a token: name the environment variable that holds yours with --token-env"
        }))
    }

    fn refuse(&self, words: &str) -> Refusal {
        Refusal { status: Status::unauthenticated(words), delay: self.failure_delay }
    }
}

/// Refuses a command of a version that this one does not work with. A worker says its own in its hello.
fn check_version(request: &http::Request<Body>) -> Result<(), Refusal> {
    let Some(theirs) = request.headers().get(VERSION_HEADER) else { return Ok(()) };
    match version::objection("command", theirs.to_str().unwrap_or_default(), VERSION) {
        Some(words) => Err(Refusal { status: Status::failed_precondition(words), delay: Duration::ZERO }),
        None => Ok(()),
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.clone(), inner }
    }
}

/// Services behind the gate.
#[derive(Clone)]
pub(in super::super) struct Gated<S> {
    gate: Gate,
    inner: S,
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for Gated<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Answer {
        match self.gate.admit(&mut request) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(Refusal { status, delay }) => Box::pin(async move {
                tracing::debug!(reason = status.message(), "a request was refused");
                tokio::time::sleep(delay).await;
                Ok(status.into_http())
            }),
        }
    }
}
