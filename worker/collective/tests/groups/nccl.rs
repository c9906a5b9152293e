//! NCCL without a GPU: it loads, answers, and refuses in its own words. `make test` fetches the library; where it is
//! not, and where there is a GPU, these are ignored and say so.

use std::{path::Path, thread, time::Duration};

use graftwork_collective::{
    Backend, CollectiveError, MemoryRendezvous, Remedy,
    nccl::{Report, probe},
};

use libtest_mimic::Trial;

use crate::bench::{self, enter};

/// The tests of this file.
pub(crate) fn trials() -> Vec<Trial> {
    let report = probe(None);
    let missing = match &report.refusal {
        Some(error @ CollectiveError::Library { .. }) => Some(format!("{error}; `make nccl` fetches it")),
        None => Some("NCCL works here".to_owned()),
        Some(_) => None,
    };
    if let Some(reason) = &missing {
        eprintln!("skipped: {reason}");
    }
    let trial = |name: &str, run: Box<dyn FnOnce() + Send>| {
        let run = move || {
            run();
            Ok(())
        };
        Trial::test(format!("nccl::{name}"), run)
    };
    let refuses = Box::new(move || without_a_driver_nccl_refuses_in_its_own_words(report));
    vec![
        trial("without_a_driver_nccl_refuses_in_its_own_words", refuses).with_ignored_flag(missing.is_some()),
        trial(
            "without_a_driver_no_group_forms_and_every_rank_is_told",
            Box::new(without_a_driver_no_group_forms_and_every_rank_is_told),
        )
        .with_ignored_flag(missing.is_some()),
        trial("a_place_without_the_library_is_named", Box::new(a_place_without_the_library_is_named)),
    ]
}

fn without_a_driver_nccl_refuses_in_its_own_words(report: Report) {
    assert!(report.version.as_ref().is_some_and(|version| version.starts_with("2.")), "{report:?}");
    assert!(report.unique_id && report.library.is_some(), "{report:?}");
    let refusal = report.refusal.unwrap();
    assert!(matches!(refusal, CollectiveError::Refused { library: "NCCL", .. }), "{refusal}");
    assert!(refusal.to_string().contains("CUDA driver version is insufficient"), "{refusal}");
    assert_eq!(refusal.remedy(), Remedy::GiveUp);
}

fn without_a_driver_no_group_forms_and_every_rank_is_told() {
    let (bench, table) = (bench::gloo(), MemoryRendezvous::new());
    let member = |rank| {
        let mut request = bench.request(1, rank, 2);
        request.backend = Backend::Nccl { device: 0, library: None };
        request.form_deadline = Duration::from_secs(5);
        enter(request, &table).err().unwrap()
    };
    let errors =
        thread::scope(|scope| [0, 1].map(|rank| scope.spawn(move || member(rank))).map(|rank| rank.join().unwrap()));
    for error in errors {
        assert!(matches!(error, CollectiveError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("driver"), "{error}");
    }
}

fn a_place_without_the_library_is_named() {
    let refusal = probe(Some(Path::new("/nowhere/libnccl.so.2"))).refusal.unwrap();
    assert!(matches!(refusal, CollectiveError::Library { library: "libnccl.so.2", .. }), "{refusal}");
    assert!(refusal.to_string().contains("/nowhere/libnccl.so.2"), "{refusal}");
}
