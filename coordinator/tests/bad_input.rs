//! Bad input and the exact words that it gets: what is wrong, where, what is allowed, and how to mend it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};

mod told;

use told::{TASK, World, told, write_job};

/// What `graftwork plan` says to these tasks.
fn plan(world: &World, tasks: &str) -> String {
    write_job(world, "job.toml", tasks);
    told(world, &["plan", "job.toml"])
}

/// Rewrites a file of the world.
fn change(world: &World, name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let bytes = std::fs::read(world.path(name)).unwrap();
    std::fs::write(world.path(name), change(bytes)).unwrap();
}

fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("it is there");
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

#[test]
fn all_problems_of_a_job_file_come_at_once() {
    let world = World::new();
    let other = TASK.replace("tasks.mood", "tasks.other");
    let tasks = format!(
        "{TASK}lable = \"label\"\npublish_as = \"one\"\n{other}expect = 85\npublish_as = \"one\"\n\
         [fusions.unknown]\nadapters = [\"mood\", \"mod\"]\ntask = \"mood\"\n\
         [fusions.circle]\nadapters = [\"circle\", \"mood\"]\ntask = \"mood\"\n"
    );
    insta::assert_snapshot!(plan(&world, &tasks));
}

#[test]
fn a_missing_column() {
    insta::assert_snapshot!(plan(&World::new(), &format!("{TASK}label = \"lable\"\n")));
}

#[test]
fn a_label_outside_the_label_set() {
    let world = World::new();
    world.rows("validation.parquet", &["x", "y"], &["good", "mixed"]);
    let labels = "head = { kind = \"classification\", labels = [\"bad\", \"good\"] }\n";
    insta::assert_snapshot!(plan(&world, &format!("{TASK}{labels}")));
}

#[test]
fn an_absent_file() {
    insta::assert_snapshot!(plan(&World::new(), &TASK.replace("\"train.parquet\"", "\"trian.parquet\"")));
}

#[test]
fn an_empty_shard() {
    let world = World::new();
    world.rows("train.parquet", &[], &[]);
    insta::assert_snapshot!(plan(&world, TASK));
}

#[test]
fn shards_of_different_schemas() {
    let world = World::new();
    world.numbers("validation.parquet", &[0, 1]);
    let two = TASK.replace("train = \"train.parquet\"", "train = [\"train.parquet\", \"validation.parquet\"]");
    insta::assert_snapshot!(plan(&world, &two.replace("validation = \"validation", "validation = \"test")));
}

#[test]
fn a_truncated_parquet_file() {
    let world = World::new();
    change(&world, "train.parquet", |bytes| bytes[..bytes.len() / 2].to_vec());
    insta::assert_snapshot!(plan(&world, TASK));
}

#[test]
fn a_damaged_parquet_footer() {
    let world = World::new();
    change(&world, "train.parquet", |mut bytes| {
        let end = bytes.len() - 8;
        bytes[end - 40..end].fill(0xff);
        bytes
    });
    insta::assert_snapshot!(plan(&world, TASK));
}

#[test]
fn an_absent_base_model() {
    let world = World::new();
    std::fs::remove_dir_all(world.path("base")).unwrap();
    insta::assert_snapshot!(plan(&world, TASK));
}

#[test]
fn a_base_model_of_an_unknown_architecture() {
    let world = World::new();
    change(&world, "base/config.json", |bytes| replaced(&bytes, "\"bert\"", "\"deba\""));
    insta::assert_snapshot!(plan(&world, TASK));
}

#[test]
fn a_base_model_with_a_missing_tensor() {
    let world = World::new();
    let (from, to) = ("encoder.layer.0.output.dense.bias", "encoder.layer.0.output.dense.bios");
    change(&world, "base/model.safetensors", |bytes| replaced(&bytes, from, to));
    insta::assert_snapshot!(plan(&world, TASK));
}

#[test]
fn a_truncated_base_model() {
    let world = World::new();
    change(&world, "base/model.safetensors", |bytes| bytes[..bytes.len() / 2].to_vec());
    insta::assert_snapshot!(plan(&world, TASK));
}

#[test]
fn a_damaged_base_model() {
    let world = World::new();
    change(&world, "base/model.safetensors", |mut bytes| {
        bytes[8] = b'?';
        bytes
    });
    insta::assert_snapshot!(plan(&world, TASK));
}

#[test]
fn a_head_that_does_not_fit_its_label_column() {
    insta::assert_snapshot!(plan(&World::new(), &format!("{TASK}head = \"regression\"\n")));
}

#[test]
fn a_label_that_is_null() {
    let world = World::new();
    let column = |values: [&'static str; 3]| -> ArrayRef {
        Arc::new(StringArray::from(vec![Some(values[0]), Some(values[1]), None, Some(values[2])]))
    };
    let columns = [("text", column(["a", "b", "c"])), ("label", column(["good", "bad", "good"]))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let file = std::fs::File::create(world.path("train.parquet")).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    insta::assert_snapshot!(plan(&world, TASK));
}

#[test]
fn an_adapter_that_is_not_there() {
    let tasks = format!("{TASK}[fusions.both]\nadapters = [\"mood\", \"./elsewhere\"]\ntask = \"mood\"\n");
    insta::assert_snapshot!(plan(&World::new(), &tasks));
}
