//! Sites that are written out give what the recorded ones give.

use graftwork_shared::{
    adapter::{AdapterConfig, FusionConfig},
    composition::Composition,
};

use super::{LENGTHS, compositions, every_setup, fusion_alone, fusion_setup, mixed, options};
use crate::{
    direct::ISLANDS_ALONE,
    island::ISLANDS,
    kernel::{ASKED, Instructions},
    rows::{Dropout, LaneOptions},
    setup::{Setup, Trained},
    testing::{adapter_setup, largest_difference, name, rows, shaken},
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
    for (method, other) in [("seq_bn", "par_bn"), ("seq_bn", "lora"), ("double_seq_bn", "seq_bn")] {
        setups.extend(compositions([method, other]));
    }
    setups
}

#[test]
fn sites_written_out_agree_with_recorded_ones() {
    for (what, setup) in every_setup().into_iter().chain(more_setups()) {
        let network = shaken(&setup);
        let lane = rows(&LENGTHS, 7);
        for dropout in [None, Some(Dropout { seed: 1, base_model: true })] {
            let options = LaneOptions { skip_layers: &[], ..options(dropout) };
            let both = [false, true].map(|islands| {
                ISLANDS_ALONE.set(islands);
                let output = network.lane(&lane, &options).unwrap();
                ISLANDS_ALONE.set(false);
                output
            });
            let [direct, recorded] = both;
            let largest = recorded.gradient.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let difference = largest_difference(&direct.gradient, &recorded.gradient);
            let near = difference <= 1e-6 + 1e-5 * largest && (direct.loss - recorded.loss).abs() < 1e-6;
            assert!(near, "{what} {dropout:?}: {difference} of {largest}, {} {}", direct.loss, recorded.loss);
        }
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
