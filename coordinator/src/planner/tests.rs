//! What planning accepts, and each bad input with its own message.

use std::collections::BTreeMap;

use graftwork_model::{
    HostTensor, adapter_shapes,
    hub::{AdapterFolder, ModelReference},
};
use graftwork_scheduler::{FusedSource, PlannedStage};
use graftwork_shared::{
    adapter::AdapterConfig,
    data::SplitManifest,
    diagnostic::Diagnostic,
    head::HeadOutput,
    recipe::{Method, trained_slot},
};

use super::{Estimate, Machine, Planned, Planning, check_draft, estimate, plan_with_spans, problems::Problems};
use crate::fixture::{TASK, World};

async fn plan(world: &World, tasks: &str) -> Result<Planned, Vec<Diagnostic>> {
    let (_, job, spans) = world.job(tasks);
    plan_with_spans(
        job,
        spans,
        Planning { cache: world.path("cache").into(), machine: None, uploads: None, nights: None },
    )
    .await
}

/// The message of the only problem, and the text of the job file that it points at.
async fn refused(world: &World, tasks: &str) -> (String, String, String) {
    let (text, ..) = world.job(tasks);
    let problems = plan(world, tasks).await.expect_err("the job has a problem");
    assert_eq!(problems.len(), 1, "{problems:#?}");
    let problem = problems.into_iter().next().unwrap();
    let place = problem.span.map(|span| text[span].to_owned()).unwrap_or_default();
    (problem.code, problem.message.replace(&world.path("").display().to_string(), "WORLD/"), place)
}

#[tokio::test]
async fn a_task_becomes_a_stage_with_everything_resolved() {
    let world = World::new();
    let planned = plan(&world, TASK).await.unwrap();
    let stage = &planned.plan.stages[0];
    assert_eq!(stage.recipe.head.output, HeadOutput::Classification { labels: vec!["bad".into(), "good".into()] });
    assert_eq!((stage.train.rows, stage.validation.rows, stage.test.as_ref().unwrap().rows), (4, 4, 4));
    assert_eq!(stage.total_steps, 4);
    // Down 8 × 4 + 4 and up 4 × 8 + 8, and the head's 8 × 8 + 8 and 8 × 2 + 2.
    assert_eq!(stage.trained_parameters, 36 + 40 + 72 + 18);
    assert_eq!(stage.recipe_digest, stage.recipe.digest());
    assert_eq!(stage.method, "seq_bn with reduction_factor 2");
    assert!(planned.estimate.memory_bytes > 0 && planned.estimate.seconds > 0.0);
}

#[tokio::test]
async fn recipes_do_not_know_places_or_names() {
    let (first, second) = (World::new(), World::new());
    let one = plan(&first, TASK).await.unwrap();
    let two = plan(&second, &TASK.replace("tasks.mood", "tasks.other")).await.unwrap();
    assert_eq!(one.plan.stages[0].recipe_digest, two.plan.stages[0].recipe_digest);
    assert_ne!(one.plan.digest, two.plan.digest);
}

#[tokio::test]
async fn a_fusion_names_the_recipes_of_its_adapters() {
    let world = World::new();
    let two = format!(
        "{TASK}{}[fusions.both]\nadapters = [\"other\", \"mood\"]\ntask = \"mood\"\n",
        TASK.replace("tasks.mood", "tasks.other")
    );
    let planned = plan(&world, &two).await.unwrap();
    let [mood, other, both] = &planned.plan.stages[..] else { panic!("three stages") };
    assert_eq!(both.needs, [other.name.clone(), mood.name.clone()]);
    let Method::Fusion { adapters, .. } = &both.recipe.method else { panic!("a fusion") };
    assert_eq!([adapters[0].origin, adapters[1].origin], [other.recipe_digest, mood.recipe_digest]);
    assert_eq!(both.recipe.head, mood.recipe.head);
    assert_eq!(both.task.as_ref(), Some(&mood.name));
}

/// A published adapter of the fixture's base model, in a folder.
fn adapter_in_a_folder(world: &World, hidden: usize) -> String {
    let trunk = graftwork_model::TrunkDescription::read(&world.path("base")).unwrap();
    let config = AdapterConfig::preset("seq_bn").unwrap();
    let mut tensors = BTreeMap::new();
    for (name, shape) in adapter_shapes(&config, &trunk, "sst@ukp").unwrap() {
        let count = shape.iter().product();
        tensors.insert(name, HostTensor { shape, values: vec![0.25; count] });
    }
    let mut model = ModelReference::of(&trunk, "tiny");
    model.hidden_size = u32::try_from(hidden).unwrap();
    let folder = AdapterFolder { name: "sst@ukp".to_owned(), model, config, tensors, head: None };
    let path = world.path("outside");
    graftwork_model::hub::write_folder(&path, &folder.files().unwrap()).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn an_adapter_from_a_folder_becomes_a_blob_under_a_stages_name() {
    let world = World::new();
    let folder = adapter_in_a_folder(&world, 8);
    let tasks = format!("{TASK}[fusions.both]\nadapters = [\"mood\", \"{folder}\"]\ntask = \"mood\"\n");
    let planned = plan(&world, &tasks).await.unwrap();
    let stage = &planned.plan.stages[1];
    let FusedSource::External { blob, name } = &stage.fused[1] else { panic!("from outside") };
    assert_eq!((name.as_str(), planned.blobs[0].0), ("sst@ukp", *blob));
    let tensors = graftwork_model::safetensors::read(&planned.blobs[0].1).unwrap();
    let slot = format!(".adapters.{}.", trained_slot());
    assert!(tensors.keys().all(|name| name.contains(&slot)), "{:?}", tensors.keys());
}

#[tokio::test]
async fn an_adapter_of_another_base_model_is_refused() {
    let world = World::new();
    let folder = adapter_in_a_folder(&world, 16);
    let tasks = format!("{TASK}[fusions.both]\nadapters = [\"mood\", \"{folder}\"]\ntask = \"mood\"\n");
    let (code, message, _) = refused(&world, &tasks).await;
    assert_eq!(code, "adapter");
    assert!(message.contains("hidden_size") && message.contains("the base model's is 8"), "{message}");
}

#[tokio::test]
async fn a_missing_column_lists_those_there_are() {
    let world = World::new();
    let (code, message, place) = refused(&world, &format!("{TASK}label = \"lable\"\n")).await;
    assert_eq!(code, "missing-column");
    assert!(message.contains("no label column \"lable\"; it has \"text\", \"label\""), "{message}");
    assert!(place.contains("lable"), "{place}");
}

#[tokio::test]
async fn a_head_that_does_not_fit_its_label_column_is_told_at_the_head() {
    let world = World::new();
    let (code, message, place) = refused(&world, &format!("{TASK}head = \"regression\"\n")).await;
    assert_eq!(code, "head-does-not-fit");
    assert!(message.contains("a regression needs"), "{message}");
    assert!(place.contains("regression"), "{place}");
}

#[tokio::test]
async fn a_label_outside_the_set_is_found_before_training() {
    let world = World::new();
    world.rows("validation.parquet", &["x", "y"], &["good", "mixed"]);
    let labels = "head = { kind = \"classification\", labels = [\"bad\", \"good\"] }\n";
    let (code, message, _) = refused(&world, &format!("{TASK}{labels}")).await;
    assert_eq!(code, "unknown-label");
    assert!(message.contains("validation rows have the label \"mixed\""), "{message}");
    assert!(message.contains("\"bad\", \"good\""), "{message}");
}

#[tokio::test]
async fn integers_are_class_ids_where_labels_are_words() {
    let world = World::new();
    for name in ["train", "validation", "test"] {
        world.numbers(&format!("{name}.parquet"), &[0, 1, 1, 0]);
    }
    let named = "label = \"class\"\nhead = { kind = \"classification\", labels = [\"ham\", \"spam\"] }\n";
    assert!(plan(&world, &format!("{TASK}{named}")).await.is_ok());
    world.numbers("test.parquet", &[0, 2]);
    let (code, message, _) = refused(&world, &format!("{TASK}{named}")).await;
    assert_eq!(code, "unknown-label");
    assert!(message.contains("test rows have the label \"2\""), "{message}");
}

#[tokio::test]
async fn a_metric_that_cannot_score_the_head_names_those_that_can() {
    let world = World::new();
    for name in ["train", "validation", "test"] {
        world.rows(&format!("{name}.parquet"), &["a", "b", "c"], &["x", "y", "z"]);
    }
    let problems = plan(&world, &format!("{TASK}metric = \"f1\"\n")).await.unwrap_err();
    assert_eq!(problems[0].message, "task mood: f1 cannot score a classification of 3 classes");
    assert!(problems[0].help.as_ref().unwrap().contains("accuracy, f1_macro"), "{problems:?}");
}

#[tokio::test]
async fn one_label_is_no_classification() {
    let world = World::new();
    for name in ["train", "validation", "test"] {
        world.rows(&format!("{name}.parquet"), &["a", "b"], &["x", "x"]);
    }
    let (code, message, _) = refused(&world, TASK).await;
    assert_eq!(code, "one-label");
    assert!(message.contains("only the label \"x\""), "{message}");
}

#[tokio::test]
async fn damaged_missing_and_empty_files_have_their_own_messages() {
    let world = World::new();
    let whole = std::fs::read(world.path("train.parquet")).unwrap();
    std::fs::write(world.path("train.parquet"), &whole[..whole.len() / 2]).unwrap();
    let (_, message, _) = refused(&world, TASK).await;
    assert!(message.contains("not a whole Parquet file"), "{message}");
    std::fs::remove_file(world.path("train.parquet")).unwrap();
    let (_, message, place) = refused(&world, TASK).await;
    assert!(message.contains("WORLD/train.parquet"), "{message}");
    assert!(place.contains("train.parquet"), "{place}");
    world.rows("train.parquet", &[], &[]);
    let (_, message, _) = refused(&world, TASK).await;
    assert!(message.contains("no rows") || message.contains("empty") || message.contains("0 rows"), "{message}");
}

#[tokio::test]
async fn a_base_model_is_checked_before_anything_is_trained() {
    let world = World::new();
    let config = std::fs::read_to_string(world.path("base/config.json")).unwrap();
    std::fs::write(world.path("base/config.json"), config.replace("\"bert\"", "\"t5\"")).unwrap();
    let (code, message, place) = refused(&world, TASK).await;
    assert_eq!(code, "base-model");
    assert!(message.contains("t5"), "{message}");
    assert!(place.contains("base"), "{place}");
    std::fs::write(world.path("base/config.json"), config).unwrap();
    let weights = std::fs::read(world.path("base/model.safetensors")).unwrap();
    std::fs::write(world.path("base/model.safetensors"), &weights[..100]).unwrap();
    let (_, message, _) = refused(&world, TASK).await;
    assert!(message.contains("model.safetensors"), "{message}");
}

#[tokio::test]
async fn a_tokenizer_that_is_missing_or_damaged_is_found_before_anything_is_trained() {
    let world = World::new();
    let path = world.path("base/tokenizer.json");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let (code, message, place) = refused(&world, TASK).await;
    assert_eq!((code.as_str(), place.as_str()), ("base-model", "\"base\""));
    assert!(message.starts_with("base model: WORLD/base/tokenizer.json is not a tokenizer: "), "{message}");
    std::fs::remove_file(&path).unwrap();
    let (code, message, place) = refused(&world, TASK).await;
    assert_eq!((code.as_str(), place.as_str()), ("base-model", "\"base\""));
    assert!(message.contains("tokenizer.json"), "{message}");
}

#[tokio::test]
async fn a_hub_that_is_a_file_is_refused() {
    let world = World::new();
    std::fs::write(world.path("hub"), "a note").unwrap();
    let (code, message, place) = refused(&world, TASK).await;
    assert_eq!((code.as_str(), place.as_str()), ("hub", "\"hub\""));
    assert_eq!(message, "results cannot go to the folder WORLD/hub: WORLD/hub is a file");
    let (_, mut job, spans) = world.job(TASK);
    job.publish.hub = world.path("hub/below").display().to_string();
    let planning = Planning { cache: world.path("cache").into(), machine: None, uploads: None, nights: None };
    assert_eq!(plan_with_spans(job, spans, planning).await.unwrap_err()[0].code, "hub");
}

#[tokio::test]
async fn a_hub_is_a_folder_or_one_of_the_nights_of_a_coordinator() {
    let world = World::new();
    let said = async |hub: &str, nights: Option<&str>| {
        let (_, mut job, spans) = world.job(TASK);
        job.publish.hub = hub.to_owned();
        let nights = nights.map(|folder| world.path(folder));
        let planning = Planning { cache: world.path("cache").into(), machine: None, uploads: None, nights };
        plan_with_spans(job, spans, planning).await.map_err(|problems| problems[0].message.clone())
    };
    for (hub, nights) in [("s3://bucket/hub", None), ("nights://mail/1", None), ("nights://../other", Some("nights"))] {
        assert_eq!(said(hub, nights).await.unwrap_err(), format!("results cannot go to {hub}: a hub is a folder"));
    }
    assert!(said("nights://mail/1", Some("nights")).await.is_ok());
}

#[tokio::test]
async fn dropping_the_adapters_of_all_layers_leaves_nothing_to_train() {
    let world = World::new();
    let drop = "training = { adapter_drop = { layers = [0] } }\n";
    let (code, message, place) = refused(&world, &format!("{TASK}{drop}")).await;
    assert_eq!((code.as_str(), place.as_str()), ("no-layer", "adapter_drop"));
    assert_eq!(message, "task mood: `adapter_drop` leaves no layer of 1 with an adapter, so nothing is left to train");
    let (code, message, place) = refused(&world, &format!("{TASK}adapter = {{ leave_out = [0] }}\n")).await;
    assert_eq!((code.as_str(), place.as_str()), ("no-layer", "[0]"), "{message}");
    let other = TASK.replace("tasks.mood", "tasks.other");
    let fusion = format!("[fusions.both]\nadapters = [\"mood\", \"other\"]\ntask = \"mood\"\n{drop}");
    let (code, message, _) = refused(&world, &format!("{TASK}{other}{fusion}")).await;
    assert_eq!(code, "no-layer");
    assert!(message.starts_with("fusion both: `adapter_drop` leaves no layer"), "{message}");
}

#[tokio::test]
async fn a_fusion_that_the_python_library_cannot_use_is_a_warning() {
    let world = World::new();
    let other = TASK.replace("tasks.mood", "tasks.other");
    let fusion = "[fusions.both]\nadapters = [\"mood\", \"other\"]\ntask = \"mood\"\n";
    world.base(2);
    assert!(plan(&world, &format!("{TASK}{other}{fusion}")).await.unwrap().warnings.is_empty());
    let one = format!("{TASK}{other}adapter = {{ leave_out = [0] }}\n{fusion}");
    assert!(plan(&world, &one).await.unwrap().warnings.is_empty(), "the other adapter can stand last");
    // Each leaves out a layer of the other.
    let each = format!("{TASK}adapter = {{ leave_out = [1] }}\n{other}adapter = {{ leave_out = [0] }}\n{fusion}");
    let (text, job, spans) = world.job(&each);
    let planning = Planning { cache: world.path("cache").into(), machine: None, uploads: None, nights: None };
    let planned = plan_with_spans(job, spans, planning).await.unwrap();
    let [warning] = &planned.warnings[..] else { panic!("{:?}", planned.warnings) };
    assert_eq!(
        (warning.code.as_str(), &text[warning.span.clone().unwrap()]),
        ("not-for-python", "[\"mood\", \"other\"]")
    );
    assert!(warning.message.contains("fusion both: AdapterHub's Python library"), "{}", warning.message);
}

#[tokio::test]
async fn options_that_only_the_base_model_can_judge_are_judged() {
    let world = World::new();
    let tasks = format!("{TASK}skip_layers = [3]\n[tasks.mood.training]\nmax_length = 64\n");
    let problems = plan(&world, &tasks).await.unwrap_err();
    let messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(problems.len(), 2, "{messages:?}");
    assert!(messages.contains(&"max_length is 64, but the base model reads at most 20 tokens"), "{messages:?}");
    assert!(messages.contains(&"layer 3 does not exist: the base model's layers are 0 to 0"), "{messages:?}");
}

#[tokio::test]
async fn all_problems_come_at_once_in_the_order_of_the_file() {
    let world = World::new();
    let tasks = format!(
        "{TASK}label = \"lable\"\n[tasks.other]\ntrain = \"nowhere.parquet\"\nvalidation = \"validation.parquet\"\n\
         [tasks.third]\ntrain = \"train.parquet\"\nvalidation = \"validation.parquet\"\nhead = \"regression\"\n"
    );
    let problems = plan(&world, &tasks).await.unwrap_err();
    assert_eq!(problems.len(), 3, "{problems:#?}");
    let starts: Vec<usize> = problems.iter().map(|problem| problem.span.clone().unwrap().start).collect();
    assert!(starts.is_sorted(), "{starts:?}");
}

/// Message and help of the only problem at a place of the job file.
fn told(problem: &Diagnostic) -> String {
    format!("{problem}\nhelp: {}", problem.help.as_deref().unwrap_or("none"))
}

#[tokio::test]
async fn too_little_memory_is_told_with_both_numbers() {
    let world = World::new();
    let (_, job, spans) = world.job(TASK);
    let machine = Machine { memory_bytes: 1 << 20, threads: 1, workers: 1, state: world.path("state") };
    let planning = Planning { cache: world.path("cache").into(), machine: Some(machine), uploads: None, nights: None };
    let of_task = spans.of(&format!("tasks.{}", job.tasks[0].name));
    let problems = plan_with_spans(job, spans, planning).await.unwrap_err();
    assert!(of_task.is_some() && problems[0].span == of_task, "{:?}", problems[0]);
    insta::assert_snapshot!(told(&problems[0]), @r"
    training is expected to need 129 MiB of memory, but 1 MiB are free [memory]
    help: use a smaller batch_size or max_length, fewer threads, or a machine with more memory
    ");
}

#[test]
fn too_little_disk_is_told_for_the_state_and_for_the_hub() {
    let world = World::new();
    let (_, job, spans) = world.job(TASK);
    let problems = Problems::new(&spans);
    let machine = Machine { memory_bytes: 1 << 40, threads: 1, workers: 1, state: world.path("") };
    let estimate = Estimate { disk_bytes: 1 << 60, ..Estimate::default() };
    estimate::check_machine(&estimate, &[], &machine, &job, &problems);
    let free = |text: String| {
        let (before, after) = text.split_once("but ").unwrap();
        format!("{before}but FREE{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
    };
    let told: Vec<String> = problems.into_list().iter().map(|problem| free(told(problem))).collect();
    let told = told.join("\n").replace(&world.path("").display().to_string(), "WORLD/");
    insta::assert_snapshot!(told, @r"
    training is expected to need 1099511627776 MiB of disk, but FREE MiB are free in WORLD/ [disk]
    help: free some space, or use another folder
    training is expected to need 1099511627776 MiB of disk, but FREE MiB are free in WORLD/hub [disk]
    help: free some space, or use another folder
    ");
}

#[tokio::test]
async fn rows_that_no_validation_was_cut_from_cannot_choose_weights() {
    let world = World::new();
    let (_, mut job, spans) = world.job(TASK);
    job.tasks[0].data.validation = None;
    let problems = plan_with_spans(
        job,
        spans,
        Planning { cache: world.path("cache").into(), machine: None, uploads: None, nights: None },
    )
    .await
    .unwrap_err();
    assert_eq!(problems[0].code, "no-validation");
}

#[tokio::test]
async fn a_secret_is_named_for_one_place_alone() {
    let world = World::new();
    let planning = || Planning { cache: world.path("cache").into(), machine: None, uploads: None, nights: None };
    let (_, mut job, spans) = world.job(TASK);
    let plain = plan_with_spans(job.clone(), spans.clone(), planning()).await.unwrap();
    // Variables that every environment has.
    job.base_model.credentials = Some("PATH".to_owned());
    let planned = plan_with_spans(job.clone(), spans.clone(), planning()).await.unwrap();
    let stage = &planned.plan.stages[0];
    assert_eq!((stage.data_credentials.as_deref(), stage.base_model_credentials.as_deref()), (None, Some("PATH")));
    job.base_model.credentials = None;
    job.tasks[0].data.credentials = Some("PATH".to_owned());
    let planned = plan_with_spans(job, spans, planning()).await.unwrap();
    let stage = &planned.plan.stages[0];
    assert_eq!((stage.data_credentials.as_deref(), stage.base_model_credentials.as_deref()), (Some("PATH"), None));
    assert_eq!(stage.recipe_digest, plain.plan.stages[0].recipe_digest);
}

/// Many rows in one file, of which a rule makes three splits.
fn divided(world: &World, options: &str) -> String {
    let texts: Vec<String> = (0..600).map(|row| format!("group {}", row / 20)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let labels: Vec<&str> = (0..600).map(|row| if row % 3 == 0 { "good" } else { "bad" }).collect();
    world.rows("all.parquet", &texts, &labels);
    format!("[tasks.mood]\ntrain = \"all.parquet\"\n{options}\n")
}

#[tokio::test]
async fn the_first_training_rows_are_counted_after_the_split() {
    let world = World::new();
    for split in ["split = { validation = 0.1, test = 0.1 }", "split = { test = 0.2, group_by = \"text\" }"] {
        let whole = plan(&world, &divided(&world, split)).await.unwrap();
        let limited = plan(&world, &divided(&world, &format!("{split}\nrows = 123"))).await.unwrap();
        let [whole, limited] = [&whole.plan.stages[0], &limited.plan.stages[0]];
        assert_eq!(limited.train.rows, 123, "{split}");
        assert_eq!(limited.total_steps, 124, "two epochs of 62 updates of two rows");
        let held_out =
            |stage: &PlannedStage| (stage.validation.content(), stage.test.as_ref().map(SplitManifest::content));
        assert_eq!(held_out(limited), held_out(whole));
        // More than there are is all of them.
        let all = plan(&world, &divided(&world, &format!("{split}\nrows = 599"))).await.unwrap();
        assert_eq!(all.plan.stages[0].train.content(), whole.train.content());
    }
}

#[tokio::test]
async fn a_warm_up_is_held_against_the_rows_there_are() {
    let world = World::new();
    let tasks = format!("{TASK}[tasks.mood.training]\nwarmup_steps = 4\n");
    let (code, message, place) = refused(&world, &tasks).await;
    assert_eq!((code.as_str(), place.as_str()), ("warmup-too-long", "4"));
    assert_eq!(message, "warm-up of 4 updates leaves nothing of a training of 4 over 4 rows");
    assert!(plan(&world, &tasks.replace('4', "3")).await.is_ok());
}

#[tokio::test]
async fn every_missing_column_is_named_once() {
    let world = World::new();
    let problems = plan(&world, &format!("{TASK}text = [\"one\", \"two\"]\nlabel = \"lable\"\n")).await.unwrap_err();
    let messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(problems.len(), 3, "{messages:#?}");
    for column in ["text column \"one\"", "text column \"two\"", "label column \"lable\""] {
        assert!(messages.iter().any(|message| message.contains(column)), "{column} is missing in {messages:#?}");
    }
}

#[tokio::test]
async fn two_adapters_that_are_not_there_are_two_problems() {
    let world = World::new();
    let tasks = format!("{TASK}[fusions.both]\nadapters = [\"./nowhere\", \"./neither\"]\ntask = \"mood\"\n");
    let problems = plan(&world, &tasks).await.unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:#?}");
}

/// What is wrong with the data of a job file that has errors of its own.
async fn data_problems(world: &World, tasks: &str) -> Vec<String> {
    let (_, parsed) = world.parse(tasks);
    assert!(parsed.job.is_none(), "the file has an error");
    let draft = parsed.draft.expect("every name can be read");
    let problems = check_draft(&draft, &parsed.spans, &parsed.diagnostics, &world.path("cache")).await;
    problems.into_iter().map(|problem| problem.code).collect()
}

#[tokio::test]
async fn an_error_in_the_file_hides_no_data_that_it_does_not_concern() {
    let world = World::new();
    let other = "[tasks.other]\ntrain = \"nowhere.parquet\"\nvalidation = \"validation.parquet\"\n";
    // A misspelt key of one task: what it was meant to say is not known, so its own rows are not judged.
    let misspelt = "[tasks.mood]\ntrain = \"train.parquet\"\nvalidation = \"gone.parquet\"\nlable = \"x\"\n";
    assert_eq!(data_problems(&world, &format!("{misspelt}{other}")).await, ["data"]);
    // A value of its training says nothing about its rows.
    let training = format!("{other}[tasks.other.training]\nepochs = 0\n");
    assert_eq!(data_problems(&world, &training).await, ["data"]);
    // A misspelt default of another kind says nothing about anybody's rows.
    assert_eq!(data_problems(&world, &format!("reduction_facto = 3\n{other}")).await, ["data"]);
    // An adapter from outside is looked for beside errors of tasks.
    let fused = format!("{training}[fusions.both]\nadapters = [\"other\", \"./nowhere\"]\ntask = \"other\"\n");
    let mut problems = data_problems(&world, &fused).await;
    problems.sort();
    assert_eq!(problems, ["adapter", "data"]);
    std::fs::remove_dir_all(world.path("base")).unwrap();
    assert_eq!(data_problems(&world, &training).await, ["base-model", "data"]);
}
