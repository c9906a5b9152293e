//! The way of spans to a collector: OTLP over gRPC, from a thread of its own, in batches.
//!
//! The queue is bounded, and what finds it full is dropped and counted: telemetry never holds up work. A collector that
//! does not answer is spoken of once, and again when it answers.

use std::{
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use graftwork_proto::{DialError, Route};
use graftwork_shared::{address::NotAnAddress, trace::TraceContext};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode},
};
use tokio::{
    sync::mpsc,
    time::{sleep_until, timeout},
};
use tonic::transport::Channel;

/// Variable with the address of the collector, by its standard name.
pub const TRACES_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Variable with the file of the CA of the collector's certificate, by its standard name.
const CA_VARIABLE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";

/// Spans that may wait.
const WAITING: usize = 8_192;

/// Spans of one request at most.
const BATCH: usize = 512;

/// A span waits so long for others at most.
const GATHER: Duration = Duration::from_secs(1);

/// The collector may take so long for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long the end of the program waits for the last spans.
const LAST: Duration = Duration::from_secs(3);

/// A span that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) name: String,
    pub(crate) context: TraceContext,
    pub(crate) parent: Option<[u8; 8]>,
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
    pub(crate) attributes: Vec<(&'static str, String)>,
    pub(crate) failure: Option<String>,
}

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The address.
    #[error("{TRACES_VARIABLE}: {0}")]
    Address(NotAnAddress),
    /// The CA, or what the transport says of the address.
    #[error("{TRACES_VARIABLE}: {0}")]
    Dial(DialError),
    /// No thread.
    #[error("the thread that sends traces cannot be started: {0}")]
    Thread(std::io::Error),
}

enum Message {
    Ended(Box<Ended>),
    Stop(std::sync::mpsc::Sender<()>),
}

static QUEUE: OnceLock<mpsc::Sender<Message>> = OnceLock::new();

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Whether anybody collects spans.
pub(crate) fn is_on() -> bool {
    QUEUE.get().is_some()
}

pub(crate) fn send(ended: Ended) {
    if let Some(queue) = QUEUE.get()
        && queue.try_send(Message::Ended(Box::new(ended))).is_err()
    {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends the spans of this process, as those of `service`, to the collector that the environment names, if it names one.
///
/// # Errors
/// When what it names is no address, or is plain text beyond this machine.
pub fn start_traces(service: &'static str) -> Result<(), TraceError> {
    let Some(text) = std::env::var(TRACES_VARIABLE).ok().filter(|text| !text.is_empty()) else { return Ok(()) };
    let ca = std::env::var_os(CA_VARIABLE).filter(|path| !path.is_empty());
    let address = text.parse().map_err(TraceError::Address)?;
    let route = Route::new(address, ca.as_deref().map(Path::new)).map_err(TraceError::Dial)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(TraceError::Thread)?;
    let (sender, queue) = mpsc::channel(WAITING);
    let thread = thread::Builder::new().name("traces".to_owned());
    thread.spawn(move || runtime.block_on(lead(&route, service, queue))).map_err(TraceError::Thread)?;
    // A second start goes on with the first one's queue.
    let _ = QUEUE.set(sender);
    Ok(())
}

/// Sends what is left; to be called before the process ends.
pub fn stop_traces() {
    let Some(queue) = QUEUE.get() else { return };
    let (done, waiting) = std::sync::mpsc::channel();
    if queue.try_send(Message::Stop(done)).is_ok() {
        // The thread may be gone; the program ends either way.
        let _ = waiting.recv_timeout(LAST);
    }
}

async fn lead(route: &Route, service: &'static str, mut queue: mpsc::Receiver<Message>) {
    let mut client = TraceServiceClient::new(route.lazy());
    let (mut batch, mut deadline) = (Vec::new(), None);
    let mut answers = true;
    loop {
        let due = deadline.unwrap_or_else(|| tokio::time::Instant::now() + GATHER);
        let stop = tokio::select! {
            message = queue.recv() => match message {
                Some(Message::Ended(ended)) => {
                    deadline.get_or_insert(due);
                    batch.push(span_of(*ended));
                    if batch.len() < BATCH {
                        continue;
                    }
                    None
                }
                Some(Message::Stop(done)) => Some(done),
                None => return,
            },
            () = sleep_until(due), if deadline.is_some() => None,
        };
        deadline = None;
        if !batch.is_empty() {
            answers = export(&mut client, route, request_of(service, std::mem::take(&mut batch)), answers).await;
        }
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(dropped, "spans were dropped: the collector is too slow");
        }
        if let Some(done) = stop {
            let _ = done.send(());
            return;
        }
    }
}

/// Sends a batch; gives whether the collector took it. A change of that is told.
async fn export(
    client: &mut TraceServiceClient<Channel>,
    route: &Route,
    request: ExportTraceServiceRequest,
    answered: bool,
) -> bool {
    let problem = match timeout(ANSWER, client.export(request)).await {
        Ok(Ok(_)) => None,
        Ok(Err(status)) => Some(status.message().to_owned()),
        Err(_) => Some(format!("no answer within {ANSWER:?}")),
    };
    match &problem {
        None if !answered => tracing::info!(collector = %route.address(), "traces are collected again"),
        Some(problem) if answered => {
            tracing::warn!(collector = %route.address(), problem, "traces are not collected; work goes on");
        }
        _ => {}
    }
    problem.is_none()
}

fn request_of(service: &'static str, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let resource = Resource {
        attributes: vec![
            attribute("service.name", service.to_owned()),
            attribute("service.version", graftwork_shared::VERSION.to_owned()),
            attribute("process.pid", std::process::id().to_string()),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope { name: "graftwork".to_owned(), ..InstrumentationScope::default() };
    let scoped = ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() };
    let spans = ResourceSpans { resource: Some(resource), scope_spans: vec![scoped], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }
}

fn attribute(key: &str, value: String) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value)) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

fn span_of(ended: Ended) -> Span {
    let status = ended.failure.map(|message| Status { message, code: StatusCode::Error.into() });
    Span {
        trace_id: ended.context.trace().to_vec(),
        span_id: ended.context.span().to_vec(),
        parent_span_id: ended.parent.map_or_else(Vec::new, |parent| parent.to_vec()),
        name: ended.name,
        kind: SpanKind::Internal.into(),
        start_time_unix_nano: ended.from_ns,
        end_time_unix_nano: ended.to_ns,
        attributes: ended.attributes.into_iter().map(|(key, value)| attribute(key, value)).collect(),
        status,
        ..Span::default()
    }
}
