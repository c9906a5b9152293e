//! What a reader hands out: each row once, in an order that a cursor can cut anywhere.

use std::collections::BTreeSet;

use graftwork_shared::data::{Split, SplitManifest, SplitRule};
use proptest::prelude::*;

use super::{Folder, columns, request};
use crate::{Access, Label, OpenFile, Order, ReadRequest, find_labels, open, select};

const SHUFFLED: Order = Order::Shuffled { seed: 5, window_bytes: 16 << 10 };

fn three_shards(folder: &Folder) -> SplitManifest {
    folder.shard("a.parquet", 0, 700, 250);
    folder.shard("b.parquet", 700, 33, 50);
    folder.shard("c.parquet", 733, 267, 1000);
    folder.manifest(&["a.parquet", "b.parquet", "c.parquet"])
}

#[test]
fn sequential_rows_come_as_they_lie_in_the_files() {
    let folder = Folder::new();
    let rows = folder.rows(request(three_shards(&folder), Order::Sequential)).unwrap();
    assert_eq!(rows.len(), 1000);
    for (number, row) in (0_u64..).zip(&rows) {
        assert_eq!((row.number, row.texts[0].as_str()), (number, format!("text number {number}").as_str()));
        assert_eq!(row.label, Label::Class(u32::try_from(number % 2).unwrap()));
    }
}

#[test]
fn a_folder_and_a_glob_give_shards_sorted_by_name() {
    let folder = Folder::new();
    three_shards(&folder);
    let names = |entries: &[&str]| {
        let files = folder.open(entries).unwrap();
        files.iter().map(|file| file.identity.location.rsplit('/').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&["."]), ["a.parquet", "b.parquet", "c.parquet"]);
    assert_eq!(names(&["?.parquet"]), ["a.parquet", "b.parquet", "c.parquet"]);
    assert_eq!(names(&["c.parquet", "[!c].parquet"]), ["c.parquet", "a.parquet", "b.parquet"]);
    assert_eq!(names(&["[a-b].parquet"]), ["a.parquet", "b.parquet"]);
    // A file of that very name is meant, not the class.
    std::fs::copy(folder.path("c.parquet"), folder.path("[ab].parquet")).unwrap();
    assert_eq!(names(&["[ab].parquet"]), ["[ab].parquet"]);
    assert_eq!(names(&["[[]*.parquet"]), ["[ab].parquet"]);
}

#[test]
fn an_object_store_reads_the_same_patterns() {
    use object_store::{ObjectStoreExt as _, memory::InMemory, path::Path};
    let folder = Folder::new();
    let bytes = std::fs::read(folder.shard("a.parquet", 0, 30, 10)).unwrap();
    let store = InMemory::new();
    for name in ["part-0", "part-1", "part-2", "deep/part-1", "odd-[01]"] {
        let path = Path::parse(format!("rows/{name}.parquet")).unwrap();
        folder.runtime.block_on(store.put(&path, bytes.clone().into())).unwrap();
    }
    let access = Access::anonymous();
    access.pretend("s3://bucket", std::sync::Arc::new(store));
    let names = |entry: &str| {
        let files = folder.runtime.block_on(open(&vec![format!("s3://bucket/{entry}")], &access));
        files.map(|files| {
            let names =
                files.iter().map(|file| file.identity.location.trim_start_matches("s3://bucket/rows/").to_owned());
            names.collect::<Vec<_>>()
        })
    };
    assert_eq!(names("rows/part-[01].parquet").unwrap(), ["part-0.parquet", "part-1.parquet"]);
    assert_eq!(names("rows/part-[!0-1].parquet").unwrap(), ["part-2.parquet"]);
    assert_eq!(names("rows/**/part-[1].parquet").unwrap(), ["deep/part-1.parquet", "part-1.parquet"]);
    assert_eq!(names("rows/odd-[01].parquet").unwrap(), ["odd-[01].parquet"], "an object of that very name");
    let problem = names("rows/part-[01.parquet").unwrap_err().to_string();
    assert!(problem.contains("opens a class of characters such as [0-9] that does not end"), "{problem}");
}

/// `Invariant::EachRowOnce`.
#[test]
fn a_shuffled_epoch_has_each_row_once_and_every_epoch_its_own_order() {
    let folder = Folder::new();
    let manifest = three_shards(&folder);
    let numbers = |epoch, order| {
        let rows = folder.rows(ReadRequest { epoch, ..request(manifest.clone(), order) }).unwrap();
        rows.iter().for_each(|row| assert_eq!(row.texts[0], format!("text number {}", row.number)));
        rows.into_iter().map(|row| row.number).collect::<Vec<_>>()
    };
    let first = numbers(0, SHUFFLED);
    assert_eq!(first.iter().copied().collect::<BTreeSet<_>>(), (0..1000).collect());
    assert_eq!(first.len(), 1000);
    assert_eq!(first, numbers(0, SHUFFLED), "the order is a function of seed and epoch");
    assert_ne!(first, numbers(1, SHUFFLED));
    assert_ne!(first, numbers(0, Order::Shuffled { seed: 6, window_bytes: 16 << 10 }));
}

#[test]
fn group_digests_do_not_depend_on_the_order_and_are_complete_after_one_epoch() {
    let folder = Folder::new();
    let manifest = three_shards(&folder);
    let digest = |order| {
        let mut reader = folder.start(request(manifest.clone(), order));
        for _ in 0..999 {
            reader.next().unwrap().unwrap();
        }
        assert!(!reader.groups().is_complete());
        reader.next().unwrap().unwrap();
        assert!(reader.groups().is_complete(), "the last row completes the epoch, not the end behind it");
        assert!(reader.next().is_none() && reader.next().is_none());
        reader.groups()
    };
    let (sequential, shuffled) = (digest(Order::Sequential), digest(SHUFFLED));
    assert_eq!(sequential.digest(), shuffled.digest());
    let again = ReadRequest { epoch: 1, groups: shuffled.clone(), ..request(manifest, SHUFFLED) };
    let mut reader = folder.start(again);
    assert_eq!(reader.by_ref().flatten().count(), 1000);
    assert_eq!(reader.groups().digest(), shuffled.digest());
}

impl Folder {
    fn select(&self, files: &[OpenFile], rule: SplitRule, split: Split) -> SplitManifest {
        self.runtime.block_on(select(files, Some((rule, split)), None, &Access::anonymous())).unwrap()
    }
}

fn rule(group_by: Option<&str>) -> SplitRule {
    SplitRule { validation: 0.2, test: 0.1, group_by: group_by.map(str::to_owned), seed: 9 }
}

#[test]
fn splits_by_rule_are_disjoint_cover_everything_and_keep_groups_together() {
    let folder = Folder::new();
    three_shards(&folder);
    let files = folder.open(&["."]).unwrap();
    for group_by in [None, Some("group")] {
        let mut seen = BTreeSet::new();
        let mut split_of_group = std::collections::BTreeMap::new();
        for split in [Split::Train, Split::Validation, Split::Test] {
            let manifest = folder.select(&files, rule(group_by), split);
            let rows = folder.rows(request(manifest.clone(), SHUFFLED)).unwrap();
            assert_eq!(rows.len() as u64, manifest.rows);
            for row in rows {
                assert!(seen.insert(row.number));
                let first = *split_of_group.entry(row.number / 7).or_insert(split);
                assert!(group_by.is_none() || first == split, "a group lies in two splits");
            }
        }
        assert_eq!(seen.len(), 1000);
    }
}

#[test]
fn a_limit_keeps_the_first_rows() {
    let folder = Folder::new();
    three_shards(&folder);
    let files = folder.open(&["."]).unwrap();
    let manifest = folder.runtime.block_on(select(&files, None, Some(710), &Access::anonymous())).unwrap();
    assert_eq!(manifest.rows, 710);
    let rows = folder.rows(request(manifest, SHUFFLED)).unwrap();
    assert_eq!(rows.iter().map(|row| row.number).collect::<BTreeSet<_>>(), (0..710).collect());
}

#[test]
fn labels_are_found_in_numeric_order_and_within_the_split() {
    let folder = Folder::new();
    let manifest = three_shards(&folder);
    let find = |manifest: &SplitManifest, label: &str| {
        let columns = graftwork_shared::data::Columns { label: label.to_owned(), ..columns() };
        folder.runtime.block_on(find_labels(manifest, &columns, &Access::anonymous())).unwrap()
    };
    assert_eq!(find(&manifest, "label"), ["0", "1"]);
    assert_eq!(find(&manifest, "group").len(), 143);
    let files = folder.open(&["."]).unwrap();
    let test = folder.select(&files, rule(Some("group")), Split::Test);
    assert!(find(&test, "group").len() < 40);
}

#[test]
fn only_the_columns_needed_are_fetched() {
    let folder = Folder::new();
    let long: arrow_array::StringArray = (0..2000_u64)
        .map(|n| Some((0..40).map(|i| format!("{:x}", (n + 1) * (i + 7) * 0x9e37_79b9)).collect::<String>()))
        .collect();
    let texts: arrow_array::StringArray = (0..2000).map(|n| Some(format!("t{n}"))).collect();
    let labels = arrow_array::Int64Array::from_iter_values((0..2000).map(|n| n % 2));
    let path = folder.write(
        "a.parquet",
        vec![
            ("long", std::sync::Arc::new(long)),
            ("text", std::sync::Arc::new(texts)),
            ("label", std::sync::Arc::new(labels)),
        ],
        500,
    );
    let size = std::fs::metadata(path).unwrap().len();
    let mut reader = folder.start(request(folder.manifest(&["a.parquet"]), Order::Sequential));
    assert_eq!(reader.by_ref().count(), 2000);
    // The tail that is fetched for the footer is 64 KiB; the rest is far below the long column's share.
    assert!(reader.bytes_read() < (64 << 10) + size / 4, "{} of {size}", reader.bytes_read());
}

#[test]
fn an_uploaded_file_is_read_wherever_it_lies_and_known_by_its_digest() {
    let folder = Folder::new();
    let path = folder.shard("a.parquet", 0, 30, 10);
    let digest = graftwork_shared::digest::Digest::of(&std::fs::read(&path).unwrap());
    let location = graftwork_shared::upload::location(digest, "rows of the task.parquet");
    let open = |access: &Access| folder.runtime.block_on(crate::open(&vec![location.clone()], access));
    let error = open(&Access::anonymous()).unwrap_err().to_string();
    assert!(error.contains("rows of the task.parquet") && error.contains("submit the job again"), "{error}");
    let mut identities = Vec::new();
    for place in ["first", "second"] {
        // Other machines keep it at other places and times.
        let copy = folder.path(place);
        std::fs::copy(&path, &copy).unwrap();
        let access = Access::anonymous().with_uploads([(digest, copy)].into());
        let files = open(&access).unwrap();
        let manifest = folder.runtime.block_on(select(&files, None, None, &access)).unwrap();
        let reader = crate::RowReader::start(folder.runtime.handle(), request(manifest, SHUFFLED), access);
        assert_eq!(reader.map(Result::unwrap).count(), 30);
        identities.push(files[0].identity.clone());
    }
    assert_eq!(identities[0], identities[1]);
    assert_eq!((&identities[0].location, identities[0].version.as_str()), (&location, digest.to_string().as_str()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Resuming at any cursor gives the tail of the undisturbed epoch and the same digests, whatever the rule.
    #[test]
    fn resuming_anywhere_gives_the_tail(cursor in 0_usize..700, epoch in 0_u32..3, kind in 0..3, bytes in 2_u64..40) {
        let folder = Folder::new();
        three_shards(&folder);
        let files = folder.open(&["."]).unwrap();
        let rule = match kind {
            0 => None,
            1 => Some((rule(None), Split::Train)),
            _ => Some((rule(Some("group")), Split::Train)),
        };
        let manifest = folder.runtime.block_on(select(&files, rule, None, &Access::anonymous())).unwrap();
        let order = Order::Shuffled { seed: 11, window_bytes: bytes << 10 };
        let whole = ReadRequest { epoch, ..request(manifest, order) };
        let mut reader = folder.start(whole.clone());
        let cursor = cursor.min(usize::try_from(whole.manifest.rows).unwrap());
        for _ in 0..cursor {
            reader.next().unwrap().unwrap();
        }
        let groups = serde_json::from_str(&serde_json::to_string(&reader.groups()).unwrap()).unwrap();
        let mut resumed = folder.start(ReadRequest { cursor: cursor as u64, groups, ..whole });
        let tail: Vec<_> = resumed.by_ref().collect::<Result<_, _>>().unwrap();
        let wanted: Vec<_> = reader.by_ref().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(tail, wanted);
        prop_assert_eq!(resumed.groups(), reader.groups());
    }
}
