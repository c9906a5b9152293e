//! What a network promises whatever its methods: lanes add up, packing and threads change nothing, bad input is named.

mod accelerator;
mod counted;
mod direct;
mod kept;

use std::collections::BTreeMap;

use graftwork_model::Tensors;
use graftwork_shared::{
    adapter::{AdapterConfig, FusionConfig, PRESETS},
    composition::Composition,
};

use super::{Input, Network, train};
use crate::{
    EngineError,
    rows::{Dropout, Lane, LaneOptions, LaneOutput, Targets},
    setup::{Setup, Trained},
    testing::{adapter_setup, classification, largest_difference, name, rows, shaken, shaken_weights, tiny_trunk},
    transfer::to_host,
};

const LENGTHS: [usize; 4] = [11, 3, 14, 9];

fn options(dropout: Option<Dropout>) -> LaneOptions<'static> {
    LaneOptions { loss_scale: 0.25, step: 3, dropout, skip_layers: &[] }
}

fn fusion_setup(trained: Trained) -> Setup {
    let children = ["slot0", "slot1"].map(|slot| Composition::single(name(slot))).to_vec();
    let config = AdapterConfig::preset("seq_bn").unwrap();
    Setup {
        composition: Some(Composition::Fuse { children, name: Some("trained".to_owned()) }),
        adapters: ["slot0", "slot1"].map(|slot| (name(slot), config.clone())).into(),
        fusions: BTreeMap::from([("trained".to_owned(), FusionConfig::default())]),
        heads: vec![(name("trained"), classification(&["x", "y", "z"]))],
        trained,
    }
}

fn fusion_alone() -> Trained {
    Trained { fusions: ["trained".to_owned()].into(), heads: [name("trained")].into(), ..Trained::default() }
}

fn every_setup() -> Vec<(String, Setup)> {
    let mut setups: Vec<(String, Setup)> =
        PRESETS.iter().map(|preset| ((*preset).to_owned(), adapter_setup(preset, "trained"))).collect();
    let mut dropping = adapter_setup("seq_bn", "trained");
    if let Some(AdapterConfig::Bottleneck(config)) = dropping.adapters.values_mut().next() {
        config.dropout = 0.2;
    }
    setups.push(("seq_bn with dropout".to_owned(), dropping));
    setups.push(("fusion".to_owned(), fusion_setup(fusion_alone())));
    setups
}

fn split(lane: &Lane, rows_in_first: usize) -> [Lane; 2] {
    let tokens: usize = lane.tokens.lengths[..rows_in_first].iter().sum();
    let Targets::Classes(classes) = &lane.targets else { panic!("classes") };
    let part = |rows: std::ops::Range<usize>, tokens: std::ops::Range<usize>| Lane {
        tokens: crate::Tokens {
            ids: lane.tokens.ids[tokens.clone()].to_vec(),
            type_ids: lane.tokens.type_ids[tokens].to_vec(),
            lengths: lane.tokens.lengths[rows.clone()].to_vec(),
        },
        targets: Targets::Classes(classes[rows.clone()].to_vec()),
        rows: lane.rows[rows].to_vec(),
    };
    [part(0..rows_in_first, 0..tokens), part(rows_in_first..lane.rows.len(), tokens..lane.tokens.ids.len())]
}

/// `Invariant::TrunkUnchanged`, of what is no mapped page too: norms and biases.
#[test]
fn no_method_changes_the_trunk_that_it_trains_on() {
    let trunk = tiny_trunk();
    let plain = adapter_setup("seq_bn", "trained");
    let tokens = rows(&LENGTHS, 7).tokens;
    let said = || Network::new(trunk.share(), plain.clone(), shaken_weights(&plain)).unwrap().predict(&tokens, &[]);
    let before = said().unwrap();
    for (what, setup) in every_setup() {
        let network = Network::new(trunk.share(), setup.clone(), shaken_weights(&setup)).unwrap();
        network.lane(&rows(&LENGTHS, 7), &options(Some(Dropout { seed: 1, base_model: true }))).unwrap();
        assert_eq!(said().unwrap(), before, "{what}");
    }
}

#[test]
fn two_lanes_add_up_to_one_with_and_without_dropout() {
    for (what, setup) in every_setup() {
        let network = shaken(&setup);
        let whole = rows(&LENGTHS, 7);
        for dropout in [None, Some(Dropout { seed: 1, base_model: true })] {
            let one = network.lane(&whole, &options(dropout)).unwrap();
            let parts = split(&whole, 1).map(|lane| network.lane(&lane, &options(dropout)).unwrap());
            let loss: f64 = parts.iter().map(|part| part.loss).sum();
            let [a, b] = parts.map(|part| part.gradient);
            let sum: Vec<f32> = a.iter().zip(b).map(|(a, b)| a + b).collect();
            let difference = largest_difference(&sum, &one.gradient);
            assert!((loss - one.loss).abs() < 1e-6 && difference < 1e-6, "{what} {dropout:?}: {difference}");
        }
    }
}

#[test]
fn rows_beyond_what_travels_together_are_added_up() {
    let network = shaken(&adapter_setup("seq_bn", "a"));
    let whole = rows(&[14; 80], 7);
    let one = network.lane(&whole, &options(None)).unwrap();
    let parts = split(&whole, 30).map(|lane| network.lane(&lane, &options(None)).unwrap());
    let loss: f64 = parts.iter().map(|part| part.loss).sum();
    let [a, b] = parts.map(|part| part.gradient);
    let sum: Vec<f32> = a.iter().zip(b).map(|(a, b)| a + b).collect();
    let largest = sum.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let difference = largest_difference(&sum, &one.gradient);
    assert!((loss - one.loss).abs() < 1e-5 && difference < 1e-5 * largest, "{difference} {largest}");
    // Predictions of a fusion are joined as well.
    let fusion = shaken(&fusion_setup(fusion_alone()));
    let predict = |lane: &Lane| fusion.predict(&lane.tokens, &[]).unwrap();
    let (together, parts) = (predict(&whole), split(&whole, 30).map(|lane| predict(&lane)));
    assert_eq!(together.heads[0].logits, [parts[0].heads[0].logits.clone(), parts[1].heads[0].logits.clone()].concat());
    for (note, [a, b]) in together
        .fusion_attention
        .iter()
        .enumerate()
        .map(|(index, note)| (note, parts.each_ref().map(|part| &part.fusion_attention[index])))
    {
        assert_eq!(note.tokens, a.tokens + b.tokens);
        let mean = (a.weights[0] * a.tokens as f64 + b.weights[0] * b.tokens as f64) / note.tokens as f64;
        assert!((note.weights[0] - mean).abs() < 1e-9 && (note.weights.iter().sum::<f64>() - 1.0).abs() < 1e-6);
    }
    let apart = fusion.apart(&whole.tokens).unwrap();
    assert_eq!(apart.iter().map(crate::Tokens::rows).collect::<Vec<_>>(), [36, 36, 8]);
    let apart: Vec<f32> =
        apart.iter().flat_map(|part| fusion.predict(part, &[]).unwrap().heads.remove(0).logits).collect();
    assert_eq!(apart, together.heads[0].logits);
    // 54 rows of 14 tokens, then the rest.
    let input = Input::new(&whole.tokens, &whole.rows, network.description());
    assert_eq!(input.edges(768), [0, 54, 80]);
    assert_eq!(Input::new(&rows(&[14], 0).tokens, &[0], network.description()).edges(5), [0, 1]);
}

#[test]
fn threads_give_the_same_bytes() {
    let network = shaken(&fusion_setup(fusion_alone()));
    let lane = rows(&LENGTHS, 7);
    let expected = network.lane(&lane, &options(None)).unwrap();
    let results: Vec<LaneOutput> = std::thread::scope(|scope| {
        let spawn = |network: Network| {
            let lane = &lane;
            scope.spawn(move || (0..20).map(|_| network.lane(lane, &options(None)).unwrap()).collect::<Vec<_>>())
        };
        let handles = [network.share(), network.share()].map(spawn);
        handles.into_iter().flat_map(|handle| handle.join().unwrap()).collect()
    });
    assert_eq!(results.len(), 40);
    assert!(results.iter().all(|result| *result == expected));
}

#[test]
fn a_gradient_in_parts_has_the_bytes_of_a_whole_one() {
    for (what, setup) in every_setup() {
        let network = shaken(&setup);
        // So many rows that they travel in runs: only the last one completes anything.
        for lane in [rows(&LENGTHS, 7), rows(&[14; 80], 7)] {
            let whole = network.lane(&lane, &options(None)).unwrap();
            for least in [1, 40, usize::MAX] {
                let parts = network.parts(least);
                let (mut flat, mut order) = (vec![f32::NAN; whole.gradient.len()], Vec::new());
                let mut take = |part, numbers: Vec<f32>| {
                    order.push(part);
                    parts.place(part, &numbers, &mut flat);
                };
                let loss = network.lane_in_parts(&lane, &options(None), &parts, &mut take).unwrap();
                assert_eq!(order, (0..parts.count()).collect::<Vec<_>>(), "{what}");
                let found = LaneOutput { loss, gradient: flat };
                assert_eq!(found, whole, "{what} in {} parts", parts.count());
            }
        }
    }
}

#[test]
fn a_rows_logits_do_not_depend_on_its_neighbours() {
    for (what, setup) in every_setup() {
        let network = shaken(&setup);
        let all = rows(&LENGTHS, 7);
        let [first, rest] = split(&all, 1);
        let logits = |lane: &Lane| network.predict(&lane.tokens, &[]).unwrap().heads.remove(0).logits;
        let together = logits(&all);
        let alone = [logits(&first), logits(&rest)].concat();
        let difference = largest_difference(&together, &alone);
        assert!(difference < 1e-6, "{what}: {difference}");
    }
}

#[test]
fn the_last_layer_for_first_tokens_alone_is_exact() {
    for (what, setup) in every_setup() {
        let network = shaken(&setup);
        let lane = rows(&LENGTHS, 7);
        let input = Input::new(&lane.tokens, &lane.rows, network.description());
        let dropout = Some(Dropout { seed: 1, base_model: true });
        let run = |whole| tch::no_grad(|| train(&network, &input, &lane.targets, &options(dropout), whole));
        let ((short, _), (whole, inside)) = (run(false), run(true));
        assert_eq!(to_host(&inside.hidden_td).len(), 37 * 16);
        let difference = largest_difference(&short.gradient, &whole.gradient);
        assert!((short.loss - whole.loss).abs() < 1e-6 && difference < 1e-6, "{what}: {difference}");
    }
}

#[test]
fn freezing_the_adapters_of_a_fusion_leaves_the_fusions_gradient_alone() {
    let everything = Trained::all(&fusion_setup(Trained::default()));
    let (all, alone) = (shaken(&fusion_setup(everything)), shaken(&fusion_setup(fusion_alone())));
    let lane = rows(&LENGTHS, 7);
    let of_all = all.lane(&lane, &options(None)).unwrap();
    let of_alone = alone.lane(&lane, &options(None)).unwrap();
    assert!(alone.layout().tensors.iter().all(|tensor| !tensor.name.contains(".adapters.")));
    for tensor in &alone.layout().tensors {
        let other = all.layout().tensors.iter().find(|other| other.name == tensor.name).unwrap();
        let a = &of_alone.gradient[tensor.offset..][..tensor.elements()];
        let b = &of_all.gradient[other.offset..][..tensor.elements()];
        assert!(largest_difference(a, b) < 1e-7, "{}", tensor.name);
    }
}

#[test]
fn parts_of_a_parallel_block_are_its_rows_in_order_with_the_bytes_of_the_whole() {
    let mut setup = mixed(["seq_bn", "par_bn"], |children| Composition::Parallel { children }, &["a", "b"]);
    for trained in [Trained::default(), setup.trained.clone()] {
        setup.trained = trained;
        let network = shaken(&setup);
        let tokens = rows(&[14; 50], 7).tokens;
        let (whole, apart) = (network.predict(&tokens, &[]).unwrap(), network.apart(&tokens).unwrap());
        // 768 tokens for both of them.
        assert_eq!(apart.iter().map(crate::Tokens::rows).collect::<Vec<_>>(), [27, 23]);
        let parts: Vec<_> = apart.iter().map(|part| network.share().predict(part, &[]).unwrap()).collect();
        for (number, head) in whole.heads.iter().enumerate() {
            let logits: Vec<f32> = parts.iter().flat_map(|part| part.heads[number].logits.clone()).collect();
            assert_eq!(logits, head.logits, "{}", head.head);
        }
        // What is packed once gives what is packed for each product.
        let frozen = shaken(&Setup { trained: Trained::default(), ..setup.clone() });
        assert_eq!(frozen.predict(&tokens, &[]).unwrap(), whole);
    }
    let mut cut = setup;
    cut.composition = cut
        .composition
        .map(|block| Composition::BatchSplit { children: block.children().to_vec(), batch_sizes: vec![20, 30] });
    assert_eq!(shaken(&cut).apart(&rows(&[14; 50], 7).tokens).unwrap(), [rows(&[14; 50], 7).tokens]);
}

#[test]
fn a_lower_frozen_adapter_changes_no_gradient_above_it() {
    let mut setup = adapter_setup("double_seq_bn", "b");
    setup.adapters.insert(name("a"), AdapterConfig::preset("lora").unwrap());
    let children = vec![Composition::single(name("a")), Composition::single(name("b"))];
    setup.composition = Some(Composition::Stack { children });
    let frozen = shaken(&setup);
    setup.trained.adapters.insert(name("a"));
    let both = shaken(&setup);
    let lane = rows(&LENGTHS, 7);
    let (short, long) = (frozen.lane(&lane, &options(None)).unwrap(), both.lane(&lane, &options(None)).unwrap());
    assert!(short.gradient.len() < long.gradient.len());
    // Adapter a comes first in the layout.
    assert_eq!(short.gradient, long.gradient[long.gradient.len() - short.gradient.len()..]);
}

#[test]
fn skipped_layers_get_no_gradient() {
    let network = shaken(&adapter_setup("lora", "a"));
    let output = network.lane(&rows(&LENGTHS, 7), &LaneOptions { skip_layers: &[0], ..options(None) }).unwrap();
    for tensor in &network.layout().tensors {
        let part = &output.gradient[tensor.offset..][..tensor.elements()];
        let zero = part.iter().all(|&value| value == 0.0);
        assert_eq!(zero, tensor.name.contains(".layer.0."), "{}", tensor.name);
    }
}

#[test]
fn a_head_alone_is_trained_without_a_backward_through_the_trunk() {
    let setup = Setup {
        heads: vec![(name("a"), classification(&["x", "y", "z"]))],
        trained: Trained { heads: [name("a")].into(), ..Trained::default() },
        ..Setup::default()
    };
    let output = shaken(&setup).lane(&rows(&LENGTHS, 7), &options(None)).unwrap();
    assert!(output.loss > 0.0 && output.gradient.iter().any(|&value| value != 0.0));
}

#[test]
fn gradients_fit_the_loss() {
    for (what, setup) in every_setup() {
        let network = shaken(&setup);
        let lane = rows(&LENGTHS, 7);
        let start = network.parameters();
        let gradient = network.lane(&lane, &options(None)).unwrap().gradient;
        let slope: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
        let at = |step: f64| {
            #[expect(clippy::cast_possible_truncation, reason = "parameters are fp32")]
            let moved: Vec<f32> = start.iter().zip(&gradient).map(|(p, g)| p + (step * f64::from(*g)) as f32).collect();
            network.set_parameters(&moved);
            network.lane(&lane, &options(None)).unwrap().loss
        };
        let step = 2e-3 / slope.sqrt();
        let measured = (at(step) - at(-step)) / (2.0 * step);
        assert!((measured / slope - 1.0).abs() < 0.02, "{what}: measured {measured}, gradient says {slope}");
    }
}

#[test]
fn parameters_are_seen_by_all_that_share_them() {
    let network = shaken(&adapter_setup("seq_bn", "a"));
    let other = network.share();
    let values: Vec<f32> = (0u16..).map(|n| f32::from(n) * 1e-4).take(network.layout().len).collect();
    network.set_parameters(&values);
    assert_eq!(other.parameters(), values);
}

#[test]
fn a_fusion_says_how_it_attends() {
    let prediction = shaken(&fusion_setup(fusion_alone())).predict(&rows(&LENGTHS, 7).tokens, &[]).unwrap();
    let layers: Vec<(u32, u64)> = prediction.fusion_attention.iter().map(|note| (note.layer, note.tokens)).collect();
    assert_eq!(layers, [(0, 37), (1, 4)]);
    for note in &prediction.fusion_attention {
        assert!((note.weights.iter().sum::<f64>() - 1.0).abs() < 1e-6 && note.weights.len() == 2);
    }
}

#[test]
fn splits_serve_their_own_tokens() {
    let children = vec![Composition::single(name("a")), Composition::single(name("b"))];
    let mut setup = adapter_setup("seq_bn", "a");
    setup.adapters.insert(name("b"), AdapterConfig::preset("seq_bn").unwrap());
    setup.trained.adapters.insert(name("b"));
    setup.composition = Some(Composition::Split { children, splits: vec![9, 5] });
    let network = shaken(&setup);
    let gradient_of = |lengths: &[usize], adapter: &str| {
        let gradient = network.lane(&rows(lengths, 7), &options(None)).unwrap().gradient;
        let mine = network.layout().tensors.iter().filter(|tensor| tensor.name.contains(adapter));
        mine.flat_map(|tensor| gradient[tensor.offset..][..tensor.elements()].to_vec()).collect::<Vec<f32>>()
    };
    assert!(gradient_of(&[9, 4], ".adapters.b.").iter().all(|&value| value == 0.0));
    assert!(gradient_of(&[9, 12], ".adapters.b.").iter().any(|&value| value != 0.0));
    setup.composition =
        Some(Composition::Split { children: setup.composition.unwrap().children().to_vec(), splits: vec![3, 4] });
    let error = shaken(&Setup { composition: setup.composition, ..network.setup().clone() })
        .lane(&rows(&[8], 0), &options(None))
        .unwrap_err();
    assert!(error.to_string().contains("but a row has 8 tokens"), "{error}");
}

/// Two adapters of different methods, their composition, and a head for each.
fn mixed(methods: [&str; 2], block: impl Fn(Vec<Composition>) -> Composition, heads: &[&str]) -> Setup {
    let mut setup = adapter_setup(methods[0], "a");
    setup.adapters.insert(name("b"), AdapterConfig::preset(methods[1]).unwrap());
    setup.composition = Some(block(["a", "b"].map(|adapter| Composition::single(name(adapter))).to_vec()));
    setup.heads = heads.iter().map(|head| (name(head), classification(&["x", "y", "z"]))).collect();
    setup.trained = Trained::all(&setup);
    setup
}

/// Every composition of two methods.
fn compositions(methods: [&str; 2]) -> [(String, Setup); 3] {
    let named = |what: &str| format!("{what} of {} and {}", methods[0], methods[1]);
    let cut = |children| Composition::BatchSplit { children, batch_sizes: vec![1, 3] };
    [
        (named("Parallel"), mixed(methods, |children| Composition::Parallel { children }, &["a", "b"])),
        (named("BatchSplit"), mixed(methods, cut, &["a", "b"])),
        (named("Stack"), mixed(methods, |children| Composition::Stack { children }, &["a"])),
    ]
}

#[test]
fn rows_of_another_method_are_served_as_if_each_adapter_stood_alone() {
    let lane = rows(&LENGTHS, 7);
    let [first, rest] = split(&lane, 1);
    for method in ["seq_bn", "par_bn", "lora"] {
        for other in PRESETS {
            let parallel = mixed([method, other], |children| Composition::Parallel { children }, &["a", "b"]);
            let batch_sizes = vec![1, 3];
            let cut = |children| Composition::BatchSplit { children, batch_sizes: batch_sizes.clone() };
            let cut = mixed([method, other], cut, &["a", "b"]);
            // The same weights serve both setups and each adapter alone.
            let weights = shaken_weights(&parallel);
            let logits = |setup: &Setup, lane: &Lane| {
                let network = Network::new(tiny_trunk(), setup.clone(), weights.clone()).unwrap();
                let heads = network.predict(&lane.tokens, &[]).unwrap().heads;
                heads.into_iter().flat_map(|head| head.logits).collect::<Vec<f32>>()
            };
            let alone = |adapter: &str, method: &str, lane: &Lane| logits(&adapter_setup(method, adapter), lane);
            let expected = [alone("a", method, &lane), alone("b", other, &lane)].concat();
            let difference = largest_difference(&logits(&parallel, &lane), &expected);
            assert!(difference < 1e-6, "Parallel of {method} and {other}: {difference}");
            let expected = [alone("a", method, &first), alone("b", other, &rest)].concat();
            let difference = largest_difference(&logits(&cut, &lane), &expected);
            assert!(difference < 1e-6, "BatchSplit of {method} and {other}: {difference}");
        }
    }
}

#[test]
fn averages_of_adapters_that_stand_differently_are_refused() {
    let average = |children| Composition::Average { children, weights: vec![0.5, 0.5], normalize: true };
    for other in ["double_seq_bn", "par_bn", "lora"] {
        let error = refusal(&mixed(["seq_bn", other], average, &["a"]), |_| {}).to_string();
        assert!(error.contains("average adapters of one method"), "{other}: {error}");
    }
    shaken(&mixed(["seq_bn", "seq_bn"], average, &["a"]));
}

fn refusal(setup: &Setup, change: impl FnOnce(&mut Tensors)) -> EngineError {
    let trunk = tiny_trunk();
    let mut weights = crate::initial_weights(setup, trunk.description(), 1).unwrap_or_default();
    change(&mut weights);
    Network::new(trunk, setup.clone(), weights).err().expect("this network must be refused")
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let key = "bert.encoder.layer.1.output.adapters.a.adapter_up.weight";
    let error = refusal(&adapter_setup("seq_bn", "a"), |weights| drop(weights.remove(key)));
    assert!(matches!(&error, EngineError::MissingTensor { name, .. } if name == key), "{error}");
    let error = refusal(&adapter_setup("seq_bn", "a"), |weights| {
        weights.get_mut(key).unwrap().shape.reverse();
    });
    assert!(matches!(&error, EngineError::Shape { found, .. } if found == &[1, 16]), "{error}");
}

#[test]
fn setups_that_do_not_fit_are_refused_with_the_reason() {
    let pair = |block: fn(Vec<Composition>) -> Composition, preset: &str| {
        let mut setup = adapter_setup(preset, "a");
        setup.adapters.insert(name("b"), AdapterConfig::preset(preset).unwrap());
        setup.composition = Some(block(vec![Composition::single(name("a")), Composition::single(name("b"))]));
        refusal(&setup, |_| {}).to_string()
    };
    let fuse = |children| Composition::Fuse { children, name: None };
    let parallel = |children| Composition::Parallel { children };
    assert!(pair(fuse, "lora").contains("a is LoRA, which Fuse cannot hold"));
    assert!(pair(fuse, "seq_bn").contains("names fusion a,b, which the setup does not describe"));
    assert!(pair(parallel, "seq_bn").contains("needs 2 heads, the setup has 1"));
    let mut setup = adapter_setup("seq_bn", "a");
    setup.composition = Some(Composition::single(name("c")));
    assert!(refusal(&setup, |_| {}).to_string().contains("names adapter c, which the setup does not describe"));
}

type Change = fn(&mut Lane);

#[test]
fn rows_that_do_not_fit_are_refused_with_value_and_bound() {
    let network = shaken(&adapter_setup("seq_bn", "a"));
    let refused = |change: fn(&mut Lane)| {
        let mut lane = rows(&[5, 6], 0);
        change(&mut lane);
        network.lane(&lane, &options(None)).unwrap_err().to_string()
    };
    let cases: [(Change, &str); 6] = [
        (|lane| *lane = rows(&[15], 0), "row 0 of the lane has 15 tokens, the model takes 1 to 14"),
        (|lane| lane.tokens.ids[2] = 200, "token id 200 is outside the vocabulary of 200"),
        (|lane| lane.tokens.type_ids[2] = 2, "segment id 2 is outside the model's 2 segment types"),
        (|lane| lane.targets = Targets::Classes(vec![0, 3]), "head a: class 3 is outside its 3 labels"),
        (|lane| lane.targets = Targets::Values(vec![0.0; 2]), "head a: classification needs class ids"),
        (|lane| lane.rows.truncate(1), "a lane of 2 rows has 1 row numbers and 2 targets"),
    ];
    for (change, message) in cases {
        let found = refused(change);
        assert!(found.contains(message), "{found}");
    }
}
