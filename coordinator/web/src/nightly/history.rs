//! Scores and costs night by night, as charts.

use maud::{Markup, html};

use super::NightlyView;
use crate::chart::{self, Line};

/// One chart a task: the mean over seeds, and between which seeds it lies.
pub(super) fn scores(view: &NightlyView) -> Markup {
    let mut tasks: Vec<&String> = view.history.iter().flat_map(|past| past.scores.keys()).collect();
    tasks.sort_unstable();
    tasks.dedup();
    html! {
        p.muted { "Mean over seeds, the lowest and the highest seed, and the 95 % interval of this night's verdict in the table above." }
        div.cards { @for task in tasks { article.card { h3 { (task) } (score(view, task)) } } }
    }
}

fn score(view: &NightlyView, task: &str) -> Markup {
    let points = |of: fn(&[f64]) -> f64| {
        let nights = view.history.iter().filter_map(|past| Some((past.head.number as f64, past.scores.get(task)?)));
        nights.map(|(night, seeds)| (night, of(seeds))).collect::<Vec<_>>()
    };
    let lines = [
        Line {
            class: "loss",
            points: points(|seeds| seeds.iter().copied().fold(f64::INFINITY, f64::min)),
            dots: false,
        },
        Line {
            class: "loss",
            points: points(|seeds| seeds.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            dots: false,
        },
        Line {
            class: "score",
            points: points(|seeds| seeds.iter().sum::<f64>() / seeds.len().max(1) as f64),
            dots: true,
        },
    ];
    chart::lines(&format!("score of {task} by night"), &lines, None)
}

/// One chart a cost.
pub(super) fn costs(view: &NightlyView) -> Markup {
    html! {
        div.cards { @for cost in &view.costs { @if cost.values.len() > 1 { article.card {
            h3 { (cost.change.name) }
            (chart::lines(&format!("{} by night", cost.change.name),
                &[Line { class: "score", points: cost.values.iter().map(|(night, value)| (*night as f64, *value)).collect(), dots: true }], None))
        } } } }
    }
}
