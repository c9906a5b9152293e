//! Repeats exactly one measurement of a stored night: its resolved job, this task or fusion alone, all its seeds.

use anyhow::anyhow;
use graftwork_shared::{job::Spans, view::StageView};

use super::{
    Arguments, costs,
    expand::{measured, seeded},
    history::History,
    night::{Night, gather},
    scores::seeds,
};
use crate::{
    cli::{DONE, Failure, INPUT, INTERRUPTED, print, show_problems},
    publish::job_of_stage,
    run::{self, End, Training},
};

pub(super) async fn repeat(history: &History, night: Night, task: &str, arguments: &Arguments) -> Result<u8, Failure> {
    let task = &super::known_task(&night, task)?;
    let stored = seeds(&night, task);
    // Without them there is nothing to hold the repetition against.
    let kept = history.book(&night).map_err(Failure::input)?;
    let mut job = night.job.clone();
    (job.tasks, job.fusions) = (Vec::new(), Vec::new());
    for measured in &stored {
        let part = job_of_stage(&night.job, &seeded(task, measured.seed)?);
        job.tasks.extend(part.tasks);
        job.fusions.extend(part.fusions);
    }
    let folder = tempfile::Builder::new().prefix("graftwork-nightly-").tempdir()?;
    job.publish.hub = folder.path().join("hub").display().to_string();
    let training = Training {
        workers: arguments.processes.workers.unwrap_or(job.resources.workers),
        threads: run::threads(&job, arguments.processes.threads),
        job,
        spans: Spans::default(),
        folder: folder.path().join("state"),
        progress: arguments.processes.progress,
        again: false,
        reuse: false,
        go_on: "the same command (from the start)".to_owned(),
    };
    let view = match run::train(training).await? {
        End::Ended(view, _) => view,
        End::Interrupted => return Ok(INTERRUPTED),
        End::Changed(words) => return Err(Failure::input(anyhow!(words))),
        End::Refused(problems) => {
            show_problems("", "the job of that night", &problems);
            return Ok(INPUT);
        }
    };
    let mut wanted = *view;
    wanted.stages.retain(|stage: &StageView| measured(&stage.name).is_some_and(|(name, _)| name == *task));
    let (again, book, failed) = gather(&wanted)?;
    let (mut text, mut different) = (String::new(), failed.len());
    for problem in &failed {
        text.push_str(&format!("✗ {} {}\n", problem.name, problem.message));
    }
    for new in &again {
        let old = stored.iter().find(|old| old.seed == new.seed);
        let key = (task.clone(), new.seed);
        let answers = book.0.get(&key) == kept.0.get(&key);
        let score =
            |measured: &super::night::Measurement| measured.scores.get(&measured.metric).copied().unwrap_or(f64::NAN);
        let (before, tensors) = old.map_or((f64::NAN, false), |old| (score(old), old.weights == new.weights));
        different += usize::from(!answers);
        let mark = if answers { "✓" } else { "✗" };
        let words = match (answers, tensors) {
            (true, true) => "the same tensors and answers",
            (true, false) => "the same answers from other tensors",
            (false, _) => "other answers",
        };
        text.push_str(&format!(
            "{mark} {task}, seed {}: {words}, {} {:.4} (night {}: {before:.4})\n",
            new.seed,
            new.metric,
            score(new),
            night.number
        ));
    }
    // Once more is no verdict on what is noisy, but shows whether anything is left of it.
    let [now, before] = [again.iter().collect(), stored].map(|measured: Vec<_>| costs::of_task(&measured));
    for ((what, now), (_, before)) in now.into_iter().zip(before) {
        if let Some((now, before)) = now.zip(before).filter(|(now, before)| *now > 0.0 && *before > 0.0) {
            text.push_str(&format!("{task}: {now:.2} {what} (night {}: {before:.2})\n", night.number));
        }
    }
    print(&text);
    Ok(if different == 0 { DONE } else { INPUT })
}
