//! Gangs: stages that start on several workers at once, or not at all.
//!
//! A gang's places are found in one decision. While there are too few, nobody that is served behind it gets a place that
//! could be one of them, so it starts once enough of what runs has ended, and two gangs never wait for each other with
//! half of their places each. Once it runs, its members are not taken back for stages that wait. Who is lost is left out,
//! and the stage goes on; the next place that could be a member's is, before any stage of no higher priority gets it.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use graftwork_shared::{
    id::{LeaseId, WorkerId},
    view::Refusal,
};

use crate::{
    index::{Berth, Demand, Entry, LackRank, Wait},
    job::JobState,
    machine::Scheduler,
    merit::usual_speed,
    message::{Arithmetic, StageKey},
    phase::Grant,
    preempt::Claims,
    serve::Head,
};

/// What is kept for gangs that wait, while stages are handed out.
#[derive(Default)]
pub(crate) struct Kept {
    /// Workers that suit one of these are kept.
    demands: RefCell<Vec<Demand>>,
    /// These owners' quotas are.
    owners: RefCell<BTreeSet<String>>,
}

impl Kept {
    pub(crate) fn demands(&self) -> Vec<Demand> {
        self.demands.borrow().clone()
    }

    pub(crate) fn keep(&self, demand: &Demand) {
        let mut demands = self.demands.borrow_mut();
        if !demands.contains(demand) {
            demands.push(demand.clone());
        }
    }

    /// Whether workers are kept for a gang that asks the same.
    pub(crate) fn has(&self, demand: &Demand) -> bool {
        demand.gang > 1 && self.demands.borrow().contains(demand)
    }

    pub(crate) fn has_quota_of(&self, owner: &str) -> bool {
        self.owners.borrow().contains(owner)
    }
}

/// The gangs that wait, in the order of serving, found once for many questions.
#[derive(Default)]
pub(crate) struct Gangs {
    /// Their places among the ready stages.
    places: Vec<usize>,
    waiting: Vec<Waiting>,
}

impl Gangs {
    /// Those that are served before the stage at this place.
    pub(crate) fn before(&self, place: usize) -> &[Waiting] {
        &self.waiting[..self.places.partition_point(|of| *of < place)]
    }
}

/// A gang that waits, and what it keeps from those that are served behind it.
pub(crate) struct Waiting {
    /// What they are told.
    pub(crate) refusal: Refusal,
    /// It waits for its owner's quota, and keeps that and no workers.
    pub(crate) quota_of: Option<String>,
    demand: Demand,
}

impl Waiting {
    /// Whether it holds up another gang.
    pub(crate) fn holds_up(&self, gang: &Demand) -> bool {
        gang.gang > 1 && self.quota_of.is_none() && self.demand.overlaps(gang)
    }

    /// Whether a worker of this arithmetic is kept for it.
    pub(crate) fn keeps(&self, arithmetic: &Arithmetic) -> bool {
        self.quota_of.is_none() && self.demand.suits(arithmetic)
    }
}

/// What a running gang that lacks members asks of a helper.
struct Lack {
    lease: LeaseId,
    key: StageKey,
    berth: Berth,
    memory_bytes: u64,
    priority: i32,
}

impl JobState {
    /// Most workers that may train a stage together.
    pub(crate) fn most_workers(&self, at: usize) -> u32 {
        let lanes = self.plan.stages[at].recipe.training.lanes;
        lanes.min(self.plan.job.resources.workers_per_task.unwrap_or(u32::MAX)).max(1)
    }

    /// Workers that a stage starts on at once.
    pub(crate) fn gang(&self, at: usize) -> u32 {
        self.plan.job.resources.gang.clamp(1, self.most_workers(at))
    }
}

impl Scheduler {
    /// Whether a worker is one of those that a gang started with, or took the place of one.
    pub(crate) fn is_of_gang(&self, worker: WorkerId, lease: LeaseId) -> bool {
        let Some((job, at)) = self.state.live().get(&lease).and_then(|key| self.state.record(key)) else {
            return false;
        };
        let gang = job.gang(at);
        if gang < 2 || self.role(worker, lease).is_none() {
            return false;
        }
        let members = self.state.grant(lease).map(Grant::members).unwrap_or_default();
        let joiners = self.groups.get(&lease).into_iter().flat_map(|group| group.joiners.keys().copied());
        members.into_iter().chain(joiners).take(gang as usize).any(|other| other == worker)
    }

    /// Whether a gang's turn finds all its workers; what it waits for is kept otherwise.
    pub(crate) fn gang_fits(&self, head: &Head, kept: &Kept) -> bool {
        let owner = &head.line.1;
        if self.is_over_quota(owner, head.demand.gang) {
            kept.owners.borrow_mut().insert(owner.clone());
            return false;
        }
        let kept_before = kept.demands().iter().any(|before| before.overlaps(&head.demand));
        let fits = !kept_before && self.board.fleet.room(&head.demand).is_some_and(|most| head.memory_bytes <= most);
        if !fits {
            kept.keep(&head.demand);
        }
        fits
    }

    /// Whether an owner gets no further helpers, since a gang of its own waits for what its quota leaves.
    pub(crate) fn saves_up(&self, owner: &str) -> bool {
        if self.policy.quota(owner).places.is_none() {
            return false;
        }
        let mut gangs = self.board.queue.gangs.iter().filter_map(|spot| self.board.queue.entries.get(spot));
        gangs.any(|entry| {
            entry.line.1 == owner && self.is_over_quota(owner, entry.demand.gang) && self.keeps_places(entry)
        })
    }

    /// Workers with room for a stage beside what is kept; for a gang those among which it can be whole.
    pub(crate) fn roomy(&mut self, head: &Head, kept: &[Demand]) -> Vec<WorkerId> {
        if head.demand.gang < 2 {
            return self.board.fleet.roomy(&head.demand, head.memory_bytes, kept).collect();
        }
        let whole = self.rooms_together(&head.demand, head.memory_bytes).into_values();
        whole.filter(|workers| workers.len() >= head.demand.gang as usize).flatten().collect()
    }

    /// Workers with room for so much, by who could train together.
    fn rooms_together(&self, demand: &Demand, memory_bytes: u64) -> BTreeMap<Berth, Vec<WorkerId>> {
        let berths = self.board.fleet.together(demand);
        berths.map(|(berth, workers)| (berth.clone(), workers.roomy(memory_bytes).collect())).collect()
    }

    /// Of those that could train together, the ones with which a gang will be whole first: how many there are, and have room.
    fn nearest_berth(&self, demand: &Demand, memory_bytes: u64) -> Option<(Berth, usize, usize)> {
        let berths = self.board.fleet.together(demand).filter_map(|(berth, workers)| {
            let have = workers.holders(memory_bytes).count();
            (have > 0).then(|| (berth, have, workers.roomy(memory_bytes).count()))
        });
        let whole = |have: usize| have >= demand.gang as usize;
        let nearest = berths
            .max_by_key(|(_, have, free)| if whole(*have) { (true, *free, *have) } else { (false, *have, *free) });
        nearest.map(|(berth, have, free)| (berth.clone(), have, free))
    }

    /// The other workers that a stage starts on: as its leader was chosen, of those that can reach it.
    pub(crate) fn companions(&mut self, head: &Head, leader: WorkerId) -> Vec<WorkerId> {
        let others = (head.demand.gang as usize).saturating_sub(1);
        if others == 0 {
            return Vec::new();
        }
        let berths = self.rooms_together(&head.demand, head.memory_bytes).into_values();
        let mut able = berths.into_iter().find(|workers| workers.contains(&leader)).unwrap_or_default();
        able.retain(|worker| *worker != leader);
        let Some(job) = self.state.jobs().get(&head.spot.0) else { return Vec::new() };
        let stage = &job.plan.stages[head.spot.1];
        let suited = self.suited(job, head.spot.1).unwrap_or_default();
        let looked_at = able.len() + suited.len();
        let usual = usual_speed(stage, &suited);
        let merit = |id: &WorkerId| self.workers.get(id).map(|worker| worker.merit(stage, usual));
        able.sort_by_key(|id| (self.load(*id), Reverse(merit(id)), *id));
        able.truncate(others);
        self.count(looked_at);
        able
    }

    /// Places that a stage misses whose turn it is, and for a gang where.
    pub(crate) fn missing(&mut self, head: &Head) -> (usize, Option<Berth>) {
        if head.demand.gang < 2 {
            return (1, None);
        }
        self.count(self.board.fleet.seats.len());
        match self.nearest_berth(&head.demand, head.memory_bytes) {
            Some((berth, _, free)) => ((head.demand.gang as usize).saturating_sub(free), Some(berth)),
            None => (0, None),
        }
    }

    /// Why a gang does not start: too few workers together.
    pub(crate) fn short_of_gang(&self, job: &JobState, at: usize) -> Option<Refusal> {
        let needs = job.gang(at);
        if needs < 2 {
            return None;
        }
        let entry = self.board.queue.entries.get(&(job.plan.id(), at))?;
        let nearest = self.nearest_berth(&entry.demand, entry.memory_bytes);
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (have, free) = nearest.map_or((0, 0), |(_, have, free)| (number(have), number(free)));
        (free < needs).then_some(Refusal::Gang { needs, free, have })
    }

    /// The gangs that wait for workers or for quota, of the ready stages in their order. Of those that ask the same, and keep
    /// the same quota, the first: what it keeps is kept.
    pub(crate) fn gangs_in(&self, ready: &[StageKey]) -> Gangs {
        let mut gangs = Gangs::default();
        if !self.keep_any_places() {
            return gangs;
        }
        for (place, key) in ready.iter().enumerate() {
            let Some((job, at)) = self.state.record(key) else { continue };
            let entry = self.board.queue.entries.get(&(key.job.clone(), at));
            let Some(entry) = entry.filter(|entry| self.keeps_places(entry)) else { continue };
            let owner = &entry.line.1;
            let quota_of = self.is_over_quota(owner, entry.demand.gang).then(|| owner.clone());
            let demand = entry.demand.clone();
            if !gangs.waiting.iter().any(|before| (&before.demand, &before.quota_of) == (&demand, &quota_of)) {
                let refusal = Refusal::Behind { job: key.job.clone(), stage: key.stage.clone(), needs: job.gang(at) };
                gangs.places.push(place);
                gangs.waiting.push(Waiting { refusal, quota_of, demand });
            }
        }
        gangs
    }

    /// The gangs that are served before a stage and wait for workers or for quota.
    pub(crate) fn gangs_before(&self, key: &StageKey) -> Vec<Waiting> {
        if !self.keep_any_places() {
            return Vec::new();
        }
        let mut before = self.ready();
        let place = before.iter().position(|other| other == key);
        before.truncate(place.unwrap_or(before.len()));
        self.gangs_in(&before).waiting
    }

    fn keep_any_places(&self) -> bool {
        let queue = &self.board.queue;
        queue.gangs.iter().any(|spot| queue.entries.get(spot).is_some_and(|entry| self.keeps_places(entry)))
    }

    /// Whether a stage is a gang that others may not pass: workers here could make it whole, and it waits for them or for
    /// its owner's quota.
    fn keeps_places(&self, entry: &Entry) -> bool {
        let gang = entry.demand.gang;
        let hold = || self.board.fleet.hold(&entry.demand).is_some_and(|most| entry.memory_bytes <= most);
        gang > 1 && entry.wait == Wait::Place && !self.is_shut_out(&entry.line.1, gang) && hold()
    }

    /// Gives running gangs that lack members the workers that have room for one: those of this priority and above, or
    /// all of them. Gives whether any got one.
    pub(crate) fn fill_gangs(&mut self, lowest: Option<i32>, kept: &[Demand]) -> bool {
        let within = |rank: &LackRank| lowest.is_none_or(|lowest| rank.0.0.0 >= lowest);
        let lacking = self.board.leases.lacking.iter().take_while(|(rank, _)| within(rank));
        let lacking: Vec<(LeaseId, usize)> = lacking.map(|((_, lease), missing)| (*lease, *missing)).collect();
        self.count(lacking.len());
        let mut filled = false;
        for (lease, missing) in lacking {
            for _ in 0..missing {
                let Some(worker) = self.member_for(lease, kept) else { break };
                self.invite(worker, lease);
                filled = true;
            }
        }
        filled
    }

    /// The worker that a running gang that lacks members gets: as its first members were chosen.
    fn member_for(&mut self, lease: LeaseId, kept: &[Demand]) -> Option<WorkerId> {
        let (job, at) = self.state.live().get(&lease).and_then(|key| self.state.record(key))?;
        let stage = &job.plan.stages[at];
        let leader = self.board.fleet.seats.get(&self.state.grant(lease)?.worker)?;
        let berth = (Arc::clone(&leader.arithmetic), Arc::clone(&leader.reached_on));
        if self.is_over_quota(&job.plan.job.owner, 1) || kept.iter().any(|gang| gang.suits(&berth.0)) {
            return None;
        }
        let together = self.board.fleet.berths.get(&berth)?;
        let group = self.groups.get(&lease);
        let mut looked_at = 0;
        let able = together.roomy(self.state.needed_bytes(job, at)).filter(|worker| {
            looked_at += 1;
            let holds = self.workers.get(worker).is_none_or(|known| known.leases.contains_key(&lease));
            !holds && !group.is_some_and(|group| group.bars(*worker, self.now_ms))
        });
        let merit = |worker: &WorkerId| self.workers.get(worker).map(|known| known.merit(stage, 0));
        let found = able.min_by_key(|worker| (self.load(*worker), Reverse(merit(worker)), *worker));
        self.count(looked_at);
        found
    }

    /// Asks helpers of other groups back for running gangs that lack members and find no place. Gives them. A gang looks at
    /// those that it could train with, and at none where one before it, which asked no more, could have nobody.
    pub(crate) fn take_back_for_gangs(&mut self, helpers: &[(WorkerId, LeaseId)]) -> BTreeSet<WorkerId> {
        let lacking: Vec<(LeaseId, usize)> =
            self.board.leases.lacking.iter().map(|((_, lease), missing)| (*lease, *missing)).collect();
        self.count(lacking.len());
        let mut together = self.helpers_together(helpers);
        let (mut tight, mut claimed) = (BTreeMap::new(), BTreeSet::new());
        for (lease, missing) in lacking {
            if together.is_empty() {
                break;
            }
            let Some(lack) = self.lack(lease) else { continue };
            if tight.get(&lack.berth).is_some_and(|least| lack.memory_bytes >= *least) {
                continue;
            }
            let Some(able) = together.get_mut(&lack.berth) else { continue };
            self.count(able.len());
            let free: Vec<(WorkerId, LeaseId)> =
                able.iter().copied().filter(|helper| self.could_fill(&lack, *helper)).collect();
            if free.is_empty() {
                tight.insert(lack.berth, lack.memory_bytes);
                continue;
            }
            let mut found: Vec<(WorkerId, LeaseId)> =
                free.into_iter().filter(|helper| self.may_fill(&lack, *helper)).collect();
            found.sort_by_key(|(worker, of)| (!self.was_asked_back(*worker, *of), Reverse(*worker)));
            let mut seen = BTreeSet::new();
            found.retain(|(worker, _)| seen.insert(*worker));
            found.truncate(missing);
            able.retain(|(worker, _)| found.iter().all(|(other, _)| other != worker));
            if able.is_empty() {
                together.remove(&lack.berth);
            }
            for (worker, of) in found {
                claimed.insert(worker);
                self.ask_back(worker, of, format!("{} lacks a member", lack.key));
            }
        }
        claimed
    }

    /// What a running gang that lacks members asks, unless its owner gets no further place.
    fn lack(&self, lease: LeaseId) -> Option<Lack> {
        let key = self.state.live().get(&lease)?.clone();
        let (job, at) = self.state.record(&key)?;
        let (memory_bytes, priority) = (self.state.needed_bytes(job, at), job.plan.job.priority);
        let berth = self.board.fleet.seats.get(&self.state.grant(lease)?.worker)?.berth();
        let served = !self.is_over_quota(&job.plan.job.owner, 1);
        served.then_some(Lack { lease, key, berth, memory_bytes, priority })
    }

    /// Helpers that take work, by who could train together.
    fn helpers_together(&self, helpers: &[(WorkerId, LeaseId)]) -> BTreeMap<Berth, Vec<(WorkerId, LeaseId)>> {
        let mut together: BTreeMap<Berth, Vec<(WorkerId, LeaseId)>> = BTreeMap::new();
        for helper in helpers {
            if let Some(seat) = self.board.fleet.seats.get(&helper.0).filter(|seat| seat.takes_work) {
                together.entry(seat.berth()).or_default().push(*helper);
            }
        }
        together
    }

    /// Whether a helper could be had for any gang of this memory and priority: it can for none that asks more.
    fn could_fill(&self, lack: &Lack, (worker, of): (WorkerId, LeaseId)) -> bool {
        let known = self.workers.get(&worker);
        let has_room = known.is_some_and(|known| known.has_room_without(of, lack.memory_bytes));
        has_room && !self.is_needed_by((worker, of), lack.priority)
    }

    /// Whether one that could be had may be for this gang.
    fn may_fill(&self, lack: &Lack, (worker, of): (WorkerId, LeaseId)) -> bool {
        let holds = self.workers.get(&worker).is_none_or(|known| known.leases.contains_key(&lack.lease));
        let barred = self.groups.get(&lack.lease).is_some_and(|group| group.bars(worker, self.now_ms));
        !holds && !barred && !self.is_kept_from((worker, of), (&lack.key, lack.priority))
    }

    /// The workers that will have room for a gang, and the leases that have to go for it: those whose going loses least.
    pub(crate) fn make_rooms(&mut self, head: &Head, claims: &Claims) -> Option<(Vec<WorkerId>, Vec<LeaseId>)> {
        let together = self.board.fleet.together(&head.demand);
        let berths: Vec<Vec<WorkerId>> =
            together.map(|(_, workers)| workers.holders(head.memory_bytes).collect()).collect();
        self.count(berths.iter().map(|workers| workers.len() * head.demand.gang as usize).sum());
        let ways = berths.into_iter().filter_map(|workers| self.rooms_of(head, claims, workers));
        let way = ways.min_by_key(|(lost, workers, _)| (*lost, workers.clone()));
        way.map(|(_, workers, leases)| (workers, leases))
    }

    /// One after the other, the worker whose room costs least beside the ones before.
    fn rooms_of(
        &self,
        head: &Head,
        claims: &Claims,
        mut workers: Vec<WorkerId>,
    ) -> Option<(u64, Vec<WorkerId>, Vec<LeaseId>)> {
        let (mut lost, mut taken, mut gone) = (0_u64, Vec::new(), Vec::new());
        for _ in 0..head.demand.gang {
            let ways = workers.iter().filter_map(|id| {
                let worker = (*id, self.workers.get(id)?);
                let leases = if self.has_room_after(worker, head.memory_bytes, claims, &gone) {
                    Vec::new()
                } else {
                    self.cheapest(worker, (head, claims), &gone)?
                };
                let loss: u64 = leases.iter().map(|lease| self.loss(*lease)).sum();
                Some((loss, Reverse(leases.first().copied()), *id, leases))
            });
            let (loss, _, worker, leases) = ways.min()?;
            workers.retain(|other| *other != worker);
            lost = lost.saturating_add(loss);
            taken.push(worker);
            gone.extend(leases);
        }
        Some((lost, taken, gone))
    }
}
