//! An ended job that is submitted again: what of it counts still, and what is trained anew.

use graftwork_shared::id::Name;

use crate::{
    job::{JobState, StageRecord},
    phase::Phase,
    plan::{Plan, PlannedStage},
};

impl StageRecord {
    /// What is kept of it when its job is submitted again with the same recipe for it.
    fn reopened(&self, gone: bool) -> Self {
        let phase = match &self.phase {
            Phase::Published { release } if !gone => Phase::Published { release: release.clone() },
            _ if self.result.is_some() => Phase::Trained,
            _ => Phase::Pending,
        };
        Self { phase, failures: Vec::new(), retry_at_ms: None, preempted: None, ran_ms: 0, ..self.clone() }
    }
}

impl JobState {
    /// Stages of a new plan whose earlier results say nothing: another recipe, files that were touched since (an edit can
    /// keep a recipe; the hub's result is compared with the rows before it is used again), or a need of that kind.
    fn changed<'p>(&self, plan: &'p Plan) -> Vec<&'p Name> {
        let same =
            |stage: &PlannedStage| self.position(&stage.name).is_some_and(|at| stage.is_still(&self.plan.stages[at]));
        let mut changed: Vec<&Name> =
            plan.stages.iter().filter(|stage| !same(stage)).map(|stage| &stage.name).collect();
        loop {
            let needs = |stage: &&PlannedStage| stage.needs.iter().any(|needs| changed.contains(&needs));
            let more = plan.stages.iter().filter(needs).map(|stage| &stage.name);
            let more: Vec<&Name> = more.filter(|name| !changed.contains(name)).collect();
            if more.is_empty() {
                return changed;
            }
            changed.extend(more);
        }
    }

    pub(crate) fn reopen(&mut self, plan: &Plan, gone: &[Name]) {
        let mut plan = plan.clone();
        let (sweeps, fresh) = self.keep_sweeps(&mut plan);
        let changed = self.changed(&plan);
        let decided =
            |stage: &PlannedStage| stage.trial.as_ref().is_some_and(|trial| sweeps[&trial.task].chosen.is_some());
        let stages = plan.stages.iter().map(|stage| {
            let known = self.position(&stage.name).filter(|_| !fresh.contains(&stage.name));
            match known.filter(|_| !changed.contains(&&stage.name)) {
                Some(at) if decided(stage) => self.stages[at].clone(),
                Some(at) => self.stages[at].reopened(gone.contains(&stage.name)),
                None => StageRecord::new(),
            }
        });
        self.stages = stages.collect();
        self.sweeps = sweeps;
        self.plan = plan;
        self.cancelled = None;
        self.ended = None;
    }

    /// Whether submitting this plan after the job's end leaves something to do.
    pub(crate) fn reopens(&self, plan: &Plan, gone: &[Name]) -> bool {
        let mut again = self.clone();
        again.reopen(plan, gone);
        again.stages.iter().any(|record| !record.phase.is_final())
    }
}
