//! Prediction heads on the first token, and their losses.
//!
//! Runs under autograd inside an island. Losses are sums over rows times a factor, so that lanes add up.

use std::ops::Range;

use graftwork_shared::{
    composition::Composition,
    head::{Head, HeadActivation, HeadOutput},
    id::Name,
};
use tch::{Device, Kind, Reduction, Tensor};

use crate::{
    EngineError,
    block::Linear,
    dropout::{Address, Masks, Place},
    parameters::{Leaves, Parameter},
    rows::Targets,
    spans::{Spans, signed},
    transfer,
};

/// One head's layers.
pub(crate) struct HeadWeights {
    pub(crate) name: Name,
    pub(crate) config: Head,
    layers: Vec<(Parameter, Option<Parameter>)>,
    pub(crate) leaves: Vec<usize>,
    /// Probability of the dropout in front of each layer.
    dropout: f64,
}

/// Which rows a head serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// Index of the head.
    pub(crate) head: usize,
    /// Rows of the (repeated) batch: first and count.
    pub(crate) rows: (usize, usize),
    /// First target of these rows.
    pub(crate) first_target: usize,
}

impl HeadWeights {
    pub(crate) fn new(
        name: &Name,
        config: &Head,
        default_dropout: f64,
        mut take: impl FnMut(&str) -> Option<Parameter>,
    ) -> Option<Self> {
        let at = |layer: u32| format!("heads.{name}.{}", 3 * layer + 1);
        let layers = (0..config.layers)
            .map(|layer| Some((take(&format!("{}.weight", at(layer)))?, take(&format!("{}.bias", at(layer))))))
            .collect::<Option<Vec<_>>>()?;
        let leaves = layers.iter().flat_map(|(weight, bias)| [Some(weight), bias.as_ref()]).flatten();
        let leaves = leaves.filter_map(|parameter| match parameter {
            Parameter::Trained(index) => Some(*index),
            Parameter::Frozen(_) => None,
        });
        let leaves = leaves.collect();
        let dropout = config.dropout.unwrap_or(default_dropout);
        Some(Self { name: name.clone(), config: config.clone(), layers, leaves, dropout })
    }

    /// `[b, d]` first tokens to `[b, c]` logits.
    #[expect(
        clippy::assign_op_pattern,
        reason = "an assigning operator of a tensor works in place, on what others read"
    )]
    pub(crate) fn logits(
        &self,
        first_bd: &Tensor,
        pooler: Option<&Linear>,
        (leaves, masks): (&Leaves, Option<&Masks>),
        (index, spans): (usize, &Spans),
    ) -> Tensor {
        let mut x = match pooler.filter(|_| self.config.use_pooler) {
            Some(pooler) => pooler.forward(first_bd).tanh(),
            None => first_bd.shallow_clone(),
        };
        let probability = masks.map_or(0.0, |masks| masks.of_trunk(self.dropout));
        for (layer, (weight, bias)) in self.layers.iter().enumerate() {
            if let Some(masks) = masks.filter(|_| probability > 0.0) {
                let number = |n: usize| u32::try_from(n).expect("layers and heads of one setup");
                let address = Address { layer: number(layer), place: Place::Head, module: number(index) };
                let width = usize::try_from(x.size()[1]).expect("a width");
                x = x * masks.tokens(address, spans, width, probability);
            }
            x = leaves.linear(&x, weight, bias.as_ref());
            if layer + 1 < self.layers.len() {
                x = match self.config.activation {
                    HeadActivation::Tanh => x.tanh(),
                    HeadActivation::Relu => x.relu(),
                    HeadActivation::Gelu => x.gelu("none"),
                };
            }
        }
        x
    }

    /// Checks that targets are of the head's kind and in range.
    pub(crate) fn check(&self, targets: &Targets) -> Result<(), EngineError> {
        let wrong = |what: String| Err(EngineError::Rows(format!("head {}: {what}", self.name)));
        match (&self.config.output, targets) {
            (HeadOutput::Classification { labels }, Targets::Classes(classes)) => {
                let range = 0..signed(labels.len());
                match classes.iter().find(|class| !range.contains(class)) {
                    Some(class) => wrong(format!("class {class} is outside its {} labels", labels.len())),
                    None => Ok(()),
                }
            }
            (HeadOutput::Regression, Targets::Values(values)) => match values.iter().find(|value| !value.is_finite()) {
                Some(value) => wrong(format!("target {value} is not a finite number")),
                None => Ok(()),
            },
            (HeadOutput::Classification { .. }, Targets::Values(_)) => {
                wrong("classification needs class ids, but the lane carries numbers".to_owned())
            }
            (HeadOutput::Regression, Targets::Classes(_)) => {
                wrong("regression needs numbers, but the lane carries class ids".to_owned())
            }
        }
    }

    pub(crate) fn share(&self) -> Self {
        let layer =
            |(weight, bias): &(Parameter, Option<Parameter>)| (weight.share(), bias.as_ref().map(Parameter::share));
        Self {
            name: self.name.clone(),
            config: self.config.clone(),
            layers: self.layers.iter().map(layer).collect(),
            leaves: self.leaves.clone(),
            dropout: self.dropout,
        }
    }
}

/// The block that decides about heads: the last child of a stack, or the setup itself.
pub(crate) fn final_block(composition: Option<&Composition>) -> Option<&Composition> {
    match composition? {
        Composition::Stack { children } => final_block(children.last()),
        block => Some(block),
    }
}

/// Heads and the rows each of them serves, for a batch of `rows` rows before any repetition; fillers behind them make it
/// `filled` rows.
pub(crate) fn services(composition: Option<&Composition>, [rows, filled]: [usize; 2]) -> Vec<Service> {
    match final_block(composition) {
        Some(Composition::Parallel { children }) => {
            let one = |head| Service { head, rows: (head * filled, rows), first_target: 0 };
            (0..children.len()).map(one).collect()
        }
        Some(Composition::BatchSplit { batch_sizes, .. }) => {
            let mut first = 0;
            let one = |(head, &count): (usize, &usize)| {
                first += count;
                Service { head, rows: (first - count, count), first_target: first - count }
            };
            batch_sizes.iter().enumerate().map(one).collect()
        }
        _ => vec![Service { head: 0, rows: (0, rows), first_target: 0 }],
    }
}

/// Sum of row losses times `scale` over `count` rows whose targets start at `first`: cross-entropy, or the
/// squared error. All targets may lie on the device already.
pub(crate) fn loss(
    logits_bc: &Tensor,
    (targets, placed_b): (&Targets, Option<&Tensor>),
    (first, count): (usize, usize),
    scale: f64,
) -> Tensor {
    let targets_b = match placed_b {
        Some(placed_b) => placed_b.narrow(0, signed(first), signed(count)),
        None => targets_on(targets, first..first + count, logits_bc.device()),
    };
    let sum = match targets {
        Targets::Classes(_) => logits_bc.cross_entropy_loss(&targets_b, None::<&Tensor>, Reduction::Sum, -100, 0.0),
        Targets::Values(_) => (logits_bc.view([-1]) - targets_b).square().sum(Kind::Float),
    };
    sum * scale
}

/// Targets of some rows on a device, `[b]`.
pub(crate) fn targets_on(targets: &Targets, rows: Range<usize>, device: Device) -> Tensor {
    match targets {
        Targets::Classes(classes) => transfer::to_device(&classes[rows], device),
        Targets::Values(values) => transfer::to_device(&values[rows], device),
    }
}
