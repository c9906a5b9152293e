//! What a journal's file can suffer.

use std::{collections::BTreeSet, fs, path::PathBuf};

use super::*;

fn whole() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    write(&mut Opened::lead_folder(folder.path()).unwrap(), &facts());
    let path = sqlite::path(folder.path());
    (folder, path)
}

fn error(folder: &tempfile::TempDir) -> JournalError {
    Opened::read_folder(folder.path()).unwrap_err()
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
    let state = Opened::read_folder(folder.path()).unwrap().state;
    let mut messages = BTreeSet::new();
    for at in (0..bytes.len()).step_by(97) {
        let folder = tempfile::tempdir().unwrap();
        let mut garbled = bytes.clone();
        garbled[at] ^= 0x41;
        fs::write(sqlite::path(folder.path()), garbled).unwrap();
        match Opened::read_folder(folder.path()) {
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
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE cookies (name TEXT)").unwrap();
    assert!(matches!(error(&folder), JournalError::Foreign { .. }));
}

#[test]
fn a_file_of_the_first_version_goes_on_under_the_next_term() {
    let (folder, path) = whole();
    let before = Opened::read_folder(folder.path()).unwrap();
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.execute_batch("DROP TABLE leader; PRAGMA user_version = 1").unwrap();
    drop(connection);
    let (number, state) = (before.number, before.state.clone());
    drop(before);
    let mut opened = Opened::lead_folder(folder.path()).unwrap();
    assert_eq!((opened.number, &opened.state), (number, &state));
    let (machine, first) = Scheduler::start(graftwork_scheduler::Policy::default(), state, 0);
    write(&mut opened, &first.facts);
    assert_eq!(&Opened::read_folder(folder.path()).unwrap().state, machine.state());
}

#[test]
fn a_coordinator_whose_lock_was_lost_cannot_write_behind_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let facts = facts();
    let mut first = Opened::lead_folder(folder.path()).unwrap();
    write(&mut first, &facts[..1]);
    let second = Opened::lead_folder(folder.path()).unwrap();
    assert_eq!(second.number, 1);
    let error = first.write(&[Write::Facts(facts[1..].to_vec())]).unwrap_err();
    assert!(error.to_string().starts_with("another coordinator leads under term 2, says "), "{error}");
    assert_eq!(Opened::read_folder(folder.path()).unwrap().number, 1);
}
