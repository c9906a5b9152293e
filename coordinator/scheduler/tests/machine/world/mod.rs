//! The simulation's world: workers as simple as they can be around a machine, and what happens to them.

use std::collections::{BTreeMap, VecDeque};

use graftwork_scheduler::{Command, Event, Fact, Plan, PlannedStage, WorkerInfo};
use graftwork_shared::{
    assignment::{Blame, Failure, MemoryPeak},
    digest::Digest,
    event::StepReport,
    id::{JobId, LeaseId, Name, WorkerId},
    recipe::NumericClass,
};

use super::fixture::{Machine, class, info, key, plan, result, stage};

/// A worker that the world moves.
#[derive(Clone)]
pub(crate) struct Peer {
    info: WorkerInfo,
    /// Leases that it believes to hold.
    work: BTreeMap<LeaseId, Work>,
    pub(crate) frozen: bool,
    leaving: bool,
}

/// What a worker does under a lease.
#[derive(Clone)]
struct Work {
    job: JobId,
    step: u64,
    total: u64,
    stage: String,
    /// Of its group, as it last heard; rank 0 trains and speaks, the others only follow.
    epoch: u64,
    rank: u32,
    /// It loads, and is no member yet.
    joining: bool,
}

pub(crate) struct World {
    pub(crate) machine: Machine,
    pub(crate) peers: BTreeMap<WorkerId, Peer>,
    /// Processes whose connection broke.
    pub(crate) apart: Vec<Peer>,
    joined: usize,
    /// Messages on the way; some are sent by workers that are gone by now.
    late: VecDeque<Event>,
    /// Work beside the loop: publications under way.
    publishing: VecDeque<Event>,
    pub(crate) jobs: Vec<JobId>,
    restarts: usize,
}

/// The worker that says this.
fn sender(event: &Event) -> Option<WorkerId> {
    match event {
        Event::Heartbeat { worker, .. }
        | Event::Stepped { worker, .. }
        | Event::Checkpointed { worker, .. }
        | Event::Finished { worker, .. }
        | Event::Failed { worker, .. }
        | Event::Prepared { worker, .. }
        | Event::Broken { worker, .. }
        | Event::Waits { worker, .. }
        | Event::Released { worker, .. } => Some(*worker),
        _ => None,
    }
}

pub(crate) fn plans() -> [Plan; 3] {
    let single: Vec<PlannedStage> = vec![stage("only", &[], 80)];
    let diamond = vec![
        stage("a", &[], 60),
        stage("b", &[], 120),
        stage("c", &[], 30),
        stage("ab", &["a", "b"], 40),
        stage("all", &["a", "b", "c"], 20),
    ];
    // Its first stage would hold it up where three workers are there.
    let urgent = vec![stage("x", &[], 70), stage("y", &[], 15), stage("z", &[], 15), stage("xy", &["x", "y"], 10)];
    let mut urgent = plan("urgent", urgent);
    urgent.job.priority = 3;
    let mut plans = [plan("single", single), plan("diamond", diamond), urgent];
    for plan in &mut plans[1..] {
        plan.job.resources.workers_per_task = None;
        plan.stages.iter_mut().for_each(|stage| stage.recipe.training.lanes = 4);
    }
    plans[1].job.resources.gang = 2;
    "another".clone_into(&mut plans[1].job.owner);
    plans
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            machine: Machine::new(),
            peers: BTreeMap::new(),
            apart: Vec::new(),
            joined: 0,
            late: VecDeque::new(),
            publishing: VecDeque::new(),
            jobs: Vec::new(),
            restarts: 0,
        }
    }

    pub(crate) fn apply(&mut self, event: Event) {
        let commands = self.machine.apply(event);
        self.obey(commands);
    }

    fn obey(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Assign { worker, lease, assignment, joining } => {
                    let total = self.machine.scheduler.plan(&assignment.job).unwrap();
                    let total = total.stage(&assignment.stage).unwrap().total_steps;
                    let from = if assignment.resume.is_some() { self.step_of(&assignment.job, lease) } else { 0 };
                    let peer = self.peers.get_mut(&worker).expect("work goes to workers that are there");
                    let stage = assignment.stage.to_string();
                    let job = assignment.job.clone();
                    peer.work.insert(lease, Work { job, step: from, total, stage, epoch: 0, rank: 0, joining });
                }
                Command::Fence { worker, lease } => {
                    if let Some(peer) = self.peers.get_mut(&worker) {
                        peer.work.remove(&lease);
                    }
                }
                Command::Form { worker, lease, epoch, rank, checkpointed, .. } => {
                    let work = self.peers.get_mut(&worker).and_then(|peer| peer.work.get_mut(&lease));
                    if let Some(work) = work.filter(|work| work.joining || epoch > work.epoch) {
                        let step = work.step.max(checkpointed);
                        *work = Work { step, epoch, rank, joining: false, ..work.clone() };
                    }
                }
                Command::Release { worker, lease, .. } => {
                    if self.peers.get_mut(&worker).is_some_and(|peer| peer.work.remove(&lease).is_some()) {
                        self.late.push_back(Event::Released { worker, lease });
                    }
                }
                Command::Drain { worker, .. } => {
                    if let Some(peer) = self.peers.get_mut(&worker) {
                        peer.leaving = true;
                        self.late.extend(peer.work.keys().map(|lease| Event::Released { worker, lease: *lease }));
                        peer.work.clear();
                    }
                }
                Command::Disconnect { worker, .. } => drop(self.peers.remove(&worker)),
                Command::Publish { key } => {
                    self.publishing.push_back(Event::Published { release: format!("org/{}", key.stage), key });
                }
                Command::LookForReuse { key, .. } => self.late.push_back(Event::Reusable { key, result: None }),
                Command::Welcome { .. } | Command::Accept { .. } | Command::Discard { .. } | Command::Tell { .. } => {}
            }
        }
    }

    /// Step of the checkpoint under which this lease was given.
    fn step_of(&self, job: &JobId, lease: LeaseId) -> u64 {
        let held = self.machine.facts.iter().find_map(|fact| match fact {
            Fact::StageLeased { lease: l, stage, .. } if *l == lease => Some(stage.clone()),
            _ => None,
        });
        let explained = self.machine.scheduler.explain(job).unwrap();
        let stage = explained.stages.into_iter().find(|stage| Some(&stage.stage) == held.as_ref()).unwrap();
        stage.checkpoint_step.unwrap()
    }

    pub(crate) fn pick(&self, number: usize) -> Option<WorkerId> {
        let peers: Vec<WorkerId> = self.peers.keys().copied().collect();
        (!peers.is_empty()).then(|| peers[number % peers.len()])
    }

    pub(crate) fn join(&mut self, slots: u32, class: NumericClass) {
        self.joined += 1;
        // What stages are found to need may be more than it has room for at a time.
        let info = WorkerInfo { class, key: format!("process {}", self.joined), memory_bytes: 4 << 20, ..info(slots) };
        self.connect(Peer { info, work: BTreeMap::new(), frozen: false, leaving: false });
    }

    /// A process says hello, with what it holds.
    pub(crate) fn connect(&mut self, peer: Peer) {
        let leases = peer.work.keys().copied().collect();
        let commands = self.machine.apply(Event::WorkerJoined { session: 0, info: peer.info.clone(), leases });
        let welcomed = commands.iter().find_map(|command| match command {
            Command::Welcome { worker, .. } => Some(*worker),
            _ => None,
        });
        let worker = welcomed.unwrap();
        assert!(!self.peers.contains_key(&worker));
        self.late.push_back(Event::Heartbeat { worker, leases: peer.work.keys().copied().collect() });
        self.peers.insert(worker, peer);
        self.obey(commands);
    }

    /// What was on the way over the connection is gone, as the shell drops what comes from a session that ended.
    pub(crate) fn break_link(&mut self, worker: WorkerId, forgets: bool) {
        let Some(mut peer) = self.peers.remove(&worker) else { return };
        if forgets {
            peer.work.pop_last();
        }
        self.late.retain(|event| sender(event) != Some(worker));
        if !peer.leaving {
            self.apart.push(peer);
        }
        self.apply(Event::LinkLost { worker, reason: "broken".to_owned() });
    }

    pub(crate) fn lose(&mut self, number: usize) {
        let blobs: Vec<Digest> = self.machine.scheduler.state().blobs().into_iter().collect();
        if let Some(blob) = blobs.get(number % blobs.len().max(1)).copied() {
            self.apply(Event::BlobLost { blob });
        }
    }

    /// A worker trains each of its leases on; what it has to say is on the way after that.
    pub(crate) fn train(&mut self, worker: WorkerId, steps: u64) {
        let Some(peer) = self.peers.get_mut(&worker).filter(|peer| !peer.frozen) else { return };
        self.late.push_back(Event::Heartbeat { worker, leases: peer.work.keys().copied().collect() });
        let mut done = Vec::new();
        let stages: Vec<(JobId, Name)> =
            peer.work.values().map(|work| (work.job.clone(), work.stage.parse().unwrap())).collect();
        for (lease, work) in &mut peer.work {
            if work.joining {
                self.late.push_back(Event::Prepared { worker, lease: *lease });
                continue;
            }
            // Some are slow, for a while.
            let exchange_wait = if (worker.0 + self.machine.now_ms / 40_000).is_multiple_of(3) { 0.1 } else { 0.8 };
            let step = work.step + steps;
            let report =
                StepReport { step, lanes: 2, exchange_wait, examples_per_second: 9.0, ..StepReport::default() };
            self.late.push_back(Event::Stepped { worker, lease: *lease, report });
            if work.rank > 0 {
                continue;
            }
            let Work { step, total, stage, .. } = work;
            *step += steps;
            if *step >= *total {
                let result = Box::new(graftwork_shared::assignment::StageResult {
                    numeric_class: peer.info.class.clone(),
                    peak: Some(MemoryPeak { bytes: ((worker.0 + *total) % 6) << 20, stages: stages.clone() }),
                    ..result(stage, *total, 0.9)
                });
                self.late.push_back(Event::Finished { worker, lease: *lease, result });
                done.push(*lease);
            } else {
                let blob = Digest::of(format!("{stage} {step}").as_bytes());
                self.late.push_back(Event::Checkpointed { worker, lease: *lease, step: *step, blob });
            }
        }
        done.iter().for_each(|lease| drop(peer.work.remove(lease)));
    }

    pub(crate) fn fail(&mut self, worker: WorkerId, user: bool) {
        let Some(peer) = self.peers.get_mut(&worker) else { return };
        let Some((lease, _)) = peer.work.pop_first() else { return };
        let blame = if user { Blame::User } else { Blame::Machine };
        self.late.push_back(Event::Failed { worker, lease, failure: Failure { blame, message: "no".to_owned() } });
    }

    pub(crate) fn lie(&mut self, peer: usize, lease: usize) {
        let live: Vec<(LeaseId, String)> = self
            .peers
            .values()
            .flat_map(|peer| peer.work.iter().map(|(lease, work)| (*lease, work.stage.clone())))
            .collect();
        if let (Some(worker), false) = (self.pick(peer), live.is_empty()) {
            let (lease, stage) = live[lease % live.len()].clone();
            // Of a group, whoever does not lead it lies too.
            if self.peers[&worker].work.get(&lease).is_none_or(|work| work.rank > 0) {
                self.apply(Event::Finished { worker, lease, result: Box::new(result(&stage, 1, 0.9)) });
            }
        }
    }

    /// A worker's groups break, or stand still for it, or it says so of older ones.
    pub(crate) fn quarrel(&mut self, worker: WorkerId, late: bool) {
        let Some(peer) = self.peers.get(&worker) else { return };
        for (lease, work) in &peer.work {
            let (lease, epoch) = (*lease, work.epoch.saturating_sub(u64::from(late)));
            self.late.push_back(Event::Waits { worker, lease, epoch, step: work.step });
            self.late.push_back(Event::Broken { worker, lease, epoch, reason: "peer closed".to_owned() });
        }
    }

    pub(crate) fn deliver(&mut self, twice: bool) {
        let Some(event) = self.late.pop_front() else { return };
        if twice {
            self.apply(event.clone());
        }
        self.apply(event);
    }

    pub(crate) fn publish(&mut self, fails: bool) {
        match self.publishing.pop_front() {
            Some(Event::Published { key, .. }) if fails => {
                let failure = Failure { blame: Blame::Machine, message: "full".to_owned() };
                self.apply(Event::PublishFailed { key, failure });
            }
            Some(event) => self.apply(event),
            None => {}
        }
    }

    /// kill -9 of the coordinator: sessions and questions are gone, facts stay, and workers train on until they find the
    /// next one.
    pub(crate) fn restart(&mut self) {
        let peers = std::mem::take(&mut self.peers);
        self.apart.extend(peers.into_values().filter(|peer| !peer.leaving));
        self.start_over();
    }

    /// The same, and all workers are killed with it.
    pub(crate) fn restart_alone(&mut self) {
        self.peers.clear();
        self.apart.clear();
        self.start_over();
    }

    fn start_over(&mut self) {
        self.restarts += 1;
        self.late.retain(|event| sender(event).is_none());
        self.publishing.clear();
        let facts = std::mem::take(&mut self.machine.facts);
        let now_ms = self.machine.now_ms;
        self.machine = Machine::recover(facts, now_ms);
        // What the start itself commanded: publications of trained stages, asked for again.
        let mut again = self.machine.scheduler.clone();
        let commands = again.apply(now_ms, Event::Tick).commands;
        assert!(commands.iter().all(|command| !matches!(command, Command::Assign { .. })));
        for id in &self.jobs {
            for stage in self.machine.scheduler.view(id).map(|view| view.stages).unwrap_or_default() {
                if matches!(stage.state, graftwork_shared::view::StageState::Trained { .. }) {
                    let key = key(id, stage.name.as_str());
                    self.publishing.push_back(Event::Published { key, release: format!("org/{}", stage.name) });
                }
            }
        }
    }

    /// From here on nothing bad happens; two healthy workers of either class come, as many as the largest gang.
    pub(crate) fn calm_down(&mut self) {
        for wide in ["avx2", "avx2", "avx512", "avx512"] {
            self.join(2, class(wide));
        }
        for _ in 0..2_000 {
            if self.jobs.iter().all(|job| self.machine.scheduler.view(job).unwrap().outcome.is_some()) {
                return;
            }
            let here: Vec<WorkerId> = self.peers.keys().copied().collect();
            for worker in here {
                if self.peers[&worker].leaving {
                    self.peers.remove(&worker);
                    self.late.push_back(Event::WorkerLeft { worker, reason: "it left".to_owned() });
                } else {
                    self.peers.get_mut(&worker).unwrap().frozen = false;
                    self.train(worker, 40);
                }
            }
            while !self.late.is_empty() {
                self.deliver(false);
            }
            while !self.publishing.is_empty() {
                self.publish(false);
            }
            // As the shell does: sleep until the machine's next deadline, or until the next heartbeats.
            let next = self.machine.scheduler.next_deadline().unwrap_or(u64::MAX).min(self.machine.now_ms + 1_000);
            self.machine.now_ms = next.max(self.machine.now_ms + 1);
            self.apply(Event::Tick);
        }
        let explained: Vec<String> =
            self.jobs.iter().map(|job| self.machine.scheduler.explain(job).unwrap().to_string()).collect();
        panic!("jobs that do not end: {explained:#?}");
    }
}
