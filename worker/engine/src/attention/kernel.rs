//! Attention on fp32 slices in host memory: one row and one head after the other, no allocation inside the loops.
//!
//! Rows of 20 tokens are so small that a library call for each product costs more than the product. Products run in
//! blocks of 4 rows and 16 columns whose sums stay in registers; every sum runs over its index in order, so equal rows
//! give equal bytes wherever they lie. Machines with fused multiply-add round differently from those without: the two
//! are different numeric classes.

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

/// Fills `context`; returns the probabilities, `[queries, keys rounded up]` for each row and head.
pub(super) fn forward(inputs: Inputs, context: &mut [f32], rows: &[Row], sizes: Sizes) -> Vec<f32> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the machine has the instructions that the function is compiled for.
        return unsafe { forward_fused(inputs, context, rows, sizes) };
    }
    forward_rows::<false>(inputs, context, rows, sizes)
}

/// Fills the gradients from the gradient of the context.
pub(super) fn backward(
    inputs: Inputs,
    probabilities: &[f32],
    gradient: &[f32],
    gradients: &mut Gradients,
    (rows, sizes): (&[Row], Sizes),
) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the machine has the instructions that the function is compiled for.
        unsafe { backward_fused(inputs, probabilities, gradient, gradients, (rows, sizes)) };
        return;
    }
    backward_rows::<false>(inputs, probabilities, gradient, gradients, (rows, sizes));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn forward_fused(inputs: Inputs, context: &mut [f32], rows: &[Row], sizes: Sizes) -> Vec<f32> {
    forward_rows::<true>(inputs, context, rows, sizes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn backward_fused(
    inputs: Inputs,
    probabilities: &[f32],
    gradient: &[f32],
    gradients: &mut Gradients,
    rows: (&[Row], Sizes),
) {
    backward_rows::<true>(inputs, probabilities, gradient, gradients, rows);
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn forward_rows<const FUSED: bool>(inputs: Inputs, context: &mut [f32], rows: &[Row], sizes: Sizes) -> Vec<f32> {
    let Sizes { heads, width } = sizes;
    let token = heads * width;
    let mut probabilities = vec![0.0; rows.iter().map(|row| heads * row.queries * row.padded()).sum()];
    let mut across = vec![0.0; width * rows.iter().map(Row::padded).max().unwrap_or(0)];
    let mut rest = probabilities.as_mut_slice();
    for row in rows {
        let padded = row.padded();
        for head in 0..heads {
            let (weights, behind) = rest.split_at_mut(row.queries * padded);
            rest = behind;
            let (query, key) = (row.query * token + head * width, row.key * token + head * width);
            transpose(&inputs.key[key..], row.keys, sizes, &mut across);
            let queries = Left { values: &inputs.query[query..], row: token, column: 1 };
            let keys = Right { values: &across, row: padded };
            product::<FUSED>([row.queries, width, padded], queries, keys, (weights, padded), sizes.scale());
            weights.chunks_exact_mut(padded).for_each(|weights| softmax(&mut weights[..row.keys]));
            let weights = Left { values: weights, row: padded, column: 1 };
            let values = Right { values: &inputs.value[key..], row: token };
            let out = (&mut context[query..], token);
            product::<FUSED>([row.queries, row.keys, width], weights, values, out, 1.0);
        }
    }
    probabilities
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn backward_rows<const FUSED: bool>(
    inputs: Inputs,
    probabilities: &[f32],
    gradient: &[f32],
    gradients: &mut Gradients,
    (rows, sizes): (&[Row], Sizes),
) {
    let Sizes { heads, width } = sizes;
    let token = heads * width;
    let mut across = vec![0.0; width * rows.iter().map(Row::padded).max().unwrap_or(0)];
    let mut scores = vec![0.0; rows.iter().map(|row| row.queries * row.padded()).max().unwrap_or(0)];
    let mut rest = probabilities;
    for row in rows {
        let padded = row.padded();
        let sums = [row.keys, row.queries, width];
        for head in 0..heads {
            let (weights, behind) = rest.split_at(row.queries * padded);
            rest = behind;
            let (query, key) = (row.query * token + head * width, row.key * token + head * width);
            let scores = &mut scores[..row.queries * padded];
            transpose(&inputs.value[key..], row.keys, sizes, &mut across);
            let incoming = Left { values: &gradient[query..], row: token, column: 1 };
            let values = Right { values: &across, row: padded };
            product::<FUSED>([row.queries, width, padded], incoming, values, (scores, padded), 1.0);
            for (scores, weights) in scores.chunks_exact_mut(padded).zip(weights.chunks_exact(padded)) {
                softmax_backward(&mut scores[..row.keys], &weights[..row.keys], sizes.scale());
            }
            // The three remaining products: dV = Pᵀ G, dQ = dS K, dK = dSᵀ Q.
            let weights = Left { values: weights, row: 1, column: padded };
            let incoming = Right { values: &gradient[query..], row: token };
            product::<FUSED>(sums, weights, incoming, (&mut gradients.value[key..], token), 1.0);
            let slopes = Left { values: scores, row: padded, column: 1 };
            let keys = Right { values: &inputs.key[key..], row: token };
            product::<FUSED>([row.queries, row.keys, width], slopes, keys, (&mut gradients.query[query..], token), 1.0);
            let slopes = Left { values: scores, row: 1, column: padded };
            let queries = Right { values: &inputs.query[query..], row: token };
            product::<FUSED>(sums, slopes, queries, (&mut gradients.key[key..], token), 1.0);
        }
    }
}

impl Row {
    /// Keys rounded up to whole vectors of 8.
    fn padded(&self) -> usize {
        self.keys.next_multiple_of(8)
    }
}

impl Sizes {
    fn scale(self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }
}

/// `[keys, width]` of one head to `[width, keys rounded up]`; what is beyond the keys becomes 0.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn transpose(head: &[f32], keys: usize, sizes: Sizes, across: &mut [f32]) {
    let (token, padded) = (sizes.heads * sizes.width, keys.next_multiple_of(8));
    for (channel, across) in across.chunks_exact_mut(padded).take(sizes.width).enumerate() {
        for (position, across) in across.iter_mut().enumerate() {
            *across = if position < keys { head[position * token + channel] } else { 0.0 };
        }
    }
}

/// A left factor, with the distance between its rows and between its columns.
#[derive(Clone, Copy)]
struct Left<'a> {
    values: &'a [f32],
    row: usize,
    column: usize,
}

/// A right factor with contiguous rows, and the distance between them.
#[derive(Clone, Copy)]
struct Right<'a> {
    values: &'a [f32],
    row: usize,
}

/// `out = scale · left right` for `[rows, sums] × [sums, columns]`; `out` comes with the distance between its rows.
///
/// Strips of 32 columns, the rest in one strip of 24, 16 or 8, then single ones: a strip's sums stay in registers while
/// the index runs, and several vectors in flight hide the latency of an addition.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn product<const FUSED: bool>(
    [rows, sums, columns]: [usize; 3],
    left: Left,
    right: Right,
    (out, out_row): (&mut [f32], usize),
    scale: f32,
) {
    let mut column = 0;
    while column < columns {
        let right = Right { values: &right.values[column..], ..right };
        let wide = match columns - column {
            32.. => 32,
            24.. => 24,
            16.. => 16,
            8.. => 8,
            _ => 1,
        };
        for row in 0..rows {
            let left = Left { values: &left.values[row * left.row..], ..left };
            let out = &mut out[row * out_row + column..];
            match wide {
                32 => strip::<FUSED, 32>(sums, left, right, out, scale),
                24 => strip::<FUSED, 24>(sums, left, right, out, scale),
                16 => strip::<FUSED, 16>(sums, left, right, out, scale),
                8 => strip::<FUSED, 8>(sums, left, right, out, scale),
                _ => strip::<FUSED, 1>(sums, left, right, out, scale),
            }
        }
        column += wide;
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn strip<const FUSED: bool, const WIDE: usize>(sums: usize, left: Left, right: Right, out: &mut [f32], scale: f32) {
    #[cfg(target_arch = "x86_64")]
    if FUSED && WIDE >= 8 {
        // SAFETY: FUSED is set only by callers that are compiled for these instructions.
        unsafe {
            match WIDE / 8 {
                4 => vectors::<4>(sums, left, right, out, scale),
                3 => vectors::<3>(sums, left, right, out, scale),
                2 => vectors::<2>(sums, left, right, out, scale),
                _ => vectors::<1>(sums, left, right, out, scale),
            }
        }
        return;
    }
    let mut sum = [0.0_f32; WIDE];
    for (factor, right) in left.values.iter().step_by(left.column).zip(right.values.chunks(right.row)).take(sums) {
        let right: &[f32; WIDE] = right.first_chunk().expect("a right factor has all columns of the strip");
        sum.iter_mut().zip(right).for_each(|(sum, right)| *sum += factor * right);
    }
    out[..WIDE].iter_mut().zip(sum).for_each(|(out, sum)| *out = sum * scale);
}

/// A strip of `COUNT` vectors of 8. Written with intrinsics because the compiler keeps an array of sums in memory.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn vectors<const COUNT: usize>(sums: usize, left: Left, right: Right, out: &mut [f32], scale: f32) {
    use std::arch::x86_64::{
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };
    let mut sum = [_mm256_setzero_ps(); COUNT];
    for (factor, right) in left.values.iter().step_by(left.column).zip(right.values.chunks(right.row)).take(sums) {
        let factor = _mm256_set1_ps(*factor);
        let right = &right[..8 * COUNT];
        for (vector, sum) in sum.iter_mut().enumerate() {
            // SAFETY: the slice has 8 values from here on.
            let values = unsafe { _mm256_loadu_ps(right.as_ptr().add(8 * vector)) };
            *sum = _mm256_fmadd_ps(factor, values, *sum);
        }
    }
    let scale = _mm256_set1_ps(scale);
    let out = &mut out[..8 * COUNT];
    for (vector, sum) in sum.into_iter().enumerate() {
        // SAFETY: the slice has 8 places from here on.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * vector), _mm256_mul_ps(sum, scale)) };
    }
}

/// `p (slope − Σ p slope)` times the scale of the scores, in place of the slopes.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn softmax_backward(slopes: &mut [f32], weights: &[f32], scale: f32) {
    let mean: f32 = weights.iter().zip(slopes.iter()).map(|(weight, slope)| weight * slope).sum();
    for (slope, weight) in slopes.iter_mut().zip(weights) {
        *slope = weight * (*slope - mean) * scale;
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn softmax(scores: &mut [f32]) {
    let largest =
        scores.iter().fold(f32::NEG_INFINITY, |largest, score| if *score > largest { *score } else { largest });
    for score in scores.iter_mut() {
        *score = exponential(*score - largest);
    }
    let factor = 1.0 / scores.iter().sum::<f32>();
    for score in scores.iter_mut() {
        *score *= factor;
    }
}

/// eˣ for x ≤ 0 within 2 units in the last place (Cephes' polynomial on ±½ ln 2), without branches, so that it
/// vectorises. Below −87 it stays at e⁻⁸⁷; NaN stays NaN.
#[inline(always)]
#[expect(clippy::excessive_precision, clippy::unreadable_literal, reason = "the constants as Cephes has them")]
fn exponential(x: f32) -> f32 {
    /// 1.5 · 2²³: adding it rounds to a whole number that stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = x - whole * 0.693359375 + whole * 2.12194440e-4;
    let p = ((((1.9875691500e-4 * r + 1.3981999507e-3) * r + 8.3334519073e-3) * r + 4.1665795894e-2) * r
        + 1.6666665459e-1)
        * r
        + 5.0000001201e-1;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    (p * r * r + r + 1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_as_good_as_the_librarys() {
        for step in 0..87_000_u32 {
            let x = -(step as f32) / 1000.0;
            let (found, expected) = (f64::from(exponential(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 3e-7, "{x}: {found} {expected}");
        }
        assert!((exponential(0.0) - 1.0).abs() < f32::EPSILON && exponential(f32::NAN).is_nan());
    }

    #[test]
    fn both_sets_of_instructions_agree() {
        let sizes = Sizes { heads: 3, width: 8 };
        let rows = [Row { query: 0, queries: 5, key: 0, keys: 5 }, Row { query: 5, queries: 1, key: 5, keys: 9 }];
        let wave = |length: usize, step: f32| (0..length).map(|n| (n as f32 * step).sin()).collect::<Vec<f32>>();
        let (q, k, v, g) = (wave(6 * 24, 0.7), wave(14 * 24, 0.9), wave(14 * 24, 1.1), wave(6 * 24, 1.3));
        let inputs = Inputs { query: &q, key: &k, value: &v };
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        let (mut plain, mut chosen) = (vec![9.0; 6 * 24], vec![9.0; 6 * 24]);
        let probabilities = forward_rows::<false>(inputs, &mut plain, &rows, sizes);
        assert!(close(&probabilities, &forward(inputs, &mut chosen, &rows, sizes)) && close(&plain, &chosen));
        let mut results = Vec::new();
        for fused in [false, true] {
            let (mut dq, mut dk, mut dv) = (vec![9.0; 6 * 24], vec![0.0; 14 * 24], vec![0.0; 14 * 24]);
            let mut gradients = Gradients { query: &mut dq, key: &mut dk, value: &mut dv };
            if fused {
                backward(inputs, &probabilities, &g, &mut gradients, (&rows, sizes));
            } else {
                backward_rows::<false>(inputs, &probabilities, &g, &mut gradients, (&rows, sizes));
            }
            results.push([dq, dk, dv].concat());
        }
        assert!(close(&results[0], &results[1]));
    }
}
