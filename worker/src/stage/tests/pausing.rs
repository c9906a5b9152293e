//! Trials: a training that pauses at rungs and goes on gives the bytes of one that never paused.

use graftwork_shared::assignment::Evaluation;

use super::*;

/// Trains up to an update and pauses there.
fn pause(assignment: &Assignment, host: &LocalHost, until: u64) -> (Evaluation, bool) {
    let assignment = Assignment { until: Some(until), ..assignment.clone() };
    match run_stage(&assignment, false, host) {
        Ok(StageEnd::Paused { scores, finished }) => (scores, finished),
        other => panic!("{other:?}"),
    }
}

/// Pauses at each of these updates on a host of its own, and then goes on to the result.
fn finish_over(assignment: &Assignment, blobs: &LocalHost, rungs: &[u64]) -> (StageResult, Vec<(Evaluation, bool)>) {
    let mut assignment = assignment.clone();
    let mut paused = Vec::new();
    for until in rungs {
        let host = LocalHost::sharing(blobs, 2);
        paused.push(pause(&assignment, &host, *until));
        assignment.resume = host.last_checkpoint().or(assignment.resume);
    }
    (finish(&assignment, &LocalHost::sharing(blobs, 2)), paused)
}

#[test]
fn pausing_at_rungs_and_going_on_changes_no_byte() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let mut of = assignment(&data, &host, adapter_recipe(&data));
    of.recipe.training.base_model_dropout = true;
    for keep_best in [true, false] {
        of.recipe.training.keep_best = keep_best;
        let undisturbed = finish(&of, &host);
        for rungs in [&[2, 5, 12][..], &[1, 2, 3], &[12], &[7]] {
            let (result, paused) = finish_over(&of, &host, rungs);
            assert_eq!(bytes_of(&result), bytes_of(&undisturbed), "rungs {rungs:?}, keep_best {keep_best}");
            let steps: Vec<u64> = paused.iter().map(|(scores, _)| scores.step).collect();
            assert_eq!(steps, rungs);
            assert!(paused.iter().all(|(scores, finished)| *finished == (scores.step == 12)));
        }
    }
}

#[test]
fn the_checkpoint_of_a_pause_is_that_of_a_run_without_one() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = assignment(&data, &host, adapter_recipe(&data));
    finish(&of, &host);
    let undisturbed = host.checkpoints();
    // 6 is a checkpoint of the run, 5 is none: a pause there must not show in the one behind it.
    let other = LocalHost::sharing(&host, 2);
    pause(&of, &other, 5);
    let resumed = Assignment { resume: other.last_checkpoint(), ..of };
    pause(&resumed, &other, 6);
    assert_eq!(other.checkpoints()[&6], undisturbed[&6]);
}

#[test]
fn scores_at_a_rung_are_those_of_its_weights_and_at_the_end_those_that_are_published() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let mut of = assignment(&data, &host, adapter_recipe(&data));
    of.recipe.training.evaluate_every = Interval::Steps(5);
    let undisturbed = finish(&of, &host);
    let recorded = |step| undisturbed.validation.iter().find(|scores| scores.step == step).unwrap().clone();
    assert_eq!(pause(&of, &LocalHost::sharing(&host, 1), 5).0, recorded(5));
    assert_eq!(pause(&of, &LocalHost::sharing(&host, 1), 10).0, recorded(10));
    let (scores, finished) = pause(&of, &LocalHost::sharing(&host, 1), 12);
    let published = &undisturbed.scores[&Split::Validation];
    assert_eq!((finished, &scores.metrics, scores.loss), (true, &published.metrics, published.loss));
    // Beside the training: a rung at which nothing is recorded has the score that recording there would have given.
    let mut each = of.clone();
    each.recipe.training.evaluate_every = Interval::Steps(1);
    let each = finish(&each, &host);
    let aside = pause(&of, &LocalHost::sharing(&host, 1), 7).0;
    assert_eq!(Some(&aside), each.validation.iter().find(|scores| scores.step == 7));
}

#[test]
fn a_training_that_stops_early_says_so_at_its_rung() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let mut of = assignment(&data, &host, adapter_recipe(&data));
    of.recipe.training.length = Length::Epochs(30);
    of.recipe.training.evaluate_every = Interval::Steps(2);
    of.recipe.training.early_stopping = Some(EarlyStopping { patience: 2, min_delta: 0.0 });
    let undisturbed = finish(&of, &host);
    assert!(undisturbed.steps < 120, "{}", undisturbed.steps);
    let (scores, finished) = pause(&of, &LocalHost::sharing(&host, 2), 120);
    assert_eq!((scores.step, finished), (undisturbed.steps, true));
    let (result, _) = finish_over(&of, &host, &[1, 3, 120]);
    assert_eq!(bytes_of(&result), bytes_of(&undisturbed), "rungs do not count as evaluations without growth");
}

#[test]
fn an_interrupted_trial_pauses_with_the_same_score() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = assignment(&data, &host, adapter_recipe(&data));
    let (undisturbed, _) = pause(&of, &LocalHost::sharing(&host, 2), 7);
    let other = LocalHost::sharing(&host, 1);
    let mut again = Assignment { until: Some(7), ..of };
    let paused = loop {
        other.interrupt_after(3);
        match run_stage(&again, false, &other).unwrap() {
            StageEnd::Paused { scores, .. } => break scores,
            StageEnd::Interrupted => again.resume = other.last_checkpoint(),
            StageEnd::Finished(result) => panic!("{result:?}"),
        }
    };
    assert_eq!(paused, undisturbed);
}
