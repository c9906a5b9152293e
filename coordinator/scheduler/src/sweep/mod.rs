//! Sweeps: which of a task's trials go on, and which one becomes the task.
//!
//! ```text
//! trial stages                                                  the task's own stage
//! Pending ─► Running ─► paused at a rung, scored ─┐
//!    ▲                                            ▼
//!    └──────────── promoted ◄──────────── rung compared ──► stopped
//!                                                 │
//!                                                 └─► best at the end ─► takes its recipe and last checkpoint
//! ```
//!
//! A trial is a stage with a whole recipe of its own, which is never published. It trains to its rung, makes its state
//! durable, says its score and gives up its place. The task's stage waits for all of them; once one is chosen, it is an
//! ordinary stage again: it goes on from the chosen trial's last checkpoint, with its recipe, to scores on test rows.
//!
//! Unless the job asks for it, nothing here depends on which score came first: the rule looks at whole rungs alone, and a
//! trial that the machine failed is not compared, it fails its sweep. Decisions are facts.

mod machine;
mod plan;
mod rule;
mod state;
mod view;

pub use plan::{PlannedSweep, PlannedTrial};
pub(crate) use state::SweepState;
