//! Gangs: stages that start on several workers at once, or not at all.
//!
//! A gang's places are found in one decision. While there are too few, nobody that is served behind it gets a place that
//! could be one of them, so it starts once enough of what runs has ended, and two gangs never wait for each other with
//! half of their places each. Once it runs, its group changes as any other does: who is lost is left out, and the stage
//! goes on. Only, its members are not taken back for stages that wait.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use graftwork_shared::{
    id::{LeaseId, WorkerId},
    view::Refusal,
};

use crate::{
    index::{Berth, Demand, Entry, Seat, Wait},
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

    pub(crate) fn has_quota_of(&self, owner: &str) -> bool {
        self.owners.borrow().contains(owner)
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
        self.count(self.board.fleet.seats.len());
        let whole = self.rooms_together(&head.demand, head.memory_bytes).into_values();
        whole.filter(|workers| workers.len() >= head.demand.gang as usize).flatten().collect()
    }

    /// Workers with room for so much, by who could train together.
    fn rooms_together(&self, demand: &Demand, memory_bytes: u64) -> BTreeMap<Berth, Vec<WorkerId>> {
        self.workers_together(demand, |seat| seat.room_bytes.filter(|room| memory_bytes <= *room))
    }

    /// Workers that could hold so much, in the same way.
    fn holders_together(&self, demand: &Demand, memory_bytes: u64) -> BTreeMap<Berth, Vec<WorkerId>> {
        self.workers_together(demand, |seat| Some(seat.hold_bytes).filter(|hold| memory_bytes <= *hold))
    }

    fn workers_together(
        &self,
        demand: &Demand,
        bytes: impl Fn(&Seat) -> Option<u64>,
    ) -> BTreeMap<Berth, Vec<WorkerId>> {
        let berths = self.board.fleet.together(demand, bytes).into_iter();
        berths.map(|(berth, workers)| (berth, workers.into_iter().map(|(_, worker)| worker).collect())).collect()
    }

    /// Of those that could train together, the ones with which a gang will be whole first: how many there are, and have room.
    fn nearest_berth(&self, demand: &Demand, memory_bytes: u64) -> Option<(Berth, usize, usize)> {
        let free = self.rooms_together(demand, memory_bytes);
        let all = self.holders_together(demand, memory_bytes).into_iter();
        let berths = all.map(|(berth, workers)| {
            let free = free.get(&berth).map_or(0, Vec::len);
            (berth, workers.len(), free)
        });
        let whole = |have: usize| have >= demand.gang as usize;
        berths.max_by_key(|(_, have, free)| if whole(*have) { (true, *free, *have) } else { (false, *have, *free) })
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
        let usual = usual_speed(stage, &self.suited(job, head.spot.1).unwrap_or_default());
        let merit = |id: &WorkerId| self.workers.get(id).map(|worker| worker.merit(stage, usual));
        able.sort_by_key(|id| (self.load(*id), Reverse(merit(id)), *id));
        able.truncate(others);
        able
    }

    /// Places that a stage misses whose turn it is, and for a gang where.
    pub(crate) fn missing(&self, head: &Head) -> (usize, Option<Berth>) {
        if head.demand.gang < 2 {
            return (1, None);
        }
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

    /// The gangs that are served before a stage and wait for workers or for quota.
    pub(crate) fn gangs_before(&self, key: &StageKey) -> Vec<Waiting> {
        let queue = &self.board.queue;
        if !queue.gangs.iter().any(|spot| queue.entries.get(spot).is_some_and(|entry| self.keeps_places(entry))) {
            return Vec::new();
        }
        let before = self.ready().into_iter().take_while(|other| other != key);
        let gangs = before.filter_map(|other| {
            let (job, at) = self.state.record(&other)?;
            let entry = queue.entries.get(&(other.job.clone(), at)).filter(|entry| self.keeps_places(entry))?;
            let owner = &entry.line.1;
            let refusal = Refusal::Behind { job: other.job, stage: other.stage, needs: job.gang(at) };
            let quota_of = self.is_over_quota(owner, entry.demand.gang).then(|| owner.clone());
            Some(Waiting { refusal, quota_of, demand: entry.demand.clone() })
        });
        gangs.collect()
    }

    /// Whether a stage is a gang that others may not pass: workers here could make it whole, and it waits for them or for
    /// its owner's quota.
    fn keeps_places(&self, entry: &Entry) -> bool {
        let gang = entry.demand.gang;
        let hold = || self.board.fleet.hold(&entry.demand).is_some_and(|most| entry.memory_bytes <= most);
        gang > 1 && entry.wait == Wait::Place && !self.is_shut_out(&entry.line.1, gang) && hold()
    }

    /// The workers that will have room for a gang, and the leases that have to go for it: those whose going loses least.
    pub(crate) fn make_rooms(&mut self, head: &Head, claims: &Claims) -> Option<(Vec<WorkerId>, Vec<LeaseId>)> {
        let berths: Vec<_> = self.holders_together(&head.demand, head.memory_bytes).into_values().collect();
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
