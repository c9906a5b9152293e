//! How operations end when something is wrong, and how soon.

use std::{
    thread,
    time::{Duration, Instant},
};

use graftwork_collective::{CollectiveError, FormRequest, Remedy};

use crate::bench::Bench;

/// What "promptly" means here, on a machine that does other things too.
const PROMPT: Duration = Duration::from_secs(2);

pub(crate) fn other_lengths_are_an_error_and_no_wrong_number(bench: &Bench) {
    let size = bench.size(3);
    let errors = bench.run(size, |mut group| {
        let mut numbers = vec![1.0; if group.rank() == 0 { 5 } else { 6 }];
        let error = group.all_reduce(&mut numbers).unwrap_err();
        assert_eq!(group.barrier().unwrap_err(), error, "a closed group repeats its error");
        error
    });
    assert!(errors.iter().any(|error| error.remedy() == Remedy::GiveUp), "{errors:?}");

    let errors = bench.run(2, |mut group| {
        let mut parts = vec![1.0; if group.rank() == 0 { 3 } else { 40_000 }];
        let counts = if group.rank() == 0 { [1, 2] } else { [30_000, 10_000] };
        group.all_gather(&mut parts, &counts).unwrap_err()
    });
    assert!(errors.iter().any(|error| matches!(error, CollectiveError::Mismatch { .. })), "{errors:?}");
}

pub(crate) fn ranks_in_different_operations_are_told(bench: &Bench) {
    let errors = bench.run(2, |mut group| {
        let mut numbers = [1.0];
        let result = if group.rank() == 0 { group.all_reduce(&mut numbers) } else { group.barrier() };
        result.unwrap_err()
    });
    assert!(errors.iter().any(|error| matches!(error, CollectiveError::OutOfStep { .. })), "{errors:?}");
}

pub(crate) fn a_call_refused_for_its_arguments_closes_nothing(bench: &Bench) {
    bench.run(2, |mut group| {
        let refused = [
            group.all_gather(&mut [0.0; 3], &[1, 1]),
            group.all_gather(&mut [0.0; 3], &[3]),
            group.broadcast(&mut [0.0], 2),
            group.send(&[0.0], 2, 0),
            group.send(&[0.0], group.rank(), 0),
            group.send(&[0.0], 1 - group.rank(), u32::MAX),
            group.all_to_all(&[0.0], &[1, 0], &mut [0.0; 2], &[0, 2]),
        ];
        for refused in refused {
            // The last one is a wrong part for itself on rank 0 alone.
            if let Err(error) = refused {
                assert_eq!(error.remedy(), Remedy::GiveUp, "{error}");
            }
        }
        group.barrier().unwrap();
        group.leave().unwrap();
    });
}

pub(crate) fn a_peer_that_leaves_is_noticed_at_once(bench: &Bench) {
    let size = bench.size(4);
    let times = bench.run(size, |mut group| {
        group.barrier().unwrap();
        if group.rank() == 1 {
            return Duration::ZERO;
        }
        let began = Instant::now();
        let mut numbers = vec![0.0; 100_000];
        let error = loop {
            if let Err(error) = group.all_reduce(&mut numbers) {
                break error;
            }
        };
        assert!(matches!(error, CollectiveError::PeerLost { .. }), "{error}");
        assert_eq!(error.remedy(), Remedy::Reform);
        began.elapsed()
    });
    assert!(times.iter().all(|time| *time < PROMPT), "{times:?}");
}

pub(crate) fn an_abort_ends_the_wait_for_a_frozen_peer(bench: &Bench) {
    let size = bench.size(3);
    for operation in 0..3 {
        bench.run(size, |mut group| {
            if group.rank() == 0 {
                // Frozen for as long as the others may take.
                thread::sleep(Duration::from_millis(600));
                return;
            }
            let aborter = group.aborter();
            let waiter = thread::spawn(move || {
                let mut numbers = vec![1.0; 200_000];
                let error = match operation {
                    0 => group.all_reduce(&mut numbers),
                    1 => group.receive(&mut numbers, 0, 3),
                    _ => group.broadcast(&mut numbers, 0),
                };
                (error.unwrap_err(), Instant::now(), group.barrier())
            });
            thread::sleep(Duration::from_millis(100));
            let aborted = Instant::now();
            aborter.abort();
            let (error, returned, later) = waiter.join().unwrap();
            // The other waiter's abort may come first, and this one then loses a peer.
            let ended = matches!(error, CollectiveError::Aborted { .. } | CollectiveError::PeerLost { .. });
            assert!(ended, "{error}");
            assert!(returned.saturating_duration_since(aborted) < Duration::from_millis(400), "{error}");
            assert_eq!(later.unwrap_err(), error);
        });
    }
}

pub(crate) fn an_abort_at_any_moment_ends_an_all_reduce(bench: &Bench) {
    for attempt in 0..12_u64 {
        bench.run(2, |mut group| {
            let aborter = group.aborter();
            let delay = Duration::from_micros(1500 * attempt);
            let other = (group.rank() == 0).then(|| {
                thread::spawn(move || {
                    thread::sleep(delay);
                    aborter.abort();
                })
            });
            let mut numbers = vec![1.0; 300_000];
            let began = Instant::now();
            let error = loop {
                match group.all_reduce(&mut numbers) {
                    Ok(()) => numbers.fill(1.0),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.remedy(), Remedy::Reform, "{error}");
            assert!(numbers.iter().all(|number| number.to_bits() == 1.0_f32.to_bits()), "partly reduced");
            assert!(began.elapsed() < PROMPT, "{error}");
            if let Some(other) = other {
                other.join().unwrap();
            }
        });
    }
}

pub(crate) fn a_slow_rank_is_no_fault(bench: &Bench) {
    let size = bench.size(3);
    bench.run(size, |mut group| {
        if group.rank() == 1 {
            thread::sleep(Duration::from_millis(300));
        }
        let mut numbers = [1.0, 2.0];
        group.all_reduce(&mut numbers).unwrap();
        group.leave().unwrap();
    });
}

pub(crate) fn the_deadline_ends_a_wait(bench: &Bench) {
    let short = |request: &mut FormRequest| request.deadline = Duration::from_millis(200);
    bench.run_with(2, short, |mut group| {
        if group.rank() == 1 {
            thread::sleep(Duration::from_millis(900));
            return;
        }
        let began = Instant::now();
        let error = group.all_reduce(&mut [1.0]).unwrap_err();
        assert_eq!(error, CollectiveError::Deadline { operation: "all-reduce", limit_ms: 200 });
        assert!(began.elapsed() >= Duration::from_millis(190) && began.elapsed() < PROMPT, "{:?}", began.elapsed());
    });
}
