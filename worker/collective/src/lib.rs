//! Sums lane gradients over threads and ranks so that the bytes of the sum do not depend on who computed which lane.
//!
//! A global batch is cut into lanes whose number is part of the resolved job. Adding floating-point numbers is not
//! associative, so a plain all-reduce, which adds in an order given by the ranks, changes bytes with their number: the
//! same lanes reduced by Gloo on 1, 2, 3, 4 and 7 ranks gave five different hashes. Here the order belongs to the
//! lanes alone: one [`Tree`], fixed by the number of lanes, says which two sums are added next (invariant 5).
//!
//! **Sums.** A thread or rank owns a contiguous range of lanes. It sums the complete subtrees in that range
//! ([`partial_sums`]), at most `2 · log2(lanes)` buckets; [`ExchangePlan`] says which, and [`reduce_lanes`] adds them
//! over a group. [`combine`] is the same inside one process.
//!
//! **Groups.** [`form()`] meets the other members through a [`Rendezvous`] and gives a [`Group`]: flat host buffers of
//! `f32` or bytes, moved over Gloo, TLS, NCCL or threads ([`Backend`]). A group lives for one epoch. Whatever ends it is an
//! error that says by its [`Remedy`] whether to form the next epoch or to give up; an [`Aborter`] ends a wait from
//! another thread. Every message is announced, so ranks that do not match are an error and never a wrong number.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use graftwork_collective::*;
//! # fn example(rendezvous: Arc<dyn Rendezvous>, lanes: Vec<Option<Vec<f32>>>) -> Result<(), CollectiveError> {
//! let (rank, ranks, length) = (0, 2, 1024);
//! let mut group = form(FormRequest::new("stage", 1, rank, ranks), rendezvous)?;
//! let plan = ExchangePlan::new(8, ranks);
//! let own = partial_sums(plan.tree(), plan.lanes(rank).start, lanes);
//! let reduced = reduce_lanes(group.as_mut(), &plan, own, length, Way::of(length))?;
//! group.leave()?;
//! # Ok(()) }
//! ```
//!
//! This crate knows no tensor and does not use `tch`: Gloo is taken out of libtorch's library by a small C++ shim.

mod abort;
mod bytes;
mod error;
mod form;
mod group;
mod header;
mod member;
mod operations;
mod plan;
mod reduce;
mod rendezvous;
mod sum;
mod transport;
mod tree;

pub use abort::Aborter;
pub use error::{CollectiveError, Remedy};
pub use form::{Backend, EXCHANGE, FormRequest, form};
pub use group::{Group, MAX_TAG};
pub use plan::{ExchangePlan, share};
pub use reduce::{Reduced, Way, reduce_lanes};
pub use rendezvous::{MemoryRendezvous, Rendezvous, RendezvousError};
pub use sum::{Partial, SumError, combine, partial_sums, tree_sum};
pub use tree::{Fold, Node, Tree};

/// What NCCL says of itself on this machine.
pub mod nccl {
    pub use crate::transport::nccl::{Report, probe};
}

/// Groups over TLS.
pub mod tls {
    pub use crate::transport::tls::{Identity, NAME};
}
