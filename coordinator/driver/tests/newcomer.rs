//! Whoever trains a stage is lost while a newcomer is on its way into the group: what is told then, and that it is sound.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

#[path = "../../scheduler/tests/fixture/mod.rs"]
mod fixture;

use std::collections::BTreeMap;

use fixture::{assigned, grouped, info, invited};
use graftwork_driver::{Core, Gone, Output, Timing};
use graftwork_scheduler::{
    Command, Event, Fact, Policy, Scheduler, State, WorkerInfo,
    history::{Broken, History, check},
};
use graftwork_shared::{
    event::{Event as Told, EventKind, StepReport},
    id::{LeaseId, WorkerId},
};

/// A core whose journal is durable at once, with all that it wrote and told.
struct Bench {
    core: Core<()>,
    facts: Vec<Fact>,
    told: Vec<Told>,
    now_ms: u64,
}

impl Bench {
    fn new() -> Self {
        let (machine, first) = Scheduler::start(Policy::default(), State::default(), 0);
        let core = Core::new((machine, first), 1, 0, Timing { stop_ms: 1_000 });
        Self { core, facts: Vec::new(), told: Vec::new(), now_ms: 1 }
    }

    /// What goes out; the hub has nothing to reuse.
    fn settled(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        while let Some(output) = self.core.poll() {
            match output {
                Output::Write(facts) => {
                    self.facts.extend(facts);
                    self.core.durable(self.facts.len() as u64);
                }
                Output::Command(Command::Tell { job, stage, kind }) => {
                    self.told.push(Told { job, at_ms: self.now_ms, stage, kind });
                }
                Output::Command(Command::LookForReuse { key, .. }) => {
                    self.core.on_event(self.now_ms, Event::Reusable { key, result: None });
                }
                Output::Command(command) => commands.push(command),
                _ => {}
            }
        }
        commands
    }

    fn join(&mut self, session: u64) -> (WorkerId, Vec<Command>) {
        let info = WorkerInfo { key: format!("key {session}"), ..info(1) };
        self.core.on_join(self.now_ms, (session, Event::WorkerJoined { session, info, leases: Vec::new() }));
        let commands = self.settled();
        let welcomed = commands.iter().find_map(|command| match command {
            Command::Welcome { worker, .. } => Some(*worker),
            _ => None,
        });
        (welcomed.unwrap(), commands)
    }

    /// A worker reports an update that was made in the group of this epoch.
    fn report(&mut self, (worker, session): (WorkerId, u64), lease: LeaseId, group: u64, step: u64) {
        let report = StepReport { step, total_steps: 100, group, lanes: 4, ..StepReport::default() };
        self.core.on_report(self.now_ms, (worker, session), lease, EventKind::Step(report));
        self.settled();
    }

    fn steps(&self) -> Vec<u64> {
        let steps = self.told.iter().filter_map(|event| match &event.kind {
            EventKind::Step(report) => Some(report.step),
            _ => None,
        });
        steps.collect()
    }

    fn found(&self) -> Vec<Broken> {
        let (facts, told, rows) = (&self.facts, &self.told, &BTreeMap::new());
        let history = History { facts, told, rows, in_lockstep: true, every_update: false };
        check(&history).into_iter().map(|finding| finding.broken).collect()
    }
}

/// The places of a lease that were told: worker, epoch, rank and ranks.
fn places(commands: &[Command]) -> Vec<(WorkerId, u64, u32, u32)> {
    let places = commands.iter().filter_map(|command| match command {
        Command::Form { worker, epoch, rank, ranks, .. } => Some((*worker, *epoch, *rank, *ranks)),
        _ => None,
    });
    places.collect()
}

/// One trains; another one is prepared, and the group of both is formed. Then the first is silent, and given up.
fn lost(after: impl FnOnce(&mut Bench, WorkerId, LeaseId)) -> (Bench, [WorkerId; 2], LeaseId) {
    let mut bench = Bench::new();
    let plan = grouped(4, 100);
    bench.core.on_event(bench.now_ms, Event::Submitted { plan: Box::new(plan), gone: Vec::new() });
    let (first, commands) = bench.join(1);
    let lease = assigned(&commands)[0].2;
    bench.report((first, 1), lease, 0, 27);
    let (second, commands) = bench.join(2);
    assert_eq!(invited(&commands), [(second, lease)]);
    bench.core.on_worker(bench.now_ms, (second, 2), Event::Prepared { worker: second, lease });
    assert_eq!(places(&bench.settled()), [(first, 1, 0, 2), (second, 1, 1, 2)]);
    after(&mut bench, first, lease);
    let mut told = Vec::new();
    while bench.core.machine().info(first).is_some() {
        bench.now_ms += 500;
        bench.core.on_worker(bench.now_ms, (second, 2), Event::Heartbeat { worker: second, leases: vec![lease] });
        told.extend(bench.settled());
    }
    assert_eq!(places(&told), [(second, 2, 0, 1)], "the newcomer goes on alone, at the latest after ten seconds");
    (bench, [first, second], lease)
}

#[test]
fn a_newcomer_whose_only_fellow_never_heard_of_it_begins_anew_and_that_is_sound() {
    // Whoever trains cannot hear the coordinator: it goes on alone for a while, and is heard.
    let (mut bench, [first, second], lease) = lost(|bench, first, lease| bench.report((first, 1), lease, 0, 28));
    bench.report((first, 1), lease, 0, 29);
    bench.core.on_left(bench.now_ms, (first, 1), Gone::Link("reset".to_owned()));
    bench.report((second, 2), lease, 2, 1);
    bench.report((second, 2), lease, 2, 2);
    assert_eq!(bench.steps(), [27, 28, 1, 2], "late words of whoever was given up are told to nobody");
    assert_eq!(bench.found(), []);
}

#[test]
fn a_member_that_had_the_state_must_not_begin_anew() {
    let (mut bench, [_, second], lease) = lost(|bench, first, lease| bench.report((first, 1), lease, 1, 28));
    bench.report((second, 2), lease, 2, 1);
    assert_eq!(bench.found(), [Broken::StepTwice]);
    let (mut bench, [_, second], lease) = lost(|bench, first, lease| bench.report((first, 1), lease, 1, 28));
    bench.report((second, 2), lease, 2, 28);
    assert_eq!(bench.found(), []);
}
