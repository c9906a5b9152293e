//! Stages from rows in Parquet files to uploaded blobs, on a tiny random BERT, with real device threads.

mod keeping;
mod local;
mod overlap;
mod pausing;
mod seven;
mod together;

use std::collections::BTreeMap;

use graftwork_model::safetensors;
use graftwork_shared::{
    adapter::{AdapterConfig, FusionConfig},
    assignment::{Blame, StageResult, Usage},
    data::Split,
    metric::Metric,
    recipe::{FusedAdapter, Method},
    training::{AdapterDrop, EarlyStopping, Interval, Length, Precision},
};
use local::{Data, LocalHost, adapter_recipe, assignment};

use super::*;

/// The result without what clocks decide.
fn bytes_of(result: &StageResult) -> StageResult {
    StageResult { usage: Usage::default(), ..result.clone() }
}

fn finish(assignment: &Assignment, host: &LocalHost) -> StageResult {
    match run_stage(assignment, false, host) {
        Ok(StageEnd::Finished(result)) => result,
        other => panic!("{other:?}"),
    }
}

/// Runs a stage that is interrupted after every `patience` questions of the driver, until it ends.
/// The result, how often it was interrupted, and what all attempts cost.
fn finish_with_interruptions(assignment: &Assignment, host: &LocalHost, patience: u32) -> (StageResult, u32, Usage) {
    let mut assignment = assignment.clone();
    let mut interruptions = 0;
    let mut spent = Usage::default();
    loop {
        host.interrupt_after(patience);
        match run_stage(&assignment, false, host).unwrap() {
            StageEnd::Finished(result) => {
                spent.add(&result.usage);
                return (result, interruptions, spent);
            }
            StageEnd::Interrupted => interruptions += 1,
            paused @ StageEnd::Paused { .. } => panic!("{paused:?}"),
        }
        spent.add(&host.last_cost());
        assignment.resume = host.last_checkpoint();
        assert!(interruptions < 200, "the stage makes no progress");
    }
}

fn fusion_of(data: &Data, host: &LocalHost) -> Assignment {
    let mut of = assignment(data, host, adapter_recipe(data));
    let mut adapters = Vec::new();
    for (preset, seed) in [("seq_bn", 1), ("seq_bn", 2)] {
        let config = AdapterConfig::preset(preset).unwrap();
        of.recipe.method = Method::Adapter(config.clone());
        of.recipe.training.seed = seed;
        of.adapters.push(finish(&of.clone(), host).weights);
        adapters.push(FusedAdapter { config, origin: of.recipe.digest() });
    }
    of.recipe.method = Method::Fusion { config: FusionConfig::default(), adapters };
    of
}

/// Also where the last update leaves batches without rows.
#[test]
fn lanes_that_are_added_some_after_the_others_give_the_same_bytes() {
    let data = Data::write();
    let trained = |at_once| {
        let host = LocalHost::adding(at_once);
        let mut recipe = adapter_recipe(&data);
        recipe.training.batch_size = 3;
        recipe.training.accumulation = 5;
        let result = finish(&assignment(&data, &host, recipe), &host);
        (bytes_of(&result), host.blob(result.weights))
    };
    let expected = trained(usize::MAX);
    for at_once in [1, 3, 6] {
        assert_eq!(trained(at_once), expected, "{at_once} at once");
    }
}

#[test]
fn a_stage_trains_scores_and_uploads() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let mut recipe = adapter_recipe(&data);
    recipe.training.length = Length::Epochs(15);
    let result = finish(&assignment(&data, &host, recipe), &host);
    // 40 rows in updates of 12: four an epoch.
    assert_eq!((result.steps, result.validation.len(), result.epochs.len()), (60, 15, 15));
    assert!(result.scores[&Split::Test].metrics[&Metric::Accuracy] > 0.7, "{:?}", result.scores);
    assert_eq!(result.scores.keys().collect::<Vec<_>>(), [&Split::Validation, &Split::Test]);
    assert_eq!(result.data.len(), 3);
    let weights = safetensors::read(&host.blob(result.weights)).unwrap();
    let numbers: usize = weights.values().map(|tensor| tensor.values.len()).sum();
    assert_eq!(numbers as u64, result.trained_parameters);
    assert!(weights.contains_key("bert.encoder.layer.1.output.adapters.trained.adapter_up.weight"));
    assert!(weights.contains_key("heads.trained.4.bias"));
    let lines = String::from_utf8(host.blob(result.predictions[&Split::Test])).unwrap();
    assert_eq!(lines.lines().count(), 70);
    assert!(lines.starts_with("{\"row\":0,\"label\":\"good\",\"prediction\":\""), "{}", &lines[..80]);
    let last = host.last_report().unwrap();
    assert_eq!((last.step, last.total_steps), (60, 60));
    assert_eq!((result.usage.examples, result.attention.len()), (600, 0));
    assert!(result.usage.tokens > 600 * 4 && result.usage.wall_seconds > 0.0 && result.usage.bytes_read > 0);
}

#[test]
fn neither_threads_nor_interruptions_change_a_byte() {
    let data = Data::write();
    let one = LocalHost::new(1);
    let mut of = assignment(&data, &one, adapter_recipe(&data));
    of.recipe.training.adapter_drop = AdapterDrop::DrawnUpTo(1);
    of.recipe.training.base_model_dropout = true;
    let undisturbed = finish(&of, &one);
    let two = LocalHost::new(2);
    assert_eq!(bytes_of(&finish(&of, &two)), bytes_of(&undisturbed));
    assert_eq!(bytes_of(&finish(&of, &LocalHost::of_lanes_together(2))), bytes_of(&undisturbed));
    let hosts = [LocalHost::new(2), LocalHost::of_lanes_together(1), LocalHost::new(2)];
    for (patience, host) in [3, 4, 7].into_iter().zip(hosts) {
        let (result, interruptions, spent) = finish_with_interruptions(&of, &host, patience);
        assert!(interruptions > 1, "{interruptions}");
        assert_eq!(bytes_of(&result), bytes_of(&undisturbed), "interrupted after every {patience}");
        let trained = |usage: Usage| (usage.examples, usage.tokens);
        assert_eq!(trained(spent), trained(undisturbed.usage), "each attempt counts its own part");
        assert!(trained(result.usage) < trained(spent) && spent.bytes_read > undisturbed.usage.bytes_read);
    }
}

#[test]
fn the_next_updates_rows_are_there_while_lanes_are_computed_and_sent_where_that_is_together() {
    let data = Data::write();
    let (apart, together) = (LocalHost::new(1), LocalHost::of_lanes_together(1));
    let mut recipe = adapter_recipe(&data);
    recipe.training.length = Length::Epochs(10);
    let of = assignment(&data, &apart, recipe);
    assert_eq!(bytes_of(&finish(&of, &apart)), bytes_of(&finish(&of, &together)));
    // Updates are packed ahead, so most of them are there; the first one never is.
    let [apart, together] = [apart, together].map(|host| host.updates());
    assert_eq!((apart.len(), together.len(), together[0].ahead), (40, 40, false));
    let there = apart.iter().filter(|update| update.input_wait.is_zero()).count();
    assert!(there > 10 && apart.iter().all(|update| !update.ahead), "{apart:?}");
    assert!(together.iter().filter(|update| update.ahead).count() > 10, "{together:?}");
}

/// `Invariant::BytesFollowRecipe`.
#[test]
fn any_checkpoint_of_a_killed_run_leads_to_the_same_bytes() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let mut of = assignment(&data, &host, adapter_recipe(&data));
    let undisturbed = finish(&of, &host);
    let checkpoints = host.checkpoints();
    assert_eq!(checkpoints.keys().collect::<Vec<_>>(), [&3, &6, &9]);
    for blob in checkpoints.values() {
        of.resume = Some(*blob);
        assert_eq!(bytes_of(&finish(&of, &host)), bytes_of(&undisturbed));
    }
    of.recipe.training.learning_rate *= 2.0;
    let failure = run_stage(&of, false, &host).unwrap_err();
    assert!(failure.message.contains("belongs to recipe"), "{failure:?}");
}

#[test]
fn a_fusion_reads_its_adapters_and_reports_its_attention() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = fusion_of(&data, &host);
    let result = finish(&of, &host);
    let weights = safetensors::read(&host.blob(result.weights)).unwrap();
    let fusion = |name: &String| name.contains(".adapter_fusion_layer.trained.");
    assert!(weights.keys().all(|name| fusion(name) || name.starts_with("heads.trained.")), "{:?}", weights.keys());
    assert!(weights.keys().any(fusion));
    assert_eq!(result.attention.len(), 2);
    for layer in &result.attention {
        assert!(layer.len() == 2 && (layer.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{layer:?}");
    }
    let (again, interruptions, _) = finish_with_interruptions(&of, &LocalHost::sharing(&host, 1), 4);
    assert!(interruptions > 0);
    assert_eq!(bytes_of(&again), bytes_of(&result));
}

#[test]
fn a_fusion_refuses_a_blob_that_is_not_its_adapter() {
    let (data, host) = (Data::write(), LocalHost::new(1));
    let mut of = fusion_of(&data, &host);
    of.adapters[1] = host.put_blob(safetensors::write(&BTreeMap::new(), &BTreeMap::new())).unwrap();
    let failure = run_stage(&of, false, &host).unwrap_err();
    assert!(failure.message.contains("slot1"), "{failure:?}");
    of.adapters.pop();
    assert!(run_stage(&of, false, &host).unwrap_err().message.contains("its recipe fuses 2"));
}

#[test]
fn early_stopping_ends_training_and_keeps_the_best() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let mut recipe = adapter_recipe(&data);
    recipe.training.length = Length::Steps(60);
    recipe.training.evaluate_every = Interval::Steps(2);
    recipe.training.early_stopping = Some(EarlyStopping { patience: 2, min_delta: 0.5 });
    let result = finish(&assignment(&data, &host, recipe), &host);
    // The first score counts as growth, no later one can.
    assert_eq!((result.steps, result.validation.len()), (6, 3));
    let score = |at: usize| result.validation[at].metrics[&Metric::Accuracy];
    let best = (0..3).rev().max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap();
    assert_eq!(result.best_step, result.validation[best].step);
    assert_eq!(result.scores[&Split::Validation], result.validation[best]);
    assert_eq!(host.last_report().unwrap().step, 6);
    // Six updates of 12 rows: one whole epoch and most of a second one.
    assert_eq!((result.epochs.len(), result.usage.examples), (2, 64));
}

#[test]
fn bad_rows_are_the_users_and_named() {
    let host = LocalHost::new(1);
    for (mend, words) in [
        (Data::with_null_text as fn(&Data), "text"),
        (Data::with_unknown_label, "label"),
        (Data::with_changed_test_file, "test.parquet"),
    ] {
        let data = Data::write();
        mend(&data);
        let failure = run_stage(&assignment(&data, &host, adapter_recipe(&data)), false, &host).unwrap_err();
        assert_eq!(failure.blame, Blame::User, "{failure:?}");
        assert!(failure.message.contains(words) && failure.message.contains(".parquet"), "{failure:?}");
    }
}

#[test]
fn what_is_not_on_this_worker_may_be_on_another() {
    let host = LocalHost::new(1);
    for name in ["train", "validation", "test"] {
        let data = Data::write();
        let of = assignment(&data, &host, adapter_recipe(&data));
        data.remove(name);
        let failure = run_stage(&of, false, &host).unwrap_err();
        assert_eq!(failure.blame, Blame::Machine, "{failure:?}");
        assert!(failure.message.contains(&format!("{name}.parquet does not exist")), "{failure:?}");
    }
    let data = Data::write();
    let mut of = assignment(&data, &host, adapter_recipe(&data));
    of.data_credentials = Some("NO_SUCH_VARIABLE_OF_A_JOB".to_owned());
    let failure = run_stage(&of, false, &host).unwrap_err();
    assert_eq!(failure.blame, Blame::Machine, "{failure:?}");
    of.data_credentials = None;
    of.base_model = "/no/such/model".to_owned();
    let failure = run_stage(&of, false, &host).unwrap_err();
    assert_eq!(failure.blame, Blame::Machine, "{failure:?}");
    let refused = graftwork_dataset::DataError::Refused { location: "s3://rows/a".to_owned(), help: String::new() };
    assert_eq!(failure::of_data(&refused).blame, Blame::Machine);
}

#[test]
fn another_numerics_version_is_refused_and_another_worker_may_have_it() {
    let (data, host) = (Data::write(), LocalHost::new(1));
    let mut of = assignment(&data, &host, adapter_recipe(&data));
    of.recipe.numerics_version += 1;
    let failure = run_stage(&of, false, &host).unwrap_err();
    assert_eq!(failure.blame, Blame::Machine);
    let words = format!(
        "numerics version {}, and this worker computes version {}",
        graftwork_shared::NUMERICS_VERSION + 1,
        graftwork_shared::NUMERICS_VERSION
    );
    assert!(failure.message.contains(&words), "{failure:?}");
}

#[test]
fn other_numbers_than_fp32_are_refused_without_a_gpu() {
    let (data, host) = (Data::write(), LocalHost::new(1));
    let mut of = assignment(&data, &host, adapter_recipe(&data));
    of.recipe.training.precision = Precision::Bf16;
    let failure = run_stage(&of, false, &host).unwrap_err();
    assert_eq!(failure.blame, Blame::User);
    assert!(
        failure.message.contains("products in bf16") && failure.message.contains("device = \"cuda\""),
        "{failure:?}"
    );
}

#[test]
fn a_touched_file_loses_nothing_and_changes_no_byte() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let mut of = assignment(&data, &host, adapter_recipe(&data));
    let undisturbed = finish(&of, &host);
    let checkpoints = host.checkpoints();
    ["train", "validation", "test"].iter().for_each(|name| data.touch(name));
    // Before, in and after an epoch's end; four updates are an epoch.
    for step in [3, 6, 9] {
        of.resume = Some(checkpoints[&step]);
        let host = LocalHost::sharing(&host, 2);
        assert_eq!(bytes_of(&finish(&of, &host)), bytes_of(&undisturbed), "from step {step}");
        // What was scored before is not scored again, as it would be in a stage that starts over.
        assert!(host.evaluated().iter().all(|at| *at > step), "from step {step}: {:?}", host.evaluated());
    }
    of.resume = None;
    assert_eq!(bytes_of(&finish(&of, &host)), bytes_of(&undisturbed));
}

#[test]
fn a_checkpoint_over_other_rows_is_not_gone_on_with() {
    for (name, before, after) in [("train", b"great", b"good!"), ("validation", b"great", b"good!")] {
        let (data, host) = (Data::write(), LocalHost::new(2));
        let mut of = assignment(&data, &host, adapter_recipe(&data));
        let first = finish(&of, &host);
        let resume = host.checkpoints()[&9];
        data.edit(name, before, after);
        let over_new_rows = finish(&of, &LocalHost::new(2));
        assert_ne!(bytes_of(&over_new_rows).data, first.data, "{name}");
        of.resume = Some(resume);
        let host = LocalHost::sharing(&host, 2);
        assert_eq!(bytes_of(&finish(&of, &host)), bytes_of(&over_new_rows), "{name}");
        assert_eq!(host.evaluated(), [4, 8, 12], "it starts over");
        // The coordinator holds the checkpoint of step 9 and takes none before it.
        assert!(host.checkpoints().keys().all(|step| *step > 9), "{:?}", host.checkpoints().keys());
    }
}

#[test]
fn layers_that_a_fusion_drops_have_no_adapter_in_it() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let mut of = fusion_of(&data, &host);
    let Method::Fusion { adapters, .. } = &mut of.recipe.method else { panic!("a fusion") };
    for adapter in adapters {
        adapter.config = adapter.config.clone().without(&[0]);
    }
    of.recipe.skip_layers = vec![0];
    of.recipe.training.adapter_drop = AdapterDrop::Layers(vec![0]);
    let result = finish(&of, &host);
    let weights = safetensors::read(&host.blob(result.weights)).unwrap();
    assert!(weights.keys().all(|name| !name.contains(".layer.0.")), "{:?}", weights.keys());
    assert_eq!(result.attention[0], [0.0, 0.0]);
    assert!((result.attention[1].iter().sum::<f64>() - 1.0).abs() < 1e-5, "{:?}", result.attention);
}

#[test]
fn a_missing_blob_is_the_machines() {
    let (data, host) = (Data::write(), LocalHost::new(1));
    let mut of = assignment(&data, &host, adapter_recipe(&data));
    of.resume = Some(Digest::of(b"never stored"));
    assert_eq!(run_stage(&of, false, &host).unwrap_err().blame, Blame::Machine);
}
