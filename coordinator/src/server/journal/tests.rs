//! A journal is killed at every fact, snapshotted, cut, garbled and taken from other programs.

use std::collections::BTreeSet;

use graftwork_scheduler::{Event, Scheduler};
use graftwork_shared::id::Term;

use super::*;
use crate::server::tests::fixture::{Machine, assigned, info, key, result, small_plan};

/// Facts of a job that was trained, lost a worker, was published and cancelled.
fn facts() -> Vec<Fact> {
    let mut machine = Machine::new();
    let job = machine.submit(&small_plan());
    let (worker, commands) = machine.join(info(2));
    let work = assigned(&commands);
    machine.checkpoint((worker, work[0].2), 50);
    machine.checkpoint((worker, work[0].2), 60);
    machine.finish((worker, work[1].2), result("a", 100, 0.9));
    machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
    machine.apply(Event::Published { key: key(&job, "a"), release: "org/a".to_owned() });
    machine.apply(Event::Cancel { job, reason: "by the user".to_owned() });
    machine.facts
}

fn fold(facts: &[Fact]) -> State {
    let mut state = State::default();
    for fact in facts {
        state.fold(fact).unwrap();
    }
    state
}

fn write(opened: &mut Opened, facts: &[Fact]) {
    opened.write(&[Write::Facts(facts.to_vec())]).unwrap();
}

/// What kill -9 leaves: the files as they are while the writer still has them open.
fn killed(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

/// A journal with all facts, closed, and its file.
fn whole() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(folder.path()).unwrap();
    write(&mut opened, &facts());
    drop(opened);
    let path = folder.path().join("journal.sqlite");
    (folder, path)
}

fn sql(path: &Path, text: &str) {
    Connection::open(path).unwrap().execute_batch(text).unwrap();
}

fn error(folder: &tempfile::TempDir) -> JournalError {
    Opened::open(folder.path()).unwrap_err()
}

#[test]
fn killed_after_any_fact_it_folds_to_the_same_state() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(folder.path()).unwrap();
    let facts = facts();
    assert!(facts.len() >= 12);
    for (at, fact) in facts.iter().enumerate() {
        write(&mut opened, std::slice::from_ref(fact));
        let copy = killed(folder.path());
        let again = Opened::open(copy.path()).unwrap();
        assert_eq!((again.number, again.state), (at as u64 + 1, fold(&facts[..=at])));
    }
}

#[test]
fn a_snapshot_replaces_the_facts_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let facts = facts();
    let mut opened = Opened::open(folder.path()).unwrap();
    for (at, fact) in facts.iter().enumerate() {
        let state = Box::new(fold(&facts[..=at]));
        opened.write(&[Write::Facts(vec![fact.clone()]), Write::Snapshot(state)]).unwrap();
        let kept: i64 = opened.connection.query_row("SELECT count(*) FROM facts", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, 0);
        let again = Opened::open(killed(folder.path()).path()).unwrap();
        assert_eq!((again.number, again.state), (at as u64 + 1, fold(&facts[..=at])));
    }
}

#[test]
fn a_batch_is_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = Opened::open(folder.path()).unwrap();
    let facts = facts();
    write(&mut opened, &facts[..2]);
    sql(
        &opened.path,
        "CREATE TRIGGER full BEFORE INSERT ON facts WHEN new.number = 5 BEGIN SELECT RAISE(FAIL, 'full'); END",
    );
    assert!(opened.write(&[Write::Facts(facts[2..].to_vec())]).is_err());
    assert_eq!(Opened::open(killed(folder.path()).path()).unwrap().number, 2);
}

#[test]
fn a_truncated_journal_is_said_to_be_damaged() {
    for share in [0, 1, 2, 3] {
        let (folder, path) = whole();
        let length = fs::metadata(&path).unwrap().len();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length * share / 4).unwrap();
        let error = error(&folder);
        assert!(matches!(error, JournalError::Damaged { .. }), "{share}: {error}");
        assert!(error.to_string().contains("journal.sqlite is damaged"), "{error}");
    }
}

#[test]
fn garbled_bytes_never_pass_unseen() {
    let (folder, path) = whole();
    let bytes = fs::read(&path).unwrap();
    let state = Opened::open(folder.path()).unwrap().state;
    let mut messages = BTreeSet::new();
    for at in (0..bytes.len()).step_by(97) {
        let folder = tempfile::tempdir().unwrap();
        let mut garbled = bytes.clone();
        garbled[at] ^= 0x41;
        fs::write(folder.path().join("journal.sqlite"), garbled).unwrap();
        match Opened::open(folder.path()) {
            // A byte that nobody reads.
            Ok(opened) => assert_eq!(opened.state, state, "byte {at}"),
            Err(error) => drop(messages.insert(error.to_string())),
        }
    }
    assert!(messages.len() > 3, "{messages:?}");
}

#[test]
fn foreign_files_are_refused() {
    let (folder, path) = whole();
    fs::write(&path, "this is a text and not a database, however long it may be".repeat(100)).unwrap();
    assert!(matches!(error(&folder), JournalError::Foreign { .. }));
    fs::remove_file(&path).unwrap();
    sql(&path, "CREATE TABLE cookies (name TEXT)");
    assert!(matches!(error(&folder), JournalError::Foreign { .. }));
}

#[test]
fn newer_journals_are_refused_with_both_versions() {
    for (text, expected) in [
        ("PRAGMA user_version = 7", "tables of version 7, this one reads up to 1"),
        ("UPDATE facts SET version = 9 WHERE number = 4", "facts of version 9, this one reads up to 4"),
    ] {
        let (folder, path) = whole();
        sql(&path, text);
        let error = error(&folder).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn facts_that_are_missing_or_changed_are_named() {
    for (text, expected) in [
        ("DELETE FROM facts WHERE number = 3", "fact 3 is missing"),
        ("UPDATE facts SET fact = replace(fact, 'job', 'jab') WHERE number = 2", "the bytes of fact 2 changed"),
        ("UPDATE facts SET number = -number", "fact 1 is missing"),
    ] {
        let (folder, path) = whole();
        sql(&path, text);
        let error = error(&folder).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn the_thread_writes_in_groups_and_snapshots_bound_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let lock = Lock::take(folder.path()).unwrap().unwrap();
    let opened = Opened::open(folder.path()).unwrap();
    let (mut machine, first) = Scheduler::start(graftwork_scheduler::Policy::default(), State::default(), 0);
    let mut journal = Journal::start(opened, lock).unwrap();
    let mut last = journal.append(first.facts, machine.state());
    for turn in 0..3_000_u64 {
        let decision = machine.apply(turn, Event::WorkerJoined { session: turn, info: info(1), leases: Vec::new() });
        last = journal.append(decision.facts, machine.state());
        if turn % 100 == 0 {
            journal.durable.wait_for(|durable| durable.number >= last).await.unwrap();
        }
    }
    journal.durable.wait_for(|durable| durable.number == last).await.unwrap();
    assert!(Lock::take(folder.path()).unwrap().is_err(), "the lock is the thread's");
    tokio::task::spawn_blocking(move || journal.close()).await.unwrap();
    assert!(Lock::take(folder.path()).unwrap().is_ok());
    let again = Opened::open(folder.path()).unwrap();
    assert_eq!((again.number, again.state.term()), (last, Term(1)));
    assert!(again.since_snapshot < SNAPSHOT_FACTS);
    assert_eq!(&again.state, machine.state());
}
