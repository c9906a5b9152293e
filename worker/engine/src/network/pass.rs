//! One pass through a network: embeddings, layers, heads, and back.

use std::{cell::RefCell, cmp::Reverse, rc::Rc};

use graftwork_shared::{composition::Composition, training::Precision};
use tch::{Device, Kind, Tensor};

use super::{
    Network,
    input::Input,
    parts::{Parts, Stage},
    scaled,
};
use crate::{
    attention::Places,
    bottleneck::SiteContext,
    dropout::{Address, Masks, Place},
    fusion::Notes,
    head::{Service, loss as loss_of, services},
    island::Island,
    layer::{Constants, Layer, SavedLayer},
    parameters::{Leaves, Unread},
    rows::{HeadLogits, LaneOptions, LaneOutput, Prediction, Targets},
    sites::{Depth, LayerSites},
    spans::{Spans, signed},
    transfer::to_host,
};

/// Tokens that travel through the layers together: 256 to 768 were equally fast, fewer 4 % slower. The activations of more
/// would no longer lie in the caches, and each takes 60 KB.
const TOGETHER: usize = 512;
/// The same where `Parallel` repeats rows: each copy has so few of them that what comes once for a run weighs more.
const TOGETHER_IN_COPIES: usize = 768;

/// Loss and gradient of a lane, whose rows travel in runs: their number depends on the rows' lengths alone, and each run
/// adds to the gradient of the one before. Autograd is off.
pub(super) fn lane(network: &Network, input: &Input, targets: &Targets, options: &LaneOptions) -> LaneOutput {
    if network.trunk.precision() == Precision::Fp16 {
        return scaled::lane(options, |options| lane_as_asked(network, input, targets, options));
    }
    lane_as_asked(network, input, targets, options)
}

/// A lane's pass on an accelerator, up to the reading of its numbers.
pub(super) fn queue(network: &Network, input: &Input, targets: &Targets, options: &LaneOptions) -> Unread {
    let mut leaves = Leaves::new(&network.layout, &network.flat, true);
    let (losses, _) = run(network, (input, targets), options, false, (&mut leaves, &mut |_, _| ()));
    leaves.into_unread(&losses)
}

fn lane_as_asked(network: &Network, input: &Input, targets: &Targets, options: &LaneOptions) -> LaneOutput {
    let (losses, leaves) = lane_watched(network, input, targets, options, &mut |_, _| ());
    leaves.into_output(&losses)
}

/// The same, but the gradient is handed on part by part, each as soon as it is complete. Gives the loss.
pub(super) fn lane_in_parts(
    network: &Network,
    (input, targets): (&Input, &Targets),
    options: &LaneOptions,
    parts: &Parts,
    give: &mut dyn FnMut(usize, Vec<f32>),
) -> f64 {
    if network.trunk.precision() == Precision::Fp16 || network.on_accelerator() {
        // fp16 may have to be computed again, and an accelerator is waited for once.
        let LaneOutput { loss, gradient } = lane(network, input, targets, options);
        parts.of(&gradient).for_each(|(part, numbers)| give(part, numbers));
        return loss;
    }
    let mut given = 0;
    let mut hand_on = |stage, leaves: &Leaves| {
        for (part, ranges) in parts.complete(given, stage) {
            give(part, leaves.gradient_at(ranges));
            given = part + 1;
        }
    };
    let (losses, leaves) = lane_watched(network, input, targets, options, &mut hand_on);
    hand_on(Stage::End, &leaves);
    sum(&losses)
}

/// The sum of scalar losses.
fn sum(losses: &[Tensor]) -> f64 {
    losses.iter().flat_map(to_host).map(f64::from).sum()
}

/// What is told of a backward pass on its way: how far it is, and the gradients so far.
type Watch<'a> = &'a mut dyn FnMut(Stage, &Leaves);

/// Only the last run completes anything.
fn lane_watched(
    network: &Network,
    input: &Input,
    targets: &Targets,
    options: &LaneOptions,
    watch: Watch,
) -> (Vec<Tensor>, Leaves) {
    let edges = network.runs(input);
    let mut leaves = Leaves::new(&network.layout, &network.flat, true);
    let mut losses = Vec::new();
    for edge in edges.windows(2) {
        let (from, to) = (edge[0], edge[1]);
        // Fillers have no targets.
        let rows = (&input.part(from, to), &targets.part(from, to.min(input.rows)));
        let mut unfinished = |_: Stage, _: &Leaves| ();
        let watch: Watch = if to == input.spans.rows() { &mut *watch } else { &mut unfinished };
        losses.extend(run(network, rows, options, false, (&mut leaves, watch)).0);
    }
    (losses, leaves)
}

/// Whether a block says which rows of a batch it serves.
fn cuts_rows(block: &Composition) -> bool {
    matches!(block, Composition::BatchSplit { .. }) || block.children().iter().any(cuts_rows)
}

/// What a forward pass leaves behind.
struct Forward {
    /// Output of the last layer: all tokens, or the first ones alone.
    out_td: Tensor,
    /// Rows of `out_td`.
    spans: Spans,
    /// What the backward needs, from the lowest layer that it reaches on.
    saved: Vec<(u32, Frame, SavedLayer)>,
}

/// Rows and depth of one layer in this pass.
#[derive(Clone)]
pub(super) struct Frame {
    spans: Spans,
    out_spans: Spans,
    /// First tokens alone come out, one a row.
    first_alone: bool,
    depth: Depth,
    /// On accelerators.
    places: Option<Rc<Places>>,
}

impl Frame {
    /// All tokens in and out.
    pub(super) fn whole(spans: &Spans, depth: Depth) -> Self {
        Self { spans: spans.clone(), out_spans: spans.clone(), first_alone: false, depth, places: None }
    }
}

/// What a pass is asked for.
struct Ask<'a> {
    input: &'a Input,
    skip_layers: &'a [u32],
    masks: Option<&'a Masks>,
    attention: Option<&'a RefCell<Notes>>,
    /// Gradients are wanted.
    train: bool,
    /// Every token of the last layer is wanted.
    whole: bool,
}

/// Everything that a comparison looks at.
pub(crate) struct Inside {
    /// `[tokens, d]`, of all tokens when asked for, of first tokens otherwise.
    pub(crate) hidden_td: Tensor,
    /// For each head, `[b, c]`.
    pub(crate) logits: Vec<Tensor>,
}

/// Forward and backward of one lane. Arguments are checked by the caller, who has also switched autograd off.
pub(crate) fn train(
    network: &Network,
    input: &Input,
    targets: &Targets,
    options: &LaneOptions,
    whole: bool,
) -> (LaneOutput, Inside) {
    let mut leaves = Leaves::new(&network.layout, &network.flat, true);
    let (losses, inside) = run(network, (input, targets), options, whole, (&mut leaves, &mut |_, _| ()));
    (leaves.into_output(&losses), inside)
}

/// Forward and backward of some rows; gradients are added to `leaves`. Gives the loss of each head.
fn run(
    network: &Network,
    (input, targets): (&Input, &Targets),
    options: &LaneOptions,
    whole: bool,
    (leaves, watch): (&mut Leaves, Watch),
) -> (Vec<Tensor>, Inside) {
    let masks = Masks::of(options, network.trunk.device());
    let ask =
        Ask { input, skip_layers: options.skip_layers, masks: masks.as_ref(), attention: None, train: true, whole };
    let forward = network.forward(&ask, leaves);
    let first_bd = first_tokens(&forward);
    let reaches_trunk = !forward.saved.is_empty();
    let (rows, fillers) = (input.rows, input.spans.rows() - input.rows);
    let (mut losses, mut gradients, mut logits) = (Vec::new(), Vec::new(), Vec::new());
    for service in services(network.setup.composition.as_ref(), [rows, rows + fillers]) {
        let (first, count) = service.rows;
        let scale = options.loss_scale * rows as f64 / count as f64;
        let scale = if count == rows { options.loss_scale } else { scale };
        let rows_bd = first_bd.narrow(0, signed(first), signed(count));
        let leaf_indices = network.heads[service.head].leaves.clone();
        let mut head_logits = None;
        let (island, value) = Island::forward(&[&rows_bd], reaches_trunk, leaf_indices, |x| {
            let out_bc = network.head_logits(&service, &x[0], &forward.spans, (&*leaves, masks.as_ref()));
            head_logits = Some(out_bc.detach());
            loss_of(&out_bc, (targets, input.placed_targets()), (service.first_target, count), scale)
        });
        losses.push(value);
        logits.extend(head_logits);
        // Nobody asked for fillers.
        let over_fillers = |of_rows: Tensor| of_rows.constant_pad_nd([0, 0, 0, signed(fillers)]);
        let of_rows = island.backward_of_loss(leaves).into_iter();
        gradients.extend(of_rows.map(|of_rows| if fillers == 0 { of_rows } else { over_fillers(of_rows) }));
    }
    watch(Stage::Heads, leaves);
    if reaches_trunk {
        let gradient_bd = Tensor::cat(&gradients, 0);
        network.backward(&forward.spans, forward.saved, gradient_bd, (leaves, watch));
    }
    (losses, Inside { hidden_td: forward.out_td, logits })
}

/// Logits and fusion attention, of runs of rows as in training. Autograd is off.
pub(super) fn predict(network: &Network, input: &Input, skip_layers: &[u32]) -> Prediction {
    let edges = network.runs(input);
    let runs = edges.windows(2).map(|edge| predict_run(network, &input.part(edge[0], edge[1]), skip_layers));
    runs.reduce(joined).expect("a batch has a run of rows")
}

/// What two runs of rows say together.
fn joined(mut first: Prediction, then: Prediction) -> Prediction {
    for (head, then) in first.heads.iter_mut().zip(then.heads) {
        head.logits.extend(then.logits);
    }
    for (note, then) in first.fusion_attention.iter_mut().zip(then.fusion_attention) {
        let tokens = note.tokens + then.tokens;
        for (weight, then_weight) in note.weights.iter_mut().zip(then.weights) {
            *weight = (*weight * note.tokens as f64 + then_weight * then.tokens as f64) / tokens as f64;
        }
        note.tokens = tokens;
    }
    first
}

fn predict_run(network: &Network, input: &Input, skip_layers: &[u32]) -> Prediction {
    let leaves = Leaves::new(&network.layout, &network.flat, false);
    let attention = RefCell::new(Notes::default());
    let ask = Ask { input, skip_layers, masks: None, attention: Some(&attention), train: false, whole: false };
    let forward = network.forward(&ask, &leaves);
    let first_bd = first_tokens(&forward);
    let services = services(network.setup.composition.as_ref(), [input.rows, input.spans.rows()]);
    let logits = |service: &Service| {
        let (first, count) = service.rows;
        let rows_bd = first_bd.narrow(0, signed(first), signed(count));
        network.head_logits(service, &rows_bd, &forward.spans, (&leaves, None)).reshape([-1])
    };
    // All heads' logits come from the device at once, and with them what fusions tell.
    let logits = Tensor::cat(&services.iter().map(logits).collect::<Vec<_>>(), 0);
    let (logits, fusion_attention) = attention.into_inner().read_with(&logits);
    let mut rest = logits.as_slice();
    let one = |service: &Service| {
        let head = &network.heads[service.head];
        let outputs = head.config.outputs();
        let (logits, others) = rest.split_at(outputs * service.rows.1);
        rest = others;
        HeadLogits { head: head.name.clone(), outputs, logits: logits.to_vec() }
    };
    let heads = services.iter().map(one).collect();
    Prediction { heads, fusion_attention }
}

fn first_tokens(forward: &Forward) -> Tensor {
    if forward.spans.tokens() == forward.spans.rows() {
        return forward.out_td.shallow_clone();
    }
    forward.out_td.index_select(0, &forward.spans.starts(forward.out_td.device()))
}

impl Network {
    fn forward(&self, ask: &Ask, leaves: &Leaves) -> Forward {
        let description = self.description();
        let composition = self.setup.composition.as_ref();
        let context = composition.map(|composition| SiteContext {
            composition,
            leaves,
            masks: ask.masks,
            attention_dropout: description.attention_dropout,
            attention: ask.attention,
        });
        let last = description.layers - 1;
        let first_alone_at = |layer: u32| {
            let reads_whole_rows = || self.sites(layer, ask.skip_layers).is_some_and(LayerSites::reads_whole_rows);
            layer == last && !ask.whole && !reads_whole_rows()
        };
        let repeat_at = (0..last).find(|layer| self.active(*layer, ask.skip_layers)).unwrap_or(last);
        let copies = self.copies();
        let mut spans = ask.input.spans.clone();
        // Rows of a comparison may have hidden tokens, and dropout draws anew: neither is kept.
        let alike = !ask.whole && ask.masks.is_none_or(|masks| masks.of_trunk(1.0) <= 0.0);
        let (first, mut kept) = match if alike { self.at_cut(ask.input) } else { None } {
            Some((cut, tensors)) => (cut.layer, tensors),
            None => (0, vec![self.embed(ask.input, ask.masks)]),
        };
        let mut x_td = kept[0].shallow_clone();
        let mut saved = Vec::new();
        // Places of the layers so far, as long as they have the same rows.
        let mut places = None;
        let mut near = None;
        for index in first..description.layers {
            if index == repeat_at && copies > 1 {
                kept.iter_mut().for_each(|kept| *kept = kept.repeat([signed(copies), 1]));
                x_td = kept.first().map_or_else(|| x_td.repeat([signed(copies), 1]), Tensor::shallow_clone);
                spans = spans.repeat(copies);
                places = None;
            }
            let first_alone = first_alone_at(index);
            let out_spans = if first_alone { spans.first_tokens() } else { spans.clone() };
            let depth = if ask.train { self.depth(index, ask.skip_layers) } else { Depth::Nothing };
            if self.on_accelerator() && (places.is_none() || first_alone) {
                places = Some(Rc::new(Places::new(&out_spans, &spans, self.trunk.device())));
            }
            let frame = Frame { spans, out_spans, first_alone, depth, places: places.clone() };
            let near_here = near.take();
            let layer = Layer { near: near_here.as_ref(), ..self.layer(index, &frame, context.as_ref(), ask) };
            let (out_td, of_layer) = match kept.as_slice() {
                // Only the first layer of this pass may begin at its end.
                [hidden_td, middle_td] if copies > 1 && !ask.train && index < last && !first_alone_at(index + 1) => {
                    let (out_td, found) = layer.output_end_of_copies([hidden_td, middle_td], copies);
                    near = found;
                    (out_td, None)
                }
                [hidden_td, middle_td] => layer.output_end([hidden_td, middle_td], None),
                _ => layer.forward(&x_td),
            };
            kept.clear();
            x_td = out_td;
            spans = frame.out_spans.clone();
            saved.extend(of_layer.map(|of_layer| (index, frame, of_layer)));
        }
        Forward { out_td: x_td, spans, saved }
    }

    /// Sends the gradient of the first tokens down to the lowest trained site.
    fn backward(
        &self,
        spans: &Spans,
        saved: Vec<(u32, Frame, SavedLayer)>,
        gradient_bd: Tensor,
        (leaves, watch): (&mut Leaves, Watch),
    ) {
        let mut gradient = gradient_bd;
        if spans.tokens() != spans.rows() {
            let size = [signed(spans.tokens()), gradient.size()[1]];
            let zeros = Tensor::zeros(size, (Kind::Float, gradient.device()));
            gradient = zeros.index_copy(0, &spans.starts(gradient.device()), &gradient);
        }
        for (index, frame, saved) in saved.into_iter().rev() {
            let layer = self.layer_frame(index, &frame);
            match layer.backward(saved, &gradient, leaves) {
                Some(below) => gradient = below,
                None => return,
            }
            watch(Stage::Above(Reverse(index)), leaves);
        }
    }

    pub(super) fn embed(&self, input: &Input, masks: Option<&Masks>) -> Tensor {
        let embeddings = &self.trunk.embeddings;
        let [ids_t, types_t, positions_t] = input.indices(self.trunk.device());
        let sum_td = embeddings.word_vd.index_select(0, &ids_t)
            + embeddings.segment_sd.index_select(0, &types_t)
            + embeddings.position_pd.index_select(0, &positions_t);
        let out_td = embeddings.norm.forward(&sum_td);
        let probability = masks.map_or(0.0, |masks| masks.of_trunk(self.description().hidden_dropout));
        match masks.filter(|_| probability > 0.0) {
            Some(masks) => {
                let width = usize::try_from(out_td.size()[1]).expect("a width");
                out_td * masks.tokens(Address::of(0, Place::Embeddings), &input.spans, width, probability)
            }
            None => out_td,
        }
    }

    fn head_logits(
        &self,
        service: &Service,
        rows_bd: &Tensor,
        spans: &Spans,
        (leaves, masks): (&Leaves, Option<&Masks>),
    ) -> Tensor {
        let (first, count) = service.rows;
        let spans = spans.first_tokens().slice(first, first + count).0;
        let head = &self.heads[service.head];
        head.logits(rows_bd, self.trunk.pooler.as_ref(), (leaves, masks), (service.head, &spans))
    }

    /// The sites of a layer, unless it is left out.
    fn sites(&self, layer: u32, skip_layers: &[u32]) -> Option<&LayerSites> {
        (!skip_layers.contains(&layer)).then(|| &self.layers[layer as usize])
    }

    fn active(&self, layer: u32, skip_layers: &[u32]) -> bool {
        self.sites(layer, skip_layers).is_some_and(LayerSites::any)
    }

    fn depth(&self, layer: u32, skip_layers: &[u32]) -> Depth {
        let lowest = |layer: u32| self.sites(layer, skip_layers).and_then(LayerSites::lowest_trained);
        if (0..layer).any(|below| lowest(below).is_some()) {
            return Depth::Whole;
        }
        lowest(layer).map_or(Depth::Nothing, Depth::DownTo)
    }

    /// Edges of the runs in which rows travel.
    pub(super) fn runs(&self, input: &Input) -> Vec<usize> {
        // A run of rows must be what a whole batch is to the composition; accelerators want all rows at once.
        let cut = self.setup.composition.as_ref().is_some_and(cuts_rows);
        if cut || self.on_accelerator() {
            return vec![0, input.spans.rows()];
        }
        let copies = self.copies();
        input.edges(if copies > 1 { TOGETHER_IN_COPIES / copies } else { TOGETHER })
    }

    /// Whether libtorch computes, on a device for which few large shapes are best.
    pub(super) fn on_accelerator(&self) -> bool {
        self.trunk.device() != Device::Cpu || crate::host::is_off()
    }

    /// Rows as an accelerator wants them: in one of few shapes, where no block says which rows it serves.
    pub(super) fn filled(&self, input: Input) -> Input {
        if self.on_accelerator() && !self.setup.composition.as_ref().is_some_and(cuts_rows) {
            input.filled(self.description())
        } else {
            input
        }
    }

    /// How often `Parallel` repeats the batch.
    pub(super) fn copies(&self) -> usize {
        match crate::head::final_block(self.setup.composition.as_ref()) {
            Some(Composition::Parallel { children }) => children.len(),
            _ => 1,
        }
    }

    fn layer<'a>(
        &'a self,
        index: u32,
        frame: &'a Frame,
        context: Option<&'a SiteContext<'a>>,
        ask: &Ask<'a>,
    ) -> Layer<'a> {
        let sites = self.sites(index, ask.skip_layers).filter(|sites| sites.any());
        Layer {
            sites: sites.zip(context.map(|context| context.composition)),
            site_context: context,
            masks: ask.masks,
            ..self.layer_frame(index, frame)
        }
    }

    /// A layer as its backward needs it: without what the forward pass reads at its sites.
    pub(super) fn layer_frame<'a>(&'a self, index: u32, frame: &'a Frame) -> Layer<'a> {
        let description = self.description();
        let constants = Constants {
            activation: description.hidden_act,
            heads: i64::from(description.attention_heads),
            hidden_dropout: description.hidden_dropout,
        };
        Layer {
            index,
            weights: &self.trunk.layers[index as usize],
            all_sites: &self.layers[index as usize],
            sites: None,
            constants,
            site_context: None,
            masks: None,
            attention_dropout: description.attention_dropout,
            spans: &frame.spans,
            out_spans: &frame.out_spans,
            first_alone: frame.first_alone,
            near: None,
            places: frame.places.as_ref(),
            depth: frame.depth,
        }
    }
}
