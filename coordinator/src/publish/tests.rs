//! Releases are functions of results, can be read back, and give the result again.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use graftwork_model::{
    HostTensor, Tensors, TrunkDescription, adapter_shapes, fusion_shapes, head_shapes,
    hub::{AdapterFolder, SetupFolder},
    safetensors,
};
use graftwork_shared::{
    assignment::{Evaluation, StageResult, Usage},
    data::{Origin, Split},
    digest::Digest,
    id::Name,
    metric::Metric,
    recipe::{Method, NumericClass, trained_slot},
    record::Record,
    sweep::{Halving, RungScore, SweepRecord, TrialRecord},
};
use graftwork_store::{Hub, RECORD_FILE};
use serde_json::json;
use tokio::runtime::Handle;

use super::{PublishError, PublisherDoor, holds, rows};
use crate::{
    fixture::{TASK, World},
    planner::{Planned, Planning, plan_with_spans},
    server::{BlobStore, Publication, Publisher as _, StageOfPlan},
};

fn publish(publication: &Publication, trunk: &TrunkDescription) -> Result<String, PublishError> {
    publish_for(publication, trunk, false)
}

fn publish_for(publication: &Publication, trunk: &TrunkDescription, by_owner: bool) -> Result<String, PublishError> {
    super::publish(publication, trunk, (&publication.stage.plan.job.publish.hub, by_owner))
}

fn class() -> NumericClass {
    let text = |s: &str| s.to_owned();
    NumericClass { device: text("cpu"), instructions: text("avx2"), libtorch: text("2.11.0"), vendor: text("x") }
}

struct Trained {
    world: World,
    planned: Planned,
    trunk: TrunkDescription,
    blobs: BlobStore,
    results: BTreeMap<Name, StageResult>,
}

/// A job whose stages all have results: what workers would have uploaded.
async fn trained() -> Trained {
    let world = World::new();
    let tasks = format!(
        "{TASK}expect = 0.5\n{}publish_as = \"renamed\"\n[fusions.both]\nadapters = [\"other\", \"mood\"]\ntask = \"mood\"\n",
        TASK.replace("tasks.mood", "tasks.other")
    );
    let (_, job, spans) = world.job(&tasks);
    let planned = plan_with_spans(
        job,
        spans,
        Planning { cache: world.path("cache").into(), machine: None, uploads: None, nights: None },
    )
    .await
    .unwrap();
    let trunk = TrunkDescription::read(&world.path("base")).unwrap();
    let blobs = BlobStore::open(&world.path("state")).unwrap();
    let mut results = BTreeMap::new();
    for (number, stage) in planned.plan.stages.iter().enumerate() {
        let slot = trained_slot();
        let mut shapes = match &stage.recipe.method {
            Method::Adapter(config) => adapter_shapes(config, &trunk, slot.as_str()).unwrap(),
            Method::Fusion { config, adapters } => {
                let configs: Vec<_> = adapters.iter().map(|adapter| &adapter.config).collect();
                fusion_shapes(config, &configs, &trunk, slot.as_str()).unwrap()
            }
        };
        shapes.extend(head_shapes(&stage.recipe.head, &trunk, slot.as_str()).unwrap());
        let tensors: Tensors = shapes
            .into_iter()
            .map(|(name, shape)| {
                let count = shape.iter().product();
                (name, HostTensor { shape, values: vec![number as f32 + 0.5; count] })
            })
            .collect();
        let weights = blobs.put(&safetensors::write(&tensors, &BTreeMap::new())).unwrap();
        let predictions = blobs.put(b"{\"row\":0,\"label\":1,\"prediction\":1}\n").unwrap();
        let (of, runtime) = (stage.clone(), Handle::current());
        let data = tokio::task::spawn_blocking(move || rows::digests(&of, 4, &runtime)).await.unwrap().unwrap();
        let evaluation = Evaluation { step: 4, loss: 0.25, metrics: BTreeMap::from([(Metric::Accuracy, 0.75)]) };
        results.insert(
            stage.name.clone(),
            StageResult {
                weights,
                steps: 4,
                best_step: 4,
                validation: vec![evaluation.clone()],
                scores: BTreeMap::from([(Split::Validation, evaluation.clone()), (Split::Test, evaluation)]),
                predictions: BTreeMap::from([(Split::Test, predictions)]),
                data,
                epochs: vec![Digest::of(b"first"), Digest::of(b"second")],
                attention: Vec::new(),
                trained_parameters: stage.trained_parameters,
                numeric_class: class(),
                usage: Usage { core_seconds: 3.0, ..Usage::default() },
                peak: None,
            },
        );
    }
    Trained { world, planned, trunk, blobs, results }
}

impl Trained {
    fn stage(&self, name: &str) -> StageOfPlan {
        StageOfPlan {
            plan: Arc::new(self.planned.plan.clone()),
            name: name.parse().unwrap(),
            blobs: self.blobs.clone(),
        }
    }

    fn publication(&self, name: &str) -> Publication {
        let stage = self.stage(name);
        let needed = stage.stage().needs.iter().map(|name| (name.clone(), self.results[name].clone())).collect();
        let result = self.results[&stage.name].clone();
        Publication { stage, result, needed, sweep: None }
    }

    fn folder(&self, name: &str) -> std::path::PathBuf {
        self.world.path("hub").join("lab").join(name)
    }
}

#[tokio::test]
async fn an_adapter_is_read_back_under_the_users_name() {
    let trained = trained().await;
    let path = publish(&trained.publication("other"), &trained.trunk).unwrap();
    assert_eq!(path, trained.folder("renamed").display().to_string());
    let adapter = AdapterFolder::read(&trained.folder("renamed")).unwrap();
    assert_eq!((adapter.name.as_str(), adapter.head.as_ref().unwrap().name.as_str()), ("renamed", "renamed"));
    adapter.check(&trained.trunk).unwrap();
    let both = ["pytorch_adapter.bin", "pytorch_model_head.bin", "predictions/test.jsonl", "README.md"];
    assert!(both.iter().all(|file| trained.folder("renamed").join(file).is_file()));
}

#[tokio::test]
async fn a_fusion_is_read_back_with_its_adapters() {
    let trained = trained().await;
    publish(&trained.publication("both"), &trained.trunk).unwrap();
    let setup = SetupFolder::read(&trained.folder("both")).unwrap();
    assert_eq!(setup.composition.to_string(), "Fuse[renamed, mood]");
    assert_eq!(setup.fusions[0].name, "renamed,mood");
    assert!(
        (setup.adapters[1].tensors.values().next().unwrap().values[0] - 0.5).abs() < 1e-9,
        "mood is the job's first task"
    );
    let head = setup.fusions[0].head.as_ref().or(setup.heads.first()).unwrap();
    assert_eq!(head.name, "both");
}

#[tokio::test]
async fn the_record_binds_every_other_file() {
    let trained = trained().await;
    publish(&trained.publication("both"), &trained.trunk).unwrap();
    let folder = trained.folder("both");
    let record: Record = serde_json::from_slice(&std::fs::read(folder.join(RECORD_FILE)).unwrap()).unwrap();
    assert_eq!(Hub::verify(&folder).unwrap(), record);
    assert!(record.files.contains_key("README.md") && !record.files.contains_key(RECORD_FILE));
    assert_eq!(record.job.tasks.len(), 2, "a fusion needs its tasks");
    std::fs::write(folder.join("README.md"), "changed").unwrap();
    assert!(Hub::verify(&folder).unwrap_err().to_string().contains("README.md"));
}

#[tokio::test]
async fn a_record_whose_recipe_is_not_that_of_its_digest_is_refused() {
    let trained = trained().await;
    publish(&trained.publication("mood"), &trained.trunk).unwrap();
    let folder = trained.folder("mood");
    let record: Record = serde_json::from_slice(&std::fs::read(folder.join(RECORD_FILE)).unwrap()).unwrap();
    let write = |record: &Record| {
        std::fs::write(folder.join(RECORD_FILE), serde_json::to_vec(record).unwrap()).unwrap();
        Hub::verify(&folder)
    };
    assert_eq!(write(&record).unwrap(), record);
    let mut other_recipe = record.clone();
    other_recipe.recipe.training.seed += 1;
    let other_digest = Record { recipe_digest: Digest::of(b"another"), ..record };
    for changed in [other_recipe, other_digest] {
        let error = write(&changed).unwrap_err().to_string();
        assert!(error.contains("graftwork.json: its recipe has the digest "), "{error}");
        assert!(error.contains(&format!("but its recipe_digest is {}", changed.recipe_digest.short())), "{error}");
    }
}

#[tokio::test]
async fn published_bytes_know_no_clock_no_rate_and_no_neighbour() {
    let trained = trained().await;
    let first = publish(&trained.publication("mood"), &trained.trunk).unwrap();
    let digest = |path: &str| Digest::of(&std::fs::read(Path::new(path).join(RECORD_FILE)).unwrap());
    let before = digest(&first);
    let mut other = trained.publication("mood");
    other.result.usage = Usage { core_seconds: 99.0, wall_seconds: 7.0, ..Usage::default() };
    let mut plan = (*other.stage.plan).clone();
    plan.job.resources.workers = 5;
    plan.job.priority = 9;
    plan.job.tasks.pop();
    plan.job.fusions.clear();
    for file in &mut plan.stages[0].train.files {
        file.version = "another time".to_owned();
    }
    other.stage.plan = Arc::new(plan);
    publish(&other, &trained.trunk).unwrap();
    assert_eq!(digest(&first), before, "the record, and with it the release, is the same");
}

#[tokio::test]
async fn a_copied_organisation_can_be_loaded_and_verified() {
    let trained = trained().await;
    for name in ["mood", "both"] {
        publish(&trained.publication(name), &trained.trunk).unwrap();
    }
    let places = [trained.world.path("hub/lab"), trained.world.path("copy")];
    assert!(std::process::Command::new("cp").arg("-r").args(places).status().unwrap().success());
    std::fs::remove_dir_all(trained.world.path("hub")).unwrap();
    AdapterFolder::read(&trained.world.path("copy/mood")).unwrap().check(&trained.trunk).unwrap();
    assert_eq!(SetupFolder::read(&trained.world.path("copy/both")).unwrap().adapters.len(), 2);
    for name in ["mood", "both"] {
        Hub::verify(&trained.world.path("copy").join(name)).unwrap();
    }
}

#[tokio::test]
async fn a_result_comes_back_out_of_its_release() {
    let trained = trained().await;
    let door = PublisherDoor { cache: trained.world.path("cache").into(), reuse: true, by_owner: false, nights: None };
    for name in ["mood", "both"] {
        assert_eq!(door.reusable(trained.stage(name), vec![class()]).await, None, "nothing is published yet");
        publish(&trained.publication(name), &trained.trunk).unwrap();
        let found = door.reusable(trained.stage(name), vec![class()]).await.unwrap();
        let expected = StageResult { usage: Usage::default(), ..trained.results[&name.parse().unwrap()].clone() };
        assert_eq!(found, expected);
        let elsewhere = NumericClass { vendor: "y".to_owned(), ..class() };
        assert_eq!(door.reusable(trained.stage(name), vec![elsewhere]).await, None);
    }
    let never = PublisherDoor { reuse: false, ..door };
    assert_eq!(never.reusable(trained.stage("mood"), vec![class()]).await, None);
}

#[tokio::test]
async fn a_release_is_held_only_while_it_is_whole_and_of_this_recipe() {
    let trained = trained().await;
    let path = publish(&trained.publication("mood"), &trained.trunk).unwrap();
    let folder = std::path::Path::new(&path);
    assert!(holds(&trained.stage("mood"), folder));
    assert!(!holds(&trained.stage("both"), folder));
    std::fs::remove_file(folder.join("adapter.safetensors")).unwrap();
    assert!(!holds(&trained.stage("mood"), folder));
}

/// Writes other letters of the same length into a file: neither its size nor its footer tells.
fn edit(path: &Path, before: &[u8], after: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(before.len()).position(|window| window == before).unwrap();
    bytes[at..at + after.len()].copy_from_slice(after);
    std::fs::write(path, bytes).unwrap();
}

impl Trained {
    /// The same job planned again over the files as they are now.
    async fn plan_again(&mut self) {
        let planning = Planning { cache: self.world.path("cache").into(), machine: None, uploads: None, nights: None };
        let job = self.planned.plan.job.clone();
        self.planned = plan_with_spans(job, graftwork_shared::job::Spans::default(), planning).await.unwrap();
    }
}

#[tokio::test]
async fn an_edit_that_no_footer_shows_is_no_earlier_result() {
    let mut trained = trained().await;
    let door = PublisherDoor { cache: trained.world.path("cache").into(), reuse: true, by_owner: false, nights: None };
    let names = ["mood", "other", "both"];
    for name in names {
        publish(&trained.publication(name), &trained.trunk).unwrap();
    }
    let recipes = |trained: &Trained| trained.planned.plan.stages.iter().map(|s| s.recipe_digest).collect::<Vec<_>>();
    let before = recipes(&trained);
    // Written again with the same bytes: another time, the same data.
    let path = trained.world.path("test.parquet");
    std::fs::write(&path, std::fs::read(&path).unwrap()).unwrap();
    trained.plan_again().await;
    for name in names {
        assert!(door.reusable(trained.stage(name), vec![class()]).await.is_some(), "{name}");
    }
    edit(&path, b"poor book", b"pure book");
    trained.plan_again().await;
    assert_eq!(recipes(&trained), before, "planning sees no difference");
    for name in names {
        assert_eq!(door.reusable(trained.stage(name), vec![class()]).await, None, "{name}");
    }
}

#[tokio::test]
async fn places_enter_the_record_and_no_other_file() {
    let mut trees = Vec::new();
    for trained in [trained().await, trained().await] {
        for name in ["mood", "both"] {
            publish(&trained.publication(name), &trained.trunk).unwrap();
            let record = Hub::verify(&trained.folder(name)).unwrap();
            assert!(record.job.base_model.location.starts_with(trained.world.path("").to_str().unwrap()));
            trees.push(record.files);
        }
    }
    assert_eq!(trees[..2], trees[2..], "the record lists the digest of every other file");
}

#[tokio::test]
async fn a_result_with_a_missing_tensor_is_not_published() {
    let trained = trained().await;
    let mut publication = trained.publication("mood");
    let bytes = trained.blobs.read(publication.result.weights).unwrap();
    let mut tensors = safetensors::read(&bytes).unwrap();
    let name = tensors.keys().next().unwrap().clone();
    tensors.remove(&name);
    publication.result.weights = trained.blobs.put(&safetensors::write(&tensors, &BTreeMap::new())).unwrap();
    let error = publish(&publication, &trained.trunk).unwrap_err().to_string();
    assert!(error.contains("no tensor"), "{error}");
    assert!(!trained.folder("mood").exists());
}

#[tokio::test]
async fn the_card_says_how_to_load_and_what_was_measured() {
    let trained = trained().await;
    publish(&trained.publication("mood"), &trained.trunk).unwrap();
    let card = std::fs::read_to_string(trained.folder("mood").join("README.md")).unwrap();
    for part in ["adapter-transformers", "load_adapter(", "graftwork predict", "0.7500", "| seed |"] {
        assert!(card.contains(part), "{part} is missing in\n{card}");
    }
}

/// A rate of two, of which the second was published.
fn swept(asynchronous: bool) -> SweepRecord {
    let trial = |rate: f64, scores: &[f64]| TrialRecord {
        values: BTreeMap::from([("training.learning_rate".to_owned(), json!(rate))]),
        recipe: Digest::of(&rate.to_le_bytes()),
        scores: (0..)
            .zip(scores)
            .map(|(rung, score)| RungScore::new(rung, 2 * u64::from(rung + 1), Some(*score)))
            .collect(),
        failed: None,
    };
    let trials = vec![trial(0.1, &[0.25]), trial(0.01, &[0.5, 0.75])];
    SweepRecord {
        trial: 2,
        values: trials[1].values.clone(),
        asynchronous,
        halving: Some(Halving { factor: 2, first: 0.5, asynchronous }),
        combinations: 2,
        rungs: vec![2, 4],
        trials,
    }
}

#[tokio::test]
async fn a_sweep_is_in_the_card_and_marked_where_timing_had_a_part_in_it() {
    let trained = trained().await;
    let timed = "Trials were halved asynchronously, so which of them went on depended on timing.";
    for asynchronous in [false, true] {
        let mut publication = trained.publication("mood");
        publication.sweep = Some(swept(asynchronous));
        publish(&publication, &trained.trunk).unwrap();
        let record = Hub::verify(&trained.folder("mood")).unwrap();
        assert_eq!(record.sweep, publication.sweep);
        let card = std::fs::read_to_string(trained.folder("mood").join("README.md")).unwrap();
        assert!(card.contains("Trial 2 of 2 trials, the best by accuracy on validation rows."), "{card}");
        assert!(card.contains("| trial | values | at step 2 | at step 4 |"), "{card}");
        assert_eq!(card.contains(timed), asynchronous, "{card}");
    }
}

#[tokio::test]
async fn source_and_licence_of_rows_are_published_and_decide_nothing() {
    let trained = trained().await;
    let mut publication = trained.publication("both");
    let read = |publication: &Publication| {
        publish(publication, &trained.trunk).unwrap();
        let record = Hub::verify(&trained.folder("both")).unwrap();
        (record, std::fs::read_to_string(trained.folder("both").join("README.md")).unwrap())
    };
    let (silent, card) = read(&publication);
    for task in ["mood", "other"] {
        assert!(card.contains(&format!("| `{task}` | not stated | not stated |")), "{card}");
    }
    let origin = Origin { source: Some("films | books, by Ada".to_owned()), license: Some("cc-by-4.0".to_owned()) };
    let mut plan = (*publication.stage.plan).clone();
    let mood = plan.job.tasks.iter().position(|task| task.name.as_str() == "mood").unwrap();
    plan.job.tasks[mood].origin = origin.clone();
    publication.stage.plan = Arc::new(plan);
    let (said, card) = read(&publication);
    assert!(card.contains("| `mood` | films \\| books, by Ada | cc-by-4.0 |"), "{card}");
    assert!(card.contains("| `other` | not stated | not stated |"), "{card}");
    assert_eq!(said.job.tasks[mood].origin, origin);
    // Nothing that was trained is another thing, and the earlier result is found.
    assert_eq!(said.recipe_digest, silent.recipe_digest);
    let others = |record: &Record| {
        let files = record.files.iter().filter(|(path, _)| *path != "README.md");
        files.map(|(path, digest)| (path.clone(), *digest)).collect::<Vec<_>>()
    };
    assert_eq!(others(&said), others(&silent));
    let door = PublisherDoor { cache: trained.world.path("cache").into(), reuse: true, by_owner: false, nights: None };
    assert!(door.reusable(trained.stage("both"), vec![class()]).await.is_some());
}

#[tokio::test]
async fn what_is_said_of_rows_changes_the_job_and_no_recipe() {
    let world = World::new();
    let mut found = Vec::new();
    for said in ["", "origin = { source = \"Ada\", license = \"cc0-1.0\" }\n"] {
        let (_, job, spans) = world.job(&format!("{TASK}{said}"));
        let digest = job.digest();
        let planning = Planning { cache: world.path("cache").into(), machine: None, uploads: None, nights: None };
        let planned = plan_with_spans(job, spans, planning).await.unwrap();
        found.push((digest, planned.plan.stages[0].recipe_digest));
    }
    assert_ne!(found[0].0, found[1].0, "its card is another one, so it is published again");
    assert_eq!(found[0].1, found[1].1);
}

#[test]
fn the_hub_of_a_night_lies_in_the_folder_of_whoever_publishes() {
    let folder = |hub: &str| super::hub_folder(hub, Some(Path::new("/var/own/histories")));
    assert_eq!(folder("nights://mail/tonight/hub/000001-a"), "/var/own/histories/mail/tonight/hub/000001-a");
    assert_eq!(folder("/srv/hub"), "/srv/hub");
    assert_eq!(folder("nights://../hub"), "nights://../hub", "which no hub is opened by");
}

#[tokio::test]
async fn a_name_that_another_owner_published_stays_its() {
    let trained = trained().await;
    let mut publication = trained.publication("mood");
    publish_for(&publication, &trained.trunk, true).unwrap();
    publish_for(&publication, &trained.trunk, true).unwrap();
    let mut plan = (*publication.stage.plan).clone();
    let owner = std::mem::replace(&mut plan.job.owner, "bob".to_owned());
    publication.stage.plan = Arc::new(plan);
    let error = publish_for(&publication, &trained.trunk, true).unwrap_err();
    let said = error.to_string();
    assert!(said.contains(&format!("mood is a release of owner {owner:?}")) && said.contains("publish_as"), "{said}");
    assert_eq!(Hub::verify(&trained.folder("mood")).unwrap().job.owner, owner);
    publish(&publication, &trained.trunk).unwrap();
}
