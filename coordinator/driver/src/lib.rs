//! The driver's logic: what waits for which fact, whose session is open, and who still needs which blob.
//!
//! It stands between the scheduler, which decides, and the coordinator's shell, which performs. It owns no clock,
//! socket, file, thread or random source: time is an argument, what the shell shall do is an [`Output`], and what came of
//! it comes back. So the shell and the simulation run the same code.
//!
//! ```text
//!  inputs ─► Core ─► Output::Write ─► journal ── durable(number) ─► Core ─► commands and replies, in order
//! ```
//!
//! Facts go to the journal; the commands and replies that hang on them wait until those facts are durable, and go out in
//! the order of the decisions (invariant 4). What comes late from a session that was replaced, or ended, is of no worker
//! any more (invariant 2).

mod core;
mod pins;

pub use core::{Core, Gone, Machine, Output, Timing};

/// Most acts that wait for their facts; the shell takes no input while so many do.
pub const MOST_WAITING: usize = 256;
