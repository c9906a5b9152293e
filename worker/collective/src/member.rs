//! One rank's part in a group: every message announced, every length compared, one way to fail.
//!
//! A move between ranks is two moves of the transport: announcements of fixed length, then the payloads they announced.
//! Once a move failed, or a peer did not match, nobody knows what lies in the connections; so the group is closed at
//! once, and the peers that wait for this rank notice instead of waiting for their deadline.

use std::{sync::Arc, time::Instant};

use crate::{
    CollectiveError, FormRequest, MAX_TAG, Rendezvous,
    header::{self, Header},
    rendezvous::whole_ms,
    transport::{Fault, Incoming, Native, Outgoing, Transport},
};

/// Where a member belongs, and how it came there.
pub(crate) struct Place {
    pub(crate) request: FormRequest,
    pub(crate) rendezvous: Arc<dyn Rendezvous>,
    pub(crate) token: u64,
}

/// A rank of a formed group.
pub(crate) struct Member {
    pub(crate) place: Place,
    /// `None` once the group is closed.
    transport: Option<Box<dyn Transport>>,
    failed: Option<CollectiveError>,
    step: u64,
    pub(crate) splits: u64,
}

/// What is done together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Hello = 1,
    AllReduce,
    AllGather,
    AllToAll,
    Broadcast,
    Message,
    Barrier,
    Split,
    Leave,
}

/// One call of an operation.
pub(crate) struct Call {
    pub(crate) operation: Operation,
    tag: Option<u32>,
    step: u64,
    pub(crate) until: Instant,
    limit_ms: u64,
}

/// Where a payload goes.
pub(crate) enum Target<'a> {
    /// The peer must send exactly as much.
    Exact(&'a mut [u8]),
    /// The peer decides the length.
    Any(&'a mut Vec<u8>),
}

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hello => "forming",
            Self::AllReduce => "all-reduce",
            Self::AllGather => "all-gather",
            Self::AllToAll => "all-to-all",
            Self::Broadcast => "broadcast",
            Self::Message => "a message",
            Self::Barrier => "barrier",
            Self::Split => "split",
            Self::Leave => "leaving",
        }
    }
}

impl Member {
    pub(crate) fn new(place: Place, transport: Box<dyn Transport>) -> Self {
        Self { place, transport: Some(transport), failed: None, step: 0, splits: 0 }
    }

    /// The first words over a new connection: all members are there, and of this group and epoch.
    pub(crate) fn hello(&mut self, until: Instant, limit_ms: u64) -> Result<(), CollectiveError> {
        self.agree(&Call { operation: Operation::Hello, tag: None, step: 0, until, limit_ms }, 0)
    }

    /// Starts a collective operation: all ranks count it.
    pub(crate) fn begin(&mut self, operation: Operation) -> Result<Call, CollectiveError> {
        self.check_open(operation)?;
        self.step += 1;
        Ok(self.call(operation, None, self.step))
    }

    /// Starts a message between this rank and a peer.
    pub(crate) fn begin_message(&mut self, peer: usize, tag: u32) -> Result<Call, CollectiveError> {
        self.check_open(Operation::Message)?;
        if tag > MAX_TAG {
            return Err(CollectiveError::Tag { tag, bound: MAX_TAG });
        }
        let (rank, size) = (self.place.request.rank, self.place.request.size);
        if peer >= size || peer == rank {
            return Err(CollectiveError::Rank { rank: peer, size });
        }
        Ok(self.call(Operation::Message, Some(tag), 0))
    }

    fn call(&self, operation: Operation, tag: Option<u32>, step: u64) -> Call {
        let limit = self.place.request.deadline;
        Call { operation, tag, step, until: Instant::now() + limit, limit_ms: whole_ms(limit) }
    }

    fn check_open(&mut self, operation: Operation) -> Result<(), CollectiveError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.place.request.aborter.is_aborted() {
            return Err(self.close(CollectiveError::Aborted { operation: operation.name() }));
        }
        Ok(())
    }

    /// The other ranks, the next one first, so that not all of them begin with rank 0.
    pub(crate) fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, size) = (self.place.request.rank, self.place.request.size);
        (1..size).map(move |distance| (rank + distance) % size)
    }

    /// Carries payloads to peers and from peers, all at once.
    pub(crate) fn exchange(
        &mut self,
        call: &Call,
        outgoing: &[(usize, &[u8])],
        mut incoming: Vec<(usize, Target<'_>)>,
    ) -> Result<(), CollectiveError> {
        let announced: Vec<_> = outgoing.iter().map(|(to, bytes)| (*to, bytes.len() as u64)).collect();
        let expected: Vec<_> = incoming.iter().map(|(from, target)| (*from, target.exact())).collect();
        let lengths = self.announce(call, &announced, &expected)?;
        let tag = call.transport_tag(1);
        let mut payloads = Vec::with_capacity(incoming.len());
        for ((from, target), bytes) in incoming.iter_mut().zip(lengths) {
            payloads.push(Incoming { from: *from, tag, bytes: target.fit(bytes) });
        }
        payloads.retain(|payload| !payload.bytes.is_empty());
        let outgoing = outgoing.iter().filter(|(_, bytes)| !bytes.is_empty());
        let outgoing: Vec<_> = outgoing.map(|(to, bytes)| Outgoing { to: *to, tag, bytes }).collect();
        self.carry(call, |transport| transport.exchange(&outgoing, &mut payloads, call.until))
    }

    /// Tells all ranks a length and compares theirs; a barrier too.
    pub(crate) fn agree(&mut self, call: &Call, bytes: usize) -> Result<(), CollectiveError> {
        let bytes = bytes as u64;
        let (outgoing, incoming): (Vec<_>, Vec<_>) =
            self.peers().map(|peer| ((peer, bytes), (peer, Some(bytes)))).unzip();
        self.announce(call, &outgoing, &incoming).map(drop)
    }

    /// Whether the transport has its own broadcast, all-gather and split.
    pub(crate) fn is_native(&mut self) -> bool {
        self.transport.as_mut().is_some_and(|transport| transport.native().is_some())
    }

    /// Runs one of the transport's own operations.
    pub(crate) fn native<T>(
        &mut self,
        call: &Call,
        act: impl FnOnce(&mut dyn Native) -> Result<T, Fault>,
    ) -> Result<T, CollectiveError> {
        let absent = || Fault::Refused("the transport", "it has no such operation".to_owned());
        self.carry(call, |transport| transport.native().ok_or_else(absent).and_then(act))
    }

    /// Lets the transport act; a fault closes the group.
    pub(crate) fn carry<T>(
        &mut self,
        call: &Call,
        act: impl FnOnce(&mut dyn Transport) -> Result<T, Fault>,
    ) -> Result<T, CollectiveError> {
        let operation = call.operation.name();
        let Some(transport) = &mut self.transport else {
            let reason = "this rank has left".to_owned();
            return Err(self.failed.clone().unwrap_or(CollectiveError::PeerLost { operation, reason }));
        };
        act(transport.as_mut()).map_err(|fault| {
            let error = match fault {
                // Whatever came first, this is what the caller of the abort waits for.
                _ if self.place.request.aborter.is_aborted() => CollectiveError::Aborted { operation },
                Fault::Aborted => CollectiveError::Aborted { operation },
                Fault::Deadline => CollectiveError::Deadline { operation, limit_ms: call.limit_ms },
                Fault::PeerLost(reason) => CollectiveError::PeerLost { operation, reason },
                Fault::Refused(library, reason) => CollectiveError::Refused { library, operation, reason },
            };
            self.close(error)
        })
    }

    /// Announces lengths to peers and hears theirs; `None` takes any length.
    fn announce(
        &mut self,
        call: &Call,
        outgoing: &[(usize, u64)],
        incoming: &[(usize, Option<u64>)],
    ) -> Result<Vec<u64>, CollectiveError> {
        let kind = call.operation as u64 | u64::from(call.tag.map_or(0, |tag| tag + 1)) << 8;
        let ours = |bytes| Header { token: self.place.token, step: call.step, kind, bytes };
        let sent: Vec<_> = outgoing.iter().map(|&(to, bytes)| (to, ours(bytes).encode())).collect();
        let expected: Vec<_> = incoming.iter().map(|&(from, bytes)| (from, ours(bytes.unwrap_or(0)), bytes)).collect();
        let mut heard = vec![[0; header::LENGTH]; incoming.len()];
        let tag = call.transport_tag(0);
        let outgoing: Vec<_> = sent.iter().map(|(to, bytes)| Outgoing { to: *to, tag, bytes }).collect();
        let places = heard.iter_mut().zip(incoming);
        let mut places: Vec<_> = places.map(|(bytes, &(from, _))| Incoming { from, tag, bytes }).collect();
        self.carry(call, |transport| transport.exchange(&outgoing, &mut places, call.until))?;
        let mut lengths = Vec::with_capacity(heard.len());
        for (found, (peer, expected, exact)) in heard.into_iter().map(Header::decode).zip(expected) {
            expected.check(found, peer, call.operation.name(), exact.is_some()).map_err(|error| self.close(error))?;
            lengths.push(found.bytes);
        }
        Ok(lengths)
    }

    /// Closes the connections and remembers why.
    fn close(&mut self, error: CollectiveError) -> CollectiveError {
        self.transport = None;
        self.failed.get_or_insert(error).clone()
    }
}

impl Call {
    /// Collective announcements and payloads have tags 0 and 1, messages of users the pairs above.
    fn transport_tag(&self, payload: u32) -> u32 {
        2 * self.tag.map_or(0, |tag| tag + 1) + payload
    }
}

impl<'a> Target<'a> {
    fn exact(&self) -> Option<u64> {
        match self {
            Self::Exact(bytes) => Some(bytes.len() as u64),
            Self::Any(_) => None,
        }
    }

    /// The place for as many bytes as the peer announced.
    fn fit(&mut self, length: u64) -> &mut [u8] {
        match self {
            Self::Exact(bytes) => bytes,
            Self::Any(bytes) => {
                bytes.clear();
                bytes.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
                bytes
            }
        }
    }
}
