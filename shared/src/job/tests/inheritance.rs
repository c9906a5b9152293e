//! Defaults, inheritance, and the places that later checks point with.

use super::{BASE, codes, job, parsed};
use crate::{
    adapter::{AdapterConfig, InitWeights, ReductionFactor, Scaling, TrainedScaling},
    data::TextColumns,
    head::HeadActivation,
    job::{AdapterRef, HeadKind},
    metric::Metric,
    training::{AdapterDrop, EarlyStopping, Interval, Length, Training, Warmup},
};

#[test]
fn a_short_job_has_every_default_written_out() {
    let job = job(BASE);
    let spam = &job.tasks[0];
    assert_eq!((job.name.as_str(), job.owner.as_str(), job.priority), ("job", "local", 0));
    assert_eq!((job.base_model.location.as_str(), job.publish.hub.as_str()), ("/jobs/model", "/jobs/hub"));
    assert_eq!((spam.name.as_str(), spam.publish_as.as_str()), ("spam", "spam"));
    assert_eq!(spam.data.train, ["/jobs/spam.parquet"]);
    assert_eq!(spam.data.columns.text, TextColumns::One("text".to_owned()));
    assert_eq!((spam.head.kind, spam.head.layers, spam.metric), (HeadKind::Classification, 2, None));
    assert_eq!(spam.training, Training::default());
    assert_eq!(Some(spam.adapter.clone()), AdapterConfig::preset("seq_bn"));
}

#[test]
fn a_task_inherits_key_by_key() {
    let job = job(&format!(
        r#"{BASE}
head = {{ layers = 3 }}
[tasks.spam.training]
steps = 100
warmup_steps = 5
[defaults.training]
epochs = 5
warmup = 0.1
learning_rate = 1e-3
batch_size = 8
clip_norm = 0.5
[defaults.head]
kind = "regression"
activation = "relu"
[fusions.two]
adapters = ["spam", "tone"]
task = "tone"
training = {{ clip_norm = "off" }}
"#
    ));
    let (spam, tone, two) = (&job.tasks[0].training, &job.tasks[1].training, &job.fusions[0].training);
    assert_eq!((spam.length, spam.warmup, spam.batch_size), (Length::Steps(100), Warmup::Steps(5), 8));
    assert_eq!((tone.length, tone.warmup, tone.clip_norm), (Length::Epochs(5), Warmup::Fraction(0.1), Some(0.5)));
    assert_eq!((two.length, two.clip_norm), (Length::Epochs(5), None));
    let head = &job.tasks[1].head;
    assert_eq!((head.kind, head.layers, head.activation), (HeadKind::Regression, 3, HeadActivation::Relu));
}

#[test]
fn options_of_another_method_are_not_inherited() {
    let text = |method: &str| {
        format!(
            "{BASE}[tasks.spam.adapter]\n{method}[defaults.adapter]\nmethod = \"lora\"\nr = 4\ninit_weights = \"bert\"\n"
        )
    };
    let spam = |method: &str| job(&text(method)).tasks[0].adapter.clone();
    assert_eq!(Some(spam("method = \"seq_bn\"\n")), AdapterConfig::preset("seq_bn"));
    for same in ["", "method = \"lora\"\n"] {
        let AdapterConfig::Lora(lora) = spam(same) else { panic!() };
        assert_eq!((lora.r, lora.init_weights), (4, InitWeights::Bert));
    }
}

#[test]
fn every_form_of_an_option_is_read() {
    let job = job(&format!(
        r#"{BASE}
text = ["question", "answer"]
metric = "matthews"
rows = 50
[tasks.tone.adapter]
reduction_factor = {{ 0 = 8, default = 32.5 }}
scaling = "channel"
[tasks.tone.training]
lanes = 4
betas = [0.8, 0.9]
evaluate_every = 20
early_stopping = {{ patience = 2, min_delta = 0.01 }}
adapter_drop = {{ layers = [1, 0] }}
[tasks.spam.training]
batch_size = 1
early_stopping = "off"
adapter_drop = {{ up_to = 3 }}
"#
    ));
    let (spam, tone) = (&job.tasks[0], &job.tasks[1]);
    let AdapterConfig::Bottleneck(adapter) = &tone.adapter else { panic!() };
    let factors = [("0".to_owned(), 8.0), ("default".to_owned(), 32.5)];
    assert_eq!(adapter.reduction_factor, ReductionFactor::Layers(factors.into()));
    assert_eq!(adapter.scaling, Scaling::Trained(TrainedScaling::Channel));
    assert_eq!(tone.data.columns.text, TextColumns::Pair("question".to_owned(), "answer".to_owned()));
    assert_eq!((tone.metric, tone.data.rows), (Some(Metric::Matthews), Some(50)));
    let training = &tone.training;
    assert_eq!((training.lanes, training.betas, training.evaluate_every), (4, [0.8, 0.9], Interval::Steps(20)));
    assert_eq!(training.early_stopping, Some(EarlyStopping { patience: 2, min_delta: 0.01 }));
    assert_eq!(training.adapter_drop, AdapterDrop::Layers(vec![0, 1]));
    assert_eq!(spam.training.adapter_drop, AdapterDrop::DrawnUpTo(3));
    assert_eq!((spam.training.lanes, spam.training.early_stopping), (1, None), "a batch of one has one lane");
}

#[test]
fn a_split_may_leave_the_test_rows_to_files() {
    let text = BASE
        .replace("validation = \"spam-validation.parquet\"", "split = { group_by = \"movie\" }\ntest = \"t.parquet\"");
    let split = job(&text).tasks[0].data.split.clone().unwrap();
    assert_eq!((split.validation, split.test, split.seed), (0.1, 0.0, 1));
    assert_eq!(split.group_by.as_deref(), Some("movie"));
    let text = BASE.replace("validation = \"spam-validation.parquet\"", "split = {}");
    assert!((job(&text).tasks[0].data.split.clone().unwrap().test - 0.1).abs() < 1e-12);
}

#[test]
fn a_fusion_reads_tasks_folders_and_hubs() {
    let job = job(&format!(
        "{BASE}[fusions.all]\nadapters = [\"tone\", \"../old/adapter/\", \"hf://org/name@v1\"]\ntask = \"spam\"\n"
    ));
    let expected = [
        AdapterRef::Task("tone".parse().unwrap()),
        AdapterRef::Folder("/old/adapter".to_owned()),
        AdapterRef::Hub("hf://org/name@v1".to_owned()),
    ];
    assert_eq!(job.fusions[0].adapters, expected);
}

#[test]
fn later_checks_find_the_place_of_a_value_even_when_it_is_inherited() {
    let text = format!("{BASE}head = \"regression\"\n[defaults.training]\nmax_length = 512\n");
    let spans = parsed(&text).spans;
    let at = |path: &str| spans.of(path).map(|span| &text[span]);
    assert_eq!(at("tasks.spam.training.max_length"), Some("512"));
    assert_eq!(at("tasks.spam.train"), Some("\"spam.parquet\""));
    assert_eq!(at("tasks.tone.head.labels"), Some("\"regression\""));
    assert_eq!(at("tasks.spam.data.nothing"), Some("spam"), "the nearest table around it");
    assert_eq!(at("base_model.location"), Some("\"model\""));
    assert_eq!(at("publish.hub"), None);
}

#[test]
fn tasks_keep_the_order_of_the_file() {
    let names: Vec<_> = job(BASE).tasks.iter().map(|task| task.name.to_string()).collect();
    assert_eq!(names, ["spam", "tone"]);
    assert_eq!(codes(BASE), [""; 0]);
}

#[test]
fn the_shortest_job_of_the_reference_is_a_job() {
    let page = crate::job::reference_markdown();
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(codes(example), [""; 0]);
    assert_eq!(job(example).tasks.len(), 1);
}

#[test]
fn layers_that_training_drops_for_good_are_left_out_of_the_adapter() {
    let job = job(&format!(
        "{BASE}\nskip_layers = [2]\n[tasks.spam.training]\nadapter_drop = {{ layers = [4, 0] }}\n[tasks.spam.adapter]\n\
         leave_out = [1]\n[tasks.tone.training]\nadapter_drop = {{ up_to = 2 }}\n"
    ));
    assert_eq!(job.tasks[0].adapter.leave_out(), [0, 1, 4]);
    assert!(job.tasks[1].adapter.leave_out().is_empty(), "drawn layers have adapters");
    assert!(job.tasks[0].adapter.leaves_out("roberta.encoder.layer.4.output.adapters.spam.adapter_up.bias"));
    assert!(!job.tasks[0].adapter.leaves_out("roberta.encoder.layer.14.output.adapters.spam.adapter_up.bias"));
    assert!(!job.tasks[0].adapter.leaves_out("heads.spam.4.bias"));
}
