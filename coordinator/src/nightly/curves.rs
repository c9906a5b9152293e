//! How the stages of a night were trained: learning curves and attention, kept beside its answers for its page.

use std::path::Path;

use anyhow::anyhow;
use graftwork_shared::{
    id::Name,
    view::{JobView, StageView},
};
use graftwork_web::Curve;

use super::{expand::measured, history::read_if_there};
use crate::cli::Failure;

/// The file in the folder of a night.
const CURVES: &str = "curves.json";
/// Points of a line: more are not seen on a page.
const MOST_POINTS: usize = 120;

/// Those of all stages of a night's job.
pub(super) fn of(view: &JobView) -> Vec<Curve> {
    view.stages.iter().filter_map(curve).collect()
}

fn curve(stage: &StageView) -> Option<Curve> {
    let (task, seed) = measured(&stage.name)?;
    let scores = stage.validation.iter().filter_map(|e| Some((e.step, *e.metrics.get(&stage.metric)?)));
    let attention = stage.result.as_ref().map(|result| result.attention.clone()).unwrap_or_default();
    let is_whole = attention.iter().flatten().all(|share| share.is_finite());
    Some(Curve {
        task: task.to_string(),
        seed,
        metric: stage.metric.to_string(),
        scores: thinned(scores.collect()),
        loss: thinned(stage.curve.iter().map(|report| (report.step, report.loss)).collect()),
        validation: thinned(stage.validation.iter().map(|e| (e.step, e.loss)).collect()),
        fused: stage.fused.iter().map(|name| unseeded(name)).collect(),
        attention: if is_whole { attention } else { Vec::new() },
    })
}

/// The task of a stage's name; what else is fused keeps its own.
fn unseeded(name: &str) -> String {
    let task = name.parse::<Name>().ok().and_then(|name| measured(&name));
    task.map_or_else(|| name.to_owned(), |(task, _)| task.to_string())
}

/// At most so many of the points, the first and the last of them among these; what is no number is not drawn, and JSON
/// has no word for it.
fn thinned(mut points: Vec<(u64, f64)>) -> Vec<(u64, f64)> {
    points.retain(|(_, value)| value.is_finite());
    let last = points.len().saturating_sub(1);
    if points.len() <= MOST_POINTS {
        return points;
    }
    (0..MOST_POINTS).map(|at| points[at * last / (MOST_POINTS - 1)]).collect()
}

/// Keeps them in the folder of a night.
pub(super) fn keep(folder: &Path, curves: &[Curve]) -> anyhow::Result<()> {
    Ok(graftwork_store::write_atomically(&folder.join(CURVES), &serde_json::to_vec(curves)?)?)
}

/// Those of a stored night; `Err` says why there are none.
pub(super) fn read(folder: &Path) -> Result<Vec<Curve>, Failure> {
    let path = folder.join(CURVES);
    let words = || Failure::input(anyhow!("{} is not there: an earlier version did not keep it", path.display()));
    read_if_there(&path)?.ok_or_else(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thinned_line_keeps_its_ends_and_drops_what_is_no_number() {
        let points: Vec<(u64, f64)> = (0..1_000).map(|step| (step, step as f64)).collect();
        let thin = thinned(points);
        assert_eq!((thin.len(), thin[0].0, thin[MOST_POINTS - 1].0), (MOST_POINTS, 0, 999));
        assert!(thin.is_sorted_by_key(|(step, _)| *step));
        assert_eq!(thinned(vec![(1, f64::NAN), (2, 0.5), (3, f64::INFINITY)]), [(2, 0.5)]);
    }

    #[test]
    fn names_of_fused_adapters_lose_their_seed() {
        assert_eq!((unseeded("mood-seed-3"), unseeded("hub/one")), ("mood".to_owned(), "hub/one".to_owned()));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap_err().error.to_string().contains("curves.json is not there"));
        keep(folder.path(), &[]).unwrap();
        assert!(read(folder.path()).unwrap().is_empty());
        std::fs::write(folder.path().join(CURVES), b"[{").unwrap();
        assert!(read(folder.path()).unwrap_err().error.to_string().contains("curves.json is damaged"));
    }
}
