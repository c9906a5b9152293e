//! Plain lines for logs: aligned, and at most one line of progress for each stage in some seconds.

use std::collections::BTreeMap;

use graftwork_shared::{
    event::{Event, EventKind, Outcome, StepReport},
    id::{JobId, Name, WorkerId},
    metric::Metric,
    view::{JobView, Refusal},
};

use super::{duration, pace::Pace, sweep::sweep_words};

/// Milliseconds between two step lines of one stage.
const BETWEEN_LINES_MS: u64 = 5_000;

pub(crate) struct Plain {
    metrics: BTreeMap<Name, Metric>,
    width: usize,
    said_ms: BTreeMap<Name, u64>,
    pace: Pace,
}

impl Plain {
    pub(crate) fn new(view: &JobView) -> Self {
        Self {
            metrics: view.stages.iter().map(|stage| (stage.name.clone(), stage.metric)).collect(),
            width: view.stages.iter().map(|stage| stage.name.as_str().len()).max().unwrap_or(0).max(3),
            said_ms: BTreeMap::new(),
            pace: Pace::default(),
        }
    }

    /// The line for an event, when it is worth one.
    pub(crate) fn line(&mut self, event: &Event) -> Option<String> {
        let words = match (&event.stage, &event.kind) {
            (Some(stage), kind) => self.stage_words(stage, kind, event.at_ms)?,
            (None, kind) => job_words(kind)?,
        };
        let name = event.stage.as_ref().map_or("job", Name::as_str);
        Some(format!("{name:width$}  {words}", width = self.width))
    }

    fn stage_words(&mut self, stage: &Name, kind: &EventKind, at_ms: u64) -> Option<String> {
        Some(match kind {
            EventKind::StageStarted { worker, from_step, total_steps, attempt } => {
                self.pace.start(stage, *from_step, at_ms);
                let from = if *from_step > 0 { format!(", goes on from step {from_step}") } else { String::new() };
                let again = if *attempt > 0 { format!(", attempt {}", attempt + 1) } else { String::new() };
                format!("starts on {worker}: {total_steps} steps{from}{again}")
            }
            EventKind::Step(report) => {
                let said = self.said_ms.get(stage).copied();
                if said.is_some_and(|said| at_ms < said + BETWEEN_LINES_MS) {
                    return None;
                }
                self.said_ms.insert(stage.clone(), at_ms);
                step_words(report, self.pace.seconds_left(stage, report, at_ms))
            }
            EventKind::Evaluated(evaluation) => {
                let metric = self.metrics.get(stage)?;
                let score = evaluation.metrics.get(metric)?;
                format!("step {:>6}  validation {metric} {score:.4}, loss {:.4}", evaluation.step, evaluation.loss)
            }
            EventKind::StageFinished { reused: true } => "taken from an earlier result of the same recipe".to_owned(),
            EventKind::StageFinished { reused: false } => "trained".to_owned(),
            EventKind::AttemptFailed { failure, retried } => {
                format!("attempt failed: {}{}", failure.message, if *retried { "; it is tried again" } else { "" })
            }
            EventKind::GroupFormed { members, reason, .. } => group_words(members, reason),
            EventKind::JoinFailed { worker, reason } => format!("{worker} could not join: {reason}"),
            EventKind::Preempted { by_job, by, step } => preempted_words(by_job, by, *step),
            EventKind::CheckpointLost { step } => {
                format!("the checkpoint of step {step} is missing or damaged; it starts over")
            }
            EventKind::ResultLost => {
                "the result is missing or damaged; it is found again in the hub, or trained".to_owned()
            }
            EventKind::TrialScored { .. } | EventKind::RungDecided { .. } | EventKind::TrialChosen { .. } => {
                return sweep_words(kind, self.metrics.get(stage).copied());
            }
            EventKind::Published { release } => format!("published {release}"),
            EventKind::Checkpointed { .. }
            | EventKind::JobStarted { .. }
            | EventKind::WorkerJoined { .. }
            | EventKind::WorkerLeft { .. }
            | EventKind::Stuck { .. }
            | EventKind::JobFinished { .. } => return None,
        })
    }
}

/// Step, loss, learning rate, speed and time left, aligned.
pub(super) fn step_words(report: &StepReport, left_seconds: f64) -> String {
    let digits = report.total_steps.to_string().len();
    format!(
        "step {:>digits$}/{}  loss {:.4}  lr {:.2e}  {:>7.1} ex/s  {} left",
        report.step,
        report.total_steps,
        report.loss,
        report.learning_rate,
        report.examples_per_second,
        duration(left_seconds)
    )
}

/// Who trains a stage from now on, and why it is not those of before.
pub(super) fn group_words(members: &[WorkerId], reason: &str) -> String {
    let names: Vec<String> = members.iter().map(ToString::to_string).collect();
    let noun = if members.len() == 1 { "worker" } else { "workers" };
    format!("now on {} {noun}: {} ({reason})", members.len(), names.join(", "))
}

/// That a stage gave its place.
pub(super) fn preempted_words(by_job: &JobId, by: &Name, step: u64) -> String {
    format!("gives its place to {by} of job {by_job}, which has a higher priority; goes on from step {step} later")
}

/// That nothing can run, and why, in one line.
pub(crate) fn stuck_words(refusals: &BTreeMap<Name, Refusal>) -> String {
    let reasons: Vec<String> = refusals.iter().map(|(stage, refusal)| format!("{stage}: {refusal}")).collect();
    format!("nothing of this job can run here: {}", reasons.join("; "))
}

fn job_words(kind: &EventKind) -> Option<String> {
    Some(match kind {
        EventKind::JobStarted { stages, resumed } => {
            format!("{} with {stages} stages", if *resumed { "goes on" } else { "starts" })
        }
        EventKind::WorkerJoined { worker, place, threads } => format!("{worker} joined: {place}, {threads} threads"),
        EventKind::WorkerLeft { worker, reason } => format!("{worker} left: {reason}"),
        EventKind::Stuck { refusals } => stuck_words(refusals),
        EventKind::JobFinished { outcome } => match outcome {
            Outcome::Succeeded => "done".to_owned(),
            Outcome::ExpectationMissed => "done, but an expectation was missed".to_owned(),
            Outcome::Failed => "failed".to_owned(),
            Outcome::Cancelled => "cancelled".to_owned(),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_told_with_its_members_and_the_reason() {
        let words = group_words(&[WorkerId(1), WorkerId(2), WorkerId(4)], "worker-4 joined");
        assert_eq!(words, "now on 3 workers: worker-1, worker-2, worker-4 (worker-4 joined)");
        let words = group_words(&[WorkerId(2)], "worker-1 is gone");
        assert_eq!(words, "now on 1 worker: worker-2 (worker-1 is gone)");
    }
}
