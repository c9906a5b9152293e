//! A world of workers that join, die, freeze, speak late and lie, around coordinators that are killed at any fact:
//! every job ends, nothing commits twice, and every turn keeps every invariant.
//!
//! Time is the simulation's own. A coordinator that is killed loses what its journal did not have: the world cuts the
//! facts at a random length at or behind what was acknowledged, and starts the next one over the fold.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

mod fixture;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fixture::{Machine, class, info, plan, result, stage};
use graftwork_scheduler::{Command, Event, Fact, Plan, PlannedStage, WorkerInfo};
use graftwork_shared::{
    assignment::{Blame, Failure},
    digest::Digest,
    id::{JobId, LeaseId, WorkerId},
    recipe::NumericClass,
};
use proptest::prelude::*;

/// A worker that the world moves.
#[derive(Clone)]
struct Peer {
    info: WorkerInfo,
    /// Leases that it believes to hold, with steps done and all steps.
    work: BTreeMap<LeaseId, (u64, u64, String)>,
    frozen: bool,
    leaving: bool,
}

struct World {
    machine: Machine,
    peers: BTreeMap<WorkerId, Peer>,
    /// Processes whose connection broke.
    apart: Vec<Peer>,
    joined: usize,
    /// Messages on the way; some are sent by workers that are gone by now.
    late: VecDeque<Event>,
    /// Work beside the loop: publications under way.
    publishing: VecDeque<Event>,
    jobs: Vec<JobId>,
    restarts: usize,
}

/// One thing that the world does; the numbers choose among what there is.
#[derive(Clone, Debug)]
enum Deed {
    Submit(usize),
    Join {
        slots: u32,
        wide: bool,
    },
    Kill(usize),
    /// A connection breaks; with it the newest assignment may be lost.
    Break {
        peer: usize,
        forgets: bool,
    },
    /// One of those comes back.
    Return(usize),
    /// The disk loses one of the blobs that are referred to.
    Lose(usize),
    Freeze(usize),
    Thaw(usize),
    Train {
        peer: usize,
        steps: u64,
    },
    Fail {
        peer: usize,
        user: bool,
    },
    /// One worker speaks under whatever lease is live.
    Lie {
        peer: usize,
        lease: usize,
    },
    Deliver,
    DeliverTwice,
    Publish {
        fails: bool,
    },
    Wait(u64),
    Drain(usize),
    Cancel(usize),
    Restart,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let any = 0..8_usize;
    let deed = prop_oneof![
        2 => (0..3_usize).prop_map(Deed::Submit),
        4 => (1..4_u32, prop::bool::weighted(0.2)).prop_map(|(slots, wide)| Deed::Join { slots, wide }),
        2 => any.clone().prop_map(Deed::Kill),
        3 => (any.clone(), prop::bool::weighted(0.2)).prop_map(|(peer, forgets)| Deed::Break { peer, forgets }),
        3 => any.clone().prop_map(Deed::Return),
        1 => any.clone().prop_map(Deed::Lose),
        1 => any.clone().prop_map(Deed::Freeze),
        1 => any.clone().prop_map(Deed::Thaw),
        12 => (any.clone(), 1..60_u64).prop_map(|(peer, steps)| Deed::Train { peer, steps }),
        1 => (any.clone(), prop::bool::weighted(0.1)).prop_map(|(peer, user)| Deed::Fail { peer, user }),
        1 => (any.clone(), any.clone()).prop_map(|(peer, lease)| Deed::Lie { peer, lease }),
        8 => Just(Deed::Deliver),
        1 => Just(Deed::DeliverTwice),
        4 => prop::bool::weighted(0.2).prop_map(|fails| Deed::Publish { fails }),
        4 => (1..6_000_u64).prop_map(Deed::Wait),
        1 => any.clone().prop_map(Deed::Drain),
        1 => prop::bool::weighted(0.1).prop_map(|cancel| if cancel { Deed::Cancel(0) } else { Deed::Wait(50) }),
        1 => Just(Deed::Restart),
    ];
    prop::collection::vec(deed, 20..160)
}

/// The worker that says this.
fn sender(event: &Event) -> Option<WorkerId> {
    match event {
        Event::Heartbeat { worker, .. }
        | Event::Checkpointed { worker, .. }
        | Event::Finished { worker, .. }
        | Event::Failed { worker, .. }
        | Event::Released { worker, .. } => Some(*worker),
        _ => None,
    }
}

fn plans() -> [Plan; 3] {
    let single: Vec<PlannedStage> = vec![stage("only", &[], 80)];
    let diamond = vec![
        stage("a", &[], 60),
        stage("b", &[], 120),
        stage("c", &[], 30),
        stage("ab", &["a", "b"], 40),
        stage("all", &["a", "b", "c"], 20),
    ];
    let mut urgent = plan("urgent", vec![stage("x", &[], 50), stage("y", &[], 50), stage("xy", &["x", "y"], 10)]);
    urgent.job.priority = 3;
    [plan("single", single), plan("diamond", diamond), urgent]
}

impl World {
    fn new() -> Self {
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

    fn apply(&mut self, event: Event) {
        let commands = self.machine.apply(event);
        self.obey(commands);
    }

    fn obey(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Assign { worker, lease, assignment } => {
                    let total = self.machine.scheduler.plan(&assignment.job).unwrap();
                    let total = total.stage(&assignment.stage).unwrap().total_steps;
                    let from = if assignment.resume.is_some() { self.step_of(&assignment.job, lease) } else { 0 };
                    let peer = self.peers.get_mut(&worker).expect("work goes to workers that are there");
                    peer.work.insert(lease, (from, total, assignment.stage.to_string()));
                }
                Command::Fence { worker, lease } => {
                    if let Some(peer) = self.peers.get_mut(&worker) {
                        peer.work.remove(&lease);
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

    fn pick(&self, number: usize) -> Option<WorkerId> {
        let peers: Vec<WorkerId> = self.peers.keys().copied().collect();
        (!peers.is_empty()).then(|| peers[number % peers.len()])
    }

    fn join(&mut self, slots: u32, class: NumericClass) {
        self.joined += 1;
        let info = WorkerInfo { class, key: format!("process {}", self.joined), ..info(slots) };
        self.connect(Peer { info, work: BTreeMap::new(), frozen: false, leaving: false });
    }

    /// A process says hello, with what it holds.
    fn connect(&mut self, peer: Peer) {
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
    fn break_link(&mut self, worker: WorkerId, forgets: bool) {
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

    fn lose(&mut self, number: usize) {
        let blobs: Vec<Digest> = self.machine.scheduler.state().blobs().into_iter().collect();
        if let Some(blob) = blobs.get(number % blobs.len().max(1)).copied() {
            self.apply(Event::BlobLost { blob });
        }
    }

    /// A worker trains each of its leases on; what it has to say is on the way after that.
    fn train(&mut self, worker: WorkerId, steps: u64) {
        let Some(peer) = self.peers.get_mut(&worker).filter(|peer| !peer.frozen) else { return };
        self.late.push_back(Event::Heartbeat { worker, leases: peer.work.keys().copied().collect() });
        let mut done = Vec::new();
        for (lease, (step, total, stage)) in &mut peer.work {
            *step += steps;
            if *step >= *total {
                let result = Box::new(graftwork_shared::assignment::StageResult {
                    numeric_class: peer.info.class.clone(),
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

    fn fail(&mut self, worker: WorkerId, user: bool) {
        let Some(peer) = self.peers.get_mut(&worker) else { return };
        let Some((lease, _)) = peer.work.pop_first() else { return };
        let blame = if user { Blame::User } else { Blame::Machine };
        self.late.push_back(Event::Failed { worker, lease, failure: Failure { blame, message: "no".to_owned() } });
    }

    fn lie(&mut self, peer: usize, lease: usize) {
        let live: Vec<(LeaseId, String)> = self
            .peers
            .values()
            .flat_map(|peer| peer.work.iter().map(|(lease, (_, _, stage))| (*lease, stage.clone())))
            .collect();
        if let (Some(worker), false) = (self.pick(peer), live.is_empty()) {
            let (lease, stage) = live[lease % live.len()].clone();
            if !self.peers[&worker].work.contains_key(&lease) {
                self.apply(Event::Finished { worker, lease, result: Box::new(result(&stage, 1, 0.9)) });
            }
        }
    }

    fn deliver(&mut self, twice: bool) {
        let Some(event) = self.late.pop_front() else { return };
        if twice {
            self.apply(event.clone());
        }
        self.apply(event);
    }

    fn publish(&mut self, fails: bool) {
        match self.publishing.pop_front() {
            Some(Event::Published { key, .. }) if fails => {
                let failure = Failure { blame: Blame::Machine, message: "full".to_owned() };
                self.apply(Event::PublishFailed { key, failure });
            }
            Some(event) => self.apply(event),
            None => {}
        }
    }

    /// kill -9 of the coordinator: sessions and questions are gone, facts stay.
    fn restart(&mut self) {
        self.restarts += 1;
        self.peers.clear();
        self.apart.clear();
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
                    let key = fixture::key(id, stage.name.as_str());
                    self.publishing.push_back(Event::Published { key, release: format!("org/{}", stage.name) });
                }
            }
        }
    }

    fn act(&mut self, deed: &Deed) {
        match deed {
            Deed::Submit(which) => {
                let plan = plans()[*which].clone();
                if !self.jobs.contains(&plan.id()) {
                    self.jobs.push(plan.id());
                }
                self.apply(Event::Submitted { plan: Box::new(plan), gone: Vec::new() });
            }
            Deed::Join { slots, wide } => self.join(*slots, class(if *wide { "avx512" } else { "avx2" })),
            Deed::Kill(number) => {
                if let Some(worker) = self.pick(*number) {
                    self.peers.remove(&worker);
                    self.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
                }
            }
            Deed::Break { peer, forgets } => {
                if let Some(worker) = self.pick(*peer) {
                    self.break_link(worker, *forgets);
                }
            }
            Deed::Return(number) => {
                if !self.apart.is_empty() {
                    let peer = self.apart.remove(number % self.apart.len());
                    self.connect(peer);
                }
            }
            Deed::Lose(number) => self.lose(*number),
            Deed::Freeze(number) | Deed::Thaw(number) => {
                if let Some(peer) = self.pick(*number).and_then(|worker| self.peers.get_mut(&worker)) {
                    peer.frozen = matches!(deed, Deed::Freeze(_));
                }
            }
            Deed::Train { peer, steps } => {
                if let Some(worker) = self.pick(*peer) {
                    self.train(worker, *steps);
                }
            }
            Deed::Fail { peer, user } => {
                if let Some(worker) = self.pick(*peer) {
                    self.fail(worker, *user);
                }
            }
            Deed::Lie { peer, lease } => self.lie(*peer, *lease),
            Deed::Deliver => self.deliver(false),
            Deed::DeliverTwice => self.deliver(true),
            Deed::Publish { fails } => self.publish(*fails),
            Deed::Wait(wait_ms) => {
                self.machine.now_ms += wait_ms;
                self.apply(Event::Tick);
            }
            Deed::Drain(number) => {
                if let Some(worker) = self.pick(*number) {
                    self.apply(Event::DrainWorker { worker, reason: "drained".to_owned() });
                }
            }
            Deed::Cancel(number) => {
                if let Some(job) = self.jobs.get(*number).cloned() {
                    self.apply(Event::Cancel { job, reason: "cancelled".to_owned() });
                }
            }
            Deed::Restart => self.restart(),
        }
    }

    /// From here on nothing bad happens; two healthy workers of either class come.
    fn calm_down(&mut self) {
        for wide in ["avx2", "avx512"] {
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

/// Between two submissions of a job, each stage has at most one result and one release, and the job one end.
fn nothing_happens_twice(facts: &[Fact]) {
    let mut seen = BTreeSet::new();
    for fact in facts {
        match fact {
            Fact::JobReopened { plan, .. } => {
                let id = plan.id();
                seen.retain(|(job, ..): &(JobId, String, &str)| *job != id);
            }
            Fact::ResultLost { job, stage, .. } => {
                seen.retain(|(of, name, _)| of != job || name != stage.as_str());
            }
            Fact::StageTrained { job, stage, .. } => {
                assert!(seen.insert((job.clone(), stage.to_string(), "trained")), "{stage} was trained twice");
            }
            Fact::StagePublished { job, stage, .. } => {
                assert!(seen.insert((job.clone(), stage.to_string(), "published")), "{stage} was published twice");
            }
            Fact::JobEnded { job, .. } => {
                assert!(seen.insert((job.clone(), String::new(), "ended")), "{job} ended twice");
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_workers_and_coordinators_every_job_ends(deeds in deeds()) {
        let mut world = World::new();
        for deed in &deeds {
            world.act(deed);
        }
        world.calm_down();
        nothing_happens_twice(&world.machine.facts);
    }

    #[test]
    fn a_coordinator_killed_after_any_fact_leads_every_job_to_its_end(deeds in deeds(), cut in 0.0..1.0_f64) {
        let mut world = World::new();
        for deed in &deeds {
            world.act(deed);
        }
        let facts = std::mem::take(&mut world.machine.facts);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a small number")]
        let kept = (facts.len() as f64 * cut) as usize;
        world.machine.facts = facts[..kept].to_vec();
        world.restart();
        let known: Vec<JobId> = world.machine.scheduler.jobs();
        world.jobs.retain(|job| known.contains(job));
        world.calm_down();
        nothing_happens_twice(&world.machine.facts);
    }
}
