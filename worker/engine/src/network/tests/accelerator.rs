//! What an accelerator computes, as far as a processor can show it: libtorch alone, in few shapes, with one wait for all
//! lanes of an update, in front of which the next one's numbers are sent; and products in fewer bits than fp32.

use graftwork_shared::training::Precision;

use super::{LENGTHS, compositions, every_setup, fusion_alone, fusion_setup, options, split};
use crate::{
    LaneOutput, Network, StagedLane, host,
    network::Input,
    rows::{Dropout, Lane},
    setup::Setup,
    spans::{FILLER, rounded},
    testing::{adapter_setup, largest_difference, rows, shaken, shaken_weights, tiny_trunk},
    transfer::{take_copies, take_waits},
};

/// Computes as if tensors lay on an accelerator; gives how often it would have been waited for.
fn elsewhere<T>(compute: impl FnOnce() -> T) -> (T, u32) {
    host::OFF.set(true);
    take_waits();
    take_copies();
    let result = compute();
    host::OFF.set(false);
    (result, take_waits())
}

fn setups() -> Vec<(String, Setup)> {
    let mut setups = every_setup();
    for (method, other) in [("seq_bn", "par_bn"), ("double_seq_bn", "lora")] {
        setups.extend(compositions([method, other]));
    }
    setups
}

fn near(found: &LaneOutput, expected: &LaneOutput) -> bool {
    let largest = expected.gradient.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let difference = largest_difference(&found.gradient, &expected.gradient);
    difference <= 1e-6 + 2e-5 * largest && (found.loss - expected.loss).abs() < 1e-6
}

#[test]
fn an_accelerator_gives_what_the_processor_gives_and_is_waited_for_once() {
    for (what, setup) in setups() {
        let network = shaken(&setup);
        let lane = rows(&LENGTHS, 7);
        for dropout in [None, Some(Dropout { seed: 1, base_model: true })] {
            let expected = network.lane(&lane, &options(dropout)).unwrap();
            let (found, waits) = elsewhere(|| network.lane(&lane, &options(dropout)).unwrap());
            assert!(near(&found, &expected), "{what} {dropout:?}: {} {}", found.loss, expected.loss);
            assert_eq!(waits, 1, "{what}");
            let parts = network.parts(1);
            let mut flat = vec![f32::NAN; found.gradient.len()];
            let give = &mut |part, numbers: Vec<f32>| parts.place(part, &numbers, &mut flat);
            let (loss, waits) = elsewhere(|| network.lane_in_parts(&lane, &options(dropout), &parts, give).unwrap());
            assert_eq!((LaneOutput { loss, gradient: flat }, waits), (found, 1), "{what}");
        }
        let expected = network.predict(&lane.tokens, &[]).unwrap();
        let (found, waits) = elsewhere(|| network.predict(&lane.tokens, &[]).unwrap());
        for (found, expected) in found.heads.iter().zip(&expected.heads) {
            assert!(largest_difference(&found.logits, &expected.logits) < 1e-5, "{what}");
        }
        // Each layer of a fusion tells its attention with the logits of all heads.
        assert_eq!(waits, 1, "{what}");
        assert_eq!(found.fusion_attention.len(), expected.fusion_attention.len(), "{what}");
        for (found, expected) in found.fusion_attention.iter().zip(&expected.fusion_attention) {
            assert_eq!(found.tokens, expected.tokens);
            assert!(found.weights.iter().zip(&expected.weights).all(|(a, b)| (a - b).abs() < 1e-6), "{what}");
        }
    }
}

/// Lanes of other lengths and rows, as those of one update.
fn lanes(count: usize) -> Vec<Lane> {
    let lengths = [&LENGTHS[..], &[5, 9, 2], &[14], &[1, 8, 8, 3, 6]];
    (0..count).map(|number| rows(lengths[number % 4], 7 + 10 * number as u64)).collect()
}

fn staged(network: &Network, lanes: &[Lane]) -> Vec<StagedLane> {
    lanes.iter().map(|lane| network.stage(lane).unwrap()).collect()
}

#[test]
fn a_step_is_waited_for_once_whatever_the_number_of_its_lanes() {
    for (what, setup) in setups() {
        let network = shaken(&setup);
        for count in [1, 2, 4] {
            // BatchSplit takes so many rows and no others.
            let lanes = if what.starts_with("BatchSplit") { vec![rows(&LENGTHS, 7); count] } else { lanes(count) };
            let options = options(Some(Dropout { seed: 1, base_model: true }));
            let alone: Vec<LaneOutput> = lanes.iter().map(|lane| network.lane(lane, &options).unwrap()).collect();
            let (each, waits) =
                elsewhere(|| lanes.iter().map(|lane| network.lane(lane, &options).unwrap()).collect::<Vec<_>>());
            assert_eq!(waits as usize, count);
            let (together, waits) = elsewhere(|| network.lanes(&staged(&network, &lanes), &options, || ()));
            assert_eq!((together.len(), waits), (count, 1), "{what}");
            assert_eq!(together, each, "{what}: lanes that are queued together have the bytes of each alone");
            assert!(together.iter().zip(&alone).all(|(found, expected)| near(found, expected)), "{what}");
            // On the processor they have those of the kernels.
            assert_eq!(network.lanes(&staged(&network, &lanes), &options, || ()), alone, "{what}");
        }
    }
}

#[test]
fn the_next_lanes_are_on_their_way_before_the_wait() {
    let network = shaken(&adapter_setup("seq_bn", "a"));
    let (first, second) = (lanes(2), lanes(4).split_off(2));
    let run = |ahead: bool| {
        elsewhere(|| {
            let now = staged(&network, &first);
            let (mut next, mut calls) = (Vec::new(), 0);
            take_copies();
            let one = network.lanes(&now, &options(None), || {
                assert_eq!(take_waits(), 0, "all lanes are queued, and none was waited for");
                calls += 1;
                let computing = take_copies();
                if ahead {
                    next = staged(&network, &second);
                    // Indices and targets of each lane.
                    assert_eq!((take_copies(), take_waits()), (4, 0));
                }
                assert!(computing > 0, "places of rows are sent while lanes are queued");
            });
            assert_eq!((calls, take_waits(), take_copies()), (1, 1, 0), "nothing is sent behind the wait");
            if !ahead {
                next = staged(&network, &second);
            }
            let two = network.lanes(&next, &options(None), || ());
            (one, two, take_copies())
        })
        .0
    };
    let ((one, two, copies), (alike, after, all_copies)) = (run(true), run(false));
    assert_eq!((one, two), (alike, after));
    assert_eq!(copies + 4, all_copies, "what was sent ahead is not sent again");
}

#[test]
fn lanes_of_fp16_are_waited_for_once_where_none_overflows() {
    let network = in_precision(&adapter_setup("seq_bn", "a"), Precision::Fp16);
    let lanes = lanes(4);
    let each: Vec<LaneOutput> =
        elsewhere(|| lanes.iter().map(|lane| network.lane(lane, &options(None)).unwrap()).collect()).0;
    let (found, waits) = elsewhere(|| network.lanes(&staged(&network, &lanes), &options(None), || ()));
    assert_eq!((found, waits), (each, 1));
}

#[test]
fn a_lane_that_does_not_fit_is_not_staged() {
    let network = shaken(&adapter_setup("seq_bn", "a"));
    let mut lane = rows(&LENGTHS, 7);
    lane.rows.pop();
    for found in [network.stage(&lane).err(), elsewhere(|| network.stage(&lane).err()).0] {
        assert!(found.unwrap().to_string().contains("3 row numbers"));
    }
    assert!(network.lanes(&[], &options(None), || ()).is_empty());
    let mut called = false;
    assert!(elsewhere(|| network.lanes(&[], &options(None), || called = true)).0.is_empty() && called);
}

#[test]
fn fillers_make_shapes_few_and_change_no_result() {
    let network = shaken(&fusion_setup(fusion_alone()));
    let mut shapes = std::collections::BTreeSet::new();
    for number in 0..400_usize {
        let lengths: Vec<usize> =
            (0..=number % 23).map(|row| 1 + (number * 11 + number / 14 + row * row * 5) % 14).collect();
        let lane = rows(&lengths, 7);
        let input = Input::new(&lane.tokens, &lane.rows, network.description());
        let (asked, tokens) = (input.spans.clone(), input.spans.tokens());
        let filled = input.filled(network.description());
        let (kept, fillers) = filled.spans.0.split_at(asked.rows());
        assert_eq!(kept, asked.0);
        assert!(fillers.iter().all(|span| span.row == FILLER && (1..=14).contains(&span.length)));
        let ends = filled.spans.0.iter().map(|span| span.start + span.length);
        assert!(filled.spans.0.iter().skip(1).map(|span| span.start).eq(ends.take(filled.spans.rows() - 1)));
        let sizes = [filled.ids.len(), filled.type_ids.len(), filled.positions.len()];
        assert_eq!(sizes, [filled.spans.tokens(); 3]);
        assert!(filled.spans.tokens() <= tokens + 16 + tokens / 4, "{tokens} became {}", filled.spans.tokens());
        // What kernels read: tokens, rows, and the places of a row in attention.
        let longest = filled.spans.0.iter().map(|span| span.length).max().unwrap();
        shapes.insert((filled.spans.tokens(), filled.spans.rows(), rounded(longest)));
    }
    assert!(shapes.len() <= 60, "{} shapes", shapes.len());
    // Rows alone, and beside others that need other fillers.
    let lane = rows(&[5, 9, 3, 14, 2, 2, 8], 7);
    let of = |lane: &Lane| elsewhere(|| network.lane(lane, &options(None)).unwrap()).0;
    let (whole, [a, b]) = (of(&lane), split(&lane, 3).map(|part| of(&part)));
    let gradient = a.gradient.iter().zip(&b.gradient).map(|(a, b)| a + b).collect();
    assert!(near(&LaneOutput { loss: a.loss + b.loss, gradient }, &whole));
}

fn in_precision(setup: &Setup, precision: Precision) -> Network {
    Network::new(tiny_trunk().in_precision(precision), setup.clone(), shaken_weights(setup)).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// bf16 keeps 8 bits of a product's factors, fp16 keeps 11.
#[test]
fn products_in_fewer_bits_stay_near_those_of_fp32() {
    for (what, setup) in setups() {
        let lane = rows(&LENGTHS, 7);
        let expected = shaken(&setup).lane(&lane, &options(None)).unwrap();
        let full = in_precision(&setup, Precision::Fp32).lane(&lane, &options(None)).unwrap();
        assert_eq!(full, expected, "{what}");
        let mut far = Vec::new();
        for (precision, of_loss, of_direction) in [(Precision::Bf16, 2e-2, 0.999), (Precision::Fp16, 3e-3, 0.9999)] {
            let network = in_precision(&setup, precision);
            let found = network.lane(&lane, &options(None)).unwrap();
            let cosine = cosine(&found.gradient, &expected.gradient);
            let apart = (found.loss - expected.loss).abs();
            assert!(found != expected, "{what}: products are those of fp32");
            assert!(apart < of_loss && cosine > of_direction, "{what} {precision}: {apart} {cosine}");
            assert_eq!(network.lane(&lane, &options(None)).unwrap(), found, "the same bytes again");
            far.push(1.0 - cosine);
        }
        assert!(far[1] < far[0], "{what}: fp16 is nearer than bf16, {far:?}");
    }
}

#[test]
fn a_trunk_is_converted_once_and_back_to_its_own_numbers() {
    let trunk = tiny_trunk();
    let half = trunk.in_precision(Precision::Bf16);
    assert_eq!((trunk.precision(), half.precision()), (Precision::Fp32, Precision::Bf16));
    let setup = adapter_setup("seq_bn", "a");
    let lane = rows(&LENGTHS, 7);
    let of = |trunk: crate::Trunk| {
        Network::new(trunk, setup.clone(), shaken_weights(&setup)).unwrap().lane(&lane, &options(None)).unwrap()
    };
    assert_eq!(of(half.share().in_precision(Precision::Fp32)), of(trunk.share()));
    assert_eq!(of(trunk.in_precision(Precision::Bf16)), of(half));
}

#[test]
fn parts_of_a_scaled_gradient_are_those_of_the_whole() {
    let network = in_precision(&adapter_setup("seq_bn", "a"), Precision::Fp16);
    let lane = rows(&LENGTHS, 7);
    let whole = network.lane(&lane, &options(None)).unwrap();
    let parts = network.parts(1);
    let mut flat = vec![f32::NAN; whole.gradient.len()];
    let loss = network
        .lane_in_parts(&lane, &options(None), &parts, &mut |part, numbers| parts.place(part, &numbers, &mut flat))
        .unwrap();
    assert_eq!(LaneOutput { loss, gradient: flat }, whole);
}
