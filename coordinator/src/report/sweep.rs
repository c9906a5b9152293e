//! The trials of swept tasks, as tables for a terminal.

use comfy_table::Cell;
use graftwork_shared::{
    sweep::{SweepView, values_line},
    view::{JobView, StageState, StageView},
};

use super::table::{METHOD_WIDTH, new_table, right, state_word};

/// One table for each swept task, with what its comparisons saved.
pub(super) fn tables(view: &JobView, color: bool) -> String {
    let swept = view.stages.iter().filter_map(|stage| Some((stage, stage.sweep.as_ref()?)));
    swept.map(|(stage, sweep)| table(view, stage, sweep, color)).collect()
}

fn table(view: &JobView, task: &StageView, sweep: &SweepView, color: bool) -> String {
    let mut table = new_table(&["trial", "values", "rung", "step", "validation", "", "core-s"], color);
    let name = &task.name;
    let trials = || {
        let of_task = move |stage: &&StageView| stage.trial.as_ref().is_some_and(|trial| trial.task == *name);
        view.stages.iter().filter(of_task)
    };
    for stage in trials() {
        let Some(trial) = &stage.trial else { continue };
        let last = trial.scores.last();
        table.add_row([
            right(trial.number),
            Cell::new(values_line(&trial.values)),
            right(format!("{}/{}", trial.scores.len(), sweep.rungs.len())),
            right(last.map_or("–".to_owned(), |score| score.step.to_string())),
            right(last.map_or("–".to_owned(), ToString::to_string)),
            Cell::new(word(&stage.state, last.is_some())),
            right(format!("{:.1}", stage.usage.core_seconds)),
        ]);
    }
    if let Some(values) = table.column_mut(1) {
        values.set_constraint(METHOD_WIDTH);
    }
    let asynchronous = sweep.halving.is_some_and(|halving| halving.asynchronous);
    let note = if asynchronous { ", asynchronous: timing had a part in who went on" } else { "" };
    let of = if sweep.combinations > sweep.trials.len() as u64 {
        format!(" of {} combinations", sweep.combinations)
    } else {
        String::new()
    };
    let mut text =
        format!("\ntrials of {}: {}{of}, by {}{note}\n{table}\n", task.name, sweep.trials.len(), task.metric);
    let all: u64 = trials().map(|stage| stage.total_steps).sum();
    if sweep.saved_steps > 0 {
        let share = sweep.saved_steps as f64 / all.max(1) as f64;
        text.push_str(&format!(
            "{} of {all} updates ({:.0} %) were saved, about {:.1} core-seconds\n",
            sweep.saved_steps,
            100.0 * share,
            sweep.saved_core_seconds
        ));
    }
    text
}

fn word(state: &StageState, scored: bool) -> &'static str {
    match state {
        StageState::Waiting { .. } if scored => "waits for its rung",
        other => state_word(other),
    }
}
