//! Connections between workers and coordinators: each keeps its order, none keeps its time, and all can break.

use graftwork_driver::Gone;
use graftwork_scheduler::Command;
use graftwork_shared::id::{Term, WorkerId};

use crate::{
    seen::Seen,
    world::{Deed, World},
};

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
    /// From when on what still comes over a closed connection is not read any more: whoever reads it learns of the end a
    /// little later than the coordinator's loop.
    pub(crate) deaf_ms: u64,
}

/// To the worker.
pub(crate) const DOWN: usize = 0;
/// To the coordinator.
pub(crate) const UP: usize = 1;

impl Link {
    pub(crate) fn new(process: usize, start: u64) -> Self {
        Self { process, start, last_ms: [0; 2], unread: 0, broken_ms: None, closed: false, deaf_ms: 0 }
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
        let twice = self.strikes(self.faults.twice);
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
            let deed = word(number, term);
            if twice {
                self.note(Seen::CommandTwice);
                self.links.get_mut(&number).unwrap().unread += 1;
                self.after(arrival - now, deed.clone());
            }
            return self.after(arrival - now, deed);
        };
        coordinator.core.on_unsaid((worker, number), gone);
    }

    /// An answer to a worker's request beside its connection; it may overtake what was said over that before.
    pub(crate) fn answer(&mut self, process: usize, deed: Deed) {
        let delay = self.delay();
        let link = self.processes.get(&process).and_then(|process| process.link);
        if link.is_some_and(|link| self.links[&link].last_ms[DOWN] > self.now + delay) {
            self.note(Seen::AnswerOvertook);
        }
        self.after(delay, deed);
    }

    /// The coordinator ends its side of a connection; the worker learns of it behind what it was told before.
    pub(crate) fn close(&mut self, number: u64) {
        let (now, delay, deaf) = (self.now, self.delay(), self.dice.below(500));
        let link = self.links.get_mut(&number).unwrap();
        (link.closed, link.deaf_ms) = (true, now + deaf);
        let arrival = link.arrival(DOWN, now, delay);
        self.after(arrival - now, Deed::DownEnds(number));
    }
}
