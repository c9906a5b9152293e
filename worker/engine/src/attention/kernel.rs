//! Attention on fp32 slices in host memory: one row and one head after the other, no allocation inside the loops.
//!
//! Rows of 20 tokens are so small that a library call for each product costs more than the product. Every sum runs over
//! its index in one order, so equal rows give equal bytes wherever they lie. Scores stand in rows of whole vectors:
//! what is beyond the keys is 0 in the probabilities.

use crate::kernel::{Left, Right, exponential, product_once, together, turned, vectorised};

/// The tokens of one row: queries, and the keys and values that they see.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) query: usize,
    pub(super) queries: usize,
    pub(super) key: usize,
    pub(super) keys: usize,
}

/// Heads and their width; a token has `heads × width` values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) heads: usize,
    pub(super) width: usize,
}

/// Queries, keys, values: packed tokens.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) query: &'a [f32],
    pub(super) key: &'a [f32],
    pub(super) value: &'a [f32],
}

/// Gradients of queries, keys and values; keys and values start as zeros.
pub(super) struct Gradients<'a> {
    pub(super) query: &'a mut [f32],
    pub(super) key: &'a mut [f32],
    pub(super) value: &'a mut [f32],
}

/// Fills `context`; returns the probabilities, `[queries, keys rounded up]` for each row and head, or nothing where they
/// are not to be kept: then each head's stay in the cache. A `mask` of the same layout acts on the probabilities.
pub(super) fn forward(
    inputs: Inputs,
    (context, keep): (&mut [f32], bool),
    mask: Option<&[f32]>,
    rows: &[Row],
    sizes: Sizes,
) -> Vec<f32> {
    let Sizes { heads, width } = sizes;
    let token = sizes.token();
    let most = rows.iter().map(|row| row.queries * row.padded()).max().unwrap_or(0);
    let mut probabilities = vec![0.0; if keep { probabilities(rows, sizes) } else { 0 }];
    let mut of_head = vec![0.0; if keep { 0 } else { most }];
    let longest = rows.iter().map(Row::padded).max().unwrap_or(0);
    let mut across = vec![0.0; width * longest];
    let mut masked = vec![0.0; mask.map_or(0, |_| most)];
    let mut first = 0;
    for row in rows {
        let padded = row.padded();
        // Nothing of another row is left behind the keys.
        across[..width * padded].fill(0.0);
        for head in 0..heads {
            let range = first..first + row.queries * padded;
            first = range.end;
            let weights = if keep { &mut probabilities[range.clone()] } else { &mut of_head[..range.len()] };
            let (query, key) = (row.query * token + head * width, row.key * token + head * width);
            turned([row.keys, width], (&inputs.key[key..], token), (&mut across, padded));
            let queries = Left { values: &inputs.query[query..], row: token, column: 1 };
            let keys = Right { values: &across, row: padded };
            product_once([row.queries, width, padded], queries, keys, (weights, padded));
            softmax(weights, padded, row.keys, sizes.scale());
            let weights = match mask {
                Some(mask) => {
                    masked[..weights.len()].copy_from_slice(weights);
                    crate::kernel::multiply(&mut masked, &mask[range]);
                    masked.as_slice()
                }
                None => weights,
            };
            let values = Right { values: &inputs.value[key..], row: token };
            product_once(
                [row.queries, row.keys, width],
                Left::rows(weights, padded),
                values,
                (&mut context[query..], token),
            );
        }
    }
    probabilities
}

/// Fills the gradients from the gradient of the context.
pub(super) fn backward(
    inputs: Inputs,
    (probabilities, mask): (&[f32], Option<&[f32]>),
    gradient: &[f32],
    gradients: &mut Gradients,
    (rows, sizes): (&[Row], Sizes),
) {
    let Sizes { heads, width } = sizes;
    let token = sizes.token();
    let longest = rows.iter().map(Row::padded).max().unwrap_or(0);
    let mut across = vec![0.0; width * longest];
    let most = rows.iter().map(|row| row.queries * row.padded()).max().unwrap_or(0);
    let (mut scores, mut masked) = (vec![0.0; most], vec![0.0; mask.map_or(0, |_| most)]);
    let mut first = 0;
    for row in rows {
        let padded = row.padded();
        across[..width * padded].fill(0.0);
        let sums = [row.keys, row.queries, width];
        for head in 0..heads {
            let range = first..first + row.queries * padded;
            first = range.end;
            let weights = &probabilities[range.clone()];
            let (query, key) = (row.query * token + head * width, row.key * token + head * width);
            let scores = &mut scores[..weights.len()];
            turned([row.keys, width], (&inputs.value[key..], token), (&mut across, padded));
            let incoming = Left { values: &gradient[query..], row: token, column: 1 };
            let values = Right { values: &across, row: padded };
            product_once([row.queries, width, padded], incoming, values, (scores, padded));
            let dropped = match mask {
                Some(mask) => {
                    crate::kernel::multiply(scores, &mask[range.clone()]);
                    masked[..weights.len()].copy_from_slice(weights);
                    crate::kernel::multiply(&mut masked, &mask[range]);
                    &masked[..weights.len()]
                }
                None => weights,
            };
            softmax_backward(scores, weights, padded, sizes.scale());
            // The three remaining products: dV = Pᵀ G, dQ = dS K, dK = dSᵀ Q.
            let incoming = Right { values: &gradient[query..], row: token };
            product_once(sums, Left::turned(dropped, padded), incoming, (&mut gradients.value[key..], token));
            let keys = Right { values: &inputs.key[key..], row: token };
            let of_query = (&mut gradients.query[query..], token);
            product_once([row.queries, row.keys, width], Left::rows(scores, padded), keys, of_query);
            let queries = Right { values: &inputs.query[query..], row: token };
            product_once(sums, Left::turned(scores, padded), queries, (&mut gradients.key[key..], token));
        }
    }
}

/// How many probabilities these rows have, rounded up to whole vectors.
pub(super) fn probabilities(rows: &[Row], sizes: Sizes) -> usize {
    rows.iter().map(|row| sizes.heads * row.queries * row.padded()).sum()
}

impl Row {
    /// Keys rounded up to whole vectors.
    pub(super) fn padded(&self) -> usize {
        self.keys.next_multiple_of(VECTOR)
    }
}

impl Sizes {
    /// Values of a token.
    pub(super) fn token(self) -> usize {
        self.heads * self.width
    }

    pub(super) fn scale(self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }
}

/// Scores of one vector; sums over a row run side by side in as many parts.
pub(super) const VECTOR: usize = 16;

vectorised! {
    /// Softmax of `scale · x` over the first `keys` of each row of `padded`; the rest, which must hold numbers, becomes 0.
    pub(super) fn softmax(scores: &mut [f32], padded: usize, keys: usize, scale: f32) {
        // The last vector alone may reach beyond the keys.
        let inside = VECTOR - (padded - keys);
        let keep: [f32; VECTOR] = std::array::from_fn(|lane| if lane < inside { 1.0 } else { 0.0 });
        let hide: [f32; VECTOR] = std::array::from_fn(|lane| if lane < inside { 0.0 } else { f32::NEG_INFINITY });
        for scores in scores.chunks_exact_mut(padded) {
            let vectors = scores.as_chunks_mut::<VECTOR>().0;
            if let Some(last) = vectors.last_mut() {
                last.iter_mut().zip(hide).for_each(|(value, hide)| *value += hide);
            }
            let mut largest = [f32::NEG_INFINITY; VECTOR];
            for vector in &*vectors {
                largest.iter_mut().zip(vector).for_each(|(a, b)| *a = if *b > *a { *b } else { *a });
            }
            let largest = together(largest, |a, b| if b > a { b } else { a });
            vectors.iter_mut().for_each(|vector| vector.iter_mut().for_each(|value| *value = (*value - largest) * scale));
        }
        // All at once: a loop over one short row would end in single elements.
        scores.iter_mut().for_each(|value| *value = exponential(*value));
        for scores in scores.chunks_exact_mut(padded) {
            let vectors = scores.as_chunks_mut::<VECTOR>().0;
            // Before anything becomes so small that it is slow.
            if let Some(last) = vectors.last_mut() {
                last.iter_mut().zip(keep).for_each(|(value, keep)| *value *= keep);
            }
            let mut sums = [0.0; VECTOR];
            for vector in &*vectors {
                sums.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
            }
            let factor = 1.0 / together(sums, |a, b| a + b);
            vectors.iter_mut().for_each(|vector| vector.iter_mut().for_each(|value| *value *= factor));
        }
    }
}

vectorised! {
    /// `p (slope − Σ p slope)` times the scale of the scores, in place of the slopes.
    pub(super) fn softmax_backward(slopes: &mut [f32], weights: &[f32], padded: usize, scale: f32) {
        for (slopes, weights) in slopes.chunks_exact_mut(padded).zip(weights.chunks_exact(padded)) {
            let mut sums = [0.0; VECTOR];
            let (slopes, weights) = (slopes.as_chunks_mut::<VECTOR>().0, weights.as_chunks::<VECTOR>().0);
            for (slopes, weights) in slopes.iter().zip(weights) {
                sums.iter_mut().zip(slopes.iter().zip(weights)).for_each(|(sum, (a, b))| *sum += a * b);
            }
            let mean = together(sums, |a, b| a + b);
            for (slope, weight) in slopes.as_flattened_mut().iter_mut().zip(weights.as_flattened()) {
                *slope = weight * (*slope - mean) * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rows_context_is_the_same_bytes_wherever_it_lies() {
        let sizes = Sizes { heads: 2, width: 16 };
        let wave = |length: usize, step: f32| (0..length).map(|n| (n as f32 * step).sin()).collect::<Vec<f32>>();
        let (q, k, v) = (wave(30 * 32, 0.7), wave(30 * 32, 0.9), wave(30 * 32, 1.1));
        let at = |token: usize| Row { query: token, queries: 9, key: token, keys: 9 };
        let run = |rows: &[Row], from: usize| {
            let part = |x: &[f32]| x[from * 32..].to_vec();
            let (q, k, v) = (part(&q), part(&k), part(&v));
            let mut context = vec![0.0; q.len()];
            forward(Inputs { query: &q, key: &k, value: &v }, (&mut context, false), None, rows, sizes);
            context
        };
        let together = run(&[Row { query: 0, queries: 5, key: 0, keys: 5 }, at(5), at(14)], 0);
        assert_eq!(together[5 * 32..14 * 32], run(&[at(0)], 5)[..9 * 32]);
    }

    #[test]
    fn what_is_beyond_the_keys_gets_nothing() {
        let mut scores = vec![3.0; 32];
        scores[18] = 90.0;
        softmax(&mut scores, 32, 17, 0.5);
        assert!(scores[..17].iter().all(|weight| (weight - 1.0 / 17.0).abs() < 1e-6));
        assert_eq!(scores[17..], [0.0; 15]);
    }
}
