//! How long a stage still takes, from the steps that it made since it started.
//!
//! Stages take turns on a worker's threads, so steps by wall time say more than the speed of one step.

use std::collections::BTreeMap;

use graftwork_shared::{event::StepReport, id::Name};

/// Steps and times at which stages started or went on.
#[derive(Debug, Default)]
pub(super) struct Pace {
    starts: BTreeMap<Name, (u64, u64)>,
}

impl Pace {
    /// A stage starts, or goes on, behind a step.
    pub(super) fn start(&mut self, stage: &Name, from_step: u64, at_ms: u64) {
        self.starts.insert(stage.clone(), (from_step, at_ms));
    }

    /// Seconds until the last step at the pace so far; infinite before there is one.
    pub(super) fn seconds_left(&self, stage: &Name, report: &StepReport, at_ms: u64) -> f64 {
        let Some((from_step, from_ms)) = self.starts.get(stage) else { return f64::INFINITY };
        let done = report.step.saturating_sub(*from_step);
        if done == 0 || at_ms <= *from_ms {
            return f64::INFINITY;
        }
        let seconds_a_step = (at_ms - from_ms) as f64 / 1000.0 / done as f64;
        report.total_steps.saturating_sub(report.step) as f64 * seconds_a_step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_counts_from_where_the_stage_went_on() {
        let stage: Name = "spam".parse().unwrap();
        let report = StepReport {
            step: 150,
            total_steps: 200,
            epoch: 1.0,
            loss: 0.1,
            learning_rate: 1e-3,
            gradient_norm: 1.0,
            examples_per_second: 100.0,
            tokens_per_second: 1000.0,
            input_wait: 0.0,
            ..StepReport::default()
        };
        let mut pace = Pace::default();
        assert!(pace.seconds_left(&stage, &report, 10_000).is_infinite());
        pace.start(&stage, 100, 0);
        assert!((pace.seconds_left(&stage, &report, 10_000) - 10.0).abs() < 1e-9);
    }
}
