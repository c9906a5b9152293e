//! An ordered set that knows the place of each of its members, and finds the first that is light enough.
//!
//! A treap whose priorities are digests of its keys: the same members give the same tree, whatever came and went before,
//! so two sets are equal exactly if their trees are. Every question takes a path down the tree.

use std::{
    cmp::Ordering,
    hash::{DefaultHasher, Hash, Hasher},
};

/// A set of keys, each with a weight.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ranked<K> {
    root: Link<K>,
}

type Link<K> = Option<Box<Node<K>>>;

#[derive(Clone, Debug, PartialEq)]
struct Node<K> {
    key: K,
    weight: u64,
    priority: u64,
    /// Members of the subtree, and the least of their weights.
    size: usize,
    lightest: u64,
    left: Link<K>,
    right: Link<K>,
}

impl<K> Default for Ranked<K> {
    fn default() -> Self {
        Self { root: None }
    }
}

fn size<K>(link: &Link<K>) -> usize {
    link.as_ref().map_or(0, |node| node.size)
}

fn lightest<K>(link: &Link<K>) -> u64 {
    link.as_ref().map_or(u64::MAX, |node| node.lightest)
}

impl<K: Ord + Hash> Node<K> {
    fn new(key: K, weight: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let priority = hasher.finish();
        Self { key, weight, priority, size: 1, lightest: weight, left: None, right: None }
    }

    fn gather(mut self: Box<Self>) -> Box<Self> {
        self.size = 1 + size(&self.left) + size(&self.right);
        self.lightest = self.weight.min(lightest(&self.left)).min(lightest(&self.right));
        self
    }
}

/// Those before the key, and the others.
fn split<K: Ord + Hash>(link: Link<K>, key: &K) -> (Link<K>, Link<K>) {
    let Some(mut node) = link else { return (None, None) };
    if node.key < *key {
        let (before, others) = split(node.right.take(), key);
        node.right = before;
        (Some(node.gather()), others)
    } else {
        let (before, others) = split(node.left.take(), key);
        node.left = others;
        (before, Some(node.gather()))
    }
}

/// All of the first are before all of the second.
fn join<K: Ord + Hash>(first: Link<K>, second: Link<K>) -> Link<K> {
    match (first, second) {
        (None, link) | (link, None) => link,
        (Some(mut first), Some(mut second)) => {
            // Of equal priorities the smaller key stands above, so that the tree is the members' alone.
            if (second.priority, &first.key) < (first.priority, &second.key) {
                first.right = join(first.right.take(), Some(second));
                Some(first.gather())
            } else {
                second.left = join(Some(first), second.left.take());
                Some(second.gather())
            }
        }
    }
}

/// Without its first member.
fn without_first<K: Ord + Hash>(mut node: Box<Node<K>>) -> Link<K> {
    match node.left.take() {
        None => node.right.take(),
        Some(left) => {
            node.left = without_first(left);
            Some(node.gather())
        }
    }
}

fn first<K>(link: &Link<K>) -> Option<&K> {
    let mut node = link.as_ref()?;
    while let Some(left) = &node.left {
        node = left;
    }
    Some(&node.key)
}

fn find<'n, K: Ord>(link: &'n Link<K>, after: Option<&K>, most: u64) -> Option<&'n K> {
    let node = link.as_ref()?;
    if node.lightest > most {
        return None;
    }
    if after.is_some_and(|after| node.key <= *after) {
        return find(&node.right, after, most);
    }
    let before = find(&node.left, after, most);
    before.or_else(|| (node.weight <= most).then_some(&node.key)).or_else(|| find(&node.right, None, most))
}

impl<K: Ord + Hash> Ranked<K> {
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    pub(crate) fn len(&self) -> usize {
        size(&self.root)
    }

    /// Adds a key that is not there yet.
    pub(crate) fn insert(&mut self, key: K, weight: u64) {
        let (before, others) = split(self.root.take(), &key);
        let node = Some(Box::new(Node::new(key, weight)));
        self.root = join(join(before, node), others);
    }

    pub(crate) fn remove(&mut self, key: &K) {
        let (before, others) = split(self.root.take(), key);
        let others = match others {
            Some(node) if first(&node.left).unwrap_or(&node.key) == key => without_first(node),
            others => others,
        };
        self.root = join(before, others);
    }

    /// How many stand before a key.
    pub(crate) fn rank(&self, key: &K) -> usize {
        let (mut link, mut before) = (&self.root, 0);
        while let Some(node) = link {
            match node.key.cmp(key) {
                Ordering::Less => {
                    before += size(&node.left) + 1;
                    link = &node.right;
                }
                Ordering::Equal => return before + size(&node.left),
                Ordering::Greater => link = &node.left,
            }
        }
        before
    }

    pub(crate) fn first(&self) -> Option<&K> {
        first(&self.root)
    }

    /// The key before which so many stand.
    pub(crate) fn nth(&self, mut before: usize) -> Option<&K> {
        let mut link = &self.root;
        while let Some(node) = link {
            let left = size(&node.left);
            match before.cmp(&left) {
                Ordering::Less => link = &node.left,
                Ordering::Equal => return Some(&node.key),
                Ordering::Greater => {
                    before -= left + 1;
                    link = &node.right;
                }
            }
        }
        None
    }

    /// All of them in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &K> {
        let mut path = Vec::new();
        let mut next = self.root.as_ref();
        std::iter::from_fn(move || {
            while let Some(node) = next {
                path.push(node);
                next = node.left.as_ref();
            }
            let node = path.pop()?;
            next = node.right.as_ref();
            Some(&node.key)
        })
    }

    /// The first behind a key, or of all, that weighs no more than this.
    pub(crate) fn first_within(&self, after: Option<&K>, most: u64) -> Option<&K> {
        find(&self.root, after, most)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_answers_as_a_list_does_and_looks_the_same_however_it_came_about() {
        let (mut ranked, mut list) = (Ranked::default(), BTreeMap::new());
        let mut number = 7_u64;
        for _ in 0..2_000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (key, weight) = ((number >> 33) % 200, (number >> 50) % 20);
            if list.remove(&key).is_some() {
                ranked.remove(&key);
            } else {
                list.insert(key, weight);
                ranked.insert(key, weight);
            }
            ranked.remove(&1_000);
            assert_eq!(ranked.len(), list.len());
            assert_eq!(ranked.first(), list.keys().next());
            assert_eq!(ranked.nth(5), list.keys().nth(5));
            assert!(ranked.iter().eq(list.keys()));
            assert_eq!(ranked.rank(&key), list.range(..key).count());
            let light = |after: Option<u64>, most| {
                list.iter().find(|(of, weight)| after.is_none_or(|after| **of > after) && **weight <= most)
            };
            for (after, most) in [(None, 3), (Some(key), 3), (Some(key), 0), (None, u64::MAX)] {
                assert_eq!(ranked.first_within(after.as_ref(), most), light(after, most).map(|(of, _)| of));
            }
        }
        let mut again = Ranked::default();
        list.iter().rev().for_each(|(key, weight)| again.insert(*key, *weight));
        assert_eq!(again, ranked);
    }
}
