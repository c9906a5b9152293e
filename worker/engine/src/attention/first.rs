//! Attention of one query a row, as the last layer has it where heads read first tokens alone.
//!
//! Nobody needs keys and values there: `q (x Wkᵀ)ᵀ` is `(q Wk) xᵀ`, and `p (x Wvᵀ)` is `(p x) Wvᵀ`, so that weights meet one
//! vector for each head of a row in the place of all its tokens. The key's bias adds the same to all scores of a row, which
//! the softmax does not see. On the CPU alone, and where no adapter stands beside keys or values.

use tch::Tensor;

use super::{
    ProbabilityDropout, Shape,
    kernel::{self, Row, Sizes, softmax, softmax_backward},
    kernel_rows, kernel_sizes, packed_mask,
};
use crate::{
    block::Linear,
    host,
    kernel::{Left, Right, count, product_once, turned},
};

/// What the backward reads.
pub(crate) struct SavedFirst {
    /// The layer's input.
    input_td: Tensor,
    /// What each head of a row asks of the input, `[heads, b, d]`.
    asked: Vec<f32>,
    /// Row after row, `[heads, keys rounded up]` each.
    probabilities: Vec<f32>,
    /// In the same layout.
    mask: Option<Vec<f32>>,
}

/// Context `[b, d]` of queries `[b, d]` over the layer's input `[t, d]`; `None` where kernels cannot read all of it.
pub(crate) fn attention(
    query_bd: &Tensor,
    input_td: &Tensor,
    [key, value]: [&Linear; 2],
    shape: &Shape,
    dropout: Option<&ProbabilityDropout>,
) -> Option<(Tensor, SavedFirst)> {
    let (key, value) = (key.on_host()?, value.on_host()?);
    let (query, input) = (host::values(query_bd)?, host::values(input_td)?);
    let (rows, sizes) = (kernel_rows(shape), kernel_sizes(query_bd, shape));
    let mask = dropout.map(|dropout| packed_mask(dropout, shape, (&rows, sizes)));
    let asked = of_heads(query, key.weight, (rows.len(), sizes));
    let mut context_bd = host::fresh([rows.len(), sizes.token()]);
    let (means, totals, probabilities) = means(input, &asked, mask.as_deref(), (&rows, sizes));
    let context = host::values_mut(&mut context_bd)?;
    to_tokens(&means, value.weight, (rows.len(), sizes), context);
    for (context, totals) in context.chunks_exact_mut(sizes.token()).zip(totals.chunks_exact(sizes.heads)) {
        let biases = value.bias.chunks_exact(sizes.width);
        for ((context, bias), total) in context.chunks_exact_mut(sizes.width).zip(biases).zip(totals) {
            context.iter_mut().zip(bias).for_each(|(context, bias)| *context += total * bias);
        }
    }
    Some((context_bd, SavedFirst { input_td: input_td.shallow_clone(), asked, probabilities, mask }))
}

/// Gradients of the queries `[b, d]` and of the layer's input `[t, d]` from the gradient of the context.
pub(crate) fn attention_backward(
    saved: &SavedFirst,
    gradient_bd: &Tensor,
    [key, value]: [&Linear; 2],
    shape: &Shape,
) -> [Tensor; 2] {
    let gradient_bd = gradient_bd.contiguous();
    let read = |tensor| host::values(tensor).expect("a tensor that the forward pass has read, or one like it");
    let [key, value] = [key, value].map(|linear| linear.on_host().expect("weights that the forward pass has read"));
    let (gradient, input) = (read(&gradient_bd), read(&saved.input_td));
    let (rows, sizes) = (kernel_rows(shape), kernel_sizes(&gradient_bd, shape));
    let of_means = of_heads(gradient, value.weight, (rows.len(), sizes));
    let mut of_input_td = saved.input_td.zeros_like();
    let of_input = host::values_mut(&mut of_input_td).expect("a fresh tensor");

    let token = sizes.token();
    let apart = rows.len() * token;
    let mut of_asked = vec![0.0; saved.asked.len()];
    let mut across = Across::new(&rows, token);
    // Of each row: slopes of the scores and below them the dropped probabilities, and what they meet in the input.
    let (mut factors, mut vectors) = (Vec::new(), vec![0.0; 2 * sizes.heads * token]);
    let mut first = 0;
    for (number, row) in rows.iter().enumerate() {
        let padded = row.padded();
        let size = sizes.heads * padded;
        let weights = &saved.probabilities[first..first + size];
        let mask = saved.mask.as_deref().map(|mask| &mask[first..first + size]);
        first += size;
        factors.resize(2 * size, 0.0);
        let (slopes, dropped) = factors.split_at_mut(size);
        dropped.copy_from_slice(weights);
        let incoming = Left { values: &of_means[number * token..], row: apart, column: 1 };
        product_once([sizes.heads, token, padded], incoming, across.of(input, row), (slopes, padded));
        if let Some(mask) = mask {
            // The value's bias counts as often as probabilities are left.
            let gradient = &gradient[number * token..][..token];
            for (head, slopes) in slopes.chunks_exact_mut(padded).enumerate() {
                let part = head * sizes.width..(head + 1) * sizes.width;
                let of_total: f32 = gradient[part.clone()].iter().zip(&value.bias[part]).map(|(a, b)| a * b).sum();
                slopes.iter_mut().for_each(|slope| *slope += of_total);
            }
            crate::kernel::multiply(slopes, mask);
            crate::kernel::multiply(dropped, mask);
        }
        softmax_backward(slopes, weights, padded, sizes.scale());
        let tokens = Right { values: &input[row.key * token..], row: token };
        let out = (&mut of_asked[number * token..], apart);
        product_once([sizes.heads, row.keys, token], Left::rows(slopes, padded), tokens, out);
        for (head, vectors) in vectors.chunks_exact_mut(token).enumerate() {
            let from = if head < sizes.heads { &saved.asked } else { &of_means };
            vectors.copy_from_slice(&from[(head % sizes.heads) * apart + number * token..][..token]);
        }
        let vectors = Right { values: &vectors, row: token };
        let out = (&mut of_input[row.key * token..], token);
        product_once([row.keys, 2 * sizes.heads, token], Left::turned(&factors, padded), vectors, out);
    }
    let mut of_query_bd = gradient_bd.empty_like();
    let of_query = host::values_mut(&mut of_query_bd).expect("a fresh tensor");
    to_tokens(&of_asked, key.weight, (rows.len(), sizes), of_query);
    [of_query_bd, of_input_td]
}

/// For each head the mean of a row's input under its probabilities, `[heads, b, d]`; the sums of what dropout left of these,
/// `[b, heads]`; and the probabilities before it.
fn means(
    input: &[f32],
    asked: &[f32],
    mask: Option<&[f32]>,
    (rows, sizes): (&[Row], Sizes),
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let token = sizes.token();
    let apart = rows.len() * token;
    let mut means = vec![0.0; asked.len()];
    let mut totals = vec![1.0; rows.len() * sizes.heads];
    let mut probabilities = vec![0.0; kernel::probabilities(rows, sizes)];
    let mut across = Across::new(rows, token);
    let mut masked = Vec::new();
    let mut first = 0;
    for (number, row) in rows.iter().enumerate() {
        let padded = row.padded();
        let range = first..first + sizes.heads * padded;
        first = range.end;
        let weights = &mut probabilities[range.clone()];
        let asked = Left { values: &asked[number * token..], row: apart, column: 1 };
        product_once([sizes.heads, token, padded], asked, across.of(input, row), (weights, padded));
        softmax(weights, padded, row.keys, sizes.scale());
        let weights = match mask {
            Some(mask) => {
                masked.clear();
                masked.extend_from_slice(weights);
                crate::kernel::multiply(&mut masked, &mask[range]);
                for (total, weights) in totals[number * sizes.heads..].iter_mut().zip(masked.chunks_exact(padded)) {
                    *total = weights.iter().sum();
                }
                masked.as_slice()
            }
            None => weights,
        };
        let tokens = Right { values: &input[row.key * token..], row: token };
        let out = (&mut means[number * token..], apart);
        product_once([sizes.heads, row.keys, token], Left::rows(weights, padded), tokens, out);
    }
    (means, totals, probabilities)
}

/// Each head's part of `[b, d]` times its rows of a weight `[d, d]`: `[heads, b, d]`.
fn of_heads(values: &[f32], weight: &[f32], (rows, sizes): (usize, Sizes)) -> Vec<f32> {
    let token = sizes.token();
    let mut out = vec![0.0; sizes.heads * rows * token];
    count(rows * token * token);
    for head in 0..sizes.heads {
        let part = Left { values: &values[head * sizes.width..], row: token, column: 1 };
        let right = Right { values: &weight[head * sizes.width * token..], row: token };
        product_once([rows, sizes.width, token], part, right, (&mut out[head * rows * token..], token));
    }
    out
}

/// The way back, `[heads, b, d]` times the transpose of each head's rows of the weight: `[b, d]`.
fn to_tokens(values: &[f32], weight: &[f32], (rows, sizes): (usize, Sizes), out: &mut [f32]) {
    let token = sizes.token();
    let columns = rows.next_multiple_of(kernel::VECTOR);
    let (mut inputs, mut outputs) = (vec![0.0; token * columns], vec![0.0; sizes.width * columns]);
    count(rows * token * token);
    for head in 0..sizes.heads {
        turned([rows, token], (&values[head * rows * token..], token), (&mut inputs, columns));
        let left = Left { values: &weight[head * sizes.width * token..], row: token, column: 1 };
        let right = Right { values: &inputs, row: columns };
        product_once([sizes.width, token, columns], left, right, (&mut outputs, columns));
        turned([sizes.width, rows], (&outputs, columns), (&mut out[head * sizes.width..], token));
    }
}

/// A row's input turned, `[d, keys rounded up]`, with zeros behind the keys.
struct Across {
    values: Vec<f32>,
    token: usize,
}

impl Across {
    fn new(rows: &[Row], token: usize) -> Self {
        let longest = rows.iter().map(Row::padded).max().unwrap_or(0);
        Self { values: vec![0.0; token * longest], token }
    }

    fn of(&mut self, input: &[f32], row: &Row) -> Right<'_> {
        let padded = row.padded();
        let values = &mut self.values[..self.token * padded];
        // Nothing of another row is left behind the keys.
        values.chunks_exact_mut(padded).for_each(|line| line[row.keys..].fill(0.0));
        turned([row.keys, self.token], (&input[row.key * self.token..], self.token), (values, padded));
        Right { values, row: padded }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Kind;

    use super::*;
    use crate::{
        attention::{SavedAttention, attention as whole, attention_backward as whole_backward, tests::some_dropped},
        kernel::Instructions,
        spans::{Spans, signed},
        testing::{assert_close, cases, normal, ragged, trunk_masks},
    };

    /// As if keys and values were computed: context, gradient of queries, gradient of the input.
    fn plainly(
        [query, input, gradient]: [&Tensor; 3],
        [key, value]: [&Linear; 2],
        shape: &Shape,
        dropout: Option<&ProbabilityDropout>,
    ) -> [Tensor; 3] {
        let inputs = [query.shallow_clone(), key.forward(input), value.forward(input)];
        let (context, saved) = whole(inputs, shape, dropout, true);
        let saved: SavedAttention = saved.expect("what was to be kept");
        let [of_query, of_key, of_value] = whole_backward(&saved, gradient, shape);
        let of_input = value.backward(&of_value, Some(&key.backward(&of_key, None)));
        [context, of_query, of_input]
    }

    /// Gives what it was compared with.
    fn check(keys: &Spans, (heads, d): (i64, i64), dropout: Option<&ProbabilityDropout>) -> [Tensor; 3] {
        let queries = keys.first_tokens();
        let shape = Shape { queries: &queries, keys, heads, places: None };
        // Scores of one size whatever the width: rounding grows with them, in what this is compared with too.
        let size = 1.0 / (d as f64).sqrt();
        let linear = |number: u32| Linear::new(normal(number, &[d, d]) * size, normal(number + 1, &[d]));
        let (key, value) = (linear(10), linear(20));
        let [query, gradient] = [1, 2].map(|number| normal(number, &[signed(queries.rows()), d]));
        let input = normal(3, &[signed(keys.tokens()), d]);
        let (context, saved) = attention(&query, &input, [&key, &value], &shape, dropout).unwrap();
        let [of_query, of_input] = attention_backward(&saved, &gradient, [&key, &value], &shape);
        let expected = plainly([&query, &input, &gradient], [&key, &value], &shape, dropout);
        for (ours, expected) in [context, of_query, of_input].iter().zip(&expected) {
            assert_close(ours, expected, 1e-5);
        }
        expected
    }

    fn says_something(found: &[Tensor]) -> bool {
        found.iter().all(|found| f64::try_from(found.abs().sum(Kind::Float)).unwrap() > 0.0)
    }

    #[test]
    fn one_query_a_row_needs_neither_keys_nor_values() {
        let mut keys = Spans::new(&[4, 1, 7, 33], &[0, 1, 2, 3]);
        keys.0[2].visible = 3;
        for sizes in [(3, 24), (2, 32), (2, 52), (1, 96), (12, 48)] {
            assert!(says_something(&check(&keys, sizes, None)));
        }
    }

    #[test]
    fn dropped_probabilities_lose_their_part_of_the_values_bias() {
        let masks = trunk_masks();
        let dropout = some_dropped(&masks);
        let keys = Spans::new(&[4, 1, 7, 19], &[40, 41, 2, 3]);
        assert!(says_something(&check(&keys, (3, 24), Some(&dropout))));
    }

    #[test]
    fn a_rows_context_is_the_same_bytes_whatever_its_neighbours() {
        let d = 48;
        let linear = |number: u32| Linear::new(normal(number, &[d, d]), normal(number + 1, &[d]));
        let (key, value) = (linear(10), linear(20));
        let (query, input) = (normal(1, &[40, d]), normal(3, &[400, d]));
        let context = |lengths: &[usize], first: [i64; 2]| {
            let keys = Spans::new(lengths, &vec![0; lengths.len()]);
            let shape = Shape { queries: &keys.first_tokens(), keys: &keys, heads: 3, places: None };
            let query = query.narrow(0, first[0], signed(keys.rows()));
            let input = input.narrow(0, first[1], signed(keys.tokens()));
            attention(&query, &input, [&key, &value], &shape, None).unwrap().0
        };
        let lengths: Vec<usize> = (0..35).map(|row| 1 + row * 7 % 20).collect();
        let together = context(&lengths, [0, 0]);
        let mut at = 0;
        for (row, &length) in lengths.iter().enumerate() {
            let alone = context(&[length], [signed(row), signed(at)]);
            assert_eq!(host::values(&alone), host::values(&together.narrow(0, signed(row), 1)), "row {row}");
            at += length;
        }
    }

    proptest! {
        #![proptest_config(cases(32))]

        #[test]
        fn first_queries_of_any_rows_need_neither_keys_nor_values(
            keys in ragged(40),
            (heads, width) in (1..5_i64, 1..25_i64),
        ) {
            let masks = trunk_masks();
            for instructions in Instructions::all() {
                instructions.with(|| {
                    prop_assert!(says_something(&check(&keys, (heads, heads * width), None)));
                    let _ = check(&keys, (heads, heads * width), Some(&some_dropped(&masks)));
                    Ok(())
                })?;
            }
        }
    }
}
