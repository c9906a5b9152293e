//! Where something stands in a trace: the W3C form that travels in gRPC metadata, in messages and in logs.
//!
//! Ids inside a job are derived from what the journal knows (the submission's context, the job, the stage, the lease), so
//! whoever leads after a restart goes on with the same trace, and a worker's span hangs under a parent that nobody had to
//! send twice. Nothing is decided by a trace.

use std::{fmt, str::FromStr};

use crate::digest::Digest;

/// A trace, and the span in it that is the parent of what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
}

/// A text that is no `traceparent`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no trace context: it has the form 00-32 hexadecimal digits-16 hexadecimal digits-01")]
pub struct NotATraceContext(String);

/// The name of the gRPC metadata, and of the environment variable in capitals.
pub const TRACE_HEADER: &str = "traceparent";

impl TraceContext {
    /// A new trace for this seed; who wants another trace each time gives another seed.
    pub fn root(seed: &str) -> Self {
        let digest = Digest::of(format!("trace {seed}").as_bytes());
        let mut context = Self { trace: [0; 16], span: [0; 8] };
        context.trace.copy_from_slice(&digest.bytes()[..16]);
        context.span.copy_from_slice(&digest.bytes()[16..24]);
        context
    }

    /// A span below this one; the same words give the same span.
    #[must_use]
    pub fn child(&self, words: &str) -> Self {
        let digest = Digest::of(format!("{self} {words}").as_bytes());
        let mut child = *self;
        child.span.copy_from_slice(&digest.bytes()[..8]);
        child
    }

    /// The trace's bytes.
    pub fn trace(&self) -> [u8; 16] {
        self.trace
    }

    /// The span's bytes.
    pub fn span(&self) -> [u8; 8] {
        self.span
    }

    /// The trace in 32 hexadecimal digits, as logs show it.
    pub fn trace_id(&self) -> String {
        hexadecimal(&self.trace)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let lower = text.bytes().all(|letter| matches!(letter, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() != 2 * N || !lower {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    // All zeros stand for none.
    bytes.iter().any(|byte| *byte != 0).then_some(bytes)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", hexadecimal(&self.trace), hexadecimal(&self.span))
    }
}

impl FromStr for TraceContext {
    type Err = NotATraceContext;

    fn from_str(text: &str) -> Result<Self, NotATraceContext> {
        let parts: Vec<&str> = text.split('-').collect();
        let read = match parts.as_slice() {
            ["00", trace, span, flags] if flags.len() == 2 => bytes_of(trace).zip(bytes_of(span)),
            _ => None,
        };
        read.map(|(trace, span)| Self { trace, span }).ok_or_else(|| NotATraceContext(text.chars().take(80).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_read_as_it_is_written() {
        let context = TraceContext::root("a job");
        assert_eq!(context.to_string().parse(), Ok(context));
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(text.parse::<TraceContext>().unwrap().to_string(), text);
    }

    #[test]
    fn a_child_stays_in_its_trace_and_has_a_span_of_its_own() {
        let root = TraceContext::root("a job");
        let (one, other) = (root.child("stage a"), root.child("stage b"));
        assert_eq!(one.trace(), root.trace());
        assert_eq!(one, root.child("stage a"));
        assert!(one != other && one != root && TraceContext::root("another").trace() != root.trace());
    }

    #[test]
    fn what_is_no_context_is_refused() {
        let zeros = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let capitals = "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01";
        for text in ["", "trace", "00-1-2-01", zeros, capitals, "00-ä-ö-01"] {
            assert!(text.parse::<TraceContext>().is_err(), "{text}");
        }
    }
}
