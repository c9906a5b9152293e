//! Ranks that are threads of one process: mailboxes under one lock. The reference for the others, and for tests.
//!
//! Members find their mailboxes by a number that rank 0 publishes through the rendezvous; another process that reads
//! the number finds nothing. A message is copied once when sent and once when received.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{Fault, Incoming, Outgoing, Transport, left};
use crate::{
    CollectiveError,
    abort::{Aborter, Registration},
    bytes,
    form::Meeting,
};

/// Mailboxes of the groups that live in this process, by the number that rank 0 drew.
static GROUPS: Mutex<BTreeMap<u64, Weak<Mailboxes>>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

struct Mailboxes {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// By sender, receiver and tag.
    messages: BTreeMap<(usize, usize, u32), VecDeque<Vec<u8>>>,
    gone: Vec<bool>,
}

/// One thread's place at the mailboxes.
pub(crate) struct InProcess {
    rank: usize,
    size: usize,
    mailboxes: Arc<Mailboxes>,
    aborter: Aborter,
    _wake: Registration,
}

fn groups() -> MutexGuard<'static, BTreeMap<u64, Weak<Mailboxes>>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Meets the other threads. Rank 0 makes the mailboxes.
pub(crate) fn connect(meeting: &Meeting) -> Result<Box<dyn Transport>, CollectiveError> {
    let (rank, size) = (meeting.rank, meeting.size);
    let mailboxes = if rank == 0 {
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let state = State { messages: BTreeMap::new(), gone: vec![false; size] };
        let mailboxes = Arc::new(Mailboxes { state: Mutex::new(state), changed: Condvar::new() });
        let mut groups = groups();
        groups.retain(|_, mailboxes| mailboxes.strong_count() > 0);
        groups.insert(number, Arc::downgrade(&mailboxes));
        drop(groups);
        meeting.set("mailboxes", &number.to_le_bytes())?;
        mailboxes
    } else {
        let number = <[u8; 8]>::try_from(meeting.get("mailboxes")?).map(u64::from_le_bytes);
        let found = number.ok().and_then(|number| groups().get(&number).and_then(Weak::upgrade));
        found.ok_or_else(|| meeting.lost("rank 0 has left, or is no thread of this process"))?
    };
    let wake = {
        let mailboxes = mailboxes.clone();
        // Under the lock, so that it cannot fall between a waiter's look at the flag and its sleep.
        meeting.aborter.on_abort(move || {
            let _state = mailboxes.state();
            mailboxes.changed.notify_all();
        })
    };
    Ok(Box::new(InProcess { rank, size, mailboxes, aborter: meeting.aborter.clone(), _wake: wake }))
}

impl Mailboxes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InProcess {
    fn take(&self, from: usize, tag: u32, until: Instant) -> Result<Vec<u8>, Fault> {
        let mut state = self.mailboxes.state();
        loop {
            if self.aborter.is_aborted() {
                return Err(Fault::Aborted);
            }
            if let Some(message) = state.messages.get_mut(&(from, self.rank, tag)).and_then(VecDeque::pop_front) {
                return Ok(message);
            }
            if state.gone[from] {
                return Err(Fault::PeerLost(format!("rank {from} has left")));
            }
            let left = left(until);
            if left.is_zero() {
                return Err(Fault::Deadline);
            }
            state = self.mailboxes.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Transport for InProcess {
    fn exchange(
        &mut self,
        outgoing: &[Outgoing<'_>],
        incoming: &mut [Incoming<'_>],
        until: Instant,
    ) -> Result<(), Fault> {
        for Outgoing { to, tag, bytes } in outgoing {
            let mut state = self.mailboxes.state();
            if state.gone[*to] {
                return Err(Fault::PeerLost(format!("rank {to} has left")));
            }
            state.messages.entry((self.rank, *to, *tag)).or_default().push_back(bytes.to_vec());
            drop(state);
            self.mailboxes.changed.notify_all();
        }
        for Incoming { from, tag, bytes } in incoming {
            let message = self.take(*from, *tag, until)?;
            if message.len() != bytes.len() {
                return Err(Fault::PeerLost(format!("rank {from} sent another length than announced")));
            }
            bytes.copy_from_slice(&message);
        }
        Ok(())
    }

    fn all_reduce(&mut self, numbers: &mut [f32], until: Instant) -> Result<(), Fault> {
        let peers: Vec<usize> = (0..self.size).filter(|&peer| peer != self.rank).collect();
        let outgoing: Vec<_> = peers.iter().map(|&to| Outgoing { to, tag: 0, bytes: bytes::of(numbers) }).collect();
        let mut parts = vec![vec![0.0_f32; numbers.len()]; self.size];
        parts[self.rank].copy_from_slice(numbers);
        let others = parts.iter_mut().enumerate().filter(|(from, _)| *from != self.rank);
        let mut incoming: Vec<_> =
            others.map(|(from, part)| Incoming { from, tag: 0, bytes: bytes::of_mut(part) }).collect();
        self.exchange(&outgoing, &mut incoming, until)?;
        numbers.fill(0.0);
        for part in parts {
            numbers.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.mailboxes.state().gone[self.rank] = true;
        self.mailboxes.changed.notify_all();
    }
}
