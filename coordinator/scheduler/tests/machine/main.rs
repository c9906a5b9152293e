//! The scheduler, event by event: one program of all tests but those of its growth, since each program of its own would
//! compile the whole machine once more.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails, and says where")]

#[path = "../fixture/mod.rs"]
mod fixture;

mod arithmetic;
mod behaviour;
mod broken;
mod cost;
mod cut_pair;
mod faults;
mod forget;
mod gang;
mod group;
mod groups;
mod histories;
mod history;
mod kept;
mod limit;
mod memory;
mod pace;
mod preempt;
mod recovery;
mod share;
mod simulation;
mod stalled;
mod sweeps;
mod swept;
mod tail;
mod terms;
mod world;
