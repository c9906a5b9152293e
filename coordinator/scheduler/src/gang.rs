//! Gangs: stages that start on several workers at once, or not at all.
//!
//! A gang's places are found in one decision. While there are too few, nobody that is served behind it gets a place that
//! could be one of them, so it starts once enough of what runs has ended, and two gangs never wait for each other with
//! half of their places each. Once it runs, its group changes as any other does: who is lost is left out, and the stage
//! goes on. Only, its members are not taken back for stages that wait.

use std::{cell::RefCell, cmp::Reverse, collections::BTreeSet};

use graftwork_shared::{
    id::{LeaseId, WorkerId},
    view::Refusal,
};

use crate::{
    index::{Demand, Entry, Seat, Wait},
    job::JobState,
    machine::Scheduler,
    merit::usual_speed,
    message::StageKey,
    phase::Grant,
    preempt::Claims,
    serve::Head,
};

/// Kinds of devices of which places are kept for gangs, while stages are handed out.
#[derive(Default)]
pub(crate) struct KeptPlaces(RefCell<BTreeSet<bool>>);

impl KeptPlaces {
    pub(crate) fn from(&self, demand: &Demand) -> bool {
        self.0.borrow().contains(&demand.cpu)
    }

    pub(crate) fn keep_for(&self, demand: &Demand) {
        self.0.borrow_mut().insert(demand.cpu);
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

    /// Whether a stage's turn finds all the workers that it starts on.
    pub(crate) fn fits_together(&self, head: &Head) -> bool {
        head.demand.gang < 2 || self.board.fleet.room(&head.demand).is_some_and(|most| head.memory_bytes <= most)
    }

    /// Workers with room for a stage; for a gang those among which it can be whole.
    pub(crate) fn roomy(&mut self, head: &Head) -> Vec<WorkerId> {
        if head.demand.gang < 2 {
            return self.board.fleet.roomy(&head.demand, head.memory_bytes).collect();
        }
        self.count(self.board.fleet.seats.len());
        let whole = self.rooms_together(&head.demand, head.memory_bytes).into_iter();
        whole.filter(|workers| workers.len() >= head.demand.gang as usize).flatten().collect()
    }

    /// Workers with room for so much, by who could train together.
    fn rooms_together(&self, demand: &Demand, memory_bytes: u64) -> Vec<Vec<WorkerId>> {
        let has_room = |seat: &Seat| seat.room_bytes.filter(|room| memory_bytes <= *room);
        let berths = self.board.fleet.together(demand, has_room).into_values();
        berths.map(|workers| workers.into_iter().map(|(_, worker)| worker).collect()).collect()
    }

    /// The other workers that a stage starts on: as its leader was chosen, of those that can reach it.
    pub(crate) fn companions(&mut self, head: &Head, leader: WorkerId) -> Vec<WorkerId> {
        let others = (head.demand.gang as usize).saturating_sub(1);
        if others == 0 {
            return Vec::new();
        }
        let berths = self.rooms_together(&head.demand, head.memory_bytes).into_iter();
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

    /// Places that a stage misses whose turn it is.
    pub(crate) fn missing(&self, head: &Head) -> usize {
        if head.demand.gang < 2 {
            return 1;
        }
        let most = self.rooms_together(&head.demand, head.memory_bytes).iter().map(Vec::len).max().unwrap_or(0);
        (head.demand.gang as usize).saturating_sub(most)
    }

    /// Why a gang does not start: too few workers together.
    pub(crate) fn short_of_gang(&self, job: &JobState, at: usize) -> Option<Refusal> {
        let needs = job.gang(at);
        if needs < 2 {
            return None;
        }
        let memory_bytes = job.plan.stages[at].memory_bytes;
        let entry = self.board.queue.entries.get(&(job.plan.id(), at))?;
        let most = |workers: Vec<usize>| u32::try_from(workers.into_iter().max().unwrap_or(0)).unwrap_or(u32::MAX);
        let held = |seat: &Seat| Some(seat.hold_bytes).filter(|hold| memory_bytes <= *hold);
        let have = most(self.board.fleet.together(&entry.demand, held).values().map(Vec::len).collect());
        let free = most(self.rooms_together(&entry.demand, memory_bytes).iter().map(Vec::len).collect());
        (free < needs).then_some(Refusal::Gang { needs, free, have })
    }

    /// Why a stage does not start for which there is room: a gang is served before it.
    pub(crate) fn behind_gang(&self, key: &StageKey, job: &JobState, at: usize) -> Option<Refusal> {
        if self.board.queue.gangs.is_empty() {
            return None;
        }
        let cpu = self.board.queue.entries.get(&(job.plan.id(), at))?.demand.cpu;
        let waits = |entry: &Entry| {
            let (demand, fleet) = (&entry.demand, &self.board.fleet);
            let within = |most: Option<u64>| most.is_some_and(|most| entry.memory_bytes <= most);
            entry.wait == Wait::Place
                && demand.cpu == cpu
                && demand.gang > 1
                && !self.is_over_quota(&entry.line.1, demand.gang)
                && within(fleet.hold(demand))
                && !within(fleet.room(demand))
        };
        let before = self.ready().into_iter().take_while(|other| other != key);
        let mut gangs = before.filter(|other| {
            let spot = self.state.record(other).map(|(_, position)| (other.job.clone(), position));
            spot.and_then(|spot| self.board.queue.entries.get(&spot)).is_some_and(waits)
        });
        let first = gangs.next()?;
        let needs = self.state.record(&first).map_or(1, |(job, position)| job.gang(position));
        Some(Refusal::Behind { job: first.job, stage: first.stage, needs })
    }

    /// The workers that will have room for a gang, and the leases that have to go for it: those whose going loses least.
    pub(crate) fn make_rooms(&mut self, head: &Head, claims: &Claims) -> Option<(Vec<WorkerId>, Vec<LeaseId>)> {
        let held = |seat: &Seat| Some(seat.hold_bytes).filter(|hold| head.memory_bytes <= *hold);
        let berths: Vec<Vec<WorkerId>> = self
            .board
            .fleet
            .together(&head.demand, held)
            .into_values()
            .map(|workers| workers.into_iter().map(|(_, worker)| worker).collect())
            .collect();
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
