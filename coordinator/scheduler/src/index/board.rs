//! The indexes of the moment, and how the machine follows its own changes in them.
//!
//! Whatever changes a worker, a group or a question to the hub goes through here; facts do so by [`Scheduler::record`].
//! All indexes follow from the state, the workers, the groups, the questions and the time: `check.rs` holds them against
//! one that is made anew.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use graftwork_shared::{
    digest::Digest,
    id::{JobId, LeaseId, WorkerId},
};

use super::{
    fleet::{Fleet, Seat},
    job::Stand,
    leases::{Berth, JoinRank, LackRank, Leases},
    queue::{Entry, Queue, Wait},
    state::{Spot, Touched},
};
use crate::{
    group::{Group, MOST_BROKEN},
    job::JobState,
    machine::{Reuse, Scheduler},
    message::{Arithmetic, StageKey},
    worker::Worker,
};

/// What the machine does after each event, as long as something has changed since it did so last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    TakePlaces,
    Mend,
    Admit,
    HandOut,
    TakeBack,
    AskAgain,
    Preempt,
    Grow,
}

const ROUNDS: usize = Round::Grow as usize + 1;

/// The indexes of the moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Board {
    pub(crate) queue: Queue,
    pub(crate) fleet: Fleet,
    pub(crate) leases: Leases,
    /// Stages that changed since their jobs were last settled.
    pub(crate) unsettled: BTreeMap<JobId, BTreeSet<usize>>,
    /// Jobs that changed since it was last asked whether they are stuck, and how often the fleet had changed then.
    pub(crate) unsure: BTreeSet<JobId>,
    pub(crate) known_refits: u64,
    pub(crate) known_recounts: u64,
    /// Changes so far, and how many there were before each round was last made.
    changes: u64,
    seen: [u64; ROUNDS],
    /// Stages, workers, leases and jobs that were looked at so far.
    pub(crate) work: u64,
}

impl Board {
    /// Whether something has changed since this round was last made, which it is now.
    pub(crate) fn is_due(&mut self, round: Round) -> bool {
        std::mem::replace(&mut self.seen[round as usize], self.changes) != self.changes
    }
}

impl Board {
    /// Whether anything but deadlines has changed.
    pub(crate) fn has_changed_since(&self, before: &Self) -> bool {
        self.changes != before.changes
    }
}

impl Scheduler {
    /// Stages, workers, leases and jobs that decisions have looked at so far. It grows by a bounded number with each event,
    /// whatever else there is. Not in it is what is looked at stage by stage while groups' helpers hold places that an
    /// owner at its quota, or a gang, waits for.
    pub fn work(&self) -> u64 {
        self.board.work
    }

    pub(crate) fn count(&mut self, work: usize) {
        self.board.work += work as u64;
    }

    /// Makes all indexes from nothing.
    pub(crate) fn remake(&mut self) {
        self.board = Board::default();
        for (id, worker) in self.workers.iter().filter(|(_, worker)| !worker.info.key.is_empty()) {
            self.board.fleet.processes.entry(worker.info.key.clone()).or_default().insert(*id);
        }
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            self.seat(worker);
        }
        for lease in self.groups.keys().copied().collect::<Vec<_>>() {
            self.mark(lease);
        }
        for lease in self.state.live().keys().copied().collect::<Vec<_>>() {
            self.weigh(lease);
        }
        for id in self.state.index.active.clone() {
            let stages = self.state.jobs()[&id].stages.len();
            (0..stages).for_each(|at| self.requeue((id.clone(), at)));
            self.board.unsettled.insert(id.clone(), (0..stages).collect());
            self.board.unsure.insert(id);
        }
        self.board.changes += 1;
    }

    /// Follows what a fact changed.
    pub(crate) fn follow(&mut self, touched: Touched) {
        self.board.changes += 1;
        self.board.work += touched.work;
        self.board.unsure.extend(touched.spots.iter().map(|(job, _)| job.clone()));
        for spot in touched.spots {
            let lease = self.state.jobs().get(&spot.0).and_then(|job| job.index.marks.get(spot.1)?.lease);
            lease.into_iter().for_each(|lease| self.weigh(lease));
            self.requeue(spot.clone());
            self.board.unsettled.entry(spot.0).or_default().insert(spot.1);
        }
        let mut workers = touched.workers;
        let groups = touched.leases.iter().filter_map(|lease| self.groups.get(lease));
        // Which of them are a gang's depends on the members.
        workers.extend(groups.flat_map(|group| group.joiners.keys()));
        workers.into_iter().for_each(|worker| self.seat(worker));
        touched.leases.into_iter().for_each(|lease| self.weigh(lease));
        touched.needs.into_iter().for_each(|base_model| self.weigh_again(base_model));
    }

    /// What stages over a base model are expected to need is another number from now on, for those that run too.
    fn weigh_again(&mut self, base_model: Digest) {
        self.count(self.state.index.active.len());
        for id in self.state.index.active.clone() {
            let Some(job) = self.state.jobs().get(&id).filter(|job| job.plan.base_model_digest == base_model) else {
                continue;
            };
            let marks: Vec<_> = job.index.marks.iter().map(|mark| (mark.stand, mark.lease)).enumerate().collect();
            for (at, (stand, lease)) in marks {
                match lease {
                    Some(lease) => self.load_again((&id, at), lease),
                    None if stand == Stand::Pending => self.requeue((id.clone(), at)),
                    None => {}
                }
            }
            self.board.unsure.insert(id);
        }
    }

    /// The holders of a lease have as much less room now as its stage is expected to need.
    fn load_again(&mut self, (id, at): (&JobId, usize), lease: LeaseId) {
        let Some(job) = self.state.jobs().get(id) else { return };
        let needs_bytes = self.state.needed_bytes(job, at);
        let joiners = self.groups.get(&lease).into_iter().flat_map(|group| group.joiners.keys().copied());
        let holders: Vec<WorkerId> = job.index.marks[at].holders.iter().copied().chain(joiners).collect();
        for holder in holders {
            self.edit_worker(holder, |worker| {
                worker.leases.entry(lease).and_modify(|bytes| *bytes = needs_bytes);
            });
        }
        self.weigh(lease);
    }

    /// What waited for a time between the one before and now is due.
    pub(crate) fn pass_time(&mut self, before_ms: u64) {
        let now_ms = self.now_ms;
        if now_ms == before_ms {
            return;
        }
        let due = self.state.index.retries.range(before_ms + 1..=now_ms);
        let due: Vec<Spot> = due.flat_map(|(_, spots)| spots.iter().cloned()).collect();
        let moment = self.board.leases.moments.range((before_ms + 1, LeaseId(0))..).next();
        if !due.is_empty() || moment.is_some_and(|(at, _)| *at <= now_ms) {
            self.board.changes += 1;
        }
        for spot in due {
            self.requeue(spot.clone());
            self.board.unsure.insert(spot.0.clone());
            self.board.unsettled.entry(spot.0).or_default().insert(spot.1);
        }
    }

    /// Changes a worker that is here.
    pub(crate) fn edit_worker<R>(&mut self, worker: WorkerId, change: impl FnOnce(&mut Worker) -> R) -> Option<R> {
        let changed = change(self.workers.get_mut(&worker)?);
        self.seat(worker);
        Some(changed)
    }

    /// Follows a worker that may have changed, or have gone.
    pub(crate) fn seat(&mut self, worker: WorkerId) {
        self.count(1);
        let known = self.workers.get(&worker);
        self.board.fleet.expect(worker, known.map(|known| known.deadline_ms(&self.policy)));
        let seat = known.map(|known| self.seat_of(worker, known));
        let Some(old) = self.board.fleet.seat(worker, seat) else { return };
        self.board.changes += 1;
        let now = self.board.fleet.seats.get(&worker);
        let joined = |seat: Option<&Seat>| seat.map(|seat| (seat.takes_work, seat.stays, Arc::clone(&seat.arithmetic)));
        if joined(old.as_ref()) != joined(now) {
            let leases: Vec<LeaseId> =
                self.workers.get(&worker).map(|known| known.leases.keys().copied().collect()).unwrap_or_default();
            leases.into_iter().for_each(|lease| self.weigh(lease));
        }
    }

    fn seat_of(&self, id: WorkerId, worker: &Worker) -> Seat {
        let known = self.board.fleet.seats.get(&id);
        let takes_work = worker.takes_work();
        let hold_bytes = if worker.info.memory_bytes == 0 { u64::MAX } else { worker.info.memory_bytes };
        let used = worker.leases.values().fold(0_u64, |used, bytes| used.saturating_add(*bytes));
        let left = if hold_bytes == u64::MAX { Some(u64::MAX) } else { hold_bytes.checked_sub(used) };
        let free = (worker.leases.len() as u64) < u64::from(worker.info.slots);
        let helps = |lease: &LeaseId| self.helps(id, *lease);
        Seat {
            arithmetic: known
                .filter(|known| known.arithmetic.is_of(&worker.info))
                .map_or_else(|| Arc::new(worker.info.arithmetic()), |known| Arc::clone(&known.arithmetic)),
            reached_on: known
                .map_or_else(|| Arc::from(worker.info.reached_on.as_str()), |known| Arc::clone(&known.reached_on)),
            takes_work,
            stays: !worker.draining && worker.kept.is_none(),
            hold_bytes,
            room_bytes: left.filter(|_| free && takes_work),
            idle: takes_work && worker.leases.is_empty() && worker.info.slots > 0,
            helping: worker.leases.keys().copied().filter(helps).collect(),
            coming: worker.leases.keys().any(|lease| self.goes(id, *lease)),
        }
    }

    /// Changes the group of a live lease.
    pub(crate) fn edit_group<R>(&mut self, lease: LeaseId, change: impl FnOnce(&mut Group) -> R) -> R {
        let changed = change(self.groups.entry(lease).or_default());
        self.mark(lease);
        self.weigh(lease);
        changed
    }

    /// Forgets a group.
    pub(crate) fn remove_group(&mut self, lease: LeaseId) -> Option<Group> {
        let group = self.groups.remove(&lease);
        self.mark(lease);
        self.weigh(lease);
        group
    }

    fn mark(&mut self, lease: LeaseId) {
        self.count(1);
        let mark = self.groups.get(&lease).map(Group::mark).unwrap_or_default();
        let (joiners, asked_back) = (mark.joiners.clone(), mark.asked_back.clone());
        let Some(old) = self.board.leases.mark(lease, mark) else { return };
        self.board.changes += 1;
        let key = self.state.live().get(&lease).and_then(|key| self.state.jobs().get(&key.job));
        if let Some(job) = key.filter(|_| old.joiners.len() != joiners.len()) {
            let owner = Arc::clone(&job.index.shape);
            self.board.leases.count_joiners(&owner.owner, (old.joiners.len(), joiners.len()));
        }
        let mut workers: BTreeSet<WorkerId> = old.asked_back.symmetric_difference(&asked_back).copied().collect();
        if old.joiners != joiners {
            // Who of a gang may go depends on the others.
            workers.extend(old.joiners.union(&joiners));
        }
        workers.into_iter().for_each(|worker| self.seat(worker));
    }

    /// Follows whether a lease's group could have one more member.
    pub(crate) fn weigh(&mut self, lease: LeaseId) {
        self.count(1);
        let (berth, lack) = (self.berth_of(lease), self.lack_of(lease));
        let changed = [self.board.leases.berth(lease, berth), self.board.leases.lack(lease, lack)];
        if changed.contains(&true) {
            self.board.changes += 1;
        }
    }

    /// How many members a running gang lacks, which was promised that many; those that leave do not count.
    fn lack_of(&self, lease: LeaseId) -> Option<(LackRank, usize)> {
        let (job, at) = self.state.record(self.state.live().get(&lease)?)?;
        let (gang, grant) = (job.gang(at) as usize, job.stages[at].phase.grant()?);
        let left = job.pause_step(at).unwrap_or(job.plan.stages[at].total_steps);
        let left = left.saturating_sub(job.stages[at].checkpoint_step());
        let worth = self.policy.is_worth_joining(left, job.index.shape.tokens[at]);
        if gang < 2 || !worth || (grant.class.device == "cpu") != job.is_for_cpu() {
            return None;
        }
        let group = self.groups.get(&lease);
        let grows =
            |group: &Group| group.broken < MOST_BROKEN && group.lost < self.policy.attempts && group.giving.is_none();
        // What an earlier version's facts do not say of the leader, it says when it is back.
        let tells = |leader: &Seat| leader.takes_work || leader.arithmetic.is_known();
        if !group.is_none_or(grows) || !self.board.fleet.seats.get(&grant.worker).is_some_and(tells) {
            return None;
        }
        let leaves = |worker: &WorkerId| {
            let stays = self.board.fleet.seats.get(worker).is_some_and(|seat| seat.stays);
            !stays || group.is_some_and(|group| group.asked_back.contains(worker))
        };
        let joiners = group.into_iter().flat_map(|group| group.joiners.keys());
        let members = grant.members();
        let here = members.iter().chain(joiners).filter(|worker| !leaves(worker)).count();
        let rank = ((Reverse(job.plan.job.priority), job.order, at), lease);
        Some((rank, gang.checked_sub(here).filter(|missing| *missing > 0)?))
    }

    /// All of whether a worker may join that is no matter of the worker, and of its owner's quota.
    fn berth_of(&self, lease: LeaseId) -> Option<(Berth, JoinRank, u64)> {
        let (job, at) = self.state.record(self.state.live().get(&lease)?)?;
        let (stage, record) = (&job.plan.stages[at], &job.stages[at]);
        let grant = record.phase.grant()?;
        let quiet = self.groups.get(&lease).is_none_or(|group| {
            group.joiners.is_empty()
                && group.asked_back.is_empty()
                && group.broken < MOST_BROKEN
                && group.lost < self.policy.attempts
        });
        let fits = u32::try_from(grant.others.len() + 1).is_ok_and(|members| members < job.most_workers(at))
            && (grant.class.device == "cpu") == job.is_for_cpu();
        let left = job.pause_step(at).unwrap_or(stage.total_steps).saturating_sub(record.checkpoint_step());
        if !quiet || !fits || !self.policy.is_worth_joining(left, job.index.shape.tokens[at]) {
            return None;
        }
        let leader = self.board.fleet.seats.get(&grant.worker)?;
        let steady = |seat: &Seat| seat.takes_work && seat.reached_on == leader.reached_on;
        let all = grant.members().iter().all(|member| self.board.fleet.seats.get(member).is_some_and(steady));
        let order = (Reverse(job.plan.job.priority), job.order, at);
        let rank = (grant.others.len(), Reverse(job.index.chain(at)), order, lease);
        let arithmetic = if leader.arithmetic.class == grant.class {
            Arc::clone(&leader.arithmetic)
        } else {
            Arc::new(Arithmetic { class: grant.class.clone(), ..*leader.arithmetic })
        };
        all.then(|| ((arithmetic, Arc::clone(&leader.reached_on)), rank, self.state.needed_bytes(job, at)))
    }

    /// Follows whether a stage is ready, and what it waits for.
    pub(crate) fn requeue(&mut self, spot: Spot) {
        self.count(1);
        let entry = self.state.jobs().get(&spot.0).and_then(|job| self.entry_of(&spot.0, job, spot.1));
        if self.board.queue.put(spot, entry) {
            self.board.changes += 1;
        }
    }

    fn entry_of(&self, id: &JobId, job: &JobState, at: usize) -> Option<Entry> {
        let mark = job.index.marks.get(at)?;
        if mark.stand != Stand::Pending || !job.is_ready(at) {
            return None;
        }
        let (stage, record) = (&job.plan.stages[at], &job.stages[at]);
        let asked = || self.reuse.get(&StageKey { job: id.clone(), stage: stage.name.clone() });
        let wait = if record.retry_at_ms.is_some_and(|until| until > self.now_ms) {
            Wait::Rest
        } else if record.attempts > 0 || record.checkpoint.is_some() {
            Wait::Place
        } else {
            match asked() {
                None => Wait::Question,
                Some(Reuse::Asked) => Wait::Answer,
                Some(Reuse::Answered) => Wait::Place,
            }
        };
        Some(Entry {
            line: (Reverse(job.index.shape.priority), job.index.shape.owner.clone()),
            rank: (job.order, Reverse(job.index.chain(at)), at),
            demand: job.demand(at),
            memory_bytes: self.state.needed_bytes(job, at),
            wait,
        })
    }

    /// Notes what is known of the question to the hub.
    pub(crate) fn set_reuse(&mut self, key: &StageKey, reuse: Option<Reuse>) {
        match reuse {
            Some(reuse) => drop(self.reuse.insert(key.clone(), reuse)),
            None => drop(self.reuse.remove(key)),
        }
        if let Some((_, at)) = self.state.record(key) {
            self.requeue((key.job.clone(), at));
            self.board.unsure.insert(key.job.clone());
        }
    }
}
