//! A crowd of simple workers around a scheduler, in virtual time: they train, report, checkpoint, are killed, fall silent
//! and come again.

mod curve;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Instant,
};

pub(crate) use curve::Curve;
use curve::kind;
use graftwork_scheduler::{
    Command, Event, Plan, PlannedStage, Policy, Scheduler, StageKey, State, WorkerInfo, invariant,
};
use graftwork_shared::{
    assignment::{Blame, Failure, StageResult, Usage},
    digest::Digest,
    event::StepReport,
    id::{JobId, LeaseId, WorkerId},
};

use super::fixture::{class, info, plan, result, stage};

/// What a crowd has to do, and what happens to it.
#[derive(Clone)]
pub(crate) struct Crowd {
    pub(crate) workers: u64,
    pub(crate) slots: u32,
    pub(crate) jobs: u64,
    /// Tasks of each job; a fifth as many fusions come with them.
    pub(crate) tasks: usize,
    /// Priorities of jobs, in turn.
    pub(crate) priorities: Vec<i32>,
    /// Every fourth job wants each of its stages to start on two workers at once.
    pub(crate) gangs: bool,
    /// Of a thousand workers, how many die in an hour.
    pub(crate) deaths: u64,
    pub(crate) policy: Policy,
    pub(crate) seed: u64,
    /// More happens than that workers die: links break, workers are drained, jobs are cancelled, blobs are lost.
    pub(crate) troubled: bool,
    /// Every turn is held against every invariant.
    pub(crate) checked: bool,
}

const HEARTBEAT_MS: u64 = 3_000;
const REPORT_MS: u64 = 10_000;
/// Updates of a stage between two reports.
const STEPS: u64 = 10;

/// What happens at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    Submit(u64),
    Join(u64),
    Heartbeat(u64),
    Report(u64, LeaseId),
    Prepared(u64, LeaseId),
    Die(u64),
    Return(u64, Told),
    Answer(StageKey),
    Published(StageKey),
}

/// What a process said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told(WorkerInfo);

impl Ord for Told {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

impl PartialOrd for Told {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// One process.
struct Process {
    number: WorkerId,
    leases: BTreeMap<LeaseId, (StageKey, bool)>,
    silent: bool,
}

struct Run {
    crowd: Crowd,
    scheduler: Scheduler,
    now_ms: u64,
    deeds: BinaryHeap<Reverse<(u64, u64, Deed)>>,
    number: u64,
    dice: u64,
    processes: BTreeMap<u64, Process>,
    by_worker: BTreeMap<WorkerId, u64>,
    /// Steps of each lease's stage.
    steps: BTreeMap<StageKey, u64>,
    accepted: BTreeMap<StageKey, u64>,
    template: Vec<PlannedStage>,
    totals: BTreeMap<graftwork_shared::id::Name, u64>,
    open: u64,
    curve: Curve,
}

/// A job of so many tasks of different lengths and sizes, and fusions of three to five of them; the last fuses more.
fn template(tasks: usize) -> Vec<PlannedStage> {
    let mut stages: Vec<PlannedStage> = (0..tasks)
        .map(|at| {
            let mut task = stage(&format!("t{at}"), &[], 60 + 20 * (at as u64 % 7));
            task.memory_bytes = (1 + at as u64 % 3) << 20;
            task.recipe.training.lanes = 2;
            task
        })
        .collect();
    for at in 0..tasks / 5 {
        let size = if at == 0 { (tasks / 4).max(3) } else { 3 + at % 3 };
        let needs: Vec<String> = (0..size).map(|of| format!("t{}", (at * 5 + of * 3) % tasks)).collect();
        let mut needs: Vec<&str> = needs.iter().map(String::as_str).collect();
        needs.sort_unstable();
        needs.dedup();
        stages.push(stage(&format!("f{at}"), &needs, 40));
    }
    stages
}

impl Crowd {
    pub(crate) fn run(self) -> Curve {
        let (scheduler, _) = Scheduler::start(self.policy.clone(), State::default(), 1_000);
        let template = template(self.tasks);
        let mut run = Run {
            scheduler,
            now_ms: 1_000,
            deeds: BinaryHeap::new(),
            number: 0,
            dice: self.seed,
            processes: BTreeMap::new(),
            by_worker: BTreeMap::new(),
            steps: BTreeMap::new(),
            accepted: BTreeMap::new(),
            totals: template.iter().map(|stage| (stage.name.clone(), stage.total_steps)).collect(),
            template,
            open: self.jobs,
            curve: Curve::default(),
            crowd: self,
        };
        run.live();
        run.curve
    }
}

fn splitmix(dice: &mut u64) -> u64 {
    *dice = dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *dice;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Run {
    fn below(&mut self, most: u64) -> u64 {
        splitmix(&mut self.dice) % most.max(1)
    }

    fn after(&mut self, wait_ms: u64, deed: Deed) {
        self.number += 1;
        self.deeds.push(Reverse((self.now_ms + wait_ms, self.number, deed)));
    }

    fn live(&mut self) {
        for process in 0..self.crowd.workers {
            self.after(process % 1_000, Deed::Join(process));
        }
        for job in 0..self.crowd.jobs {
            self.after(500 + 1_000 * job, Deed::Submit(job));
        }
        while self.open > 0 {
            let Some(Reverse((at_ms, _, deed))) = self.deeds.pop() else { panic!("jobs that do not end") };
            while let Some(due_ms) = self.scheduler.next_deadline().filter(|due_ms| *due_ms <= at_ms) {
                self.now_ms = due_ms.max(self.now_ms);
                self.apply(Event::Tick);
            }
            self.now_ms = at_ms;
            self.act(deed);
        }
        self.curve.virtual_s = self.now_ms / 1000;
        self.curve.seconds = self.curve.times.iter().sum::<u64>() as f64 / 1e9;
        self.curve.times.sort_unstable();
    }

    fn plan(&self, job: u64) -> Plan {
        let mut plan = plan(&format!("job {job}"), self.template.clone());
        plan.job.owner = format!("owner {}", job % 7);
        plan.job.priority = self.crowd.priorities[usize::try_from(job).unwrap() % self.crowd.priorities.len()];
        if job.is_multiple_of(4) {
            plan.job.resources.workers_per_task = None;
        }
        if self.crowd.gangs && job % 4 == 2 {
            (plan.job.resources.workers_per_task, plan.job.resources.gang) = (None, 2);
        }
        plan.digest = plan.job.digest();
        plan
    }

    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Submit(job) => {
                let plan = Box::new(self.plan(job));
                self.apply(Event::Submitted { plan, gone: Vec::new() });
            }
            Deed::Join(process) => {
                if let Some(of) = self.processes.get(&process) {
                    if !of.silent {
                        return;
                    }
                    self.by_worker.remove(&of.number);
                }
                self.join(process);
            }
            Deed::Heartbeat(process) => {
                let Some(of) = self.processes.get(&process).filter(|of| !of.silent) else { return };
                let (worker, leases) = (of.number, of.leases.keys().copied().collect());
                self.apply(Event::Heartbeat { worker, leases });
                self.after(HEARTBEAT_MS, Deed::Heartbeat(process));
            }
            Deed::Report(process, lease) => self.report(process, lease),
            Deed::Prepared(process, lease) => {
                if let Some(worker) = self.holder(process, lease) {
                    self.apply(Event::Prepared { worker, lease });
                }
            }
            Deed::Die(process) => self.die(process),
            Deed::Return(process, info) => self.come_back(process, info.0),
            Deed::Answer(key) => self.apply(Event::Reusable { key, result: None }),
            Deed::Published(key) => {
                let release = format!("org/{}", key.stage);
                self.apply(Event::Published { key, release });
            }
        }
    }

    fn join(&mut self, process: u64) {
        let wide = process.is_multiple_of(10);
        let info = WorkerInfo {
            key: format!("process {process} {}", self.now_ms),
            class: class(if wide { "avx512" } else { "avx2" }),
            memory_bytes: if process.is_multiple_of(3) { 0 } else { 8 << 20 },
            ..info(self.crowd.slots)
        };
        self.processes.insert(process, Process { number: WorkerId(0), leases: BTreeMap::new(), silent: false });
        self.apply(Event::WorkerJoined { session: process, info, leases: Vec::new() });
        self.after(HEARTBEAT_MS, Deed::Heartbeat(process));
        // An hour's share of deaths, spread over the hour.
        let dies = self.below(3_600_000 * 1_000 / self.crowd.deaths.max(1));
        self.after(dies, Deed::Die(process));
    }

    fn die(&mut self, process: u64) {
        if self.crowd.troubled && self.below(2) == 0 {
            return self.trouble(process);
        }
        let silent = self.below(3) == 0;
        let Some(of) = self.processes.get_mut(&process) else { return };
        self.curve.deaths += 1;
        if silent {
            // Nobody says so: it is missed after a while, or at the latest when another one is started in its place.
            of.silent = true;
            self.after(120_000, Deed::Join(process));
        } else {
            let (worker, reason) = (of.number, "killed".to_owned());
            self.processes.remove(&process);
            self.by_worker.remove(&worker);
            self.apply(Event::WorkerLeft { worker, reason });
            self.after(60_000, Deed::Join(process));
        }
    }

    /// Something other than a death; the process dies later.
    fn trouble(&mut self, process: u64) {
        let dies = self.below(3_600_000 * 1_000 / self.crowd.deaths.max(1));
        self.after(dies, Deed::Die(process));
        let Some(of) = self.processes.get(&process).filter(|of| !of.silent) else { return };
        let worker = of.number;
        let held = of.leases.values().next().map(|(key, _)| key.clone());
        match (self.below(5), held) {
            (0, _) => self.apply(Event::DrainWorker { worker, reason: "drained".to_owned() }),
            (1, Some(key)) if self.below(4) == 0 => {
                self.apply(Event::Cancel { job: key.job, reason: "cancelled".to_owned() });
            }
            (2, Some(key)) => {
                let step = self.accepted.get(&key).copied().unwrap_or(0);
                let blob = Digest::of(format!("{key} {step}").as_bytes());
                self.accepted.remove(&key);
                self.apply(Event::BlobLost { blob });
            }
            (3, Some(key)) => {
                let blob = Digest::of(format!("weights of {key}").as_bytes());
                self.apply(Event::BlobLost { blob });
            }
            _ => {
                let Some(info) = self.scheduler.info(worker).cloned() else { return };
                let wait_ms = 200 + self.below(2_500);
                self.after(wait_ms, Deed::Return(process, Told(info)));
                self.apply(Event::LinkLost { worker, reason: "broken".to_owned() });
            }
        }
    }

    /// On another connection, with what it holds, or all but one of that.
    fn come_back(&mut self, process: u64, info: WorkerInfo) {
        let forgets = self.below(3) == 0;
        let Some(of) = self.processes.get_mut(&process) else { return };
        if forgets {
            of.leases.pop_last();
        }
        let leases = of.leases.keys().copied().collect();
        self.apply(Event::WorkerJoined { session: process, info, leases });
    }

    fn holder(&self, process: u64, lease: LeaseId) -> Option<WorkerId> {
        let of = self.processes.get(&process).filter(|of| !of.silent)?;
        of.leases.contains_key(&lease).then_some(of.number)
    }

    /// A worker tells how far it is, and what has come of it.
    fn report(&mut self, process: u64, lease: LeaseId) {
        let Some(worker) = self.holder(process, lease) else { return };
        let key = self.processes[&process].leases[&lease].0.clone();
        if self.scheduler.leads(worker, lease).is_none() {
            return self.after(REPORT_MS, Deed::Report(process, lease));
        }
        let total = self.totals[&key.stage];
        let step = (self.steps.get(&key).copied().unwrap_or(0) + STEPS).min(total);
        self.steps.insert(key.clone(), step);
        let report =
            StepReport { step, lanes: 2, examples_per_second: 9.0, tokens_per_second: 90.0, ..StepReport::default() };
        self.apply(Event::Stepped { worker, lease, report });
        if step >= total {
            return self.finish((process, worker), lease, &key);
        }
        if self.below(2_000) == 0 {
            self.forget(process, lease);
            let failure = Failure { blame: Blame::Machine, message: "out of memory".to_owned() };
            return self.apply(Event::Failed { worker, lease, failure });
        }
        if step.is_multiple_of(4 * STEPS) {
            let usage = Usage { core_seconds: step as f64, ..Usage::default() };
            self.apply(Event::Spent { worker, lease, usage });
            let blob = Digest::of(format!("{key} {step}").as_bytes());
            self.accepted.insert(key, step);
            self.apply(Event::Checkpointed { worker, lease, step, blob });
        }
        let wait_ms = REPORT_MS + self.below(500);
        self.after(wait_ms, Deed::Report(process, lease));
    }

    fn finish(&mut self, (process, worker): (u64, WorkerId), lease: LeaseId, key: &StageKey) {
        self.forget(process, lease);
        let Some(info) = self.scheduler.info(worker) else { return };
        let numeric_class = info.class.clone();
        let result = result(&format!("{key}"), self.totals[&key.stage], 0.9);
        let result = Box::new(StageResult { numeric_class, ..result });
        self.steps.remove(key);
        self.accepted.remove(key);
        self.apply(Event::Finished { worker, lease, result });
    }

    fn forget(&mut self, process: u64, lease: LeaseId) {
        if let Some(of) = self.processes.get_mut(&process) {
            of.leases.remove(&lease);
        }
    }

    fn apply(&mut self, event: Event) {
        let submits = matches!(event, Event::Submitted { .. });
        let tells = matches!(event, Event::WorkerJoined { .. } | Event::WorkerLeft { .. } | Event::Tick);
        let what = kind(&event);
        let before = self.crowd.checked.then(|| (self.scheduler.clone(), event.clone()));
        let (work, begun) = (self.scheduler.work(), Instant::now());
        let decision = self.scheduler.apply(self.now_ms, event);
        self.curve.times.push(u64::try_from(begun.elapsed().as_nanos()).unwrap());
        let work = self.scheduler.work() - work;
        self.curve.events += 1;
        self.curve.work += work;
        if let Some((before, event)) = before {
            invariant::check(before, (self.now_ms, &event), &self.scheduler, &decision).unwrap();
        }
        let told = decision.commands.iter().filter(|command| matches!(command, Command::Tell { stage: None, .. }));
        let work = work - if tells { work.min(told.count() as u64) } else { 0 };
        self.curve.gangs += self.started_gangs(&decision.commands);
        if submits {
            self.curve.most_of_submissions = self.curve.most_of_submissions.max(work);
        } else if work > self.curve.most_work {
            self.curve.most_work = work;
            self.curve.most_by = what;
        }
        if std::env::var_os("GRAFTWORK_SCALE_DIGEST").is_some() {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let mut hasher = DefaultHasher::new();
            (self.curve.digest, format!("{} {decision:?}", self.now_ms)).hash(&mut hasher);
            self.curve.digest = hasher.finish();
        }
        decision.commands.into_iter().for_each(|command| self.obey(command));
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Welcome { session, worker } => {
                let process = self.processes.get_mut(&session).unwrap();
                let earlier = std::mem::replace(&mut process.number, worker);
                self.by_worker.remove(&earlier);
                self.by_worker.insert(worker, session);
            }
            Command::Assign { worker, lease, assignment, joining } => {
                let Some(process) = self.by_worker.get(&worker).copied() else { return };
                let key = StageKey { job: assignment.job.clone(), stage: assignment.stage.clone() };
                if !joining {
                    self.curve.assignments += 1;
                    let accepted = self.accepted.get(&key).copied().filter(|_| assignment.resume.is_some());
                    self.steps.insert(key.clone(), accepted.unwrap_or(0));
                }
                self.processes.get_mut(&process).unwrap().leases.insert(lease, (key, joining));
                let wait_ms = 2_000 + self.below(2_000);
                let deed = if joining { Deed::Prepared(process, lease) } else { Deed::Report(process, lease) };
                self.after(wait_ms, deed);
                if joining {
                    self.after(wait_ms + REPORT_MS, Deed::Report(process, lease));
                }
            }
            Command::Fence { worker, lease } => {
                if let Some(process) = self.by_worker.get(&worker).copied() {
                    self.forget(process, lease);
                }
            }
            Command::Drain { worker, .. } => {
                let Some(process) = self.by_worker.remove(&worker) else { return };
                self.processes.remove(&process);
                self.after(30_000, Deed::Join(process));
                self.apply(Event::WorkerLeft { worker, reason: "it left".to_owned() });
            }
            Command::Release { worker, lease, .. } => {
                let Some(process) = self.by_worker.get(&worker).copied() else { return };
                if self.holder(process, lease).is_some() {
                    self.forget(process, lease);
                    self.apply(Event::Released { worker, lease });
                }
            }
            Command::Disconnect { worker, .. } => {
                if let Some(process) = self.by_worker.remove(&worker) {
                    self.processes.remove(&process);
                    self.after(60_000, Deed::Join(process));
                }
            }
            Command::LookForReuse { key, .. } => {
                let wait_ms = 50 + self.below(200);
                self.after(wait_ms, Deed::Answer(key));
            }
            Command::Publish { key } => {
                let wait_ms = 200 + self.below(2_000);
                self.after(wait_ms, Deed::Published(key));
            }
            Command::Tell { job, stage: None, kind } => self.hear(&job, &kind),
            _ => {}
        }
    }

    /// Leases that started on several workers in one decision.
    fn started_gangs(&self, commands: &[Command]) -> u64 {
        let led = |command: &&Command| matches!(command, Command::Assign { joining: false, .. });
        let started = commands.iter().filter(led).filter(|command| {
            let Command::Assign { lease, .. } = command else { return false };
            let joins =
                |other: &Command| matches!(other, Command::Assign { lease: of, joining: true, .. } if of == lease);
            commands.iter().any(joins)
        });
        if self.crowd.gangs { started.count() as u64 } else { 0 }
    }

    fn hear(&mut self, job: &JobId, kind: &graftwork_shared::event::EventKind) {
        if let graftwork_shared::event::EventKind::JobFinished { outcome } = kind {
            let fair = *outcome == graftwork_shared::event::Outcome::Succeeded;
            assert!(fair || self.crowd.troubled, "job {job}: {outcome:?}");
            self.open -= 1;
        }
    }
}
