//! The workers by what they can take: who has room, who has nothing to do, who is given up when.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use graftwork_shared::id::{LeaseId, WorkerId};

use super::{leases::Berth, queue::Demand};
use crate::message::Arithmetic;

/// What was last seen of a worker.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is asked for by itself")]
pub(crate) struct Seat {
    pub(crate) arithmetic: Arc<Arithmetic>,
    /// The host on which alone others reach it.
    pub(crate) reached_on: Arc<str>,
    /// New work may go to it.
    pub(crate) takes_work: bool,
    /// It does so, or will when it is back.
    pub(crate) stays: bool,
    /// The most memory that a stage may need on it.
    pub(crate) hold_bytes: u64,
    /// The same beside what it has, if it has a free place.
    pub(crate) room_bytes: Option<u64>,
    /// It has nothing to do.
    pub(crate) idle: bool,
    /// Leases in which it only helps.
    pub(crate) helping: Vec<LeaseId>,
    /// A lease will leave it: it is not live any more, or was asked for.
    pub(crate) coming: bool,
}

/// Idle workers that are alike: arithmetic, host, and the memory that a stage may need.
pub(crate) type Kind = (Arc<Arithmetic>, Arc<str>, u64);

/// Workers of one arithmetic that take work.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Class {
    /// How many can hold so much.
    holds: BTreeMap<u64, usize>,
    /// Those with a free place, by the memory that is left.
    pub(crate) rooms: BTreeSet<(u64, WorkerId)>,
}

/// Workers that could train together: those that stay, also while they are apart for a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Together {
    /// By the most memory that a stage may need on them.
    holds: BTreeSet<(u64, WorkerId)>,
    /// Those with a free place, by the memory that is left.
    rooms: BTreeSet<(u64, WorkerId)>,
}

/// All workers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fleet {
    pub(crate) seats: BTreeMap<WorkerId, Seat>,
    pub(crate) classes: BTreeMap<Arc<Arithmetic>, Class>,
    pub(crate) berths: BTreeMap<Berth, Together>,
    pub(crate) idle: BTreeMap<Kind, BTreeSet<WorkerId>>,
    pub(crate) helping: BTreeSet<(WorkerId, LeaseId)>,
    pub(crate) coming: BTreeSet<WorkerId>,
    /// When each is given up if nothing is heard of it.
    pub(crate) deadlines: BTreeSet<(u64, WorkerId)>,
    deadline_of: BTreeMap<WorkerId, u64>,
    /// By the name of their process.
    pub(crate) processes: BTreeMap<String, BTreeSet<WorkerId>>,
    /// How often what the classes can hold has changed.
    pub(crate) refits: u64,
    /// How often has changed how many could hold it.
    pub(crate) recounts: u64,
}

impl Class {
    fn largest(&self) -> Option<u64> {
        self.holds.keys().next_back().copied()
    }
}

fn with(workers: &BTreeSet<(u64, WorkerId)>, memory_bytes: u64) -> impl Iterator<Item = WorkerId> + '_ {
    workers.range((memory_bytes, WorkerId(0))..).map(|(_, worker)| *worker)
}

impl Together {
    /// Workers that could hold so much.
    pub(crate) fn holders(&self, memory_bytes: u64) -> impl Iterator<Item = WorkerId> + '_ {
        with(&self.holds, memory_bytes)
    }

    /// Workers with room for so much.
    pub(crate) fn roomy(&self, memory_bytes: u64) -> impl Iterator<Item = WorkerId> + '_ {
        with(&self.rooms, memory_bytes)
    }
}

impl Fleet {
    fn suiting<'f>(&'f self, demand: &'f Demand, kept: &'f [Demand]) -> impl Iterator<Item = &'f Class> {
        let free = |arithmetic: &Arithmetic| !kept.iter().any(|gang| gang.suits(arithmetic));
        self.classes.iter().filter(move |(of, _)| demand.suits(of) && free(of)).map(|(_, of)| of)
    }

    /// The most memory that a worker has left which has a free place; for a gang, that each of so many has.
    pub(crate) fn room(&self, demand: &Demand) -> Option<u64> {
        self.room_beside(demand, &[])
    }

    /// The same without what is kept for gangs.
    pub(crate) fn room_beside(&self, demand: &Demand, kept: &[Demand]) -> Option<u64> {
        if demand.gang > 1 {
            return self.most_together(demand, |together| &together.rooms);
        }
        self.suiting(demand, kept).filter_map(|class| class.rooms.last().map(|(room, _)| *room)).max()
    }

    /// The most memory that a worker can hold at all; for a gang, that each of so many can.
    pub(crate) fn hold(&self, demand: &Demand) -> Option<u64> {
        if demand.gang > 1 {
            return self.most_together(demand, |together| &together.holds);
        }
        self.suiting(demand, &[]).filter_map(Class::largest).max()
    }

    fn most_together(&self, demand: &Demand, by: impl Fn(&Together) -> &BTreeSet<(u64, WorkerId)>) -> Option<u64> {
        let of_gang = usize::try_from(demand.gang).ok()?.checked_sub(1)?;
        let all = self.together(demand).filter_map(|(_, together)| by(together).iter().nth_back(of_gang));
        all.map(|(bytes, _)| *bytes).max()
    }

    /// Suited workers by who could train together.
    pub(crate) fn together<'f>(&'f self, demand: &'f Demand) -> impl Iterator<Item = (&'f Berth, &'f Together)> {
        self.berths.iter().filter(move |((arithmetic, _), _)| demand.suits(arithmetic))
    }

    /// Workers with room for so much beside what is kept for gangs.
    pub(crate) fn roomy<'f>(
        &'f self,
        demand: &'f Demand,
        memory_bytes: u64,
        kept: &'f [Demand],
    ) -> impl Iterator<Item = WorkerId> + 'f {
        let roomy = self.suiting(demand, kept).flat_map(move |class| class.rooms.range((memory_bytes, WorkerId(0))..));
        roomy.map(|(_, worker)| *worker)
    }

    /// Whether a worker could train together with those of a berth.
    pub(crate) fn is_at(&self, worker: WorkerId, berth: &Berth) -> bool {
        self.seats.get(&worker).is_some_and(|seat| (&seat.arithmetic, &seat.reached_on) == (&berth.0, &berth.1))
    }

    /// Follows a worker's deadline; `None`: it is gone.
    pub(crate) fn expect(&mut self, worker: WorkerId, deadline_ms: Option<u64>) {
        let old = match deadline_ms {
            Some(at) => self.deadline_of.insert(worker, at),
            None => self.deadline_of.remove(&worker),
        };
        if old != deadline_ms {
            old.map(|at| self.deadlines.remove(&(at, worker)));
            self.deadlines.extend(deadline_ms.map(|at| (at, worker)));
        }
    }

    /// Seats a worker as it is now; `None`: it is gone. Gives what was known of it, if that has changed.
    pub(crate) fn seat(&mut self, worker: WorkerId, seat: Option<Seat>) -> Option<Option<Seat>> {
        if self.seats.get(&worker) == seat.as_ref() {
            return None;
        }
        let old = self.seats.remove(&worker);
        let held = |seat: &Option<Seat>| seat.as_ref().filter(|seat| seat.takes_work).map(Seat::kind);
        let (before, after) = (held(&old), held(&seat));
        if let Some(old) = &old {
            self.leave(worker, old);
        }
        let stays = |seat: &Option<Seat>| seat.as_ref().filter(|seat| seat.stays).map(Seat::kind);
        self.recounts += u64::from(stays(&old) != stays(&seat));
        if before != after {
            before.into_iter().for_each(|(arithmetic, _, bytes)| self.count(&arithmetic, bytes, false));
            after.into_iter().for_each(|(arithmetic, _, bytes)| self.count(&arithmetic, bytes, true));
        }
        if let Some(seat) = seat {
            self.enter(worker, &seat);
            self.seats.insert(worker, seat);
        }
        Some(old)
    }

    /// One more worker of an arithmetic holds so much, or one less.
    fn count(&mut self, arithmetic: &Arc<Arithmetic>, bytes: u64, more: bool) {
        let of = self.classes.entry(Arc::clone(arithmetic)).or_default();
        let holds = of.holds.entry(bytes).or_default();
        *holds = if more { *holds + 1 } else { *holds - 1 };
        self.refits += u64::from(*holds == usize::from(more));
        if *holds == 0 {
            of.holds.remove(&bytes);
        }
        if of.holds.is_empty() {
            self.classes.remove(arithmetic);
        }
    }

    fn enter(&mut self, worker: WorkerId, seat: &Seat) {
        self.helping.extend(seat.helping.iter().map(|lease| (worker, *lease)));
        if seat.coming {
            self.coming.insert(worker);
        }
        if seat.stays {
            let together = self.berths.entry(seat.berth()).or_default();
            together.holds.insert((seat.hold_bytes, worker));
            together.rooms.extend(seat.room_bytes.map(|room| (room, worker)));
        }
        if !seat.takes_work {
            return;
        }
        if let Some(class) = self.classes.get_mut(&seat.arithmetic) {
            class.rooms.extend(seat.room_bytes.map(|room| (room, worker)));
        }
        if seat.idle {
            self.idle.entry(seat.kind()).or_default().insert(worker);
        }
    }

    fn leave(&mut self, worker: WorkerId, seat: &Seat) {
        for lease in &seat.helping {
            self.helping.remove(&(worker, *lease));
        }
        self.coming.remove(&worker);
        if let Some(together) = self.berths.get_mut(&seat.berth()).filter(|_| seat.stays) {
            together.holds.remove(&(seat.hold_bytes, worker));
            seat.room_bytes.map(|room| together.rooms.remove(&(room, worker)));
            if together.holds.is_empty() {
                self.berths.remove(&seat.berth());
            }
        }
        if !seat.takes_work {
            return;
        }
        if let Some(class) = self.classes.get_mut(&seat.arithmetic) {
            seat.room_bytes.map(|room| class.rooms.remove(&(room, worker)));
        }
        if seat.idle {
            let kind = seat.kind();
            if let Some(idle) = self.idle.get_mut(&kind) {
                idle.remove(&worker);
                if idle.is_empty() {
                    self.idle.remove(&kind);
                }
            }
        }
    }
}

impl Seat {
    pub(crate) fn berth(&self) -> Berth {
        (Arc::clone(&self.arithmetic), Arc::clone(&self.reached_on))
    }

    pub(crate) fn kind(&self) -> Kind {
        (Arc::clone(&self.arithmetic), Arc::clone(&self.reached_on), self.hold_bytes)
    }
}
