//! The stage that would hold up its job: one that alone takes longer than all the rest of the job on the other places.
//!
//! Tasks spread over workers first, and whoever has nothing to do in the end joins what still runs (`grow.rs`). For a long
//! stage that is late: a group has no more members than lanes, and grows by one after the other. So such a stage gets a
//! helper before a further stage of its job starts, as long as with this one, too, it would end after the rest on the
//! places that are left for that. It never gets more than its share of them, so the rest never becomes the tail, and of
//! two places none. Nobody takes such a helper back for another stage of no higher priority while that holds.
//!
//! All of it is estimated: work in tokens, as stages are ordered by, and rates as far as they are measured. It decides who
//! computes what and when, and no byte.

use std::{fmt, sync::Arc};

use graftwork_shared::{
    id::{LeaseId, Name, WorkerId},
    view::StageKind,
};
use serde::{Deserialize, Serialize};

use crate::{
    index::{Demand, Kind},
    job::JobState,
    machine::Scheduler,
    message::StageKey,
    serve::Head,
};

/// Running stages of a job among which one is looked for that holds it up: those with most left for each member.
const LOOKED_AT: usize = 4;

/// A helper stays while the stage would take so many times as long as the rest does without it, so that estimates that
/// move a little send nobody to and fro.
const STAYS: f64 = 1.25;

/// Base models of which rates are kept.
const MOST_RATES: usize = 64;

/// Stands for any ratio that is larger, so that it can be written down.
const MOST_TIMES: f64 = 1e6;

/// That a stage would hold up its job, as it was estimated when a worker was asked to help.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HoldsUp {
    /// Workers that trained it then; where a coordinator does not say it, one.
    #[serde(default = "one")]
    pub workers: usize,
    /// How many times as long as all the rest of the job it would have taken as it was.
    pub times: f64,
    /// Milliseconds that it would have taken as it was, where rates are measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone_ms: Option<u64>,
    /// Milliseconds for all the rest on the other places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest_ms: Option<u64>,
}

fn one() -> usize {
    1
}

impl fmt::Display for HoldsUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = match self.workers {
            0 | 1 => "alone".to_owned(),
            workers => format!("on {workers} workers"),
        };
        write!(f, "would hold up the job: ")?;
        match (self.alone_ms, self.rest_ms) {
            (Some(own_ms), Some(rest_ms)) => {
                let seconds = |ms: u64| ms.div_ceil(1000);
                write!(f, "about {} s {on}, {} s for all the rest", seconds(own_ms), seconds(rest_ms))
            }
            _ => write!(f, "{:.1} times as long {on} as all the rest takes", self.times),
        }
    }
}

/// A stage of the same job that gets helpers before this one starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HelpedFirst {
    /// Which.
    pub stage: Name,
    /// Why.
    pub holds_up: HoldsUp,
}

impl fmt::Display for HelpedFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is helped first, as it {}", self.stage, self.holds_up)
    }
}

/// How long a stage, and the rest of its job, would take on one place.
struct Lengths {
    own: f64,
    rest: f64,
    /// In seconds; in tokens where no rate is known.
    measured: bool,
}

impl Lengths {
    /// Whether so many members would still be at it when so many other places are done with the rest.
    fn outlasts(&self, (members, others): (usize, usize), times: f64) -> bool {
        others > 0 && self.rest > 0.0 && self.own / members.max(1) as f64 * times > self.rest / others as f64
    }

    fn told(&self, (members, others): (usize, usize)) -> HoldsUp {
        let (alone, rest) = (self.own / members.max(1) as f64, self.rest / others.max(1) as f64);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive time; too long ones saturate"
        )]
        let ms = |seconds: f64| self.measured.then_some((seconds * 1000.0) as u64);
        HoldsUp {
            workers: members.max(1),
            times: (alone / rest).min(MOST_TIMES),
            alone_ms: ms(alone),
            rest_ms: ms(rest),
        }
    }
}

impl Scheduler {
    /// Notes the rate of a stage that has a place for itself: a quarter new, three quarters what was known.
    pub(crate) fn note_rate(&mut self, key: &StageKey, tokens_per_second: f64) {
        let Some((job, at)) = self.state.record(key) else { return };
        let (base_model, kind) = job.plan.stages[at].speed_of();
        if self.rates.len() >= MOST_RATES && !self.rates.contains_key(&base_model) {
            return;
        }
        let known = &mut self.rates.entry(base_model).or_default()[kind as usize];
        *known = Some(known.map_or(tokens_per_second, |known| known + (tokens_per_second - known) / 4.0));
    }

    /// Tokens a second that each member of the group of now does.
    fn rate_here(&self, lease: LeaseId) -> Option<f64> {
        let grant = self.state.grant(lease)?;
        let report = self.groups.get(&lease)?.paces.report(grant.worker)?;
        let of_now = report.group == grant.epoch && report.tokens_per_second > 0.0;
        of_now.then(|| report.tokens_per_second / (1.0 + grant.others.len() as f64))
    }

    fn lengths(&self, (job, at): (&JobState, usize), lease: LeaseId) -> Lengths {
        let (stage, index) = (&job.plan.stages[at], &job.index);
        let until = job.pause_step(at).unwrap_or(stage.total_steps);
        let own = until.saturating_sub(self.known_step(lease)).saturating_mul(index.shape.tokens[at]);
        // What waits for it cannot go on beside it. That is a fusion's, or a task's of which it is a trial.
        let behind = index.chain(at).saturating_sub(index.marks[at].remaining);
        let mut rest = index.left;
        let kind = stage.kind as usize;
        rest[kind] = rest[kind].saturating_sub(index.marks[at].remaining);
        let fusions = &mut rest[StageKind::Fusion as usize];
        *fusions = fusions.saturating_sub(behind);
        let rates = self.rates.get(&stage.recipe.base_model).copied().unwrap_or_default();
        let any = rates[0].or(rates[1]);
        let here = self.rate_here(lease).or(rates[kind]).or(any);
        let seconds = |tokens: u64, rate: Option<f64>| tokens as f64 / rate.or(any).or(here).unwrap_or(1.0);
        Lengths {
            own: seconds(own, here),
            rest: rest.into_iter().zip(rates).map(|(tokens, rate)| seconds(tokens, rate)).sum(),
            measured: here.is_some(),
        }
    }

    /// Asks an idle worker to help the stage that would hold up the job whose turn it is, if there is one.
    pub(crate) fn help_first(&mut self, head: &Head, kept: &[Demand]) -> bool {
        let Some(job) = self.state.jobs().get(&head.spot.0) else { return false };
        let mut looked_at = 0;
        let mut found = None;
        for (_, at) in job.index.running.iter().take(LOOKED_AT) {
            looked_at += 1;
            let mark = &job.index.marks[*at];
            let Some(lease) = mark.lease else { continue };
            // The place whose turn it is, too, is one of the job's.
            let (members, others) = (mark.holders.len(), job.index.held + 1 - mark.holders.len());
            let lengths = self.lengths((job, *at), lease);
            if lengths.outlasts((members + 1, others - 1), 1.0)
                && let Some(worker) = self.idle_for(lease, kept, &mut looked_at)
            {
                found = Some((worker, lease, lengths.told((members, others))));
                break;
            }
        }
        self.count(looked_at);
        let Some((worker, lease, holds_up)) = found else { return false };
        self.invite(worker, lease);
        self.edit_group(lease, |group| {
            group.needed.insert(worker);
            group.holds_up = Some(holds_up);
        });
        true
    }

    /// The first idle worker that could join a group, beside what is kept for gangs.
    fn idle_for(&self, lease: LeaseId, kept: &[Demand], looked_at: &mut usize) -> Option<WorkerId> {
        let ((arithmetic, host), memory_bytes) = self.board.leases.open_berth(lease)?;
        if kept.iter().any(|gang| gang.suits(arithmetic)) {
            return None;
        }
        let kind = |bytes: u64| -> Kind { (Arc::clone(arithmetic), Arc::clone(host), bytes) };
        let idle = self.board.fleet.idle.range(kind(memory_bytes)..=kind(u64::MAX)).flat_map(|(_, workers)| workers);
        let bars = |worker: &WorkerId| self.groups.get(&lease).is_some_and(|group| group.bars(*worker, self.now_ms));
        idle.copied().find(|worker| {
            *looked_at += 1;
            !bars(worker)
        })
    }

    /// Whether without one of those that train it a stage would hold up its job.
    pub(crate) fn would_hold_up(&self, lease: LeaseId) -> bool {
        let Some((job, at)) = self.state.live().get(&lease).and_then(|key| self.state.record(key)) else {
            return false;
        };
        let (joiners, asked) =
            self.groups.get(&lease).map_or((0, 0), |group| (group.joiners.len(), group.asked_back.len()));
        let members = (job.index.marks[at].holders.len() + joiners).saturating_sub(asked);
        let others = (job.index.held + joiners).saturating_sub(members);
        members > 1 && self.lengths((job, at), lease).outlasts((members, others), STAYS)
    }

    /// Whether a worker was asked to help before other stages started.
    pub(crate) fn is_needed(&self, worker: WorkerId, lease: LeaseId) -> bool {
        self.groups.get(&lease).is_some_and(|group| group.needed.contains(&worker))
    }

    /// Whoever was needed and is no longer helps as others do. Nobody is sent away by rates of other stages alone: a group
    /// that has just formed has said nothing of its own yet.
    pub(crate) fn review_needed(&mut self, helpers: &[(WorkerId, LeaseId)]) {
        for (worker, lease) in helpers {
            if self.is_needed(*worker, *lease) {
                self.count(1);
                let is_known = self.rate_here(*lease).is_some() || self.rates.is_empty();
                if is_known && !self.would_hold_up(*lease) {
                    self.edit_group(*lease, |group| group.needed.remove(worker));
                }
            }
        }
    }

    /// Whether a helper is not taken back for this stage.
    pub(crate) fn is_kept_from(&self, (worker, lease): (WorkerId, LeaseId), (key, priority): (&StageKey, i32)) -> bool {
        let Some(of) = self.state.live().get(&lease) else { return false };
        let of_its_job = || of.job == key.job && !self.was_asked_back(worker, lease) && self.would_hold_up(lease);
        self.is_needed_by((worker, lease), priority) || of_its_job()
    }

    /// Whether a helper that was not asked back is needed where it is, whatever a stage of this priority says.
    pub(crate) fn is_needed_by(&self, (worker, lease): (WorkerId, LeaseId), priority: i32) -> bool {
        let job = self.state.live().get(&lease).and_then(|of| self.state.jobs().get(&of.job));
        self.is_needed(worker, lease)
            && !self.was_asked_back(worker, lease)
            && job.is_some_and(|job| priority <= job.plan.job.priority)
    }

    /// Why helpers of a stage are needed, while they are.
    pub(crate) fn holds_up(&self, lease: LeaseId) -> Option<HoldsUp> {
        self.groups.get(&lease).filter(|group| !group.needed.is_empty())?.holds_up
    }

    /// The stage of a job that is helped before others of it start.
    pub(crate) fn helped_first(&self, job: &JobState) -> Option<HelpedFirst> {
        job.index.running.iter().take(LOOKED_AT).find_map(|(_, at)| {
            let holds_up = self.holds_up(job.index.marks[*at].lease?)?;
            Some(HelpedFirst { stage: job.plan.stages[*at].name.clone(), holds_up })
        })
    }
}
