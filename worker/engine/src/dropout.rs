//! Dropout masks as a counter-based function of (seed, step, site, row, element).
//!
//! A row's mask is therefore the same in whatever lane, thread or packing the row is computed, and on whatever device it
//! is drawn.

mod drawn;

use graftwork_shared::random::{Purpose, Stream};
use tch::{Device, Tensor};

use crate::{
    host,
    kernel::vectorised,
    rows::{Dropout, LaneOptions},
    spans::{Span, Spans},
    transfer,
};

/// Where in the network a mask acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Embeddings,
    AttentionProbabilities,
    AttentionOutput,
    Output,
    LoraQuery,
    LoraKey,
    LoraValue,
    LoraIntermediate,
    LoraOutput,
    AttentionAdapter,
    OutputAdapter,
    AttentionFusion,
    OutputFusion,
    Head,
}

/// A mask's address apart from rows: the layer, the place in it, and a number among the modules at that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) layer: u32,
    pub(crate) place: Place,
    pub(crate) module: u32,
}

impl Address {
    pub(crate) fn of(layer: u32, place: Place) -> Self {
        Self { layer, place, module: 0 }
    }

    /// Layers below 2^10, places below 2^5, modules below 2^8, copies of a row below 2^9: 32 bits.
    fn major(self, copy: u32) -> u32 {
        (self.layer & 0x3ff) | (self.place as u32) << 10 | (self.module & 0xff) << 15 | copy << 23
    }
}

/// The masks of one pass.
#[derive(Clone, Copy)]
pub(crate) struct Masks {
    stream: Stream,
    base_model: bool,
    device: Device,
}

impl Masks {
    /// `None` when the pass has no dropout.
    pub(crate) fn of(options: &LaneOptions, device: Device) -> Option<Self> {
        let Dropout { seed, base_model } = options.dropout?;
        // Each step has a key of its own, drawn at a position that no mask uses (row 2^40 − 1).
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the step")]
        let key = Stream::new(seed, Purpose::Dropout).u64(options.step as u32, u64::MAX << 24 | options.step >> 32);
        Some(Self { stream: Stream::new(key, Purpose::Dropout), base_model, device })
    }

    /// The probability of a dropout that belongs to the trunk: 0 unless the trunk's dropout is asked for.
    pub(crate) fn of_trunk(&self, probability: f64) -> f64 {
        if self.base_model { probability } else { 0.0 }
    }

    /// A mask of `[tokens, width]` whose elements are 0, or 1 / (1 − p).
    pub(crate) fn tokens(&self, address: Address, spans: &Spans, width: usize, probability: f64) -> Tensor {
        if width.is_multiple_of(drawn::BLOCK) && self.pays_on_device(spans.tokens() * width) {
            return drawn::tokens(self, (address, drop_of(probability)), spans, width);
        }
        let mut mask = host::fresh([spans.tokens(), width]);
        let mut rest = host::values_mut(&mut mask).unwrap_or_default();
        for span in &spans.0 {
            let (part, behind) = rest.split_at_mut(span.length * width);
            self.fill(address, span, span.first * width, probability, part);
            rest = behind;
        }
        transfer::moved(mask, self.device)
    }

    /// A mask of `[rows, heads, queries, keys]` for attention with rows side by side, whose elements are those of
    /// [`Self::fill_attention`] wherever a row has a query and a visible key; `None` where that had better be asked.
    pub(crate) fn attention_side_by_side(
        &self,
        address: Address,
        (queries, keys): (&Spans, &Spans),
        sizes: [usize; 3],
        probability: f64,
    ) -> Option<Tensor> {
        let count = queries.rows() * sizes.iter().product::<usize>();
        let rows = (queries, keys);
        self.pays_on_device(count).then(|| drawn::attention(self, (address, drop_of(probability)), rows, sizes))
    }

    /// Whether a mask of so many elements is drawn where it is used.
    fn pays_on_device(&self, elements: usize) -> bool {
        // Tests have small masks, and want them drawn so all the same.
        host::is_off() || (self.device != Device::Cpu && elements >= drawn::LEAST)
    }

    /// Fills a mask of `[heads, queries, keys]` for the attention of one row.
    pub(crate) fn fill_attention(
        &self,
        address: Address,
        span: &Span,
        [heads, keys]: [usize; 2],
        probability: f64,
        mask: &mut [f32],
    ) {
        for (head, part) in mask.chunks_mut((mask.len() / heads).max(1)).enumerate() {
            self.fill(address, span, head * keys * keys, probability, part);
        }
    }

    /// Elements `first..` of a row's mask. Eight 16-bit numbers come out of one block; p is rounded to 1/65536, and
    /// the factor belongs to the rounded p.
    fn fill(&self, address: Address, span: &Span, first: usize, probability: f64, mask: &mut [f32]) {
        fill_blocks(self.stream, address.major(span.copy), span.row << 24, first, drop_of(probability), mask);
    }
}

/// 16-bit numbers below the first one are dropped; the others become the second one.
fn drop_of(probability: f64) -> (u32, f32) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a probability times 65536")]
    let dropped = (probability.clamp(0.0, 1.0) * 65536.0).round() as u32;
    (dropped, if dropped >= 65536 { 0.0 } else { 65536.0 / (65536 - dropped) as f32 })
}

vectorised! {
    fn fill_blocks(
        stream: Stream,
        major: u32,
        row: u64,
        first: usize,
        drop: (u32, f32),
        mask: &mut [f32],
    ) {
        /// Elements of sixteen blocks.
        const AT_ONCE: usize = 128;
        let (dropped, factor) = drop;
        let mut skip = first % 8;
        let mut block = (first / 8) as u64;
        let mut rest = mask;
        let mut values = [0.0; AT_ONCE];
        while !rest.is_empty() {
            let blocks = stream.sixteen_blocks(major, row | block);
            for (pair, bits) in values.as_chunks_mut::<2>().0.iter_mut().zip(blocks.as_flattened()) {
                let keep = |bits: u32| if bits < dropped { 0.0 } else { factor };
                *pair = [keep(bits & 0xffff), keep(bits >> 16)];
            }
            let count = (AT_ONCE - skip).min(rest.len());
            let (part, behind) = rest.split_at_mut(count);
            part.copy_from_slice(&values[skip..skip + count]);
            rest = behind;
            block += 16;
            skip = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        kernel::Instructions,
        testing::{cases, ragged},
        transfer::to_host,
    };

    fn masks(step: u64) -> Masks {
        let options = LaneOptions {
            loss_scale: 1.0,
            step,
            dropout: Some(Dropout { seed: 5, base_model: true }),
            skip_layers: &[],
        };
        Masks::of(&options, Device::Cpu).unwrap()
    }

    #[test]
    fn a_rows_mask_does_not_depend_on_its_place_in_the_lane() {
        let address = Address::of(3, Place::Output);
        let together = to_host(&masks(1).tokens(address, &Spans::new(&[5, 3], &[40, 41]), 7, 0.3));
        let alone = to_host(&masks(1).tokens(address, &Spans::new(&[3], &[41]), 7, 0.3));
        assert_eq!(together[5 * 7..], alone);
        let (later, _) = Spans::new(&[3], &[41]).cut(1, 3);
        assert_eq!(to_host(&masks(1).tokens(address, &later, 7, 0.3)), alone[7..]);
    }

    /// Elements of a row's mask, each from a block of its own.
    fn of_single_blocks(address: Address, span: &Span, probability: f64, elements: Range<usize>) -> Vec<f32> {
        let Masks { stream, .. } = masks(1);
        let dropped = (probability * 65536.0).round();
        let of = |element: usize| {
            let block = stream.block(address.major(span.copy), span.row << 24 | (element / 8) as u64);
            let bits = block[element % 8 / 2] >> (16 * (element % 2)) & 0xffff;
            #[expect(clippy::cast_possible_truncation, reason = "masks are f32")]
            let factor = (65536.0 / (65536.0 - dropped)) as f32;
            if f64::from(bits) < dropped { 0.0 } else { factor }
        };
        elements.map(of).collect()
    }

    #[test]
    fn every_element_has_the_bits_of_its_own_position() {
        let address = Address::of(3, Place::Output);
        let mask = to_host(&masks(1).tokens(address, &Spans::new(&[41], &[77]), 7, 0.25));
        let own = of_single_blocks(address, &Spans::new(&[41], &[77]).0[0], 0.25, 0..mask.len());
        assert_eq!(mask, own);
        assert!(mask.contains(&0.0));
    }

    #[test]
    fn masks_keep_the_asked_share_and_the_mean() {
        let mask = to_host(&masks(1).tokens(Address::of(0, Place::Embeddings), &Spans::new(&[500], &[1]), 64, 0.1));
        let kept = mask.iter().filter(|&&value| value > 0.0).count() as f64 / mask.len() as f64;
        let mean = mask.iter().map(|&value| f64::from(value)).sum::<f64>() / mask.len() as f64;
        assert!((kept - 0.9).abs() < 0.01 && (mean - 1.0).abs() < 0.01, "{kept} {mean}");
    }

    #[test]
    fn steps_sites_and_copies_have_masks_of_their_own() {
        let spans = Spans::new(&[8], &[1]);
        let of =
            |step, layer, place, spans: &Spans| to_host(&masks(step).tokens(Address::of(layer, place), spans, 16, 0.5));
        let first = of(1, 0, Place::Output, &spans);
        assert_ne!(first, of(2, 0, Place::Output, &spans));
        assert_ne!(first, of(1, 1, Place::Output, &spans));
        assert_ne!(first, of(1, 0, Place::AttentionOutput, &spans));
        let copied = of(1, 0, Place::Output, &spans.repeat(2));
        assert_eq!(copied[..128], first);
        assert_ne!(copied[128..], first);
    }

    proptest! {
        #![proptest_config(cases(48))]

        #[test]
        fn any_mask_is_that_of_single_blocks(
            (spans, cut, copies) in (ragged(30), 0..10_usize, 1..4_usize),
            (layer, module, width) in (0..1024_u32, 0..256_u32, 1..40_usize),
            (heads, probability) in (1..4_usize, 0.0..=1.0_f64),
        ) {
            let address = Address { layer, place: Place::OutputFusion, module };
            let spans = spans.cut(cut, 30).0.repeat(copies);
            prop_assume!(spans.tokens() > 0);
            let found = Instructions::same(|| to_host(&masks(1).tokens(address, &spans, width, probability)));
            let of_row = |span: &Span| {
                let elements = span.first * width..(span.first + span.length) * width;
                of_single_blocks(address, span, probability, elements)
            };
            prop_assert_eq!(found, spans.0.iter().flat_map(of_row).collect::<Vec<f32>>());
            for span in &spans.0 {
                let (queries, keys) = (span.length, span.visible);
                let found = Instructions::same(|| {
                    let mut mask = vec![9.0; heads * queries * keys];
                    masks(1).fill_attention(address, span, [heads, keys], probability, &mut mask);
                    mask
                });
                // (head · keys + query) · keys + key.
                let of_head = |head: usize| {
                    let first = head * keys * keys;
                    of_single_blocks(address, span, probability, first..first + queries * keys)
                };
                prop_assert_eq!(found, (0..heads).flat_map(of_head).collect::<Vec<f32>>());
            }
        }
    }
}
