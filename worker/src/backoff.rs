//! Patience with a coordinator: waits between attempts that grow up to a bound.
//!
//! Each is an eighth longer than the one before, so the next one is about an eighth of the time that has passed: what
//! comes back after seconds is found within a second, and what stays away for minutes is left in peace.

use std::time::Duration;

/// Shortest and longest wait between two attempts.
const WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Growing waits between attempts.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// Starts with the shortest wait.
    pub(crate) fn new() -> Self {
        Self { next: WAITS.0 }
    }

    /// The wait before the next attempt.
    pub(crate) fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 9 / 8).min(WAITS.1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_with_the_time_that_has_passed_up_to_their_bound() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..40).map(|_| backoff.wait()).collect();
        assert!(waits.is_sorted());
        assert_eq!((waits[0], waits[39]), WAITS);
        let mut passed = Duration::ZERO;
        for wait in waits {
            assert!(wait <= WAITS.0 + passed / 8, "{wait:?} after {passed:?}");
            passed += wait;
        }
    }
}
