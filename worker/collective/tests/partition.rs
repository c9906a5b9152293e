//! Invariant 5 for sums: the bytes of a sum are those of its lanes, whoever owns them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

use std::ops::Range;

use graftwork_collective::{ExchangePlan, Partial, Tree, combine, partial_sums, tree_sum};
use proptest::prelude::*;

type Lanes = Vec<Option<Vec<f32>>>;

fn bits(sum: &[f32]) -> Vec<u32> {
    sum.iter().map(|value| value.to_bits()).collect()
}

/// What the ranks of a partition of the lanes compute together, buckets arriving in reverse.
fn sum_over(lanes: &Lanes, owners: &[Range<usize>]) -> Vec<f32> {
    let tree = Tree::new(lanes.len());
    let sums = owners.iter().rev().flat_map(|owner| partial_sums(tree, owner.start, lanes[owner.clone()].to_vec()));
    combine(tree, sums.collect()).unwrap().unwrap_or_default()
}

/// The same by the exchange plan: each rank adds its own slice of every bucket.
fn sum_by_slices(lanes: &Lanes, ranks: usize, length: usize) -> Vec<f32> {
    let plan = ExchangePlan::new(lanes.len(), ranks);
    let buckets: Vec<Partial> = (0..ranks)
        .flat_map(|rank| partial_sums(plan.tree(), plan.lanes(rank).start, lanes[plan.lanes(rank)].to_vec()))
        .collect();
    let cut = |slice: Range<usize>| {
        let partials = buckets.iter().map(|bucket| Partial {
            node: bucket.node,
            sum: bucket.sum.as_ref().map(|sum| sum[slice.clone()].to_vec()),
        });
        combine(plan.tree(), partials.collect()).unwrap().unwrap_or_default()
    };
    (0..ranks).flat_map(|rank| cut(plan.slice(rank, length))).collect()
}

fn lanes() -> impl Strategy<Value = (usize, Lanes)> {
    let value = (-1.0_f32..1.0, -20_i32..20).prop_map(|(mantissa, exponent)| mantissa * 2.0_f32.powi(exponent));
    (1..12_usize, 1..40_usize).prop_flat_map(move |(length, lanes)| {
        let lane = prop::option::weighted(0.9, prop::collection::vec(value.clone(), length));
        (Just(length), prop::collection::vec(lane, lanes))
    })
}

proptest! {
    #[test]
    fn the_bytes_of_a_sum_do_not_depend_on_the_ranks((length, lanes) in lanes()) {
        let whole = bits(&tree_sum(lanes.clone()));
        for ranks in [1, 2, 3, 4, 7] {
            let plan = ExchangePlan::new(lanes.len(), ranks);
            let owners: Vec<_> = (0..ranks).map(|rank| plan.lanes(rank)).collect();
            prop_assert_eq!(&bits(&sum_over(&lanes, &owners)), &whole, "{} ranks", ranks);
            prop_assert_eq!(&bits(&sum_by_slices(&lanes, ranks, length)), &whole, "{} ranks, sliced", ranks);
            let bound = 2 * lanes.len().next_power_of_two().trailing_zeros() as usize;
            prop_assert!((0..ranks).all(|rank| plan.owned(rank).len() <= bound.max(1)));
        }
    }

    #[test]
    fn any_contiguous_partition_gives_the_same_bytes((_, lanes) in lanes(), cuts in prop::collection::vec(0..40_usize, 0..6)) {
        let mut edges: Vec<usize> = cuts.into_iter().map(|cut| cut % (lanes.len() + 1)).collect();
        edges.extend([0, lanes.len()]);
        edges.sort_unstable();
        let owners: Vec<_> = edges.windows(2).map(|pair| pair[0]..pair[1]).collect();
        prop_assert_eq!(bits(&sum_over(&lanes, &owners)), bits(&tree_sum(lanes)));
    }
}

/// Why the tree is needed: adding rank by rank, as a plain all-reduce does, gives other bytes for other ranks.
#[test]
fn adding_rank_by_rank_changes_bytes() {
    let lane = |lane: i32| vec![0.1 * 1.7_f32.powi(lane % 9), 1.0 / 3.0_f32.powi(lane % 7)];
    let lanes: Vec<Vec<f32>> = (0..16).map(lane).collect();
    let by_ranks = |ranks: usize| {
        let plan = ExchangePlan::new(lanes.len(), ranks);
        let sum = |range: Range<usize>, at: usize| lanes[range].iter().fold(0.0, |sum, lane| sum + lane[at]);
        let total = |at| (0..ranks).fold(0.0, |total, rank| total + sum(plan.lanes(rank), at));
        bits(&[total(0), total(1)])
    };
    let sums: std::collections::BTreeSet<_> = [1, 2, 3, 4, 7].map(by_ranks).into();
    assert!(sums.len() > 1, "the lanes of this test show no difference");
}
