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
    index::Rank,
    job::JobState,
    machine::{Policy, Scheduler},
    message::StageKey,
    plan::Plan,
    state::State,
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
pub(crate) fn device_ms(usage: &Usage) -> u64 {
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
    /// Whether some owner may have so many places and no more.
    pub(crate) fn bounds_places(&self) -> bool {
        self.quotas.values().any(|quota| quota.places.is_some())
    }

    pub(crate) fn quota(&self, owner: &str) -> Quota {
        self.quotas.get(owner).or_else(|| self.quotas.get("*")).copied().unwrap_or_default()
    }
}

/// The stages of one owner that wait, the next one first; and whether each would take a place at once.
pub(crate) type Line = VecDeque<(StageKey, bool)>;

impl Scheduler {
    /// Stages that could run by what they need, in the order in which they are served: by priority; of one priority the
    /// owner goes first who has had least, counting those of its stages that stand before; of an owner by submission and
    /// then the longest chain.
    pub(crate) fn ready(&self) -> Vec<StageKey> {
        let mut shares = BTreeMap::new();
        let mut lines: BTreeMap<Reverse<i32>, BTreeMap<(u64, &str), Line>> = BTreeMap::new();
        for ((priority, owner), line) in &self.board.queue.lines {
            let mut stages: Vec<(&Rank, bool)> = line.soon.iter().map(|rank| (rank, true)).collect();
            stages.extend(line.resting.iter().map(|rank| (rank, false)));
            stages.sort();
            let stages = stages.into_iter().filter_map(|(rank, soon)| Some((self.ranked(rank)?, soon))).collect();
            lines.entry(*priority).or_default().insert((line.first(), owner), stages);
            shares.entry(owner.as_str()).or_insert_with(|| self.share(owner));
        }
        lines.into_values().flat_map(|lines| take_turns(lines, &mut shares)).collect()
    }

    fn ranked(&self, (order, _, at): &Rank) -> Option<StageKey> {
        let id = self.state.index.orders.get(order)?;
        let stage = self.state.jobs().get(id)?.plan.stages.get(*at)?.name.clone();
        Some(StageKey { job: id.clone(), stage })
    }

    /// What an owner has had by now, and has.
    pub(crate) fn share(&self, owner: &str) -> u64 {
        let had = self.state.accounts.get(owner).map_or(0, |account| account.after(self.now_ms));
        let running_ms = self.state.index.owners.get(owner).map_or(0, |tally| tally.running_ms);
        let has = running_ms + u128::from(self.places(owner)) * u128::from(PLACE_MS);
        u64::try_from(u128::from(had) + has).unwrap_or(u64::MAX)
    }

    /// Workers that live leases of an owner take a place of: members of groups, and those on their way into one.
    fn places(&self, owner: &str) -> u64 {
        let members = self.state.index.owners.get(owner).map_or(0, |tally| tally.members);
        members + self.board.leases.joiners.get(owner).copied().unwrap_or(0)
    }

    /// Places that an owner's stages have.
    pub(crate) fn places_of(&self, owner: &str) -> u32 {
        u32::try_from(self.places(owner)).unwrap_or(u32::MAX)
    }

    /// Whether an owner may not have so many further places.
    pub(crate) fn is_over_quota(&self, owner: &str, further: u32) -> bool {
        self.policy.quota(owner).places.is_some_and(|most| self.places_of(owner).saturating_add(further) > most)
    }

    /// Whether an owner may never have so many places.
    pub(crate) fn is_shut_out(&self, owner: &str, places: u32) -> bool {
        self.policy.quota(owner).places.is_some_and(|most| most < places)
    }

    /// Why the owner of a job gets not so many further places.
    pub(crate) fn over_quota(&self, job: &JobState, further: u32) -> Option<Refusal> {
        let owner = &job.plan.job.owner;
        let most = self.policy.quota(owner).places?;
        let (has, needs) = (self.places_of(owner), further);
        let refusal = || Refusal::Quota { owner: owner.clone(), of: QuotaOf::Places, has, most, needs };
        self.is_over_quota(owner, further).then(refusal)
    }

    /// Why a job is not taken: its owner has as many that have not ended as it may.
    pub fn too_many_jobs(&self, plan: &Plan) -> Option<Refusal> {
        let owner = &plan.job.owner;
        let most = self.policy.quota(owner).jobs?;
        let known = self.state.jobs().get(&plan.id());
        if known.is_some_and(|job| job.ended.is_none() && job.plan.job.owner == *owner) {
            return None;
        }
        let has = self.state.index.owners.get(owner).map_or(0, |tally| tally.jobs);
        (has >= most).then(|| Refusal::Quota { owner: owner.clone(), of: QuotaOf::Jobs, has, most, needs: 1 })
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
pub(crate) fn take_turns<'o>(
    mut lines: BTreeMap<(u64, &'o str), Line>,
    shares: &mut BTreeMap<&'o str, u64>,
) -> Vec<StageKey> {
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
