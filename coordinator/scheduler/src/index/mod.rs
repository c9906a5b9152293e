//! What is looked up instead of searched for, so that a decision touches what an event changed and no more.
//!
//! Two kinds: what follows from the facts alone lies in the state and its jobs, is kept while facts are folded and made
//! anew when a snapshot is read; what follows from the workers and the moment lies on the [`Board`]. Nothing here decides.
//! [`check`] makes all of it anew, as the rules say it, and compares.

mod board;
pub(crate) mod check;
mod fleet;
mod job;
mod leases;
mod queue;
mod ranked;
mod state;

pub(crate) use board::{Board, Round};
pub(crate) use fleet::Kind;
pub(crate) use job::JobIndex;
pub(crate) use leases::{Berth, GroupMark, LackRank};
pub(crate) use queue::{Demand, Entry, LineKey, Rank, Wait};
pub(crate) use state::{Spot, StateIndex, Touched};
