//! Where the time of a lane goes, by kind of work, for whoever chooses lanes and kernels.
//!
//! Sums are kept for each thread; two clock readings a block cost less than a thousandth of the block.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Kinds of work in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Products with frozen weights.
    Products,
    /// Attention, both directions.
    Attention,
    /// Adapter sites and heads, both directions.
    Islands,
    /// Layer norms and activations of the trunk.
    ElementWise,
}

thread_local! {
    static SPENT: Cell<[Duration; 4]> = const { Cell::new([Duration::ZERO; 4]) };
}

pub(crate) fn timed<T>(work: Work, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    let mut spent = SPENT.get();
    spent[work as usize] += start.elapsed();
    SPENT.set(spent);
    result
}

/// What this thread has spent on each kind of work since the last call.
pub fn take_work_times() -> [(Work, Duration); 4] {
    let spent = SPENT.take();
    [Work::Products, Work::Attention, Work::Islands, Work::ElementWise].map(|work| (work, spent[work as usize]))
}
