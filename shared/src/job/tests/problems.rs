//! Every kind of problem, as a user sees it.

use super::{BASE, codes, parsed, shown};
use crate::diagnostic::{SECRET, to_json};

/// Snapshots what is wrong with a text; the code must be among its problems.
macro_rules! problem {
    ($name:ident, $code:literal, $text:expr) => {
        #[test]
        fn $name() {
            let text: String = $text.to_string();
            assert!(codes(&text).contains(&$code.to_owned()), "{}", shown(&text));
            insta::assert_snapshot!(shown(&text));
        }
    };
}

/// The base job with lines behind its last task.
fn with(lines: &str) -> String {
    format!("{}\n{lines}\n", BASE.trim())
}

fn replaced(from: &str, to: &str) -> String {
    assert!(BASE.contains(from));
    BASE.trim().replace(from, to)
}

problem!(
    other_numbers_than_fp32_need_a_gpu,
    "precision-needs-gpu",
    with("[tasks.tone.training]\nprecision = \"bf16\"\n[resources]\nworkers = 2")
);
problem!(a_misspelt_key_is_named, "unknown-key", with("[tasks.tone.training]\nepoch = 3\nlerning_rate = 1e-3"));
problem!(
    a_key_of_another_table_is_sent_home,
    "unknown-key",
    with("learning_rate = 1e-3\nlabels = [\"a\"]\n[training]\nepochs = 1\n[tasks.spam.training]\nr = 4")
);
problem!(
    marks_of_a_nightly_are_for_tasks_of_the_job,
    "unknown-task",
    with("[nightly]\nseeds = [3, 1, 3]\n[nightly.expected.spma]\nscore = \"why\"\n[nightly.expected.spam]")
);
problem!(a_cron_line_says_which_field_is_wrong, "bad-cron", with("[nightly]\ncron = \"0 26 * * *\""));
problem!(a_cron_line_that_is_never_due_is_refused, "bad-cron", with("[nightly]\ncron = \"0 2 31 4 *\""));
problem!(a_strange_key_lists_those_there_are, "unknown-key", with("[publish]\nzzz = 1"));
problem!(
    a_wrong_type_says_what_is_allowed,
    "wrong-type",
    with("text = 3\n[tasks.tone.training]\nepochs = \"three\"\nkeep_best = \"true\"\nbetas = 0.9\nclip_norm = []")
);
problem!(a_text_that_holds_a_number_loses_its_quotes, "wrong-type", with("rows = 7.5\ntraining.epochs = \"3\""));
problem!(a_table_that_is_none_is_named, "wrong-type", format!("tasks = 3\n{}", with("").replace("[tasks.", "[tusks.")));
problem!(a_task_that_is_no_table_is_named, "wrong-type", format!("tasks.other = \"x.parquet\"\n{}", with("")));
problem!(
    a_number_out_of_range_states_the_bounds,
    "out-of-range",
    with(
        "expect = 85\n[tasks.tone.training]\nepochs = 0\nlearning_rate = 0\nbatch_size = 99999999999999999999\n\
         betas = [0.9, 1.0]\nwarmup = nan"
    )
);
problem!(
    a_list_of_wrong_length_is_refused,
    "out-of-range",
    with("text = [\"a\", \"b\", \"c\"]\ntraining.betas = [0.9]")
);
problem!(
    a_wrong_word_lists_the_words,
    "unknown-value",
    with("metric = \"acuracy\"\nadapter.method = \"compacter\"\ntraining.schedule = \"Linear\"")
);
problem!(missing_keys_are_named_with_an_example, "missing-key", "[tasks.a]\nvalidation = \"v\"\n[fusions.f]\n");
problem!(an_empty_file_says_what_a_job_needs, "no-tasks", "");
problem!(a_job_without_tasks_is_refused, "no-tasks", "[base_model]\nlocation = \"m\"\n[tasks]\n");
problem!(
    names_that_are_none_are_refused,
    "bad-name",
    with(
        "publish_as = \"a/b\"\n[publish]\norganisation = \"\"\n[tasks.\"my task\"]\ntrain = \"a\"\nvalidation = \"b\""
    )
);
problem!(
    names_with_a_dot_are_refused,
    "bad-name",
    with("publish_as = \"spam.v2\"\n[tasks.\"tone.v2\"]\ntrain = \"a\"\nvalidation = \"b\"")
);
problem!(
    names_that_torch_has_for_itself_are_refused,
    "name-taken-in-torch",
    with(
        "publish_as = \"keys\"\n[tasks.half]\ntrain = \"a\"\nvalidation = \"b\"\n\
         [tasks.float]\ntrain = \"a\"\nvalidation = \"b\"\npublish_as = \"floats\"\n\
         [fusions.train]\nadapters = [\"spam\", \"tone\"]\ntask = \"spam\""
    )
);
problem!(
    places_that_cannot_work_are_refused,
    "bad-place",
    with("test = [\"~/rows.parquet\", \"ftp://host/rows\", \"s3://\"]\n[publish]\nhub = \"s3://bucket/hub\"")
        .replace("\"model\"", "\"hf://bert\"")
);
problem!(an_empty_text_is_refused, "empty-text", with("label = \" \""));
problem!(
    a_secret_is_refused_and_never_shown,
    "secret-in-file",
    with("credentials = \"hf_aBcDeFgHiJkLmNoPqRsTuV\"\ntest = \"https://ada:lovelace@host/rows.parquet\"\ntoken = \"opensesame\"")
        .replace("\"model\"", "\"hf://a/b@c\"\ncredentials = \"correct horse\"")
);
problem!(
    a_layer_that_is_none_is_refused,
    "unknown-key",
    with("adapter.reduction_factor = { first = 8, 1 = 0, 01 = 4 }")
);
problem!(
    two_lengths_exclude_each_other,
    "conflict",
    with("training = { epochs = 1, steps = 10, warmup = 0.1, warmup_steps = 1 }")
);
problem!(
    lanes_are_at_most_the_batch,
    "lanes-above-batch",
    with("training.batch_size = 2\n[defaults.training]\nlanes = 4\n[tasks.spam.training]\nlanes = 32")
);
problem!(
    a_warm_up_that_swallows_the_training_is_refused,
    "warmup-too-long",
    with(
        "rows = 160\ntraining = { epochs = 1, warmup_steps = 10 }\n[tasks.spam.training]\nsteps = 50\nwarmup_steps = 60"
    )
);
problem!(
    an_option_of_another_method_is_refused,
    "wrong-method",
    with(
        "[tasks.tone.adapter]\nr = 4\ninit_weights = \"lora\"\n[tasks.spam.adapter]\nmethod = \"lora\"\nscaling = 2.0\ninit_weights = \"houlsby\"\n[defaults.adapter]\nalpha = 3"
    )
);
problem!(
    an_adapter_that_stands_nowhere_is_refused,
    "no-adapter-site",
    with("adapter.output_adapter = false\n[tasks.spam.adapter]\nmethod = \"lora\"\nselfattn_lora = false")
);
problem!(no_validation_is_refused, "no-validation", replaced("validation = \"tone-validation.parquet\"", ""));
problem!(a_split_beside_files_is_refused, "conflict", with("split = { validation = 0.1 }"));
problem!(
    two_sources_of_held_out_rows_are_refused,
    "conflict",
    replaced(
        "validation = \"tone-validation.parquet\"",
        "test = \"t.parquet\"\nsplit = { validation = 0.1, test = 0.1 }"
    )
);
problem!(
    a_split_that_leaves_nothing_is_refused,
    "out-of-range",
    replaced("validation = \"tone-validation.parquet\"", "split = { validation = 0.5, test = 0.5 }")
);
problem!(
    one_column_cannot_be_two_things,
    "repeated-column",
    with("text = [\"a\", \"a\"]\n[tasks.more]\ntrain = \"x\"\nvalidation = \"y\"\nlabel = \"text\"")
);
problem!(
    labels_are_distinct_and_for_classes,
    "repeated-label",
    with(
        "head = { labels = [\"a\", \"b\", \"a\"] }\n[tasks.more]\ntrain = \"x\"\nvalidation = \"y\"\nhead = { kind = \"regression\", labels = [\"a\", \"b\"] }"
    )
);
problem!(
    a_metric_must_fit_the_head,
    "metric-does-not-fit",
    with(
        "metric = \"pearson\"\n[tasks.three]\ntrain = \"x\"\nvalidation = \"y\"\nmetric = \"f1\"\nhead.labels = [\"a\", \"b\", \"c\"]\n\
         [tasks.number]\ntrain = \"x\"\nvalidation = \"y\"\nmetric = \"accuracy\"\nhead = \"regression\""
    )
);
problem!(
    an_expectation_must_be_in_the_metrics_range,
    "out-of-range",
    with("expect = -0.5\n[fusions.f]\nadapters = [\"tone\", \"spam\"]\ntask = \"tone\"\nexpect = -0.1")
);
problem!(
    a_fusion_of_unknown_things_lists_the_tasks,
    "unknown-adapter",
    with("[fusions.f]\nadapters = [\"tome\", \"spam\", \"bert\"]\ntask = \"spma\"")
);
problem!(
    fusions_read_adapters_only,
    "fusion-of-fusion",
    with(
        "[fusions.f]\nadapters = [\"g\", \"spam\"]\ntask = \"g\"\n[fusions.g]\nadapters = [\"f\", \"tone\"]\ntask = \"tone\""
    )
);
problem!(
    a_fusion_needs_two_different_adapters,
    "repeated-adapter",
    with(
        "[fusions.f]\nadapters = [\"spam\"]\ntask = \"spam\"\n[fusions.g]\nadapters = [\"./a/b\", \"a/b/\"]\ntask = \"spam\""
    )
);
problem!(
    tasks_and_fusions_share_names,
    "duplicate-name",
    with("[fusions.spam]\nadapters = [\"spam\", \"tone\"]\ntask = \"spam\"")
);
problem!(
    two_cannot_publish_to_one_name,
    "duplicate-publish",
    with("publish_as = \"spam\"\n[fusions.f]\nadapters = [\"spam\", \"tone\"]\ntask = \"spam\"\npublish_as = \"spam\"")
);
problem!(
    adapter_drop_needs_one_of_its_keys,
    "missing-key",
    with("training.adapter_drop = {}\n[tasks.spam.training]\nadapter_drop = { layers = [0], up_to = 2 }")
);
problem!(
    settings_without_effect_are_warnings,
    "no-effect",
    with(
        "skip_layers = [1]\nhead = { layers = 1, activation = \"relu\" }\nadapter.leave_out = [1]\ncredentials = \"KEY\"\n\
         [tasks.spam.training]\nsteps = 10\nevaluate_every = 20\n[tasks.spam.adapter]\nmethod = \"lora\"\n\
         selfattn_lora = false\noutput_lora = true\nattn_matrices = [\"q\"]\n[tasks.tone.training]\nepochs = 2\n\
         early_stopping = { patience = 5 }\n[defaults.training]\nepochs = 7\n[defaults.fusion]\nkey = false"
    )
);
problem!(
    fusion_options_without_a_value_matrix_are_warnings,
    "no-effect",
    with(
        "[fusions.f]\nadapters = [\"spam\", \"tone\"]\ntask = \"spam\"\nfusion = { value = false, regularization = true }"
    )
);
problem!(
    a_gang_larger_than_a_task_may_have_workers,
    "gang-above-workers",
    with("[resources]\nworkers_per_task = 2\ngang = 4")
);
problem!(an_address_without_a_revision_is_a_warning, "no-revision", with("").replace("\"model\"", "\"hf://org/name\""));
problem!(
    a_syntax_error_does_not_hide_the_rest,
    "syntax",
    with(
        "label = tone\nexpect = 7\n[tasks.spam.training]\nepoch = 3\nsteps = = 4\nseed = 1\nseed = 2\n[tasks.spam]\nrows = 5"
    )
);

#[test]
fn all_problems_come_at_once_each_with_line_and_column() {
    let text = with(
        "metric = \"acuracy\"\nexpect = 7\n[fusions.f]\nadapters = [\"spam\", \"tome\"]\ntask = \"tone\"\nepochs = 3",
    );
    let json = to_json(&text, "job.toml", &parsed(&text).diagnostics);
    let places: Vec<(u64, u64, &str)> = json
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (entry["line"].as_u64().unwrap(), entry["column"].as_u64().unwrap(), entry["code"].as_str().unwrap())
        })
        .collect();
    let expected =
        [(9, 10, "unknown-value"), (10, 10, "out-of-range"), (12, 21, "unknown-adapter"), (14, 1, "unknown-key")];
    assert_eq!(places, expected);
}

#[test]
fn warnings_alone_leave_a_job() {
    let parsed = parsed(&with("[defaults.fusion]\nkey = false"));
    assert_eq!(parsed.diagnostics.len(), 1);
    assert!(parsed.job.is_some());
}

#[test]
fn a_secret_beside_a_syntax_error_is_not_shown_either() {
    let text = with("credentials = \"hf_aBcDeFgHiJkLmNoPqRsTuV\" x\nother = { deep = [\"AKIAIOSFODNN7EXAMPLE\"] }");
    assert!(codes(&text).iter().filter(|code| *code == SECRET).count() == 2, "{:?}", codes(&text));
    let shown = shown(&text) + &to_json(&text, "job.toml", &parsed(&text).diagnostics).to_string();
    assert!(!shown.contains("hf_aB") && !shown.contains("AKIA"), "{shown}");
}
