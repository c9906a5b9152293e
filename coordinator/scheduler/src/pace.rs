//! How fast training goes, as holders of leases tell: of the moment, not durable, and never in a byte.
//!
//! Two things follow from it. A stage goes to the fastest of the workers that stand equal otherwise. And a straggler in a
//! group gets fewer lanes: a member that takes more than twice as long for a wave of lanes (one on each of its threads) as
//! the median member, over [`STRAGGLER_STEPS`] updates and [`STRAGGLER_MS`], and computes for a good part of its time. The
//! group is then formed again with other shares, each lane going to whoever has it done first, and who gets none gives the
//! lease back. That happens at most once in [`Policy::reshape_ms`](crate::Policy::reshape_ms), which doubles each time.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{
    digest::Digest,
    event::StepReport,
    id::{LeaseId, WorkerId},
    view::StageKind,
};

use crate::{machine::Scheduler, message::StageKey, phase::Grant, worker::Worker};

/// Updates over which a member must be slow, or no longer slow, before lanes move.
const STRAGGLER_STEPS: u64 = 20;

/// And milliseconds, eight reports: of updates that take a few of them, twenty are one hiccup of a machine.
const STRAGGLER_MS: u64 = 2_000;

/// Share of its time that a straggler computes at least. Where all wait for messages nobody waits for a member, and the
/// little that each computes is too short to be compared.
const STRAGGLER_COMPUTES: f64 = 0.2;

/// How many times as long as the median member a straggler takes.
const STRAGGLER_TIMES: f64 = 2.0;

/// A straggler without lanes is not asked into the group again for so long.
const LEFT_OUT_MS: u64 = 600_000;

/// Speeds that are kept of a worker: one for each base model and kind of stage.
const MOST_SPEEDS: usize = 64;

/// Speeds closer together than this are the same: measurements are no finer.
const SPEED_STEP: f64 = 1.25;

/// What is measured of a group's members.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Paces {
    /// What each member last told.
    reports: BTreeMap<WorkerId, StepReport>,
    /// The stragglers for which the group of now was formed.
    shaped_for: BTreeSet<WorkerId>,
    /// Since which update, and when, others than those are slow.
    otherwise_since: Option<(u64, u64)>,
    /// How often lanes moved, and until when they stay.
    moved: u32,
    stays_until_ms: u64,
}

impl Paces {
    pub(crate) fn report(&self, worker: WorkerId) -> Option<&StepReport> {
        self.reports.get(&worker)
    }
}

/// How the lanes of a group are divided.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shape {
    /// Lanes by rank; empty: all the same.
    pub(crate) shares: Vec<u32>,
    /// Who gets fewer for being slow, and how many times as long as the median it takes.
    pub(crate) stragglers: BTreeMap<WorkerId, f64>,
}

/// What a speed is measured for.
pub(crate) type SpeedOf = (Digest, StageKind);

impl Worker {
    /// Tokens a second of one core.
    pub(crate) fn speed(&self, of: &SpeedOf) -> Option<f64> {
        self.speeds.iter().find(|(other, _)| other == of).map(|(_, speed)| *speed)
    }

    /// Takes a measurement in: a quarter new, three quarters what was known.
    fn measure(&mut self, of: SpeedOf, speed: f64) {
        if let Some((_, known)) = self.speeds.iter_mut().find(|(other, _)| *other == of) {
            *known += (speed - *known) / 4.0;
        } else if self.speeds.len() < MOST_SPEEDS {
            self.speeds.push((of, speed));
        }
    }
}

/// Share of its time that a member computes, and waits neither for rows nor for others.
fn computing(report: &StepReport) -> f64 {
    (1.0 - report.exchange_wait - report.input_wait).clamp(0.01, 1.0)
}

/// A speed in steps that a measurement can tell apart.
#[expect(clippy::cast_possible_truncation, reason = "a small number")]
pub(crate) fn speed_step(speed: f64) -> i64 {
    (speed.max(1e-9).ln() / SPEED_STEP.ln()).round() as i64
}

impl Scheduler {
    /// A holder told how training goes.
    pub(crate) fn on_stepped(&mut self, (worker, lease): (WorkerId, LeaseId), report: &StepReport) {
        let Some(key) = self.on_lease_message(worker, lease) else { return };
        let group = self.groups.entry(lease).or_default();
        group.paces.reports.insert(worker, *report);
        if self.state.grant(lease).is_some_and(|grant| grant.epoch == report.group) {
            group.waiting.on_update();
        }
        if self.state.grant(lease).is_some_and(|grant| grant.others.is_empty()) {
            self.measure_speed((worker, &key), report);
        } else {
            self.watch_stragglers(&key, lease, report.step);
        }
    }

    /// Alone with its stage, and sharing its threads evenly with others on it.
    fn measure_speed(&mut self, (worker, key): (WorkerId, &StageKey), report: &StepReport) {
        let Some((job, position)) = self.state.record(key) else { return };
        let stage = &job.plan.stages[position];
        let of = (stage.recipe.base_model, stage.kind);
        let Some(known) = self.workers.get_mut(&worker) else { return };
        let cores = known.info.threads / u32::try_from(known.leases.len()).unwrap_or(u32::MAX).max(1);
        let cores = cores.min(report.lanes).max(1);
        if report.lanes > 0 && report.tokens_per_second > 0.0 {
            known.measure(of, report.tokens_per_second / f64::from(cores));
            self.note_rate(key, report.tokens_per_second);
        }
    }

    /// The step that a lease's stage has reached, as far as is known.
    pub(crate) fn known_step(&self, lease: LeaseId) -> u64 {
        let told =
            self.groups.get(&lease).and_then(|group| group.paces.reports.values().map(|report| report.step).max());
        let safe = self.state.live().get(&lease).and_then(|key| self.state.record(key));
        told.unwrap_or(0).max(safe.map_or(0, |(job, position)| job.stages[position].checkpoint_step()))
    }

    /// Seconds that a member computes for one wave of lanes, on a scale that all members of a group share.
    fn wave(&self, lease: LeaseId, worker: WorkerId) -> Option<f64> {
        let report = self.groups.get(&lease)?.paces.report(worker)?;
        let threads = self.workers.get(&worker)?.info.threads.max(1);
        if report.lanes == 0 || report.examples_per_second <= 0.0 {
            return None;
        }
        Some(computing(report) / report.examples_per_second / f64::from(report.lanes.div_ceil(threads)))
    }

    /// Others may have to wait for it: it does not wait nearly all the time itself.
    fn is_busy(&self, lease: LeaseId, worker: WorkerId) -> bool {
        let report = self.groups.get(&lease).and_then(|group| group.paces.report(worker));
        report.is_some_and(|report| computing(report) >= STRAGGLER_COMPUTES)
    }

    /// How lanes are divided among members: evenly while none of them is slow.
    pub(crate) fn shape(&self, lease: LeaseId, members: &[WorkerId]) -> Shape {
        let mut known: Vec<f64> = members.iter().filter_map(|member| self.wave(lease, *member)).collect();
        known.sort_by(f64::total_cmp);
        if known.len() < 2 {
            return Shape::default();
        }
        let median = known[(known.len() - 1) / 2];
        let waves = members.iter().map(|member| (*member, self.wave(lease, *member).unwrap_or(median)));
        let waves: Vec<(WorkerId, f64)> = waves.collect();
        let slow = waves.iter().filter(|(_, wave)| *wave > STRAGGLER_TIMES * median);
        let slow = slow.filter(|(member, _)| self.is_busy(lease, *member));
        let stragglers: BTreeMap<WorkerId, f64> = slow.map(|(member, wave)| (*member, wave / median)).collect();
        if stragglers.is_empty() {
            return Shape::default();
        }
        Shape { shares: self.divide(lease, &waves), stragglers }
    }

    /// Each lane goes to whoever has it done first beside those it has already.
    fn divide(&self, lease: LeaseId, waves: &[(WorkerId, f64)]) -> Vec<u32> {
        let Some((job, position)) = self.state.live().get(&lease).and_then(|key| self.state.record(key)) else {
            return Vec::new();
        };
        let training = &job.plan.stages[position].recipe.training;
        let mut shares = vec![0_u32; waves.len()];
        for _ in 0..training.lanes.saturating_mul(training.accumulation.max(1)) {
            let done = |rank: usize| {
                let (worker, wave) = waves[rank];
                let threads = self.workers.get(&worker).map_or(1, |worker| worker.info.threads.max(1));
                f64::from((shares[rank] + 1).div_ceil(threads)) * wave
            };
            let first = (0..waves.len()).min_by(|one, other| done(*one).total_cmp(&done(*other)));
            shares[first.unwrap_or_default()] += 1;
        }
        shares
    }

    /// What a group is formed with is remembered, so that it is not formed again for the same.
    pub(crate) fn shaped(&mut self, lease: LeaseId, members: &[WorkerId], shape: &Shape) {
        let paces = &mut self.groups.entry(lease).or_default().paces;
        paces.reports.retain(|worker, _| members.contains(worker));
        paces.shaped_for = shape.stragglers.keys().copied().collect();
        paces.otherwise_since = None;
    }

    fn watch_stragglers(&mut self, key: &StageKey, lease: LeaseId, step: u64) {
        let members = self.state.grant(lease).map(Grant::members).unwrap_or_default();
        let shape = self.shape(lease, &members);
        let now_ms = self.now_ms;
        let Some(group) = self.groups.get_mut(&lease) else { return };
        if shape.stragglers.keys().eq(&group.paces.shaped_for) {
            group.paces.otherwise_since = None;
            return;
        }
        let (since, since_ms) = *group.paces.otherwise_since.get_or_insert((step, now_ms));
        let early = step < since + STRAGGLER_STEPS || now_ms < since_ms + STRAGGLER_MS;
        let quiet = group.joiners.is_empty() && group.asked_back.is_empty() && !group.is_breaking();
        if early || now_ms < group.paces.stays_until_ms || !quiet {
            return;
        }
        let wait_ms = self.policy.reshape_ms.saturating_mul(1 << group.paces.moved.min(16));
        group.paces.stays_until_ms = now_ms + wait_ms;
        group.paces.moved += 1;
        self.move_lanes(key, lease, (members, shape));
    }

    fn move_lanes(&mut self, key: &StageKey, lease: LeaseId, (members, shape): (Vec<WorkerId>, Shape)) {
        let slow = shape.stragglers.iter().map(|(worker, times)| format!("{worker} takes {times:.1} times as long"));
        let slow = slow.collect::<Vec<_>>().join(", ");
        let idle = members.iter().zip(&shape.shares).filter(|(_, share)| **share == 0);
        let idle: Vec<WorkerId> = idle.map(|(worker, _)| *worker).collect();
        if idle.is_empty() {
            let reason = if slow.is_empty() { "none is slow any more".to_owned() } else { slow };
            return self.form_again(key, lease, members, format!("lanes move: {reason}"));
        }
        for worker in idle {
            self.leave_out(worker, lease, LEFT_OUT_MS);
            self.ask_back(worker, lease, format!("the group is faster without it: {slow} as the median member"));
        }
    }
}
