//! The machine: `apply(now, event) -> decision`.
//!
//! It owns no clock, socket, file, thread or random source: time is an argument, and whatever must happen is returned.
//! All that is durable changes through facts alone ([`State::fold`]), on the way in and at recovery (invariants 4
//! and 6). Workers, open questions to the hub and running publications are of the moment and are lost with it.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{
    digest::Digest,
    event::EventKind,
    id::{JobId, LeaseId, Name, WorkerId},
    job::Resources,
};

use crate::{
    attempt::machine_failure,
    cost::Part,
    fact::Fact,
    group::{Group, Role},
    index::Board,
    message::{Command, Decision, Event, StageKey},
    phase::Phase,
    plan::Plan,
    share::Quota,
    state::{FoldError, State},
    worker::Worker,
};

/// The numbers by which the machine judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A worker that was silent for so long is given up; one on a slow link later, see `worker.rs`.
    pub silence_ms: u64,
    /// A worker whose connection broke has so long to come back with its leases; 0 gives it up at once.
    pub grace_ms: u64,
    /// A worker that held a lease when the coordinator ended has so long to come back to the next one.
    pub return_ms: u64,
    /// Failures of the machine's kind without progress between them after which a stage fails for good.
    pub attempts: u32,
    /// Wait before the second attempt; doubles with each further one.
    pub backoff_ms: u64,
    /// Longest wait between attempts.
    pub backoff_most_ms: u64,
    /// A stage gets a further worker with so many updates left, or with two that hold `grow_tokens` tokens: with less, loading
    /// would cost more than it brings.
    pub grow_steps: u64,
    /// See `grow_steps`; a processor of two cores takes some seconds for so many.
    pub grow_tokens: u64,
    /// How long the cause of a broken group may take to be seen before the same members try again.
    pub broken_wait_ms: u64,
    /// How long those who are asked for their place may take to checkpoint and give it back.
    pub release_ms: u64,
    /// How long lanes stay after they moved from a straggler; doubles each time.
    pub reshape_ms: u64,
    /// What owners may have at a time; `*` stands for every owner that is not named.
    pub quotas: BTreeMap<String, Quota>,
    /// Workers are sent home when the coordinator stops. Otherwise they work on under their leases, and the next coordinator
    /// takes them up.
    pub sends_home: bool,
}

impl Default for Policy {
    fn default() -> Self {
        // A connection that broke is noticed on both sides, and a process that lives is back within tenths of a second.
        // Silence is another thing: it may be a machine that stands still, or a network that loses everything.
        Self {
            silence_ms: 10_000,
            grace_ms: 1_500,
            // Twice the longest wait between two tries of a worker, and some.
            return_ms: 5_000,
            attempts: 5,
            backoff_ms: 500,
            backoff_most_ms: 60_000,
            grow_steps: 20,
            grow_tokens: 32_768,
            broken_wait_ms: 250,
            release_ms: 30_000,
            reshape_ms: 30_000,
            quotas: BTreeMap::new(),
            sends_home: false,
        }
    }
}

impl Policy {
    /// Whether so many updates of so many tokens are work enough for one more worker.
    pub(crate) fn is_worth_joining(&self, updates: u64, tokens: u64) -> bool {
        updates >= self.grow_steps || (updates > 1 && updates.saturating_mul(tokens) >= self.grow_tokens)
    }

    /// The wait after so many failures before the one of now.
    pub(crate) fn wait_ms(&self, before: u32) -> u64 {
        self.backoff_ms.saturating_mul(1 << before.min(32)).min(self.backoff_most_ms)
    }
}

/// The scheduler. See the crate's documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduler {
    pub(crate) policy: Policy,
    pub(crate) state: State,
    pub(crate) workers: BTreeMap<WorkerId, Worker>,
    pub(crate) groups: BTreeMap<LeaseId, Group>,
    pub(crate) reuse: BTreeMap<StageKey, Reuse>,
    pub(crate) publishing: BTreeSet<StageKey>,
    /// What each holder of a live lease last told its part to have cost, where that is not durable yet.
    pub(crate) costs: BTreeMap<LeaseId, BTreeMap<WorkerId, Part>>,
    /// Tokens a second of one place, by base model and kind of stage, as far as they are measured.
    pub(crate) rates: BTreeMap<Digest, [Option<f64>; 2]>,
    /// Jobs of which it was told that nothing of them can run here.
    pub(crate) stuck: BTreeSet<JobId>,
    pub(crate) stopping: Option<String>,
    pub(crate) now_ms: u64,
    pub(crate) out: Decision,
    /// What is looked up of all this.
    pub(crate) board: Board,
}

/// The question to the hub, asked once for a stage that was never handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    Asked,
    Answered,
}

/// Where a job stands for one who submits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Never submitted.
    Unknown,
    /// It has not ended.
    Active,
    /// It has ended; submitting it again reopens what is left to do.
    Ended,
}

impl Scheduler {
    /// Takes over a state: the next term begins. Leases go on whose holders can come back (`term.rs`), others end.
    pub fn start(policy: Policy, state: State, now_ms: u64) -> (Self, Decision) {
        let mut machine = Self {
            policy,
            state,
            workers: BTreeMap::new(),
            groups: BTreeMap::new(),
            reuse: BTreeMap::new(),
            publishing: BTreeSet::new(),
            costs: BTreeMap::new(),
            rates: BTreeMap::new(),
            stuck: BTreeSet::new(),
            stopping: None,
            now_ms,
            out: Decision::default(),
            board: Board::default(),
        };
        machine.begin_term();
        machine.remake();
        for (id, stages) in machine.active_jobs() {
            machine.tell(&id, None, EventKind::JobStarted { stages, resumed: true });
        }
        machine.settle();
        let decision = std::mem::take(&mut machine.out);
        (machine, decision)
    }

    /// The numbers by which it judges.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What is durable once the facts given so far are.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Reacts to an event.
    pub fn apply(&mut self, now_ms: u64, event: Event) -> Decision {
        // A clock that is set back must not make deadlines move away.
        let before_ms = self.now_ms;
        self.now_ms = before_ms.max(now_ms);
        self.pass_time(before_ms);
        self.on_event(event);
        self.expire();
        self.enforce_limits();
        self.take_places();
        self.mend_groups();
        self.settle();
        self.admit_prepared();
        self.place();
        self.tell_stuck();
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Tick`] is due if nothing else happens before.
    pub fn next_deadline(&self) -> Option<u64> {
        let worker = self.board.fleet.deadlines.first().map(|(at, _)| *at);
        let later = self.now_ms + 1;
        let retry = self.state.index.retries.range(later..).next().map(|(at, _)| *at);
        let group = self.board.leases.moments.range((later, LeaseId(0))..).next().map(|(at, _)| *at);
        [worker, retry, group, self.next_limit_ms()].into_iter().flatten().min()
    }

    /// Whether nothing is under way: no live lease, no publication.
    pub fn is_idle(&self) -> bool {
        self.state.live().is_empty() && self.publishing.is_empty()
    }

    /// Whether a publication is under way.
    pub fn is_publishing(&self) -> bool {
        !self.publishing.is_empty()
    }

    /// Where a job stands.
    pub fn standing(&self, job: &JobId) -> Standing {
        match self.state.jobs().get(job) {
            None => Standing::Unknown,
            Some(job) if job.ended.is_some() => Standing::Ended,
            Some(_) => Standing::Active,
        }
    }

    /// The plan of a job.
    pub fn plan(&self, job: &JobId) -> Option<&Plan> {
        self.state.jobs().get(job).map(|job| &job.plan)
    }

    /// The result of a stage.
    pub fn result(&self, key: &StageKey) -> Option<&graftwork_shared::assignment::StageResult> {
        self.state.jobs().get(&key.job)?.result(&key.stage)
    }

    /// The stage that a worker holds under a live lease: alone, as a member of its group, or on its way into it.
    pub fn holds(&self, worker: WorkerId, lease: LeaseId) -> Option<&StageKey> {
        self.role(worker, lease)?;
        self.state.live().get(&lease)
    }

    /// The stage for which a worker speaks under a live lease: it holds it alone, or has rank 0 in its group.
    pub fn leads(&self, worker: WorkerId, lease: LeaseId) -> Option<&StageKey> {
        self.role(worker, lease).filter(|role| *role == Role::Leads)?;
        self.state.live().get(&lease)
    }

    /// The epoch of the group that holds a lease; `None` once it is not live.
    pub fn epoch(&self, lease: LeaseId) -> Option<u64> {
        self.state.grant(lease).map(|grant| grant.epoch)
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Submitted { plan, gone } => self.on_submitted(plan, gone),
            Event::Cancel { job, reason } => self.on_cancel(&job, &reason),
            Event::Forget { job } => self.on_forget(job),
            Event::KeepHistory { history, files } => self.on_keep_history(history, files),
            Event::Resources { job, resources } => self.on_resources(job, resources),
            Event::WorkerJoined { session, info, leases } => self.on_worker_joined(session, info, &leases),
            Event::LinkLost { worker, reason } => self.on_link_lost(worker, reason),
            Event::WorkerLeft { worker, reason } => self.remove_worker(worker, &reason),
            Event::Heartbeat { worker, leases } => self.on_heartbeat(worker, &leases),
            Event::RoundTrip { worker, round_trip_ms } => self.on_round_trip(worker, round_trip_ms),
            Event::Progress { worker, lease } => {
                self.on_lease_message(worker, lease);
            }
            Event::Stepped { worker, lease, report } => self.on_stepped((worker, lease), &report),
            Event::Checkpointed { worker, lease, step, blob } => {
                if let Some(key) = self.on_leaders_message(worker, lease) {
                    self.on_checkpointed(&key, (worker, lease), step, blob);
                }
            }
            Event::Finished { worker, lease, result } => {
                if let Some(key) = self.on_leaders_message(worker, lease) {
                    self.on_finished(&key, (worker, lease), result);
                }
                self.free(worker, lease);
            }
            Event::Paused { worker, lease, evaluation, finished } => {
                if let Some(key) = self.on_leaders_message(worker, lease) {
                    self.on_paused(&key, (worker, lease), &evaluation, finished);
                }
                self.free(worker, lease);
            }
            Event::Failed { worker, lease, failure } => {
                if let Some(key) = self.on_lease_message(worker, lease) {
                    self.lose_holder(&key, (worker, lease), failure);
                }
                self.free(worker, lease);
            }
            Event::Released { worker, lease } => self.on_released(worker, lease),
            Event::Spent { worker, lease, usage } => {
                if self.on_lease_message(worker, lease).is_some() {
                    self.on_spent(worker, lease, usage);
                }
            }
            Event::Prepared { worker, lease } => self.on_prepared(worker, lease),
            Event::Broken { worker, lease, epoch, reason } => self.on_broken((worker, lease), epoch, &reason),
            Event::Waits { worker, lease, epoch, step } => self.on_waits((worker, lease), epoch, step),
            Event::DrainWorker { worker, reason } => self.drain(worker, &reason),
            Event::Leaving { worker } => self.on_leaving(worker),
            Event::Holds { worker, holdings } => self.on_holds(worker, holdings),
            Event::StoodStill { gap_ms } => self.on_stood_still(gap_ms),
            Event::Stop { reason } => {
                if self.policy.sends_home {
                    for worker in self.workers.keys().copied().collect::<Vec<_>>() {
                        self.drain(worker, &reason);
                    }
                }
                self.stopping = Some(reason);
            }
            Event::Reusable { key, result } => self.on_reusable(&key, result),
            Event::Published { key, release } => self.on_published(&key, release),
            Event::PublishFailed { key, failure } => self.on_publish_failed(&key, failure),
            Event::BlobLost { blob } => self.on_blob_lost(blob),
            Event::Tick => {}
        }
    }

    fn on_submitted(&mut self, plan: Box<Plan>, gone: Vec<Name>) {
        let id = plan.id();
        let resumed = match self.state.jobs().get(&id) {
            None => false,
            Some(job) if job.ended.is_some() && job.reopens(&plan, &gone) => true,
            Some(_) => return,
        };
        if self.too_many_jobs(&plan).is_some() {
            return;
        }
        let stages = u32::try_from(plan.stages.len()).unwrap_or(u32::MAX);
        let at_ms = self.now_ms;
        self.forget_answers(&id);
        self.record(if resumed { Fact::JobReopened { plan, gone, at_ms } } else { Fact::JobSubmitted { plan, at_ms } });
        self.tell(&id, None, EventKind::JobStarted { stages, resumed });
    }

    /// A job is submitted again: what the hub said before says nothing.
    pub(crate) fn forget_answers(&mut self, id: &JobId) {
        let first = "0".parse().expect("the first of all names");
        let answers = self.reuse.range(StageKey { job: id.clone(), stage: first }..);
        let answers: Vec<StageKey> = answers.map(|(key, _)| key).take_while(|key| key.job == *id).cloned().collect();
        for key in answers {
            self.set_reuse(&key, None);
        }
    }

    fn on_resources(&mut self, job: JobId, resources: Resources) {
        let known = self.state.jobs().get(&job).filter(|job| job.ended.is_none());
        if known.is_some_and(|job| job.plan.job.resources != resources) {
            self.record(Fact::ResourcesChanged { job, resources });
        }
    }

    fn on_cancel(&mut self, id: &JobId, reason: &str) {
        if self.standing(id) != Standing::Active || self.state.jobs()[id].cancelled.is_some() {
            return;
        }
        let grants = self.state.jobs()[id].stages.iter().filter_map(|record| record.phase.grant());
        for lease in grants.map(|grant| grant.lease).collect::<Vec<_>>() {
            self.keep_cost(lease);
            self.dismiss(lease, None);
        }
        self.record(Fact::JobCancelled { job: id.clone(), reason: reason.to_owned(), at_ms: self.now_ms });
    }

    /// Every message about a lease comes through here: of one that is not live nothing is heard (invariant 2).
    pub(crate) fn on_lease_message(&mut self, worker: WorkerId, lease: LeaseId) -> Option<StageKey> {
        if !self.workers.contains_key(&worker) {
            return None;
        }
        self.hear(worker);
        let key = self.holds(worker, lease).cloned();
        if key.is_none() {
            self.out.commands.push(Command::Fence { worker, lease });
        }
        key
    }

    /// What whoever speaks for the stage alone may say: another member that does is put out, as a late worker is.
    fn on_leaders_message(&mut self, worker: WorkerId, lease: LeaseId) -> Option<StageKey> {
        let key = self.on_lease_message(worker, lease)?;
        if self.role(worker, lease) == Some(Role::Leads) {
            return Some(key);
        }
        self.out.commands.push(Command::Fence { worker, lease });
        let message = "it spoke for the stage, which rank 0 alone does".to_owned();
        self.lose_holder(&key, (worker, lease), machine_failure(message));
        None
    }

    fn on_released(&mut self, worker: WorkerId, lease: LeaseId) {
        if let Some(key) = self.holds(worker, lease).cloned() {
            let asked = self.was_asked_back(worker, lease) || self.workers.get(&worker).is_some_and(|of| of.draining);
            let reason = if asked {
                format!("{worker} gave it back, as it was asked to")
            } else {
                format!("{worker} gave it back: it was asked to before a restart, or whoever had trained it was gone")
            };
            self.leave(&key, (worker, lease), reason);
        }
        self.free(worker, lease);
    }

    fn on_reusable(&mut self, key: &StageKey, result: Option<Box<graftwork_shared::assignment::StageResult>>) {
        if !self.reuse.contains_key(key) {
            return;
        }
        self.set_reuse(key, Some(Reuse::Answered));
        let Some((job, position)) = self.state.record(key) else { return };
        let untouched = job.ended.is_none() && job.stages[position].phase == Phase::Pending;
        if let Some(result) = result.filter(|_| untouched) {
            if job.trial(position).is_some() {
                return self.on_trial_known(key, &result);
            }
            let (job, stage, at_ms) = (key.job.clone(), key.stage.clone(), self.now_ms);
            self.record(Fact::StageTrained { job, stage, lease: None, result, at_ms });
            self.tell(&key.job, Some(&key.stage), EventKind::StageFinished { reused: true });
        }
    }

    fn on_published(&mut self, key: &StageKey, release: String) {
        if self.publishing.remove(key) {
            let (job, stage) = (key.job.clone(), key.stage.clone());
            self.record(Fact::StagePublished { job, stage, release: release.clone() });
            self.tell(&key.job, Some(&key.stage), EventKind::Published { release });
        }
    }

    pub(crate) fn active_jobs(&self) -> Vec<(JobId, u32)> {
        let active = self.state.index.active.iter().filter_map(|id| Some((id, self.state.jobs().get(id)?)));
        active.map(|(id, job)| (id.clone(), u32::try_from(job.stages.len()).unwrap_or(u32::MAX))).collect()
    }

    /// Decides a fact: it changes the state here just as it will at recovery.
    pub(crate) fn record(&mut self, fact: Fact) {
        let folded: Result<_, FoldError> = self.state.fold_touching(&fact);
        let (dropped, touched) = folded.expect("the machine decides only facts that fit its own state");
        self.follow(touched);
        self.out.commands.extend(dropped.into_iter().map(|blob| Command::Discard { blob }));
        self.out.facts.push(fact);
    }

    pub(crate) fn tell(&mut self, job: &JobId, stage: Option<&Name>, kind: EventKind) {
        self.out.commands.push(Command::Tell { job: job.clone(), stage: stage.cloned(), kind });
    }

    pub(crate) fn tell_all(&mut self, kind: &EventKind) {
        self.count(self.state.index.active.len());
        for id in &self.state.index.active {
            self.out.commands.push(Command::Tell { job: id.clone(), stage: None, kind: kind.clone() });
        }
    }
}
