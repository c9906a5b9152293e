//! What is kept of a night when something of it cannot be read or written: the night ends as one that failed, and only what
//! may pass is tried once more.

use std::{fs, os::unix::fs::symlink, path::Path};

use graftwork_shared::{
    assignment::{Evaluation, StageResult},
    event::Outcome,
    id::JobId,
    view::{JobView, StageState, StageView},
};

use super::*;
use crate::nightly::{
    conclude::{Wanted, conclude},
    expand::expand,
    history::History,
    passing::may_pass,
    tonight::{self, prepare},
};

/// What the model of each seed answered: three of four rows rightly.
const ANSWERS: &str = "{\"row\":0,\"label\":\"no\",\"prediction\":\"no\"}\n{\"row\":1,\"label\":\"yes\",\"prediction\":\"yes\"}\n\
                       {\"row\":2,\"label\":\"no\",\"prediction\":\"yes\"}\n{\"row\":3,\"label\":\"no\",\"prediction\":\"no\"}\n";

/// A stage that was published below a folder.
fn published(releases: &Path, name: &Name) -> StageView {
    let release = releases.join(name.as_str());
    fs::create_dir_all(release.join("predictions")).unwrap();
    fs::write(release.join("predictions/test.jsonl"), ANSWERS).unwrap();
    let scored = Evaluation { step: 1, loss: 0.5, metrics: [(Metric::Accuracy, 0.75)].into() };
    let measured = night(1, &[("mood", 0.75)]).0.measurements.remove(0);
    StageView {
        name: name.clone(),
        kind: StageKind::Adapter,
        needs: Vec::new(),
        fused: Vec::new(),
        task: None,
        method: measured.method,
        rows: [4; 3],
        labels: measured.labels,
        recipe: measured.recipe,
        total_steps: 1,
        trained_parameters: 1,
        metric: Metric::Accuracy,
        expect: None,
        sweep: None,
        trial: None,
        state: StageState::Published { reused: false },
        why: String::new(),
        curve: Vec::new(),
        validation: Vec::new(),
        usage: measured.usage,
        result: Some(StageResult {
            weights: measured.weights,
            steps: 1,
            best_step: 1,
            validation: Vec::new(),
            scores: [(Split::Test, scored)].into(),
            predictions: BTreeMap::new(),
            data: [(Split::Test, Digest::of(b"rows"))].into(),
            epochs: Vec::new(),
            attention: Vec::new(),
            trained_parameters: 1,
            numeric_class: measured.numeric_class,
            usage: measured.usage,
            peak: None,
        }),
        preempted: None,
        release: Some(release.display().to_string()),
    }
}

/// A history whose first night is trained.
struct Trained {
    folder: tempfile::TempDir,
    history: History,
    view: JobView,
}

impl Trained {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path().join("history"), |_| {}).unwrap();
        let digest = Digest::of(b"job");
        let job = expand(&job()).unwrap();
        let stages = job.tasks.iter().map(|task| published(&folder.path().join("releases"), &task.name)).collect();
        let view = JobView {
            id: JobId::of(&digest),
            digest,
            name: job.name,
            owner: "nlp".to_owned(),
            base_model: "base".to_owned(),
            base_model_digest: Digest::of(b"base"),
            hub: "hub".to_owned(),
            submitted_ms: 1,
            ended_ms: Some(2),
            outcome: Some(Outcome::Succeeded),
            stages,
            usage: Usage::default(),
        };
        Self { folder, history, view }
    }

    /// The answers of the first seed.
    fn answers(&self) -> std::path::PathBuf {
        let release = self.view.stages[0].release.as_ref().unwrap();
        Path::new(release).join("predictions/test.jsonl")
    }

    fn keep(&self) -> Result<u64, crate::cli::Failure> {
        let code = night(1, &[]).0.code;
        let prepared = prepare(&self.history, expand(&job()).unwrap(), Digest::of(b"job"), code)?;
        tonight::keep(&self.history, prepared, &self.view, Vec::new())
    }

    /// The only night, compared with nothing: what failed of it.
    async fn failed(&self) -> Vec<String> {
        let wanted = Wanted { number: 1, against: None, again: false };
        let concluded = conclude(&self.history, wanted, &Nightly::default(), &commands()).await.unwrap();
        assert_eq!(concluded.view.outcome, NightOutcome::Regressed);
        assert!(!concluded.view.history[0].good, "the listing of nights says so");
        assert!(!self.history.night(1).unwrap().judged.unwrap().good, "it is no baseline");
        assert!(!self.history.tonight_folder().exists(), "nothing of it is tried once more");
        concluded.view.problems.iter().map(|problem| format!("{} {}", problem.name, problem.message)).collect()
    }
}

#[tokio::test]
async fn a_stage_whose_answers_are_damaged_fails_the_night_and_ends_it() {
    for damage in [b"{\"row\":0,".as_slice(), ANSWERS.replacen("\"no\"}", "\"yes\"}", 1).as_bytes()] {
        let trained = Trained::new();
        fs::write(trained.answers(), damage).unwrap();
        assert_eq!(trained.keep().unwrap(), 1);
        assert_eq!(trained.history.night(1).unwrap().measurements.len(), 2, "the other seeds are kept");
        let failed = trained.failed().await;
        assert!(failed[0].starts_with("mood with seed 1 has no score: "), "{failed:?}");
        assert_eq!(failed.len(), 1, "{failed:?}");
    }
    let trained = Trained::new();
    fs::remove_file(trained.answers()).unwrap();
    trained.keep().unwrap();
    assert!(trained.failed().await[0].contains("reading the answers of mood"), "what is gone does not come back");
}

#[tokio::test]
async fn a_night_that_can_never_be_kept_is_kept_as_failed() {
    let trained = Trained::new();
    fs::create_dir_all(trained.history.folder_of(1).join("job.html/in the way")).unwrap();
    assert_eq!(trained.keep().unwrap(), 1);
    let failed = trained.failed().await;
    assert!(failed[0].starts_with("mood has no score: the night cannot be kept: "), "{failed:?}");
    assert_eq!(failed.len(), 1, "each task is told once: {failed:?}");

    // Where not even that can be written, the error is one that does not pass.
    let trained = Trained::new();
    fs::write(trained.history.folder_of(1), b"in the way").unwrap();
    assert!(!may_pass(&trained.keep().unwrap_err().error));
}

#[test]
fn what_may_pass_is_tried_once_more() {
    let trained = Trained::new();
    let elsewhere = trained.folder.path().join("elsewhere");
    // The system refuses the file, and does not say that it is gone or damaged.
    fs::remove_file(trained.answers()).unwrap();
    symlink(&elsewhere, trained.answers()).unwrap();
    symlink(&elsewhere, &elsewhere).unwrap();
    let refused = trained.keep().unwrap_err();
    assert!(may_pass(&refused.error), "{:?}", refused.error);
    assert!(trained.history.numbers().unwrap().is_empty() && trained.history.tonight().unwrap().is_some());
    fs::remove_file(&elsewhere).unwrap();
    fs::write(&elsewhere, ANSWERS).unwrap();
    assert_eq!(trained.keep().unwrap(), 1);
    assert_eq!(trained.history.night(1).unwrap().measurements.len(), 3);
}
