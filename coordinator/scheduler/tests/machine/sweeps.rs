//! Sweeps: whole rungs, whatever comes first, who fails and who is killed.

use graftwork_scheduler::{Command, Event, Fact, Scheduler, Standing};
use graftwork_shared::{
    assignment::{Blame, Failure},
    event::{EventKind, Outcome},
    recipe::Method,
    view::StageState,
};
use proptest::prelude::*;

use crate::{
    fixture::{key, name, result},
    swept::{Run, asynchronous, decisions, evaluation, swept, whole},
};

pub(crate) fn user_failure() -> Failure {
    Failure { blame: Blame::User, message: "training diverged".to_owned() }
}

#[test]
fn the_best_trial_becomes_the_task_and_the_fusion_reads_it() {
    let mut run = Run::start(swept(4, whole(2)), &[2]);
    // Scores by number: 0.4, 0.7, 0.9, 0.5 at rung 0 and so on; see `crate::swept::score`.
    run.run_out();
    let facts = decisions(&run.machine.facts);
    assert_eq!(facts, ["rung 0: [2, 3] to 1, [1, 4] stop", "rung 1: [3] to 2, [2] stop", "chosen 3"]);
    let plan = run.machine.scheduler.plan(&run.job).unwrap();
    let (task, trial) = (plan.stage(&name("s")).unwrap(), plan.stage(&name("s-trial-3")).unwrap());
    assert_eq!((&task.recipe, task.recipe_digest), (&trial.recipe, trial.recipe_digest));
    let Method::Fusion { adapters, .. } = &plan.stage(&name("f")).unwrap().recipe.method else { panic!() };
    assert_eq!(adapters[0].origin, trial.recipe_digest);
    assert_eq!(run.published, ["b", "s", "f"].map(|stage| key(&run.job, stage).to_string()));
    let view = run.machine.scheduler.view(&run.job).unwrap();
    assert_eq!(view.outcome, Some(Outcome::Succeeded));
    let sweep = view.stages[0].sweep.clone().unwrap();
    // Of 4 × 40 updates: two trials stopped at 10, one at 20.
    assert_eq!((sweep.chosen, sweep.saved_steps), (Some(3), 30 + 30 + 20));
    assert_eq!(run.machine.state_of(&run.job, "s-trial-2"), StageState::Stopped { rung: 1 });
    assert_eq!(run.machine.state_of(&run.job, "s-trial-3"), StageState::Chosen);
    let record = run.machine.scheduler.sweep_record(&key(&run.job, "s")).unwrap();
    assert_eq!((record.trial, record.trials[2].scores.len(), record.trials[0].scores.len()), (3, 3, 1));
    assert!(!record.asynchronous);
}

#[test]
fn the_task_goes_on_from_the_chosen_trials_last_checkpoint() {
    let mut run = Run::start(swept(2, whole(2)), &[4]);
    let mut checkpoint = None;
    while let Some(work) = run.next("s-trial-") {
        checkpoint = Some(run.pause(&work, work.until.unwrap()));
    }
    let task = run.next("s").unwrap();
    assert_eq!((task.resume, task.until), (checkpoint, None));
    assert_eq!(run.machine.state_of(&run.job, "s-trial-2"), StageState::Chosen);
}

#[test]
fn a_freed_place_is_refilled_in_the_same_turn() {
    let mut run = Run::start(swept(3, whole(2)), &[1]);
    let first = run.next("s-trial-1").unwrap();
    assert!(run.work.is_empty());
    run.pause(&first, 10);
    assert_eq!(run.work.iter().map(|work| work.stage.as_str()).collect::<Vec<_>>(), ["s-trial-2"]);
}

#[test]
fn explain_names_the_trials_that_are_missing_in_a_rung() {
    let mut run = Run::start(swept(3, whole(2)), &[4]);
    let first = run.next("s-trial-1").unwrap();
    run.pause(&first, 10);
    let explained = run.machine.scheduler.explain(&run.job).unwrap();
    let sentence = |stage: &str| {
        let found = explained.stages.iter().find(|explained| explained.stage == name(stage)).unwrap();
        found.sentence.clone()
    };
    assert_eq!(sentence("s-trial-1"), "scored 0.4000 at rung 1 of 3; waits for trials 2 and 3 of rung 1");
    assert_eq!(sentence("s"), "waits for trials 2 and 3 of rung 1");
    let waiting = StageState::Waiting { for_stages: vec![name("s-trial-2"), name("s-trial-3")] };
    assert_eq!(run.machine.state_of(&run.job, "s-trial-1"), waiting);
}

#[test]
fn a_trial_that_fails_counts_as_the_worst() {
    let mut run = Run::start(swept(4, whole(2)), &[4]);
    let best = run.next("s-trial-3").unwrap();
    run.fail(&best, user_failure());
    run.run_out();
    assert_eq!(
        decisions(&run.machine.facts),
        ["rung 0: [2, 4] to 1, [1, 3] stop", "rung 1: [2] to 2, [4] stop", "chosen 2"]
    );
    assert_eq!(run.machine.scheduler.view(&run.job).unwrap().outcome, Some(Outcome::Succeeded));
    let record = run.machine.scheduler.sweep_record(&key(&run.job, "s")).unwrap();
    assert_eq!(record.trials[2].failed.as_deref(), Some("training diverged"));
}

#[test]
fn a_task_whose_trials_all_failed_fails_and_the_rest_goes_on() {
    let mut run = Run::start(swept(2, whole(2)), &[4]);
    while let Some(work) = run.next("s-trial-") {
        run.fail(&work, user_failure());
    }
    run.run_out();
    let StageState::Failed { failure } = run.machine.state_of(&run.job, "s") else { panic!() };
    assert_eq!(failure.message, "all 2 trials failed: trial 1: training diverged; trial 2: training diverged");
    assert!(matches!(run.machine.state_of(&run.job, "f"), StageState::Cancelled { .. }));
    assert!(matches!(run.machine.state_of(&run.job, "b"), StageState::Published { .. }));
    assert_eq!(run.machine.scheduler.view(&run.job).unwrap().outcome, Some(Outcome::Failed));
}

#[test]
fn a_trial_that_the_machine_failed_is_not_compared_and_goes_on_when_submitted_again() {
    let mut run = Run::start(swept(3, whole(2)), &[4]);
    let first = run.next("s-trial-1").unwrap();
    run.pause(&first, 10);
    for _ in 0..5 {
        let work = run.next("s-trial-2").unwrap();
        run.fail(&work, Failure { blame: Blame::Machine, message: "out of memory".to_owned() });
        run.wait();
    }
    let StageState::Failed { failure } = run.machine.state_of(&run.job, "s") else { panic!() };
    assert!(failure.message.starts_with("trial 2 cannot be compared with the others: 5 attempts"), "{failure:?}");
    run.run_out();
    assert_eq!(run.machine.scheduler.standing(&run.job), Standing::Ended);
    run.submit_again();
    run.run_out();
    assert_eq!(run.paused.iter().filter(|(stage, step)| stage == "s-trial-1" && *step == 10).count(), 1, "kept");
    assert_eq!(decisions(&run.machine.facts).last().unwrap(), "chosen 3");
}

#[test]
fn a_job_that_ended_keeps_its_choice_when_it_is_submitted_again() {
    let mut run = Run::start(swept(4, whole(2)), &[2]);
    run.run_out();
    let facts = run.machine.facts.len();
    run.submit_again();
    assert_eq!(run.machine.facts.len(), facts, "nothing is left to do");
}

#[test]
fn a_cancelled_sweep_goes_on_where_it_stood() {
    let mut run = Run::start(swept(4, whole(2)), &[2]);
    for _ in 0..5 {
        let work = run.next("s-trial-").unwrap();
        run.pause(&work, work.until.unwrap());
    }
    let commands = run.machine.apply(Event::Cancel { job: run.job.clone(), reason: "stop".to_owned() });
    run.take(commands);
    run.give_back();
    assert_eq!(run.machine.scheduler.standing(&run.job), Standing::Ended);
    run.submit_again();
    run.run_out();
    assert_eq!(decisions(&run.machine.facts).last().unwrap(), "chosen 3");
    let mut paused = run.paused.clone();
    paused.sort();
    paused.dedup();
    assert_eq!(paused.len(), run.paused.len(), "no rung is trained twice: {:?}", run.paused);
}

#[test]
fn checkpoints_of_stopped_trials_go() {
    let mut run = Run::start(swept(2, whole(2)), &[2]);
    let (first, second) = (run.next("s-trial-1").unwrap(), run.next("s-trial-2").unwrap());
    let gone = run.pause(&first, 10);
    let kept = run.pause(&second, 10);
    assert!(run.discarded.contains(&gone) && !run.discarded.contains(&kept));
}

#[test]
fn a_worker_that_pauses_where_it_was_not_told_to_is_not_believed() {
    let mut run = Run::start(swept(2, whole(2)), &[2]);
    let work = run.next("s-trial-1").unwrap();
    let paused = |step| Event::Paused {
        worker: work.worker,
        lease: work.lease,
        evaluation: evaluation(1, step),
        finished: false,
    };
    let commands = run.machine.apply(paused(7));
    assert!(commands.contains(&Command::Fence { worker: work.worker, lease: work.lease }), "{commands:?}");
    assert!(!run.machine.facts.iter().any(|fact| matches!(fact, Fact::TrialScored { .. })));
    let work = run.next("s-trial-2").unwrap();
    let result = Box::new(result("s-trial-2", 40, 0.9));
    let commands = run.machine.apply(Event::Finished { worker: work.worker, lease: work.lease, result });
    assert!(commands.contains(&Command::Fence { worker: work.worker, lease: work.lease }), "{commands:?}");
}

#[test]
fn a_training_that_ends_early_is_compared_at_every_later_rung() {
    let mut run = Run::start(swept(2, whole(2)), &[2]);
    let early = run.next("s-trial-2").unwrap();
    run.pause_finished(&early, 6);
    run.run_out();
    assert_eq!(decisions(&run.machine.facts), ["rung 0: [2] to 2, [1] stop", "chosen 2"]);
    assert_eq!(run.paused.iter().filter(|(stage, _)| stage == "s-trial-2").count(), 1);
}

#[test]
fn an_earlier_result_of_a_trial_is_its_score() {
    let mut run = Run::asking(swept(2, None));
    let known = Box::new(result("known", 40, 0.99));
    let asked = run.questions.remove(0);
    assert_eq!(asked, key(&run.job, "s-trial-1"));
    let commands = run.machine.apply(Event::Reusable { key: asked, result: Some(known.clone()) });
    run.take(commands);
    let scored = run.machine.facts.iter().find(|fact| matches!(fact, Fact::TrialScored { lease: None, .. }));
    assert!(scored.is_some());
    run.answer_no();
    let other = run.next("s-trial-2").unwrap();
    run.pause(&other, 40);
    // The task itself is looked for under the chosen trial's recipe.
    let asked = run.questions.remove(0);
    assert_eq!(asked, key(&run.job, "s"));
    let commands = run.machine.apply(Event::Reusable { key: asked, result: Some(known) });
    assert!(commands.contains(&Command::Publish { key: key(&run.job, "s") }), "{commands:?}");
}

#[test]
fn asynchronous_halving_does_not_wait_and_is_marked() {
    let mut run = Run::start(swept(4, asynchronous(2)), &[4]);
    let (first, second) = (run.next("s-trial-1").unwrap(), run.next("s-trial-4").unwrap());
    run.pause(&first, 10);
    run.pause(&second, 10);
    assert_eq!(decisions(&run.machine.facts), ["rung 0: [4] to 1, [] stop (asynchronous)"]);
    run.run_out();
    let record = run.machine.scheduler.sweep_record(&key(&run.job, "s")).unwrap();
    assert!(record.asynchronous);
    assert_eq!(run.machine.scheduler.view(&run.job).unwrap().outcome, Some(Outcome::Succeeded));
}

#[test]
fn decisions_are_told() {
    let mut run = Run::start(swept(2, whole(2)), &[2]);
    run.run_out();
    let told = |wanted: fn(&EventKind) -> bool| run.told.iter().filter(|kind| wanted(kind)).count();
    assert_eq!(told(|kind| matches!(kind, EventKind::TrialScored { .. })), 3);
    assert_eq!(told(|kind| matches!(kind, EventKind::RungDecided { asynchronous: false, .. })), 1);
    assert_eq!(told(|kind| matches!(kind, EventKind::TrialChosen { trial: 2, .. })), 1);
}

#[test]
fn a_plan_whose_trials_do_not_know_their_task_is_refused() {
    let mut plan = swept(2, whole(2));
    plan.stages[1].trial = None;
    assert!(plan.check().unwrap_err().to_string().contains("trials of stage s"));
}

/// What happens next in a disturbed run.
#[derive(Clone, Debug)]
enum Act {
    /// This piece of work, of those there are, comes to its rung.
    Pause(usize),
    /// It is lost with its worker, behind this share of the way to its rung.
    Kill(usize, u64),
    /// The coordinator is killed and starts again.
    Restart,
    /// Another worker comes.
    Join,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (0..8_usize).prop_map(Act::Pause),
        2 => ((0..8_usize), (0..4_u64)).prop_map(|(at, share)| Act::Kill(at, share)),
        1 => Just(Act::Restart),
        1 => Just(Act::Join),
    ];
    prop::collection::vec(act, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn neither_order_nor_workers_nor_faults_change_who_goes_on(
        trials in 2..9_u32,
        factor in 2..4_u32,
        failing in prop::option::of(1..9_u32),
        workers in 1..4_usize,
        acts in acts(),
    ) {
        let mut undisturbed = Run::start(swept(trials, whole(factor)), &[1]);
        undisturbed.failing = failing;
        undisturbed.run_out();
        let mut run = Run::start(swept(trials, whole(factor)), &vec![2; workers]);
        run.failing = failing;
        for act in acts {
            run.act(act);
        }
        run.join();
        run.run_out();
        prop_assert_eq!(decisions(&run.machine.facts), decisions(&undisturbed.machine.facts));
        let plan = |run: &Run| run.machine.scheduler.plan(&run.job).cloned();
        prop_assert_eq!(plan(&run), plan(&undisturbed));
        let record = |scheduler: &Scheduler| scheduler.sweep_record(&key(&run.job, "s"));
        prop_assert_eq!(record(&run.machine.scheduler), record(&undisturbed.machine.scheduler));
    }
}

impl Run {
    fn act(&mut self, act: Act) {
        match act {
            Act::Pause(at) if !self.work.is_empty() => {
                let work = self.work.remove(at % self.work.len());
                self.advance(&work);
            }
            Act::Kill(at, share) if !self.work.is_empty() && self.lost < 4 => {
                self.lost += 1;
                let work = self.work[at % self.work.len()].clone();
                if let Some(until) = work.until.filter(|until| work.from + share < *until && share > 0) {
                    // A checkpoint half-way counts.
                    let step = work.from + (until - work.from) * share / 4;
                    if step > work.from {
                        let commands = self.machine.checkpoint((work.worker, work.lease), step);
                        self.take(commands);
                    }
                }
                self.lose(work.worker);
                self.join();
            }
            Act::Restart => self.restart(),
            Act::Join => self.join(),
            Act::Pause(_) | Act::Kill(..) => {}
        }
    }
}
