//! What can go wrong in a group, and what its caller should do about it.
//!
//! Every error says by [`CollectiveError::remedy`] whether a new epoch may succeed. Waiting for a rank that computes is
//! no error; only the deadline that the caller set, or its own abort, ends a wait.

use crate::sum::SumError;

/// What the caller of a failed operation should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Form the group again under a new epoch: a member was lost, or the wait was ended.
    Reform,
    /// Stop: the same call would fail again.
    GiveUp,
}

/// Why a group could not be formed or an operation did not finish. A group that gave one of these with
/// [`Remedy::Reform`], or in which ranks did not match, is closed and repeats it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// A member left, died or could not be reached.
    #[error("a member of the group was lost in {operation}: {reason}")]
    PeerLost {
        /// The operation.
        operation: &'static str,
        /// What was noticed, and with which rank first.
        reason: String,
    },
    /// Ended by an [`crate::Aborter`].
    #[error("{operation} was aborted")]
    Aborted {
        /// The operation.
        operation: &'static str,
    },
    /// The deadline that was set at forming passed.
    #[error("{operation} did not finish within {limit_ms} ms")]
    Deadline {
        /// The operation.
        operation: &'static str,
        /// The deadline.
        limit_ms: u64,
    },
    /// Another member, or an earlier life of this one, already formed as this rank in this epoch.
    #[error("rank {rank} of {group} in epoch {epoch} is taken; an epoch is formed once")]
    EpochUsed {
        /// The group's name.
        group: String,
        /// The epoch.
        epoch: u64,
        /// The rank.
        rank: usize,
    },
    /// The rendezvous cannot be reached.
    #[error("the rendezvous failed: {0}")]
    Rendezvous(String),
    /// Members asked for different groups under one name and epoch.
    #[error("rank {rank} forms with {found}, this rank with {expected}")]
    Disagreement {
        /// The other member.
        rank: usize,
        /// What this rank asked for.
        expected: String,
        /// What the other one asked for.
        found: String,
    },
    /// Counts that do not fit the buffers or the group.
    #[error("{operation} was given {what} of {found}, but {expected} is needed")]
    Counts {
        /// The operation.
        operation: &'static str,
        /// Which count.
        what: &'static str,
        /// What it must be.
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// A peer sends another length than this rank expects.
    #[error("{operation}: rank {peer} has {found} bytes, {expected} were expected")]
    Mismatch {
        /// The operation.
        operation: &'static str,
        /// The peer.
        peer: usize,
        /// Bytes that this rank expects.
        expected: u64,
        /// Bytes that the peer announced.
        found: u64,
    },
    /// A peer is in another operation, or in another group.
    #[error("{operation}: rank {peer} is out of step ({found} instead of {expected})")]
    OutOfStep {
        /// The operation.
        operation: &'static str,
        /// The peer.
        peer: usize,
        /// Where this rank is.
        expected: String,
        /// Where the peer is.
        found: String,
    },
    /// A rank that the group does not have, or this rank itself.
    #[error("rank {rank} is no peer in a group of {size}")]
    Rank {
        /// The rank.
        rank: usize,
        /// The group's size.
        size: usize,
    },
    /// A tag above the bound.
    #[error("tag {tag} is above {bound}")]
    Tag {
        /// The tag.
        tag: u32,
        /// The largest one.
        bound: u32,
    },
    /// A library that is loaded at run time is not there.
    #[error("{library} cannot be loaded: {reason}")]
    Library {
        /// Its name.
        library: &'static str,
        /// What the loader said.
        reason: String,
    },
    /// A library refused, in its own words.
    #[error("{library} refused {operation}: {reason}")]
    Refused {
        /// Its name.
        library: &'static str,
        /// What it was asked.
        operation: &'static str,
        /// What it said.
        reason: String,
    },
    /// Parts that do not make one sum.
    #[error(transparent)]
    Sum(#[from] SumError),
}

impl CollectiveError {
    /// Whether a new epoch may succeed.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::PeerLost { .. }
            | Self::Aborted { .. }
            | Self::Deadline { .. }
            | Self::EpochUsed { .. }
            | Self::Rendezvous(_) => Remedy::Reform,
            Self::Disagreement { .. }
            | Self::Counts { .. }
            | Self::Mismatch { .. }
            | Self::OutOfStep { .. }
            | Self::Rank { .. }
            | Self::Tag { .. }
            | Self::Library { .. }
            | Self::Refused { .. }
            | Self::Sum(_) => Remedy::GiveUp,
        }
    }
}
