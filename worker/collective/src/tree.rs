//! The fixed tree over lane numbers: which two sums are added, and which subtrees a range of lanes completes.
//!
//! ```text
//! level 3                 0                      5 lanes: the node at (level, index) spans the lanes
//!                 ┌───────┴───────┐              [index · 2^level, (index + 1) · 2^level), cut at 5;
//! level 2         0               1              a node whose right half is empty is its left half
//!             ┌───┴───┐           │
//! level 1     0       1           2
//!           ┌─┴─┐   ┌─┴─┐         │
//! lanes     0   1   2   3         4
//! ```
//!
//! Nodes are aligned to powers of two, so any contiguous range of lanes is covered by at most `2 · log2(lanes)` of
//! them. Nothing here may depend on ranks, threads or buffers.

use std::ops::Range;

/// A subtree: `level` 0 is a lane, and a node of level n holds up to 2^n lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// Height above the lanes.
    pub level: u32,
    /// Position among the nodes of its level, from the left.
    pub index: usize,
}

/// The tree over a number of lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    lanes: usize,
}

impl Node {
    /// The node above.
    pub fn parent(self) -> Self {
        Self { level: self.level + 1, index: self.index / 2 }
    }

    /// The two nodes below; `None` for a lane.
    pub fn children(self) -> Option<[Self; 2]> {
        let level = self.level.checked_sub(1)?;
        Some([Self { level, index: 2 * self.index }, Self { level, index: 2 * self.index + 1 }])
    }
}

impl Tree {
    /// The tree over `lanes` lanes; at least 1.
    pub fn new(lanes: usize) -> Self {
        Self { lanes: lanes.max(1) }
    }

    /// How many lanes there are.
    pub fn lanes(self) -> usize {
        self.lanes
    }

    /// The node that holds all lanes.
    pub fn root(self) -> Node {
        Node { level: self.lanes.next_power_of_two().trailing_zeros(), index: 0 }
    }

    /// The lanes below a node; empty for a node right of the last lane.
    pub fn span(self, node: Node) -> Range<usize> {
        let edge = |index: usize| (index << node.level).min(self.lanes);
        edge(node.index)..edge(node.index + 1)
    }

    /// The largest complete subtrees inside a range of lanes, from left to right: what its owner can sum alone.
    /// Together they span the range. At most `2 · log2(lanes)`, and one for a single lane.
    pub fn cover(self, range: Range<usize>) -> Vec<Node> {
        let mut nodes = Vec::new();
        self.cover_below(self.root(), &range, &mut nodes);
        nodes
    }

    fn cover_below(self, node: Node, range: &Range<usize>, nodes: &mut Vec<Node>) {
        let span = self.span(node);
        if span.is_empty() || span.end <= range.start || range.end <= span.start {
            return;
        }
        if range.start <= span.start && span.end <= range.end {
            nodes.push(self.lowest_of_equal_span(node));
            return;
        }
        for child in node.children().into_iter().flatten() {
            self.cover_below(child, range, nodes);
        }
    }

    /// A node with an empty right half is the same sum as its left half; the lower of them names the bucket.
    fn lowest_of_equal_span(self, mut node: Node) -> Node {
        while let Some([left, right]) = node.children() {
            if !self.span(right).is_empty() {
                break;
            }
            node = left;
        }
        node
    }

    /// Folds values of the lanes along the tree. A lane without a value adds nothing, so a small last batch needs no
    /// zeros. `None` when no lane has one.
    ///
    /// # Panics
    /// When there are not as many items as lanes.
    pub fn fold<T>(self, items: Vec<Option<T>>, mut add: impl FnMut(T, T) -> T) -> Option<T> {
        assert_eq!(items.len(), self.lanes, "one item for each lane");
        let mut fold = Fold::default();
        items.into_iter().for_each(|item| fold.push(item, &mut add));
        fold.finish(add)
    }
}

/// [`Tree::fold`] of values that come lane after lane. Of what has come it holds one value for each level.
#[derive(Debug)]
pub struct Fold<T> {
    /// By level, the left child whose sibling has not come; it has a value where one of its lanes has.
    waiting: Vec<Option<Option<T>>>,
}

impl<T> Default for Fold<T> {
    fn default() -> Self {
        Self { waiting: Vec::new() }
    }
}

impl<T> Fold<T> {
    /// Takes the next lane's value.
    pub fn push(&mut self, item: Option<T>, mut add: impl FnMut(T, T) -> T) {
        let mut node = item;
        for place in &mut self.waiting {
            let Some(left) = place.take() else {
                *place = Some(node);
                return;
            };
            node = both(left, node, &mut add);
        }
        self.waiting.push(Some(node));
    }

    /// The value of all lanes that have come; `None` when no lane has one.
    pub fn finish(self, mut add: impl FnMut(T, T) -> T) -> Option<T> {
        self.waiting.into_iter().flatten().fold(None, |right, left| both(left, right, &mut add))
    }

    /// How many values it holds.
    pub fn held(&self) -> usize {
        self.waiting.iter().flatten().flatten().count()
    }
}

/// The two added, or the one that is there.
pub(crate) fn both<T>(left: Option<T>, right: Option<T>, add: impl FnOnce(T, T) -> T) -> Option<T> {
    match (left, right) {
        (Some(left), Some(right)) => Some(add(left, right)),
        (left, right) => left.or(right),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_covered_by_its_complete_subtrees() {
        let tree = Tree::new(8);
        let node = |level, index| Node { level, index };
        assert_eq!(tree.cover(0..8), [node(3, 0)]);
        assert_eq!(tree.cover(1..7), [node(0, 1), node(1, 1), node(1, 2), node(0, 6)]);
        assert_eq!(tree.cover(3..3), []);
    }

    #[test]
    fn a_lone_last_lane_is_a_lane_at_every_level() {
        let tree = Tree::new(5);
        assert_eq!(tree.cover(4..5), [Node { level: 0, index: 4 }]);
        assert_eq!(tree.span(Node { level: 2, index: 1 }), 4..5);
        assert!(tree.span(Node { level: 2, index: 2 }).is_empty());
    }

    #[test]
    fn covers_are_complete_and_small() {
        for lanes in 1..=33_usize {
            let tree = Tree::new(lanes);
            let bound = 2 * lanes.next_power_of_two().trailing_zeros() as usize;
            for start in 0..lanes {
                for end in start + 1..=lanes {
                    let cover = tree.cover(start..end);
                    let spanned: Vec<usize> = cover.iter().flat_map(|&node| tree.span(node)).collect();
                    assert_eq!(spanned, (start..end).collect::<Vec<_>>());
                    assert!(cover.len() <= bound.max(1), "{lanes} {start}..{end}: {}", cover.len());
                }
            }
        }
    }

    #[test]
    fn folding_follows_the_drawing() {
        let items = (0..5).map(|lane| Some(lane.to_string())).collect();
        let folded = Tree::new(5).fold(items, |a, b| format!("({a}{b})"));
        assert_eq!(folded.unwrap(), "(((01)(23))4)");
        let sparse = vec![None, Some("1".to_owned()), None, None, Some("4".to_owned())];
        assert_eq!(Tree::new(5).fold(sparse, |a, b| format!("({a}{b})")).unwrap(), "(14)");
        let six = (0..6).map(|lane| Some(lane.to_string())).collect();
        assert_eq!(Tree::new(6).fold(six, |a, b| format!("({a}{b})")).unwrap(), "(((01)(23))(45))");
    }

    #[test]
    fn one_value_a_level_is_held_of_lanes_that_come_one_after_the_other() {
        let mut fold = Fold::default();
        for lane in 0..64_usize {
            fold.push(Some(1), |a, b| a + b);
            assert_eq!(fold.held(), (lane + 1).count_ones() as usize);
        }
        assert_eq!(fold.finish(|a, b| a + b), Some(64));
    }
}
