//! The flat gradient in parts, in the order in which a lane's backward pass completes them, so that the first ones can
//! travel to other ranks while the rest is computed.
//!
//! A head's gradient is complete before the pass goes down, a layer's once the pass has left the layer, and what belongs
//! to no layer (weights that layers share) at the end. Parts follow from the layout alone, so all ranks cut alike, and
//! cutting changes no byte: a sum of gradients is a sum number by number.

use std::ops::Range;

use crate::{Layout, TrainedTensor};

/// How far a backward pass has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Gradients of heads are complete.
    Heads,
    /// It has left all layers above this many.
    Above(std::cmp::Reverse<u32>),
    /// Everything is complete.
    End,
}

/// A flat gradient's parts; see [`crate::Network::parts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    parts: Vec<Part>,
}

/// Numbers that are complete at the same time, or nearly.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    complete: Stage,
    ranges: Vec<Range<usize>>,
}

impl Part {
    fn len(&self) -> usize {
        self.ranges.iter().map(ExactSizeIterator::len).sum()
    }
}

impl Parts {
    /// Parts of at least `least` numbers, as far as there are so many; one if there are not two of that size.
    pub(super) fn new(layout: &Layout, least: usize) -> Self {
        let mut tensors: Vec<(Stage, &TrainedTensor)> =
            layout.tensors.iter().map(|tensor| (complete(&tensor.name), tensor)).collect();
        tensors.sort_by_key(|(complete, tensor)| (*complete, tensor.offset));
        let mut parts: Vec<Part> = Vec::new();
        for (complete, tensor) in tensors {
            let range = tensor.offset..tensor.offset + tensor.elements();
            match parts.last_mut() {
                Some(part) if part.complete == complete || part.len() < least => {
                    part.complete = complete;
                    match part.ranges.last_mut() {
                        Some(last) if last.end == range.start => last.end = range.end,
                        _ => part.ranges.push(range),
                    }
                }
                _ => parts.push(Part { complete, ranges: vec![range] }),
            }
        }
        // A small rest is not worth a round of its own.
        if parts.len() > 1
            && let Some(rest) = parts.pop_if(|rest| rest.len() < least)
            && let Some(last) = parts.last_mut()
        {
            last.complete = rest.complete;
            last.ranges.extend(rest.ranges);
        }
        Self { parts }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.parts.len()
    }

    /// Numbers in a part.
    pub fn len(&self, part: usize) -> usize {
        self.parts[part].len()
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Puts a part's numbers where they lie in the flat buffer.
    ///
    /// # Panics
    /// When there are not as many as the part has.
    pub fn place(&self, part: usize, numbers: &[f32], flat: &mut [f32]) {
        assert_eq!(numbers.len(), self.len(part), "a part has its own length");
        let mut rest = numbers;
        for range in &self.parts[part].ranges {
            let (these, others) = rest.split_at(range.len());
            flat[range.clone()].copy_from_slice(these);
            rest = others;
        }
    }

    /// Every part in order with its numbers, of a gradient that is complete.
    pub fn of<'a>(&'a self, gradient: &'a [f32]) -> impl Iterator<Item = (usize, Vec<f32>)> + 'a {
        let numbers = |part: &Part| part.ranges.iter().flat_map(|range| &gradient[range.clone()]).copied().collect();
        self.parts.iter().map(numbers).enumerate()
    }

    /// Those that are complete at a stage, from the `from`th on.
    pub(super) fn complete(&self, from: usize, stage: Stage) -> impl Iterator<Item = (usize, &[Range<usize>])> {
        let parts = self.parts.iter().enumerate().skip(from);
        parts.take_while(move |(_, part)| part.complete <= stage).map(|(number, part)| (number, part.ranges.as_slice()))
    }
}

/// When a tensor's gradient is complete.
fn complete(name: &str) -> Stage {
    if name.starts_with("heads.") {
        return Stage::Heads;
    }
    let layer = name.split_once(".layer.").and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
    layer.map_or(Stage::End, |layer| Stage::Above(std::cmp::Reverse(layer)))
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use super::*;

    fn layout(names: &[(&str, usize)]) -> Layout {
        let mut layout = Layout::default();
        for (name, length) in names {
            layout.push(name, &[*length]);
        }
        layout
    }

    #[test]
    fn parts_come_from_the_top_down_and_hold_every_number_once() {
        let layout = layout(&[
            ("x.layer.0.a", 4),
            ("x.layer.0.b", 2),
            ("x.layer.1.a", 4),
            ("shared", 3),
            ("x.layer.2.a", 5),
            ("heads.y", 2),
        ]);
        let parts = Parts::new(&layout, 5);
        let whole: Vec<_> = parts.complete(0, Stage::End).map(|(_, ranges)| ranges.to_vec()).collect();
        assert_eq!(whole, [vec![18..20, 13..18], vec![6..10, 0..6, 10..13]]);
        let numbers: Vec<_> = (0..2).map(|part| parts.len(part)).collect();
        assert_eq!(numbers, [7, 13]);
        let mut flat = vec![0.0; 20];
        parts.place(0, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], &mut flat);
        assert_eq!(flat[13..], [3.0, 4.0, 5.0, 6.0, 7.0, 1.0, 2.0]);
        assert!(flat[..13].iter().all(|number| *number == 0.0));
        let whole: Vec<f32> = (0..20_u8).map(f32::from).collect();
        parts.of(&whole).for_each(|(part, numbers)| parts.place(part, &numbers, &mut flat));
        assert_eq!(flat, whole);
    }

    #[test]
    fn a_part_is_complete_once_the_pass_has_left_its_lowest_layer() {
        let layout = layout(&[("x.layer.0.a", 4), ("x.layer.1.a", 4), ("x.layer.2.a", 4), ("heads.y", 4)]);
        let parts = Parts::new(&layout, 1);
        let complete = |from, stage| parts.complete(from, stage).map(|(part, _)| part).collect::<Vec<_>>();
        assert_eq!(complete(0, Stage::Heads), [0]);
        assert_eq!(complete(1, Stage::Heads), [0; 0]);
        assert_eq!(complete(1, Stage::Above(Reverse(2))), [1]);
        assert_eq!(complete(1, Stage::Above(Reverse(1))), [1, 2]);
        assert_eq!(complete(3, Stage::End), [3]);
    }

    #[test]
    fn little_is_one_part() {
        let parts = Parts::new(&layout(&[("x.layer.0.a", 4), ("x.layer.1.a", 4), ("heads.y", 4)]), 100);
        assert_eq!((parts.count(), parts.len(0)), (1, 12));
        assert!(Parts::new(&Layout::default(), 1).is_empty());
    }
}
