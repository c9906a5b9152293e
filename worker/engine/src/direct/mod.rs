//! Adapter sites written out on slices in host memory: forward and backward without a recorded graph.
//!
//! They serve what nearly every pass has: one adapter, adapters that serve rows of their own (`Parallel`,
//! `BatchSplit`), a fusion of single adapters, one LoRA. Whatever else there is, gates, adapters' own layer norms,
//! trained factors, averages, splits, other devices, is an island, and a test holds the two against each other.

mod adapter;
mod end;
mod fusion;
mod joined;
mod lora;
mod near;

pub(crate) use end::{SavedEnd, Sites};
pub(crate) use joined::Joined;
pub(crate) use lora::{SavedUpdate, update, update_backward};
pub(crate) use near::{Near, Projection, Through};

#[cfg(test)]
thread_local! {
    /// Makes this thread compute every site as an island, the reference of what is written out here.
    pub(crate) static ISLANDS_ALONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

#[cfg(test)]
fn is_off() -> bool {
    ISLANDS_ALONE.get() || crate::host::is_off()
}

#[cfg(not(test))]
fn is_off() -> bool {
    false
}
