//! Connections between workers and coordinators: each keeps its order, none keeps its time, and all can break.

use graftwork_driver::Gone;
use graftwork_scheduler::Command;
use graftwork_shared::id::{Term, WorkerId};

use crate::world::{Deed, World};

/// A worker's session on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// The worker's process.
    pub(crate) process: usize,
    /// The coordinator's start that it leads to.
    pub(crate) start: u64,
    /// When the last message on its way arrives: to the worker, to the coordinator.
    pub(crate) last_ms: [u64; 2],
    /// Messages to the worker that it has not read.
    pub(crate) unread: usize,
    /// What is sent from then on never arrives.
    pub(crate) broken_ms: Option<u64>,
    /// The coordinator has closed its end, or learnt of the break.
    pub(crate) closed: bool,
}

/// To the worker.
pub(crate) const DOWN: usize = 0;
/// To the coordinator.
pub(crate) const UP: usize = 1;

impl Link {
    pub(crate) fn new(process: usize, start: u64) -> Self {
        Self { process, start, last_ms: [0; 2], unread: 0, broken_ms: None, closed: false }
    }

    /// When a message that is sent now arrives: behind those before it.
    pub(crate) fn arrival(&mut self, direction: usize, now_ms: u64, delay_ms: u64) -> u64 {
        let arrival = self.last_ms[direction].max(now_ms + delay_ms);
        self.last_ms[direction] = arrival;
        arrival
    }

    /// Whether what arrives now was sent before the break.
    pub(crate) fn carries(&self, now_ms: u64) -> bool {
        self.broken_ms.is_none_or(|broken| now_ms < broken)
    }
}

impl World {
    pub(crate) fn tell(&mut self, worker: WorkerId, command: Command) {
        self.send(worker, |link, term| Deed::Down(link, term, Box::new(command)));
    }

    /// The coordinator says something to a worker over its session.
    pub(crate) fn send(&mut self, worker: WorkerId, word: impl FnOnce(u64, Term) -> Deed) {
        let (now, delay, most) = (self.now, self.delay(), if self.calm { 256 } else { self.faults.unread });
        let coordinator = self.coordinator.as_mut().unwrap();
        let Some(number) = coordinator.sessions.get(&worker).copied() else { return };
        let term = coordinator.core.machine().state().term();
        let link = self.links.get_mut(&number).unwrap();
        let gone = if link.closed {
            Gone::Link("its connection is closed".to_owned())
        } else if link.unread >= most {
            Gone::Wrong("it does not read its messages".to_owned())
        } else {
            link.unread += 1;
            let arrival = link.arrival(DOWN, now, delay);
            return self.after(arrival - now, word(number, term));
        };
        coordinator.core.on_unsaid((worker, number), gone);
    }

    /// The coordinator ends its side of a connection; the worker learns of it behind what it was told before.
    pub(crate) fn close(&mut self, number: u64) {
        let (now, delay) = (self.now, self.delay());
        let link = self.links.get_mut(&number).unwrap();
        link.closed = true;
        let arrival = link.arrival(DOWN, now, delay);
        self.after(arrival - now, Deed::DownEnds(number));
    }
}
