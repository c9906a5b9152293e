//! The night that is under way: what it trains, and what is kept of it when its job has ended.
//!
//! A night is one job over one set of rows, measured by one set of programs from its beginning to its end. What is
//! measured names its folder, and so its job: nobody goes on with a night of something else.

use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::anyhow;
use graftwork_shared::{
    cause::told,
    digest::Digest,
    event::Outcome,
    id::Name,
    job::Job,
    view::{JobView, StageView},
};
use graftwork_web::Problem;

use super::{
    answers::Book,
    curves,
    expand::measured,
    history::{History, Tonight},
    night::{Code, LAYOUT, Night, gather},
    passing::may_pass,
};
use crate::{cli::Failure, run::Recovery};

/// A night that is ready to be trained.
pub(super) struct Prepared {
    pub(super) tonight: Tonight,
    pub(super) code: Code,
    /// Each task and fusion once for each seed, publishing into a folder of this night alone.
    pub(super) job: Job,
    /// It runs on workers that are not of this night alone.
    pub(super) shared: bool,
}

/// Begins a night, or goes on with the one that was interrupted. `job` has each task and fusion once for each seed, and
/// `of` is the digest of it, with its rows where they were read.
pub(super) fn prepare(history: &History, mut job: Job, of: Digest, code: Code) -> Result<Prepared, Failure> {
    // A name that stays while its programs change makes them no other night's.
    let code_of = (&code.version, code.numerics, &code.name, &code.programs);
    let measured = Digest::of_value("graftwork night", &(of, code_of));
    let tonight = history.begin(measured, now_ms())?;
    if tonight.resumed > 0 {
        history.tell(&format!("night {} goes on where it was interrupted", tonight.number));
    }
    // It is part of the job: no coordinator takes it for an earlier night's, or for one of other programs.
    let folder = format!("{:06}-{}", tonight.number, measured.short());
    job.publish.hub = history.hub(&folder);
    Ok(Prepared { tonight, code, job, shared: false })
}

/// Keeps what a night measured, and removes its training. Where that can never be kept, the night is kept as one that failed
/// and says why; an error is of what may be kept later, or of a night of which not even that can be.
pub(super) fn keep(
    history: &History,
    prepared: Prepared,
    view: &JobView,
    recoveries: Vec<Recovery>,
) -> Result<u64, Failure> {
    let Prepared { tonight, code, job, shared } = prepared;
    if view.outcome == Some(Outcome::Cancelled) {
        let words = format!("night {} was cancelled; the same command goes on with it", tonight.number);
        return Err(Failure::input(anyhow!(words)));
    }
    let lasting = |error: &anyhow::Error| {
        let why = told(error.as_ref());
        history.tell(&format!("night {} failed, since it cannot be kept: {why}", tonight.number));
        unkept(view, &why)
    };
    let (measurements, book, failed) = match gather(view) {
        Err(error) if !may_pass(&error) => (Vec::new(), Book::default(), lasting(&error)),
        gathered => gathered?,
    };
    let mut night = Night {
        layout: LAYOUT,
        number: tonight.number,
        began_ms: tonight.began_ms,
        ended_ms: view.ended_ms.unwrap_or_else(now_ms),
        resumed: tonight.resumed,
        shared,
        code,
        job,
        measurements,
        failed,
        missed: view.outcome == Some(Outcome::ExpectationMissed),
        usage: view.usage,
        recoveries,
        answers: None,
        judged: None,
    };
    match store(history, &night, &book, view) {
        Err(error) if !may_pass(&error) => {
            (night.measurements, night.failed) = (Vec::new(), lasting(&error));
            history.keep(&night, &Book::default())?;
        }
        stored => stored?,
    }
    history.forget_tonight()?;
    Ok(night.number)
}

/// Writes all that is kept of a night.
fn store(history: &History, night: &Night, book: &Book, view: &JobView) -> anyhow::Result<()> {
    let folder = history.folder_of(night.number);
    // Learning curves stage by stage, and all else of the job, are on its own page.
    graftwork_store::write_atomically(&folder.join("job.html"), graftwork_web::report_page(view).as_bytes())?;
    curves::keep(&folder, &curves::of(view))?;
    history.keep(night, book)
}

/// That nothing could be kept, of each task and fusion once.
fn unkept(view: &JobView, why: &str) -> Vec<Problem> {
    let name = |stage: &StageView| measured(&stage.name).map_or_else(|| stage.name.clone(), |(task, _)| task);
    let names: BTreeSet<Name> = view.stages.iter().map(name).collect();
    let message = format!("has no score: the night cannot be kept: {why}");
    names.iter().map(|name| Problem { name: name.to_string(), message: message.clone(), fails: true }).collect()
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::expand::expand, *};
    use crate::fixture::{TASK, World};

    fn code(name: &str, programs: &str) -> Code {
        Code { version: "0.1.0".to_owned(), numerics: 2, name: name.to_owned(), programs: programs.to_owned() }
    }

    #[test]
    fn another_job_other_rows_and_other_programs_are_another_night_in_another_folder() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(folder.path().to_owned(), |_| {}).unwrap();
        let (_, parsed) = World::new().parse(TASK);
        let job = expand(&parsed.job.unwrap()).unwrap();
        let prepared = |of: &[u8], code| prepare(&history, job.clone(), Digest::of(of), code).unwrap();
        let first = prepared(b"rows", code("main", "aaaa"));
        assert!(first.job.publish.hub.contains("tonight/hub/000001-"), "{}", first.job.publish.hub);
        let again = prepared(b"rows", code("main", "aaaa"));
        assert_eq!((again.tonight.resumed, &again.job), (1, &first.job), "the same one goes on");
        let mut hubs = vec![first.job.publish.hub];
        for (of, code) in
            [(b"others", code("main", "aaaa")), (b"others", code("main", "bbbb")), (b"others", code("other", "bbbb"))]
        {
            let next = prepared(of, code);
            assert_eq!((next.tonight.number, next.tonight.resumed), (1, 0));
            assert!(!hubs.contains(&next.job.publish.hub), "{hubs:?}");
            hubs.push(next.job.publish.hub);
        }
    }
}
