//! Doors to single kernels for the benchmarks of this crate, with operands of their own. Nothing else may use them, and
//! they decide nothing: they run what a step runs.

use tch::{Device, Tensor};

use crate::{
    attention::{ProbabilityDropout, Shape, attention, attention_backward},
    dropout::{Address, Masks, Place},
    host,
    kernel::{Bend, Left, Norm, Outputs, Panels, Start, normalise, normalise_backward, product},
    rows::{Dropout, LaneOptions},
    spans::Spans,
};

/// Numbers between -1 and 1 that repeat late.
fn wave(length: usize, pace: f32) -> Vec<f32> {
    (0..length).map(|n| (n as f32 * pace).sin()).collect()
}

/// A product with a packed right factor: `[rows, sums] × [sums, columns]`.
#[derive(Debug)]
pub struct Product {
    left: Vec<f32>,
    right: Panels,
    out: Vec<f32>,
    rows: usize,
}

impl Product {
    /// Operands of these sizes.
    pub fn new([rows, sums, columns]: [usize; 3]) -> Self {
        let right = Panels::of_rows(&wave(sums * columns, 0.7), [sums, columns]);
        Self { left: wave(rows * sums, 0.3), right, out: vec![0.0; rows * columns], rows }
    }

    /// Computes it once.
    pub fn run(&mut self) -> &[f32] {
        let left = Left::rows(&self.left, self.right.sums());
        product(left, self.rows, &self.right, Start::Zero, &mut self.out);
        &self.out
    }

    /// Operations of one run.
    pub fn operations(&self) -> f64 {
        2.0 * (self.out.len() * self.right.sums()) as f64
    }

    /// Bytes of the operands and the result.
    pub fn bytes(&self) -> f64 {
        4.0 * (self.left.len() + self.right.sums() * self.right.columns() + self.out.len()) as f64
    }
}

/// A layer norm of the sum of two matrices, `[rows, width]`.
#[derive(Debug)]
pub struct LayerNorm {
    terms: [Vec<f32>; 2],
    weight: Vec<f32>,
    bias: Vec<f32>,
    out: Vec<f32>,
    normal: Vec<f32>,
    rstd: Vec<f32>,
}

impl LayerNorm {
    /// Operands of these sizes.
    pub fn new([rows, width]: [usize; 2]) -> Self {
        let size = rows * width;
        Self {
            terms: [wave(size, 0.3), wave(size, 0.7)],
            weight: wave(width, 0.1),
            bias: wave(width, 0.2),
            out: vec![0.0; size],
            normal: vec![0.0; size],
            rstd: vec![0.0; rows],
        }
    }

    /// The norm.
    pub fn forward(&mut self) -> &[f32] {
        let [first, second] = &self.terms;
        let norm = Norm { weight: &self.weight, bias: &self.bias, eps: 1e-12 };
        let outputs = Outputs { out: &mut self.out, normal: &mut self.normal, rstd: &mut self.rstd };
        normalise(&[first, second], norm, outputs);
        &self.out
    }

    /// The gradient, from what [`Self::forward`] left.
    pub fn backward(&mut self) -> &[f32] {
        let [gradient, onto] = &self.terms;
        normalise_backward(gradient, (&self.normal, &self.rstd), &self.weight, Some(onto), &mut self.out);
        &self.out
    }
}

/// GELU with its slope.
#[derive(Debug)]
pub struct Gelu {
    input: Vec<f32>,
    values: Vec<f32>,
    slope: Vec<f32>,
}

impl Gelu {
    /// So many values.
    pub fn new(length: usize) -> Self {
        Self { input: wave(length, 0.3), values: vec![0.0; length], slope: vec![0.0; length] }
    }

    /// Values and slopes, with the copy of the input that each run needs.
    pub fn run(&mut self) -> &[f32] {
        self.values.copy_from_slice(&self.input);
        Bend::Gelu.with_slope(&mut self.values, &mut self.slope);
        &self.values
    }
}

/// Attention of rows of equally many tokens, 12 heads of 32, forward and backward.
pub struct Attention {
    inputs: [Tensor; 3],
    rows: Spans,
    masks: Option<Masks>,
}

impl Attention {
    /// So many rows of so many tokens; `dropout` acts on the probabilities.
    pub fn new([rows, tokens]: [usize; 2], dropout: bool) -> Self {
        let of = |pace| {
            let mut tensor = host::fresh([rows * tokens, 384]);
            if let Some(values) = host::values_mut(&mut tensor) {
                values.copy_from_slice(&wave(rows * tokens * 384, pace));
            }
            tensor
        };
        let numbers: Vec<u64> = (0..rows as u64).collect();
        Self {
            inputs: [of(0.3), of(0.5), of(0.7)],
            rows: Spans::new(&vec![tokens; rows], &numbers),
            masks: if dropout { masks() } else { None },
        }
    }

    /// Both directions, the context as its own gradient.
    pub fn run(&self) -> [Tensor; 3] {
        let shape = Shape { queries: &self.rows, keys: &self.rows, heads: 12, places: None };
        let address = Address::of(0, Place::AttentionProbabilities);
        let dropout = self.masks.as_ref().map(|masks| ProbabilityDropout { masks, address, probability: 0.1 });
        let (context_td, saved) =
            attention(self.inputs.each_ref().map(Tensor::shallow_clone), &shape, dropout.as_ref(), true);
        attention_backward(&saved.expect("what was to be kept"), &context_td, &shape)
    }
}

/// Dropout masks of `[tokens, width]`.
pub struct Mask {
    masks: Option<Masks>,
    spans: Spans,
}

impl Mask {
    /// Of one row of so many tokens.
    pub fn new(tokens: usize) -> Self {
        Self { masks: masks(), spans: Spans::new(&[tokens], &[3]) }
    }

    /// A mask `width` wide.
    pub fn run(&self, width: usize) -> Option<Tensor> {
        let masks = self.masks.as_ref()?;
        Some(masks.tokens(Address::of(0, Place::Output), &self.spans, width, 0.1))
    }
}

fn masks() -> Option<Masks> {
    let dropout = Some(Dropout { seed: 17, base_model: true });
    Masks::of(&LaneOptions { loss_scale: 1.0, step: 0, dropout, skip_layers: &[] }, Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_computes_something() {
        let changes = |values: &[f32]| values.iter().any(|value| value.abs() > 0.0);
        let mut product = Product::new([5, 16, 40]);
        assert!(changes(product.run()));
        assert!((product.operations() - 6400.0).abs() < 0.5 && (product.bytes() - 3680.0).abs() < 0.5);
        let mut norm = LayerNorm::new([3, 16]);
        assert!(changes(norm.forward()) && changes(norm.backward()));
        assert!(changes(Gelu::new(20).run()));
        for dropout in [false, true] {
            let gradients = Attention::new([2, 3], dropout).run();
            assert!(gradients.iter().all(|gradient| changes(host::values(gradient).unwrap())));
        }
        let mask = Mask::new(4).run(16).unwrap();
        assert!(host::values(&mask).unwrap().iter().any(|&value| value > 1.0));
    }
}
