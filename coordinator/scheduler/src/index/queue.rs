//! The ready stages, so that the next one that can be served is found without looking at those that cannot.
//!
//! Owners of one priority take turns, and what an owner has had changes with time, so the order of all is not kept. Kept
//! are lines, one of each owner and priority; in a line the order stands, and how far a stage stands behind says how much
//! its owner has by its turn. In a line, stages that ask the same of a worker lie together, with their memory as weight.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use graftwork_shared::recipe::NumericClass;

use super::{ranked::Ranked, state::Spot};
use crate::{job::JobState, message::Arithmetic};

/// A line: the priority and the owner.
pub(crate) type LineKey = (Reverse<i32>, String);

/// Where a stage stands in its line: its job's submission, the work behind it, its place in the plan.
pub(crate) type Rank = (u64, Reverse<u64>, usize);

/// Which workers could have a stage, but for memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Demand {
    pub(crate) cpu: bool,
    /// The numerics version of its recipe.
    pub(crate) version: u32,
    /// Of its checkpoint.
    pub(crate) class: Option<NumericClass>,
    /// Workers that it starts on at once.
    pub(crate) gang: u32,
}

/// What a stage that is ready waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wait {
    /// Its next attempt is not due.
    Rest,
    /// The hub is to be asked for it.
    Question,
    /// The hub's answer.
    Answer,
    /// A place.
    Place,
}

/// A ready stage.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) line: LineKey,
    pub(crate) rank: Rank,
    pub(crate) demand: Demand,
    pub(crate) memory_bytes: u64,
    pub(crate) wait: Wait,
}

/// The ready stages of one owner and priority.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Line {
    /// All that would take a place at once.
    pub(crate) soon: Ranked<Rank>,
    pub(crate) resting: BTreeSet<Rank>,
    /// Those that would, by what they wait for.
    pub(crate) waiting: BTreeMap<(Wait, Demand), Ranked<Rank>>,
}

/// All ready stages.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Queue {
    pub(crate) entries: BTreeMap<Spot, Entry>,
    /// Those that start on several workers at once.
    pub(crate) gangs: BTreeSet<Spot>,
    pub(crate) lines: BTreeMap<LineKey, Line>,
}

impl JobState {
    /// Which workers could have a stage.
    pub(crate) fn demand(&self, at: usize) -> Demand {
        Demand {
            cpu: self.is_for_cpu(),
            version: self.plan.stages[at].recipe.numerics_version,
            class: self.stages[at].checkpoint.as_ref().map(|checkpoint| checkpoint.class.clone()),
            gang: self.gang(at),
        }
    }
}

impl Demand {
    /// Whether some worker could suit both.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.cpu == other.cpu && (self.class.is_none() || other.class.is_none() || self.class == other.class)
    }

    pub(crate) fn suits(&self, arithmetic: &Arithmetic) -> bool {
        let class = &arithmetic.class;
        (class.device == "cpu") == self.cpu
            && arithmetic.computes(self.version)
            && self.class.as_ref().is_none_or(|needs| needs == class)
    }
}

impl Line {
    /// The submission of its first job, by which ties between owners are broken.
    pub(crate) fn first(&self) -> u64 {
        let orders = [self.soon.first(), self.resting.first()].into_iter().flatten().map(|rank| rank.0);
        orders.min().unwrap_or(u64::MAX)
    }

    /// Its first stage behind `after` that waits so and is within the limit; `None` of it excludes a kind.
    pub(crate) fn next(
        &self,
        after: Option<&Rank>,
        limit: impl Fn(Wait, &Demand) -> Option<u64>,
    ) -> Option<(Rank, Wait)> {
        let kinds = self.waiting.iter().filter_map(|((wait, demand), ranked)| {
            let rank = ranked.first_within(after, limit(*wait, demand)?)?;
            Some((*rank, *wait))
        });
        kinds.min()
    }
}

impl Queue {
    /// Puts a stage where it stands now, or takes it out; whether that changed anything.
    pub(crate) fn put(&mut self, spot: Spot, entry: Option<Entry>) -> bool {
        if self.entries.get(&spot) == entry.as_ref() {
            return false;
        }
        if let Some(old) = self.entries.remove(&spot) {
            self.remove(&old);
            self.gangs.remove(&spot);
        }
        if let Some(entry) = entry {
            self.add(&entry);
            if entry.demand.gang > 1 {
                self.gangs.insert(spot.clone());
            }
            self.entries.insert(spot, entry);
        }
        true
    }

    fn add(&mut self, entry: &Entry) {
        let line = self.lines.entry(entry.line.clone()).or_default();
        if entry.wait == Wait::Rest {
            line.resting.insert(entry.rank);
            return;
        }
        line.soon.insert(entry.rank, 0);
        let kind = (entry.wait, entry.demand.clone());
        line.waiting.entry(kind).or_default().insert(entry.rank, entry.memory_bytes);
    }

    fn remove(&mut self, entry: &Entry) {
        let Some(line) = self.lines.get_mut(&entry.line) else { return };
        if entry.wait == Wait::Rest {
            line.resting.remove(&entry.rank);
        } else {
            line.soon.remove(&entry.rank);
            let kind = (entry.wait, entry.demand.clone());
            if let Some(ranked) = line.waiting.get_mut(&kind) {
                ranked.remove(&entry.rank);
                if ranked.is_empty() {
                    line.waiting.remove(&kind);
                }
            }
        }
        if line.soon.is_empty() && line.resting.is_empty() {
            self.lines.remove(&entry.line);
        }
    }
}
