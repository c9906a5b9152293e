//! What people were told, held against the facts: all that sounds like a promise must be kept by one.

use std::collections::BTreeMap;

use super::{Broken, Event, Finding, Reader, StageKey};
use graftwork_shared::{
    event::{EventKind, StepReport},
    id::WorkerId,
};

/// A stage as those who watch see it.
#[derive(Default)]
struct Watched {
    /// The update that was reported last, or the furthest behind it that somebody may go on from.
    step: u64,
    /// The update from which the attempt went on, or that was last said to be safe.
    safe: u64,
    /// The furthest update that the next report may be of, where every update is reported. `None`: some may be missing.
    furthest: Option<u64>,
    /// Members of the attempt's group, by epoch.
    formed: BTreeMap<u64, Vec<WorkerId>>,
    /// Those who go on and made the update that was reported last: they have its state, or that of the one before.
    trained: Vec<WorkerId>,
}

/// What was told and cannot be.
pub(super) fn check(reader: &Reader<'_>, told: &[Event]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut stages: BTreeMap<StageKey, Watched> = BTreeMap::new();
    let turns = turns(told);
    for event in told {
        if let EventKind::JobFinished { outcome } = &event.kind {
            if !reader.jobs_ended.contains(&(event.job.clone(), format!("{outcome:?}"))) {
                let what = format!("job {} was said to have ended: {outcome:?}", event.job);
                findings.push(Finding { broken: Broken::AcknowledgedLost, what });
            }
            continue;
        }
        if matches!(event.kind, EventKind::JobStarted { .. }) {
            // A coordinator that was killed may have decided what nobody was told.
            let missed = |key: &StageKey| turns.get(key) != reader.turns.get(key);
            for (key, watched) in stages.iter_mut().filter(|(key, _)| key.job == event.job) {
                // Nor did anybody hear what workers reported until they came to this one.
                watched.furthest = None;
                if missed(key) {
                    watched.on_formed(None);
                }
            }
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

/// How often people were told that a stage was handed out, or its group formed anew.
fn turns(told: &[Event]) -> BTreeMap<StageKey, usize> {
    let mut turns = BTreeMap::new();
    for event in told {
        if let (EventKind::StageStarted { .. } | EventKind::GroupFormed { .. }, Some(stage)) =
            (&event.kind, &event.stage)
        {
            *turns.entry(StageKey { job: event.job.clone(), stage: stage.clone() }).or_default() += 1;
        }
    }
    turns
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

impl Watched {
    fn begun(worker: WorkerId, from_step: u64) -> Self {
        // What it finds changed makes it start over, so its first report may be of any step up to the next one.
        let furthest = Some(from_step.saturating_add(1));
        Self { step: 0, safe: from_step, furthest, formed: [(0, vec![worker])].into(), trained: vec![worker] }
    }

    /// These go on, or nobody knows who. If one of them made the last update they stand behind it by the update that was
    /// under way, and no more. Newcomers that are left alone before they had the state of whoever trained, who was perhaps
    /// never told of them, begin at the stage's beginning, if nothing is safe; or else by no more than one behind what
    /// is, since a member that stands further back fails its attempt.
    fn on_formed(&mut self, members: Option<&[WorkerId]>) {
        self.trained.retain(|worker| members.is_some_and(|members| members.contains(worker)));
        let last = if self.trained.is_empty() { self.safe } else { self.step };
        self.step = self.step.min(last.saturating_sub(1));
        // Whoever spoke for the group may have been lost with its last reports.
        self.furthest = None;
    }

    /// Gives the update that was reported before, and the furthest that this one may be.
    fn on_report(&mut self, report: &StepReport) -> (u64, Option<u64>) {
        // Whoever was told of another group and has not changed over yet still trains in the one before.
        if let Some(members) = self.formed.get(&report.group) {
            self.trained.clone_from(members);
        }
        let furthest = self.furthest.replace(report.step.saturating_add(1));
        (std::mem::replace(&mut self.step, report.step), furthest)
    }
}

/// Updates go on one by one: each attempt begins at a state that was accepted, and its reports grow, without a gap where
/// every update is reported.
fn follow(reader: &Reader<'_>, key: &StageKey, watched: &mut Watched, kind: &EventKind) -> Option<Finding> {
    let found = |broken, what: String| Some(Finding { broken, what: format!("{key}: {what}") });
    match kind {
        EventKind::StageStarted { worker, from_step, total_steps, .. } => {
            *watched = Watched::begun(*worker, *from_step);
            let known = reader.happened.contains(&(key.clone(), format!("checkpoint {from_step}")));
            if *from_step > *total_steps || (*from_step > 0 && !known) {
                let what =
                    format!("an attempt went on from step {from_step} of {total_steps}, which was never accepted");
                return found(Broken::StepMissed, what);
            }
        }
        EventKind::GroupFormed { epoch, members, .. } => {
            watched.on_formed(reader.in_lockstep.then_some(members.as_slice()));
            watched.formed.insert(*epoch, members.clone());
        }
        EventKind::Checkpointed { step } => {
            watched.safe = *step;
            if *step < watched.step {
                return found(Broken::StepTwice, format!("step {step} was safe after step {}", watched.step));
            }
        }
        EventKind::Step(report) => {
            let (before, furthest) = watched.on_report(report);
            if report.step <= before {
                return found(Broken::StepTwice, format!("step {} was reported after step {before}", report.step));
            }
            if let Some(furthest) = furthest.filter(|furthest| reader.every_update && report.step > *furthest) {
                let what = format!("step {} was reported, and step {furthest} was not", report.step);
                return found(Broken::StepMissed, what);
            }
        }
        EventKind::CheckpointLost { .. } | EventKind::ResultLost => {
            (watched.step, watched.safe, watched.furthest) = (0, 0, None);
        }
        _ => {}
    }
    None
}
