//! Sweeps in job files: which trials lists become, and what is wrong with lists.

use super::{BASE, codes, job, parsed, shown};
use crate::{
    adapter::{AdapterConfig, ReductionFactor},
    job::{Job, Task},
    sweep::{Sweep, values_line},
};

/// The base job, whose last task gets these lines.
fn with(lines: &str) -> String {
    format!("{}\n{lines}\n", BASE.trim())
}

fn tone(job: &Job) -> &Task {
    job.tasks.iter().find(|task| task.name.as_str() == "tone").unwrap()
}

fn sweep(lines: &str) -> Sweep {
    tone(&job(&with(lines))).sweep.clone().unwrap()
}

fn lines(sweep: &Sweep) -> Vec<String> {
    sweep.trials.iter().map(|trial| values_line(&trial.values)).collect()
}

#[test]
fn lists_become_every_combination_with_the_last_key_varying_fastest() {
    let sweep = sweep("[tasks.tone.sweep]\nseed = [1, 2]\nlearning_rate = [1e-3, 1e-4]\nreduction_factor = [8]\n");
    assert_eq!(
        lines(&sweep),
        [
            "learning_rate 0.001, reduction_factor 8, seed 1",
            "learning_rate 0.001, reduction_factor 8, seed 2",
            "learning_rate 0.0001, reduction_factor 8, seed 1",
            "learning_rate 0.0001, reduction_factor 8, seed 2",
        ]
    );
    let last = &sweep.trials[3];
    assert!((last.training.learning_rate - 1e-4).abs() < 1e-12 && last.training.seed == 2);
    let AdapterConfig::Bottleneck(config) = &last.adapter else { panic!("{:?}", last.adapter) };
    assert_eq!(config.reduction_factor, ReductionFactor::All(8.0));
    assert!(sweep.halving.is_none() && sweep.combinations == 4);
}

#[test]
fn options_multiply_the_methods_that_know_them_alone() {
    let sweep =
        sweep("sweep = { method = [\"seq_bn\", \"lora\", \"par_bn\"], reduction_factor = [8, 16], r = [4, 8, 12] }\n");
    assert_eq!(
        lines(&sweep),
        [
            "method seq_bn, reduction_factor 8",
            "method seq_bn, reduction_factor 16",
            "method lora, r 4",
            "method lora, r 8",
            "method lora, r 12",
            "method par_bn, reduction_factor 8",
            "method par_bn, reduction_factor 16",
        ]
    );
}

#[test]
fn a_trial_is_the_task_that_says_its_values() {
    let trial =
        sweep("training.epochs = 5\nsweep = { method = [\"lora\"], learning_rate = [1e-3, 5e-3] }\n").trials.remove(1);
    let alone = job(&with("training = { epochs = 5, learning_rate = 5e-3 }\nadapter.method = \"lora\"\n"));
    assert_eq!((&trial.adapter, &trial.training), (&tone(&alone).adapter, &tone(&alone).training));
    let defaults = format!("[defaults]\nadapter.reduction_factor = 2\ntraining.seed = 4\n{BASE}");
    let swept =
        job(&format!("{defaults}sweep.training = 1\n").replace("sweep.training = 1", "sweep.learning_rate = [1e-3]"));
    let plain = job(&format!("{defaults}training.learning_rate = 1e-3\n"));
    let trial = &tone(&swept).sweep.as_ref().unwrap().trials[0];
    assert_eq!((&trial.adapter, &trial.training), (&tone(&plain).adapter, &tone(&plain).training));
}

#[test]
fn a_sample_is_drawn_without_repetition_and_by_its_seed() {
    let draw = |seed: u32| {
        let lists = "seed = [1, 2, 3, 4, 5, 6]\nlearning_rate = [1e-3, 1e-4, 1e-5]\n";
        lines(&sweep(&format!("[tasks.tone.sweep]\n{lists}sample = {{ trials = 7, seed = {seed} }}\n")))
    };
    let drawn = draw(1);
    let distinct: std::collections::BTreeSet<_> = drawn.iter().collect();
    assert_eq!((drawn.len(), distinct.len()), (7, 7));
    assert_eq!(drawn, draw(1));
    assert_ne!(drawn, draw(2));
}

#[test]
fn the_order_of_keys_does_not_change_the_digest_and_that_of_values_does() {
    let digest = |lines: &str| job(&with(&format!("[tasks.tone.sweep]\n{lines}"))).digest();
    let one = digest("seed = [1, 2]\nlearning_rate = [1e-3, 1e-4]\nhalving = { first = 0.5, factor = 2 }\n");
    assert_eq!(one, digest("halving = { factor = 2, first = 0.5 }\nlearning_rate = [0.001, 0.0001]\nseed = [1, 2]\n"));
    assert_ne!(one, digest("halving = { factor = 2, first = 0.5 }\nlearning_rate = [0.001, 0.0001]\nseed = [2, 1]\n"));
    assert_ne!(one, digest("halving = { factor = 3, first = 0.5 }\nlearning_rate = [0.001, 0.0001]\nseed = [1, 2]\n"));
}

#[test]
fn a_job_without_a_sweep_has_the_digest_that_it_always_had() {
    let text = serde_json::to_string(&job(BASE)).unwrap();
    assert!(!text.contains("sweep"), "{text}");
}

#[test]
fn everything_that_is_wrong_with_a_sweep_is_said_at_once() {
    let text = with(
        "[tasks.tone.training]\nlearning_rate = 1e-3\n[tasks.tone.sweep]\nlearning_rate = [1e-3, 2, 1e-3]\nr = [4, 8]\n\
         seed = []\nepochs = [1, 2]\nhalving = { factor = 1, first = \"25%\" }\nsample = { seed = 3 }\n\
         [tasks.spam.sweep]\nhalving = {}\n",
    );
    insta::assert_snapshot!(shown(&text));
}

#[test]
fn trials_need_a_place_for_their_names() {
    let long = "a".repeat(55);
    let text =
        with("sweep.seed = [1, 2]").replace("tasks.spam", "tasks.tone-trial-2").replace("spam.parquet", "s.parquet");
    assert_eq!(codes(&text), ["duplicate-name"], "{}", shown(&text));
    let text = with("sweep.seed = [1, 2]").replace("tasks.tone", &format!("tasks.{long}"));
    assert_eq!(codes(&text), ["bad-name"], "{}", shown(&text));
}

#[test]
fn lists_that_multiply_to_too_many_trials_are_refused_unless_some_are_drawn() {
    let numbers: Vec<String> = (1..=40).map(|number| number.to_string()).collect();
    let lists = format!("seed = [{0}]\nreduction_factor = [{0}]\n", numbers.join(", "));
    let text = with(&format!("[tasks.tone.sweep]\n{lists}"));
    assert_eq!(codes(&text), ["too-many-trials"]);
    let sweep = sweep(&format!("[tasks.tone.sweep]\n{lists}sample = {{ trials = 5 }}\n"));
    assert_eq!((sweep.trials.len(), sweep.combinations), (5, 1600));
    let all = with("[tasks.tone.sweep]\nseed = [1, 2]\nsample = { trials = 2 }\n");
    assert!(parsed(&all).job.is_some() && codes(&all) == ["no-effect"], "{}", shown(&all));
}
