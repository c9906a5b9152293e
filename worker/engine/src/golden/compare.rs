//! Running one case and measuring how far it is from the peer's results.

use std::fmt;

use graftwork_model::HostTensor;

use super::case::Case;
use crate::{
    EngineError, Keep,
    kernel::take_multiplications,
    network::{Input, Network, train},
    rows::{Lane, LaneOptions, Targets, Tokens},
    spans::Spans,
    transfer::to_host,
    trunk::Trunk,
};

const VALUE_TOLERANCE: f64 = 1e-5;
const GRADIENT_ABSOLUTE: f64 = 1e-6;
const GRADIENT_RELATIVE: f64 = 1e-4;
const COSINE: f64 = 0.999_99;
/// A reference gradient below this is rounding noise around zero and has no direction.
const ZERO: f64 = 1e-7;

/// How far a case is from the peer.
pub(super) struct Report {
    pub(super) hidden: f64,
    pub(super) logits: f64,
    pub(super) loss: f64,
    /// Largest difference among gradients, as a share of what is allowed for its tensor.
    gradient_share: f64,
    gradient: f64,
    pub(super) cosine: f64,
    gradients: usize,
    /// Multiplications that the lane took less when what lies below its adapters was kept.
    pub(super) spared: u64,
    problems: Vec<String>,
}

impl Report {
    pub(super) fn passes(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passes() { "ok    " } else { "FAILED" };
        write!(
            f,
            "{verdict} hidden {:.1e}  logits {:.1e}  loss {:.1e}  {} gradients: largest {:.1e} ({:.2} of allowed), cosine {:.8}",
            self.hidden, self.logits, self.loss, self.gradients, self.gradient, self.gradient_share, self.cosine
        )?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n    {problem}"))
    }
}

/// Runs a case with the whole last layer, and again as a lane is run in training: first so that what lies below the lowest
/// adapter is kept, then from what was kept.
pub(super) fn run(case: &Case, trunk: &Trunk, keep: &Keep) -> Result<Report, EngineError> {
    let network = Network::new(trunk.share(), case.setup.clone(), case.weights.clone())?;
    let rows = case.lengths.len();
    let options = LaneOptions { loss_scale: 1.0 / rows as f64, step: 0, dropout: None, skip_layers: &case.skip_layers };
    let targets = Targets::Classes(case.labels.clone());
    // The peer's gates average over padding too; such a case is run with the padding, every other one without.
    let padded = case.setup.adapters.values().any(gated);
    let (tokens, spans) = pack(case, padded);
    let input = Input::with_spans(&tokens, spans, network.description());
    let (output, inside) = tch::no_grad(|| train(&network, &input, &targets, &options, true));
    let mut report = Report {
        hidden: hidden_difference(case, &input.spans, &to_host(&inside.hidden_td)),
        logits: 0.0,
        loss: (output.loss - first(case, "loss")).abs(),
        gradient_share: 0.0,
        gradient: 0.0,
        cosine: 1.0,
        gradients: 0,
        spared: 0,
        problems: Vec::new(),
    };
    let references = case.results.keys().filter(|key| key.starts_with("logits.")).count();
    if references != inside.logits.len() {
        report.problems.push(format!("{} heads gave logits, {references} in the peer", inside.logits.len()));
    }
    for (index, logits) in inside.logits.iter().enumerate() {
        let reference = case.results.get(&format!("logits.{index}")).map_or(&[][..], |tensor| &tensor.values);
        report.logits = larger(report.logits, difference(&to_host(logits), reference));
    }
    report.compare_gradients(case, &network, &output.gradient);
    if !padded {
        network.keep_below(keep);
        let lane = Lane { tokens, targets, rows: vec![0; rows] };
        let mut asked = [0; 2];
        for asked in &mut asked {
            take_multiplications();
            let output = network.lane(&lane, &options)?;
            *asked = take_multiplications();
            report.loss = larger(report.loss, (output.loss - first(case, "loss")).abs());
            report.compare_gradients(case, &network, &output.gradient);
        }
        report.spared = asked[0].saturating_sub(asked[1]);
    }
    for (what, value) in [("hidden states", report.hidden), ("logits", report.logits), ("loss", report.loss)] {
        // Written so that NaN is a failure.
        if !matches!(value.partial_cmp(&VALUE_TOLERANCE), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)) {
            report.problems.push(format!("{what} differ by {value:.2e}, allowed are {VALUE_TOLERANCE:.0e}"));
        }
    }
    Ok(report)
}

fn gated(config: &graftwork_shared::adapter::AdapterConfig) -> bool {
    use graftwork_shared::adapter::AdapterConfig::{Bottleneck, Lora};
    match config {
        Bottleneck(config) => config.use_gating,
        Lora(config) => config.use_gating,
    }
}

fn pack(case: &Case, padded: bool) -> (Tokens, Spans) {
    let lengths: Vec<usize> =
        case.ids.iter().zip(&case.lengths).map(|(row, &length)| if padded { row.len() } else { length }).collect();
    let ids =
        case.ids.iter().zip(&lengths).flat_map(|(row, &length)| row[..length].iter().copied()).collect::<Vec<_>>();
    let mut spans = Spans::new(&lengths, &vec![0; lengths.len()]);
    for (span, &visible) in spans.0.iter_mut().zip(&case.lengths) {
        span.visible = visible;
    }
    (Tokens { type_ids: vec![0; ids.len()], ids, lengths }, spans)
}

fn first(case: &Case, key: &str) -> f64 {
    case.results.get(key).and_then(|tensor| tensor.values.first()).map_or(f64::NAN, |&value| f64::from(value))
}

/// Largest difference on real tokens. Under `Parallel` the peer's rows are the batch once for each child, as ours.
fn hidden_difference(case: &Case, spans: &Spans, found: &[f32]) -> f64 {
    let Some(HostTensor { shape, values }) = case.results.get("last_hidden_state") else { return f64::NAN };
    let &[reference_rows, padded_length, width] = shape.as_slice() else { return f64::NAN };
    let copies = reference_rows / spans.rows();
    let spans = spans.repeat(copies);
    let mut largest = if found.len() == spans.tokens() * width { 0.0 } else { f64::NAN };
    for (row, span) in spans.0.iter().enumerate() {
        let reference = &values[row * padded_length * width..][..span.visible * width];
        let ours = found.get(span.start * width..(span.start + span.visible) * width).unwrap_or_default();
        largest = larger(largest, difference(ours, reference));
    }
    largest
}

/// Largest difference, NaN when the sizes differ or a value is not a number.
fn difference(found: &[f32], reference: &[f32]) -> f64 {
    if found.len() != reference.len() {
        return f64::NAN;
    }
    found.iter().zip(reference).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).fold(0.0, larger)
}

/// The larger one; NaN when one of them is, which `f64::max` would hide.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn largest(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(value.abs())).fold(0.0, larger)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

impl Report {
    fn compare_gradients(&mut self, case: &Case, network: &Network, gradient: &[f32]) {
        let ours = |name: &str| {
            let tensor = network.layout().tensors.iter().find(|tensor| tensor.name == name)?;
            Some(&gradient[tensor.offset..tensor.offset + tensor.elements()])
        };
        let mut seen = Vec::new();
        for (key, reference) in &case.results {
            let Some(name) = key.strip_prefix("grad.") else { continue };
            seen.push(name);
            match ours(name) {
                Some(found) => self.compare_gradient(name, found, &reference.values),
                None => self.problems.push(format!("{name} has a gradient in the peer but is not trained here")),
            }
        }
        self.gradients = seen.len();
        for tensor in network.layout().tensors.iter().filter(|tensor| !seen.contains(&tensor.name.as_str())) {
            if ours(&tensor.name).map(largest).is_some_and(|largest| largest.is_nan() || largest > ZERO) {
                self.problems.push(format!("{} has a gradient here but none in the peer", tensor.name));
            }
        }
    }

    fn compare_gradient(&mut self, name: &str, found: &[f32], reference: &[f32]) {
        let size = largest(reference);
        let allowed = GRADIENT_ABSOLUTE + GRADIENT_RELATIVE * size;
        let difference = difference(found, reference);
        self.gradient = larger(self.gradient, difference);
        self.gradient_share = larger(self.gradient_share, difference / allowed);
        if difference.is_nan() || difference > allowed {
            self.problems.push(format!("{name}: gradient differs by {difference:.2e}, allowed are {allowed:.2e}"));
        }
        if size > ZERO {
            let cosine = cosine(found, reference);
            self.cosine = self.cosine.min(cosine);
            if cosine.is_nan() || cosine < COSINE {
                self.problems.push(format!("{name}: cosine {cosine:.7}, allowed is {COSINE}"));
            }
        }
    }
}
