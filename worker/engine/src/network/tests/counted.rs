//! How much a lane multiplies: fails when work that nobody needs is done again, however fast the machine is.

use graftwork_shared::{adapter::AdapterConfig, composition::Composition};

use super::{LENGTHS, mixed, options};
use crate::{
    kernel::take_multiplications,
    network::{Keep, Network},
    rows::{Dropout, Lane, LaneOptions},
    testing::{adapter_setup, rows, shaken},
};

/// Sizes of the tiny trunk, and the width of a `seq_bn` adapter on it.
struct Sizes {
    d: u64,
    i: u64,
    r: u64,
}

fn sizes(network: &Network) -> Sizes {
    let description = network.description();
    assert_eq!(description.layers, 2);
    Sizes { d: description.hidden_size.into(), i: description.intermediate_size.into(), r: 1 }
}

/// A head of two layers and three classes, which is counted where nothing is recorded.
fn head(d: u64) -> u64 {
    d * d + 3 * d
}

fn memory(memory_bytes: u64) -> Keep {
    Keep { memory_bytes, shelves: None }
}

fn counted(network: &Network, lane: &Lane, skip_layers: &[u32]) -> u64 {
    take_multiplications();
    network.lane(lane, &LaneOptions { skip_layers, ..options(None) }).unwrap();
    take_multiplications()
}

#[test]
fn real_tokens_alone_are_computed_and_the_last_layer_for_first_tokens_alone() {
    let network = shaken(&adapter_setup("seq_bn", "a"));
    let Sizes { d, i, r } = sizes(&network);
    let (tokens, first): (u64, u64) = (37, 4);
    assert_eq!(LENGTHS.iter().sum::<usize>(), 37);
    let below_last = tokens * (4 * d * d + 2 * d * i + 2 * d * r);
    // Of first tokens alone, keys and values too.
    let last = first * (4 * d * d + 2 * d * i + 2 * d * r);
    let back_through_last = first * (4 * d * d + 2 * d * i + 4 * d * r);
    // The lowest adapter needs the gradients of its weights, and nothing below it needs any.
    let lowest = tokens * 3 * d * r;
    let lane = rows(&LENGTHS, 7);
    assert_eq!(counted(&network, &lane, &[]), below_last + last + back_through_last + lowest);
    // Without the adapter of layer 0 the backward ends at that of layer 1.
    let below_last = tokens * (4 * d * d + 2 * d * i);
    assert_eq!(counted(&network, &lane, &[0]), below_last + last + first * 3 * d * r);
}

/// What an exchange with other ranks can hide behind.
#[test]
fn upper_parts_of_a_gradient_are_complete_before_the_layers_below_are_passed() {
    let network = shaken(&adapter_setup("seq_bn", "a"));
    let parts = network.parts(1);
    let lane = rows(&LENGTHS, 7);
    let whole = counted(&network, &lane, &[]);
    let mut between = Vec::new();
    take_multiplications();
    network.lane_in_parts(&lane, &options(None), &parts, &mut |_, _| between.push(take_multiplications())).unwrap();
    assert_eq!(parts.count(), 3);
    assert_eq!(take_multiplications(), 0);
    assert_eq!(between.iter().sum::<u64>(), whole);
    // The head, then the last layer, then the lowest adapter.
    let Sizes { d, i, r } = sizes(&network);
    let back_through_last = 4 * (4 * d * d + 2 * d * i + 4 * d * r);
    assert_eq!(between[1..], [back_through_last, 37 * 3 * d * r]);
}

#[test]
fn layers_below_the_first_adapter_are_computed_once_for_all_of_a_parallel_block() {
    let mut setup = mixed(["seq_bn", "seq_bn"], |children| Composition::Parallel { children }, &["a", "b"]);
    for config in setup.adapters.values_mut() {
        *config = AdapterConfig::preset("seq_bn").unwrap().without(&[0]);
    }
    let network = shaken(&setup);
    let Sizes { d, i, r } = sizes(&network);
    take_multiplications();
    network.predict(&rows(&LENGTHS, 7).tokens, &[]).unwrap();
    let (tokens, first) = (37, 4);
    let below = tokens * (4 * d * d + 2 * d * i);
    let last = 2 * first * (4 * d * d + 2 * d * i + 2 * d * r + head(d));
    assert_eq!(take_multiplications(), below + last);
}

#[test]
fn a_fusion_needs_three_products_whatever_the_number_of_adapters() {
    let setup = super::fusion_setup(super::fusion_alone());
    let network = shaken(&setup);
    let Sizes { d, i, r } = sizes(&network);
    take_multiplications();
    network.predict(&rows(&LENGTHS, 7).tokens, &[]).unwrap();
    // Of each adapter: down, up, and the direction of the scores times its up projection and bias.
    let of_token = |adapters: u64| 3 * d * d + adapters * (d * r + 2 * d * (r + 1));
    let (tokens, first) = (37, 4);
    let trunk = (tokens + first) * (4 * d * d + 2 * d * i);
    assert_eq!(take_multiplications(), trunk + (tokens + first) * of_token(2) + first * head(d));
}

#[test]
fn rows_of_a_pass_with_dropout_in_the_trunk_are_not_kept() {
    let network = shaken(&adapter_setup("seq_bn", "a"));
    let lane = rows(&LENGTHS, 7);
    let with = options(Some(Dropout { seed: 1, base_model: true }));
    let expected = network.lane(&lane, &with).unwrap();
    network.keep_below(&memory(1 << 20));
    network.lane(&lane, &options(None)).unwrap();
    assert_eq!(network.lane(&lane, &with).unwrap(), expected);
}
