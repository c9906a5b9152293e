//! What was asked in the rows whose answers got worse: read anew for whoever looks at them, and only where the rows are
//! still those that were measured.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_shared::{id::Name, job::Task};
use graftwork_verdict::Finding;
use graftwork_web::{NightlyView, Problem};

use super::{
    expand::seeded,
    night::{Measurement, Night},
};
use crate::planner::read_texts;

/// Characters of a text that are shown.
const SHOWN: usize = 120;

/// Puts the beginning of its text beside each listed row of what got worse, or may have. Where that cannot be had, it is said.
pub(super) async fn show(view: &mut NightlyView, night: &Night) {
    let lower = |finding| matches!(finding, Finding::Regressed | Finding::Suspected);
    for row in view.scores.iter_mut().filter(|row| lower(row.verdict.finding) && !row.flipped.is_empty()) {
        let wanted = row.flipped.iter().map(|flip| flip.row).collect();
        match texts(night, &row.task, wanted).await {
            Ok(mut texts) => row.flipped.iter_mut().for_each(|flip| flip.text = texts.remove(&flip.row)),
            Err(why) => {
                let message = format!("has its rows without their texts: {why}");
                view.problems.push(Problem { name: row.task.clone(), message, fails: false });
            }
        }
    }
}

async fn texts(night: &Night, task: &str, wanted: BTreeSet<u64>) -> Result<BTreeMap<u64, String>, String> {
    let measured = night.measurements.iter().find(|measured| measured.task.as_str() == task);
    let (measured, task) = measured
        .and_then(|measured| Some((measured, asked_of(night, measured)?)))
        .ok_or("the job does not say where they lie")?;
    let (texts, digest) = read_texts(task, measured.split, wanted).await?;
    if measured.data != Some(digest) {
        return Err("they are other ones by now".to_owned());
    }
    Ok(texts.into_iter().map(|(row, texts)| (row, beginning(&texts.join(" / ")))).collect())
}

/// The task whose rows a measurement is of; a version that is measured beside another one has names without seeds here.
fn asked_of<'n>(night: &'n Night, measured: &Measurement) -> Option<&'n Task> {
    let named = [seeded(&measured.task, measured.seed).ok(), Some(measured.task.clone())];
    let is = |name: &Name| named.contains(&Some(name.clone()));
    let fused = night.job.fusions.iter().find(|fusion| is(&fusion.name)).map(|fusion| &fusion.task);
    night.job.tasks.iter().find(|task| fused.map_or_else(|| is(&task.name), |of| task.name == *of))
}

/// The first words of a text, in one line, without what a terminal would obey.
fn beginning(text: &str) -> String {
    let plain = text.replace(|letter: char| letter.is_control(), " ");
    let line = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
