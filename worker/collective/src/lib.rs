//! Sums lane gradients so that the bytes of the sum do not depend on who computed which lane.
//!
//! A global batch is cut into lanes whose number is part of the resolved job. Adding floating-point numbers is not
//! associative, so a plain all-reduce, which adds in an order given by the ranks, changes bytes with their number: the
//! same lanes reduced by Gloo on 1, 2, 3, 4 and 7 ranks gave five different hashes. Here the order belongs to the
//! lanes alone: one [`Tree`], fixed by the number of lanes, says which two sums are added next (invariant 5).
//!
//! A thread or rank owns a contiguous range of lanes. It sums the complete subtrees in that range ([`partial_sums`]),
//! which are at most `2 · log2(lanes)` buckets, and only those are exchanged ([`ExchangePlan`]); [`combine`] adds them
//! along the rest of the tree. Sums are element by element, so a rank may combine one slice of every bucket
//! ([`ExchangePlan::slice`]) and gather the slices of the others, with the same bytes.
//!
//! This crate works on flat `f32` buffers in plain Rust. It opens no socket and knows no tensor; transports move the
//! buckets that the plan names.

mod plan;
mod sum;
mod tree;

pub use plan::{ExchangePlan, share};
pub use sum::{CollectiveError, Partial, combine, partial_sums, tree_sum};
pub use tree::{Node, Tree};
