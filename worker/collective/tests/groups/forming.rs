//! Who enters a group, and what happens to those who wait for one.

use std::{
    thread,
    time::{Duration, Instant},
};

use graftwork_collective::{CollectiveError, Group, MemoryRendezvous, Remedy};

use crate::bench::Bench;

pub(crate) fn a_member_that_never_comes_is_an_error_at_the_deadline(bench: &Bench) {
    let table = MemoryRendezvous::new();
    let mut request = bench.request(1, 0, 2);
    request.form_deadline = Duration::from_millis(300);
    let began = Instant::now();
    let error = bench.form(request, &table).err().unwrap();
    assert_eq!(error, CollectiveError::Deadline { operation: "forming", limit_ms: 300 });
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

pub(crate) fn forming_can_be_aborted(bench: &Bench) {
    let (table, request) = (MemoryRendezvous::new(), bench.request(1, 1, 2));
    let aborter = request.aborter.clone();
    thread::scope(|scope| {
        let forming = scope.spawn(|| bench.form(request, &table).err().unwrap());
        thread::sleep(Duration::from_millis(50));
        let aborted = Instant::now();
        aborter.abort();
        assert_eq!(forming.join().unwrap(), CollectiveError::Aborted { operation: "forming" });
        assert!(aborted.elapsed() < Duration::from_secs(1), "{:?}", aborted.elapsed());
    });
}

pub(crate) fn an_epoch_is_formed_once(bench: &Bench) {
    let table = MemoryRendezvous::new();
    bench.form(bench.request(1, 0, 1), &table).unwrap().leave().unwrap();
    let error = bench.form(bench.request(1, 0, 1), &table).err().unwrap();
    assert_eq!(error, CollectiveError::EpochUsed { group: "test".to_owned(), epoch: 1, rank: 0 });
    assert_eq!(error.remedy(), Remedy::Reform);
    bench.form(bench.request(2, 0, 1), &table).unwrap().leave().unwrap();
}

/// Rank 1 is slow: it still asks for epoch 1 when rank 0 has gone on to epoch 2 with another rank 1.
pub(crate) fn a_stale_member_cannot_enter_the_next_epoch(bench: &Bench) {
    let table = MemoryRendezvous::new();
    let mut early = bench.request(1, 0, 2);
    early.form_deadline = Duration::from_millis(100);
    bench.form(early, &table).err().unwrap();
    thread::scope(|scope| {
        let stale = scope.spawn(|| {
            let mut request = bench.request(1, 1, 2);
            request.form_deadline = Duration::from_millis(1500);
            bench.form(request, &table).err().unwrap()
        });
        let member = |rank| {
            let table = &table;
            scope.spawn(move || {
                let mut group: Box<dyn Group> = bench.form(bench.request(2, rank, 2), table).unwrap();
                let mut numbers = [1.0];
                group.all_reduce(&mut numbers).unwrap();
                assert_eq!((numbers, group.epoch()), ([2.0], 2));
                group.leave().unwrap();
            })
        };
        for member in [member(0), member(1)] {
            member.join().unwrap();
        }
        assert_eq!(stale.join().unwrap().remedy(), Remedy::Reform);
    });
}

pub(crate) fn members_that_ask_for_different_groups_are_told(bench: &Bench) {
    let table = MemoryRendezvous::new();
    thread::scope(|scope| {
        let small = scope.spawn(|| bench.form(bench.request(1, 0, 2), &table).err().unwrap());
        let large = bench.form(bench.request(1, 1, 3), &table).err().unwrap();
        for error in [small.join().unwrap(), large] {
            assert!(matches!(error, CollectiveError::Disagreement { .. }), "{error}");
            assert_eq!(error.remedy(), Remedy::GiveUp);
        }
    });
}
