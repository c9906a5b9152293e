//! What `explain` says of stages that wait or train, in the log: a line when a stage's reason has become another one.
//!
//! Numbers change all the time, so a reason counts as another one when its words without their digits are others. One job
//! is looked at in a second, in turn, so that ten thousand of them cost what one costs.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use graftwork_scheduler::{Scheduler, StageExplanation, StageKey};
use graftwork_shared::{
    id::{JobId, Name},
    view::StageState,
};

use super::trail::job_context;

/// Between two jobs, and so the least between two lines of a stage.
pub(super) const EVERY_MS: u64 = 1_000;

/// Jobs that are passed over at a time, as they have ended.
const PASSED: usize = 256;

/// What was told last of each stage.
#[derive(Debug, Default)]
pub(super) struct Reasons {
    next_ms: u64,
    /// The job that was looked at last.
    after: Option<JobId>,
    told: HashMap<JobId, HashMap<Name, u64>>,
}

/// The words that `explain` has for a stage, but what cannot be told in one line.
fn words(stage: &StageExplanation) -> Option<String> {
    let why = stage.why.to_string();
    match stage.data {
        StageState::Ready { .. } | StageState::Running { .. } if why.is_empty() => Some(stage.sentence.clone()),
        StageState::Ready { .. } | StageState::Running { .. } => Some(format!("{}; {why}", stage.sentence)),
        _ => None,
    }
}

fn without_digits(words: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    words.bytes().filter(|byte| !byte.is_ascii_digit()).for_each(|byte| byte.hash(&mut hasher));
    hasher.finish()
}

impl Reasons {
    /// Looks at the next open job, if it is time to, and logs what changed.
    pub(super) fn look(&mut self, machine: &Scheduler, now_ms: u64) {
        for (StageKey { job, stage }, why) in self.changed(machine, now_ms) {
            let trace = machine.plan(&job).map(|plan| job_context(plan).trace_id()).unwrap_or_default();
            tracing::info!(%job, %stage, why, trace, "stage explained");
        }
    }

    fn changed(&mut self, machine: &Scheduler, now_ms: u64) -> Vec<(StageKey, String)> {
        if now_ms < self.next_ms {
            return Vec::new();
        }
        self.next_ms = now_ms + EVERY_MS;
        // Behind the last one comes the first one.
        let (before, mut open) = (self.after.take(), None);
        let from = before.filter(|before| machine.jobs_after(Some(before)).next().is_some());
        for (id, is_open) in machine.jobs_after(from.as_ref()).take(PASSED) {
            self.after = Some(id.clone());
            if is_open {
                open = Some(id.clone());
                break;
            }
            self.told.remove(id);
        }
        if from.is_none() {
            // Forgotten jobs are in no turn.
            self.told.retain(|job, _| machine.plan(job).is_some());
        }
        let Some(explained) = open.and_then(|job| machine.explain(&job)) else { return Vec::new() };
        let told = self.told.entry(explained.job.clone()).or_default();
        let mut changed = Vec::new();
        for stage in explained.stages {
            let Some(words) = words(&stage) else {
                told.remove(&stage.stage);
                continue;
            };
            let now = without_digits(&words);
            if told.insert(stage.stage.clone(), now) != Some(now) {
                changed.push((StageKey { job: explained.job.clone(), stage: stage.stage }, words));
            }
        }
        changed
    }
}
