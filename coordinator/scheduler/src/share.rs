//! Fair share between owners of one priority, and quotas.
//!
//! What an owner has had is device time: core-seconds of attempts that ended, or seconds of an accelerator where those
//! are more. It is folded from journalled costs and times, in whole milliseconds, and what is [`HALF_LIFE_MS`] old counts
//! half, so an owner that used much is not behind for ever. What runs counts with what is known of its cost and with
//! [`PLACE_MS`] for each place in advance, so that owners who have had nothing yet take turns.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

use graftwork_shared::{
    assignment::Usage,
    view::{QuotaOf, Refusal},
};
use serde::{Deserialize, Serialize};

use crate::{
    machine::{Policy, Scheduler},
    message::StageKey,
    phase::Phase,
    plan::Plan,
    state::{JobState, State},
};

/// Device time that is so old counts half.
pub(crate) const HALF_LIFE_MS: u64 = 3_600_000;

/// What a taken place counts in advance: about what a stage on one core uses until its first checkpoints tell more.
pub(crate) const PLACE_MS: u64 = 60_000;

/// What one owner may have at a time. `None` is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Places of workers, those of helpers in groups included.
    pub places: Option<u32>,
    /// Jobs that have not ended.
    pub jobs: Option<u32>,
}

/// Device time that an owner has had, as of a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    device_ms: u64,
    at_ms: u64,
}

impl Account {
    /// What of it counts at a later moment. Between two halvings it falls along a line, in whole numbers, so that it is
    /// the same on every machine.
    pub(crate) fn after(&self, now_ms: u64) -> u64 {
        let elapsed = now_ms.saturating_sub(self.at_ms);
        let halvings = u32::try_from(elapsed / HALF_LIFE_MS).unwrap_or(u32::MAX);
        let whole = u128::from(self.device_ms.checked_shr(halvings).unwrap_or(0));
        let fallen = whole * u128::from(elapsed % HALF_LIFE_MS) / u128::from(2 * HALF_LIFE_MS);
        u64::try_from(whole - fallen).unwrap_or(u64::MAX)
    }

    fn add(&mut self, device_ms: u64, at_ms: u64) {
        // The clock of a later coordinator may stand before that of an earlier one.
        let at_ms = at_ms.max(self.at_ms);
        *self = Self { device_ms: self.after(at_ms).saturating_add(device_ms), at_ms };
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time of less than 2^53 ms")]
fn device_ms(usage: &Usage) -> u64 {
    (usage.core_seconds.max(usage.gpu_seconds).max(0.0) * 1000.0) as u64
}

impl State {
    /// An attempt of a stage ended: its owner has had what it cost.
    pub(crate) fn charge(&mut self, key: &StageKey, usage: &Usage, at_ms: u64) {
        let Some(owner) = self.jobs().get(&key.job).map(|job| job.plan.job.owner.clone()) else { return };
        self.accounts.entry(owner).or_default().add(device_ms(usage), at_ms);
        self.accounts.retain(|_, account| account.after(at_ms) > 0);
    }
}

impl Policy {
    fn quota(&self, owner: &str) -> Quota {
        self.quotas.get(owner).or_else(|| self.quotas.get("*")).copied().unwrap_or_default()
    }
}

/// The stages of one owner that wait, the next one first; and whether each would take a place at once.
type Line = VecDeque<(StageKey, bool)>;

impl Scheduler {
    /// Stages that could run by what they need, in the order in which they are served: by priority; of one priority the
    /// owner goes first who has had least, counting those of its stages that stand before; of an owner by submission and
    /// then the longest chain.
    pub(crate) fn ready(&self) -> Vec<StageKey> {
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
        if waiting.is_empty() {
            return Vec::new();
        }
        let mut shares = self.shares();
        let mut lines: BTreeMap<Reverse<i32>, BTreeMap<(u64, &str), Line>> = BTreeMap::new();
        for ((priority, owner), mut stages) in waiting {
            stages.sort();
            let first = stages[0].0.0;
            let line = stages.into_iter().map(|(_, key, soon)| (key, soon)).collect();
            lines.entry(priority).or_default().insert((first, owner), line);
        }
        lines.into_values().flat_map(|lines| take_turns(lines, &mut shares)).collect()
    }

    /// What each owner has had by now, and has.
    fn shares(&self) -> BTreeMap<&str, u64> {
        let accounts = self.state.accounts.iter().map(|(owner, account)| (owner.as_str(), account.after(self.now_ms)));
        let mut shares: BTreeMap<&str, u64> = accounts.collect();
        for (lease, key) in self.state.live() {
            let Some((job, position)) = self.state.record(key) else { continue };
            let holders = u64::try_from(self.holders(*lease)).unwrap_or(u64::MAX);
            let share = shares.entry(&job.plan.job.owner).or_default();
            *share = share
                .saturating_add(device_ms(&job.stages[position].running))
                .saturating_add(holders.saturating_mul(PLACE_MS));
        }
        shares
    }

    /// Workers that a live lease takes a place of.
    fn holders(&self, lease: graftwork_shared::id::LeaseId) -> usize {
        let members = self.state.grant(lease).map_or(0, |grant| 1 + grant.others.len());
        members + usize::from(self.groups.get(&lease).is_some_and(|group| group.joiner.is_some()))
    }

    /// Places that an owner's stages have.
    pub(crate) fn places_of(&self, owner: &str) -> u32 {
        let owned = |key: &StageKey| self.state.jobs().get(&key.job).is_some_and(|job| job.plan.job.owner == owner);
        let live = self.state.live().iter().filter(|(_, key)| owned(key));
        live.map(|(lease, _)| u32::try_from(self.holders(*lease)).unwrap_or(u32::MAX)).sum()
    }

    /// Why the owner of a job gets no further place.
    pub(crate) fn over_quota(&self, job: &JobState) -> Option<Refusal> {
        let owner = &job.plan.job.owner;
        let most = self.policy.quota(owner).places?;
        let has = self.places_of(owner);
        (has >= most).then(|| Refusal::Quota { owner: owner.clone(), of: QuotaOf::Places, has, most })
    }

    /// Why a job is not taken: its owner has as many that have not ended as it may.
    pub fn too_many_jobs(&self, plan: &Plan) -> Option<Refusal> {
        let owner = &plan.job.owner;
        let most = self.policy.quota(owner).jobs?;
        let mut open = self.state.jobs().values().filter(|job| job.ended.is_none() && job.plan.job.owner == *owner);
        if open.any(|job| job.plan.id() == plan.id()) {
            return None;
        }
        let open = self.state.jobs().values().filter(|job| job.ended.is_none() && job.plan.job.owner == *owner);
        let has = u32::try_from(open.count()).unwrap_or(u32::MAX);
        (has >= most).then(|| Refusal::Quota { owner: owner.clone(), of: QuotaOf::Jobs, has, most })
    }

    /// Owners with a bound on places, and how many they have.
    pub(crate) fn bounded(&self) -> Vec<(String, u32, u32)> {
        let owners: BTreeSet<&String> = self.state.jobs().values().map(|job| &job.plan.job.owner).collect();
        let bounded = owners
            .into_iter()
            .filter_map(|owner| Some((owner.clone(), self.places_of(owner), self.policy.quota(owner).places?)));
        bounded.collect()
    }
}

/// The owners' lines as one: again and again the first of whoever has had least, which then counts as a taken place.
/// Ties go to who submitted first.
fn take_turns<'o>(mut lines: BTreeMap<(u64, &'o str), Line>, shares: &mut BTreeMap<&'o str, u64>) -> Vec<StageKey> {
    let share = |shares: &BTreeMap<&str, u64>, owner: &str| shares.get(owner).copied().unwrap_or(0);
    let mut turns: BTreeSet<(u64, u64, &str)> =
        lines.keys().map(|(first, owner)| (share(shares, owner), *first, *owner)).collect();
    let mut order = Vec::new();
    while let Some((had, first, owner)) = turns.pop_first() {
        let Some((key, soon)) = lines.get_mut(&(first, owner)).and_then(VecDeque::pop_front) else { continue };
        order.push(key);
        let had = had.saturating_add(if soon { PLACE_MS } else { 0 });
        shares.insert(owner, had);
        turns.insert((had, first, owner));
    }
    order
}
