//! What workers do by themselves: beat, train, join, connect; and what a group's members take from each other.

use graftwork_scheduler::WorkerInfo;
use graftwork_shared::{digest::Digest, id::LeaseId};

use crate::{
    fixture,
    network::{Link, UP},
    seen::Seen,
    worker::{Doing, Process, Trained, Word, Work, checkpoint_of},
    world::{Deed, World},
};

/// A member that has waited for so long says so.
const TOO_LONG_MS: u64 = 10_000;

impl World {
    /// Whoever was just taken into a group copies the state of the member that is furthest. Where nobody has it any more, and
    /// something of it is safe, it gives the lease back.
    pub(crate) fn take_state(&mut self, index: usize) {
        let Some(process) = self.processes.get(&index) else { return };
        let fresh: Vec<LeaseId> =
            process.leases.iter().filter(|(_, work)| work.fresh).map(|(lease, _)| *lease).collect();
        let mut left = Vec::new();
        for lease in fresh {
            let members = self.processes.iter().filter(|(other, _)| **other != index);
            let states = members.filter_map(|(_, other)| other.leases.get(&lease)).filter(|work| work.has_state());
            let furthest = states.map(|work| work.trained).max_by_key(|trained| trained.step);
            let others = self.processes.iter().filter(|(other, _)| **other != index);
            let mut others = others.filter_map(|(_, other)| other.leases.get(&lease));
            let alone = !others.any(|work| !work.joining && !work.fresh);
            let work = self.processes.get_mut(&index).and_then(|process| process.leases.get_mut(&lease)).unwrap();
            if alone && work.checkpointed > 0 {
                left.push(lease);
                continue;
            }
            // Of a task that was swept, the first is that of the trial that was chosen.
            let safe = [work.assignment.resume, Some(checkpoint_of(&work.assignment, work.checkpointed))];
            let mut safe = safe.iter().flatten().filter_map(|blob| self.checkpoints.get(blob));
            let read = safe.find(|trained| work.checkpointed > 0 && trained.step == work.checkpointed).copied();
            (work.fresh, work.trained) = (false, furthest.or(read).unwrap_or_default());
        }
        // Whoever had just come when those that trained were lost never had their state.
        let Some(process) = self.processes.get_mut(&index) else { return };
        let behind = process.leases.iter().filter(|(_, work)| work.has_state() && work.is_behind());
        let behind: Vec<LeaseId> = behind.map(|(lease, _)| *lease).collect();
        let mut words: Vec<Word> =
            behind.into_iter().flat_map(|lease| process.fail(lease, "whoever trained this stage is gone")).collect();
        words.extend(left.into_iter().flat_map(|lease| process.part(lease, Word::Released(lease))));
        self.say(index, words);
    }

    /// A worker says these over its connection.
    pub(crate) fn say(&mut self, process: usize, words: Vec<Word>) {
        let Some(number) = self.processes.get(&process).and_then(|process| process.link) else { return };
        let twice = |world: &mut Self, word: &Word| {
            !matches!(word, Word::Hello(_) | Word::Step(..)) && world.strikes(world.faults.twice)
        };
        let mut said = Vec::new();
        for word in words {
            // As a proxy, or a client that repeats what it thinks was lost, would.
            if twice(self, &word) {
                self.note(Seen::WordTwice);
                said.push(word.clone());
            }
            said.push(word);
        }
        for word in said {
            let (delay, now) = (self.delay(), self.now);
            let arrival = self.links.get_mut(&number).unwrap().arrival(UP, now, delay);
            self.after(arrival - now, Deed::Up(number, word));
        }
    }

    /// What a worker's leases wait for from the coordinator is asked for.
    pub(crate) fn go_on(&mut self, index: usize) {
        let Some(process) = self.processes.get_mut(&index) else { return };
        let link = process.link.filter(|_| process.welcome.is_some());
        let start = link.map_or(0, |link| self.links[&link].start);
        let mut prepared = Vec::new();
        let mut asked = Vec::new();
        for (lease, work) in &mut process.leases {
            match &work.doing {
                Doing::Loading if work.joining => {
                    work.doing = Doing::Training;
                    prepared.push(*lease);
                }
                Doing::Loading if work.asks_over(link) => asked.push(Deed::Get(index, start, *lease)),
                Doing::Uploading { blobs, .. } if work.asks_over(link) => {
                    asked.extend(blobs.iter().map(|blob| Deed::Put(index, start, *lease, *blob)));
                }
                _ => {}
            }
            work.asked_over = link.or(work.asked_over);
        }
        let words: Vec<Word> =
            prepared.into_iter().flat_map(|lease| process.keep(lease, Word::Prepared(lease))).collect();
        self.say(index, words);
        for deed in asked {
            let delay = self.delay();
            self.after(delay, deed);
        }
    }

    pub(crate) fn on_put_done(&mut self, index: usize, lease: LeaseId, blob: Digest, kept: bool) {
        let Some(process) = self.processes.get_mut(&index) else { return };
        if kept {
            let words = process.on_uploaded(lease, blob);
            self.say(index, words);
        } else {
            let words = process.fail(lease, "the coordinator's disk is full");
            self.say(index, words);
        }
    }

    pub(crate) fn on_got(&mut self, index: usize, lease: LeaseId, found: bool) {
        let Some(process) = self.processes.get_mut(&index) else { return };
        let Some(work) = process.leases.get_mut(&lease).filter(|work| matches!(work.doing, Doing::Loading)) else {
            return;
        };
        if found {
            work.trained = work.assignment.resume.map_or_else(Trained::default, |blob| self.checkpoints[&blob]);
            (work.doing, work.accepted) = (Doing::Training, work.trained.step);
        } else {
            let words = process.fail(lease, "a blob is missing");
            self.say(index, words);
        }
    }

    pub(crate) fn beat(&mut self, index: usize) {
        let Some(process) = self.processes.get_mut(&index) else { return };
        let every = u64::try_from(process.beat_every.as_millis()).unwrap();
        let wait = process.frozen_until.saturating_sub(self.now).max(every);
        let frozen = process.frozen_until > self.now;
        if !frozen && process.welcome.is_some() {
            let mut words = process.beat();
            words.extend(process.probe(self.now));
            words.extend(self.waits(index));
            self.say(index, words);
        }
        if self.processes[&index].is_done() {
            return self.end(index);
        }
        let idle = self.processes[&index].link.is_none() && !frozen;
        if idle {
            let wait = self.dice.between(50, 400);
            self.after(wait, Deed::Connect(index));
        }
        self.after(wait, Deed::Beat(index));
    }

    pub(crate) fn train(&mut self, index: usize) {
        let Some(process) = self.processes.get(&index) else { return };
        let (wait, leads) = (process.frozen_until.saturating_sub(self.now), process.leads());
        self.after(wait.max(250), Deed::Train(index));
        if wait > 0 {
            return;
        }
        for lease in leads {
            self.train_one(index, lease);
        }
        self.go_on(index);
    }

    /// What a member says that has waited for the others for too long: all of its group's members are there, and one of them
    /// is cut off from the rest.
    fn waits(&self, index: usize) -> Vec<Word> {
        let process = &self.processes[&index];
        let waits = |(lease, work): (&LeaseId, &Work)| {
            let waits = work.ranks > 1 && matches!(work.doing, Doing::Training) && work.is_member(work.epoch);
            let parted = self.parted_since(*lease, work.epoch).is_some_and(|since| since + TOO_LONG_MS <= self.now);
            (waits && parted).then_some(Word::Waits(*lease, work.epoch, work.trained.step))
        };
        process.leases.iter().filter_map(waits).collect()
    }

    /// Since when a member of this group is cut off from the others.
    fn parted_since(&self, lease: LeaseId, epoch: u64) -> Option<u64> {
        let holds = |process: &&Process| process.leases.get(&lease).is_some_and(|work| work.is_member(epoch));
        self.processes.values().filter(holds).filter_map(|process| process.alone_since).max()
    }

    /// A group moves on together, and only when all of it is there and reaches each other.
    fn train_one(&mut self, index: usize, lease: LeaseId) {
        let (epoch, ranks) = {
            let work = &self.processes[&index].leases[&lease];
            (work.epoch, usize::try_from(work.ranks).unwrap())
        };
        let now = self.now;
        let holders: Vec<usize> =
            self.processes.iter().filter(|(_, p)| p.leases.contains_key(&lease)).map(|(at, _)| *at).collect();
        let here = |at: &&usize| {
            let process = &self.processes[*at];
            process.frozen_until <= now && process.leases[&lease].is_member(epoch)
        };
        if holders.iter().filter(here).count() < ranks {
            if holders.len() < ranks && self.dice.chance(300) {
                let words = self.processes.get_mut(&index).unwrap().keep(lease, Word::Broken(lease, epoch));
                self.say(index, words);
            }
            return;
        }
        if ranks > 1 && self.parted_since(lease, epoch).is_some() {
            return;
        }
        let (steps, each) = (self.dice.between(1, 8), self.faults.every_update);
        let process = self.processes.get_mut(&index).unwrap();
        let info = process.info.clone();
        let words = process.leases.get_mut(&lease).unwrap().train(lease, steps, each, &info);
        let work = &process.leases[&lease];
        let trained = work.trained;
        if let Doing::Uploading { then, .. } = &work.doing
            && let Word::Checkpoint(_, _, blob) = &**then
        {
            self.checkpoints.insert(*blob, trained);
        }
        for other in holders {
            let work = self.processes.get_mut(&other).and_then(|process| process.leases.get_mut(&lease));
            work.filter(|work| work.is_member(epoch)).into_iter().for_each(|work| work.trained = trained);
        }
        let process = self.processes.get_mut(&index).unwrap();
        if process.welcome.is_some() {
            self.say(index, words);
        } else {
            process.leases.get_mut(&lease).unwrap().unheard = true;
        }
    }

    pub(crate) fn join(&mut self, class: &str) {
        self.joined += 1;
        let (index, slots) = (self.joined, u32::try_from(self.dice.between(1, 3)).unwrap());
        // Some do not say which numerics version they compute, and some compute another one and get nothing.
        let silent = self.dice.chance(200) && !self.calm;
        let numerics_version = if self.strikes(100) { 2 } else { u32::from(!silent) };
        // Or say other things to members, and train with their like alone.
        let exchange = if self.strikes(100) { 2 } else { 1 };
        let (class, key) = (fixture::class(class), format!("process {index}"));
        let info = WorkerInfo { class, numerics_version, exchange, key, ..fixture::info(slots) };
        self.processes.insert(index, Process::new(info));
        let wait = self.dice.below(1_000);
        self.after(wait, Deed::Beat(index));
        self.after(wait, Deed::Train(index));
    }

    /// A process opens a connection, where it can.
    pub(crate) fn connect(&mut self, index: usize) {
        let Some(process) = self.processes.get(&index) else { return };
        let cut = process.partition != [false; 2] || process.frozen_until > self.now;
        if process.link.is_some() || cut {
            return;
        }
        let Some(start) = self.some_coordinator() else { return };
        self.opened += 1;
        let number = self.opened;
        let process = self.processes.get_mut(&index).unwrap();
        process.link = Some(number);
        let hello = Word::Hello(process.leases.keys().copied().collect());
        self.links.insert(number, Link::new(index, start));
        self.say(index, vec![hello]);
    }
}
