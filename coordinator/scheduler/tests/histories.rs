//! Histories of nights stay, whoever leads, and their files go when others take their place.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

mod fixture;

use std::collections::BTreeMap;

use fixture::Machine;
use graftwork_scheduler::{Command, Event, Fact};
use graftwork_shared::digest::Digest;

type Files = BTreeMap<String, Option<Digest>>;

fn blob(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn files(files: &[(&str, Option<&str>)]) -> Files {
    files.iter().map(|(path, text)| ((*path).to_owned(), text.map(blob))).collect()
}

/// Keeps them; gives the blobs that go.
fn keep(machine: &mut Machine, history: &str, changed: &[(&str, Option<&str>)]) -> Vec<Digest> {
    let commands = machine.apply(Event::KeepHistory { history: history.to_owned(), files: files(changed) });
    commands.iter().filter_map(|of| if let Command::Discard { blob } = of { Some(*blob) } else { None }).collect()
}

#[test]
fn files_stay_until_others_take_their_place_or_they_go() {
    let mut machine = Machine::new();
    assert!(keep(&mut machine, "mail", &[("a", Some("one")), ("b", Some("two")), ("c", Some("one"))]).is_empty());
    assert!(keep(&mut machine, "other", &[("a", Some("three"))]).is_empty());
    let facts = machine.facts.len();
    assert!(keep(&mut machine, "mail", &[("b", Some("two")), ("none", None)]).is_empty());
    assert_eq!(machine.facts.len(), facts, "nothing has changed, so nothing is written");
    assert_eq!(keep(&mut machine, "mail", &[("a", None), ("b", Some("three"))]), [blob("two")], "c is the same as a");
    // Whoever takes over has them, from the facts and from a snapshot alike.
    let text = serde_json::to_string(machine.scheduler.state()).unwrap();
    let snapshot: graftwork_scheduler::State = serde_json::from_str(&text).unwrap();
    let mut machine = Machine::recover(machine.facts.clone(), machine.now_ms);
    for state in [machine.scheduler.state(), &snapshot] {
        let kept: Vec<_> = state.histories()["mail"].iter().map(|(path, blob)| (path.as_str(), *blob)).collect();
        assert_eq!(kept, [("b", blob("three")), ("c", blob("one"))]);
        assert!(
            state.refers_to(blob("one")) && state.blobs().contains(&blob("three")) && !state.refers_to(blob("two"))
        );
    }
    assert!(keep(&mut machine, "mail", &[("b", None)]).is_empty(), "the other history has it too");
    assert_eq!(keep(&mut machine, "mail", &[("c", None)]), [blob("one")]);
    assert!(!machine.scheduler.state().histories().contains_key("mail"), "without files it is none");
}

#[test]
fn a_file_whose_bytes_are_lost_is_told_by_whoever_reads_it() {
    let mut machine = Machine::new();
    keep(&mut machine, "mail", &[("a", Some("one"))]);
    let facts = machine.facts.len();
    machine.apply(Event::BlobLost { blob: blob("one") });
    assert_eq!(machine.facts.len(), facts);
    assert!(matches!(machine.facts.last(), Some(Fact::HistoryKept { .. })));
    assert_eq!(machine.scheduler.state().histories()["mail"].len(), 1);
}
