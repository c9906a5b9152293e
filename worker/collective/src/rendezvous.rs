//! Where members find each other: a small table of keys that all of them reach.
//!
//! A group writes a few hundred bytes a member while it forms and nothing afterwards. Keys start with the group's name
//! and epoch, so nothing of an old epoch enters a new one, and they are never written twice.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Why the table did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RendezvousError {
    /// Nobody set the key in time. Forming asks again until its own deadline.
    #[error("{key} was not set within {limit_ms} ms")]
    Deadline {
        /// The key.
        key: String,
        /// How long was waited.
        limit_ms: u64,
    },
    /// The table cannot be reached.
    #[error("{0}")]
    Unreachable(String),
}

/// A table that all members of a group reach; the coordinator of a cluster can be one.
pub trait Rendezvous: Send + Sync {
    /// Sets a key for all members.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), RendezvousError>;

    /// The key's value. Blocks until it is set, at most for `deadline`; forming keeps that short (100 ms) so that it
    /// can be aborted.
    fn get(&self, key: &str, deadline: Duration) -> Result<Vec<u8>, RendezvousError>;

    /// Adds to the number under a key, which starts at 0, and gives the sum. Atomic among all members.
    fn add(&self, key: &str, amount: i64) -> Result<i64, RendezvousError>;
}

/// A table inside one process, for members that are its threads. A clone is the same table.
#[derive(Clone, Default)]
pub struct MemoryRendezvous {
    table: Arc<(Mutex<Table>, Condvar)>,
}

#[derive(Default)]
struct Table {
    values: BTreeMap<String, Vec<u8>>,
    numbers: BTreeMap<String, i64>,
}

impl MemoryRendezvous {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rendezvous for MemoryRendezvous {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), RendezvousError> {
        self.table().values.insert(key.to_owned(), value.to_vec());
        self.table.1.notify_all();
        Ok(())
    }

    fn get(&self, key: &str, deadline: Duration) -> Result<Vec<u8>, RendezvousError> {
        let until = Instant::now() + deadline;
        let mut table = self.table();
        loop {
            if let Some(value) = table.values.get(key) {
                return Ok(value.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RendezvousError::Deadline { key: key.to_owned(), limit_ms: whole_ms(deadline) });
            }
            table = self.table.1.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, RendezvousError> {
        let mut table = self.table();
        let number = table.numbers.entry(key.to_owned()).or_default();
        *number += amount;
        Ok(*number)
    }
}

/// A duration in whole milliseconds, as errors report it.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_get_waits_for_its_set_and_no_longer_than_asked() {
        let table = MemoryRendezvous::new();
        let late = table.get("a", Duration::from_millis(5));
        assert_eq!(late, Err(RendezvousError::Deadline { key: "a".to_owned(), limit_ms: 5 }));
        let other = table.clone();
        let waiter = std::thread::spawn(move || other.get("a", Duration::from_secs(10)));
        table.set("a", b"x").unwrap();
        assert_eq!(waiter.join().unwrap().unwrap(), b"x");
        assert_eq!((table.add("n", 2).unwrap(), table.add("n", -1).unwrap()), (2, 1));
    }
}
