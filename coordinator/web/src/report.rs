//! The report of a job: summary, results, fusions, stages, cost.

use graftwork_shared::{
    assignment::Usage,
    event::Outcome,
    view::{JobView, StageKind, StageState, StageView},
};
use maud::{Markup, html};

use crate::{
    chart::{self, Bar},
    number, page, stage, sweep,
};

/// The whole page, self-contained: style inside, no script, nothing fetched.
pub fn report_page(job: &JobView) -> String {
    let main = html! {
        section #results { h2 { "Results" } (results(job)) }
        @if job.stages.iter().any(|stage| stage.kind == StageKind::Fusion) {
            section #fusions { h2 { "Fusions against single adapters" } (fusions(job)) }
        }
        @if job.stages.iter().any(|stage| stage.sweep.is_some()) {
            section #sweeps { h2 { "Trials" } (sweep::sweeps(job)) }
        }
        section #stages {
            h2 { "Learning curves" }
            div.cards { @for view in &job.stages { (stage::card(view)) } }
        }
        section #cost { h2 { "Time, memory and cost" } (cost(job)) }
        section #provenance { h2 { "Provenance" } (provenance(job)) }
    };
    page::whole(&format!("{} – Graftwork report", job.name), "", header(job), main)
}

fn header(job: &JobView) -> Markup {
    let (class, words) = match job.outcome {
        None => ("running", "running"),
        Some(Outcome::Succeeded) => ("good", "succeeded: every expectation met"),
        Some(Outcome::ExpectationMissed) => ("warn", "published, but an expectation was missed"),
        Some(Outcome::Failed) => ("bad", "failed"),
        Some(Outcome::Cancelled) => ("warn", "cancelled"),
    };
    let wall = job.ended_ms.map(|ended| ended.saturating_sub(job.submitted_ms) as f64 / 1000.0);
    let of = |kind| job.stages.iter().filter(|stage| stage.kind == kind && stage.trial.is_none()).count();
    let (tasks, fusions) = (of(StageKind::Adapter), of(StageKind::Fusion));
    let trials = job.stages.len() - tasks - fusions;
    html! {
        p.kind { "Graftwork report" }
        h1 { (job.name) }
        p { span class=(format!("badge {class}")) { (words) } }
        dl.facts {
            div { dt { "stages" } dd {
                (tasks) " adapters, " (fusions) " fusions" @if trials > 0 { ", " (trials) " trials" }
            } }
            @if let Some(wall) = wall { div { dt { "wall time" } dd { (number::duration(wall)) } } }
            div { dt { "examples trained" } dd { (number::count(job.usage.examples)) } }
            div { dt { "core time" } dd { (number::duration(job.usage.core_seconds)) } }
            div { dt { "owner" } dd { (job.owner) } }
        }
    }
}

fn results(job: &JobView) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                th { "task" } th { "method" } th.n { "rows" } th { "metric" } th.n { "validation" } th.n { "held out" }
                th.n { "expected" } th { "verdict" } th.n { "trained numbers" } th { "release" }
            } }
            tbody { @for view in job.stages.iter().filter(|view| view.trial.is_none()) { tr {
                th scope="row" { (view.name) @if view.kind == StageKind::Fusion { " " span.tag { "fusion" } } }
                td { (view.method) }
                td.n { (number::count(view.rows[0])) }
                td { (view.metric) }
                td.n { (optional(validation_score(view))) }
                td.n.strong { (optional(view.held_out_score())) }
                td.n { (optional(view.expect)) }
                td { (verdict(view)) }
                td.n { (number::count(view.trained_parameters)) }
                td { (view.release.as_deref().unwrap_or("–")) }
            } } }
        } }
    }
}

fn validation_score(view: &StageView) -> Option<f64> {
    let scores = &view.result.as_ref()?.scores;
    scores.get(&graftwork_shared::data::Split::Validation)?.metrics.get(&view.metric).copied()
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), number::score)
}

pub(crate) fn verdict(view: &StageView) -> Markup {
    match (&view.state, view.missed()) {
        (_, Some(true)) => html! { span.badge.warn { "missed" } },
        (_, Some(false)) => html! { span.badge.good { "met" } },
        (StageState::Failed { failure }, _) => html! { span.badge.bad { "failed" } " " (failure.message) },
        (StageState::Cancelled { reason }, _) => html! { span.badge.warn { "cancelled" } " " (reason) },
        (StageState::Published { .. } | StageState::Trained { .. }, None) => html! { span.badge { "no expectation" } },
        (StageState::Waiting { .. } | StageState::Ready { .. }, None) => html! { span.badge { "waiting" } },
        (StageState::Running { others, .. }, None) if !others.is_empty() => {
            html! { span.badge.running { "running" } " on " (others.len() + 1) " workers" }
        }
        (StageState::Running { .. }, None) => html! { span.badge.running { "running" } },
        (StageState::Stopped { .. }, None) => html! { span.badge { "stopped" } },
        (StageState::Chosen, None) => html! { span.badge.good { "chosen" } },
    }
}

fn fusions(job: &JobView) -> Markup {
    html! {
        div.cards { @for view in job.stages.iter().filter(|stage| stage.kind == StageKind::Fusion) {
            @let single = view.task.as_ref().and_then(|task| job.stages.iter().find(|stage| stage.name == *task));
            article.card {
                h3 { (view.name) }
                p.muted { "over " (view.fused.join(", ")) }
                (chart::bars(&format!("held-out {} of {} and of its single adapter", view.metric, view.name), &compared(view, single)))
                @if let Some(result) = &view.result { @if !result.attention.is_empty() {
                    h4 { "Attention paid to each adapter, by layer" }
                    (chart::heat_map("mean attention by layer and adapter", &view.fused, &result.attention))
                } }
            }
        } }
    }
}

fn compared(fusion: &StageView, single: Option<&StageView>) -> Vec<Bar> {
    let bar = |view: &StageView, class, what: &str| {
        view.held_out_score().map(|value| Bar { name: format!("{} ({what})", view.name), class, value })
    };
    let mut bars: Vec<Bar> = single.and_then(|view| bar(view, "single", "adapter")).into_iter().collect();
    bars.extend(bar(fusion, "fusion", "fusion"));
    bars
}

fn cost(job: &JobView) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                th { "task" } th.n { "steps" } th.n { "best step" } th.n { "examples" } th.n { "tokens" } th.n { "examples/s" }
                th.n { "wall" } th.n { "core time" } th.n { "rows read" } th.n { "worker's peak memory" }
            } }
            tbody { @for view in &job.stages { @if view.result.is_some() || view.usage != Usage::default() {
                @let usage = &view.usage;
                @let result = view.result.as_ref();
                @let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
                @let rate = result.map(|result| result.usage).filter(|usage| usage.wall_seconds > 0.0 && usage.examples > 0);
                tr {
                    th scope="row" { (view.name) }
                    td.n { (or_dash(result.map(|result| result.steps.to_string()))) }
                    td.n { (or_dash(result.map(|result| result.best_step.to_string()))) }
                    td.n { (number::count(usage.examples)) } td.n { (number::count(usage.tokens)) }
                    td.n { (or_dash(rate.map(|usage| format!("{:.0}", usage.examples as f64 / usage.wall_seconds)))) }
                    td.n { (number::duration(usage.wall_seconds)) } td.n { (number::duration(usage.core_seconds)) }
                    td.n { (number::bytes(usage.bytes_read)) } td.n { (number::bytes(usage.peak_memory_bytes)) }
                }
            } } }
        } }
        p.muted { "Stages that run side by side share a worker, its cores and its memory; examples a second are of wall time, evaluation included. Attempts that failed or were interrupted are counted." }
    }
}

fn provenance(job: &JobView) -> Markup {
    html! {
        dl.wide {
            dt { "job" } dd { code { (job.digest) } }
            dt { "base model" } dd { (job.base_model) br; code { (job.base_model_digest) } }
            dt { "hub" } dd { (job.hub) }
            @for view in &job.stages {
                dt { (view.name) }
                dd {
                    "recipe " code { (view.recipe.short()) }
                    @if let Some(result) = &view.result { ", weights " code { (result.weights.short()) } ", computed on " (result.numeric_class) }
                }
            }
        }
    }
}
