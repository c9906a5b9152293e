//! Every kind of bad input gives its own message, which names the place and the mend.

use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, Float64Array, Int64Array, StringArray};
use graftwork_shared::{
    data::{Columns, Split, SplitRule, TextColumns},
    head::HeadOutput,
    job::HeadKind,
};

use super::{Folder, columns, request, two_classes};
use crate::{Access, DataError, Order, ReadRequest, check_columns, find_labels, select};

fn texts(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn integers(values: &[Option<i64>]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

fn says(error: &DataError, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn a_glob_without_a_match_says_what_there_is() {
    let folder = Folder::new();
    folder.shard("a.parquet", 0, 3, 10);
    let error = folder.open(&["b-*.parquet"]).unwrap_err();
    assert!(matches!(error, DataError::NoMatch { .. }));
    says(&error, &["b-*.parquet", "holds \"a.parquet\""]);
    let error = folder.open(&["a-[01.parquet"]).unwrap_err();
    assert!(matches!(error, DataError::Location { .. }));
    says(&error, &["a-[01.parquet", "\"[01.parquet\" opens a class of characters", "write [[] for a bracket"]);
}

#[test]
fn a_missing_file_says_what_there_is() {
    let folder = Folder::new();
    folder.shard("a.parquet", 0, 3, 10);
    let error = folder.open(&["c.parquet"]).unwrap_err();
    assert!(matches!(error, DataError::MissingFile { .. }));
    says(&error, &["c.parquet does not exist", "\"a.parquet\""]);
}

#[test]
fn a_source_that_names_nothing_or_one_file_twice_is_refused() {
    let folder = Folder::new();
    assert_eq!(folder.open(&[]).unwrap_err(), DataError::NoSource);
    folder.shard("a.parquet", 0, 3, 10);
    let error = folder.open(&["a.parquet", "*.parquet"]).unwrap_err();
    assert!(matches!(error, DataError::NamedTwice { .. }));
    std::fs::create_dir(folder.path("empty")).unwrap();
    assert!(matches!(folder.open(&["empty"]).unwrap_err(), DataError::EmptyFolder { .. }));
}

#[test]
fn an_empty_shard_is_named() {
    let folder = Folder::new();
    folder.shard("a.parquet", 0, 3, 10);
    folder.shard("b.parquet", 0, 0, 10);
    let error = folder.open(&["a.parquet", "b.parquet"]).unwrap_err();
    says(&error, &["b.parquet is an empty shard: 0 rows"]);
}

#[test]
fn shards_of_different_schemas_name_the_first_difference() {
    let folder = Folder::new();
    folder.write("a.parquet", vec![("text", texts(&[Some("x")])), ("label", integers(&[Some(0)]))], 10);
    folder.write("b.parquet", vec![("text", texts(&[Some("x")])), ("label", texts(&[Some("0")]))], 10);
    folder.write("c.parquet", vec![("text", texts(&[Some("x")]))], 10);
    let error = folder.open(&["a.parquet", "b.parquet"]).unwrap_err();
    says(&error, &["b.parquet has another schema", "column \"label\"", "64-bit integers", "texts"]);
    says(&folder.open(&["a.parquet", "c.parquet"]).unwrap_err(), &["no column \"label\""]);
    says(&folder.open(&["c.parquet", "a.parquet"]).unwrap_err(), &["a column \"label\" more"]);
}

#[test]
fn a_missing_column_lists_those_there_are_and_the_nearest() {
    let folder = Folder::new();
    folder.shard("a.parquet", 0, 3, 10);
    let files = folder.open(&["a.parquet"]).unwrap();
    let wrong = Columns { label: "lable".to_owned(), ..columns() };
    let error = check_columns(&files, &wrong, HeadKind::Classification).unwrap_err();
    says(&error, &["no label column \"lable\"", "\"text\", \"label\", \"group\"", "did you mean \"label\"?"]);
    check_columns(&files, &columns(), HeadKind::Classification).unwrap();
    check_columns(&files, &columns(), HeadKind::Regression).unwrap();
}

#[test]
fn column_types_must_fit_the_head() {
    let folder = Folder::new();
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![0.5]));
    let raw: ArrayRef = Arc::new(BinaryArray::from(vec![&b"x"[..]]));
    let columns_of = vec![("text", texts(&[Some("x")])), ("label", floats), ("raw", raw)];
    folder.write("a.parquet", columns_of, 10);
    let files = folder.open(&["a.parquet"]).unwrap();
    let error = check_columns(&files, &columns(), HeadKind::Classification).unwrap_err();
    says(&error, &["label column \"label\"", "64-bit floating-point numbers", "regression head"]);
    check_columns(&files, &columns(), HeadKind::Regression).unwrap();
    let by_text = Columns { label: "text".to_owned(), ..columns() };
    check_columns(&files, &by_text, HeadKind::Classification).unwrap();
    says(&check_columns(&files, &by_text, HeadKind::Regression).unwrap_err(), &["holds texts", "classification head"]);
    let pair = Columns { text: TextColumns::Pair("text".to_owned(), "raw".to_owned()), ..columns() };
    says(&check_columns(&files, &pair, HeadKind::Regression).unwrap_err(), &["text column \"raw\"", "bytes"]);
}

#[test]
fn a_null_text_or_label_names_file_and_row() {
    let folder = Folder::new();
    let labels = || integers(&[Some(0), Some(1), Some(0)]);
    folder.write("a.parquet", vec![("text", texts(&[Some("x"), Some("y"), Some("z")])), ("label", labels())], 10);
    folder.write("b.parquet", vec![("text", texts(&[Some("x"), None, Some("z")])), ("label", labels())], 10);
    let labels = integers(&[Some(0), Some(1), None]);
    folder.write("c.parquet", vec![("text", texts(&[Some("x"), Some("y"), Some("z")])), ("label", labels)], 10);
    let text = folder.rows(request(folder.manifest(&["a.parquet", "b.parquet"]), Order::Sequential)).unwrap_err();
    says(&text, &["row 1 (from 0) of", "b.parquet", "text column \"text\""]);
    let label = folder.rows(request(folder.manifest(&["a.parquet", "c.parquet"]), Order::Sequential)).unwrap_err();
    says(&label, &["row 2 (from 0) of", "c.parquet", "label column \"label\""]);
    let manifest = folder.manifest(&["c.parquet"]);
    let found = folder.runtime.block_on(find_labels(&manifest, &columns(), &Access::anonymous())).unwrap_err();
    assert_eq!(found, label);
}

#[test]
fn a_label_outside_the_label_set_names_value_row_and_set() {
    let folder = Folder::new();
    let columns_of = vec![("text", texts(&[Some("x"), Some("y")])), ("label", texts(&[Some("spam"), Some("sapm")]))];
    folder.write("a.parquet", columns_of, 10);
    let output = HeadOutput::Classification { labels: vec!["ham".to_owned(), "spam".to_owned()] };
    let request = ReadRequest { output, ..request(folder.manifest(&["a.parquet"]), Order::Sequential) };
    let error = folder.rows(request).unwrap_err();
    says(&error, &["row 1 (from 0) of", "label \"sapm\"", "allowed are \"ham\", \"spam\""]);
}

#[test]
fn a_target_that_is_no_number_names_its_row() {
    let folder = Folder::new();
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![0.5, f64::INFINITY]));
    folder.write("a.parquet", vec![("text", texts(&[Some("x"), Some("y")])), ("label", floats)], 10);
    let request =
        ReadRequest { output: HeadOutput::Regression, ..request(folder.manifest(&["a.parquet"]), Order::Sequential) };
    says(&folder.rows(request).unwrap_err(), &["row 1 (from 0) of", "inf", "finite number"]);
}

#[test]
fn a_file_that_changed_since_planning_is_refused() {
    let folder = Folder::new();
    folder.shard("a.parquet", 0, 50, 10);
    let manifest = folder.manifest(&["a.parquet"]);
    folder.shard("a.parquet", 0, 60, 10);
    let error = folder.rows(request(manifest, Order::Sequential)).unwrap_err();
    says(&error, &["a.parquet changed since planning", "bytes and has", "plan the job again"]);

    let mut manifest = folder.manifest(&["a.parquet"]);
    manifest.files[0].version = "17".to_owned();
    let error = folder.rows(request(manifest, Order::Sequential)).unwrap_err();
    says(&error, &["last written at 1970-01-01", "UTC then, and at 20"]);

    let mut manifest = folder.manifest(&["a.parquet"]);
    manifest.files[0].content.footer = graftwork_shared::digest::Digest::of(b"another footer");
    says(&folder.rows(request(manifest, Order::Sequential)).unwrap_err(), &["its footer is another"]);
}

#[test]
fn a_checkpoint_of_other_data_is_refused() {
    let folder = Folder::new();
    folder.shard("a.parquet", 0, 50, 10);
    let beyond = ReadRequest { cursor: 51, ..request(folder.manifest(&["a.parquet"]), Order::Sequential) };
    says(&folder.rows(beyond).unwrap_err(), &["row 51 of an epoch of 50 rows"]);
    let bare = ReadRequest { cursor: 5, ..request(folder.manifest(&["a.parquet"]), Order::Sequential) };
    assert_eq!(folder.rows(bare).unwrap_err(), DataError::GroupsDoNotFit { cursor: 5, consumed: 0 });
}

#[test]
fn a_manifest_that_promises_other_rows_is_noticed() {
    let folder = Folder::new();
    folder.shard("a.parquet", 0, 50, 10);
    for rows in [49, 51] {
        let manifest = graftwork_shared::data::SplitManifest { rows, ..folder.manifest(&["a.parquet"]) };
        let error = folder.rows(request(manifest, Order::Sequential)).unwrap_err();
        assert!(matches!(error, DataError::RowCount { .. }), "{error}");
    }
}

#[test]
fn rules_that_leave_no_rows_say_so() {
    let folder = Folder::new();
    folder.shard("a.parquet", 0, 20, 10);
    let files = folder.open(&["a.parquet"]).unwrap();
    let rule = |group_by: Option<&str>| SplitRule {
        validation: 0.0,
        test: 0.1,
        group_by: group_by.map(str::to_owned),
        seed: 1,
    };
    let pick =
        |rule, split, limit| folder.runtime.block_on(select(&files, Some((rule, split)), limit, &Access::anonymous()));
    says(&pick(rule(None), Split::Validation, None).unwrap_err(), &["validation split holds none of 20 rows"]);
    says(&pick(rule(Some("text")), Split::Validation, Some(5)).unwrap_err(), &["none of 5 rows", "more groups"]);
    says(&pick(rule(Some("gruop")), Split::Train, None).unwrap_err(), &["no group column", "mean \"group\"?"]);
}

#[test]
fn an_id_column_is_no_label_set() {
    let folder = Folder::new();
    let ids: Vec<Option<i64>> = (0..10_001).map(Some).collect();
    let names: Vec<String> = (0..10_001).map(|n| format!("t{n}")).collect();
    let names: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
    folder.write("a.parquet", vec![("text", texts(&names)), ("label", integers(&ids))], 4000);
    let manifest = folder.manifest(&["a.parquet"]);
    let error = folder.runtime.block_on(find_labels(&manifest, &columns(), &Access::anonymous())).unwrap_err();
    says(&error, &["more than 10000 different values"]);
    let _ = two_classes();
}
