//! What people were told, held against the facts: all that sounds like a promise must be kept by one.

use std::collections::BTreeMap;

use super::{Broken, Event, Finding, Reader, StageKey};
use graftwork_shared::event::EventKind;

/// A stage as those who watch see it.
#[derive(Default)]
struct Watched {
    /// The update that was reported last.
    step: u64,
    /// The update from which the attempt went on, or that was last said to be safe.
    safe: u64,
}

/// What was told and cannot be.
pub(super) fn check(reader: &Reader<'_>, told: &[Event]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut stages: BTreeMap<StageKey, Watched> = BTreeMap::new();
    for event in told {
        if let EventKind::JobFinished { outcome } = &event.kind {
            if !reader.jobs_ended.contains(&(event.job.clone(), format!("{outcome:?}"))) {
                let what = format!("job {} was said to have ended: {outcome:?}", event.job);
                findings.push(Finding { broken: Broken::AcknowledgedLost, what });
            }
            continue;
        }
        let Some(stage) = &event.stage else { continue };
        let key = StageKey { job: event.job.clone(), stage: stage.clone() };
        if let Some(happened) = promise(&event.kind)
            && !reader.happened.contains(&(key.clone(), happened.clone()))
        {
            let what = format!("{key}: {happened} was told, and no fact says so");
            findings.push(Finding { broken: Broken::AcknowledgedLost, what });
        }
        let watched = stages.entry(key.clone()).or_default();
        findings.extend(follow(reader, &key, watched, &event.kind));
    }
    findings
}

/// What a word promises, as the facts name it.
fn promise(kind: &EventKind) -> Option<String> {
    match kind {
        EventKind::Checkpointed { step } => Some(format!("checkpoint {step}")),
        EventKind::StageFinished { .. } => Some("result".to_owned()),
        EventKind::Published { release } => Some(format!("published {release}")),
        _ => None,
    }
}

/// Updates go on one by one: each attempt begins at a state that was accepted, and its reports grow.
fn follow(reader: &Reader<'_>, key: &StageKey, watched: &mut Watched, kind: &EventKind) -> Option<Finding> {
    let found = |broken, what: String| Some(Finding { broken, what: format!("{key}: {what}") });
    match kind {
        EventKind::StageStarted { from_step, total_steps, .. } => {
            // What it finds changed makes it start over, so its first report may be of any step.
            (watched.step, watched.safe) = (0, *from_step);
            let known = reader.happened.contains(&(key.clone(), format!("checkpoint {from_step}")));
            if *from_step > *total_steps || (*from_step > 0 && !known) {
                let what =
                    format!("an attempt went on from step {from_step} of {total_steps}, which was never accepted");
                return found(Broken::StepMissed, what);
            }
        }
        // Those that go on may stand behind what the lost one reported: by the update that was under way, or else by no
        // more than one behind what is safe.
        EventKind::GroupFormed { .. } if reader.in_lockstep => watched.step = watched.step.saturating_sub(1),
        EventKind::GroupFormed { .. } => watched.step = watched.step.min(watched.safe.saturating_sub(1)),
        EventKind::Checkpointed { step } => {
            watched.safe = *step;
            if *step < watched.step {
                return found(Broken::StepTwice, format!("step {step} was safe after step {}", watched.step));
            }
        }
        EventKind::Step(report) => {
            let before = std::mem::replace(&mut watched.step, report.step);
            if report.step <= before {
                return found(Broken::StepTwice, format!("step {} was reported after step {before}", report.step));
            }
        }
        EventKind::CheckpointLost { .. } | EventKind::ResultLost => *watched = Watched::default(),
        _ => {}
    }
    None
}
