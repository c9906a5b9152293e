//! Masks drawn on an accelerator by integer tensors, with the very bits that the host draws.
//!
//! Every word of the generator is a 64-bit integer below 2^32. libtorch has no unsigned products of them, so a factor F from
//! 2^31 on is taken as F − 2^32: the product then fits, its lower half is the same, and its upper half lacks the word itself.
//! Only a few numbers of each row are sent; nothing is waited for.

use graftwork_shared::random::Words;
use tch::{Device, Kind, Tensor};

use super::{Address, Masks};
use crate::{
    spans::{Span, Spans, signed},
    transfer,
};

/// Elements of one block.
pub(super) const BLOCK: usize = 8;

/// Masks with fewer elements are drawn on the host: a mask is some 130 calls of libtorch whatever its size, about half a
/// millisecond of the host's, in which it draws so many elements itself.
pub(super) const LEAST: usize = 1 << 18;

/// Words of 32 bits in 64-bit integers.
struct Integers(Tensor);

impl Words for Integers {
    fn filled(&self, word: u32) -> Self {
        Self(Tensor::full([1], i64::from(word), (Kind::Int64, self.0.device())))
    }

    fn times(&self, factor: u64) -> [Self; 2] {
        let factor = i64::try_from(factor).expect("a factor below 2^32");
        let lacks = factor >= 1 << 31;
        let product = self.0.g_mul_scalar(if lacks { factor - (1 << 32) } else { factor });
        let low = product.bitwise_and(0xffff_ffff_i64);
        // Rounds down, below zero too.
        let high = product.bitwise_right_shift_tensor_scalar(32_i64);
        [Self(if lacks { high + &self.0 } else { high }), Self(low)]
    }

    fn mixed(&self, others: &Self, key: u32) -> Self {
        Self(self.0.bitwise_xor_tensor(&others.0).bitwise_xor(i64::from(key)))
    }
}

/// A mask's address, and which numbers are dropped; see [`super::drop_of`].
type What = (Address, (u32, f32));

/// The mask of [`Masks::tokens`] for a width that is a multiple of [`BLOCK`].
pub(super) fn tokens(masks: &Masks, (address, drop): What, spans: &Spans, width: usize) -> Tensor {
    let blocks = width / BLOCK;
    let of_span = |span: &Span| {
        let first = Begin::of(address, span);
        (span.first..span.first + span.length).map(move |token| first.moved(token * blocks))
    };
    let begins: Vec<Begin> = spans.0.iter().flat_map(of_span).collect();
    mask(&numbers(masks, &begins, blocks), drop)
}

/// The mask of [`Masks::attention_side_by_side`].
pub(super) fn attention(
    masks: &Masks,
    (address, drop): What,
    (queries, keys): (&Spans, &Spans),
    [heads, width, depth]: [usize; 3],
) -> Tensor {
    let rows = queries.0.iter().zip(&keys.0);
    let most = rows.map(|(query, key)| (heads.saturating_sub(1) * key.visible + query.length) * key.visible).max();
    let blocks = most.unwrap_or(0).div_ceil(BLOCK).max(1);
    let begins: Vec<Begin> = queries.0.iter().map(|span| Begin::of(address, span)).collect();
    let numbers = numbers(masks, &begins, blocks);
    // The number of an element is counted in the row's own keys: (head · keys + query) · keys + key.
    let visible: Vec<i64> = keys.0.iter().map(|span| signed(span.visible)).collect();
    let keys_b111 = transfer::to_device(&visible, masks.device).view([-1, 1, 1, 1]);
    let along = |count: usize| counted(count, masks.device);
    let head_h11 = along(heads).view([-1, 1, 1]);
    let query_q1 = along(width).view([-1, 1]);
    let element = (head_h11 * &keys_b111 + query_q1) * &keys_b111 + along(depth);
    // What lies beyond is of no row.
    let element = element.clamp_max(signed(blocks * BLOCK - 1));
    let sizes = element.size();
    mask(&numbers.gather(1, &element.view([sizes[0], -1]), false), drop).view(sizes.as_slice())
}

/// Where the numbers of a row, or of a part of it, begin: the halves of `minor`, and `major`.
#[derive(Clone, Copy)]
struct Begin([i64; 3]);

impl Begin {
    fn of(address: Address, span: &Span) -> Self {
        let minor = span.row << 24;
        let half = |half: u64| i64::try_from(half & 0xffff_ffff).expect("32 bits");
        Self([half(minor), half(minor >> 32), i64::from(address.major(span.copy))])
    }

    /// So many blocks further on; a row has fewer than 2^24.
    fn moved(self, blocks: usize) -> Self {
        let Self([low, high, major]) = self;
        Self([low + signed(blocks), high, major])
    }
}

/// 16-bit numbers of so many blocks from each of these on, `[begins, 8 · blocks]`.
fn numbers(masks: &Masks, begins: &[Begin], blocks: usize) -> Tensor {
    let of = |part: usize| begins.iter().map(move |begin| begin.0[part]);
    let sent: Vec<i64> = of(0).chain(of(1)).chain(of(2)).collect();
    let sent = transfer::to_device(&sent, masks.device).view([3, -1, 1]);
    let [low, high, major] = [0, 1, 2].map(|part| sent.select(0, part));
    let low = low + counted(blocks, masks.device);
    let words = masks.stream.blocks(Integers(major), [Integers(low), Integers(high)]).map(|word| word.0);
    let words = Tensor::stack(&words, -1);
    let halves = [words.bitwise_and(0xffff_i64), words.bitwise_right_shift_tensor_scalar(16_i64)];
    Tensor::stack(&halves, -1).view([signed(begins.len()), -1])
}

fn mask(numbers: &Tensor, (dropped, factor): (u32, f32)) -> Tensor {
    numbers.ge(i64::from(dropped)).to_kind(Kind::Float) * f64::from(factor)
}

fn counted(count: usize, device: Device) -> Tensor {
    Tensor::arange(signed(count), (Kind::Int64, device))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Dropout, LaneOptions,
        dropout::{Place, drop_of},
        host,
        testing::{cases, ragged},
        transfer::{take_waits, to_host},
    };

    fn masks(seed: u64) -> Masks {
        let dropout = Some(Dropout { seed, base_model: true });
        let options = LaneOptions { loss_scale: 1.0, step: 1 << 33, dropout, skip_layers: &[] };
        Masks::of(&options, Device::Cpu).unwrap()
    }

    /// Rows of every size of number, a part of one, and copies.
    fn spans() -> Spans {
        let spans = Spans::new(&[5, 1, 19], &[0, 255, (1 << 40) - 3]).cut(0, 17).0;
        let (later, _) = spans.cut(3, 17);
        assert_eq!(later.0[0].first, 3);
        Spans(spans.repeat(3).0.into_iter().chain(later.0.into_iter().filter(|span| span.length > 0)).collect())
    }

    fn check(seed: u64, spans: &Spans, width: usize, probability: f64) {
        let address = Address { layer: 1023, place: Place::Head, module: 255 };
        let masks = masks(seed);
        // A test that failed may have left it on.
        host::OFF.set(false);
        let expected = to_host(&masks.tokens(address, spans, width, probability));
        host::OFF.set(true);
        take_waits();
        let found = masks.tokens(address, spans, width, probability);
        assert_eq!((found.size(), take_waits()), (vec![signed(spans.tokens()), signed(width)], 0));
        host::OFF.set(false);
        assert_eq!(to_host(&found), expected, "{seed} {width} {probability}");
    }

    #[test]
    fn masks_of_tokens_have_the_bits_of_the_host() {
        for (seed, width, probability) in [(5, 8, 0.1), (u64::MAX, 384, 0.5), (0, 16, 1e-5), (7, 24, 1.0)] {
            check(seed, &spans(), width, probability);
        }
    }

    fn check_attention((queries, keys): (&Spans, &Spans), [heads, width, depth]: [usize; 3], probability: f64) {
        let address = Address::of(3, Place::AttentionProbabilities);
        let (masks, rows) = (masks(11), (queries, keys));
        host::OFF.set(false);
        assert!(masks.attention_side_by_side(address, rows, [heads, width, depth], probability).is_none());
        let found = to_host(&attention(&masks, (address, drop_of(probability)), rows, [heads, width, depth]));
        assert_eq!(found.len(), queries.rows() * heads * width * depth);
        for (row, (query, key)) in queries.0.iter().zip(&keys.0).enumerate() {
            let mut expected = vec![0.0; heads * query.length * key.visible];
            masks.fill_attention(address, query, [heads, key.visible], probability, &mut expected);
            for (line, expected) in expected.chunks(key.visible).enumerate() {
                let (head, token) = (line / query.length, line % query.length);
                let at = ((row * heads + head) * width + token) * depth;
                assert_eq!(&found[at..at + key.visible], expected, "{row} {head} {token}");
            }
        }
    }

    #[test]
    fn masks_of_attention_have_the_bits_of_the_host() {
        let mut keys = Spans::new(&[5, 1, 19, 7], &[40, 1 << 39, 7, 9]).repeat(2);
        keys.0[2].visible = 4;
        for (queries, sizes) in
            [(keys.clone(), [3, 20, 24]), (keys.clone(), [1, 19, 19]), (keys.first_tokens(), [3, 1, 24])]
        {
            check_attention((&queries, &keys), sizes, 0.3);
        }
    }

    proptest! {
        #![proptest_config(cases(32))]

        #[test]
        fn masks_of_any_rows_have_the_bits_of_the_host(
            (seed, spans, copies) in (any::<u64>(), ragged(20), 1..4_usize),
            (blocks, probability) in (1..6_usize, 0.0..=1.0_f64),
            (heads, more, first_alone) in (1..4_usize, 0..4_usize, any::<bool>()),
        ) {
            let spans = spans.repeat(copies);
            check(seed, &spans, 8 * blocks, probability);
            let queries = if first_alone { spans.first_tokens() } else { spans.clone() };
            let longest = |spans: &Spans| more + spans.0.iter().map(|span| span.length).max().unwrap();
            check_attention((&queries, &spans), [heads, longest(&queries), longest(&spans)], probability);
        }
    }
}
