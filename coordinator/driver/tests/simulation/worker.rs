//! A worker's process as the coordinator meets it: it holds leases over broken connections, says again what was not
//! accepted, uploads before it speaks, and obeys terms and fences, as the real session does.

use std::{collections::BTreeMap, time::Duration};

use graftwork_scheduler::{Command, Event, WorkerInfo};
use graftwork_shared::{
    assignment::{Assignment, Blame, Evaluation, Failure, Holdings, MemoryPeak, StageResult, Usage},
    digest::Digest,
    id::{LeaseId, Term, WorkerId},
};

use crate::{fixture, plans, round_trip::RoundTrip};

/// Updates between two checkpoints.
const CHECKPOINT_EVERY: u64 = 20;

/// How often the coordinator wants hearts to beat.
const BEAT: Duration = Duration::from_secs(1);

/// What a worker does about a lease.
#[derive(Clone, Debug)]
pub(crate) enum Doing {
    /// It reads what it goes on from.
    Loading,
    Training,
    /// Blobs are on their way up; then it says this.
    Uploading {
        blobs: Vec<Digest>,
        then: Box<Word>,
    },
    /// It waits for this step to be accepted.
    Checkpointing {
        step: u64,
        blob: Digest,
    },
    /// It waits for its result, or for the end of its rung, to be accepted.
    Finishing {
        step: u64,
        word: Box<Word>,
    },
    /// Its last word could not be said yet.
    Parting(Box<Word>),
}

/// How far training is, and a digest of all rows on the way: a step that is missed, or applied twice, changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trained {
    pub(crate) step: u64,
    pub(crate) rows: Digest,
}

impl Default for Trained {
    fn default() -> Self {
        Self { step: 0, rows: Digest::of(b"no rows") }
    }
}

impl Trained {
    /// One update of a recipe.
    pub(crate) fn update(&mut self, recipe: &Digest) {
        self.step += 1;
        self.rows = Digest::of(format!("{} {recipe} {}", self.rows, self.step).as_bytes());
    }
}

/// The blob of a stage's checkpoint.
pub(crate) fn checkpoint_of(assignment: &Assignment, step: u64) -> Digest {
    Digest::of(format!("{} {} {step}", assignment.job, assignment.stage).as_bytes())
}

/// A lease as its holder sees it.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) assignment: Box<Assignment>,
    recipe: Digest,
    pub(crate) total: u64,
    pub(crate) trained: Trained,
    /// It was taken into a group and has no state yet; of the stage's checkpoint then this step was accepted.
    pub(crate) fresh: bool,
    pub(crate) checkpointed: u64,
    /// The step that it knows to be safe.
    pub(crate) accepted: u64,
    pub(crate) doing: Doing,
    pub(crate) joining: bool,
    pub(crate) epoch: u64,
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
    /// What it waits to be accepted was not said over the connection of now.
    pub(crate) unheard: bool,
    /// The connection over which it last asked for what it waits for.
    pub(crate) asked_over: Option<u64>,
    /// Words about its group that the next formation answers.
    kept: Vec<Word>,
    spent: f64,
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Word {
    Hello(Vec<LeaseId>),
    Heartbeat(Vec<LeaseId>),
    /// Its number, and how long a round trip is expected to take.
    Probe(u64, u64),
    /// An update, and the epoch of the group that made it.
    Step(LeaseId, u64, u64),
    Spent(LeaseId, Usage),
    Checkpoint(LeaseId, u64, Digest),
    Finished(LeaseId, Box<StageResult>),
    Paused(LeaseId, Evaluation, bool),
    Failed(LeaseId, Failure),
    Released(LeaseId),
    Leaving,
    Holds(Holdings),
    Prepared(LeaseId),
    Broken(LeaseId, u64),
    Waits(LeaseId, u64, u64),
    /// A member says this of its group's lease as if it led. It is not heard where it leads by then, and would be believed.
    AsLeader(LeaseId, Box<Word>),
}

impl Word {
    /// The event that it is to the scheduler; reports, hellos and probes are told in other ways, and what a member says as
    /// if it led is looked at first.
    pub(crate) fn event(self, worker: WorkerId) -> Option<Event> {
        Some(match self {
            Self::Hello(_) | Self::Probe(..) | Self::Step(..) | Self::AsLeader(..) => return None,
            Self::Heartbeat(leases) => Event::Heartbeat { worker, leases },
            Self::Spent(lease, usage) => Event::Spent { worker, lease, usage },
            Self::Checkpoint(lease, step, blob) => Event::Checkpointed { worker, lease, step, blob },
            Self::Finished(lease, result) => Event::Finished { worker, lease, result },
            Self::Paused(lease, evaluation, finished) => Event::Paused { worker, lease, evaluation, finished },
            Self::Failed(lease, failure) => Event::Failed { worker, lease, failure },
            Self::Released(lease) => Event::Released { worker, lease },
            Self::Leaving => Event::Leaving { worker },
            Self::Holds(holdings) => Event::Holds { worker, holdings },
            Self::Prepared(lease) => Event::Prepared { worker, lease },
            Self::Waits(lease, epoch, step) => Event::Waits { worker, lease, epoch, step },
            Self::Broken(lease, epoch) => Event::Broken { worker, lease, epoch, reason: "peer closed".to_owned() },
        })
    }

    /// Blobs that must be uploaded by the time it is said.
    pub(crate) fn blobs(&self) -> Vec<Digest> {
        match self {
            Self::Checkpoint(_, _, blob) => vec![*blob],
            Self::Finished(_, result) => {
                std::iter::once(result.weights).chain(result.predictions.values().copied()).collect()
            }
            Self::AsLeader(_, word) => word.blobs(),
            _ => Vec::new(),
        }
    }
}

/// A worker's process.
pub(crate) struct Process {
    pub(crate) info: WorkerInfo,
    pub(crate) term: Term,
    /// Its connection, as far as it knows, and whether it was welcomed over it.
    pub(crate) link: Option<u64>,
    pub(crate) welcome: Option<WorkerId>,
    pub(crate) leases: BTreeMap<LeaseId, Work>,
    pub(crate) frozen_until: u64,
    /// When it stood still, or could not be heard or hear, the last time.
    pub(crate) troubled_until: u64,
    pub(crate) leaving: bool,
    /// Nothing passes: to it, from it.
    pub(crate) partition: [bool; 2],
    /// Since when it reaches no other worker.
    pub(crate) alone_since: Option<u64>,
    /// How long its words take over the connection of now, as the real session measures it, and how often it beats by that.
    round_trip: RoundTrip,
    pub(crate) beat_every: Duration,
}

impl Process {
    pub(crate) fn new(info: WorkerInfo) -> Self {
        Self {
            info,
            term: Term(0),
            link: None,
            welcome: None,
            leases: BTreeMap::new(),
            frozen_until: 0,
            troubled_until: 0,
            leaving: false,
            partition: [false; 2],
            alone_since: None,
            round_trip: RoundTrip::default(),
            beat_every: BEAT,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.leaving && self.leases.is_empty()
    }

    /// A coordinator's message over the connection of now. Gives what it says to that; work to load is left in `Loading`.
    pub(crate) fn on_message(&mut self, term: Term, command: &Command, total: u64) -> Vec<Word> {
        if let Command::Welcome { worker, .. } = command {
            (self.term, self.welcome) = (term, Some(*worker));
            (self.round_trip, self.beat_every) = (RoundTrip::default(), BEAT);
            let leases: Vec<LeaseId> = self.leases.keys().copied().collect();
            let leaving = self.leaving.then_some(Word::Leaving);
            let held = (!leases.is_empty()).then_some(Word::Heartbeat(leases));
            // What it has loaded follows its first leases.
            let rows = [Digest::of(b"rows")].into();
            let holds = (self.info.slots > 1).then(|| Word::Holds(Holdings { rows, ..Holdings::default() }));
            return leaving.into_iter().chain(held).chain(holds).collect();
        }
        match command {
            Command::Assign { lease, assignment, joining, .. } => self.on_assign(*lease, assignment, *joining, total),
            Command::Form { lease, epoch, rank, ranks, checkpointed, .. } => {
                if let Some(work) = self.leases.get_mut(lease) {
                    work.kept.retain(|word| matches!(word, Word::Broken(_, broken) if broken >= epoch));
                    work.fresh |= std::mem::take(&mut work.joining);
                    (work.epoch, work.rank, work.ranks, work.checkpointed) = (*epoch, *rank, *ranks, *checkpointed);
                    work.accepted = work.accepted.max(*checkpointed);
                }
                Vec::new()
            }
            Command::Accept { lease, step, .. } => {
                self.on_accepted(*lease, *step);
                Vec::new()
            }
            Command::Fence { lease, .. } => {
                self.leases.remove(lease);
                Vec::new()
            }
            Command::Release { lease, .. } => self.give_back(*lease),
            Command::Drain { .. } => self.leave(),
            _ => Vec::new(),
        }
    }

    fn leave(&mut self) -> Vec<Word> {
        self.leaving = true;
        self.leases.keys().copied().collect::<Vec<_>>().into_iter().flat_map(|id| self.give_back(id)).collect()
    }

    /// SIGTERM: it says that it leaves before it gives anything back. Without a connection there is nothing to wait for.
    pub(crate) fn terminate(&mut self) -> Vec<Word> {
        if self.welcome.is_none() {
            self.leaving = true;
            self.leases.clear();
            return Vec::new();
        }
        let mut words = vec![Word::Leaving];
        words.extend(self.leave());
        words
    }

    fn on_assign(&mut self, lease: LeaseId, assignment: &Assignment, joining: bool, total: u64) -> Vec<Word> {
        if self.leases.contains_key(&lease) {
            return Vec::new();
        }
        if self.leaving {
            return vec![Word::Released(lease)];
        }
        let work = Work {
            assignment: Box::new(assignment.clone()),
            recipe: assignment.recipe.digest(),
            total,
            trained: Trained::default(),
            fresh: false,
            checkpointed: 0,
            accepted: 0,
            doing: Doing::Loading,
            joining,
            epoch: 0,
            rank: 0,
            ranks: 1,
            unheard: false,
            asked_over: None,
            kept: Vec::new(),
            spent: 0.0,
        };
        self.leases.insert(lease, work);
        Vec::new()
    }

    fn on_accepted(&mut self, lease: LeaseId, accepted: u64) {
        let Some(work) = self.leases.get_mut(&lease) else { return };
        match &work.doing {
            Doing::Checkpointing { step, .. } if accepted >= *step => {
                work.accepted = work.accepted.max(*step);
                work.doing = Doing::Training;
            }
            Doing::Finishing { step, .. } if accepted >= *step => drop(self.leases.remove(&lease)),
            _ => {}
        }
    }

    fn give_back(&mut self, lease: LeaseId) -> Vec<Word> {
        let runs = |work: &Work| matches!(work.doing, Doing::Loading | Doing::Training | Doing::Checkpointing { .. });
        if self.leases.get(&lease).is_some_and(runs) { self.part(lease, Word::Released(lease)) } else { Vec::new() }
    }

    /// The last word about a lease: said now, or kept for the next connection.
    pub(crate) fn part(&mut self, lease: LeaseId, word: Word) -> Vec<Word> {
        if self.welcome.is_some() {
            self.leases.remove(&lease);
            return vec![word];
        }
        if let Some(work) = self.leases.get_mut(&lease) {
            (work.doing, work.unheard) = (Doing::Parting(Box::new(word)), true);
        }
        Vec::new()
    }

    /// A machine's failure of an attempt.
    pub(crate) fn fail(&mut self, lease: LeaseId, message: &str) -> Vec<Word> {
        self.part(lease, Word::Failed(lease, Failure { blame: Blame::Machine, message: message.to_owned() }))
    }

    pub(crate) fn on_lost(&mut self) {
        (self.link, self.welcome) = (None, None);
        self.leases.values_mut().for_each(|work| work.unheard = true);
        if self.leaving {
            self.leases.clear();
        }
    }

    /// A probe is back: the heart beats less often on a longer way, from the next beat on, which says why.
    pub(crate) fn on_echo(&mut self, number: u64, now: u64) {
        self.round_trip.on_echo(number, Duration::from_millis(now));
        let every = self.round_trip.beat_every(BEAT);
        if every.abs_diff(self.beat_every) > self.beat_every / 4 {
            self.beat_every = every;
        }
    }

    /// What measures the way to the coordinator, unless that is under way.
    pub(crate) fn probe(&mut self, now: u64) -> Option<Word> {
        let number = self.round_trip.probe(Duration::from_millis(now))?;
        Some(Word::Probe(number, u64::try_from(self.round_trip.expected().as_millis()).unwrap()))
    }

    /// The heartbeat, and what was not accepted over an earlier connection.
    pub(crate) fn beat(&mut self) -> Vec<Word> {
        let mut words = vec![Word::Heartbeat(self.leases.keys().copied().collect())];
        for (lease, work) in &mut self.leases {
            if !std::mem::take(&mut work.unheard) {
                continue;
            }
            words.extend(work.kept.iter().cloned());
            match &work.doing {
                Doing::Checkpointing { step, blob } => words.push(Word::Checkpoint(*lease, *step, *blob)),
                Doing::Finishing { word, .. } | Doing::Parting(word) => words.push((**word).clone()),
                Doing::Loading | Doing::Training | Doing::Uploading { .. } => {}
            }
        }
        self.leases.retain(|_, work| !matches!(&work.doing, Doing::Parting(_) if !work.unheard));
        words
    }

    /// A word that the next formation answers.
    pub(crate) fn keep(&mut self, lease: LeaseId, word: Word) -> Vec<Word> {
        let heard = self.welcome.is_some();
        let Some(work) = self.leases.get_mut(&lease) else { return Vec::new() };
        if !work.kept.contains(&word) {
            work.kept.push(word.clone());
        }
        work.unheard |= !heard;
        if heard { vec![word] } else { Vec::new() }
    }

    /// All blobs of a word are up: it is said, or waits for the next connection.
    pub(crate) fn on_uploaded(&mut self, lease: LeaseId, blob: Digest) -> Vec<Word> {
        let heard = self.welcome.is_some();
        let Some(work) = self.leases.get_mut(&lease) else { return Vec::new() };
        let Doing::Uploading { blobs, then } = &mut work.doing else { return Vec::new() };
        blobs.retain(|other| *other != blob);
        if !blobs.is_empty() {
            return Vec::new();
        }
        let word = (**then).clone();
        work.doing = match word.clone() {
            Word::Checkpoint(_, step, blob) => Doing::Checkpointing { step, blob },
            Word::Finished(_, result) => Doing::Finishing { step: result.steps, word: Box::new(word.clone()) },
            other => Doing::Parting(Box::new(other)),
        };
        work.unheard = !heard;
        if heard { vec![word] } else { Vec::new() }
    }

    /// The leases for which it trains as rank 0 and has a free hand.
    pub(crate) fn leads(&self) -> Vec<LeaseId> {
        let free = |work: &&Work| matches!(work.doing, Doing::Training) && !work.joining && work.rank == 0;
        self.leases.iter().filter(|(_, work)| free(work)).map(|(lease, _)| *lease).collect()
    }
}

impl Work {
    /// Whether it has not asked yet for what it waits for, over a connection on which it can.
    pub(crate) fn asks_over(&self, link: Option<u64>) -> bool {
        link.is_some() && self.asked_over != link
    }

    /// Whether others may copy its state.
    pub(crate) fn has_state(&self) -> bool {
        !self.joining && !self.fresh && !matches!(self.doing, Doing::Loading | Doing::Parting(_))
    }

    /// Whether what is safe is further than it could be as a member of the group that trained.
    pub(crate) fn is_behind(&self) -> bool {
        self.trained.step + 1 < self.checkpointed
    }

    /// Whether it waits in the group of this epoch.
    pub(crate) fn is_member(&self, epoch: u64) -> bool {
        self.epoch == epoch && !self.joining && !matches!(self.doing, Doing::Loading | Doing::Parting(_))
    }

    /// Trains on; gives what is said, of each update or of the last one, and what is uploaded first.
    pub(crate) fn train(&mut self, lease: LeaseId, steps: u64, each: bool, info: &WorkerInfo) -> Vec<Word> {
        let rung = self.assignment.until;
        if rung.is_some_and(|rung| self.trained.step >= rung && self.accepted >= self.trained.step) {
            return vec![self.pause(lease)];
        }
        let due = (self.trained.step / CHECKPOINT_EVERY + 1) * CHECKPOINT_EVERY;
        let end = rung.unwrap_or(self.total);
        let until = (self.trained.step + steps).min(due).min(end).max(self.trained.step);
        let first = if each { self.trained.step + 1 } else { until };
        while self.trained.step < until {
            self.trained.update(&self.recipe);
        }
        self.spent += 0.5;
        let usage = Usage { core_seconds: self.spent, wall_seconds: self.spent, ..Usage::default() };
        let mut words: Vec<Word> = (first..=until).map(|step| Word::Step(lease, step, self.epoch)).collect();
        words.push(Word::Spent(lease, usage));
        let then = if until == self.total && rung.is_none() {
            let (numeric_class, epochs) = (info.class.clone(), vec![self.trained.rows]);
            let result = fixture::result(self.assignment.stage.as_str(), self.total, 0.9);
            let stages = vec![(self.assignment.job.clone(), self.assignment.stage.clone())];
            let peak = Some(MemoryPeak { bytes: (self.total % 5) << 20, stages });
            Word::Finished(lease, Box::new(StageResult { numeric_class, usage, epochs, peak, ..result }))
        } else if until == due || until == end {
            Word::Checkpoint(lease, until, checkpoint_of(&self.assignment, until))
        } else {
            return words;
        };
        self.doing = Doing::Uploading { blobs: then.blobs(), then: Box::new(then) };
        self.asked_over = None;
        words
    }

    /// It is at its rung, and its state is safe.
    fn pause(&mut self, lease: LeaseId) -> Word {
        let step = self.trained.step;
        let scores = plans::score(self.assignment.recipe.training.seed, step);
        let word = Word::Paused(lease, scores, step == self.total);
        self.doing = Doing::Finishing { step, word: Box::new(word.clone()) };
        word
    }
}
