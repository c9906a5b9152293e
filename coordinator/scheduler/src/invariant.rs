//! What must always hold, as one list, and the check that tests run after every event.
//!
//! The list is the product's, not only the scheduler's: what cannot be seen from here names the place where it is
//! proved.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use graftwork_shared::id::{JobId, LeaseId, Name, WorkerId};

use crate::{
    fact::Fact,
    machine::Scheduler,
    message::{Command, Decision, Event, StageKey},
    phase::Phase,
    state::State,
    worker::Worker,
};

/// What must always hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// 1. The trunk's bytes never change: files are mapped read-only (`shared/model/src/weights.rs`), so that a write would
    ///    end the process, and no tensor of a trunk leaves `graftwork-engine`, whose tests hold that what is copied from
    ///    the file stays as it was too (`network/tests.rs`).
    TrunkUnchanged,
    /// 2. One live lease for a stage; a late worker or an old coordinator cannot commit. Of a group that holds a lease,
    ///    each worker is a member once, all are of one numeric class and of versions that train together, and rank 0 alone
    ///    commits.
    OneLiveLease,
    /// 3. Within an epoch each row is trained exactly once. Proved for the order of rows in `graftwork-dataset`, for the input
    ///    of a training in `worker/engine/tests/input.rs`, and by row digests: of each accepted checkpoint in the driver's
    ///    simulation, of each result in the history of every run ([`history`](crate::history)).
    EachRowOnce,
    /// 4. What was acknowledged survives kill -9; a final state is final.
    AcknowledgedSurvives,
    /// 5. Within a numeric class, published bytes are a function of the recipe. Here: a checkpoint is continued only
    ///    in its class. Proved by the tests that kill workers and compare digests: `worker/src/stage/tests.rs`,
    ///    `tests/tests/groups.rs`, `tests/tests/same_bytes.rs`.
    BytesFollowRecipe,
    /// 6. The same state and facts give the same decisions.
    SameDecisions,
    /// 7. A refusal is a value with data; what is not refused runs.
    RefusalIsValue,
}

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("invariant {invariant:?} does not hold: {what}")]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// What was seen.
    pub what: String,
}

fn ensure(holds: bool, invariant: Invariant, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { invariant, what: what() }) }
}

/// Checks one turn of the machine: `after.apply(now_ms, event)` gave `decision` and began as `before`.
pub fn check(
    before: Scheduler,
    (now_ms, event): (u64, &Event),
    after: &Scheduler,
    decision: &Decision,
) -> Result<(), Violation> {
    one_live_lease(after)?;
    groups_follow(&before, decision)?;
    only_live_leases_commit(&before, event, decision)?;
    acknowledged_survives(&before, event, after, decision)?;
    classes_stay(&before, event, decision)?;
    quotas_hold(&before, after)?;
    only_higher_priority_takes(&before, after, decision)?;
    helpers_go_first(&before, after)?;
    refusals_are_values(after)?;
    let has_changed = after.has_changed_since(&before);
    // The machine of before is read no more: it takes the turn itself, and then is what a copy would be.
    let again = same_decisions(before, (now_ms, event), after, decision)?;
    what_is_kept_is_true(after, has_changed.then_some(again))
}

/// Gives the machine that has taken the turn once more.
fn same_decisions(
    mut again: Scheduler,
    (now_ms, event): (u64, &Event),
    after: &Scheduler,
    decision: &Decision,
) -> Result<Scheduler, Violation> {
    let repeated = again.apply(now_ms, event.clone());
    ensure(repeated == *decision && again == *after, Invariant::SameDecisions, || format!("{event:?}"))?;
    Ok(again)
}

fn one_live_lease(after: &Scheduler) -> Result<(), Violation> {
    let mut live = BTreeSet::new();
    for (id, job) in after.state.jobs() {
        for (_, stage, record) in job.each() {
            let Some(grant) = record.phase.grant() else { continue };
            let key = StageKey { job: id.clone(), stage: stage.name.clone() };
            let indexed = after.state.live().get(&grant.lease) == Some(&key);
            let mut holders = grant.members();
            holders.extend(after.groups.get(&grant.lease).into_iter().flat_map(|group| group.joiners.keys()));
            let known: Vec<&Worker> = holders.iter().filter_map(|holder| after.workers.get(holder)).collect();
            let held = |w: &&Worker| w.leases.contains_key(&grant.lease) && w.info.class == grant.class;
            let held = known.iter().copied().filter(held).count() == holders.len() && train_together(&known);
            let once = holders.iter().collect::<BTreeSet<_>>().len() == holders.len();
            let alone = live.insert(grant.lease);
            ensure(indexed && held && once && alone, Invariant::OneLiveLease, || format!("{key}: {grant:?}"))?;
        }
    }
    let known = after.groups.keys().all(|lease| live.contains(lease));
    ensure(known, Invariant::OneLiveLease, || "a group outlived its lease".to_owned())?;
    ensure(live.len() == after.state.live().len(), Invariant::OneLiveLease, || "a live lease has no stage".to_owned())
}

/// Whether these compute the same, and can say it to each other.
fn train_together(workers: &[&Worker]) -> bool {
    // What an earlier version's facts do not say of a worker, it says when it is back.
    let one = |version: fn(&Worker) -> u32| {
        let said = workers.iter().filter(|worker| worker.apart.is_none() || version(worker) > 0);
        said.map(|worker| version(worker)).collect::<BTreeSet<_>>().len() < 2
    };
    let ways: BTreeSet<&str> = workers.iter().map(|worker| worker.info.reached_on.as_str()).collect();
    one(|worker| worker.info.numerics_version) && one(|worker| worker.info.exchange) && ways.len() < 2
}

/// A group is made of whoever held its lease before, and of nobody else; its epoch is higher than any before.
fn groups_follow(before: &Scheduler, decision: &Decision) -> Result<(), Violation> {
    let mut newest = BTreeMap::new();
    for fact in &decision.facts {
        let Fact::GroupFormed { lease, epoch, members, .. } = fact else { continue };
        let held = members.iter().all(|member| before.holds(*member, *lease).is_some());
        let earlier = newest.insert(*lease, *epoch).or_else(|| before.epoch(*lease));
        let grows = earlier.is_some_and(|earlier| *epoch > earlier);
        ensure(held && grows, Invariant::OneLiveLease, || format!("{fact:?} after epoch {earlier:?}"))?;
    }
    Ok(())
}

fn sender(event: &Event) -> Option<(WorkerId, LeaseId)> {
    match event {
        Event::Checkpointed { worker, lease, .. }
        | Event::Finished { worker, lease, .. }
        | Event::Paused { worker, lease, .. } => Some((*worker, *lease)),
        _ => None,
    }
}

/// Read from the stages themselves, and not as the machine itself judges.
fn is_granted(before: &Scheduler, worker: WorkerId, lease: LeaseId) -> bool {
    let mut grants = before.state.jobs().values().flat_map(|job| &job.stages).filter_map(|record| record.phase.grant());
    before.workers.contains_key(&worker) && grants.any(|grant| grant.lease == lease && grant.worker == worker)
}

fn only_live_leases_commit(before: &Scheduler, event: &Event, decision: &Decision) -> Result<(), Violation> {
    let sender = sender(event);
    let committed = decision.facts.iter().filter_map(|fact| match fact {
        Fact::CheckpointAccepted { lease, .. }
        | Fact::StageTrained { lease: Some(lease), .. }
        | Fact::TrialScored { lease: Some(lease), .. } => Some(*lease),
        _ => None,
    });
    let accepted = decision.commands.iter().filter_map(|command| match command {
        Command::Accept { lease, .. } => Some(*lease),
        _ => None,
    });
    for lease in committed.chain(accepted) {
        let live = sender.is_some_and(|(worker, sent)| sent == lease && is_granted(before, worker, lease));
        ensure(live, Invariant::OneLiveLease, || format!("{lease} committed by {event:?}"))?;
    }
    Ok(())
}

/// Bytes that the disk has lost are nobody's to keep: such a stage goes on from what is left.
fn lost(event: &Event, decision: &Decision, id: &JobId, name: &Name) -> bool {
    let Event::BlobLost { blob: lost } = event else { return false };
    decision.facts.iter().any(|fact| match fact {
        Fact::CheckpointLost { job, stage, blob } | Fact::ResultLost { job, stage, blob } => {
            (job, stage, blob) == (id, name, lost)
        }
        _ => false,
    })
}

/// The state after a decision's facts.
fn folded(before: &Scheduler, decision: &Decision) -> Result<State, Violation> {
    let mut folded = before.state.clone();
    for fact in &decision.facts {
        let fits = folded.fold(fact);
        ensure(fits.is_ok(), Invariant::AcknowledgedSurvives, || format!("{fits:?}"))?;
    }
    Ok(folded)
}

fn acknowledged_survives(
    before: &Scheduler,
    event: &Event,
    after: &Scheduler,
    decision: &Decision,
) -> Result<(), Violation> {
    // Most turns write nothing, and there is nothing to fold.
    let folded =
        if decision.facts.is_empty() { Cow::Borrowed(&before.state) } else { Cow::Owned(folded(before, decision)?) };
    let same = *folded == after.state;
    ensure(same, Invariant::AcknowledgedSurvives, || "the facts do not give the state".to_owned())?;
    for (id, job) in before.state.jobs() {
        let reopened = |fact: &Fact| matches!(fact, Fact::JobReopened { plan, .. } if plan.id() == *id);
        if decision.facts.iter().any(reopened) {
            continue;
        }
        let forgotten = |fact: &Fact| matches!(fact, Fact::JobForgotten { job, .. } if job == id);
        let Some(now) = after.state.jobs().get(id) else {
            let may_go = job.ended.is_some() && decision.facts.iter().any(forgotten);
            ensure(may_go, Invariant::AcknowledgedSurvives, || format!("job {id} is gone"))?;
            continue;
        };
        let kept = job.ended.is_none() || job.ended == now.ended;
        ensure(kept, Invariant::AcknowledgedSurvives, || format!("job {id} had ended"))?;
        for ((_, stage, record), later) in job.each().zip(&now.stages) {
            if lost(event, decision, id, &stage.name) {
                continue;
            }
            let is_final = !record.phase.is_final() || record.phase == later.phase;
            let result = record.result.is_none() || record.result == later.result;
            let step = |record: &crate::job::StageRecord| record.checkpoint.as_ref().map(|c| c.step);
            let stopped = now.position(&stage.name).is_some_and(|at| now.is_stopped(at));
            let progress = later.result.is_some() || stopped || step(record) <= step(later);
            let kept = is_final && result && progress;
            ensure(kept, Invariant::AcknowledgedSurvives, || format!("stage {} of job {id}", stage.name))?;
        }
    }
    Ok(())
}

fn classes_stay(before: &Scheduler, event: &Event, decision: &Decision) -> Result<(), Violation> {
    for fact in &decision.facts {
        let Fact::StageLeased { job, stage, class, .. } = fact else { continue };
        let key = StageKey { job: job.clone(), stage: stage.clone() };
        let record = before.state.record(&key).map(|(job, position)| &job.stages[position]);
        let checkpoint = record.and_then(|record| record.checkpoint.as_ref());
        let same = lost(event, decision, job, stage) || checkpoint.is_none_or(|checkpoint| checkpoint.class == *class);
        ensure(same, Invariant::BytesFollowRecipe, || format!("{key} went to {class}"))?;
    }
    Ok(())
}

/// A place goes to a strictly higher priority, and one that was asked for it.
fn only_higher_priority_takes(before: &Scheduler, after: &Scheduler, decision: &Decision) -> Result<(), Violation> {
    for fact in &decision.facts {
        let Fact::StagePreempted { lease, by_job, .. } = fact else { continue };
        let Some((key, (job, _))) =
            before.state.live().get(lease).and_then(|key| Some((key, before.state.record(key)?)))
        else {
            continue;
        };
        let higher = after.state.jobs().get(by_job).is_some_and(|by| by.plan.job.priority > job.plan.job.priority);
        let asked = before.gives_to(*lease).is_some_and(|by| by.job == *by_job);
        ensure(higher && asked, Invariant::RefusalIsValue, || format!("{key} gave its place: {fact:?}"))?;
    }
    Ok(())
}

/// No stage is asked for its place while a helper that was not asked yet could give one, and none that has not moved on since
/// it gave its place. What it loses between being asked and giving changes nothing about that.
fn helpers_go_first(before: &Scheduler, after: &Scheduler) -> Result<(), Violation> {
    for (lease, key) in after.state.live() {
        let Some(by) = after.gives_to(*lease).filter(|by| before.gives_to(*lease) != Some(by)) else { continue };
        let safe = after.state.record(key).is_some_and(|(job, at)| job.stages[at].is_safe());
        ensure(!safe, Invariant::RefusalIsValue, || format!("{key} was asked for its place again, for {by}"))?;
        let Some((job, at)) = after.state.record(by) else { continue };
        let (memory_bytes, priority) = (after.state.needed_bytes(job, at), job.plan.job.priority);
        let gangs = after.gangs_before(by);
        for (id, worker) in after.suited(job, at).unwrap_or_default() {
            let kept = gangs.iter().any(|gang| gang.keeps(&worker.info.arithmetic()));
            let could_go = |of: &&LeaseId| {
                after.helps(id, **of)
                    && !after.was_asked_back(id, **of)
                    && !after.is_kept_from((id, **of), (by, priority))
                    && worker.has_room_without(**of, memory_bytes)
            };
            let helper = worker.leases.keys().find(could_go).filter(|_| !kept && job.gang(at) < 2);
            ensure(helper.is_none(), Invariant::RefusalIsValue, || {
                format!("{lease} was asked to give {by} its place, and {id}, which helps in {helper:?}, was not")
            })?;
        }
    }
    Ok(())
}

/// What is looked up is what a search through everything would find, so decisions follow from state and facts alone.
/// `again`: a machine like `after`, to be taken apart, where what is kept has changed in the turn.
fn what_is_kept_is_true(after: &Scheduler, again: Option<Scheduler>) -> Result<(), Violation> {
    let checked = after.check_indexes(again);
    ensure(checked.is_ok(), Invariant::SameDecisions, || checked.err().unwrap_or_default())?;
    let done = after.check_done();
    ensure(done.is_ok(), Invariant::RefusalIsValue, || done.err().unwrap_or_default())
}

/// An owner gets no place beyond its quota.
fn quotas_hold(before: &Scheduler, after: &Scheduler) -> Result<(), Violation> {
    for (owner, has, most) in after.bounded() {
        let kept = has <= most.max(before.places_of(&owner));
        ensure(kept, Invariant::RefusalIsValue, || format!("{owner} has {has} places, and may have {most}"))?;
    }
    Ok(())
}

fn refusals_are_values(after: &Scheduler) -> Result<(), Violation> {
    for key in after.ready() {
        let (job, position) = after.state.record(&key).expect("a ready stage is one of a job");
        ensure(job.stages[position].phase == Phase::Pending, Invariant::RefusalIsValue, || key.to_string())?;
        let placed = after.choose(job, position);
        ensure(placed.is_err(), Invariant::RefusalIsValue, || format!("{key} could run on {placed:?} but does not"))?;
    }
    Ok(())
}
