//! Sums of flat buffers along the tree: whole, in parts, and the parts together.
//!
//! The three must agree to the last bit for every contiguous partition of the lanes; the property test in `tests/`
//! holds them to it. A lane without rows (`None`) adds nothing, which is not the same as adding zeros: -0.0 + 0.0 is
//! 0.0.

use std::collections::BTreeMap;

use crate::tree::{Node, Tree, both};

/// What an owner of lanes sends: the sum of one complete subtree.
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// The subtree.
    pub node: Node,
    /// Its sum; `None` when none of its lanes has rows.
    pub sum: Option<Vec<f32>>,
}

/// Partial sums that do not make one whole. A retry cannot help: the caller's parts are wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SumError {
    /// A subtree came twice, or beside a part of itself.
    #[error("the sum of node {index} at level {level} came twice")]
    Twice {
        /// The node's level.
        level: u32,
        /// The node's index.
        index: usize,
    },
    /// A lane is in no subtree that came.
    #[error("the sum of lane {lane} of {lanes} is missing")]
    Missing {
        /// The lane.
        lane: usize,
        /// How many there are.
        lanes: usize,
    },
    /// Buffers of different lengths.
    #[error("a sum of {found} numbers came where {expected} were expected")]
    Length {
        /// Length of the first buffer.
        expected: usize,
        /// Length of this one.
        found: usize,
    },
}

/// The sum of all lanes along the tree. Lane buffers have one length; lanes without rows are `None`. Empty when no
/// lane has rows.
///
/// # Panics
/// When two buffers differ in length.
pub fn tree_sum(lanes: Vec<Option<Vec<f32>>>) -> Vec<f32> {
    if lanes.is_empty() {
        return Vec::new();
    }
    Tree::new(lanes.len()).fold(lanes, add).unwrap_or_default()
}

/// The sums of the complete subtrees in the contiguous range of lanes that starts at `first`.
///
/// # Panics
/// When the range reaches past the last lane or two buffers differ in length.
pub fn partial_sums(tree: Tree, first: usize, lanes: Vec<Option<Vec<f32>>>) -> Vec<Partial> {
    let end = first + lanes.len();
    assert!(end <= tree.lanes(), "lanes {first} to {end} of {}", tree.lanes());
    let nodes = tree.cover(first..end);
    let mut lanes = lanes.into_iter();
    // A node starts at a multiple of its own width, so its lanes alone fold as they do inside the whole tree.
    let sum_of = |node| {
        let below: Vec<_> = lanes.by_ref().take(tree.span(node).len()).collect();
        Partial { node, sum: Tree::new(below.len()).fold(below, add) }
    };
    nodes.into_iter().map(sum_of).collect()
}

/// Adds the partial sums of all owners along the rest of the tree, whatever order they came in. `None` when no lane
/// has rows. Buffers may be whole, or the same slice of each.
pub fn combine(tree: Tree, partials: Vec<Partial>) -> Result<Option<Vec<f32>>, SumError> {
    let mut sums = BTreeMap::new();
    let mut expected = None;
    for Partial { node, sum } in partials {
        if let Some(sum) = &sum {
            let expected = *expected.get_or_insert(sum.len());
            if sum.len() != expected {
                return Err(SumError::Length { expected, found: sum.len() });
            }
        }
        if sums.insert(node, sum).is_some() {
            return Err(SumError::Twice { level: node.level, index: node.index });
        }
    }
    let sum = take(tree, tree.root(), &mut sums)?;
    match sums.into_keys().next() {
        Some(node) => Err(SumError::Twice { level: node.level, index: node.index }),
        None => Ok(sum),
    }
}

fn take(tree: Tree, node: Node, sums: &mut BTreeMap<Node, Option<Vec<f32>>>) -> Result<Option<Vec<f32>>, SumError> {
    if let Some(sum) = sums.remove(&node) {
        return Ok(sum);
    }
    let Some([left, right]) = node.children() else {
        return Err(SumError::Missing { lane: node.index, lanes: tree.lanes() });
    };
    let left = take(tree, left, sums)?;
    let right = if tree.span(right).is_empty() { None } else { take(tree, right, sums)? };
    Ok(both(left, right, add))
}

fn add(mut left: Vec<f32>, right: Vec<f32>) -> Vec<f32> {
    assert_eq!(left.len(), right.len(), "lane buffers have one length");
    for (sum, value) in left.iter_mut().zip(right) {
        *sum += value;
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_addition_is_the_trees() {
        // Each of these is lost when it meets 1e8 alone, so the order shows in the sum.
        let lanes = vec![Some(vec![1e8]), Some(vec![3.0]), Some(vec![3.0]), Some(vec![3.0])];
        assert_eq!(tree_sum(lanes), [(1e8_f32 + 3.0) + (3.0 + 3.0)]);
    }

    #[test]
    fn an_empty_lane_keeps_a_negative_zero() {
        let sum = tree_sum(vec![Some(vec![-0.0]), None]);
        assert!(sum[0].is_sign_negative());
        assert!(tree_sum(vec![None, None]).is_empty());
        assert!(tree_sum(Vec::new()).is_empty());
    }

    #[test]
    fn a_missing_or_doubled_part_is_an_error() {
        let tree = Tree::new(3);
        let lane = |index| Partial { node: Node { level: 0, index }, sum: Some(vec![1.0]) };
        assert_eq!(combine(tree, vec![lane(0), lane(2)]), Err(SumError::Missing { lane: 1, lanes: 3 }));
        assert_eq!(
            combine(tree, vec![lane(0), lane(1), lane(2), lane(1)]),
            Err(SumError::Twice { level: 0, index: 1 })
        );
        let pair = Partial { node: Node { level: 1, index: 0 }, sum: Some(vec![2.0]) };
        assert_eq!(combine(tree, vec![pair.clone(), lane(0), lane(2)]), Err(SumError::Twice { level: 0, index: 0 }));
        let long = Partial { node: Node { level: 0, index: 2 }, sum: Some(vec![1.0, 1.0]) };
        assert_eq!(combine(tree, vec![pair.clone(), long]), Err(SumError::Length { expected: 1, found: 2 }));
        assert_eq!(combine(tree, vec![lane(2), pair]), Ok(Some(vec![3.0])));
    }
}
