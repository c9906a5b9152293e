//! A host in this process, with real device threads and blobs in memory, and a small data set on disk.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context, bail};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use graftwork_dataset::open;
use graftwork_engine::use_one_thread;
use graftwork_model::BaseModel;
use graftwork_shared::{
    NUMERICS_VERSION,
    adapter::AdapterConfig,
    data::{Columns, SplitManifest, TextColumns},
    head::{Head, HeadOutput},
    metric::Metric,
    recipe::{Method, Recipe},
    training::{Length, Schedule, Training},
};
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};

use super::{
    super::*,
    together::{Said, Seat},
};
use crate::{
    pool::{Pool, Turn},
    waiting::Waiting,
};

type Blobs = Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>;

pub(super) struct LocalHost {
    pool: Pool,
    runtime: Runtime,
    blobs: Blobs,
    checkpoints: Mutex<BTreeMap<u64, Digest>>,
    reports: Mutex<Vec<StepReport>>,
    evaluated: Mutex<Vec<u64>>,
    costs: Mutex<Vec<Usage>>,
    updates: Mutex<Vec<Counted>>,
    questions_left: Cell<u32>,
    seat: Option<Seat>,
    shelves: Option<Arc<Shelves>>,
    together: bool,
    at_once: usize,
    waiting: Waiting,
}

impl LocalHost {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            pool: Pool::start(threads, use_one_thread).unwrap(),
            runtime: Runtime::new().unwrap(),
            blobs: Blobs::default(),
            checkpoints: Mutex::default(),
            reports: Mutex::default(),
            evaluated: Mutex::default(),
            costs: Mutex::default(),
            updates: Mutex::default(),
            questions_left: Cell::new(u32::MAX),
            seat: None,
            shelves: None,
            together: false,
            at_once: usize::MAX,
            waiting: Waiting::default(),
        }
    }

    /// A host that keeps what it computes below this folder.
    pub(super) fn keeping(folder: &Path, threads: usize) -> Self {
        let shelves = Arc::new(Shelves::new(folder.to_owned(), 1 << 24));
        Self { shelves: Some(shelves), ..Self::new(threads) }
    }

    /// A host that gives the lanes of an update to one device thread, as that of an accelerator does.
    pub(super) fn of_lanes_together(threads: usize) -> Self {
        Self { together: true, ..Self::new(threads) }
    }

    /// A host that adds so many lanes up before it computes others.
    pub(super) fn adding(at_once: usize) -> Self {
        Self { at_once, ..Self::new(2) }
    }

    /// Another host over the same blobs.
    pub(super) fn sharing(other: &Self, threads: usize) -> Self {
        Self { blobs: Arc::clone(&other.blobs), ..Self::new(threads) }
    }

    /// A host over the same blobs that keeps what it computes below this folder.
    pub(super) fn keeping_beside(other: &Self, folder: &Path) -> Self {
        Self { blobs: Arc::clone(&other.blobs), ..Self::keeping(folder, 2) }
    }

    /// A member of a circle. Every second one gives its lanes to one device thread.
    pub(super) fn seated(other: &Self, seat: Seat) -> Self {
        Self { together: seat.is_odd(), seat: Some(seat), ..Self::sharing(other, 1) }
    }

    /// Answers that many times that the stage may go on, and then that it shall stop.
    pub(super) fn interrupt_after(&self, questions: u32) {
        self.questions_left.set(questions);
    }

    pub(super) fn blob(&self, digest: Digest) -> Vec<u8> {
        self.get_blob(digest).unwrap()
    }

    pub(super) fn checkpoints(&self) -> BTreeMap<u64, Digest> {
        self.checkpoints.lock().unwrap().clone()
    }

    pub(super) fn last_checkpoint(&self) -> Option<Digest> {
        self.checkpoints.lock().unwrap().values().next_back().copied()
    }

    /// Updates after which this host was told a validation score.
    pub(super) fn evaluated(&self) -> Vec<u64> {
        self.evaluated.lock().unwrap().clone()
    }

    /// What the last attempt said that it cost.
    pub(super) fn last_cost(&self) -> Usage {
        self.costs.lock().unwrap().last().copied().unwrap_or_default()
    }

    /// What this host was told of each update.
    pub(super) fn updates(&self) -> Vec<Counted> {
        self.updates.lock().unwrap().clone()
    }

    pub(super) fn last_report(&self) -> Option<StepReport> {
        self.reports.lock().unwrap().last().copied()
    }
}

impl Host for LocalHost {
    fn run_while<T: Send + 'static>(
        &self,
        turn: Turn,
        tasks: Vec<Box<dyn FnOnce() -> T + Send>>,
        meanwhile: impl FnOnce(),
    ) -> Vec<T> {
        self.pool.run_while(turn, tasks, meanwhile).unwrap().values
    }

    fn lanes_together(&self) -> bool {
        self.together
    }

    fn lanes_at_once(&self, _: usize) -> usize {
        self.at_once
    }

    /// Even tiny gradients travel in many parts, the larger of them in slices. A lane goes on only once the exchange has
    /// taken its part, so what is summed while a lane is computed is no matter of luck.
    fn cuts(&self) -> Cuts {
        Cuts { part_numbers: 16, small_numbers: 24, ahead_parts: 0 }
    }

    fn get_blob(&self, digest: Digest) -> anyhow::Result<Vec<u8>> {
        self.blobs.lock().unwrap().get(&digest).cloned().with_context(|| format!("blob {} is gone", digest.short()))
    }

    fn uploaded_file(&self, file: UploadedFile) -> anyhow::Result<graftwork_store::Fetched> {
        bail!("{} was not uploaded", file.digest)
    }

    fn put_blob(&self, bytes: Vec<u8>) -> anyhow::Result<Digest> {
        let digest = Digest::of(&bytes);
        self.blobs.lock().unwrap().insert(digest, bytes);
        Ok(digest)
    }

    fn on_checkpoint(&self, step: u64, blob: Digest) -> anyhow::Result<()> {
        self.checkpoints.lock().unwrap().insert(step, blob);
        Ok(())
    }

    fn on_step(&self, report: StepReport) {
        self.reports.lock().unwrap().push(report);
    }

    fn on_update(&self, update: Counted) {
        self.updates.lock().unwrap().push(update);
        self.seat.iter().for_each(|seat| seat.say(Said::Updated(update)));
    }

    fn on_evaluation(&self, evaluation: &Evaluation) {
        self.evaluated.lock().unwrap().push(evaluation.step);
    }

    fn formation(&self) -> Formation {
        self.seat.as_ref().map_or(Formation::ALONE, Seat::formation)
    }

    fn next_formation(&self, after: u64) -> Option<Formation> {
        self.seat.as_ref().expect("only members wait").next_formation(after)
    }

    fn form(&self, formation: Formation) -> Result<Box<dyn Group>, CollectiveError> {
        self.seat.as_ref().expect("only members form").form(formation)
    }

    fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }

    fn on_prepared(&self) {
        self.seat.as_ref().expect("only members join").say(Said::Prepared);
    }

    fn on_broken(&self, epoch: u64, _reason: String) {
        self.seat.as_ref().expect("only members break").say(Said::Broken(epoch));
    }

    fn on_cost(&self, cost: Usage) {
        self.costs.lock().unwrap().push(cost);
    }

    fn interrupted(&self) -> bool {
        if let Some(seat) = &self.seat {
            return seat.on_question();
        }
        let left = self.questions_left.get();
        self.questions_left.set(left.saturating_sub(1));
        left == 0
    }

    fn trunk(&self, location: &str, _digest: Digest) -> anyhow::Result<Trunk> {
        Ok(Trunk::open(&BaseModel::open(Path::new(location))?, Device::Cpu)?)
    }

    fn shelves(&self) -> Option<Arc<Shelves>> {
        self.shelves.clone()
    }

    fn rows(&self) -> &Handle {
        self.runtime.handle()
    }
}

/// Opinions on films: the label follows from one word of each text.
pub(super) struct Data {
    folder: TempDir,
}

impl Data {
    /// 40 rows to train on, 70 of each other split: more than one batch of an evaluation.
    pub(super) fn write() -> Self {
        let data = Self { folder: TempDir::new().unwrap() };
        for (name, rows) in [("train", 0..40), ("validation", 40..110), ("test", 110..180)] {
            data.write_file(name, &rows.map(opinion).collect::<Vec<_>>());
        }
        data
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.parquet"))
    }

    fn write_file(&self, name: &str, rows: &[(Option<String>, String)]) {
        let texts: ArrayRef = Arc::new(rows.iter().map(|(text, _)| text.as_deref()).collect::<StringArray>());
        let labels: ArrayRef = Arc::new(rows.iter().map(|(_, label)| Some(label.as_str())).collect::<StringArray>());
        let batch = RecordBatch::try_from_iter_with_nullable([("text", texts, true), ("label", labels, true)]).unwrap();
        let mut writer = ArrowWriter::try_new(File::create(self.path(name)).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    /// Writes a file again with the same bytes: another time, the same rows.
    pub(super) fn touch(&self, name: &str) {
        let bytes = std::fs::read(self.path(name)).unwrap();
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Writes other letters of the same length into a file: neither its size nor its footer tells.
    pub(super) fn edit(&self, name: &str, before: &[u8], after: &[u8]) {
        assert_eq!(before.len(), after.len());
        let mut bytes = std::fs::read(self.path(name)).unwrap();
        let at = bytes.windows(before.len()).position(|window| window == before).unwrap();
        bytes[at..at + after.len()].copy_from_slice(after);
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub(super) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    pub(super) fn with_null_text(&self) {
        self.write_file(
            "validation",
            &(0..9).map(|row| (opinion(row).0.filter(|_| row != 7), opinion(row).1)).collect::<Vec<_>>(),
        );
    }

    pub(super) fn with_unknown_label(&self) {
        let label = |row| if row == 5 { "splendid".to_owned() } else { opinion(row).1 };
        self.write_file("train", &(0..9).map(|row| (opinion(row).0, label(row))).collect::<Vec<_>>());
    }

    /// The file changes after the manifest was made; see [`assignment`].
    pub(super) fn with_changed_test_file(&self) {
        std::fs::write(self.folder.path().join("change"), "").unwrap();
    }

    fn manifest(&self, host: &LocalHost, name: &str) -> SplitManifest {
        let source = vec![self.path(name).display().to_string()];
        let files = host.runtime.block_on(open(&source, &Access::anonymous())).unwrap();
        let files: Vec<_> = files.into_iter().map(|file| file.identity).collect();
        let rows = files.iter().map(|file| file.content.rows()).sum();
        SplitManifest { files, rule: None, limit: None, rows }
    }
}

pub(super) fn opinion(row: u32) -> (Option<String>, String) {
    let good = (row * 7 + row / 3).is_multiple_of(2);
    let subject = ["the film", "the cast", "this plot", "it"][row as usize % 4];
    let verb = ["was", "is"][row as usize / 4 % 2];
    let (word, label) = if good { ("great", "good") } else { ("dull", "bad") };
    let end = ["", " and very fine", " but i loved it", "!"][row as usize / 8 % 4];
    (Some(format!("{subject} {verb} {word}{end}")), label.to_owned())
}

fn base_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/fixtures/tiny_bert")
}

/// A sequential bottleneck on the tiny BERT, 12 rows an update in 4 lanes.
pub(super) fn adapter_recipe(data: &Data) -> Recipe {
    let host = LocalHost::new(1);
    let content = |name: &str| data.manifest(&host, name).content();
    let labels = vec!["bad".to_owned(), "good".to_owned()];
    Recipe {
        numerics_version: NUMERICS_VERSION,
        base_model: Digest::of(b"tiny"),
        method: Method::Adapter(AdapterConfig::preset("seq_bn").unwrap()),
        head: Head::new(HeadOutput::Classification { labels }),
        metric: Metric::Accuracy,
        training: Training {
            length: Length::Epochs(3),
            batch_size: 6,
            lanes: 2,
            accumulation: 2,
            learning_rate: 0.02,
            schedule: Schedule::Cosine,
            weight_decay: 0.01,
            max_length: 16,
            checkpoint_every_steps: 3,
            ..Training::default()
        },
        columns: Columns { text: TextColumns::One("text".to_owned()), label: "label".to_owned() },
        train: content("train"),
        validation: content("validation"),
        test: Some(content("test")),
        skip_layers: Vec::new(),
    }
}

pub(super) fn assignment(data: &Data, host: &LocalHost, recipe: Recipe) -> Assignment {
    let of = Assignment {
        job: graftwork_shared::id::JobId::of(&Digest::of(b"job")),
        stage: "opinions".parse().unwrap(),
        attempt: 0,
        recipe,
        base_model: base_model().display().to_string(),
        train: data.manifest(host, "train"),
        validation: data.manifest(host, "validation"),
        test: Some(data.manifest(host, "test")),
        adapters: Vec::new(),
        resume: None,
        until: None,
        data_credentials: None,
        base_model_credentials: None,
    };
    if data.folder.path().join("change").exists() {
        data.write_file("test", &(0..3).map(opinion).collect::<Vec<_>>());
    }
    of
}
