//! The signals that ask a worker to end.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Two signals closer together than this are one wish: a terminal's Ctrl-C and a parent's SIGTERM come together.
const SECOND_SIGNAL: Duration = Duration::from_secs(1);

/// SIGTERM and SIGINT: the first one asks, the second one does not.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    first: Option<Instant>,
}

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, first: None })
    }

    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Whether this signal is the first wish; a second one ends the process at once.
    pub(super) fn is_first(&mut self) -> bool {
        match self.first {
            None => {
                self.first = Some(Instant::now());
                true
            }
            Some(first) if first.elapsed() < SECOND_SIGNAL => false,
            Some(_) => graftwork_engine::end_process(130),
        }
    }
}
