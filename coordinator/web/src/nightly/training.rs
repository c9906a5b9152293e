//! How a night was trained: learning curves of all seeds, beside those of its baseline, and the attention of fusions.

use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use crate::chart::{self, Line};

/// One task or fusion with one seed. Numbers are finite.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The task or fusion.
    pub task: String,
    /// Its seed.
    pub seed: u64,
    /// The metric that counts.
    pub metric: String,
    /// That metric on the validation rows, by updates done.
    pub scores: Vec<(u64, f64)>,
    /// Mean training loss by updates done.
    pub loss: Vec<(u64, f64)>,
    /// Mean loss on the validation rows by updates done.
    pub validation: Vec<(u64, f64)>,
    /// For a fusion: what it fuses, in the order of attention.
    pub fused: Vec<String>,
    /// For a fusion: mean attention, `[layer][adapter]`, each from 0 to 1; empty where it has none.
    pub attention: Vec<Vec<f64>>,
}

/// Those of a night and of the one that it is compared with; empty where they were not kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curves {
    /// The night's.
    pub now: Vec<Curve>,
    /// Its baseline's.
    pub before: Vec<Curve>,
}

/// One card a task, in the order of the job.
pub(super) fn cards(curves: &Curves) -> Markup {
    let mut tasks: Vec<&str> = Vec::new();
    for curve in &curves.now {
        if !tasks.contains(&curve.task.as_str()) {
            tasks.push(&curve.task);
        }
    }
    html! {
        @if tasks.is_empty() { p { "None were kept." } } @else {
            p.muted {
                "One line a seed. A curve begins anew where a coordinator was started again. "
                span.key.score { "validation score" } " " span.key.validation { "validation loss" } " " span.key.loss { "training loss" }
                @if !curves.before.is_empty() { " " span.key.before { "the baseline's" } }
            }
            div.cards { @for task in tasks { (card(task, curves)) } }
        }
    }
}

type Points = fn(&Curve) -> &Vec<(u64, f64)>;

fn card(task: &str, curves: &Curves) -> Markup {
    let of = |curves: &[Curve]| curves.iter().filter(|curve| curve.task == task).cloned().collect::<Vec<Curve>>();
    let (now, before) = (of(&curves.now), of(&curves.before));
    let metric = now.first().map(|curve| curve.metric.clone()).unwrap_or_default();
    let scores: Points = |curve| &curve.scores;
    let (loss, validation): (Points, Points) = (|curve| &curve.loss, |curve| &curve.validation);
    // The later ones lie above.
    let together = |groups: Vec<Vec<Line<'static>>>| groups.into_iter().flatten().collect::<Vec<_>>();
    let score = together(vec![lines(&before, scores, "before"), lines(&now, scores, "score")]);
    let losses = [(&before, validation, "before"), (&now, loss, "loss"), (&now, validation, "validation")];
    let losses = together(losses.map(|(curves, of, class)| lines(curves, of, class)).into());
    html! {
        article.card {
            h3 { (task) }
            h4 { "Validation " (metric) }
            (chart::lines(&format!("validation {metric} of {task} by update, seed by seed"), &score, None))
            h4 { "Loss" }
            (chart::lines(&format!("training and validation loss of {task} by update, seed by seed"), &losses, None))
            @if let Some((names, shares)) = attention(&now) {
                h4 { "Attention paid to each adapter, by layer, mean over seeds" }
                (chart::heat_map(&format!("mean attention of {task} by layer and adapter"), &names, &shares))
            }
        }
    }
}

fn lines(curves: &[Curve], of: Points, class: &'static str) -> Vec<Line<'static>> {
    let points = |curve: &Curve| of(curve).iter().map(|(step, value)| (*step as f64, *value)).collect();
    curves.iter().map(|curve| Line { class, points: points(curve), dots: class == "score" }).collect()
}

/// The mean over the seeds that have the same layers and adapters as the first one.
fn attention(curves: &[Curve]) -> Option<(Vec<String>, Vec<Vec<f64>>)> {
    let with = || curves.iter().filter(|curve| !curve.attention.is_empty());
    let first = with().next()?;
    let shape = |curve: &Curve| curve.attention.iter().map(Vec::len).collect::<Vec<_>>();
    let alike: Vec<&Curve> =
        with().filter(|curve| curve.fused == first.fused && shape(curve) == shape(first)).collect();
    let mean = |layer: usize, adapter: usize| {
        alike.iter().map(|curve| curve.attention[layer][adapter]).sum::<f64>() / alike.len() as f64
    };
    let layer = |(layer, shares): (usize, &Vec<f64>)| (0..shares.len()).map(|adapter| mean(layer, adapter)).collect();
    Some((first.fused.clone(), first.attention.iter().enumerate().map(layer).collect()))
}
