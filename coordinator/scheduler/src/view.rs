//! Jobs as people see them: views and explanations, drawn from the state at one moment.
//!
//! Nothing here decides. Curves and validation scores of running stages are not durable and are added by the shell.

use std::{cell::OnceCell, collections::BTreeMap, fmt, ops::Bound};

use graftwork_shared::{
    assignment::{Failure, Usage},
    id::{JobId, Name, WorkerId},
    view::{JobView, Refusal, StageKind, StageState, StageView},
};
use serde::{Deserialize, Serialize};

use crate::{
    explain::Why,
    gang::{Gangs, Waiting},
    job::{JobState, StageRecord},
    machine::Scheduler,
    message::{StageKey, WorkerInfo},
    phase::Phase,
    plan::FusedSource,
    worker::Worker,
};

/// Why each stage of a job stands where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The job.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// Its stages in the plan's order.
    pub stages: Vec<StageExplanation>,
}

/// Why one stage stands where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageExplanation {
    /// The stage.
    pub stage: Name,
    /// Where it stands, with its data.
    pub data: StageState,
    /// The same in words.
    pub sentence: String,
    /// How often it was handed out.
    pub attempts: u32,
    /// Failures since the last progress, without the one for which it failed for good.
    pub failures: Vec<Failure>,
    /// Step of the last accepted checkpoint.
    pub checkpoint_step: Option<u64>,
    /// Place among the ready stages, from 0.
    pub queue: Option<usize>,
    /// What stands behind the sentence.
    #[serde(default)]
    pub why: Why,
}

/// A worker as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Its number.
    pub id: WorkerId,
    /// What it is.
    pub info: WorkerInfo,
    /// Stages that it holds under live leases.
    pub running: Vec<StageKey>,
    /// It was asked to leave.
    pub draining: bool,
    /// Milliseconds since 1970 when it was last heard of.
    pub seen_ms: u64,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "job {} ({})", self.name, self.job)?;
        let width = self.stages.iter().map(|stage| stage.stage.as_str().len()).max().unwrap_or(0);
        for stage in &self.stages {
            writeln!(f, "  {:width$}  {}", stage.stage, stage.sentence)?;
            let why = stage.why.to_string();
            if !why.is_empty() {
                writeln!(f, "  {:width$}  {why}", "")?;
            }
            for failure in &stage.failures {
                writeln!(f, "  {:width$}  earlier: {}", "", failure.message)?;
            }
        }
        Ok(())
    }
}

impl Scheduler {
    /// Ids of all jobs, newest first.
    pub fn jobs(&self) -> Vec<JobId> {
        let mut jobs: Vec<(&JobId, &JobState)> = self.state.jobs().iter().collect();
        jobs.sort_by_key(|(_, job)| std::cmp::Reverse(job.order));
        jobs.into_iter().map(|(id, _)| id.clone()).collect()
    }

    /// Ids of the jobs after this one in their order, and whether they have not ended.
    pub fn jobs_after(&self, id: Option<&JobId>) -> impl Iterator<Item = (&JobId, bool)> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.state.jobs().range((from, Bound::Unbounded)).map(|(id, job)| (id, job.ended.is_none()))
    }

    /// Workers with a session.
    pub fn workers(&self) -> Vec<WorkerView> {
        let view = |(id, worker): (&WorkerId, &crate::worker::Worker)| WorkerView {
            id: *id,
            info: worker.info.clone(),
            running: worker.leases.keys().filter_map(|lease| self.holds(*id, *lease).cloned()).collect(),
            draining: worker.draining,
            seen_ms: worker.seen_ms,
        };
        self.workers.iter().map(view).collect()
    }

    /// What the workers are that have a session, or may come back into one.
    pub fn infos(&self) -> impl Iterator<Item = (WorkerId, &WorkerInfo)> {
        self.workers.iter().map(|(id, worker)| (*id, &worker.info))
    }

    /// Whether a process of this name has a session, or may come back into one.
    pub fn knows_process(&self, key: &str) -> bool {
        key.is_empty() && self.infos().any(|(_, info)| info.key.is_empty())
            || self.board.fleet.processes.contains_key(key)
    }

    /// The same of one worker.
    pub fn info(&self, worker: WorkerId) -> Option<&WorkerInfo> {
        self.workers.get(&worker).map(|worker| &worker.info)
    }

    /// A job as it is now, without curves.
    pub fn view(&self, id: &JobId) -> Option<JobView> {
        let job = self.state.jobs().get(id)?;
        let line = Served::new(self);
        let stages = (0..job.stages.len()).map(|at| self.costly_view(job, at, &line)).collect();
        Some(JobView {
            id: id.clone(),
            digest: job.plan.digest,
            name: job.plan.job.name.clone(),
            owner: job.plan.job.owner.clone(),
            base_model: job.plan.job.base_model.location.clone(),
            base_model_digest: job.plan.base_model_digest,
            hub: job.plan.job.publish.hub.clone(),
            submitted_ms: job.submitted_ms,
            ended_ms: job.ended.map(|(at_ms, _)| at_ms),
            outcome: job.ended.map(|(_, outcome)| outcome),
            stages,
            usage: self.job_cost(job),
        })
    }

    /// Why each stage stands where it stands.
    pub fn explain(&self, id: &JobId) -> Option<Explanation> {
        let job = self.state.jobs().get(id)?;
        let line = Served::new(self);
        let explained = job.each().map(|(position, stage, record)| {
            let key = StageKey { job: id.clone(), stage: stage.name.clone() };
            let data = self.stage_state(job, position, &line);
            StageExplanation {
                stage: stage.name.clone(),
                sentence: self.sentence(job, position, &data),
                data,
                attempts: record.attempts,
                failures: earlier(record),
                checkpoint_step: record.checkpoint.as_ref().map(|checkpoint| checkpoint.step),
                why: self.why(job, position, &line),
                queue: line.place(&key),
            }
        });
        Some(Explanation { job: id.clone(), name: job.plan.job.name.clone(), stages: explained.collect() })
    }

    /// Where a stage stands, as people and programs see it.
    fn stage_state(&self, job: &JobState, position: usize, line: &Served<'_>) -> StageState {
        let record = &job.stages[position];
        let checkpoint_step = record.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
        match &record.phase {
            Phase::Pending if job.is_stopped(position) => Self::ended(job, position),
            Phase::Pending => {
                let for_stages = job.waits_for(position);
                if for_stages.is_empty() {
                    StageState::Ready { refusal: self.refusal(job, position, line) }
                } else {
                    StageState::Waiting { for_stages }
                }
            }
            Phase::Running(grant) => {
                StageState::Running { worker: grant.worker, others: grant.others.clone(), checkpoint_step }
            }
            Phase::Trained => StageState::Trained { reused: record.reused },
            Phase::Published { .. } => StageState::Published { reused: record.reused },
            Phase::Failed { failure } => StageState::Failed { failure: failure.clone() },
            Phase::Cancelled { reason } => StageState::Cancelled { reason: reason.clone() },
            Phase::Compared => Self::ended(job, position),
        }
    }

    fn ended(job: &JobState, position: usize) -> StageState {
        job.trial_end(position).unwrap_or(StageState::Stopped { rung: 0 })
    }

    /// Why a ready stage does not run.
    fn refusal(&self, job: &JobState, position: usize, line: &Served<'_>) -> Refusal {
        let key = StageKey { job: job.plan.id(), stage: job.plan.stages[position].name.clone() };
        match self.choose_behind(job, position, line.gangs_before(&key)) {
            Err(Refusal::Busy { workers, slots, .. }) => Refusal::Busy { workers, slots, ahead: line.ahead_of(&key) },
            Err(refusal) => refusal,
            // Whatever can be handed out is handed out before a view can be drawn; see invariant 7's check.
            Ok(_) => Refusal::Busy { workers: 0, slots: 0, ahead: line.ahead_of(&key) },
        }
    }

    fn sentence(&self, job: &JobState, position: usize, state: &StageState) -> String {
        let (stage, record) = (&job.plan.stages[position], &job.stages[position]);
        if let Some(sentence) = job.sweep_sentence(position, state) {
            return sentence;
        }
        let from_hub = |reused: &bool| if *reused { ", taken from an earlier result of the same recipe" } else { "" };
        match state {
            StageState::Waiting { for_stages } => {
                let names: Vec<&str> = for_stages.iter().map(Name::as_str).collect();
                format!("waits for {}", names.join(", "))
            }
            StageState::Ready { refusal } => format!("ready, but {refusal}"),
            StageState::Running { worker, others, checkpoint_step } => {
                let place = |worker| self.workers.get(worker).map_or("gone", |worker| worker.info.place.as_str());
                let members = std::iter::once(worker).chain(others);
                let members: Vec<String> = members.map(|worker| format!("{worker} ({})", place(worker))).collect();
                let total = stage.total_steps;
                let away = match self.workers.get(worker).and_then(Worker::kept_because) {
                    Some(reason) => format!("; {reason}, so {worker} keeps it"),
                    None => String::new(),
                };
                format!("runs on {}; step {checkpoint_step} of {total} is safe{away}", members.join(", "))
            }
            StageState::Trained { reused } => match record.failures.last() {
                None => format!("trained{}; being published", from_hub(reused)),
                Some(failure) => format!("trained; publishing is tried again after: {}", failure.message),
            },
            StageState::Published { reused } => format!("published{}", from_hub(reused)),
            StageState::Failed { failure } => format!("failed: {}", failure.message),
            StageState::Cancelled { reason } => format!("cancelled: {reason}"),
            StageState::Stopped { rung } => format!("stopped at rung {}: others scored better", rung + 1),
            StageState::Chosen => "chosen: it became its task".to_owned(),
        }
    }

    fn costly_view(&self, job: &JobState, position: usize, line: &Served<'_>) -> StageView {
        let usage = self.stage_cost(&job.stages[position]);
        let (sweep, trial) = (self.sweep_view(job, position), job.trial_view(position));
        let state = self.stage_state(job, position, line);
        let why = self.why_not_ended(job, position, (&state, line));
        StageView { usage, sweep, trial, why, ..Self::stage_view(job, position, state) }
    }

    /// What `explain` says of a stage that waits or runs. That there is no worker is no news of an interrupted job.
    fn why_not_ended(&self, job: &JobState, position: usize, (state, line): (&StageState, &Served<'_>)) -> String {
        let told = match state {
            StageState::Ready { refusal } => *refusal != Refusal::NoWorker,
            state => matches!(state, StageState::Waiting { .. } | StageState::Running { .. }),
        };
        let words = [self.sentence(job, position, state), self.why(job, position, line).to_string()];
        if told {
            words.into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join("; ")
        } else {
            String::new()
        }
    }

    /// Without what it cost and why it stands where it does.
    pub(crate) fn stage_view(job: &JobState, position: usize, state: StageState) -> StageView {
        use graftwork_shared::head::HeadOutput;
        let (stage, record) = (&job.plan.stages[position], &job.stages[position]);
        let labels = match &stage.recipe.head.output {
            HeadOutput::Classification { labels } => labels.clone(),
            HeadOutput::Regression => Vec::new(),
        };
        let release = match &record.phase {
            Phase::Published { release } => Some(release.clone()),
            _ => None,
        };
        StageView {
            name: stage.name.clone(),
            kind: stage.kind,
            needs: stage.needs.clone(),
            fused: match stage.kind {
                StageKind::Adapter => Vec::new(),
                StageKind::Fusion => stage.fused.iter().map(FusedSource::name).collect(),
            },
            task: stage.task.clone(),
            method: stage.method.clone(),
            rows: [stage.train.rows, stage.validation.rows, stage.test.as_ref().map_or(0, |test| test.rows)],
            labels,
            recipe: stage.recipe_digest,
            total_steps: stage.total_steps,
            trained_parameters: stage.trained_parameters,
            metric: stage.recipe.metric,
            expect: stage.expect,
            sweep: None,
            trial: None,
            state,
            why: String::new(),
            curve: Vec::new(),
            validation: record.result.as_ref().map(|result| result.validation.clone()).unwrap_or_default(),
            result: record.result.clone(),
            usage: Usage::default(),
            preempted: record.preempted.clone(),
            release,
        }
    }
}

/// All ready stages in the order in which they are served, found once for a view, and only if one of its stages is ready.
pub(crate) struct Served<'s> {
    scheduler: &'s Scheduler,
    order: OnceCell<(Vec<StageKey>, BTreeMap<StageKey, usize>)>,
    gangs: OnceCell<Gangs>,
}

impl<'s> Served<'s> {
    fn new(scheduler: &'s Scheduler) -> Self {
        Self { scheduler, order: OnceCell::new(), gangs: OnceCell::new() }
    }

    fn order(&self) -> &(Vec<StageKey>, BTreeMap<StageKey, usize>) {
        self.order.get_or_init(|| {
            let order = self.scheduler.ready();
            let places = order.iter().cloned().zip(0..).collect();
            (order, places)
        })
    }

    fn place(&self, key: &StageKey) -> Option<usize> {
        let ready = self.scheduler.state.record(key).is_some_and(|(job, at)| job.is_ready(at));
        ready.then(|| self.order().1.get(key).copied()).flatten()
    }

    /// The gangs that wait and are served before this stage.
    fn gangs_before(&self, key: &StageKey) -> &[Waiting] {
        let (order, places) = self.order();
        let gangs = self.gangs.get_or_init(|| self.scheduler.gangs_in(order));
        gangs.before(places.get(key).copied().unwrap_or(order.len()))
    }

    /// The ready stages that are served before this one.
    pub(crate) fn before(&self, key: &StageKey) -> &[StageKey] {
        let (order, places) = self.order();
        &order[..places.get(key).copied().unwrap_or(order.len())]
    }

    fn ahead_of(&self, key: &StageKey) -> Vec<Name> {
        self.before(key).iter().map(|other| other.stage.clone()).collect()
    }
}

/// Failures that are not told as the stage's end: its sentence says that one.
fn earlier(record: &StageRecord) -> Vec<Failure> {
    let mut failures = record.failures.clone();
    if matches!(record.phase, Phase::Failed { .. }) {
        failures.pop();
    }
    failures
}
