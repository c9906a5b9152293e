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
#[derive(Clone, Debug)]
struct Leader {
    inputs: mpsc::WeakSender<Input>,
    blobs: BlobStore,
}

/// What is known of the nights of one job that the coordinator runs by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Nights {
    /// When the one after the last one that ended is due, in milliseconds since 1970.
    pub(crate) due_ms: Option<u64>,
    /// The last one that ended.
    pub(crate) last: Option<LastNight>,
}

/// How a night ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct LastNight {
    /// When, in milliseconds since 1970.
    pub(crate) ended_ms: u64,
    /// How long it took.
    pub(crate) took_ms: u64,
    /// Nothing failed it.
    pub(crate) good: bool,
    /// Scores and costs that got worse and were not expected to.
    pub(crate) regressions: u64,
}

/// A view of a coordinator that may not lead yet. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Gauges {
    leader: Arc<watch::Sender<Option<Leader>>>,
    /// When the certificate that it shows ends, in seconds since 1970.
    certificate_ends_s: Arc<OnceLock<i64>>,
    /// By the names of their histories.
    nights: Arc<watch::Sender<BTreeMap<String, Nights>>>,
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
        Self { leader: Arc::new(watch::Sender::new(None)), certificate_ends_s: Arc::default(), nights: Arc::default() }
    }

    /// The nights of a job stand so.
    pub(crate) fn tell_nights(&self, name: &str, nights: Nights) {
        self.nights.send_if_modified(|known| known.insert(name.to_owned(), nights) != Some(nights));
    }

    /// The first night of a job is due then, as long as nothing else is known of them.
    pub(crate) fn await_nights(&self, name: &str, due_ms: Option<u64>) {
        self.nights.send_if_modified(|known| {
            let unknown = !known.contains_key(name);
            if unknown {
                known.insert(name.to_owned(), Nights { due_ms, last: None });
            }
            unknown
        });
    }

    /// Nothing is told of the nights of a job any more.
    pub(crate) fn forget_nights(&self, name: &str) {
        self.nights.send_if_modified(|known| known.remove(name).is_some());
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
        // Whoever does not lead runs none.
        show_nights(&mut text, &self.nights.borrow());
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

/// Of a job whose nights have not ended yet it is known when one is due.
fn show_nights(text: &mut Exposition, nights: &BTreeMap<String, Nights>) {
    let mut show = |name: &str, help: &str, value: fn(&Nights) -> Option<f64>| {
        let rows = nights.iter().filter_map(|(name, of)| Some((vec![("nightly", name.clone())], value(of)?)));
        text.gauges(name, help, rows);
    };
    show(
        "graftwork_nightly_due_seconds",
        "When the night after the last one is due, in seconds since 1970",
        |nights| Some(nights.due_ms? as f64 / 1e3),
    );
    show("graftwork_nightly_ended_seconds", "When the last night ended, in seconds since 1970", |nights| {
        Some(nights.last?.ended_ms as f64 / 1e3)
    });
    show("graftwork_nightly_took_seconds", "How long the last night took", |nights| {
        Some(nights.last?.took_ms as f64 / 1e3)
    });
    show("graftwork_nightly_good", "1 where nothing failed the last night", |nights| {
        Some(f64::from(u8::from(nights.last?.good)))
    });
    show("graftwork_nightly_regressions", "What got worse in the last night and was not expected to", |nights| {
        Some(nights.last?.regressions as f64)
    });
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

    #[test]
    fn of_nights_it_is_told_when_one_is_due_and_how_the_last_one_ended() {
        let gauges = Gauges::new();
        gauges.tell_nights("mail", Nights { due_ms: Some(5_000), last: None });
        let last = Some(LastNight { ended_ms: 9_500, took_ms: 1_500, good: false, regressions: 2 });
        gauges.tell_nights("topics", Nights { due_ms: None, last });
        let shown = |gauges: &Gauges| {
            let mut text = Exposition::new();
            show_nights(&mut text, &gauges.nights.borrow());
            text.text()
        };
        let text = shown(&gauges);
        for line in [
            "graftwork_nightly_due_seconds{nightly=\"mail\"} 5.0",
            "graftwork_nightly_ended_seconds{nightly=\"topics\"} 9.5",
            "graftwork_nightly_took_seconds{nightly=\"topics\"} 1.5",
            "graftwork_nightly_good{nightly=\"topics\"} 0.0",
            "graftwork_nightly_regressions{nightly=\"topics\"} 2.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("graftwork_")).count(), 5, "{text}");
        gauges.forget_nights("topics");
        assert!(!shown(&gauges).contains("topics"));
    }

    #[tokio::test]
    async fn whoever_waits_to_lead_is_alive_and_not_ready() {
        let gauges = Gauges::new();
        assert_eq!(gauges.alive().await, Ok(()));
        assert_eq!(gauges.ready().await, Err("it waits to lead".to_owned()));
        assert!(gauges.metrics().await.unwrap().contains("graftwork_coordinator_leads 0.0"));
    }
}
