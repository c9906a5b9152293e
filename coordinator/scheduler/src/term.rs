//! What outlives a coordinator: leases whose holders can be known again.
//!
//! Workers train on while nobody leads them. The next coordinator knows from its journal who held what, gives them
//! [`Policy::return_ms`](crate::Policy::return_ms) to come back, and takes their word up where it was: the same lease,
//! the same members, the same epoch. Until then nobody else gets the work, so there is still one holder (invariant 2).
//! Whoever does not come back lost its coordinator, not its stage: nothing counts against an attempt.

use std::collections::BTreeMap;

use graftwork_shared::id::{LeaseId, Term, WorkerId};
use serde::{Deserialize, Serialize};

use crate::{
    fact::Fact,
    machine::Scheduler,
    message::WorkerInfo,
    phase::{Change, Grant},
    state::{State, grows},
    worker::{Apart, Worker},
};

/// A worker that can be known again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Holder {
    info: WorkerInfo,
    key: String,
}

impl State {
    pub(crate) fn fold_worker(&mut self, worker: WorkerId, holder: Option<(&WorkerInfo, &str)>) -> Result<(), String> {
        grows("worker", worker.0, self.last_worker.0)?;
        self.last_worker = worker;
        if let Some((info, key)) = holder.filter(|(_, key)| !key.is_empty()) {
            self.holders.insert(worker, Holder { info: info.clone(), key: key.to_owned() });
        }
        Ok(())
    }

    /// The next term. Leases go on if all of their members can be known again, and end without blame otherwise.
    pub(crate) fn fold_term(&mut self, term: Term, at_ms: u64, goes_on: bool) -> Result<(), String> {
        grows("term", term.0, self.term.0)?;
        self.term = term;
        let known = |lease: &LeaseId| {
            let grant = self.grant(*lease);
            goes_on && grant.is_some_and(|grant| grant.members().iter().all(|it| self.holders.contains_key(it)))
        };
        let over: Vec<LeaseId> = self.live().keys().copied().filter(|lease| !known(lease)).collect();
        for lease in over {
            let untold_ms = self.untold_ms(lease, at_ms);
            let record = self.end_lease(lease, at_ms, Change::GiveBack)?;
            record.ran_ms = record.ran_ms.saturating_sub(untold_ms);
        }
        let members: Vec<WorkerId> =
            self.live().keys().filter_map(|lease| self.grant(*lease)).flat_map(Grant::members).collect();
        self.holders.retain(|worker, _| members.contains(worker));
        // Clocks of two processes need not agree, so what waited for a time may go on at once.
        for record in self.jobs.values_mut().flat_map(|job| &mut job.stages) {
            record.retry_at_ms = None;
        }
        self.rebuild();
        Ok(())
    }
}

impl Scheduler {
    /// Takes the next term.
    pub(crate) fn begin_term(&mut self) {
        let (term, at_ms) = (Term(self.state.term().0 + 1), self.now_ms);
        // Workers of one process come and go with it.
        if self.policy.grace_ms == 0 {
            return self.record(Fact::TermStarted { term, at_ms });
        }
        self.record(Fact::TermContinued { term, at_ms });
        let reason = "the coordinator was another process when it was last heard";
        let holders = self.state.holders.iter().map(|(id, holder)| {
            let info = WorkerInfo { key: holder.key.clone(), ..holder.info.clone() };
            let apart = Some(Apart::since_restart(at_ms, reason));
            (*id, Worker { apart, ..Worker::new(info, at_ms) })
        });
        self.workers = holders.collect();
        for (lease, key) in self.state.live() {
            let Some((job, position)) = self.state.record(key) else { continue };
            let members = job.stages[position].phase.grant().map(Grant::members).unwrap_or_default();
            for member in members {
                if let Some(worker) = self.workers.get_mut(&member) {
                    worker.leases.insert(*lease, self.state.needed_bytes(job, position));
                }
            }
        }
    }

    /// The epoch of each group that holds a lease.
    pub fn epochs(&self) -> BTreeMap<LeaseId, u64> {
        let epoch = |lease: &LeaseId| Some((*lease, self.epoch(*lease).filter(|epoch| *epoch > 0)?));
        self.state.live().keys().filter_map(epoch).collect()
    }
}

/// What is journalled of a worker that joins.
pub(crate) fn entered(worker: WorkerId, info: &WorkerInfo) -> Fact {
    let WorkerInfo { key, .. } = info.clone();
    let info = Box::new(WorkerInfo { key: String::new(), ..info.clone() });
    Fact::WorkerEntered { worker, info, key }
}
