//! LoRA (Hu et al. 2022) beside a frozen linear layer: the update that is added to the layer's output.
//!
//! Runs under autograd inside an island. Source of the arithmetic: the Python peer's `LoRALinear`.

use graftwork_shared::{adapter::Lora, composition::Composition, id::Name};
use tch::{Kind, Tensor};

use crate::{
    compose::{Site, compose},
    dropout::{Address, Masks, Place},
    parameters::{Leaves, Parameter},
    spans::{Spans, signed},
    transfer,
};

/// One adapter's matrices beside one linear layer.
pub(crate) struct LoraWeights {
    pub(crate) a_ri: Parameter,
    pub(crate) b_or: Parameter,
    pub(crate) gate: Option<[Parameter; 2]>,
    pub(crate) scale: f64,
    pub(crate) dropout: f64,
}

/// All LoRA adapters beside one linear layer, in the order of the composition.
pub(crate) struct LoraSite {
    pub(crate) layer: u32,
    pub(crate) place: Place,
    pub(crate) adapters: Vec<(Name, LoraWeights)>,
    /// Width of the linear layer's output.
    pub(crate) outputs: i64,
    /// Trained leaves of the site.
    pub(crate) leaves: Vec<usize>,
}

impl LoraWeights {
    pub(crate) fn new(config: &Lora, mut take: impl FnMut(&str) -> Option<Parameter>) -> Option<Self> {
        let gate = take("gate.weight").zip(take("gate.bias")).map(|(weight, bias)| [weight, bias]);
        Some(Self {
            a_ri: take("lora_A")?,
            b_or: take("lora_B")?,
            gate,
            scale: config.alpha / f64::from(config.r),
            dropout: config.dropout,
        })
    }

    fn share(&self) -> Self {
        Self {
            a_ri: self.a_ri.share(),
            b_or: self.b_or.share(),
            gate: self.gate.as_ref().map(|[weight, bias]| [weight.share(), bias.share()]),
            scale: self.scale,
            dropout: self.dropout,
        }
    }
}

impl LoraSite {
    /// The update for the rows of `input_ti`: `[t, o]`.
    pub(crate) fn forward(
        &self,
        composition: &Composition,
        input_ti: &Tensor,
        spans: &Spans,
        (leaves, masks): (&Leaves, Option<&Masks>),
    ) -> Tensor {
        let run = Run { site: self, leaves, masks };
        let state = State { input_ti: input_ti.shallow_clone(), update: None, spans: spans.clone() };
        let state = compose(&run, composition, state);
        state
            .update
            .unwrap_or_else(|| input_ti.new_zeros([input_ti.size()[0], self.outputs], (Kind::Float, input_ti.device())))
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
            outputs: self.outputs,
            leaves: self.leaves.clone(),
        }
    }
}

/// Mean over each row's tokens, given back to every token of the row: `[t, 1]` to `[t, 1]`.
pub(crate) fn row_mean(x_t1: &Tensor, spans: &Spans) -> Tensor {
    let row_of_token = spans.row_of_token(x_t1.device());
    let lengths: Vec<f32> = spans.0.iter().map(|span| span.length.max(1) as f32).collect();
    let lengths_b1 = transfer::to_device(&lengths, x_t1.device()).unsqueeze(1);
    let zeros_b1 = lengths_b1.zeros_like();
    (zeros_b1.index_add(0, &row_of_token, x_t1) / lengths_b1).index_select(0, &row_of_token)
}

struct Run<'a> {
    site: &'a LoraSite,
    leaves: &'a Leaves,
    masks: Option<&'a Masks>,
}

struct State {
    input_ti: Tensor,
    /// `None` until the first adapter.
    update: Option<Tensor>,
    spans: Spans,
}

impl Site for Run<'_> {
    type State = State;

    fn holds(&self, adapter: &Name) -> bool {
        self.site.adapters.iter().any(|(name, _)| name == adapter)
    }

    fn before(&self, _adapter: &Name, state: State) -> State {
        state
    }

    fn single(&self, adapter: &Name, state: State) -> State {
        let found = self.site.adapters.iter().enumerate().find(|(_, (name, _))| name == adapter);
        let Some((index, (_, weights))) = found else { return state };
        let mut x = state.update.as_ref().unwrap_or(&state.input_ti).shallow_clone();
        if let Some(masks) = self.masks.filter(|_| weights.dropout > 0.0) {
            let module = u32::try_from(index).expect("adapters of one setup");
            let address = Address { layer: self.site.layer, place: self.site.place, module };
            let width = usize::try_from(x.size()[1]).expect("a width");
            x = &x * masks.tokens(address, &state.spans, width, weights.dropout);
        }
        let leaf = |parameter| self.leaves.get(parameter);
        let update = x.matmul(&leaf(&weights.a_ri).tr()).matmul(&leaf(&weights.b_or).tr());
        let update = match &weights.gate {
            Some([weight, bias]) => {
                let gate = state.input_ti.linear(leaf(weight), Some(leaf(bias))).sigmoid();
                update * row_mean(&gate, &state.spans)
            }
            None => update * weights.scale,
        };
        State { update: Some(update), ..state }
    }

    fn fuse(&self, _fuse: &Composition, _state: State) -> State {
        unreachable!("a network with a fusion of LoRA is refused when it is built")
    }

    fn slice(&self, state: &State, from: usize, to: usize) -> State {
        let (spans, first, count) = state.spans.slice(from, to);
        let narrow = |x: &Tensor| x.narrow(0, first, count);
        State { input_ti: narrow(&state.input_ti), update: state.update.as_ref().map(narrow), spans }
    }

    fn concat(&self, states: Vec<State>) -> State {
        let inputs: Vec<&Tensor> = states.iter().map(|state| &state.input_ti).collect();
        let input_ti = Tensor::cat(&inputs, 0);
        let update = states.iter().any(|state| state.update.is_some()).then(|| {
            let of = |state: &State| {
                let zeros = || {
                    state.input_ti.new_zeros(
                        [state.input_ti.size()[0], self.site.outputs],
                        (Kind::Float, state.input_ti.device()),
                    )
                };
                state.update.as_ref().map_or_else(zeros, Tensor::shallow_clone)
            };
            Tensor::cat(&states.iter().map(of).collect::<Vec<_>>(), 0)
        });
        let mut start = 0;
        let mut spans = Vec::new();
        for span in states.iter().flat_map(|state| &state.spans.0) {
            spans.push(crate::spans::Span { start, ..*span });
            start += span.length;
        }
        State { input_ti, update, spans: Spans(spans) }
    }

    fn mean(&self, states: Vec<State>, weights: &[f64]) -> State {
        let count = signed(states.len()) as f64;
        let parts = states.iter().zip(weights).filter_map(|(state, weight)| Some(state.update.as_ref()? * *weight));
        let update = parts.reduce(|sum, part| sum + part).map(|sum| sum / count);
        let first = states.into_iter().next().expect("an average has a child at this site");
        State { update, ..first }
    }

    fn cut(&self, _state: &State, _from: usize, _to: usize) -> (State, Vec<i64>) {
        unreachable!("a network with a split of LoRA is refused when it is built")
    }

    fn join(&self, _state: State, _parts: Vec<(State, Vec<i64>)>) -> State {
        unreachable!("a network with a split of LoRA is refused when it is built")
    }

    fn copy(&self, state: &State) -> State {
        State {
            input_ti: state.input_ti.shallow_clone(),
            update: state.update.as_ref().map(Tensor::shallow_clone),
            spans: state.spans.clone(),
        }
    }

    fn rows(&self, state: &State) -> usize {
        state.spans.rows()
    }
}
