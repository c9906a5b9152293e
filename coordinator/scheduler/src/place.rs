//! Which stage goes to which worker, or why none does.
//!
//! Jobs go by priority, then by what their owners have had (`share.rs`), then by submission; within a job the stage at the
//! head of the longest remaining chain of work goes first, so that the tail is short. A worker takes a stage when it has a free place, the device, the memory
//! and, for a stage with a checkpoint, the numeric class; of those that do, the one with the fewest goes first, then the
//! fastest as far as speeds are known, then one that has the base model loaded, then one that has read the rows. The
//! order is total, so the same state gives the same placement (invariant 6), and a refusal is a value (invariant 7).

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{
    assignment::Assignment,
    event::EventKind,
    id::{JobId, LeaseId, Name, WorkerId},
    job::Device,
    recipe::NumericClass,
    view::Refusal,
};

use crate::{
    fact::Fact,
    gang::{Kept, Waiting},
    index::{Demand, Round, Spot, Wait},
    job::JobState,
    machine::{Reuse, Scheduler},
    message::{Command, StageKey},
    serve::{Head, Limit, Turns},
    worker::Worker,
};

impl Scheduler {
    /// Hands out what can run.
    pub(crate) fn place(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        let changed = self.board.is_due(Round::HandOut);
        // Who stands before a gang changes with time where owners take turns.
        if changed || (!self.board.queue.gangs.is_empty() && self.board.queue.lines.len() > 1) {
            self.hand_out();
        }
        // Whoever only loads joins a group or is gone from it at once: its owner has more or less then, and others may be
        // before it.
        self.hand_out_after(|machine| {
            machine.take_back();
            machine.preempt();
        });
        self.hand_out_after(Self::grow);
    }

    fn hand_out_after(&mut self, act: impl FnOnce(&mut Self)) {
        let joiners = self.board.leases.joiners.clone();
        act(self);
        if joiners != self.board.leases.joiners {
            self.hand_out();
        }
    }

    /// Hands out places in the order of serving; from its beginning once more whenever that has changed by it, since the owner
    /// of what got a place has had more then, and others may be before it.
    fn hand_out(&mut self) {
        while self.hand_out_in_turn() {}
    }

    /// Rooms only shrink while stages are handed out, so what does not fit is passed over for good. Nobody passes a gang
    /// that waits for workers of the kind it needs, or one that lacks members. Gives whether the order has changed by it: a
    /// worker went to a stage that runs, which ends the walk, or a stage went before a gang of its owner's that waits.
    fn hand_out_in_turn(&mut self) -> bool {
        let kept = Kept::default();
        let limit: Limit<'_> = &|machine, (_, owner), wait, demand| match wait {
            Wait::Question => machine.board.fleet.hold(demand),
            Wait::Place if kept.has_quota_of(owner) => None,
            // What would be kept for it is kept already, and it cannot be whole before the one for which it is.
            Wait::Place if kept.has(demand) && !machine.is_over_quota(owner, demand.gang) => None,
            // One that does not fit is looked at all the same: places are kept for it.
            Wait::Place if demand.gang > 1 && !machine.is_shut_out(owner, demand.gang) => {
                machine.board.fleet.hold(demand)
            }
            Wait::Place if machine.is_over_quota(owner, demand.gang) => None,
            Wait::Place => machine.board.fleet.room_beside(demand, &kept.demands()),
            Wait::Answer | Wait::Rest => None,
        };
        let mut turns = Turns::begin(self, limit);
        // Something was handed out behind a gang that waits: its owner may have had more by then than others whom it was
        // before.
        let (mut filled, mut moved) = (None, false);
        while let Some(head) = turns.next(self) {
            let first_of_priority = filled.replace(head.line.0) != Some(head.line.0);
            if first_of_priority && self.fill_gangs(Some(head.line.0.0), &kept.demands()) {
                return true;
            }
            let mut fits =
                limit(self, &head.line, head.wait, &head.demand).is_some_and(|most| head.memory_bytes <= most);
            if fits && head.wait == Wait::Place && head.demand.gang > 1 {
                fits = self.gang_fits(&head, &kept);
            } else if fits && head.wait == Wait::Place && self.help_first(&head, &kept.demands()) {
                return true;
            }
            if fits && let Some(key) = self.key_at(&head.spot) {
                match head.wait {
                    Wait::Question => self.look_for_reuse(key),
                    _ => {
                        self.lease(&key, &head, &kept.demands());
                        moved |= !kept.demands().is_empty();
                    }
                }
            }
            turns.go_on(self, &head, fits && head.wait == Wait::Place, limit);
        }
        self.fill_gangs(None, &kept.demands()) || moved
    }

    pub(crate) fn key_at(&self, (id, at): &Spot) -> Option<StageKey> {
        let stage = self.state.jobs().get(id)?.plan.stages.get(*at)?.name.clone();
        Some(StageKey { job: id.clone(), stage })
    }

    /// Tells, once until it changes, of a job in which nothing runs and which no worker here can ever take up.
    pub(crate) fn tell_stuck(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        let mut unsure = std::mem::take(&mut self.board.unsure);
        // What workers can hold at all decides it for every job.
        if std::mem::replace(&mut self.board.known_refits, self.board.fleet.refits) != self.board.fleet.refits {
            unsure.extend(self.state.index.active.iter().cloned());
        }
        // And for a gang, how many of them can.
        if std::mem::replace(&mut self.board.known_recounts, self.board.fleet.recounts) != self.board.fleet.recounts {
            unsure.extend(self.board.queue.gangs.iter().map(|(job, _)| job.clone()));
        }
        for id in unsure {
            self.count(1);
            let job = self.state.jobs().get(&id).filter(|job| job.ended.is_none());
            let refusals = job.map(|job| self.lasting_refusals(&id, job)).unwrap_or_default();
            if refusals.is_empty() {
                self.stuck.remove(&id);
            } else if self.stuck.insert(id.clone()) {
                self.count(refusals.len());
                self.tell(&id, None, EventKind::Stuck { refusals });
            }
        }
    }

    /// The refusals of all ready stages, where nothing else is under way and no wait alone ends any of them.
    fn lasting_refusals(&self, id: &JobId, job: &JobState) -> BTreeMap<Name, Refusal> {
        let mut refusals = BTreeMap::new();
        if job.index.busy > 0 {
            return refusals;
        }
        for ((_, at), entry) in self.board.queue.entries.range((id.clone(), 0)..=(id.clone(), usize::MAX)) {
            let held = || self.board.fleet.hold(&entry.demand).is_some_and(|most| entry.memory_bytes <= most);
            // What holds a gang may be apart for the moment, and what is here refuse it for longer.
            let single = entry.demand.gang < 2;
            let waits = entry.wait == Wait::Rest || (single && held() && !self.is_shut_out(&entry.line.1, 1));
            // What waits behind gangs does not last, so none of them need be known.
            let refusal = if waits { None } else { self.choose_behind(job, *at, &[]).err().filter(Refusal::lasts) };
            let Some(refusal) = refusal else { return BTreeMap::new() };
            refusals.insert(job.plan.stages[*at].name.clone(), refusal);
        }
        refusals
    }

    /// A worker with room for a ready stage, or why there is none. Which of them gets it, [`Self::best_worker`] says.
    pub(crate) fn choose(&self, job: &JobState, position: usize) -> Result<WorkerId, Refusal> {
        let key = StageKey { job: job.plan.id(), stage: job.plan.stages[position].name.clone() };
        self.choose_behind(job, position, &self.gangs_before(&key))
    }

    /// The same behind these gangs that wait.
    pub(crate) fn choose_behind(
        &self,
        job: &JobState,
        position: usize,
        gangs: &[Waiting],
    ) -> Result<WorkerId, Refusal> {
        let (stage, record) = (&job.plan.stages[position], &job.stages[position]);
        if let (Some(until_ms), Some(failure)) = (record.retry_at_ms, record.failures.last())
            && until_ms > self.now_ms
        {
            let attempts = u32::try_from(record.failures.len()).unwrap_or(u32::MAX);
            return Err(Refusal::BackingOff { failure: failure.clone(), attempts, until_ms });
        }
        if self.stopping.is_some() {
            return Err(Refusal::NoWorker);
        }
        let suited = self.suited(job, position)?;
        let short_of_gang = self.short_of_gang(job, position);
        if let Some(refusal) = short_of_gang.as_ref().filter(|refusal| refusal.lasts()) {
            return Err(refusal.clone());
        }
        let untouched = record.attempts == 0 && record.checkpoint.is_none();
        let key = StageKey { job: job.plan.id(), stage: stage.name.clone() };
        if untouched && self.reuse.get(&key) != Some(&Reuse::Answered) {
            return Err(Refusal::LookingForReuse);
        }
        if let Some(refusal) = self.over_quota(job, job.gang(position)) {
            return Err(refusal);
        }
        if let Some(gang) = gangs.iter().find(|gang| gang.quota_of.as_ref() == Some(&job.plan.job.owner)) {
            return Err(gang.refusal.clone());
        }
        if let Some(refusal) = short_of_gang {
            return Err(refusal);
        }
        let demand = self.board.queue.entries.get(&(key.job.clone(), position)).map(|entry| &entry.demand);
        if let Some(gang) = gangs.iter().find(|gang| demand.is_some_and(|demand| gang.holds_up(demand))) {
            return Err(gang.refusal.clone());
        }
        let needs_bytes = self.state.needed_bytes(job, position);
        let keeper = |worker: &Worker| gangs.iter().find(|gang| gang.keeps(&worker.info.arithmetic()));
        let roomy = suited.iter().filter(|(_, worker)| worker.has_room(needs_bytes));
        let (kept, free): (Vec<_>, Vec<_>) = roomy.partition(|(_, worker)| keeper(worker).is_some());
        if free.is_empty()
            && let Some(gang) = kept.first().and_then(|(_, worker)| keeper(worker))
        {
            return Err(gang.refusal.clone());
        }
        free.first().map(|(id, _)| *id).ok_or_else(|| Refusal::Busy {
            workers: u32::try_from(suited.len()).unwrap_or(u32::MAX),
            slots: suited.iter().map(|(_, worker)| worker.info.slots).sum(),
            ahead: Vec::new(),
        })
    }

    /// Workers that could run the stage if they had nothing else to do; at least one.
    pub(crate) fn suited(&self, job: &JobState, position: usize) -> Result<Vec<(WorkerId, &Worker)>, Refusal> {
        let (stage, record) = (&job.plan.stages[position], &job.stages[position]);
        let staying = self.workers.iter().filter(|(_, worker)| worker.takes_work());
        let mut workers: Vec<(WorkerId, &Worker)> = staying.map(|(id, worker)| (*id, worker)).collect();
        if workers.is_empty() {
            return Err(Refusal::NoWorker);
        }
        let device = job.plan.job.resources.device;
        let have = distinct(workers.iter().map(|(_, worker)| worker.info.class.device.clone()));
        workers.retain(|(_, worker)| (worker.info.class.device == "cpu") == (device == Device::Cpu));
        if workers.is_empty() {
            let needs = match device {
                Device::Cpu => "cpu",
                Device::Cuda => "cuda",
            };
            return Err(Refusal::Device { needs: needs.to_owned(), have });
        }
        let largest_bytes = workers.iter().map(|(_, worker)| worker.info.memory_bytes).max().unwrap_or(0);
        let needs_bytes = self.state.needed_bytes(job, position);
        workers.retain(|(_, worker)| worker.could_hold(needs_bytes));
        if workers.is_empty() {
            return Err(Refusal::Memory { needs_bytes, largest_bytes });
        }
        let needs = stage.recipe.numerics_version;
        let have = distinct(workers.iter().map(|(_, worker)| worker.info.numerics_version));
        workers.retain(|(_, worker)| worker.info.arithmetic().computes(needs));
        if workers.is_empty() {
            return Err(Refusal::NumericsVersion { needs, have });
        }
        if let Some(checkpoint) = &record.checkpoint {
            let have = distinct(workers.iter().map(|(_, worker)| worker.info.class.to_string()));
            workers.retain(|(_, worker)| worker.info.class == checkpoint.class);
            if workers.is_empty() {
                return Err(Refusal::NumericClass { needs: checkpoint.class.to_string(), have });
            }
        }
        Ok(workers)
    }

    fn lease(&mut self, key: &StageKey, head: &Head, kept: &[Demand]) {
        let Some(chosen) = self.best_worker(head, kept) else { return };
        let worker = chosen.worker;
        let companions = self.companions(head, worker);
        let Some((job, position)) = self.state.record(key) else { return };
        let (stage, record) = (&job.plan.stages[position], &job.stages[position]);
        let assignment = Box::new(job.next_assignment(key.job.clone(), position));
        let from_step = record.checkpoint_step();
        let started =
            EventKind::StageStarted { worker, from_step, total_steps: stage.total_steps, attempt: record.attempts };
        let lease = self.state.next_lease();
        let known = self.workers.get_mut(&worker).expect("a worker is chosen among those there are");
        let class = known.info.class.clone();
        known.leases.insert(lease, self.state.needed_bytes_in(job, position, Some(&class)));
        known.take_in(stage);
        self.seat(worker);
        let (job, stage, at_ms) = (key.job.clone(), key.stage.clone(), self.now_ms);
        self.record(Fact::StageLeased { job, stage, lease, worker, class, at_ms });
        self.groups.entry(lease).or_default().chosen = Some(chosen);
        self.out.commands.push(Command::Assign { worker, lease, assignment, joining: false });
        self.tell(&key.job, Some(&key.stage), started);
        for companion in companions {
            self.invite(companion, lease);
        }
    }

    fn look_for_reuse(&mut self, key: StageKey) {
        if self.reuse.contains_key(&key) {
            return;
        }
        let classes: BTreeSet<&NumericClass> = self.board.fleet.classes.keys().map(|of| &of.class).collect();
        let classes: Vec<NumericClass> = classes.into_iter().cloned().collect();
        self.count(classes.len());
        self.set_reuse(&key, Some(Reuse::Asked));
        self.out.commands.push(Command::LookForReuse { key, classes });
    }
}

impl Worker {
    /// 0 bytes: the worker does not know, so nothing is held against it.
    fn could_hold(&self, memory_bytes: u64) -> bool {
        self.info.memory_bytes == 0 || memory_bytes <= self.info.memory_bytes
    }

    pub(crate) fn has_room(&self, memory_bytes: u64) -> bool {
        self.has_room_beside(self.leases.values(), memory_bytes)
    }

    /// Whether it has room once it has given this lease back.
    pub(crate) fn has_room_without(&self, lease: LeaseId, memory_bytes: u64) -> bool {
        let others = self.leases.iter().filter(|(other, _)| **other != lease);
        self.has_room_beside(others.map(|(_, bytes)| bytes), memory_bytes)
    }

    pub(crate) fn has_room_beside<'a>(&self, leases: impl Iterator<Item = &'a u64>, memory_bytes: u64) -> bool {
        let (taken, used) =
            leases.fold((0, 0), |(taken, used): (u32, u64), bytes| (taken + 1, used.saturating_add(*bytes)));
        taken < self.info.slots && self.could_hold(used.saturating_add(memory_bytes))
    }
}

impl JobState {
    /// The stage's assignment as it is handed out next.
    pub(crate) fn next_assignment(&self, id: JobId, position: usize) -> Assignment {
        let (stage, record) = (&self.plan.stages[position], &self.stages[position]);
        Assignment {
            attempt: record.attempts,
            resume: record.checkpoint.as_ref().map(|checkpoint| checkpoint.blob),
            until: self.pause_step(position),
            adapters: self.fused_blobs(position),
            ..stage.assignment(id)
        }
    }

    /// Work that is left in a stage, in tokens, of which an update takes so many.
    pub(crate) fn remaining(&self, position: usize, tokens: u64) -> u64 {
        let (stage, record) = (&self.plan.stages[position], &self.stages[position]);
        if self.is_swept(position) {
            return 0; // its trials are what is left of it
        }
        stage.total_steps.saturating_sub(record.checkpoint_step()).saturating_mul(tokens)
    }
}

fn distinct<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    values.collect::<BTreeSet<T>>().into_iter().collect()
}
