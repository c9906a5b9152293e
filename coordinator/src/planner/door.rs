//! The planner as the server sees it.

use std::sync::{Mutex, PoisonError};

use futures::future::BoxFuture;
use graftwork_scheduler::Plan;
use graftwork_shared::{
    diagnostic::Diagnostic,
    digest::Digest,
    job::{Job, Spans},
};

use super::{Planned, Planning, plan, uploads};
use crate::server::{BlobStore, Planner};

/// Plans jobs for a server. `graftwork run` has planned its job file already, to place problems in it, and hands that
/// plan over; whatever else is submitted is planned when it comes.
#[derive(Debug)]
pub(crate) struct PlannerDoor {
    planning: Planning,
    ready: Mutex<Option<Planned>>,
}

impl PlannerDoor {
    pub(crate) fn new(planning: Planning, ready: Option<Planned>) -> Self {
        Self { planning, ready: Mutex::new(ready) }
    }

    fn take_ready(&self, job: &Job) -> Option<Planned> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.take_if(|planned| planned.plan.digest == job.digest())
    }
}

impl Planner for PlannerDoor {
    fn plan(&self, job: Job, spans: Spans, blobs: BlobStore) -> BoxFuture<'_, Result<Plan, Vec<Diagnostic>>> {
        Box::pin(async move {
            let planned = match self.take_ready(&job) {
                Some(planned) => planned,
                None => {
                    let planning = Planning { uploads: Some(blobs.clone()), ..self.planning.clone() };
                    let planned = plan_with_spans(job.clone(), spans, planning).await;
                    let (blobs, failed) = (blobs.clone(), planned.is_err());
                    // A damaged upload shows in many ways; what it is and its mend are said in its own words.
                    let damaged = tokio::task::spawn_blocking(move || failed.then(|| uploads::damaged(&job, &blobs)));
                    match damaged.await {
                        Ok(Some(damaged)) if !damaged.is_empty() => return Err(damaged),
                        _ => planned?,
                    }
                }
            };
            let Planned { plan, blobs: outside, warnings, .. } = planned;
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            let kept = tokio::task::spawn_blocking(move || keep(&blobs, &outside)).await;
            match kept {
                Ok(Ok(())) => Ok(plan),
                Ok(Err(message)) => Err(vec![Diagnostic::error("state", message)]),
                Err(error) => Err(vec![Diagnostic::error("state", error.to_string())]),
            }
        })
    }
}

/// Plans on a thread of its own, because planning reads files and hashes a base model; `spans` place what is said in
/// the job file.
pub(crate) async fn plan_with_spans(job: Job, spans: Spans, planning: Planning) -> Result<Planned, Vec<Diagnostic>> {
    let runtime = tokio::runtime::Handle::current();
    let planned = tokio::task::spawn_blocking(move || runtime.block_on(plan(job, &spans, &planning))).await;
    planned.unwrap_or_else(|error| Err(vec![Diagnostic::error("plan", format!("planning ended early: {error}"))]))
}

fn keep(blobs: &BlobStore, outside: &[(Digest, Vec<u8>)]) -> Result<(), String> {
    outside.iter().try_for_each(|(_, bytes)| blobs.put(bytes).map(|_| ()).map_err(|error| error.to_string()))
}
