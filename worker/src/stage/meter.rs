//! What a stage's run costs and how fast it goes. For eyes and bills only: nothing decides by these numbers.

use std::time::{Duration, Instant};

use graftwork_engine::{InputCost, StepOutcome};
use graftwork_shared::{assignment::Usage, event::StepReport};

/// Milliseconds by which reports are apart at least, unless somebody wants them to be denser.
pub(crate) const REPORT_EVERY_MS: u64 = 250;

/// What a stage has waited for since its attempt began: rows, and the other members of its group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waits {
    pub(super) rows: Duration,
    pub(super) members: Duration,
    /// Bytes sent to the other members.
    pub(super) sent_bytes: u64,
    /// Parts of gradients that were summed with theirs, and those whose turn came while lanes were computed.
    pub(super) parts: u64,
    pub(super) early_parts: u64,
}

/// Counts costs since the run began. What earlier attempts cost, the coordinator knows.
#[derive(Debug)]
pub(super) struct Meter {
    began: Instant,
    /// Examples and tokens that earlier attempts trained and this one goes on from.
    earlier: [u64; 2],
    gpu_seconds: f64,
    input: InputCost,
    report_every: Duration,
    since_report: SinceReport,
}

#[derive(Debug)]
struct SinceReport {
    at: Instant,
    updates: u32,
    loss: f64,
    examples: u64,
    tokens: u64,
    waited: Waits,
    latest: Option<Latest>,
}

/// The last update.
#[derive(Clone, Copy, Debug)]
struct Latest {
    outcome: StepOutcome,
    place: Place,
    waited: Waits,
}

impl SinceReport {
    fn now(waited: Waits) -> Self {
        Self { at: Instant::now(), updates: 0, loss: 0.0, examples: 0, tokens: 0, waited, latest: None }
    }
}

/// Where training is, for a report.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) step: u64,
    pub(super) total_steps: u64,
    pub(super) epoch: f64,
    /// Epoch of the group that made the update.
    pub(super) group: u64,
}

/// What one device task cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TaskCost {
    wall_seconds: f64,
}

/// Runs a task and measures it; a host counts the CPU time of its threads itself.
pub(super) fn measured<T>(task: impl FnOnce() -> T) -> (T, TaskCost) {
    let wall = Instant::now();
    let value = task();
    (value, TaskCost { wall_seconds: wall.elapsed().as_secs_f64() })
}

impl Meter {
    /// Of a run whose reports are at least so far apart.
    pub(super) fn start(report_every: Duration) -> Self {
        Self {
            began: Instant::now(),
            earlier: [0, 0],
            gpu_seconds: 0.0,
            input: InputCost::default(),
            report_every,
            since_report: SinceReport::now(Waits::default()),
        }
    }

    /// Leaves out the examples and tokens that earlier attempts trained.
    pub(super) fn go_on_from(&mut self, examples_and_tokens: [u64; 2]) {
        self.earlier = examples_and_tokens;
    }

    /// Counts a device task.
    pub(super) fn add_task(&mut self, cost: TaskCost, on_gpu: bool) {
        if on_gpu {
            self.gpu_seconds += cost.wall_seconds;
        }
    }

    /// Counts an input that is read to its end, or as far as `cost` says.
    pub(super) fn add_input(&mut self, cost: InputCost) {
        self.input.bytes_read += cost.bytes_read;
        self.input.core_seconds += cost.core_seconds;
    }

    /// The cost of this attempt so far without the CPU time of device threads and of the calling thread: a host counts
    /// those itself. `training` is the cost of the input that is still being read, `examples` and `tokens` are those of
    /// all attempts.
    pub(super) fn cost(&self, training: InputCost, [examples, tokens]: [u64; 2]) -> Usage {
        Usage {
            core_seconds: self.input.core_seconds + training.core_seconds,
            gpu_seconds: self.gpu_seconds,
            wall_seconds: self.began.elapsed().as_secs_f64(),
            bytes_read: self.input.bytes_read + training.bytes_read,
            examples: examples.saturating_sub(self.earlier[0]),
            tokens: tokens.saturating_sub(self.earlier[1]),
            peak_memory_bytes: 0,
        }
    }

    /// Takes note of an update; returns a report when the last one is long enough ago. `waited` is what
    /// training has waited for so far.
    pub(super) fn report(
        &mut self,
        outcome: StepOutcome,
        [examples, tokens]: [u64; 2],
        waited: Waits,
        place: Place,
    ) -> Option<StepReport> {
        let since = &mut self.since_report;
        since.updates += 1;
        since.loss += outcome.loss;
        since.examples += examples;
        since.tokens += tokens;
        since.latest = Some(Latest { outcome, place, waited });
        if since.at.elapsed() < self.report_every { None } else { self.last_report() }
    }

    /// A report of the updates that none was made of yet, if there are any.
    pub(super) fn last_report(&mut self) -> Option<StepReport> {
        let Latest { outcome, place, waited } = self.since_report.latest?;
        let since = std::mem::replace(&mut self.since_report, SinceReport::now(waited));
        let seconds = since.at.elapsed().as_secs_f64().max(1e-9);
        let share = |now: Duration, then: Duration| (now.saturating_sub(then).as_secs_f64() / seconds).min(1.0);
        Some(StepReport {
            step: place.step,
            total_steps: place.total_steps,
            epoch: place.epoch,
            loss: since.loss / f64::from(since.updates),
            learning_rate: outcome.learning_rate,
            gradient_norm: outcome.gradient_norm,
            examples_per_second: since.examples as f64 / seconds,
            tokens_per_second: since.tokens as f64 / seconds,
            input_wait: share(waited.rows, since.waited.rows),
            exchange_wait: share(waited.members, since.waited.members),
            sent_bytes: waited.sent_bytes.saturating_sub(since.waited.sent_bytes) / u64::from(since.updates),
            lanes: 0,
            group: place.group,
        })
    }

    /// Leaves time in which nothing is trained (loading, forming a group, an evaluation, a checkpoint) out of the next
    /// report's rates.
    pub(super) fn pause(&mut self, began: Instant) {
        self.since_report.at += began.elapsed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RARE: Duration = Duration::from_millis(REPORT_EVERY_MS);
    const OUTCOME: StepOutcome = StepOutcome { loss: 2.0, gradient_norm: 1.0, learning_rate: 0.5 };

    fn place(step: u64) -> Place {
        Place { step, total_steps: 3, epoch: 0.5, group: 0 }
    }

    #[test]
    fn every_update_is_reported_on_request() {
        let mut meter = Meter::start(Duration::ZERO);
        for step in 1..4 {
            assert_eq!(meter.report(OUTCOME, [4, 40], Waits::default(), place(step)).unwrap().step, step);
        }
        assert!(meter.last_report().is_none());
    }

    #[test]
    fn reports_are_rare_and_none_is_lost() {
        let mut meter = Meter::start(RARE);
        for (step, loss) in [(1, 2.0), (2, 4.0), (3, 6.0)] {
            let outcome = StepOutcome { loss, ..OUTCOME };
            assert!(meter.report(outcome, [4, 40], Waits::default(), place(step)).is_none());
        }
        let report = meter.last_report().unwrap();
        assert!((report.loss - 4.0).abs() < 1e-12 && report.step == 3);
        assert!((report.tokens_per_second / report.examples_per_second - 10.0).abs() < 1e-6);
        assert!(meter.last_report().is_none());
        std::thread::sleep(RARE);
        assert_eq!(meter.report(OUTCOME, [4, 40], Waits::default(), place(4)).unwrap().step, 4);
    }

    #[test]
    fn time_in_which_nothing_is_trained_is_in_no_rate() {
        let (began, mut meter) = (Instant::now(), Meter::start(Duration::ZERO));
        std::thread::sleep(Duration::from_millis(200));
        meter.pause(began);
        let report = meter.report(OUTCOME, [4, 40], Waits::default(), place(1)).unwrap();
        assert!(report.examples_per_second > 4.0 / 0.2, "{}", report.examples_per_second);
    }

    #[test]
    fn what_earlier_attempts_trained_is_left_out() {
        let mut meter = Meter::start(RARE);
        meter.go_on_from([3, 30]);
        meter.add_input(InputCost { bytes_read: 7, core_seconds: 1.0 });
        meter.add_task(TaskCost { wall_seconds: 3.0 }, true);
        let cost = meter.cost(InputCost { bytes_read: 1, core_seconds: 0.5 }, [5, 50]);
        assert_eq!((cost.bytes_read, cost.examples, cost.tokens), (8, 2, 20));
        assert!((cost.core_seconds - 1.5).abs() < 1e-9 && (cost.gpu_seconds - 3.0).abs() < 1e-12);
    }
}
