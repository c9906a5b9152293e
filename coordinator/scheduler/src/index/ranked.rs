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

fn size<K>(link: Option<&Node<K>>) -> usize {
    link.map_or(0, |node| node.size)
}

fn lightest<K>(link: Option<&Node<K>>) -> u64 {
    link.map_or(u64::MAX, |node| node.lightest)
}

impl<K: Ord + Hash> Node<K> {
    fn new(key: K, weight: u64) -> Self {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let priority = hasher.finish();
        Self { key, weight, priority, size: 1, lightest: weight, left: None, right: None }
    }

    /// Counts its subtree anew.
    fn gather(&mut self) {
        self.size = 1 + size(self.left.as_deref()) + size(self.right.as_deref());
        self.lightest = self.weight.min(lightest(self.left.as_deref())).min(lightest(self.right.as_deref()));
    }
}

/// Those before the key, and the others.
fn split<K: Ord + Hash>(link: Link<K>, key: &K) -> (Link<K>, Link<K>) {
    let Some(mut node) = link else { return (None, None) };
    if node.key < *key {
        let (before, others) = split(node.right.take(), key);
        node.right = before;
        node.gather();
        (Some(node), others)
    } else {
        let (before, others) = split(node.left.take(), key);
        node.left = others;
        node.gather();
        (before, Some(node))
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
                first.gather();
                Some(first)
            } else {
                second.left = join(Some(first), second.left.take());
                second.gather();
                Some(second)
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
            node.gather();
            Some(node)
        }
    }
}

fn first<K>(link: Option<&Node<K>>) -> Option<&K> {
    let mut node = link?;
    while let Some(left) = &node.left {
        node = left;
    }
    Some(&node.key)
}

fn find<'n, K: Ord>(link: Option<&'n Node<K>>, after: Option<&K>, most: u64) -> Option<&'n K> {
    let node = link?;
    if node.lightest > most {
        return None;
    }
    if after.is_some_and(|after| node.key <= *after) {
        return find(node.right.as_deref(), after, most);
    }
    let before = find(node.left.as_deref(), after, most);
    before.or_else(|| (node.weight <= most).then_some(&node.key)).or_else(|| find(node.right.as_deref(), None, most))
}

impl<K: Ord + Hash> Ranked<K> {
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    pub(crate) fn len(&self) -> usize {
        size(self.root.as_deref())
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
            Some(node) if first(node.left.as_deref()).unwrap_or(&node.key) == key => without_first(node),
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
                    before += size(node.left.as_deref()) + 1;
                    link = &node.right;
                }
                Ordering::Equal => return before + size(node.left.as_deref()),
                Ordering::Greater => link = &node.left,
            }
        }
        before
    }

    pub(crate) fn first(&self) -> Option<&K> {
        first(self.root.as_deref())
    }

    /// The key before which so many stand.
    pub(crate) fn nth(&self, mut before: usize) -> Option<&K> {
        let mut link = &self.root;
        while let Some(node) = link {
            let left = size(node.left.as_deref());
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
        find(self.root.as_deref(), after, most)
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
