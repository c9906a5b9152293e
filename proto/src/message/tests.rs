//! What is said survives the wire, and what cannot be is named.

use super::*;

fn class() -> NumericClass {
    let text = |s: &str| s.to_owned();
    NumericClass { device: text("cpu"), instructions: text("avx2"), libtorch: text("2.11.0"), vendor: text("x") }
}

fn hello() -> Hello {
    Hello {
        version: "0.1.0".to_owned(),
        host: "here".to_owned(),
        pid: 1,
        threads: 2,
        slots: 2,
        memory_bytes: 1 << 30,
        numeric_class: class(),
        key: "key".to_owned(),
        leases: vec![LeaseId(5)],
        reached_on: "here".to_owned(),
        numerics_version: 2,
        exchange: 3,
        holdings: Holdings { rows: [Digest::of(b"r")].into(), ..Holdings::default() },
    }
}

#[test]
fn messages_survive_the_wire() {
    let failure = Failure { blame: graftwork_shared::assignment::Blame::User, message: "no".to_owned() };
    let scores = Evaluation { step: 7, loss: 0.25, metrics: [(graftwork_shared::metric::Metric::F1, 0.5)].into() };
    let messages = [
        WorkerMessage::Hello(hello()),
        WorkerMessage::Heartbeat(vec![LeaseId(3), LeaseId(4)]),
        WorkerMessage::Probe { number: 3, round_trip_ms: 250 },
        WorkerMessage::Checkpoint(LeaseId(3), 50, Digest::of(b"x")),
        WorkerMessage::Failed(LeaseId(3), failure),
        WorkerMessage::Released(LeaseId(3)),
        WorkerMessage::Leaving("SIGTERM".to_owned()),
        WorkerMessage::Paused(LeaseId(3), scores, true),
        WorkerMessage::Holds(Holdings { base_models: [Digest::of(b"m")].into(), rows: [Digest::of(b"r")].into() }),
        WorkerMessage::Prepared(LeaseId(3)),
        WorkerMessage::Broken(LeaseId(3), 2, "rank 1 is gone".to_owned()),
        WorkerMessage::Waits(LeaseId(3), 2, 50),
        WorkerMessage::Spent(LeaseId(3), Usage { core_seconds: 1.5, tokens: 7, ..Usage::default() }),
    ];
    for message in messages {
        let envelope = WorkerEnvelope { term: Term(7), trace: "t".to_owned(), message };
        let wire = v1::WorkerMessage::from(envelope.clone());
        assert_eq!(WorkerEnvelope::try_from(wire).unwrap(), envelope);
    }
}

#[test]
fn an_echo_survives_the_wire() {
    let envelope = CoordinatorEnvelope { term: Term(7), trace: String::new(), message: CoordinatorMessage::Echo(3) };
    let wire = v1::CoordinatorMessage::from(envelope.clone());
    assert_eq!(CoordinatorEnvelope::try_from(wire).unwrap(), envelope);
}

#[test]
fn a_worker_that_says_it_holds_more_than_anybody_could_is_refused() {
    let rows = vec![Digest::of(b"r").to_string(); Holdings::MOST + 1];
    let message = Some(v1::worker_message::Message::Holds(v1::Holds { rows, ..v1::Holds::default() }));
    let error = WorkerEnvelope::try_from(v1::WorkerMessage { message, ..v1::WorkerMessage::default() }).unwrap_err();
    assert_eq!(error.to_string(), "holds.rows: 4097 digests, but a worker says at most 4096");
}

#[test]
fn a_rank_outside_its_group_is_refused() {
    let form = |rank| {
        let formation = Formation { rank, ranks: 2, shares: vec![3, 1], ..Formation::ALONE };
        let message = CoordinatorMessage::Form(LeaseId(3), formation);
        CoordinatorEnvelope { term: Term(7), trace: String::new(), message }
    };
    let known = form(1);
    assert_eq!(CoordinatorEnvelope::try_from(v1::CoordinatorMessage::from(known.clone())).unwrap(), known);
    let error = CoordinatorEnvelope::try_from(v1::CoordinatorMessage::from(form(2))).unwrap_err().to_string();
    assert_eq!(error, "form.rank: 2, but the group has 2 members");
    for shares in [vec![1], vec![0, 0], vec![1, 2, 3]] {
        let formation = Formation { ranks: 2, shares, ..Formation::ALONE };
        let message = CoordinatorMessage::Form(LeaseId(3), formation);
        let wire = CoordinatorEnvelope { term: Term(7), trace: String::new(), message };
        let error = CoordinatorEnvelope::try_from(v1::CoordinatorMessage::from(wire)).unwrap_err().to_string();
        assert!(error.starts_with("form.shares: ["), "{error}");
    }
}

#[test]
fn a_wrong_field_is_named() {
    let mut wire = v1::WorkerMessage::from(WorkerEnvelope {
        term: Term(1),
        trace: String::new(),
        message: WorkerMessage::Checkpoint(LeaseId(1), 2, Digest::of(b"x")),
    });
    if let Some(v1::worker_message::Message::Checkpoint(checkpoint)) = &mut wire.message {
        checkpoint.blob = "short".to_owned();
    }
    let error = WorkerEnvelope::try_from(wire).unwrap_err().to_string();
    assert!(error.starts_with("checkpoint.blob: "), "{error}");
}

#[test]
fn a_worker_without_threads_is_refused() {
    let mut hello = hello();
    hello.threads = 0;
    let message = WorkerMessage::Hello(hello);
    let wire = v1::WorkerMessage::from(WorkerEnvelope { term: Term(0), trace: String::new(), message });
    assert!(WorkerEnvelope::try_from(wire).unwrap_err().to_string().starts_with("hello.threads"));
}

#[test]
fn a_kind_of_message_that_is_not_known_is_read_as_none() {
    use prost::Message as _;
    let known = v1::CoordinatorMessage { term: 7, trace: String::new(), message: None };
    // Field 99, of two bytes: `(99 << 3) | 2` as a varint, the length, and the bytes.
    let bytes = [known.encode_to_vec(), vec![0x9a, 0x06, 2, 1, 2]].concat();
    assert_eq!(v1::CoordinatorMessage::decode(bytes.as_slice()).unwrap(), known);
}
