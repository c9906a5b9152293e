//! When the next night of a job is due: a pure function of its cron line, what ran, and what time it is.

use graftwork_shared::schedule::Schedule;

/// How long it waits before a night goes on that something passing kept from its end, and how long at most: an hour.
const FIRST_PAUSE_MS: u64 = 5 * 60_000;
const LONGEST_PAUSE_MS: u64 = 60 * 60_000;

/// How long to wait after so many tries, twice as long each time.
pub(super) fn pause_ms(tries: u32) -> u64 {
    let doubled = FIRST_PAUSE_MS.checked_mul(2_u64.saturating_pow(tries.saturating_sub(1)));
    doubled.map_or(LONGEST_PAUSE_MS, |pause| pause.min(LONGEST_PAUSE_MS))
}

/// What is known of the nights of a job, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Past {
    /// A night was begun and never ended.
    pub(super) unfinished: bool,
    /// When the last one began, or was tried; without any, when this coordinator began to look.
    pub(super) last_ms: u64,
    /// Something passing kept one from its end, and it is not tried before.
    pub(super) not_before_ms: u64,
}

impl Past {
    /// A night came to its end, good or not, that was begun then.
    pub(super) fn ended(last_ms: u64) -> Self {
        Self { unfinished: false, last_ms, not_before_ms: 0 }
    }
}

/// When the next night begins: at once after an interruption, and at once, for all of them together, where times passed
/// since the last night began. `None`: no time is left.
pub(super) fn due(schedule: &Schedule, past: Past, now_ms: u64) -> Option<u64> {
    let now_ms = now_ms.max(past.not_before_ms);
    if past.unfinished {
        return Some(now_ms);
    }
    schedule.next_after(past.last_ms).map(|due| due.max(now_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const DAY: u64 = 24 * HOUR;

    #[test]
    fn each_pause_is_twice_as_long_and_none_longer_than_an_hour() {
        let minutes = |tries| pause_ms(tries) / 60_000;
        assert_eq!([0, 1, 2, 3, 4, 5, 6, u32::MAX].map(minutes), [5, 5, 10, 20, 40, 60, 60, 60]);
    }

    #[test]
    fn nights_begin_at_their_time_and_missed_ones_once() {
        let schedule = Schedule::parse("0 2 * * *").unwrap();
        let began = Past::ended;
        // The last one began at two.
        assert_eq!(due(&schedule, began(2 * HOUR), 3 * HOUR), Some(DAY + 2 * HOUR));
        // It began late, since one before it ran long: the next one is due at its time.
        assert_eq!(due(&schedule, began(5 * HOUR), 6 * HOUR), Some(DAY + 2 * HOUR));
        // Nobody led for ten days: once, now; and after it, at its time.
        let later = 10 * DAY + 7 * HOUR;
        assert_eq!(due(&schedule, began(2 * HOUR), later), Some(later));
        assert_eq!(due(&schedule, began(later), later + HOUR), Some(11 * DAY + 2 * HOUR));
        // A night that took longer than until the next one: that one is made up for at once.
        assert_eq!(due(&schedule, began(2 * HOUR), DAY + 3 * HOUR), Some(DAY + 3 * HOUR));
        // An interrupted one goes on.
        let interrupted = Past { unfinished: true, ..Past::ended(2 * HOUR) };
        assert_eq!(due(&schedule, interrupted, 3 * HOUR), Some(3 * HOUR));
        // One that something kept from its end goes on after a while, and not at its next time.
        let kept = Past { not_before_ms: 4 * HOUR, ..interrupted };
        assert_eq!(due(&schedule, kept, 3 * HOUR), Some(4 * HOUR));
        assert_eq!(due(&schedule, kept, 5 * HOUR), Some(5 * HOUR));
    }
}
