//! TCP with TLS 1.3 between every two members, each of which shows a certificate of a worker.
//!
//! Gloo has a device for that, which in libtorch 2.11 takes certificate and key and then connects without them: the
//! full mesh makes plain pairs whatever the device (a group whose certificates no CA had signed formed and talked in
//! plain text). So these bytes travel without Gloo. One thread carries all moves: it goes as far as the sockets let it
//! and then waits for whichever is ready first, for an abort, and for the deadline.

mod greet;
mod identity;
mod link;

use std::{
    io::ErrorKind,
    net::{IpAddr, Shutdown},
    sync::Arc,
    time::{Duration, Instant},
};

use mio::{Events, Poll, Token, Waker, net::TcpStream};

pub use self::identity::{Identity, NAME};
use self::link::{Inbox, Link, Outbox};
use super::{Fault, Incoming, Outgoing, Transport, left};
use crate::{
    Aborter, CollectiveError,
    abort::Registration,
    bytes,
    form::{Meeting, lost},
    plan::share,
};

/// An abort. Sockets have other tokens.
const WAKE: Token = Token(0);

/// Longest wait at once: what waits measures with an `i32` of milliseconds.
const LONGEST: Duration = Duration::from_hours(1);

struct Tls {
    // Before the connections, so that no abort comes after they are closed.
    _wake: Registration,
    aborter: Aborter,
    rank: usize,
    /// By rank; none to this rank itself.
    links: Vec<Option<Link>>,
    poll: Poll,
    events: Events,
    /// Held for the abort, which has no other hold on it.
    _lines: Arc<Lines>,
}

/// What an abort needs of a group from another thread.
struct Lines {
    waker: Waker,
    sockets: Vec<Arc<TcpStream>>,
}

/// Connects to all members, listening on the address.
pub(crate) fn connect(
    meeting: &Meeting,
    address: IpAddr,
    identity: &Identity,
) -> Result<Box<dyn Transport>, CollectiveError> {
    let of_system = |error: std::io::Error| lost(error.to_string());
    let mut poll = Poll::new().map_err(of_system)?;
    let links = greet::connect(meeting, address, identity, &mut poll)?;
    let waker = Waker::new(poll.registry(), WAKE).map_err(of_system)?;
    let sockets = links.iter().flatten().map(|link| Arc::clone(&link.socket)).collect();
    let lines = Arc::new(Lines { waker, sockets });
    let theirs = Arc::downgrade(&lines);
    let wake = meeting.aborter.on_abort(move || {
        let Some(lines) = theirs.upgrade() else { return };
        // Peers notice at once, whatever this member does meanwhile. One that is gone needs no notice.
        lines.sockets.iter().for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
        // A wait that cannot be ended ends with the sockets that it waits for.
        let _ = lines.waker.wake();
    });
    let (aborter, events) = (meeting.aborter.clone(), Events::with_capacity(64));
    Ok(Box::new(Tls { _wake: wake, aborter, rank: meeting.rank, links, poll, events, _lines: lines }))
}

impl Tls {
    /// Goes as far as all sockets let it; whether everything has left and come.
    fn go_on(&mut self, boxes: &mut [(Outbox<'_>, Inbox<'_>)]) -> Result<bool, Fault> {
        let mut done = true;
        for (rank, (link, (outbox, inbox))) in self.links.iter_mut().zip(boxes).enumerate() {
            let Some(link) = link else { continue };
            let fault = |reason| Fault::PeerLost(format!("rank {rank}: {reason}"));
            done &= link.send(outbox).map_err(fault)?;
            done &= link.receive(inbox).map_err(fault)?;
        }
        Ok(done)
    }
}

impl Transport for Tls {
    fn exchange(
        &mut self,
        outgoing: &[Outgoing<'_>],
        incoming: &mut [Incoming<'_>],
        until: Instant,
    ) -> Result<(), Fault> {
        let mut boxes: Vec<(Outbox<'_>, Inbox<'_>)> =
            self.links.iter().map(|_| (Outbox::default(), Inbox::default())).collect();
        for Outgoing { to, tag, bytes } in outgoing {
            boxes[*to].0.push(*tag, bytes);
        }
        for Incoming { from, tag, bytes } in incoming {
            boxes[*from].1.push(*tag, bytes);
        }
        loop {
            if self.aborter.is_aborted() {
                return Err(Fault::Aborted);
            }
            if self.go_on(&mut boxes)? {
                return Ok(());
            }
            let left = left(until);
            if left.is_zero() {
                return Err(Fault::Deadline);
            }
            match self.poll.poll(&mut self.events, Some(left.min(LONGEST))) {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    return Err(Fault::Refused("the system", error.to_string()));
                }
                _ => {}
            }
        }
    }

    /// Each rank adds up one share of the numbers, in the order of ranks, and gives it to all.
    fn all_reduce(&mut self, numbers: &mut [f32], until: Instant) -> Result<(), Fault> {
        let (rank, size) = (self.rank, self.links.len());
        let shares: Vec<_> = (0..size).map(|of| share(numbers.len(), size, of)).collect();
        let peers = || (0..size).filter(|&peer| peer != rank);
        let own = shares[rank].clone();
        let mut parts = vec![vec![0.0_f32; own.len()]; size];
        parts[rank].copy_from_slice(&numbers[own.clone()]);
        let outgoing = peers().map(|to| Outgoing { to, tag: 0, bytes: bytes::of(&numbers[shares[to].clone()]) });
        let outgoing: Vec<_> = outgoing.filter(|outgoing| !outgoing.bytes.is_empty()).collect();
        let incoming = parts.iter_mut().enumerate().filter(|(from, part)| *from != rank && !part.is_empty());
        let mut incoming: Vec<_> =
            incoming.map(|(from, part)| Incoming { from, tag: 0, bytes: bytes::of_mut(part) }).collect();
        self.exchange(&outgoing, &mut incoming, until)?;
        let mut sum = vec![0.0_f32; own.len()];
        for part in parts {
            sum.iter_mut().zip(part).for_each(|(sum, number)| *sum += number);
        }
        let mut whole = vec![0.0_f32; numbers.len()];
        whole[own].copy_from_slice(&sum);
        let (mut incoming, mut rest) = (Vec::new(), whole.as_mut_slice());
        for (from, share) in shares.iter().enumerate() {
            let (part, behind) = rest.split_at_mut(share.len());
            rest = behind;
            if from != rank && !part.is_empty() {
                incoming.push(Incoming { from, tag: 0, bytes: bytes::of_mut(part) });
            }
        }
        let outgoing = peers().filter(|_| !sum.is_empty()).map(|to| Outgoing { to, tag: 0, bytes: bytes::of(&sum) });
        self.exchange(&outgoing.collect::<Vec<_>>(), &mut incoming, until)?;
        numbers.copy_from_slice(&whole);
        Ok(())
    }
}
