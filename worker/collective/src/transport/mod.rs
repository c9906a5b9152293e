//! What carries a group: moves of bytes between ranks, all at once, and one native sum.
//!
//! A transport knows no counts, tags of users or order of operations; [`crate::member`] has checked them and announced
//! every length before it is asked. It must return at the deadline and at an abort, must touch no buffer after it
//! returned, and must never throw, panic or end the process.

pub(crate) mod gloo;
pub(crate) mod in_process;
pub(crate) mod nccl;
pub(crate) mod tls;

use std::time::{Duration, Instant};

/// Bytes that go to a peer.
pub(crate) struct Outgoing<'a> {
    pub(crate) to: usize,
    pub(crate) tag: u32,
    pub(crate) bytes: &'a [u8],
}

/// Where bytes of a peer go; as many as it sends.
pub(crate) struct Incoming<'a> {
    pub(crate) from: usize,
    pub(crate) tag: u32,
    pub(crate) bytes: &'a mut [u8],
}

/// Why a move did not finish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Aborted,
    Deadline,
    PeerLost(String),
    /// A library refused, in its own words.
    Refused(&'static str, String),
}

/// Moves between the ranks of one group. Dropping it closes its connections at once.
pub(crate) trait Transport: Send {
    /// Carries all moves at once; none is to this rank itself and none is empty. Messages of one tag between two ranks
    /// keep their order.
    fn exchange(
        &mut self,
        outgoing: &[Outgoing<'_>],
        incoming: &mut [Incoming<'_>],
        until: Instant,
    ) -> Result<(), Fault>;

    /// Adds the buffers of all ranks in its own order. On a fault they are as before.
    fn all_reduce(&mut self, numbers: &mut [f32], until: Instant) -> Result<(), Fault>;

    /// The transport's own broadcast and all-gather of equal parts, where they beat moves from rank to rank.
    fn native(&mut self) -> Option<&mut dyn Native> {
        None
    }
}

/// Collective moves that a library does better than moves from rank to rank, on lengths that all ranks agreed on.
pub(crate) trait Native {
    fn broadcast(&mut self, bytes: &mut [u8], root: usize, until: Instant) -> Result<(), Fault>;

    /// Parts lie rank by rank and are of one length; the caller's is filled.
    fn all_gather(&mut self, parts: &mut [u8], until: Instant) -> Result<(), Fault>;

    /// A new transport for a part of the group.
    fn split(&mut self, part: Part, until: Instant) -> Result<Box<dyn Transport>, Fault>;
}

/// The ranks of one color, ordered by key, and this rank's place among them.
pub(crate) struct Part {
    pub(crate) color: u32,
    pub(crate) key: u32,
    pub(crate) rank: usize,
    pub(crate) size: usize,
}

/// What is left until then.
pub(crate) fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
