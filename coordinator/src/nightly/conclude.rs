//! The end of a night: compared, written beside its history, posted, and older nights removed.
//!
//! A file of an old night that cannot be read is told, and the night is compared with the newest one that can. Nothing here
//! keeps a night that was trained from its end: what cannot be compared is said, and later nights go on.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use graftwork_shared::{cause::told, job::Nightly};
use graftwork_verdict::{CostFinding, Finding};
use graftwork_web::{Curves, NightOutcome, NightlyView, Problem, nightly_page};

use super::{
    answers::Book,
    compare::{self, Commands, Compared, Known},
    curves,
    history::History,
    night::Night,
    output,
    scores::Opened,
    texts,
    versions::Repository,
    webhook,
};
use crate::cli::{DONE, Failure, INPUT, MISSED};

/// Which comparison of a stored night is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) number: u64,
    /// Another night than the last good one before it.
    pub(super) against: Option<u64>,
    /// It is only looked at once more: nothing is remembered, posted, removed or written over.
    pub(super) again: bool,
}

/// What a night came to.
pub(super) struct Concluded {
    pub(super) view: NightlyView,
    pub(super) page: PathBuf,
    /// An expectation of the job file was missed.
    missed: bool,
}

impl Concluded {
    pub(super) fn new(view: NightlyView, page: PathBuf, missed: bool) -> Self {
        Self { view, page, missed }
    }

    /// The exit code that says it.
    pub(super) fn code(&self) -> u8 {
        match self.view.outcome {
            NightOutcome::Regressed => INPUT,
            _ if self.missed => MISSED,
            _ => DONE,
        }
    }
}

/// Compares a stored night and says so everywhere.
pub(super) async fn conclude(
    history: &History,
    wanted: Wanted,
    nightly: &Nightly,
    commands: &Commands,
) -> Result<Concluded, Failure> {
    let Wanted { number, again, .. } = wanted;
    let mut kept = history.nights()?;
    let mut nights = history.known_beside(kept.clone())?;
    nights.retain(|night| night.number <= number);
    let Some(night) = nights.last().filter(|night| night.number == number).cloned() else {
        return Err(anyhow!("night {number} is gone from the history").into());
    };
    let mut notes = Vec::new();
    let book = own_answers(history, &night, &mut notes);
    let before = if notes.is_empty() { baseline(history, &kept, wanted, &mut notes)? } else { None };
    let opened = before.as_ref().map(|(night, book)| Opened { night, book });
    let tonight = Opened { night: &night, book: &book };
    let known = Known { nights: &nights, notes: &notes };
    let Compared { mut view, judged } = compare::compare(tonight, opened, known, nightly, commands);
    if let Some((before, _)) = &before
        && view.scores.iter().any(|row| row.verdict.finding == Finding::Regressed)
    {
        view.commits = commits(&commands.file, before, &night);
    }
    for cost in view.costs.iter_mut().filter(|cost| cost.change.finding == CostFinding::Regressed) {
        let known = |number: u64| nights.iter().find(|night| night.number == number);
        if let Some((before, after)) = cost.last_before().and_then(known).zip(known(cost.since)) {
            cost.commits = commits(&commands.file, before, after);
        }
    }
    texts::show(&mut view, &night).await;
    let curves = Curves {
        now: curves_of(history, number),
        before: before.as_ref().map(|(night, _)| curves_of(history, night.number)).unwrap_or_default(),
    };
    if again {
        // What was said of the night stays what it was.
        let page = write(&history.compared_folder(), &view, &curves)?;
        return Ok(Concluded::new(view, page, night.missed));
    }
    let page = write(&history.folder_of(number), &view, &curves)?;
    // From here on it needs no further comparing, whatever ends this process.
    let judged = Night { judged: Some(judged), ..night };
    history.rewrite(&judged)?;
    if let Some(variable) = &nightly.webhook
        && let Err(words) = webhook::post(variable, &view).await
    {
        history.tell(&words);
    }
    let missed = judged.missed;
    kept.retain(|night| night.number < number);
    kept.push(judged);
    if let Err(failure) = history.prune(&kept, nightly.keep) {
        history.tell(&format!("older nights stay until the next one ends: {}", told(failure.error.as_ref())));
    }
    Ok(Concluded::new(view, page, missed))
}

/// Sets a night aside that is not compared: it stays as it was trained and is no baseline, and another one may begin. One that
/// cannot be read is none.
pub(super) fn without_verdict(history: &History, number: u64) -> Result<(), Failure> {
    let nights = history.nights()?;
    let Some(night) = nights.iter().find(|night| night.number == number) else { return Ok(()) };
    let judged = Some(compare::without_verdict(&nights, number));
    Ok(history.rewrite(&Night { judged, ..night.clone() })?)
}

/// The answers of the night itself. Without them it fails, and is no baseline.
fn own_answers(history: &History, night: &Night, notes: &mut Vec<Problem>) -> Book {
    history.book(night).unwrap_or_else(|error| {
        let message = format!("cannot be compared with any other night: {}", told(error.as_ref()));
        history.tell(&format!("{} {message}", night.title()));
        notes.push(Problem { name: night.title(), message, fails: true });
        Book::default()
    })
}

/// Commits after one night's up to another's, where both name one and the job file's repository holds them.
fn commits(file: &Path, before: &Night, after: &Night) -> Vec<String> {
    if ![before, after].iter().all(|night| night.code.is_commit()) {
        return Vec::new();
    }
    let told = Repository::of(file).and_then(|repository| {
        let of = |night: &Night| repository.commit(&night.code.name);
        repository.told(&of(before)?, &of(after)?)
    });
    // A coordinator may run far from any repository.
    told.unwrap_or_default()
}

/// The night to compare with, and its answers: the one that is named, or the last good one whose answers can be read.
fn baseline(
    history: &History,
    kept: &[Night],
    wanted: Wanted,
    notes: &mut Vec<Problem>,
) -> Result<Option<(Night, Book)>, Failure> {
    let number = wanted.number;
    if let Some(against) = wanted.against {
        if against >= number {
            return Err(Failure::input(anyhow!("night {against} is no earlier night than {number}")));
        }
        let night = history.night(against)?;
        let book = history.book(&night).map_err(Failure::input)?;
        return Ok(Some((night, book)));
    }
    let mut last: Option<&Night> = None;
    for night in compare::baselines(kept, number) {
        match history.book(night) {
            Ok(book) => return Ok(Some((night.clone(), book))),
            Err(error) => {
                last.get_or_insert(night);
                let message = format!("is no longer compared with: {}", told(error.as_ref()));
                history.tell(&format!("{} {message}", night.title()));
                notes.push(Problem { name: night.title(), message, fails: false });
            }
        }
    }
    // A first night has no verdict, and this one is none: what came in between may have made it worse.
    if let Some(night) = last {
        let message = format!(
            "was the last good night, and no good one can be read any more: look at this night's scores, bring back {} \
             or remove it, and compare again with --compare {number}",
            history.folder_of(night.number).display()
        );
        notes.push(Problem { name: night.title(), message, fails: true });
    }
    Ok(None)
}

/// A page without curves says so.
fn curves_of(history: &History, number: u64) -> Vec<graftwork_web::Curve> {
    curves::read(&history.folder_of(number)).unwrap_or_else(|failure| {
        history.tell(&format!("the page has no learning curves of night {number}: {}", failure.error));
        Vec::new()
    })
}

/// Writes all that is said of a comparison into a folder; gives the page.
pub(super) fn write(folder: &Path, view: &NightlyView, curves: &Curves) -> Result<PathBuf, Failure> {
    let page = folder.join("nightly.html");
    let files = [
        (folder.join("nightly.json"), output::json(view)?),
        (folder.join("nightly.md"), output::markdown(view)),
        (folder.join("junit.xml"), output::junit(view)),
        (page.clone(), nightly_page(view, curves)),
    ];
    for (path, text) in files {
        graftwork_store::write_atomically(&path, text.as_bytes())?;
    }
    Ok(page)
}
