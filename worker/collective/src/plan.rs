//! Who sums which subtrees, which buckets cross between ranks, and which slice of them each rank adds.
//!
//! A plan is a pure function of the number of lanes and ranks. It moves nothing: [`crate::reduce_lanes`] sends each rank's
//! buckets and combines them. No plan can change a byte of the sum, only who computes it.

use std::ops::Range;

use crate::tree::{Node, Tree};

/// The exchange that sums one tree over a number of ranks.
///
/// Each rank, in order: sums its own subtrees ([`ExchangePlan::owned`]), sends slice `r` of every one of them to rank
/// `r`, adds its own slice of all buckets along the tree, and sends the result to all. A rank thus sends and receives
/// each of its buckets once, and the whole sum once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangePlan {
    tree: Tree,
    lanes: Vec<Range<usize>>,
    owned: Vec<Vec<Node>>,
}

/// The contiguous share `index` of `parts` of `count` things: `[index · count / parts, (index + 1) · count / parts)`.
/// Rows are cut into lanes by it, and lanes into ranks.
///
/// # Panics
/// When `parts` is 0.
pub fn share(count: usize, parts: usize, index: usize) -> Range<usize> {
    index * count / parts..(index + 1) * count / parts
}

impl ExchangePlan {
    /// The plan for `lanes` lanes on `ranks` ranks. With more ranks than lanes some own nothing.
    pub fn new(lanes: usize, ranks: usize) -> Self {
        Self::weighted(lanes, &vec![1; ranks.max(1)])
    }

    /// The plan for ranks that get lanes by their weights: the contiguous part of all lanes that a weight is of their
    /// sum. Who weighs nothing computes nothing; where all do, all get the same.
    pub fn weighted(lanes: usize, weights: &[u32]) -> Self {
        let tree = Tree::new(lanes);
        let total: u64 = weights.iter().copied().map(u64::from).sum();
        let weight = |weight: u32| if total == 0 { 1 } else { u64::from(weight) };
        let total = if total == 0 { weights.len().max(1) as u64 } else { total };
        let edge = |before: u64| usize::try_from(u128::from(before) * tree.lanes() as u128 / u128::from(total));
        let edge = |before: u64| edge(before).unwrap_or(usize::MAX);
        let mut before = 0;
        let parts = weights.iter().map(|of| {
            let start = before;
            before += weight(*of);
            edge(start)..edge(before)
        });
        let lanes: Vec<Range<usize>> = parts.collect();
        let owned = lanes.iter().map(|lanes| tree.cover(lanes.clone())).collect();
        Self { tree, lanes, owned }
    }

    /// The tree.
    pub fn tree(&self) -> Tree {
        self.tree
    }

    /// How many ranks take part.
    pub fn ranks(&self) -> usize {
        self.owned.len()
    }

    /// The lanes that a rank computes.
    pub fn lanes(&self, rank: usize) -> Range<usize> {
        self.lanes[rank].clone()
    }

    /// The subtrees that a rank sums alone and sends, from left to right: at most `2 · log2(lanes)`.
    pub fn owned(&self, rank: usize) -> &[Node] {
        &self.owned[rank]
    }

    /// The part of every bucket of `length` numbers that a rank adds along the rest of the tree.
    pub fn slice(&self, rank: usize, length: usize) -> Range<usize> {
        share(length, self.ranks(), rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_one_owner() {
        for (lanes, ranks) in [(8, 1), (8, 3), (7, 7), (2, 5), (13, 4)] {
            let plan = ExchangePlan::new(lanes, ranks);
            let spans = (0..ranks).flat_map(|rank| plan.owned(rank).to_vec()).flat_map(|node| plan.tree().span(node));
            assert_eq!(spans.collect::<Vec<_>>(), (0..lanes).collect::<Vec<_>>());
        }
    }

    #[test]
    fn weights_move_lanes_and_lose_none() {
        let lanes = |lanes: usize, weights: &[u32]| {
            let plan = ExchangePlan::weighted(lanes, weights);
            (0..weights.len()).map(|rank| plan.lanes(rank)).collect::<Vec<_>>()
        };
        assert_eq!(lanes(8, &[3, 4, 1]), [0..3, 3..7, 7..8]);
        assert_eq!(lanes(16, &[3, 4, 1]), [0..6, 6..14, 14..16], "the same parts of more lanes");
        assert_eq!(lanes(4, &[2, 0, 2]), [0..2, 2..2, 2..4]);
        assert_eq!(lanes(4, &[0, 0]), [0..2, 2..4]);
        for ranks in 1..=5 {
            assert_eq!(ExchangePlan::weighted(13, &vec![1; ranks]), ExchangePlan::new(13, ranks));
            assert!((0..ranks).all(|rank| ExchangePlan::new(13, ranks).lanes(rank) == share(13, ranks, rank)));
        }
    }

    #[test]
    fn power_of_two_ranks_send_one_bucket_each() {
        let plan = ExchangePlan::new(8, 4);
        assert!((0..4).all(|rank| plan.owned(rank).len() == 1));
        assert_eq!(plan.slice(3, 10), 7..10);
    }
}
