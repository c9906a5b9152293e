//! How long training stood still after a loss, from the events of its job.
//!
//! Seen through reports of progress, so it is a little more than the time to the next update; what nobody watched is not
//! counted.

use std::collections::BTreeMap;

use graftwork_shared::{
    assignment::Blame,
    event::{Event, EventKind},
    id::Name,
};
use serde::{Deserialize, Serialize};

/// What was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Lost {
    /// A worker, or what it worked on for a reason of its machine: from the end of that attempt.
    Attempt,
    /// The coordinator: from the moment at which the next one took the job up.
    Coordinator,
}

/// One loss, and how long it took until training went on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recovery {
    /// What was lost.
    pub(crate) lost: Lost,
    /// The stage that went on; after a coordinator, the first of them.
    pub(crate) stage: Name,
    /// Seconds until it reported progress.
    pub(crate) seconds: f64,
}

/// Follows a job's events.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recoveries {
    attempts: BTreeMap<Name, u64>,
    coordinator: Option<u64>,
    done: Vec<Recovery>,
}

impl Recoveries {
    /// Takes the next event in.
    pub(crate) fn on_event(&mut self, event: &Event) {
        match (&event.kind, &event.stage) {
            (EventKind::JobStarted { resumed: true, .. }, _) => self.coordinator = Some(event.at_ms),
            (EventKind::AttemptFailed { failure, retried: true }, Some(stage)) if failure.blame == Blame::Machine => {
                self.attempts.insert(stage.clone(), event.at_ms);
            }
            (EventKind::Step(_) | EventKind::StageFinished { reused: false }, Some(stage)) => {
                let lost = self.attempts.remove(stage).map(|since| (Lost::Attempt, since));
                let taken_up = self.coordinator.take().map(|since| (Lost::Coordinator, since));
                for (lost, since) in lost.into_iter().chain(taken_up) {
                    let seconds = event.at_ms.saturating_sub(since) as f64 / 1000.0;
                    self.done.push(Recovery { lost, stage: stage.clone(), seconds });
                }
            }
            _ => {}
        }
    }

    /// All losses after which training went on.
    pub(crate) fn done(self) -> Vec<Recovery> {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use graftwork_shared::{assignment::Failure, event::StepReport};

    use super::*;

    #[test]
    fn a_loss_lasts_until_its_stage_reports_progress() {
        let mut recoveries = Recoveries::default();
        let mut tell = |at_ms: u64, stage: Option<&str>, kind: EventKind| {
            let stage = stage.map(|stage| stage.parse().unwrap());
            recoveries.on_event(&Event { job: "0123456789abcdef".parse().unwrap(), at_ms, stage, kind });
        };
        let failed =
            |blame| EventKind::AttemptFailed { failure: Failure { blame, message: "gone".to_owned() }, retried: true };
        let step = || EventKind::Step(StepReport::default());
        tell(0, None, EventKind::JobStarted { stages: 2, resumed: false });
        tell(100, Some("a"), step());
        tell(1_000, Some("a"), failed(Blame::Machine));
        tell(1_200, Some("b"), step());
        tell(3_500, Some("a"), step());
        tell(4_000, Some("a"), failed(Blame::User));
        tell(4_500, Some("a"), step());
        tell(9_000, None, EventKind::JobStarted { stages: 2, resumed: true });
        tell(9_800, Some("b"), step());
        tell(9_900, Some("a"), step());
        let told: Vec<(Lost, String, f64)> =
            recoveries.done().into_iter().map(|r| (r.lost, r.stage.to_string(), r.seconds)).collect();
        let wanted = [(Lost::Attempt, "a".to_owned(), 2.5), (Lost::Coordinator, "b".to_owned(), 0.8)];
        assert_eq!(told, wanted);
    }
}
