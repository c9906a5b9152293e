//! What the tests of this crate share: random tensors, comparisons and tiny setups.

use std::{collections::BTreeMap, path::Path};

use graftwork_model::{BaseModel, Tensors, TrunkDescription};
use graftwork_shared::{
    adapter::AdapterConfig,
    composition::Composition,
    head::{Head, HeadOutput},
    id::Name,
    random::{Purpose, Stream},
};
use proptest::prelude::*;
use tch::Tensor;

use crate::{
    dropout::Masks,
    network::Network,
    rows::{Dropout, Lane, LaneOptions, Targets, Tokens},
    setup::{Setup, Trained},
    spans::{FILLER, Spans},
    transfer::to_host,
    trunk::Trunk,
};

/// So many random cases. A case that fails is told, and written nowhere.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// One to four rows of up to so many tokens, some of which are hidden; the first row shows all of its own, two at least.
pub(crate) fn ragged(longest: usize) -> impl Strategy<Value = Spans> {
    let first = (2..=longest, Just(0), 0..FILLER);
    let others = prop::collection::vec((1..=longest, 0..longest, 0..FILLER), 0..4);
    (first, others).prop_map(|(first, mut rows)| {
        rows.insert(0, first);
        let lengths: Vec<usize> = rows.iter().map(|row| row.0).collect();
        let numbers: Vec<u64> = rows.iter().map(|row| row.2).collect();
        let mut spans = Spans::new(&lengths, &numbers);
        spans.0.iter_mut().zip(rows).for_each(|(span, row)| span.visible -= row.1 % span.length);
        spans
    })
}

/// Standard normal numbers, other ones for each number `major`.
pub(crate) fn normal(major: u32, shape: &[i64]) -> Tensor {
    let mut values = vec![0.0; usize::try_from(shape.iter().product::<i64>()).unwrap()];
    Stream::new(99, Purpose::InitialWeights).fill_normal(major, &mut values);
    Tensor::from_slice(&values).view(shape)
}

/// Largest difference of numbers that must be finite.
#[track_caller]
pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|value| value.is_finite()), "NaN or infinity in {a:?} or {b:?}");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[track_caller]
pub(crate) fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.size(), expected.size());
    let difference = largest_difference(&to_host(found), &to_host(expected));
    assert!(difference <= tolerance, "largest difference {difference}, allowed {tolerance}");
}

/// Masks of a pass with dropout in the trunk.
pub(crate) fn trunk_masks() -> Masks {
    let dropout = Some(Dropout { seed: 5, base_model: true });
    let options = LaneOptions { loss_scale: 1.0, step: 2, dropout, skip_layers: &[] };
    Masks::of(&options, tch::Device::Cpu).expect("a pass with dropout has masks")
}

pub(crate) fn tiny_description() -> TrunkDescription {
    let config = br#"{"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 20, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "pad_token_id": 0, "initializer_range": 0.02}"#;
    TrunkDescription::parse(config, "config.json").unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn classification(labels: &[&str]) -> Head {
    Head::new(HeadOutput::Classification { labels: labels.iter().map(ToString::to_string).collect() })
}

/// One trained adapter of a preset with a head of three classes.
pub(crate) fn adapter_setup(preset: &str, adapter: &str) -> Setup {
    let mut setup = Setup {
        composition: Some(Composition::single(name(adapter))),
        adapters: BTreeMap::from([(name(adapter), AdapterConfig::preset(preset).unwrap())]),
        heads: vec![(name(adapter), classification(&["x", "y", "z"]))],
        ..Setup::default()
    };
    setup.trained = Trained::all(&setup);
    setup
}

/// The peer's tiny BERT: 2 layers of 16, at most 14 tokens.
pub(crate) fn tiny_trunk() -> Trunk {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/peer/bert/base");
    Trunk::open(&BaseModel::open_without_tokenizer(&folder).unwrap(), tch::Device::Cpu).unwrap()
}

/// A network whose parameters are all off their initial values, so that no term is zero.
pub(crate) fn shaken(setup: &Setup) -> Network {
    Network::new(tiny_trunk(), setup.clone(), shaken_weights(setup)).unwrap()
}

/// Weights of every module of a setup on [`tiny_trunk`], all off their initial values.
pub(crate) fn shaken_weights(setup: &Setup) -> Tensors {
    let trunk = tiny_trunk();
    let everything = Setup { trained: Trained::all(setup), ..setup.clone() };
    let mut weights = crate::initial_weights(&everything, trunk.description(), 5).unwrap();
    for (index, tensor) in weights.values_mut().enumerate() {
        let noise = to_host(&normal(u32::try_from(index).unwrap(), &[i64::try_from(tensor.values.len()).unwrap()]));
        tensor.values.iter_mut().zip(noise).for_each(|(value, noise)| *value += 0.1 * noise);
    }
    weights
}

/// Rows of these lengths with ids and classes that depend on the row's number alone.
pub(crate) fn rows(lengths: &[usize], first_row: u64) -> Lane {
    let random = Stream::new(3, Purpose::WindowOrder);
    let numbers: Vec<u64> = (first_row..first_row + lengths.len() as u64).collect();
    let ids = numbers.iter().zip(lengths).flat_map(|(&row, &length)| {
        (0..length as u64).map(move |token| i64::try_from(random.below(1, row * 100 + token, 200)).unwrap())
    });
    let ids: Vec<i64> = ids.collect();
    Lane {
        tokens: Tokens { type_ids: vec![0; ids.len()], ids, lengths: lengths.to_vec() },
        targets: Targets::Classes(numbers.iter().map(|row| i64::try_from(row % 3).unwrap()).collect()),
        rows: numbers,
    }
}
