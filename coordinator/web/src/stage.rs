//! One stage's card: validation score and training loss over steps.

use graftwork_shared::view::{StageState, StageView};
use maud::{Markup, html};

use crate::{
    chart::{self, Line},
    number,
};

/// The card of one stage.
pub(crate) fn card(view: &StageView) -> Markup {
    let scores: Vec<(f64, f64)> = view
        .validation
        .iter()
        .filter_map(|evaluation| Some((evaluation.step as f64, *evaluation.metrics.get(&view.metric)?)))
        .collect();
    let losses: Vec<(f64, f64)> = view.curve.iter().map(|report| (report.step as f64, report.loss)).collect();
    let validation: Vec<(f64, f64)> = view.validation.iter().map(|e| (e.step as f64, e.loss)).collect();
    html! {
        article.card {
            h3 { (view.name) }
            p.muted { (view.method) " · " (number::count(view.total_steps)) " steps" }
            @if let StageState::Failed { failure } = &view.state { p.bad { (failure.message) } }
            @if !view.why.is_empty() { p.muted { (view.why) } }
            @if let Some(preempted) = &view.preempted { p.muted { (preempted) } }
            @if let StageState::Trained { reused: true } | StageState::Published { reused: true } = &view.state {
                p.muted { "taken from an earlier result of the same recipe" }
            }
            h4 { "Validation " (view.metric) }
            (chart::lines(&format!("validation {} of {} by step", view.metric, view.name),
                &[Line { class: "score", points: scores, dots: true }], view.expect))
            h4 { "Loss " span.legend { span.key.loss { "training" } " " span.key.validation { "validation" } } }
            (chart::lines(&format!("training and validation loss of {} by step", view.name),
                &[Line { class: "loss", points: losses, dots: false }, Line { class: "validation", points: validation, dots: true }], None))
        }
    }
}
