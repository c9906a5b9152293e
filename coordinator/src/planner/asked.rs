//! The rows of one split of a task as they are now, for whoever looks at answers to them. Nothing here plans.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_dataset::{Access, GroupDigests, Order, ReadRequest, RowReader};
use graftwork_shared::{
    cause::told,
    data::Split,
    digest::Digest,
    job::{Spans, Task},
};
use tokio::runtime::Handle;

use super::{problems::Problems, rows};

/// Texts by the number of their row.
pub(crate) type Texts = BTreeMap<u64, Vec<String>>;

/// Reads a split, and gives the texts of the rows that are wanted with the digest of all its rows, which a result has too.
/// `Err` says why it cannot be read.
pub(crate) async fn read_texts(task: &Task, split: Split, wanted: BTreeSet<u64>) -> Result<(Texts, Digest), String> {
    let spans = Spans::default();
    let problems = Problems::new(&spans);
    let opened = rows::open(task, BTreeMap::new(), &problems).await;
    let Some(rows) = opened else {
        let said: Vec<String> = problems.into_list().into_iter().map(|problem| problem.message).collect();
        return Err(said.join("; "));
    };
    let manifest = match split {
        Split::Train => Some(rows.train),
        Split::Validation => Some(rows.validation),
        Split::Test => rows.test,
    };
    let request = ReadRequest {
        manifest: manifest.ok_or_else(|| format!("task {} has no {split} rows", task.name))?,
        columns: task.data.columns.clone(),
        output: rows.output,
        order: Order::Sequential,
        epoch: 0,
        cursor: 0,
        groups: GroupDigests::default(),
    };
    let access = Access::from_environment(task.data.credentials.as_deref()).map_err(|error| error.to_string())?;
    let runtime = Handle::current();
    let read = move || {
        let mut reader = RowReader::start(&runtime, request, access);
        let mut texts = Texts::new();
        for row in reader.by_ref() {
            let row = row.map_err(|error| error.to_string())?;
            if wanted.contains(&row.number) {
                texts.insert(row.number, row.texts);
            }
        }
        Ok((texts, reader.groups().digest()))
    };
    tokio::task::spawn_blocking(read).await.map_err(|error| told(&error))?
}
