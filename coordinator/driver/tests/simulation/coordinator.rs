//! The coordinator: the real core and scheduler over a scripted journal, disk, hub and clock.

use std::collections::{BTreeMap, VecDeque};

use graftwork_driver::{Core, Gone, MOST_WAITING, Output, Timing};
use graftwork_scheduler::{Command, Event, Fact, Policy, Scheduler, Standing};
use graftwork_shared::{
    assignment::{Blame, Failure},
    digest::Digest,
    event::{Event as Told, EventKind, StepReport},
    id::{LeaseId, Term, WorkerId},
};

use crate::{
    blobs::{blobs, has},
    ledger::Checked,
    seen::Seen,
    worker::Word,
    world::{Deed, World},
};

/// An answer to a user: the job of this index was taken.
pub(crate) struct Taken(usize);

pub(crate) struct Coordinator {
    pub(crate) core: Core<Taken, Checked>,
    /// Which start of a coordinator it is.
    pub(crate) start: u64,
    /// The term under which it took the lead.
    pub(crate) term: Term,
    /// Blobs that it knows of, each with the start of the coordinator whose object holds it.
    pub(crate) index: BTreeMap<Digest, u64>,
    /// Time as it was at its start, and what the wall clock showed then.
    started: u64,
    started_wall: u64,
    /// It stands still until then.
    pub(crate) stalled_until: u64,
    inbox: VecDeque<Deed>,
    /// Writes that wait for the journal, and the one under way: all that had gathered.
    queue: VecDeque<Vec<Fact>>,
    writing: Option<Vec<Fact>>,
    pub(crate) pins: BTreeMap<Digest, u32>,
    /// Blobs of earlier terms to which nothing refers: a worker may still come back and speak of them.
    unheard: Vec<Digest>,
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
    pub(crate) fn now_ms(&self, now: u64) -> u64 {
        self.started_wall + (now - self.started)
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.queue.is_empty() && self.writing.is_none() && self.inbox.is_empty()
    }
}

impl World {
    pub(crate) fn start(&mut self) {
        if self.coordinator.is_some() {
            return;
        }
        self.starts += 1;
        let start = self.starts;
        let started_wall = self.now.saturating_add_signed(self.wall_ahead_ms);
        if self.wall_ahead_ms != 0 {
            self.note(Seen::ClockSet);
        }
        let term = self.disk.lead(started_wall);
        let state = self.disk.read();
        let (index, unheard) = self.list(start, &state.blobs());
        let policy = Policy { sends_home: self.faults.sends_home, ..Policy::default() };
        let return_ms = policy.return_ms;
        let (machine, first) = Scheduler::start(policy, state, started_wall);
        assert_eq!(machine.state().term(), term, "a coordinator leads under another term than it took");
        self.ledger.on_start(&self.disk, term);
        let facts = self.disk.facts.len() as u64;
        let coordinator = Coordinator {
            core: Core::new((Checked(machine), first), started_wall, facts, Timing { stop_ms: 2_000 }),
            start,
            term,
            index,
            started: self.now,
            started_wall,
            stalled_until: 0,
            inbox: VecDeque::new(),
            queue: VecDeque::new(),
            writing: None,
            pins: unheard.iter().map(|blob| (*blob, 1)).collect(),
            unheard,
            sessions: BTreeMap::new(),
            meetings: BTreeMap::new(),
            workers: BTreeMap::new(),
            tick: None,
            stopped: false,
        };
        self.coordinator = Some(coordinator);
        self.after(2 * return_ms, Deed::LetGo(start));
        self.pump();
    }

    /// kill -9: sessions and questions are gone, and of the write under way all or nothing is there.
    pub(crate) fn crash(&mut self) {
        let Some(mut coordinator) = self.coordinator.take() else { return };
        let leads = coordinator.term == self.disk.term;
        if let Some(facts) = coordinator.writing.take()
            && self.dice.chance(500)
        {
            self.write(coordinator.term, facts);
        }
        self.end_links(coordinator.start);
        if leads {
            let wait = self.dice.between(10, 2_500);
            self.after(wait, Deed::Start);
        }
    }

    fn end_links(&mut self, start: u64) {
        for number in self.open_links(start) {
            self.break_link(number);
        }
    }

    pub(crate) fn open_links(&self, start: u64) -> Vec<u64> {
        let open = self.links.iter().filter(|(_, link)| link.start == start && link.broken_ms.is_none());
        open.map(|(number, _)| *number).collect()
    }

    pub(crate) fn stall(&mut self) {
        let (now, wait) = (self.now, self.dice.between(100, 25_000));
        if let Some(coordinator) = &mut self.coordinator {
            coordinator.stalled_until = now + wait;
            let start = coordinator.start;
            self.after(wait, Deed::Unstall(start));
        }
    }

    /// Something reaches the coordinator, if there is one and it is the one that it is for.
    pub(crate) fn reach_coordinator(&mut self, deed: Deed) {
        match deed {
            Deed::Start => return self.start(),
            Deed::Usurp => return self.usurp(),
            // The users' program tries again until it is told that the job is there.
            Deed::Submit(job) => self.after(2_000, Deed::Submit(job)),
            Deed::Taken(start, job) => {
                self.taken[job] |= self.lives(start);
                return;
            }
            _ => {}
        }
        let of = match &deed {
            Deed::Up(link, _) | Deed::UpEnds(link, _) => Some(self.links[link].start),
            Deed::Put(_, of, ..)
            | Deed::Get(_, of, _)
            | Deed::Written(of)
            | Deed::Tick(of)
            | Deed::Unstall(of)
            | Deed::Deposed(of)
            | Deed::LetGo(of)
            | Deed::Published(of, ..)
            | Deed::Reuse(of, _) => Some(*of),
            Deed::Submit(_) | Deed::Cancel(_) => self.some_coordinator(),
            _ => self.coordinator.as_ref().map(|coordinator| coordinator.start),
        };
        let is_of = |coordinator: &Option<Coordinator>| coordinator.as_ref().map(|it| it.start) == of;
        if of.is_none() {
            return;
        }
        if is_of(&self.coordinator) {
            self.deliver(deed);
        } else if is_of(&self.deposed) {
            self.as_deposed(|world| world.deliver(deed));
        }
    }

    fn deliver(&mut self, deed: Deed) {
        match deed {
            Deed::Written(_) => self.on_written(),
            Deed::Deposed(_) => self.crash(),
            deed => self.coordinator.iter_mut().for_each(|coordinator| coordinator.inbox.push_back(deed.clone())),
        }
    }

    /// Whoever can do something does it.
    pub(crate) fn settle(&mut self) {
        self.settle_one();
        if self.deposed.is_some() {
            self.as_deposed(Self::settle_one);
        }
    }

    /// The coordinator's loop: takes what has come, as long as it stands not still and has room.
    fn settle_one(&mut self) {
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
            for facts in coordinator.writing.into_iter().chain(coordinator.queue) {
                self.write(coordinator.term, facts);
            }
        }
        self.end_links(coordinator.start);
        if coordinator.term == self.disk.term {
            let wait = self.dice.between(10, 1_500);
            self.after(wait, Deed::Start);
        }
    }

    fn schedule_tick(&mut self) {
        let now = self.now;
        let Some(coordinator) = &mut self.coordinator else { return };
        let (start, now_ms) = (coordinator.start, coordinator.now_ms(now));
        let Some(deadline) = coordinator.core.next_deadline() else { return };
        let at = now + deadline.saturating_sub(now_ms).max(1);
        if coordinator.tick.is_none_or(|tick| tick <= now || at < tick) {
            coordinator.tick = Some(at);
            self.after(at - now, Deed::Tick(start));
        }
    }

    fn handle(&mut self, deed: Deed) {
        let leads = self.leads();
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
                let lost: Vec<Digest> = read.filter(|blob| !has(&self.disk, &coordinator.index, *blob)).collect();
                for blob in &lost {
                    // Whoever leads may have let go what this one does not know to be over.
                    assert!(!leads || self.disk.lost.contains(blob), "{blob} of a result was removed");
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
            Deed::LetGo(_) => {
                let unheard = std::mem::take(&mut coordinator.unheard);
                core.settle(unheard);
            }
            other => unreachable!("{other:?} is not for the coordinator"),
        }
    }

    /// The session's part: what cannot be ends it.
    fn on_word(&mut self, link: u64, word: Word) {
        let coordinator = self.coordinator.as_mut().unwrap();
        let now_ms = coordinator.now_ms(self.now);
        let core = &mut coordinator.core;
        if self.links[&link].closed && self.links[&link].deaf_ms <= self.now {
            return;
        }
        if let Word::Hello(leases) = word {
            let Some(process) = self.processes.get(&self.links[&link].process) else { return };
            let event = Event::WorkerJoined { session: link, info: process.info.clone(), leases };
            return core.on_join(now_ms, (link, event));
        }
        let Some(worker) = coordinator.workers.get(&link).copied() else { return };
        if word.blobs().iter().any(|blob| !has(&self.disk, &coordinator.index, *blob)) {
            self.links.get_mut(&link).unwrap().closed = true;
            core.on_left(now_ms, (worker, link), Gone::Wrong("a blob was not uploaded".to_owned()));
            return self.close(link);
        }
        let Some(word) = self.unmasked(worker, word) else { return };
        let coordinator = self.coordinator.as_mut().unwrap();
        let replaced = coordinator.sessions.get(&worker) != Some(&link);
        let before = replaced.then(|| coordinator.core.machine().clone());
        if replaced {
            self.note(Seen::LateWord);
        }
        let core = &mut self.coordinator.as_mut().unwrap().core;
        match word {
            Word::Step(lease, step, group) => {
                let report = StepReport { step, group, ..StepReport::default() };
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
                let start = coordinator.start;
                let delay = self.delay();
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
                self.ledger.on_command(&self.disk, &command);
                self.perform_command(command);
            }
        }
    }

    fn perform_command(&mut self, command: Command) {
        let coordinator = self.coordinator.as_mut().unwrap();
        let (start, term, now_ms) = (coordinator.start, coordinator.term, coordinator.now_ms(self.now));
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
                    self.discard(blob);
                }
            }
            Command::Tell { job, stage, kind } => {
                let told = Told { job, at_ms: now_ms, stage, kind };
                if term == self.disk.term { &mut self.told } else { self.told_late.entry(start).or_default() }
                    .push(told);
            }
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
        let most = if self.calm { 3 } else { self.faults.write_ms };
        let Some(coordinator) = &mut self.coordinator else { return };
        if coordinator.writing.is_some() || coordinator.queue.is_empty() {
            return;
        }
        coordinator.writing = Some(coordinator.queue.drain(..).flatten().collect());
        let start = coordinator.start;
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
        let (term, facts) = (coordinator.term, coordinator.writing.take().expect("a write is under way"));
        // A full disk, and a death before the commit, leave nothing of it.
        if self.disk.full {
            self.note(Seen::FactsRefused);
            return self.crash();
        }
        if dies {
            self.note(if committed { Seen::DiedBehindCommit } else { Seen::DiedBeforeCommit });
        }
        if dies && !committed {
            return self.crash();
        }
        if !self.write(term, facts) || dies {
            return self.crash();
        }
        self.coordinator.as_mut().unwrap().core.durable(self.disk.facts.len() as u64);
    }
}
