//! What is kept on shelves between epochs, stages and runs changes no byte, and neither do damage and small bounds.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use graftwork_shared::training::Length;
use tempfile::TempDir;

use super::{bytes_of, finish, fusion_of};
use crate::stage::tests::local::{Data, LocalHost, adapter_recipe, assignment, opinion};

/// Shelves with this kind of value.
fn shelves(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let shelves = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    shelves.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(kind)).collect()
}

fn files(shelf: &Path, kind: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(shelf).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|found| found == kind)).collect()
}

/// Rows that a shelf holds: 36 bytes of notes each.
fn rows(folder: &Path, kind: &str) -> Vec<u64> {
    let of = |shelf: &PathBuf| files(shelf, "notes").iter().map(|notes| fs::metadata(notes).unwrap().len() / 36).sum();
    let mut rows: Vec<u64> = shelves(folder, kind).iter().map(of).collect();
    rows.sort_unstable();
    rows
}

#[test]
fn a_stage_has_the_same_bytes_whatever_was_kept_before_it() {
    let (data, folder) = (Data::write(), TempDir::new().unwrap());
    let plain = LocalHost::new(2);
    let of = assignment(&data, &plain, adapter_recipe(&data));
    let expected = finish(&of, &plain);
    for _ in 0..2 {
        assert_eq!(bytes_of(&finish(&of, &LocalHost::keeping(folder.path(), 2))), bytes_of(&expected));
        // Every text of the three splits once.
        assert_eq!(rows(folder.path(), "tokens"), [distinct(0..180)]);
    }
    assert_eq!(rows(folder.path(), "below"), [distinct(0..110)]);
    // Another seed reads the same rows.
    let mut other = of.clone();
    other.recipe.training.seed += 1;
    let expected = finish(&other, &plain);
    assert_eq!(bytes_of(&finish(&other, &LocalHost::keeping(folder.path(), 1))), bytes_of(&expected));
    assert_eq!((rows(folder.path(), "tokens"), rows(folder.path(), "below").len()), (vec![distinct(0..180)], 1));
}

/// How many texts the rows have in all.
fn distinct(rows: std::ops::Range<u32>) -> u64 {
    let texts: BTreeSet<_> = rows.map(|row| opinion(row).0).collect();
    texts.len() as u64
}

/// How many texts come more than once.
fn repeated(rows: std::ops::Range<u32>) -> u64 {
    let (mut seen, mut repeated) = (BTreeSet::new(), BTreeSet::new());
    for text in rows.map(|row| opinion(row).0) {
        if !seen.insert(text.clone()) {
            repeated.insert(text);
        }
    }
    repeated.len() as u64
}

#[test]
fn texts_that_come_once_are_not_kept_and_neither_are_those_of_a_pass_with_dropout_in_the_trunk() {
    let data = Data::write();
    assert!(repeated(0..180) < distinct(0..180));
    for (epochs, dropout, expected) in [(1, false, repeated(0..180)), (3, true, distinct(40..110))] {
        let (folder, plain) = (TempDir::new().unwrap(), LocalHost::new(2));
        let mut recipe = adapter_recipe(&data);
        recipe.training.length = Length::Epochs(epochs);
        recipe.training.base_model_dropout = dropout;
        let of = assignment(&data, &plain, recipe);
        let found = finish(&of, &LocalHost::keeping(folder.path(), 2));
        assert_eq!(bytes_of(&found), bytes_of(&finish(&of, &plain)));
        assert_eq!(rows(folder.path(), "below"), [expected], "{epochs} epochs");
    }
}

#[test]
fn a_fusion_has_the_same_bytes_over_what_is_kept() {
    let (data, folder) = (Data::write(), TempDir::new().unwrap());
    let host = LocalHost::new(2);
    let of = fusion_of(&data, &host);
    let expected = finish(&of, &host);
    let keeping = || LocalHost::keeping_beside(&host, folder.path());
    assert_eq!(bytes_of(&finish(&of, &keeping())), bytes_of(&expected));
    assert_eq!(bytes_of(&finish(&of, &keeping())), bytes_of(&expected));
}

#[test]
fn damaged_files_and_other_rows_behind_the_same_footer_change_nothing() {
    let (data, folder) = (Data::write(), TempDir::new().unwrap());
    let plain = LocalHost::new(2);
    let of = assignment(&data, &plain, adapter_recipe(&data));
    let expected = finish(&of, &plain);
    finish(&of, &LocalHost::keeping(folder.path(), 2));
    for kind in ["rows", "notes"] {
        let mut damaged = Vec::new();
        for file in ["tokens", "below"].iter().flat_map(|of| shelves(folder.path(), of)).flat_map(|of| files(&of, kind))
        {
            let mut bytes = fs::read(&file).unwrap();
            bytes.iter_mut().skip(7).step_by(50).for_each(|byte| *byte ^= 32);
            fs::write(&file, &bytes).unwrap();
            damaged.push(file);
        }
        assert_eq!(bytes_of(&finish(&of, &LocalHost::keeping(folder.path(), 2))), bytes_of(&expected), "{kind}");
        if kind == "rows" {
            // It read them, or it would not know.
            assert!(damaged.len() >= 2 && damaged.iter().all(|file| !file.exists()), "{damaged:?}");
        }
    }
    // Neither size nor footer tells that these are other texts.
    data.edit("train", b"great", b"good!");
    let expected = finish(&of, &plain);
    assert_eq!(bytes_of(&finish(&of, &LocalHost::keeping(folder.path(), 2))), bytes_of(&expected));
}
