//! Histories of nights stay, whoever leads, and their files go when others take their place.

use std::{collections::BTreeMap, hint::black_box, time::Instant};

use graftwork_scheduler::{Command, Event, Fact, State};
use graftwork_shared::digest::Digest;

use crate::fixture::Machine;

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
    let snapshot: State = serde_json::from_str(&text).unwrap();
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
fn whether_a_blob_is_kept_is_looked_up_however_many_files_histories_have() {
    let time = |files: u32| {
        let mut state = State::default();
        let files = (0..files).map(|file| (format!("pruned/{file}"), Some(blob(&file.to_string())))).collect();
        state.fold(&Fact::HistoryKept { history: "mail".to_owned(), files, at_ms: 0 }).unwrap();
        let unknown = blob("nobody's");
        let asked = |_| {
            let begun = Instant::now();
            (0..1_000).for_each(|_| assert!(!black_box(&state).refers_to(black_box(unknown))));
            begun.elapsed()
        };
        // Whatever else runs makes some of them longer, and none shorter.
        (0..10).map(asked).min().unwrap()
    };
    let (few, many) = (time(10), time(100_000));
    assert!(many < few * 100, "{few:?} where there are 10 files, and {many:?} where there are 100,000");
}

#[test]
fn a_lost_blob_of_a_history_changes_no_fact() {
    let mut machine = Machine::new();
    keep(&mut machine, "mail", &[("a", Some("one"))]);
    let facts = machine.facts.len();
    machine.apply(Event::BlobLost { blob: blob("one") });
    assert_eq!(machine.facts.len(), facts);
    assert!(matches!(machine.facts.last(), Some(Fact::HistoryKept { .. })));
    assert_eq!(machine.scheduler.state().histories()["mail"].len(), 1);
}
