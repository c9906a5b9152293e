//! The end of a block with bottleneck adapters: residuals and the trunk's layer norm around them.

use std::ops::Range;

use graftwork_shared::composition::Composition;
use tch::{Device, Tensor};

use super::{
    adapter::{self, is_plain, is_plain_for_fusion, mask_values},
    fusion::{self, Fused},
    is_off,
};
use crate::{
    block::LayerNorm,
    bottleneck::{BottleneckSite, BottleneckWeights, SiteContext},
    dropout::Address,
    host,
    kernel::{Outputs, Start, add, multiply, normalise, normalise_alone, normalise_backward},
    parameters::Leaves,
    spans::Spans,
};

/// Who serves which rows at a site; made for one pass.
pub(crate) struct Sites<'a> {
    site: &'a BottleneckSite,
    parts: Vec<(Range<usize>, Part<'a>)>,
    /// A backward follows.
    keep: bool,
}

/// Who serves some rows.
#[derive(Clone)]
enum Part<'a> {
    /// Nobody: the trunk's own end.
    Trunk,
    Adapter(usize),
    Fusion(Fused<'a>),
}

/// What the backward of a site reads.
pub(crate) struct SavedEnd {
    pub(super) hidden_td: Tensor,
    pub(super) input_td: Tensor,
    pub(super) parts: Vec<SavedPart>,
}

pub(super) struct SavedPart {
    /// Values of the part in `[t, d]`.
    pub(super) range: Range<usize>,
    pub(super) kind: SavedKind,
    /// The trunk's norm in front of the adapter.
    before: Option<SavedNorm>,
    /// The trunk's norm at the end.
    pub(super) after: Option<SavedNorm>,
}

pub(super) enum SavedKind {
    Trunk,
    Adapter { index: usize, saved: adapter::Saved, mask: Option<Tensor> },
    Fusion { last: usize, saved: fusion::Saved },
}

pub(super) struct SavedNorm {
    /// The result, where somebody reads it again.
    out: Vec<f32>,
    normal: Vec<f32>,
    pub(super) rstd: Vec<f32>,
}

/// What an adapter or a fusion may read in front of a block's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The sub-layer's output.
    Hidden,
    /// The sub-layer's input.
    Input,
    /// The trunk's layer norm of their sum.
    Normal,
}

/// What is read: by the adapter, as a fusion's query, and as the residual.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reads {
    pub(super) adapter: Source,
    pub(super) query: Source,
    pub(super) residual: Source,
}

impl Reads {
    pub(super) fn of(weights: &BottleneckWeights, query_before_ln: bool) -> Self {
        let config = &weights.config;
        if config.is_parallel {
            return Self { adapter: Source::Input, query: Source::Input, residual: Source::Input };
        }
        let adapter = if config.original_ln_before { Source::Normal } else { Source::Hidden };
        let or_hidden = |hidden: bool| if hidden { Source::Hidden } else { adapter };
        Self { adapter, query: or_hidden(query_before_ln), residual: or_hidden(config.residual_before_ln) }
    }
}

impl<'a> Sites<'a> {
    /// `None` where the composition, an adapter's options or the device ask for an island. What a backward needs is kept
    /// where one follows.
    pub(crate) fn new(
        site: &'a BottleneckSite,
        block: &'a Composition,
        rows: usize,
        device: Device,
        keep: bool,
    ) -> Option<Self> {
        if device != Device::Cpu || is_off() {
            return None;
        }
        let mut parts = Vec::new();
        collect(site, block, 0..rows, &mut parts)?;
        Some(Self { site, parts, keep })
    }

    /// The whole end of a block, and what its backward needs, if one follows.
    pub(crate) fn forward(
        &self,
        [hidden_td, input_td]: [&Tensor; 2],
        norm: &LayerNorm,
        spans: &Spans,
        context: &SiteContext,
    ) -> Option<(Tensor, Option<SavedEnd>)> {
        let (hidden, input) = (host::values(hidden_td)?, host::values(input_td)?);
        let sizes = host::sizes(hidden_td);
        let mut out_td = host::fresh(sizes);
        let out = host::values_mut(&mut out_td)?;
        let mut parts = Vec::with_capacity(self.parts.len());
        for (rows, part) in &self.parts {
            let range = spans.token(rows.start) * sizes[1]..spans.token(rows.end) * sizes[1];
            let run = Run { site: self.site, norm, context, keep: self.keep };
            let spans = spans.slice(rows.start, rows.end).0;
            let inputs = [&hidden[range.clone()], &input[range.clone()]];
            let (kind, before, after) = run.forward(part, inputs, &spans, &mut out[range.clone()])?;
            parts.push(SavedPart { range, kind, before, after });
        }
        let saved = || SavedEnd { hidden_td: hidden_td.shallow_clone(), input_td: input_td.shallow_clone(), parts };
        Some((out_td, self.keep.then(saved)))
    }
}

/// The parts of `rows` under a block; `None` where one of them needs an island.
fn collect<'a>(
    site: &'a BottleneckSite,
    block: &'a Composition,
    rows: Range<usize>,
    parts: &mut Vec<(Range<usize>, Part<'a>)>,
) -> Option<()> {
    let find = |block: &Composition| {
        let name = block.adapters();
        let mut here = (0..site.adapters.len()).filter(|&index| name.contains(&&site.adapters[index].0));
        here.next()
    };
    if find(block).is_none() {
        parts.push((rows, Part::Trunk));
        return Some(());
    }
    match block {
        Composition::Single { .. } => {
            let index = find(block)?;
            is_plain(&site.adapters[index].1).then_some(())?;
            parts.push((rows, Part::Adapter(index)));
        }
        Composition::Stack { children } => {
            let mut serving = children.iter().filter(|child| find(child).is_some());
            let only = serving.next()?;
            serving.next().is_none().then_some(())?;
            collect(site, only, rows, parts)?;
        }
        Composition::Fuse { children, .. } => {
            let name = block.fusion_name()?;
            let fusion = site.fusions.iter().position(|(known, _)| *known == name)?;
            let serving = children.iter().filter(|child| find(child).is_some());
            let adapters: Option<Vec<usize>> = serving
                .map(|child| {
                    let index = find(child)?;
                    let alone = matches!(child, Composition::Single { .. });
                    (alone && is_plain_for_fusion(&site.adapters[index].1)).then_some(index)
                })
                .collect();
            parts.push((rows, Part::Fusion(Fused { site, fusion, adapters: adapters? })));
        }
        Composition::Parallel { children } => {
            let each = rows.len() / children.len();
            for (number, child) in children.iter().enumerate() {
                let start = rows.start + number * each;
                collect(site, child, start..start + each, parts)?;
            }
        }
        Composition::BatchSplit { children, batch_sizes } => {
            let mut start = rows.start;
            for (child, count) in children.iter().zip(batch_sizes) {
                collect(site, child, start..start + count, parts)?;
                start += count;
            }
        }
        Composition::Average { .. } | Composition::Split { .. } => return None,
    }
    Some(())
}

struct Run<'a> {
    site: &'a BottleneckSite,
    norm: &'a LayerNorm,
    context: &'a SiteContext<'a>,
    keep: bool,
}

impl Run<'_> {
    fn forward(
        &self,
        part: &Part,
        inputs: [&[f32]; 2],
        spans: &Spans,
        out: &mut [f32],
    ) -> Option<(SavedKind, Option<SavedNorm>, Option<SavedNorm>)> {
        let [hidden, input] = inputs;
        let (index, query_before_ln) = match part {
            Part::Trunk => {
                let after = self.normalised(&[hidden, input], out)?;
                return Some((SavedKind::Trunk, None, Some(after)));
            }
            Part::Adapter(index) => (*index, false),
            Part::Fusion(fused) => (fused.last(), fused.weights().config.query_before_ln),
        };
        let weights = &self.site.adapters[index].1;
        let reads = Reads::of(weights, query_before_ln);
        let before = if reads.adapter == Source::Normal {
            let mut normal = vec![0.0; hidden.len()];
            let saved = self.normalised(inputs.as_slice(), &mut normal)?;
            Some(SavedNorm { out: normal, ..saved })
        } else {
            None
        };
        let read = |source| values(source, inputs, before.as_ref());
        let parallel = weights.config.is_parallel;
        let (sum, kind) = match part {
            Part::Fusion(fused) => {
                let (sum, saved) = fused.forward(self.context, spans, reads, read);
                (sum, SavedKind::Fusion { last: index, saved })
            }
            _ => {
                let (mut up, saved) = adapter::up(weights, self.context.leaves, read(reads.adapter), self.keep);
                let mask = self.mask(index, weights, spans);
                if let Some(mask) = &mask {
                    multiply(&mut up, mask_values(mask));
                }
                (up, SavedKind::Adapter { index, saved, mask })
            }
        };
        let mut terms = vec![sum.as_slice()];
        if parallel {
            terms.push(hidden);
        } else if matches!(kind, SavedKind::Adapter { .. }) {
            terms.push(read(reads.residual));
        }
        let after = if weights.config.original_ln_after {
            terms.push(input);
            Some(self.normalised(&terms, out)?)
        } else {
            out.copy_from_slice(terms[0]);
            terms[1..].iter().for_each(|term| add(out, term));
            None
        };
        Some((kind, before, after))
    }

    fn mask(&self, index: usize, weights: &BottleneckWeights, spans: &Spans) -> Option<Tensor> {
        let masks = self.context.masks.filter(|_| weights.config.dropout > 0.0)?;
        let module = u32::try_from(index).expect("modules of one setup");
        let address = Address { layer: self.site.layer, place: self.site.place, module };
        let [_, width] = self.context.leaves.sizes(&weights.down[0]);
        Some(masks.tokens(address, spans, width, weights.config.dropout))
    }

    /// Fills `out`. What is saved serves a backward only where it is kept.
    fn normalised(&self, terms: &[&[f32]], out: &mut [f32]) -> Option<SavedNorm> {
        let norm = self.norm.on_host()?;
        if !self.keep {
            normalise_alone(terms, norm, out);
            return Some(SavedNorm { out: Vec::new(), normal: Vec::new(), rstd: Vec::new() });
        }
        let (mut normal, mut rstd) = (vec![0.0; out.len()], vec![0.0; out.len() / norm.weight.len()]);
        normalise(terms, norm, Outputs { out, normal: &mut normal, rstd: &mut rstd });
        Some(SavedNorm { out: Vec::new(), normal, rstd })
    }
}

fn values<'a>(source: Source, [hidden, input]: [&'a [f32]; 2], normal: Option<&'a SavedNorm>) -> &'a [f32] {
    match source {
        Source::Hidden => hidden,
        Source::Input => input,
        Source::Normal => &normal.expect("who reads the norm has computed it").out,
    }
}

/// Gradients of what a part reads. Those of `hidden` and `input` are whole, that of the norm comes on top.
pub(super) struct Below<'a> {
    pub(super) hidden: &'a mut [f32],
    pub(super) input: &'a mut [f32],
    pub(super) normal: &'a mut [f32],
}

impl Below<'_> {
    pub(super) fn of(&mut self, source: Source) -> &mut [f32] {
        match source {
            Source::Hidden => self.hidden,
            Source::Input => self.input,
            Source::Normal => self.normal,
        }
    }
}

impl SavedEnd {
    /// Gradients of `hidden` and `input`, unless nothing below is trained; those of leaves are added to `leaves`.
    pub(crate) fn backward(
        &self,
        site: &BottleneckSite,
        gradient_td: &Tensor,
        (norm, passes): (&LayerNorm, bool),
        leaves: &mut Leaves,
    ) -> [Option<Tensor>; 2] {
        let gradient_td = gradient_td.contiguous();
        let read = |tensor| host::values(tensor).expect("dense floats, as in the forward pass");
        let gradient = read(&gradient_td);
        let weight = read(&norm.weight_d);
        let sizes = host::sizes(&self.hidden_td);
        let mut below_td = [host::fresh(sizes), host::fresh(sizes)];
        let [hidden_td, input_td] = &mut below_td;
        let (below_hidden, below_input) =
            host::values_mut(hidden_td).zip(host::values_mut(input_td)).expect("fresh tensors");
        for part in &self.parts {
            let range = part.range.clone();
            let inputs = [&read(&self.hidden_td)[range.clone()], &read(&self.input_td)[range.clone()]];
            let slope = match &part.after {
                Some(after) => after.backward(&gradient[range.clone()], weight, None),
                None => gradient[range.clone()].to_vec(),
            };
            let below = [&mut below_hidden[range.clone()], &mut below_input[range]];
            part.backward(site, (inputs, slope), weight, leaves, passes.then_some(below));
        }
        if passes { below_td.map(Some) } else { [None, None] }
    }
}

impl SavedNorm {
    /// Gradient of what was normalised, added to `onto`.
    fn backward(&self, gradient: &[f32], weight: &[f32], onto: Option<&[f32]>) -> Vec<f32> {
        let mut out = vec![0.0; gradient.len()];
        self.backward_into(gradient, weight, onto, &mut out);
        out
    }

    fn backward_into(&self, gradient: &[f32], weight: &[f32], onto: Option<&[f32]>, out: &mut [f32]) {
        normalise_backward(gradient, (&self.normal, &self.rstd), weight, onto, out);
    }
}

impl SavedPart {
    /// From the gradient in front of the norm at the end: gradients of leaves, and those of hidden and input.
    fn backward(
        &self,
        site: &BottleneckSite,
        (inputs, slope): ([&[f32]; 2], Vec<f32>),
        weight: &[f32],
        leaves: &mut Leaves,
        below: Option<[&mut [f32]; 2]>,
    ) {
        match &self.kind {
            SavedKind::Trunk => {
                if let Some(below) = below {
                    below.into_iter().for_each(|below| below.copy_from_slice(&slope));
                }
            }
            SavedKind::Adapter { index, saved, mask } => {
                let (weights, mask) = (&site.adapters[*index].1, mask.as_ref());
                self.adapter_backward(weights, (inputs, saved, mask), (&slope, weight), leaves, below);
            }
            SavedKind::Fusion { last, saved } => {
                let parallel = site.adapters[*last].1.config.is_parallel;
                let read = |source| values(source, inputs, self.before.as_ref());
                let Some([hidden, input]) = below else {
                    return saved.backward(site, (slope, read), leaves, None);
                };
                start(hidden, &slope, parallel);
                start(input, &slope, self.after.is_some());
                let mut normal = vec![0.0; self.before.as_ref().map_or(0, |_| slope.len())];
                let mut below = Below { hidden, input, normal: &mut normal };
                saved.backward(site, (slope, read), leaves, Some(&mut below));
                if let Some(before) = &self.before {
                    let sum = before.backward(below.normal, weight, None);
                    add(below.hidden, &sum);
                    add(below.input, &sum);
                }
            }
        }
    }

    fn adapter_backward(
        &self,
        weights: &BottleneckWeights,
        (inputs, saved, mask): ([&[f32]; 2], &adapter::Saved, Option<&Tensor>),
        (slope, weight): (&[f32], &[f32]),
        leaves: &mut Leaves,
        below: Option<[&mut [f32]; 2]>,
    ) {
        let reads = Reads::of(weights, false);
        let read = (values(reads.adapter, inputs, self.before.as_ref()), saved);
        let Some([hidden, input]) = below else {
            return adapter::up_backward(weights, leaves, read, (slope, mask), None);
        };
        // What reaches each of the three on other ways than through the adapter.
        let direct = |source| match source {
            Source::Input => self.after.is_some(),
            Source::Hidden => weights.config.is_parallel || reads.residual == Source::Hidden,
            Source::Normal => reads.residual == Source::Normal,
        };
        let onto = |source| if direct(source) { Start::Matrix(slope) } else { Start::Zero };
        match reads.adapter {
            Source::Hidden => {
                start(input, slope, direct(Source::Input));
                adapter::up_backward(weights, leaves, read, (slope, mask), Some((onto(Source::Hidden), hidden)));
            }
            Source::Input => {
                start(hidden, slope, direct(Source::Hidden));
                adapter::up_backward(weights, leaves, read, (slope, mask), Some((onto(Source::Input), input)));
            }
            Source::Normal => {
                let mut normal = vec![0.0; slope.len()];
                let to_normal = Some((onto(Source::Normal), normal.as_mut_slice()));
                adapter::up_backward(weights, leaves, read, (slope, mask), to_normal);
                let before = self.before.as_ref().expect("who reads the norm has computed it");
                let base = |source| direct(source).then_some(slope);
                before.backward_into(&normal, weight, base(Source::Hidden), hidden);
                if direct(Source::Hidden) == direct(Source::Input) {
                    input.copy_from_slice(hidden);
                } else {
                    before.backward_into(&normal, weight, base(Source::Input), input);
                }
            }
        }
    }
}

/// What a gradient begins with: `slope`, or nothing.
fn start(gradient: &mut [f32], slope: &[f32], with_slope: bool) {
    if with_slope {
        gradient.copy_from_slice(slope);
    } else {
        gradient.fill(0.0);
    }
}
