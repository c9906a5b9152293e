//! The night that is under way: what it trains, and what is kept of it when its job has ended.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use graftwork_shared::{digest::Digest, event::Outcome, job::Job, view::JobView};

use super::{
    expand::expand,
    history::{History, Tonight},
    night::{Code, LAYOUT, Night, gather},
};
use crate::{cli::Failure, run::Recovery};

/// A night that is ready to be trained.
pub(super) struct Prepared {
    pub(super) tonight: Tonight,
    pub(super) code: Code,
    /// Each task and fusion once for each seed, publishing into a folder of this night alone.
    pub(super) job: Job,
}

/// Begins a night of a job, or goes on with the one that was interrupted.
pub(super) fn prepare(history: &History, job: &Job, code: Code) -> Result<Prepared, Failure> {
    // The folder is this night's own, so that no coordinator takes its job for an earlier night's.
    let hub = history.tonight_folder().join("hub").join(format!("{:06}", history.next_number()?));
    let expanded = expand(job, &hub.display().to_string())?;
    // The programs belong to it: a night is measured by one code from its beginning to its end.
    let digest = Digest::of_value("graftwork night", &(expanded.digest(), &code.version, code.numerics, &code.name));
    let tonight = history.begin(digest, now_ms())?;
    if tonight.resumed > 0 {
        history.tell(&format!("night {} goes on where it was interrupted", tonight.number));
    }
    Ok(Prepared { tonight, code, job: expanded })
}

/// Keeps what a night measured, and removes its training.
pub(super) fn keep(
    history: &History,
    prepared: Prepared,
    view: &JobView,
    recoveries: Vec<Recovery>,
) -> Result<u64, Failure> {
    let Prepared { tonight, code, job } = prepared;
    if view.outcome == Some(Outcome::Cancelled) {
        let words = format!("night {} was cancelled; the same command goes on with it", tonight.number);
        return Err(Failure::input(anyhow!(words)));
    }
    let (measurements, book, failed) = gather(view)?;
    let night = Night {
        layout: LAYOUT,
        number: tonight.number,
        began_ms: tonight.began_ms,
        ended_ms: view.ended_ms.unwrap_or_else(now_ms),
        resumed: tonight.resumed,
        code,
        job,
        measurements,
        failed,
        missed: view.outcome == Some(Outcome::ExpectationMissed),
        usage: view.usage,
        recoveries,
        judged: None,
    };
    let folder = history.folder_of(night.number);
    // Learning curves and attention of fusions are on the job's own page.
    graftwork_store::write_atomically(&folder.join("job.html"), graftwork_web::report_page(view).as_bytes())?;
    history.keep(&night, &book)?;
    history.forget_tonight()?;
    Ok(night.number)
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
