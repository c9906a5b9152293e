//! The trials of swept tasks: values, how far each went, its score, what it cost, and what was saved.

use graftwork_shared::{
    sweep::{SweepView, TrialView, values_line},
    view::{JobView, StageView},
};
use maud::{Markup, html};

use crate::{number, report::verdict};

/// All swept tasks of a job.
pub(crate) fn sweeps(job: &JobView) -> Markup {
    html! {
        @for view in &job.stages { @if let Some(swept) = &view.sweep {
            h3 { (view.name) }
            p { (summary(job, view, swept)) }
            div.scroll { table {
                thead { tr {
                    th.n { "trial" } th { "values" } th.n { "rung" } th.n { "step" }
                    th.n { "validation " (view.metric) } th { "outcome" } th.n { "core time" }
                } }
                tbody { @for (stage, trial) in trials(job, view) { tr {
                    th.n scope="row" { (trial.number) }
                    td { (values_line(&trial.values)) }
                    td.n { (trial.scores.len()) "/" (swept.rungs.len()) }
                    td.n { (last(trial, |score| score.step.to_string())) }
                    td.n.strong { (last(trial, ToString::to_string)) }
                    td { (verdict(stage)) }
                    td.n { (number::duration(stage.usage.core_seconds)) }
                } } }
            } }
        } }
    }
}

fn trials<'j>(job: &'j JobView, task: &'j StageView) -> impl Iterator<Item = (&'j StageView, &'j TrialView)> {
    let of = job.stages.iter().filter_map(|stage| Some((stage, stage.trial.as_ref()?)));
    of.filter(move |(_, trial)| trial.task == task.name)
}

fn last(trial: &TrialView, show: impl Fn(&graftwork_shared::sweep::RungScore) -> String) -> String {
    trial.scores.last().map_or_else(|| "–".to_owned(), show)
}

fn summary(job: &JobView, view: &StageView, sweep: &SweepView) -> Markup {
    let all: u64 = trials(job, view).map(|(stage, _)| stage.total_steps).sum();
    let steps: Vec<String> = sweep.rungs.iter().map(u64::to_string).collect();
    html! {
        (sweep.trials.len()) " of " (sweep.combinations) " combinations, compared at steps " (steps.join(", ")) ". "
        @match sweep.chosen {
            Some(number) => { "Trial " (number) " became the task. " }
            None => "No trial is chosen yet. ",
        }
        @if sweep.saved_steps > 0 {
            (number::count(sweep.saved_steps)) " of " (number::count(all)) " updates were saved, about "
            (number::duration(sweep.saved_core_seconds)) " of core time. "
        }
        @if sweep.halving.is_some_and(|halving| halving.asynchronous) {
            span.badge.warn { "asynchronous" } " Which trials went on depended on timing."
        }
    }
}
