//! Who leads: coordinators that take the lead while another one lives, and what that one still writes, says and deletes.
//!
//! Only a journal in a database can have two coordinators, so this is how that works: a row says under which term a write
//! counts.

use graftwork_scheduler::Fact;
use graftwork_shared::id::Term;

use crate::{
    coordinator::Coordinator,
    seen::Seen,
    world::{Deed, World},
};

/// How long it takes a coordinator that does not stand still to learn that it leads no more, at most.
const LEARNS_MS: u64 = 3_000;

impl World {
    /// The coordinator stands still, or is cut off from its journal alone: sooner or later another one takes the lead.
    pub(crate) fn cut_off(&mut self) {
        let Some(start) = self.coordinator.as_ref().map(|coordinator| coordinator.start) else { return };
        let wait = self.dice.between(100, 8_000);
        self.after(wait, Deed::Usurp);
        if self.dice.chance(300) {
            return;
        }
        self.stall();
        // Some workers notice.
        for link in self.open_links(start) {
            if self.dice.chance(700) {
                let wait = self.dice.between(500, 6_000);
                self.after(wait, Deed::Unanswered(link));
            }
        }
    }

    pub(crate) fn usurp(&mut self) {
        if let Some(older) = self.deposed.take() {
            self.deposed = self.coordinator.replace(older);
            self.crash();
            std::mem::swap(&mut self.coordinator, &mut self.deposed);
        }
        if let Some(old) = self.coordinator.take() {
            let learns = self.dice.between(1, LEARNS_MS) + old.stalled_until.saturating_sub(self.now);
            self.after(learns, Deed::Deposed(old.start));
            self.deposed = Some(old);
            self.note(Seen::Usurped);
        }
        self.start();
    }

    /// The coordinator that leads no more acts.
    pub(crate) fn as_deposed(&mut self, act: impl FnOnce(&mut Self)) {
        std::mem::swap(&mut self.coordinator, &mut self.deposed);
        act(self);
        std::mem::swap(&mut self.coordinator, &mut self.deposed);
    }

    pub(crate) fn lives(&self, start: u64) -> bool {
        [&self.coordinator, &self.deposed].into_iter().flatten().any(|coordinator| coordinator.start == start)
    }

    /// One that answers at its address, which may lead no more.
    pub(crate) fn some_coordinator(&mut self) -> Option<u64> {
        let older = self.deposed.as_ref().map(|coordinator| coordinator.start);
        if older.is_some() && self.dice.chance(300) {
            return older;
        }
        self.coordinator.as_ref().map(|coordinator| coordinator.start)
    }

    /// Whether the coordinator that acts leads.
    pub(crate) fn leads(&self) -> bool {
        self.coordinator.as_ref().is_some_and(|coordinator| coordinator.term == self.disk.term)
    }

    pub(crate) fn leader(&self) -> Option<&Coordinator> {
        [&self.coordinator, &self.deposed].into_iter().flatten().find(|coordinator| coordinator.term == self.disk.term)
    }

    /// Writes facts, if who decided them leads.
    pub(crate) fn write(&mut self, term: Term, facts: Vec<Fact>) -> bool {
        let before = self.disk.facts.len();
        if self.disk.write(term, facts).is_err() {
            self.note(Seen::WriteRefused);
            return false;
        }
        self.ledger.on_written(&self.disk.facts[before..], &self.plans, &self.checkpoints);
        true
    }
}
