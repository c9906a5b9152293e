//! Ending a blocked operation from another thread.
//!
//! An abort is for good: every group formed with the handle is closed by it, its sub-groups included. A new epoch takes
//! a new handle.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

type Wake = Box<dyn Fn() + Send>;

/// Ends what the groups formed with it wait for; a clone is the same handle.
///
/// The blocked call returns [`crate::CollectiveError::Aborted`] promptly (well under a second), the peers of the group
/// then see a lost member.
#[derive(Clone, Default)]
pub struct Aborter {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    aborted: AtomicBool,
    next: AtomicU64,
    wakes: Mutex<Vec<(u64, Wake)>>,
}

/// Keeps a transport's wake-up registered for as long as it lives.
pub(crate) struct Registration {
    aborter: Aborter,
    number: u64,
}

impl Aborter {
    /// A handle that was not used yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the operations that wait now, and every later one.
    pub fn abort(&self) {
        self.state.aborted.store(true, Ordering::SeqCst);
        for (_, wake) in self.wakes().iter() {
            wake();
        }
    }

    /// Whether [`Aborter::abort`] was called.
    pub fn is_aborted(&self) -> bool {
        self.state.aborted.load(Ordering::SeqCst)
    }

    /// Calls `wake` at an abort; at once when there was one already.
    pub(crate) fn on_abort(&self, wake: impl Fn() + Send + 'static) -> Registration {
        let number = self.state.next.fetch_add(1, Ordering::SeqCst);
        let mut wakes = self.wakes();
        if self.is_aborted() {
            wake();
        }
        wakes.push((number, Box::new(wake)));
        Registration { aborter: self.clone(), number }
    }

    fn wakes(&self) -> MutexGuard<'_, Vec<(u64, Wake)>> {
        self.state.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.aborter.wakes().retain(|(number, _)| *number != self.number);
    }
}

impl std::fmt::Debug for Aborter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Aborter").field("aborted", &self.is_aborted()).finish()
    }
}
