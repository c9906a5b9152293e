//! The most memory that this process ever took, and which stages it trained then.
//!
//! The system keeps one such number for the whole life of a process, and the allocator keeps what is freed
//! (`docs/performance.md`), so a later stage stands on what earlier ones left. So only a new peak says something, and it
//! belongs to all stages that ran between two moments at which it was looked at: whenever one of them begins or ends. A process
//! that has used several base models says nothing more, since it may hold all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use graftwork_shared::{
    assignment::MemoryPeak,
    digest::Digest,
    id::{JobId, Name},
};

/// The stages of this process. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Stages {
    peak_bytes: fn() -> u64,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    begun: u64,
    /// Those that run, and whether each takes the memory that was planned for it.
    running: BTreeMap<u64, ((JobId, Name), bool)>,
    base_models: BTreeSet<Digest>,
    seen_bytes: u64,
    /// The last peak, until a stage tells of it.
    untold: Option<MemoryPeak>,
}

/// A stage that runs; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    of: Stages,
    number: u64,
}

impl Stages {
    /// None yet; `peak_bytes` reads the process's peak.
    pub(crate) fn of(peak_bytes: fn() -> u64) -> Self {
        Self { peak_bytes, known: Arc::default() }
    }

    /// A stage over a base model begins. `as_planned`: it takes the memory that was planned for it.
    pub(crate) fn begin(&self, stage: (JobId, Name), base_model: Digest, as_planned: bool) -> Running {
        let mut known = self.look();
        known.begun += 1;
        let number = known.begun;
        known.running.insert(number, (stage, as_planned));
        known.base_models.insert(base_model);
        Running { of: self.clone(), number }
    }

    /// A peak since the last look was made by those that ran since then.
    fn look(&self) -> MutexGuard<'_, Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = (self.peak_bytes)();
        if bytes > known.seen_bytes {
            let counts = known.base_models.len() == 1 && known.running.values().all(|(_, as_planned)| *as_planned);
            let stages = known.running.values().map(|(stage, _)| stage.clone()).collect();
            known.untold = counts.then_some(MemoryPeak { bytes, stages });
            known.seen_bytes = bytes;
        }
        known
    }
}

impl Running {
    /// The process's peak, if it was made while this stage ran; it is told once.
    pub(crate) fn peak(&self) -> Option<MemoryPeak> {
        let mut known = self.of.look();
        let stage = known.running.get(&self.number)?.0.clone();
        known.untold.take_if(|peak| peak.stages.contains(&stage))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.of.look().running.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local!(static PEAK: Cell<u64> = const { Cell::new(100) });

    fn stages() -> Stages {
        PEAK.set(100);
        Stages::of(|| PEAK.get())
    }

    fn begin(stages: &Stages, stage: &str) -> Running {
        stages.begin(named(stage), Digest::of(b"base"), true)
    }

    fn named(stage: &str) -> (JobId, Name) {
        (JobId::of(&Digest::of(b"job")), stage.parse().unwrap())
    }

    fn peak(bytes: u64, stages: &[&str]) -> Option<MemoryPeak> {
        Some(MemoryPeak { bytes, stages: stages.iter().map(|stage| named(stage)).collect() })
    }

    #[test]
    fn a_peak_is_told_once_and_only_if_it_is_new() {
        let stages = stages();
        let first = begin(&stages, "a");
        assert_eq!(first.peak(), None, "that much the process took before");
        PEAK.set(300);
        assert_eq!((first.peak(), first.peak()), (peak(300, &["a"]), None));
        drop(first);
        let smaller = begin(&stages, "b");
        assert_eq!(smaller.peak(), None, "what it took, the first one had left");
        PEAK.set(301);
        assert_eq!(smaller.peak(), peak(301, &["b"]));
    }

    #[test]
    fn a_peak_belongs_to_those_that_ran_then_and_not_to_those_that_came_later() {
        let stages = stages();
        let (first, second) = (begin(&stages, "a"), begin(&stages, "b"));
        PEAK.set(300);
        drop(first);
        let third = begin(&stages, "c");
        assert_eq!(third.peak(), None);
        assert_eq!(second.peak(), peak(300, &["a", "b"]));
        PEAK.set(400);
        drop((second, third));
        PEAK.set(500);
        assert_eq!(begin(&stages, "d").peak(), None, "nothing ran");
    }

    #[test]
    fn a_peak_with_a_joiner_or_after_another_base_model_says_nothing() {
        let stages = stages();
        let first = begin(&stages, "a");
        let joiner = stages.begin(named("b"), Digest::of(b"base"), false);
        PEAK.set(300);
        assert_eq!(first.peak(), None);
        drop(joiner);
        PEAK.set(400);
        assert_eq!(first.peak(), peak(400, &["a"]));
        drop(stages.begin(named("c"), Digest::of(b"other"), true));
        PEAK.set(500);
        assert_eq!(first.peak(), None);
    }
}
