//! The coordinator's numbers, health and readiness. They are there while it waits to lead, too.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use graftwork_scheduler::Census;
use graftwork_shared::id::Term;
use graftwork_telemetry::{Exposition, Source, add_process};
use tokio::sync::{mpsc, oneshot, watch};

use super::{BlobStore, input::Input};

/// The loop that leads answers within this time, or something is wrong with it.
const ANSWER: Duration = Duration::from_secs(10);

/// What the loop says of itself.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) census: Census,
    /// What happened since this coordinator leads.
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) term: Term,
    pub(super) started_ms: u64,
    pub(super) stopping: bool,
    /// Facts that are decided and not on disk.
    pub(super) waiting_facts: u64,
    /// For how long there have been such facts.
    pub(super) behind: Duration,
}

/// Whoever leads now.
#[derive(Clone)]
struct Leader {
    inputs: mpsc::WeakSender<Input>,
    blobs: BlobStore,
}

/// A view of a coordinator that may not lead yet. Clones are the same.
#[derive(Clone)]
pub(crate) struct Gauges {
    leader: Arc<watch::Sender<Option<Leader>>>,
    /// When the certificate that it shows ends, in seconds since 1970.
    certificate_ends_s: Arc<OnceLock<i64>>,
}

const CERTIFICATE_ENDS: &str = "When its certificate of TLS ends, in seconds since 1970";

/// What is counted, with its help.
const COUNTERS: &[(&str, &str)] = &[
    ("jobs_submitted", "Jobs taken, those that were submitted again too"),
    ("jobs_succeeded", "Jobs that ended with everything published, expectations met"),
    ("jobs_unfinished", "Jobs that ended otherwise: failed, cancelled, or with an expectation missed"),
    ("jobs_forgotten", "Ended jobs that were forgotten"),
    ("attempts", "Stages handed to workers"),
    ("attempts_failed", "Attempts that ended in failure"),
    ("preemptions", "Stages whose place went to a higher priority"),
    ("releases", "Leases that ended without result and without blame, losses of workers among them"),
    ("workers_joined", "Sessions of workers that were opened"),
    ("workers_gone", "Workers that left or were given up"),
    ("checkpoints", "Checkpoints that are durable"),
    ("blobs_lost", "Blobs that were missing or damaged while they were needed"),
    ("stages_trained", "Stages that got a result, reused ones too"),
    ("stages_published", "Stages that were published"),
    ("publications_failed", "Publications that failed"),
];

impl Gauges {
    /// Of a coordinator that does not lead yet.
    pub(crate) fn new() -> Self {
        Self { leader: Arc::new(watch::Sender::new(None)), certificate_ends_s: Arc::default() }
    }

    /// From now on it leads.
    pub(super) fn lead(&self, inputs: mpsc::WeakSender<Input>, blobs: BlobStore) {
        self.leader.send_replace(Some(Leader { inputs, blobs }));
    }

    /// It shows a certificate that ends then.
    pub(super) fn show_certificate(&self, ends_s: i64) {
        // A process reads it once.
        let _ = self.certificate_ends_s.set(ends_s);
    }

    fn leader(&self) -> Option<Leader> {
        self.leader.borrow().clone()
    }

    async fn measure(leader: &Leader) -> Result<Measured, String> {
        let (to, answer) = oneshot::channel();
        let asked = async {
            let inputs = leader.inputs.upgrade().ok_or("the coordinator has ended")?;
            inputs.send(Input::Measure(to)).await.map_err(|_| "the coordinator ends")?;
            answer.await.map_err(|_| "the coordinator ends")
        };
        let answered = tokio::time::timeout(ANSWER, asked).await;
        answered.unwrap_or(Err("the loop that leads did not answer within 10 seconds")).map_err(str::to_owned)
    }
}

impl Source for Gauges {
    async fn alive(&self) -> Result<(), String> {
        match self.leader() {
            Some(leader) => Self::measure(&leader).await.map(drop),
            None => Ok(()),
        }
    }

    async fn ready(&self) -> Result<(), String> {
        let leader = self.leader().ok_or("it waits to lead")?;
        let measured = Self::measure(&leader).await?;
        if measured.stopping { Err("it stops".to_owned()) } else { Ok(()) }
    }

    async fn metrics(&self) -> Result<String, String> {
        let mut text = Exposition::new();
        add_process(&mut text);
        if let Some(ends_s) = self.certificate_ends_s.get() {
            text.gauge("graftwork_certificate_ends_seconds", CERTIFICATE_ENDS, *ends_s as f64);
        }
        let leader = self.leader();
        let leads = f64::from(u8::from(leader.is_some()));
        text.gauge("graftwork_coordinator_leads", "1 for the coordinator that leads, 0 for one that waits to", leads);
        if let Some(leader) = leader {
            let measured = Self::measure(&leader).await?;
            let blobs = leader.blobs.clone();
            let blobs = tokio::task::spawn_blocking(move || blobs.usage()).await.map_err(|error| error.to_string())?;
            show(&mut text, &measured);
            let usage = blobs.map_err(|error| error.to_string())?;
            text.gauge("graftwork_blobs", "Blobs that are kept", usage.blobs as f64);
            if let Some(bytes) = usage.bytes {
                text.gauge("graftwork_blobs_bytes", "Bytes of blobs in the state folder", bytes as f64);
            }
        }
        Ok(text.text())
    }
}

fn show(text: &mut Exposition, measured: &Measured) {
    let Measured { census, counts, term, started_ms, stopping, waiting_facts, behind } = measured;
    let Census { jobs, stages, backing_off, oldest_ready_ms, leases, workers, places } = census;
    let two = |key: &'static str, names: [&str; 2], values: &[u64; 2]| {
        [0, 1].map(|at| (vec![(key, names[at].to_owned())], values[at] as f64))
    };
    text.gauge("graftwork_term", "Term of the coordinator that leads", term.0 as f64);
    text.gauge("graftwork_started_seconds", "When it began to lead, in seconds since 1970", *started_ms as f64 / 1e3);
    text.gauge("graftwork_stopping", "1 while it stops", f64::from(u8::from(*stopping)));
    text.gauges("graftwork_jobs", "Jobs", two("state", ["open", "ended"], jobs));
    let by_place = stages.iter().map(|(place, count)| (vec![("place", (*place).to_owned())], *count as f64));
    text.gauges("graftwork_stages", "Stages of jobs that have not ended, by where they stand", by_place);
    text.gauge("graftwork_stages_backing_off", "Ready stages that wait after a failure", *backing_off as f64);
    let waited = oldest_ready_ms.map_or(0.0, |since_ms| now_ms().saturating_sub(since_ms) as f64 / 1e3);
    text.gauge("graftwork_oldest_ready_seconds", "Age of the oldest job that has a ready stage", waited);
    text.gauge("graftwork_leases", "Live leases", *leases as f64);
    text.gauges("graftwork_workers", "Workers", two("state", ["connected", "apart"], workers));
    let (all, taken) = (places[0], places[1]);
    let free = [all.saturating_sub(taken), taken];
    text.gauges("graftwork_places", "Places of workers", two("state", ["free", "taken"], &free));
    text.gauge("graftwork_journal_waiting_facts", "Facts that are not on disk yet", *waiting_facts as f64);
    text.gauge("graftwork_journal_lag_seconds", "For how long facts have waited for the disk", behind.as_secs_f64());
    for (name, help) in COUNTERS {
        let value = counts.get(name).copied().unwrap_or(0) as f64;
        text.counter(&format!("graftwork_{name}"), help, value);
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_there_before_anything_happened() {
        let census = Census { stages: [("ready", 3)].into(), places: [4, 1], ..Census::default() };
        let counts = [("attempts", 7)].into();
        let measured = Measured {
            census,
            counts,
            term: Term(2),
            started_ms: 1_500,
            stopping: false,
            waiting_facts: 0,
            behind: Duration::ZERO,
        };
        let mut text = Exposition::new();
        show(&mut text, &measured);
        let text = text.text();
        for line in [
            "graftwork_stages{place=\"ready\"} 3.0",
            "graftwork_places{state=\"free\"} 3.0",
            "graftwork_attempts_total 7.0",
            "graftwork_attempts_failed_total 0.0",
            "graftwork_term 2.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        for (name, _) in COUNTERS {
            assert!(text.contains(&format!("graftwork_{name}_total")), "{name}");
        }
    }

    #[tokio::test]
    async fn whoever_waits_to_lead_is_alive_and_not_ready() {
        let gauges = Gauges::new();
        assert_eq!(gauges.alive().await, Ok(()));
        assert_eq!(gauges.ready().await, Err("it waits to lead".to_owned()));
        assert!(gauges.metrics().await.unwrap().contains("graftwork_coordinator_leads 0.0"));
    }
}
