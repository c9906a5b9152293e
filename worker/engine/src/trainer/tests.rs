//! The trainer on numbers alone: lanes are made up, so every expectation can be computed by hand.

use graftwork_collective::{combine, partial_sums};
use graftwork_shared::{
    adapter::FusionConfig,
    digest::Digest,
    training::{Length, Schedule},
};

use super::*;
use crate::{TrainedTensor, checkpoint::CheckpointError};

const VALUE: &str = "bert.encoder.layer.0.output.adapter_fusion_layer.trained.value.weight";

fn layout() -> Layout {
    let tensor = |name: &str, shape: &[usize], offset, decays| {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        TrainedTensor { name, shape, offset, decays }
    };
    let tensors = vec![tensor(VALUE, &[2, 2], 0, true), tensor("heads.trained.1.bias", &[3], 4, false)];
    Layout { tensors, len: 7 }
}

fn setup() -> Setup {
    Setup { fusions: [("trained".to_owned(), FusionConfig::default())].into(), ..Setup::default() }
}

fn course(training: Training) -> Course {
    Course { training, metric: Metric::Accuracy, rows: 8 }
}

fn training() -> Training {
    Training {
        length: Length::Steps(6),
        batch_size: 4,
        lanes: 2,
        learning_rate: 0.1,
        schedule: Schedule::Linear,
        weight_decay: 0.1,
        adapter_drop: AdapterDrop::DrawnUpTo(3),
        ..Training::default()
    }
}

const START: [f32; 7] = [1.2, 0.1, -0.3, 0.8, 0.5, -0.5, 0.25];

fn trainer(training: Training) -> Trainer {
    Trainer::new(course(training), &setup(), &layout(), START.to_vec()).unwrap()
}

/// Lanes that pull the parameters towards 1 and -1, unequally.
fn lanes(trainer: &Trainer) -> Vec<Option<LaneOutput>> {
    let towards = |goal: f32, weight: f32| {
        let gradient = trainer.parameters().iter().map(|value| weight * (value - goal)).collect();
        Some(LaneOutput { loss: f64::from(weight), gradient })
    };
    vec![towards(1.0, 0.3), towards(-1.0, 0.7)]
}

fn evaluation(step: u64, score: f64) -> Evaluation {
    Evaluation { step, loss: 1.0, metrics: [(Metric::Accuracy, score)].into() }
}

#[test]
fn the_fusion_penalty_belongs_to_the_loss_of_its_own_step() {
    // AdapterHub's trainer adds the penalty's gradient after its optimizer stepped: there the first update would see
    // a gradient and a loss of zero here, and move nothing.
    let mut trainer = trainer(Training { weight_decay: 0.0, clip_norm: None, ..training() });
    let still = Some(LaneOutput { loss: 0.0, gradient: vec![0.0; 7] });
    let outcome = trainer.step(vec![still, None]).unwrap();
    let distances = [0.2_f64, 0.1, -0.3, -0.2];
    let penalty: f64 = distances.iter().map(|distance| 0.01 * distance * distance).sum();
    assert!((outcome.loss - penalty).abs() < 1e-8, "{} {penalty}", outcome.loss);
    let norm = distances.iter().map(|distance| (0.02 * distance).powi(2)).sum::<f64>().sqrt();
    assert!((outcome.gradient_norm - norm).abs() < 1e-8);
    let moved: Vec<bool> =
        trainer.parameters().iter().zip(START).map(|(now, start)| (now - start).abs() > 1e-3).collect();
    assert_eq!(moved, [true, true, true, true, false, false, false]);
    assert!(trainer.parameters()[0] < START[0] && trainer.parameters()[2] > START[2]);
}

#[test]
fn decay_acts_on_weights_alone() {
    let mut trainer = Trainer::new(course(training()), &Setup::default(), &layout(), START.to_vec()).unwrap();
    trainer.step(vec![Some(LaneOutput { loss: 0.0, gradient: vec![0.0; 7] }), None]).unwrap();
    let shrunk = START[0] * (1.0 - 0.1 * 0.1);
    assert!((trainer.parameters()[0] - shrunk).abs() < 1e-6);
    assert_eq!(trainer.parameters()[4..], START[4..]);
}

#[test]
fn going_on_from_any_checkpoint_gives_the_bytes_of_never_stopping() {
    let recipe = Digest::of(b"recipe");
    let mut undisturbed = trainer(training());
    let mut checkpoints = vec![undisturbed.checkpoint(recipe).unwrap()];
    while !undisturbed.is_finished() {
        undisturbed.step(lanes(&undisturbed)).unwrap();
        let step = undisturbed.progress.step;
        undisturbed.record(evaluation(step, if step == 3 { 0.9 } else { 0.5 }));
        checkpoints.push(undisturbed.checkpoint(recipe).unwrap());
    }
    assert_eq!((checkpoints.len(), undisturbed.kept_step()), (7, 3));
    for checkpoint in &checkpoints {
        let mut resumed = trainer(training());
        resumed.resume(checkpoint, recipe).unwrap();
        while !resumed.is_finished() {
            resumed.step(lanes(&resumed)).unwrap();
            let step = resumed.progress.step;
            resumed.record(evaluation(step, if step == 3 { 0.9 } else { 0.5 }));
        }
        assert_eq!(&resumed.checkpoint(recipe).unwrap(), checkpoints.last().unwrap());
        assert_eq!(resumed.kept_tensors(), undisturbed.kept_tensors());
    }
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing() {
    let recipe = Digest::of(b"recipe");
    let mut other = trainer(training());
    other.step(lanes(&other)).unwrap();
    let bytes = other.checkpoint(recipe).unwrap();
    let mut fresh = trainer(training());
    let refused = |trainer: &mut Trainer, bytes: &[u8], recipe| trainer.resume(bytes, recipe).unwrap_err();
    assert!(matches!(refused(&mut fresh, &bytes[..bytes.len() - 3], recipe), CheckpointError::Format(_)));
    assert!(matches!(refused(&mut fresh, b"", recipe), CheckpointError::Format(_)));
    let stranger = refused(&mut fresh, &bytes, Digest::of(b"other"));
    assert!(matches!(stranger, CheckpointError::Recipe { .. }), "{stranger}");
    let plain = graftwork_model::safetensors::write(&fresh.kept_tensors(), &std::collections::BTreeMap::new());
    assert!(matches!(refused(&mut fresh, &plain, recipe), CheckpointError::State(_)));
    let mut wider = layout();
    wider.tensors[1].shape = vec![4];
    wider.len = 8;
    let mut wide = Trainer::new(course(training()), &setup(), &wider, vec![0.0; 8]).unwrap();
    let error = refused(&mut wide, &bytes, recipe);
    assert!(error.to_string().contains("heads.trained.1.bias"), "{error}");
    assert_eq!(fresh, trainer(training()));
}

#[test]
fn a_diverged_update_is_refused_with_its_step() {
    let mut trainer = trainer(training());
    trainer.step(lanes(&trainer)).unwrap();
    let broken = Some(LaneOutput { loss: f64::NAN, gradient: vec![0.0; 7] });
    let error = trainer.step(vec![broken, None]).unwrap_err().to_string();
    assert!(error.contains("update 2") && error.contains("learning_rate"), "{error}");
    let infinite = Some(LaneOutput { loss: 1.0, gradient: vec![f32::INFINITY; 7] });
    assert!(trainer.step(vec![infinite, None]).is_err());
}

/// Against the sum over nodes, which is computed from the root downwards.
#[test]
fn lanes_add_up_along_the_tree_however_they_come() {
    let lane = |at: usize| {
        let number = 0.1 + at as f32 * 1.7e3;
        (at % 5 != 3).then(|| LaneOutput { loss: f64::from(number), gradient: vec![number, 1.0 / number] })
    };
    for count in 1..40 {
        let gradients = (0..count).map(|at| lane(at).map(|lane| lane.gradient)).collect();
        let tree = Tree::new(count);
        let partials = partial_sums(tree, 0, gradients);
        let expected = combine(tree, partials).unwrap().unwrap_or_default();
        for some in [1, 2, 3, 7, count] {
            let mut sums = LaneSums::default();
            let lanes: Vec<usize> = (0..count).collect();
            lanes.chunks(some).for_each(|lanes| sums.extend(lanes.iter().map(|&at| lane(at)).collect()));
            assert_eq!(sums.finish().gradient, expected, "{count} lanes, {some} at once");
        }
    }
}

#[test]
fn lanes_must_be_as_many_and_as_long_as_planned() {
    let mut trainer = trainer(training());
    let one = lanes(&trainer).swap_remove(0);
    assert!(matches!(trainer.step(vec![one]), Err(TrainError::Count { what: "lanes", found: 1, expected: 2, .. })));
    let short = Some(LaneOutput { loss: 1.0, gradient: vec![0.0; 6] });
    assert!(trainer.step(vec![short, None]).is_err());
    assert!(Trainer::new(course(training()), &setup(), &layout(), vec![0.0; 6]).is_err());
}

#[test]
fn dropped_layers_are_drawn_anew_for_each_step_and_only_by_the_step() {
    let draws = |step: u64| {
        let mut trainer = trainer(training());
        trainer.progress.step = step;
        trainer.step_options(4).skip_layers
    };
    let all: std::collections::BTreeSet<_> = (0..64).map(draws).collect();
    assert_eq!(all.into_iter().collect::<Vec<_>>(), [vec![], vec![0], vec![0, 1], vec![0, 1, 2]]);
    let fixed = Training { adapter_drop: AdapterDrop::Layers(vec![1]), ..training() };
    assert_eq!(trainer(fixed).step_options(4).skip_layers, [1]);
}

#[test]
fn the_earlier_of_equal_scores_is_kept() {
    let mut trainer = trainer(training());
    for score in [0.5, 0.7, 0.7, 0.6] {
        trainer.step(lanes(&trainer)).unwrap();
        trainer.record(evaluation(trainer.progress.step, score));
    }
    assert_eq!(trainer.kept_step(), 2);
    assert_ne!(trainer.kept_parameters(), trainer.parameters());
    trainer.training.keep_best = false;
    trainer.best = None;
    trainer.record(evaluation(4, 1.0));
    assert_eq!((trainer.kept_step(), trainer.kept_parameters()), (4, trainer.parameters()));
}
