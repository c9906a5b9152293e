//! Trunks, adapters, composition, heads and the training of them on libtorch.
//!
//! The trunk is frozen: its blocks have an explicit forward that returns what the backward needs, and an explicit
//! backward with respect to their input only. The usual adapter sites are written out too; unusual ones and heads are
//! small autograd islands. On the processor nearly all arithmetic is that of `kernel`, elsewhere that of libtorch.
//! Activations are packed, `[tokens, hidden]`, without padding. Nothing here draws from libtorch's random generator, and a lane's
//! result is a function of its rows, the parameters and the options alone (invariant 5 of ARCHITECTURE.md).
//!
//! Suffixes of tensor names: `t` tokens, `d` hidden size, `o`/`i` output/input width, `b` rows, `c` logits,
//! `h` attention heads, `n` fused adapters.

mod attention;
mod block;
mod bottleneck;
mod checkpoint;
mod clock;
mod compose;
mod direct;
mod dropout;
mod error;
mod follow;
mod fusion;
mod golden;
mod head;
mod host;
mod initial;
mod input;
mod island;
mod kernel;
mod layer;
mod lora;
mod metrics;
mod network;
mod packed;
mod parameters;
#[doc(hidden)]
pub mod pieces;
mod process;
mod rows;
mod scoring;
mod setup;
mod shelf;
mod sites;
mod spans;
#[cfg(test)]
mod testing;
mod timing;
mod trainer;
mod transfer;
mod trunk;

pub use checkpoint::CheckpointError;
pub use clock::thread_seconds;
pub use error::EngineError;
pub use follow::{FollowError, follow};
pub use golden::{GoldenError, golden};
pub use initial::initial_weights;
pub use input::{
    BatchShape, Consumed, Encoded, Input, InputCost, InputError, InputRequest, Position, TextEncoder, Update, deal,
};
pub use kernel::take_multiplications;
pub use metrics::{Predictions, largest};
pub use network::{Keep, Network, Parts, StagedLane};
pub use parameters::{Layout, TrainedTensor};
pub use process::{cuda_devices, end_process, use_one_thread};
pub use rows::{Dropout, FusionAttention, HeadLogits, Lane, LaneOptions, LaneOutput, Prediction, Targets, Tokens};
pub use scoring::Scored;
pub use setup::{Setup, Trained};
pub use shelf::{Shelves, Visit};
/// Where tensors live.
pub use tch::Device;
pub use timing::{Work, take_work_times};
pub use trainer::{Course, LaneSum, LaneSums, Progress, StepOptions, StepOutcome, TrainError, Trainer};
pub use trunk::Trunk;
