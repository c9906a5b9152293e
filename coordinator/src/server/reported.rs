//! Which messages of a worker become spans: each one about a lease, but of reports, which are many, one for a while of them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use graftwork_proto::WorkerMessage;
use graftwork_shared::trace::TraceContext;
use graftwork_telemetry::Span;

/// Of reports of one kind about one lease at most one becomes a span in so long, which counts those before it.
const EVERY: Duration = Duration::from_secs(5);

/// A worker has few leases at a time; with so many kinds of reports in mind, those that are over are forgotten.
const MOST: usize = 64;

/// What is known of the reports of one session.
#[derive(Debug, Default)]
pub(super) struct Reported(HashMap<(TraceContext, &'static str), Last>);

/// The span that was made last.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    /// Reports since then.
    since: u64,
}

/// How a message is called in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Each(&'static str),
    Seldom(&'static str),
}

/// Heartbeats, probes and what a worker says of itself are about no lease.
fn told_of(message: &WorkerMessage) -> Option<Told> {
    Some(match message {
        WorkerMessage::Checkpoint(..) => Told::Each("message checkpoint"),
        WorkerMessage::Evaluated(..) => Told::Each("message evaluated"),
        WorkerMessage::Finished(..) => Told::Each("message finished"),
        WorkerMessage::Paused(..) => Told::Each("message paused"),
        WorkerMessage::Failed(..) => Told::Each("message failed"),
        WorkerMessage::Released(_) => Told::Each("message released"),
        WorkerMessage::Prepared(_) => Told::Each("message prepared"),
        WorkerMessage::Broken(..) => Told::Each("message broken"),
        WorkerMessage::Step(..) => Told::Seldom("message step"),
        WorkerMessage::Spent(..) => Told::Seldom("message spent"),
        WorkerMessage::Waits(..) => Told::Seldom("message waits"),
        WorkerMessage::Hello(_)
        | WorkerMessage::Heartbeat(_)
        | WorkerMessage::Probe { .. }
        | WorkerMessage::Leaving(_)
        | WorkerMessage::Holds(_) => return None,
    })
}

impl Reported {
    /// The span of a message that stands at `trace`, if it has one.
    pub(super) fn span(&mut self, trace: &str, message: &WorkerMessage) -> Option<Span> {
        let (parent, told) = (trace.parse().ok()?, told_of(message)?);
        match told {
            Told::Each(name) => Some(graftwork_telemetry::span(name, parent)),
            Told::Seldom(name) => {
                let messages = self.counts(parent, name, Instant::now())?;
                Some(graftwork_telemetry::span(name, parent).with("messages", messages))
            }
        }
    }

    /// Takes a report; gives how many the span of it stands for, if it has one.
    fn counts(&mut self, parent: TraceContext, name: &'static str, now: Instant) -> Option<u64> {
        if self.0.len() >= MOST {
            self.0.retain(|_, last| now.saturating_duration_since(last.at) < EVERY);
        }
        let last = self.0.get_mut(&(parent, name));
        let messages = last.as_ref().map_or(1, |last| last.since + 1);
        match last {
            Some(last) if now.saturating_duration_since(last.at) < EVERY => {
                last.since += 1;
                None
            }
            _ => {
                self.0.insert((parent, name), Last { at: now, since: 0 });
                Some(messages)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use graftwork_shared::{event::StepReport, id::LeaseId};

    use super::*;

    #[test]
    fn reports_of_one_kind_about_one_lease_are_one_span_for_a_while() {
        let (mut reported, now) = (Reported::default(), Instant::now());
        let (one, other) = (graftwork_telemetry::new_trace(), graftwork_telemetry::new_trace());
        let after = |milliseconds| now + Duration::from_millis(milliseconds);
        assert_eq!(reported.counts(one, "message step", now), Some(1), "the first is told at once");
        for milliseconds in 1..=1_000 {
            assert_eq!(reported.counts(one, "message step", after(milliseconds)), None);
        }
        assert_eq!(reported.counts(one, "message spent", after(9)), Some(1));
        assert_eq!(reported.counts(other, "message step", after(9)), Some(1));
        assert_eq!(reported.counts(one, "message step", after(5_000)), Some(1_001), "it stands for those before it");
        assert_eq!(reported.counts(one, "message step", after(5_001)), None);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let (mut reported, now) = (Reported::default(), Instant::now());
        for lease in 0..10 * MOST as u64 {
            let trace = graftwork_telemetry::new_trace();
            assert_eq!(reported.counts(trace, "message step", now + Duration::from_secs(lease)), Some(1));
        }
        assert!(reported.0.len() <= MOST, "{}", reported.0.len());
    }

    #[test]
    fn what_is_about_a_lease_is_told_and_nothing_else() {
        let report = StepReport::default();
        assert_eq!(told_of(&WorkerMessage::Step(LeaseId(1), report)), Some(Told::Seldom("message step")));
        assert_eq!(told_of(&WorkerMessage::Waits(LeaseId(1), 2, 3)), Some(Told::Seldom("message waits")));
        assert_eq!(told_of(&WorkerMessage::Released(LeaseId(1))), Some(Told::Each("message released")));
        assert_eq!(told_of(&WorkerMessage::Heartbeat(Vec::new())), None);
        assert!(Reported::default().span("no trace", &WorkerMessage::Released(LeaseId(1))).is_none());
    }
}
