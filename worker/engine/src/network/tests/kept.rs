//! What lies below the first adapter is computed once and changes no byte: by counted multiplications.

use std::{fs, path::PathBuf, sync::Arc};

use graftwork_shared::{adapter::AdapterConfig, composition::Composition, digest::Digest};
use tempfile::TempDir;

use super::{LENGTHS, fusion_alone, fusion_setup, mixed, options};
use crate::{
    kernel::take_multiplications,
    network::{Keep, Network},
    rows::{Lane, LaneOptions, LaneOutput, Prediction, Tokens},
    setup::Setup,
    shelf::Shelves,
    testing::{adapter_setup, rows, shaken},
};

fn memory(memory_bytes: u64) -> Keep {
    Keep { memory_bytes, shelves: None }
}

fn on_shelves(folder: &TempDir, memory_bytes: u64) -> Keep {
    let shelves = Arc::new(Shelves::new(folder.path().join("shelves"), 1 << 20));
    Keep { memory_bytes, shelves: Some((shelves, Digest::of(b"tiny trunk"))) }
}

/// The first adapter at the end of layer 0, or anywhere in layer 1.
fn setup(preset: &str, from_layer_1: bool) -> Setup {
    let mut setup = adapter_setup(preset, "a");
    if from_layer_1 {
        setup.adapters.values_mut().for_each(|config| *config = config.clone().without(&[0]));
    }
    setup
}

fn counted(network: &Network, lane: &Lane) -> (u64, LaneOutput) {
    take_multiplications();
    let output = network.lane(lane, &options(None)).unwrap();
    (take_multiplications(), output)
}

fn predicted(network: &Network, tokens: &Tokens, skip_layers: &[u32]) -> (u64, Prediction) {
    take_multiplications();
    let prediction = network.predict(tokens, skip_layers).unwrap();
    (take_multiplications(), prediction)
}

/// Multiplications of so many tokens in layer 0 without its adapter.
fn layer(network: &Network, tokens: u64) -> u64 {
    let description = network.description();
    let (d, i) = (u64::from(description.hidden_size), u64::from(description.intermediate_size));
    tokens * (4 * d * d + 2 * d * i)
}

#[test]
fn rows_are_computed_once_wherever_they_are_kept() {
    for (preset, from_layer_1) in [("seq_bn", false), ("double_seq_bn", true), ("lora", true)] {
        let network = shaken(&setup(preset, from_layer_1));
        let (lane, other) = (rows(&LENGTHS, 7), rows(&[5, 12], 9));
        network.keep_below(&memory(0));
        let (whole, expected) = counted(&network, &lane);
        let (of_other, expected_other) = counted(&network, &other);
        for (memory_bytes, on_disk) in [(1 << 20, false), (0, true), (2000, true)] {
            let folder = TempDir::new().unwrap();
            let keep = if on_disk { on_shelves(&folder, memory_bytes) } else { memory(memory_bytes) };
            network.keep_below(&keep);
            assert_eq!(counted(&network, &lane), (whole, expected.clone()), "{preset} {keep:?}");
            let again = (whole - layer(&network, 37), expected.clone());
            assert_eq!(counted(&network, &lane), again, "{preset} {keep:?}");
            // Row 9 of the other lane has other tokens than row 9 of the first one.
            assert_eq!(counted(&network, &other), (of_other, expected_other.clone()));
            assert_eq!(counted(&network, &lane), again);
        }
        // A bound that no row fits in keeps nothing.
        network.keep_below(&memory(100));
        assert_eq!([counted(&network, &lane).0, counted(&network, &lane).0], [whole, whole]);
    }
}

#[test]
fn evaluations_read_what_training_kept_and_the_other_way_round() {
    let folder = TempDir::new().unwrap();
    let lane = rows(&LENGTHS, 7);
    for from_layer_1 in [false, true] {
        let network = shaken(&setup("seq_bn", from_layer_1));
        for skip_layers in [&[] as &[u32], &[0], &[0, 1]] {
            network.keep_below(&memory(0));
            let (whole, expected) = predicted(&network, &lane.tokens, skip_layers);
            let training = counted(&network, &lane);
            network.keep_below(&on_shelves(&folder, 0));
            network.lane(&lane, &options(None)).unwrap();
            let kept = (whole - layer(&network, 37), expected.clone());
            assert_eq!(predicted(&network, &lane.tokens, skip_layers), kept, "{skip_layers:?}");
            network.keep_below(&memory(1 << 20));
            assert_eq!(predicted(&network, &lane.tokens, skip_layers), (whole, expected));
            assert_eq!(counted(&network, &lane), (training.0 - layer(&network, 37), training.1));
        }
    }
}

#[test]
fn layers_that_training_leaves_out_change_nothing_of_what_is_kept() {
    let network = shaken(&setup("seq_bn", false));
    let lane = rows(&LENGTHS, 7);
    let run = |skip_layers: &[u32]| network.lane(&lane, &LaneOptions { skip_layers, ..options(None) }).unwrap();
    network.keep_below(&memory(0));
    let expected = [&[] as &[u32], &[0], &[1]].map(run);
    network.keep_below(&memory(1 << 20));
    run(&[0]);
    assert_eq!([&[] as &[u32], &[0], &[1]].map(run), expected);
}

#[test]
fn other_stages_find_what_one_has_kept() {
    let folder = TempDir::new().unwrap();
    let keep = on_shelves(&folder, 0);
    let lane = rows(&LENGTHS, 7);
    let first = shaken(&setup("seq_bn", true));
    first.keep_below(&keep);
    first.lane(&lane, &options(None)).unwrap();
    drop(first);
    // Another method whose first adapter stands in the same layer; and in another process, one of another place.
    for (preset, from_layer_1, found) in [("lora", true, true), ("double_seq_bn", true, true), ("seq_bn", false, false)]
    {
        let network = shaken(&setup(preset, from_layer_1));
        network.keep_below(&memory(0));
        let (whole, expected) = counted(&network, &lane);
        let elsewhere = on_shelves(&folder, 0);
        network.keep_below(if found { &keep } else { &elsewhere });
        let saved = if found { layer(&network, 37) } else { 0 };
        assert_eq!(counted(&network, &lane), (whole - saved, expected), "{preset}");
    }
}

#[test]
fn rows_that_come_once_are_kept_when_they_come_again_after_all() {
    let folder = TempDir::new().unwrap();
    let network = shaken(&setup("seq_bn", true)).for_rows_that_return(false);
    network.keep_below(&on_shelves(&folder, 1 << 20));
    let lane = rows(&LENGTHS, 7);
    let [first, second, third] = [(); 3].map(|()| counted(&network, &lane));
    assert_eq!(first, second);
    assert_eq!(third, (first.0 - layer(&network, 37), first.1));
}

#[test]
fn rows_with_the_same_ids_and_other_segments_are_other_rows() {
    let network = shaken(&setup("seq_bn", true));
    let lane = rows(&LENGTHS, 7);
    let mut pair = lane.clone();
    pair.tokens.type_ids.iter_mut().skip(3).for_each(|segment| *segment = 1);
    network.keep_below(&memory(0));
    let expected = [&lane, &pair].map(|lane| counted(&network, lane));
    assert_ne!(expected[0].1, expected[1].1);
    network.keep_below(&memory(1 << 20));
    assert_eq!([&lane, &pair].map(|lane| counted(&network, lane)), expected);
    let again = [&lane, &pair].map(|lane| counted(&network, lane));
    assert_eq!([&again[0].1, &again[1].1], [&expected[0].1, &expected[1].1]);
    assert_eq!(again[1].0, expected[1].0 - layer(&network, 37));
}

#[test]
fn compositions_read_what_is_kept() {
    let parallel = || mixed(["seq_bn", "seq_bn"], |children| Composition::Parallel { children }, &["a", "b"]);
    let mut above = parallel();
    for config in above.adapters.values_mut() {
        *config = AdapterConfig::preset("seq_bn").unwrap().without(&[0]);
    }
    for setup in [parallel(), above, fusion_setup(fusion_alone())] {
        let network = shaken(&setup);
        let lane = rows(&LENGTHS, 7);
        network.keep_below(&memory(0));
        let (whole, expected) = counted(&network, &lane);
        let (whole_prediction, expected_prediction) = predicted(&network, &lane.tokens, &[]);
        network.keep_below(&memory(1 << 20));
        assert_eq!(counted(&network, &lane).1, expected);
        // Below the place where the rows are repeated they are kept once.
        assert_eq!(counted(&network, &lane), (whole - layer(&network, 37), expected));
        let prediction = (whole_prediction - layer(&network, 37), expected_prediction);
        assert_eq!(predicted(&network, &lane.tokens, &[]), prediction);
    }
}

#[test]
fn threads_share_what_is_kept() {
    let folder = TempDir::new().unwrap();
    let network = shaken(&setup("seq_bn", true));
    let lanes = [rows(&LENGTHS, 7), rows(&[5, 12], 9)];
    network.keep_below(&memory(0));
    let expected = lanes.each_ref().map(|lane| network.lane(lane, &options(None)).unwrap());
    network.keep_below(&on_shelves(&folder, 2000));
    std::thread::scope(|scope| {
        for handle in [network.share(), network.share(), network.share()] {
            let (lanes, expected) = (&lanes, &expected);
            scope.spawn(move || {
                for _ in 0..20 {
                    let found = lanes.each_ref().map(|lane| handle.lane(lane, &options(None)).unwrap());
                    assert_eq!(found, *expected);
                }
            });
        }
    });
    let kept = lanes.each_ref().map(|lane| counted(&network, lane).0);
    network.keep_below(&memory(0));
    let whole = lanes.each_ref().map(|lane| counted(&network, lane).0);
    assert_eq!(kept, [whole[0] - layer(&network, 37), whole[1] - layer(&network, 17)]);
}

#[test]
fn damaged_values_are_computed_again() {
    let folder = TempDir::new().unwrap();
    let network = shaken(&setup("seq_bn", true));
    let lane = rows(&LENGTHS, 7);
    network.keep_below(&memory(0));
    let whole = counted(&network, &lane);
    network.keep_below(&on_shelves(&folder, 0));
    counted(&network, &lane);
    network.keep_below(&memory(0));
    let shelf: PathBuf = fs::read_dir(folder.path().join("shelves"))
        .unwrap()
        .map(|at| at.unwrap().path())
        .find(|at| at.is_dir())
        .unwrap();
    let files = fs::read_dir(shelf).unwrap().map(|file| file.unwrap().path());
    for rows in files.filter(|path| path.extension().is_some_and(|kind| kind == "rows")) {
        let mut bytes = fs::read(&rows).unwrap();
        bytes.iter_mut().for_each(|byte| *byte ^= 1);
        fs::write(&rows, bytes).unwrap();
    }
    network.keep_below(&on_shelves(&folder, 0));
    assert_eq!(counted(&network, &lane), whole);
    assert_eq!(counted(&network, &lane), (whole.0 - layer(&network, 37), whole.1));
}
