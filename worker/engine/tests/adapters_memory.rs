//! What one more adapter in training costs in memory, on a real base model: its own numbers and little else. What was
//! measured is printed.

#![expect(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use graftwork_engine::{
    Consumed, Course, Device, InputCost, Lane, Network, Position, Setup, Shelves, Targets, Tokens, Trained, Trainer,
    Trunk, initial_weights, use_one_thread,
};
use graftwork_model::BaseModel;
use graftwork_shared::{
    adapter::AdapterConfig,
    assignment::Evaluation,
    composition::Composition,
    digest::Digest,
    head::{Head, HeadOutput},
    metric::Metric,
    recipe::trained_slot,
    training::Training,
};
use libtest_mimic::{Arguments, Trial};

/// One adapter in training, as a stage holds it: with the best weights so far.
struct Stage {
    network: Network,
    trainer: Trainer,
}

impl Stage {
    fn new(trunk: &Trunk, seed: u64) -> Self {
        let own = trained_slot();
        let labels = ["a", "b", "c", "d", "e", "f"].map(str::to_owned).to_vec();
        let mut setup = Setup {
            composition: Some(Composition::single(own.clone())),
            adapters: [(own.clone(), AdapterConfig::preset("seq_bn").unwrap())].into(),
            heads: vec![(own, Head::new(HeadOutput::Classification { labels }))],
            ..Setup::default()
        };
        setup.trained = Trained::all(&setup);
        let weights = initial_weights(&setup, trunk.description(), seed).unwrap();
        let network = Network::new(trunk.share(), setup.clone(), weights).unwrap();
        let training = Training { batch_size: 4, lanes: 2, ..Training::default() };
        let course = Course { training, metric: Metric::Accuracy, rows: 160 };
        let trainer = Trainer::new(course, &setup, network.layout(), network.parameters()).unwrap();
        Self { network, trainer }
    }

    fn update(&mut self) {
        let options = self.trainer.step_options(4);
        let lanes: Vec<_> = (0..2).map(|lane| Some(self.network.lane(&rows(lane), &options.lane()).unwrap())).collect();
        let (position, cost) = (Position::start(), InputCost::default());
        let consumed = Consumed { rows: 4, tokens: 0, position, finished_epoch: None, cost };
        self.trainer.apply(lanes, consumed).unwrap();
        self.network.set_parameters(self.trainer.parameters());
        let metrics = BTreeMap::from([(Metric::Accuracy, 0.5)]);
        self.trainer.record(Evaluation { step: self.trainer.progress().step, loss: 1.0, metrics });
    }

    /// Weights, gradient and both moments.
    fn own_bytes(&self) -> u64 {
        4 * 4 * self.trainer.parameters().len() as u64
    }
}

/// Two rows of ten tokens.
fn rows(lane: u64) -> Lane {
    let ids = (0..20).map(|token| 1000 + token * 37 + i64::try_from(lane).unwrap()).collect();
    let tokens = Tokens { ids, type_ids: vec![0; 20], lengths: vec![10; 2] };
    Lane { tokens, targets: Targets::Classes(vec![0, 1]), rows: vec![2 * lane, 2 * lane + 1] }
}

/// This process's share of memory, in bytes.
fn memory() -> u64 {
    let text = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.graftwork/base/all-minilm-l6-v2")
}

fn one_more_adapter_costs_little_more_than_its_own_numbers() {
    use_one_thread();
    let folder = tempfile::tempdir().unwrap();
    let base = BaseModel::open(&base()).unwrap();
    let trunk = Trunk::open(&base, Device::Cpu).unwrap();
    let shelves = Arc::new(Shelves::new(folder.path().to_owned(), 1 << 30));
    let trunk = trunk.packed_once(&shelves, &Digest::of(b"all-minilm-l6-v2"));
    let trained = |number: usize| {
        let mut stage = Stage::new(&trunk, number as u64);
        stage.update();
        stage
    };
    let mut stages = vec![trained(0)];
    let (first, own) = (memory(), stages[0].own_bytes());
    println!("1 adapter: {} MiB", first >> 20);
    for count in [8, 32, 128] {
        stages.extend((stages.len()..count).map(trained));
        let now = memory();
        let each = now.saturating_sub(first) as f64 / (count - 1) as f64;
        let times = each / own as f64;
        println!(
            "{count} adapters: {} MiB, {:.2} MiB for one more, {times:.2} of its numbers",
            now >> 20,
            each / 1_048_576.0
        );
        assert!(times <= 1.5, "one more of {count} adapters takes {each} bytes, its numbers are {own}");
        // With less than its weights, gradient and moments nothing would have been measured.
        assert!(count < 128 || times > 0.9, "one more of {count} adapters takes {each} bytes, its numbers are {own}");
    }
}

fn main() -> ExitCode {
    let lacking = !base().join("model.safetensors").exists();
    if lacking {
        eprintln!("ignored: {} is not there (make test fetches it)", base().display());
    }
    let run = || {
        one_more_adapter_costs_little_more_than_its_own_numbers();
        Ok(())
    };
    let trial = Trial::test("one_more_adapter_costs_little_more_than_its_own_numbers", run).with_ignored_flag(lacking);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}
