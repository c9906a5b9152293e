//! The core alone: what waits, what goes out, and what counts for nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

#[path = "../../scheduler/tests/fixture/mod.rs"]
mod fixture;

use fixture::{info, plan, stage};
use graftwork_driver::{Core, Gone, Output, Timing};
use graftwork_scheduler::{Command, Event, Policy, Scheduler, State, WorkerInfo};
use graftwork_shared::{
    digest::Digest,
    id::{LeaseId, WorkerId},
};

/// A core whose journal is durable as far as a test says.
struct Bench {
    core: Core<&'static str>,
    written: u64,
    now_ms: u64,
}

impl Bench {
    fn new() -> Self {
        let (machine, first) = Scheduler::start(Policy::default(), State::default(), 0);
        Self { core: Core::new((machine, first), 1, 0, Timing { stop_ms: 1_000 }), written: 0, now_ms: 1 }
    }

    /// What goes out with the journal as it is; facts are counted.
    fn outputs(&mut self) -> Vec<Output<&'static str>> {
        let mut outputs = Vec::new();
        while let Some(output) = self.core.poll() {
            match output {
                Output::Write(facts) => self.written += facts.len() as u64,
                output => outputs.push(output),
            }
        }
        outputs
    }

    /// What goes out once everything is durable.
    fn settled(&mut self) -> Vec<Output<&'static str>> {
        let mut outputs = self.outputs();
        self.core.durable(self.written);
        outputs.extend(self.outputs());
        outputs
    }

    fn join(&mut self, session: u64) -> WorkerId {
        self.join_as(session, "key", vec![LeaseId(1)])
    }

    fn join_as(&mut self, session: u64, key: &str, leases: Vec<LeaseId>) -> WorkerId {
        let info = WorkerInfo { key: key.to_owned(), ..info(1) };
        let event = Event::WorkerJoined { session, info, leases };
        self.core.on_join(self.now_ms, (session, event));
        let welcomed = self.settled().into_iter().find_map(|output| match output {
            Output::Command(Command::Welcome { worker, .. }) => Some(worker),
            _ => None,
        });
        welcomed.unwrap()
    }

    /// A job of one stage, on the worker that joined over session 1.
    fn training() -> (Self, WorkerId) {
        let mut bench = Self::new();
        let plan = plan("one", vec![stage("a", &[], 100)]);
        let id = plan.id();
        bench.core.on_event(bench.now_ms, Event::Submitted { plan: Box::new(plan), gone: Vec::new() });
        let worker = bench.join(1);
        bench.core.on_event(bench.now_ms, Event::Reusable { key: fixture::key(&id, "a"), result: None });
        let assigned = |output: &Output<_>| matches!(output, Output::Command(Command::Assign { .. }));
        assert!(bench.settled().iter().any(assigned));
        (bench, worker)
    }

    fn checkpoint(&mut self, worker: WorkerId, session: u64, step: u64) -> Digest {
        let blob = Digest::of(&step.to_le_bytes());
        self.core.on_put("key".to_owned(), blob);
        let event = Event::Checkpointed { worker, lease: LeaseId(1), step, blob };
        self.core.on_worker(self.now_ms, (worker, session), event);
        blob
    }
}

fn accepted(outputs: &[Output<&'static str>]) -> Vec<u64> {
    let steps = outputs.iter().filter_map(|output| match output {
        Output::Command(Command::Accept { step, .. }) => Some(*step),
        _ => None,
    });
    steps.collect()
}

fn discarded(outputs: &[Output<&'static str>], wanted: Digest) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Command(Command::Discard { blob }) if *blob == wanted))
}

#[test]
fn nothing_is_said_before_its_facts_are_durable() {
    let (mut bench, worker) = Bench::training();
    bench.checkpoint(worker, 1, 20);
    bench.core.reply("seen");
    assert!(bench.outputs().is_empty());
    bench.core.durable(bench.written - 1);
    assert!(bench.outputs().is_empty(), "a part of a decision is none of it");
    let outputs = bench.settled();
    assert_eq!(accepted(&outputs), [20]);
    assert!(matches!(outputs.last(), Some(Output::Reply("seen"))), "answers keep their place: {outputs:?}");
}

#[test]
fn words_of_a_replaced_session_count_for_nothing() {
    let (mut bench, worker) = Bench::training();
    assert_eq!(bench.join(2), worker, "the same process");
    bench.checkpoint(worker, 1, 20);
    assert!(accepted(&bench.settled()).is_empty());
    bench.core.on_left(bench.now_ms, (worker, 1), Gone::Wrong("late".to_owned()));
    assert!(bench.core.is_open(worker, 2));
    bench.checkpoint(worker, 2, 20);
    assert_eq!(accepted(&bench.settled()), [20]);
}

#[test]
fn whoever_cannot_be_spoken_to_is_heard_of_in_its_turn() {
    let (mut bench, worker) = Bench::training();
    bench.core.on_unsaid((worker, 1), Gone::Wrong("it does not read".to_owned()));
    let outputs = bench.settled();
    assert!(matches!(outputs[0], Output::End(ended) if ended == worker), "{outputs:?}");
    assert!(bench.core.machine().info(worker).is_none());
}

#[test]
fn the_end_of_an_earlier_session_does_not_end_the_one_of_now() {
    // It was told before the next one was welcomed, or after.
    for told_first in [true, false] {
        let (mut bench, worker) = Bench::training();
        let gone = || Gone::Link("it left before it was welcomed".to_owned());
        if told_first {
            bench.core.on_unsaid((worker, 1), gone());
        }
        assert_eq!(bench.join(2), worker, "the same process");
        if !told_first {
            bench.core.on_unsaid((worker, 1), gone());
        }
        bench.settled();
        assert!(bench.core.is_open(worker, 2) && bench.core.machine().info(worker).is_some(), "{told_first}");
        bench.checkpoint(worker, 2, 20);
        assert_eq!(accepted(&bench.settled()), [20], "{told_first}");
    }
}

#[test]
fn a_blob_stays_while_a_fact_on_the_disk_refers_to_it() {
    let (mut bench, worker) = Bench::training();
    let first = bench.checkpoint(worker, 1, 20);
    bench.outputs();
    let with_first = bench.written;
    bench.checkpoint(worker, 1, 40);
    bench.outputs();
    // The disk knows the first checkpoint alone, the scheduler the second one alone.
    bench.core.durable(with_first);
    let outputs = bench.outputs();
    assert_eq!(accepted(&outputs), [20]);
    assert!(!discarded(&outputs, first), "a crash now would miss it");
    let outputs = bench.settled();
    assert_eq!(accepted(&outputs), [40]);
    assert!(discarded(&outputs, first));
}

#[test]
fn pins_end_with_a_worker_that_never_spoke_of_its_blobs() {
    let (mut bench, worker) = Bench::training();
    let blob = Digest::of(b"never spoken of");
    bench.core.on_put("key".to_owned(), blob);
    bench.core.on_left(bench.now_ms, (worker, 1), Gone::Wrong("it lied".to_owned()));
    let outputs = bench.settled();
    assert!(outputs.iter().any(|output| matches!(output, Output::Unpin(of) if *of == blob)), "{outputs:?}");
    assert!(discarded(&outputs, blob));
}

fn gives_up(outputs: &[Output<&'static str>]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Command(Command::Disconnect { .. })))
}

#[test]
fn a_core_that_heard_nothing_blames_itself_and_silence_counts_from_then_on() {
    let (mut bench, worker) = Bench::training();
    let other = bench.join_as(2, "another", Vec::new());
    bench.now_ms += 60_000;
    bench.core.tick(bench.now_ms);
    assert!(!gives_up(&bench.settled()), "nobody listened for a minute");
    let second = |bench: &mut Bench| {
        bench.now_ms += 1_000;
        bench.core.on_worker(bench.now_ms, (other, 2), Event::Heartbeat { worker: other, leases: Vec::new() });
        bench.core.tick(bench.now_ms);
    };
    for _ in 0..9 {
        second(&mut bench);
    }
    assert!(!gives_up(&bench.settled()));
    bench.core.on_worker(bench.now_ms, (worker, 1), Event::Heartbeat { worker, leases: vec![LeaseId(1)] });
    for _ in 0..10 {
        assert!(!gives_up(&bench.settled()));
        second(&mut bench);
    }
    assert!(gives_up(&bench.settled()), "it was silent, and somebody listened");
}

#[test]
fn a_core_wants_to_know_the_time_while_there_are_workers() {
    let mut bench = Bench::new();
    assert_eq!(bench.core.next_deadline(), None);
    bench.join(1);
    assert_eq!(bench.core.next_deadline(), Some(bench.now_ms + 500));
}

#[test]
fn a_core_that_stops_leaves_workers_their_work_and_waits_for_none() {
    let (mut bench, worker) = Bench::training();
    bench.core.stop(bench.now_ms, "stopped".to_owned());
    let outputs = bench.settled();
    assert!(!outputs.iter().any(|output| matches!(output, Output::Command(Command::Drain { .. }))), "{outputs:?}");
    assert!(bench.core.has_stopped(bench.now_ms));
    assert!(bench.core.machine().holds(worker, LeaseId(1)).is_some());
}
