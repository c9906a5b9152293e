//! What a running program tells those who operate it: metrics, health and readiness over HTTP, and traces over OTLP.
//!
//! ```text
//! text     numbers as OpenMetrics text
//! process  what every program tells of itself: memory, processor time, files
//! listen   GET /metrics, /healthz, /readyz: plain on loopback, elsewhere with TLS and a token
//! spans    spans of this process, and where the current request stands in its trace
//! export   the thread that sends them to a collector
//! ```
//! Nothing here decides anything or is waited for: a collector that is gone costs spans and never work. No label names a
//! job, a stage or an owner, but for the names of a coordinator's own nights, and no secret comes here.

mod export;
mod listen;
mod process;
mod spans;
mod text;

pub use self::{
    export::{TRACES_VARIABLE, TraceError, start_traces, stop_traces},
    listen::{Check, Guard, ListenError, Listening, Source, acceptor, listen, listen_on_a_free_port},
    process::add_process,
    spans::{Span, new_trace, record, span, span_at},
    text::Exposition,
};
