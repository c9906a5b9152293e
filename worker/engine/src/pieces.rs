//! Doors to single kernels for the benchmarks of this crate, with operands of their own. Nothing else may use them, and
//! they decide nothing: they run what a step runs.

use std::ops::Range;

use graftwork_shared::training::Training;
use tch::{Device, Tensor};

use crate::{
    attention::{ProbabilityDropout, Shape, attention, attention_backward, first},
    block::Linear,
    dropout::{Address, Masks, Place},
    kernel::{
        Bend, Left, Norm, Outputs, Panels, Right, Start, fuse, normalise, normalise_backward, product, product_once,
    },
    rows::{Dropout, LaneOptions},
    spans::{Spans, signed},
    trainer::{self, Factors, Moments},
};

/// Numbers between -1 and 1 that repeat late.
fn wave(length: usize, pace: f32) -> Vec<f32> {
    (0..length).map(|n| (n as f32 * pace).sin()).collect()
}

/// The same as a tensor `[rows, columns]`.
fn tensor([rows, columns]: [usize; 2], pace: f32) -> Tensor {
    Tensor::from_slice(&wave(rows * columns, pace)).view([signed(rows), signed(columns)])
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

/// A product whose factors are read once: `[rows, sums] × [sums, columns]`.
#[derive(Debug)]
pub struct ProductOnce {
    left: Vec<f32>,
    right: Vec<f32>,
    out: Vec<f32>,
    sizes: [usize; 3],
}

impl ProductOnce {
    /// Operands of these sizes.
    pub fn new(sizes: [usize; 3]) -> Self {
        let [rows, sums, columns] = sizes;
        let (left, right) = (wave(rows * sums, 0.3), wave(sums * columns, 0.7));
        Self { left, right, out: vec![0.0; rows * columns], sizes }
    }

    /// Computes it once.
    pub fn run(&mut self) -> &[f32] {
        let [_, sums, columns] = self.sizes;
        let right = Right { values: &self.right, row: columns };
        product_once(self.sizes, Left::rows(&self.left, sums), right, (&mut self.out, columns));
        &self.out
    }

    /// Operations of one run.
    pub fn operations(&self) -> f64 {
        2.0 * self.sizes.iter().product::<usize>() as f64
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

/// An activation with its slope.
#[derive(Debug)]
pub struct Activation {
    bend: Bend,
    input: Vec<f32>,
    values: Vec<f32>,
    slope: Vec<f32>,
}

impl Activation {
    /// Each one of so many values, with its name.
    pub fn all(length: usize) -> [(&'static str, Self); 4] {
        let of = |bend| Self { bend, input: wave(length, 0.3), values: vec![0.0; length], slope: vec![0.0; length] };
        [("gelu", Bend::Gelu), ("gelu_new", Bend::GeluNew), ("silu", Bend::Silu), ("relu", Bend::Relu)]
            .map(|(name, bend)| (name, of(bend)))
    }

    /// Values and slopes, with the copy of the input that each run needs.
    pub fn run(&mut self) -> &[f32] {
        self.values.copy_from_slice(&self.input);
        self.bend.with_slope(&mut self.values, &mut self.slope);
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
        Self {
            inputs: [0.3, 0.5, 0.7].map(|pace| tensor([rows * tokens, 384], pace)),
            rows: alike([rows, tokens]),
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

/// So many rows of so many tokens.
fn alike([rows, tokens]: [usize; 2]) -> Spans {
    let numbers: Vec<u64> = (0..rows as u64).collect();
    Spans::new(&vec![tokens; rows], &numbers)
}

/// Attention of the first token of each row, 12 heads of 32, with the products that stand for keys and values, forward and
/// backward.
pub struct FirstAttention {
    query: Tensor,
    input: Tensor,
    weights: [Linear; 2],
    queries: Spans,
    keys: Spans,
}

impl FirstAttention {
    /// So many rows of so many tokens.
    pub fn new([rows, tokens]: [usize; 2]) -> Self {
        let linear = |pace| Linear::new(tensor([384, 384], pace), tensor([1, 384], pace).view(384));
        let keys = alike([rows, tokens]);
        Self {
            query: tensor([rows, 384], 0.3),
            input: tensor([rows * tokens, 384], 0.5),
            weights: [linear(0.7), linear(0.9)],
            queries: keys.first_tokens(),
            keys,
        }
    }

    /// Both directions, the context as its own gradient; `None` where kernels cannot read the operands.
    pub fn run(&self) -> Option<[Tensor; 2]> {
        let shape = Shape { queries: &self.queries, keys: &self.keys, heads: 12, places: None };
        let weights = self.weights.each_ref();
        let (context_bd, saved) = first::attention(&self.query, &self.input, weights, &shape, None)?;
        Some(first::attention_backward(&saved, &context_bd, weights, &shape))
    }
}

/// Attention of tokens over adapters of 24 columns each.
#[derive(Debug)]
pub struct Fusion {
    columns: Vec<Range<usize>>,
    inner: Vec<f32>,
    along: Vec<f32>,
    attention: Vec<f32>,
    weighted: Vec<f32>,
    of_inner: Vec<f32>,
    of_along: Vec<f32>,
    of_constants: Vec<f32>,
}

impl Fusion {
    /// So many tokens and adapters.
    pub fn new([tokens, adapters]: [usize; 2]) -> Self {
        let (width, reach) = (tokens * adapters * 24, tokens * adapters * 25);
        Self {
            columns: (0..adapters).map(|adapter| 24 * adapter..24 * (adapter + 1)).collect(),
            inner: wave(width, 0.3),
            along: wave(reach, 0.7),
            attention: vec![0.0; tokens * adapters],
            weighted: vec![0.0; reach],
            of_inner: vec![0.0; width],
            of_along: vec![0.0; reach],
            of_constants: vec![0.0; tokens],
        }
    }

    /// The weighted sums.
    pub fn forward(&mut self) -> &[f32] {
        let sides = fuse::Sides { columns: &self.columns, inner: &self.inner, along: &self.along, mask: None };
        fuse::forward(&sides, None, &mut self.attention, &mut self.weighted);
        &self.weighted
    }

    /// Gradients from what [`Self::forward`] left, the weighted sums as their own.
    pub fn backward(&mut self) -> &[f32] {
        let sides = fuse::Sides { columns: &self.columns, inner: &self.inner, along: &self.along, mask: None };
        let mut slopes =
            fuse::Slopes { inner: &mut self.of_inner, along: &mut self.of_along, constants: &mut self.of_constants };
        fuse::backward(&sides, &self.attention, &self.weighted, &mut slopes);
        &self.of_inner
    }
}

/// An update of so many trained numbers: the norm of their gradient, and AdamW.
#[derive(Debug)]
pub struct Optimizer {
    training: Training,
    parameters: Vec<f32>,
    gradient: Vec<f32>,
    moments: Moments,
}

impl Optimizer {
    /// Of so many numbers.
    pub fn new(numbers: usize) -> Self {
        let (parameters, gradient) = (wave(numbers, 0.3), wave(numbers, 0.7));
        Self { training: Training::default(), parameters, gradient, moments: Moments::new(numbers) }
    }

    /// The norm, and the parameters behind one update.
    pub fn run(&mut self) -> (f64, &[f32]) {
        let norm = trainer::norm(&self.gradient);
        let factors = Factors::new(&self.training, 9, 1e-4);
        let all = 0..self.parameters.len();
        self.moments.update(all, &mut self.parameters, &self.gradient, &factors, true);
        (norm, &self.parameters)
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
    use crate::host;

    #[test]
    fn every_piece_computes_something() {
        let changes = |values: &[f32]| values.iter().any(|value| value.abs() > 0.0);
        let mut product = Product::new([5, 16, 40]);
        assert!(changes(product.run()));
        assert!((product.operations() - 6400.0).abs() < 0.5 && (product.bytes() - 3680.0).abs() < 0.5);
        let mut norm = LayerNorm::new([3, 16]);
        assert!(changes(norm.forward()) && changes(norm.backward()));
        let mut product = ProductOnce::new([5, 16, 40]);
        assert!(changes(product.run()) && (product.operations() - 6400.0).abs() < 0.5);
        assert!(Activation::all(20).iter_mut().all(|(_, activation)| changes(activation.run())));
        let mut fusion = Fusion::new([2, 3]);
        assert!(changes(fusion.forward()) && changes(fusion.backward()));
        let mut optimizer = Optimizer::new(20);
        let before = optimizer.parameters.clone();
        let (norm, after) = optimizer.run();
        assert!(
            norm > 1.0 && after.iter().zip(&before).skip(1).all(|(after, before)| after.to_bits() != before.to_bits())
        );
        for dropout in [false, true] {
            let gradients = Attention::new([2, 3], dropout).run();
            assert!(gradients.iter().all(|gradient| changes(host::values(gradient).unwrap())));
        }
        let gradients = FirstAttention::new([2, 3]).run().unwrap();
        assert!(gradients.iter().all(|gradient| changes(host::values(gradient).unwrap())));
        let mask = Mask::new(4).run(16).unwrap();
        assert!(host::values(&mask).unwrap().iter().any(|&value| value > 1.0));
    }
}
