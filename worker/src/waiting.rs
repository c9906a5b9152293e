//! Whether a stage has nothing to do but wait for the other members of its group, and since when.
//!
//! A member that computes is waited for as long as it takes. When all members wait, nobody computes what they wait for:
//! something that was sent does not arrive. No member can know that alone, so each tells the coordinator once it waits
//! for longer than any message takes, and the coordinator compares. The clock decides who trains with whom, and no byte.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A small message that takes longer does not arrive: a lost one is sent again several times within it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connecting takes more rounds, and for NCCL more work. It ends by itself a little later.
const CONNECTING: Duration = Duration::from_secs(15);

/// A network that carries less in a second is too slow to train over.
const LEAST_BYTES_A_SECOND: usize = 1_000_000;

/// What a member waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum For {
    /// A few words of each, or the coordinator's word.
    Words,
    /// So many bytes.
    Bytes(usize),
    /// A group that is formed.
    Group,
}

/// Where one stage stands; a clone is the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiting(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Updates done.
    step: u64,
    /// Tasks of its own that are not done.
    computing: usize,
    wait: Option<Wait>,
}

#[derive(Debug)]
struct Wait {
    epoch: u64,
    since: Instant,
    patience: Duration,
}

/// A wait for others; it is over when this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Waits(Waiting);

/// A task of this member's own; it is done when this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Computes(Waiting);

impl Waiting {
    /// So many updates are done.
    pub(crate) fn after(&self, step: u64) {
        self.state().step = step;
    }

    /// From now on it waits for the members of this epoch.
    pub(crate) fn wait(&self, epoch: u64, what: For) -> Waits {
        let patience = match what {
            For::Words => PATIENCE,
            For::Bytes(bytes) => PATIENCE + Duration::from_secs((bytes / LEAST_BYTES_A_SECOND) as u64),
            For::Group => CONNECTING,
        };
        self.state().wait = Some(Wait { epoch, since: Instant::now(), patience });
        Waits(self.clone())
    }

    /// From now on it computes something, whatever else it does.
    pub(crate) fn compute(&self) -> Computes {
        self.state().computing += 1;
        Computes(self.clone())
    }

    /// Whether a task of its own is not done.
    pub(crate) fn computes(&self) -> bool {
        self.state().computing > 0
    }

    /// The epoch and the updates done of a member that computes nothing and has waited for too long.
    pub(crate) fn too_long(&self, now: Instant) -> Option<(u64, u64)> {
        let state = self.state();
        let wait = state.wait.as_ref().filter(|_| state.computing == 0)?;
        (now.saturating_duration_since(wait.since) >= wait.patience).then_some((wait.epoch, state.step))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.state().wait = None;
    }
}

impl Drop for Computes {
    /// Only once its own work is done a member does nothing but wait.
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.computing = state.computing.saturating_sub(1);
        state.wait.iter_mut().for_each(|wait| wait.since = Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_seconds(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn whoever_computes_waits_for_nobody_however_long_it_takes() {
        let waiting = Waiting::default();
        waiting.after(7);
        let [one, other] = [waiting.compute(), waiting.compute()];
        let _waits = waiting.wait(3, For::Words);
        drop(one);
        assert_eq!(waiting.too_long(in_seconds(86_400)), None, "a lane of its own is not done");
        assert!(waiting.computes());
        drop(other);
        assert!(!waiting.computes());
        assert_eq!(waiting.too_long(in_seconds(9)), None);
        assert_eq!(waiting.too_long(in_seconds(11)), Some((3, 7)));
    }

    #[test]
    fn a_wait_that_is_over_is_forgotten_and_large_messages_may_take_longer() {
        let waiting = Waiting::default();
        drop(waiting.wait(1, For::Words));
        assert_eq!(waiting.too_long(in_seconds(86_400)), None);
        let _waits = waiting.wait(2, For::Bytes(85_000_000));
        assert_eq!(waiting.too_long(in_seconds(94)), None);
        assert_eq!(waiting.too_long(in_seconds(96)), Some((2, 0)));
        let _waits = waiting.wait(3, For::Group);
        assert_eq!((waiting.too_long(in_seconds(14)), waiting.too_long(in_seconds(16))), (None, Some((3, 0))));
    }
}
