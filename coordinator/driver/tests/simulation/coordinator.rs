//! The coordinator: the real core and scheduler over a scripted journal, disk, hub and clock.

use std::collections::{BTreeMap, VecDeque};

use graftwork_driver::{Core, Gone, MOST_WAITING, Output, Timing};
use graftwork_scheduler::{Command, Event, Fact, Policy, Scheduler, Standing};
use graftwork_shared::{
    assignment::{Blame, Failure},
    digest::Digest,
    event::{Event as Told, EventKind, StepReport},
    id::{LeaseId, WorkerId},
};

use crate::{
    ledger::Checked,
    worker::Word,
    world::{Deed, World},
};

/// An answer to a user: the job of this index was taken.
pub(crate) struct Taken(usize);

pub(crate) struct Coordinator {
    pub(crate) core: Core<Taken, Checked>,
    /// Time as it was at its start, and what the wall clock showed then.
    started: u64,
    started_wall: u64,
    /// It stands still until then.
    stalled_until: u64,
    inbox: VecDeque<Deed>,
    /// Writes that wait for the journal, and the one under way: all that had gathered.
    queue: VecDeque<Vec<Fact>>,
    writing: Option<Vec<Fact>>,
    pub(crate) pins: BTreeMap<Digest, u32>,
    pub(crate) sessions: BTreeMap<WorkerId, u64>,
    /// Which groups may meet.
    meetings: BTreeMap<LeaseId, u64>,
    workers: BTreeMap<u64, WorkerId>,
    /// When its next tick is due, as it is scheduled.
    tick: Option<u64>,
    stopped: bool,
}

impl Coordinator {
    /// Milliseconds since 1970 as the shell's clock counts them: from the wall clock at its start, monotonic from there.
    fn now_ms(&self, now: u64) -> u64 {
        self.started_wall + (now - self.started)
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.writing.is_none() && self.inbox.is_empty()
    }
}

impl World {
    fn start(&mut self) {
        if self.coordinator.is_some() {
            return;
        }
        self.starts += 1;
        let state = self.disk.read();
        let keep = state.blobs();
        self.disk.blobs.retain(|blob| keep.contains(blob));
        let started_wall = self.now.saturating_add_signed(self.wall_ahead_ms);
        let policy = Policy { sends_home: self.faults.sends_home, ..Policy::default() };
        let (machine, first) = Scheduler::start(policy, state, started_wall);
        self.ledger.on_start(&self.disk, machine.state().term());
        let facts = self.disk.facts.len() as u64;
        let coordinator = Coordinator {
            core: Core::new((Checked(machine), first), started_wall, facts, Timing { stop_ms: 2_000 }),
            started: self.now,
            started_wall,
            stalled_until: 0,
            inbox: VecDeque::new(),
            queue: VecDeque::new(),
            writing: None,
            pins: BTreeMap::new(),
            sessions: BTreeMap::new(),
            meetings: BTreeMap::new(),
            workers: BTreeMap::new(),
            tick: None,
            stopped: false,
        };
        self.coordinator = Some(coordinator);
        self.pump();
    }

    /// kill -9: sessions and questions are gone, and of the write under way all or nothing is there.
    pub(crate) fn crash(&mut self) {
        let Some(mut coordinator) = self.coordinator.take() else { return };
        if let Some(facts) = coordinator.writing.take()
            && self.dice.chance(500)
        {
            self.disk.write(facts);
        }
        self.end_links();
        let wait = self.dice.between(10, 2_500);
        self.after(wait, Deed::Start);
    }

    fn end_links(&mut self) {
        let start = self.starts;
        let open = self.links.iter().filter(|(_, link)| link.start == start && link.broken_ms.is_none());
        for number in open.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.break_link(number);
        }
    }

    pub(crate) fn stall(&mut self) {
        let (now, wait) = (self.now, self.dice.between(100, 25_000));
        let start = self.starts;
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.stalled_until = now + wait;
            self.after(wait, Deed::Unstall(start));
        }
    }

    /// Something reaches the coordinator, if there is one and it is the one that it is for.
    pub(crate) fn reach_coordinator(&mut self, deed: Deed) {
        match deed {
            Deed::Start => return self.start(),
            // The users' program tries again until it is told that the job is there.
            Deed::Submit(job) => self.after(2_000, Deed::Submit(job)),
            Deed::Taken(start, job) => {
                self.taken[job] |= start == self.starts && self.coordinator.is_some();
                return;
            }
            _ => {}
        }
        let start = self.starts;
        let Some(coordinator) = &mut self.coordinator else { return };
        let of_another = match &deed {
            Deed::Up(link, _) | Deed::UpEnds(link, _) => self.links[link].start != start,
            Deed::Put(_, of, ..)
            | Deed::Get(_, of, _)
            | Deed::Written(of)
            | Deed::Tick(of)
            | Deed::Unstall(of)
            | Deed::Published(of, ..)
            | Deed::Reuse(of, _) => *of != start,
            _ => false,
        };
        if of_another {
            return;
        }
        match deed {
            Deed::Written(_) => self.on_written(),
            deed => coordinator.inbox.push_back(deed),
        }
    }

    /// The coordinator's loop: takes what has come, as long as it stands not still and has room.
    pub(crate) fn settle(&mut self) {
        loop {
            self.pump();
            let now = self.now;
            let Some(coordinator) = &mut self.coordinator else { return };
            if coordinator.stopped || coordinator.core.has_stopped(coordinator.now_ms(now)) {
                return self.end_cleanly();
            }
            if coordinator.stalled_until > now || !coordinator.core.has_room() {
                return;
            }
            let Some(deed) = coordinator.inbox.pop_front() else { return self.schedule_tick() };
            self.handle(deed);
        }
    }

    /// It was asked to stop, and does: the journal writes what is queued.
    fn end_cleanly(&mut self) {
        let Some(coordinator) = self.coordinator.take() else { return };
        if !self.disk.full {
            coordinator.writing.into_iter().chain(coordinator.queue).for_each(|facts| self.disk.write(facts));
        }
        self.end_links();
        let wait = self.dice.between(10, 1_500);
        self.after(wait, Deed::Start);
    }

    fn schedule_tick(&mut self) {
        let (start, now) = (self.starts, self.now);
        let Some(coordinator) = &mut self.coordinator else { return };
        let now_ms = coordinator.now_ms(now);
        let Some(deadline) = coordinator.core.next_deadline() else { return };
        let at = now + deadline.saturating_sub(now_ms).max(1);
        if coordinator.tick.is_none_or(|tick| tick <= now || at < tick) {
            coordinator.tick = Some(at);
            self.after(at - now, Deed::Tick(start));
        }
    }

    fn handle(&mut self, deed: Deed) {
        let coordinator = self.coordinator.as_mut().unwrap();
        let now_ms = coordinator.now_ms(self.now);
        let core = &mut coordinator.core;
        match deed {
            Deed::Up(link, word) => self.on_word(link, word),
            Deed::UpEnds(link, gone) => {
                self.links.get_mut(&link).unwrap().closed = true;
                if let Some(worker) = coordinator.workers.get(&link) {
                    core.on_left(now_ms, (*worker, link), gone);
                }
            }
            Deed::Tick(_) => core.tick(now_ms),
            Deed::Published(_, key, ends_well) => {
                let result = core.machine().result(&key).cloned();
                let read = result.iter().flat_map(blobs);
                let lost: Vec<Digest> = read.filter(|blob| !self.disk.blobs.contains(blob)).collect();
                for blob in &lost {
                    assert!(self.disk.lost.contains(blob), "{blob} of a result was removed");
                    core.on_event(now_ms, Event::BlobLost { blob: *blob });
                }
                if lost.is_empty() && ends_well {
                    let release = format!("org/{}", key.stage);
                    let recipe = core.machine().plan(&key.job).and_then(|plan| plan.stage(&key.stage));
                    if let (Some(recipe), Some(result)) = (recipe.map(|stage| stage.recipe_digest), result) {
                        self.hub.insert(recipe, result);
                    }
                    core.on_event(now_ms, Event::Published { key, release });
                } else {
                    let failure = Failure { blame: Blame::Machine, message: "the hub is full".to_owned() };
                    core.on_event(now_ms, Event::PublishFailed { key, failure });
                }
            }
            Deed::Reuse(_, key) => self.on_reuse(key),
            Deed::Submit(job) => {
                let plan = self.plans[job].clone();
                if core.machine().standing(&plan.id()) != Standing::Active {
                    core.on_event(now_ms, Event::Submitted { plan: Box::new(plan), gone: Vec::new() });
                }
                core.reply(Taken(job));
            }
            Deed::Cancel(job) => {
                let (job, reason) = (self.plans[job].id(), "cancelled by the user".to_owned());
                core.on_event(now_ms, Event::Cancel { job, reason });
            }
            Deed::Drain(process) => {
                let link = self.processes.get(&process).and_then(|process| process.link);
                if let Some(worker) = link.and_then(|link| coordinator.workers.get(&link)) {
                    core.on_event(now_ms, Event::DrainWorker { worker: *worker, reason: "drained".to_owned() });
                }
            }
            Deed::Stop => core.stop(now_ms, "stopped by its operator".to_owned()),
            Deed::Put(process, _, lease, blob) => self.on_put(process, lease, blob),
            Deed::Get(process, _, lease) => self.on_get(process, lease),
            Deed::Unstall(_) => {}
            other => unreachable!("{other:?} is not for the coordinator"),
        }
    }

    /// The session's part: what cannot be ends it.
    fn on_word(&mut self, link: u64, word: Word) {
        let coordinator = self.coordinator.as_mut().unwrap();
        let now_ms = coordinator.now_ms(self.now);
        let core = &mut coordinator.core;
        if self.links[&link].closed {
            return;
        }
        if let Word::Hello(leases) = word {
            let Some(process) = self.processes.get(&self.links[&link].process) else { return };
            let event = Event::WorkerJoined { session: link, info: process.info.clone(), leases };
            return core.on_join(now_ms, (link, event));
        }
        let Some(worker) = coordinator.workers.get(&link).copied() else { return };
        if word.blobs().iter().any(|blob| !self.disk.blobs.contains(blob)) {
            self.links.get_mut(&link).unwrap().closed = true;
            core.on_left(now_ms, (worker, link), Gone::Wrong("a blob was not uploaded".to_owned()));
            return self.close(link);
        }
        let replaced = coordinator.sessions.get(&worker) != Some(&link);
        let before = replaced.then(|| core.machine().clone());
        match word {
            Word::Step(lease, step) => {
                let report = StepReport { step, ..StepReport::default() };
                core.on_report(now_ms, (worker, link), lease, EventKind::Step(report));
            }
            Word::Probe(number, round_trip_ms) => {
                // Through the loop, and before anything else is done about it.
                let open = core.is_open(worker, link);
                core.on_worker(now_ms, (worker, link), Event::RoundTrip { worker, round_trip_ms });
                if open {
                    self.send(worker, |link, _| Deed::Echo(link, number));
                }
            }
            word => {
                let event = word.event(worker).expect("all other words are events");
                core.on_worker(now_ms, (worker, link), event);
            }
        }
        let machine = self.coordinator.as_ref().unwrap().core.machine();
        let unchanged = before.is_none_or(|before| before == *machine);
        assert!(unchanged, "{worker} was heard over a session that was replaced or has ended");
    }

    fn on_put(&mut self, process: usize, lease: LeaseId, blob: Digest) {
        let kept = !self.disk.full;
        if kept {
            self.disk.blobs.insert(blob);
            self.disk.lost.remove(&blob);
            let coordinator = self.coordinator.as_mut().unwrap();
            *coordinator.pins.entry(blob).or_insert(0) += 1;
            coordinator.core.on_put(format!("process {process}"), blob);
        }
        let delay = self.delay();
        self.after(delay, Deed::PutDone(process, lease, blob, kept));
    }

    fn on_get(&mut self, process: usize, lease: LeaseId) {
        let work = self.processes.get(&process).and_then(|process| process.leases.get(&lease));
        let Some(assignment) = work.map(|work| work.assignment.clone()) else { return };
        let wanted = assignment.resume.iter().chain(&assignment.adapters);
        let missing: Vec<Digest> = wanted.copied().filter(|blob| !self.disk.blobs.contains(blob)).collect();
        let coordinator = self.coordinator.as_mut().unwrap();
        let now_ms = coordinator.now_ms(self.now);
        for blob in &missing {
            let referred = coordinator.core.machine().state().refers_to(*blob);
            assert!(!referred || self.disk.lost.contains(blob), "{blob} was removed while it is referred to");
            coordinator.core.on_event(now_ms, Event::BlobLost { blob: *blob });
        }
        let delay = self.delay();
        self.after(delay, Deed::GetDone(process, lease, missing.is_empty()));
    }

    /// The hub has an earlier result or not; what it has is put and pinned until its fact is durable.
    fn on_reuse(&mut self, key: graftwork_scheduler::StageKey) {
        let coordinator = self.coordinator.as_mut().unwrap();
        let now_ms = coordinator.now_ms(self.now);
        let recipe = coordinator.core.machine().plan(&key.job).and_then(|plan| plan.stage(&key.stage));
        let found = recipe.and_then(|stage| self.hub.get(&stage.recipe_digest)).filter(|_| !self.disk.full).cloned();
        let put: Vec<Digest> = found.iter().flat_map(blobs).collect();
        for blob in &put {
            self.disk.blobs.insert(*blob);
            self.disk.lost.remove(blob);
            *coordinator.pins.entry(*blob).or_insert(0) += 1;
        }
        coordinator.core.on_event(now_ms, Event::Reusable { key, result: found.map(Box::new) });
        coordinator.core.settle(put);
    }

    /// Carries out what may be.
    fn pump(&mut self) {
        let now = self.now;
        while let Some(coordinator) = self.coordinator.as_mut().filter(|coordinator| coordinator.stalled_until <= now) {
            let Some(output) = coordinator.core.poll() else { break };
            self.perform(output);
        }
        self.begin_write();
    }

    fn perform(&mut self, output: Output<Taken>) {
        let coordinator = self.coordinator.as_mut().unwrap();
        match output {
            Output::Write(facts) => {
                coordinator.queue.push_back(facts);
                assert!(coordinator.queue.len() <= 2 * MOST_WAITING, "the journal's queue is bounded");
            }
            Output::Reply(Taken(job)) => {
                self.ledger.on_submitted(&self.disk, &self.plans[job].id());
                let (start, delay) = (self.starts, self.delay());
                self.after(delay, Deed::Taken(start, job));
            }
            Output::Meet(lease, epoch) => {
                coordinator.meetings.remove(&lease);
                coordinator.meetings.extend(epoch.map(|epoch| (lease, epoch)));
            }
            Output::Unpin(blob) => {
                let count = coordinator.pins.get_mut(&blob).expect("a pin ends once");
                *count -= 1;
                coordinator.pins.retain(|_, count| *count > 0);
            }
            Output::End(worker) => {
                if let Some(link) = coordinator.sessions.remove(&worker) {
                    self.close(link);
                }
            }
            Output::TurnAway(link) => self.close(link),
            Output::Command(command) => {
                if !matches!(&command, Command::Discard { blob } if coordinator.pins.contains_key(blob)) {
                    self.ledger.on_command(&self.disk, &command);
                }
                self.perform_command(command);
            }
        }
    }

    fn perform_command(&mut self, command: Command) {
        let coordinator = self.coordinator.as_mut().unwrap();
        let (start, now_ms) = (self.starts, coordinator.now_ms(self.now));
        let term = coordinator.core.machine().state().term();
        match command {
            Command::Welcome { session, worker } => {
                if self.links[&session].closed {
                    return coordinator
                        .core
                        .on_unsaid((worker, session), Gone::Link("it left before it was welcomed".to_owned()));
                }
                coordinator.workers.insert(session, worker);
                if let Some(earlier) = coordinator.sessions.insert(worker, session) {
                    self.close(earlier);
                }
                self.ledger.on_term(&self.disk, term);
                self.tell(worker, Command::Welcome { session, worker });
            }
            Command::Disconnect { worker, reason } => {
                if let Some(link) = coordinator.sessions.remove(&worker) {
                    if reason.starts_with("it was silent") {
                        self.was_silent(link);
                    }
                    self.close(link);
                }
            }
            Command::LookForReuse { key, .. } => {
                let wait = self.dice.between(1, 400);
                self.after(wait, Deed::Reuse(start, key));
            }
            Command::Publish { key } => {
                let (wait, fails) = (self.dice.between(1, 1_500), self.faults.hub);
                let ends_well = !self.strikes(fails);
                self.after(wait, Deed::Published(start, key, ends_well));
            }
            Command::Discard { blob } => {
                if !coordinator.pins.contains_key(&blob) {
                    self.disk.blobs.remove(&blob);
                }
            }
            Command::Tell { job, stage, kind } => self.told.push(Told { job, at_ms: now_ms, stage, kind }),
            Command::Form { worker, lease, epoch, .. } => {
                let meets = coordinator.meetings.get(&lease).is_some_and(|open| *open >= epoch);
                let over = coordinator.core.machine().epoch(lease).is_none();
                assert!(meets || over, "a member of {lease} hears of epoch {epoch} before it may meet the others");
                self.tell(worker, command);
            }
            Command::Assign { worker, .. }
            | Command::Release { worker, .. }
            | Command::Accept { worker, .. }
            | Command::Fence { worker, .. }
            | Command::Drain { worker, .. } => self.tell(worker, command),
        }
    }

    /// The journal's thread takes all that has gathered as one transaction.
    fn begin_write(&mut self) {
        let (start, most) = (self.starts, if self.calm { 3 } else { self.faults.write_ms });
        let Some(coordinator) = &mut self.coordinator else { return };
        if coordinator.writing.is_some() || coordinator.queue.is_empty() {
            return;
        }
        coordinator.writing = Some(coordinator.queue.drain(..).flatten().collect());
        let wait = self.dice.between(1, most);
        self.after(wait, Deed::Written(start));
    }

    /// A transaction ends: committed or not, and the coordinator may not live to hear of it.
    fn on_written(&mut self) {
        self.writes += 1;
        let planned = self.faults.crash_at.filter(|(write, _)| *write == self.writes);
        let dies = planned.is_some() || self.strikes(self.faults.crash_at_write);
        let committed = planned.map_or_else(|| self.dice.chance(500), |(_, after)| after);
        let coordinator = self.coordinator.as_mut().unwrap();
        let facts = coordinator.writing.take().expect("a write is under way");
        // A full disk, and a death before the commit, leave nothing of it.
        if self.disk.full || (dies && !committed) {
            return self.crash();
        }
        self.disk.write(facts);
        if dies {
            return self.crash();
        }
        self.coordinator.as_mut().unwrap().core.durable(self.disk.facts.len() as u64);
    }
}

fn blobs(result: &graftwork_shared::assignment::StageResult) -> Vec<Digest> {
    std::iter::once(result.weights).chain(result.predictions.values().copied()).collect()
}
