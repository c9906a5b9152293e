//! Bottleneck adapters at the end of an attention or feed-forward block, with the block's residual and layer norm.
//!
//! Runs under autograd inside an island. Source of the arithmetic: the Python peer's `Adapter`, `ParallelAdapter` and
//! `BottleneckLayer`.

use std::cell::RefCell;

use graftwork_shared::{
    adapter::{Bottleneck, NonLinearity, Scaling},
    composition::Composition,
    id::Name,
};
use tch::{Kind, Tensor};

use crate::{
    block::LayerNorm,
    compose::{Site, compose, last_at, stacked},
    dropout::{Address, Masks, Place},
    fusion::{FusionWeights, Notes},
    kernel::Bend,
    lora::row_mean,
    parameters::{Leaves, Parameter},
    rows::FusionAttention,
    spans::{FILLER, Span, Spans, signed, unsigned},
    transfer,
};

/// Epsilon of an adapter's own layer norms, as torch.nn.LayerNorm has it.
const OWN_NORM_EPS: f64 = 1e-5;

/// One adapter's tensors at one place.
pub(crate) struct BottleneckWeights {
    pub(crate) config: Bottleneck,
    pub(crate) scaling: Option<Parameter>,
    pub(crate) norm_before: Option<[Parameter; 2]>,
    pub(crate) down: [Parameter; 2],
    pub(crate) up: [Parameter; 2],
    pub(crate) norm_after: Option<[Parameter; 2]>,
    pub(crate) gate: Option<[Parameter; 2]>,
}

/// All bottleneck adapters and fusions at one place of one layer, adapters in the order of the composition.
pub(crate) struct BottleneckSite {
    pub(crate) layer: u32,
    /// Place of the adapters' dropout; fusions have the place of their own behind it.
    pub(crate) place: Place,
    pub(crate) adapters: Vec<(Name, BottleneckWeights)>,
    pub(crate) fusions: Vec<(String, FusionWeights)>,
    /// Trained leaves of the site.
    pub(crate) leaves: Vec<usize>,
}

/// What a site's forward pass reads beside its inputs.
pub(crate) struct SiteContext<'a> {
    pub(crate) composition: &'a Composition,
    pub(crate) leaves: &'a Leaves,
    pub(crate) masks: Option<&'a Masks>,
    /// Dropout of fusions that have no probability of their own.
    pub(crate) attention_dropout: f64,
    /// Where fusions note their attention.
    pub(crate) attention: Option<&'a RefCell<Notes>>,
}

impl BottleneckWeights {
    pub(crate) fn new(config: &Bottleneck, mut take: impl FnMut(&str) -> Option<Parameter>) -> Option<Self> {
        let down_index = usize::from(config.ln_before);
        let scaling = take("scaling");
        let mut pair = |at: &str| Some([take(&format!("{at}.weight"))?, take(&format!("{at}.bias"))?]);
        Some(Self {
            config: config.clone(),
            scaling,
            norm_before: pair("adapter_norm_before"),
            down: pair(&format!("adapter_down.{down_index}"))?,
            up: pair("adapter_up")?,
            norm_after: pair("adapter_norm_after"),
            gate: pair("gate"),
        })
    }

    fn share(&self) -> Self {
        let both = |[weight, bias]: &[Parameter; 2]| [weight.share(), bias.share()];
        Self {
            config: self.config.clone(),
            scaling: self.scaling.as_ref().map(Parameter::share),
            norm_before: self.norm_before.as_ref().map(both),
            down: both(&self.down),
            up: both(&self.up),
            norm_after: self.norm_after.as_ref().map(both),
            gate: self.gate.as_ref().map(both),
        }
    }

    /// What the adapter reads, a fusion's query, and the residual.
    fn prepare(&self, [hidden, input]: [&Tensor; 2], norm: &LayerNorm, query_before_ln: bool) -> [Tensor; 3] {
        if self.config.is_parallel {
            return [input.shallow_clone(), input.shallow_clone(), input.shallow_clone()];
        }
        let normal =
            if self.config.original_ln_before { norm.forward(&(hidden + input)) } else { hidden.shallow_clone() };
        let query = if query_before_ln { hidden } else { &normal }.shallow_clone();
        let residual = if self.config.residual_before_ln { hidden } else { &normal }.shallow_clone();
        [normal, query, residual]
    }

    /// The adapter's output, and its up projection for a fusion.
    #[expect(
        clippy::assign_op_pattern,
        reason = "an assigning operator of a tensor works in place, on what others read"
    )]
    fn forward(&self, state: &State, context: &SiteContext, address: Address) -> [Tensor; 2] {
        let leaf = |parameter| context.leaves.get(parameter);
        let x = match &self.norm_before {
            Some([weight, bias]) => own_norm(&state.hidden, leaf(weight), leaf(bias)),
            None => state.hidden.shallow_clone(),
        };
        let [down, down_bias] = &self.down;
        let inner = bent(self.config.non_linearity, &x.linear(leaf(down), Some(leaf(down_bias))));
        let [up, up_bias] = &self.up;
        let mut up = inner.linear(leaf(up), Some(leaf(up_bias)));
        match (&self.scaling, self.config.scaling) {
            (Some(factor), _) => up = up * leaf(factor),
            // Multiplying by one changes no bit.
            (None, Scaling::Constant(factor)) if (factor - 1.0).abs() > 0.0 => up = up * factor,
            _ => {}
        }
        let mut out = up.shallow_clone();
        if let Some(masks) = context.masks.filter(|_| self.config.dropout > 0.0) {
            let width = usize::try_from(out.size()[1]).expect("a width");
            out = out * masks.tokens(address, &state.spans, width, self.config.dropout);
        }
        if let Some([weight, bias]) = &self.gate {
            let gate = state.hidden.linear(leaf(weight), Some(leaf(bias))).sigmoid();
            out = out * row_mean(&gate, &state.spans);
        }
        let residual = (!self.config.is_parallel).then_some(&state.residual);
        let before = self.config.adapter_residual_before_ln;
        if let Some(residual) = residual.filter(|_| before) {
            out = out + residual;
        }
        if let Some([weight, bias]) = &self.norm_after {
            out = own_norm(&out, leaf(weight), leaf(bias));
        }
        if let Some(residual) = residual.filter(|_| !before) {
            out = out + residual;
        }
        [out, up]
    }

    /// Whether its projections are trained; all tensors of an adapter are, or none.
    pub(crate) fn is_trained(&self) -> bool {
        matches!(self.down[0], Parameter::Trained(_))
    }

    fn ending(&self) -> Ending {
        Ending { parallel: self.config.is_parallel, norm: self.config.original_ln_after }
    }

    /// How the adapter stands in its block. Outputs of adapters that stand alike can be averaged.
    pub(crate) fn standing(&self) -> [bool; 4] {
        let Bottleneck { is_parallel, original_ln_before, residual_before_ln, original_ln_after, .. } = self.config;
        [is_parallel, original_ln_before, residual_before_ln, original_ln_after]
    }
}

/// What ends the block of a token: residuals and the trunk's layer norm. The last adapter that served it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ending {
    parallel: bool,
    norm: bool,
}

impl Ending {
    /// Of a token that no adapter served.
    const PLAIN: Self = Self { parallel: false, norm: true };

    fn finish(self, hidden: Tensor, [original, input]: [&Tensor; 2], norm: &LayerNorm) -> Tensor {
        let hidden = if self.parallel { hidden + original } else { hidden };
        if self.norm { norm.forward(&(hidden + input)) } else { hidden }
    }
}

fn own_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    x.layer_norm(weight.size(), Some(weight), Some(bias), OWN_NORM_EPS, false)
}

/// The kernel of an adapter's activation.
pub(crate) fn bend(kind: NonLinearity) -> Bend {
    match kind {
        NonLinearity::Relu => Bend::Relu,
        NonLinearity::Gelu => Bend::Gelu,
        NonLinearity::GeluNew => Bend::GeluNew,
        NonLinearity::Swish | NonLinearity::Silu => Bend::Silu,
        NonLinearity::Tanh => Bend::Tanh,
        NonLinearity::Leakyrelu => Bend::LeakyRelu,
        NonLinearity::Linear => Bend::Linear,
    }
}

fn bent(kind: NonLinearity, x: &Tensor) -> Tensor {
    match kind {
        NonLinearity::Relu => x.relu(),
        NonLinearity::Gelu => x.gelu("none"),
        NonLinearity::GeluNew => x.gelu("tanh"),
        NonLinearity::Swish | NonLinearity::Silu => x.silu(),
        NonLinearity::Tanh => x.tanh(),
        NonLinearity::Leakyrelu => x.leaky_relu(),
        NonLinearity::Linear => x.shallow_clone(),
    }
}

impl BottleneckSite {
    /// The whole end of a block with adapters: sub-layer output `hidden_td` and sub-layer input `input_td` to the
    /// block's output.
    pub(crate) fn forward(
        &self,
        [hidden_td, input_td]: [&Tensor; 2],
        norm: &LayerNorm,
        spans: &Spans,
        context: &SiteContext,
    ) -> Tensor {
        let run = Run { site: self, norm, context };
        let state = State {
            hidden: hidden_td.shallow_clone(),
            input: input_td.shallow_clone(),
            residual: input_td.shallow_clone(),
            up: None,
            endings: vec![Ending::PLAIN; spans.tokens()],
            spans: spans.clone(),
        };
        let state = stacked(&run, context.composition, state);
        let mut from = 0;
        let runs = state.endings.chunk_by(Ending::eq).map(|run| {
            let length = signed(run.len());
            from += length;
            let part = |x: &Tensor| x.narrow(0, from - length, length);
            run[0].finish(part(&state.hidden), [&part(hidden_td), &part(&state.input)], norm)
        });
        let mut runs: Vec<Tensor> = runs.collect();
        if runs.len() == 1 { runs.swap_remove(0) } else { Tensor::cat(&runs, 0) }
    }

    /// Whether a gate averages over whole rows, so that no token may be left out.
    pub(crate) fn reads_whole_rows(&self) -> bool {
        self.adapters.iter().any(|(_, weights)| weights.gate.is_some())
    }

    pub(crate) fn share(&self) -> Self {
        Self {
            layer: self.layer,
            place: self.place,
            adapters: self.adapters.iter().map(|(name, weights)| (name.clone(), weights.share())).collect(),
            fusions: self.fusions.iter().map(|(name, weights)| (name.clone(), weights.share())).collect(),
            leaves: self.leaves.clone(),
        }
    }
}

struct Run<'a> {
    site: &'a BottleneckSite,
    norm: &'a LayerNorm,
    context: &'a SiteContext<'a>,
}

struct State {
    hidden: Tensor,
    input: Tensor,
    residual: Tensor,
    /// The up projection of the last single adapter, for a fusion.
    up: Option<Tensor>,
    /// For each token, how its block ends.
    endings: Vec<Ending>,
    spans: Spans,
}

impl State {
    fn map(&self, spans: Spans, endings: Vec<Ending>, f: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            hidden: f(&self.hidden),
            input: f(&self.input),
            residual: f(&self.residual),
            up: self.up.as_ref().map(&f),
            endings,
            spans,
        }
    }
}

impl Run<'_> {
    fn find(&self, adapter: &Name) -> Option<(usize, &BottleneckWeights)> {
        let position = self.site.adapters.iter().position(|(name, _)| name == adapter)?;
        Some((position, &self.site.adapters[position].1))
    }

    fn address(&self, place: Place, module: usize) -> Address {
        Address { layer: self.site.layer, place, module: u32::try_from(module).expect("modules of one setup") }
    }
}

/// The mask on a fusion's scores, `[t, n]`, where it has dropout.
pub(crate) fn fusion_mask(
    site: &BottleneckSite,
    context: &SiteContext,
    (index, fusion): (usize, &FusionWeights),
    adapters: usize,
    spans: &Spans,
) -> Option<Tensor> {
    let masks = context.masks?;
    let own = fusion.config.dropout_prob.filter(|&probability| probability > 0.0);
    let probability = own.unwrap_or_else(|| masks.of_trunk(context.attention_dropout));
    let place = match site.place {
        Place::AttentionAdapter => Place::AttentionFusion,
        _ => Place::OutputFusion,
    };
    let module = u32::try_from(index).expect("modules of one setup");
    let address = Address { layer: site.layer, place, module };
    (probability > 0.0).then(|| masks.tokens(address, spans, adapters, probability))
}

impl Site for Run<'_> {
    type State = State;

    fn holds(&self, adapter: &Name) -> bool {
        self.find(adapter).is_some()
    }

    fn before(&self, adapter: &Name, state: State) -> State {
        let Some((_, weights)) = self.find(adapter) else { return state };
        let [hidden, _, residual] = weights.prepare([&state.hidden, &state.input], self.norm, false);
        State { hidden, residual, ..state }
    }

    fn single(&self, adapter: &Name, state: State) -> State {
        let Some((index, weights)) = self.find(adapter) else { return state };
        let [hidden, up] = weights.forward(&state, self.context, self.address(self.site.place, index));
        State { hidden, up: Some(up), endings: vec![weights.ending(); state.endings.len()], ..state }
    }

    fn fuse(&self, fuse: &Composition, state: State) -> State {
        let name = fuse.fusion_name().expect("only fusions are sent here");
        let fusion = self.site.fusions.iter().position(|(known, _)| *known == name);
        let last = last_at(self, fuse).and_then(|last| self.find(last));
        let (Some(index), Some((_, weights))) = (fusion, last) else { return state };
        let fusion = &self.site.fusions[index].1;
        let before_ln = fusion.config.query_before_ln;
        let [hidden, query, residual] = weights.prepare([&state.hidden, &state.input], self.norm, before_ln);
        let state = State { hidden, residual, ..state };
        let outputs: Vec<Tensor> =
            fuse.children().iter().filter_map(|child| compose(self, child, self.copy(&state)).up).collect();
        let mask = fusion_mask(self.site, self.context, (index, fusion), outputs.len(), &state.spans);
        let (hidden, attention_tn) = fusion.forward(self.context.leaves, [&query, &state.residual], &outputs, mask);
        if let Some(notes) = self.context.attention {
            // Fillers stand behind all rows, and nobody asked for them.
            let of_rows = state.spans.0.iter().filter(|span| span.row != FILLER).map(|span| span.length);
            let tokens: usize = of_rows.sum();
            let mean_n = attention_tn.narrow(0, 0, signed(tokens)).mean_dim([0].as_slice(), false, Kind::Double);
            let (layer, tokens) = (self.site.layer, tokens as u64);
            let note = FusionAttention { fusion: name, layer, tokens, weights: Vec::new() };
            notes.borrow_mut().tell_later(note, mean_n);
        }
        State { hidden, endings: vec![weights.ending(); state.endings.len()], ..state }
    }

    fn slice(&self, state: &State, from: usize, to: usize) -> State {
        let (spans, first, count) = state.spans.slice(from, to);
        let endings = &state.endings[state.spans.token(from)..state.spans.token(to)];
        state.map(spans, endings.to_vec(), |x| x.narrow(0, first, count))
    }

    fn concat(&self, states: Vec<State>) -> State {
        let cat = |f: &dyn Fn(&State) -> &Tensor| Tensor::cat(&states.iter().map(f).collect::<Vec<_>>(), 0);
        let mut start = 0;
        let mut spans = Vec::new();
        for span in states.iter().flat_map(|state| &state.spans.0) {
            spans.push(Span { start, ..*span });
            start += span.length;
        }
        State {
            hidden: cat(&|state| &state.hidden),
            input: cat(&|state| &state.input),
            residual: cat(&|state| &state.residual),
            // No fusion reads it: blocks that cut rows stand neither in a fusion nor in a stack within one.
            up: None,
            endings: states.iter().flat_map(|state| state.endings.iter().copied()).collect(),
            spans: Spans(spans),
        }
    }

    fn mean(&self, states: Vec<State>, weights: &[f64]) -> State {
        let count = signed(states.len()) as f64;
        let parts = states.iter().zip(weights).map(|(state, weight)| &state.hidden * *weight);
        let hidden = parts.reduce(|sum, part| sum + part).expect("an average has a child at this site") / count;
        // Averaged adapters stand alike, which is checked when the network is built.
        let first = states.into_iter().next().expect("an average has a child at this site");
        State { hidden, ..first }
    }

    fn cut(&self, state: &State, from: usize, to: usize) -> (State, Vec<i64>) {
        let (spans, indices) = state.spans.cut(from, to);
        let index = transfer::to_device(&indices, state.hidden.device());
        let endings = indices.iter().map(|&index| state.endings[unsigned(index)]).collect();
        (state.map(spans, endings, |x| x.index_select(0, &index)), indices)
    }

    fn join(&self, state: State, parts: Vec<(State, Vec<i64>)>) -> State {
        let order: Vec<i64> = parts.iter().flat_map(|(_, indices)| indices.iter().copied()).collect();
        let mut back = vec![0; order.len()];
        for (position, index) in order.iter().enumerate() {
            back[unsigned(*index)] = position;
        }
        let served: Vec<Ending> = parts.iter().flat_map(|(part, _)| part.endings.iter().copied()).collect();
        let endings = back.iter().map(|&position| served[position]).collect();
        let back: Vec<i64> = back.into_iter().map(signed).collect();
        let hidden = Tensor::cat(&parts.iter().map(|(part, _)| &part.hidden).collect::<Vec<_>>(), 0);
        let back = transfer::to_device(&back, hidden.device());
        State { hidden: hidden.index_select(0, &back), endings, ..state }
    }

    fn copy(&self, state: &State) -> State {
        state.map(state.spans.clone(), state.endings.clone(), Tensor::shallow_clone)
    }

    fn rows(&self, state: &State) -> usize {
        state.spans.rows()
    }
}
