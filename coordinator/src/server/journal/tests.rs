//! A journal is killed at every fact, snapshotted, cut, garbled and taken from other programs. Over PostgreSQL where
//! `scripts/servers.py` started a server, over SQLite otherwise; what files alone can suffer lies in `file.rs`.

mod file;
mod leadership;
mod moving;

use graftwork_scheduler::{Event, FACT_VERSION, Scheduler};

use super::*;
use crate::server::tests::{
    fixture::{Machine, assigned, info, key, result, small_plan},
    servers,
};

/// Long enough that no lead ends while a test runs.
const LEASE_MS: u64 = 60_000;

/// A journal of its own.
enum Place {
    File(tempfile::TempDir),
    Database(Database),
}

impl Place {
    fn new() -> Self {
        servers::database().map_or_else(|| Self::File(tempfile::tempdir().unwrap()), Self::Database)
    }

    fn lead(&self) -> Opened {
        match self {
            Self::File(folder) => Opened::lead_folder(folder.path()).unwrap(),
            Self::Database(database) => {
                let folder = tempfile::tempdir().unwrap();
                Opened::lead_database(servers::leadership(database, LEASE_MS), String::new(), folder.path()).unwrap()
            }
        }
    }

    /// What another process reads, as after a kill -9 of the leader.
    fn read(&self) -> Result<Opened, JournalError> {
        match self {
            Self::File(folder) => Opened::read_folder(killed(folder.path()).path()),
            Self::Database(database) => {
                let ledger = Postgres::open(servers::leadership(database, LEASE_MS), String::new())?;
                Opened::read(Box::new(ledger))
            }
        }
    }

    fn sql(&self, text: &str) {
        match self {
            Self::File(folder) => {
                rusqlite::Connection::open(sqlite::path(folder.path())).unwrap().execute_batch(text).unwrap();
            }
            Self::Database(database) => servers::run(database, &format!("SET search_path = graftwork; {text}")),
        }
    }

    fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// With all facts, closed.
    fn whole() -> Self {
        let place = Self::new();
        write(&mut place.lead(), &facts());
        place
    }
}

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
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

#[test]
fn killed_after_any_fact_it_folds_to_the_same_state() {
    let place = Place::new();
    let mut opened = place.lead();
    let facts = facts();
    assert!(facts.len() >= 12);
    for (at, fact) in facts.iter().enumerate() {
        write(&mut opened, std::slice::from_ref(fact));
        let again = place.read().unwrap();
        assert_eq!((again.number, again.state), (at as u64 + 1, fold(&facts[..=at])));
    }
}

#[test]
fn a_snapshot_replaces_the_facts_before_it() {
    let place = Place::new();
    let facts = facts();
    let mut opened = place.lead();
    for (at, fact) in facts.iter().enumerate() {
        let state = Box::new(fold(&facts[..=at]));
        opened.write(&[Write::Facts(vec![fact.clone()]), Write::Snapshot(state)]).unwrap();
        assert_eq!(opened.ledger.read().unwrap().facts.len(), 0);
        let again = place.read().unwrap();
        assert_eq!((again.number, again.state), (at as u64 + 1, fold(&facts[..=at])));
    }
    let (before, after) = facts.split_at(4);
    let place = Place::new();
    let mut opened = place.lead();
    write(&mut opened, &before[..2]);
    let snapshot = Write::Snapshot(Box::new(fold(before)));
    opened.write(&[Write::Facts(before[2..].to_vec()), snapshot, Write::Facts(after.to_vec())]).unwrap();
    assert_eq!(opened.since_snapshot, after.len() as u64);
    let again = place.read().unwrap();
    assert_eq!((again.number, again.since_snapshot), (facts.len() as u64, after.len() as u64));
    assert_eq!(again.state, fold(&facts));
}

#[test]
fn a_batch_is_all_or_nothing() {
    let place = Place::new();
    let mut opened = place.lead();
    let facts = facts();
    write(&mut opened, &facts[..2]);
    place.sql(if place.is_file() {
        "CREATE TRIGGER full BEFORE INSERT ON facts WHEN new.number = 5 BEGIN SELECT RAISE(FAIL, 'full'); END"
    } else {
        "ALTER TABLE facts ADD CONSTRAINT stop CHECK (number <> 5)"
    });
    assert!(opened.write(&[Write::Facts(facts[2..].to_vec())]).is_err());
    assert_eq!(place.read().unwrap().number, 2);
}

#[test]
fn newer_journals_are_refused_with_both_versions() {
    let place = Place::whole();
    place.sql("UPDATE facts SET version = 9 WHERE number = 4");
    let error = place.read().unwrap_err().to_string();
    let reads = format!("facts of version 9, this one reads up to {FACT_VERSION}");
    assert!(error.contains(&reads), "{error}");
    let place = Place::whole();
    let (newer, known) =
        if place.is_file() { ("PRAGMA user_version = 7", 2) } else { ("UPDATE mark SET tables = 7", 1) };
    place.sql(newer);
    let error = place.read().unwrap_err().to_string();
    assert!(error.contains(&format!("tables of version 7, this one reads up to {known}")), "{error}");
}

#[test]
fn facts_that_are_missing_or_changed_are_named() {
    for (text, expected) in [
        ("DELETE FROM facts WHERE number = 3", "fact 3 is missing"),
        ("UPDATE facts SET fact = replace(fact, 'job', 'jab') WHERE number = 2", "the bytes of fact 2 changed"),
        ("UPDATE facts SET number = -number", "fact 1 is missing"),
        ("DROP TABLE facts", "facts"),
    ] {
        let place = Place::whole();
        place.sql(text);
        let error = place.read().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn coordinators_that_ended_before_their_first_fact_leave_no_hole_in_the_terms() {
    let place = Place::new();
    for term in 1..4 {
        let mut opened = place.lead();
        assert_eq!(opened.state.term(), Term(term - 1));
        opened.ledger.resign();
    }
    let mut opened = place.lead();
    assert_eq!(opened.state.term(), Term(3));
    let (machine, first) = Scheduler::start(graftwork_scheduler::Policy::default(), opened.state.clone(), 0);
    write(&mut opened, &first.facts);
    assert_eq!((machine.state().term(), place.read().unwrap().state.term()), (Term(4), Term(4)));
}

#[tokio::test]
async fn the_thread_writes_in_groups_and_snapshots_bound_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let lock = Lock::take(folder.path()).unwrap().unwrap();
    let place = Arc::new(Place::new());
    let leading = Arc::clone(&place);
    let opened = tokio::task::spawn_blocking(move || leading.lead()).await.unwrap();
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
    let again = tokio::task::spawn_blocking(move || place.read().unwrap()).await.unwrap();
    assert_eq!((again.number, again.state.term()), (last, Term(1)));
    assert!(again.since_snapshot < SNAPSHOT_FACTS);
    assert_eq!(&again.state, machine.state());
}
