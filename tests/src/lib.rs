//! The harness of the tests that cross crates: a tiny world (base model, data, job file) and real processes in it.
//!
//! Nothing of Graftwork is replaced here: tests start the programs that users start, read what users read, and kill
//! with SIGKILL. Faults are placed by what the programs report (a checkpoint of a stage), never by a clock. Whatever ran in a
//! world or a cluster has its history read when that ends.

mod cluster;
mod guarded;
mod history;
mod hosts;
mod pair;
mod process;
mod rows;
mod servers;
mod story;
mod world;

pub use cluster::{Cluster, Link};
pub use guarded::Guarded;
pub use hosts::{Hosts, Toll, Weather, no_hosts, no_servers};
pub use pair::{Coordinator, Pair};
pub use process::{Finished, Run, kill, program};
pub use rows::recipes_computed;
pub use servers::{Servers, servers_run};
pub use story::{Formation, Story};
pub use world::{BaseSizes, World, base_shapes, published_digests, tensor_digests};
