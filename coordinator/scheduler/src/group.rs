//! Groups: a lease that several workers hold, which train its stage together over its lanes.
//!
//! A lease begins with one worker. Who joins loads everything first and is a member only then; who is lost is left out,
//! and the others go on: one stage, one lease, one speaker (rank 0), so there is still one who can commit (invariant 2).
//! The members are facts. What is of the moment (who loads, whose group broke) is lost with the coordinator, as the
//! lease is. See `grow.rs` for who is asked to join and who is asked to leave.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{
    assignment::{Blame, Failure},
    event::EventKind,
    id::{LeaseId, WorkerId},
};

use crate::{
    fact::Fact,
    index::{GroupMark, Round},
    machine::Scheduler,
    merit::Chosen,
    message::{Command, StageKey},
    pace::Paces,
    phase::{Grant, Phase},
    preempt::Giving,
    stall::Waiting,
    state::{State, grows, not_live},
    tail::HoldsUp,
};

/// Groups that broke in a row, without a checkpoint accepted between them, after which their members are parted
/// (`stall.rs`). Three, since a member that is killed breaks one group, and one that comes back too early another.
pub(crate) const MOST_BROKEN: u32 = 3;

/// What a worker is to a live lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Rank 0: it speaks for the stage.
    Leads,
    /// Another member.
    Follows,
    /// It was asked to join, and no group with it was formed yet.
    Joins,
}

/// What is known of a live lease's group for the moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Group {
    /// Workers on their way into it, and whether they have loaded everything. A gang starts with several.
    pub(crate) joiners: BTreeMap<WorkerId, bool>,
    /// Members, or joiners, that were asked to give the lease back.
    pub(crate) asked_back: BTreeSet<WorkerId>,
    /// Groups that broke since the last accepted checkpoint.
    pub(crate) broken: u32,
    /// The group of now broke.
    breaking: Option<Breaking>,
    /// Who waits in it.
    pub(crate) waiting: Waiting,
    /// Who failed in it.
    barred: BTreeMap<WorkerId, Bar>,
    /// Why the lease began where it did.
    pub(crate) chosen: Option<Chosen>,
    /// Its holders were asked to give it back for another stage.
    pub(crate) giving: Option<Giving>,
    /// What its holders last told of their pace.
    pub(crate) paces: Paces,
    /// Members lost since the last accepted checkpoint.
    pub(crate) lost: u32,
    /// Members, and joiners, that were asked to help before other stages of the job started, and why.
    pub(crate) needed: BTreeSet<WorkerId>,
    pub(crate) holds_up: Option<HoldsUp>,
}

/// Why the group of now broke, and until when it is waited for the cause to be seen.
#[derive(Clone, Debug, PartialEq)]
struct Breaking {
    until_ms: u64,
    reason: String,
}

/// How often a worker failed in a group, or was parted from it, and until when it is not asked again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bar {
    failures: u32,
    parted: u32,
    until_ms: u64,
}

/// A group to form.
pub(crate) struct Forming {
    pub(crate) members: Vec<WorkerId>,
    pub(crate) at_once: bool,
    pub(crate) reason: String,
}

impl Group {
    fn joins(&self, worker: WorkerId) -> bool {
        self.joiners.contains_key(&worker)
    }

    pub(crate) fn is_breaking(&self) -> bool {
        self.breaking.is_some()
    }

    pub(crate) fn bars(&self, worker: WorkerId, now_ms: u64) -> bool {
        self.barred.get(&worker).is_some_and(|bar| bar.until_ms > now_ms)
    }

    /// A checkpoint was accepted: whatever failed before did not keep the stage from moving on.
    pub(crate) fn progressed(&mut self) {
        self.broken = 0;
        self.lost = 0;
    }

    /// What is looked up of it.
    pub(crate) fn mark(&self) -> GroupMark {
        GroupMark {
            joiners: self.joiners.keys().copied().collect(),
            prepared: self.joiners.values().any(|prepared| *prepared),
            breaking: self.breaking.is_some(),
            giving: self.giving.is_some(),
            asked_back: self.asked_back.clone(),
            moments: self.deadlines_ms().collect(),
        }
    }

    fn deadlines_ms(&self) -> impl Iterator<Item = u64> {
        let breaking = self.breaking.iter().map(|breaking| breaking.until_ms);
        let giving = self.giving.iter().map(Giving::until_ms);
        breaking.chain(giving).chain(self.barred.values().map(|bar| bar.until_ms))
    }
}

impl State {
    /// Who holds a live lease.
    pub(crate) fn grant(&self, lease: LeaseId) -> Option<&Grant> {
        let (job, position) = self.record(self.live().get(&lease)?)?;
        job.stages[position].phase.grant()
    }

    pub(crate) fn fold_group(
        &mut self,
        lease: LeaseId,
        epoch: u64,
        (members, shares): (&[WorkerId], &[u32]),
        lost: Option<&Failure>,
    ) -> Result<(), String> {
        let key = self.live().get(&lease).cloned().ok_or_else(|| not_live(lease))?;
        let (newest, distinct) = (self.last_worker(), members.iter().collect::<BTreeSet<_>>().len());
        let Some((first, others)) = members.split_first() else { return Err("a group without members".to_owned()) };
        if distinct != members.len() || members.iter().any(|member| *member > newest) {
            return Err(format!("a group of workers that are not known, or twice: {members:?}"));
        }
        if !shares.is_empty() && shares.len() != members.len() {
            return Err(format!("shares {shares:?} of {} members", members.len()));
        }
        let record = self.stage(&key)?;
        let Phase::Running(grant) = &mut record.phase else { return Err(not_live(lease)) };
        grows("epoch", epoch, grant.epoch)?;
        (grant.worker, grant.others, grant.epoch) = (*first, others.to_vec(), epoch);
        grant.shares = shares.to_vec();
        record.failures.extend(lost.cloned());
        Ok(())
    }
}

impl Scheduler {
    /// What a worker that is here is to a lease; `None` where it holds nothing of it.
    pub(crate) fn role(&self, worker: WorkerId, lease: LeaseId) -> Option<Role> {
        let grant = self.state.grant(lease).filter(|_| self.workers.contains_key(&worker))?;
        if grant.worker == worker {
            return Some(Role::Leads);
        }
        let joins = self.groups.get(&lease).is_some_and(|group| group.joins(worker));
        if grant.others.contains(&worker) { Some(Role::Follows) } else { joins.then_some(Role::Joins) }
    }

    /// Whoever was asked to join has loaded everything.
    pub(crate) fn on_prepared(&mut self, worker: WorkerId, lease: LeaseId) {
        if self.on_lease_message(worker, lease).is_none() {
            return;
        }
        if self.groups.get(&lease).is_some_and(|group| group.joins(worker)) {
            self.edit_group(lease, |group| group.joiners.insert(worker, true));
        }
    }

    /// Forms the groups whose joiners are prepared, where all can hear of it.
    pub(crate) fn admit_prepared(&mut self) {
        if !self.board.is_due(Round::Admit) {
            return;
        }
        self.count(self.board.leases.prepared.len());
        let prepared = self.board.leases.prepared.iter().filter_map(|lease| {
            let group = self.groups.get(lease)?;
            let ready =
                group.joiners.iter().filter(|(joiner, prepared)| **prepared && !group.asked_back.contains(joiner));
            let ready: Vec<WorkerId> = ready.map(|(joiner, _)| *joiner).collect();
            (!ready.is_empty() && group.breaking.is_none()).then_some((*lease, ready))
        });
        for (lease, joiners) in prepared.collect::<Vec<_>>() {
            let (Some(key), Some(grant)) = (self.state.live().get(&lease).cloned(), self.state.grant(lease)) else {
                continue;
            };
            let mut members = grant.members();
            members.extend(&joiners);
            if members.iter().any(|member| self.is_apart(*member)) {
                continue;
            }
            self.edit_group(lease, |group| group.joiners.retain(|joiner, _| !joiners.contains(joiner)));
            let needed = joiners.iter().any(|joiner| self.is_needed(*joiner, lease));
            let why = self.holds_up(lease).filter(|_| needed).map(|holds_up| format!(", as the stage {holds_up}"));
            let reason = format!("{} joined{}", names(&joiners), why.unwrap_or_default());
            self.form(&key, lease, Forming { members, at_once: false, reason });
        }
    }

    /// The group of this epoch failed for a member. Of an older one nothing is heard.
    pub(crate) fn on_broken(&mut self, (worker, lease): (WorkerId, LeaseId), epoch: u64, reason: &str) {
        if self.on_lease_message(worker, lease).is_none() || self.role(worker, lease) == Some(Role::Joins) {
            return;
        }
        let now = self.state.grant(lease).is_some_and(|grant| grant.epoch == epoch && !grant.others.is_empty());
        let until_ms = self.now_ms + self.policy.broken_wait_ms;
        self.edit_group(lease, |group| {
            if now && group.breaking.is_none() {
                group.breaking = Some(Breaking { until_ms, reason: format!("{worker} says: {reason}") });
            }
        });
    }

    /// Forms broken groups again: at once without whoever is apart, and with the same members if nobody is seen to be
    /// the cause in time.
    pub(crate) fn mend_groups(&mut self) {
        if !self.board.is_due(Round::Mend) {
            return;
        }
        self.count(self.board.leases.breaking.len());
        let breaking = self.board.leases.breaking.iter();
        let broken = breaking.filter_map(|lease| Some((*lease, self.groups.get(lease)?.breaking.clone()?)));
        for (lease, breaking) in broken.collect::<Vec<_>>() {
            if let Some(key) = self.state.live().get(&lease).cloned() {
                self.mend(&key, lease, &breaking);
            }
        }
    }

    fn mend(&mut self, key: &StageKey, lease: LeaseId, breaking: &Breaking) {
        let members = self.state.grant(lease).map(Grant::members).unwrap_or_default();
        let (apart, here): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| self.is_apart(*member));
        if here.is_empty() || (apart.is_empty() && breaking.until_ms > self.now_ms) {
            return;
        }
        let mut reason = format!("the group broke: {}", breaking.reason);
        if !apart.is_empty() {
            reason = format!("{} cannot be reached, and {reason}", names(&apart));
        }
        let parts = self.edit_group(lease, |group| {
            group.lost += u32::try_from(apart.len()).unwrap_or(u32::MAX);
            // A loss that is seen explains itself.
            group.broken += u32::from(apart.is_empty());
            group.broken >= MOST_BROKEN && (here.len() > 1 || !group.joiners.is_empty())
        });
        let members = if parts {
            let (stay, left_out) = self.part(lease, &here);
            reason = format!("{MOST_BROKEN} groups in a row broke without a checkpoint: {left_out}; {reason}");
            stay
        } else {
            here
        };
        self.form(key, lease, Forming { members, at_once: true, reason });
    }

    /// A worker that holds a lease failed, or did what it must not.
    pub(crate) fn lose_holder(&mut self, key: &StageKey, (worker, lease): (WorkerId, LeaseId), failure: Failure) {
        let reason = format!("{worker} failed: {}", failure.message);
        if self.role(worker, lease) != Some(Role::Joins) {
            return self.lose_member(key, (worker, lease), failure, reason);
        }
        // The stage goes on without it, and whatever it found, the members find too.
        self.drop_joiner(worker, lease);
        self.bar(worker, lease);
        self.tell(&key.job, Some(&key.stage), EventKind::JoinFailed { worker, reason: failure.message });
    }

    /// A member is lost: the others go on, and nothing counts against the stage. The last one's end is the attempt's end,
    /// and so is the user's error. A stage that kills its members one by one gets no further ones (`grow.rs`), so its last
    /// one's end comes.
    pub(crate) fn lose_member(
        &mut self,
        key: &StageKey,
        (worker, lease): (WorkerId, LeaseId),
        failure: Failure,
        reason: String,
    ) {
        let members = self.members_but(lease, worker);
        if members.is_empty() || failure.blame == Blame::User {
            return self.fail_attempt(key, (worker, lease), failure);
        }
        self.edit_group(lease, |group| group.lost += 1);
        self.bar(worker, lease);
        self.form(key, lease, Forming { members, at_once: true, reason });
    }

    /// A holder leaves without blame.
    pub(crate) fn leave(&mut self, key: &StageKey, (worker, lease): (WorkerId, LeaseId), reason: String) {
        if self.role(worker, lease) == Some(Role::Joins) {
            // Whoever does not want to would say the same again at once.
            if !self.was_asked_back(worker, lease) {
                self.bar(worker, lease);
            }
            return self.drop_joiner(worker, lease);
        }
        let members = self.members_but(lease, worker);
        if members.is_empty() {
            self.keep_cost(lease);
            if self.end_for_another(lease, Some(worker)) {
                return;
            }
            self.dismiss(lease, Some(worker));
            self.record(Fact::LeaseReleased { lease, reason, at_ms: self.now_ms });
        } else {
            // Those that changed over with it wait already, and those that wait for it to come must not.
            self.form(key, lease, Forming { members, at_once: true, reason });
        }
    }

    pub(crate) fn drop_joiner(&mut self, worker: WorkerId, lease: LeaseId) {
        if self.groups.get(&lease).is_some_and(|group| group.joins(worker)) {
            self.edit_group(lease, |group| {
                group.joiners.remove(&worker);
                group.asked_back.remove(&worker);
                group.needed.remove(&worker);
            });
        }
    }

    /// A lease ends: all that hold it, but for one, drop the work.
    pub(crate) fn dismiss(&mut self, lease: LeaseId, but: Option<WorkerId>) {
        self.costs.remove(&lease);
        let joiners = self.remove_group(lease).map(|group| group.joiners).unwrap_or_default();
        let members = self.state.grant(lease).map(Grant::members).unwrap_or_default();
        for worker in members.into_iter().chain(joiners.into_keys()) {
            if Some(worker) != but && self.workers.contains_key(&worker) {
                self.out.commands.push(Command::Fence { worker, lease });
            }
        }
    }

    /// Tells a member its place.
    pub(crate) fn say_place(&mut self, worker: WorkerId, lease: LeaseId, at_once: bool) {
        let Some((job, at)) = self.state.live().get(&lease).and_then(|key| self.state.record(key)) else { return };
        let checkpointed = job.stages[at].checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
        let Some(grant) = job.stages[at].phase.grant() else { return };
        let (epoch, members, shares) = (grant.epoch, grant.members(), grant.shares.clone());
        let Some(rank) = members.iter().position(|member| *member == worker) else { return };
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (rank, ranks) = (number(rank), number(members.len()));
        self.out.commands.push(Command::Form { worker, lease, epoch, rank, ranks, at_once, checkpointed, shares });
    }

    pub(crate) fn form(&mut self, key: &StageKey, lease: LeaseId, forming: Forming) {
        let Forming { members, at_once, reason } = forming;
        let before = self.state.grant(lease).map(Grant::members).unwrap_or_default();
        let epoch = self.state.grant(lease).map_or(0, |grant| grant.epoch) + 1;
        let shape = self.shape(lease, &members);
        let (shares, at_ms) = (shape.shares.clone(), self.now_ms);
        self.record(Fact::GroupFormed { lease, epoch, members: members.clone(), shares, lost: None, at_ms });
        self.shaped(lease, &members, &shape);
        self.edit_group(lease, |group| {
            group.breaking = None;
            group.waiting.on_formed((epoch, at_once), &members, &before);
            let joiners = &group.joiners;
            let holds = |worker: &WorkerId| members.contains(worker) || joiners.contains_key(worker);
            group.asked_back.retain(holds);
            group.needed.retain(holds);
        });
        for worker in &members {
            self.say_place(*worker, lease, at_once);
        }
        self.tell(&key.job, Some(&key.stage), EventKind::GroupFormed { epoch, members, reason });
    }

    /// The same members with other lanes.
    pub(crate) fn form_again(&mut self, key: &StageKey, lease: LeaseId, members: Vec<WorkerId>, reason: String) {
        self.form(key, lease, Forming { members, at_once: false, reason });
    }

    /// A worker is not asked into the group for so long.
    pub(crate) fn leave_out(&mut self, worker: WorkerId, lease: LeaseId, wait_ms: u64) {
        let until_ms = self.now_ms + wait_ms;
        self.edit_group(lease, |group| {
            let bar = group.barred.entry(worker).or_default();
            bar.until_ms = bar.until_ms.max(until_ms);
        });
    }

    /// A worker is parted from a group that cannot work with it; gives how often it was before.
    pub(crate) fn count_parted(&mut self, worker: WorkerId, lease: LeaseId) -> u32 {
        self.edit_group(lease, |group| {
            let bar = group.barred.entry(worker).or_default();
            bar.parted += 1;
            bar.parted - 1
        })
    }

    /// Who failed in a group is asked again after a wait that grows, as the next attempt of a stage does.
    fn bar(&mut self, worker: WorkerId, lease: LeaseId) {
        let now_ms = self.now_ms;
        let failures = self.groups.get(&lease).and_then(|group| Some(group.barred.get(&worker)?.failures));
        let wait_ms = self.policy.wait_ms(failures.unwrap_or(0));
        self.edit_group(lease, |group| {
            let bar = group.barred.entry(worker).or_default();
            bar.until_ms = now_ms + wait_ms;
            bar.failures += 1;
        });
    }

    fn members_but(&self, lease: LeaseId, worker: WorkerId) -> Vec<WorkerId> {
        let members = self.state.grant(lease).map(Grant::members).unwrap_or_default();
        members.into_iter().filter(|member| *member != worker).collect()
    }

    pub(crate) fn is_apart(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_none_or(|worker| worker.apart.is_some())
    }
}

pub(crate) fn names(workers: &[WorkerId]) -> String {
    workers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
