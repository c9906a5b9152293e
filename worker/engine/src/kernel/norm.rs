//! Layer norm over each row, forward and backward, with the additions that stand in front of it.

use std::array::from_fn;

use super::vectorised;

/// Sums that run side by side over a row, whatever the width of the machine's vectors.
const SIDE_BY_SIDE: usize = 16;

/// Rows whose sums run at the same time.
const ROWS: usize = 4;

/// A frozen layer norm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f64,
}

/// Where a layer norm writes.
#[derive(Debug)]
pub(crate) struct Outputs<'a> {
    /// The result.
    pub(crate) out: &'a mut [f32],
    /// The rows before weight and bias.
    pub(crate) normal: &'a mut [f32],
    /// For each row, 1 / deviation.
    pub(crate) rstd: &'a mut [f32],
}

/// Layer norm of the sum of `terms`, one to three, each `[rows, width]`.
pub(crate) fn normalise(terms: &[&[f32]], norm: Norm, Outputs { out, normal, rstd }: Outputs) {
    let width = norm.weight.len();
    assert!(norm.bias.len() == width && out.len() == rstd.len() * width && normal.len() == out.len());
    forward(of_length(terms, out.len()), norm, out, normal, rstd);
}

/// The same bytes in `out`, where no backward follows.
pub(crate) fn normalise_alone(terms: &[&[f32]], norm: Norm, out: &mut [f32]) {
    assert!(norm.bias.len() == norm.weight.len() && out.len().is_multiple_of(norm.weight.len()));
    forward_alone(of_length(terms, out.len()), norm, out);
}

/// One to three terms of so many values; the others are empty.
fn of_length<'a>(terms: &[&'a [f32]], length: usize) -> [&'a [f32]; 3] {
    assert!(!terms.is_empty() && terms.iter().all(|term| term.len() == length));
    [0, 1, 2].map(|number| terms.get(number).copied().unwrap_or(&[]))
}

/// Gradient of the sum that was normalised, from the gradient of the result, added to `onto`. `normal` and `rstd` are
/// what the forward pass gave.
pub(crate) fn normalise_backward(
    gradient: &[f32],
    (normal, rstd): (&[f32], &[f32]),
    weight: &[f32],
    onto: Option<&[f32]>,
    out: &mut [f32],
) {
    let size = rstd.len() * weight.len();
    assert!([gradient.len(), normal.len(), out.len()].iter().all(|length| *length == size));
    assert!(onto.is_none_or(|onto| onto.len() == size));
    backward(gradient, normal, rstd, weight, onto.unwrap_or(&[]), out);
}

vectorised! {
    fn forward(terms: [&[f32]; 3], norm: Norm, out: &mut [f32], normal: &mut [f32], rstd: &mut [f32]) {
        let width = norm.weight.len();
        let rows = rstd.chunks_mut(ROWS).zip(out.chunks_mut(ROWS * width).zip(normal.chunks_mut(ROWS * width)));
        for (block, (rstd, (out, normal))) in rows.enumerate() {
            let scales = centred(terms, block * ROWS * width, norm, normal);
            for ((out, normal), (rstd, scale)) in
                out.chunks_exact_mut(width).zip(normal.chunks_exact_mut(width)).zip(rstd.iter_mut().zip(scales))
            {
                *rstd = scale;
                let constants = norm.weight.iter().zip(norm.bias);
                for ((normal, out), (weight, bias)) in normal.iter_mut().zip(out).zip(constants) {
                    *normal *= scale;
                    *out = *normal * weight + bias;
                }
            }
        }
    }
}

vectorised! {
    fn forward_alone(terms: [&[f32]; 3], norm: Norm, out: &mut [f32]) {
        let width = norm.weight.len();
        for (block, out) in out.chunks_mut(ROWS * width).enumerate() {
            let scales = centred(terms, block * ROWS * width, norm, out);
            for (out, scale) in out.chunks_exact_mut(width).zip(scales) {
                for (out, (weight, bias)) in out.iter_mut().zip(norm.weight.iter().zip(norm.bias)) {
                    *out = *out * scale * weight + bias;
                }
            }
        }
    }
}

/// Puts the sums of the terms' rows from value `first` on, less their means, into up to [`ROWS`] rows; gives 1 / deviation
/// of each.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn centred(terms: [&[f32]; 3], first: usize, norm: Norm, rows: &mut [f32]) -> [f32; ROWS] {
    let width = norm.weight.len();
    let terms = terms.map(|term| term.get(first..first + rows.len()).unwrap_or(&[]));
    if rows.len() == ROWS * width {
        return centre(terms, width, norm.eps, rows);
    }
    let mut scales = [0.0; ROWS];
    for (row, scale) in scales[..rows.len() / width].iter_mut().enumerate() {
        let range = row * width..(row + 1) * width;
        let terms = terms.map(|term| term.get(range.clone()).unwrap_or(&[]));
        [*scale] = centre(terms, width, norm.eps, &mut rows[range]);
    }
    scales
}

/// The same for just so many rows, whose sums run side by side: one alone would wait for its adder.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn centre<const COUNT: usize>(
    [first, second, third]: [&[f32]; 3],
    width: usize,
    eps: f64,
    rows: &mut [f32],
) -> [f32; COUNT] {
    if third.is_empty() {
        if second.is_empty() {
            return centre_sums([first], width, eps, rows);
        }
        return centre_sums([first, second], width, eps, rows);
    }
    centre_sums([first, second, third], width, eps, rows)
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn centre_sums<const TERMS: usize, const COUNT: usize>(
    terms: [&[f32]; TERMS],
    width: usize,
    eps: f64,
    rows: &mut [f32],
) -> [f32; COUNT] {
    let mut sums = [[0.0; SIDE_BY_SIDE]; COUNT];
    let whole = width - width % SIDE_BY_SIDE;
    assert!(rows.len() == COUNT * width && terms.iter().all(|term| term.len() == rows.len()));
    for column in (0..whole).step_by(SIDE_BY_SIDE) {
        for (row, sums) in sums.iter_mut().enumerate() {
            let at = row * width + column;
            let mut values = chunk(terms[0], at);
            for term in &terms[1..] {
                values.iter_mut().zip(chunk(term, at)).for_each(|(value, term)| *value += term);
            }
            rows[at..at + SIDE_BY_SIDE].copy_from_slice(&values);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        for (column, sum) in (whole..width).zip(sums) {
            let at = row * width + column;
            rows[at] = terms[1..].iter().fold(terms[0][at], |value, term| value + term[at]);
            *sum += rows[at];
        }
    }
    let means = sums.map(|sums| together(sums, |a, b| a + b) / width as f32);
    let mut sums = [[0.0; SIDE_BY_SIDE]; COUNT];
    for column in (0..whole).step_by(SIDE_BY_SIDE) {
        for ((row, sums), mean) in sums.iter_mut().enumerate().zip(means) {
            let at = row * width + column;
            let values = chunk(rows, at).map(|value| value - mean);
            rows[at..at + SIDE_BY_SIDE].copy_from_slice(&values);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * value);
        }
    }
    for ((row, sums), mean) in sums.iter_mut().enumerate().zip(means) {
        for (column, sum) in (whole..width).zip(sums) {
            let value = &mut rows[row * width + column];
            *value -= mean;
            *sum += *value * *value;
        }
    }
    sums.map(|sums| {
        let variance = together(sums, |a, b| a + b) / width as f32;
        #[expect(clippy::cast_possible_truncation, reason = "activations are f32")]
        let scale = (1.0 / (f64::from(variance) + eps).sqrt()) as f32;
        scale
    })
}

/// Values of a row from a place on.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn chunk(values: &[f32], at: usize) -> [f32; SIDE_BY_SIDE] {
    let mut chunk = [0.0; SIDE_BY_SIDE];
    chunk.copy_from_slice(&values[at..at + SIDE_BY_SIDE]);
    chunk
}

vectorised! {
    fn backward(
        gradient: &[f32],
        normal: &[f32],
        rstd: &[f32],
        weight: &[f32],
        onto: &[f32],
        out: &mut [f32],
    ) {
        let width = weight.len();
        for (row, rstd) in rstd.iter().enumerate() {
            let range = row * width..(row + 1) * width;
            let (normal, out) = (&normal[range.clone()], &mut out[range.clone()]);
            for ((out, gradient), weight) in out.iter_mut().zip(&gradient[range.clone()]).zip(weight) {
                *out = gradient * weight;
            }
            let mean = sum(out, |x| x) / width as f32;
            let along = dot(out, normal) / width as f32;
            for (out, normal) in out.iter_mut().zip(normal) {
                *out = (*out - mean - normal * along) * rstd;
            }
            if let Some(onto) = onto.get(range) {
                out.iter_mut().zip(onto).for_each(|(out, onto)| *out += onto);
            }
        }
    }
}

/// Sum of `f` over a row: sixteen sums side by side, then those in order.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; SIDE_BY_SIDE];
    let (chunks, rest) = row.as_chunks::<SIDE_BY_SIDE>();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += f(*x));
    }
    sums.iter_mut().zip(rest).for_each(|(sum, x)| *sum += f(*x));
    together(sums, |a, b| a + b)
}

/// Sum of the products of two rows.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; SIDE_BY_SIDE];
    let ((a, rest), (b, other)) = (a.as_chunks::<SIDE_BY_SIDE>(), b.as_chunks::<SIDE_BY_SIDE>());
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter_mut().zip(rest.iter().zip(other)).for_each(|(sum, (a, b))| *sum += a * b);
    together(sums, |a, b| a + b)
}

/// Folds sixteen numbers in halves.
#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled once for each set of instructions")]
pub(crate) fn together(values: [f32; SIDE_BY_SIDE], fold: impl Fn(f32, f32) -> f32) -> f32 {
    // An array for each half: in one array the compiler stores and reads each number.
    let eight: [f32; 8] = from_fn(|place| fold(values[place], values[place + 8]));
    let four: [f32; 4] = from_fn(|place| fold(eight[place], eight[place + 4]));
    let two: [f32; 2] = from_fn(|place| fold(four[place], four[place + 2]));
    fold(two[0], two[1])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{kernel::Instructions, testing::cases};

    const EPS: f64 = 1e-5;

    fn wave(length: usize, step: f32) -> Vec<f32> {
        (0..length).map(|n| (n as f32 * step).sin()).collect()
    }

    /// Mean and 1 / deviation.
    fn moments(row: &[f64]) -> (f64, f64) {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
        (mean, 1.0 / (variance + EPS).sqrt())
    }

    /// Result, rows before weight and bias, 1 / deviation of each.
    fn normalised(terms: &[&[f32]], norm: Norm) -> [Vec<f32>; 3] {
        let size = terms[0].len();
        let [mut out, mut normal, mut rstd] = [size, size, size / norm.weight.len()].map(|length| vec![9.0; length]);
        normalise(terms, norm, Outputs { out: &mut out, normal: &mut normal, rstd: &mut rstd });
        [out, normal, rstd]
    }

    fn alone(terms: &[&[f32]], norm: Norm) -> Vec<f32> {
        let mut out = vec![9.0; terms[0].len()];
        normalise_alone(terms, norm, &mut out);
        out
    }

    /// One to three terms of `[rows, width]` beside f64.
    fn check([rows, width]: [usize; 2], steps: &[f32]) {
        let terms: Vec<Vec<f32>> = steps.iter().map(|&step| wave(rows * width, step)).collect();
        let terms: Vec<&[f32]> = terms.iter().map(Vec::as_slice).collect();
        let (weight, bias) = (wave(width, 0.9), wave(width, 1.1));
        let norm = Norm { weight: &weight, bias: &bias, eps: EPS };
        let [out, normal, rstd] = Instructions::same(|| normalised(&terms, norm));
        assert_eq!(Instructions::same(|| alone(&terms, norm)), out);
        for (row, rstd) in rstd.iter().enumerate() {
            let own = row * width..(row + 1) * width;
            let its_terms: Vec<&[f32]> = terms.iter().map(|term| &term[own.clone()]).collect();
            assert_eq!(alone(&its_terms, norm), out[own.clone()], "a row's bytes depend on no other row");
            let sum = |column: usize| its_terms.iter().map(|term| f64::from(term[column])).sum();
            let sums: Vec<f64> = (0..width).map(sum).collect();
            let (mean, scale) = moments(&sums);
            assert!((f64::from(*rstd) / scale - 1.0).abs() < 5e-7 * (1.0 + scale));
            for column in 0..width {
                let x = (sums[column] - mean) * scale;
                let expected = x * f64::from(weight[column]) + f64::from(bias[column]);
                // A row of almost equal numbers makes what was rounded in them larger.
                let bound = 5e-7 * (1.0 + scale) * (1.0 + x.abs());
                let at = own.start + column;
                assert!((f64::from(out[at]) - expected).abs() < bound, "{} {expected}", out[at]);
                assert!((f64::from(normal[at]) - x).abs() < bound, "{} {x}", normal[at]);
            }
        }
    }

    #[test]
    fn the_sum_of_terms_is_normalised_row_by_row() {
        // Rows go four at a time, so that there are blocks behind the first one, and rows behind the last one.
        for sizes in [[1, 3], [4, 16], [3, 50], [2, 384], [4, 50], [9, 50], [6, 384]] {
            for count in 1..=3 {
                check(sizes, &[0.7, 0.31, 1.7][..count]);
            }
        }
    }

    /// The backward of `[rows, width]` beside differences of the forward in f64.
    fn check_backward([rows, width]: [usize; 2], step: f32, with_onto: bool) {
        let (x, gradient, weight) = (wave(rows * width, step), wave(rows * width, 0.43), wave(width, 0.9));
        let onto = with_onto.then_some(x.as_slice());
        let [_, normal, rstd] = normalised(&[&x], Norm { weight: &weight, bias: &weight, eps: EPS });
        let found = Instructions::same(|| {
            let mut found = vec![9.0; x.len()];
            normalise_backward(&gradient, (&normal, &rstd), &weight, onto, &mut found);
            found
        });
        for (place, found) in found.iter().enumerate() {
            let (row, column) = (place / width, place % width);
            let own = row * width..(row + 1) * width;
            let at = |step: f64| {
                let mut x: Vec<f64> = x[own.clone()].iter().map(|&x| f64::from(x)).collect();
                x[column] += step;
                let (mean, scale) = moments(&x);
                let factors = gradient[own.clone()].iter().zip(&weight);
                let terms = x.iter().zip(factors).map(|(x, (a, b))| (x - mean) * scale * f64::from(*a) * f64::from(*b));
                terms.sum::<f64>()
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5 + onto.map_or(0.0, |onto| f64::from(onto[place]));
            let bound = 2e-6 * (1.0 + f64::from(rstd[row])).powi(2);
            assert!((f64::from(*found) - slope).abs() < bound, "{place}: {found} {slope}");
        }
    }

    #[test]
    fn the_backward_is_the_slope_of_the_forward() {
        check_backward([2, 19], 0.7, true);
    }

    proptest! {
        #![proptest_config(cases(64))]

        #[test]
        fn norms_of_any_size_are_those_of_their_definition(
            (rows, width) in (1..14_usize, prop_oneof![4 => 1..70_usize, 1 => 370..390_usize]),
            steps in prop::collection::vec(0.3..2.5_f32, 1..=3),
        ) {
            check([rows, width], &steps);
        }

        #[test]
        fn backwards_of_any_size_are_slopes(
            (rows, width) in (1..5_usize, 1..70_usize),
            (step, with_onto) in (0.3..2.5_f32, any::<bool>()),
        ) {
            check_backward([rows, width], step, with_onto);
        }
    }
}
