//! What a coordinator says of a lease, in the trace of its job: a span where it arrives.

use graftwork_proto::{CoordinatorEnvelope, CoordinatorMessage};
use graftwork_shared::{id::LeaseId, trace::TraceContext};
use graftwork_telemetry::Span;

/// The span of a message; it ends when it is dropped. Where the message says no trace, since its lease is not live for the
/// coordinator, the one that the lease began with counts. What is said of no lease has none.
pub(super) fn heard<'m>(envelope: &CoordinatorEnvelope, trace_of: impl Fn(LeaseId) -> Option<&'m str>) -> Option<Span> {
    let (name, lease) = match &envelope.message {
        CoordinatorMessage::Assign { lease, .. } => ("message assign", *lease),
        CoordinatorMessage::Form(lease, _) => ("message form", *lease),
        CoordinatorMessage::Release(lease, _) => ("message release", *lease),
        CoordinatorMessage::Accepted(lease, _) => ("message accepted", *lease),
        CoordinatorMessage::Fenced(lease) => ("message fenced", *lease),
        CoordinatorMessage::Welcome { .. }
        | CoordinatorMessage::Refused(_)
        | CoordinatorMessage::Drain(_)
        | CoordinatorMessage::Echo(_) => return None,
    };
    let told: Option<TraceContext> = envelope.trace.parse().ok();
    let parent = told.or_else(|| trace_of(lease)?.parse().ok())?;
    Some(graftwork_telemetry::span(name, parent))
}

#[cfg(test)]
mod tests {
    use graftwork_proto::Formation;
    use graftwork_shared::id::Term;

    use super::*;

    #[test]
    fn what_is_said_of_a_lease_stands_in_its_trace() {
        let (told, began) = (TraceContext::root("told"), TraceContext::root("began").to_string());
        let lease = LeaseId(7);
        let parent = |trace: String, message: CoordinatorMessage| {
            let envelope = CoordinatorEnvelope { term: Term(1), trace, message };
            heard(&envelope, |asked| (asked == lease).then_some(began.as_str())).map(|span| span.context())
        };
        let messages = || {
            [
                CoordinatorMessage::Form(lease, Formation::ALONE),
                CoordinatorMessage::Release(lease, "for another".to_owned()),
                CoordinatorMessage::Accepted(lease, 5),
                CoordinatorMessage::Fenced(lease),
            ]
        };
        for message in messages() {
            assert_eq!(parent(told.to_string(), message), Some(told));
        }
        for message in messages() {
            assert_eq!(parent(String::new(), message), began.parse().ok());
        }
        assert_eq!(parent(String::new(), CoordinatorMessage::Fenced(LeaseId(8))), None, "a lease of nobody's");
        assert_eq!(parent(told.to_string(), CoordinatorMessage::Drain("it ends".to_owned())), None);
    }
}
