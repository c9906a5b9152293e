//! A journal goes into a database and out again.

use super::{
    servers::{leadership, needed},
    *,
};

/// A journal in a folder, with or without a snapshot in the middle of its facts.
fn folder(snapshot: bool) -> (tempfile::TempDir, Opened) {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = Opened::lead_folder(folder.path()).unwrap();
    let facts = facts();
    let (before, after) = facts.split_at(4);
    let kept = snapshot.then(|| Write::Snapshot(Box::new(fold(before))));
    let writes = [Some(Write::Facts(before.to_vec())), kept, Some(Write::Facts(after.to_vec()))];
    opened.write(&writes.into_iter().flatten().collect::<Vec<_>>()).unwrap();
    (folder, opened)
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn a_journal_comes_out_of_a_database_as_it_went_in() {
    for snapshot in [false, true] {
        let (database, (_folder, mut opened)) = (needed(), folder(snapshot));
        let back = tempfile::tempdir().unwrap();
        assert!(Opened::copy_database(&database, back.path()).unwrap().is_none());
        assert!(!Opened::is_kept(&database).unwrap());
        assert_eq!(opened.fill_database(&database, Term(1_000)).unwrap(), Filled::Done);
        assert!(Opened::is_kept(&database).unwrap());
        let copy = Opened::copy_database(&database, back.path()).unwrap().unwrap();
        assert_eq!((copy.number, &copy.state), (facts().len() as u64, &fold(&facts())));
        assert_eq!(opened.fill_database(&database, Term(1_000)).unwrap(), Filled::Holds);
        let next = Opened::lead_database(leadership(&database, LEASE_MS), String::new(), back.path()).unwrap();
        assert_eq!(next.state.term(), Term(1_000), "it goes on above what was said");
    }
}

#[test]
#[ignore = "needs PostgreSQL: scripts/servers.py"]
fn a_database_that_somebody_leads_is_not_filled() {
    let (database, (_folder, mut opened)) = (needed(), folder(false));
    let here = tempfile::tempdir().unwrap();
    let leader = Opened::lead_database(leadership(&database, LEASE_MS), String::new(), here.path()).unwrap();
    assert_eq!(opened.fill_database(&database, Term(1_000)).unwrap(), Filled::Led);
    assert!(!Opened::is_kept(&database).unwrap());
    drop(leader);
}
