//! Workers: how they come, break off, come back and go.
//!
//! A process whose connection broke works on, and for a moment ([`Policy::grace_ms`]) it keeps its leases: nobody else
//! gets them, so there is still one holder (invariant 2), and when it comes back under its key nothing is lost. What it
//! does not list then never reached it, or ended unheard, and is handed out again without blame. Whoever does not come
//! back was killed, perhaps by the stage itself, and that counts as a failed attempt.
//!
//! Nobody is given up for nothing: where no other worker could have what it holds, it keeps its leases until one comes, and
//! where nobody is heard of at all, everybody does. So a worker that trained on beyond a broken network goes on where it is.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{
    assignment::Holdings,
    digest::Digest,
    event::EventKind,
    id::{LeaseId, WorkerId},
};

use crate::{
    attempt::machine_failure,
    fact::Fact,
    group::Role,
    index::Demand,
    machine::{Policy, Scheduler},
    message::{Command, StageKey, WorkerInfo},
    pace::SpeedOf,
    term::entered,
};

/// A worker with a session.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Worker {
    pub(crate) info: WorkerInfo,
    pub(crate) seen_ms: u64,
    /// Leases that take a place on it: live ones, and fenced ones that it has not dropped yet. With their memory.
    pub(crate) leases: BTreeMap<LeaseId, u64>,
    pub(crate) draining: bool,
    /// Measured speeds: of the moment.
    pub(crate) speeds: Vec<(SpeedOf, f64)>,
    /// Base models that it has loaded, and data that it has read, as it says, and what came with its leases.
    pub(crate) trunks: BTreeSet<Digest>,
    pub(crate) data: BTreeSet<Digest>,
    pub(crate) lateness: Lateness,
    /// The most that was predicted of its process when it told of a peak.
    pub(crate) predicted_bytes: u64,
    /// Its connection broke, or it was silent for too long.
    pub(crate) apart: Option<Apart>,
    /// It would have been given up, but for this; looked at again then.
    pub(crate) kept: Option<(Kept, u64)>,
}

/// How far apart a worker's heartbeats arrive, as a moving mean and a moving mean of what they differ from it by (the
/// estimator of TCP's timer, Jacobson 1988), and the round trip that it measured. On a link on which words come late and
/// unevenly, silence means less.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Lateness {
    last_ms: Option<u64>,
    mean_ms: u64,
    spread_ms: u64,
    round_trip_ms: u64,
    /// It was measured before the coordinator stood still.
    is_of_before: bool,
}

impl Lateness {
    fn beat(&mut self, now_ms: u64) {
        if let Some(last_ms) = self.last_ms.replace(now_ms) {
            let gap_ms = now_ms.saturating_sub(last_ms);
            let differs_ms = gap_ms.abs_diff(self.mean_ms);
            (self.mean_ms, self.spread_ms) = match self.mean_ms {
                0 => (gap_ms, gap_ms / 2),
                mean_ms => ((7 * mean_ms + gap_ms) / 8, (3 * self.spread_ms + differs_ms) / 4),
            };
        }
    }

    /// The coordinator stood still: what comes next says nothing about the worker, and a round trip of then nothing about
    /// the way to it. Until a word comes, the worker is waited for as long as it was: it may have said one long ago.
    fn forget_last(&mut self) {
        self.last_ms = None;
        self.is_of_before = true;
    }

    fn on_word(&mut self) {
        if std::mem::take(&mut self.is_of_before) {
            self.round_trip_ms = 0;
        }
    }

    /// Silence after which a worker is given up: what the policy says, and more where beats are far apart or go a long
    /// way.
    fn silence_ms(&self, policy: &Policy) -> u64 {
        let by_beats_ms = 2 * (self.mean_ms + 4 * self.spread_ms);
        let by_way_ms = self.round_trip_ms.saturating_mul(ROUND_TRIPS);
        policy.silence_ms.max(by_beats_ms).max(by_way_ms).min(MOST_PATIENCE * policy.silence_ms)
    }
}

/// A worker is not given up before a word could have gone so often to it and back. It beats about once in two round trips,
/// so several beats in a row were lost by then.
const ROUND_TRIPS: u64 = 10;

/// Why a worker that is out of reach keeps what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It trains alone, and no other worker could hold that.
    NobodyElse,
    /// So it is for all: it is the coordinator that is cut off.
    NobodyHeard,
    /// The first of them is heard again; the rest gets as long as behind a restart of the coordinator.
    OthersBack,
}

impl Kept {
    fn wait_ms(self, policy: &Policy) -> u64 {
        match self {
            Self::NobodyElse | Self::NobodyHeard => KEPT_MS,
            Self::OthersBack => policy.return_ms,
        }
    }
}

/// How often it is looked again whether a worker keeps what it holds.
const KEPT_MS: u64 = 250;

/// For so long a worker trains on without its coordinator.
const MOST_KEPT_MS: u64 = 24 * 3_600_000;

/// Workers that are looked at for one that was heard of.
const MOST_LOOKED_AT: usize = 64;

/// However slow a link is, a worker is not waited for longer than so many times the silence of the policy.
const MOST_PATIENCE: u64 = 6;

/// Since when, and why, nothing can be said to a worker.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Apart {
    since_ms: u64,
    reason: String,
    /// It was the coordinator that went, not the connection.
    since_restart: bool,
}

impl Apart {
    pub(crate) fn since_restart(since_ms: u64, reason: &str) -> Self {
        Self { since_ms, reason: reason.to_owned(), since_restart: true }
    }

    fn until_ms(&self, policy: &Policy) -> u64 {
        self.since_ms + if self.since_restart { policy.return_ms } else { policy.grace_ms }
    }
}

impl Worker {
    pub(crate) fn new(info: WorkerInfo, seen_ms: u64) -> Self {
        let Holdings { base_models: trunks, rows: data } = info.holdings.clone();
        Self {
            info,
            seen_ms,
            leases: BTreeMap::new(),
            draining: false,
            speeds: Vec::new(),
            trunks,
            data,
            lateness: Lateness::default(),
            predicted_bytes: 0,
            apart: None,
            kept: None,
        }
    }

    /// What is said of one that keeps what it holds though it is out of reach.
    pub(crate) fn kept_because(&self) -> Option<String> {
        let (apart, (why, _)) = (self.apart.as_ref()?, self.kept?);
        let why = match why {
            Kept::NobodyElse => "nobody else could have it",
            Kept::NobodyHeard => "nobody at all is heard of",
            Kept::OthersBack => "others are just coming back",
        };
        Some(format!("{}, and {why}", apart.reason))
    }

    /// Whether new work may go to it.
    pub(crate) fn takes_work(&self) -> bool {
        !self.draining && self.apart.is_none()
    }

    /// Whoever speaks is here, also if the end of an earlier connection was told after the next one began.
    pub(crate) fn heard(&mut self, now_ms: u64) {
        self.seen_ms = now_ms;
        (self.apart, self.kept) = (None, None);
        self.lateness.on_word();
    }

    /// When it is given up if nothing is heard of it.
    pub(crate) fn deadline_ms(&self, policy: &Policy) -> u64 {
        let silence = self.seen_ms + self.lateness.silence_ms(policy);
        let due = self.apart.as_ref().map_or(silence, |apart| silence.min(apart.until_ms(policy)));
        self.kept.map_or(due, |(_, until_ms)| due.max(until_ms))
    }
}

impl Scheduler {
    pub(crate) fn on_worker_joined(&mut self, session: u64, info: WorkerInfo, leases: &[LeaseId]) {
        let alike = self.board.fleet.processes.get(&info.key).into_iter().flatten();
        let same = |id: &&WorkerId| self.workers.get(id).is_some_and(|worker| worker.info.is_same_process(&info));
        let known = alike.copied().find(|id| same(&id));
        if let Some(worker) = known {
            return self.on_worker_returned(session, worker, (info, leases));
        }
        let worker = self.state.next_worker();
        self.record(entered(worker, &info));
        self.out.commands.push(Command::Welcome { session, worker });
        let joined = EventKind::WorkerJoined { worker, place: info.place.clone(), threads: info.threads };
        let seen_ms = self.now_ms;
        self.enter(worker, Worker::new(info, seen_ms));
        // What it held is none of its leases now. Whatever it was to one of them is over before it may be asked to join it.
        for lease in leases {
            self.out.commands.push(Command::Fence { worker, lease: *lease });
        }
        self.tell_all(&joined);
        if let Some(reason) = self.stopping.clone().filter(|_| self.policy.sends_home) {
            self.drain(worker, &reason);
        }
    }

    /// The same process on a new connection; the old one may not even have been missed.
    fn on_worker_returned(&mut self, session: u64, worker: WorkerId, (info, leases): (WorkerInfo, &[LeaseId])) {
        let held = self.held_by(worker);
        let now_ms = self.now_ms;
        let draining = self.edit_worker(worker, |known| {
            known.heard(now_ms);
            known.info.take_versions(&info);
            known.leases.retain(|lease, _| leases.contains(lease));
            known.draining
        });
        let Some(draining) = draining else { return };
        self.out.commands.push(Command::Welcome { session, worker });
        if draining {
            self.out.commands.push(Command::Drain { worker, reason: "it was asked to leave before".to_owned() });
        }
        for lease in leases {
            self.take_up(worker, *lease);
        }
        self.on_holds(worker, info.holdings);
        let held = held.into_iter().filter(|(_, lease)| self.holds(worker, *lease).is_some());
        for (key, lease) in held.filter(|(_, lease)| !leases.contains(lease)).collect::<Vec<_>>() {
            let reason = "the assignment, or what came of it, was lost with the connection".to_owned();
            self.leave(&key, (worker, lease), reason);
        }
    }

    /// Whoever comes back with a lease hears again what may have been lost on the way.
    fn take_up(&mut self, worker: WorkerId, lease: LeaseId) {
        match self.role(worker, lease) {
            Some(Role::Leads | Role::Follows) => {
                if self.epoch(lease).is_some_and(|epoch| epoch > 0) {
                    self.say_place(worker, lease, true);
                }
                if self.was_asked_back(worker, lease) {
                    self.edit_group(lease, |group| group.asked_back.remove(&worker));
                }
            }
            // That it is prepared may never have been heard.
            Some(Role::Joins) => {
                self.drop_joiner(worker, lease);
                self.out.commands.push(Command::Fence { worker, lease });
            }
            None => self.out.commands.push(Command::Fence { worker, lease }),
        }
    }

    /// Whoever holds nothing, or was leaving, has nothing to come back for.
    pub(crate) fn on_link_lost(&mut self, worker: WorkerId, reason: String) {
        for (_, lease) in self.held_by(worker) {
            self.drop_joiner(worker, lease);
        }
        let holds = !self.held_by(worker).is_empty();
        let Some(known) = self.workers.get(&worker) else { return };
        if holds && !known.draining && !known.info.key.is_empty() && self.policy.grace_ms > 0 {
            let apart = Apart { since_ms: self.now_ms, reason, since_restart: false };
            self.edit_worker(worker, |known| (known.apart, known.kept) = (Some(apart), None));
        } else {
            self.remove_worker(worker, &reason);
        }
    }

    pub(crate) fn on_heartbeat(&mut self, worker: WorkerId, leases: &[LeaseId]) {
        let held: BTreeSet<LeaseId> = self.held_by(worker).into_iter().map(|(_, lease)| lease).collect();
        let stays = |lease: &LeaseId| held.contains(lease) || leases.contains(lease);
        let Some(known) = self.workers.get(&worker) else { return };
        if !known.leases.keys().all(stays) {
            self.edit_worker(worker, |known| known.leases.retain(|lease, _| stays(lease)));
        }
        let now_ms = self.now_ms;
        self.workers.get_mut(&worker).into_iter().for_each(|known| known.lateness.beat(now_ms));
        self.hear(worker);
        for lease in leases {
            if self.holds(worker, *lease).is_none() {
                self.out.commands.push(Command::Fence { worker, lease: *lease });
            }
            self.groups.get_mut(lease).into_iter().for_each(|group| group.waiting.on_heartbeat(worker));
        }
    }

    /// A worker measured the way to here and back.
    pub(crate) fn on_round_trip(&mut self, worker: WorkerId, round_trip_ms: u64) {
        if let Some(known) = self.workers.get_mut(&worker).filter(|_| round_trip_ms > 0) {
            (known.lateness.round_trip_ms, known.lateness.is_of_before) = (round_trip_ms, false);
        }
        self.hear(worker);
    }

    /// A worker said something.
    pub(crate) fn hear(&mut self, worker: WorkerId) {
        let Some(known) = self.workers.get_mut(&worker) else { return };
        let was_apart = known.apart.is_some();
        known.heard(self.now_ms);
        if was_apart {
            // Whoever was asked for its place meanwhile did not hear of it.
            for (_, lease) in self.held_by(worker) {
                if self.was_asked_back(worker, lease) {
                    self.edit_group(lease, |group| group.asked_back.remove(&worker));
                }
            }
            self.seat(worker);
        } else {
            let deadline_ms = known.deadline_ms(&self.policy);
            self.count(1);
            self.board.fleet.expect(worker, Some(deadline_ms));
        }
    }

    pub(crate) fn drain(&mut self, worker: WorkerId, reason: &str) {
        if self.workers.get(&worker).is_none_or(|known| known.draining) {
            return;
        }
        let apart = self.edit_worker(worker, |known| {
            known.draining = true;
            known.apart.is_some()
        });
        if apart == Some(true) {
            return self.remove_worker(worker, reason);
        }
        self.out.commands.push(Command::Drain { worker, reason: reason.to_owned() });
    }

    /// A worker leaves by itself: it stops its stages after their steps and says of each that it gave it back.
    pub(crate) fn on_leaving(&mut self, worker: WorkerId) {
        self.hear(worker);
        self.edit_worker(worker, |known| known.draining = true);
    }

    /// The coordinator stood still. What workers said meanwhile was not read, so the time counts against none of them.
    pub(crate) fn on_stood_still(&mut self, gap_ms: u64) {
        let now_ms = self.now_ms;
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            self.edit_worker(worker, |known| {
                known.seen_ms = (known.seen_ms + gap_ms).min(now_ms);
                known.lateness.forget_last();
                if let Some(apart) = &mut known.apart {
                    apart.since_ms = (apart.since_ms + gap_ms).min(now_ms);
                }
            });
        }
    }

    /// Gives up workers that were silent, or apart, for too long, unless they keep what they hold.
    pub(crate) fn expire(&mut self) {
        let over = self.board.fleet.deadlines.range(..=(self.now_ms, WorkerId(u64::MAX)));
        let over: BTreeSet<WorkerId> = over.map(|(_, worker)| *worker).collect();
        if over.is_empty() {
            return;
        }
        let hears_nobody = self.hears_nobody();
        for worker in over {
            let apart = self.workers.get(&worker).and_then(|known| known.apart.as_ref());
            let reason = apart.map_or_else(
                || format!("it was silent for {} ms", self.silence_ms(worker)),
                |apart| format!("{}, and it did not come back", apart.reason),
            );
            // It takes no work any more, so whoever does is another.
            let apart = Apart { since_ms: self.now_ms, reason: reason.clone(), since_restart: false };
            self.edit_worker(worker, |known| known.apart = known.apart.take().or(Some(apart)));
            let kept = self.why_kept(worker, hears_nobody).map(|why| (why, self.now_ms + why.wait_ms(&self.policy)));
            if kept.is_some() {
                self.edit_worker(worker, |known| known.kept = kept);
                continue;
            }
            self.out.commands.push(Command::Disconnect { worker, reason: reason.clone() });
            self.remove_worker(worker, &reason);
        }
    }

    /// Why a worker that is out of reach keeps what it holds, if it does.
    fn why_kept(&self, worker: WorkerId, hears_nobody: bool) -> Option<Kept> {
        let (known, held) = (self.workers.get(&worker)?, self.held_by(worker));
        let may_return = !known.info.key.is_empty() && !known.draining && self.policy.grace_ms > 0;
        // Whom an earlier coordinator knew may be gone since long: what nobody here could have waits and says why.
        let lately = |apart: &Apart| !apart.since_restart && self.now_ms < apart.since_ms + MOST_KEPT_MS;
        if held.is_empty() || !may_return || self.stopping.is_some() || !known.apart.as_ref().is_some_and(lately) {
            return None;
        }
        let soon = (self.now_ms + KEPT_MS, WorkerId(u64::MAX));
        let is_one_of_many = self.board.fleet.deadlines.range(..=soon).nth(1).is_some();
        if hears_nobody && is_one_of_many {
            return Some(Kept::NobodyHeard);
        }
        if held.iter().all(|(key, lease)| self.is_irreplaceable(worker, key, *lease)) {
            return Some(Kept::NobodyElse);
        }
        let was_deaf = known.kept.is_some_and(|(why, _)| why == Kept::NobodyHeard);
        match (hears_nobody, was_deaf) {
            (true, _) => Some(Kept::NobodyHeard),
            (false, true) => Some(Kept::OthersBack),
            (false, false) => None,
        }
    }

    /// Whether none of the workers that count as here was heard of lately. Then it is this coordinator that is cut off.
    fn hears_nobody(&mut self) -> bool {
        self.count(MOST_LOOKED_AT.min(self.workers.len()));
        let lately_ms = self.now_ms.saturating_sub(self.policy.silence_ms / 4);
        // Whoever was heard last is given up last.
        let last = self.board.fleet.deadlines.iter().rev().take(MOST_LOOKED_AT);
        !last.filter_map(|(_, id)| self.workers.get(id)).any(|of| of.apart.is_none() && of.seen_ms >= lately_ms)
    }

    /// Whether a worker trains a stage alone, and no other could hold it.
    fn is_irreplaceable(&self, worker: WorkerId, key: &StageKey, lease: LeaseId) -> bool {
        let alone = self.state.grant(lease).is_some_and(|grant| grant.worker == worker && grant.others.is_empty());
        alone
            && self.state.record(key).is_some_and(|(job, at)| {
                let demand = Demand { gang: 1, ..job.demand(at) };
                self.board.fleet.hold(&demand).is_none_or(|most| most < self.state.needed_bytes(job, at))
            })
    }

    fn silence_ms(&self, worker: WorkerId) -> u64 {
        let known = self.workers.get(&worker);
        known.map_or(self.policy.silence_ms, |known| known.lateness.silence_ms(&self.policy))
    }

    /// Live leases of a worker.
    fn held_by(&self, worker: WorkerId) -> Vec<(StageKey, LeaseId)> {
        let leases = self.workers.get(&worker).into_iter().flat_map(|known| known.leases.keys());
        leases.filter_map(|lease| Some((self.holds(worker, *lease)?.clone(), *lease))).collect()
    }

    /// Forgets a worker; what it held goes back.
    pub(crate) fn remove_worker(&mut self, worker: WorkerId, reason: &str) {
        let held = self.held_by(worker);
        for (_, lease) in &held {
            self.drop_joiner(worker, *lease);
        }
        let members: Vec<_> = held.into_iter().filter(|(_, lease)| self.holds(worker, *lease).is_some()).collect();
        let Some(known) = self.expel(worker) else { return };
        let lost_its_coordinator = known.apart.as_ref().is_some_and(|apart| apart.since_restart);
        for (key, lease) in members {
            let message = format!("{worker} ({}) is gone: {reason}", known.info.place);
            if known.draining || lost_its_coordinator {
                self.leave(&key, (worker, lease), message);
            } else {
                self.lose_member(&key, (worker, lease), machine_failure(message.clone()), message);
            }
        }
        if self.state.holders.contains_key(&worker) {
            self.record(Fact::WorkerGone { worker });
        }
        self.tell_all(&EventKind::WorkerLeft { worker, reason: reason.to_owned() });
    }

    fn enter(&mut self, worker: WorkerId, known: Worker) {
        if !known.info.key.is_empty() {
            self.board.fleet.processes.entry(known.info.key.clone()).or_default().insert(worker);
        }
        self.workers.insert(worker, known);
        self.seat(worker);
    }

    fn expel(&mut self, worker: WorkerId) -> Option<Worker> {
        let known = self.workers.remove(&worker)?;
        if let Some(alike) = self.board.fleet.processes.get_mut(&known.info.key) {
            alike.remove(&worker);
            if alike.is_empty() {
                self.board.fleet.processes.remove(&known.info.key);
            }
        }
        self.seat(worker);
        Some(known)
    }

    /// The worker's place is free again.
    pub(crate) fn free(&mut self, worker: WorkerId, lease: LeaseId) {
        self.edit_worker(worker, |worker| worker.leases.remove(&lease));
    }
}
