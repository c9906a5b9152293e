//! Invariant 5 over groups: the bytes of a reduction are those of its lanes, whatever carries it, over any number of
//! ranks, small or sliced.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use graftwork_collective::{
    Backend, CollectiveError, ExchangePlan, FormRequest, Group, MemoryRendezvous, Reduced, Remedy, SumError, Way, form,
    partial_sums, reduce_lanes, tree_sum,
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

type Lanes = Vec<Option<Vec<f32>>>;

fn bits(sum: &[f32]) -> Vec<u32> {
    sum.iter().map(|value| value.to_bits()).collect()
}

fn lanes() -> impl Strategy<Value = (usize, Lanes)> {
    let value = (-1.0_f32..1.0, -20_i32..20).prop_map(|(mantissa, exponent)| mantissa * 2.0_f32.powi(exponent));
    let value = prop_oneof![9 => value, 1 => Just(-0.0)];
    (1..40_usize, 1..20_usize, 0.0..1.0_f64).prop_flat_map(move |(length, lanes, filled)| {
        let lane = prop::option::weighted(filled, prop::collection::vec(value.clone(), length));
        (Just(length), prop::collection::vec(lane, lanes))
    })
}

fn reduce(group: &mut dyn Group, lanes: &Lanes, length: usize, way: Way) -> Result<Reduced, CollectiveError> {
    let plan = ExchangePlan::new(lanes.len(), group.size());
    let mine = plan.lanes(group.rank());
    let own = if mine.is_empty() { Vec::new() } else { partial_sums(plan.tree(), mine.start, lanes[mine].to_vec()) };
    reduce_lanes(group, &plan, own, length, way)
}

type Case = (Arc<(usize, Lanes)>, Way);

/// Ranks that stay in their group and reduce case after case.
struct Crew {
    cases: Vec<Sender<Case>>,
    results: Receiver<Result<Reduced, CollectiveError>>,
    ranks: Vec<JoinHandle<()>>,
}

impl Crew {
    fn new(backend: &Backend, size: usize) -> Self {
        let (table, (done, results)) = (MemoryRendezvous::new(), channel());
        let (mut cases, mut ranks) = (Vec::new(), Vec::new());
        for rank in 0..size {
            let (sender, receiver) = channel::<Case>();
            let (table, backend, done) = (table.clone(), backend.clone(), done.clone());
            cases.push(sender);
            ranks.push(thread::spawn(move || {
                let mut request = FormRequest::new("crew", 1, rank, size);
                request.backend = backend;
                let mut group = form(request, Arc::new(table)).unwrap();
                while let Ok((case, way)) = receiver.recv() {
                    done.send(reduce(group.as_mut(), &case.1, case.0, way)).unwrap();
                }
                group.leave().unwrap();
            }));
        }
        Self { cases, results, ranks }
    }

    fn reduce(&self, case: &Arc<(usize, Lanes)>, way: Way) -> Vec<Reduced> {
        self.cases.iter().for_each(|rank| rank.send((case.clone(), way)).unwrap());
        self.cases.iter().map(|_| self.results.recv().unwrap().unwrap()).collect()
    }

    fn end(self) {
        drop(self.cases);
        self.ranks.into_iter().for_each(|rank| rank.join().unwrap());
    }
}

fn every_reduction_has_the_trees_bytes(backend: &Backend, cases: u32) {
    let crews: Vec<_> = (1..=7).map(|size| Crew::new(backend, size)).collect();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(cases) });
    let result = runner.run(&lanes(), |case| {
        let whole = tree_sum(case.1.clone());
        let case = Arc::new(case);
        for crew in &crews {
            for way in [Way::Small, Way::Sliced] {
                for reduced in crew.reduce(&case, way) {
                    let ranks = crew.cases.len();
                    prop_assert_eq!(reduced.sum.is_none(), whole.is_empty());
                    prop_assert_eq!(bits(&reduced.sum.unwrap_or_default()), bits(&whole), "{} ranks {:?}", ranks, way);
                }
            }
        }
        Ok(())
    });
    result.unwrap();
    crews.into_iter().for_each(Crew::end);
}

#[test]
fn threads_give_the_trees_bytes_over_any_number_of_ranks() {
    every_reduction_has_the_trees_bytes(&Backend::InProcess, 60);
}

#[test]
fn gloo_gives_the_trees_bytes_over_any_number_of_ranks() {
    every_reduction_has_the_trees_bytes(&Backend::Gloo { address: std::net::Ipv4Addr::LOCALHOST.into() }, 25);
}

fn a_native_sum_is_the_same_on_all_ranks_and_close_to_the_trees(backend: &Backend) {
    let (length, lanes) = (1000, 8);
    let lane = |lane: usize| (lane != 3).then(|| (0..length).map(|at| ((at * 7 + lane * 13) as f32).sin()).collect());
    let case = Arc::new((length, (0..lanes).map(lane).collect::<Lanes>()));
    let (whole, nothing) = (tree_sum(case.1.clone()), Arc::new((length, vec![None; lanes])));
    for size in [1, 2, 3, 8] {
        let crew = Crew::new(backend, size);
        let sums: Vec<Vec<f32>> = crew.reduce(&case, Way::Native).into_iter().map(|it| it.sum.unwrap()).collect();
        assert!(sums.iter().all(|sum| bits(sum) == bits(&sums[0])), "{size} ranks");
        let worst = sums[0].iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(sums[0].len() == length && worst < 1e-5, "{size} ranks: {worst}");
        assert!(crew.reduce(&nothing, Way::Native).iter().all(|reduced| reduced.sum.is_none()));
        crew.end();
    }
}

#[test]
fn native_sums_of_threads_agree() {
    a_native_sum_is_the_same_on_all_ranks_and_close_to_the_trees(&Backend::InProcess);
}

#[test]
fn native_sums_over_gloo_agree() {
    a_native_sum_is_the_same_on_all_ranks_and_close_to_the_trees(&Backend::Gloo {
        address: std::net::Ipv4Addr::LOCALHOST.into(),
    });
}

#[test]
fn slices_send_fewer_bytes_than_whole_sums() {
    let (length, ranks) = (1000, 4);
    let crew = Crew::new(&Backend::InProcess, ranks);
    let case = Arc::new((length, vec![Some(vec![1.0; length]); 8]));
    let (small, sliced) = (crew.reduce(&case, Way::Small), crew.reduce(&case, Way::Sliced));
    assert!(small.iter().all(|reduced| reduced.sent_bytes == 3 * 4 * 1001));
    assert!(sliced.iter().all(|reduced| reduced.sent_bytes == 3 * 4 * (251 + 250)));
    crew.end();
    assert_eq!((Way::of(1000), Way::of(20_000_000)), (Way::Small, Way::Sliced));
}

#[test]
fn parts_that_are_not_the_plans_are_refused_and_close_nothing() {
    let table: Arc<MemoryRendezvous> = Arc::default();
    let mut request = FormRequest::new("alone", 1, 0, 1);
    request.backend = Backend::InProcess;
    let mut group = form(request, table).unwrap();
    let plan = ExchangePlan::new(2, 1);
    let own = |length| partial_sums(plan.tree(), 0, vec![Some(vec![1.0; length]); 2]);
    let mut reduce = |plan: &ExchangePlan, own| reduce_lanes(group.as_mut(), plan, own, 3, Way::Small);
    let error = reduce(&ExchangePlan::new(2, 2), own(3)).unwrap_err();
    assert!(matches!(error, CollectiveError::Counts { expected: 1, found: 2, .. }), "{error}");
    assert!(matches!(reduce(&plan, Vec::new()), Err(CollectiveError::Counts { .. })));
    let error = reduce(&plan, own(4)).unwrap_err();
    assert_eq!(error, SumError::Length { expected: 3, found: 4 }.into());
    assert_eq!(error.remedy(), Remedy::GiveUp);
    assert_eq!(reduce(&plan, own(3)).unwrap().sum, Some(vec![2.0; 3]));
}
