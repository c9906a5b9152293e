//! Requests that say where they stand in a trace: each is a span there, and what it does stands below it.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use graftwork_proto::traced;
use graftwork_shared::trace::{TRACE_HEADER, TraceContext};
use tonic::{body::Body, codegen::http};
use tower_layer::Layer;
use tower_service::Service;

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traced;

impl<S> Layer<S> for Traced {
    type Service = TracedService<S>;

    fn layer(&self, inner: S) -> TracedService<S> {
        TracedService { inner }
    }
}

/// Services whose requests are followed.
#[derive(Clone)]
pub(super) struct TracedService<S> {
    inner: S,
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<S> Service<http::Request<Body>> for TracedService<S>
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

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let header = request.headers().get(TRACE_HEADER).and_then(|value| value.to_str().ok());
        let parent: Option<TraceContext> = header.and_then(|text| text.parse().ok());
        let path = request.uri().path().to_owned();
        let answer = self.inner.call(request);
        match parent {
            None => Box::pin(answer),
            Some(parent) => Box::pin(async move {
                let span = graftwork_telemetry::span("request", parent).with("rpc.method", path);
                traced(span.context(), answer).await
            }),
        }
    }
}
