//! The world: what is due in order of time, workers and their connections, users, and everything that goes wrong.

use std::collections::{BTreeMap, VecDeque};

use graftwork_driver::Gone;
use graftwork_scheduler::{
    Command, Fact, Plan, StageKey, Standing,
    history::{self, History},
};
use graftwork_shared::{
    assignment::StageResult,
    digest::Digest,
    event::{Event as Told, EventKind},
    id::{JobId, LeaseId, Term},
};

use crate::{
    coordinator::Coordinator,
    dice::Dice,
    faults::{Fault, Faults},
    fixture,
    ledger::{Disk, Ledger},
    network::{DOWN, Link, UP},
    plans,
    seen::{Counts, Seen},
    worker::{Process, Trained, Word},
};

/// How long faults happen; then everything heals.
const CHAOS_MS: u64 = 25_000;

/// Within which every job ends after that.
const CALM_MS: u64 = 900_000;

/// What is due.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    /// A worker's word arrives, or the end of its connection.
    Up(u64, Word),
    UpEnds(u64, Gone),
    /// A coordinator's message arrives at a worker, or the end of the connection.
    Down(u64, Term, Box<Command>),
    DownEnds(u64),
    /// A worker's probe is back.
    Echo(u64, u64),
    /// A worker puts or asks for blobs, for what it does under a lease; and what came of it.
    Put(usize, u64, LeaseId, Digest),
    PutDone(usize, LeaseId, Digest, bool),
    Get(usize, u64, LeaseId),
    GetDone(usize, LeaseId, bool),
    /// A worker's own clock.
    Beat(usize),
    Train(usize),
    Connect(usize),
    Thaw(usize),
    Heal(usize),
    Rejoin(usize),
    /// The coordinator's own.
    Start,
    Written(u64),
    Tick(u64),
    Unstall(u64),
    /// Another one takes the lead, and the one before learns of it.
    Usurp,
    Deposed(u64),
    /// A worker's ping over this connection was not answered.
    Unanswered(u64),
    /// Blobs of an earlier term were not spoken of.
    LetGo(u64),
    FreeDisk,
    /// The hub's answers.
    Published(u64, StageKey, bool),
    Reuse(u64, StageKey),
    /// A user submits, and hears that it was taken; cancels; an operator drains.
    Submit(usize),
    Taken(u64, usize),
    Cancel(usize),
    Drain(usize),
    Stop,
    /// Another worker comes.
    Join(&'static str),
    Fault(Fault, u64),
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) faults: Faults,
    /// Time as it is, which no clock shows.
    pub(crate) now: u64,
    queue: BTreeMap<(u64, u64), Deed>,
    scheduled: u64,
    pub(crate) calm: bool,
    /// The coordinator that leads, or the one before it while that acts: see `as_deposed`.
    pub(crate) coordinator: Option<Coordinator>,
    /// One that led before it, and does not know yet that it leads no more.
    pub(crate) deposed: Option<Coordinator>,
    pub(crate) starts: u64,
    /// What the wall clock shows beyond the time as it is.
    pub(crate) wall_ahead_ms: i64,
    pub(crate) disk: Disk,
    pub(crate) ledger: Ledger,
    pub(crate) writes: u64,
    pub(crate) hub: BTreeMap<Digest, StageResult>,
    pub(crate) links: BTreeMap<u64, Link>,
    pub(crate) opened: u64,
    /// Messages that wait for a worker that is frozen or cut off.
    held: BTreeMap<(u64, usize), VecDeque<Deed>>,
    pub(crate) processes: BTreeMap<usize, Process>,
    pub(crate) joined: usize,
    pub(crate) plans: Vec<Plan>,
    pub(crate) taken: Vec<bool>,
    /// How far training is in each checkpoint's blob.
    pub(crate) checkpoints: BTreeMap<Digest, Trained>,
    /// What people were told.
    pub(crate) told: Vec<Told>,
    /// What those were told who watched a coordinator that led no more, by its start.
    pub(crate) told_late: BTreeMap<u64, Vec<Told>>,
    seen: Counts,
}

impl World {
    pub(crate) fn new(seed: u64, faults: Option<Faults>) -> Self {
        let mut dice = Dice::new(seed);
        let faults = faults.unwrap_or_else(|| Faults::draw(&mut dice));
        let mut plans = plans::all();
        while plans.len() > 1 && dice.chance(400) {
            plans.remove(usize::try_from(dice.below(plans.len() as u64)).unwrap());
        }
        let mut world = Self {
            dice,
            faults,
            now: 1_000_000,
            queue: BTreeMap::new(),
            scheduled: 0,
            calm: false,
            coordinator: None,
            deposed: None,
            starts: 0,
            wall_ahead_ms: 0,
            disk: Disk::new(),
            ledger: Ledger::default(),
            writes: 0,
            hub: BTreeMap::new(),
            links: BTreeMap::new(),
            opened: 0,
            held: BTreeMap::new(),
            processes: BTreeMap::new(),
            joined: 0,
            taken: vec![false; plans.len()],
            plans,
            checkpoints: BTreeMap::new(),
            told: Vec::new(),
            told_late: BTreeMap::new(),
            seen: Counts::new(),
        };
        world.after(0, Deed::Start);
        for job in 0..world.plans.len() {
            let wait = world.dice.below(6_000);
            world.after(wait, Deed::Submit(job));
        }
        for _ in 0..world.dice.between(1, 5) {
            let wait = world.dice.below(8_000);
            let class = if world.dice.chance(150) { "avx512" } else { "avx2" };
            world.after(wait, Deed::Join(class));
        }
        for (fault, mean) in world.faults.kinds().collect::<Vec<_>>() {
            let wait = world.dice.below(2 * mean);
            world.after(wait, Deed::Fault(fault, mean));
        }
        world
    }

    /// Whether chaos strikes now.
    pub(crate) fn strikes(&mut self, per_mille: u64) -> bool {
        !self.calm && self.dice.chance(per_mille)
    }

    pub(crate) fn delay(&mut self) -> u64 {
        let most = if self.calm { 2 } else { self.faults.delay_ms };
        self.dice.between(1, most.max(1))
    }

    pub(crate) fn after(&mut self, wait_ms: u64, deed: Deed) {
        self.scheduled += 1;
        self.queue.insert((self.now + wait_ms, self.scheduled), deed);
    }

    /// Lives through chaos and calm; every job that was taken has ended then.
    pub(crate) fn live(&mut self) {
        let (begin, mut jobs_end) = (self.now, None);
        while let Some(((at, _), deed)) = self.queue.pop_first() {
            self.now = at;
            if !self.calm && at >= begin + CHAOS_MS {
                self.calm_down();
            }
            if std::env::var_os("GRAFTWORK_SIMULATION_TRACE").is_some() {
                eprintln!("{:>9} {deed:?}", self.now - begin);
            }
            self.note(Seen::Turn);
            self.act(deed);
            self.settle();
            if self.calm && self.is_done() {
                // What is still under way may come in, and must change nothing.
                let end = *jobs_end.get_or_insert(self.now);
                if self.now > end + 15_000 && self.processes.is_empty() {
                    return self.leaves_nothing();
                }
                if self.now > end + 5_000 {
                    let idle = |process: &Process| process.welcome.is_none() || process.leases.is_empty();
                    assert!(self.processes.values().all(idle), "a worker was never told that its lease is over");
                    self.processes
                        .keys()
                        .copied()
                        .collect::<Vec<_>>()
                        .into_iter()
                        .for_each(|process| self.end(process));
                }
            }
            assert!(self.now < begin + CHAOS_MS + CALM_MS, "jobs do not end: {}", self.explained());
        }
        assert!(self.is_done(), "nothing is due any more: {}", self.explained());
        self.leaves_nothing();
    }

    pub(crate) fn note(&mut self, seen: Seen) {
        *self.seen.entry(seen).or_default() += 1;
    }

    /// What happened, and how often.
    pub(crate) fn counts(&self) -> Counts {
        let formed = |why: &str| {
            self.told
                .iter()
                .any(|told| matches!(&told.kind, EventKind::GroupFormed { reason, .. } if reason.contains(why)))
        };
        let mut seen = self.seen.clone();
        seen.insert(Seen::HelpedFirst, u64::from(formed("would hold up the job")));
        seen.insert(Seen::StoodStill, u64::from(formed("some cannot reach each other")));
        if self.faults.every_update {
            let updates = self.told.iter().filter(|told| matches!(told.kind, EventKind::Step(_)));
            seen.insert(Seen::UpdateTold, updates.count() as u64);
        }
        for fact in &self.disk.facts {
            let kind = match fact {
                Fact::TrialScored { .. } => Seen::TrialScored,
                Fact::RungDecided { .. } => Seen::RungDecided,
                Fact::TrialChosen { .. } => Seen::TrialChosen,
                Fact::SweepFailed { .. } => Seen::SweepFailed,
                _ => continue,
            };
            *seen.entry(kind).or_default() += 1;
        }
        seen
    }

    fn is_done(&self) -> bool {
        let Some(coordinator) = &self.coordinator else { return false };
        let ended = |plan: &Plan| coordinator.core.machine().standing(&plan.id()) == Standing::Ended;
        let alone = self.deposed.is_none() && coordinator.is_quiet();
        self.taken.iter().all(|taken| *taken) && self.plans.iter().all(ended) && alone
    }

    fn explained(&self) -> String {
        let Some(coordinator) = &self.coordinator else { return "no coordinator lives".to_owned() };
        let explained = |job: &JobId| coordinator.core.machine().explain(job).map(|told| told.to_string());
        coordinator.core.machine().jobs().iter().filter_map(explained).collect()
    }

    /// Every pin has ended with its owner, and nothing that is referred to is gone.
    fn leaves_nothing(&mut self) {
        let coordinator = self.coordinator.as_ref().unwrap();
        assert!(coordinator.pins.is_empty(), "pins outlive their owners: {:?}", coordinator.pins);
        self.disk.state.blobs().into_iter().for_each(|blob| self.is_kept(blob));
        self.disk.read();
        let of_an_epoch =
            |(recipe, rows): (&Digest, &Vec<Digest>)| (*recipe, rows.last().copied().into_iter().collect());
        let (facts, rows) = (&self.disk.facts, plans::rows().iter().map(of_an_epoch).collect());
        let every_update = self.faults.every_update;
        for told in std::iter::once(&self.told).chain(self.told_late.values()) {
            let found = history::check(&History { facts, told, rows: &rows, in_lockstep: false, every_update });
            assert!(found.is_empty(), "{found:#?}");
        }
    }

    /// From here on nothing bad happens; healthy workers of either class come, as many as the largest gang.
    fn calm_down(&mut self) {
        self.calm = true;
        self.disk.full = false;
        for process in self.processes.keys().copied().collect::<Vec<_>>() {
            self.after(0, Deed::Heal(process));
            self.after(0, Deed::Thaw(process));
        }
        for class in ["avx2", "avx2", "avx512", "avx512"] {
            self.after(1, Deed::Join(class));
        }
        if self.coordinator.is_none() {
            self.after(1, Deed::Start);
        }
    }

    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Down(link, ..) | Deed::DownEnds(link) | Deed::Echo(link, _) => self.arrive(link, DOWN, deed),
            Deed::Up(link, _) | Deed::UpEnds(link, _) => self.arrive(link, UP, deed),
            Deed::PutDone(process, lease, blob, kept) => self.on_put_done(process, lease, blob, kept),
            Deed::GetDone(process, lease, found) => self.on_got(process, lease, found),
            Deed::Beat(process) => self.beat(process),
            Deed::Train(process) => self.train(process),
            Deed::Connect(process) => self.connect(process),
            Deed::Thaw(process) => {
                self.processes.get_mut(&process).into_iter().for_each(|process| process.frozen_until = 0);
                self.release_held(process);
            }
            Deed::Heal(process) => {
                self.processes.get_mut(&process).into_iter().for_each(|process| process.partition = [false; 2]);
                self.release_held(process);
            }
            Deed::Rejoin(process) if !(self.calm && self.faults.stays_apart) => {
                self.processes.get_mut(&process).into_iter().for_each(|process| process.alone_since = None);
            }
            Deed::Join(class) => self.join(class),
            Deed::Fault(fault, mean) if !self.calm => {
                let wait = self.dice.below(2 * mean);
                self.after(wait, Deed::Fault(fault, mean));
                self.strike(fault);
            }
            Deed::Rejoin(_) | Deed::Fault(..) => {}
            Deed::Submit(job) if self.taken[job] => {}
            Deed::FreeDisk => self.disk.full = false,
            Deed::Usurp if self.calm => {}
            Deed::Unanswered(link) => self.break_link(link),
            deed => self.reach_coordinator(deed),
        }
    }

    /// A message arrives over a connection, unless what is between stops it.
    fn arrive(&mut self, number: u64, direction: usize, deed: Deed) {
        let Some(link) = self.links.get(&number) else { return };
        let Some(process) = self.processes.get(&link.process) else {
            // The end of a dead process's connection is heard all the same.
            if matches!(deed, Deed::UpEnds(..)) {
                self.reach_coordinator(deed);
            }
            return;
        };
        let (cut, frozen) = (process.partition[direction], direction == DOWN && process.frozen_until > self.now);
        let waits = self.held.get(&(number, direction)).is_some_and(|held| !held.is_empty());
        if cut {
            self.note(Seen::CutOff);
        }
        if cut || frozen || waits {
            return self.held.entry((number, direction)).or_default().push_back(deed);
        }
        self.pass(number, direction, deed);
    }

    fn pass(&mut self, number: u64, direction: usize, deed: Deed) {
        let ends = matches!(deed, Deed::UpEnds(..) | Deed::DownEnds(_));
        if !ends && !self.links[&number].carries(self.now) {
            return;
        }
        if direction == UP {
            return self.reach_coordinator(deed);
        }
        let index = self.links[&number].process;
        let Some(process) = self.processes.get_mut(&index).filter(|process| process.link == Some(number)) else {
            return;
        };
        let words = match deed {
            Deed::Down(_, term, command) if term < process.term => {
                self.links.get_mut(&number).unwrap().unread -= 1;
                // Such a one cannot become the right one; within a connection it is a stray word.
                if matches!(*command, Command::Welcome { .. }) {
                    process.on_lost();
                    self.break_link(number);
                    self.note(Seen::TermRefused);
                }
                Vec::new()
            }
            Deed::Down(_, term, command) => {
                self.links.get_mut(&number).unwrap().unread -= 1;
                let late = term < self.disk.term;
                let total = match &*command {
                    Command::Assign { assignment, .. } => {
                        let plan = self.plans.iter().find(|plan| plan.id() == assignment.job).unwrap();
                        plan.stage(&assignment.stage).unwrap().total_steps
                    }
                    _ => 0,
                };
                let words = process.on_message(term, &command, total);
                if late {
                    self.note(Seen::LateCommand);
                }
                words
            }
            Deed::Echo(_, probe) => {
                self.links.get_mut(&number).unwrap().unread -= 1;
                process.on_echo(probe, self.now);
                self.note(Seen::Echo);
                Vec::new()
            }
            _ => {
                process.on_lost();
                Vec::new()
            }
        };
        self.take_state(index);
        self.say(index, words);
        self.go_on(index);
    }

    /// What was held goes on in order.
    fn release_held(&mut self, index: usize) {
        let Some(process) = self.processes.get(&index) else { return };
        let (partition, frozen) = (process.partition, process.frozen_until > self.now);
        let of_process = |(number, _): &(u64, usize)| self.links[number].process == index;
        for (number, direction) in self.held.keys().copied().filter(of_process).collect::<Vec<_>>() {
            if partition[direction] || (direction == DOWN && frozen) {
                continue;
            }
            for deed in self.held.remove(&(number, direction)).unwrap_or_default() {
                self.pass(number, direction, deed);
            }
        }
    }

    /// A connection breaks: what is on its way is lost from some moment on, and both ends learn of it in their time.
    pub(crate) fn break_link(&mut self, number: u64) {
        let (until, up, down) = (self.delay(), self.dice.below(900), self.dice.below(900));
        let now = self.now;
        let Some(link) = self.links.get_mut(&number).filter(|link| link.broken_ms.is_none()) else { return };
        link.broken_ms = Some(now + until);
        self.held.retain(|(held, _), _| *held != number);
        self.after(until + up, Deed::UpEnds(number, Gone::Link("reset by peer".to_owned())));
        self.after(until + down, Deed::DownEnds(number));
    }

    /// A process is gone. Once all is calm, somebody starts another one in its place while there is work.
    pub(crate) fn end(&mut self, index: usize) {
        let Some(process) = self.processes.remove(&index) else { return };
        if self.calm && !self.is_done() {
            let class = if process.info.class == fixture::class("avx2") { "avx2" } else { "avx512" };
            self.after(1_000, Deed::Join(class));
        }
        if let Some(number) = process.link {
            self.break_link(number);
        }
    }
}
