//! The head of a task, with the labels that were found, and the metric that can score it.

use graftwork_shared::{
    diagnostic::Diagnostic,
    head::{Head, HeadOutput},
    job::Task,
    metric::Metric,
};

use super::problems::Problems;

/// The resolved head.
pub(super) fn head(task: &Task, output: HeadOutput) -> Head {
    let request = &task.head;
    Head { layers: request.layers, activation: request.activation, use_pooler: request.use_pooler, ..Head::new(output) }
}

/// The metric that counts, when it can score the head.
pub(super) fn metric(task: &Task, head: &Head, problems: &Problems<'_>) -> Option<Metric> {
    let metric = task.metric.unwrap_or_else(|| Metric::default_for(&head.output));
    if metric.fits(&head.output) {
        return Some(metric);
    }
    let fitting: Vec<&str> =
        Metric::ALL.iter().filter(|each| each.fits(&head.output)).map(|each| each.name()).collect();
    let shown = match &head.output {
        HeadOutput::Classification { labels } => format!("a classification of {} classes", labels.len()),
        HeadOutput::Regression => "a regression".to_owned(),
    };
    let message = format!("task {}: {metric} cannot score {shown}", task.name);
    let problem = Diagnostic::error("metric-does-not-fit", message).help(format!("use one of {}", fitting.join(", ")));
    problems.add(&format!("tasks.{}.metric", task.name), problem);
    None
}
