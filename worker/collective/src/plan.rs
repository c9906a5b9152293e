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
        let (tree, ranks) = (Tree::new(lanes), ranks.max(1));
        let owned = (0..ranks).map(|rank| tree.cover(share(tree.lanes(), ranks, rank))).collect();
        Self { tree, owned }
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
        share(self.tree.lanes(), self.ranks(), rank)
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
    fn power_of_two_ranks_send_one_bucket_each() {
        let plan = ExchangePlan::new(8, 4);
        assert!((0..4).all(|rank| plan.owned(rank).len() == 1));
        assert_eq!(plan.slice(3, 10), 7..10);
    }
}
