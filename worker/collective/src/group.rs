//! The door to a group of ranks: what may be asked of it, whatever carries it.
//!
//! Buffers are flat and lie in host memory. Every rank calls the same operations in the same order, with counts that
//! fit; a peer that does not is an error and never a wrong number. Nothing here may decide an order of addition except
//! [`Group::all_reduce`], which is the transport's own and outside invariant 5.

use crate::{Aborter, CollectiveError};

/// The largest tag of [`Group::send`].
pub const MAX_TAG: u32 = (1 << 20) - 1;

/// One rank's membership in a group, owned by one thread at a time.
///
/// An operation returns when this rank's part in it is done, within the deadline that was set at forming; it waits that
/// long for a rank that computes, and [`Group::aborter`] ends the wait earlier. After an error that asks for a new
/// group ([`CollectiveError::remedy`]) or that shows ranks which do not match, the group is closed: peers that wait
/// see a lost member, and every later call repeats the error. A call refused for its own arguments closes nothing.
/// Buffers that a failed call was to fill hold anything, except those of [`Group::all_reduce`], which are as before.
///
/// End a group with [`Group::leave`]. Dropping it looks to the others as if this rank was lost.
pub trait Group: Send {
    /// This rank, below [`Group::size`].
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// The epoch it was formed under.
    fn epoch(&self) -> u64;

    /// A handle for another thread to end this group's waits.
    fn aborter(&self) -> Aborter;

    /// Adds the buffers of all ranks, in the transport's own order: the same on all ranks of one call, but another one
    /// for other sizes (`reduction = "fast"`). All have one length.
    fn all_reduce(&mut self, numbers: &mut [f32]) -> Result<(), CollectiveError>;

    /// Gives every rank the parts of all. `parts` holds them rank by rank, `counts[r]` numbers for rank `r`; the caller
    /// has filled its own.
    fn all_gather(&mut self, parts: &mut [f32], counts: &[usize]) -> Result<(), CollectiveError>;

    /// Sends part `r` of `send` to rank `r` and receives one from each; both are cut rank by rank, by their counts.
    fn all_to_all(
        &mut self,
        send: &[f32],
        send_counts: &[usize],
        received: &mut [f32],
        receive_counts: &[usize],
    ) -> Result<(), CollectiveError>;

    /// Gives every rank the root's numbers. All have one length.
    fn broadcast(&mut self, numbers: &mut [f32], root: usize) -> Result<(), CollectiveError>;

    /// Sends to one peer, and may wait until it receives. Between two ranks, messages of one tag arrive in order; over
    /// NCCL, which has no tags, they must be received in the order of sending. Tags go up to [`MAX_TAG`].
    fn send(&mut self, numbers: &[f32], to: usize, tag: u32) -> Result<(), CollectiveError>;

    /// Receives what one peer sends under the tag; the length must be what it sends.
    fn receive(&mut self, numbers: &mut [f32], from: usize, tag: u32) -> Result<(), CollectiveError>;

    /// Gives every rank the root's bytes, of whatever length.
    fn broadcast_bytes(&mut self, bytes: &mut Vec<u8>, root: usize) -> Result<(), CollectiveError>;

    /// The bytes of all ranks, by rank, of whatever lengths.
    fn all_gather_bytes(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError>;

    /// As [`Group::send`], for bytes.
    fn send_bytes(&mut self, bytes: &[u8], to: usize, tag: u32) -> Result<(), CollectiveError>;

    /// The bytes that one peer sends under the tag, of whatever length.
    fn receive_bytes(&mut self, from: usize, tag: u32) -> Result<Vec<u8>, CollectiveError>;

    /// Returns when every rank has called it.
    fn barrier(&mut self) -> Result<(), CollectiveError>;

    /// A new group of the ranks that give the same color, ordered by key, then by rank here. Deadlines, epoch and
    /// aborter are this group's.
    fn split(&mut self, color: u32, key: u32) -> Result<Box<dyn Group>, CollectiveError>;

    /// Waits until every rank leaves, then closes the group. A peer that is gone already is no error.
    fn leave(self: Box<Self>) -> Result<(), CollectiveError>;
}
