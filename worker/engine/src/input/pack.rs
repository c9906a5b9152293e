//! Cutting the rows of an update into lanes. The rows alone decide the cut, never time or who computes.

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

    /// Lanes in order, batch after batch. The L lanes of a batch of n rows have n/L rows each, or one more, and about as
    /// many tokens: so threads that compute a lane each are done at about the same time. A last update with fewer rows
    /// fills its first batches; a lane without rows is `None`, and the number of lanes stays.
    pub(crate) fn lanes(&self, examples: &[Example]) -> Vec<Option<Lane>> {
        let mut lanes = Vec::with_capacity(self.accumulation * self.lanes);
        let edge = |batch: usize| (batch * self.batch_size).min(examples.len());
        for batch in 0..self.accumulation {
            let rows = &examples[edge(batch)..edge(batch + 1)];
            let lengths: Vec<usize> = rows.iter().map(|row| row.tokens.ids.len()).collect();
            lanes.extend(deal(&lengths, self.lanes).iter().map(|places| pack(rows, places)));
        }
        lanes
    }
}

/// The places of each lane's rows among those of a batch, ascending: the longest row that is left goes to the lane with
/// the fewest tokens among those that may have more rows. Of equals the first.
pub fn deal(lengths: &[usize], lanes: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&place| std::cmp::Reverse(lengths[place]));
    let mut places: Vec<Vec<usize>> = vec![Vec::new(); lanes];
    let mut tokens = vec![0; lanes];
    for place in order {
        let open = (0..lanes).filter(|&lane| places[lane].len() < share(lengths.len(), lanes, lane).len());
        let lane = open.min_by_key(|&lane| tokens[lane]).expect("lanes have room for all rows");
        tokens[lane] += lengths[place];
        places[lane].push(place);
    }
    places.iter_mut().for_each(|places| places.sort_unstable());
    places
}

fn pack(batch: &[Example], places: &[usize]) -> Option<Lane> {
    let examples = || places.iter().map(|&place| &batch[place]);
    let first = examples().next()?;
    let mut tokens = Tokens::default();
    for example in examples() {
        tokens.ids.extend(&example.tokens.ids);
        tokens.type_ids.extend(&example.tokens.type_ids);
        tokens.lengths.push(example.tokens.ids.len());
    }
    // A reader gives one kind of label, that of the head.
    let targets = match first.label {
        Label::Class(_) => Targets::Classes(examples().filter_map(|row| class(row.label)).collect()),
        Label::Value(_) => Targets::Values(examples().filter_map(|row| value(row.label)).collect()),
    };
    Some(Lane { tokens, targets, rows: examples().map(|row| row.number).collect() })
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
    fn lanes_are_of_one_batch_and_share_its_tokens() {
        let shape = BatchShape { batch_size: 5, accumulation: 2, lanes: 2 };
        // Of 1 to 5 tokens, and of 6 to 10.
        let lanes = shape.lanes(&examples(10));
        assert_eq!(rows(&lanes), [vec![1, 4], vec![0, 2, 3], vec![6, 9], vec![5, 7, 8]]);
        let lane = lanes[1].as_ref().unwrap();
        assert_eq!((lane.tokens.lengths.as_slice(), lane.tokens.ids.len()), (&[1, 3, 4][..], 8));
        assert_eq!(lane.targets, Targets::Classes(vec![0, 0, 1]));
    }

    #[test]
    fn rows_are_dealt_by_length_and_each_lane_has_its_number() {
        assert_eq!(deal(&[9, 1, 1, 1, 1, 1, 1, 1], 2), [vec![0, 5, 6, 7], vec![1, 2, 3, 4]]);
        assert_eq!(deal(&[4, 8, 6, 2, 5, 7], 3), [vec![1, 3], vec![0, 5], vec![2, 4]]);
        assert_eq!(deal(&[3, 3, 3], 2), [vec![0], vec![1, 2]]);
        assert_eq!(deal(&[], 2), [vec![], vec![]] as [Vec<usize>; 2]);
        for lanes in 1..5 {
            let lengths: Vec<usize> = (0..16).map(|row| row * row * 7 % 31 + 1).collect();
            let dealt = deal(&lengths, lanes);
            let mut all: Vec<usize> = dealt.concat();
            all.sort_unstable();
            assert_eq!(all, (0..16).collect::<Vec<_>>());
            let tokens = dealt.iter().map(|lane| lane.iter().map(|&row| lengths[row]).sum::<usize>());
            let (least, most) = (tokens.clone().min().unwrap(), tokens.max().unwrap());
            assert!(most - least <= 3, "{least} to {most} tokens in {lanes} lanes");
        }
    }

    #[test]
    fn a_small_last_update_keeps_the_number_of_lanes() {
        let shape = BatchShape { batch_size: 4, accumulation: 2, lanes: 4 };
        assert_eq!(
            rows(&shape.lanes(&examples(5))),
            [vec![3], vec![2], vec![1], vec![0], vec![], vec![], vec![], vec![4]]
        );
        assert_eq!(shape.lanes(&[]).len(), 8);
    }
}
