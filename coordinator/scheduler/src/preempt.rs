//! Pre-emption: a ready stage without a place takes one from running work of lower priority, whole groups at a time.
//!
//! Of all that would make room, that goes which loses least: updates behind the last checkpoint, times the tokens of an
//! update. It is asked first, so a worker that answers checkpoints and loses nothing; one that does not within
//! [`Policy::release_ms`](crate::Policy::release_ms) is fenced. The stage goes back to the ready ones without blame.
//!
//! Nobody takes places from each other in turns: only a strictly higher priority takes, so what was taken is not taken
//! back; and a stage that was pre-empted is safe until it has a checkpoint beyond the one it had then, so each time is
//! paid with progress of its own, and there is an end to them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use graftwork_shared::{
    event::EventKind,
    id::{LeaseId, WorkerId},
    view::{Preempted, Refusal},
};

use crate::{
    fact::Fact,
    group::Role,
    machine::Scheduler,
    message::{Command, StageKey},
    phase::{Change, Grant},
    state::{StageRecord, State},
    worker::Worker,
};

/// A lease that its holders were asked to give back for another stage.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Giving {
    by: StageKey,
    until_ms: u64,
}

impl Giving {
    pub(crate) fn until_ms(&self) -> u64 {
        self.until_ms
    }
}

/// Memory of stages that will get room on a worker once others have gone.
type Claims = BTreeMap<WorkerId, Vec<u64>>;

impl State {
    /// A stage gave its place to another one.
    pub(crate) fn fold_preemption(&mut self, lease: LeaseId, by: &StageKey, at_ms: u64) -> Result<(), String> {
        let record = self.end_lease(lease, at_ms, Change::GiveBack)?;
        let times = record.preempted.as_ref().map_or(0, |before| before.times) + 1;
        let step = record.checkpoint_step();
        record.preempted = Some(Preempted { times, by_job: by.job.clone(), by: by.stage.clone(), at_ms, step });
        Ok(())
    }
}

impl StageRecord {
    /// It gave its place and has not moved on since.
    pub(crate) fn is_safe(&self) -> bool {
        self.preempted.as_ref().is_some_and(|before| self.checkpoint_step() <= before.step)
    }

    pub(crate) fn checkpoint_step(&self) -> u64 {
        self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step)
    }
}

impl Scheduler {
    /// Makes room for ready stages of higher priority, where none is to come without it.
    pub(crate) fn preempt(&mut self) {
        self.ask_again();
        let lowest = self.state.live().values().filter_map(|key| self.priority(key)).min();
        let (Some(lowest), None) = (lowest, &self.stopping) else { return };
        if !self.state.jobs().values().any(|job| job.ended.is_none() && job.plan.job.priority > lowest) {
            return;
        }
        let urgent = self.ready().into_iter().filter(|key| self.priority(key) > Some(lowest));
        let mut claims = Claims::new();
        for key in urgent.collect::<Vec<_>>() {
            if let Some((worker, memory_bytes, leases)) = self.make_room(&key, &claims) {
                claims.entry(worker).or_default().push(memory_bytes);
                for lease in leases {
                    self.ask_for_place(lease, &key);
                }
            }
        }
    }

    fn priority(&self, key: &StageKey) -> Option<i32> {
        self.state.jobs().get(&key.job).map(|job| job.plan.job.priority)
    }

    /// The worker that will have room for a stage, and the leases that have to go for it.
    fn make_room(&self, key: &StageKey, claims: &Claims) -> Option<(WorkerId, u64, Vec<LeaseId>)> {
        let (job, position) = self.state.record(key)?;
        if !matches!(self.choose(job, position), Err(Refusal::Busy { .. })) {
            return None;
        }
        let memory_bytes = job.plan.stages[position].memory_bytes;
        let suited = self.suited(job, position).ok()?;
        let comes = suited.iter().find(|(id, worker)| self.has_room_after((*id, worker), memory_bytes, claims, &[]));
        if let Some((worker, _)) = comes {
            return Some((*worker, memory_bytes, Vec::new()));
        }
        let ways = suited.into_iter().filter_map(|(id, worker)| {
            let leases = self.cheapest((id, worker), job.plan.job.priority, memory_bytes, claims)?;
            let lost: u64 = leases.iter().map(|lease| self.loss(*lease)).sum();
            Some(((lost, Reverse(leases.first().copied()), id), leases))
        });
        let ((_, _, worker), leases) = ways.min()?;
        Some((worker, memory_bytes, leases))
    }

    /// Whether a worker has room once these leases have gone, and those that go already, for a stage beside others that
    /// wait for it.
    fn has_room_after(
        &self,
        (id, worker): (WorkerId, &Worker),
        memory_bytes: u64,
        claims: &Claims,
        gone: &[LeaseId],
    ) -> bool {
        let stays = |lease: &LeaseId| !gone.contains(lease) && !self.goes(id, *lease);
        let staying = worker.leases.iter().filter(|(lease, _)| stays(lease)).map(|(_, bytes)| bytes);
        worker.has_room_beside(staying.chain(claims.get(&id).into_iter().flatten()), memory_bytes)
    }

    /// Whether a lease leaves a worker as it is: it is not live any more, or was asked for.
    fn goes(&self, worker: WorkerId, lease: LeaseId) -> bool {
        self.role(worker, lease).is_none() || self.was_asked_back(worker, lease)
    }

    /// The leases on a worker whose going loses least and makes room; none of them could stay.
    fn cheapest(
        &self,
        (id, worker): (WorkerId, &Worker),
        priority: i32,
        memory_bytes: u64,
        claims: &Claims,
    ) -> Option<Vec<LeaseId>> {
        let may_go = |lease: &&LeaseId| {
            let Some(key) = self.state.live().get(lease) else { return false };
            let safe = self.state.record(key).is_some_and(|(job, position)| job.stages[position].is_safe());
            !self.goes(id, **lease) && self.priority(key) < Some(priority) && !safe
        };
        let mut leases: Vec<LeaseId> = worker.leases.keys().filter(may_go).copied().collect();
        leases.sort_by_key(|lease| (self.loss(*lease), Reverse(*lease)));
        let fits = |gone: &[LeaseId]| self.has_room_after((id, worker), memory_bytes, claims, gone);
        let enough = (1..=leases.len()).find(|count| fits(&leases[..*count]))?;
        leases.truncate(enough);
        for at in (0..leases.len()).rev() {
            let others: Vec<LeaseId> = leases.iter().copied().filter(|lease| *lease != leases[at]).collect();
            if fits(&others) {
                leases = others;
            }
        }
        Some(leases)
    }

    /// Work that a lease's holders would lose if they were killed now, in tokens.
    pub(crate) fn loss(&self, lease: LeaseId) -> u64 {
        let Some((job, position)) = self.state.live().get(&lease).and_then(|key| self.state.record(key)) else {
            return 0;
        };
        let behind = self.known_step(lease).saturating_sub(job.stages[position].checkpoint_step());
        behind.saturating_mul(job.plan.stages[position].tokens_per_step())
    }

    /// Asks all holders of a lease to give it back.
    fn ask_for_place(&mut self, lease: LeaseId, by: &StageKey) {
        let until_ms = self.now_ms + self.policy.release_ms;
        let group = self.groups.entry(lease).or_default();
        group.giving = Some(Giving { by: by.clone(), until_ms });
        let joiner = group.joiner.map(|joiner| joiner.worker);
        if let Some(worker) = joiner.filter(|worker| self.role(*worker, lease) == Some(Role::Joins)) {
            self.drop_joiner(worker, lease);
            self.out.commands.push(Command::Fence { worker, lease });
        }
        self.ask_again();
    }

    /// Asks whoever has not heard of it: of a lease that gives its place all holders go.
    fn ask_again(&mut self) {
        let giving = self.groups.iter().filter_map(|(lease, group)| Some((*lease, group.giving.as_ref()?.by.clone())));
        for (lease, by) in giving.collect::<Vec<_>>() {
            let members = self.state.grant(lease).map(Grant::members).unwrap_or_default();
            for worker in members {
                let unheard = self.groups.entry(lease).or_default().asked_back.insert(worker);
                if unheard && !self.is_apart(worker) {
                    let reason = format!("{by} has a higher priority and no place");
                    self.out.commands.push(Command::Release { worker, lease, reason });
                }
            }
        }
    }

    /// Takes places from those that were asked and do not answer.
    pub(crate) fn take_places(&mut self) {
        let over = self
            .groups
            .iter()
            .filter(|(_, group)| group.giving.as_ref().is_some_and(|giving| giving.until_ms <= self.now_ms));
        for lease in over.map(|(lease, _)| *lease).collect::<BTreeSet<_>>() {
            self.keep_cost(lease);
            self.end_for_another(lease, None);
        }
    }

    /// Ends a lease whose last holder gave it back, or did not in time, for another stage. False: it was for none.
    pub(crate) fn end_for_another(&mut self, lease: LeaseId, but: Option<WorkerId>) -> bool {
        let giving = self.groups.get(&lease).and_then(|group| group.giving.clone());
        let (Some(Giving { by, .. }), Some(key)) = (giving, self.state.live().get(&lease).cloned()) else {
            return false;
        };
        self.dismiss(lease, but);
        let (by_job, by_stage, at_ms) = (by.job.clone(), by.stage.clone(), self.now_ms);
        self.record(Fact::StagePreempted { lease, by_job, by_stage, at_ms });
        let step = self.state.record(&key).map_or(0, |(job, position)| job.stages[position].checkpoint_step());
        self.tell(&key.job, Some(&key.stage), EventKind::Preempted { by_job: by.job, by: by.stage, step });
        true
    }
}
