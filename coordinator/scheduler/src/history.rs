//! Reads what a run left behind (its facts, what people were told, the rows behind its results) and names what cannot be.
//!
//! It is a second reading: it keeps its own few numbers for each lease and stage and asks neither the fold nor the
//! machine, so that a mistake of theirs does not hide itself. Tests run it over every run of real programs and over every
//! simulated one.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{
    assignment::StageResult,
    digest::Digest,
    event::Event,
    id::{JobId, LeaseId, Name, Term, WorkerId},
};

use crate::{fact::Fact, message::StageKey, plan::Plan};

mod told;

/// What a run left behind.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// Every fact, from the first.
    pub facts: &'a [Fact],
    /// What people were told, in order; those who watched may have missed some.
    pub told: &'a [Event],
    /// By recipe: digests of the rows of each epoch as an undisturbed run trains them.
    pub rows: &'a BTreeMap<Digest, Vec<Digest>>,
    /// Members of a group were together after every update, as real ones are: losing one loses the update that was under
    /// way, and no more.
    pub in_lockstep: bool,
    /// Every update was reported, and those who watched missed no report but what was lost with a coordinator, or with
    /// whoever spoke for a group before it was formed anew.
    pub every_update: bool,
}

/// What cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// An update that was part of an accepted state was made again.
    StepTwice,
    /// An update was left out.
    StepMissed,
    /// In an epoch, a row was trained twice or not at all.
    RowsDiffer,
    /// Something was accepted under a lease that was not live, or of a stage that was another's.
    CommitOutsideLease,
    /// Two leases of one stage were live at a time, or a number was given twice.
    TwoLeases,
    /// A final state changed, or an end came twice.
    FinalChanged,
    /// What was acknowledged is not among the facts.
    AcknowledgedLost,
}

/// Something that cannot be, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub broken: Broken,
    /// Where, with what was seen.
    pub what: String,
}

/// Everything in a history that cannot be; nothing, if it is sound.
pub fn check(history: &History<'_>) -> Vec<Finding> {
    let mut reader = Reader::new(history);
    history.facts.iter().for_each(|fact| reader.read(fact));
    told::check(&reader, history.told).into_iter().for_each(|finding| reader.findings.push(finding));
    reader.findings
}

/// A lease that is live.
struct Live {
    key: StageKey,
    epoch: u64,
    members: Vec<WorkerId>,
}

/// A stage as the facts tell it.
#[derive(Default)]
struct Stage {
    /// Step of the accepted checkpoint.
    accepted: Option<u64>,
    trained: bool,
    /// It had its result when its job came again, so it may be published with that.
    kept: bool,
    /// It is published, failed or cancelled.
    is_final: bool,
}

/// What was read so far.
struct Reader<'a> {
    rows: &'a BTreeMap<Digest, Vec<Digest>>,
    in_lockstep: bool,
    every_update: bool,
    findings: Vec<Finding>,
    term: Term,
    last_lease: LeaseId,
    last_worker: WorkerId,
    /// Workers that the next coordinator can know again.
    known: BTreeSet<WorkerId>,
    plans: BTreeMap<JobId, Plan>,
    ended: BTreeSet<JobId>,
    live: BTreeMap<LeaseId, Live>,
    stages: BTreeMap<StageKey, Stage>,
    /// How often a stage was handed out, or its group formed anew.
    turns: BTreeMap<StageKey, usize>,
    /// Everything that people may be told of.
    happened: BTreeSet<(StageKey, String)>,
    jobs_ended: BTreeSet<(JobId, String)>,
}

impl<'a> Reader<'a> {
    fn new(history: &History<'a>) -> Self {
        Self {
            rows: history.rows,
            in_lockstep: history.in_lockstep,
            every_update: history.every_update,
            findings: Vec::new(),
            term: Term(0),
            last_lease: LeaseId(0),
            last_worker: WorkerId(0),
            known: BTreeSet::new(),
            plans: BTreeMap::new(),
            ended: BTreeSet::new(),
            live: BTreeMap::new(),
            stages: BTreeMap::new(),
            turns: BTreeMap::new(),
            happened: BTreeSet::new(),
            jobs_ended: BTreeSet::new(),
        }
    }

    fn find(&mut self, broken: Broken, what: String) {
        self.findings.push(Finding { broken, what });
    }

    fn read(&mut self, fact: &Fact) {
        match fact {
            Fact::TermStarted { term, .. } => {
                self.on_term(*term);
                self.live.clear();
            }
            Fact::TermContinued { term, .. } => {
                self.on_term(*term);
                let known = &self.known;
                self.live.retain(|_, live| live.members.iter().all(|member| known.contains(member)));
                let members: BTreeSet<WorkerId> = self.live.values().flat_map(|live| live.members.clone()).collect();
                self.known.retain(|worker| members.contains(worker));
            }
            Fact::WorkerJoined { worker, .. } => self.on_worker(*worker, false),
            Fact::WorkerEntered { worker, key, .. } => self.on_worker(*worker, !key.is_empty()),
            Fact::WorkerGone { worker } => drop(self.known.remove(worker)),
            Fact::JobSubmitted { plan, .. } => self.on_submitted(plan, &[]),
            Fact::JobReopened { plan, gone, .. } => {
                self.ended.remove(&plan.id());
                self.on_submitted(plan, gone);
            }
            Fact::StageLeased { job, stage, lease, worker, .. } => self.on_leased(key(job, stage), *lease, *worker),
            Fact::GroupFormed { lease, epoch, members, .. } => self.on_formed(*lease, *epoch, members),
            Fact::CheckpointAccepted { lease, step, .. } => self.on_accepted(*lease, *step),
            Fact::CheckpointLost { job, stage, .. } => self.stage(key(job, stage)).accepted = None,
            Fact::ResultLost { job, stage, .. } => *self.stage(key(job, stage)) = Stage::default(),
            Fact::LeaseReleased { lease, .. } => drop(self.end(*lease, "it was given back")),
            Fact::StagePreempted { lease, .. } => drop(self.end(*lease, "another stage took its place")),
            Fact::AttemptFailed { lease, retry_at_ms, .. } => {
                if let Some(live) = self.end(*lease, "its attempt failed") {
                    self.stage(live.key).is_final |= retry_at_ms.is_none();
                }
            }
            Fact::StageTrained { job, stage, lease, result, .. } => self.on_trained(key(job, stage), *lease, result),
            Fact::TrialScored { lease, .. } => {
                if let Some(lease) = lease {
                    self.end(*lease, "its trial pauses at a rung");
                }
            }
            Fact::TrialChosen { job, task, trial, .. } => self.on_swept(job, task, Some(*trial)),
            Fact::SweepFailed { job, task, .. } => self.on_swept(job, task, None),
            Fact::StagePublished { job, stage, release } => {
                let key = key(job, stage);
                let stage = self.stage(key.clone());
                if !stage.trained && !stage.kept {
                    self.find(Broken::CommitOutsideLease, format!("{key} was published without a result"));
                }
                self.happened.insert((key.clone(), format!("published {release}")));
                self.finish(key, "published");
            }
            Fact::PublishFailed { job, stage, retry_at_ms: None, .. } => self.finish(key(job, stage), "failed"),
            Fact::PublishFailed { .. }
            | Fact::ResourcesChanged { .. }
            | Fact::AttemptCost { .. }
            | Fact::MemoryMeasured { .. }
            | Fact::HistoryKept { .. }
            | Fact::RungDecided { .. } => {}
            Fact::StageCancelled { job, stage, .. } => self.finish(key(job, stage), "cancelled"),
            Fact::JobCancelled { job, .. } => self.on_cancelled(job),
            Fact::JobForgotten { job, .. } => self.on_forgotten(job),
            Fact::JobEnded { job, outcome, .. } => {
                if !self.ended.insert(job.clone()) {
                    self.find(Broken::FinalChanged, format!("job {job} ended twice"));
                }
                self.jobs_ended.insert((job.clone(), format!("{outcome:?}")));
            }
        }
    }

    /// It may come again as a new one.
    fn on_forgotten(&mut self, job: &JobId) {
        if !self.ended.remove(job) {
            self.find(Broken::AcknowledgedLost, format!("job {job} was forgotten before its end"));
        }
        self.plans.remove(job);
        self.stages.retain(|key, _| key.job != *job);
    }

    fn on_term(&mut self, term: Term) {
        if term <= self.term {
            self.find(Broken::AcknowledgedLost, format!("{term} began after {}", self.term));
        }
        self.term = term;
    }

    fn on_worker(&mut self, worker: WorkerId, known_again: bool) {
        if worker <= self.last_worker {
            self.find(Broken::TwoLeases, format!("the number of {worker} was given twice"));
        }
        self.last_worker = worker;
        if known_again {
            self.known.insert(worker);
        }
    }

    /// The trials of a task are over; the task goes on as the chosen one.
    fn on_swept(&mut self, job: &JobId, task: &Name, chosen: Option<u32>) {
        let Some(plan) = self.plans.get_mut(job) else {
            return self.find(Broken::AcknowledgedLost, format!("a sweep of {job} ended, which was never submitted"));
        };
        let sweep = plan.stage(task).and_then(|stage| stage.sweep.as_ref());
        let trials: Vec<Name> = sweep.map(|sweep| sweep.trials.clone()).unwrap_or_default();
        let fits = chosen.is_none_or(|chosen| plan.choose_trial(task, chosen).is_ok());
        self.live.retain(|_, live| live.key.job != *job || !trials.contains(&live.key.stage));
        // The task goes on from where the trial stands.
        let chosen_trial = chosen.and_then(|chosen| trials.get(usize::try_from(chosen).ok()?.checked_sub(1)?));
        if let Some(step) = chosen_trial.and_then(|trial| self.stage(key(job, trial)).accepted) {
            self.stage(key(job, task)).accepted = Some(step);
            self.happened.insert((key(job, task), format!("checkpoint {step}")));
        }
        if !fits {
            self.find(Broken::FinalChanged, format!("{task} of {job} has no trial {chosen:?} to choose"));
        }
    }

    fn stage(&mut self, key: StageKey) -> &mut Stage {
        self.stages.entry(key).or_default()
    }

    /// Of a job that comes again, what is final is open again, and what another plan says is begun anew.
    fn on_submitted(&mut self, plan: &Plan, gone: &[Name]) {
        let id = plan.id();
        let earlier = self.plans.insert(id.clone(), plan.clone());
        let mut changed: BTreeSet<&Name> = BTreeSet::new();
        // Stages that need others stand behind them in the plan.
        for stage in &plan.stages {
            let same = earlier.as_ref().and_then(|plan| plan.stage(&stage.name)).is_some_and(|of| of == stage);
            if !same || stage.needs.iter().any(|needs| changed.contains(needs)) {
                changed.insert(&stage.name);
            }
            let record = self.stage(key(&id, &stage.name));
            let kept = (record.trained || record.kept) && !changed.contains(&stage.name);
            let published = kept && record.is_final && !gone.contains(&stage.name);
            // Whether its results still say something is the scheduler's to judge; here they may come a second time.
            *record = Stage { is_final: false, trained: published, accepted: None, kept };
        }
    }

    fn on_leased(&mut self, key: StageKey, lease: LeaseId, worker: WorkerId) {
        if lease <= self.last_lease {
            self.find(Broken::TwoLeases, format!("the number of {lease} was given twice"));
        }
        self.last_lease = self.last_lease.max(lease);
        if let Some((other, _)) = self.live.iter().find(|(_, live)| live.key == key) {
            let what = format!("{key} was leased under {lease} while {other} was live");
            self.find(Broken::TwoLeases, what);
        }
        let stage = self.stage(key.clone());
        if stage.is_final || stage.trained {
            self.find(Broken::FinalChanged, format!("{key} was leased after its result"));
        }
        *self.turns.entry(key.clone()).or_default() += 1;
        self.live.insert(lease, Live { key, epoch: 0, members: vec![worker] });
    }

    fn on_formed(&mut self, lease: LeaseId, epoch: u64, members: &[WorkerId]) {
        let Some(live) = self.live.get_mut(&lease) else {
            return self.find(Broken::CommitOutsideLease, format!("a group formed under {lease}, which is not live"));
        };
        let (grows, before) = (epoch > live.epoch, live.epoch);
        let distinct = members.iter().collect::<BTreeSet<_>>().len() == members.len();
        (live.epoch, live.members) = (epoch, members.to_vec());
        *self.turns.entry(live.key.clone()).or_default() += 1;
        if !grows || !distinct || members.is_empty() {
            let what = format!("the group of {lease} after epoch {before} is epoch {epoch} of {members:?}");
            self.find(Broken::TwoLeases, what);
        }
    }

    fn on_accepted(&mut self, lease: LeaseId, step: u64) {
        let Some(key) = self.live.get(&lease).map(|live| live.key.clone()) else {
            return self.find(Broken::CommitOutsideLease, format!("step {step} was accepted under {lease}, not live"));
        };
        let earlier = self.stage(key.clone()).accepted.replace(step);
        if earlier.is_some_and(|earlier| step <= earlier) {
            self.find(Broken::StepTwice, format!("{key}: step {step} was accepted after step {earlier:?}"));
        }
        let total = self.planned(&key).map_or(u64::MAX, |stage| stage.total_steps);
        if step > total {
            self.find(Broken::StepTwice, format!("{key}: step {step} was accepted, but it has {total} updates"));
        }
        self.happened.insert((key, format!("checkpoint {step}")));
    }

    fn planned(&self, key: &StageKey) -> Option<&crate::plan::PlannedStage> {
        self.plans.get(&key.job)?.stage(&key.stage)
    }

    fn end(&mut self, lease: LeaseId, why: &str) -> Option<Live> {
        let live = self.live.remove(&lease);
        if live.is_none() {
            self.find(Broken::CommitOutsideLease, format!("{lease} ended ({why}) but was not live"));
        }
        live
    }

    fn on_trained(&mut self, key: StageKey, lease: Option<LeaseId>, result: &StageResult) {
        if let Some(lease) = lease {
            let of = self.end(lease, "its stage is trained").map(|live| live.key);
            if of.as_ref().is_some_and(|of| *of != key) {
                self.find(
                    Broken::CommitOutsideLease,
                    format!("{key} got its result under {lease}, which is another's"),
                );
            }
            self.check_steps(&key, result);
        }
        self.check_rows(&key, result);
        let stage = self.stage(key.clone());
        let again = stage.trained || stage.is_final;
        (stage.trained, stage.accepted) = (true, None);
        if again {
            self.find(Broken::FinalChanged, format!("{key} got a result twice"));
        }
        self.happened.insert((key, "result".to_owned()));
    }

    fn check_steps(&mut self, key: &StageKey, result: &StageResult) {
        let accepted = self.stage(key.clone()).accepted.unwrap_or(0);
        let Some(planned) = self.planned(key) else { return };
        let (total, early) = (planned.total_steps, planned.recipe.training.early_stopping.is_some());
        if result.steps > total {
            let what = format!("{key}: {} updates were made, but it has {total}", result.steps);
            self.find(Broken::StepTwice, what);
        } else if result.steps < accepted || (result.steps < total && !early) {
            let what = format!("{key}: {} updates of {total} were made, {accepted} accepted before", result.steps);
            self.find(Broken::StepMissed, what);
        }
        let scored: Vec<u64> = result.validation.iter().map(|scores| scores.step).collect();
        if !scored.is_sorted_by(|one, next| one < next) {
            self.find(Broken::StepTwice, format!("{key} was scored after the updates {scored:?}"));
        }
    }

    fn check_rows(&mut self, key: &StageKey, result: &StageResult) {
        let recipe = self.planned(key).map(|planned| planned.recipe_digest);
        let Some(expected) = recipe.and_then(|recipe| self.rows.get(&recipe)) else { return };
        let differ = (0..expected.len().max(result.epochs.len()))
            .find(|epoch| expected.get(*epoch) != result.epochs.get(*epoch));
        if let Some(epoch) = differ {
            let what = format!(
                "{key}: the rows of epoch {epoch} are {:?}, not {:?}",
                result.epochs.get(epoch),
                expected.get(epoch)
            );
            self.find(Broken::RowsDiffer, what);
        }
    }

    fn finish(&mut self, key: StageKey, how: &str) {
        if let Some((lease, _)) = self.live.iter().find(|(_, live)| live.key == key) {
            self.find(Broken::FinalChanged, format!("{key} was {how} while {lease} was live"));
        }
        if std::mem::replace(&mut self.stage(key.clone()).is_final, true) {
            self.find(Broken::FinalChanged, format!("{key} was {how} after it was final"));
        }
    }

    /// Stages without a result end with their job.
    fn on_cancelled(&mut self, job: &JobId) {
        if self.ended.contains(job) {
            self.find(Broken::FinalChanged, format!("job {job} was cancelled after its end"));
        }
        self.live.retain(|_, live| live.key.job != *job);
        let open = self.stages.iter_mut().filter(|(key, stage)| key.job == *job && !stage.trained);
        open.for_each(|(_, stage)| stage.is_final = true);
    }
}

fn key(job: &JobId, stage: &Name) -> StageKey {
    StageKey { job: job.clone(), stage: stage.clone() }
}
