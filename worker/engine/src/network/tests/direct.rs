//! Sites that are written out give what the recorded ones give.

use std::collections::BTreeMap;

use graftwork_shared::{
    adapter::{AdapterConfig, FusionConfig, NonLinearity, ReductionFactor, Scaling},
    composition::Composition,
};
use proptest::{prelude::*, test_runner::RngSeed};

use super::{LENGTHS, compositions, every_setup, fusion_alone, fusion_setup, mixed, options};
use crate::{
    direct::ISLANDS_ALONE,
    island::ISLANDS,
    kernel::{ASKED, Instructions, take_multiplications},
    network::Network,
    rows::{Dropout, Lane, LaneOptions},
    setup::{Setup, Trained},
    testing::{adapter_setup, cases, largest_difference, name, rows, shaken},
};

/// Setups whose sites are written out, beyond those of [`every_setup`].
fn more_setups() -> Vec<(String, Setup)> {
    let mut setups = Vec::new();
    let both = Trained { adapters: [name("slot0"), name("slot1")].into(), ..fusion_alone() };
    setups.push(("fusion with trained adapters".to_owned(), fusion_setup(both)));
    for (what, change) in [
        ("residual before", FusionConfig { residual_before: true, ..FusionConfig::default() }),
        ("query before the norm", FusionConfig { query_before_ln: true, ..FusionConfig::default() }),
        ("dropout", FusionConfig { dropout_prob: Some(0.3), ..FusionConfig::default() }),
        ("key alone", FusionConfig { query: false, value: false, ..FusionConfig::default() }),
        ("value alone", FusionConfig { query: false, key: false, ..FusionConfig::default() }),
    ] {
        let mut setup = fusion_setup(fusion_alone());
        setup.fusions = [("trained".to_owned(), change)].into();
        setups.push((format!("fusion, {what}"), setup));
    }
    for residual_before in [false, true] {
        for trained in [&[][..], &["slot0", "slot1", "slot2"], &["slot1"]] {
            let setup = unlike(FusionConfig { residual_before, ..FusionConfig::default() }, trained);
            setups.push((format!("fusion of unlike adapters, {trained:?} trained, {residual_before}"), setup));
        }
    }
    for (method, other) in [("seq_bn", "par_bn"), ("seq_bn", "lora"), ("double_seq_bn", "seq_bn")] {
        setups.extend(compositions([method, other]));
    }
    setups
}

/// A fusion of adapters with other widths, activations and factors each.
fn unlike(config: FusionConfig, trained: &[&str]) -> Setup {
    let kinds = [(2.0, NonLinearity::Relu, 1.0), (4.0, NonLinearity::Gelu, 2.0), (8.0, NonLinearity::Tanh, 0.5)];
    let adapters =
        ["slot0", "slot1", "slot2"].into_iter().zip(kinds).map(|(slot, (reduction, non_linearity, factor))| {
            let mut config = AdapterConfig::preset("seq_bn").unwrap();
            if let AdapterConfig::Bottleneck(config) = &mut config {
                config.reduction_factor = ReductionFactor::All(reduction);
                config.non_linearity = non_linearity;
                config.scaling = Scaling::Constant(factor);
            }
            (name(slot), config)
        });
    let adapters: BTreeMap<_, _> = adapters.collect();
    let children = adapters.keys().map(|slot| Composition::single(slot.clone())).collect();
    Setup {
        composition: Some(Composition::Fuse { children, name: Some("trained".to_owned()) }),
        adapters,
        fusions: [("trained".to_owned(), config)].into(),
        trained: Trained { adapters: trained.iter().map(|slot| name(slot)).collect(), ..fusion_alone() },
        ..fusion_setup(fusion_alone())
    }
}

/// Holds sites that are written out to recorded ones, over one lane: its gradient here, its loss within so much.
fn agree(what: &str, network: &Network, lane: &Lane, dropout: Option<Dropout>, loss_within: f64) {
    let options = LaneOptions { skip_layers: &[], ..options(dropout) };
    let both = [false, true].map(|islands| {
        ISLANDS_ALONE.set(islands);
        let output = network.lane(lane, &options).unwrap();
        ISLANDS_ALONE.set(false);
        output
    });
    let [direct, recorded] = both;
    let largest = recorded.gradient.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let difference = largest_difference(&direct.gradient, &recorded.gradient);
    let near = difference <= 1e-6 + 1e-5 * largest && (direct.loss - recorded.loss).abs() < loss_within;
    assert!(near, "{what} {dropout:?}: {difference} of {largest}, {} {}", direct.loss, recorded.loss);
}

#[test]
fn sites_written_out_agree_with_recorded_ones() {
    for (what, setup) in every_setup().into_iter().chain(more_setups()) {
        let network = shaken(&setup);
        for dropout in [None, Some(Dropout { seed: 1, base_model: true })] {
            agree(&what, &network, &rows(&LENGTHS, 7), dropout, 1e-6);
        }
    }
}

proptest! {
    // The same cases each time: where a ReLU's input is 0 but for rounding, the two rightly differ, as some case would.
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(11), ..cases(96) })]
    #[test]
    fn and_so_they_do_whatever_rows_come(
        number in any::<prop::sample::Index>(),
        mut lengths in prop::collection::vec(1_usize..=14, 1..9),
        (first_row, seed, drops) in (0_u64..1_000, any::<u64>(), any::<bool>()),
    ) {
        let setups: Vec<_> = every_setup().into_iter().chain(more_setups()).collect();
        let (what, setup) = number.get(&setups);
        if what.starts_with("BatchSplit") {
            // It is of four rows.
            lengths.resize(4, 9);
        }
        let dropout = drops.then_some(Dropout { seed, base_model: seed % 2 == 0 });
        let (what, lane) = (format!("{what}, {lengths:?} from {first_row}"), rows(&lengths, first_row));
        agree(&what, &shaken(setup), &lane, dropout, 1e-6 * (1 + lengths.len()) as f64);
    }
}

/// Islands of one lane: those of heads, and of sites that are not written out.
fn islands(setup: &Setup) -> u32 {
    let network = shaken(setup);
    ISLANDS.set(0);
    network.lane(&rows(&LENGTHS, 7), &options(None)).unwrap();
    ISLANDS.take()
}

#[test]
fn usual_sites_are_written_out_and_unusual_ones_are_islands() {
    for preset in ["seq_bn", "double_seq_bn", "par_bn", "lora"] {
        assert_eq!(islands(&adapter_setup(preset, "a")), 1, "{preset}: the head alone");
    }
    assert_eq!(islands(&fusion_setup(fusion_alone())), 1);
    let parallel = mixed(["seq_bn", "seq_bn"], |children| Composition::Parallel { children }, &["a", "b"]);
    assert_eq!(islands(&parallel), 2, "two heads");
    // A trained factor and a gate are recorded, once in each of two layers.
    assert_eq!(islands(&adapter_setup("scaled_par_bn", "a")), 3);
    let mut gated = adapter_setup("seq_bn", "a");
    for config in gated.adapters.values_mut() {
        let AdapterConfig::Bottleneck(config) = config else { panic!("a bottleneck") };
        config.use_gating = true;
    }
    assert_eq!(islands(&gated), 3);
}

/// The last layer reads whole rows, so that it computes keys and values.
#[test]
fn children_that_differ_by_adapters_alone_share_the_next_layers_projections() {
    let gated = |mut setup: Setup| {
        let mut gate = AdapterConfig::preset("seq_bn").unwrap().without(&[0]);
        let AdapterConfig::Bottleneck(config) = &mut gate else { panic!("a bottleneck") };
        config.use_gating = true;
        setup.adapters.insert(name("g"), gate);
        let stack = |adapters: [&str; 2]| Composition::Stack {
            children: adapters.map(|adapter| Composition::single(name(adapter))).to_vec(),
        };
        setup.composition = Some(Composition::Parallel { children: vec![stack(["a", "g"]), stack(["b", "g"])] });
        setup
    };
    for (methods, narrow) in [
        (["seq_bn", "seq_bn"], true),
        (["seq_bn", "par_bn"], true),
        (["par_bn", "par_bn"], true),
        (["seq_bn"; 2], false),
    ] {
        let mut setup = gated(mixed(methods, |children| Composition::Parallel { children }, &["a", "b"]));
        for adapter in ["a", "b"] {
            let Some(AdapterConfig::Bottleneck(config)) = setup.adapters.get_mut(&name(adapter)) else { panic!() };
            config.reduction_factor = ReductionFactor::All(if narrow { 16.0 } else { 4.0 });
        }
        for trained in [Trained::all(&setup), Trained::default()] {
            setup.trained = trained;
            let network = shaken(&setup);
            let tokens = rows(&LENGTHS, 7).tokens;
            take_multiplications();
            // What frozen adapters have in common with the next layer is computed once for all passes.
            let [first, again] = [0, 1].map(|_| (network.predict(&tokens, &[]).unwrap(), take_multiplications()));
            ISLANDS_ALONE.set(true);
            let expected = (network.predict(&tokens, &[]).unwrap(), take_multiplications());
            ISLANDS_ALONE.set(false);
            assert_eq!(first.0, again.0);
            for (ours, theirs) in first.0.heads.iter().zip(&expected.0.heads) {
                assert!(largest_difference(&ours.logits, &theirs.logits) < 1e-5, "{methods:?}");
            }
            // Islands multiply nothing that is counted. Of narrow adapters three projections of 37 tokens less are.
            let d = u64::from(network.description().hidden_size);
            let (width, height) = if narrow { (2 * d / 16, 2 * (d / 16 + 1)) } else { (2 * d / 4, 0) };
            let through = 3 * height * d * d;
            let alone = expected.1 + 37 * 2 * width * d;
            let together = alone - 3 * 37 * d * d + 3 * d * d + 3 * 37 * height * d;
            let frozen = setup.trained == Trained::default();
            let counted = match (narrow, frozen) {
                (false, _) => [alone, alone],
                (true, true) => [together + through, together],
                (true, false) => [together + through; 2],
            };
            assert_eq!([first.1, again.1], counted, "{methods:?} {narrow} {frozen}");
        }
    }
}

#[test]
fn wider_vectors_change_no_byte_and_plain_instructions_agree() {
    let best = Instructions::here();
    for (what, setup) in every_setup().into_iter().chain(more_setups()) {
        let network = shaken(&setup);
        let lane = rows(&LENGTHS, 7);
        let with = |instructions| {
            ASKED.set(Some(instructions));
            let output = network.lane(&lane, &options(Some(Dropout { seed: 1, base_model: true }))).unwrap();
            ASKED.set(None);
            output
        };
        let expected = with(best);
        let plain = with(Instructions::Plain);
        let largest = expected.gradient.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let difference = largest_difference(&plain.gradient, &expected.gradient);
        assert!(difference <= 1e-6 + 1e-5 * largest, "{what}: {difference} of {largest}");
        if best == Instructions::Avx512 {
            assert_eq!(with(Instructions::Avx2), expected, "{what}");
        }
    }
}
