//! The report as a table for a terminal.

use comfy_table::{
    Attribute, Cell, CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, Table, TableStyle, Width,
};
use graftwork_shared::{
    assignment::Usage,
    data::Split,
    event::Outcome,
    view::{JobView, StageKind, StageState, StageView},
};

use super::sweep;
use crate::progress::duration;

/// How tables of the command line look: one rule under the header.
pub(crate) const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
/// Widest column of methods; a fusion of many adapters goes on in the next line.
pub(crate) const METHOD_WIDTH: ColumnConstraint = ColumnConstraint::UpperBoundary(Width::Fixed(32));

/// The whole report; `rests` says that nobody leads the job.
pub(crate) fn table(view: &JobView, rests: bool, color: bool) -> String {
    let mut text = format!("job {} ({}): {}\n", view.name, view.id, standing(view, rests));
    text.push_str(&stages(view, color));
    text.push('\n');
    if let Some(fusions) = fusions(view) {
        text.push_str("\nfusions against the single adapter of the same task\n");
        text.push_str(&fusions);
        text.push('\n');
    }
    text.push_str(&sweep::tables(view, color));
    for stage in view.stages.iter().filter(|stage| stage.trial.is_none()) {
        match &stage.state {
            StageState::Failed { failure } => text.push_str(&format!("\n{} failed: {}", stage.name, failure.message)),
            StageState::Cancelled { reason } => text.push_str(&format!("\n{} was cancelled: {reason}", stage.name)),
            _ => {}
        }
        if let Some(preempted) = &stage.preempted {
            text.push_str(&format!("\n{}: {preempted}", stage.name));
        }
    }
    let usage = &view.usage;
    text.push_str(&format!(
        "\n{:.1} core-seconds, {} examples, {} tokens, {} read",
        usage.core_seconds,
        usage.examples,
        usage.tokens,
        bytes(usage.bytes_read)
    ));
    if let Some(ended) = view.ended_ms {
        let seconds = ended.saturating_sub(view.submitted_ms) as f64 / 1000.0;
        text.push_str(&format!(", {} from submission to end", duration(seconds)));
    }
    text.push('\n');
    text
}

fn standing(view: &JobView, rests: bool) -> String {
    if rests && view.outcome.is_none() { RESTS.to_owned() } else { outcome(view) }
}

fn outcome(view: &JobView) -> String {
    match view.outcome {
        None => "runs".to_owned(),
        Some(Outcome::Succeeded) => "done".to_owned(),
        Some(Outcome::ExpectationMissed) => {
            let missed = view.stages.iter().filter(|stage| stage.missed() == Some(true)).count();
            format!("done, {missed} expectation{} missed", if missed == 1 { "" } else { "s" })
        }
        Some(Outcome::Failed) => "failed".to_owned(),
        Some(Outcome::Cancelled) => "cancelled".to_owned(),
    }
}

pub(crate) fn new_table(header: &[&str], color: bool) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Dynamic).set_width(u16::MAX);
    if color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(header.iter().map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
    table
}

pub(super) fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn stages(view: &JobView, color: bool) -> String {
    let header = [
        "task",
        "method",
        "metric",
        "score",
        "on",
        "expected",
        "",
        "best step",
        "parameters",
        "ex/s",
        "core-s",
        "read",
    ];
    let mut table = new_table(&header, color);
    for stage in view.stages.iter().filter(|stage| stage.trial.is_none()) {
        let result = stage.result.as_ref();
        let or_dash = |text: Option<String>| right(text.unwrap_or_else(|| "–".to_owned()));
        let rate = result.map(|result| result.usage).filter(|usage| usage.wall_seconds > 0.0 && usage.examples > 0);
        // Attempts that gave no result cost something too.
        let usage = Some(stage.usage).filter(|usage| result.is_some() || *usage != Usage::default());
        table.add_row([
            Cell::new(&stage.name),
            Cell::new(&stage.method),
            Cell::new(stage.metric),
            or_dash(stage.held_out_score().map(|score| format!("{score:.4}"))),
            Cell::new(scored_on(stage)),
            or_dash(stage.expect.map(|expect| format!("{expect:.4}"))),
            Cell::new(verdict(stage)),
            or_dash(result.map(|result| format!("{}/{}", result.best_step, stage.total_steps))),
            right(count(stage.trained_parameters)),
            or_dash(rate.map(|usage| format!("{:.0}", usage.examples as f64 / usage.wall_seconds))),
            or_dash(usage.map(|usage| format!("{:.1}", usage.core_seconds))),
            or_dash(usage.map(|usage| bytes(usage.bytes_read))),
        ]);
    }
    if let Some(methods) = table.column_mut(1) {
        methods.set_constraint(METHOD_WIDTH);
    }
    table.to_string()
}

/// On which rows the score was measured: on held-out ones where the task has them.
fn scored_on(stage: &StageView) -> &'static str {
    match stage.result.as_ref().map(|result| result.scores.contains_key(&Split::Test)) {
        Some(true) => "test",
        Some(false) => "validation",
        None => "",
    }
}

/// Plainly: met, missed, or where the stage stands.
fn verdict(stage: &StageView) -> String {
    let reused = matches!(stage.state, StageState::Trained { reused: true } | StageState::Published { reused: true });
    let verdict = match (stage.missed(), &stage.state) {
        (Some(true), _) => "✗ missed",
        (Some(false), _) => "✓",
        (None, StageState::Running { others, .. }) if !others.is_empty() => {
            return format!("runs on {} workers", others.len() + 1);
        }
        (None, StageState::Published { .. } | StageState::Trained { .. }) => "",
        (None, state) => state_word(state),
    };
    if reused { format!("{verdict} reused").trim().to_owned() } else { verdict.to_owned() }
}

pub(super) fn state_word(state: &StageState) -> &'static str {
    match state {
        StageState::Waiting { .. } => "waits",
        StageState::Ready { .. } => "ready",
        StageState::Running { .. } => "runs",
        StageState::Trained { .. } => "trained",
        StageState::Published { .. } => "published",
        StageState::Failed { .. } => "✗ failed",
        StageState::Cancelled { .. } => "cancelled",
        StageState::Stopped { .. } => "stopped",
        StageState::Chosen => "✓ chosen",
    }
}

fn fusions(view: &JobView) -> Option<String> {
    let mut table = new_table(&["fusion", "task", "metric", "single", "fusion", "difference"], false);
    for fusion in view.stages.iter().filter(|stage| stage.kind == StageKind::Fusion) {
        let single = view.stages.iter().find(|stage| Some(&stage.name) == fusion.task.as_ref());
        let (Some(single), Some(fused)) = (single.and_then(StageView::held_out_score), fusion.held_out_score()) else {
            continue;
        };
        table.add_row([
            Cell::new(&fusion.name),
            Cell::new(fusion.task.as_ref().map_or("", |task| task.as_str())),
            Cell::new(fusion.metric),
            right(format!("{single:.4}")),
            right(format!("{fused:.4}")),
            right(format!("{:+.4}", fused - single)),
        ]);
    }
    (table.row_count() > 0).then(|| table.to_string())
}

/// What is said of a job that nobody leads.
pub(crate) const RESTS: &str = "interrupted; `graftwork run` with its file goes on";

/// One line for `status`; `rests` says that nobody leads the job.
pub(crate) fn status_line(view: &JobView, rests: bool) -> String {
    let own = || view.stages.iter().filter(|stage| stage.trial.is_none());
    let done = own().filter(|stage| matches!(stage.state, StageState::Published { .. })).count();
    format!("{}  {:<20}  {:>3}/{} published  {}", view.id, view.name, done, own().count(), standing(view, rests))
}

fn count(number: u64) -> String {
    match number {
        0..=9_999 => number.to_string(),
        10_000..=9_999_999 => format!("{:.0}k", number as f64 / 1e3),
        _ => format!("{:.1}M", number as f64 / 1e6),
    }
}

/// Bytes in units that a person reads at a glance.
pub(crate) fn bytes(number: u64) -> String {
    match number {
        0..=9_999 => format!("{number} B"),
        10_000..=9_999_999 => format!("{:.0} kB", number as f64 / 1e3),
        10_000_000..=9_999_999_999 => format!("{:.1} MB", number as f64 / 1e6),
        _ => format!("{:.1} GB", number as f64 / 1e9),
    }
}
