//! What is looked up of one job: positions by name, who needs whom, and counts of what is missing.
//!
//! All of it follows from the job's plan and records; [`JobIndex::update`] follows a record that changed, and costs the
//! stages around it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use graftwork_shared::{
    digest::Digest,
    id::{LeaseId, Name, WorkerId},
    view::StageKind,
};

use crate::{
    job::JobState,
    phase::{Grant, Phase},
    plan::{Plan, PlannedStage},
    share::device_ms,
};

/// What follows from the plan alone.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Shape {
    pub(crate) owner: String,
    pub(crate) priority: i32,
    at: BTreeMap<Name, usize>,
    pub(crate) needs: Vec<Vec<usize>>,
    /// Who needs it.
    pub(crate) dependents: Vec<Vec<usize>>,
    /// Of one update.
    pub(crate) tokens: Vec<u64>,
    pub(crate) kinds: Vec<StageKind>,
    /// Swept tasks with their trials' positions, in the plan's order.
    pub(crate) sweeps: BTreeMap<usize, Vec<usize>>,
    /// Blobs that the plan itself refers to.
    pub(crate) blobs: BTreeSet<Digest>,
    /// Positions, whoever needs another one before that one.
    last_first: Vec<usize>,
}

/// Where a stage stands, as far as anything is counted by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stand {
    #[default]
    Pending,
    Running,
    Trained,
    Over,
}

/// What was last seen of a stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Mark {
    pub(crate) stand: Stand,
    pub(crate) has_result: bool,
    /// Work that is left in it, in tokens.
    pub(crate) remaining: u64,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) holders: Vec<WorkerId>,
    pub(crate) running_ms: u64,
    pub(crate) blobs: BTreeSet<Digest>,
    /// While the job has not ended.
    pub(crate) retry_at_ms: Option<u64>,
    pub(crate) limit_ms: Option<u64>,
}

/// What is looked up of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct JobIndex {
    pub(crate) shape: Arc<Shape>,
    pub(crate) marks: Vec<Mark>,
    /// Needs without a result, of each stage.
    missing: Vec<u32>,
    /// Needs that will never have one.
    hopeless: Vec<u32>,
    /// Work that is left in a stage without a result and in the longest chain of those that wait for it.
    chain: Vec<u64>,
    /// Stages that may have to be given up.
    pub(crate) doomed: BTreeSet<usize>,
    /// Stages that are not final, and those of them that run or have their result.
    pub(crate) open: usize,
    pub(crate) busy: usize,
    /// Work that is left in all of them, adapters and fusions, in tokens.
    pub(crate) left: [u64; 2],
    /// Members of the groups that hold leases of them.
    pub(crate) held: usize,
    /// Those that run, by the work that is left for each member, the most first.
    pub(crate) running: BTreeSet<(Reverse<u64>, usize)>,
}

impl Shape {
    fn of(plan: &Plan) -> Self {
        let at: BTreeMap<Name, usize> = plan.stages.iter().enumerate().map(|(at, s)| (s.name.clone(), at)).collect();
        let positions = |names: &[Name]| names.iter().filter_map(|name| at.get(name).copied()).collect::<Vec<usize>>();
        let needs: Vec<Vec<usize>> = plan.stages.iter().map(|stage| positions(&stage.needs)).collect();
        let mut dependents = vec![Vec::new(); needs.len()];
        for (of, needs) in needs.iter().enumerate() {
            needs.iter().for_each(|need| dependents[*need].push(of));
        }
        let sweeps = plan.stages.iter().enumerate();
        let sweeps = sweeps.filter_map(|(at, stage)| Some((at, positions(&stage.sweep.as_ref()?.trials))));
        let external = plan.stages.iter().flat_map(PlannedStage::blobs);
        Self {
            owner: plan.job.owner.clone(),
            priority: plan.job.priority,
            tokens: plan.stages.iter().map(PlannedStage::tokens_per_step).collect(),
            kinds: plan.stages.iter().map(|stage| stage.kind).collect(),
            sweeps: sweeps.collect(),
            blobs: external.chain(plan.uploads.iter().copied()).collect(),
            last_first: last_first(&needs, &dependents),
            at,
            needs,
            dependents,
        }
    }
}

fn last_first(needs: &[Vec<usize>], dependents: &[Vec<usize>]) -> Vec<usize> {
    let mut waiting: Vec<usize> = dependents.iter().map(Vec::len).collect();
    let mut order: Vec<usize> = (0..needs.len()).filter(|at| waiting[*at] == 0).collect();
    let mut next = 0;
    while next < order.len() {
        for need in &needs[order[next]] {
            waiting[*need] -= 1;
            if waiting[*need] == 0 {
                order.push(*need);
            }
        }
        next += 1;
    }
    order
}

impl Mark {
    fn of(job: &JobState, shape: &Shape, at: usize) -> Self {
        let record = &job.stages[at];
        let grant = record.phase.grant();
        Self {
            stand: match &record.phase {
                Phase::Pending => Stand::Pending,
                Phase::Running(_) => Stand::Running,
                Phase::Trained => Stand::Trained,
                Phase::Published { .. } | Phase::Failed { .. } | Phase::Cancelled { .. } | Phase::Compared => {
                    Stand::Over
                }
            },
            has_result: record.result.is_some(),
            remaining: job.remaining(at, shape.tokens[at]),
            lease: grant.map(|grant| grant.lease),
            holders: grant.map(Grant::members).unwrap_or_default(),
            running_ms: grant.map_or(0, |_| device_ms(&record.running)),
            blobs: record.blobs().collect(),
            retry_at_ms: record.retry_at_ms.filter(|_| job.ended.is_none()),
            limit_ms: job.limit_ms(at),
        }
    }

    /// It will never have a result.
    fn is_hopeless(&self) -> bool {
        self.stand == Stand::Over && !self.has_result
    }

    /// Its place among those that run.
    fn share_of_each(&self, at: usize) -> Option<(Reverse<u64>, usize)> {
        let members = self.holders.len() as u64;
        (members > 0).then(|| (Reverse(self.remaining / members), at))
    }

    /// Work that is left in it and will be done.
    fn open_work(&self) -> u64 {
        if self.has_result || self.stand == Stand::Over { 0 } else { self.remaining }
    }
}

impl JobIndex {
    pub(crate) fn of(job: &JobState) -> Self {
        let shape = Shape::of(&job.plan);
        let count = job.stages.len();
        let marks: Vec<Mark> = (0..count).map(|at| Mark::of(job, &shape, at)).collect();
        let needs = |at: usize, holds: fn(&Mark) -> bool| {
            let needs = shape.needs[at].iter().filter(|need| holds(&marks[**need])).count();
            u32::try_from(needs).unwrap_or(u32::MAX)
        };
        let missing = (0..count).map(|at| needs(at, |mark| !mark.has_result)).collect();
        let hopeless = (0..count).map(|at| needs(at, Mark::is_hopeless)).collect();
        let mut index = Self { missing, hopeless, chain: vec![0; count], ..Self::default() };
        index.open = marks.iter().filter(|mark| mark.stand != Stand::Over).count();
        index.busy = marks.iter().filter(|mark| matches!(mark.stand, Stand::Running | Stand::Trained)).count();
        (index.shape, index.marks) = (Arc::new(shape), marks);
        for (at, mark) in index.marks.clone().iter().enumerate() {
            index.add_work(at, mark);
        }
        for at in index.shape.last_first.clone() {
            index.chain[at] = index.chain_of(at);
        }
        for at in 0..count {
            index.judge(job, at);
        }
        index
    }

    /// The position of a stage.
    pub(crate) fn position(&self, name: &Name) -> Option<usize> {
        self.shape.at.get(name).copied()
    }

    /// Whether all that it needs has its result.
    pub(crate) fn has_needs(&self, at: usize) -> bool {
        self.missing[at] == 0
    }

    pub(crate) fn chain(&self, at: usize) -> u64 {
        self.chain[at]
    }

    /// Counts the work of a stage that stands so.
    fn add_work(&mut self, at: usize, mark: &Mark) {
        let left = &mut self.left[self.shape.kinds[at] as usize];
        *left = left.saturating_add(mark.open_work());
        self.held += mark.holders.len();
        self.running.extend(mark.share_of_each(at));
    }

    /// Counts it no more.
    fn take_work(&mut self, at: usize, mark: &Mark) {
        let left = &mut self.left[self.shape.kinds[at] as usize];
        *left = left.saturating_sub(mark.open_work());
        self.held -= mark.holders.len();
        mark.share_of_each(at).map(|place| self.running.remove(&place));
    }

    fn chain_of(&self, at: usize) -> u64 {
        if self.marks[at].has_result {
            return 0;
        }
        let waiting = self.shape.dependents[at].iter().filter(|next| !self.marks[**next].has_result);
        let longest = waiting.map(|next| self.chain[*next]).max().unwrap_or(0);
        self.marks[at].remaining.saturating_add(longest)
    }

    fn judge(&mut self, job: &JobState, at: usize) {
        let doomed = match self.marks[at].stand {
            Stand::Pending if job.cancelled.is_some() => true,
            Stand::Pending | Stand::Trained => self.hopeless[at] > 0 && job.plan.stages[at].sweep.is_none(),
            Stand::Running | Stand::Over => false,
        };
        if doomed {
            self.doomed.insert(at);
        } else {
            self.doomed.remove(&at);
        }
    }

    /// Follows a stage whose record may have changed. Gives what was known of it, if it has, and adds to `around` the
    /// stages for which that may mean something.
    pub(crate) fn update(&mut self, job: &JobState, at: usize, around: &mut Vec<usize>) -> Option<Mark> {
        let mark = Mark::of(job, &self.shape, at);
        around.push(at);
        if mark == self.marks[at] {
            self.judge(job, at);
            return None;
        }
        let old = std::mem::replace(&mut self.marks[at], mark.clone());
        self.take_work(at, &old);
        self.add_work(at, &mark);
        let (had, has) = (old.has_result, mark.has_result);
        let (was_hopeless, is_hopeless) = (old.is_hopeless(), mark.is_hopeless());
        self.open = self.open + usize::from(mark.stand != Stand::Over) - usize::from(old.stand != Stand::Over);
        let busy = |stand: Stand| usize::from(matches!(stand, Stand::Running | Stand::Trained));
        self.busy = self.busy + busy(mark.stand) - busy(old.stand);
        self.judge(job, at);
        let shape = Arc::clone(&self.shape);
        if (had, was_hopeless) != (has, is_hopeless) {
            for next in &shape.dependents[at] {
                self.missing[*next] = self.missing[*next] + u32::from(!has) - u32::from(!had);
                self.hopeless[*next] = self.hopeless[*next] + u32::from(is_hopeless) - u32::from(was_hopeless);
                self.judge(job, *next);
                around.push(*next);
            }
        }
        self.follow_chains(&shape, at, had != has, around);
        Some(old)
    }

    /// Work that is left has changed: so have the chains that lead to it, as far as they have no result.
    fn follow_chains(&mut self, shape: &Shape, at: usize, force: bool, around: &mut Vec<usize>) {
        let mut changed = vec![(at, force)];
        while let Some((at, force)) = changed.pop() {
            let chain = self.chain_of(at);
            if chain != self.chain[at] || force {
                self.chain[at] = chain;
                around.push(at);
                let before = shape.needs[at].iter().filter(|need| !self.marks[**need].has_result);
                changed.extend(before.map(|need| (*need, false)));
            }
        }
    }
}
