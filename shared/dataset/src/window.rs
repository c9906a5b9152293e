//! Filling one window: the rows of its blocks, decoded, checked, filtered by the split rule and put in order.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
};

use arrow_array::{Array, RecordBatch, StringViewArray};
use arrow_schema::Schema;
use futures::{StreamExt, TryStreamExt};
use graftwork_shared::data::{Columns, SplitManifest};

use crate::{
    Access, DataError, Row,
    columns::{Role, check_group, check_schema},
    labels::{BadLabel, LabelReader, Labels},
    order::{Plan, Window},
    select::Membership,
    shard::{Shards, texts},
};

/// First row, rows, and position in the window of a block within its row group.
type Run = (u64, u64, usize);

/// The batches of one block, and its position in the window.
type Placed = (usize, Vec<RecordBatch>);

/// Row groups fetched at the same time.
const PARALLEL_READS: usize = 8;

/// Decoded rows of one window in the order of the epoch.
pub(crate) struct Filled {
    parts: Vec<Part>,
    /// Part and row in the part.
    order: Vec<(u32, u32)>,
}

/// Neighbouring decoded rows.
struct Part {
    file: u32,
    group: u32,
    number: u64,
    texts: Vec<StringViewArray>,
    labels: Labels,
}

impl Filled {
    pub(crate) fn rows(&self) -> usize {
        self.order.len()
    }

    /// The row at a position of the window's order, with its file and row group.
    pub(crate) fn row(&self, position: usize) -> (Row, u32, u32) {
        let (part, index) = self.order[position];
        let part = &self.parts[part as usize];
        let row = Row {
            number: part.number + u64::from(index),
            texts: part.texts.iter().map(|column| column.value(index as usize).to_owned()).collect(),
            label: part.labels.get(index as usize),
        };
        (row, part.file, part.group)
    }
}

/// Reads windows of one task's rows.
pub(crate) struct Filler<'a> {
    manifest: &'a SplitManifest,
    columns: &'a Columns,
    labels: LabelReader,
    membership: Option<Membership>,
    /// Number of the first row of each file.
    first_numbers: Vec<u64>,
    access: &'a Access,
    fetched: Arc<AtomicU64>,
}

type Check<'a> = Box<dyn Fn(&str, &Schema) -> Result<(), DataError> + Send + Sync + 'a>;

/// The opened files behind a [`Filler`].
pub(crate) type RowShards<'a> = Shards<Check<'a>>;

impl<'a> Filler<'a> {
    pub(crate) fn new(
        manifest: &'a SplitManifest,
        columns: &'a Columns,
        labels: LabelReader,
        access: &'a Access,
        fetched: Arc<AtomicU64>,
    ) -> Self {
        let mut first_numbers = Vec::with_capacity(manifest.files.len());
        let mut number = 0;
        for file in &manifest.files {
            first_numbers.push(number);
            number += file.content.rows();
        }
        let membership = Membership::of(manifest);
        Self { manifest, columns, labels, membership, first_numbers, access, fetched }
    }

    /// The files, for text, label and group columns.
    pub(crate) fn shards(&self) -> RowShards<'a> {
        let mut names: Vec<String> = self.columns.text.names().into_iter().map(str::to_owned).collect();
        names.push(self.columns.label.clone());
        names.extend(self.membership.as_ref().and_then(|membership| membership.group_by.clone()));
        let (columns, kind) = (self.columns, self.labels.kind());
        let group = self.membership.as_ref().and_then(|membership| membership.group_by.clone());
        let check: Check<'a> = Box::new(move |location, schema| {
            check_schema(location, schema, columns, kind)?;
            group.as_ref().map_or(Ok(()), |group| check_group(location, schema, group))
        });
        Shards::new(self.manifest, names, self.access, check).counting(Arc::clone(&self.fetched))
    }

    /// The files, for the group column alone.
    pub(crate) fn group_shards(&self) -> RowShards<'a> {
        let group = self.membership.as_ref().and_then(|membership| membership.group_by.clone());
        let names = group.iter().cloned().collect();
        let check: Check<'a> = Box::new(move |location, schema| {
            group.as_ref().map_or(Ok(()), |group| check_group(location, schema, group))
        });
        Shards::new(self.manifest, names, self.access, check).counting(Arc::clone(&self.fetched))
    }

    /// How many rows of a window the split rule keeps. Reads nothing, or the group column alone.
    pub(crate) async fn count(
        &self,
        group_shards: &RowShards<'a>,
        plan: &Plan,
        window: &Window,
    ) -> Result<u64, DataError> {
        let blocks = &plan.blocks[window.blocks.clone()];
        let Some(membership) = &self.membership else { return Ok(blocks.iter().map(|block| block.rows).sum()) };
        if membership.group_by.is_none() {
            let numbers = blocks.iter().flat_map(|block| block.number..block.number + block.rows);
            return Ok(numbers.filter(|number| membership.keeps_row(*number)).count() as u64);
        }
        let mut rows = 0;
        for (position, batches) in self.read_blocks(group_shards, plan, window).await? {
            let block = &blocks[position];
            let mut number = block.number;
            for batch in &batches {
                let keeps = self.kept(batch, 0, block.file, number)?;
                rows += keeps.iter().filter(|keep| **keep).count() as u64;
                number += batch.num_rows() as u64;
            }
        }
        Ok(rows)
    }

    /// Decodes a window and puts its rows in order.
    pub(crate) async fn fill(&self, shards: &RowShards<'a>, plan: &Plan, window: &Window) -> Result<Filled, DataError> {
        let read = self.read_blocks(shards, plan, window).await?;
        let mut filled = Filled { parts: Vec::new(), order: Vec::new() };
        for (position, batches) in read {
            let block = &plan.blocks[window.blocks.start + position];
            let mut number = block.number;
            for batch in &batches {
                let (part, keeps) = self.part(batch, block.file, block.group, number)?;
                let index = u32::try_from(filled.parts.len()).expect("a window has fewer than 2^32 parts");
                filled.order.extend((0..).zip(&keeps).filter(|(_, keep)| **keep).map(|(row, _)| (index, row)));
                filled.parts.push(part);
                number += batch.num_rows() as u64;
            }
        }
        plan.shuffle_window(window, &mut filled.order);
        Ok(filled)
    }

    /// The window's blocks by position, each row group read once.
    async fn read_blocks(
        &self,
        shards: &RowShards<'a>,
        plan: &Plan,
        window: &Window,
    ) -> Result<BTreeMap<usize, Vec<RecordBatch>>, DataError> {
        let mut groups: BTreeMap<(u32, u32), Vec<Run>> = BTreeMap::new();
        for (position, block) in plan.blocks[window.blocks.clone()].iter().enumerate() {
            groups.entry((block.file, block.group)).or_default().push((block.start, block.rows, position));
        }
        let reads: Vec<Vec<Placed>> = futures::stream::iter(groups)
            .map(|((file, group), mut blocks)| async move {
                blocks.sort_unstable();
                let runs: Vec<(u64, u64)> = blocks.iter().map(|(start, rows, _)| (*start, *rows)).collect();
                let read = shards.read(file, group, &runs).await?;
                Ok(blocks.into_iter().map(|(_, _, position)| position).zip(read).collect())
            })
            .buffered(PARALLEL_READS)
            .try_collect()
            .await?;
        Ok(reads.into_iter().flatten().collect())
    }

    /// Which rows of a batch the split rule keeps.
    fn kept(&self, batch: &RecordBatch, group_column: usize, file: u32, number: u64) -> Result<Vec<bool>, DataError> {
        let rows = batch.num_rows();
        let Some(membership) = &self.membership else { return Ok(vec![true; rows]) };
        let Some(name) = &membership.group_by else {
            return Ok((number..).take(rows).map(|number| membership.keeps_row(number)).collect());
        };
        let values = texts(batch.column(group_column)).map_err(|detail| DataError::ColumnType {
            location: self.manifest.files[file as usize].location.clone(),
            role: Role::Group.name().to_owned(),
            column: name.clone(),
            found: detail,
            wanted: "groups need a text form".to_owned(),
            help: "name another column".to_owned(),
        })?;
        if let Some(row) = (0..rows).find(|row| values.is_null(*row)) {
            return Err(self.null(file, number + row as u64, Role::Group, name));
        }
        Ok(values.iter().map(|value| value.is_some_and(|value| membership.keeps_group(value))).collect())
    }

    fn part(&self, batch: &RecordBatch, file: u32, group: u32, number: u64) -> Result<(Part, Vec<bool>), DataError> {
        let names = self.columns.text.names();
        let keeps = self.kept(batch, names.len() + 1, file, number)?;
        let mut columns = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            let column = texts(batch.column(index)).map_err(|detail| DataError::DamagedPage {
                location: self.manifest.files[file as usize].location.clone(),
                row_group: group as usize,
                detail,
            })?;
            let null = |row: &usize| keeps[*row] && column.is_null(*row);
            if column.null_count() > 0
                && let Some(row) = (0..column.len()).find(null)
            {
                return Err(self.null(file, number + row as u64, Role::Text, name));
            }
            columns.push(column);
        }
        let labels =
            self.labels.read(batch.column(names.len()), &keeps).map_err(|bad| self.bad_label(file, number, bad))?;
        Ok((Part { file, group, number, texts: columns, labels }, keeps))
    }

    fn null(&self, file: u32, number: u64, role: Role, column: &str) -> DataError {
        DataError::Null {
            location: self.manifest.files[file as usize].location.clone(),
            row: number - self.first_numbers[file as usize],
            role: role.name().to_owned(),
            column: column.to_owned(),
        }
    }

    fn bad_label(&self, file: u32, number: u64, bad: BadLabel) -> DataError {
        let location = self.manifest.files[file as usize].location.clone();
        let row = |index: usize| number + index as u64 - self.first_numbers[file as usize];
        let column = self.columns.label.clone();
        match bad {
            BadLabel::Null(index) => self.null(file, number + index as u64, Role::Label, &column),
            BadLabel::Unknown(index, value) => {
                let allowed = self.labels.allowed().to_owned();
                DataError::UnknownLabel { location, row: row(index), column, value, allowed }
            }
            BadLabel::NotFinite(index, value) => DataError::NotFinite { location, row: row(index), column, value },
        }
    }
}
