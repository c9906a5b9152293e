//! How long a word takes to the coordinator and back, and how often to beat the heart by that.
//!
//! One probe is on its way at a time. A moving mean and a moving mean of what single ones differ from it by (the estimator of
//! TCP's timer, Jacobson 1988) give the longest round trip that is to be expected. No clock of its own: time is an argument.

use std::time::Duration;

/// Round trips between two heartbeats, at least: more would only queue up behind each other.
const APART: u32 = 2;

/// However far away the coordinator is, hearts beat at least once in so many of the times that it asks for.
const MOST_TIMES: u32 = 6;

/// What is measured over one link.
#[derive(Clone, Debug, Default)]
pub(super) struct RoundTrip {
    number: u64,
    /// When the probe was sent that is on its way.
    sent: Option<Duration>,
    /// The mean, and the mean of what single ones differ from it by.
    measured: Option<(Duration, Duration)>,
}

impl RoundTrip {
    /// Sends a probe off, unless one is on its way; gives its number.
    pub(super) fn probe(&mut self, now: Duration) -> Option<u64> {
        if self.sent.is_some() {
            return None;
        }
        self.number += 1;
        self.sent = Some(now);
        Some(self.number)
    }

    /// The echo of a probe is here.
    pub(super) fn on_echo(&mut self, number: u64, now: Duration) {
        let Some(sent) = self.sent.take_if(|_| number == self.number) else { return };
        let took = now.saturating_sub(sent);
        self.measured = Some(match self.measured {
            None => (took, took / 2),
            Some((mean, spread)) => ((mean * 7 + took) / 8, (spread * 3 + took.abs_diff(mean)) / 4),
        });
    }

    /// The longest round trip that is to be expected; zero while none is measured.
    pub(super) fn expected(&self) -> Duration {
        self.measured.map_or(Duration::ZERO, |(mean, spread)| mean + spread * 4)
    }

    /// How far apart heartbeats are, where the coordinator asks for one this often.
    pub(super) fn beat_every(&self, asked: Duration) -> Duration {
        asked.max(self.expected() * APART).min(asked * MOST_TIMES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Probes each second, which come back after these times; gives how often the heart beats then.
    fn after(round_trip: &mut RoundTrip, took: impl Iterator<Item = u64>) -> Duration {
        let mut now = Duration::ZERO;
        for milliseconds in took {
            now += SECOND * 60;
            let number = round_trip.probe(now).unwrap();
            assert_eq!(round_trip.probe(now + SECOND), None, "one is on its way");
            round_trip.on_echo(number, now + Duration::from_millis(milliseconds));
        }
        round_trip.beat_every(SECOND)
    }

    #[test]
    fn on_a_short_way_hearts_beat_as_often_as_the_coordinator_asks() {
        let mut round_trip = RoundTrip::default();
        assert_eq!((round_trip.expected(), round_trip.beat_every(SECOND)), (Duration::ZERO, SECOND));
        assert_eq!(after(&mut round_trip, [1, 2, 1, 40].into_iter()), SECOND);
    }

    #[test]
    fn on_a_long_way_they_beat_less_often_and_again_as_often_once_it_is_short() {
        let mut round_trip = RoundTrip::default();
        let far = after(&mut round_trip, std::iter::repeat_n(1_200, 30));
        assert!(far > SECOND * 2 && far < SECOND * 3, "{far:?}");
        let uneven = after(&mut round_trip, (0..30).map(|at| 600 + 1_200 * (at % 2)));
        assert!(uneven > far, "{uneven:?}");
        assert_eq!(after(&mut round_trip, [60_000].into_iter()), SECOND * 6, "but they beat");
        assert_eq!(after(&mut round_trip, std::iter::repeat_n(5, 80)), SECOND);
    }

    #[test]
    fn an_echo_of_another_probe_says_nothing() {
        let mut round_trip = RoundTrip::default();
        let number = round_trip.probe(SECOND).unwrap();
        round_trip.on_echo(number + 1, SECOND * 9);
        assert_eq!(round_trip.expected(), Duration::ZERO);
        round_trip.on_echo(number, SECOND * 2);
        assert_eq!(round_trip.expected(), SECOND * 3, "the first one, and as much as it could differ");
        round_trip.on_echo(number, SECOND * 9);
        assert_eq!(round_trip.expected(), SECOND * 3);
    }
}
