//! Whole updates on a tiny random BERT: lanes through libtorch, the trainer, and back into the network.

#![expect(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::{path::Path, thread};

use graftwork_dataset::GroupDigests;
use graftwork_engine::{
    BatchShape, Consumed, Course, Device, InputCost, Lane, LaneOutput, Network, Position, Setup, StepOptions, Targets,
    Tokens, Trained, Trainer, Trunk, initial_weights, use_one_thread,
};
use graftwork_model::BaseModel;
use graftwork_shared::{
    adapter::{AdapterConfig, FusionConfig},
    composition::Composition,
    digest::Digest,
    head::{Head, HeadOutput},
    metric::Metric,
    random::{Purpose, Stream},
    recipe::{slot, trained_slot},
    training::{AdapterDrop, Length, Training, Warmup},
};

const ROWS: u64 = 24;

fn trunk() -> Trunk {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny_bert");
    Trunk::open(&BaseModel::open(&folder).unwrap(), Device::Cpu).unwrap()
}

fn head() -> Head {
    Head::new(HeadOutput::Classification { labels: vec!["no".to_owned(), "yes".to_owned()] })
}

fn adapter_setup(preset: &str) -> Setup {
    let own = trained_slot();
    let mut setup = Setup {
        composition: Some(Composition::single(own.clone())),
        adapters: [(own.clone(), AdapterConfig::preset(preset).unwrap())].into(),
        heads: vec![(own, head())],
        ..Setup::default()
    };
    setup.trained = Trained::all(&setup);
    setup
}

/// A fusion of two adapters; they are trained with it, so that all weights are drawn and nothing is taken as zero.
fn fusion_setup() -> Setup {
    let config = AdapterConfig::preset("seq_bn").unwrap();
    let children = (0..2).map(|position| Composition::single(slot(position))).collect();
    let mut setup = Setup {
        composition: Some(Composition::Fuse { children, name: Some("trained".to_owned()) }),
        adapters: (0..2).map(|position| (slot(position), config.clone())).collect(),
        fusions: [("trained".to_owned(), FusionConfig::default())].into(),
        heads: vec![(trained_slot(), head())],
        ..Setup::default()
    };
    setup.trained = Trained::all(&setup);
    setup
}

fn training() -> Training {
    Training {
        length: Length::Epochs(2),
        batch_size: 5,
        lanes: 3,
        accumulation: 2,
        learning_rate: 0.01,
        warmup: Warmup::Steps(1),
        weight_decay: 0.01,
        base_model_dropout: true,
        adapter_drop: AdapterDrop::DrawnUpTo(1),
        ..Training::default()
    }
}

/// Made-up rows: 3 to 10 random tokens, the class by the first of them.
fn lane(rows: std::ops::Range<u64>) -> Option<Lane> {
    let stream = Stream::new(3, Purpose::WindowOrder);
    let mut tokens = Tokens::default();
    let mut classes = Vec::new();
    for row in rows.clone() {
        let length = 3 + stream.below(0, row, 8);
        let ids = (0..length).map(|at| i64::try_from(5 + stream.below(1, row * 100 + at, 70)).unwrap());
        tokens.ids.extend(ids);
        tokens.lengths.push(usize::try_from(length).unwrap());
        classes.push(i64::from(stream.below(1, row * 100, 70) > 35));
    }
    tokens.type_ids = vec![0; tokens.ids.len()];
    (!classes.is_empty()).then(|| Lane { tokens, targets: Targets::Classes(classes), rows: rows.collect() })
}

/// The next update's lanes, cut by count.
fn lanes(position: &Position, shape: BatchShape) -> (Vec<Option<Lane>>, Consumed) {
    let start = position.cursor;
    let end = (start + shape.rows() as u64).min(ROWS);
    let mut lanes = Vec::new();
    for batch in 0..shape.accumulation as u64 {
        let edge = |batch: u64| (start + batch * shape.batch_size as u64).min(end);
        let (first, rows) = (edge(batch), edge(batch + 1) - edge(batch));
        let count = shape.lanes as u64;
        lanes.extend((0..count).map(|at| lane(first + at * rows / count..first + (at + 1) * rows / count)));
    }
    let ended = end == ROWS;
    let (epoch, cursor) = if ended { (position.epoch + 1, 0) } else { (position.epoch, end) };
    let position = Position { epoch, cursor, groups: GroupDigests::default(), ..position.clone() };
    let finished_epoch = ended.then(|| Digest::of(b"epoch"));
    let cost = InputCost::default();
    (lanes, Consumed { rows: end - start, tokens: 0, position, finished_epoch, cost })
}

/// Computes lanes on so many threads.
fn compute(
    network: &Network,
    lanes: Vec<Option<Lane>>,
    options: &StepOptions,
    threads: usize,
) -> Vec<Option<LaneOutput>> {
    let mut outputs: Vec<Option<LaneOutput>> = lanes.iter().map(|_| None).collect();
    let mut work: Vec<_> = lanes.into_iter().zip(&mut outputs).collect();
    let share = work.len().div_ceil(threads);
    thread::scope(|scope| {
        for part in work.chunks_mut(share) {
            let network = network.share();
            scope.spawn(move || {
                use_one_thread();
                for (lane, output) in part {
                    **output = lane.as_ref().map(|lane| network.lane(lane, &options.lane()).unwrap());
                }
            });
        }
    });
    outputs
}

struct Run {
    network: Network,
    trainer: Trainer,
}

impl Run {
    fn new(setup: &Setup, training: Training) -> Self {
        use_one_thread();
        let trunk = trunk();
        let weights = initial_weights(setup, trunk.description(), training.seed).unwrap();
        let network = Network::new(trunk, setup.clone(), weights).unwrap();
        let course = Course { training, metric: Metric::Accuracy, rows: ROWS };
        let trainer = Trainer::new(course, setup, network.layout(), network.parameters()).unwrap();
        Self { network, trainer }
    }

    fn step(&mut self, threads: usize) -> f64 {
        let (lanes, consumed) = lanes(&self.trainer.progress().position(), self.trainer.shape());
        let options = self.trainer.step_options(consumed.rows);
        let outputs = compute(&self.network, lanes, &options, threads);
        let outcome = self.trainer.apply(outputs, consumed).unwrap();
        self.network.set_parameters(self.trainer.parameters());
        outcome.loss
    }

    fn checkpoint(&self) -> Vec<u8> {
        self.trainer.checkpoint(Digest::of(b"recipe")).unwrap()
    }

    fn into_end(mut self, threads: usize) -> Vec<u8> {
        while !self.trainer.is_finished() {
            self.step(threads);
        }
        self.checkpoint()
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    for setup in [adapter_setup("double_seq_bn"), adapter_setup("lora"), fusion_setup()] {
        let [one, two, four] = [1, 2, 4].map(|threads| Digest::of(&Run::new(&setup, training()).into_end(threads)));
        assert_eq!((one, one), (two, four));
    }
}

#[test]
fn going_on_from_any_checkpoint_gives_the_bytes_of_never_stopping() {
    for setup in [adapter_setup("par_bn"), fusion_setup()] {
        let mut run = Run::new(&setup, training());
        let mut checkpoints = vec![run.checkpoint()];
        while !run.trainer.is_finished() {
            run.step(1);
            checkpoints.push(run.checkpoint());
        }
        // Three updates an epoch, the last one of 4 rows: some lanes are empty.
        assert_eq!(checkpoints.len(), 7);
        for checkpoint in &checkpoints {
            let mut resumed = Run::new(&setup, training());
            resumed.trainer.resume(checkpoint, Digest::of(b"recipe")).unwrap();
            resumed.network.set_parameters(resumed.trainer.parameters());
            assert_eq!(Digest::of(&resumed.into_end(2)), Digest::of(checkpoints.last().unwrap()));
        }
    }
}

#[test]
fn training_learns() {
    let training = Training { length: Length::Epochs(20), base_model_dropout: false, ..training() };
    let mut run = Run::new(&adapter_setup("seq_bn"), training);
    let first = run.step(1);
    let mut last = first;
    while !run.trainer.is_finished() {
        last = run.step(2);
    }
    assert!(last < 0.6 * first, "{first} {last}");
}
