//! Buckets that fill with time: one for each token, and one for each address that shows wrong ones.
//!
//! They hold admission, not domain state, and a lock is held for a few instructions.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::limits::Rate;

/// What may be taken from now.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { left: rate.burst, at: now }
    }

    fn fill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * rate.per_second).min(rate.burst);
        self.at = self.at.max(now);
    }

    /// How long until one can be taken; `None`: now.
    fn wait(&self, rate: Rate) -> Option<Duration> {
        (self.left < 1.0).then(|| Duration::from_secs_f64((1.0 - self.left) / rate.per_second))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The buckets of a listener's tokens.
pub(in super::super) struct Rates {
    buckets: Vec<(Rate, Mutex<Bucket>)>,
}

impl Rates {
    /// Full buckets of these rates.
    pub(super) fn new(rates: impl Iterator<Item = Rate>, now: Instant) -> Self {
        Self { buckets: rates.map(|rate| (rate, Mutex::new(Bucket::full(rate, now)))).collect() }
    }

    /// Takes one request of the token in this place, or says how long to wait.
    pub(super) fn take(&self, place: usize, now: Instant) -> Result<(), (Rate, Duration)> {
        let Some((rate, bucket)) = self.buckets.get(place) else { return Ok(()) };
        let mut bucket = lock(bucket);
        bucket.fill(*rate, now);
        match bucket.wait(*rate) {
            Some(wait) => Err((*rate, wait)),
            None => {
                bucket.left -= 1.0;
                Ok(())
            }
        }
    }
}

/// The bucket of one stream of messages: whoever is too fast is kept waiting.
pub(in super::super) struct Pace {
    rate: Rate,
    bucket: Bucket,
}

impl Pace {
    /// A full one.
    pub(in super::super) fn new(rate: Rate) -> Self {
        Self { rate, bucket: Bucket::full(rate, Instant::now()) }
    }

    /// Takes one message, when its time has come.
    pub(in super::super) async fn take(&mut self) {
        self.bucket.fill(self.rate, Instant::now());
        if let Some(wait) = self.bucket.wait(self.rate) {
            tokio::time::sleep(wait).await;
            self.bucket.fill(self.rate, Instant::now());
        }
        self.bucket.left -= 1.0;
    }
}

/// Who has shown wrong tokens lately. Neighbours of one IPv6 network are one.
pub(in super::super) struct Failures {
    rate: Rate,
    most: usize,
    seen: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Failures {
    /// Remembers at most so many addresses.
    pub(in super::super) fn new(rate: Rate, most: usize) -> Self {
        Self { rate, most, seen: Mutex::new(HashMap::new()) }
    }

    /// How long this address is not heard.
    pub(super) fn wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let mut seen = lock(&self.seen);
        let bucket = seen.get_mut(&network(address))?;
        bucket.fill(self.rate, now);
        bucket.wait(self.rate)
    }

    /// Counts a wrong token.
    pub(super) fn count(&self, address: IpAddr, now: Instant) {
        let mut seen = lock(&self.seen);
        let address = network(address);
        if seen.len() >= self.most && !seen.contains_key(&address) {
            self.forget(&mut seen, now);
        }
        let bucket = seen.entry(address).or_insert_with(|| Bucket::full(self.rate, now));
        bucket.fill(self.rate, now);
        bucket.left = (bucket.left - 1.0).max(0.0);
    }

    /// Makes room: forgets whoever has behaved long enough, or else whoever is nearest to it.
    fn forget(&self, seen: &mut HashMap<IpAddr, Bucket>, now: Instant) {
        seen.retain(|_, bucket| {
            bucket.fill(self.rate, now);
            bucket.left < self.rate.burst
        });
        if seen.len() >= self.most {
            let best = seen.iter().max_by(|one, other| one.1.left.total_cmp(&other.1.left));
            if let Some(address) = best.map(|(address, _)| *address) {
                seen.remove(&address);
            }
        }
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => {
            let mut octets = six.octets();
            octets[8..].fill(0);
            IpAddr::V6(octets.into())
        }
        four @ IpAddr::V4(_) => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10.0, burst: 3.0 };

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let rates = Rates::new([RATE, RATE].into_iter(), start);
        assert!((0..3).all(|_| rates.take(0, start).is_ok()));
        let (_, wait) = rates.take(0, start).unwrap_err();
        assert!(wait <= Duration::from_millis(100) && wait > Duration::from_millis(99), "{wait:?}");
        assert!(rates.take(1, start).is_ok(), "each token has its own");
        let later = start + Duration::from_millis(101);
        assert!(rates.take(0, later).is_ok() && rates.take(0, later).is_err());
        let long_after = start + Duration::from_hours(1);
        assert_eq!((0..10).filter(|_| rates.take(0, long_after).is_ok()).count(), 3, "it holds its burst and no more");
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(5);
        let rates = Rates::new([RATE].into_iter(), start);
        assert!((0..3).all(|_| rates.take(0, start).is_ok()));
        assert!(rates.take(0, start.checked_sub(Duration::from_secs(4)).unwrap()).is_err());
        assert!(rates.take(0, start).is_err());
    }

    #[test]
    fn whoever_guesses_waits_and_others_do_not() {
        let (start, failures) = (Instant::now(), Failures::new(RATE, 8));
        let [one, other] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        (0..2).for_each(|_| failures.count(one, start));
        assert_eq!(failures.wait(one, start), None);
        failures.count(one, start);
        assert!(failures.wait(one, start).is_some());
        assert_eq!(failures.wait(other, start), None);
        assert_eq!(failures.wait(one, start + Duration::from_secs(1)), None);
    }

    #[test]
    fn one_network_is_one_neighbour() {
        let (start, failures) = (Instant::now(), Failures::new(RATE, 8));
        for text in ["2001:db8::1", "2001:db8::2:1", "2001:db8::3"] {
            failures.count(text.parse().unwrap(), start);
        }
        assert!(failures.wait("2001:db8::ffff".parse().unwrap(), start).is_some());
        assert_eq!(failures.wait("2001:db8:0:1::1".parse().unwrap(), start), None);
        (0..3).for_each(|_| failures.count("::ffff:10.0.0.1".parse().unwrap(), start));
        assert!(failures.wait("10.0.0.1".parse().unwrap(), start).is_some());
    }

    #[test]
    fn memory_of_failures_is_bounded_and_keeps_the_worst() {
        let (start, failures) = (Instant::now(), Failures::new(RATE, 8));
        let worst = "192.0.2.1".parse().unwrap();
        (0..3).for_each(|_| failures.count(worst, start));
        for last in 0..=255 {
            failures.count(IpAddr::from([10, 0, 0, last]), start);
            assert!(lock(&failures.seen).len() <= 8);
        }
        assert!(failures.wait(worst, start).is_some());
    }
}
