//! NCCL without a GPU: it loads, answers, and refuses in its own words. `make test` fetches the library; where it is
//! not, and where there is a GPU, these are skipped and say so.

use std::{path::Path, thread, time::Duration};

use graftwork_collective::{
    Backend, CollectiveError, MemoryRendezvous, Remedy,
    nccl::{Report, probe},
};

use crate::bench;

fn without_driver() -> Option<Report> {
    let report = probe(None);
    match &report.refusal {
        Some(error @ CollectiveError::Library { .. }) => {
            eprintln!("skipped: {error}; `make nccl` fetches it");
            None
        }
        None => {
            eprintln!("skipped: NCCL works here");
            None
        }
        Some(_) => Some(report),
    }
}

#[test]
fn without_a_driver_nccl_refuses_in_its_own_words() {
    let Some(report) = without_driver() else { return };
    assert!(report.version.as_ref().is_some_and(|version| version.starts_with("2.")), "{report:?}");
    assert!(report.unique_id && report.library.is_some(), "{report:?}");
    let refusal = report.refusal.unwrap();
    assert!(matches!(refusal, CollectiveError::Refused { library: "NCCL", .. }), "{refusal}");
    assert!(refusal.to_string().contains("CUDA driver version is insufficient"), "{refusal}");
    assert_eq!(refusal.remedy(), Remedy::GiveUp);
}

#[test]
fn without_a_driver_no_group_forms_and_every_rank_is_told() {
    if without_driver().is_none() {
        return;
    }
    let (bench, table) = (bench::gloo(), MemoryRendezvous::new());
    let member = |rank| {
        let mut request = bench.request(1, rank, 2);
        request.backend = Backend::Nccl { device: 0, library: None };
        request.form_deadline = Duration::from_secs(5);
        bench.form(request, &table).err().unwrap()
    };
    let errors =
        thread::scope(|scope| [0, 1].map(|rank| scope.spawn(move || member(rank))).map(|rank| rank.join().unwrap()));
    for error in errors {
        assert!(matches!(error, CollectiveError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("driver"), "{error}");
    }
}

#[test]
fn a_place_without_the_library_is_named() {
    let refusal = probe(Some(Path::new("/nowhere/libnccl.so.2"))).refusal.unwrap();
    assert!(matches!(refusal, CollectiveError::Library { library: "libnccl.so.2", .. }), "{refusal}");
    assert!(refusal.to_string().contains("/nowhere/libnccl.so.2"), "{refusal}");
}
