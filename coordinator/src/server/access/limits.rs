//! Every bound on what peers may ask, in one place. Whoever reaches one is refused with its words, and the others
//! notice nothing.
//!
//! Sizes of messages stand in `graftwork_proto`, of blobs in `blobs.rs`, of meetings in `meet.rs`.

use std::time::Duration;

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    /// Requests a second in the long run.
    pub(crate) per_second: f64,
    /// Requests at once.
    pub(crate) burst: f64,
}

/// The bounds of a coordinator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    /// Requests of one token of a person. A command makes a handful, and an upload two for each file.
    pub(crate) of_people: Rate,
    /// Requests of one token of workers, which a whole cluster may share, or over a private socket: 500 workers come
    /// back at once after a restart, with a session and some blobs each.
    pub(crate) of_workers: Rate,
    /// Messages of one worker's session. Whoever sends more is read no faster, and hears nothing of it: a healthy worker
    /// sends some a second for each of its stages, and more of them where reports of every update are asked for.
    pub(crate) of_session: Rate,
    /// Wrong tokens of one address: after so many it waits, and every right one on a new connection with it.
    pub(crate) of_failures: Rate,
    /// Addresses whose failures are remembered.
    pub(crate) addresses: usize,
    /// How long the answer to a wrong token takes.
    pub(crate) failure_delay: Duration,
    /// How long a new connection may take to show a token that counts, TLS included.
    pub(crate) proof_wait: Duration,
    /// Connections of one listener. A worker has three.
    pub(crate) connections: usize,
    /// Requests at once on one connection; a worker's wait for its group, and a watcher's watch, are such.
    pub(crate) streams: u32,
    /// Bytes of the headers of a request.
    pub(crate) header_bytes: u32,
}

/// Files that a coordinator opens beside connections: uploads on their way, journal, listeners.
const OTHER_FILES: u64 = 512;

impl Limits {
    /// No more connections than files that may be open.
    pub(crate) fn within(mut self, open_files: u64) -> Self {
        let most = usize::try_from(open_files.saturating_sub(OTHER_FILES).max(open_files / 2)).unwrap_or(usize::MAX);
        self.connections = self.connections.min(most);
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            of_people: Rate { per_second: 100.0, burst: 1_000.0 },
            of_workers: Rate { per_second: 2_000.0, burst: 20_000.0 },
            of_session: Rate { per_second: 1_000.0, burst: 5_000.0 },
            of_failures: Rate { per_second: 1.0, burst: 20.0 },
            addresses: 4_096,
            failure_delay: Duration::from_millis(100),
            proof_wait: Duration::from_secs(10),
            connections: 8_192,
            streams: 256,
            header_bytes: 16 << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        let connections = |files| Limits::default().within(files).connections;
        assert_eq!(connections(1 << 20), 8_192);
        assert_eq!(connections(4_096), 4_096 - 512);
        assert_eq!(connections(256), 128);
    }
}
