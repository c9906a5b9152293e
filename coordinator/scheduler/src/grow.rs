//! Who helps whom: idle workers join stages that run, and are taken back when a stage of its own waits for them.
//!
//! Tasks spread over workers first; what is left over makes groups larger. A group never has more members than lanes,
//! and changes no published byte (invariant 5): lanes and the tree over them are the recipe's.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, Bound},
    sync::Arc,
};

use graftwork_shared::{
    id::{JobId, LeaseId, WorkerId},
    view::Refusal,
};

use crate::{
    gang::Kept,
    group::Role,
    index::{Demand, Kind, LineKey, Round, Wait},
    machine::Scheduler,
    message::{Arithmetic, Command},
    serve::{Limit, Turns},
};

/// Why a worker is asked into no group.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Closed {
    /// There is none for its kind.
    ToAll,
    /// It failed in the ones that there are.
    To(WorkerId),
}

impl Scheduler {
    /// Asks idle workers to join, once no stage waits for a place: the smallest group first, then the one whose work
    /// and all that waits for it is longest.
    pub(crate) fn grow(&mut self) {
        if !self.board.is_due(Round::Grow) || self.board.fleet.idle.is_empty() || self.board.leases.open.is_empty() {
            return;
        }
        if self.stopping.is_some() || self.somebody_waits() {
            return;
        }
        // Workers of one kind find the same groups open: once one of them finds none, the others need not look.
        let mut next: BTreeMap<WorkerId, Kind> = BTreeMap::new();
        next.extend(self.board.fleet.idle.iter().filter_map(|(kind, of)| Some((*of.first()?, kind.clone()))));
        while let Some((worker, kind)) = next.pop_first() {
            let behind = self.board.fleet.idle.get(&kind);
            let behind = behind.and_then(|of| of.range((Bound::Excluded(worker), Bound::Unbounded)).next().copied());
            match self.best_to_join(worker, &kind) {
                Ok(lease) => self.invite(worker, lease),
                Err(Closed::To(_)) => {}
                Err(Closed::ToAll) => continue,
            }
            next.extend(behind.map(|worker| (worker, kind)));
        }
    }

    fn somebody_waits(&mut self) -> bool {
        let fleet = &self.board.fleet;
        let mut looked_at = 0;
        let mut waits = false;
        for ((_, owner), line) in &self.board.queue.lines {
            looked_at += 1 + line.waiting.len();
            for ((wait, demand), stages) in &line.waiting {
                let any = |most: Option<u64>| most.is_some_and(|most| stages.first_within(None, most).is_some());
                if !any(fleet.hold(demand)) || (*wait == Wait::Place && self.is_over_quota(owner, demand.gang)) {
                    continue;
                }
                if *wait == Wait::Place && any(fleet.room(demand)) {
                    // Its owner's quota has room since helpers were taken back a moment ago: it waits for its turn alone.
                    return self.somebody_is_refused();
                }
                waits = true;
            }
        }
        self.count(looked_at);
        waits
    }

    /// The same, stage by stage.
    pub(crate) fn somebody_is_refused(&self) -> bool {
        let ready = self.ready();
        let gangs = self.gangs_in(&ready);
        ready.iter().enumerate().filter_map(|(place, key)| Some((place, self.state.record(key)?))).any(
            |(place, (job, at))| {
                self.choose_behind(job, at, gangs.before(place)).is_err_and(|refusal| {
                    use Refusal::{Behind, Busy, Gang, LookingForReuse};
                    !refusal.lasts() && matches!(refusal, Busy { .. } | Gang { .. } | Behind { .. } | LookingForReuse)
                })
            },
        )
    }

    /// The group that a worker of this kind joins best.
    fn best_to_join(&mut self, worker: WorkerId, (arithmetic, host, hold_bytes): &Kind) -> Result<LeaseId, Closed> {
        let berth = (Arc::clone(arithmetic), Arc::clone(host));
        let (mut after, mut closed, mut looked_at) = (None, Closed::ToAll, 0);
        let found = loop {
            looked_at += 1;
            let open = self.board.leases.open.get(&berth);
            let Some(rank) = open.and_then(|open| open.first_within(after.as_ref(), *hold_bytes)).copied() else {
                break Err(closed);
            };
            let lease = rank.3;
            let owner = self.owner_of(lease);
            if self.groups.get(&lease).is_some_and(|group| group.bars(worker, self.now_ms)) {
                closed = Closed::To(worker);
            } else if owner.is_some_and(|owner| !self.is_over_quota(owner, 1) && !self.saves_up(owner)) {
                break Ok(lease);
            }
            after = Some(rank);
        };
        self.count(looked_at);
        found
    }

    pub(crate) fn invite(&mut self, worker: WorkerId, lease: LeaseId) {
        let Some(key) = self.state.live().get(&lease) else { return };
        let Some((job, position)) = self.state.record(key) else { return };
        let mut assignment = job.next_assignment(key.job.clone(), position);
        assignment.attempt = assignment.attempt.saturating_sub(1);
        // It takes up the state of the members, and the checkpoint of now may be gone by the time it would read it.
        assignment.resume = None;
        let memory_bytes = self.state.needed_bytes(job, position);
        if let Some(known) = self.workers.get_mut(&worker) {
            known.take_in(&job.plan.stages[position]);
            known.leases.insert(lease, memory_bytes);
        }
        self.edit_group(lease, |group| group.joiners.insert(worker, false));
        self.seat(worker);
        let assignment = Box::new(assignment);
        self.out.commands.push(Command::Assign { worker, lease, assignment, joining: true });
    }

    /// Leases that a worker holds only to help.
    pub(crate) fn helps_in(&self, worker: WorkerId) -> usize {
        let helps = |lease: &&LeaseId| self.helps(worker, **lease);
        self.workers.get(&worker).map_or(0, |known| known.leases.keys().filter(helps).count())
    }

    /// Whether a worker could leave a group for a stage of its own.
    pub(crate) fn helps(&self, worker: WorkerId, lease: LeaseId) -> bool {
        let follows = matches!(self.role(worker, lease), Some(Role::Follows | Role::Joins));
        follows && !self.is_of_gang(worker, lease)
    }

    /// Asks helpers to give their lease back, once each: one for every ready stage that has no place but theirs, and
    /// whoever was handed a stage of its own.
    pub(crate) fn take_back(&mut self) {
        let changed = self.board.is_due(Round::TakeBack);
        // Only the order between owners changes with time.
        if self.board.fleet.helping.is_empty() || !(changed || self.board.queue.lines.len() > 1) {
            return;
        }
        let mut helpers: Vec<(WorkerId, LeaseId)> = self.board.fleet.helping.iter().copied().collect();
        self.count(helpers.len());
        self.review_needed(&helpers);
        if !self.board.leases.lacking.is_empty() {
            let claimed = self.take_back_for_gangs(&helpers);
            helpers.retain(|(worker, _)| !claimed.contains(worker));
        }
        if self.policy.bounds_places() {
            self.take_back_within_quotas(&helpers);
        } else {
            self.take_back_for_turns(&helpers);
        }
        for (helper, lease) in helpers {
            if self.is_needed(helper, lease) {
                continue;
            }
            let Some(known) = self.workers.get(&helper).filter(|known| known.leases.len() > 1) else { continue };
            let led = known.leases.keys().find(|other| self.role(helper, **other) == Some(Role::Leads));
            if let Some(key) = led.and_then(|led| self.state.live().get(led)) {
                let reason = format!("it trains {key} now");
                self.ask_back(helper, lease, reason);
            }
        }
    }

    /// Without quotas: each stage that waits for a place gets the first helper that would make room for it.
    fn take_back_for_turns(&mut self, helpers: &[(WorkerId, LeaseId)]) {
        let mut able: Vec<Helper> = helpers.iter().filter_map(|(worker, lease)| self.helper(*worker, *lease)).collect();
        able.sort_by_key(|helper| (!helper.asked, Reverse(helper.size), Reverse(helper.worker)));
        let kept = Kept::default();
        // Nobody leaves for a stage that no worker could take, or that starts after another one which asks the same.
        let limit = |machine: &Scheduler, able: &[Helper], line: &LineKey, wait: Wait, demand: &Demand| {
            if kept.has(demand) {
                return None;
            }
            Some(within(able, (line.0.0, wait), demand, &kept.demands())?.min(machine.board.fleet.hold(demand)?))
        };
        let mut turns = Turns::begin(self, &|machine, line, wait, demand| limit(machine, &able, line, wait, demand));
        while let Some(head) = turns.next(self) {
            let (missing, berth) = self.missing(&head);
            if head.demand.gang > 1 {
                kept.keep(&head.demand);
            }
            let fits = |helper: &Helper| {
                head.demand.suits(&helper.arithmetic)
                    && head.memory_bytes <= helper.room_bytes
                    && berth.as_ref().is_none_or(|berth| self.board.fleet.is_at(helper.worker, berth))
            };
            let own_job = |helper: &Helper| helper.job == head.spot.0;
            let stays = |helper: &Helper| {
                helper.is_needed_at(head.line.0.0)
                    || (own_job(helper) && !helper.asked && self.would_hold_up(helper.lease))
            };
            let mut found: Vec<(WorkerId, LeaseId)> = Vec::new();
            let mut held_up = false;
            for helper in able.iter().filter(|helper| fits(helper)) {
                if stays(helper) {
                    held_up |= own_job(helper);
                } else if found.len() < missing && found.iter().all(|(worker, _)| *worker != helper.worker) {
                    found.push((helper.worker, helper.lease));
                }
            }
            self.count(able.len());
            let passed = held_up && found.is_empty() && able.iter().all(own_job);
            let key = self.key_at(&head.spot);
            for ((worker, lease), key) in found.into_iter().zip(key.iter().cycle()) {
                able.retain(|helper| helper.worker != worker);
                self.ask_back(worker, lease, format!("{key} waits for a place"));
            }
            let limit: Limit<'_> = &|machine, line, wait, demand| limit(machine, &able, line, wait, demand);
            if passed {
                // No stage of this job gets one of its helpers.
                turns.pass_job(self, &head, limit);
            } else {
                turns.go_on(self, &head, false, limit);
            }
        }
    }

    fn helper(&self, worker: WorkerId, lease: LeaseId) -> Option<Helper> {
        let (known, seat) = (self.workers.get(&worker)?, self.board.fleet.seats.get(&worker)?);
        let job = self.state.live().get(&lease)?.job.clone();
        let others = known.leases.iter().filter(|(other, _)| **other != lease);
        let (taken, used) =
            others.fold((0_u64, 0_u64), |(taken, used), (_, bytes)| (taken + 1, used.saturating_add(*bytes)));
        let room = if seat.hold_bytes == u64::MAX { Some(u64::MAX) } else { seat.hold_bytes.checked_sub(used) };
        let room_bytes = room.filter(|_| seat.takes_work && taken < u64::from(known.info.slots))?;
        let asked = self.was_asked_back(worker, lease);
        let size = self.state.grant(lease).map_or(0, |grant| grant.others.len());
        let arithmetic = Arc::clone(&seat.arithmetic);
        let needed = self.is_needed(worker, lease) && !asked;
        let needed = self.state.jobs().get(&job).filter(|_| needed).map(|job| job.plan.job.priority);
        Some(Helper { worker, lease, job, needed, asked, size, arithmetic, room_bytes })
    }

    /// With quotas, what a helper's leaving makes room for depends on its owner: stage by stage, until no helper is left.
    fn take_back_within_quotas(&mut self, helpers: &[(WorkerId, LeaseId)]) {
        let all: BTreeSet<WorkerId> = helpers.iter().map(|(helper, _)| *helper).collect();
        let mut claimed = BTreeSet::new();
        let ready = self.ready();
        let gangs = self.gangs_in(&ready);
        for (place, key) in ready.into_iter().enumerate() {
            if claimed.len() == all.len() {
                break;
            }
            let Some((job, position)) = self.state.record(&key) else { continue };
            let (owner, places) = match self.choose_behind(job, position, gangs.before(place)) {
                Err(Refusal::Busy { .. }) => (None, 1),
                Err(Refusal::Gang { needs, free, have }) if needs <= have => (None, needs - free),
                // Only what its owner gives back makes room for it.
                Err(Refusal::Quota { owner, has, most, needs, .. }) if needs <= most => {
                    (Some(owner), has + needs - most)
                }
                Ok(_) | Err(_) => continue,
            };
            let (memory_bytes, priority) = (self.state.needed_bytes(job, position), job.plan.job.priority);
            let suited = self.suited(job, position).unwrap_or_default();
            let fit = |helper: WorkerId, lease: LeaseId| {
                let of_another = owner.as_ref().is_some_and(|owner| self.owner_of(lease) != Some(owner));
                if of_another || self.is_kept_from((helper, lease), (&key, priority)) {
                    return false;
                }
                let worker = suited.iter().find(|(id, _)| *id == helper).map(|(_, worker)| worker);
                worker.is_some_and(|worker| worker.has_room_without(lease, memory_bytes))
            };
            let able = helpers.iter().filter(|(helper, lease)| !claimed.contains(helper) && fit(*helper, *lease));
            let mut able: Vec<(WorkerId, LeaseId)> = able.copied().collect();
            let size = |lease: LeaseId| self.state.grant(lease).map_or(0, |grant| grant.others.len());
            able.sort_by_key(|(helper, lease)| {
                (!self.was_asked_back(*helper, *lease), Reverse(size(*lease)), Reverse(*helper))
            });
            able.truncate(usize::try_from(places).unwrap_or(usize::MAX));
            self.count(1 + suited.len());
            for (helper, lease) in able {
                claimed.insert(helper);
                self.ask_back(helper, lease, format!("{key} waits for a place"));
            }
        }
    }

    fn owner_of(&self, lease: LeaseId) -> Option<&String> {
        let key = self.state.live().get(&lease)?;
        self.state.jobs().get(&key.job).map(|job| &job.plan.job.owner)
    }

    pub(crate) fn was_asked_back(&self, worker: WorkerId, lease: LeaseId) -> bool {
        self.groups.get(&lease).is_some_and(|group| group.asked_back.contains(&worker))
    }

    pub(crate) fn ask_back(&mut self, worker: WorkerId, lease: LeaseId, reason: String) {
        if self.role(worker, lease) == Some(Role::Joins) {
            // It has nothing to hand over, and may still load for long.
            self.drop_joiner(worker, lease);
            self.out.commands.push(Command::Fence { worker, lease });
        } else if !self.was_asked_back(worker, lease) {
            self.edit_group(lease, |group| group.asked_back.insert(worker));
            self.out.commands.push(Command::Release { worker, lease, reason });
        }
    }
}

/// A worker that helps, as it would be without that.
struct Helper {
    worker: WorkerId,
    lease: LeaseId,
    job: JobId,
    /// The job's priority, where it was asked to help before other stages started.
    needed: Option<i32>,
    asked: bool,
    /// Of its group.
    size: usize,
    arithmetic: Arc<Arithmetic>,
    room_bytes: u64,
}

impl Helper {
    /// Whether it stays where it is for all that stages of this priority say.
    fn is_needed_at(&self, priority: i32) -> bool {
        self.needed.is_some_and(|own| priority <= own)
    }
}

/// What one of these helpers would make room for.
fn within(able: &[Helper], (priority, wait): (i32, Wait), demand: &Demand, kept: &[Demand]) -> Option<u64> {
    let able = able.iter().filter(|helper| !helper.is_needed_at(priority));
    let free = |helper: &&Helper| demand.gang > 1 || !kept.iter().any(|gang| gang.suits(&helper.arithmetic));
    let suited = able.filter(|helper| wait == Wait::Place && demand.suits(&helper.arithmetic)).filter(free);
    suited.map(|helper| helper.room_bytes).max()
}
