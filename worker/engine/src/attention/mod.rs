//! Self-attention over ragged rows: each row's queries attend to the visible tokens of the same row.
//!
//! Packed in, packed out; no padding. The arithmetic of a row never reads another row, so a row's context does not
//! depend on its neighbours. On the CPU our own kernel runs: with rows of 20 tokens it takes a fraction of the time of a
//! library call for each product. Elsewhere libtorch computes all rows at once.

pub(crate) mod first;
mod kernel;
mod padded;

use std::rc::Rc;

use tch::Tensor;

use crate::{
    dropout::{Address, Masks},
    host,
    spans::{Span, Spans},
};

pub(crate) use padded::Places;

/// Which tokens attend to which, and with how many heads.
pub(crate) struct Shape<'a> {
    /// Rows of the queries.
    pub(crate) queries: &'a Spans,
    /// Rows of keys and values: as many, in the same order.
    pub(crate) keys: &'a Spans,
    pub(crate) heads: i64,
    /// Where both lie when rows are side by side, as far as that is known; of accelerators alone.
    pub(crate) places: Option<&'a Rc<Places>>,
}

/// Dropout on the attention probabilities.
pub(crate) struct ProbabilityDropout<'a> {
    pub(crate) masks: &'a Masks,
    pub(crate) address: Address,
    pub(crate) probability: f64,
}

/// What the backward reads.
pub(crate) struct SavedAttention {
    query_td: Tensor,
    key_td: Tensor,
    value_td: Tensor,
    weights: Weights,
}

enum Weights {
    /// Of the kernel: probabilities, row after row, head after head, and the dropout mask on them in the same layout.
    Packed(Vec<f32>, Option<Vec<f32>>),
    /// Of libtorch.
    Padded(padded::Kept, Rc<Places>),
}

/// Context `[queries, d]` of `softmax(q kᵀ / √width) v` for each row and head; with `keep`, what the backward reads.
pub(crate) fn attention(
    [query_td, key_td, value_td]: [Tensor; 3],
    shape: &Shape,
    dropout: Option<&ProbabilityDropout>,
    keep: bool,
) -> (Tensor, Option<SavedAttention>) {
    let (context_td, weights) = match on_host([&query_td, &key_td, &value_td], shape, dropout, keep) {
        Some((context_td, probabilities, mask)) => (context_td, Weights::Packed(probabilities, mask)),
        None => side_by_side([&query_td, &key_td, &value_td], shape, dropout),
    };
    (context_td, keep.then_some(SavedAttention { query_td, key_td, value_td, weights }))
}

/// Gradients of queries, keys and values from the gradient of the context.
pub(crate) fn attention_backward(saved: &SavedAttention, gradient_td: &Tensor, shape: &Shape) -> [Tensor; 3] {
    match &saved.weights {
        Weights::Packed(probabilities, mask) => {
            on_host_backward(saved, (probabilities, mask.as_deref()), gradient_td, shape)
        }
        Weights::Padded(kept, places) => {
            let SavedAttention { query_td, key_td, value_td, .. } = saved;
            padded::backward([query_td, key_td, value_td], (kept, places), gradient_td, shape)
        }
    }
}

fn side_by_side(inputs: [&Tensor; 3], shape: &Shape, dropout: Option<&ProbabilityDropout>) -> (Tensor, Weights) {
    let places =
        shape.places.map_or_else(|| Rc::new(Places::new(shape.queries, shape.keys, inputs[0].device())), Rc::clone);
    let (context_td, kept) = padded::forward(inputs, &places, shape, dropout);
    (context_td, Weights::Padded(kept, places))
}

fn on_host(
    [query_td, key_td, value_td]: [&Tensor; 3],
    shape: &Shape,
    dropout: Option<&ProbabilityDropout>,
    keep: bool,
) -> Option<(Tensor, Vec<f32>, Option<Vec<f32>>)> {
    if host::is_off() {
        return None;
    }
    let mut context_td = query_td.empty_like();
    let inputs =
        kernel::Inputs { query: host::values(query_td)?, key: host::values(key_td)?, value: host::values(value_td)? };
    let context = host::values_mut(&mut context_td)?;
    let (rows, sizes) = (kernel_rows(shape), kernel_sizes(query_td, shape));
    let mask = dropout.map(|dropout| packed_mask(dropout, shape, (&rows, sizes)));
    let probabilities = kernel::forward(inputs, (context, keep), mask.as_deref(), &rows, sizes);
    Some((context_td, probabilities, mask))
}

/// The mask of every row in the layout of the kernel's probabilities.
fn packed_mask(
    dropout: &ProbabilityDropout,
    shape: &Shape,
    (rows, sizes): (&[kernel::Row], kernel::Sizes),
) -> Vec<f32> {
    let mut mask = vec![0.0; kernel::probabilities(rows, sizes)];
    let mut rest = mask.as_mut_slice();
    let mut of_row = Vec::new();
    for (row, span) in rows.iter().zip(&shape.queries.0) {
        of_row.resize(sizes.heads * row.queries * row.keys, 0.0);
        dropout.masks.fill_attention(dropout.address, span, [sizes.heads, row.keys], dropout.probability, &mut of_row);
        let padded = row.padded();
        let (part, behind) = rest.split_at_mut(sizes.heads * row.queries * padded);
        for (line, values) in part.chunks_exact_mut(padded).zip(of_row.chunks_exact(row.keys)) {
            line[..row.keys].copy_from_slice(values);
        }
        rest = behind;
    }
    mask
}

fn on_host_backward(
    saved: &SavedAttention,
    weights: (&[f32], Option<&[f32]>),
    gradient_td: &Tensor,
    shape: &Shape,
) -> [Tensor; 3] {
    let gradient_td = gradient_td.contiguous();
    let mut query = saved.query_td.empty_like();
    let (mut key, mut value) = (saved.key_td.zeros_like(), saved.value_td.zeros_like());
    let read = |tensor| host::values(tensor).expect("a tensor that the forward pass has read, or one like it");
    let inputs =
        kernel::Inputs { query: read(&saved.query_td), key: read(&saved.key_td), value: read(&saved.value_td) };
    let mut gradients = kernel::Gradients {
        query: host::values_mut(&mut query).expect("a fresh tensor"),
        key: host::values_mut(&mut key).expect("a fresh tensor"),
        value: host::values_mut(&mut value).expect("a fresh tensor"),
    };
    let rows = kernel_rows(shape);
    let sizes = kernel_sizes(&saved.query_td, shape);
    kernel::backward(inputs, weights, read(&gradient_td), &mut gradients, (&rows, sizes));
    [query, key, value]
}

/// Rows without a query or a visible key have no context, and none occurs: each row has a token.
fn kernel_rows(shape: &Shape) -> Vec<kernel::Row> {
    let rows = shape.queries.0.iter().zip(&shape.keys.0);
    let row = |(query, key): (&Span, &Span)| kernel::Row {
        query: query.start,
        queries: query.length,
        key: key.start,
        keys: key.visible,
    };
    rows.map(row).collect()
}

fn kernel_sizes(query_td: &Tensor, shape: &Shape) -> kernel::Sizes {
    let size = |size: i64| usize::try_from(size).expect("sizes are not negative");
    kernel::Sizes { heads: size(shape.heads), width: size(query_td.size()[1] / shape.heads) }
}

fn scale(query_td: &Tensor, shape: &Shape) -> f64 {
    1.0 / ((query_td.size()[1] / shape.heads) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Kind;

    use super::*;
    use crate::{
        kernel::Instructions,
        spans::signed,
        testing::{assert_close, cases, normal, ragged, trunk_masks},
    };

    /// Drops three probabilities in ten.
    pub(super) fn some_dropped(masks: &Masks) -> ProbabilityDropout<'_> {
        let address = Address::of(1, crate::dropout::Place::AttentionProbabilities);
        ProbabilityDropout { masks, address, probability: 0.3 }
    }

    /// softmax(q kᵀ / √width) v of one row under autograd.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64) -> Tensor {
        let split = |x: &Tensor| x.view([x.size()[0], heads, -1]).transpose(0, 1);
        let (q, k, v) = (split(q), split(k), split(v));
        let width = q.size()[2] as f64;
        let context = (q.matmul(&k.transpose(1, 2)) / width.sqrt()).softmax(-1, Kind::Float).matmul(&v);
        context.transpose(0, 1).reshape([context.size()[1], -1])
    }

    /// Narrow heads, heads of whole vectors, and such as end within one.
    fn check(queries: &Spans, keys: &Spans) {
        for (heads, d) in [(3, 24), (2, 32), (2, 64), (2, 52), (1, 96)] {
            check_heads(queries, keys, (heads, d), 1e-6);
        }
    }

    #[expect(clippy::many_single_char_names, reason = "queries, keys, values and gradients as everywhere")]
    fn check_heads(queries: &Spans, keys: &Spans, (heads, d): (i64, i64), tolerance: f32) {
        let (q, g) = (normal(1, &[signed(queries.tokens()), d]), normal(4, &[signed(queries.tokens()), d]));
        let (k, v) = (normal(2, &[signed(keys.tokens()), d]), normal(3, &[signed(keys.tokens()), d]));
        let leaves: Vec<Tensor> = [&q, &k, &v].iter().map(|x| x.detach().set_requires_grad(true)).collect();
        let rows = queries.0.iter().zip(&keys.0).map(|(query, key)| {
            let key_rows = |x: &Tensor| x.narrow(0, signed(key.start), signed(key.visible));
            let query_rows = leaves[0].narrow(0, signed(query.start), signed(query.length));
            plain(&query_rows, &key_rows(&leaves[1]), &key_rows(&leaves[2]), heads)
        });
        let expected = Tensor::cat(&rows.collect::<Vec<_>>(), 0);
        let gradients = Tensor::run_backward(&[(&expected * &g).sum(Kind::Float)], &leaves, false, false);

        let shape = Shape { queries, keys, heads, places: None };
        let inputs = || [&q, &k, &v].map(Tensor::shallow_clone);
        let (alone, nothing) = attention(inputs(), &shape, None, false);
        let (context, saved) = attention(inputs(), &shape, None, true);
        assert!(nothing.is_none() && alone.equal(&context), "what is kept changes nothing");
        let in_kernel = (context, saved.unwrap());
        assert!(matches!(in_kernel.1.weights, Weights::Packed(..)));
        let (context, weights) = side_by_side([&q, &k, &v], &shape, None);
        let [query_td, key_td, value_td] = inputs();
        for (context, saved) in [in_kernel, (context, SavedAttention { query_td, key_td, value_td, weights })] {
            assert_close(&context, &expected.detach(), tolerance);
            for (ours, theirs) in attention_backward(&saved, &g, &shape).iter().zip(&gradients) {
                assert_close(ours, theirs, tolerance);
            }
        }
    }

    #[expect(clippy::many_single_char_names, reason = "as above")]
    fn check_dropped(queries: &Spans, keys: &Spans, (heads, d): (i64, i64), tolerance: f32) {
        let masks = trunk_masks();
        let dropout = some_dropped(&masks);
        let shape = Shape { queries, keys, heads, places: None };
        let [q, g] = [1, 4].map(|number| normal(number, &[signed(queries.tokens()), d]));
        let [k, v] = [2, 3].map(|number| normal(number, &[signed(keys.tokens()), d]));
        let inputs = || [&q, &k, &v].map(Tensor::shallow_clone);
        let (context, saved) = attention(inputs(), &shape, Some(&dropout), true);
        assert!(attention(inputs(), &shape, Some(&dropout), false).0.equal(&context));
        let in_kernel = (context, saved.unwrap());
        let (context, weights) = side_by_side([&q, &k, &v], &shape, Some(&dropout));
        assert_close(&in_kernel.0, &context, tolerance);
        let padded = SavedAttention { query_td: q, key_td: k, value_td: v, weights };
        let [ours, theirs] = [&in_kernel.1, &padded].map(|saved| attention_backward(saved, &g, &shape));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_close(ours, theirs, tolerance);
        }
    }

    #[test]
    fn both_ways_drop_the_same_probabilities() {
        let keys = Spans::new(&[4, 1, 7, 19], &[40, 41, 2, 3]);
        for queries in [keys.clone(), keys.first_tokens()] {
            check_dropped(&queries, &keys, (3, 24), 1e-6);
        }
    }

    #[test]
    fn ragged_rows_attend_to_themselves_alone() {
        let spans = Spans::new(&[4, 1, 7, 7], &[0, 1, 2, 3]);
        check(&spans, &spans);
    }

    #[test]
    fn first_tokens_alone_may_ask() {
        let spans = Spans::new(&[4, 1, 7], &[0, 1, 2]);
        check(&spans.first_tokens(), &spans);
    }

    #[test]
    fn hidden_tokens_get_no_attention_and_no_gradient() {
        let mut spans = Spans::new(&[4, 5], &[0, 1]);
        spans.0[1].visible = 2;
        check(&spans, &spans);
    }

    proptest! {
        #![proptest_config(cases(32))]

        #[test]
        fn any_rows_attend_by_the_plain_formula(
            keys in ragged(40),
            (heads, width) in (1..5_i64, 1..40_i64),
            first_alone in any::<bool>(),
        ) {
            let queries = if first_alone { keys.first_tokens() } else { keys.clone() };
            for instructions in Instructions::all() {
                instructions.with(|| {
                    check_heads(&queries, &keys, (heads, heads * width), 1e-5);
                    check_dropped(&queries, &keys, (heads, heads * width), 1e-5);
                });
            }
        }
    }
}
