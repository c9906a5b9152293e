//! What the coordinator tells of its facts to those who operate it: counts since its start, log lines, and spans.
//!
//! A job's spans are derived from its submission's place in a trace, which the journal keeps with the plan, and from the
//! names of job, stage and lease. So a coordinator that takes over goes on with the trace, and a worker is told its
//! parent by one word of the assignment.
//!
//! ```text
//! submission ─► job ─┬─► stage ─┬─► lease ─► what the worker does under it
//!                    │          └─► publish
//!                    └─► …
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};

use graftwork_scheduler::{Fact, Plan, Scheduler, StageKey};
use graftwork_shared::{
    event::Outcome,
    id::{JobId, LeaseId, Name},
    trace::TraceContext,
};

/// Facts so far, and leases whose beginning was seen.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// By what happened.
    pub(super) counts: BTreeMap<&'static str, u64>,
    leases: HashMap<LeaseId, (StageKey, u64)>,
    /// Leases whose work was accepted last, of which the worker is still to hear.
    accepted: VecDeque<(LeaseId, TraceContext)>,
}

/// How many of those are kept.
const MOST_ACCEPTED: usize = 1_024;

/// Where a job stands in its submission's trace.
pub(super) fn job_context(plan: &Plan) -> TraceContext {
    submission(plan).child(&format!("job {}", plan.id()))
}

/// The place of the submission. Journals of earlier versions keep none.
fn submission(plan: &Plan) -> TraceContext {
    plan.trace.parse().unwrap_or_else(|_| TraceContext::root(plan.id().as_str()))
}

/// Where a stage stands below its job.
pub(super) fn stage_context(plan: &Plan, stage: &Name) -> TraceContext {
    job_context(plan).child(&format!("stage {stage}"))
}

/// Where a lease stands below its stage.
pub(super) fn lease_context(plan: &Plan, stage: &Name, lease: LeaseId) -> TraceContext {
    stage_context(plan, stage).child(&format!("lease {lease}"))
}

/// What is counted of a fact.
fn counted(fact: &Fact) -> Option<&'static str> {
    Some(match fact {
        Fact::JobSubmitted { .. } | Fact::JobReopened { .. } => "jobs_submitted",
        Fact::JobEnded { outcome: Outcome::Succeeded, .. } => "jobs_succeeded",
        Fact::JobEnded { .. } => "jobs_unfinished",
        Fact::JobForgotten { .. } => "jobs_forgotten",
        Fact::StageLeased { .. } => "attempts",
        Fact::AttemptFailed { .. } => "attempts_failed",
        Fact::StagePreempted { .. } => "preemptions",
        Fact::LeaseReleased { .. } => "releases",
        Fact::WorkerEntered { .. } | Fact::WorkerJoined { .. } => "workers_joined",
        Fact::WorkerGone { .. } => "workers_gone",
        Fact::CheckpointAccepted { .. } => "checkpoints",
        Fact::CheckpointLost { .. } | Fact::ResultLost { .. } => "blobs_lost",
        Fact::StageTrained { .. } => "stages_trained",
        Fact::StagePublished { .. } => "stages_published",
        Fact::PublishFailed { .. } => "publications_failed",
        _ => return None,
    })
}

impl Trail {
    /// Follows facts that are folded already.
    pub(super) fn follow(&mut self, facts: &[Fact], machine: &Scheduler, now_ms: u64) {
        for fact in facts {
            if let Some(name) = counted(fact) {
                *self.counts.entry(name).or_default() += 1;
            }
            self.tell(fact, machine, now_ms);
        }
    }

    fn tell(&mut self, fact: &Fact, machine: &Scheduler, now_ms: u64) {
        match fact {
            Fact::JobSubmitted { plan, .. } | Fact::JobReopened { plan, .. } => {
                let trace = job_context(plan).trace_id();
                tracing::info!(job = %plan.id(), trace, owner = %plan.job.owner, stages = plan.stages.len(), "job submitted");
            }
            Fact::StageLeased { job, stage, lease, worker, at_ms, .. } => {
                let key = StageKey { job: job.clone(), stage: stage.clone() };
                tracing::info!(%job, %stage, lease = lease.0, %worker, trace = trace(machine, job), "stage leased");
                self.leases.insert(*lease, (key, *at_ms));
            }
            Fact::StageTrained { job, stage, lease: Some(lease), at_ms, .. }
            | Fact::TrialScored { job, stage, lease: Some(lease), at_ms, .. } => {
                if let Some(plan) = machine.plan(job) {
                    self.accepted.truncate(MOST_ACCEPTED - 1);
                    self.accepted.push_front((*lease, lease_context(plan, stage, *lease)));
                }
                self.end_lease(*lease, machine, *at_ms, None);
            }
            Fact::MemoryMeasured { job, stage, predicted_bytes, measured_bytes, .. } => {
                tracing::info!(%job, %stage, predicted_bytes, measured_bytes, trace = trace(machine, job), "memory measured");
            }
            Fact::LeaseReleased { lease, reason, at_ms } => {
                self.end_lease(*lease, machine, *at_ms, Some(format!("released: {reason}")));
            }
            Fact::StagePreempted { lease, by_job, by_stage, at_ms } => {
                self.end_lease(*lease, machine, *at_ms, Some(format!("preempted by {by_stage} of {by_job}")));
            }
            Fact::AttemptFailed { lease, failure, at_ms, .. } => {
                self.end_lease(*lease, machine, *at_ms, Some(failure.message.clone()));
            }
            Fact::StagePublished { job, stage, .. } => end_stage((job, stage), machine, now_ms, None),
            Fact::PublishFailed { job, stage, failure, retry_at_ms: None } => {
                end_stage((job, stage), machine, now_ms, Some(failure.message.clone()));
            }
            Fact::StageCancelled { job, stage, reason } => {
                end_stage((job, stage), machine, now_ms, Some(reason.clone()));
            }
            Fact::JobForgotten { job, .. } => tracing::info!(%job, "job forgotten"),
            Fact::JobEnded { job, outcome, at_ms } => end_job(job, *outcome, machine, *at_ms),
            _ => {}
        }
    }

    /// Where a lease stood whose work was accepted.
    pub(super) fn accepted(&self, lease: LeaseId) -> Option<&TraceContext> {
        self.accepted.iter().find(|(accepted, _)| *accepted == lease).map(|(_, context)| context)
    }

    /// The span of a lease whose beginning this coordinator saw; the worker's own tells of the others.
    fn end_lease(&mut self, lease: LeaseId, machine: &Scheduler, at_ms: u64, failure: Option<String>) {
        let Some((StageKey { job, stage }, since_ms)) = self.leases.remove(&lease) else { return };
        let Some(plan) = machine.plan(&job) else { return };
        let why = failure.as_deref().unwrap_or("its work was accepted");
        tracing::info!(%job, %stage, lease = lease.0, why, trace = trace(machine, &job), "lease ended");
        let contexts = (lease_context(plan, &stage, lease), stage_context(plan, &stage));
        let about = vec![("job", job.to_string()), ("stage", stage.to_string()), ("lease", lease.0.to_string())];
        graftwork_telemetry::record("lease", contexts, (since_ms, at_ms), about, failure);
    }
}

/// The trace of a job, as logs show it.
pub(super) fn trace(machine: &Scheduler, job: &JobId) -> String {
    machine.plan(job).map(|plan| job_context(plan).trace_id()).unwrap_or_default()
}

fn end_stage((job, stage): (&JobId, &Name), machine: &Scheduler, now_ms: u64, failure: Option<String>) {
    let (Some(plan), Some(since_ms)) = (machine.plan(job), machine.submitted_ms(job)) else { return };
    match &failure {
        None => tracing::info!(%job, %stage, trace = trace(machine, job), "stage published"),
        Some(why) => tracing::warn!(%job, %stage, why, trace = trace(machine, job), "stage ended without a release"),
    }
    let contexts = (stage_context(plan, stage), job_context(plan));
    let about = vec![("job", job.to_string()), ("stage", stage.to_string())];
    graftwork_telemetry::record("stage", contexts, (since_ms, now_ms), about, failure);
}

fn end_job(job: &JobId, outcome: Outcome, machine: &Scheduler, at_ms: u64) {
    let (Some(plan), Some(since_ms)) = (machine.plan(job), machine.submitted_ms(job)) else { return };
    tracing::info!(%job, ?outcome, trace = trace(machine, job), "job ended");
    let about = vec![("job", job.to_string()), ("owner", plan.job.owner.clone())];
    let failure = (outcome != Outcome::Succeeded).then(|| format!("{outcome:?}"));
    graftwork_telemetry::record("job", (job_context(plan), submission(plan)), (since_ms, at_ms), about, failure);
}
