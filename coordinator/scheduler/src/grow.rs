//! Who helps whom: idle workers join stages that run, and are taken back when a stage of its own waits for them.
//!
//! Tasks spread over workers first; what is left over makes groups larger. A group never has more members than lanes,
//! and changes no published byte (invariant 5): lanes and the tree over them are the recipe's.

use std::{cmp::Reverse, collections::BTreeSet};

use graftwork_shared::{
    id::{LeaseId, WorkerId},
    job::Device,
    view::Refusal,
};

use crate::{
    group::{Joiner, MOST_BROKEN, Role},
    machine::Scheduler,
    message::Command,
    phase::Grant,
    state::JobState,
    worker::Worker,
};

impl Scheduler {
    /// Asks idle workers to join, once no stage waits for a place: the smallest group first, then the one whose work
    /// and all that waits for it is longest.
    pub(crate) fn grow(&mut self) {
        let idle = self.workers.iter().filter(|(_, worker)| worker.takes_work() && worker.leases.is_empty());
        let idle: Vec<WorkerId> = idle.map(|(id, _)| *id).collect();
        if idle.is_empty() || self.stopping.is_some() || self.state.live().is_empty() || self.somebody_waits() {
            return;
        }
        for worker in idle {
            if let Some(lease) = self.best_to_join(worker) {
                self.invite(worker, lease);
            }
        }
    }

    fn somebody_waits(&self) -> bool {
        self.ready().iter().filter_map(|key| self.state.record(key)).any(|(job, position)| {
            matches!(self.choose(job, position), Err(Refusal::Busy { .. } | Refusal::LookingForReuse))
        })
    }

    fn best_to_join(&self, worker: WorkerId) -> Option<LeaseId> {
        let open = self.state.live().iter().filter_map(|(lease, key)| {
            let (job, position) = self.state.record(key)?;
            let grant = job.stages[position].phase.grant()?;
            let order = (Reverse(job.plan.job.priority), job.order, position);
            let rank = (grant.others.len(), Reverse(job.remaining_chain(position)), order);
            self.may_join(worker, grant, (job, position)).then_some((rank, *lease))
        });
        open.min().map(|(_, lease)| lease)
    }

    fn may_join(&self, worker: WorkerId, grant: &Grant, (job, position): (&JobState, usize)) -> bool {
        let (stage, record) = (&job.plan.stages[position], &job.stages[position]);
        let Some(known) = self.workers.get(&worker) else { return false };
        let quiet = self.groups.get(&grant.lease).is_none_or(|group| {
            group.joiner.is_none()
                && group.asked_back.is_empty()
                && group.broken < MOST_BROKEN
                && group.lost < self.policy.attempts
                && !group.bars(worker, self.now_ms)
        });
        let steady = grant.members().iter().all(|member| self.workers.get(member).is_some_and(Worker::takes_work));
        let resources = &job.plan.job.resources;
        let most = stage.recipe.training.lanes.min(resources.workers_per_task.unwrap_or(u32::MAX));
        let done = record.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
        let reaches = |member| self.workers.get(&member).is_some_and(|of| of.info.reached_on == known.info.reached_on);
        let fits = known.info.class == grant.class
            && grant.members().into_iter().all(reaches)
            && (grant.class.device == "cpu") == (resources.device == Device::Cpu)
            && known.has_room(stage.memory_bytes);
        quiet
            && steady
            && fits
            && self.over_quota(job).is_none()
            && u32::try_from(grant.others.len() + 1).is_ok_and(|members| members < most)
            && job.pause_step(position).unwrap_or(stage.total_steps).saturating_sub(done) >= self.policy.grow_steps
    }

    fn invite(&mut self, worker: WorkerId, lease: LeaseId) {
        let Some((job, position)) = self.state.live().get(&lease).and_then(|key| self.state.record(key)) else {
            return;
        };
        let mut assignment = job.next_assignment(position);
        assignment.attempt = assignment.attempt.saturating_sub(1);
        // It takes up the state of the members, and the checkpoint of now may be gone by the time it would read it.
        assignment.resume = None;
        let memory_bytes = job.plan.stages[position].memory_bytes;
        if let Some(known) = self.workers.get_mut(&worker) {
            known.take_in(&job.plan.stages[position]);
            known.leases.insert(lease, memory_bytes);
        }
        self.groups.entry(lease).or_default().joiner = Some(Joiner::new(worker));
        let assignment = Box::new(assignment);
        self.out.commands.push(Command::Assign { worker, lease, assignment, joining: true });
    }

    /// Workers that only help, with the lease in which they do.
    fn helpers(&self) -> Vec<(WorkerId, LeaseId)> {
        let held = self.workers.iter().flat_map(|(id, worker)| worker.leases.keys().map(|lease| (*id, *lease)));
        held.filter(|(worker, lease)| matches!(self.role(*worker, *lease), Some(Role::Follows | Role::Joins))).collect()
    }

    /// Leases that a worker holds only to help.
    pub(crate) fn helps_in(&self, worker: WorkerId) -> usize {
        let helps = |lease: &&LeaseId| matches!(self.role(worker, **lease), Some(Role::Follows | Role::Joins));
        self.workers.get(&worker).map_or(0, |known| known.leases.keys().filter(helps).count())
    }

    /// Asks helpers to give their lease back, once each: one for every ready stage that has no place but theirs, and
    /// whoever was handed a stage of its own.
    pub(crate) fn take_back(&mut self) {
        let helpers = self.helpers();
        if helpers.is_empty() {
            return;
        }
        let mut claimed = BTreeSet::new();
        for key in self.ready() {
            let Some((job, position)) = self.state.record(&key) else { continue };
            let owner = match self.choose(job, position) {
                Err(Refusal::Busy { .. }) => None,
                // Only what its owner gives back makes room for it.
                Err(Refusal::Quota { owner, .. }) => Some(owner),
                Ok(_) | Err(_) => continue,
            };
            let memory_bytes = job.plan.stages[position].memory_bytes;
            let suited = self.suited(job, position).unwrap_or_default();
            let fit = |helper: WorkerId, lease: LeaseId| {
                if owner.as_ref().is_some_and(|owner| self.owner_of(lease) != Some(owner)) {
                    return false;
                }
                let worker = suited.iter().find(|(id, _)| *id == helper).map(|(_, worker)| worker);
                worker.is_some_and(|worker| worker.has_room_without(lease, memory_bytes))
            };
            let able = helpers.iter().filter(|(helper, lease)| !claimed.contains(helper) && fit(*helper, *lease));
            let size = |lease: LeaseId| self.state.grant(lease).map_or(0, |grant| grant.others.len());
            let best = able.min_by_key(|(helper, lease)| {
                (!self.was_asked_back(*helper, *lease), Reverse(size(*lease)), Reverse(*helper))
            });
            if let Some((helper, lease)) = best.copied() {
                claimed.insert(helper);
                self.ask_back(helper, lease, format!("{key} waits for a place"));
            }
        }
        for (helper, lease) in helpers {
            let led = self.workers[&helper].leases.keys().find(|other| self.role(helper, **other) == Some(Role::Leads));
            if let Some(key) = led.and_then(|led| self.state.live().get(led)) {
                let reason = format!("it trains {key} now");
                self.ask_back(helper, lease, reason);
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
        } else if self.groups.entry(lease).or_default().asked_back.insert(worker) {
            self.out.commands.push(Command::Release { worker, lease, reason });
        }
    }
}
