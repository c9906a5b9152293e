//! Live leases by what is of the moment: whose group is on its way to another shape, and who could join which.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use graftwork_shared::id::{LeaseId, WorkerId};

use super::ranked::Ranked;
use crate::message::Arithmetic;

/// Workers that could join a group: of its arithmetic, and reached on its host.
pub(crate) type Berth = (Arc<Arithmetic>, Arc<str>);

/// The order in which groups are joined: the smallest, the longest chain, the first served.
pub(crate) type JoinRank = (usize, Reverse<u64>, (Reverse<i32>, u64, usize), LeaseId);

/// A running gang that lacks members, in the order in which they are found: as it would be served.
pub(crate) type LackRank = ((Reverse<i32>, u64, usize), LeaseId);

/// What was last seen of a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GroupMark {
    pub(crate) joiners: BTreeSet<WorkerId>,
    pub(crate) prepared: bool,
    pub(crate) breaking: bool,
    pub(crate) giving: bool,
    pub(crate) asked_back: BTreeSet<WorkerId>,
    pub(crate) moments: BTreeSet<u64>,
}

/// What is looked up of live leases.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Leases {
    pub(crate) marks: BTreeMap<LeaseId, GroupMark>,
    /// Those with a joiner that has loaded everything, that broke, and that shall give their place.
    pub(crate) prepared: BTreeSet<LeaseId>,
    pub(crate) breaking: BTreeSet<LeaseId>,
    pub(crate) giving: BTreeSet<LeaseId>,
    /// When something of a group is due.
    pub(crate) moments: BTreeSet<(u64, LeaseId)>,
    /// Workers on their way into groups of an owner's stages.
    pub(crate) joiners: BTreeMap<String, u64>,
    /// Those that could have one more member, with the memory that it needs as weight.
    pub(crate) open: BTreeMap<Berth, Ranked<JoinRank>>,
    berths: BTreeMap<LeaseId, (Berth, JoinRank, u64)>,
    /// Gangs that run and lack members, and how many.
    pub(crate) lacking: BTreeMap<LackRank, usize>,
    lacks: BTreeMap<LeaseId, LackRank>,
}

fn member(set: &mut BTreeSet<LeaseId>, lease: LeaseId, is: bool) {
    if is {
        set.insert(lease);
    } else {
        set.remove(&lease);
    }
}

impl Leases {
    /// Follows a group; gives what was known of it, if that has changed.
    pub(crate) fn mark(&mut self, lease: LeaseId, mark: GroupMark) -> Option<GroupMark> {
        let old = self.marks.remove(&lease).unwrap_or_default();
        let changed = old != mark;
        if changed {
            member(&mut self.prepared, lease, mark.prepared);
            member(&mut self.breaking, lease, mark.breaking);
            member(&mut self.giving, lease, mark.giving);
            if old.moments != mark.moments {
                for at in &old.moments {
                    self.moments.remove(&(*at, lease));
                }
                self.moments.extend(mark.moments.iter().map(|at| (*at, lease)));
            }
        }
        if mark != GroupMark::default() {
            self.marks.insert(lease, mark);
        }
        changed.then_some(old)
    }

    pub(crate) fn count_joiners(&mut self, owner: &str, (before, after): (usize, usize)) {
        let count = self.joiners.entry(owner.to_owned()).or_default();
        *count = *count + after as u64 - before as u64;
        if *count == 0 {
            self.joiners.remove(owner);
        }
    }

    /// Follows how many members a running gang lacks; whether that changed anything.
    pub(crate) fn lack(&mut self, lease: LeaseId, lack: Option<(LackRank, usize)>) -> bool {
        let known = self.lacks.get(&lease).and_then(|rank| Some((*rank, *self.lacking.get(rank)?)));
        if known == lack {
            return false;
        }
        if let Some(rank) = self.lacks.remove(&lease) {
            self.lacking.remove(&rank);
        }
        if let Some((rank, members)) = lack {
            self.lacks.insert(lease, rank);
            self.lacking.insert(rank, members);
        }
        true
    }

    /// Where a lease can be joined that could have one more member, and the memory that it needs.
    pub(crate) fn open_berth(&self, lease: LeaseId) -> Option<(&Berth, u64)> {
        self.berths.get(&lease).map(|(berth, _, memory_bytes)| (berth, *memory_bytes))
    }

    /// Puts a lease where it can be joined, or takes it out; whether that changed anything.
    pub(crate) fn berth(&mut self, lease: LeaseId, berth: Option<(Berth, JoinRank, u64)>) -> bool {
        if self.berths.get(&lease) == berth.as_ref() {
            return false;
        }
        if let Some((of, rank, _)) = self.berths.remove(&lease)
            && let Some(open) = self.open.get_mut(&of)
        {
            open.remove(&rank);
            if open.is_empty() {
                self.open.remove(&of);
            }
        }
        if let Some((of, rank, memory_bytes)) = berth {
            self.open.entry(of.clone()).or_default().insert(rank, memory_bytes);
            self.berths.insert(lease, (of, rank, memory_bytes));
        }
        true
    }
}
