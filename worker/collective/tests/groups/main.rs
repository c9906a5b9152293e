//! One set of behaviours for every backend: threads, Gloo and TLS on loopback, and NCCL where there are GPUs; and
//! processes over Gloo and TLS, and over NCCL where there is a GPU. What a machine cannot run is ignored and says why, never passed.

#![allow(clippy::float_cmp, reason = "sums of a few small whole numbers are exact")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

mod authority;
mod bench;
mod failures;
mod forming;
mod moves;
mod nccl;
mod processes;
mod tls;

use std::process::ExitCode;

use bench::Bench;
use libtest_mimic::{Arguments, Trial};

/// A name, and what is expected of a backend.
type Behaviour = (&'static str, fn(&Bench));

macro_rules! behaviours {
    ($($from:ident: $($name:ident),*;)*) => { [$($((stringify!($name), $from::$name)),*),*] };
}
use behaviours;

/// Each is a test of its own on each backend.
const BEHAVIOURS: [Behaviour; 19] = behaviours! {
    moves: numbers_reach_the_ranks_they_are_for, bytes_travel_without_a_known_length,
        messages_of_two_ranks_keep_to_their_tags, groups_of_one_process_begin_at_once, a_group_of_one_does_everything_alone,
        a_split_makes_groups_that_work_beside_their_parent;
    failures: other_lengths_are_an_error_and_no_wrong_number, ranks_in_different_operations_are_told,
        a_call_refused_for_its_arguments_closes_nothing, a_peer_that_leaves_is_noticed_at_once,
        an_abort_ends_the_wait_for_a_frozen_peer, an_abort_at_any_moment_ends_an_all_reduce, a_slow_rank_is_no_fault,
        the_deadline_ends_a_wait;
    forming: a_member_that_never_comes_is_an_error_at_the_deadline, forming_can_be_aborted, an_epoch_is_formed_once,
        a_stale_member_cannot_enter_the_next_epoch, members_that_ask_for_different_groups_are_told;
};

/// The behaviours on one backend; ignored where there is none.
fn on(backend: &str, bench: Option<Bench>) -> impl Iterator<Item = Trial> {
    BEHAVIOURS.into_iter().map(move |(name, behaviour)| {
        let (bench, missing) = (bench.clone(), bench.is_none());
        let run = move || {
            behaviour(&bench.ok_or("this machine has no such backend")?);
            Ok(())
        };
        Trial::test(format!("{backend}::{name}"), run).with_ignored_flag(missing)
    })
}

fn main() -> ExitCode {
    if let Some(code) = processes::child() {
        return code;
    }
    let gpus = bench::nccl().map_err(|reason| eprintln!("skipped: {reason}")).ok();
    let backends = [
        ("in_process", Some(bench::in_process())),
        ("gloo", Some(bench::gloo())),
        ("tls", Some(bench::tls())),
        ("gpu", gpus),
    ];
    let trials =
        backends.into_iter().flat_map(|(name, bench)| on(name, bench)).chain(nccl::trials()).chain(tls::trials());
    let of_processes = [("gloo", true), ("tls", true), ("gpu", bench::no_nccl().is_none())];
    let of_processes = of_processes.into_iter().flat_map(|(backend, there)| processes::trials(backend, there));
    let trials = trials.chain(of_processes);
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
