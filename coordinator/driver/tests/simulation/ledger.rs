//! What was seen from outside: what the coordinator acknowledged, promised or gave away, held against its disk.
//!
//! Nothing here asks the scheduler what it thinks. The facts on the disk are folded by themselves, and whatever leaves
//! the coordinator must already follow from them.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_driver::Machine;
use graftwork_scheduler::{Command, Decision, Event, Fact, Scheduler, State, invariant};
use graftwork_shared::{
    digest::Digest,
    id::{JobId, LeaseId, Term, WorkerId},
};

/// A scheduler whose every turn is held against the house's invariants.
pub(crate) struct Checked(pub(crate) Scheduler);

impl Machine for Checked {
    fn scheduler(&self) -> &Scheduler {
        &self.0
    }

    fn apply(&mut self, now_ms: u64, event: Event) -> Decision {
        let before = self.0.clone();
        let decision = self.0.apply(now_ms, event.clone());
        strangers_change_nothing(&before, (now_ms, &event), &decision);
        invariant::check(before, (now_ms, &event), &self.0, &decision).unwrap();
        decision
    }
}

/// What a worker says of a lease that it does not hold changes nothing about the lease: facts about it are those that
/// time alone would have brought.
fn strangers_change_nothing(before: &Scheduler, (now_ms, event): (u64, &Event), decision: &Decision) {
    let Some((worker, lease)) = speaker(event).filter(|(worker, lease)| before.holds(*worker, *lease).is_none()) else {
        return;
    };
    let quiet = before.clone().apply(now_ms, Event::Tick);
    let about = |decision: &Decision| -> Vec<Fact> {
        decision.facts.iter().filter(|fact| lease_of(fact) == Some(lease)).cloned().collect()
    };
    assert_eq!(about(decision), about(&quiet), "{worker} does not hold {lease}, and changed it: {event:?}");
}

fn speaker(event: &Event) -> Option<(WorkerId, LeaseId)> {
    match event {
        Event::Progress { worker, lease }
        | Event::Checkpointed { worker, lease, .. }
        | Event::Finished { worker, lease, .. }
        | Event::Failed { worker, lease, .. }
        | Event::Released { worker, lease }
        | Event::Spent { worker, lease, .. }
        | Event::Prepared { worker, lease }
        | Event::Broken { worker, lease, .. }
        | Event::Waits { worker, lease, .. } => Some((*worker, *lease)),
        _ => None,
    }
}

/// The lease that a fact changes.
fn lease_of(fact: &Fact) -> Option<LeaseId> {
    match fact {
        Fact::GroupFormed { lease, .. }
        | Fact::CheckpointAccepted { lease, .. }
        | Fact::AttemptCost { lease, .. }
        | Fact::LeaseReleased { lease, .. }
        | Fact::StagePreempted { lease, .. }
        | Fact::AttemptFailed { lease, .. } => Some(*lease),
        Fact::StageTrained { lease, .. } | Fact::TrialScored { lease, .. } => *lease,
        _ => None,
    }
}

/// The coordinator's disk.
pub(crate) struct Disk {
    /// Facts as they lie there, each with what is quickly looked up of it.
    pub(crate) texts: Vec<String>,
    pub(crate) facts: Vec<Fact>,
    /// Their fold.
    pub(crate) state: State,
    pub(crate) blobs: BTreeSet<Digest>,
    pub(crate) full: bool,
    /// Blobs that it has lost by itself.
    pub(crate) lost: BTreeSet<Digest>,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let (texts, facts, state) = (Vec::new(), Vec::new(), State::default());
        Self { texts, facts, state, blobs: BTreeSet::new(), full: false, lost: BTreeSet::new() }
    }

    pub(crate) fn write(&mut self, facts: Vec<Fact>) {
        for fact in facts {
            self.state.fold(&fact).expect("what is written fits what was written before");
            self.texts.push(serde_json::to_string(&fact).unwrap());
            self.facts.push(fact);
        }
    }

    /// The fold of what lies there, read as a start reads it.
    pub(crate) fn read(&self) -> State {
        let mut state = State::default();
        for text in &self.texts {
            state.fold(&serde_json::from_str(text).unwrap()).unwrap();
        }
        assert_eq!(state, self.state, "what is read is what was written");
        state
    }

    fn has(&self, holds: impl FnMut(&Fact) -> bool) -> bool {
        self.facts.iter().rev().any(holds)
    }
}

/// What was said to others and may never be taken back.
#[derive(Default)]
pub(crate) struct Ledger {
    terms: BTreeSet<Term>,
    workers: BTreeSet<WorkerId>,
    /// Leases with the worker that each was first given to.
    leases: BTreeMap<LeaseId, WorkerId>,
    submitted: BTreeSet<JobId>,
    /// Facts whose effects others have seen: that many facts must be on every later disk.
    seen: usize,
}

impl Ledger {
    /// A coordinator starts over this disk.
    pub(crate) fn on_start(&mut self, disk: &Disk, term: Term) {
        let known = |job: &JobId| disk.has(|fact| matches!(fact, Fact::JobSubmitted { plan, .. } if plan.id() == *job));
        let lost: Vec<_> = self.submitted.iter().filter(|job| !known(job)).collect();
        assert!(lost.is_empty(), "acknowledged jobs are lost: {lost:?}");
        assert!(disk.facts.len() >= self.seen, "{} facts, but {} had been acted on", disk.facts.len(), self.seen);
        let newest = self.terms.last().copied().unwrap_or(Term(0));
        assert!(term > newest, "{term} begins after {newest} was heard of");
    }

    /// A worker heard of a term.
    pub(crate) fn on_term(&mut self, disk: &Disk, term: Term) {
        let durable = disk.has(|fact| match fact {
            Fact::TermStarted { term: on_disk, .. } | Fact::TermContinued { term: on_disk, .. } => *on_disk == term,
            _ => false,
        });
        assert!(durable, "{term} is told but not on the disk");
        self.terms.insert(term);
    }

    pub(crate) fn on_submitted(&mut self, disk: &Disk, job: &JobId) {
        let durable = disk.has(|fact| matches!(fact, Fact::JobSubmitted { plan, .. } if plan.id() == *job));
        assert!(durable, "job {job} is acknowledged but not on the disk");
        self.submitted.insert(job.clone());
        self.seen = disk.facts.len();
    }

    /// A command leaves the coordinator: the facts that it follows from are durable.
    pub(crate) fn on_command(&mut self, disk: &Disk, command: &Command) {
        let durable = match command {
            Command::Welcome { worker, .. } => {
                self.workers.insert(*worker);
                disk.has(|fact| matches!(fact, Fact::WorkerEntered { worker: on_disk, .. } if on_disk == worker))
            }
            Command::Assign { worker, lease, joining, .. } => {
                if !joining {
                    let twice = self.leases.insert(*lease, *worker);
                    assert_eq!(twice, None, "{lease} was given to two workers");
                }
                disk.has(|fact| matches!(fact, Fact::StageLeased { lease: on_disk, .. } if on_disk == lease))
            }
            Command::Form { lease, epoch, .. } => disk.has(|fact| match fact {
                Fact::GroupFormed { lease: on_disk, epoch: formed, .. } => (on_disk, formed) == (lease, epoch),
                _ => false,
            }),
            Command::Accept { lease, step, .. } => disk.has(|fact| match fact {
                Fact::CheckpointAccepted { lease: on_disk, step: accepted, .. } => (on_disk, accepted) == (lease, step),
                Fact::StageTrained { lease: on_disk, result, .. } => *on_disk == Some(*lease) && result.steps == *step,
                _ => false,
            }),
            Command::Publish { key } => disk.has(|fact| match fact {
                Fact::StageTrained { job, stage, .. } => *job == key.job && *stage == key.stage,
                _ => false,
            }),
            // What a crash brings back must not miss it.
            Command::Discard { blob } => !disk.state.refers_to(*blob),
            Command::Release { .. }
            | Command::Fence { .. }
            | Command::Drain { .. }
            | Command::Disconnect { .. }
            | Command::LookForReuse { .. }
            | Command::Tell { .. } => true,
        };
        assert!(durable, "it is done, but what it follows from is not on the disk: {command:?}");
        self.seen = self.seen.max(disk.facts.len());
    }
}
