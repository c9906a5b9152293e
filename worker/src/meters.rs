//! The worker's numbers, health and readiness. What is counted here decides nothing.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use graftwork_telemetry::{Exposition, Source, add_process};
use tokio::sync::watch;

use crate::computer::{self, peak_memory_bytes};

const CERTIFICATE_ENDS: &str = "When the certificate that members of groups are shown ends, in seconds since 1970";

/// Where the session stands, as a probe sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// No coordinator has welcomed this worker on the present link.
    #[default]
    Looking,
    /// It takes work.
    Welcome,
    /// It winds down.
    Leaving,
}

/// What one update was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Update {
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
    /// What training has waited since the update before: for rows, and for the other members of its group.
    pub(crate) input_wait: Duration,
    pub(crate) exchange_wait: Duration,
    /// Bytes sent to the other members since then.
    pub(crate) sent_bytes: u64,
    /// Parts of gradients that were summed with theirs, and those whose turn came while lanes were computed.
    pub(crate) parts: u64,
    pub(crate) early_parts: u64,
    /// Its numbers were sent to the device while the update before was computed there.
    pub(crate) ahead: bool,
}

/// Counts of this process. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meters(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    standing: watch::Sender<Standing>,
    /// When the certificate that members of groups are shown ends, in seconds since 1970.
    certificate_ends_s: OnceLock<i64>,
    leases: AtomicU64,
    updates: AtomicU64,
    updates_ahead: AtomicU64,
    rows: AtomicU64,
    tokens: AtomicU64,
    input_wait_ns: AtomicU64,
    exchange_wait_ns: AtomicU64,
    sent_bytes: AtomicU64,
    parts: AtomicU64,
    early_parts: AtomicU64,
    checkpoints: AtomicU64,
    failed: AtomicU64,
    finished: AtomicU64,
    broken_links: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            standing: watch::Sender::new(Standing::default()),
            certificate_ends_s: OnceLock::new(),
            leases: zero(),
            updates: zero(),
            updates_ahead: zero(),
            rows: zero(),
            tokens: zero(),
            input_wait_ns: zero(),
            exchange_wait_ns: zero(),
            sent_bytes: zero(),
            parts: zero(),
            early_parts: zero(),
            checkpoints: zero(),
            failed: zero(),
            finished: zero(),
            broken_links: zero(),
        }
    }
}

fn add(count: &AtomicU64, value: u64) {
    count.fetch_add(value, Ordering::Relaxed);
}

fn nanoseconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)
}

impl Meters {
    /// Takes note of where the session stands, and of how many leases it holds.
    pub(crate) fn session(&self, standing: Standing, leases: usize) {
        self.0.standing.send_if_modified(|known| std::mem::replace(known, standing) != standing);
        self.0.leases.store(leases as u64, Ordering::Relaxed);
    }

    /// Members of groups are shown a certificate that ends then.
    pub(crate) fn show_certificate(&self, ends_s: i64) {
        // A process reads it once.
        let _ = self.0.certificate_ends_s.set(ends_s);
    }

    /// The session broke.
    pub(crate) fn broke(&self) {
        add(&self.0.broken_links, 1);
    }

    /// Counts an update of any stage.
    pub(crate) fn update(&self, update: Update) {
        let counts = &self.0;
        add(&counts.updates, 1);
        add(&counts.updates_ahead, update.ahead.into());
        add(&counts.rows, update.rows);
        add(&counts.tokens, update.tokens);
        add(&counts.input_wait_ns, nanoseconds(update.input_wait));
        add(&counts.exchange_wait_ns, nanoseconds(update.exchange_wait));
        add(&counts.sent_bytes, update.sent_bytes);
        add(&counts.parts, update.parts);
        add(&counts.early_parts, update.early_parts);
    }

    /// Counts an accepted checkpoint.
    pub(crate) fn checkpoint(&self) {
        add(&self.0.checkpoints, 1);
    }

    /// Counts a stage that ended: with what it was for, or in failure.
    pub(crate) fn ended(&self, failed: bool) {
        add(if failed { &self.0.failed } else { &self.0.finished }, 1);
    }

    fn standing(&self) -> Standing {
        *self.0.standing.borrow()
    }

    fn text(&self) -> String {
        let mut text = Exposition::new();
        add_process(&mut text);
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
        let seconds = |count: &AtomicU64| of(count) / 1e9;
        let counts = &self.0;
        let welcome = f64::from(u8::from(self.standing() == Standing::Welcome));
        text.gauge("graftwork_worker_welcome", "1 while a coordinator has this worker's session", welcome);
        text.gauge("graftwork_worker_leases", "Leases that are held", of(&counts.leases));
        text.gauge("graftwork_worker_peak_memory_bytes", "Most memory so far", peak_memory_bytes() as f64);
        let machine = computer::Memory::read().total_bytes as f64;
        text.gauge("graftwork_worker_machine_memory_bytes", "Memory of the machine", machine);
        if let Some(ends_s) = counts.certificate_ends_s.get() {
            text.gauge("graftwork_worker_certificate_ends_seconds", CERTIFICATE_ENDS, *ends_s as f64);
        }
        for (name, help, value) in [
            ("updates", "Optimizer updates, of all stages", of(&counts.updates)),
            ("updates_ahead", "Updates whose rows were sent to a GPU before their turn", of(&counts.updates_ahead)),
            ("rows", "Rows trained", of(&counts.rows)),
            ("tokens", "Tokens trained", of(&counts.tokens)),
            ("input_wait_seconds", "Time that training waited for rows", seconds(&counts.input_wait_ns)),
            ("exchange_wait_seconds", "Time that training waited for its group", seconds(&counts.exchange_wait_ns)),
            ("exchange_sent_bytes", "Bytes sent to members of groups", of(&counts.sent_bytes)),
            ("exchange_parts", "Parts of gradients that were summed over groups", of(&counts.parts)),
            ("exchange_parts_early", "Those whose turn came while lanes were computed", of(&counts.early_parts)),
            ("checkpoints", "Checkpoints that were accepted", of(&counts.checkpoints)),
            ("stages_finished", "Stages that ended with their result, a pause or a release", of(&counts.finished)),
            ("stages_failed", "Stages that ended in failure", of(&counts.failed)),
            ("session_breaks", "Sessions that broke", of(&counts.broken_links)),
        ] {
            text.counter(&format!("graftwork_worker_{name}"), help, value);
        }
        text.text()
    }
}

impl Source for Meters {
    async fn alive(&self) -> Result<(), String> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        match self.standing() {
            Standing::Welcome => Ok(()),
            Standing::Looking => Err("no coordinator has this worker's session".to_owned()),
            Standing::Leaving => Err("it takes no more work and ends".to_owned()),
        }
    }

    async fn metrics(&self) -> Result<String, String> {
        Ok(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn updates_are_added_up_and_readiness_follows_the_session() {
        let meters = Meters::default();
        assert!(meters.ready().await.is_err() && meters.alive().await.is_ok());
        let wait = Duration::from_millis(1_500);
        for ahead in [false, true] {
            let (parts, early_parts) = (4, 3);
            let update = Update { rows: 16, tokens: 300, input_wait: wait, ahead, ..Update::default() };
            meters.update(Update { parts, early_parts, ..update });
        }
        assert!(!meters.metrics().await.unwrap().contains("certificate"), "it shows none");
        meters.show_certificate(1_800_000_000);
        meters.session(Standing::Welcome, 3);
        assert_eq!(meters.ready().await, Ok(()));
        let text = meters.metrics().await.unwrap();
        for line in [
            "graftwork_worker_updates_total 2.0",
            "graftwork_worker_updates_ahead_total 1.0",
            "graftwork_worker_exchange_parts_total 8.0",
            "graftwork_worker_exchange_parts_early_total 6.0",
            "graftwork_worker_rows_total 32.0",
            "graftwork_worker_tokens_total 600.0",
            "graftwork_worker_input_wait_seconds_total 3.0",
            "graftwork_worker_leases 3.0",
            "graftwork_worker_certificate_ends_seconds 1800000000.0",
            "graftwork_worker_welcome 1.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        meters.session(Standing::Leaving, 0);
        assert!(meters.ready().await.is_err());
    }
}
