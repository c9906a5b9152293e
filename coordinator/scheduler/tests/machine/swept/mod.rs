//! A swept task, a task without trials and a fusion of both, and workers that do what they are told with known scores.

use graftwork_scheduler::{Command, Event, Fact, Plan, PlannedStage, PlannedSweep, PlannedTrial, StageKey};
use graftwork_shared::{
    adapter::FusionConfig,
    assignment::{Assignment, Evaluation, Failure},
    digest::Digest,
    event::EventKind,
    id::{JobId, LeaseId, WorkerId},
    metric::Metric,
    recipe::{FusedAdapter, Method},
    sweep::{Halving, Values},
};

use super::{
    fixture::{Machine, info, name, plan, result, stage},
    sweeps::user_failure,
};

/// Updates of each trial.
const STEPS: u64 = 40;

/// Updates of the other task, and of the fusion.
const OTHER_STEPS: u64 = 5;

pub(crate) fn whole(factor: u32) -> Option<Halving> {
    Some(Halving { factor, first: 0.25, asynchronous: false })
}

pub(crate) fn asynchronous(factor: u32) -> Option<Halving> {
    Some(Halving { factor, first: 0.25, asynchronous: true })
}

/// Task `s` with so many trials, task `b`, and fusion `f` over both.
pub(crate) fn swept(trials: u32, halving: Option<Halving>) -> Plan {
    let trial = |number: u32| {
        let mut trial = stage(&format!("s-trial-{number}"), &[], STEPS);
        trial.recipe.columns = stage("s", &[], STEPS).recipe.columns;
        trial.recipe.training.seed = u64::from(number);
        let values = Values::from([("seed".to_owned(), number.into())]);
        let planned = PlannedTrial { task: name("s"), number, values };
        PlannedStage { recipe_digest: trial.recipe.digest(), trial: Some(planned), expect: None, ..trial }
    };
    let trials: Vec<PlannedStage> = (1..=trials).map(trial).collect();
    let names: Vec<_> = trials.iter().map(|trial| trial.name.clone()).collect();
    let sweep = PlannedSweep {
        trials: names.clone(),
        rungs: Halving::rungs(halving.as_ref(), STEPS),
        halving,
        combinations: trials.len() as u64,
    };
    let publish_as = name("s");
    let task = PlannedStage {
        name: name("s"),
        needs: names,
        sweep: Some(sweep),
        trial: None,
        publish_as,
        ..trials[0].clone()
    };
    let other = stage("b", &[], OTHER_STEPS);
    let mut fusion = stage("f", &["s", "b"], OTHER_STEPS);
    let fused = |of: &PlannedStage| match &of.recipe.method {
        Method::Adapter(config) => FusedAdapter { config: config.clone(), origin: of.recipe_digest },
        Method::Fusion { .. } => panic!("an adapter"),
    };
    fusion.recipe.method =
        Method::Fusion { config: FusionConfig::default(), adapters: vec![fused(&task), fused(&other)] };
    fusion.recipe_digest = fusion.recipe.digest();
    let mut stages = vec![task];
    stages.extend(trials);
    stages.extend([other, fusion]);
    plan("swept", stages)
}

/// The validation score of a trial after an update. Of the first four trials the third is the best throughout; behind them
/// ranks change from rung to rung.
pub(crate) fn score(number: u32, step: u64) -> f64 {
    match number {
        1 => 0.4,
        2 => 0.7,
        3 => 0.9,
        4 => 0.5,
        number => f64::from((number * 37 + u32::try_from(step).unwrap() * 13) % 100) / 100.0,
    }
}

pub(crate) fn evaluation(number: u32, step: u64) -> Evaluation {
    Evaluation { step, loss: 0.1, metrics: [(Metric::Accuracy, score(number, step))].into() }
}

/// What was decided, in words.
pub(crate) fn decisions(facts: &[Fact]) -> Vec<String> {
    let words = facts.iter().filter_map(|fact| match fact {
        Fact::RungDecided { rung, to, promoted, stopped, asynchronous, .. } => {
            let marked = if *asynchronous { " (asynchronous)" } else { "" };
            Some(format!("rung {rung}: {promoted:?} to {to}, {stopped:?} stop{marked}"))
        }
        Fact::TrialChosen { trial, .. } => Some(format!("chosen {trial}")),
        Fact::SweepFailed { failure, .. } => Some(failure.message.clone()),
        _ => None,
    });
    words.collect()
}

/// Work that was handed out.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) stage: String,
    pub(crate) worker: WorkerId,
    pub(crate) lease: LeaseId,
    pub(crate) until: Option<u64>,
    pub(crate) resume: Option<Digest>,
    /// The step of its checkpoint.
    pub(crate) from: u64,
}

/// A job with a sweep on its way.
pub(crate) struct Run {
    pub(crate) machine: Machine,
    pub(crate) job: JobId,
    pub(crate) work: Vec<Work>,
    /// Questions to the hub that were not answered.
    pub(crate) questions: Vec<StageKey>,
    pub(crate) published: Vec<String>,
    pub(crate) discarded: Vec<Digest>,
    pub(crate) told: Vec<EventKind>,
    /// Which trials paused after which update.
    pub(crate) paused: Vec<(String, u64)>,
    /// A trial whose training comes apart.
    pub(crate) failing: Option<u32>,
    /// Workers that were lost: with more than four in a row a stage would fail for good.
    pub(crate) lost: u32,
    answers: bool,
    plan: Plan,
}

impl Run {
    /// A submitted job with workers of so many places; the hub has nothing.
    pub(crate) fn start(plan: Plan, workers: &[u32]) -> Self {
        let mut run = Self::of(plan, true);
        for slots in workers {
            run.join_with(*slots);
        }
        run
    }

    /// A submitted job with one worker, and questions to the hub that wait.
    pub(crate) fn asking(plan: Plan) -> Self {
        let mut run = Self::of(plan, false);
        run.join_with(4);
        run
    }

    fn of(plan: Plan, answers: bool) -> Self {
        let mut machine = Machine::new();
        let job = machine.submit(&plan);
        Self {
            machine,
            job,
            work: Vec::new(),
            questions: Vec::new(),
            published: Vec::new(),
            discarded: Vec::new(),
            told: Vec::new(),
            paused: Vec::new(),
            failing: None,
            lost: 0,
            answers,
            plan,
        }
    }

    pub(crate) fn join(&mut self) {
        self.join_with(2);
    }

    fn join_with(&mut self, slots: u32) {
        let commands = self.machine.apply(Event::WorkerJoined { session: 1, info: info(slots), leases: Vec::new() });
        self.take(commands);
    }

    pub(crate) fn lose(&mut self, worker: WorkerId) {
        self.work.retain(|work| work.worker != worker);
        let commands = self.machine.apply(Event::WorkerLeft { worker, reason: "killed".to_owned() });
        self.take(commands);
        self.wait();
    }

    /// Whatever was lost waits a little before it is tried again; workers live.
    pub(crate) fn wait(&mut self) {
        self.machine.now_ms += 5_000;
        for worker in self.machine.scheduler.workers() {
            let leases = self.work.iter().filter(|work| work.worker == worker.id).map(|work| work.lease).collect();
            let commands = self.machine.apply(Event::Heartbeat { worker: worker.id, leases });
            self.take(commands);
        }
    }

    /// kill -9 of the coordinator: leases and sessions end, the journal stays.
    pub(crate) fn restart(&mut self) {
        self.work.clear();
        self.machine = Machine::recover(self.machine.facts.clone(), self.machine.now_ms + 1_000);
        self.join();
    }

    /// Workers drop what is not theirs any more.
    pub(crate) fn give_back(&mut self) {
        for Work { worker, lease, .. } in std::mem::take(&mut self.work) {
            let commands = self.machine.apply(Event::Released { worker, lease });
            self.take(commands);
        }
    }

    pub(crate) fn submit_again(&mut self) {
        let plan = Box::new(self.plan.clone());
        let commands = self.machine.apply(Event::Submitted { plan, gone: Vec::new() });
        self.take(commands);
    }

    /// Takes note of what was commanded; the hub answers and publishes at once.
    pub(crate) fn take(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Assign { worker, lease, assignment, joining: false } => {
                    self.take_work(worker, lease, &assignment);
                }
                Command::LookForReuse { key, .. } if self.answers => {
                    let commands = self.machine.apply(Event::Reusable { key, result: None });
                    self.take(commands);
                }
                Command::LookForReuse { key, .. } => self.questions.push(key),
                Command::Publish { key } => {
                    self.published.push(key.to_string());
                    let commands = self.machine.apply(Event::Published { release: format!("org/{}", key.stage), key });
                    self.take(commands);
                }
                Command::Fence { worker, lease } => {
                    self.work.retain(|work| work.lease != lease);
                    let commands = self.machine.apply(Event::Released { worker, lease });
                    self.take(commands);
                }
                Command::Discard { blob } => self.discarded.push(blob),
                Command::Tell { kind, .. } => self.told.push(kind),
                _ => {}
            }
        }
    }

    fn take_work(&mut self, worker: WorkerId, lease: LeaseId, assignment: &Assignment) {
        let explained = self.machine.scheduler.explain(&self.job).unwrap();
        let stage = explained.stages.into_iter().find(|stage| stage.stage == assignment.stage).unwrap();
        self.work.push(Work {
            stage: assignment.stage.to_string(),
            worker,
            lease,
            until: assignment.until,
            resume: assignment.resume,
            from: stage.checkpoint_step.unwrap_or(0),
        });
    }

    pub(crate) fn answer_no(&mut self) {
        self.answers = true;
        for key in std::mem::take(&mut self.questions) {
            let commands = self.machine.apply(Event::Reusable { key, result: None });
            self.take(commands);
        }
        self.answers = false;
    }

    /// The first work on a stage whose name begins like this.
    pub(crate) fn next(&mut self, stage: &str) -> Option<Work> {
        let exact = self.work.iter().position(|work| work.stage == stage);
        let at = exact
            .or_else(|| self.work.iter().position(|work| stage.ends_with('-') && work.stage.starts_with(stage)))?;
        Some(self.work.remove(at))
    }

    fn number(stage: &str) -> u32 {
        stage.rsplit('-').next().unwrap().parse().unwrap()
    }

    /// A trial comes to its rung. Gives its checkpoint.
    pub(crate) fn pause(&mut self, work: &Work, step: u64) -> Digest {
        self.pause_with(work, step, false)
    }

    /// A trial whose training is over before its rung.
    pub(crate) fn pause_finished(&mut self, work: &Work, step: u64) -> Digest {
        self.pause_with(work, step, true)
    }

    fn pause_with(&mut self, work: &Work, step: u64, finished: bool) -> Digest {
        let (worker, lease) = (work.worker, work.lease);
        // As a worker does: no checkpoint where one was accepted.
        if step > work.from {
            let commands = self.machine.checkpoint((worker, lease), step);
            self.take(commands);
        }
        self.paused.push((work.stage.clone(), step));
        let evaluation = evaluation(Self::number(&work.stage), step);
        let finished = finished || step == STEPS;
        let commands = self.machine.apply(Event::Paused { worker, lease, evaluation, finished });
        assert!(commands.contains(&Command::Accept { worker, lease, step }), "{commands:?}");
        self.take(commands);
        Digest::of(format!("checkpoint {step} of {lease}").as_bytes())
    }

    pub(crate) fn fail(&mut self, work: &Work, failure: Failure) {
        let commands = self.machine.fail((work.worker, work.lease), failure);
        self.take(commands);
    }

    /// A piece of work comes to its end.
    pub(crate) fn advance(&mut self, work: &Work) {
        let Some(until) = work.until else {
            let done = result(&work.stage, if work.stage == "s" { STEPS } else { OTHER_STEPS }, 0.9);
            let (worker, lease) = (work.worker, work.lease);
            let commands = self.machine.apply(Event::Finished { worker, lease, result: Box::new(done) });
            return self.take(commands);
        };
        if self.failing == Some(Self::number(&work.stage)) {
            return self.fail(work, user_failure());
        }
        self.pause(work, until);
    }

    /// Everything that is handed out is done, in its order, until nothing is handed out any more.
    pub(crate) fn run_out(&mut self) {
        while !self.work.is_empty() {
            let work = self.work.remove(0);
            self.advance(&work);
        }
    }
}
