//! Cutting the rows of an update into lanes. Only counts decide the cut, never lengths or time.

use graftwork_collective::share;
use graftwork_dataset::Label;
use graftwork_shared::training::Training;

use super::encoder::Encoded;
use crate::{Lane, Targets, Tokens};

/// A tokenised row.
#[derive(Clone, Debug)]
pub(crate) struct Example {
    pub(crate) number: u64,
    pub(crate) tokens: Encoded,
    pub(crate) label: Label,
}

/// How the rows of one update are cut: `accumulation` batches of `batch_size` rows, each into `lanes` lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Rows of a batch.
    pub batch_size: usize,
    /// Batches of an update.
    pub accumulation: usize,
    /// Lanes of a batch.
    pub lanes: usize,
}

impl BatchShape {
    /// The shape that a job asks for.
    pub fn of(training: &Training) -> Self {
        let [batch_size, accumulation, lanes] =
            [training.batch_size, training.accumulation, training.lanes].map(|count| count.max(1) as usize);
        Self { batch_size, accumulation, lanes }
    }

    /// One lane of so many rows: how evaluations read.
    pub fn whole(rows: usize) -> Self {
        Self { batch_size: rows, accumulation: 1, lanes: 1 }
    }

    /// Rows of a full update.
    pub fn rows(&self) -> usize {
        self.batch_size * self.accumulation
    }

    /// Lanes in order, batch after batch: lane i of a batch of n rows is the rows `[i·n/L, (i+1)·n/L)`. A last update
    /// with fewer rows fills its first batches; a lane without rows is `None`, and the number of lanes stays.
    pub(crate) fn lanes(&self, examples: &[Example]) -> Vec<Option<Lane>> {
        let mut lanes = Vec::with_capacity(self.accumulation * self.lanes);
        let edge = |batch: usize| (batch * self.batch_size).min(examples.len());
        for batch in 0..self.accumulation {
            let rows = &examples[edge(batch)..edge(batch + 1)];
            lanes.extend((0..self.lanes).map(|lane| pack(&rows[share(rows.len(), self.lanes, lane)])));
        }
        lanes
    }
}

fn pack(examples: &[Example]) -> Option<Lane> {
    let first = examples.first()?;
    let mut tokens = Tokens::default();
    for example in examples {
        tokens.ids.extend(&example.tokens.ids);
        tokens.type_ids.extend(&example.tokens.type_ids);
        tokens.lengths.push(example.tokens.ids.len());
    }
    // A reader gives one kind of label, that of the head.
    let targets = match first.label {
        Label::Class(_) => Targets::Classes(examples.iter().filter_map(|row| class(row.label)).collect()),
        Label::Value(_) => Targets::Values(examples.iter().filter_map(|row| value(row.label)).collect()),
    };
    Some(Lane { tokens, targets, rows: examples.iter().map(|row| row.number).collect() })
}

fn class(label: Label) -> Option<i64> {
    match label {
        Label::Class(class) => Some(class.into()),
        Label::Value(_) => None,
    }
}

fn value(label: Label) -> Option<f32> {
    match label {
        Label::Value(value) => Some(value),
        Label::Class(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(count: u32) -> Vec<Example> {
        let tokens = |row: u32| Encoded { ids: vec![1; row as usize + 1], type_ids: vec![0; row as usize + 1] };
        let example = |row: u32| Example { number: row.into(), tokens: tokens(row), label: Label::Class(row % 2) };
        (0..count).map(example).collect()
    }

    fn rows(lanes: &[Option<Lane>]) -> Vec<Vec<u64>> {
        lanes.iter().map(|lane| lane.as_ref().map_or(Vec::new(), |lane| lane.rows.clone())).collect()
    }

    #[test]
    fn lanes_are_contiguous_runs_of_each_batch() {
        let shape = BatchShape { batch_size: 5, accumulation: 2, lanes: 2 };
        let lanes = shape.lanes(&examples(10));
        assert_eq!(rows(&lanes), [vec![0, 1], vec![2, 3, 4], vec![5, 6], vec![7, 8, 9]]);
        let lane = lanes[1].as_ref().unwrap();
        assert_eq!((lane.tokens.lengths.as_slice(), lane.tokens.ids.len()), (&[3, 4, 5][..], 12));
        assert_eq!(lane.targets, Targets::Classes(vec![0, 1, 0]));
    }

    #[test]
    fn a_small_last_update_keeps_the_number_of_lanes() {
        let shape = BatchShape { batch_size: 4, accumulation: 2, lanes: 4 };
        assert_eq!(
            rows(&shape.lanes(&examples(5))),
            [vec![0], vec![1], vec![2], vec![3], vec![], vec![], vec![], vec![4]]
        );
        assert_eq!(shape.lanes(&[]).len(), 8);
    }
}
