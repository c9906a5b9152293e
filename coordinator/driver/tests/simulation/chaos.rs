//! Faults as they strike.

use graftwork_scheduler::{Policy, StageKey};
use graftwork_shared::{
    assignment::{Blame, Failure},
    digest::Digest,
    id::{LeaseId, WorkerId},
};

use crate::{
    coordinator::Coordinator,
    faults::Fault,
    fixture, plans,
    seen::Seen,
    worker::{Word, Work},
    world::{Deed, World},
};

impl World {
    pub(crate) fn strike(&mut self, fault: Fault) {
        let processes: Vec<usize> = self.processes.keys().copied().collect();
        let process = self.dice.pick(&processes);
        match fault {
            Fault::Crash => self.crash(),
            Fault::Stop => self.reach_coordinator(Deed::Stop),
            Fault::Stall => self.stall(),
            Fault::Usurp => self.cut_off(),
            Fault::FillDisk => {
                self.disk.full = true;
                let wait = self.dice.between(200, 4_000);
                self.after(wait, Deed::FreeDisk);
            }
            Fault::LoseBlob => {
                let objects: Vec<(Digest, u64)> = self.disk.objects.iter().copied().collect();
                if let Some((blob, _)) = self.dice.pick(&objects) {
                    self.disk.objects.retain(|(of, _)| *of != blob);
                    self.disk.lost.insert(blob);
                }
            }
            Fault::JumpWall => {
                let jump = i64::try_from(self.dice.below(7_200_000)).unwrap();
                self.wall_ahead_ms = (self.wall_ahead_ms + jump - 3_600_000).max(-900_000);
            }
            Fault::Cancel => {
                if self.dice.chance(300) {
                    let job = usize::try_from(self.dice.below(self.plans.len() as u64)).unwrap();
                    self.reach_coordinator(Deed::Cancel(job));
                }
            }
            Fault::Kill => process.into_iter().for_each(|process| self.kill(process)),
            Fault::Freeze => process.into_iter().for_each(|process| {
                let wait = self.dice.between(100, 14_000);
                let frozen = self.processes.get_mut(&process).unwrap();
                frozen.frozen_until = self.now + wait;
                frozen.troubled_until = self.now + wait;
                self.after(wait, Deed::Thaw(process));
            }),
            Fault::BreakLink => {
                let link = process.and_then(|process| self.processes[&process].link);
                link.into_iter().for_each(|link| self.break_link(link));
            }
            Fault::Partition => process.into_iter().for_each(|process| {
                let (ways, wait) = (self.dice.between(1, 3), self.dice.between(100, 13_000));
                let cut = self.processes.get_mut(&process).unwrap();
                cut.partition = [ways & 1 > 0, ways & 2 > 0];
                cut.troubled_until = self.now + wait;
                self.after(wait, Deed::Heal(process));
            }),
            Fault::Part => process.into_iter().for_each(|process| {
                let wait = self.dice.between(5_000, 60_000);
                self.processes.get_mut(&process).unwrap().alone_since.get_or_insert(self.now);
                self.after(wait, Deed::Rejoin(process));
            }),
            Fault::FailStage => process.into_iter().for_each(|process| self.fail_stage(process)),
            Fault::Lie => process.into_iter().for_each(|process| self.lie(process)),
            Fault::Drain => process.into_iter().for_each(|process| {
                if self.dice.chance(500) {
                    return self.reach_coordinator(Deed::Drain(process));
                }
                let words = self.processes.get_mut(&process).unwrap().terminate();
                self.say(process, words);
            }),
        }
    }

    /// kill -9 of a worker; another one takes its place sooner or later.
    fn kill(&mut self, process: usize) {
        self.end(process);
        let (wait, class) = (self.dice.below(4_000), if self.dice.chance(150) { "avx512" } else { "avx2" });
        self.after(wait, Deed::Join(class));
    }

    fn fail_stage(&mut self, process: usize) {
        let leases: Vec<LeaseId> = self.processes[&process].leases.keys().copied().collect();
        if let Some(lease) = self.dice.pick(&leases) {
            let words = self.processes.get_mut(&process).unwrap().fail(lease, "out of memory");
            self.say(process, words);
        }
    }

    /// A member that does not lead its group sends a checkpoint or a result of its own making; its blobs are there.
    fn speak_as_leader(&mut self) {
        let follows = |work: &Work| work.rank > 0 && work.is_member(work.epoch);
        let leases = self.processes.iter().flat_map(|(process, of)| of.leases.iter().map(move |of| (*process, of)));
        let followed = leases.filter(|(_, (_, work))| follows(work)).map(|(process, (lease, _))| (process, *lease));
        let followed: Vec<(usize, LeaseId)> = followed.collect();
        let Some((process, lease)) = self.dice.pick(&followed) else { return };
        let work = &self.processes[&process].leases[&lease];
        let (stage, total, trained) = (work.assignment.stage.clone(), work.total, work.trained.step);
        // What its leader could say next.
        let result = fixture::result(stage.as_str(), total, 0.9);
        let word = if self.dice.chance(500) && trained + 1 < total {
            Word::Checkpoint(lease, self.dice.between(trained + 1, total - 1), result.weights)
        } else {
            Word::Finished(lease, Box::new(result))
        };
        self.say_with_blobs(process, lease, Word::AsLeader(lease, Box::new(word)));
    }

    /// A word as it is heard: not what a member says as if it led when it does lead, since it would be believed.
    pub(crate) fn unmasked(&mut self, worker: WorkerId, word: Word) -> Option<Word> {
        let Word::AsLeader(lease, word) = word else { return Some(word) };
        let machine = self.coordinator.as_ref()?.core.machine();
        let (holds, leads) = (machine.holds(worker, lease).is_some(), machine.leads(worker, lease).is_some());
        if holds && !leads {
            self.note(Seen::SpokeAsLeader);
        }
        (!leads).then_some(*word)
    }

    fn say_with_blobs(&mut self, process: usize, lease: LeaseId, word: Word) {
        for blob in word.blobs() {
            self.reach_coordinator(Deed::Put(process, self.starts, lease, blob));
            self.checkpoints.entry(blob).or_default();
        }
        if self.processes.get(&process).is_some_and(|process| process.welcome.is_some()) {
            self.say(process, vec![word]);
        }
    }

    /// A worker speaks under a lease that is another's, or was its own once, or as if it led a group that it is a member
    /// of; its blobs are there.
    fn lie(&mut self, process: usize) {
        if self.dice.chance(500) {
            return self.speak_as_leader();
        }
        let held: Vec<(LeaseId, StageKey)> = self
            .processes
            .iter()
            .filter(|(other, _)| **other != process)
            .flat_map(|(_, other)| &other.leases)
            .map(|(lease, work)| {
                (*lease, StageKey { job: work.assignment.job.clone(), stage: work.assignment.stage.clone() })
            })
            .collect();
        let index: Vec<usize> = (0..held.len()).collect();
        let Some((lease, key)) = self.dice.pick(&index).map(|index| held[index].clone()) else { return };
        // What a holder says of its own lease is no lie about another's, and a member may lead by the time it is heard.
        // Nor is what it says of one that was given to it and that it has not heard of yet.
        let known = self.processes[&process].welcome;
        let gave = |of: &Coordinator| known.is_some_and(|worker| of.core.machine().holds(worker, lease).is_some());
        let given = [&self.coordinator, &self.deposed].into_iter().flatten().any(gave);
        if given || self.processes[&process].leases.contains_key(&lease) {
            return;
        }
        let result = fixture::result(key.stage.as_str(), 1, 0.9);
        let failure = Failure { blame: Blame::Machine, message: "not mine".to_owned() };
        let word = match self.dice.below(8) {
            0 => Word::Failed(lease, failure),
            1 => Word::Released(lease),
            2 => Word::Broken(lease, self.dice.below(4)),
            6 => Word::Waits(lease, self.dice.below(4), 1),
            7 => Word::Paused(lease, plans::score(0, 12), false),
            3 => Word::Checkpoint(lease, self.dice.between(1, 10), result.weights),
            _ => Word::Finished(lease, Box::new(result)),
        };
        self.say_with_blobs(process, lease, word);
    }

    /// Only whoever stood still, or could not be heard, was silent: never a worker whose coordinator did not listen.
    pub(crate) fn was_silent(&self, link: u64) {
        let Some(process) = self.processes.get(&self.links[&link].process) else { return };
        let heard = process.link == Some(link) && self.links[&link].broken_ms.is_none();
        let longest = Policy::default().silence_ms + 2 * self.faults.delay_ms;
        let healthy = process.partition == [false; 2] && self.now > process.troubled_until + longest;
        assert!(!heard || !healthy, "a healthy worker was given up for its silence");
    }
}
