//! One measurement: threads that take steps for a while, and what comes of it.

use std::time::{Duration, Instant};

use graftwork_engine::{Lane, LaneOptions, Network, Work, take_multiplications, take_work_times, thread_seconds};

use super::{
    options::Task,
    sgemm::{on_threads, sgemm_rate},
};

pub(crate) const HEADER: &str = "rows  batch lanes threads  examples/s  tokens/s  ms/step  GFLOP/s  sgemm  share  \
                                 examples/core-s    products attention  adapters elementwise  rest";

/// What is measured, in words.
pub(crate) struct Place<'a> {
    pub(crate) preset: &'a str,
    pub(crate) lengths: &'a str,
    pub(crate) batch_size: usize,
    pub(crate) threads: usize,
}

/// What one thread has done.
struct Done {
    wall: f64,
    cpu: f64,
    /// By kind of work.
    seconds: [f64; 4],
    multiplications: u64,
    /// Of each step.
    steps: Vec<f64>,
}

/// What came of it.
pub(crate) struct Measured {
    lanes: usize,
    /// Tokens of a batch.
    tokens: f64,
    /// Batches a second of all threads.
    pace: f64,
    useful_gflops: f64,
    sgemm_gflops: f64,
    /// Of the machine, for one batch.
    core_seconds: f64,
    /// Products, attention, adapters, element-wise work, the rest.
    shares: Vec<f64>,
    /// Milliseconds of the first thread's steps, in order of size.
    steps_ms: Vec<f64>,
}

/// Takes steps for a while. Lanes of a batch are shared out among the threads; with fewer lanes than threads, each
/// thread takes batches of its own.
pub(crate) fn measure(
    network: &Network,
    batches: &[Vec<Lane>],
    place: &Place,
    task: Task,
    duration: Duration,
) -> Measured {
    let (lanes, threads) = (batches[0].len(), place.threads);
    let tokens = batches.iter().flatten().map(|lane| lane.tokens.ids.len()).sum::<usize>() / batches.len();
    // Before and after, since the machine's speed drifts.
    let before = sgemm_rate((tokens / lanes).max(1), threads, duration / 4);
    let start = Instant::now();
    let results = on_threads(threads, |thread| {
        let worker = network.share();
        let mine = if lanes < threads { 0..lanes } else { thread * lanes / threads..(thread + 1) * lanes / threads };
        move || steps(&worker, batches, (mine, place.batch_size), task, || start.elapsed() < duration)
    });
    let sgemm_gflops = f64::midpoint(before, sgemm_rate((tokens / lanes).max(1), threads, duration / 4));
    let paces = results.iter().map(|done| done.steps.len() as f64 / done.wall);
    let alone = lanes < threads;
    // Threads run their own share of every step; the slower one sets the pace, as at the end of a real step.
    let pace = if alone { paces.sum::<f64>() } else { paces.fold(f64::INFINITY, f64::min) };
    let of_batch = |values: Vec<f64>| values.iter().sum::<f64>() / if alone { values.len() as f64 } else { 1.0 };
    let total: f64 = results.iter().map(|done| done.wall).sum();
    let mut shares: Vec<f64> =
        (0..4).map(|kind| results.iter().map(|done| done.seconds[kind]).sum::<f64>() / total).collect();
    shares.push(1.0 - shares.iter().sum::<f64>());
    let each = |value: fn(&Done) -> f64| results.iter().map(|done| value(done) / done.steps.len() as f64).collect();
    let mut steps_ms: Vec<f64> = results[0].steps.iter().map(|seconds| 1e3 * seconds).collect();
    steps_ms.sort_by(f64::total_cmp);
    Measured {
        lanes,
        tokens: tokens as f64,
        pace,
        useful_gflops: 2.0 * of_batch(each(|done| done.multiplications as f64)) * pace / 1e9,
        sgemm_gflops,
        // Processor time does not count what other programs take away.
        core_seconds: of_batch(each(|done| done.cpu)),
        shares,
        steps_ms,
    }
}

fn steps(
    network: &Network,
    batches: &[Vec<Lane>],
    (mine, batch_size): (std::ops::Range<usize>, usize),
    task: Task,
    goes_on: impl Fn() -> bool,
) -> Done {
    let dropout = if let Task::Train(dropout) = task { dropout } else { None };
    let options = LaneOptions { loss_scale: 1.0 / batch_size as f64, step: 0, dropout, skip_layers: &[] };
    let mut steps = Vec::new();
    let (begin, cpu) = (Instant::now(), thread_seconds());
    take_work_times();
    take_multiplications();
    while goes_on() {
        let step = Instant::now();
        for lane in &batches[steps.len() % batches.len()][mine.clone()] {
            let fits = match task {
                Task::Train(_) => network.lane(lane, &options).is_ok(),
                Task::Predict => network.predict(&lane.tokens, &[]).is_ok(),
            };
            assert!(fits, "the lanes of this example fit the trunk");
        }
        steps.push(step.elapsed().as_secs_f64());
    }
    let seconds = take_work_times().map(|(_, time): (Work, Duration)| time.as_secs_f64());
    let (wall, cpu) = (begin.elapsed().as_secs_f64(), thread_seconds() - cpu);
    Done { wall, cpu, seconds, multiplications: take_multiplications(), steps }
}

impl Measured {
    pub(crate) fn line(&self, place: &Place) -> String {
        let parts: String = self.shares.iter().map(|share| format!("{:>8.1} %", 100.0 * share)).collect();
        format!(
            "{} {:>5} {:>5} {:>7} {:>11.1} {:>9.0} {:>8.1} {:>8.1} {:>6.1} {:>4.0} % {:>16.1} {parts}",
            place.lengths,
            place.batch_size,
            self.lanes,
            place.threads,
            self.pace * place.batch_size as f64,
            self.pace * self.tokens,
            1000.0 / self.pace,
            self.useful_gflops,
            self.sgemm_gflops,
            100.0 * self.useful_gflops / self.sgemm_gflops,
            place.batch_size as f64 / self.core_seconds,
        )
    }

    pub(crate) fn json(&self, place: &Place) -> serde_json::Value {
        let parts = ["products", "attention", "adapters", "elementwise", "rest"];
        let parts: serde_json::Map<_, _> =
            parts.iter().zip(&self.shares).map(|(part, &share)| ((*part).to_owned(), share.into())).collect();
        serde_json::json!({
            "preset": place.preset,
            "rows": place.lengths,
            "batch": place.batch_size,
            "lanes": self.lanes,
            "threads": place.threads,
            "tokens_per_batch": self.tokens,
            "examples_per_second": self.pace * place.batch_size as f64,
            "tokens_per_second": self.pace * self.tokens,
            "useful_gflops": self.useful_gflops,
            "sgemm_gflops": self.sgemm_gflops,
            "share_of_sgemm": self.useful_gflops / self.sgemm_gflops,
            "examples_per_core_second": place.batch_size as f64 / self.core_seconds,
            "step_ms_median": self.percentile(0.5),
            "step_ms_90": self.percentile(0.9),
            "time_in": parts,
        })
    }

    fn percentile(&self, share: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index below the length")]
        let index = (share * (self.steps_ms.len() - 1) as f64).round() as usize;
        self.steps_ms[index]
    }
}
