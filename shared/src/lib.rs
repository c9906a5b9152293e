//! The words that every part of Graftwork speaks: names, units, the job file, recipes, events and diagnostics.
//!
//! This crate holds values and pure functions over them. It must never open a file, a socket or a clock, and it
//! must never depend on libtorch or on an async runtime. What enters a digest is declared here and nowhere else, so
//! invariant 5 of ARCHITECTURE.md (equal recipes give equal bytes) starts in this crate.

pub mod adapter;
pub mod address;
pub mod assignment;
pub mod cause;
pub mod composition;
pub mod credentials;
pub mod data;
pub mod diagnostic;
pub mod digest;
pub mod event;
pub mod head;
pub mod id;
pub mod job;
pub mod metric;
pub mod random;
pub mod recipe;
pub mod record;
pub mod schedule;
pub mod sweep;
pub mod trace;
pub mod training;
pub mod upload;
pub mod version;
pub mod view;

/// Version of everything that decides published bytes: arithmetic, order of rows, random numbers, file layout.
/// A test trains a tiny model and fails when the hash of the result changes while this number does not.
pub const NUMERICS_VERSION: u32 = 5;

/// Version of the programs; those that talk to each other are one minor version apart at most ([`version`]).
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
