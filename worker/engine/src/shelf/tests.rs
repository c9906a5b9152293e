//! Shelves over real files: what is found again, what goes, and what damage and full disks do.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use graftwork_shared::digest::Digest;
use tempfile::TempDir;

use super::{Shelves, Visit, lock, volume::Volume};

fn digest(number: u32) -> Digest {
    Digest::of(&number.to_le_bytes())
}

fn value(number: u32) -> Vec<u8> {
    (0..300).map(|place| u8::try_from((number + place) % 251).unwrap()).collect()
}

fn shelves(folder: &TempDir, most_bytes: u64) -> Arc<Shelves> {
    Arc::new(Shelves::new(folder.path().join("shelves"), most_bytes))
}

fn fill(visit: &Visit, numbers: std::ops::Range<u32>) {
    numbers.for_each(|number| visit.put(&digest(number), &value(number)));
}

/// How many of these are kept; each must be whole.
fn kept(visit: &Visit, numbers: std::ops::Range<u32>) -> usize {
    let found = numbers.filter_map(|number| Some((number, visit.get(&digest(number))?)));
    found.inspect(|(number, found)| assert_eq!(*found, value(*number))).count()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            files.extend(self::files(&entry.path()));
        } else if entry.file_name() != "lock" {
            files.push(entry.path());
        }
    }
    files
}

fn bytes(folder: &TempDir) -> u64 {
    files(folder.path()).iter().map(|file| fs::metadata(file).unwrap().len()).sum()
}

#[test]
fn values_are_found_again_by_others_and_after_the_end() {
    let folder = TempDir::new().unwrap();
    let first = shelves(&folder, 1 << 20).visit("rows", &digest(1));
    fill(&first, 0..40);
    assert_eq!((kept(&first, 0..40), kept(&first, 40..50)), (40, 0));
    // As another process sees them, while this one writes and after it.
    let other = shelves(&folder, 1 << 20);
    assert_eq!(kept(&other.visit("rows", &digest(1)), 0..40), 40);
    drop(first);
    assert_eq!(kept(&other.visit("rows", &digest(1)), 0..40), 40);
    assert_eq!(kept(&other.visit("rows", &digest(2)), 0..40), 0);
    // Bytes that were set aside are given back.
    assert!(bytes(&folder) < 40 * 400, "{}", bytes(&folder));
}

#[test]
fn a_full_shelf_takes_nothing_more_until_others_may_go() {
    let folder = TempDir::new().unwrap();
    let most = 128_000;
    let shelves = shelves(&folder, most);
    let running = shelves.visit("rows", &digest(1));
    fill(&running, 0..1000);
    let count = kept(&running, 0..1000);
    assert!((250..=400).contains(&count), "{count}");
    assert!(bytes(&folder) <= most, "{}", bytes(&folder));
    // What came first stays: it will be asked for first.
    assert_eq!(kept(&running, 0..250), 250);
    let other = shelves.visit("rows", &digest(2));
    fill(&other, 0..10);
    assert_eq!(kept(&other, 0..10), 0, "a running visit keeps its room");
    // A later visit of the same shelf uses some of it, and the rest may go.
    let later = shelves.visit("rows", &digest(1));
    drop(running);
    assert_eq!(kept(&later, 100..200), 100);
    fill(&later, 1000..1100);
    assert_eq!(kept(&later, 100..200), 100);
    assert_eq!(kept(&later, 1000..1100), 100);
    assert!(kept(&later, 0..100) < 50);
    assert!(bytes(&folder) <= most, "{}", bytes(&folder));
}

#[test]
fn what_was_used_the_longest_ago_goes_first_whatever_shelf_it_is_of() {
    let folder = TempDir::new().unwrap();
    let most = 128_000;
    let shelves = shelves(&folder, most);
    for shelf in 1..4 {
        fill(&shelves.visit("rows", &digest(shelf)), 0..110);
        thread::sleep(Duration::from_millis(20));
    }
    // The first one is used again.
    assert_eq!(kept(&shelves.visit("rows", &digest(1)), 0..110), 110);
    thread::sleep(Duration::from_millis(20));
    fill(&shelves.visit("rows", &digest(9)), 0..110);
    let left = [1, 2, 3, 9].map(|shelf| kept(&shelves.visit("rows", &digest(shelf)), 0..110));
    assert_eq!((left[0], left[2], left[3]), (110, 110, 110), "{left:?}");
    assert!(left[1] < 90, "{left:?}");
    assert!(bytes(&folder) <= most, "{}", bytes(&folder));
}

#[test]
fn what_another_process_uses_is_not_removed() {
    let folder = TempDir::new().unwrap();
    let other = shelves(&folder, 128_000).visit("rows", &digest(1));
    fill(&other, 0..200);
    let here = shelves(&folder, 128_000).visit("rows", &digest(2));
    fill(&here, 0..1000);
    assert!(kept(&here, 0..1000) > 50);
    drop(here);
    // Its files are there still, and not only its open handles.
    drop(other);
    assert_eq!(kept(&shelves(&folder, 128_000).visit("rows", &digest(1)), 0..200), 200);
}

#[test]
fn a_damaged_value_is_not_handed_out_and_its_volume_goes() {
    let folder = TempDir::new().unwrap();
    let shelves = shelves(&folder, 1 << 20);
    fill(&shelves.visit("rows", &digest(1)), 0..10);
    let rows = files(folder.path()).into_iter().find(|path| path.extension().unwrap() == "rows").unwrap();
    let mut damaged = fs::read(&rows).unwrap();
    damaged[300 * 4 + 17] ^= 4;
    fs::write(&rows, damaged).unwrap();
    let visit = shelves.visit("rows", &digest(1));
    assert_eq!((kept(&visit, 0..4), kept(&visit, 4..10)), (4, 0));
    assert_eq!(kept(&visit, 0..10), 0);
    assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
    fill(&visit, 0..10);
    assert_eq!(kept(&visit, 0..10), 10);
}

#[test]
fn damaged_and_torn_notes_and_short_files_cost_their_own_values_alone() {
    let folder = TempDir::new().unwrap();
    let shelves = shelves(&folder, 1 << 20);
    fill(&shelves.visit("rows", &digest(1)), 0..10);
    let all = files(folder.path());
    let of = |kind: &str| all.iter().find(|path| path.extension().unwrap() == kind).unwrap();
    let mut notes = fs::read(of("notes")).unwrap();
    notes[36 * 2 + 5] ^= 1;
    notes.truncate(notes.len() - 7);
    fs::write(of("notes"), notes).unwrap();
    assert_eq!(kept(&shelves.visit("rows", &digest(1)), 0..10), 8);
    File::options().write(true).open(of("rows")).unwrap().set_len(300 * 5).unwrap();
    assert_eq!(kept(&shelves.visit("rows", &digest(1)), 0..10), 4);
}

#[test]
fn a_full_disk_ends_the_keeping_and_loses_nothing_that_was_kept() {
    let folder = TempDir::new().unwrap();
    let shelves = shelves(&folder, 1 << 20);
    fill(&shelves.visit("rows", &digest(1)), 0..10);
    let visit = shelves.visit("rows", &digest(1));
    {
        // Each write to this file is answered as by a disk without room.
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let notes = File::create(folder.path().join("full.notes")).unwrap();
        let mut state = lock(&visit.shelf.state);
        let number = state.hold(Volume::new(folder.path().join("full.rows"), full, notes, 1 << 16));
        state.writing = Some(number);
    }
    visit.put(&digest(20), &value(20));
    assert!(shelves.has_ended());
    assert!(!folder.path().join("full.notes").exists());
    fill(&visit, 21..30);
    assert_eq!((kept(&visit, 0..10), kept(&visit, 20..30)), (10, 0));
}

#[test]
fn a_folder_that_cannot_be_written_is_as_good_as_none() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("shelves"), "a file in the folder's place").unwrap();
    let shelves = shelves(&folder, 1 << 20);
    let visit = shelves.visit("rows", &digest(1));
    fill(&visit, 0..3);
    assert!(shelves.has_ended());
    assert_eq!(kept(&visit, 0..3), 0);
}

#[test]
fn a_second_question_for_the_same_value_is_noticed() {
    let folder = TempDir::new().unwrap();
    let shelves = shelves(&folder, 1 << 20);
    assert!(!shelves.visit("rows", &digest(1)).was_missed(&digest(5)));
    let visit = shelves.visit("rows", &digest(1));
    assert!(visit.was_missed(&digest(5)) && !visit.was_missed(&digest(6)));
}
