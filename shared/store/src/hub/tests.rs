//! What readers of a hub see while and after something goes wrong in the middle of a commit.

use std::{collections::BTreeMap, fs, path::Path};

use graftwork_shared::{digest::Digest, id::Name, recipe::NumericClass};

use super::{Hub, RECORD_FILE, Release};
use crate::{StoreError, disk::Disk};

fn release(text: &str) -> Release {
    let file = |path: &str, body: &str| (path.to_owned(), body.as_bytes().to_vec());
    let mut files = BTreeMap::from([file("adapter_config.json", "{}"), file("inner/adapter.safetensors", text)]);
    let digests: BTreeMap<_, _> = files.iter().map(|(path, bytes)| (path.clone(), Digest::of(bytes))).collect();
    files.insert(RECORD_FILE.to_owned(), serde_json::json!({ "files": digests }).to_string().into_bytes());
    Release { files }
}

fn name() -> Name {
    "spam".parse().unwrap()
}

fn class() -> NumericClass {
    let text = |s: &str| s.to_owned();
    NumericClass { device: text("cpu"), instructions: text("avx2"), libtorch: text("2.11.0"), vendor: text("x") }
}

fn hub(root: &Path, steps: Option<usize>, full: bool) -> Hub {
    Hub { root: root.to_owned(), disk: Disk { steps: std::cell::Cell::new(steps), full, plain: false } }
}

/// On a file system that cannot exchange two names.
fn plain(mut hub: Hub) -> Hub {
    hub.disk.plain = true;
    hub
}

/// Every file under a folder with its bytes, links as their targets; the lock aside.
fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, at: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let relative = path.strip_prefix(root).unwrap().display().to_string();
            if path.is_symlink() {
                into.insert(relative, fs::read_link(&path).unwrap().display().to_string().into_bytes());
            } else if path.is_dir() {
                walk(root, &path, into);
            } else if relative != ".lock" {
                into.insert(relative, fs::read(&path).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(root, root, &mut files);
    files
}

/// What readers find under the name: the same by its path as in the folder that stays.
fn read(root: &Path) -> Option<Vec<u8>> {
    let hub = Hub::open(root.to_str().unwrap()).unwrap();
    let folder = hub.current("lab", &name())?;
    assert!(folder.starts_with(root.canonicalize().unwrap().join(".releases")), "{}", folder.display());
    assert_eq!(tree(&folder), tree(&hub.path("lab", &name())), "a release is whole");
    Some(fs::read(folder.join("inner/adapter.safetensors")).unwrap())
}

#[test]
fn a_kill_between_any_two_file_operations_leaves_the_old_release_or_the_new_one() {
    let (old, new) = (release("old weights"), release("new weights"));
    let result_of = Some((Digest::of(b"recipe"), class()));
    let result_of = result_of.as_ref().map(|(digest, class)| (*digest, class));
    for steps in 0.. {
        let folder = tempfile::tempdir().unwrap();
        hub(folder.path(), None, false).commit("lab", &name(), &old, result_of).unwrap();
        let killed = hub(folder.path(), Some(steps), false).commit("lab", &name(), &new, result_of);
        let seen = read(folder.path()).unwrap();
        assert!(seen == b"old weights" || seen == b"new weights", "after {steps} steps");
        // The same command again brings the hub to where an undisturbed run ends.
        hub(folder.path(), None, false).commit("lab", &name(), &new, result_of).unwrap();
        assert_eq!(read(folder.path()).unwrap(), b"new weights");
        let undisturbed = tempfile::tempdir().unwrap();
        for each in [&old, &new] {
            hub(undisturbed.path(), None, false).commit("lab", &name(), each, result_of).unwrap();
        }
        assert_eq!(tree(folder.path()), tree(undisturbed.path()), "after {steps} steps");
        if killed.is_ok() {
            assert!(steps > 12, "a commit takes more than {steps} steps");
            return;
        }
    }
}

#[test]
fn where_names_cannot_be_exchanged_the_next_commit_gives_a_name_back() {
    let mut absent = 0;
    for steps in 0.. {
        let folder = tempfile::tempdir().unwrap();
        plain(hub(folder.path(), None, false)).commit("lab", &name(), &release("old weights"), None).unwrap();
        let killed = plain(hub(folder.path(), Some(steps), false)).commit("lab", &name(), &release("new"), None);
        absent += usize::from(read(folder.path()).is_none());
        let other = "another".parse().unwrap();
        plain(hub(folder.path(), None, false)).commit("lab", &other, &release("x"), None).unwrap();
        let seen = read(folder.path()).unwrap();
        assert!(seen == b"old weights" || seen == b"new", "after {steps} steps");
        if killed.is_ok() {
            assert_eq!(seen, b"new");
            assert!((1..=3).contains(&absent), "the name is gone between two renames, not after {absent} steps");
            return;
        }
    }
}

#[test]
fn a_step_that_fails_between_the_two_renames_costs_no_name() {
    for steps in 0..60 {
        let folder = tempfile::tempdir().unwrap();
        plain(hub(folder.path(), None, false)).commit("lab", &name(), &release("old weights"), None).unwrap();
        let failed = plain(hub(folder.path(), Some(steps), true)).commit("lab", &name(), &release("new"), None);
        let expected: &[u8] = if failed.is_ok() { b"new" } else { b"old weights" };
        let seen = read(folder.path()).unwrap();
        assert!(seen == expected || seen == b"new", "after {steps} steps");
    }
}

/// `cp -r`, as a user copies folders.
fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
}

#[test]
fn a_copy_of_a_release_or_of_its_organisation_is_whole() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = hub(folder.path(), None, false);
    for text in ["old weights", "new weights"] {
        one.commit("lab", &name(), &release(text), None).unwrap();
    }
    copy(&one.path("lab", &name()), elsewhere.path());
    copy(&folder.path().join("lab"), elsewhere.path());
    drop(folder);
    let expected: BTreeMap<_, _> = release("new weights").files;
    for copied in ["spam", "lab/spam"] {
        let copied = elsewhere.path().join(copied);
        assert_eq!(tree(&copied), expected);
        assert_eq!(Hub::settled(copied.clone()), copied, "it lies in no hub");
    }
}

#[test]
fn a_reader_that_began_before_a_commit_reads_one_release() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(folder.path(), None, false);
    hub.commit("lab", &name(), &release("old weights"), None).unwrap();
    let before = hub.current("lab", &name()).unwrap();
    hub.commit("lab", &name(), &release("new weights"), None).unwrap();
    assert_eq!(tree(&before), release("old weights").files);
    assert_eq!(read(folder.path()).unwrap(), b"new weights");
}

#[test]
fn a_link_of_an_earlier_version_becomes_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(folder.path(), None, false);
    hub.commit("lab", &name(), &release("x"), None).unwrap();
    let undisturbed = tree(folder.path());
    let place = hub.path("lab", &name());
    fs::remove_dir_all(&place).unwrap();
    let target = Path::new("../.releases").join(release("x").digest().to_string());
    std::os::unix::fs::symlink(target, &place).unwrap();
    hub.commit("lab", &name(), &release("x"), None).unwrap();
    assert!(!place.is_symlink());
    assert_eq!(tree(folder.path()), undisturbed);
}

#[test]
fn a_full_disk_is_said_plainly_and_shows_nothing() {
    for steps in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let error = hub(folder.path(), Some(steps), true).commit("lab", &name(), &release("x"), None).unwrap_err();
        assert!(matches!(error, StoreError::DiskFull(_)), "{error}");
        assert_eq!(read(folder.path()), None);
        assert!(!folder.path().join(".staging").exists(), "space is freed after {steps} steps");
    }
}

#[test]
fn equal_results_give_an_equal_tree_and_a_second_commit_writes_nothing() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&first, &second] {
        hub(folder.path(), None, false).commit("lab", &name(), &release("x"), None).unwrap();
    }
    assert_eq!(tree(first.path()), tree(second.path()));
    let file = Hub::open(first.path().to_str().unwrap()).unwrap().current("lab", &name()).unwrap();
    let before = fs::metadata(file.join("adapter_config.json")).unwrap().modified().unwrap();
    hub(first.path(), None, false).commit("lab", &name(), &release("x"), None).unwrap();
    assert_eq!(fs::metadata(file.join("adapter_config.json")).unwrap().modified().unwrap(), before);
}

#[test]
fn a_folder_that_somebody_else_made_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("lab/spam")).unwrap();
    let refused = || {
        let error = hub(folder.path(), None, false).commit("lab", &name(), &release("x"), None).unwrap_err();
        assert!(error.to_string().contains("did not publish"), "{error}");
    };
    refused();
    fs::rename(folder.path().join("lab/spam"), folder.path().join("other")).unwrap();
    std::os::unix::fs::symlink("../other", folder.path().join("lab/spam")).unwrap();
    refused();
}

#[test]
fn paths_that_leave_the_hub_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let outside = Release { files: BTreeMap::from([("../escape".to_owned(), Vec::new())]) };
    assert!(hub(folder.path(), None, false).commit("lab", &name(), &outside, None).is_err());
    assert!(hub(folder.path(), None, false).commit("../lab", &name(), &release("x"), None).is_err());
    assert!(Hub::open("s3://bucket/hub").is_err());
}

#[test]
fn a_damaged_release_is_not_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Digest::of(b"recipe");
    let hub = hub(folder.path(), None, false);
    hub.commit("lab", &name(), &release("x"), Some((recipe, &class()))).unwrap();
    // It has no record, so it cannot be trusted.
    assert_eq!(hub.lookup(recipe, &[class()]), None);
}
