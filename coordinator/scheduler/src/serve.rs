//! The ready stages in the order in which they are served, but only those that may be of interest.
//!
//! Each line (an owner at a priority) stands still; its owner's turn comes the later the more it has had, which grows by
//! a place with each stage that stands before. So how far a stage stands behind in its line says when it is served, and
//! whatever cannot be served is passed over without a look at it.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::{
    index::{Demand, LineKey, Rank, Spot, Wait},
    machine::Scheduler,
    share::PLACE_MS,
};

/// The most memory that a stage may need which waits so in a line; `None` passes over all of that kind.
pub(crate) type Limit<'l> = &'l dyn Fn(&Scheduler, &LineKey, Wait, &Demand) -> Option<u64>;

/// When a stage is served: priority, what its owner has had by then, its owner's first job, its rank in the line.
type When = (Reverse<i32>, u64, u64, Rank);

/// A line as it was when the walk began.
struct Turn {
    had: u64,
    first: u64,
    /// Stages before the walk's place that have left the line since.
    taken: usize,
}

/// A walk over what is ready.
pub(crate) struct Turns {
    lines: BTreeMap<LineKey, Turn>,
    /// The next one of each line.
    heads: BTreeMap<When, (LineKey, Wait)>,
}

/// A stage whose turn it is.
pub(crate) struct Head {
    pub(crate) when: When,
    pub(crate) line: LineKey,
    pub(crate) wait: Wait,
    pub(crate) spot: Spot,
    pub(crate) demand: Demand,
    pub(crate) memory_bytes: u64,
}

impl Turn {
    fn had(&self, before: usize) -> u64 {
        self.had.saturating_add(PLACE_MS.saturating_mul((before + self.taken) as u64))
    }
}

impl Turns {
    /// Begins with the first stage of each line within the limit.
    pub(crate) fn begin(machine: &mut Scheduler, limit: Limit<'_>) -> Self {
        let mut had = BTreeMap::new();
        let mut lines = BTreeMap::new();
        for (key, line) in &machine.board.queue.lines {
            let share = had.entry(key.1.as_str()).or_insert_with(|| machine.share(&key.1));
            lines.insert(key.clone(), Turn { had: *share, first: line.first(), taken: 0 });
            *share = share.saturating_add(PLACE_MS.saturating_mul(line.soon.len() as u64));
        }
        let mut turns = Self { lines, heads: BTreeMap::new() };
        for key in turns.lines.keys().cloned().collect::<Vec<_>>() {
            turns.look(machine, &key, None, limit);
        }
        turns
    }

    /// Looks for the next stage of a line behind a rank.
    fn look(&mut self, machine: &mut Scheduler, key: &LineKey, after: Option<&Rank>, limit: Limit<'_>) {
        let (Some(turn), Some(line)) = (self.lines.get(key), machine.board.queue.lines.get(key)) else { return };
        // Of a gang it is asked for each set of workers that could train together.
        let gangs = line.waiting.keys().filter(|(_, demand)| demand.gang > 1).count();
        let looked_at = 1 + line.waiting.len() + gangs * machine.board.fleet.berths.len();
        if let Some((rank, wait)) = line.next(after, |wait, demand| limit(machine, key, wait, demand)) {
            let when = (key.0, turn.had(line.soon.rank(&rank)), turn.first, rank);
            self.heads.insert(when, (key.clone(), wait));
        }
        machine.count(looked_at);
    }

    /// The next stage; [`Self::go_on`] must follow.
    pub(crate) fn next(&mut self, machine: &mut Scheduler) -> Option<Head> {
        loop {
            let (when, (line, wait)) = self.heads.pop_first()?;
            machine.count(1);
            let (order, _, at) = when.3;
            let Some(job) = machine.state.index.orders.get(&order) else { continue };
            let spot = (job.clone(), at);
            let Some(entry) = machine.board.queue.entries.get(&spot) else { continue };
            let (demand, memory_bytes) = (entry.demand.clone(), entry.memory_bytes);
            return Some(Head { when, line, wait, spot, demand, memory_bytes });
        }
    }

    /// Goes on behind a stage, which has left its line if it was taken.
    pub(crate) fn go_on(&mut self, machine: &mut Scheduler, head: &Head, taken: bool, limit: Limit<'_>) {
        if taken {
            self.take(head);
        }
        self.look(machine, &head.line, Some(&head.when.3), limit);
    }

    /// Goes on behind all stages of a job in a line.
    pub(crate) fn pass_job(&mut self, machine: &mut Scheduler, head: &Head, limit: Limit<'_>) {
        let last = (head.when.3.0, Reverse(0), usize::MAX);
        self.look(machine, &head.line, Some(&last), limit);
    }

    /// Its owner has more places now: those of a gang at once.
    fn take(&mut self, head: &Head) {
        let places = head.demand.gang.max(1) as usize;
        for ((priority, owner), turn) in self.lines.iter_mut().filter(|((_, owner), _)| *owner == head.line.1) {
            // Lines of lower priority count one place for each stage before them already.
            let further = if (*priority, owner) == (head.line.0, &head.line.1) { places } else { places - 1 };
            turn.taken += if *priority >= head.line.0 { further } else { 0 };
        }
    }

    /// The limits are wider than they were: looks again at all that is served behind a stage. No stage may have left its
    /// line.
    pub(crate) fn widen(&mut self, machine: &mut Scheduler, head: &Head, limit: Limit<'_>) {
        self.heads.clear();
        let (priority, had, first, rank) = head.when;
        for key in self.lines.keys().cloned().collect::<Vec<_>>() {
            if key == head.line {
                self.look(machine, &key, Some(&rank), limit);
            } else if key.0 > priority {
                self.look(machine, &key, None, limit);
            } else if key.0 == priority
                && let Some(turn) = self.lines.get(&key)
            {
                // Stages whose owner had less by their turn, or as much with an earlier job, were served before.
                let behind = had.saturating_sub(turn.had);
                let whole = behind.div_ceil(PLACE_MS) + u64::from(behind % PLACE_MS == 0 && turn.first < first);
                let before = if turn.had > had { 0 } else { usize::try_from(whole).unwrap_or(usize::MAX) };
                let line = machine.board.queue.lines.get(&key);
                let served = line.filter(|_| before > 0).map(|line| (before.min(line.soon.len()), &line.soon));
                let after = served.and_then(|(before, soon)| soon.nth(before.checked_sub(1)?).copied());
                self.look(machine, &key, after.as_ref(), limit);
            }
        }
    }
}
