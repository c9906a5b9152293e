//! Attention by libtorch, for accelerators: rows side by side, filled up to the longest, so that a layer is a handful of
//! calls whatever the number of rows.
//!
//! Which token lies where is told to the device once for all layers that share their rows. Nothing that was filled up is
//! attended to or gets a gradient, and nothing is added by index, so that results do not depend on an order.

use tch::{Device, Kind, Tensor};

use super::{ProbabilityDropout, Shape};
use crate::{
    spans::{Span, Spans, rounded, signed},
    transfer,
};

/// Where the tokens of a layer's rows lie when rows are side by side.
pub(crate) struct Places {
    /// For each place of queries and of keys its token.
    queries_at: Taken,
    keys_at: Taken,
    /// For each token its place; none for a key that nobody sees.
    of_queries: Taken,
    of_keys: Taken,
    /// 0 where a key is, −∞ elsewhere: `[rows, 1, 1, keys]`.
    hidden: Tensor,
    /// Rows, places of a row's queries, and of its keys.
    sizes: [i64; 3],
}

/// Which rows of a matrix are taken.
struct Taken {
    /// `[n]`; any row where none is taken.
    index: Tensor,
    /// `[n, 1]`: 1, or 0 where none is taken.
    there: Tensor,
}

/// What the backward reads beside queries, keys and values.
pub(super) struct Kept {
    /// `[rows, h, queries, keys]`.
    probabilities: Tensor,
    mask: Option<Tensor>,
}

impl Places {
    /// Places of as many rows of queries as of keys, for all layers that have them.
    pub(crate) fn new(queries: &Spans, keys: &Spans, device: Device) -> Self {
        let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
        let width = match longest(&mut queries.0.iter().map(|span| span.length)) {
            1 => 1,
            length => rounded(length),
        };
        let [of_queries, of_keys] =
            [(queries, width), (keys, rounded(longest(&mut keys.0.iter().map(|span| span.length))))];
        let sides = [side(of_queries, |span| span.length), side(of_keys, |span| span.visible)];
        let sizes = [queries.rows(), of_queries.1, of_keys.1].map(signed);
        // One copy to the device for all four, and one call for each thing that is asked of them.
        let [(queries_at, of_queries), (keys_at, of_keys)] = sides;
        let parts = [queries_at, keys_at, of_queries, of_keys];
        let all = transfer::to_device(&parts.concat(), device);
        let (index, there) = (all.clamp_min(0), all.ge(0).to_kind(Kind::Float).unsqueeze(1));
        let mut first = 0;
        let [queries_at, keys_at, of_queries, of_keys] = parts.map(|part| {
            let count = signed(part.len());
            first += count;
            Taken { index: index.narrow(0, first - count, count), there: there.narrow(0, first - count, count) }
        });
        let nobody = keys_at.there.lt(0.5).view([sizes[0], 1, 1, sizes[2]]);
        let hidden = nobody.to_kind(Kind::Float).masked_fill(&nobody, f64::NEG_INFINITY);
        Self { queries_at, keys_at, of_queries, of_keys, hidden, sizes }
    }

    /// `[tokens, d]` to `[rows, h, places, width]`; zeros where no token is.
    fn spread(&self, x_td: &Tensor, of_keys: bool, heads: i64) -> Tensor {
        let (places, length) = if of_keys { (&self.keys_at, self.sizes[2]) } else { (&self.queries_at, self.sizes[1]) };
        places.of(x_td).view([self.sizes[0], length, heads, -1]).transpose(1, 2)
    }

    /// The reverse.
    fn gathered(&self, x: &Tensor, of_keys: bool) -> Tensor {
        let places = if of_keys { &self.of_keys } else { &self.of_queries };
        let (x, width) = (x.transpose(1, 2), x.size()[1] * x.size()[3]);
        places.of(&x.reshape([-1, width]))
    }

    /// A mask on the probabilities, `[rows, h, queries, keys]`.
    fn mask(&self, dropout: &ProbabilityDropout, shape: &Shape, device: Device) -> Tensor {
        let [_, queries, keys] = self.sizes.map(crate::spans::unsigned);
        let heads = crate::spans::unsigned(shape.heads);
        let ProbabilityDropout { masks, address, probability } = *dropout;
        let rows = (shape.queries, shape.keys);
        if let Some(mask) = masks.attention_side_by_side(address, rows, [heads, queries, keys], probability) {
            return mask;
        }
        let mut mask = vec![1.0; shape.queries.rows() * heads * queries * keys];
        let rows =
            shape.queries.0.iter().zip(&shape.keys.0).zip(mask.chunks_exact_mut((heads * queries * keys).max(1)));
        let mut of_row = Vec::new();
        for ((query, key), place) in rows {
            of_row.resize(heads * query.length * key.visible, 0.0);
            let sizes = [heads, key.visible];
            masks.fill_attention(address, query, sizes, probability, &mut of_row);
            for (number, line) in of_row.chunks_exact(key.visible).enumerate() {
                let (head, token) = (number / query.length, number % query.length);
                place[(head * queries + token) * keys..][..key.visible].copy_from_slice(line);
            }
        }
        let sizes = [self.sizes[0], shape.heads, self.sizes[1], self.sizes[2]];
        transfer::to_device(&mask, device).view(sizes)
    }
}

/// Tokens by place, and places by token, of rows of this many places.
fn side((spans, places): (&Spans, usize), seen: impl Fn(&Span) -> usize) -> (Vec<i64>, Vec<i64>) {
    let mut tokens = vec![-1; spans.rows() * places];
    let mut back = vec![-1; spans.tokens()];
    for (row, span) in spans.0.iter().enumerate() {
        for index in 0..seen(span) {
            tokens[row * places + index] = signed(span.start + index);
            back[span.start + index] = signed(row * places + index);
        }
    }
    (tokens, back)
}

impl Taken {
    /// These rows of a matrix of fp32, zeros where none is taken.
    fn of(&self, x: &Tensor) -> Tensor {
        x.index_select(0, &self.index) * &self.there
    }
}

/// Context `[queries, d]`, and what the backward needs.
pub(super) fn forward(
    [query_td, key_td, value_td]: [&Tensor; 3],
    places: &Places,
    shape: &Shape,
    dropout: Option<&ProbabilityDropout>,
) -> (Tensor, Kept) {
    let query = places.spread(query_td, false, shape.heads);
    let [key, value] = [key_td, value_td].map(|x| places.spread(x, true, shape.heads));
    let scores = query.matmul(&key.transpose(2, 3)) * super::scale(query_td, shape) + &places.hidden;
    let probabilities = scores.softmax(-1, Kind::Float);
    let mask = dropout.map(|dropout| places.mask(dropout, shape, query_td.device()));
    let weights = mask.as_ref().map_or_else(|| probabilities.shallow_clone(), |mask| &probabilities * mask);
    (places.gathered(&weights.matmul(&value), false), Kept { probabilities, mask })
}

/// Gradients of queries, keys and values.
pub(super) fn backward(
    [query_td, key_td, value_td]: [&Tensor; 3],
    (kept, places): (&Kept, &Places),
    gradient_td: &Tensor,
    shape: &Shape,
) -> [Tensor; 3] {
    let Kept { probabilities, mask } = kept;
    let [query, gradient] = [query_td, gradient_td].map(|x| places.spread(x, false, shape.heads));
    let [key, value] = [key_td, value_td].map(|x| places.spread(x, true, shape.heads));
    let weights = mask.as_ref().map_or_else(|| probabilities.shallow_clone(), |mask| probabilities * mask);
    let of_value = weights.transpose(2, 3).matmul(&gradient);
    let of_weights = gradient.matmul(&value.transpose(2, 3));
    let of_weights = mask.as_ref().map_or_else(|| of_weights.shallow_clone(), |mask| &of_weights * mask);
    let of_scores = Tensor::internal_softmax_backward_data(&of_weights, probabilities, -1, Kind::Float);
    let of_scores = of_scores * super::scale(query_td, shape);
    let (of_query, of_key) = (of_scores.matmul(&key), of_scores.transpose(2, 3).matmul(&query));
    [places.gathered(&of_query, false), places.gathered(&of_key, true), places.gathered(&of_value, true)]
}
