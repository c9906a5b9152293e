//! What was seen from outside: what the coordinator acknowledged, promised or gave away, held against its disk.
//!
//! Nothing here asks the scheduler what it thinks. The facts on the disk are folded by themselves, and whatever leaves
//! the coordinator must already follow from them.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_driver::Machine;
use graftwork_scheduler::{Command, Decision, Event, Fact, Plan, Scheduler, StageKey, State, invariant};
use graftwork_shared::{
    digest::Digest,
    id::{JobId, LeaseId, Term, WorkerId},
};

use crate::{plans, worker::Trained};

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
        | Event::Paused { worker, lease, .. }
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

/// Another coordinator leads: this one writes nothing any more.
#[derive(Debug)]
pub(crate) struct Deposed;

/// What coordinators keep: their journal, and the objects of an object store. Whoever leads writes.
pub(crate) struct Disk {
    /// Of the coordinator that took the lead last.
    pub(crate) term: Term,
    /// Facts as they lie there, each with what is quickly looked up of it.
    pub(crate) texts: Vec<String>,
    pub(crate) facts: Vec<Fact>,
    /// Their fold.
    pub(crate) state: State,
    /// Objects by the blob whose bytes they hold and the start of the coordinator that wrote them, so that no name is used
    /// by two.
    pub(crate) objects: BTreeSet<(Digest, u64)>,
    pub(crate) full: bool,
    /// Blobs that it has lost by itself.
    pub(crate) lost: BTreeSet<Digest>,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let (texts, facts, state) = (Vec::new(), Vec::new(), State::default());
        let (objects, lost) = (BTreeSet::new(), BTreeSet::new());
        Self { term: Term(0), texts, facts, state, objects, full: false, lost }
    }

    /// A coordinator takes the lead, under a term above all before. Those of coordinators that took it and wrote nothing
    /// are told here, as the real journal does it.
    pub(crate) fn lead(&mut self, at_ms: u64) -> Term {
        let before = self.term.max(self.state.term());
        if self.state.term() < before {
            self.keep(vec![Fact::TermContinued { term: before, at_ms }]);
        }
        self.term = Term(before.0 + 1);
        self.term
    }

    /// Writes for the coordinator of a term, if it leads.
    pub(crate) fn write(&mut self, term: Term, facts: Vec<Fact>) -> Result<(), Deposed> {
        if term != self.term {
            return Err(Deposed);
        }
        self.keep(facts);
        Ok(())
    }

    /// The object in which a blob was written last.
    pub(crate) fn latest(&self, blob: Digest) -> Option<u64> {
        self.objects.range((blob, 0)..=(blob, u64::MAX)).next_back().map(|(_, start)| *start)
    }

    fn keep(&mut self, facts: Vec<Fact>) {
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
    /// Of which stage each lease is, and which trial became a task, as the facts say.
    stages: BTreeMap<LeaseId, StageKey>,
    chosen: BTreeMap<StageKey, u32>,
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

    /// These facts were written. What is accepted was trained on each row once, in order (`Invariant::EachRowOnce`), and
    /// sweeps come out the same whatever happened (`Invariant::BytesFollowRecipe`).
    pub(crate) fn on_written(&mut self, facts: &[Fact], plans: &[Plan], checkpoints: &BTreeMap<Digest, Trained>) {
        for fact in facts {
            match fact {
                Fact::StageLeased { job, stage, lease, .. } => {
                    self.stages.insert(*lease, StageKey { job: job.clone(), stage: stage.clone() });
                }
                Fact::CheckpointAccepted { lease, step, blob } => {
                    let key = &self.stages[lease];
                    let expected = self.rows(key, plans).get(usize::try_from(*step).unwrap());
                    let trained = &checkpoints[blob];
                    let same = expected == Some(&trained.rows) && trained.step == *step;
                    assert!(same, "the checkpoint of step {step} of {key} holds other rows: {trained:?}");
                }
                Fact::StageTrained { job, stage, result, .. } => {
                    let key = StageKey { job: job.clone(), stage: stage.clone() };
                    let expected = self.rows(&key, plans).last();
                    assert_eq!(expected, result.epochs.first(), "{key} was trained on other rows");
                }
                Fact::RungDecided { rung, promoted, .. } => {
                    let expected = plans::PROMOTED[usize::try_from(*rung).unwrap()];
                    assert_eq!(promoted, expected, "another choice at rung {rung}");
                }
                Fact::TrialChosen { job, task, trial, .. } => {
                    assert_eq!(*trial, plans::CHOSEN, "another trial was chosen");
                    self.chosen.insert(StageKey { job: job.clone(), stage: task.clone() }, *trial);
                }
                _ => {}
            }
        }
    }

    /// The rows of a stage up to each of its updates.
    fn rows(&self, key: &StageKey, plans: &[Plan]) -> &'static [Digest] {
        let plan = plans.iter().find(|plan| plan.id() == key.job).unwrap();
        let chosen = self.chosen.get(key).map(|number| {
            &plan.stage(&key.stage).unwrap().sweep.as_ref().unwrap().trials[usize::try_from(*number - 1).unwrap()]
        });
        let stage = plan.stage(chosen.unwrap_or(&key.stage)).unwrap();
        &plans::rows()[&stage.recipe_digest]
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
                Fact::TrialScored { lease: on_disk, scores, .. } => {
                    *on_disk == Some(*lease) && scores.iter().any(|score| score.step == *step)
                }
                _ => false,
            }),
            Command::Publish { key } => disk.has(|fact| match fact {
                Fact::StageTrained { job, stage, .. } => *job == key.job && *stage == key.stage,
                _ => false,
            }),
            Command::Release { .. }
            | Command::Fence { .. }
            | Command::Drain { .. }
            | Command::Disconnect { .. }
            | Command::LookForReuse { .. }
            // Held against what is left: see `World::discard`.
            | Command::Discard { .. }
            | Command::Tell { .. } => true,
        };
        assert!(durable, "it is done, but what it follows from is not on the disk: {command:?}");
        self.seen = self.seen.max(disk.facts.len());
    }
}
