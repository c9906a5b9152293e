//! Spans of this process. Without a collector they cost nothing and hand their parent on.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use graftwork_shared::trace::TraceContext;

use crate::export::{self, Ended};

/// Work that is under way; it ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    context: TraceContext,
    /// `None` where nobody collects spans.
    ended: Option<Ended>,
}

impl Span {
    /// What is done because of it stands here.
    pub fn context(&self) -> TraceContext {
        self.context
    }

    /// Says more of it.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        if let Some(ended) = &mut self.ended {
            ended.attributes.push((key, value.to_string()));
        }
        self
    }

    /// It did not come to what it was for.
    pub fn fail(&mut self, why: impl ToString) {
        if let Some(ended) = &mut self.ended {
            ended.failure = Some(why.to_string());
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(mut ended) = self.ended.take() {
            ended.to_ns = now_ns();
            export::send(ended);
        }
    }
}

/// Nanoseconds since 1970.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What no other process draws: from the system, or else its id and the time.
static SEED: LazyLock<String> = LazyLock::new(|| {
    let mut random = [0_u8; 16];
    let read =
        std::fs::File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut random));
    format!("{random:?} {} {} {}", std::process::id(), now_ns(), read.is_ok())
});

static DRAWN: AtomicU64 = AtomicU64::new(0);

fn unique() -> String {
    format!("{} {}", *SEED, DRAWN.fetch_add(1, Ordering::Relaxed))
}

/// A trace that nobody has begun.
pub fn new_trace() -> TraceContext {
    TraceContext::root(&unique())
}

/// Begins work below `parent`.
pub fn span(name: &'static str, parent: TraceContext) -> Span {
    if !export::is_on() {
        return Span { context: parent, ended: None };
    }
    span_at(name, parent.child(&unique()), Some(parent))
}

/// The same where the span's own place is known already; without a parent it begins a trace.
pub fn span_at(name: &'static str, context: TraceContext, parent: Option<TraceContext>) -> Span {
    let ended = export::is_on().then(|| Ended {
        name: name.to_owned(),
        context,
        parent: parent.map(|parent| parent.span()),
        from_ns: now_ns(),
        to_ns: 0,
        attributes: Vec::new(),
        failure: None,
    });
    Span { context, ended }
}

/// Records work that began and ended at these times, in milliseconds since 1970, with what there is to say of it.
pub fn record(
    name: &'static str,
    (context, parent): (TraceContext, TraceContext),
    (from_ms, to_ms): (u64, u64),
    attributes: Vec<(&'static str, String)>,
    failure: Option<String>,
) {
    export::send(Ended {
        name: name.to_owned(),
        context,
        parent: Some(parent.span()),
        from_ns: from_ms.saturating_mul(1_000_000),
        to_ns: to_ms.max(from_ms).saturating_mul(1_000_000),
        attributes,
        failure,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_collector_a_span_hands_its_parent_on() {
        let parent = new_trace();
        let mut span = span("work", parent).with("stage", "a");
        span.fail("it broke");
        assert_eq!(span.context(), parent);
    }

    #[test]
    fn no_two_traces_are_the_same() {
        assert_ne!(new_trace().trace(), new_trace().trace());
    }
}
