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
    view::Preempted,
};

use crate::{
    fact::Fact,
    group::Role,
    index::{Demand, LineKey, Round, Wait},
    job::StageRecord,
    machine::Scheduler,
    message::{Command, StageKey},
    phase::{Change, Grant},
    serve::{Head, Limit, Turns},
    state::State,
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
pub(crate) type Claims = BTreeMap<WorkerId, Vec<u64>>;

/// What is known of rooms while stages of higher priority are served.
#[derive(Default)]
struct Rooms {
    claims: Claims,
    /// Of stages that ask for the same, the least memory for which there was no way.
    tight: BTreeMap<Demand, u64>,
    /// Since which worker room was looked for, and for how much.
    from: BTreeMap<Demand, (u64, WorkerId)>,
}

impl Rooms {
    fn may_fit(&self, demand: &Demand, memory_bytes: u64) -> bool {
        self.tight.get(demand).is_none_or(|tight| memory_bytes < *tight)
    }

    fn limit(&self, machine: &Scheduler, lowest: i32, (line, wait, demand): (&LineKey, Wait, &Demand)) -> Option<u64> {
        let served = wait == Wait::Place && line.0.0 > lowest && !machine.is_over_quota(&line.1, demand.gang);
        let hold_bytes = machine.board.fleet.hold(demand).filter(|_| served)?;
        match self.tight.get(demand) {
            Some(tight) => Some(hold_bytes.min(tight.checked_sub(1)?)),
            None => Some(hold_bytes),
        }
    }
}

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
        if self.board.is_due(Round::AskAgain) {
            self.ask_again();
        }
        let lowest = self.state.index.priorities.keys().next().copied();
        let (Some(lowest), None) = (lowest, &self.stopping) else { return };
        let changed = self.board.is_due(Round::Preempt);
        let urgent = self.board.queue.lines.keys().take_while(|(priority, _)| priority.0 > lowest).count();
        // Only the order between owners changes with time.
        if urgent == 0 || !(changed || urgent > 1) {
            return;
        }
        self.serve_urgent(lowest);
    }

    /// Goes through the stages of a higher priority than the lowest that runs, in their order. What found no way is
    /// remembered: nobody who asks as much finds one before places are asked for.
    fn serve_urgent(&mut self, lowest: i32) {
        let mut rooms = Rooms::default();
        let mut turns =
            Turns::begin(self, &|machine, line, wait, demand| rooms.limit(machine, lowest, (line, wait, demand)));
        while let Some(head) = turns.next(self) {
            let asked = self.serve_one(&head, &mut rooms);
            let limit: Limit<'_> = &|machine, line, wait, demand| rooms.limit(machine, lowest, (line, wait, demand));
            if asked {
                turns.widen(self, &head, limit);
            } else {
                turns.go_on(self, &head, false, limit);
            }
        }
    }

    /// Whether others were asked for their place.
    fn serve_one(&mut self, head: &Head, rooms: &mut Rooms) -> bool {
        let (demand, memory_bytes) = (&head.demand, head.memory_bytes);
        let free = self.board.fleet.room(demand).is_some_and(|most| memory_bytes <= most);
        let Some(key) = self.key_at(&head.spot).filter(|_| !free && rooms.may_fit(demand, memory_bytes)) else {
            return false;
        };
        let way = if demand.gang > 1 {
            self.make_rooms(head, &rooms.claims)
        } else {
            self.make_room(head, rooms).map(|(worker, leases)| (vec![worker], leases))
        };
        let Some((workers, leases)) = way else {
            rooms.tight.insert(demand.clone(), memory_bytes);
            return false;
        };
        for worker in workers {
            rooms.claims.entry(worker).or_default().push(memory_bytes);
        }
        if !leases.is_empty() {
            rooms.tight.clear();
            rooms.from.clear();
        }
        for lease in &leases {
            self.ask_for_place(*lease, &key);
        }
        !leases.is_empty()
    }

    fn priority(&self, key: &StageKey) -> Option<i32> {
        self.state.jobs().get(&key.job).map(|job| job.plan.job.priority)
    }

    /// The worker that will have room for a stage, and the leases that have to go for it.
    fn make_room(&mut self, head: &Head, rooms: &mut Rooms) -> Option<(WorkerId, Vec<LeaseId>)> {
        if let Some(worker) = self.comes(head, rooms) {
            return Some((worker, Vec::new()));
        }
        let job = self.state.jobs().get(&head.spot.0)?;
        let suited = self.suited(job, head.spot.1).ok()?;
        let looked_at: usize = suited.iter().map(|(_, worker)| 1 + worker.leases.len()).sum();
        let ways = suited.into_iter().filter_map(|(id, worker)| {
            let leases = self.cheapest((id, worker), (head, &rooms.claims), &[])?;
            let lost: u64 = leases.iter().map(|lease| self.loss(*lease)).sum();
            Some(((lost, Reverse(leases.first().copied()), id), leases))
        });
        let way = ways.min();
        self.count(looked_at);
        let ((_, _, worker), leases) = way?;
        Some((worker, leases))
    }

    /// The first worker that will have room for a stage without anybody being asked.
    fn comes(&mut self, head: &Head, rooms: &mut Rooms) -> Option<WorkerId> {
        let memory_bytes = head.memory_bytes;
        // Before that one nobody had room for less.
        let from = rooms.from.get(&head.demand).filter(|(bytes, _)| *bytes <= memory_bytes).map(|(_, worker)| *worker);
        let mut looked_at = 1;
        let found = self.board.fleet.coming.range(from.unwrap_or(WorkerId(0))..).copied().find(|id| {
            looked_at += 1;
            let seat = self.board.fleet.seats.get(id);
            let suits = seat.is_some_and(|seat| seat.takes_work && head.demand.suits(&seat.arithmetic));
            let worker = self.workers.get(id).filter(|_| suits);
            worker.is_some_and(|worker| self.has_room_after((*id, worker), memory_bytes, &rooms.claims, &[]))
        });
        self.count(looked_at);
        rooms.from.insert(head.demand.clone(), (memory_bytes, found.unwrap_or(WorkerId(u64::MAX))));
        found
    }

    /// Whether a worker has room once these leases have gone, and those that go already, for a stage beside others that
    /// wait for it.
    pub(crate) fn has_room_after(
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
    pub(crate) fn goes(&self, worker: WorkerId, lease: LeaseId) -> bool {
        self.role(worker, lease).is_none() || self.was_asked_back(worker, lease)
    }

    /// The leases on a worker whose going, beside that of others, loses least and makes room; none of them could stay.
    pub(crate) fn cheapest(
        &self,
        (id, worker): (WorkerId, &Worker),
        (head, claims): (&Head, &Claims),
        others: &[LeaseId],
    ) -> Option<Vec<LeaseId>> {
        let (Reverse(priority), memory_bytes) = (head.line.0, head.memory_bytes);
        let may_go = |lease: &&LeaseId| {
            let Some(key) = self.state.live().get(lease) else { return false };
            let safe = self.state.record(key).is_some_and(|(job, position)| job.stages[position].is_safe());
            !self.goes(id, **lease) && !others.contains(lease) && self.priority(key) < Some(priority) && !safe
        };
        let mut leases: Vec<LeaseId> = worker.leases.keys().filter(may_go).copied().collect();
        leases.sort_by_key(|lease| (self.loss(*lease), Reverse(*lease)));
        let fits = |gone: &[LeaseId]| {
            let gone: Vec<LeaseId> = gone.iter().chain(others).copied().collect();
            self.has_room_after((id, worker), memory_bytes, claims, &gone)
        };
        let least = usize::from(others.is_empty());
        let enough = (least..=leases.len()).find(|count| fits(&leases[..*count]))?;
        leases.truncate(enough);
        for at in (0..leases.len()).rev() {
            let fewer: Vec<LeaseId> = leases.iter().copied().filter(|lease| *lease != leases[at]).collect();
            if fits(&fewer) {
                leases = fewer;
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
        behind.saturating_mul(job.index.shape.tokens[position])
    }

    /// The stage that a lease was asked to give its place.
    pub(crate) fn gives_to(&self, lease: LeaseId) -> Option<&StageKey> {
        self.groups.get(&lease)?.giving.as_ref().map(|giving| &giving.by)
    }

    /// Asks all holders of a lease to give it back.
    fn ask_for_place(&mut self, lease: LeaseId, by: &StageKey) {
        let until_ms = self.now_ms + self.policy.release_ms;
        let joiners = self.edit_group(lease, |group| {
            group.giving = Some(Giving { by: by.clone(), until_ms });
            group.joiners.clone()
        });
        let joining = |worker: &WorkerId| self.role(*worker, lease) == Some(Role::Joins);
        for worker in joiners.into_keys().filter(joining).collect::<Vec<_>>() {
            self.drop_joiner(worker, lease);
            self.out.commands.push(Command::Fence { worker, lease });
        }
        self.ask_holders(lease, by);
    }

    /// Asks whoever has not heard of it: of a lease that gives its place all holders go.
    fn ask_again(&mut self) {
        self.count(self.board.leases.giving.len());
        let giving = self.board.leases.giving.iter();
        let giving = giving.filter_map(|lease| Some((*lease, self.groups.get(lease)?.giving.as_ref()?.by.clone())));
        for (lease, by) in giving.collect::<Vec<_>>() {
            self.ask_holders(lease, &by);
        }
    }

    fn ask_holders(&mut self, lease: LeaseId, by: &StageKey) {
        let members = self.state.grant(lease).map(Grant::members).unwrap_or_default();
        for worker in members {
            if self.was_asked_back(worker, lease) {
                continue;
            }
            self.edit_group(lease, |group| group.asked_back.insert(worker));
            if !self.is_apart(worker) {
                let reason = format!("{by} has a higher priority and no place");
                self.out.commands.push(Command::Release { worker, lease, reason });
            }
        }
    }

    /// Takes places from those that were asked and do not answer.
    pub(crate) fn take_places(&mut self) {
        if !self.board.is_due(Round::TakePlaces) {
            return;
        }
        self.count(self.board.leases.giving.len());
        let due = |lease: &&LeaseId| {
            let giving = self.groups.get(lease).and_then(|group| group.giving.as_ref());
            giving.is_some_and(|giving| giving.until_ms <= self.now_ms)
        };
        for lease in self.board.leases.giving.iter().filter(due).copied().collect::<BTreeSet<_>>() {
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
