//! What stands behind a stage's sentence: what it needs and what is free, who is ahead and when it may start, why it
//! runs where it runs, and why it is slow. One value for `explain`, its JSON and the tests.

use std::fmt;

use graftwork_shared::{
    id::{JobId, LeaseId, Name, WorkerId},
    job::Device,
    view::Preempted,
};
use serde::{Deserialize, Serialize};

use crate::{
    job::JobState,
    machine::Scheduler,
    merit::Chosen,
    message::StageKey,
    phase::{Grant, Phase},
    tail::{HelpedFirst, HoldsUp},
    view::Served,
    worker::Worker,
};

/// Stages ahead that are named; their number is whole.
const NAMED_AHEAD: usize = 5;

/// Idle workers that are named.
const NAMED_IDLE: usize = 5;

/// Of the time of an update, what must be waiting before that is why it is slow.
const MUCH_WAITING: f64 = 0.25;

/// What stands behind a stage's sentence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// What it asks of a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Needs>,
    /// What there is of that, for a stage that waits for a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<Free>,
    /// Stages that are served before it: how many, and the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<Ahead>,
    /// Milliseconds since 1970 when it may start at the earliest, as far as that can be said: estimated from measured
    /// rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earliest_ms: Option<u64>,
    /// The same, in milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earliest_in_ms: Option<u64>,
    /// Why it runs where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub here: Option<Chosen>,
    /// That its place went to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preempted: Option<Preempted>,
    /// Why it has helpers while other stages of its job wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds_up: Option<HoldsUp>,
    /// A stage of its job that gets helpers before it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helped_first: Option<HelpedFirst>,
    /// Idle workers that may not help it, as they compute other bytes: the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_class: Vec<OtherClass>,
    /// Idle workers that may not help it, as its members and they do not reach each other: the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub out_of_reach: Vec<OutOfReach>,
    /// Idle workers that may not help it, as their programs are of another version than its members': the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_version: Vec<OtherVersion>,
    /// Why it is slower than it could be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slow: Vec<Slow>,
    /// For a stage with a result: what its worker took of memory, if that was measured then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took: Option<Took>,
}

/// What a stage asks of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// `cpu` or `cuda`.
    pub device: String,
    /// Bytes that it is expected to need beside the base model.
    pub memory_bytes: u64,
    /// What was planned and measured, as far as anything was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrected: Option<Corrected>,
    /// The numeric class of its checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Workers that it starts on at once, where those are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gang: Option<u32>,
}

/// What the memory that a stage is expected to need follows from, once workers took memory over its base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corrected {
    /// Bytes that were planned for it.
    pub planned_bytes: u64,
    /// Of the peaks that count the one that is highest beside what was predicted: bytes that were predicted of the process.
    pub predicted_bytes: u64,
    /// And that it took.
    pub measured_bytes: u64,
}

/// The most that a worker's process took while it trained a stage, and what was expected of it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// Stages that it trained at that time.
    pub stages: usize,
    /// Expected, as those were planned.
    pub predicted_bytes: u64,
    /// Measured.
    pub measured_bytes: u64,
}

/// What there is of what a stage needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Free {
    /// Workers that could run it.
    pub workers: u32,
    /// Their places.
    pub places: u32,
    /// Those that are free.
    pub free_places: u32,
    /// The most memory that one of them has left; 0 where none says.
    pub memory_bytes: u64,
}

/// Who is served before a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ahead {
    /// How many stages.
    pub stages: usize,
    /// The first of them, in their order.
    pub first: Vec<(JobId, Name)>,
}

/// An idle worker that a running stage is refused, since a stage is trained in one numeric class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherClass {
    /// Which.
    pub worker: WorkerId,
    /// Its numeric class.
    pub class: String,
    /// That of the stage.
    pub needs: String,
}

impl fmt::Display for OtherClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, class, needs } = self;
        write!(f, "{worker} is idle and may not help: it computes on {class}, and equal bytes need {needs}")
    }
}

/// An idle worker that a running stage is refused, since members of a group could not exchange with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutOfReach {
    /// Which.
    pub worker: WorkerId,
    /// How others reach it: `WorkerInfo::reached_on`.
    pub reached_on: String,
    /// How they reach the stage's members.
    pub needs: String,
}

impl fmt::Display for OutOfReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |reached_on: &str| match reached_on {
            "" => "in plain text".to_owned(),
            "over TLS" => "over TLS".to_owned(),
            host => format!("on {host} alone"),
        };
        let Self { worker, reached_on, needs } = self;
        let (found, needs) = (way(reached_on), way(needs));
        write!(f, "{worker} is idle and may not help: other members reach it {found}, and the stage's {needs}")
    }
}

/// What must be alike in the programs of all members of a group; 0 where one does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// `WorkerInfo::numerics_version`.
    pub numerics: u32,
    /// `WorkerInfo::exchange`.
    pub exchange: u32,
}

impl Versions {
    fn of(worker: &Worker) -> Self {
        Self { numerics: worker.info.numerics_version, exchange: worker.info.exchange }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = |number: u32| if number == 0 { "unknown".to_owned() } else { number.to_string() };
        write!(f, "numerics {} and exchange {}", version(self.numerics), version(self.exchange))
    }
}

/// An idle worker that a running stage is refused, since its program and the members' are of versions that do not train
/// together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherVersion {
    /// Which.
    pub worker: WorkerId,
    /// Its versions.
    pub versions: Versions,
    /// Those of the stage's members.
    pub needs: Versions,
}

impl fmt::Display for OtherVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { worker, versions, needs } = self;
        write!(
            f,
            "{worker} is idle and may not help: its program has {versions}, and members of one group must have {needs}"
        )
    }
}

/// Why training is slower than it could be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "slow", rename_all = "snake_case")]
pub enum Slow {
    /// It waits for rows.
    Input {
        /// Share of the time.
        share: f64,
    },
    /// Members of its group exchange gradients, or wait for each other.
    Communication {
        /// Share of the time that rank 0 spends so.
        share: f64,
    },
    /// A member takes longer than the others.
    Straggler {
        /// Which.
        worker: WorkerId,
        /// How many times as long as the median member it takes for the same lanes.
        times: f64,
        /// Lanes that it has now, and of how many.
        lanes: (u32, u32),
    },
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input { share } => write!(f, "it waits for rows {:.0} % of the time", share * 100.0),
            Self::Communication { share } => {
                write!(f, "exchanges with the other workers take {:.0} % of the time", share * 100.0)
            }
            Self::Straggler { worker, times, lanes: (lanes, of) } => {
                write!(f, "{worker} takes {times:.1} times as long as the others, and has {lanes} of {of} lanes")
            }
        }
    }
}

fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl fmt::Display for Corrected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [planned, measured, predicted] =
            [self.planned_bytes, self.measured_bytes, self.predicted_bytes].map(mebibytes);
        write!(
            f,
            "{planned} MiB were planned for it, but a worker took {measured} MiB where {predicted} MiB were predicted"
        )
    }
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (measured, predicted) = (mebibytes(self.measured_bytes), mebibytes(self.predicted_bytes));
        write!(f, "its worker took {measured} MiB with {} in training, and {predicted} MiB were predicted", self.stages)
    }
}

impl fmt::Display for Why {
    /// What is worth saying behind the stage's sentence, `; ` between; nothing for most stages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if let (Some(needs), Some(free)) = (&self.needs, &self.free) {
            let each = needs.gang.map(|gang| format!(" on each of {gang} workers")).unwrap_or_default();
            words.push(format!(
                "it needs {} and {} MiB{each}, and {} of {} places are free",
                needs.device,
                mebibytes(needs.memory_bytes),
                free.free_places,
                free.places
            ));
        }
        let corrected = |needs: &Needs| needs.corrected.filter(|of| of.planned_bytes != needs.memory_bytes);
        words.extend(self.needs.as_ref().and_then(corrected).map(|corrected| corrected.to_string()));
        words.extend(self.earliest_in_ms.map(|ms| format!("it may start in {} s", ms.div_ceil(1000))));
        words.extend(self.preempted.as_ref().map(ToString::to_string));
        words.extend(self.here.as_ref().map(ToString::to_string));
        words.extend(self.holds_up.map(|holds_up| format!("it has helpers, as it {holds_up}")));
        words.extend(self.helped_first.as_ref().map(ToString::to_string));
        words.extend(self.other_class.iter().map(ToString::to_string));
        words.extend(self.out_of_reach.iter().map(ToString::to_string));
        words.extend(self.other_version.iter().map(ToString::to_string));
        words.extend(self.slow.iter().map(|slow| format!("slow: {slow}")));
        words.extend(self.took.as_ref().map(ToString::to_string));
        f.write_str(&words.join("; "))
    }
}

impl Scheduler {
    /// What stands behind a stage's sentence.
    pub(crate) fn why(&self, job: &JobState, position: usize, line: &Served<'_>) -> Why {
        let (stage, record) = (&job.plan.stages[position], &job.stages[position]);
        let why = Why { preempted: record.preempted.clone(), took: self.state.took(job, position), ..Why::default() };
        match &record.phase {
            Phase::Pending if job.waits_for(position).is_empty() => {
                let key = StageKey { job: job.plan.id(), stage: stage.name.clone() };
                let ahead = line.before(&key);
                let until_ms = record.retry_at_ms.filter(|at| *at > self.now_ms);
                let earliest_ms = until_ms.or_else(|| self.earliest(job, position, ahead.len()));
                Why {
                    needs: Some(self.needs(job, position)),
                    free: self.free_for(job, position),
                    helped_first: self.helped_first(job),
                    earliest_in_ms: earliest_ms.map(|at| at.saturating_sub(self.now_ms)),
                    earliest_ms,
                    ahead: (!ahead.is_empty()).then(|| Ahead {
                        stages: ahead.len(),
                        first: ahead.iter().take(NAMED_AHEAD).map(|key| (key.job.clone(), key.stage.clone())).collect(),
                    }),
                    ..why
                }
            }
            Phase::Running(grant) => {
                let here = self.groups.get(&grant.lease).and_then(|group| group.chosen.clone());
                let holds_up = self.holds_up(grant.lease);
                let slow = self.slow(job, position, grant);
                let needs = Some(self.needs(job, position));
                Why { needs, here, holds_up, slow, ..self.refused_help(job, position, grant, why) }
            }
            _ => why,
        }
    }

    /// Names the idle workers of the job's device that a group with room for them does not get: those of another class, those
    /// that its members do not reach, and those of another version.
    fn refused_help(&self, job: &JobState, position: usize, grant: &Grant, why: Why) -> Why {
        let members = u32::try_from(grant.others.len() + 1).unwrap_or(u32::MAX);
        if members >= job.most_workers(position) {
            return why;
        }
        let for_cpu = job.is_for_cpu();
        let idle = || {
            self.workers.iter().filter(move |(_, worker)| {
                (worker.info.class.device == "cpu") == for_cpu && worker.takes_work() && worker.leases.is_empty()
            })
        };
        let other = |(worker, known): (&WorkerId, &Worker)| OtherClass {
            worker: *worker,
            class: known.info.class.to_string(),
            needs: grant.class.to_string(),
        };
        let other_class = idle().filter(|(_, worker)| worker.info.class != grant.class).take(NAMED_IDLE).map(other);
        let needs = self.workers.get(&grant.worker).map_or("", |leader| leader.info.reached_on.as_str());
        let apart = |(worker, known): (&WorkerId, &Worker)| OutOfReach {
            worker: *worker,
            reached_on: known.info.reached_on.clone(),
            needs: needs.to_owned(),
        };
        let of_class = |worker: &Worker| worker.info.class == grant.class && worker.info.reached_on != needs;
        let out_of_reach = idle().filter(|&(_, worker)| of_class(worker)).take(NAMED_IDLE).map(apart);
        let reached = |worker: &Worker| worker.info.class == grant.class && worker.info.reached_on == needs;
        let versions = self.workers.get(&grant.worker).map(Versions::of);
        let other_version = idle().filter(|&(_, worker)| reached(worker)).filter_map(|(worker, known)| {
            let (versions, needs) = (Versions::of(known), versions?);
            (versions != needs).then_some(OtherVersion { worker: *worker, versions, needs })
        });
        Why {
            other_class: other_class.collect(),
            out_of_reach: out_of_reach.collect(),
            other_version: other_version.take(NAMED_IDLE).collect(),
            ..why
        }
    }

    fn free_for(&self, job: &JobState, position: usize) -> Option<Free> {
        let suited = self.suited(job, position).ok()?;
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let taken = |worker: &Worker| number(worker.leases.len());
        let left = |worker: &Worker| worker.info.memory_bytes.saturating_sub(worker.leases.values().sum());
        Some(Free {
            workers: number(suited.len()),
            places: suited.iter().map(|(_, worker)| worker.info.slots).sum(),
            free_places: suited.iter().map(|(_, worker)| worker.info.slots.saturating_sub(taken(worker))).sum(),
            memory_bytes: suited.iter().map(|(_, worker)| left(worker)).max().unwrap_or(0),
        })
    }

    /// When a place is free for a stage with so many ahead, if all that runs goes on at its rate of now.
    fn earliest(&self, job: &JobState, position: usize, ahead: usize) -> Option<u64> {
        let suited = self.suited(job, position).ok()?;
        let leases = suited.iter().flat_map(|(id, worker)| worker.leases.keys().map(|lease| (*id, *lease)));
        let led = leases.filter(|(id, lease)| self.leads(*id, *lease).is_some());
        let mut ends: Vec<u64> = led.map(|(_, lease)| self.end_of(lease)).collect::<Option<_>>()?;
        ends.sort_unstable();
        let others = job.gang(position).saturating_sub(1) as usize;
        ends.get((ahead + others).min(ends.len().saturating_sub(1))).copied()
    }

    /// When a stage has its result, or is at the rung where its trial pauses, at the rate of now; `None` while no rate is
    /// known.
    fn end_of(&self, lease: LeaseId) -> Option<u64> {
        let (job, position) = self.state.record(self.state.live().get(&lease)?)?;
        let stage = &job.plan.stages[position];
        let leader = self.state.grant(lease)?.worker;
        let report = self.groups.get(&lease)?.paces.report(leader)?;
        let rows = f64::from(stage.recipe.training.batch_size) * f64::from(stage.recipe.training.accumulation.max(1));
        let until = job.pause_step(position).unwrap_or(stage.total_steps);
        let steps = until.saturating_sub(report.step) as f64;
        let seconds = steps * rows / report.examples_per_second;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time of less than a year")]
        let left_ms = (seconds.is_finite() && seconds < 3.2e7).then_some((seconds * 1000.0) as u64)?;
        Some(self.now_ms + left_ms)
    }

    fn slow(&self, job: &JobState, position: usize, grant: &Grant) -> Vec<Slow> {
        let Some(group) = self.groups.get(&grant.lease) else { return Vec::new() };
        let Some(report) = group.paces.report(grant.worker) else { return Vec::new() };
        let mut slow = Vec::new();
        if report.input_wait > MUCH_WAITING {
            slow.push(Slow::Input { share: report.input_wait });
        }
        if report.exchange_wait > MUCH_WAITING {
            slow.push(Slow::Communication { share: report.exchange_wait });
        }
        let training = &job.plan.stages[position].recipe.training;
        let of = training.lanes.saturating_mul(training.accumulation.max(1));
        for (worker, times) in self.shape(grant.lease, &grant.members()).stragglers {
            let lanes = group.paces.report(worker).map_or(0, |report| report.lanes);
            slow.push(Slow::Straggler { worker, times, lanes: (lanes, of) });
        }
        slow
    }

    fn needs(&self, job: &JobState, position: usize) -> Needs {
        let device = match job.plan.job.resources.device {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
        };
        Needs {
            device: device.to_owned(),
            memory_bytes: self.state.needed_bytes(job, position),
            corrected: self.state.corrected(job, position),
            class: job.stages[position].checkpoint.as_ref().map(|checkpoint| checkpoint.class.to_string()),
            gang: Some(job.gang(position)).filter(|gang| *gang > 1),
        }
    }
}
