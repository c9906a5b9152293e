//! The scheduler: a pure machine that says which stage runs on which worker, when again, and why not.
//!
//! `apply(now, event) -> decision`. A decision is facts, which the shell makes durable first, and commands, which it
//! carries out after that. The state is the fold of the facts, in life and at recovery alike; the machine owns no
//! clock, socket, file, thread or random source. README.md states the wanted properties and the problem.

mod attempt;
mod census;
mod cost;
mod explain;
mod fact;
mod forget;
mod gang;
mod group;
mod grow;
pub mod history;
mod index;
pub mod invariant;
mod job;
mod kept;
mod limit;
mod loss;
mod machine;
mod memory;
mod merit;
mod message;
mod pace;
mod phase;
mod place;
mod plan;
mod preempt;
mod reopen;
mod serve;
mod settle;
mod share;
mod stall;
mod state;
mod sweep;
mod tail;
mod term;
mod view;
mod worker;

pub use census::Census;
pub use explain::{Ahead, Corrected, Free, Needs, OtherClass, OtherVersion, OutOfReach, Slow, Took, Versions, Why};
pub use fact::{FACT_VERSION, Fact};
pub use machine::{Policy, Scheduler, Standing};
pub use merit::Chosen;
pub use message::{Command, Decision, Event, StageKey, WorkerInfo};
pub use plan::{FusedSource, Plan, PlanError, PlannedStage};
pub use share::Quota;
pub use state::{FoldError, State};
pub use sweep::{PlannedSweep, PlannedTrial};
pub use tail::{HelpedFirst, HoldsUp};
pub use view::{Explanation, StageExplanation, WorkerView};
