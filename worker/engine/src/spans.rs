//! Where each row's tokens lie in a packed tensor, and how compositions cut and repeat rows.

use tch::{Device, Tensor};

use crate::{EngineError, transfer};

/// The tokens of one row inside a packed tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First token in the packed tensor.
    pub(crate) start: usize,
    /// Number of tokens.
    pub(crate) length: usize,
    /// How many of them may be attended to: all, except where a comparison feeds padded rows.
    pub(crate) visible: usize,
    /// Index of the first of them within its row; not 0 behind a `Split`.
    pub(crate) first: usize,
    /// Row number within the data, for dropout.
    pub(crate) row: u64,
    /// Which copy of the row this is under `Parallel`, for dropout.
    pub(crate) copy: u32,
}

/// All rows of a packed tensor, in order and without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spans(pub(crate) Vec<Span>);

/// The number of rows that only fill up a batch, behind all others. No data has so many.
pub(crate) const FILLER: u64 = (1 << 40) - 2;

/// A size rounded up to one of few: at most 15 up to 128, at most an eighth more beyond.
pub(crate) fn rounded(size: usize) -> usize {
    size.next_multiple_of((size.next_power_of_two() / 16).max(8))
}

impl Spans {
    /// Rows of these lengths, one after the other.
    pub(crate) fn new(lengths: &[usize], rows: &[u64]) -> Self {
        let mut start = 0;
        let spans = lengths.iter().zip(rows).map(|(&length, &row)| {
            start += length;
            Span { start: start - length, length, visible: length, first: 0, row, copy: 0 }
        });
        Self(spans.collect())
    }

    pub(crate) fn rows(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn tokens(&self) -> usize {
        self.0.iter().map(|span| span.length).sum()
    }

    /// The first token of each row alone, packed one after the other.
    pub(crate) fn first_tokens(&self) -> Self {
        let one = |(start, span): (usize, &Span)| Span { start, length: 1, visible: 1, ..*span };
        Self(self.0.iter().enumerate().map(one).collect())
    }

    /// All rows `copies` times, one whole batch after the other.
    pub(crate) fn repeat(&self, copies: usize) -> Self {
        let tokens = self.tokens();
        let copy = |copy: usize| {
            self.0.iter().map(move |span| Span {
                start: span.start + copy * tokens,
                copy: u32::try_from(copy).expect("copies are children of one composition"),
                ..*span
            })
        };
        Self((0..copies).flat_map(copy).collect())
    }

    /// Where row `row` begins; behind the last row, the number of tokens.
    pub(crate) fn token(&self, row: usize) -> usize {
        self.0.get(row).map_or_else(|| self.tokens(), |span| span.start)
    }

    /// Rows `from..to` with starts counted from their own first token, and the tokens they occupy: (first, count).
    pub(crate) fn slice(&self, from: usize, to: usize) -> (Self, i64, i64) {
        let offset = self.token(from);
        let spans = Self(self.0[from..to].iter().map(|span| Span { start: span.start - offset, ..*span }).collect());
        let count = signed(spans.tokens());
        (spans, signed(offset), count)
    }

    /// Tokens `from..to` of every row (counted within the row), packed, and the indices at which they lie here.
    pub(crate) fn cut(&self, from: usize, to: usize) -> (Self, Vec<i64>) {
        let (mut spans, mut indices) = (Vec::new(), Vec::new());
        for span in &self.0 {
            let low = from.clamp(span.first, span.first + span.length) - span.first;
            let high = to.clamp(span.first, span.first + span.length) - span.first;
            let visible = span.visible.clamp(low, high) - low;
            spans.push(Span { start: indices.len(), length: high - low, visible, first: span.first + low, ..*span });
            indices.extend((span.start + low..span.start + high).map(signed));
        }
        (Self(spans), indices)
    }

    /// The index of each row's first token, on a device.
    pub(crate) fn starts(&self, device: Device) -> Tensor {
        let starts: Vec<i64> = self.0.iter().map(|span| signed(span.start)).collect();
        transfer::to_device(&starts, device)
    }

    /// For each token, the number of its row.
    pub(crate) fn row_of_token(&self, device: Device) -> Tensor {
        let rows = self.0.iter().enumerate().flat_map(|(row, span)| std::iter::repeat_n(signed(row), span.length));
        transfer::to_device(&rows.collect::<Vec<i64>>(), device)
    }

    /// Checks that the splits of a `Split` cover every row.
    pub(crate) fn check_splits(&self, splits: &[usize]) -> Result<(), EngineError> {
        let covered: usize = splits.iter().sum();
        match self.0.iter().find(|span| span.length > covered) {
            Some(span) => Err(EngineError::Rows(format!(
                "Split serves {covered} tokens of each row in spans of {splits:?}, but a row has {} tokens",
                span.length
            ))),
            None => Ok(()),
        }
    }
}

/// An index of a token in memory, as Rust counts it.
pub(crate) fn unsigned(index: i64) -> usize {
    usize::try_from(index).expect("indices of tokens are not negative")
}

/// A size as libtorch counts it.
pub(crate) fn signed(size: usize) -> i64 {
    i64::try_from(size).expect("sizes of tensors in memory are below 2^63")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_rows_keep_their_numbers() {
        let spans = Spans::new(&[2, 3], &[7, 9]).repeat(2);
        let starts: Vec<usize> = spans.0.iter().map(|span| span.start).collect();
        assert_eq!(starts, [0, 2, 5, 7]);
        assert_eq!(spans.0[3], Span { start: 7, length: 3, visible: 3, first: 0, row: 9, copy: 1 });
    }

    #[test]
    fn a_cut_takes_the_same_tokens_of_every_row_that_has_them() {
        let (cut, indices) = Spans::new(&[2, 4], &[0, 1]).cut(1, 3);
        assert_eq!(indices, [1, 3, 4]);
        assert_eq!((cut.0[0].length, cut.0[1].start, cut.0[1].first), (1, 1, 1));
    }

    #[test]
    fn a_slice_counts_from_its_own_first_token() {
        let (slice, first, count) = Spans::new(&[2, 4, 1], &[0, 1, 2]).slice(1, 3);
        assert_eq!((first, count, slice.0[0].start, slice.0[1].start), (2, 5, 0, 4));
    }

    #[test]
    fn sizes_are_rounded_to_few_that_are_little_larger() {
        let mut sizes: Vec<usize> = (1..=1024).map(rounded).collect();
        assert!((1..=1024).zip(&sizes).all(|(size, &up)| up >= size && up < size + (size / 8).max(8)));
        sizes.dedup();
        assert_eq!(sizes.len(), 16 + 3 * 8);
        assert_eq!([1, 8, 9, 128, 129, 145].map(rounded), [8, 8, 16, 128, 144, 160]);
    }

    #[test]
    fn a_row_longer_than_its_splits_is_refused() {
        let error = Spans::new(&[2, 9], &[0, 1]).check_splits(&[3, 4]).unwrap_err();
        assert!(error.to_string().contains("7 tokens of each row"), "{error}");
    }
}
