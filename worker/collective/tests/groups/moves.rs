//! What arrives where, when nothing fails.

use graftwork_collective::Group;

use crate::bench::Bench;

/// A number that says from whom it comes and where it stands.
fn mark(rank: usize, index: usize) -> f32 {
    (rank * 1000 + index) as f32
}

pub(crate) fn numbers_reach_the_ranks_they_are_for(bench: &Bench) {
    let size = bench.size(5);
    bench.run(size, |mut group| {
        let rank = group.rank();
        let mut numbers = vec![mark(rank, 1); 3000];
        group.all_reduce(&mut numbers).unwrap();
        assert_eq!(numbers, vec![(0..size).map(|rank| mark(rank, 1)).sum::<f32>(); 3000]);

        gather(group.as_mut(), &vec![7; size]);
        gather(group.as_mut(), &(0..size).map(|rank| rank * rank).collect::<Vec<_>>());

        // Rank a sends a + b numbers to rank b, and nothing to rank 0.
        let count = |from: usize, to: usize| if to == 0 { 0 } else { from + to };
        let send_counts: Vec<_> = (0..size).map(|to| count(rank, to)).collect();
        let receive_counts: Vec<_> = (0..size).map(|from| count(from, rank)).collect();
        let send: Vec<f32> = (0..size).flat_map(|to| vec![mark(rank, to); count(rank, to)]).collect();
        let mut received = vec![-1.0; receive_counts.iter().sum()];
        group.all_to_all(&send, &send_counts, &mut received, &receive_counts).unwrap();
        let expected: Vec<f32> = (0..size).flat_map(|from| vec![mark(from, rank); count(from, rank)]).collect();
        assert_eq!(received, expected);

        for root in 0..size {
            let mut numbers = vec![mark(rank, root); 10];
            group.broadcast(&mut numbers, root).unwrap();
            assert_eq!(numbers, vec![mark(root, root); 10]);
        }
        group.barrier().unwrap();
        group.leave().unwrap();
    });
}

fn gather(group: &mut dyn Group, counts: &[usize]) {
    let part = |rank: usize| (0..counts[rank]).map(move |index| mark(rank, index));
    let whole: Vec<f32> = (0..group.size()).flat_map(part).collect();
    let own = |value: &f32| *value >= mark(group.rank(), 0) && *value < mark(group.rank() + 1, 0);
    let mut parts: Vec<f32> = whole.iter().map(|value| if own(value) { *value } else { -1.0 }).collect();
    group.all_gather(&mut parts, counts).unwrap();
    assert_eq!(parts, whole);
}

pub(crate) fn bytes_travel_without_a_known_length(bench: &Bench) {
    let size = bench.size(4);
    let text = |rank: usize| vec![u8::try_from(rank).unwrap(); 100 * rank];
    bench.run(size, |mut group| {
        let rank = group.rank();
        assert_eq!(group.all_gather_bytes(&text(rank)).unwrap(), (0..size).map(text).collect::<Vec<_>>());
        let root = size - 1;
        let mut bytes = if rank == root { b"the root's".to_vec() } else { vec![0; 3] };
        group.broadcast_bytes(&mut bytes, root).unwrap();
        assert_eq!(bytes, b"the root's");
        if rank == 0 {
            group.send_bytes(b"across", 1, 9).unwrap();
        } else if rank == 1 {
            assert_eq!(group.receive_bytes(0, 9).unwrap(), b"across");
        }
        group.leave().unwrap();
    });
}

pub(crate) fn messages_of_two_ranks_keep_to_their_tags(bench: &Bench) {
    bench.run(2, |mut group| {
        if group.rank() == 0 {
            for (value, tag) in [(1.0, 5), (2.0, 5), (3.0, 6)] {
                group.send(&vec![value; 40_000], 1, tag).unwrap();
            }
        } else {
            for (value, tag) in [(1.0, 5), (2.0, 5), (3.0, 6)] {
                let mut numbers = vec![0.0; 40_000];
                group.receive(&mut numbers, 0, tag).unwrap();
                assert_eq!(numbers, vec![value; 40_000]);
            }
        }
        group.leave().unwrap();
    });
}

pub(crate) fn a_group_of_one_does_everything_alone(bench: &Bench) {
    bench.run(1, |mut group| {
        let mut numbers = [1.0, 2.0];
        group.all_reduce(&mut numbers).unwrap();
        group.all_gather(&mut numbers, &[2]).unwrap();
        group.broadcast(&mut numbers, 0).unwrap();
        let mut received = [0.0; 2];
        group.all_to_all(&numbers, &[2], &mut received, &[2]).unwrap();
        assert_eq!(received, [1.0, 2.0]);
        assert_eq!(group.all_gather_bytes(b"x").unwrap(), [b"x"]);
        let mut part = group.split(4, 2).unwrap();
        assert_eq!((part.rank(), part.size(), part.epoch()), (0, 1, 1));
        part.barrier().unwrap();
        group.leave().unwrap();
    });
}

pub(crate) fn a_split_makes_groups_that_work_beside_their_parent(bench: &Bench) {
    let size = bench.size(5);
    bench.run(size, |mut group| {
        let rank = group.rank();
        let color = u32::try_from(rank % 2).unwrap();
        let same: Vec<usize> = (0..size).rev().filter(|other| other % 2 == rank % 2).collect();
        for _ in 0..2 {
            let mut part = group.split(color, u32::try_from(size - rank).unwrap()).unwrap();
            assert_eq!((part.rank(), part.size()), (same.iter().position(|&other| other == rank).unwrap(), same.len()));
            let mut numbers = [mark(rank, 0)];
            part.all_reduce(&mut numbers).unwrap();
            assert_eq!(numbers, [same.iter().map(|&rank| mark(rank, 0)).sum::<f32>()]);
            let mut all = [1.0];
            group.all_reduce(&mut all).unwrap();
            assert_eq!(all, [mark(0, size)]);
            part.leave().unwrap();
        }
        group.leave().unwrap();
    });
}

/// libtorch's flight recorder enters every new group into a map that it does not guard: this once crashed.
pub(crate) fn groups_of_one_process_begin_at_once(bench: &Bench) {
    let group = || {
        for _ in 0..3 {
            bench.run(2, |mut group| {
                let mut numbers = [1.0];
                group.all_reduce(&mut numbers).unwrap();
                assert_eq!(numbers, [2.0]);
                group.leave().unwrap();
            });
        }
    };
    std::thread::scope(|scope| (0..6).for_each(|_| drop(scope.spawn(group))));
}
