//! What people watch of a job while it runs: learning curves and events, bounded and in memory.
//!
//! Nothing here decides and nothing is recovered: after a restart curves begin anew (`graftwork_shared::event`).

use std::collections::{BTreeMap, VecDeque};

use graftwork_shared::{
    assignment::Evaluation,
    event::{Event, EventKind, StepReport},
    id::Name,
    view::JobView,
};
use tokio::sync::broadcast;

/// Step reports that a curve keeps at most.
const CURVE_POINTS: usize = 500;

/// Events that a job's ring keeps for those who begin to watch later: the first, which tells this coordinator's story from
/// that of another one, and the newest.
const RING_EVENTS: usize = 4_096;

/// Events that a slow watcher may lag behind before it misses some.
const LAG_EVENTS: usize = 1_024;

/// One job's story so far.
#[derive(Debug)]
pub(super) struct Story {
    stages: BTreeMap<Name, Curve>,
    ring: VecDeque<Event>,
    watchers: broadcast::Sender<Event>,
}

/// Step reports and scores of a stage.
#[derive(Debug, Default)]
struct Curve {
    points: Vec<StepReport>,
    validation: Vec<Evaluation>,
}

impl Curve {
    fn push(&mut self, report: StepReport) {
        // Whoever goes on after a loss may stand further back, and this is the first that is told of where.
        if self.points.last().is_some_and(|last| last.step >= report.step) {
            self.points.retain(|earlier| earlier.step < report.step);
            self.validation.retain(|evaluation| evaluation.step <= report.step);
        }
        self.points.push(report);
        if self.points.len() > CURVE_POINTS {
            // Every second point goes, the newest stays: an even picture of the whole way.
            let odd = self.points.len() % 2;
            let mut at = 0;
            self.points.retain(|_| {
                at += 1;
                at % 2 == odd
            });
        }
    }

    /// Training goes on from this step: what came after it comes again.
    fn rewind(&mut self, step: u64) {
        self.points.retain(|report| report.step <= step);
        self.validation.retain(|evaluation| evaluation.step <= step);
    }
}

impl Story {
    /// An empty story.
    pub(super) fn new() -> Self {
        let (watchers, _) = broadcast::channel(LAG_EVENTS);
        Self { stages: BTreeMap::new(), ring: VecDeque::new(), watchers }
    }

    /// Takes an event in and tells it to those who watch.
    pub(super) fn tell(&mut self, event: Event) {
        match (&event.kind, &event.stage) {
            (EventKind::JobStarted { .. }, _) => self.ring.clear(),
            (EventKind::StageStarted { from_step, .. }, Some(stage)) => {
                self.stages.entry(stage.clone()).or_default().rewind(*from_step);
            }
            (EventKind::Step(report), Some(stage)) => self.stages.entry(stage.clone()).or_default().push(*report),
            (EventKind::Evaluated(evaluation), Some(stage)) => {
                self.stages.entry(stage.clone()).or_default().validation.push(evaluation.clone());
            }
            _ => {}
        }
        if self.ring.len() == RING_EVENTS {
            let begins = matches!(self.ring.front(), Some(Event { kind: EventKind::JobStarted { .. }, .. }));
            self.ring.remove(usize::from(begins));
        }
        self.ring.push_back(event.clone());
        // Nobody watches: nobody misses it.
        let _ = self.watchers.send(event);
    }

    /// The events so far, and those to come.
    pub(super) fn watch(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        (self.ring.iter().cloned().collect(), self.watchers.subscribe())
    }

    /// Puts the curves into a view. Scores of a result are whole and stay.
    pub(super) fn draw(&self, view: &mut JobView) {
        for stage in &mut view.stages {
            let own = self.stages.get(&stage.name).filter(|curve| !curve.points.is_empty());
            // A swept task was trained as the trial that became it.
            let chosen =
                stage.sweep.as_ref().and_then(|sweep| sweep.trials.get(sweep.chosen?.checked_sub(1)? as usize));
            let Some(curve) = own.or_else(|| self.stages.get(chosen.unwrap_or(&stage.name))) else { continue };
            stage.curve.clone_from(&curve.points);
            if stage.result.is_none() {
                stage.validation.clone_from(&curve.validation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64) -> StepReport {
        StepReport {
            step,
            total_steps: 5_000,
            epoch: 0.0,
            loss: 1.0,
            learning_rate: 0.1,
            gradient_norm: 1.0,
            examples_per_second: 1.0,
            tokens_per_second: 1.0,
            input_wait: 0.0,
            ..StepReport::default()
        }
    }

    #[test]
    fn a_curve_keeps_its_first_and_newest_points_within_the_bound() {
        let mut curve = Curve::default();
        for step in 1..=5_000 {
            curve.push(report(step));
            assert!(curve.points.len() <= CURVE_POINTS);
            assert_eq!(curve.points.last().unwrap().step, step);
        }
        assert!(curve.points.len() > CURVE_POINTS / 3);
        assert!(curve.points.is_sorted_by_key(|report| report.step));
        assert!(curve.points[0].step < 100);
    }

    #[test]
    fn whoever_begins_to_watch_late_hears_how_the_story_began_and_the_newest_of_it() {
        let told = |at_ms, kind| Event { job: "0123456789abcdef".parse().unwrap(), at_ms, stage: None, kind };
        let mut story = Story::new();
        let began = told(7, EventKind::JobStarted { stages: 1, resumed: true });
        story.tell(began.clone());
        let last = 2 * RING_EVENTS as u64;
        (1..=last).for_each(|step| story.tell(told(7 + step, EventKind::Checkpointed { step })));
        let (so_far, _) = story.watch();
        assert_eq!((so_far.len(), &so_far[0]), (RING_EVENTS, &began));
        let steps: Vec<u64> = so_far[1..].iter().map(|event| event.at_ms - 7).collect();
        assert!(steps.is_sorted() && steps[0] == last + 2 - RING_EVENTS as u64 && steps.last() == Some(&last));
    }

    #[test]
    fn a_retry_draws_no_step_twice() {
        let mut curve = Curve::default();
        (1..=80).for_each(|step| curve.push(report(step)));
        curve.rewind(50);
        (51..=90).for_each(|step| curve.push(report(step)));
        assert_eq!(curve.points.iter().map(|point| point.step).collect::<Vec<_>>(), (1..=90).collect::<Vec<_>>());
    }

    #[test]
    fn whoever_goes_on_from_further_back_draws_no_step_twice() {
        let evaluation = |step| Evaluation { step, loss: 1.0, metrics: BTreeMap::new() };
        let mut curve = Curve::default();
        (1..=80).for_each(|step| curve.push(report(step)));
        curve.validation.extend([evaluation(40), evaluation(80)]);
        (60..=90).for_each(|step| curve.push(report(step)));
        assert_eq!(curve.points.iter().map(|point| point.step).collect::<Vec<_>>(), (1..=90).collect::<Vec<_>>());
        assert_eq!(curve.validation, [evaluation(40)], "the other one comes again");
    }
}
