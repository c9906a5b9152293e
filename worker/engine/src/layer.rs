//! One transformer layer with its adapter sites: forward, and backward down to the lowest trained site.
//!
//! Post-norm: attention, residual, layer norm; feed-forward, residual, layer norm. LoRA sites stand beside the linear
//! layers, bottleneck sites replace the residual and layer norm at the end of a block. Runs without autograd; only the
//! islands inside record graphs of their own.

use std::rc::Rc;

use graftwork_model::Activation;
use graftwork_shared::composition::Composition;
use tch::Tensor;

use crate::{
    attention::{
        Places, ProbabilityDropout, SavedAttention, Shape, attention, attention_backward,
        first::{self, SavedFirst},
    },
    block::{LayerNorm, Linear, SavedBend, SavedNorm, activate, activate_backward},
    bottleneck::{BottleneckSite, SiteContext},
    direct::{Near, Projection, SavedEnd, SavedUpdate, Sites, update, update_backward},
    dropout::{Address, Masks, Place},
    island::Island,
    lora::LoraSite,
    parameters::Leaves,
    sites::{Depth, LayerSites, Rank},
    spans::Spans,
    timing::{Work, timed},
    trunk::LayerWeights,
};

/// What all layers of a pass share.
#[derive(Clone, Copy)]
pub(crate) struct Constants {
    pub(crate) activation: Activation,
    pub(crate) heads: i64,
    pub(crate) hidden_dropout: f64,
}

/// One layer within one pass.
pub(crate) struct Layer<'a> {
    pub(crate) index: u32,
    pub(crate) weights: &'a LayerWeights,
    /// What stands in the layer, whether it serves in this pass or not.
    pub(crate) all_sites: &'a LayerSites,
    /// Absent where the composition or this pass has no adapter in the layer.
    pub(crate) sites: Option<(&'a LayerSites, &'a Composition)>,
    pub(crate) constants: Constants,
    pub(crate) site_context: Option<&'a SiteContext<'a>>,
    pub(crate) masks: Option<&'a Masks>,
    pub(crate) attention_dropout: f64,
    /// Rows of the layer's input.
    pub(crate) spans: &'a Spans,
    /// Rows of the layer's output: the same, or the first tokens alone where nothing else is read.
    pub(crate) out_spans: &'a Spans,
    /// First tokens alone come out, one a row.
    pub(crate) first_alone: bool,
    /// Rows of the layer's input as children of a `Parallel` block that differ by their adapters alone.
    pub(crate) near: Option<&'a Near>,
    /// Where both lie side by side, on accelerators.
    pub(crate) places: Option<&'a Rc<Places>>,
    pub(crate) depth: Depth,
}

/// What a layer's backward reads.
pub(crate) struct SavedLayer {
    output_end: End,
    /// Absent where the backward ends at the output's end.
    lower: Option<Lower>,
}

/// What the backward reads below the end of the feed-forward block.
pub(crate) struct Lower {
    projections: [Option<Beside>; 3],
    attention: Option<Attended>,
    attention_mask: Option<Tensor>,
    attention_end: End,
    bend: Option<SavedBend>,
    intermediate: Option<Beside>,
    output: Option<Beside>,
    output_mask: Option<Tensor>,
}

/// How queries met the layer's input.
enum Attended {
    Whole(SavedAttention),
    First(SavedFirst),
}

/// A LoRA update beside a linear layer that the backward reaches.
enum Beside {
    Direct(SavedUpdate),
    Island(Island),
}

/// The end of a block.
enum End {
    Plain(SavedNorm),
    Direct(SavedEnd),
    Island(Island),
    /// The backward does not reach it.
    Unreached,
}

impl Layer<'_> {
    /// `[tokens, d]` to `[out tokens, d]`; the second value is absent where the backward does not reach.
    pub(crate) fn forward(&self, x_td: &Tensor) -> (Tensor, Option<SavedLayer>) {
        let ([hidden_td, middle_td], lower) = self.until_output_end(x_td);
        self.output_end([&hidden_td, &middle_td], Some(lower))
    }

    /// All but the end of the feed-forward block: that block's output and its input, `[out tokens, d]` each.
    pub(crate) fn until_output_end(&self, x_td: &Tensor) -> ([Tensor; 2], Lower) {
        let weights = self.weights;
        let asking_td = if self.first_alone {
            x_td.index_select(0, &self.spans.starts(x_td.device()))
        } else {
            x_td.shallow_clone()
        };
        let sites = self.sites.map(|(sites, _)| sites);
        let project = |projection: Projection, x: &Tensor, spans| {
            let (linear, site) = match projection {
                Projection::Query => (&weights.query, sites.map(|sites| &sites.query)),
                Projection::Key => (&weights.key, sites.map(|sites| &sites.key)),
                Projection::Value => (&weights.value, sites.map(|sites| &sites.value)),
            };
            let site = site.and_then(Option::as_ref);
            self.linear(self.projected(linear, projection, x), site, (x, spans), Rank::Projections)
        };
        let (query_td, query) = project(Projection::Query, &asking_td, self.out_spans);
        let dropout = self.probability_dropout();
        let (context_td, attended, [key, value]) = match self.attend_of_first(&query_td, x_td, dropout.as_ref()) {
            Some((context_td, saved)) => (context_td, Some(Attended::First(saved)), [None, None]),
            None => {
                let (key_td, key) = project(Projection::Key, x_td, self.spans);
                let (value_td, value) = project(Projection::Value, x_td, self.spans);
                let inputs = [query_td, key_td, value_td];
                let keep = self.depth.passes(Rank::AttentionEnd);
                let attend = || attention(inputs, &self.shape(), dropout.as_ref(), keep);
                let (context_td, saved) = timed(Work::Attention, attend);
                (context_td, saved.map(Attended::Whole), [key, value])
            }
        };
        let hidden_td = weights.attention_output.forward(&context_td);
        let (hidden_td, attention_mask) = self.drop(hidden_td, Place::AttentionOutput);
        let site = sites.and_then(|sites| sites.attention_end.as_ref());
        let (middle_td, attention_end) =
            self.end([&hidden_td, &asking_td], &weights.attention_norm, site, Rank::AttentionEnd);

        let site = sites.and_then(|sites| sites.intermediate.as_ref());
        let (inner_ti, intermediate) = self.linear(
            weights.intermediate.forward(&middle_td),
            site,
            (&middle_td, self.out_spans),
            Rank::Intermediate,
        );
        let keep = self.depth.passes(Rank::Output);
        let (bent_ti, bend) = timed(Work::ElementWise, || activate(self.constants.activation, inner_ti, keep));
        let site = sites.and_then(|sites| sites.output.as_ref());
        let (hidden_td, output) =
            self.linear(weights.output.forward(&bent_ti), site, (&bent_ti, self.out_spans), Rank::Output);
        let (hidden_td, output_mask) = self.drop(hidden_td, Place::Output);
        let lower = Lower {
            projections: [query, key, value],
            attention: attended,
            attention_mask,
            attention_end,
            bend,
            intermediate,
            output,
            output_mask,
        };
        ([hidden_td, middle_td], lower)
    }

    /// The end of the feed-forward block. `lower` is absent where the backward does not get so far.
    pub(crate) fn output_end(&self, inputs: [&Tensor; 2], lower: Option<Lower>) -> (Tensor, Option<SavedLayer>) {
        let site = self.sites.and_then(|(sites, _)| sites.output_end.as_ref());
        let (out_td, output_end) = self.end(inputs, &self.weights.output_norm, site, Rank::OutputEnd);
        let lower = lower.filter(|_| self.depth.passes(Rank::OutputEnd));
        (out_td, (self.depth != Depth::Nothing).then_some(SavedLayer { output_end, lower }))
    }

    /// The end of the feed-forward block where no backward follows and the block's rows are `copies` times the same; with it
    /// what the next layer may know of them.
    pub(crate) fn output_end_of_copies(&self, inputs: [&Tensor; 2], copies: usize) -> (Tensor, Option<Near>) {
        let norm = &self.weights.output_norm;
        let written_out = || {
            let (sites, composition) = self.sites?;
            let (site, context) = (sites.output_end.as_ref()?, self.site_context?);
            let sites = Sites::new(site, composition, self.out_spans.rows(), inputs[0].device(), true)?;
            let (out_td, saved) = sites.forward(inputs, norm, self.out_spans, context)?;
            Some((out_td, Near::of(&saved?, (site, norm), context.leaves, copies)))
        };
        timed(Work::Islands, written_out).unwrap_or_else(|| (self.output_end(inputs, None).0, None))
    }

    /// Gradient of the input, or `None` where nothing below is trained. Gradients of trained leaves go to `leaves`.
    pub(crate) fn backward(&self, saved: SavedLayer, gradient_td: &Tensor, leaves: &mut Leaves) -> Option<Tensor> {
        let weights = self.weights;
        let sites = self.all_sites;
        let end = (saved.output_end, sites.output_end.as_ref(), &weights.output_norm);
        let [hidden, middle] = self.end_backward(end, gradient_td, leaves, Rank::OutputEnd);
        let saved = saved.lower?;
        let hidden = undrop(hidden?, saved.output_mask.as_ref());
        let output = (&weights.output, &sites.output, saved.output);
        let bent = self.linear_backward(output, &hidden, leaves, Rank::Output, None)?;
        let activation = self.constants.activation;
        let bend = saved.bend?;
        let inner = timed(Work::ElementWise, || activate_backward(activation, &bend, bent));
        let intermediate = (&weights.intermediate, &sites.intermediate, saved.intermediate);
        let middle = self.linear_backward(intermediate, &inner, leaves, Rank::Intermediate, middle.as_ref())?;

        let end = (saved.attention_end, sites.attention_end.as_ref(), &weights.attention_norm);
        let [hidden, asking] = self.end_backward(end, &middle, leaves, Rank::AttentionEnd);
        if !self.depth.passes(Rank::AttentionEnd) {
            return None;
        }
        let context = weights.attention_output.backward(&undrop(hidden?, saved.attention_mask.as_ref()), None);
        let mut back = |linear, gradient: &Tensor, onto: Option<&Tensor>| {
            self.linear_backward(linear, gradient, leaves, Rank::Projections, onto)
        };
        let [query, key, value] = saved.projections;
        let query = (&weights.query, &sites.query, query);
        let (asking, all) = match &saved.attention? {
            Attended::First(saved) => {
                let linears = [&weights.key, &weights.value];
                let backward = || first::attention_backward(saved, &context, linears, &self.shape());
                let [of_query, all] = timed(Work::Attention, backward);
                (back(query, &of_query, asking.as_ref())?, all)
            }
            Attended::Whole(saved) => {
                let backward = || attention_backward(saved, &context, &self.shape());
                let [of_query, of_key, of_value] = timed(Work::Attention, backward);
                // All three run, since each may have leaves, before the first missing one ends the layer.
                let asking = back(query, &of_query, asking.as_ref());
                let onto = asking.as_ref().filter(|_| !self.first_alone);
                let all = back((&weights.key, &sites.key, key), &of_key, onto);
                let all = back((&weights.value, &sites.value, value), &of_value, all.as_ref())?;
                (asking?, all)
            }
        };
        Some(if self.first_alone { all.index_add(0, &self.spans.starts(all.device()), &asking) } else { all })
    }

    /// The attention of first tokens alone, where nothing stands beside keys and values.
    fn attend_of_first(
        &self,
        query_bd: &Tensor,
        x_td: &Tensor,
        dropout: Option<&ProbabilityDropout>,
    ) -> Option<(Tensor, SavedFirst)> {
        let alone = self.first_alone && self.all_sites.key.is_none() && self.all_sites.value.is_none();
        let linears = [&self.weights.key, &self.weights.value];
        timed(Work::Attention, || first::attention(query_bd, x_td, alone.then_some(linears)?, &self.shape(), dropout))
    }

    fn shape(&self) -> Shape<'_> {
        Shape { queries: self.out_spans, keys: self.spans, heads: self.constants.heads, places: self.places }
    }

    /// A projection of the layer's input, of rows that differ little together.
    fn projected(&self, linear: &Linear, projection: Projection, x_td: &Tensor) -> Tensor {
        let near = self.near.filter(|_| !self.first_alone);
        let together = near.and_then(|near| timed(Work::Products, || near.project(linear, projection)));
        together.unwrap_or_else(|| linear.forward(x_td))
    }

    /// What a linear layer gave, and the LoRA update beside it.
    fn linear(
        &self,
        mut out_to: Tensor,
        site: Option<&LoraSite>,
        (x_ti, spans): (&Tensor, &Spans),
        rank: Rank,
    ) -> (Tensor, Option<Beside>) {
        let (Some(site), Some((_, composition)), Some(context)) = (site, self.sites, self.site_context) else {
            return (out_to, None);
        };
        let reading = (context.leaves, self.masks);
        let direct = || update(site, composition, (x_ti, &mut out_to), spans, reading);
        if let Some(saved) = timed(Work::Islands, direct) {
            return (out_to, self.depth.reaches(rank).then_some(Beside::Direct(saved)));
        }
        let update = |x: &[Tensor]| site.forward(composition, &x[0], spans, reading);
        let (island, update_to) = self.site(&[x_ti], rank, &site.leaves, update);
        (out_to + update_to, island.map(Beside::Island))
    }

    /// Gradient of a linear layer's input, added to `onto`.
    fn linear_backward(
        &self,
        (linear, site, beside): (&Linear, &Option<LoraSite>, Option<Beside>),
        gradient_to: &Tensor,
        leaves: &mut Leaves,
        rank: Rank,
        onto: Option<&Tensor>,
    ) -> Option<Tensor> {
        let mut below = self.depth.passes(rank).then(|| linear.backward(gradient_to, onto));
        match (beside, site) {
            (Some(Beside::Direct(saved)), Some(site)) => {
                timed(Work::Islands, || update_backward(site, &saved, gradient_to, below.as_mut(), leaves));
                below
            }
            (Some(Beside::Island(island)), _) => {
                let through_island = island.backward(gradient_to, leaves).pop();
                below.map(|below| through_island.map_or(below.shallow_clone(), |through| below + through))
            }
            _ => below,
        }
    }

    /// The end of a block: residual and layer norm, with adapters where there are some.
    fn end(&self, inputs: [&Tensor; 2], norm: &LayerNorm, site: Option<&BottleneckSite>, rank: Rank) -> (Tensor, End) {
        let keep = self.depth.reaches(rank);
        let (Some(site), Some(context)) = (site, self.site_context) else {
            return timed(Work::ElementWise, || {
                if keep {
                    let (out_td, saved) = norm.forward_sum(inputs[0], inputs[1]);
                    (out_td, End::Plain(saved))
                } else {
                    (norm.forward_sum_alone(inputs[0], inputs[1]), End::Unreached)
                }
            });
        };
        let sites = Sites::new(site, context.composition, self.out_spans.rows(), inputs[0].device(), keep);
        let direct = || sites?.forward(inputs, norm, self.out_spans, context);
        if let Some((out_td, saved)) = timed(Work::Islands, direct) {
            return (out_td, saved.map_or(End::Unreached, End::Direct));
        }
        let run = |x: &[Tensor]| site.forward([&x[0], &x[1]], norm, self.out_spans, context);
        let (island, out_td) = self.site(&inputs, rank, &site.leaves, run);
        (out_td, island.map_or(End::Unreached, End::Island))
    }

    /// Gradients of the block's output and of its residual.
    fn end_backward(
        &self,
        (end, site, norm): (End, Option<&BottleneckSite>, &LayerNorm),
        gradient_td: &Tensor,
        leaves: &mut Leaves,
        rank: Rank,
    ) -> [Option<Tensor>; 2] {
        match (end, site) {
            (End::Plain(saved), _) => {
                let sum = timed(Work::ElementWise, || norm.backward(&saved, gradient_td));
                [Some(sum.shallow_clone()), Some(sum)]
            }
            (End::Direct(saved), Some(site)) => {
                let passes = self.depth.passes(rank);
                timed(Work::Islands, || saved.backward(site, gradient_td, (norm, passes), leaves))
            }
            (End::Island(island), _) => {
                let mut gradients = island.backward(gradient_td, leaves).into_iter();
                [gradients.next(), gradients.next()]
            }
            _ => [None, None],
        }
    }

    fn site(
        &self,
        inputs: &[&Tensor],
        rank: Rank,
        leaves: &[usize],
        run: impl FnOnce(&[Tensor]) -> Tensor,
    ) -> (Option<Island>, Tensor) {
        if self.depth.reaches(rank) {
            let (island, out) = Island::forward(inputs, self.depth.passes(rank), leaves.to_vec(), run);
            (Some(island), out)
        } else {
            let inputs: Vec<Tensor> = inputs.iter().map(|input| input.shallow_clone()).collect();
            (None, run(&inputs))
        }
    }

    fn drop(&self, hidden_td: Tensor, place: Place) -> (Tensor, Option<Tensor>) {
        let probability = self.masks.map_or(0.0, |masks| masks.of_trunk(self.constants.hidden_dropout));
        let Some(masks) = self.masks.filter(|_| probability > 0.0) else { return (hidden_td, None) };
        let width = usize::try_from(hidden_td.size()[1]).expect("a width");
        let mask = masks.tokens(Address::of(self.index, place), self.out_spans, width, probability);
        (hidden_td * &mask, Some(mask))
    }

    fn probability_dropout(&self) -> Option<ProbabilityDropout<'_>> {
        let masks = self.masks?;
        let probability = masks.of_trunk(self.attention_dropout);
        let address = Address::of(self.index, Place::AttentionProbabilities);
        (probability > 0.0).then_some(ProbabilityDropout { masks, address, probability })
    }
}

fn undrop(gradient: Tensor, mask: Option<&Tensor>) -> Tensor {
    match mask {
        Some(mask) => gradient * mask,
        None => gradient,
    }
}
