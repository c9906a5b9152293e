//! Everything that is looked up, made anew and as the rules say it, against what was kept.
//!
//! It is slow and is for the check that tests run after every event. What it compares with is written the way it would be
//! if nothing were kept: by going through all jobs, stages and workers.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

use graftwork_shared::{
    id::{LeaseId, WorkerId},
    view::Refusal,
};

use super::{JobIndex, ranked::Ranked};
use crate::{
    group::Role,
    job::JobState,
    machine::{Reuse, Scheduler},
    message::StageKey,
    phase::Phase,
    share::{PLACE_MS, device_ms, take_turns},
};

impl JobState {
    /// As [`Scheduler::place`] orders by it: work that is left in a stage and in the longest chain that waits for it.
    fn remaining_chain(&self, position: usize) -> u64 {
        let name = &self.plan.stages[position].name;
        let waiting = self.each().filter(|(_, stage, record)| record.result.is_none() && stage.needs.contains(name));
        let longest = waiting.map(|(next, _, _)| self.remaining_chain(next)).max().unwrap_or(0);
        let tokens = self.plan.stages[position].tokens_per_step();
        self.remaining(position, tokens).saturating_add(longest)
    }
}

fn same(same: bool, what: &str) -> Result<(), String> {
    if same { Ok(()) } else { Err(format!("{what} is not as it should be")) }
}

impl Scheduler {
    /// Whether a turn changed anything that is kept.
    pub(crate) fn has_changed_since(&self, before: &Self) -> bool {
        self.board.has_changed_since(&before.board)
    }

    /// What is wrong with what is kept; `again` is a copy, to make it anew. Without one the deadlines alone are looked at.
    pub(crate) fn check_indexes(&self, again: Option<Self>) -> Result<(), String> {
        same(self.next_deadline() == self.deadline_by_all(), "the next deadline")?;
        let Some(mut again) = again else { return Ok(()) };
        for job in self.state.jobs().values() {
            same(job.index == JobIndex::of(job), "the index of a job")?;
            self.check_job(job)?;
        }
        same(self.state.index == self.state.index_anew(), "the index of the state")?;
        again.remake();
        let board = again.board;
        same(board.queue == self.board.queue, "the queue")?;
        same(board.leases == self.board.leases, "what is looked up of leases")?;
        let mut fleet = board.fleet;
        (fleet.refits, fleet.recounts) = (self.board.fleet.refits, self.board.fleet.recounts);
        same(fleet == self.board.fleet, "what is looked up of workers")?;
        same(self.ready() == self.ready_by_all(), "the order in which stages are served")?;
        self.check_workers()?;
        self.check_joining()
    }

    fn check_job(&self, job: &JobState) -> Result<(), String> {
        for (at, stage, record) in job.each() {
            let waits = !job.waits_for(at).is_empty();
            if job.waits_for_nothing(at) == waits {
                return Err(format!("whether {} waits is not as it should be", stage.name));
            }
            if record.result.is_none() && job.index.chain(at) != job.remaining_chain(at) {
                return Err(format!("the chain of {} is not as it should be", stage.name));
            }
            let gone = record.blobs().chain(stage.blobs()).find(|blob| !self.state.refers_to(*blob));
            if let Some(blob) = gone {
                return Err(format!("{blob} of {} is not referred to", stage.name));
            }
        }
        Ok(())
    }

    /// The ready stages in the order in which they are served.
    fn ready_by_all(&self) -> Vec<StageKey> {
        let mut waiting = BTreeMap::new();
        for (id, job) in self.state.jobs().iter().filter(|(_, job)| job.ended.is_none()) {
            for (position, stage, record) in job.each() {
                if record.phase == Phase::Pending && job.waits_for(position).is_empty() {
                    let of = (Reverse(job.plan.job.priority), job.plan.job.owner.as_str());
                    let rank = (job.order, Reverse(job.remaining_chain(position)), position);
                    let key = StageKey { job: id.clone(), stage: stage.name.clone() };
                    let soon = record.retry_at_ms.is_none_or(|at| at <= self.now_ms);
                    waiting.entry(of).or_insert_with(Vec::new).push((rank, key, soon));
                }
            }
        }
        let mut shares = self.shares_by_all();
        let mut lines: BTreeMap<Reverse<i32>, BTreeMap<(u64, &str), _>> = BTreeMap::new();
        for ((priority, owner), mut stages) in waiting {
            stages.sort();
            let first = stages[0].0.0;
            let line: VecDeque<_> = stages.into_iter().map(|(_, key, soon)| (key, soon)).collect();
            lines.entry(priority).or_default().insert((first, owner), line);
        }
        lines.into_values().flat_map(|lines| take_turns(lines, &mut shares)).collect()
    }

    /// What each owner has had by now, and has.
    fn shares_by_all(&self) -> BTreeMap<&str, u64> {
        let accounts = self.state.accounts.iter().map(|(owner, account)| (owner.as_str(), account.after(self.now_ms)));
        let mut shares: BTreeMap<&str, u64> = accounts.collect();
        for (lease, key) in self.state.live() {
            let Some((job, position)) = self.state.record(key) else { continue };
            let members = self.state.grant(*lease).map_or(0, |grant| 1 + grant.others.len() as u64);
            let joiners = self.groups.get(lease).map_or(0, |group| group.joiners.len() as u64);
            let holders = members + joiners;
            let share = shares.entry(&job.plan.job.owner).or_default();
            *share = share
                .saturating_add(device_ms(&job.stages[position].running))
                .saturating_add(holders.saturating_mul(PLACE_MS));
        }
        shares
    }

    fn deadline_by_all(&self) -> Option<u64> {
        let workers = self.workers.values().map(|worker| worker.deadline_ms(&self.policy));
        let jobs = self.state.jobs().values().filter(|job| job.ended.is_none());
        let retries = jobs.clone().flat_map(|job| job.stages.iter().filter_map(|record| record.retry_at_ms));
        let groups = self.groups.values().flat_map(|group| group.mark().moments);
        let limits = jobs.flat_map(|job| (0..job.stages.len()).filter_map(|at| job.limit_ms(at)));
        let moments = retries.chain(groups).chain(limits);
        workers.chain(moments.filter(|at| *at > self.now_ms)).min()
    }

    /// What is kept of a worker is what it could be asked for.
    fn check_workers(&self) -> Result<(), String> {
        let mut helpers: BTreeSet<(WorkerId, LeaseId)> = BTreeSet::new();
        for (id, worker) in &self.workers {
            let seat = self.board.fleet.seats.get(id).ok_or_else(|| format!("{id} has no seat"))?;
            for bytes in [0, 1, 1 << 20, 1 << 21, 1 << 28, 1 << 30, u64::MAX] {
                let room = worker.takes_work() && worker.has_room(bytes);
                if room != seat.room_bytes.is_some_and(|room| bytes <= room) {
                    return Err(format!("the room of {id} for {bytes} bytes is not as it should be"));
                }
            }
            let loads = worker.leases.iter().filter(|(lease, _)| self.holds(*id, **lease).is_some());
            for (lease, bytes) in loads {
                let of = self.state.live().get(lease).and_then(|key| self.state.record(key));
                if of.is_none_or(|(job, at)| self.state.needed_bytes(job, at) != *bytes) {
                    return Err(format!("what {lease} takes of the room of {id} is not as it should be"));
                }
            }
            if seat.helping.len() != self.helps_in(*id) {
                return Err(format!("how often {id} helps is not as it should be"));
            }
            let helps = |lease: &&LeaseId| {
                let follows = matches!(self.role(*id, **lease), Some(Role::Follows | Role::Joins));
                follows && !self.is_of_gang(*id, **lease)
            };
            helpers.extend(worker.leases.keys().filter(helps).map(|lease| (*id, *lease)));
        }
        if helpers == self.board.fleet.helping { Ok(()) } else { Err("who helps is not as it should be".to_owned()) }
    }

    /// Which groups idle workers could join.
    fn check_joining(&self) -> Result<(), String> {
        for (kind, workers) in &self.board.fleet.idle {
            for worker in workers {
                let open = self.board.leases.open.get(&(kind.0.clone(), kind.1.clone()));
                let kept: BTreeSet<LeaseId> = open.into_iter().flat_map(Ranked::iter).map(|rank| rank.3).collect();
                let bytes = |lease: LeaseId| {
                    let (job, at) = self.state.record(self.state.live().get(&lease)?)?;
                    Some((self.state.needed_bytes(job, at), job))
                };
                for lease in self.state.live().keys() {
                    let barred = self.groups.get(lease).is_some_and(|group| group.bars(*worker, self.now_ms));
                    let kept = kept.contains(lease)
                        && !barred
                        && bytes(*lease).is_some_and(|(bytes, job)| bytes <= kind.2 && self.may_grow(job));
                    if kept != self.may_join(*worker, *lease) {
                        return Err(format!("whether {worker} may join {lease} is not as it should be"));
                    }
                }
            }
        }
        Ok(())
    }

    fn may_grow(&self, job: &JobState) -> bool {
        self.over_quota(job, 1).is_none() && !self.saves_up(&job.plan.job.owner)
    }

    fn may_join(&self, worker: WorkerId, lease: LeaseId) -> bool {
        use crate::{group::MOST_BROKEN, worker::Worker};
        let Some((job, position)) = self.state.live().get(&lease).and_then(|key| self.state.record(key)) else {
            return false;
        };
        let (stage, record) = (&job.plan.stages[position], &job.stages[position]);
        let (Some(known), Some(grant)) = (self.workers.get(&worker), record.phase.grant()) else { return false };
        let quiet = self.groups.get(&lease).is_none_or(|group| {
            group.joiners.is_empty()
                && group.asked_back.is_empty()
                && group.broken < MOST_BROKEN
                && group.lost < self.policy.attempts
                && !group.bars(worker, self.now_ms)
        });
        let steady = grant.members().iter().all(|member| self.workers.get(member).is_some_and(Worker::takes_work));
        let resources = &job.plan.job.resources;
        let most = stage.recipe.training.lanes.min(resources.workers_per_task.unwrap_or(u32::MAX));
        let reaches = |member| self.workers.get(&member).is_some_and(|of| of.info.reached_on == known.info.reached_on);
        let versions = |of: &Worker| (of.info.numerics_version, of.info.exchange);
        let fits = known.info.class == grant.class
            && self.workers.get(&grant.worker).is_none_or(|leader| versions(leader) == versions(known))
            && grant.members().into_iter().all(reaches)
            && (grant.class.device == "cpu") == (resources.device == graftwork_shared::job::Device::Cpu)
            && known.has_room(self.state.needed_bytes(job, position));
        let left = job.pause_step(position).unwrap_or(stage.total_steps).saturating_sub(record.checkpoint_step());
        quiet
            && steady
            && fits
            && self.may_grow(job)
            && u32::try_from(grant.others.len() + 1).is_ok_and(|members| members < most)
            && self.policy.is_worth_joining(left, stage.tokens_per_step())
    }

    /// What is left undone that could be done: no question to the hub is open to be asked, and no job's being stuck is
    /// unknown.
    pub(crate) fn check_done(&self) -> Result<(), String> {
        if self.stopping.is_some() {
            return Ok(()); // the next coordinator asks and tells
        }
        for (id, job) in self.state.jobs().iter().filter(|(_, job)| job.ended.is_none()) {
            let mut refusals = Some(BTreeSet::new());
            for (position, stage, record) in job.each().filter(|(_, _, record)| !record.phase.is_final()) {
                if record.phase != Phase::Pending {
                    refusals = None;
                } else if job.waits_for(position).is_empty() {
                    let refusal = self.choose(job, position);
                    let key = StageKey { job: id.clone(), stage: stage.name.clone() };
                    if refusal == Err(Refusal::LookingForReuse) && self.reuse.get(&key) != Some(&Reuse::Asked) {
                        return Err(format!("the hub was not asked for {key}"));
                    }
                    if refusal.is_err_and(|refusal| refusal.lasts()) {
                        refusals.as_mut().map(|refusals| refusals.insert(position));
                    } else {
                        refusals = None;
                    }
                }
            }
            let stuck = refusals.is_some_and(|refusals| !refusals.is_empty());
            if stuck != self.stuck.contains(id) {
                return Err(format!("whether job {id} is stuck is not known"));
            }
        }
        Ok(())
    }
}
