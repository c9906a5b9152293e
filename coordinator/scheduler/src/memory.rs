//! What stages are expected to need of memory: what was planned, corrected by what workers took.
//!
//! A plan says what a worker's process takes beside its stages, and what each stage adds to it. A worker says with a result
//! the most that its process ever took, and which stages it trained then. Both numbers of the process, predicted and measured,
//! become one fact. The last [`KEPT`] of a base model in a numeric class count, and of those the highest ratio: too little
//! ends a process, too much costs a place. Until there are as many, the plan's own stands among them, so a single peak can only
//! raise what is expected, and takes [`KEPT`] others to be forgotten.
//!
//! What it gives is a function of the state, for stages that run too: a coordinator that starts over the same facts counts
//! with the same numbers (invariant 6). It decides where a stage runs, and never a byte (invariant 5).

use graftwork_shared::{
    assignment::{MemoryPeak, StageResult},
    digest::Digest,
    id::WorkerId,
    recipe::NumericClass,
};
use serde::{Deserialize, Serialize};

use crate::{
    explain::{Corrected, Took},
    fact::Fact,
    job::JobState,
    machine::Scheduler,
    message::StageKey,
    state::State,
};

/// Peaks that count of a base model in a numeric class: the workers of a small fleet say one each when they start.
const KEPT: usize = 8;

/// Base models in numeric classes of which peaks are kept; what was measured the longest ago goes.
const MOST_KINDS: usize = 64;

/// What was predicted, in the parts in which it is corrected.
const WHOLE: u64 = 1_000;

/// Ratios are rounded up to steps of so many thousandths, so that what is expected seldom changes.
const STEP: u64 = 20;

/// No less than this counts, in thousandths: those who were measured may all have found the weights packed, which saves about
/// a tenth of a small process, and the next one may have to pack them.
const LEAST: u64 = 900;

/// No more than this counts, whatever a worker says: that is what one that is wrong can cost.
const MOST: u64 = 2_000;

/// The most that one worker's process took, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Peak {
    pub(crate) predicted_bytes: u64,
    pub(crate) measured_bytes: u64,
}

impl Peak {
    fn thousandths(&self) -> u64 {
        self.measured_bytes.saturating_mul(WHOLE) / self.predicted_bytes.max(1)
    }
}

/// The latest peaks over one base model in one numeric class, in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    base_model: Digest,
    class: NumericClass,
    peaks: Vec<Peak>,
}

impl Measured {
    /// How many thousandths of what is predicted count.
    fn thousandths(&self) -> u64 {
        let planned = (self.peaks.len() < KEPT).then_some(WHOLE);
        let highest = self.peaks.iter().map(Peak::thousandths).chain(planned).max().unwrap_or(WHOLE);
        highest.min(MOST).next_multiple_of(STEP).max(LEAST)
    }
}

impl State {
    pub(crate) fn fold_memory(&mut self, of: (Digest, &NumericClass), peak: Peak) -> Result<(), String> {
        let (base_model, class) = of;
        if peak.predicted_bytes == 0 {
            return Err("nothing was predicted".to_owned());
        }
        let before = self.thousandths(base_model, Some(class));
        let known = self.memory.iter().position(|kind| kind.base_model == base_model && kind.class == *class);
        let new = || Measured { base_model, class: class.clone(), peaks: Vec::new() };
        let mut kind = known.map_or_else(new, |at| self.memory.remove(at));
        kind.peaks.push(peak);
        let old = kind.peaks.len().saturating_sub(KEPT);
        kind.peaks.drain(..old);
        self.memory.push(kind);
        let forgotten = (self.memory.len() > MOST_KINDS).then(|| self.memory.remove(0).base_model);
        let changed = (self.thousandths(base_model, Some(class)) != before).then_some(base_model);
        self.touched.needs.extend(forgotten.into_iter().chain(changed));
        Ok(())
    }

    /// What was measured of a base model in a class; where nothing was in that one, or any may be it, in all.
    fn kinds(&self, base_model: Digest, class: Option<&NumericClass>) -> impl Iterator<Item = &Measured> {
        let of = move || self.memory.iter().filter(move |kind| kind.base_model == base_model);
        let own = of().find(|kind| Some(&kind.class) == class);
        of().filter(move |kind| own.is_none_or(|own| own.class == kind.class))
    }

    /// How many thousandths of what is predicted count there.
    fn thousandths(&self, base_model: Digest, class: Option<&NumericClass>) -> u64 {
        self.kinds(base_model, class).map(Measured::thousandths).max().unwrap_or(WHOLE)
    }

    /// The memory that a stage is expected to need beside process and base model, where it runs or goes on, or anywhere.
    pub(crate) fn needed_bytes(&self, job: &JobState, position: usize) -> u64 {
        self.needed_bytes_in(job, position, job.class(position))
    }

    /// The same on a worker of this class: what its whole process is expected to take, without what it takes beside.
    pub(crate) fn needed_bytes_in(&self, job: &JobState, position: usize, class: Option<&NumericClass>) -> u64 {
        let planned = job.plan.stages[position].memory_bytes;
        let is_for_cpu = class.map_or_else(|| job.is_for_cpu(), |class| class.device == "cpu");
        let Some(predicted) = job.predicted_bytes(position).filter(|_| is_for_cpu) else { return planned };
        let thousandths = self.thousandths(job.plan.base_model_digest, class);
        if thousandths == WHOLE {
            return planned;
        }
        // Of a small stage a tenth of the process may be all: half of what was planned is left to it.
        let whole = (predicted / WHOLE).saturating_mul(thousandths);
        whole.saturating_sub(job.plan.beside_bytes).max(planned / 2)
    }

    /// What was planned of a stage, and measured over its base model.
    pub(crate) fn corrected(&self, job: &JobState, position: usize) -> Option<Corrected> {
        let kinds = self.kinds(job.plan.base_model_digest, job.class(position)).filter(|_| job.is_for_cpu());
        let highest = kinds.flat_map(|kind| &kind.peaks).max_by_key(|peak| peak.thousandths())?;
        Some(Corrected {
            planned_bytes: job.plan.stages[position].memory_bytes,
            predicted_bytes: highest.predicted_bytes,
            measured_bytes: highest.measured_bytes,
        })
    }
}

impl JobState {
    /// The numeric class in which a stage runs, or goes on.
    fn class(&self, position: usize) -> Option<&NumericClass> {
        let record = &self.stages[position];
        let granted = record.phase.grant().map(|grant| &grant.class);
        granted.or(record.checkpoint.as_ref().map(|checkpoint| &checkpoint.class))
    }

    /// What a worker's process is expected to take while it trains this stage alone; `None`: the plan does not say.
    fn predicted_bytes(&self, position: usize) -> Option<u64> {
        let beside = Some(self.plan.beside_bytes).filter(|bytes| *bytes > 0)?;
        beside.checked_add(self.plan.stages[position].memory_bytes)
    }
}

impl State {
    /// What a worker's process was expected to take with the stages that it trained at its peak; `None` where that is unknown:
    /// a stage is gone, has another base model, or is trained by several workers, each of which has fewer lanes than planned.
    fn predicted_of(&self, job: &JobState, peak: &MemoryPeak) -> Option<u64> {
        let beside = Some(job.plan.beside_bytes).filter(|bytes| *bytes > 0 && !peak.stages.is_empty())?;
        peak.stages.iter().try_fold(beside, |sum, (of, stage)| {
            let other = self.jobs().get(of).filter(|of| of.plan.base_model_digest == job.plan.base_model_digest)?;
            let at = other.position(stage)?;
            let in_group = other.stages[at].phase.grant().is_some_and(|grant| grant.epoch > 0);
            sum.checked_add(other.plan.stages[at].memory_bytes).filter(|_| !in_group)
        })
    }

    /// What the worker that trained a stage took, if it said so.
    pub(crate) fn took(&self, job: &JobState, position: usize) -> Option<Took> {
        let record = &job.stages[position];
        let peak = record.result.as_ref().filter(|_| !record.reused)?.peak.as_ref()?;
        let predicted_bytes = self.predicted_of(job, peak)?;
        Some(Took { stages: peak.stages.len(), predicted_bytes, measured_bytes: peak.bytes })
    }
}

impl Scheduler {
    /// Keeps what a worker took, as it says with a result; what says nothing is taken out of the result.
    ///
    /// A process keeps what is freed, so a stage that needs less than an earlier one stands on what that one left: the most
    /// that was ever predicted of the process is what its peak is held against.
    pub(crate) fn measure_memory(&mut self, worker: WorkerId, key: &StageKey, result: &mut StageResult) {
        let Some(peak) = result.peak.take().filter(|_| result.numeric_class.device == "cpu") else { return };
        let Some((job, _)) = self.state.record(key) else { return };
        let Some(predicted_bytes) = self.state.predicted_of(job, &peak) else { return };
        let base_model = job.plan.base_model_digest;
        let Some(known) = self.workers.get_mut(&worker) else { return };
        known.predicted_bytes = predicted_bytes.max(known.predicted_bytes);
        let predicted_bytes = known.predicted_bytes;
        let (StageKey { job, stage }, class) = (key.clone(), result.numeric_class.clone());
        let measured_bytes = peak.bytes;
        self.record(Fact::MemoryMeasured { job, stage, base_model, class, predicted_bytes, measured_bytes });
        result.peak = Some(peak);
    }
}
