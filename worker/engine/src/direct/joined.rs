//! The projections of all adapters of a fusion side by side, so that a product serves all of them.

use std::ops::Range;

use super::adapter::factor;
use crate::{
    bottleneck::{BottleneckWeights, bend},
    kernel::{Left, Panels, Start, multiply, product},
    parameters::Leaves,
};

/// Of n adapters with r columns in all.
pub(crate) struct Joined {
    /// Columns of each adapter.
    pub(super) columns: Vec<Range<usize>>,
    /// Down projections, forward and backward: `[d, r]` and `[r, d]`.
    down: [Panels; 2],
    /// `[r]`.
    down_bias: Vec<f32>,
    /// Up projections and behind them their biases, both times the factor: `[r + n, d]` and `[d, r + n]`.
    up: [Panels; 2],
}

/// What lies behind the activations, and their slopes: both `[t, r]`.
pub(super) struct Bent {
    pub(super) inner: Vec<f32>,
    pub(super) slope: Vec<f32>,
}

impl Joined {
    pub(super) fn of(adapters: &[&BottleneckWeights], leaves: &Leaves) -> Self {
        let mut columns: Vec<Range<usize>> = Vec::new();
        let (mut down, mut down_bias) = (Vec::new(), Vec::new());
        for adapter in adapters {
            let [weight, bias] = &adapter.down;
            let first = columns.last().map_or(0, |columns| columns.end);
            columns.push(first..first + leaves.sizes(weight)[0]);
            down.extend_from_slice(leaves.values(weight));
            down_bias.extend_from_slice(leaves.values(bias));
        }
        let (width, count) = (down_bias.len(), adapters.len());
        let (hidden, reach) = (down.len() / width, width + count);
        let mut up = vec![0.0; hidden * reach];
        for ((number, adapter), columns) in adapters.iter().enumerate().zip(&columns) {
            let [weights, biases] = adapter.up.each_ref().map(|parameter| leaves.values(parameter));
            let factor = factor(adapter).unwrap_or(1.0);
            for ((row, weights), bias) in
                up.chunks_exact_mut(reach).zip(weights.chunks_exact(columns.len())).zip(biases)
            {
                row[columns.clone()].iter_mut().zip(weights).for_each(|(out, weight)| *out = factor * weight);
                row[width + number] = factor * bias;
            }
        }
        Self {
            columns,
            down: [Panels::of_columns(&down, [hidden, width]), Panels::of_rows(&down, [width, hidden])],
            down_bias,
            up: [Panels::of_columns(&up, [reach, hidden]), Panels::of_rows(&up, [hidden, reach])],
        }
    }

    /// r.
    pub(super) fn width(&self) -> usize {
        self.down_bias.len()
    }

    /// r + n.
    pub(super) fn reach(&self) -> usize {
        self.width() + self.columns.len()
    }

    /// d.
    pub(super) fn hidden(&self) -> usize {
        self.up[0].columns()
    }

    /// All down projections of `x`, `[t, d]`, and their activations.
    pub(super) fn down(&self, adapters: &[&BottleneckWeights], x: &[f32]) -> Bent {
        let (rows, width) = (x.len() / self.hidden(), self.width());
        let mut inner = vec![0.0; rows * width];
        product(Left::rows(x, self.hidden()), rows, &self.down[0], Start::Bias(&self.down_bias), &mut inner);
        let mut slope = vec![0.0; inner.len()];
        let bends: Vec<_> = adapters.iter().map(|adapter| bend(adapter.config.non_linearity)).collect();
        if bends.iter().all(|bend| *bend == bends[0]) {
            bends[0].with_slope(&mut inner, &mut slope);
        } else {
            for (inner, slope) in inner.chunks_exact_mut(width).zip(slope.chunks_exact_mut(width)) {
                for (bend, columns) in bends.iter().zip(&self.columns) {
                    bend.with_slope(&mut inner[columns.clone()], &mut slope[columns.clone()]);
                }
            }
        }
        Bent { inner, slope }
    }

    /// From the gradient behind the activations: that in front of them, and of `x`, added to `below`.
    pub(super) fn down_backward(&self, bent: &Bent, gradient: &mut [f32], below: Option<&mut [f32]>) {
        multiply(gradient, &bent.slope);
        if let Some(below) = below {
            product(
                Left::rows(gradient, self.width()),
                gradient.len() / self.width(),
                &self.down[1],
                Start::Out,
                below,
            );
        }
    }

    /// `[t, r + n]` to `[t, d]`: all up projections and biases, summed.
    pub(super) fn up(&self, x: &[f32]) -> Vec<f32> {
        through(&self.up[0], x, None)
    }

    /// `[t, d]` to `[t, r + n]`: times each column of the up projections, and each bias.
    pub(super) fn up_turned(&self, x: &[f32]) -> Vec<f32> {
        through(&self.up[1], x, None)
    }
}

/// `x` times a packed matrix, added to `onto`.
pub(super) fn through(panels: &Panels, x: &[f32], onto: Option<&[f32]>) -> Vec<f32> {
    let rows = x.len() / panels.sums();
    let mut out = vec![0.0; rows * panels.columns()];
    let start = onto.map_or(Start::Zero, Start::Matrix);
    product(Left::rows(x, panels.sums()), rows, panels, start, &mut out);
    out
}
