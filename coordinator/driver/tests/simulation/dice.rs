//! Chance: every draw is a function of the seed and of how many were drawn before, so a seed replays exactly.

use graftwork_shared::random::{Purpose, Stream};

#[derive(Clone, Copy)]
pub(crate) struct Dice {
    stream: Stream,
    drawn: u64,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self { stream: Stream::new(seed, Purpose::Simulation), drawn: 0 }
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.drawn += 1;
        self.stream.below(0, self.drawn, bound.max(1))
    }

    /// A number from `least` to `most`.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// Whether something happens that happens so often in a thousand times.
    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, among: &[T]) -> Option<T> {
        let index = usize::try_from(self.below(among.len() as u64)).unwrap();
        among.get(index).copied()
    }
}
