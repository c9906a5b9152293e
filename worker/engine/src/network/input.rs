//! Rows as the trunk reads them: cut into runs, or filled up to one of few shapes.

use graftwork_model::{Family, TrunkDescription};
use tch::{Device, Tensor};

use crate::{
    head::targets_on,
    rows::{Targets, Tokens},
    spans::{FILLER, Span, Spans, rounded, signed},
    transfer,
};

/// Packed rows as the trunk reads them.
pub(crate) struct Input {
    pub(crate) ids: Vec<i64>,
    pub(crate) type_ids: Vec<i64>,
    pub(crate) positions: Vec<i64>,
    pub(crate) spans: Spans,
    /// Rows that are asked for; those behind them only fill up.
    pub(super) rows: usize,
    /// The same numbers on an accelerator, where they were sent ahead.
    placed: Option<Placed>,
}

/// An input's numbers on an accelerator, or on their way there.
struct Placed {
    /// Ids, segment ids and positions, `[3, tokens]`.
    indices: Tensor,
    /// Of the rows that are asked for.
    targets_b: Tensor,
}

impl Input {
    pub(crate) fn new(tokens: &Tokens, rows: &[u64], description: &TrunkDescription) -> Self {
        let spans = Spans::new(&tokens.lengths, rows);
        Self::with_spans(tokens, spans, description)
    }

    /// Rows of which some tokens may be hidden (padding, in comparisons with the peer).
    pub(crate) fn with_spans(tokens: &Tokens, spans: Spans, description: &TrunkDescription) -> Self {
        let first = i64::from(description.first_position());
        let position = |index: usize, visible: usize| match description.family {
            // RoBERTa gives padding the position of the padding id.
            Family::Roberta if index >= visible => description.pad_token_id,
            _ => first + signed(index),
        };
        let of_row = spans.0.iter().flat_map(|span| (0..span.length).map(|index| position(index, span.visible)));
        let positions = of_row.collect();
        let rows = spans.rows();
        Self { ids: tokens.ids.clone(), type_ids: tokens.type_ids.clone(), positions, spans, rows, placed: None }
    }

    /// Sends its numbers and its rows' targets to a device, in two copies.
    pub(super) fn place(&mut self, targets: &Targets, device: Device) {
        let all = [self.ids.as_slice(), &self.type_ids, &self.positions].concat();
        let indices = transfer::to_device(&all, device).view([3, -1]);
        self.placed = Some(Placed { indices, targets_b: targets_on(targets, 0..targets.len(), device) });
    }

    /// Ids, segment ids and positions on a device.
    pub(super) fn indices(&self, device: Device) -> [Tensor; 3] {
        match &self.placed {
            Some(placed) => [0, 1, 2].map(|number| placed.indices.select(0, number)),
            None => [&self.ids, &self.type_ids, &self.positions].map(|numbers| transfer::to_device(numbers, device)),
        }
    }

    /// Targets of all rows, where they were sent ahead.
    pub(super) fn placed_targets(&self) -> Option<&Tensor> {
        self.placed.as_ref().map(|placed| &placed.targets_b)
    }

    /// Rows `from..to` alone.
    pub(super) fn part(&self, from: usize, to: usize) -> Self {
        let tokens = self.spans.token(from)..self.spans.token(to);
        Self {
            ids: self.ids[tokens.clone()].to_vec(),
            type_ids: self.type_ids[tokens.clone()].to_vec(),
            positions: self.positions[tokens].to_vec(),
            spans: self.spans.slice(from, to).0,
            rows: self.rows.clamp(from, to) - from,
            placed: None,
        }
    }

    /// These rows alone, in this order.
    pub(super) fn of_rows(&self, rows: &[usize]) -> Self {
        let (ids, type_ids, positions) = (Vec::new(), Vec::new(), Vec::new());
        let mut part = Self { ids, type_ids, positions, spans: Spans(Vec::new()), rows: rows.len(), placed: None };
        for span in rows.iter().map(|&row| self.spans.0[row]) {
            let tokens = span.start..span.start + span.length;
            part.spans.0.push(Span { start: part.ids.len(), ..span });
            part.ids.extend_from_slice(&self.ids[tokens.clone()]);
            part.type_ids.extend_from_slice(&self.type_ids[tokens.clone()]);
            part.positions.extend_from_slice(&self.positions[tokens]);
        }
        part
    }

    /// With rows of padding tokens behind the others, so that numbers of rows and tokens are some of few: on a GPU each new
    /// shape costs time, and no graph could be captured of shapes that never come again. No filler is longer than the
    /// longest row.
    pub(super) fn filled(mut self, description: &TrunkDescription) -> Self {
        let (rows, tokens) = (self.spans.rows(), self.spans.tokens());
        let longest = self.spans.0.iter().map(|span| span.length).max().unwrap_or(1);
        let mut all = rounded(tokens);
        let fillers = loop {
            let fillers = rounded(rows + (all - tokens).div_ceil(longest)) - rows;
            if fillers <= all - tokens {
                break fillers;
            }
            all = rounded(all + 1);
        };
        let mut start = tokens;
        for number in 0..fillers {
            // As even as they can be.
            let length = (all - start).div_ceil(fillers - number);
            self.spans.0.push(Span { start, length, visible: length, first: 0, row: FILLER, copy: 0 });
            start += length;
            let first = i64::from(description.first_position());
            self.positions.extend((0..length).map(|index| first + signed(index)));
        }
        self.ids.resize(all, description.pad_token_id);
        self.type_ids.resize(all, 0);
        self
    }

    /// Runs of rows with at most `most` tokens each, or of one row: edges, from 0 to the number of rows.
    pub(super) fn edges(&self, most: usize) -> Vec<usize> {
        let mut edges = vec![0];
        let mut tokens = 0;
        for (row, span) in self.spans.0.iter().enumerate() {
            if tokens > 0 && tokens + span.length > most {
                edges.push(row);
                tokens = 0;
            }
            tokens += span.length;
        }
        edges.push(self.spans.rows());
        edges
    }
}
