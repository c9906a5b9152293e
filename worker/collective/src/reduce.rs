//! The sum of all lanes over a group, with the bytes of the fixed tree whatever the ranks (invariant 5).
//!
//! ```text
//! small    every rank sends its subtrees' sums to all; all add along the rest of the tree
//! sliced   every rank sends slice r of them to rank r; it adds its own slice; all gather the slices
//! ```
//! The two give the same bytes, so which is used is a matter of speed alone: small is one round, and sliced sends a
//! fraction and adds a fraction. Ranks may own any number of subtrees, none too. A sum without rows travels as zeros
//! with a mark, so that every length is known to all from the plan.

use crate::{CollectiveError, ExchangePlan, Group, Node, Partial, SumError, combine};

/// How sums travel. The first two give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Whole sums to everyone: one round.
    Small,
    /// Slices to their owners, then the results to everyone: two rounds, fewer bytes.
    Sliced,
    /// The transport's own all-reduce (`reduction = "fast"`): fewest bytes, and rounding that depends on the number of
    /// ranks. All ranks get the same sum all the same.
    Native,
}

/// The sum over a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduced {
    /// The sum of all lanes; `None` when none has rows.
    pub sum: Option<Vec<f32>>,
    /// Bytes of payload that this rank sent to others.
    pub sent_bytes: u64,
}

impl Way {
    /// Up to this many numbers (0.26 MB) one round is as fast as two or faster for up to four ranks; from 0.5 MB on slices
    /// are, the more so the more ranks (example `exchange`, Gloo on loopback; ARCHITECTURE.md has the table).
    pub const SMALL_NUMBERS: usize = 64 * 1024;

    /// The faster way for sums of `length` numbers.
    pub fn of(length: usize) -> Self {
        Self::cut_at(length, Self::SMALL_NUMBERS)
    }

    /// The way for sums of `length` numbers, where up to `small_numbers` go whole.
    pub fn cut_at(length: usize, small_numbers: usize) -> Self {
        if length <= small_numbers { Self::Small } else { Self::Sliced }
    }
}

/// Sums all lanes along the tree. `own` are the sums of the subtrees that the plan gives this rank, in its order, each
/// of `length` numbers or `None` without rows ([`crate::partial_sums`] makes them). Every rank calls it with the same
/// plan, length and way.
///
/// The sum is that of [`crate::tree_sum`] over all lanes, bit for bit, for any number of ranks, small or sliced.
pub fn reduce_lanes(
    group: &mut dyn Group,
    plan: &ExchangePlan,
    own: Vec<Partial>,
    length: usize,
    way: Way,
) -> Result<Reduced, CollectiveError> {
    check(group, plan, &own, length)?;
    if group.size() == 1 {
        return Ok(Reduced { sum: combine(plan.tree(), own)?, sent_bytes: 0 });
    }
    match way {
        Way::Small => reduce_small(group, plan, own, length),
        Way::Sliced => reduce_sliced(group, plan, own, length),
        Way::Native => reduce_native(group, own, length),
    }
}

/// Adds this rank's subtrees in their order, and the ranks as the transport does. One number more counts the ranks that
/// have rows.
fn reduce_native(group: &mut dyn Group, own: Vec<Partial>, length: usize) -> Result<Reduced, CollectiveError> {
    let mut sum = vec![0.0; length + 1];
    for partial in own.into_iter().filter_map(|partial| partial.sum) {
        sum[length] = 1.0;
        sum.iter_mut().zip(partial).for_each(|(sum, value)| *sum += value);
    }
    group.all_reduce(&mut sum)?;
    // A ring sends all but one share of the buffer twice.
    let size = group.size() as u64;
    let sent_bytes = 2 * bytes_of(sum.len()) * (size - 1) / size;
    let any = sum.pop().is_some_and(|ranks| ranks > 0.5);
    Ok(Reduced { sum: any.then_some(sum), sent_bytes })
}

fn check(group: &dyn Group, plan: &ExchangePlan, own: &[Partial], length: usize) -> Result<(), CollectiveError> {
    let operation = "a sum of lanes";
    if plan.ranks() != group.size() {
        let (expected, found) = (group.size(), plan.ranks());
        return Err(CollectiveError::Counts { operation, what: "a plan", expected, found });
    }
    let owned = plan.owned(group.rank());
    if !own.iter().map(|partial| partial.node).eq(owned.iter().copied()) {
        let (expected, found) = (owned.len(), own.len());
        return Err(CollectiveError::Counts {
            operation,
            what: "other subtrees than the plan's, a number",
            expected,
            found,
        });
    }
    for sum in own.iter().filter_map(|partial| partial.sum.as_ref()) {
        if sum.len() != length {
            return Err(SumError::Length { expected: length, found: sum.len() }.into());
        }
    }
    Ok(())
}

/// Numbers that travel for one slice of a rank's subtrees: a mark and the slice for each.
fn room(subtrees: usize, slice: usize) -> usize {
    subtrees * (1 + slice)
}

/// Writes marks and slices.
fn pack(own: &[Partial], slice: std::ops::Range<usize>, buffer: &mut [f32]) {
    for (partial, place) in own.iter().zip(buffer.chunks_exact_mut(1 + slice.len())) {
        if let Some(sum) = &partial.sum {
            place[0] = 1.0;
            place[1..].copy_from_slice(&sum[slice.clone()]);
        }
    }
}

/// Reads the marks and slices of a rank's subtrees.
fn unpack<'a>(nodes: &'a [Node], slice: usize, buffer: &'a [f32]) -> impl Iterator<Item = Partial> + 'a {
    nodes.iter().zip(buffer.chunks_exact(1 + slice)).map(|(&node, place)| {
        // The mark is exactly what `pack` wrote.
        let sum = (place[0].to_bits() != 0).then(|| place[1..].to_vec());
        Partial { node, sum }
    })
}

/// Cuts a buffer of all ranks' messages and reads each.
fn read_all(plan: &ExchangePlan, slice: usize, counts: &[usize], mut buffer: &[f32]) -> Vec<Partial> {
    let mut partials = Vec::new();
    for (rank, &count) in counts.iter().enumerate() {
        let (message, rest) = buffer.split_at(count);
        partials.extend(unpack(plan.owned(rank), slice, message));
        buffer = rest;
    }
    partials
}

fn bytes_of(numbers: usize) -> u64 {
    (numbers * size_of::<f32>()) as u64
}

fn reduce_small(
    group: &mut dyn Group,
    plan: &ExchangePlan,
    own: Vec<Partial>,
    length: usize,
) -> Result<Reduced, CollectiveError> {
    let (rank, size) = (group.rank(), group.size());
    let counts: Vec<usize> = (0..size).map(|rank| room(plan.owned(rank).len(), length)).collect();
    let mut parts = vec![0.0; counts.iter().sum()];
    let start: usize = counts[..rank].iter().sum();
    pack(&own, 0..length, &mut parts[start..start + counts[rank]]);
    drop(own);
    group.all_gather(&mut parts, &counts)?;
    let sum = combine(plan.tree(), read_all(plan, length, &counts, &parts))?;
    Ok(Reduced { sum, sent_bytes: bytes_of(counts[rank]) * (size as u64 - 1) })
}

fn reduce_sliced(
    group: &mut dyn Group,
    plan: &ExchangePlan,
    own: Vec<Partial>,
    length: usize,
) -> Result<Reduced, CollectiveError> {
    let (rank, size) = (group.rank(), group.size());
    let slices: Vec<_> = (0..size).map(|rank| plan.slice(rank, length)).collect();
    let send_counts: Vec<usize> = slices.iter().map(|slice| room(own.len(), slice.len())).collect();
    let mut send = vec![0.0; send_counts.iter().sum()];
    let mut place = &mut send[..];
    for (slice, &count) in slices.iter().zip(&send_counts) {
        let (message, rest) = place.split_at_mut(count);
        pack(&own, slice.clone(), message);
        place = rest;
    }
    drop(own);
    let slice = slices[rank].clone();
    let counts: Vec<usize> = (0..size).map(|rank| room(plan.owned(rank).len(), slice.len())).collect();
    let mut received = vec![0.0; counts.iter().sum()];
    group.all_to_all(&send, &send_counts, &mut received, &counts)?;
    let mut sent_bytes = bytes_of(send.len() - send_counts[rank]);
    drop(send);
    let sum = combine(plan.tree(), read_all(plan, slice.len(), &counts, &received))?;
    drop(received);
    // Every rank saw the marks of all subtrees, so all agree whether there is a sum.
    let Some(sum) = sum else { return Ok(Reduced { sum: None, sent_bytes }) };
    let lengths: Vec<usize> = slices.iter().map(ExactSizeIterator::len).collect();
    let mut whole = vec![0.0; length];
    whole[slice].copy_from_slice(&sum);
    group.all_gather(&mut whole, &lengths)?;
    sent_bytes += bytes_of(sum.len()) * (size as u64 - 1);
    Ok(Reduced { sum: Some(whole), sent_bytes })
}
