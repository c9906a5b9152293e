//! A stage that a group trains, and what was told to its members.

use graftwork_scheduler::{Command, Event, Fact, Plan, WorkerInfo};
use graftwork_shared::{
    assignment::{Blame, Failure},
    event::EventKind,
    id::{JobId, LeaseId, WorkerId},
    view::StageState,
};

use super::fixture::{Machine, assigned, info, invited};

pub(crate) fn keyed(number: usize) -> WorkerInfo {
    WorkerInfo { key: format!("process {number}"), ..info(1) }
}

/// The facts as earlier versions wrote them, which did not know of what their workers' programs are.
pub(crate) fn without_versions(facts: &[Fact]) -> Vec<Fact> {
    let old = facts.iter().map(|fact| {
        let mut value = serde_json::to_value(fact).unwrap();
        for version in ["numerics_version", "exchange"] {
            value.get_mut("info").map(|info| info.as_object_mut().unwrap().remove(version).unwrap());
        }
        serde_json::from_value(value).unwrap()
    });
    old.collect()
}

pub(crate) fn failure(blame: Blame) -> Failure {
    Failure { blame, message: "out of memory".to_owned() }
}

/// A member's place as it was told: worker, epoch, rank, ranks, at once.
pub(crate) type Place = (WorkerId, u64, u32, u32, bool);

pub(crate) fn places(commands: &[Command]) -> Vec<Place> {
    let places = commands.iter().filter_map(|command| match command {
        Command::Form { worker, epoch, rank, ranks, at_once, .. } => Some((*worker, *epoch, *rank, *ranks, *at_once)),
        _ => None,
    });
    places.collect()
}

pub(crate) fn fences(commands: &[Command]) -> Vec<(WorkerId, LeaseId)> {
    let fences = commands.iter().filter_map(|command| match command {
        Command::Fence { worker, lease } => Some((*worker, *lease)),
        _ => None,
    });
    fences.collect()
}

pub(crate) fn released(commands: &[Command]) -> Vec<(WorkerId, LeaseId)> {
    let released = commands.iter().filter_map(|command| match command {
        Command::Release { worker, lease, .. } => Some((*worker, *lease)),
        _ => None,
    });
    released.collect()
}

pub(crate) fn reasons(commands: &[Command]) -> Vec<&str> {
    let reasons = commands.iter().filter_map(|command| match command {
        Command::Tell { kind: EventKind::GroupFormed { reason, .. }, .. } => Some(reason.as_str()),
        _ => None,
    });
    reasons.collect()
}

/// A stage that a group trains.
pub(crate) struct World {
    pub(crate) machine: Machine,
    pub(crate) job: JobId,
    pub(crate) lease: LeaseId,
    pub(crate) members: Vec<WorkerId>,
}

impl World {
    /// Workers come one by one, and each is formed into the group before the next comes.
    pub(crate) fn of(plan: &Plan, workers: usize) -> Self {
        let mut machine = Machine::new();
        let job = machine.submit(plan);
        let (first, commands) = machine.join(keyed(0));
        let lease = assigned(&commands)[0].2;
        let mut world = Self { machine, job, lease, members: vec![first] };
        for number in 1..workers {
            let (worker, commands) = world.machine.join(keyed(number));
            assert_eq!(invited(&commands), [(worker, lease)]);
            world.machine.apply(Event::Prepared { worker, lease });
            world.members.push(worker);
        }
        assert_eq!(world.now(), world.members);
        world
    }

    /// The members as people see them.
    pub(crate) fn now(&self) -> Vec<WorkerId> {
        match self.machine.state_of(&self.job, "a") {
            StageState::Running { worker, others, .. } => [vec![worker], others].concat(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.machine.scheduler.epoch(self.lease).unwrap()
    }

    pub(crate) fn failures(&self) -> usize {
        self.machine.scheduler.explain(&self.job).unwrap().stages[0].failures.len()
    }

    pub(crate) fn leave(&mut self, member: usize) -> Vec<Command> {
        let worker = self.members[member];
        self.machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() })
    }

    pub(crate) fn lose_link(&mut self, member: usize) -> Vec<Command> {
        let worker = self.members[member];
        self.machine.apply(Event::LinkLost { worker, reason: "connection reset".to_owned() })
    }

    pub(crate) fn come_back(&mut self, member: usize) -> Vec<Command> {
        let leases = vec![self.lease];
        self.machine.apply(Event::WorkerJoined { session: 9, info: keyed(member), leases })
    }

    pub(crate) fn break_at(&mut self, member: usize, epoch: u64) -> Vec<Command> {
        let (worker, lease) = (self.members[member], self.lease);
        self.machine.apply(Event::Broken { worker, lease, epoch, reason: "peer closed".to_owned() })
    }

    /// All members are heard meanwhile.
    pub(crate) fn one_grace_later(&mut self) {
        for _ in 0..2 {
            self.machine.now_ms += 5_000;
            for worker in self.members.clone() {
                self.machine.apply(Event::Heartbeat { worker, leases: vec![self.lease] });
            }
        }
    }

    pub(crate) fn attempts_failed(&self) -> bool {
        self.machine.facts.iter().any(|fact| matches!(fact, Fact::AttemptFailed { .. }))
    }
}
