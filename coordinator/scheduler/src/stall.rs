//! Groups that stand still, all members of which wait for each other while nobody computes; and who goes on where a group
//! cannot work.
//!
//! Heartbeats are good and no connection broke, so nothing else tells: two members cannot reach each other, while both
//! reach the coordinator. Each member says so itself, once it has waited for longer than a message takes, and again with
//! each heartbeat; a member that computes says nothing, so waiting for it is never a fault, however long.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::id::{LeaseId, WorkerId};

use crate::{
    group::{Forming, MOST_BROKEN, Role},
    machine::Scheduler,
    message::{Command, StageKey},
};

/// Who was left out of a group that could not work is not asked again for so long; doubles each time.
const LEFT_OUT_MS: u64 = 60_000;

/// How often it doubles at most.
const DOUBLINGS: u32 = 6;

/// What is known of who waits in a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Waiting {
    /// Members that wait, by their last words, and after which update.
    members: BTreeMap<WorkerId, u64>,
    /// The last group that was to begin at once: waits in an older one have ended by now.
    since_epoch: u64,
    /// Members that came since the last update that was made together.
    newcomers: BTreeSet<WorkerId>,
}

impl Waiting {
    /// It moves, or says so again.
    pub(crate) fn on_heartbeat(&mut self, worker: WorkerId) {
        self.members.remove(&worker);
    }

    /// A member reports an update of the group of now, so all members made it.
    pub(crate) fn on_update(&mut self) {
        self.newcomers.clear();
    }

    /// A group is formed of these members.
    pub(crate) fn on_formed(&mut self, (epoch, at_once): (u64, bool), members: &[WorkerId], before: &[WorkerId]) {
        self.members.clear();
        if at_once {
            self.since_epoch = epoch;
        }
        self.newcomers.extend(members.iter().filter(|member| !before.contains(member)));
        self.newcomers.retain(|worker| members.contains(worker));
    }
}

impl Scheduler {
    /// A member has nothing to do but wait for the others, for longer than any message takes.
    pub(crate) fn on_waits(&mut self, (worker, lease): (WorkerId, LeaseId), epoch: u64, step: u64) {
        let Some(key) = self.on_lease_message(worker, lease) else { return };
        if self.role(worker, lease) == Some(Role::Joins) {
            return;
        }
        let Some(grant) = self.state.grant(lease).filter(|grant| !grant.others.is_empty()) else { return };
        let (members, now) = (grant.members(), grant.epoch);
        let group = self.groups.entry(lease).or_default();
        if epoch > now || epoch < group.waiting.since_epoch {
            return;
        }
        group.waiting.members.insert(worker, step);
        let all = members.iter().all(|member| group.waiting.members.contains_key(member));
        if all && !group.is_breaking() && !members.iter().any(|member| self.is_apart(*member)) {
            self.end_standstill(&key, lease, &members);
        }
    }

    fn end_standstill(&mut self, key: &StageKey, lease: LeaseId, members: &[WorkerId]) {
        let group = self.groups.get(&lease);
        let step = group.and_then(|group| group.waiting.members.values().max().copied()).unwrap_or_default();
        let (members, left_out) = self.part(lease, members);
        let reason = format!(
            "no member computes and each waits for the others after update {step}, so some cannot reach each other; \
             {left_out}"
        );
        self.form(key, lease, Forming { members, at_once: true, reason });
    }

    /// Who of these goes on, where they cannot all train together, and words for who does not. Newcomers with whom no
    /// update was made are the cause; without any, nobody knows who is, and rank 0 goes on alone. It gets no others before
    /// it has a checkpoint, nor those again for a while: each for twice as long as the one before, so that they come back
    /// one by one and the one that does not fit is a newcomer to the others.
    pub(crate) fn part(&mut self, lease: LeaseId, members: &[WorkerId]) -> (Vec<WorkerId>, String) {
        let (stay, joiners) = self.edit_group(lease, |group| {
            let known = |member: &&WorkerId| !group.waiting.newcomers.contains(*member);
            let mut stay: Vec<WorkerId> = members.iter().filter(known).copied().collect();
            if stay.is_empty() || stay.len() == members.len() {
                stay = members[..1].to_vec();
            }
            group.broken = MOST_BROKEN;
            (stay, std::mem::take(&mut group.joiners))
        });
        let left_out: Vec<WorkerId> = members.iter().filter(|member| !stay.contains(member)).copied().collect();
        let mut words = Vec::new();
        for (before, worker) in (0..).zip(left_out.into_iter().chain(joiners.into_keys())) {
            let doubled = self.count_parted(worker, lease).saturating_add(before).min(DOUBLINGS);
            let wait_ms = LEFT_OUT_MS << doubled;
            self.leave_out(worker, lease, wait_ms);
            self.out.commands.push(Command::Fence { worker, lease });
            words.push(format!("{worker} left out for {} s", wait_ms / 1_000));
        }
        (stay, words.join(", "))
    }
}
