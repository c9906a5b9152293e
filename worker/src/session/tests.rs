//! Scripted coordinators against the session's state machine, and a real one over a socket against its shell.

use graftwork_proto::{CoordinatorEnvelope, CoordinatorMessage, Formation, WorkerMessage};
use graftwork_shared::{
    adapter::AdapterConfig,
    assignment::{Assignment, Blame, Evaluation, Failure, Holdings, StageResult, Usage},
    data::{Columns, SplitManifest, TextColumns},
    digest::Digest,
    head::{Head, HeadOutput},
    id::{JobId, LeaseId, Term, WorkerId},
    metric::Metric,
    recipe::{Method, NumericClass, Recipe},
    training::Training,
};

use super::machine::{Command, Event, Exit, Machine, StageEvent};

fn manifest() -> SplitManifest {
    SplitManifest { files: Vec::new(), rule: None, limit: None, rows: 0 }
}

pub(super) fn assignment() -> Box<Assignment> {
    let recipe = Recipe {
        numerics_version: graftwork_shared::NUMERICS_VERSION,
        base_model: Digest::of(b"base"),
        method: Method::Adapter(AdapterConfig::preset("seq_bn").unwrap()),
        head: Head::new(HeadOutput::Regression),
        metric: Metric::Spearman,
        training: Training::default(),
        columns: Columns { text: TextColumns::One("text".to_owned()), label: "label".to_owned() },
        train: manifest().content(),
        validation: manifest().content(),
        test: None,
        skip_layers: Vec::new(),
    };
    Box::new(Assignment {
        job: JobId::of(&Digest::of(b"job")),
        stage: "stage".parse().unwrap(),
        attempt: 0,
        recipe,
        base_model: "/nowhere/at/all".to_owned(),
        train: manifest(),
        validation: manifest(),
        test: None,
        adapters: Vec::new(),
        resume: None,
        until: None,
        data_credentials: None,
        base_model_credentials: None,
    })
}

fn result(steps: u64) -> Box<StageResult> {
    let text = |text: &str| text.to_owned();
    Box::new(StageResult {
        weights: Digest::of(b"weights"),
        steps,
        best_step: steps,
        validation: Vec::new(),
        scores: [].into(),
        predictions: [].into(),
        data: [].into(),
        epochs: Vec::new(),
        attention: Vec::new(),
        trained_parameters: 1,
        numeric_class: NumericClass {
            device: text("cpu"),
            instructions: text("x"),
            libtorch: text("2"),
            vendor: text("y"),
        },
        usage: Usage::default(),
        peak: None,
    })
}

fn from_coordinator(term: u64, message: CoordinatorMessage) -> Event {
    Event::Message(CoordinatorEnvelope { term: Term(term), trace: "trace".to_owned(), message })
}

fn welcome(term: u64) -> Event {
    from_coordinator(term, CoordinatorMessage::Welcome { worker: WorkerId(7), heartbeat_ms: 500 })
}

fn assign(term: u64, lease: u64) -> Event {
    from_coordinator(
        term,
        CoordinatorMessage::Assign { lease: LeaseId(lease), assignment: assignment(), joining: false },
    )
}

fn accepted(term: u64, lease: u64, step: u64) -> Event {
    from_coordinator(term, CoordinatorMessage::Accepted(LeaseId(lease), step))
}

fn fenced(term: u64, lease: u64) -> Event {
    from_coordinator(term, CoordinatorMessage::Fenced(LeaseId(lease)))
}

fn release(term: u64, lease: u64) -> Event {
    from_coordinator(term, CoordinatorMessage::Release(LeaseId(lease), "make room".to_owned()))
}

fn uploaded(lease: u64, step: u64) -> Event {
    Event::Stage(LeaseId(lease), StageEvent::Uploaded(step, blob()))
}

fn blob() -> Digest {
    Digest::of(b"checkpoint")
}

/// What is said, with the terms, and what else is to be done.
fn split(commands: Vec<Command>) -> (Vec<(u64, WorkerMessage)>, Vec<Command>) {
    let mut said = Vec::new();
    let mut rest = Vec::new();
    for command in commands {
        match command {
            Command::Say(envelope) => said.push((envelope.term.0, envelope.message)),
            other => rest.push(other),
        }
    }
    (said, rest)
}

fn working(slots: u32) -> Machine {
    let mut machine = Machine::new(slots, "trace".to_owned());
    assert_eq!(machine.apply(welcome(3)), [Command::BeatEvery(500)]);
    let started = machine.apply(assign(3, 1));
    assert!(matches!(started.as_slice(), [Command::Start { lease: LeaseId(1), .. }]));
    machine
}

#[test]
fn a_checkpoint_counts_when_it_is_accepted() {
    let mut machine = working(1);
    let (said, rest) = split(machine.apply(uploaded(1, 50)));
    assert_eq!((said, rest), (vec![(3, WorkerMessage::Checkpoint(LeaseId(1), 50, blob()))], vec![]));
    assert_eq!(machine.apply(accepted(3, 1, 49)), []);
    assert_eq!(machine.apply(accepted(3, 1, 50)), [Command::Acknowledge(LeaseId(1), 50)]);
    assert_eq!(machine.apply(accepted(3, 1, 50)), []);
}

#[test]
fn a_result_is_held_until_it_is_accepted() {
    let mut machine = working(1);
    let (said, _) = split(machine.apply(Event::Stage(LeaseId(1), StageEvent::Finished(result(90)))));
    assert!(matches!(said.as_slice(), [(3, WorkerMessage::Finished(LeaseId(1), _))]));
    assert_eq!(machine.leases(), [LeaseId(1)]);
    assert_eq!(machine.apply(accepted(3, 1, 90)), []);
    assert!(machine.leases().is_empty());
}

#[test]
fn the_scores_of_a_paused_trial_are_held_until_they_are_accepted() {
    let mut machine = working(1);
    let scores = Evaluation { step: 25, loss: 0.5, metrics: [(Metric::F1, 0.75)].into() };
    machine.apply(Event::Lost);
    let paused = StageEvent::Paused(Box::new(scores.clone()), false);
    assert_eq!(machine.apply(Event::Stage(LeaseId(1), paused)), []);
    machine.apply(welcome(3));
    let (said, _) = split(machine.apply(Event::Beat));
    assert_eq!(said[1..], [(3, WorkerMessage::Paused(LeaseId(1), scores, false))]);
    assert_eq!(machine.apply(accepted(3, 1, 24)), []);
    assert_eq!(machine.leases(), [LeaseId(1)]);
    assert_eq!(machine.apply(accepted(3, 1, 25)), []);
    assert!(machine.leases().is_empty());
}

#[test]
fn a_worker_trains_until_its_stages_end_whoever_can_hear_it() {
    let mut machine = working(2);
    machine.apply(assign(3, 2));
    machine.apply(Event::Lost);
    machine.apply(Event::Stage(LeaseId(1), StageEvent::Finished(result(90))));
    assert!(machine.trains(), "the other one goes on");
    machine.apply(uploaded(2, 50));
    assert!(machine.trains(), "a checkpoint is not its end");
    let failure = Failure { blame: Blame::Machine, message: "broken".to_owned() };
    machine.apply(Event::Stage(LeaseId(2), StageEvent::Failed(failure)));
    assert!(!machine.trains());
    assert_eq!(machine.leases(), [LeaseId(1), LeaseId(2)], "what nobody heard is still to be said");
}

#[test]
fn fenced_work_is_dropped_and_never_spoken_of_again() {
    let mut machine = working(1);
    machine.apply(uploaded(1, 50));
    assert_eq!(machine.apply(fenced(3, 1)), [Command::Abandon(LeaseId(1))]);
    for late in [
        accepted(3, 1, 50),
        uploaded(1, 60),
        release(3, 1),
        fenced(3, 1),
        Event::Stage(LeaseId(1), StageEvent::Finished(result(90))),
        Event::Stage(LeaseId(1), StageEvent::Stopped),
    ] {
        assert_eq!(machine.apply(late), []);
    }
    assert!(machine.leases().is_empty());
}

#[test]
fn messages_of_an_older_term_are_refused() {
    let mut machine = working(2);
    assert_eq!(machine.apply(assign(2, 5)), []);
    assert_eq!(machine.apply(fenced(2, 1)), []);
    assert_eq!(machine.leases(), [LeaseId(1)]);
    machine.apply(Event::Lost);
    assert!(matches!(machine.apply(welcome(2)).as_slice(), [Command::HangUp(_)]));
    assert!(!machine.is_welcome());
    assert_eq!(machine.leases(), [LeaseId(1)]);
}

#[test]
fn nothing_is_obeyed_before_a_welcome() {
    let mut machine = Machine::new(1, "trace".to_owned());
    assert!(matches!(machine.apply(assign(3, 1)).as_slice(), [Command::HangUp(_)]));
    let mut machine = working(2);
    assert!(matches!(machine.apply(assign(4, 2)).as_slice(), [Command::HangUp(_)]));
    assert_eq!(machine.leases(), [LeaseId(1)]);
}

#[test]
fn release_during_a_checkpoint_lets_it_be_accepted() {
    let mut machine = working(1);
    machine.apply(uploaded(1, 50));
    assert_eq!(machine.apply(release(3, 1)), [Command::Interrupt(LeaseId(1))]);
    assert_eq!(machine.apply(accepted(3, 1, 50)), [Command::Acknowledge(LeaseId(1), 50)]);
    let (said, rest) = split(machine.apply(Event::Stage(LeaseId(1), StageEvent::Stopped)));
    assert_eq!((said, rest), (vec![(3, WorkerMessage::Released(LeaseId(1)))], vec![]));
    assert!(machine.leases().is_empty());
}

#[test]
fn what_an_attempt_cost_is_told_at_once_and_again_with_a_last_word_that_nobody_heard() {
    let mut machine = working(1);
    let spent = |core_seconds| Usage { core_seconds, ..Usage::default() };
    let (said, _) = split(machine.apply(Event::Stage(LeaseId(1), StageEvent::Spent(spent(1.0)))));
    assert_eq!(said, [(3, WorkerMessage::Spent(LeaseId(1), spent(1.0)))]);
    machine.apply(Event::Lost);
    assert_eq!(machine.apply(Event::Stage(LeaseId(1), StageEvent::Spent(spent(2.0)))), []);
    let failure = Failure { blame: Blame::Machine, message: "broken".to_owned() };
    assert_eq!(machine.apply(Event::Stage(LeaseId(1), StageEvent::Failed(failure.clone()))), []);
    machine.apply(welcome(4));
    let (said, _) = split(machine.apply(Event::Beat));
    let spent = (4, WorkerMessage::Spent(LeaseId(1), spent(2.0)));
    assert_eq!(said[1..], [spent, (4, WorkerMessage::Failed(LeaseId(1), failure))]);
}

#[test]
fn work_goes_on_without_a_link_and_is_told_after_the_next_welcome() {
    let mut machine = working(3);
    machine.apply(assign(3, 2));
    machine.apply(assign(3, 4));
    machine.apply(uploaded(1, 50));
    assert_eq!(machine.apply(Event::Lost), []);
    assert_eq!(machine.apply(Event::Beat), []);
    let failure = Failure { blame: Blame::Machine, message: "broken".to_owned() };
    assert_eq!(machine.apply(Event::Stage(LeaseId(2), StageEvent::Failed(failure.clone()))), []);
    assert_eq!(machine.apply(Event::Stage(LeaseId(4), StageEvent::Finished(result(9)))), []);
    let (said, rest) = split(machine.apply(welcome(4)));
    assert_eq!(rest, [Command::BeatEvery(500)]);
    let heartbeat = (4, WorkerMessage::Heartbeat(vec![LeaseId(1), LeaseId(2), LeaseId(4)]));
    assert_eq!(said, std::slice::from_ref(&heartbeat));
    let (said, _) = split(machine.apply(Event::Beat));
    let expected = vec![
        heartbeat,
        (4, WorkerMessage::Checkpoint(LeaseId(1), 50, blob())),
        (4, WorkerMessage::Failed(LeaseId(2), failure)),
        (4, WorkerMessage::Finished(LeaseId(4), *result(9))),
    ];
    assert_eq!(said, expected);
    assert_eq!(machine.leases(), [LeaseId(1), LeaseId(4)]);
    assert_eq!(machine.apply(fenced(4, 1)), [Command::Abandon(LeaseId(1))]);
    assert_eq!(split(machine.apply(Event::Beat)).0, [(4, WorkerMessage::Heartbeat(vec![LeaseId(4)]))]);
}

#[test]
fn what_was_fenced_after_a_welcome_is_not_said_again() {
    let mut machine = working(1);
    machine.apply(uploaded(1, 50));
    machine.apply(Event::Lost);
    machine.apply(welcome(4));
    assert_eq!(machine.apply(fenced(4, 1)), [Command::Abandon(LeaseId(1))]);
    assert_eq!(split(machine.apply(Event::Beat)).0, [(4, WorkerMessage::Heartbeat(vec![]))]);
}

#[test]
fn a_draining_worker_takes_no_work_and_leaves_when_it_holds_none() {
    let mut machine = working(2);
    let drain = from_coordinator(3, CoordinatorMessage::Drain("upgrade".to_owned()));
    assert_eq!(machine.apply(drain), [Command::Interrupt(LeaseId(1))]);
    let (said, _) = split(machine.apply(assign(3, 2)));
    assert_eq!(said, [(3, WorkerMessage::Released(LeaseId(2)))]);
    let (said, rest) = split(machine.apply(Event::Stage(LeaseId(1), StageEvent::Stopped)));
    assert_eq!(said, [(3, WorkerMessage::Released(LeaseId(1)))]);
    assert_eq!(rest, [Command::Exit(Exit::Left("upgrade".to_owned()))]);
}

#[test]
fn a_stopped_worker_without_a_link_leaves_at_once() {
    let mut machine = working(1);
    machine.apply(Event::Lost);
    let commands = machine.apply(Event::Stop("SIGTERM".to_owned()));
    assert_eq!(commands, [Command::Abandon(LeaseId(1)), Command::Exit(Exit::Left("SIGTERM".to_owned()))]);
    let mut machine = working(1);
    machine.apply(Event::Stop("SIGTERM".to_owned()));
    let commands = machine.apply(Event::Lost);
    assert_eq!(commands, [Command::Abandon(LeaseId(1)), Command::Exit(Exit::Left("SIGTERM".to_owned()))]);
}

#[test]
fn a_stopped_worker_says_that_it_leaves_before_it_gives_anything_back() {
    let mut machine = working(1);
    let (said, rest) = split(machine.apply(Event::Stop("SIGTERM".to_owned())));
    assert_eq!(said, [(3, WorkerMessage::Leaving("SIGTERM".to_owned()))]);
    assert_eq!(rest, [Command::Interrupt(LeaseId(1))]);
    let (said, rest) = split(machine.apply(Event::Stage(LeaseId(1), StageEvent::Stopped)));
    assert_eq!(said, [(3, WorkerMessage::Released(LeaseId(1)))]);
    assert_eq!(rest, [Command::Exit(Exit::Left("SIGTERM".to_owned()))]);
}

#[test]
fn what_a_worker_holds_is_said_when_it_changes() {
    let mut machine = working(1);
    let holdings = Holdings { base_models: [Digest::of(b"base")].into(), ..Holdings::default() };
    let word = WorkerMessage::Holds(holdings.clone());
    assert_eq!(split(machine.apply(Event::Holds(holdings.clone()))).0, [(3, word.clone())]);
    assert!(machine.apply(Event::Holds(holdings)).is_empty(), "nothing has changed");
    // The next hello says it.
    machine.apply(Event::Lost);
    assert!(machine.apply(Event::Holds(Holdings::default())).is_empty(), "nobody listens");
    assert!(machine.holdings().is_empty());
}

#[test]
fn more_work_than_slots_is_refused() {
    let mut machine = working(1);
    let (said, _) = split(machine.apply(assign(3, 2)));
    assert!(matches!(said.as_slice(), [(3, WorkerMessage::Failed(LeaseId(2), Failure { blame: Blame::Machine, .. }))]));
    assert_eq!(machine.apply(assign(3, 1)), []);
    assert_eq!(machine.leases(), [LeaseId(1)]);
}

#[test]
fn a_refused_worker_ends_and_one_that_holds_work_trains_on_and_asks_again() {
    let refused = || from_coordinator(1, CoordinatorMessage::Refused("version 2".to_owned()));
    let mut machine = working(1);
    machine.apply(Event::Lost);
    assert_eq!(machine.apply(refused()), [Command::HangUp("version 2".to_owned())]);
    assert_eq!(machine.leases(), [LeaseId(1)]);
    let mut idle = Machine::new(1, "trace".to_owned());
    assert_eq!(idle.apply(refused()), [Command::Exit(Exit::Refused("version 2".to_owned()))]);
}

#[test]
fn whoever_waits_for_its_fellows_says_so_while_there_is_a_link_and_keeps_nothing_of_it() {
    let mut machine = working(1);
    let waits = || Event::Stage(LeaseId(1), StageEvent::Waits(2, 30));
    assert_eq!(split(machine.apply(waits())), (vec![(3, WorkerMessage::Waits(LeaseId(1), 2, 30))], vec![]));
    machine.apply(Event::Lost);
    assert_eq!(machine.apply(waits()), []);
    machine.apply(welcome(3));
    assert_eq!(split(machine.apply(Event::Beat)).0, [(3, WorkerMessage::Heartbeat(vec![LeaseId(1)]))]);
    machine.apply(fenced(3, 1));
    assert_eq!(machine.apply(waits()), []);
}

#[test]
fn heartbeats_list_what_is_held() {
    let mut machine = working(2);
    machine.apply(assign(3, 9));
    let (said, _) = split(machine.apply(Event::Beat));
    assert_eq!(said, [(3, WorkerMessage::Heartbeat(vec![LeaseId(1), LeaseId(9)]))]);
}

#[test]
fn a_formation_reaches_its_stage_and_words_about_a_group_are_said_until_it_comes() {
    let mut machine = working(1);
    let form = |epoch| {
        let formation = Formation { epoch, rank: 1, ranks: 2, ..Formation::ALONE };
        let told = CoordinatorMessage::Form(LeaseId(1), formation.clone());
        (from_coordinator(3, told), Command::Form(LeaseId(1), formation))
    };
    let (told, passed) = form(1);
    assert_eq!(machine.apply(told), [passed]);
    let broken = || Event::Stage(LeaseId(1), StageEvent::Broken(1, "rank 0 is gone".to_owned()));
    let word = WorkerMessage::Broken(LeaseId(1), 1, "rank 0 is gone".to_owned());
    // Said on a link that breaks: nobody may have heard it, nor on the next one.
    assert_eq!(split(machine.apply(broken())), (vec![(3, word.clone())], vec![]));
    for _ in 0..2 {
        machine.apply(Event::Lost);
        machine.apply(welcome(3));
        let (said, _) = split(machine.apply(Event::Beat));
        let said: Vec<_> = said.into_iter().map(|(_, word)| word).collect();
        assert_eq!(said, [WorkerMessage::Heartbeat(vec![LeaseId(1)]), word.clone()]);
    }
    // The place of now, told again, is no answer; the next one is.
    for (epoch, still) in [(1, 1), (2, 0)] {
        machine.apply(form(epoch).0);
        machine.apply(Event::Lost);
        machine.apply(welcome(3));
        let (said, _) = split(machine.apply(Event::Beat));
        assert_eq!(said.len(), 1 + still, "{said:?}");
    }
    machine.apply(fenced(3, 1));
    assert_eq!(machine.apply(form(3).0), [], "it is nobody's stage any more");
}
