//! Bars on a terminal: one for each running task; a finished one becomes a line with its score.

use std::{collections::BTreeMap, time::Duration};

use graftwork_shared::{
    event::{Event, EventKind, Outcome},
    id::Name,
    metric::Metric,
    view::JobView,
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{
    duration,
    pace::Pace,
    plain::{group_words, preempted_words, stuck_words},
    sweep::sweep_words,
};

pub(crate) struct Bars {
    all: MultiProgress,
    running: BTreeMap<Name, ProgressBar>,
    metrics: BTreeMap<Name, Metric>,
    best: BTreeMap<Name, f64>,
    width: usize,
    pace: Pace,
}

impl Bars {
    pub(crate) fn new(view: &JobView) -> Self {
        Self {
            all: MultiProgress::new(),
            running: BTreeMap::new(),
            metrics: view.stages.iter().map(|stage| (stage.name.clone(), stage.metric)).collect(),
            best: BTreeMap::new(),
            width: view.stages.iter().map(|stage| stage.name.as_str().len()).max().unwrap_or(0),
            pace: Pace::default(),
        }
    }

    pub(crate) fn on_event(&mut self, event: &Event) {
        let Some(stage) = &event.stage else { return self.on_job_event(&event.kind) };
        match &event.kind {
            EventKind::StageStarted { from_step, total_steps, .. } => {
                self.pace.start(stage, *from_step, event.at_ms);
                let bar = self.bar(stage, *total_steps);
                bar.set_position(*from_step);
                bar.set_message("starts");
            }
            EventKind::Step(report) => {
                let left = duration(self.pace.seconds_left(stage, report, event.at_ms));
                let bar = self.bar(stage, report.total_steps);
                bar.set_position(report.step);
                bar.set_message(format!(
                    "loss {:.4}  lr {:.1e}  {:.0} ex/s  {left} left",
                    report.loss, report.learning_rate, report.examples_per_second
                ));
            }
            EventKind::Evaluated(evaluation) => {
                let score = self.metrics.get(stage).and_then(|metric| evaluation.metrics.get(metric)).copied();
                if let Some(score) = score {
                    let best = self.best.entry(stage.clone()).or_insert(score);
                    *best = best.max(score);
                }
            }
            EventKind::StageFinished { reused } => {
                self.collapse(stage, if *reused { "taken from the hub" } else { "trained" });
            }
            EventKind::GroupFormed { members, reason, .. } => {
                self.say(&format!("{stage}: {}", group_words(members, reason)));
            }
            EventKind::JoinFailed { worker, reason } => {
                self.say(&format!("✗ {stage}: {worker} could not join: {reason}"));
            }
            EventKind::Preempted { by_job, by, step } => {
                self.say(&format!("{stage} {}", preempted_words(by_job, by, *step)));
                if let Some(bar) = self.running.remove(stage) {
                    bar.finish_and_clear();
                }
            }
            EventKind::CheckpointLost { .. } => self.say(&format!("✗ {stage}: its checkpoint is lost; it starts over")),
            EventKind::ResultLost => self.say(&format!("✗ {stage}: its result is lost; it is got again")),
            EventKind::AttemptFailed { failure, retried } => {
                let again = if *retried { "; it is tried again" } else { "" };
                self.say(&format!("✗ {stage}: {}{again}", failure.message));
                if let Some(bar) = self.running.remove(stage) {
                    bar.finish_and_clear();
                }
            }
            EventKind::TrialScored { .. } | EventKind::RungDecided { .. } | EventKind::TrialChosen { .. } => {
                self.on_sweep_event(stage, &event.kind);
            }
            _ => {}
        }
    }

    fn on_sweep_event(&mut self, stage: &Name, kind: &EventKind) {
        // A trial gives up its place with its score.
        if let Some(bar) = self.running.remove(stage) {
            bar.finish_and_clear();
        }
        if let Some(words) = sweep_words(kind, self.metrics.get(stage).copied()) {
            self.say(&format!("{stage:width$}  {words}", width = self.width));
        }
    }

    fn on_job_event(&mut self, kind: &EventKind) {
        match kind {
            EventKind::Stuck { refusals } => self.say(&stuck_words(refusals)),
            EventKind::WorkerLeft { worker, reason } => self.say(&format!("{worker} left: {reason}")),
            EventKind::JobFinished { outcome } => {
                if *outcome == Outcome::Cancelled {
                    self.say("cancelled");
                }
                self.finish();
            }
            _ => {}
        }
    }

    fn bar(&mut self, stage: &Name, total_steps: u64) -> ProgressBar {
        let width = self.width;
        let all = &self.all;
        let make = || {
            let template = "{prefix}  {bar:24} {pos:>6}/{len}  {msg}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = all.add(ProgressBar::new(total_steps).with_style(style.progress_chars("━╸─")));
            bar.set_prefix(format!("{stage:width$}"));
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        };
        self.running.entry(stage.clone()).or_insert_with(make).clone()
    }

    /// The bar goes, a line with the score stays.
    fn collapse(&mut self, stage: &Name, how: &str) {
        if let Some(bar) = self.running.remove(stage) {
            bar.finish_and_clear();
        }
        let score = self.best.get(stage).zip(self.metrics.get(stage));
        let score = score.map_or(String::new(), |(score, metric)| format!("  best validation {metric} {score:.4}"));
        self.say(&format!("✓ {stage:width$}  {how}{score}", width = self.width));
    }

    pub(crate) fn say(&self, words: &str) {
        // Without a terminal there is nothing to draw over, and the words must still be heard.
        if self.all.is_hidden() {
            eprintln!("{words}");
        } else {
            let _ = self.all.println(words);
        }
    }

    pub(crate) fn finish(&mut self) {
        for (_, bar) in std::mem::take(&mut self.running) {
            bar.finish_and_clear();
        }
        let _ = self.all.clear();
    }
}
