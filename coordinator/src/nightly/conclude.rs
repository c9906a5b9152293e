//! The end of a night: compared, written beside its history, posted, and older nights removed.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use graftwork_shared::job::Nightly;
use graftwork_web::{NightOutcome, NightlyView, nightly_page};

use super::{
    compare::{self, Commands, Compared},
    history::History,
    night::Night,
    output,
    scores::Opened,
    webhook,
};
use crate::cli::{DONE, Failure, INPUT, MISSED};

/// Which comparison of a stored night is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) number: u64,
    /// Another night than the last good one before it.
    pub(super) against: Option<u64>,
    /// It is only looked at once more: nothing is remembered, posted or removed.
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
    let Wanted { number, against, again } = wanted;
    let mut nights = history.nights()?;
    nights.retain(|night| night.number <= number);
    let Some(night) = nights.last().filter(|night| night.number == number).cloned() else {
        return Err(anyhow!("night {number} is gone from the history").into());
    };
    let baseline = match against {
        Some(against) if against >= number => {
            return Err(Failure::input(anyhow!("night {against} is no earlier night than {number}")));
        }
        Some(against) => Some(against),
        None => compare::baseline(&nights, number),
    };
    let baseline = baseline.map(|number| history.night(number)).transpose()?;
    let book = history.book(&night)?;
    let baseline_book = baseline.as_ref().map(|night| history.book(night)).transpose()?;
    let opened = baseline.as_ref().zip(baseline_book.as_ref()).map(|(night, book)| Opened { night, book });
    let tonight = Opened { night: &night, book: &book };
    let Compared { view, judged } = compare::compare(tonight, opened, &nights, nightly, commands);
    // Looking at an old night again, or at another baseline, changes nothing of what is remembered.
    if !again {
        history.rewrite(&Night { judged: Some(judged), ..night.clone() })?;
    }
    let page = write(&history.folder_of(number), &view)?;
    if !again {
        if let Some(variable) = &nightly.webhook
            && let Err(words) = webhook::post(variable, &view).await
        {
            history.tell(&words);
        }
        history.prune(&history.nights()?, nightly.keep)?;
    }
    Ok(Concluded::new(view, page, night.missed))
}

/// Writes all that is said of a comparison into a folder; gives the page.
pub(super) fn write(folder: &Path, view: &NightlyView) -> Result<PathBuf, Failure> {
    let page = folder.join("nightly.html");
    let files = [
        (folder.join("nightly.json"), output::json(view)?),
        (folder.join("nightly.md"), output::markdown(view)),
        (folder.join("junit.xml"), output::junit(view)),
        (page.clone(), nightly_page(view)),
    ];
    for (path, text) in files {
        graftwork_store::write_atomically(&path, text.as_bytes())?;
    }
    Ok(page)
}
